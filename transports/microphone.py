"""The microphone as the voice."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from transports.media import Deliver, TransportError
from transports.portaudio import DEAD_SECONDS, RETRY_SECONDS, find_device, load_sounddevice

BLOCK_SECONDS = 0.01


class MicrophoneSource:
    """Delivers what is said as it is said. A microphone that goes away is opened again when it comes back."""

    name = "microphone"
    live = True

    def __init__(self, device: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        """device: a number, a name or a part of it (see `ifmdm devices`); "" is the system's default."""
        self._device, self._clock = device, clock
        self._stream = None
        self._heard = 0.0
        self._tries = 0
        self._closed = False

    def open(self, deliver: Deliver, ended: Callable[[], None]) -> None:
        """Raises TransportError if the device cannot be used."""
        self._deliver = deliver
        self._begin()

    def _begin(self) -> None:
        module = load_sounddevice()
        device = find_device(module, self._device, output=False)
        try:
            self._stream = module.InputStream(
                device=device.index, samplerate=device.rate, channels=min(2, device.inputs), dtype="float32",
                blocksize=round(device.rate * BLOCK_SECONDS), latency="low", callback=self._take,
            )  # fmt: skip
            self._rate = device.rate
            self._heard = self._clock()
            self._stream.start()
        except (module.PortAudioError, ValueError, OSError) as error:
            reason = " ".join(str(error).split())
            raise TransportError(f"{device.name}: the microphone cannot be opened ({reason})") from error

    def _take(self, samples: np.ndarray, frames: int, when: object, status: object) -> None:
        self._heard = self._clock()
        if not self._closed:
            self._deliver(samples.copy(), self._rate)  # the buffer is the driver's

    def check(self) -> str:
        silent = self._clock() - self._heard
        if silent < DEAD_SECONDS:
            self._tries = 0
            return ""
        pause = RETRY_SECONDS[min(self._tries, len(RETRY_SECONDS) - 1)]
        if silent > pause and not self._closed:
            self._tries += 1
            self._drop()
            try:
                self._begin()
            except TransportError as error:
                self._heard = self._clock() - DEAD_SECONDS
                return str(error)
        return "the microphone gives no sound; is it plugged in?"

    def close(self) -> None:
        self._closed = True
        self._drop()

    def _drop(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            try:
                stream.abort()
                stream.close()
            except Exception:  # the device is gone; so is the stream
                return


def create(options: Mapping[str, Any]) -> MicrophoneSource:
    """The source "microphone". options: device."""
    return MicrophoneSource(**options)
