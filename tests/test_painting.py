"""What is painted on stills to learn from: teeth below the lips' line, darkness below them, lids of the colour of skin."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.training.painting import TEETH, brightness, lids_down, mouth_inside

SIDE = 96


def face(turn: float = 0.0, zoom: float = 1.0, x: float = 0.5, y: float = 0.5) -> np.ndarray:
    """Landmarks (478, 2): of those that are painted by, a face of eyes, mouth and chin; zero elsewhere."""
    points = np.zeros((478, 2))
    points[[78, 308, 13, 14, 152]] = [[-0.1, 0.1], [0.1, 0.1], [0, 0.1], [0, 0.102], [0, 0.3]]
    for side, edge, crease in (
        (-1, [33, 246, 161, 160, 159, 158, 157, 173, 133], [247, 30, 29, 27, 28, 56, 190]),
        (1, [263, 466, 388, 387, 386, 385, 384, 398, 362], [467, 260, 259, 257, 258, 286, 414]),
    ):
        along = np.linspace(0.16, 0.06, 9)
        points[edge] = np.stack([side * along, -0.1 - 0.015 * np.sin(np.linspace(0, np.pi, 9))], 1)
        points[crease] = np.stack([side * along[1:-1], np.full(7, -0.14)], 1)
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
    assert (mouth_inside(face(), box, dim, SIDE) <= mouth_inside(face(), box, bright, SIDE)).all()


def test_lids_have_the_skins_colour_and_lashes_at_their_edge():
    still = np.full((256, 256, 3), (180, 120, 90), np.uint8)
    points = face()
    for eye in (points[159], points[386]):  # dark eyes and lashes
        x, y = (eye * 256).astype(int)
        still[y - 1 : y + 10, x - 12 : x + 12] = 20
    box = np.array([0.3, 0.3, 0.4, 0.2])
    closed = points.copy()
    closed[[246, 161, 160, 159, 158, 157, 173, 466, 388, 387, 386, 385, 384, 398], 1] += 0.03
    lids = lids_down(points, closed, still, box, 48, 96)
    for side in (159, 386):
        lid = at(lids, box, closed[side] - [0, 0.03])
        assert lid == pytest.approx(np.array([180, 120, 90]) / 255, abs=0.02)
        assert at(lids, box, closed[side] + [0, 0.004]).mean() < 0.6 * lid.mean()


def test_brightness_is_that_of_the_box():
    picture = np.zeros((100, 100, 3), np.uint8)
    picture[50:, :50] = 200
    assert brightness(picture, np.array([0.0, 0.5, 0.5, 0.5])) == pytest.approx(200 / 255)
    assert brightness(picture, np.array([0.5, 0.0, 0.5, 0.5])) == 0
    assert brightness(picture, np.array([1.4, -0.5, 0.2, 0.2])) == 0  # outside: the nearest pixel
