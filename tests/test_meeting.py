"""Lips that nearly meet, meet; and nothing else moves."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.meeting import APART, NEAR, RESTING, Meeting
from engine.model import WEIGHTS, Model

openings = st.floats(-0.1, 0.3)
nears = st.floats(0, NEAR)


def lips(near: float) -> Meeting:
    return Meeting(near, lambda latent: latent, np.eye(2))


@given(nears, openings, openings)
def test_lips_open_in_the_same_order_and_without_a_jump(near, a, b):
    low, high = sorted((a, b))
    meeting = lips(near)
    assert -1e-9 <= meeting.narrowed(high) - meeting.narrowed(low) <= 2 * (high - low) + 1e-9


@given(nears, openings)
def test_only_lips_that_are_nearly_closed_are_moved(near, opening):
    narrowed = lips(near).narrowed(opening)
    if not 0 < opening < APART:
        assert narrowed == opening
    elif opening <= near:
        assert narrowed == 0
    else:
        assert opening - near - 1e-9 <= narrowed <= opening


def test_a_portrait_whose_lips_do_not_meet_is_left_as_it_is():
    def of(rest: float) -> Meeting:
        model = SimpleNamespace(gauges=lambda latent: latent, ways=(np.eye(2), np.eye(2)))
        return Meeting.of(model, SimpleNamespace(latent=np.array([rest, 0.0])))

    assert of(-0.01).near == of(RESTING[0]).near == NEAR
    assert 0 < of(sum(RESTING) / 2).near < NEAR
    assert of(RESTING[1]).near == 0
    latents = np.array([[0.01, 0.0], [0.2, 0.3]], np.float32)
    assert np.array_equal(of(0.1).push(latents), latents)
    assert of(0.0).push(latents) == pytest.approx(np.array([[0, 0], [0.2, 0.3]]), abs=1e-4)
    assert of(0.0).push(latents[:0]).shape == (0, 2)


@pytest.mark.parametrize("weights", sorted(WEIGHTS))
def test_the_gauge_reads_what_was_asked_and_the_rest_stays(weights):
    model = Model.load(WEIGHTS[weights])
    way, within = model.ways[0], model.arrays["within"]
    meeting = Meeting(NEAR, model.gauges, way)
    random = np.random.default_rng(3)
    latents = model.arrays["centre"] + 0.7 * random.normal(size=(200, len(within))) * within
    latents = latents.astype(np.float32)
    after = meeting.push(latents)
    was = np.array([model.gauges(latent)[0] for latent in latents])
    now = np.array([model.gauges(latent)[0] for latent in after])
    near = (was > 0) & (was < APART)
    assert 10 < near.sum() < 190
    assert np.array_equal(after[~near], latents[~near])
    assert now[near] == pytest.approx([meeting.narrowed(x) for x in was[near].tolist()], abs=2e-3)
    step, along = (after - latents) / within, way / within
    left = step - step @ np.linalg.pinv(along) @ along
    assert np.abs(left).max() < 1e-4 * np.abs(step).max()
