"""Our model as evaluation sees it: reenacting with the encoder, speaking with the shipped runtime."""

from pathlib import Path

import numpy as np

from engine.head import Head
from engine.model import Model
from engine.portrait import Portrait, portrait_from_pixels
from engine.renderer.cpu import portrait_inputs


class Trained:
    """The weights of a folder, run as they ship."""

    def __init__(self, weights: Path | None = None):
        self.model = Model.load(weights)

    def _portrait(self, pixels: np.ndarray) -> Portrait:
        return portrait_from_pixels(pixels, size=len(pixels))

    def reenact(self, portrait: np.ndarray, frames: list[np.ndarray]) -> list[np.ndarray]:
        """The portrait moved by the latents of `frames`, each read by the encoder in the portrait's boxes."""
        face = self._portrait(portrait)
        prepared = self.model.prepare(face)
        renderer = self.model.renderer(prepared, len(portrait))
        made = []
        for frame in frames:
            latent = self.model.encode(portrait_inputs(frame, face.keypoints)) - prepared.misread
            made.append(renderer.render(self.model.coefficients(latent)))
        return made

    def speak(self, portrait: np.ndarray, voice: np.ndarray, count: int, seed: int) -> list[np.ndarray]:
        head = Head(self.model, self._portrait(portrait), fps=25, size=len(portrait), seed=seed)
        frames = head.push(voice[: count * 640].astype(np.float32)) + head.finish()
        return [frame.image for frame in frames[:count]]
