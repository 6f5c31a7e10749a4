"""A virtual camera for meetings: v4l2loopback on Linux, OBS's or Unity Capture's camera elsewhere (pyvirtualcam).

A camera shows whatever was sent last, and meeting apps look at it about 30 times a second on a clock of their own. So
the sink has its own pace: at fixed moments, which do not depend on how long anything took, it sends the newest picture
that is due. Sending holds the interpreter and can hang in the driver; it happens in a thread of its own.
"""

import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np

from transports import loopback
from transports.media import LazySink, MediaFormat, MediaFrame, TransportError, one_line

RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0)
#: A camera that took nothing for so long is dead, whatever it says: drivers report failures to standard error only.
DEAD_SECONDS = 2.0
CHECK_SECONDS = 1.0
#: Of the moments at which a picture is to be sent, how many may pass unused before that is told.
LATE_SHARE = 0.25
WIDE = (1280, 720)
#: How a system gets a virtual camera.
MEND = {
    "linux": "load one: sudo modprobe v4l2loopback exclusive_caps=1 card_label=ifmdm (Debian's v4l2loopback-dkms)",
    "win32": "install OBS Studio 26 or newer, or Unity Capture",
    "darwin": "install OBS Studio 30 or newer and start its virtual camera once",
}


@dataclass(frozen=True)
class CameraOptions:
    """device: as the system names it (/dev/video2), "" the first virtual one. backend: pyvirtualcam's name for it, ""
    the system's usual. fps: pictures a second, 0 for as many as the head makes; meetings expect 30. shape: "square" as
    the head is, or "wide", 1280x720 with the head in the middle. background: of the wide picture, "blur" for the
    portrait's own, blurred, or a colour such as #202428."""

    device: str = ""
    backend: str = ""
    fps: int = 30
    shape: str = "square"
    background: str = "blur"


def parse_colour(text: str) -> tuple[int, int, int]:
    """#rrggbb -> red, green, blue. Raises ValueError."""
    if len(text) != 7 or text[0] != "#":
        raise ValueError(f"{text}: not a colour; write it as #202428")
    value = int(text[1:], 16)
    return value >> 16, value >> 8 & 255, value & 255


def compose(image: np.ndarray, width: int, height: int, background: str) -> np.ndarray:
    """A square picture (s, s, 3) in the middle of one of (height, width, 3), as high as that."""
    side = min(width, height)
    head = image if len(image) == side else cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR)
    if background == "blur":
        # blurred while small, which costs next to nothing, then cut to shape and enlarged
        small = cv2.GaussianBlur(cv2.resize(image, (48, 48), interpolation=cv2.INTER_AREA), (0, 0), 3)
        rows = max(2, round(48 * height / width))
        top = (48 - rows) // 2
        canvas = cv2.resize(small[top : top + rows], (width, height), interpolation=cv2.INTER_LINEAR)
        cv2.convertScaleAbs(canvas, dst=canvas, alpha=0.7)  # darker, so that the head stands out
    else:
        canvas = np.empty((height, width, 3), np.uint8)
        canvas[...] = parse_colour(background)
    top, left = (height - side) // 2, (width - side) // 2
    canvas[top : top + side, left : left + side] = head
    return canvas


def to_i420(image: np.ndarray) -> np.ndarray:
    """(h, w, 3) RGB -> (h * 3 / 2 * w,) I420 in BT.601, limited range, which cameras are taken to give."""
    return cv2.cvtColor(image, cv2.COLOR_RGB2YUV_I420).reshape(-1)


def virtual_devices(root: Path = loopback.SYSFS) -> list[tuple[str, str]]:
    """Linux's video devices that no hardware stands behind: (/dev/videoN, name)."""
    if not root.is_dir():
        return []
    found = []
    for entry in sorted(root.iterdir(), key=lambda path: (len(path.name), path.name)):
        if entry.name.startswith("video") and "virtual" in entry.resolve().parts:
            with contextlib.suppress(OSError):
                found.append((f"/dev/{entry.name}", (entry / "name").read_text().strip()))
    return found


class VirtualCameraSink(LazySink):
    """See the module. A camera that dies is opened again, as long as it takes."""

    name = "camera"

    def __init__(self, options: CameraOptions | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._options, self._clock = options or CameraOptions(), clock
        self._lock = threading.Lock()
        self._waiting: deque[MediaFrame] = deque(maxlen=64)  # what is older than the newest due one is forgotten
        self._hold = 0.0
        self._lags: deque[float] = deque(maxlen=64)
        self._stop = threading.Event()
        self._camera: Any = None
        self._node: tuple[int, int] | None = None
        self._took = 0.0
        self._problem = ""
        self._thread: threading.Thread | None = None
        self.sent = 0
        self.late = self._told = 0

    @property
    def device(self) -> str:
        return self._camera.device if self._camera is not None else self._options.device

    def open(self, form: MediaFormat) -> None:
        self.connect(form.width, form.height, form.fps)
        self._thread = threading.Thread(target=self._run, name="camera", daemon=True)
        self._thread.start()

    def connect(self, width: int, height: int, fps: int) -> None:
        """Open the camera for a head of that size and rate, without showing anything. Raises TransportError."""
        self._size = WIDE if self._options.shape == "wide" else (width, height)
        self._fps = self._options.fps or fps
        self._connect()

    def _connect(self) -> None:
        try:
            import pyvirtualcam
        except ModuleNotFoundError:
            raise TransportError("the camera needs the package pyvirtualcam: pip install pyvirtualcam") from None
        except ImportError as error:
            raise TransportError(f"the package pyvirtualcam cannot be used: {one_line(error)}") from None
        options = self._options
        device, backend = options.device or None, options.backend or None
        if device is None and backend in (None, "v4l2loopback") and sys.platform == "linux":
            # pyvirtualcam's own search gives up at the first real camera that it may not open
            devices = virtual_devices()
            if not devices:
                raise TransportError(f"there is no virtual camera; {MEND['linux']}")
            device = devices[0][0]
        width, height = self._size
        try:
            with loopback.opening(device or ""):
                self._camera = pyvirtualcam.Camera(
                    width, height, self._fps, fmt=pyvirtualcam.PixelFormat.I420, device=device, backend=backend
                )
        except (RuntimeError, ValueError, OSError) as error:
            reason = one_line(error)
            mend = MEND.get(sys.platform, "see `ifmdm doctor`")
            if "is not a video output device" in reason:
                mend = "another program is showing something on it: end that, or take another device"
            raise TransportError(f"{device or 'camera'}: cannot be opened ({reason}); {mend}") from error
        held = loopback.held_size(self.device)
        if held not in (None, (width, height)):
            device = self.device
            self._disconnect()
            raise TransportError(
                f"{device}: a program that watches it holds it at {held[0]}x{held[1]}, and the head is "
                f"{width}x{height}; leave the meeting first, or keep that shape"
            )
        self._node = self._look()
        self._took = self._clock()

    def _look(self) -> tuple[int, int] | None:
        """What the device's name stands for right now; None where cameras are no files."""
        if not self._camera.device.startswith("/dev/"):
            return None
        try:
            found = os.stat(self._camera.device)
        except OSError:
            return (-1, -1)
        return found.st_ino, found.st_rdev

    def send(self, frame: MediaFrame) -> None:
        if frame.image is not None:
            with self._lock:
                self._waiting.append(frame)

    def interrupt(self) -> None:
        with self._lock:
            self._waiting.clear()

    def lag(self) -> float | None:
        with self._lock:
            return median(self._lags) if self._lags else None

    def align(self, lag: float) -> None:
        own = self.lag()
        with self._lock:
            # within what may wait; under 4 ms nobody sees, and holding would never settle
            hold = min(max(0.0, lag - own), 0.5) if own is not None else 0.0
            if abs(hold - self._hold) > 0.004:
                self._hold = hold

    def _newest(self, now: float) -> MediaFrame | None:
        """The newest picture that is due; older ones are dropped."""
        with self._lock:
            found = None
            while self._waiting and self._waiting[0].time + self._hold <= now + 0.001:
                found = self._waiting.popleft()
            return found

    def _run(self) -> None:
        period, begins, turn, looked = 1 / self._fps, self._clock(), 0, self._clock()
        picture: np.ndarray | None = None
        tries = 0
        while not self._stop.wait(max(0.0, begins + turn * period - self._clock())):
            now = self._clock()
            behind = int((now - begins) / period) - turn
            if behind > 0:
                self.late += behind  # moments that passed unused; the next one is in time again
            turn += max(0, behind) + 1
            frame = self._newest(now)
            if frame is not None:
                picture = self._draw(frame.image)
            if picture is None:
                continue
            try:
                if now - looked > CHECK_SECONDS:
                    looked = now
                    if self._look() != self._node:
                        raise RuntimeError("the device is gone")
                self._camera.send(picture)
            except Exception as error:  # whatever a driver does, the other outputs go on
                self._problem = f"{self.device or 'camera'}: {one_line(error)}; trying again"
                self._disconnect()
                if not self._reconnect(tries):
                    return
                begins, turn, tries = self._clock(), 0, tries + 1
                continue
            tries, self._problem, self._took = 0, "", self._clock()
            self.sent += 1
            if frame is not None:
                with self._lock:
                    self._lags.append(self._took - frame.time - self._hold)

    def _draw(self, image: np.ndarray) -> np.ndarray:
        width, height = self._size
        if image.shape[:2] != (height, width):
            image = compose(image, width, height, self._options.background)
        return to_i420(image)

    def _disconnect(self) -> None:
        camera, self._camera = self._camera, None
        if camera is not None:
            with contextlib.suppress(Exception):
                camera.close()

    def _reconnect(self, tries: int) -> bool:
        """Open the camera again, however long it takes; False if the sink is closed meanwhile."""
        while not self._stop.wait(RETRY_SECONDS[min(tries, len(RETRY_SECONDS) - 1)]):
            try:
                self._connect()
                return True
            except TransportError as error:
                self._problem = str(error)
                tries += 1
        return False

    def check(self) -> str:
        late, self._told = self.late - self._told, self.late
        if self._problem:
            return self._problem
        stuck = self._clock() - self._took
        if self.sent and stuck > DEAD_SECONDS:
            return f"{self.device or 'camera'}: has taken no picture for {stuck:.0f} s"
        if late > LATE_SHARE * self._fps * CHECK_SECONDS:
            return (
                f"{self.device or 'camera'}: gets fewer pictures than {self._fps} a second; close other programs, or "
                "lower fps under [camera]"
            )
        return ""

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(DEAD_SECONDS)
        if self._thread is None or not self._thread.is_alive():
            self._disconnect()  # a send that hangs cannot be called off; closing under it would crash


def create(options: Mapping[str, Any]) -> VirtualCameraSink:
    """The output "camera". options: the fields of CameraOptions."""
    return VirtualCameraSink(CameraOptions(**options))


def camera_backends() -> list[str]:
    """pyvirtualcam's backends on this system."""
    try:
        from pyvirtualcam import camera
    except ImportError:
        return []
    return sorted(camera.BACKENDS)


def try_camera(options: CameraOptions, size: int, fps: int) -> str:
    """Open and close the camera for a head of that size and rate; its device. Raises TransportError."""
    sink = VirtualCameraSink(options)
    sink.connect(size, size, fps)
    device = sink.device
    sink.close()
    return device
