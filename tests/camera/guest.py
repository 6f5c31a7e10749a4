"""Inside the emulated machine: our sink writes into a real v4l2 device, v4l2-ctl reads it, a line for each check."""

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
from pictures import picture, reference_i420

from transports.virtual_camera import compose, to_i420, virtual_devices

DEVICE = "/dev/video0"
#: Emulation is slow; whatever takes longer than this hangs.
PATIENCE = 60.0
HERE = Path(__file__).parent


def driver(command: str) -> subprocess.CompletedProcess:
    """insmod or rmmod v4l2loopback, as `modprobe v4l2loopback exclusive_caps=1 card_label=ifmdm` would."""
    options = ["exclusive_caps=1", "card_label=ifmdm"]
    words = ["/run/v4l2loopback.ko", *options] if command == "insmod" else ["v4l2loopback"]
    return subprocess.run(["/run/busybox", command, *words], capture_output=True, text=True)


class Writer:
    """writer.py as a process."""

    running: ClassVar[list[subprocess.Popen]] = []

    def __init__(self, seed: int, shape: str = "square") -> None:
        command = [sys.executable, "-u", str(HERE / "writer.py"), str(seed), shape]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        Writer.running.append(self.process)
        self.heard: list[str] = []
        self._rest = b""

    def wait_for(self, word: str) -> str:
        """The first line from now on that has the word in it."""
        until, seen = time.monotonic() + PATIENCE, len(self.heard)
        while True:
            for line in self.heard[seen:]:
                if word in line:
                    return line
            seen = len(self.heard)
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, until - time.monotonic()))
            data = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            if not data:
                raise AssertionError(f"the writer never said {word!r}; it said {self.heard}")
            *lines, self._rest = (self._rest + data).split(b"\n")
            self.heard += [line.decode() for line in lines]

    def crash(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE)

    def end(self) -> None:
        self.process.terminate()
        self.wait_for("ended")
        assert self.process.wait(PATIENCE) == 0


class Meeting:
    """v4l2-ctl, another program that reads the camera for as long as it is there."""

    def __init__(self, count: int) -> None:
        self.path = Path(tempfile.mkstemp(dir="/run")[1])
        command = ["v4l2-ctl", "-d", DEVICE, "--stream-mmap", f"--stream-count={count}", f"--stream-to={self.path}"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def frames(self, size: int) -> list[bytes]:
        data = self.path.read_bytes()
        return [data[at : at + size] for at in range(0, len(data) - size + 1, size)]

    def leave(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)
        self.path.unlink()


def read(count: int = 3) -> bytes:
    """So many pictures, as the device gives them."""
    meeting = Meeting(count)
    try:
        _, complaint = meeting.process.communicate(timeout=PATIENCE)
        assert meeting.process.returncode == 0, f"v4l2-ctl: {complaint.decode(errors='replace').strip()[:300]}"
        return meeting.path.read_bytes()
    finally:
        meeting.leave()


def shown_format() -> str:
    result = subprocess.run(["v4l2-ctl", "-d", DEVICE, "--get-fmt-video"], capture_output=True, text=True)
    return " ".join(result.stdout.split())


def expect_picture(data: bytes, image: np.ndarray, count: int = 3) -> str:
    """The bytes of some pictures are that one, to the last bit, and its colours are what BT.601 says."""
    size = image.shape[0] * image.shape[1] * 3 // 2
    assert len(data) == count * size, f"{len(data)} bytes, not {count} x {size}"
    pictures = np.frombuffer(data, np.uint8).reshape(count, size)
    wrong = int((pictures != to_i420(image)).sum())
    assert wrong == 0, f"{wrong} of {pictures.size} values differ from what was sent"
    least, most = reference_i420(image)
    off = max((least - pictures[0]).max(), (pictures[0] - most).max())
    assert off < 2.5, f"a value is {off:.1f} off BT.601"
    return f"{count} of {image.shape[1]}x{image.shape[0]}, every value as sent, at most {off:.1f} from BT.601"


def check_device() -> str:
    found = virtual_devices()
    assert found == [(DEVICE, "ifmdm")], found
    return f"{found[0][0]} is {found[0][1]}"


def showing(seed: int, shape: str = "square") -> Writer:
    """A writer that has come to show its picture."""
    writer = Writer(seed, shape)
    writer.wait_for("showing")
    return writer


def check_start(seed: int, leave: Callable[[Writer], None]) -> str:
    """A writer starts and its picture is there; then it leaves in that way."""
    writer = showing(seed)
    told = expect_picture(read(), picture(seed, 512))
    leave(writer)
    return told


def check_square() -> str:
    writer = showing(1)
    form = shown_format()
    assert "Width/Height : 512/512" in form and "'YU12'" in form, form
    told = expect_picture(read(), picture(1, 512))
    writer.end()
    return told


def check_again() -> str:
    return check_start(2, Writer.crash)


def check_after_crash() -> str:
    return check_start(3, Writer.end)


def check_after_others_crash() -> str:
    """Another program was killed and left the device taken."""
    script = (
        "import numpy, os, pyvirtualcam, signal\n"
        "camera = pyvirtualcam.Camera(640, 480, 10, fmt=pyvirtualcam.PixelFormat.I420, device='/dev/video0')\n"
        "camera.send(numpy.zeros(640 * 480 * 3 // 2, numpy.uint8))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    return check_after_crash()


def check_watched_crash() -> str:
    size = 512 * 512 * 3 // 2
    writer = showing(4)
    meeting = Meeting(100_000)
    try:
        _until(lambda: meeting.frames(size), "the meeting sees nothing")
        writer.crash()
        writer = showing(5)
        expected = to_i420(picture(5, 512)).tobytes()
        _until(lambda: expected in meeting.frames(size)[-3:], "the meeting never saw the second start")
        second = Writer(6)
        told = second.wait_for("refused")
        assert "another program is showing something on it" in told, told
        writer.crash()
        wide = Writer(6, "wide")
        told = wide.wait_for("refused")
        assert "512x512" in told, told
        assert wide.process.wait(PATIENCE) == 2
    finally:
        meeting.leave()
    return "a meeting that stayed saw the second start; another shape meanwhile: " + told


def check_wide() -> str:
    writer = showing(7, "wide")
    form = shown_format()
    assert "Width/Height : 1280/720" in form and "'YU12'" in form, form
    told = expect_picture(read(), compose(picture(7, 512), 1280, 720, "blur"))
    writer.crash()
    return told


def check_removed() -> str:
    writer = Writer(8)
    writer.wait_for("showing")
    in_use = driver("rmmod")
    assert in_use.returncode != 0, "the driver let itself be removed under a writer"
    os.unlink(DEVICE)
    gone = writer.wait_for("the device is gone")
    _until(lambda: driver("rmmod").returncode == 0, "the writer does not let go of the device")
    absent = writer.wait_for("there is no virtual camera")
    assert virtual_devices() == []
    assert driver("insmod").returncode == 0
    writer.wait_for("well again")
    expect_picture(read(), picture(8, 512))
    writer.end()
    return f"noticed ({gone}), told while it was away ({absent[:60]}...), showing again when it was back"


def _until(what: Callable[[], object], otherwise: str) -> None:
    until = time.monotonic() + PATIENCE
    while not what():
        if time.monotonic() > until:
            raise AssertionError(otherwise)
        time.sleep(0.2)


CHECKS = {
    "found": check_device,
    "square": check_square,
    "started again": check_again,
    "started after a crash": check_after_crash,
    "started after another program's crash": check_after_others_crash,
    "crash while watched": check_watched_crash,
    "wide": check_wide,
    "removed and back": check_removed,
}


def main() -> int:
    driver("insmod")
    failed = 0
    for name, check in CHECKS.items():
        began = time.monotonic()
        try:
            state, told = "ok   ", check()
        except Exception as error:
            failed += 1
            state, told = "FAILS", f"{type(error).__name__}: {error}"
        for process in Writer.running:
            process.kill()
            process.wait()
        Writer.running.clear()
        print(f"camera: {state} {name}: {' '.join(told.split())} ({time.monotonic() - began:.0f} s)", flush=True)
    print("camera: all is well" if not failed else f"camera: {failed} failed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
