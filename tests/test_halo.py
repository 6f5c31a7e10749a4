"""The halo: what of the background beside a head moves with it."""

import cv2
import numpy as np
import pytest
from drawn_faces import drawn, person_of_drawing

from engine.training.halo import halo


def before_a_wall(x: float = 0.5, follows: bool = False) -> np.ndarray:
    """A drawn face before a checked wall, (512, 512, 3), its middle at x; follows: so does the wall."""
    face = cv2.resize(drawn(0.2, x), (512, 512), interpolation=cv2.INTER_NEAREST)
    y, across = np.mgrid[:512, :512]
    wall = np.where(((across - follows * round((x - 0.5) * 512)) // 16 + y // 16) % 2, 90, 150)
    face[person_of_drawing(face) == 0] = wall[person_of_drawing(face) == 0][:, None]
    return face


def test_a_wall_that_stays_has_none_and_one_that_goes_along_has_much():
    still = before_a_wall()
    assert halo(still, [before_a_wall(0.53)] * 6, person_of_drawing) == 0
    assert halo(still, [before_a_wall(0.53, True)] * 6, person_of_drawing) > 0.5


def test_every_fifth_frame_counts():
    still, smeared = before_a_wall(), before_a_wall(0.53, True)
    whole = halo(still, [smeared], person_of_drawing)
    frames = [still] * 10
    frames[5] = smeared
    assert halo(still, frames, person_of_drawing) == pytest.approx(whole / 2)


def test_pictures_of_any_size_are_judged_alike():
    still, smeared = (cv2.resize(before_a_wall(x, True), (256, 256), interpolation=cv2.INTER_AREA) for x in (0.5, 0.53))
    assert halo(still, [smeared], person_of_drawing) > 0.4


def test_who_fills_the_picture_has_no_background_to_judge():
    full = np.full((64, 64, 3), (30, 200, 60), np.uint8)
    assert halo(full, [full], person_of_drawing) is None
