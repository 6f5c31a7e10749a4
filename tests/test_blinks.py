"""Blinks made whole, with a gauge small enough to think through: it reads one number of the latent, bent a little."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.blinks import COURSE, OVERDUE, REST, Blinks
from engine.renderer.cpu import BLINK
from engine.renderer.lids import SLACK

D = 3
REST_AT = np.array([0.3, -0.2, 0.5], np.float32)


def closed(portrait, latent) -> float:
    way = latent[0] - portrait.latent[0]
    return float(BLINK * (way + 0.15 * np.sin(3 * way)) + 0.05 * latent[2])


def blinks(seed: int = 0) -> Blinks:
    arrays = {"blink": [1.0, 0.0, 0.0], "lids": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], "within": [0.5, 0.5, 0.5]}
    arrays = {name: np.array(value, np.float32) for name, value in arrays.items()}
    return Blinks.of(SimpleNamespace(arrays=arrays, closed=closed), SimpleNamespace(latent=REST_AT), seed)


def wishing(ways, rest: np.ndarray = REST_AT) -> np.ndarray:
    """Latents that have gone such ways of a blink."""
    latents = np.tile(rest, (len(ways), 1))
    latents[:, 0] += np.asarray(ways, np.float32)
    return latents


def read(latents: np.ndarray) -> np.ndarray:
    return np.array([closed(SimpleNamespace(latent=REST_AT), latent) for latent in latents])


@pytest.mark.parametrize("wish", [[0.6], [0.3, 0.55, 0.3], [0.9, 1.4, 1.2, 0.5], [0.8] * 30], ids=str)
def test_a_wish_to_blink_is_one_whole_blink(wish):
    ways = np.concatenate([np.zeros(20), wish, np.zeros(60)])
    seen = read(blinks().push(wishing(ways)))
    begins = 20 + int(np.argmax(np.array(wish) > 0.5))
    course = seen[begins : begins + len(COURSE)]
    assert np.allclose(course, BLINK * np.array(COURSE), atol=0.03)
    others = np.delete(seen, np.arange(begins, begins + len(COURSE)))
    assert others.max() <= SLACK + 0.01  # nothing of a lid is drawn there


@given(ways=st.lists(st.floats(-1, 0.12), min_size=1, max_size=60))
def test_what_is_no_blink_stays_as_it_is(ways):
    latents = wishing(ways)
    assert np.array_equal(blinks().push(latents), latents)


@given(
    ways=st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=80),
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    dropped=st.integers(0, 20),
)
def test_neither_hops_nor_an_interrupt_show(ways, cuts, dropped):
    latents = wishing(np.concatenate([np.zeros(OVERDUE), ways]))
    whole, stream, made, turn = blinks(4).push(latents), blinks(4), [], 0
    while len(made) < len(latents):
        made += list(stream.push(latents[len(made) : len(made) + cuts[turn % len(cuts)]]))
        turn += 1
    assert np.array_equal(made, whole)
    stream.interrupt(dropped)
    assert np.array_equal(stream.push(latents[len(latents) - dropped :]), whole[len(latents) - dropped :])


def test_who_never_wishes_to_blinks_now_and_then():
    seen = read(blinks().push(wishing(np.zeros(25 * 300))))
    begins = np.nonzero((seen[1:] > 0.3) & (seen[:-1] <= 0.3))[0]
    gaps = np.diff(begins) / 25
    assert 3 <= gaps.min() < 4
    assert 5 < gaps.mean() < 7.5
    assert len(np.unique(gaps)) > len(gaps) / 2


def test_blinks_do_not_follow_on_each_other():
    seen = read(blinks().push(wishing(np.tile([0.0, 0.8], 200))))
    begins = np.nonzero((seen[1:] > 0.3) & (seen[:-1] <= 0.3))[0]
    assert np.diff(begins).min() >= REST


def test_another_face_goes_on_with_its_own_gauge():
    stream, face = blinks(), REST_AT + np.array([0.4, 0.0, 0.0], np.float32)
    other = SimpleNamespace(latent=face)
    model = SimpleNamespace(arrays={"blink": stream.way, "lids": np.eye(2, D), "within": np.ones(D)}, closed=closed)
    stream.push(wishing(np.zeros(20)))
    stream.change_portrait(model, other)
    made = stream.push(wishing([0.0, 0.8, *np.zeros(len(COURSE))], face))
    seen = [closed(other, latent) for latent in made]
    assert np.allclose(seen, BLINK * np.array([0.0, *COURSE, 0.0]), atol=0.04)
