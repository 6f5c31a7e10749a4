"""What is painted on stills to learn from: pixels bent as landmarks move, teeth below the lips, darkness below them."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.renderer.inside import ENAMEL, TEETH, Place, draw, raster
from engine.training.modes import INNER_LIPS, STABLE
from engine.training.painting import behind_lips, bend, brightness, own_inside, place_of, smiling

SIDE = 96


def face(turn: float = 0.0, zoom: float = 1.0, x: float = 0.5, y: float = 0.5) -> np.ndarray:
    """Landmarks (478, 2): of those that are painted by, a mouth and a chin; the middle elsewhere."""
    points = np.zeros((478, 2))
    points[[78, 308, 13, 14, 152]] = [[-0.1, 0.1], [0.1, 0.1], [0, 0.1], [0, 0.102], [0, 0.3]]
    c, s = np.cos(turn), np.sin(turn)
    return zoom * points @ np.array([[c, s], [-s, c]]) + [x, y]


def at(picture: np.ndarray, box: np.ndarray, point: np.ndarray) -> np.ndarray:
    """The colour of a picture over a box at a point."""
    column, row = ((point - box[:2]) / box[2:] * [picture.shape[1], picture.shape[0]]).astype(int)
    return picture[row, column]


@given(turn=st.floats(-0.5, 0.5), zoom=st.floats(0.5, 1.5), x=st.floats(0.3, 0.7), light=st.floats(0.1, 1.0))
def test_teeth_stand_below_the_lips_line_and_darkness_below_them_however_the_head_is_held(turn, zoom, x, light):
    points = face(turn, zoom, x)
    middle, width = points[13], np.linalg.norm(points[308] - points[78])
    down = (points[152] - middle) / np.linalg.norm(points[152] - middle)
    box = np.concatenate([middle - width, [2 * width, 2 * width]])
    inside = draw(place_of(points, box, light=light), SIDE)
    assert inside.shape == (SIDE, SIDE, 3)
    assert inside.min() >= 0 and inside.max() <= 1
    beside = (points[308] - points[78]) * 0.08  # of the gap between two teeth
    tooth, dark = (at(inside, box, middle + beside + far * width * down).mean() for far in (0.3 * TEETH, 0.125))
    assert tooth > 2.5 * dark
    corner = at(inside, box, middle + 0.42 * (points[308] - points[78]))
    assert corner.mean() < tooth


@given(turn=st.floats(-0.5, 0.5), zoom=st.floats(0.5, 1.5), x=st.floats(0.3, 0.7))
def test_what_lips_may_uncover_lies_about_their_line_and_not_beyond_their_corners(turn, zoom, x):
    points = face(turn, zoom, x)
    middle, across = points[13], points[308] - points[78]
    width = np.linalg.norm(across)
    down = (points[152] - middle) / np.linalg.norm(points[152] - middle)
    box = np.concatenate([middle - 1.2 * width, [2.4 * width, 2.4 * width]])
    share = behind_lips(points, box, SIDE)
    assert share.min() >= 0 and share.max() <= 1
    for along, below in ((0, 0), (0.45, 0), (-0.45, 0.2), (0, 0.6), (0, -0.15)):
        assert at(share, box, middle + along * across + below * width * down) > 0.9
    for along, below in ((0.7, 0), (-0.7, 0.3), (0, 0.9), (0, -0.4)):
        assert at(share, box, middle + along * across + below * width * down) < 0.1


@given(dim=st.floats(0.1, 0.5), bright=st.floats(0.5, 1.0))
def test_a_mouth_in_the_dark_shows_darker_teeth(dim, bright):
    box = np.array([0.3, 0.4, 0.4, 0.4])
    darker, lighter = (draw(place_of(face(), box, light=light), SIDE) for light in (dim, bright))
    assert (darker <= lighter + 1e-9).all()


@given(st.lists(st.floats(-20, 20), min_size=8, max_size=8))
def test_whatever_a_network_says_something_is_drawn(numbers):
    drawn = draw(Place(*numbers), 16)
    assert drawn.shape == (16, 16, 3) and drawn.min() >= 0 and drawn.max() <= 1


@given(turn=st.floats(-0.5, 0.5), zoom=st.floats(0.8, 1.2), x=st.floats(0.4, 0.6))
def test_what_a_head_carries_looks_as_it_did(turn, zoom, x):
    """The same teeth, turned and moved with the head: a window that goes along shows the same picture."""
    box = np.array([0.3, 0.4, 0.4, 0.4])
    here, there = face(), face(zoom=zoom, x=x)
    look = place_of(here, box, light=0.7)
    window = np.concatenate([(box[:2] - 0.5) * zoom + [x, 0.5], box[2:] * zoom])
    assert np.allclose(draw(place_of(there, window, look), SIDE), draw(look, SIDE), atol=1e-6)
    turned = place_of(face(turn), box, look)
    assert np.hypot(turned.across, turned.up) == pytest.approx(np.hypot(look.across, look.up))
    assert (turned.line, turned.edge, turned.light, turned.enamel) == (look.line, look.edge, look.light, look.enamel)


def test_the_teeth_of_a_smile_reach_its_lower_lip_and_are_as_light_as_they_are():
    points = face()
    points[14] += [0, 0.04]
    points[INNER_LIPS] = np.where(points[INNER_LIPS] == [0, 0], points[14], points[INNER_LIPS])
    around = np.linspace(0, 2 * np.pi, len(INNER_LIPS), endpoint=False)
    points[INNER_LIPS] = np.stack([0.5 - 0.1 * np.cos(around), 0.62 - 0.02 * np.sin(around)], 1)
    points[[78, 308, 13, 14]] = [[0.4, 0.6], [0.6, 0.6], [0.5, 0.6], [0.5, 0.64]]
    points[STABLE] = np.random.default_rng(0).uniform(0.3, 0.7, (len(STABLE), 2))
    picture = np.full((256, 256, 3), 90, np.uint8)
    picture[148:170, 96:160] = 170
    box = np.array([0.3, 0.4, 0.4, 0.4])
    place = smiling(place_of(points, box, light=0.4), picture, points, box)
    assert place.line == pytest.approx(0, abs=1e-6)
    assert place.edge == pytest.approx(0.04 / 0.2)
    assert place.enamel == pytest.approx(170 / 255 / ENAMEL.mean(), abs=0.02)


SMOOTH = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
STILL = cv2.resize(SMOOTH, (256, 256), interpolation=cv2.INTER_CUBIC)
BOX = np.array([0.25, 0.25, 0.5, 0.5])


@given(seed=st.integers(0, 99), turn=st.floats(-0.2, 0.2), zoom=st.floats(0.9, 1.1), x=st.floats(-0.05, 0.05))
def test_a_still_bent_by_a_similarity_is_that_similarity_of_it(seed, turn, zoom, x):
    before = np.random.default_rng(seed).uniform(0.2, 0.8, (40, 2))
    c, s = zoom * np.cos(turn), zoom * np.sin(turn)
    matrix = np.array([[c, s], [-s, c]])
    after = (before - 0.5) @ matrix + 0.5 + [x, -x]
    bent = bend(STILL, before, after, BOX, 64, 64)
    at = (raster(BOX, 64, 64) - 0.5 - [x, -x]) @ np.linalg.inv(matrix) + 0.5
    expected = cv2.remap(STILL, (at * 256 - 0.5).astype(np.float32), None, cv2.INTER_LINEAR) / 255
    assert np.abs(bent - expected).max() < 0.02


def test_what_lies_at_a_point_goes_where_the_point_goes():
    before = np.random.default_rng(5).uniform(0.2, 0.8, (40, 2))
    before[0] = 0.5
    picture = np.zeros((256, 256, 3), np.uint8)
    picture[123:133, 123:133] = 255
    after = before.copy()
    after[0, 0] = 0.53
    assert at(bend(picture, before, after, BOX, 64, 64), BOX, after[0]).mean() > 0.9
    assert bend(picture, before, before, BOX, 64, 64) == pytest.approx(crop_of(picture), abs=1e-3)


def crop_of(picture: np.ndarray) -> np.ndarray:
    pixels = (raster(BOX, 64, 64) * 256 - 0.5).astype(np.float32)
    return cv2.remap(picture, pixels, None, cv2.INTER_LINEAR) / 255


@given(shift=st.floats(-0.1, 0.1))
def test_a_smiles_own_teeth_are_where_its_head_carried_them(shift):
    lips = np.array([[0.45, 0.5], [0.55, 0.5], [0.55, 0.54], [0.45, 0.54]])
    here = np.array([[0.3, 0.3], [0.7, 0.3], [0.5, 0.7], [0.4, 0.5]])
    picture = np.full((256, 256, 3), 40, np.uint8)
    picture[128:138, 115:141] = 240
    colours, known = own_inside(picture, lips, here, here + np.array([shift, 0]), BOX, 128)
    middle = np.array([0.5 + shift, 0.52])
    assert at(known, BOX, middle) == pytest.approx(1)
    assert at(colours, BOX, middle) == pytest.approx(240 / 255, abs=0.01)
    assert at(known, BOX, middle + np.array([0, 0.08])) == 0
    # half a pixel less all around: landmarks are not exact, and lips are no teeth
    assert 0.6 * 0.1 * 0.04 < known.sum() * BOX[2] * BOX[3] / 128**2 < 0.1 * 0.04


def test_brightness_is_that_of_the_box():
    picture = np.zeros((100, 100, 3), np.uint8)
    picture[50:, :50] = 200
    assert brightness(picture, np.array([0.0, 0.5, 0.5, 0.5])) == pytest.approx(200 / 255)
    assert brightness(picture, np.array([0.5, 0.0, 0.5, 0.5])) == 0
    assert brightness(picture, np.array([1.4, -0.5, 0.2, 0.2])) == 0  # outside: the nearest pixel
