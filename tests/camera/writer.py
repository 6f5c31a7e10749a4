"""Shows a still picture on the camera until it is told to end; what it has to say goes to standard output, a line each.

    python writer.py SEED SHAPE [SIDE]      # SHAPE: square or wide
"""

import signal
import sys
import time

import numpy as np
from pictures import picture

from transports.media import MediaFormat, MediaFrame, TransportError
from transports.virtual_camera import CameraOptions, VirtualCameraSink


def main(seed: int, shape: str, side: int) -> int:
    sink = VirtualCameraSink(CameraOptions(shape=shape, fps=10))
    try:
        sink.open(MediaFormat(side, side, 45, 16_000))
    except TransportError as error:
        print(f"refused: {error}", flush=True)
        return 2
    ending: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ending.append(number))
    image, index, said, showing = picture(seed, side), 0, "", False
    while not ending:
        sink.send(MediaFrame(index, 0, image, np.zeros(0, np.float32), time.monotonic()))
        index += 1
        time.sleep(0.1)
        if sink.sent and not showing:
            showing = True
            print("showing", flush=True)
        problem = sink.check()
        if problem != said:
            said = problem
            print(f"problem: {problem}" if problem else "well again", flush=True)
    sink.close()
    print("ended", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 512))
