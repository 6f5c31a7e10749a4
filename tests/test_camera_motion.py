"""Whether evaluation tells a camera that moves from a head that does."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.training.camera import background_mask, camera_path, steadied

SIZE, FRAMES = 256, 12
BACKDROP = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8), (0, 0), 2.5)


def face_at(x: float, y: float) -> np.ndarray:
    """Landmarks (468, 2) in 0..1 filling an ellipse about (x, y)."""
    angle, far = np.linspace(0, 400, 468), np.sqrt(np.linspace(0, 1, 468))
    return np.stack([x + 0.16 * far * np.cos(angle), y + 0.22 * far * np.sin(angle)], 1)


def film(path: np.ndarray, faces: np.ndarray, backdrop: np.ndarray = BACKDROP) -> list[np.ndarray]:
    """A head, plain and oval, at `faces` (n, 2) in 0..1 before a backdrop that is shifted by `path` (n, 2) pixels."""
    frames = []
    for shift, (x, y) in zip(path, faces, strict=True):
        matrix = np.array([[1, 0, shift[0] - 128], [0, 1, shift[1] - 128]], np.float64)
        frame = cv2.warpAffine(backdrop, matrix, (SIZE, SIZE), borderMode=cv2.BORDER_REFLECT_101)
        cv2.ellipse(frame, (round(x * SIZE), round(y * SIZE)), (44, 60), 0, 0, 360, (200, 150, 130), -1)
        cv2.rectangle(frame, (round(x * SIZE) - 80, 215), (round(x * SIZE) + 80, SIZE), (40, 40, 60), -1)
        frames.append(frame)
    return frames


@settings(max_examples=15, deadline=None)
@given(across=st.floats(-4, 4), down=st.floats(-3, 3), sway=st.floats(0, 0.06))
def test_a_pan_is_found_and_taken_away_and_the_head_left(across, down, sway):
    time = np.arange(FRAMES)
    path = np.stack([across * time, down * time], 1)
    own = np.stack([0.5 + sway * np.sin(time), np.full(FRAMES, 0.45)], 1)
    shown = own + path / SIZE
    landmarks = np.stack([face_at(*at) for at in shown])
    found = camera_path(film(path, shown), landmarks)
    steady = steadied(landmarks * SIZE, found)
    off = np.abs(steady.mean(1) - own * SIZE).max()
    assert off < 0.5 + 0.05 * np.abs(path).max()


def test_a_head_that_moves_before_a_still_wall_is_no_camera():
    time = np.arange(FRAMES)
    faces = np.stack([0.5 + 0.08 * np.sin(time / 2), np.full(FRAMES, 0.45)], 1)
    found = camera_path(film(np.zeros((FRAMES, 2)), faces), np.stack([face_at(*at) for at in faces]))
    assert np.abs(found - np.eye(2, 3)).max() < 0.05


@pytest.mark.parametrize("backdrop", [np.full_like(BACKDROP, 90), np.zeros_like(BACKDROP)])
def test_a_wall_without_a_mark_says_nothing(backdrop):
    path = np.stack([np.arange(FRAMES) * 3.0, np.zeros(FRAMES)], 1)
    faces = np.tile([0.5, 0.45], (FRAMES, 1))
    found = camera_path(film(path, faces, backdrop), np.stack([face_at(*at) for at in faces]))
    assert np.array_equal(found, np.tile(np.eye(2, 3), (FRAMES, 1, 1)))


def test_a_screen_behind_that_plays_is_not_believed():
    generator = np.random.default_rng(1)
    frames = [generator.integers(0, 256, (SIZE, SIZE, 3), np.uint8) for _ in range(4)]
    found = camera_path(frames, np.tile(face_at(0.5, 0.45), (4, 1, 1)))
    assert np.array_equal(found, np.tile(np.eye(2, 3), (4, 1, 1)))


@given(x=st.floats(-0.5, 1.5), y=st.floats(-0.5, 1.5))
def test_no_point_of_the_face_counts_as_background(x, y):
    landmarks = face_at(x, y)
    mask = background_mask(landmarks, SIZE)
    pixels = np.floor(landmarks * SIZE).astype(int)
    inside = pixels[((pixels >= 0) & (pixels < SIZE)).all(1)]
    assert not mask[inside[:, 1], inside[:, 0]].any()
