"""Linux's v4l2loopback from outside: what pyvirtualcam leaves undone when it opens such a device.

- Until 0.13 (Debian 12 has 0.12.7) the driver takes a device back only from a writer that asked it to stream, which
  pyvirtualcam's never does (v4l2loopback issue 470). With exclusive_caps=1 the device then could not be opened a second
  time, until the module was loaded anew. Later drivers refuse the request, and need none.
- A device whose format another program holds keeps it, and says nothing.
- pyvirtualcam forgets to close a device that it refuses, and the driver counts who has it open.
"""

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, which has no such devices either
    fcntl = None

SYSFS = Path("/sys/class/video4linux")
# <linux/videodev2.h>
_QUERYCAP, _STREAMON = 0x80685600, 0x40045612
_CAPABILITY = struct.Struct("16s32s32s3I12x")
_OUTPUT = 2  # V4L2_BUF_TYPE_VIDEO_OUTPUT, and V4L2_CAP_VIDEO_OUTPUT
_CAPTURE = 1  # V4L2_CAP_VIDEO_CAPTURE


def is_device(name: str) -> bool:
    return fcntl is not None and name.startswith("/dev/")


def _files(device: str) -> set[int]:
    """The descriptors of this process that stand for the device."""
    found, real = set(), os.path.realpath(device)
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one of this listing is closed by now
            if os.readlink(f"/proc/self/fd/{entry}") == real:
                found.add(int(entry))
    return found


def _ask_to_stream(file: int) -> None:
    with contextlib.suppress(OSError):  # later drivers
        fcntl.ioctl(file, _STREAMON, struct.pack("i", _OUTPUT))


def _capabilities(file: int) -> int:
    """What the device is right now: _OUTPUT until somebody writes, then _CAPTURE; 0 if a writer left it taken."""
    answer = fcntl.ioctl(file, _QUERYCAP, bytes(_CAPABILITY.size))
    return _CAPABILITY.unpack(answer)[5] & (_OUTPUT | _CAPTURE)


def free(device: str) -> None:
    """Take a device back from a writer that left without saying so. One that is in use stays so."""
    try:
        file = os.open(device, os.O_RDWR)
    except OSError:
        return  # whoever opens it next says why
    try:
        if not _capabilities(file):
            _ask_to_stream(file)  # makes this the writer, whose closing is noticed
    except OSError:
        pass  # no video device; the same
    finally:
        os.close(file)


@contextlib.contextmanager
def opening(device: str) -> Iterator[None]:
    """Around pyvirtualcam's opening of the device: one that was opened is given back by whoever writes, however that
    ends, and one that was refused is closed."""
    if not is_device(device) or not os.path.isdir("/proc/self/fd"):
        yield
        return
    free(device)
    before = _files(device)
    try:
        yield
    except BaseException:
        for file in _files(device) - before:
            os.close(file)
        raise
    for file in _files(device) - before:
        _ask_to_stream(file)


def held_size(device: str, root: Path = SYSFS) -> tuple[int, int] | None:
    """(width, height) that the device has, None while nobody decided."""
    try:
        # such as YU12:512x512@30
        size = (root / Path(os.path.realpath(device)).name / "format").read_text().partition(":")[2].partition("@")[0]
        width, height = map(int, size.split("x"))
    except (OSError, ValueError):
        return None
    return width, height
