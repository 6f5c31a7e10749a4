"""Blinks made whole.

The motion model says when eyes want to blink, but not how a blink goes: a few sampler steps at 25 latents a second
leave lids half way down, or hanging for a second. Blinks are quick and nearly all alike: 100 ms down, 200 ms or more up
again (Evinger, Manning and Sibony 1991). So a wish to blink, which is a latent that has gone half of a blink's way, is
answered by a whole one, and at any other time the lids stay where they are drawn open. Who has not blinked for long
does so by chance.

A latent is moved along what a blink moves, and nothing else, until the portrait's own gauge reads what it should.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.renderer.cpu import BLINK
from engine.renderer.lids import SLACK

#: How far eyes are closed in the latents of a blink, of 40 ms each.
COURSE = (0.4, 0.9, 1.0, 0.75, 0.45, 0.2)
#: How much of a blink's way is a wish to blink. After a blink began, so many latents begin no other.
WISH, REST = 0.5, 20
#: After so many latents without one, the chance of each to begin a blink: ten a minute for who never wishes to.
OVERDUE, CHANCE = 75, 1 / 75
#: Steps of Newton's method, by the slope of a usual blink.
STEPS = 3
#: Latents whose state is kept for an interrupt: more than the motion generator remembers.
REMEMBERED = 64


@dataclass(frozen=True)
class Moment:
    """After a latent: how many came since a blink began, and how far the lids had gone of a blink's way."""

    since: int
    wish: float


@dataclass
class Blinks:
    """Of one stream. way (D,): how far a blink moves a latent; sense (D,): how much of that way a latent has gone, less
    `rest` (D,), the portrait's own; closed: latent (D,) -> how far the portrait's eyes are read to close, BLINK in a
    blink; seed: of what is chance."""

    way: np.ndarray
    sense: np.ndarray
    rest: np.ndarray
    closed: Callable[[np.ndarray], float]
    seed: int = 0
    count: int = 0  # latents so far
    moments: deque[Moment] = field(default_factory=lambda: deque([Moment(REST, 0.0)], REMEMBERED))

    @classmethod
    def of(cls, model: Any, portrait: Any, seed: int) -> "Blinks":
        """Those of a prepared portrait, with an engine.model.Model or what has its `arrays` and `closed`."""
        way, lids, within = (model.arrays[name] for name in ("blink", "lids", "within"))
        along = lids @ (way / within)
        sense = along @ lids / within / max(float(along @ along), 1e-9)
        return cls(way, sense, portrait.latent, lambda latent: model.closed(portrait, latent), seed)

    def change_portrait(self, model: Any, portrait: Any) -> None:
        """Go on with another face."""
        other = Blinks.of(model, portrait, self.seed)
        self.rest, self.closed = other.rest, other.closed

    def push(self, latents: np.ndarray) -> np.ndarray:
        """Latents (n, D) as the motion model made them -> the same with whole blinks."""
        return np.array([self._next(latent) for latent in latents], np.float32).reshape(latents.shape)

    def interrupt(self, dropped: int) -> None:
        """Forget the last `dropped` latents."""
        self.count -= dropped
        for _ in range(dropped):
            self.moments.pop()

    def _next(self, latent: np.ndarray) -> np.ndarray:
        last = self.moments[-1]
        wish = float((self.sense * (latent - self.rest)).sum())  # not by BLAS, see MotionGenerator
        since = last.since + 1
        if since >= REST and (last.wish <= WISH < wish or self._overdue(since)):
            since = 0
        self.moments.append(Moment(since, wish))
        self.count += 1
        if since < len(COURSE):
            return self._moved(latent, BLINK * COURSE[since])
        return self._moved(latent, SLACK) if self.closed(latent) > SLACK else latent

    def _overdue(self, since: int) -> bool:
        return since > OVERDUE and np.random.default_rng((self.seed, self.count)).random() < CHANCE

    def _moved(self, latent: np.ndarray, closed: float) -> np.ndarray:
        """A latent whose eyes are closed so far."""
        for _ in range(STEPS):
            latent = latent + np.float32((closed - self.closed(latent)) / BLINK) * self.way
        return latent
