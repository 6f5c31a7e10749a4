"""Raw sound from another program: `some-tts | ifmdm run --source stdin`."""

import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np

from transports.media import Deliver, TransportError

ENCODINGS = {"s16le": np.dtype("<i2"), "f32le": np.dtype("<f4")}
CHUNK_SECONDS = 0.02


class PcmSource:
    """Reads samples without a header from a pipe. A sender faster than speech waits: the pipe is not read further."""

    name = "stdin"
    live = False

    def __init__(self, stream: BinaryIO, encoding: str = "s16le", rate: int = 16_000, channels: int = 1) -> None:
        """encoding: s16le or f32le, channels interleaved. Raises TransportError for another."""
        if encoding not in ENCODINGS:
            raise TransportError(f"{encoding}: no encoding of raw sound; give {' or '.join(ENCODINGS)}")
        self._stream, self._kind, self._rate, self._channels = stream, ENCODINGS[encoding], rate, channels
        self._stop = threading.Event()
        self._problem = ""

    def open(self, deliver: Deliver, ended: Callable[[], None]) -> None:
        """Raises TransportError if a person's keyboard is at the other end."""
        if getattr(self._stream, "isatty", bool)():
            raise TransportError("standard input is a terminal; let a program send raw sound: some-tts | ifmdm run ...")
        # a daemon: a read from a pipe that says nothing cannot be called off
        threading.Thread(target=self._run, args=(deliver, ended), name="pcm", daemon=True).start()

    def check(self) -> str:
        return self._problem

    def close(self) -> None:
        self._stop.set()

    def _run(self, deliver: Deliver, ended: Callable[[], None]) -> None:
        whole = self._kind.itemsize * self._channels
        chunk = max(1, round(self._rate * CHUNK_SECONDS)) * whole
        # what has come, not a full chunk: the end of a sentence must not wait for the next one
        read = getattr(self._stream, "read1", self._stream.read)
        rest = b""
        try:
            while not self._stop.is_set() and (data := read(chunk)):
                data = rest + data
                rest = data[len(data) // whole * whole :]
                samples = np.frombuffer(data[: len(data) - len(rest)], self._kind)
                while not self._take(deliver, samples) and not self._stop.wait(CHUNK_SECONDS):
                    pass
        except (OSError, ValueError) as error:
            self._problem = " ".join(f"standard input: {error}".split())
        if not self._stop.is_set():
            ended()

    def _take(self, deliver: Deliver, samples: np.ndarray) -> bool:
        native = np.float32 if self._kind.kind == "f" else np.int16
        return not len(samples) or deliver(samples.reshape(-1, self._channels).astype(native), self._rate)


def create(options: Mapping[str, Any]) -> PcmSource:
    """The source "stdin". options: encoding, rate, channels. Raises TransportError where standard input is closed."""
    if sys.stdin is None:
        raise TransportError("standard input is closed; let a program send raw sound: some-tts | ifmdm run ...")
    return PcmSource(sys.stdin.buffer, **options)
