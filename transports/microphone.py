"""The microphone as the voice."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from transports.media import Deliver
from transports.portaudio import DeviceStream, find_device, list_anew, load_sounddevice

BLOCK_SECONDS = 0.01


class MicrophoneSource:
    """Delivers what is said as it is said. A microphone that goes away is opened again when it comes back."""

    name = "microphone"
    live = True

    def __init__(self, device: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        """device: a number, a name or a part of it (see `ifmdm devices`); "" is the system's default."""
        self._device = device
        self._stream = DeviceStream(self._begin, "the microphone gives no sound; is it plugged in?", clock)

    def probe(self) -> None:
        find_device(load_sounddevice(), self._device, output=False)

    def open(self, deliver: Deliver, ended: Callable[[], None]) -> None:
        """Raises TransportError if the device cannot be used."""
        self._deliver = deliver
        self._begin()

    def _begin(self, anew: bool = False) -> None:
        module = load_sounddevice()
        if anew:
            list_anew(module)
        device = find_device(module, self._device, output=False)
        self._rate = device.rate
        self._stream.start(
            lambda: module.InputStream(
                device=device.index, samplerate=device.rate, channels=min(2, device.inputs), dtype="float32",
                blocksize=round(device.rate * BLOCK_SECONDS), latency="low", callback=self._take,
            ),
            f"{device.name}: the microphone cannot be opened", (module.PortAudioError, ValueError, OSError),
        )  # fmt: skip

    def _take(self, samples: np.ndarray, frames: int, when: object, status: object) -> None:
        self._stream.beat()
        if not self._stream.closed:
            self._deliver(samples.copy(), self._rate)  # the buffer is the driver's

    def check(self) -> str:
        return self._stream.check()

    def close(self) -> None:
        self._stream.close()


def create(options: Mapping[str, Any]) -> MicrophoneSource:
    """The source "microphone". options: device."""
    return MicrophoneSource(**options)
