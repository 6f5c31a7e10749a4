"""How a head moves, and where that leaves its motion."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.anchor import anchored
from engine.motion.generator import Statistics


@dataclass(frozen=True)
class Style:
    """How the head moves. intensity: 0 (hardly) to 2 (much), 1 as people do; pose: yaw, pitch and roll in degrees added
    to the portrait's own, within about 20 each (yaw, roll: positive to the picture's right; pitch: positive down)."""

    intensity: float = 1.0
    pose: tuple[float, float, float] = (0.0, 0.0, 0.0)


def statistics(model: Any, latent: np.ndarray, style: Style) -> Statistics:
    """Motion statistics for a portrait whose own latent (D,) is given: centred where clips are that look like it, moved
    by the pose; as wide as clips are, times the intensity, but for what moves the lips: somebody who sits still speaks
    no less clearly. Each number counts to the lips by its share in the directions that move them. Lips are, in the
    mean, as far apart as those of people who speak: what a stranger's own look says of that is less sure.

    model: an engine.model.Model, or what has its `arrays`, `gauges` and `ways`."""
    arrays = model.arrays
    mean = np.append(latent, 1.0) @ arrays["mean_from_portrait"] + np.asarray(style.pose) @ arrays["degrees"]
    told = np.array([arrays["speaking"][0], model.gauges(latent)[1]])
    mean = anchored(mean, model.gauges, told, model.ways)
    lips = np.square(arrays["lips"]).sum(0)
    width = np.sqrt(lips + (1 - lips) * max(style.intensity, 1e-3) ** 2)
    return Statistics(mean.astype(np.float32), (arrays["deviation"] * width).astype(np.float32))
