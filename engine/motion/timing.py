"""From latents at 25 Hz to any frame rate.

Frame j shows time j / fps exactly. Between latents the motion is a Catmull-Rom spline (Catmull and Rom 1974): it goes
through every latent and its speed has no jumps, so that 45 or 60 frames a second do not judder. Positions are whole
numbers of 1 / fps latents: nothing drifts, however long the stream.
"""

from dataclasses import dataclass, field

import numpy as np

LATENT_RATE = 25
#: Latents after the one at or before a frame's time that the frame is interpolated from.
SPLINE_REACH = 2


def catmull_rom(before: np.ndarray, a: np.ndarray, b: np.ndarray, after: np.ndarray, along: float) -> np.ndarray:
    """Value (D,) at `along` in 0..1 of the way from a to b, given their neighbours."""
    t = np.float32(along)
    return a + 0.5 * t * (
        (b - before) + t * ((2 * before - 5 * a + 4 * b - after) + t * (3 * (a - b) + after - before))
    )


@dataclass
class Track:
    """The latents that frames not taken yet are interpolated from, and no others. base: the first one's index; the
    first latent of a stream is there twice, at -1 and 0: before it was the first itself."""

    fps: int
    base: int = -1
    held: list[np.ndarray] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Latents pushed since the start."""
        return self.base + len(self.held)

    def push(self, latents: np.ndarray) -> None:
        """New latents (n, D)."""
        for latent in latents:
            if self.base < 0 and not self.held:
                self.held.append(latent)
            self.held.append(latent)

    def before(self, frame: int) -> int:
        """Index of the latent at or before a frame."""
        return frame * LATENT_RATE // self.fps

    def knows(self, frame: int) -> bool:
        """Whether a frame's latent is settled: once the two latents after it came."""
        return self.before(frame) + SPLINE_REACH < self.count

    def take(self, frame: int) -> np.ndarray:
        """The latent (D,) of a frame that is known; what no later frame needs is forgotten."""
        along = frame * LATENT_RATE % self.fps / self.fps
        first = self.before(frame) - 1 - self.base
        latent = catmull_rom(*self.held[first : first + 4], along)
        # below 25 fps a frame may lie beyond all that is held
        drop = min(self.before(frame + 1) - 1 - self.base, len(self.held))
        if drop > 0:
            del self.held[:drop]
            self.base += drop
        return latent

    def rewind(self, count: int) -> int:
        """Forget the latents from index `count` on, as far as they are held; how many they were."""
        dropped = min(max(0, self.count - count), len(self.held))
        del self.held[len(self.held) - dropped :]
        return dropped

    def shift(self, by: np.ndarray) -> None:
        """Move all that is held by so much (D,)."""
        self.held = [latent + by for latent in self.held]
