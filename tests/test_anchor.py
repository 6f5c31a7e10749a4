"""A portrait's own latent says what its picture shows, and nothing else of it changes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.anchor import FARTHEST, anchored

RNG = np.random.default_rng(0)
#: Six numbers, of which two move lips, two lids.
WAYS = np.eye(6)[:2] * [[0.5], [0.3]], np.eye(6)[2:4] * 0.4
WEIGHTS = np.array([[1.2, -0.9, 0.1, 0, 0.3, 0], [0, 0.1, 0.8, 1.1, 0, -0.4]])


def gauges(latent: np.ndarray) -> np.ndarray:
    """Curved, as networks are, and each a little moved by what moves the other."""
    return np.tanh(WEIGHTS @ latent * 0.5)


@given(
    latent=st.lists(st.floats(-0.4, 0.4), min_size=6, max_size=6).map(np.array),
    seen=st.tuples(st.floats(-0.4, 0.4), st.floats(-0.4, 0.4)).map(np.array),
)
def test_gauges_say_what_is_seen(latent, seen):
    right = anchored(latent, gauges, seen, WAYS)
    assert np.abs(gauges(right) - seen).max() < 0.02
    assert np.allclose(right[4:], latent[4:])  # what moves neither stays


def test_a_latent_that_is_right_stays():
    latent = RNG.normal(0, 0.3, 6)
    assert np.allclose(anchored(latent, gauges, gauges(latent), WAYS), latent, atol=1e-6)


def test_a_gauge_that_cannot_say_it_moves_the_latent_only_so_far():
    latent = np.zeros(6)
    moved = anchored(latent, gauges, np.array([5.0, 0.0]), WAYS)
    assert np.isfinite(moved).all()
    assert np.abs(moved[:2] / [0.5, 0.3]).max() <= FARTHEST + 1e-6
    assert np.array_equal(anchored(latent, lambda _: np.zeros(2), np.ones(2), WAYS), latent)
