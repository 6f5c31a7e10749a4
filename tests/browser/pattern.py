"""A head of which every moment is known: black with silence, white with a tone for 0.1 s at each whole second.

Serves it by WHEP at / of a free port of the loopback interface, says which, and ends with its standard input. It is a
process of its own, so that nothing of the test holds it up.
"""

import asyncio
import sys
import time

import numpy as np
from aiohttp import web

from transports.media import MediaFormat, MediaFrame
from transports.webrtc.broadcast import Broadcast
from transports.webrtc.options import WebRtcOptions
from transports.webrtc.whep import whep_routes

SIDE, FPS, RATE = 256, 45, 16_000
FORM = MediaFormat(SIDE, SIDE, FPS, RATE)


def moment(index: int) -> tuple[np.ndarray, np.ndarray, int]:
    """The picture and the sound of frame `index`, and where its sound begins."""
    begins, ends = -(-index * RATE // FPS), -(-(index + 1) * RATE // FPS)
    marked = index % FPS < FPS // 10
    image = np.full((SIDE, SIDE, 3), 235 if marked else 16, np.uint8)
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(begins, ends) / RATE)
    return image, (tone if marked else np.zeros(ends - begins)).astype(np.float32), begins


async def main() -> None:
    broadcast = Broadcast(WebRtcOptions())
    broadcast.open(FORM)
    app = web.Application()
    app.add_routes(whep_routes(broadcast))
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    print(f"open {runner.addresses[0][0]}:{runner.addresses[0][1]}", flush=True)
    began, index = time.monotonic(), 0
    while not ended.done():
        image, sound, pts = moment(index)
        due = began + index / FPS
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        broadcast.send(MediaFrame(index, pts, image, sound, due))
        index += 1
    await broadcast.aclose()
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
