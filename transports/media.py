"""What every way in and out agrees on: a frame with its sound, a sink that takes them, a source that gives voice.

A sink is made by a factory registered under the entry-point group `ifmdm.sinks`, a source under `ifmdm.sources`. A
factory takes the options of its section in the settings, as a mapping, and refuses bad ones with a TransportError.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol, runtime_checkable

import numpy as np


class TransportError(ValueError):
    """A device, file or peer that cannot be used. The message is one line: which, why, and what to do."""


def one_line(error: object) -> str:
    """What an error says, whose text may have several lines, as part of such a message."""
    return " ".join(str(error).split())


@dataclass(frozen=True)
class MediaFormat:
    """What a sink will be given. width, height: pixels, even; fps: whole frames a second; audio_rate: Hz, mono."""

    width: int
    height: int
    fps: int
    audio_rate: int


@dataclass(frozen=True, eq=False)
class MediaFrame:
    """A picture and the sound from it to the next one.

    index: frame i shows index / fps exactly. Numbers grow; a gap means that frames were lost on the way, and its time
    passes all the same. pts: position of the first sample of sound, in samples of audio_rate. image: (height, width, 3)
    uint8 RGB, not to be changed, or None where the picture was late: show the one before. audio: (n,) float32 in
    [-1, 1]. time: when it is to be out, in seconds of time.monotonic(). generation: interrupts so far.
    """

    index: int
    pts: int
    image: np.ndarray | None
    audio: np.ndarray
    time: float
    generation: int = 0

    def seconds(self, fps: int) -> Fraction:
        """The frame's time in the stream."""
        return Fraction(self.index, fps)


class Sink(Protocol):
    """Somewhere frames go. One of many at once: none may block another, so only open, check and close may take time."""

    name: str

    def open(self, form: MediaFormat) -> None:
        """Get ready. Raises TransportError."""

    def send(self, frame: MediaFrame) -> None:
        """Take a frame at its time; returns at once, and what cannot be taken in is dropped and counted."""

    def interrupt(self) -> None:
        """What was sent before and is not out yet is stale: sound becomes silence, pictures are dropped."""

    def lag(self) -> float | None:
        """Seconds from a frame's time to its being out, as measured so far; None where nobody watches live."""

    def align(self, lag: float) -> None:
        """Hold frames and sound so that they are out `lag` seconds after their time: all sinks together."""

    def check(self) -> str:
        """Called about once a second, off the event loop. Mends what it can; "" or one line on what is wrong."""

    def close(self) -> None:
        """Let go of everything, within seconds; a file is playable then. After CLOSE_SECONDS, or as many as the sink
        has as `close_seconds`, nobody waits for it any more."""


#: How long a device may take to be closed. A driver that is stuck never ends.
CLOSE_SECONDS = 10.0


class LazySink:
    """The parts of a sink that most do not need."""

    name = "sink"

    def interrupt(self) -> None:
        pass

    def lag(self) -> float | None:
        return None

    def align(self, lag: float) -> None:
        pass

    def check(self) -> str:
        return ""


#: (samples (n,) or (n, channels) float32 or int16, rate) -> whether they were taken; if not, none were.
Deliver = Callable[[np.ndarray, int], bool]


@runtime_checkable
class Interruptible(Protocol):
    """A source that has something to leave off, such as a recording; a person who speaks has not."""

    def interrupt(self) -> None:
        """Leave off what is being said: nothing more of it is delivered from now on. From any thread; returns at
        once."""


@runtime_checkable
class Failing(Protocol):
    """A source that may end for a reason that is to be told as an error."""

    @property
    def failure(self) -> str:
        """One line, once it has ended; "" if it was the end of what there is to say."""


@runtime_checkable
class Probed(Protocol):
    """A source whose device may be missing, which is looked for before anything takes time."""

    def probe(self) -> None:
        """Open nothing. Raises TransportError for a device that is not there."""


@runtime_checkable
class Replayable(Interruptible, Protocol):
    """One that rests after an interrupt until it is asked for again."""

    @property
    def resting(self) -> bool:
        """Whether it does so now."""

    def play(self) -> None:
        """If it rests, begin again. From any thread; returns at once."""


class Source(Protocol):
    """Somewhere voice comes from. live: it cannot wait, so the newest sound counts and old sound is dropped."""

    name: str
    live: bool

    def open(self, deliver: Deliver, ended: Callable[[], None]) -> None:
        """Begin. `deliver` may be called from any thread, `ended` once, when no more will come."""

    def check(self) -> str:
        """As a sink's."""

    def close(self) -> None:
        """Stop; nothing is delivered after."""
