"""sounddevice, imported only when sound devices are asked for, and how devices are named."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from transports.media import TransportError

#: Devices that came or went are noticed this long after; opening is tried again with growing pauses up to the last.
RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0)
DEAD_SECONDS = 1.5


def load_sounddevice() -> ModuleType:
    """The module sounddevice. Raises TransportError where it or the library under it is missing."""
    try:
        return importlib.import_module("sounddevice")
    except ImportError:
        raise TransportError("sound devices need the package sounddevice: pip install sounddevice") from None
    except OSError:
        # PyPI's wheel brings PortAudio for Windows and macOS only
        raise TransportError("sound devices need PortAudio: sudo apt-get install libportaudio2") from None


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

    begin: finds the device and calls `start`, raising TransportError; trouble: a line for when the device is silent;
    clock: seconds. `beat` is for PortAudio's thread, with each block.
    """

    begin: Callable[[], None]
    trouble: str
    clock: Callable[[], float]
    closed: bool = False
    _stream: Any = None
    _last: float = 0.0
    _tries: int = 0

    def start(self, make: Callable[[], Any], failed: str, errors: tuple[type[Exception], ...]) -> None:
        """Make the stream and let it run. Raises TransportError, which begins with `failed`, for those errors."""
        try:
            self._stream = make()
            self._last = self.clock()
            self._stream.start()
        except errors as error:
            raise TransportError(f"{failed} ({' '.join(str(error).split())})") from error

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
            self._drop()
            try:
                self.begin()
            except TransportError as error:
                self._last = self.clock() - DEAD_SECONDS
                return str(error)
        return self.trouble

    def close(self) -> None:
        self.closed = True
        self._drop()

    def _drop(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            try:
                stream.abort()
                stream.close()
            except Exception:  # the device is gone; so is the stream
                return
