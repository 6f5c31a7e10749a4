"""Samplers on flows whose solution is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.motion.samplers import euler, times

NOISE = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)


def error(steps: int) -> float:
    """Of dx/dt = 1.5 x from t = 1 to 0, whose solution is x(1) exp(-1.5)."""
    made = euler(lambda x, t: np.float32(1.5) * x, NOISE, steps)
    return float(np.abs(made - NOISE * np.exp(-1.5)).max())


@given(st.integers(1, 64))
def test_levels_fall_from_noise_to_clean(steps):
    levels = times(steps)
    assert len(levels) == steps + 1
    assert (levels[0], levels[-1]) == (1, 0)
    assert (np.diff(levels) < 0).all()


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_straight_paths_are_followed_exactly(steps):
    goal = np.linspace(-2, 2, 5, dtype=np.float32)

    # all noise flows to one point: x_t = (1 - t) goal + t e, so that e - goal = (x - goal) / t
    made = euler(lambda x, t: (x - goal) / np.float32(t), NOISE, steps)
    assert np.abs(made - goal).max() < 1e-5


def test_the_error_falls_with_the_order_of_the_method():
    errors = [error(steps) for steps in (8, 16, 32)]
    orders = np.log2(errors[:-1]) - np.log2(errors[1:])
    assert (np.abs(orders - 1) < 0.25).all(), errors


def test_levels_are_asked_for_in_order_and_the_noise_is_left_alone():
    asked, noise = [], NOISE.copy()

    def velocity(x, t):
        asked.append(t)
        return np.ones_like(x)

    made = euler(velocity, noise, 4)
    assert np.array_equal(noise, NOISE)
    assert made.dtype == np.float32
    assert np.allclose(made, NOISE - 1, atol=1e-6)
    assert asked == list(times(4)[:-1])
    assert min(asked) > 0  # the network is never asked about clean input
