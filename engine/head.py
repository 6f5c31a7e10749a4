"""A talking head: voice in, frames out, as the voice arrives or all at once."""

from dataclasses import dataclass

import numpy as np

from engine.features import LATENT_HOP, SAMPLE_RATE
from engine.model import Model
from engine.motion.generator import OFFLINE, Pace
from engine.performance import Performance, check_form
from engine.portrait import Portrait
from engine.renderer.backdrop import Backdrop
from engine.speech import to_mono
from engine.style import Style

__all__ = ["OFFLINE", "Frame", "Head", "Model", "Pace", "Style"]


@dataclass(frozen=True)
class Frame:
    """index: frames since the start, it shows time index / fps; image (size, size, 3) uint8 RGB."""

    index: int
    image: np.ndarray


class Head:
    """One portrait speaking. Chunks of any size give the same frames as the whole voice at once. Raises ValueError for
    fps, size and seed that cannot be."""

    def __init__(
        self, model: Model, portrait: Portrait, *, fps: int = 45, size: int = 512, style: Style | None = None,
        seed: int = 0, pace: Pace | None = None, backdrop: Backdrop | None = None,
    ):  # fmt: skip
        check_form(fps, size, seed)
        self.fps = fps
        self._model = model
        prepared = model.prepare(portrait, backdrop)
        self._renderer = model.renderer(prepared, size)
        self.performance = Performance(model, prepared, style or Style(), fps=fps, seed=seed, pace=pace or OFFLINE)
        self._samples = 0
        self._given = 0

    def push(self, samples: np.ndarray) -> list[Frame]:
        """Mono samples (n,) at 16 kHz, float or int16 -> the frames that became due. Raises VoiceError, having heard
        none, for samples that are no such voice, see engine.speech.to_mono."""
        samples = to_mono(samples)
        self._samples += len(samples)
        return self._advance(samples)

    def finish(self) -> list[Frame]:
        """The frames still owed: ceil(samples * fps / 16000) in all, the end heard as if silence followed."""
        owed = -(-self._samples * self.fps // SAMPLE_RATE)
        frames: list[Frame] = []
        while self._given < owed:
            frames += self._advance(np.zeros(LATENT_HOP, np.float32), owed)
        return frames

    def _advance(self, samples: np.ndarray, limit: int | None = None) -> list[Frame]:
        self.performance.hear(samples)
        frames = []
        while self.performance.knows(self._given) and self._given != limit:
            # one at a time: a product of several rows may round differently, and chunks must not show
            coefficients = self._model.coefficients(self.performance.take(self._given))
            frames.append(Frame(self._given, self._renderer.render(coefficients)))
            self._given += 1
        return frames
