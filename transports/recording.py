"""An MP4 recording beside the live outputs."""

import itertools
import re
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from transports.file import Mp4Writer, check_output, short_stem
from transports.media import LazySink, MediaFormat, MediaFrame, TransportError

#: Pictures that may wait for the encoder, and frames of any kind. What is more is dropped: the last picture stays.
MAX_PICTURES = 64
MAX_FRAMES = 4096
CLOSE_SECONDS = 30.0
#: Where a file in pieces begins, its index is there; one that is written at once has it at its end.
_BEGINNING = 4096


def next_take(path: str | Path) -> Path:
    """Where a recording goes that is to replace none: `path`, or if that is there, the first of path-2, path-3, ..."""
    path = Path(path)
    numbered = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2))
    try:
        return next(each for each in itertools.chain([path], numbered) if not each.exists())
    except OSError as error:  # with the number it is too long
        raise TransportError(f"{path}: is there, and no name for another one ({error.strerror}): move it") from error


def cut_off(path: str | Path) -> list[Path]:
    """The hidden files of takes of `path` that never became whole, and can be played. One that another process is
    writing looks the same."""
    target = Path(path).resolve()
    names = re.compile(rf"\.{re.escape(short_stem(target))}(-\d+)?-[0-9a-f]{{8}}\.part")
    try:
        found = sorted(each for each in target.parent.iterdir() if names.fullmatch(each.name))
    except OSError:  # a folder that may be written to and not be looked into
        return []
    return [each for each in found if _playable(each)]


def _playable(part: Path) -> bool:
    try:
        with open(part, "rb") as file:
            return b"moov" in file.read(_BEGINNING)
    except OSError:
        return False


class RecordingSink(LazySink):
    """Writes what the head does and says. Time that no frame came for passes: the picture stands, the sound is silence.

    The encoder has a thread of its own, so that a slow disk holds up nobody else. What is cut off, with the process or
    the machine, is in the hidden file beside the one to be, see Mp4Writer.
    """

    name = "recording"
    close_seconds = CLOSE_SECONDS + 5

    def __init__(self, path: str | Path, tags: Mapping[str, str] | None = None) -> None:
        """path: an MP4 file. Raises OutputError if it cannot be there."""
        self._path, self._tags = Path(path), tags
        check_output(path)
        self._waiting: deque[MediaFrame] = deque()
        self._pictures = 0
        self._changed = threading.Condition()
        self._closing = False
        self._problem = ""
        self.dropped = self._told = 0

    def open(self, form: MediaFormat) -> None:
        self._form = form
        self._writer = Mp4Writer(
            self._path, width=form.width, height=form.height, fps=form.fps, audio_rate=form.audio_rate, tags=self._tags,
            in_pieces=True,
        )  # fmt: skip
        self._first: MediaFrame | None = None
        self._image: np.ndarray | None = None
        self._samples = 0
        self._thread = threading.Thread(target=self._run, name="recording", daemon=True)
        self._thread.start()

    @property
    def path(self) -> Path:
        return self._path

    @property
    def part(self) -> Path:
        """The hidden file that it is until it is whole."""
        return self._writer.part

    @property
    def frames(self) -> int:
        """Pictures written so far."""
        return self._writer.frames

    def send(self, frame: MediaFrame) -> None:
        with self._changed:
            if self._closing or self._problem:
                return
            if len(self._waiting) >= MAX_FRAMES:
                self.dropped += 1
                return
            if frame.image is not None and self._pictures >= MAX_PICTURES:
                self.dropped += 1
                frame = MediaFrame(frame.index, frame.pts, None, frame.audio, frame.time, frame.generation)
            self._pictures += frame.image is not None
            self._waiting.append(frame)
            self._changed.notify()

    def check(self) -> str:
        dropped, self._told = self.dropped - self._told, self.dropped
        if self._problem or not dropped:
            return self._problem
        return (
            f"{self._path}: encoder or disk are too slow, and pictures are left out; close other programs, or lower "
            "fps or size under [video]"
        )

    def close(self) -> None:
        """Finish the file; without a single picture there is none. Raises OutputError if it could not be written."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            raise TransportError(
                f"{self._path}: the disk did not take the end of the recording in {CLOSE_SECONDS:g} s; "
                f"what it took is in {self._writer.part}"
            )
        if self._problem:
            raise TransportError(self._problem)

    def _run(self) -> None:
        try:
            # leaving the block finishes the file
            with self._writer:
                while (frame := self._next()) is not None:
                    self._write(frame)
                if not self._writer.frames:  # it ended before the first picture, which is nobody's fault
                    self._writer.abort()
        except ValueError as error:  # OutputError; nobody waits for this thread until the end
            left = f"; what came before is in {self._writer.part}" if self._writer.part.exists() else ""
            with self._changed:
                self._problem = f"{error}{left}"
                self._waiting.clear()

    def _next(self) -> MediaFrame | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            if not self._waiting:
                return None
            frame = self._waiting.popleft()
            self._pictures -= frame.image is not None
            return frame

    def _write(self, frame: MediaFrame) -> None:
        if self._first is None:
            if frame.image is None:  # a file begins with a picture
                return
            self._first = frame
        image = frame.image if frame.image is not None else self._image
        # whatever was lost: time goes on
        while self._image is not None and self._writer.frames < frame.index - self._first.index:
            self._writer.write_video(self._image)
        self._writer.write_video(image)
        gap = frame.pts - self._first.pts - self._samples
        self._writer.write_audio(np.concatenate([np.zeros(max(0, gap), np.float32), frame.audio]))
        self._samples += max(0, gap) + len(frame.audio)
        self._image = image
