"""What is painted on stills to learn from: pixels bent as landmarks move, teeth below the lips, darkness below them."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.training.painting import TEETH, bend, brightness, mouth_inside, own_inside, raster

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
    inside = mouth_inside(points, box, light, SIDE)
    assert inside.shape == (SIDE, SIDE, 3)
    assert inside.min() >= 0 and inside.max() <= 1
    beside = (points[308] - points[78]) * 0.08  # of the gap between two teeth
    tooth, dark = (at(inside, box, middle + beside + far * width * down).mean() for far in (0.3 * TEETH, 0.125))
    assert tooth > 2.5 * dark
    corner = at(inside, box, middle + 0.42 * (points[308] - points[78]))
    assert corner.mean() < tooth


@given(dim=st.floats(0.1, 0.5), bright=st.floats(0.5, 1.0))
def test_a_mouth_in_the_dark_shows_darker_teeth(dim, bright):
    box = np.array([0.3, 0.4, 0.4, 0.4])
    assert (mouth_inside(face(), box, dim, SIDE) <= mouth_inside(face(), box, bright, SIDE) + 1e-9).all()


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
    assert known.sum() * BOX[2] * BOX[3] / 128**2 == pytest.approx(0.1 * 0.04, rel=0.2)  # and half a pixel about it


def test_brightness_is_that_of_the_box():
    picture = np.zeros((100, 100, 3), np.uint8)
    picture[50:, :50] = 200
    assert brightness(picture, np.array([0.0, 0.5, 0.5, 0.5])) == pytest.approx(200 / 255)
    assert brightness(picture, np.array([0.5, 0.0, 0.5, 0.5])) == 0
    assert brightness(picture, np.array([1.4, -0.5, 0.2, 0.2])) == 0  # outside: the nearest pixel
