"""sounddevice, imported only when sound devices are asked for, and how devices are named.

PortAudio lists the devices once, when it starts, and a device that comes back may be known by the new list only. So
before a device is opened again PortAudio is started anew, which no stream survives: that is done only while no other
stream of ours is open. Until then a device may be found again by its old place, or not.
"""

import contextlib
import importlib
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from transports.media import TransportError, one_line

#: Devices that came or went are noticed this long after; opening is tried again with growing pauses up to the last.
RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0)
DEAD_SECONDS = 1.5
#: How long one device waits for another that is being opened again.
TURN_SECONDS = 1.0

# There is one PortAudio in a process, and these are of it: who has a stream, and whose turn it is to begin one again.
_OPEN: "weakref.WeakSet[DeviceStream]" = weakref.WeakSet()
_TURN = threading.Lock()


def load_sounddevice() -> ModuleType:
    """The module sounddevice. Raises TransportError where it or the library under it is missing."""
    try:
        return importlib.import_module("sounddevice")
    except ImportError:
        raise TransportError("sound devices need the package sounddevice: pip install sounddevice") from None
    except OSError:
        # PyPI's wheel brings PortAudio for Windows and macOS only
        raise TransportError("sound devices need PortAudio: sudo apt-get install libportaudio2") from None
    except Exception as error:  # of sounddevice's own, which is not there to be named
        raise TransportError(f"sound devices cannot be used: {one_line(error)}") from None


def list_anew(module: ModuleType) -> None:
    """Have PortAudio look which devices there are now. All its streams must be closed. Does nothing where sounddevice
    cannot do that."""
    terminate, initialize = getattr(module, "_terminate", None), getattr(module, "_initialize", None)
    if terminate is None or initialize is None:
        return
    with contextlib.suppress(module.PortAudioError):  # it was not started, since that failed the last time
        terminate()
    try:
        initialize()
    except module.PortAudioError as error:
        raise TransportError(f"sound devices cannot be listed ({one_line(error)})") from error


@dataclass(frozen=True)
class SoundDevice:
    """index: PortAudio's number; name; inputs, outputs: channels; rate: what it likes best; default: for what."""

    index: int
    name: str
    inputs: int
    outputs: int
    rate: int


def sound_devices(module: ModuleType) -> list[SoundDevice]:
    return [
        SoundDevice(
            index,
            str(each["name"]),
            int(each["max_input_channels"]),
            int(each["max_output_channels"]),
            round(each["default_samplerate"]),
        )
        for index, each in enumerate(module.query_devices())
    ]


def find_device(module: ModuleType, wanted: str, output: bool) -> SoundDevice:
    """The device of that number, name or part of a name; "" is the system's default. Raises TransportError."""
    kind = "output" if output else "microphone"
    usable = [each for each in sound_devices(module) if (each.outputs if output else each.inputs)]
    if wanted == "":
        default = module.default.device[1 if output else 0]
        found = [each for each in usable if each.index == default] or usable[:1]
    else:
        found = [each for each in usable if wanted in (str(each.index), each.name)]
        found = found or [each for each in usable if wanted.lower() in each.name.lower()]
    if len(found) == 1:
        return found[0]
    names = "; ".join(f"{each.index}: {each.name}" for each in found or usable) or "none"
    if found:
        raise TransportError(f"{wanted}: several {kind}s have this in their name ({names}); give the number")
    if not wanted:
        raise TransportError(f"this machine has no {kind}; plug one in, or choose another source or output")
    raise TransportError(f"{wanted}: no such {kind}; there are: {names}")


@dataclass(eq=False)
class DeviceStream:
    """A PortAudio stream that is begun again when its device was gone and comes back.

    begin: finds the device, in a new list of devices if the argument says so, and calls `start`, raising
    TransportError; trouble: a line for when the device is silent; clock: seconds. `beat` is for PortAudio's thread,
    with each block.
    """

    begin: Callable[[bool], None]
    trouble: str
    clock: Callable[[], float]
    closed: bool = False
    _stream: Any = None
    _last: float = 0.0
    _tries: int = 0

    def start(self, make: Callable[[], Any], failed: str, errors: tuple[type[Exception], ...]) -> None:
        """Make the stream and let it run. Raises TransportError, which begins with `failed`, for those errors."""
        _OPEN.add(self)
        try:
            self._stream = make()
            self._last = self.clock()
            self._stream.start()
        except errors as error:
            self._drop()
            raise TransportError(f"{failed} ({one_line(error)})") from error

    def beat(self) -> float:
        """A block came; the time."""
        self._last = self.clock()
        return self._last

    def check(self) -> str:
        """As a sink's."""
        silent = self.clock() - self._last
        if silent < DEAD_SECONDS:
            self._tries = 0
            return ""
        pause = RETRY_SECONDS[min(self._tries, len(RETRY_SECONDS) - 1)]
        if silent > pause and not self.closed:
            self._tries += 1
            return self._begin_again() or self.trouble
        return self.trouble

    def _begin_again(self) -> str:
        """Why that is not possible; "" if it was."""
        if not _TURN.acquire(timeout=TURN_SECONDS):
            return ""
        try:
            self._drop()
            alone = not _OPEN
            self.begin(alone)
        except TransportError as error:
            self._last = self.clock() - DEAD_SECONDS
            return str(error) if alone else f"{error}; one that was plugged in again may be seen after a restart only"
        finally:
            _TURN.release()
        if self.closed:  # meanwhile
            self._drop()
        return ""

    def close(self) -> None:
        self.closed = True
        self._drop()

    def _drop(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            with contextlib.suppress(Exception):  # the device is gone; so is the stream
                stream.abort()
            with contextlib.suppress(Exception):
                stream.close()
        _OPEN.discard(self)
