"""A voice becoming the motion of one portrait: what a clip and the live head have in common.

Voice goes in as it is heard, and once all that a frame depends on was heard, its latent is known. Nothing here knows of
a clock, of sound that waits, or of pictures.
"""

from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np

from engine.blinks import Blinks
from engine.features import BANDS, LogMel
from engine.meeting import Meeting
from engine.motion.generator import MotionGenerator, Pace, Statistics
from engine.motion.timing import SPLINE_REACH, Track
from engine.style import Style, statistics

#: The least side of a picture, in pixels: of smaller ones nothing is kept beyond their edges.
SMALLEST = 16


def check_form(fps: int, size: int, seed: int) -> None:
    """Raises ValueError for a form in which no head can be shown."""
    for name, value, least in (("fps", fps, 1), ("size", size, SMALLEST), ("seed", seed, 0)):
        if not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name} must be a whole number from {least} on, not {value!r}")


@dataclass
class Glide:
    """A change of style under way. goal: where it ends; left: blocks of voice until then."""

    goal: Statistics
    left: int = 0

    def step(self, now: Statistics) -> Statistics:
        """The statistics after one block more."""
        part = np.float32(1 / self.left)
        self.left -= 1
        if self.left == 0:
            return self.goal
        return Statistics(
            now.mean + part * (self.goal.mean - now.mean),
            now.deviation + part * (self.goal.deviation - now.deviation),
        )


class Performance:
    """See the module. model: engine.model.Model (or what has its `window`, `arrays`, `velocity`, `listen`, `closed`,
    `gauges` and `ways`); portrait: prepared by it; fps: whole frames a second; seed: of what is chance."""

    def __init__(self, model: Any, portrait: Any, style: Style, *, fps: int, seed: int, pace: Pace):
        self._model, self._portrait, self._style = model, portrait, style
        self._glide = Glide(statistics(model, portrait.latent, style))
        self.features = LogMel()
        self.motion = MotionGenerator.of(model, self._glide.goal, portrait.latent, seed, pace)
        self._meeting = Meeting.of(model, portrait)
        self._blinks = Blinks.of(model, portrait, seed)
        self.track = Track(fps)

    @property
    def goal(self) -> Statistics:
        """Where motion is centred, and how wide it swings, once a change of style is through."""
        return self._glide.goal

    def hear(self, samples: np.ndarray) -> None:
        """Voice, mono float32 (n,) at 16 kHz, n any."""
        if self._glide.left:
            self.motion.steer(self._glide.step(self.motion.statistics))
        self._move(self.features.push(samples))

    def knows(self, frame: int) -> bool:
        """Whether all was heard that a frame depends on."""
        return self.track.knows(frame)

    def take(self, frame: int) -> np.ndarray:
        """The latent (D,) of a frame. Frames are taken in order, each once."""
        return self.track.take(frame)

    def interrupt(self, shown: int) -> None:
        """Forget what was heard but is not seen in frame `shown` yet, as if silence had followed."""
        self.features.pending[:] = 0
        # below 10 fps more may be made than the motion remembers
        oldest = self.track.count - len(self.motion.state.past) + 1
        dropped = self.track.rewind(max(oldest, self.track.before(shown) + SPLINE_REACH))
        self.motion.interrupt(dropped)
        self._blinks.interrupt(dropped)
        self._move(np.zeros((0, BANDS), np.float32))

    def restyle(self, style: Style, blocks: int) -> None:
        """Move in another style, reached evenly over so many calls of `hear`, without a jump."""
        self._style = style
        self._glide = Glide(statistics(self._model, self._portrait.latent, style), blocks)

    def change_portrait(self, portrait: Any) -> None:
        """Go on with the same motion, moved to where another prepared portrait's face is centred."""
        goal = statistics(self._model, portrait.latent, self._style)
        shift = goal.mean - self._glide.goal.mean
        current = self.motion.statistics
        # the motion's own past is relative to its mean, so it moves along
        self.motion.statistics = replace(current, mean=current.mean + shift)
        self.track.shift(shift)
        self._meeting = Meeting.of(self._model, portrait)
        self._blinks.change_portrait(self._model, portrait)
        self._portrait, self._glide.goal = portrait, goal

    def _move(self, features: np.ndarray) -> None:
        self.track.push(self._blinks.push(self._meeting.push(self.motion.push(features))))
