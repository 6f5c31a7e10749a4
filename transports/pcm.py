"""Raw sound, or WAV, from another program: `some-tts | ifmdm run --source stdin`."""

import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from transports.media import Deliver, TransportError, one_line
from transports.sound_formats import ENCODINGS, PcmForm, Sound, SoundReader

CHUNK_SECONDS = 0.02


class PcmSource:
    """Reads samples without a header, or WAV, from a pipe. A sender faster than speech waits: the pipe is not read
    further."""

    name = "stdin"
    live = False

    def __init__(self, stream: BinaryIO, encoding: str = "s16le", rate: int = 16_000, channels: int = 1) -> None:
        """encoding: s16le or f32le, channels interleaved; a WAV header says its own. Raises TransportError for
        another."""
        if encoding not in ENCODINGS:
            raise TransportError(f"{encoding}: no encoding of raw sound; give {' or '.join(ENCODINGS)}")
        self._stream, self._reader = stream, SoundReader(PcmForm(encoding, rate, channels))
        self._stop = threading.Event()
        #: Why no more comes, if that is not the end of it: a line.
        self.failure = ""

    def open(self, deliver: Deliver, ended: Callable[[], None]) -> None:
        """Raises TransportError if a person's keyboard is at the other end."""
        if getattr(self._stream, "isatty", bool)():
            raise TransportError("standard input is a terminal; let a program send raw sound: some-tts | ifmdm run ...")
        # a daemon: a read from a pipe that says nothing cannot be called off
        threading.Thread(target=self._run, args=(deliver, ended), name="pcm", daemon=True).start()

    def check(self) -> str:
        return ""

    def close(self) -> None:
        self._stop.set()

    def _run(self, deliver: Deliver, ended: Callable[[], None]) -> None:
        # what has come, not a full chunk: the end of a sentence must not wait for the next one
        read = getattr(self._stream, "read1", self._stream.read)
        reader = self._reader
        try:
            while not self._stop.is_set():
                data = read(max(1, round(reader.form.rate * CHUNK_SECONDS)) * reader.form.frame)
                for sound in reader.push(data) if data else reader.end():
                    self._take(deliver, sound)
                if not data:
                    break
        except (OSError, ValueError) as error:
            self.failure = f"standard input: {one_line(error)}"
        if not self._stop.is_set():
            ended()

    def _take(self, deliver: Deliver, sound: Sound) -> None:
        """Waits until there is room."""
        while not deliver(sound.samples, sound.rate) and not self._stop.wait(CHUNK_SECONDS):
            pass


def create(options: Mapping[str, Any]) -> PcmSource:
    """The source "stdin". options: encoding, rate, channels. Raises TransportError where standard input is closed."""
    if sys.stdin is None:
        raise TransportError("standard input is closed; let a program send raw sound: some-tts | ifmdm run ...")
    return PcmSource(sys.stdin.buffer, **options)
