"""A model small enough to think through: its latent is how loud the speech is, and its picture is its latent."""

from collections import deque
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np

from engine.backend import CpuBackend
from engine.features import FLOOR, scale

D = 3
SILENT = float(scale(np.float32(FLOOR)))


@dataclass
class LoudnessModel:
    """Stands in for engine.model.Model. Latent 0 of a moment is the mean of its features above silence; the others are
    the noise, so that they tell hops apart."""

    window: int = 40
    evaluations: int = 0
    backend: CpuBackend = field(default_factory=CpuBackend)
    arrays: dict = field(
        default_factory=lambda: {
            "centre": np.zeros(D, np.float32),
            "total": np.ones(D, np.float32),
            "within": np.ones(D, np.float32),
            "swing": np.ones(D, np.float32),
            "lips": np.eye(1, D, dtype=np.float32),
            "lids": np.eye(1, D, 1, dtype=np.float32),
            "mean_from_portrait": np.concatenate([np.eye(D), np.zeros((1, D))]).astype(np.float32),
            "deviation": np.ones(D, np.float32),
            "degrees": np.eye(D, dtype=np.float32),
        }
    )

    def listen(self, features):
        return features.reshape(len(features), self.window, -1)

    def velocity(self, latents, noise, past, present, speech, hears, statistics, knows):
        self.evaluations += 1
        goal = latents * 0.1
        goal[..., 0] = speech.mean(-1) - SILENT
        # the straight path from the noise of now to the goal
        return (latents - goal) / np.maximum(noise, 1e-6)[..., None]

    def coefficients(self, latent):
        return latent

    def prepare(self, picture):
        return portrait()

    def renderer(self, prepared, size):
        return LatentRenderer(prepared, size)


@dataclass
class LatentRenderer:
    """A picture whose first pixel says how loud the moment is, 0..255; `seen` keeps the latents themselves."""

    portrait: SimpleNamespace
    size: int
    seen: deque = field(default_factory=lambda: deque(maxlen=10_000))

    def render(self, coefficients):
        self.seen.append(coefficients)
        image = np.zeros((self.size, self.size, 3), np.uint8)
        image[...] = np.clip((coefficients[0] - self.portrait.latent[0]) * 60, 0, 255).astype(np.uint8)
        return image


def portrait(*latent: float) -> SimpleNamespace:
    return SimpleNamespace(latent=np.array(latent or (0.0, 0.0, 0.0), np.float32))
