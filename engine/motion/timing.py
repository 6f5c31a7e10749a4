"""From latents at 25 Hz to any frame rate.

Frame j shows time j / fps exactly. Between latents the motion is a Catmull-Rom spline (Catmull and Rom 1974): it goes
through every latent and its speed has no jumps, so that 45 or 60 frames a second do not judder. Positions are whole
numbers of 1 / fps latents: nothing drifts, however long the stream.
"""

from dataclasses import dataclass, field

import numpy as np

LATENT_RATE = 25


def catmull_rom(before: np.ndarray, a: np.ndarray, b: np.ndarray, after: np.ndarray, along: float) -> np.ndarray:
    """Value (D,) at `along` in 0..1 of the way from a to b, given their neighbours."""
    t = np.float32(along)
    return a + 0.5 * t * (
        (b - before) + t * ((2 * before - 5 * a + 4 * b - after) + t * (3 * (a - b) + after - before))
    )


@dataclass
class Timeline:
    """Turns latents, as they come, into one latent a frame. Holds the last few latents, never more."""

    fps: int
    frames: int = 0  # frames given out
    _base: int = -1  # index of the first latent in `_held`
    _held: list[np.ndarray] = field(default_factory=list)

    def push(self, latents: np.ndarray) -> list[np.ndarray]:
        """New latents (n, D) -> the latents (D,) of the frames that became due. A frame is due once the two latents
        after it are known."""
        for latent in latents:
            if self._base < 0 and not self._held:
                self._held.append(latent)  # the one before the first: the first itself
            self._held.append(latent)
        due = []
        while (at := self._position())[0] + 2 < self._base + len(self._held):
            index, along = at
            first = index - 1 - self._base
            due.append(catmull_rom(*self._held[first : first + 4], along))
            self.frames += 1
            # below 25 fps a frame may lie beyond all that is held
            drop = min(self._position()[0] - 1 - self._base, len(self._held))
            if drop > 0:
                del self._held[:drop]
                self._base += drop
        return due

    def _position(self) -> tuple[int, float]:
        """Index of the latent at or before the next frame, and how far the frame is towards the one after."""
        index, rest = divmod(self.frames * LATENT_RATE, self.fps)
        return index, rest / self.fps
