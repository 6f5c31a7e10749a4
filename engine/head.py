"""A talking head: voice in, frames out, as the voice arrives or all at once."""

from dataclasses import dataclass

import numpy as np

from engine.anchor import anchored
from engine.blinks import Blinks
from engine.features import LATENT_HOP, SAMPLE_RATE, LogMel
from engine.model import Model
from engine.motion.generator import OFFLINE, MotionGenerator, Pace, Statistics
from engine.motion.timing import Timeline
from engine.portrait import Portrait

__all__ = ["OFFLINE", "Frame", "Head", "Model", "Pace", "Style"]


@dataclass(frozen=True)
class Style:
    """How the head moves. intensity: 0 (hardly) to 2 (much), 1 as people do; pose: yaw, pitch and roll in degrees added
    to the portrait's own, within about 20 each (yaw, roll: positive to the picture's right; pitch: positive down)."""

    intensity: float = 1.0
    pose: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Frame:
    """index: frames since the start, it shows time index / fps; image (size, size, 3) uint8 RGB."""

    index: int
    image: np.ndarray


def statistics(model: Model, latent: np.ndarray, style: Style) -> Statistics:
    """Motion statistics for a portrait whose own latent (D,) is given: centred where clips are that look like it, moved
    by the pose; as wide as clips are, times the intensity, but for what moves the lips: somebody who sits still speaks
    no less clearly. Each number counts to the lips by its share in the directions that move them. Lips are, in the
    mean, as far apart as those of people who speak: what a stranger's own look says of that is less sure."""
    arrays = model.arrays
    mean = np.append(latent, 1.0) @ arrays["mean_from_portrait"] + np.asarray(style.pose) @ arrays["degrees"]
    told = np.array([arrays["speaking"][0], model.gauges(latent)[1]])
    mean = anchored(mean, model.gauges, told, model.ways)
    lips = np.square(arrays["lips"]).sum(0)
    width = np.sqrt(lips + (1 - lips) * max(style.intensity, 1e-3) ** 2)
    return Statistics(mean.astype(np.float32), (arrays["deviation"] * width).astype(np.float32))


class Head:
    """One portrait speaking. Chunks of any size give the same frames as the whole voice at once."""

    def __init__(
        self, model: Model, portrait: Portrait, *, fps: int = 45, size: int = 512, style: Style | None = None,
        seed: int = 0, pace: Pace | None = None,
    ):  # fmt: skip
        self.fps = fps
        self._model = model
        prepared = model.prepare(portrait)
        self._renderer = model.renderer(prepared, size)
        self._features = LogMel()
        goal = statistics(model, prepared.latent, style or Style())
        self._motion = MotionGenerator.of(model, goal, prepared.latent, seed, pace or OFFLINE)
        self._blinks = Blinks.of(model, prepared, seed)
        self._timeline = Timeline(fps)
        self._samples = 0
        self._given = 0

    def push(self, samples: np.ndarray) -> list[Frame]:
        """Mono float32 samples (n,) at 16 kHz -> the frames that became due."""
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
        latents = self._timeline.push(self._blinks.push(self._motion.push(self._features.push(samples))))
        if limit is not None:
            latents = latents[: limit - self._given]
        frames = []
        for latent in latents:
            # one at a time: a product of several rows may round differently, and chunks must not show
            frames.append(Frame(self._given, self._renderer.render(self._model.coefficients(latent))))
            self._given += 1
        return frames
