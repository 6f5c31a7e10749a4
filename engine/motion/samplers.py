"""Samplers: from noise to latents along the flow, a few steps each.

`velocity(x, t)` is the network's estimate of noise - latent at level t (1: pure noise, 0: clean), where
x_t = (1 - t) x + t e.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np

Velocity = Callable[[np.ndarray, float], np.ndarray]


def times(steps: int) -> np.ndarray:
    """(steps + 1,) noise levels from 1 to 0, a little closer together near noise, where speech decides the motion."""
    even = np.linspace(1.0, 0.0, steps + 1)
    return even**0.9 if steps > 1 else even


def euler(velocity: Velocity, noise: np.ndarray, steps: int) -> np.ndarray:
    """Euler's method along the straight paths of rectified flow (Liu et al. 2023, algorithm 1)."""
    x, levels = noise, times(steps)
    for now, then in pairwise(levels):
        x = x + np.float32(then - now) * velocity(x, now)
    return x

