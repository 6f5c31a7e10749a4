"""Lids that close: where eyes are, what comes down over them, and how far."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.renderer.inside import TEETH, Place, apart, depth, raster, uncovered
from engine.renderer.lids import LIDS, SHUT, SLACK, Lids, closure, come_down, crop_of
from engine.renderer.outline import Outline

SKIN, IRIS, LASHES = (200, 160, 140), (60, 90, 120), (40, 30, 30)
LEFT = Outline(0.3, 0.25, 0.17, 0.01, 0.22, 0.0, -0.2, 0.12, 0.0, -0.1)
RIGHT = Outline(0.7, 0.25, 0.17, -0.01, 0.22, 0.0, -0.2, 0.12, 0.0, -0.1)
#: Where the picture of closed lids has its pixels, in widths of the box.
PIXELS = raster(np.array([0, 0, 1, LIDS[0] / LIDS[1]]), *LIDS)


def face(*eyes: Outline, skin: tuple[int, int, int] = SKIN) -> np.ndarray:
    """What a box shows of skin with open eyes, lashes at their upper edges."""
    picture = np.full((*LIDS, 3), skin, np.float32)
    for eye in eyes:
        x, y = eye.frame(PIXELS)
        upper, lower = eye.edges(x)
        within = np.abs(x) < 0.5
        picture[within & (y > upper - 0.03) & (y < lower)] = IRIS
        picture[within & (np.abs(y - upper) < 0.03)] = LASHES
    return picture


def opened(eye: Outline, margin: float) -> np.ndarray:
    """Where an eye is open, but for a margin in widths of it."""
    x, y = eye.frame(PIXELS)
    upper, lower = eye.edges(x)
    return (np.abs(x) < 0.42) & (y > upper + margin) & (y < lower - margin)


def shown(lids: Lids, picture: np.ndarray, closed: float) -> np.ndarray:
    cover, light = come_down(lids.picture[..., 3], lids.picture[..., 4], np.float32(closed), lids.lashes, np.exp)
    return picture + (lids.picture[..., :3] * light[..., None] - picture) * cover[..., None]


def test_open_eyes_are_as_they_were_and_closed_ones_are_skin():
    picture = face(LEFT, RIGHT)
    lids = Lids.of((LEFT, RIGHT), picture)
    assert np.array_equal(shown(lids, picture, 0.0), picture)
    closed = shown(lids, picture, 1.0)
    for eye in (LEFT, RIGHT):
        lid = opened(eye, 0.06)
        assert np.abs(closed[lid] - SKIN).mean() < 25
        assert np.abs(picture[lid] - SKIN).mean() > 70
    away = (np.abs(PIXELS[..., 1] - 0.25) > 0.12) | (np.abs(PIXELS[..., 0] - 0.5) < 0.05)
    assert np.array_equal(closed[away], picture[away])


def test_lids_come_down_from_above_with_their_lashes():
    picture = face(LEFT, RIGHT)
    lids = Lids.of((LEFT, RIGHT), picture)
    column = np.s_[:, round(LEFT.x * LIDS[1])]
    grey, edges = picture.mean(-1)[column], []
    for closed in (0.3, 0.5, 0.7, 0.9):
        frame = shown(lids, picture, closed).mean(-1)[column]
        covered = np.nonzero(np.abs(frame - grey) > 25)[0]
        edges.append(covered.max())
        lid = frame[covered.min() : covered.max() + 1]
        assert lid[-4:].min() < 0.75 * np.mean(SKIN)  # lashes lead, and skin follows
        assert closed < 0.8 or np.median(lid[:-5]) > 0.8 * np.mean(SKIN)
    assert edges == sorted(edges)
    assert edges[-1] - edges[0] > 4


def test_lids_draw_nothing_at_the_edges_of_the_box():
    # beyond them all is 0, and what is interpolated there would be a place on a lid's way: a line over the cheeks
    there = Lids.of((LEFT, RIGHT), face(LEFT, RIGHT)).picture[..., 4]
    assert there.any()
    assert not there[[0, 1, -2, -1]].any()
    assert not there[:, [0, 1, -2, -1]].any()


def test_lashes_are_as_dark_as_the_portraits():
    dark = Lids.of((LEFT, RIGHT), face(LEFT, RIGHT)).lashes
    plain = np.full((*LIDS, 3), SKIN, np.float32)
    assert dark < 0.6 < 0.85 < Lids.of((LEFT, RIGHT), plain).lashes <= 0.9


@given(read=st.floats(-3, 3))
def test_small_changes_of_the_lids_are_not_drawn(read):
    closed = closure(np.float32(read))
    assert 0 <= closed <= 1
    assert (closed == 0) == (read <= np.float32(SLACK)) or abs(read - SLACK) < 1e-6
    assert closed == 1 or read < SHUT + 1e-6


@given(x=st.floats(-0.5, 0.5), y=st.floats(-0.5, 0.5), turn=st.floats(-0.6, 0.6), width=st.floats(0.05, 0.4))
def test_an_eyes_own_frame_turns_with_it(x, y, turn, width):
    eye = Outline(0.3, 0.2, width * np.cos(turn), width * np.sin(turn), 0.2, 0.0, 0.0, 0.1, 0.0, 0.0)
    assert np.allclose(eye.frame(eye.points(np.array(x), np.array(y))), (x, y), atol=1e-9)


def test_a_crop_is_what_lies_in_the_box():
    picture = np.zeros((256, 256, 3), np.uint8)
    cv2.rectangle(picture, (64, 80), (191, 143), (250, 0, 0), -1)
    crop = crop_of(picture, np.array([0.25, 80 / 256, 0.5, 0.25], np.float32))
    assert crop.shape == (*LIDS, 3)
    assert (crop[2:-2, 2:-2, 0] == 250).all()
    assert (crop_of(picture, np.array([0.2, 80 / 256, 0.6, 0.3], np.float32))[:, :10] == 0).all()


# ------------------------------------------------------------------------------------------------ lips that part

CLOSED = Place(0.5, 0.45, 0.36, 0.0, 0.0, TEETH, 0.7, 0.65)


def test_lips_that_meet_uncover_nothing_and_parted_ones_what_lies_between():
    deep = depth(CLOSED, 192)
    assert not apart(deep, 0.0).any()
    previous = np.zeros_like(deep)
    for opening in (0.03, 0.06, 0.1, 0.15):
        seen = apart(deep, opening)
        assert (seen >= previous - 1e-9).all()  # more and more
        middle = seen[:, 96] > 0.5
        assert middle.sum() / 192 == pytest.approx(opening, abs=0.02)
        # the lower lip goes most of the way
        below = np.arange(192)[middle].mean() / 192 - CLOSED.y
        assert below == pytest.approx(0.3 * opening, abs=0.012)
        across = np.nonzero(seen.max(0) > 0.5)[0] / 192
        assert across.min() > CLOSED.x - 0.2
        assert across.max() < CLOSED.x + 0.2
        previous = seen


def test_a_smile_opens_below_its_own_teeth():
    smile = Place(0.5, 0.45, 0.36, 0.0, 0.0, TEETH + 0.2, 0.7, 0.65)
    first = [np.nonzero(apart(depth(place, 192), 0.08)[:, 96] > 0.5)[0].min() for place in (CLOSED, smile)]
    assert (first[1] - first[0]) / 192 == pytest.approx(0.2 * 0.36, abs=0.01)


def test_what_parts_is_at_least_as_open_as_the_texture_says():
    opacity = np.array([-0.5, 0.0, 0.2, 0.9, 1.4], np.float32)
    assert np.array_equal(uncovered(opacity, np.zeros(5, np.float32)), opacity)
    assert np.allclose(uncovered(opacity, np.full(5, 0.6, np.float32)), [0.1, 0.6, 0.6, 0.9, 1.4])


@given(
    st.floats(-0.4, 0.4),
    st.floats(0.1, 0.5),
    st.tuples(*[st.floats(-0.2, 0.2)] * 3),
    st.tuples(*[st.floats(-0.2, 0.2)] * 3),
)
def test_an_outline_is_found_again_from_its_points(turn, width, above, below):
    outline = Outline(0.5, 0.4, width * np.cos(turn), width * np.sin(turn), *above, *below)
    x = np.linspace(-0.4, 0.4, 9)
    corners = tuple(outline.points(np.float64(at), np.float64(0)) for at in (-0.5, 0.5))
    again = Outline.of(corners, *(outline.points(x, y) for y in outline.edges(x)))
    assert np.allclose(again.vector(), outline.vector(), atol=1e-5)
