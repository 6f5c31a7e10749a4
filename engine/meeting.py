"""Lips that nearly meet, meet.

For p, b and m people's lips touch. The motion model predicts what film shows on average, and film that is a little out
of step with its sound, so the lips it makes come near to each other there and do not quite meet. What the gauge reads
below NEAR is therefore taken for nothing, and what lies above joins on smoothly, up to APART, beyond which lips are as
the model has them. Of a portrait whose lips do not meet (a frame of film, in the middle of a word) the gauge does not
say as surely where nothing is, and it is left as it is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.anchor import anchored
from engine.renderer.lips import smoothstep

#: In sides of the mouth's box.
NEAR, APART = 0.015, 0.05
#: Lips of a portrait meet whose gauge says less than the first, and do not from the second on.
RESTING = (0.005, 0.015)


@dataclass(frozen=True)
class Meeting:
    """The lips of one portrait. near: what is taken for nothing, in sides of the mouth's box, see NEAR; gauges: latent
    (D,) -> numbers, of which the first is how far lips are apart; way (n, D): what moves lips and nothing else,
    directions each as long as motion deviates."""

    near: float
    gauges: Callable[[np.ndarray], np.ndarray]
    way: np.ndarray

    @classmethod
    def of(cls, model: Any, portrait: Any) -> "Meeting":
        """Those of a prepared portrait, with an engine.model.Model or what has its `gauges` and `ways`."""
        rest = np.float64(model.gauges(portrait.latent)[0])
        return cls(float(NEAR * (1 - smoothstep(rest, *RESTING))), model.gauges, model.ways[0])

    def push(self, latents: np.ndarray) -> np.ndarray:
        """Latents (n, D) -> the same, lips that nearly meet moved until they do."""
        return np.array([self._next(latent) for latent in latents], np.float32).reshape(latents.shape)

    def narrowed(self, opening: float) -> float:
        """How far lips are to be apart that the gauge reads as `opening` apart, both in sides of the mouth's box."""
        if not 0 < opening < APART:
            return opening
        return max(0.0, opening - self.near * (1 - smoothstep(np.float64(opening), self.near, APART)))

    def _next(self, latent: np.ndarray) -> np.ndarray:
        opening = float(self.gauges(latent)[0])
        wanted = self.narrowed(opening)
        if wanted == opening:
            return latent
        return anchored(latent, lambda moved: self.gauges(moved)[:1], np.array([wanted], np.float32), (self.way,))
