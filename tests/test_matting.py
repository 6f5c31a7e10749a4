"""A person's outline: closed-form matting in a band, and the layers that are made of it."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.renderer import matting
from engine.renderer.boxes import unit_length
from engine.renderer.matte import part, shine
from engine.renderer.matting import closed_form, matte, person, trimap

#: A face framed as in training, in YuNet's order.
KEYPOINTS = np.array([[0.41, 0.4], [0.58, 0.39], [0.5, 0.49], [0.43, 0.58], [0.57, 0.59]], np.float32)


def levin(picture: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Levin, Lischinski and Weiss 2008, equation 12, written out and solved as it stands."""
    height, width = known.shape
    laplacian = np.zeros((height * width, height * width))
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            window = [(y + dy) * width + x + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
            colours = picture.reshape(-1, 3)[window].astype(np.float64)
            off = colours - colours.mean(0)
            spread = off.T @ off / 9 + matting.NOISE / 9 * np.eye(3)
            laplacian[np.ix_(window, window)] += np.eye(9) - (1 + off @ np.linalg.inv(spread) @ off.T) / 9
    asked = (known == 0.5).ravel()
    alpha = known.ravel().astype(np.float64)
    right = -laplacian[np.ix_(asked, ~asked)] @ alpha[~asked]
    alpha[asked] = np.linalg.lstsq(laplacian[np.ix_(asked, asked)], right, rcond=None)[0]
    return alpha.reshape(height, width).clip(0, 1)


@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_solved_is_the_matting_laplacian(seed, monkeypatch):
    monkeypatch.setattr(matting, "RESIDUAL", 1e-9)
    monkeypatch.setattr(matting, "STEPS", 2000)
    monkeypatch.setattr(matting, "WINDOWS", 100)
    rng = np.random.default_rng(seed)
    alpha = (0.5 + (7 - np.hypot(*(np.mgrid[:20, :22] - 10))) / 5).clip(0, 1)
    colours = cv2.GaussianBlur(rng.uniform(0, 1, (20, 22, 6)), (0, 0), 2)
    picture = colours[..., :3] * alpha[..., None] + (colours[..., 3:] ** 2) * (1 - alpha[..., None])
    picture += rng.normal(0, 0.01, picture.shape)
    known = np.where(alpha == 1, 1.0, np.where(alpha == 0, 0.0, 0.5))
    known[4, 0] = known[19, 3] = 0.5  # at the picture's edges, too
    assert np.abs(closed_form(picture, known) - levin(picture, known)).max() < 2e-3


def hairs(size: int = 256) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A round head with single hairs before a wall in another light at each side: picture (S, S, 3) uint8, its alpha,
    and what a segmenter sees of it."""
    middle = (KEYPOINTS.mean(0) * size).round().astype(int)
    head = np.zeros((4 * size, 4 * size), np.uint8)
    cv2.circle(head, (4 * middle).tolist(), int(0.27 * 4 * size), 255, -1)
    rough = cv2.resize(head, (size, size), interpolation=cv2.INTER_AREA) / 255
    for turn in np.linspace(0, 2 * np.pi, 40):
        way = np.array([np.cos(turn), np.sin(turn)])
        ends = (4 * (middle + way * size * reach) for reach in (0.25, 0.285))
        cv2.line(head, *(end.round().astype(int).tolist() for end in ends), 255, 5, cv2.LINE_AA)
    alpha = cv2.resize(head, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    wall = np.linspace(235, 120, size)[None, :, None] + np.array([0, 5, 20])
    picture = np.array([60, 35, 25]) * alpha[..., None] + wall * (1 - alpha[..., None])
    return picture.round().astype(np.uint8), alpha, cv2.GaussianBlur(rough, (0, 0), 2).astype(np.float32)


def test_single_hairs_are_cut_out():
    picture, alpha, rough = hairs()
    ours = matte(picture, rough, KEYPOINTS)
    band = trimap(rough) == 0.5
    assert band.mean() < 0.2
    assert np.abs(ours - alpha)[band].mean() < 0.04 < np.abs(rough - alpha)[band].mean() / 3
    assert np.array_equal(ours[~band], trimap(rough)[~band])


def test_a_mask_of_any_size_does():
    picture, alpha, rough = hairs()
    for side in (64, 128, 512):
        mask = cv2.resize(rough, (side, side), interpolation=cv2.INTER_AREA if side < 256 else cv2.INTER_CUBIC)
        assert np.abs(matte(picture, mask, KEYPOINTS) - alpha).mean() < 0.01


def test_large_pictures_are_looked_at_in_small():
    picture, _, rough = hairs()
    large = cv2.resize(picture, (1024, 1024), interpolation=cv2.INTER_CUBIC)
    assert matte(large, rough, KEYPOINTS).shape == (512, 512)


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_a_mask_that_says_nothing_leaves_the_face(level):
    """A segmenter that sees nobody, or everybody, is no reason to fail."""
    picture, _, rough = hairs()
    ours = matte(picture, np.full_like(rough, level), KEYPOINTS)
    middle = (KEYPOINTS.mean(0) * 256).astype(int)
    assert np.isfinite(ours).all()
    assert ours[middle[1], middle[0]] == 1


def test_another_person_apart_is_background_and_a_hat_is_not():
    mask = np.zeros((256, 256), np.float32)
    cv2.circle(mask, (128, 128), 70, 1.0, -1)
    cv2.rectangle(mask, (100, 30), (156, 54), 1.0, -1)  # 4 pixels above the head
    alone = mask.copy()
    cv2.circle(mask, (232, 150), 18, 1.0, -1)
    assert np.array_equal(person(mask, KEYPOINTS), alone)


def test_a_wall_beside_a_narrow_jaw_is_no_face():
    """Who takes it for face moves a piece of the wall along, with an outline of its own."""
    picture, unit = np.full((512, 512, 3), 200, np.uint8), unit_length(KEYPOINTS) * 512
    middle = KEYPOINTS.mean(0) * 512
    head = np.zeros((512, 512), np.uint8)
    cv2.ellipse(head, (tuple(middle.tolist()), (1.6 * unit, 3 * unit), 0), 255, -1)
    picture[head > 0] = [90, 60, 50]
    coarse = cv2.resize(head.astype(np.float32) / 255, (128, 128), interpolation=cv2.INTER_AREA)
    ours = matte(picture, coarse, KEYPOINTS)
    beside = int(middle[1]), int(middle[0] + 0.92 * unit)
    assert ours[beside] < 0.05
    assert ours[int(middle[1]), int(middle[0])] == 1


def test_a_matte_follows_the_edge_that_the_picture_has():
    picture = np.full((256, 256, 3), 230, np.uint8)
    cv2.circle(picture, (128, 140), 78, (40, 30, 30), -1)
    truth = picture[..., 0] < 100
    coarse = cv2.GaussianBlur(cv2.resize(truth.astype(np.float32), (128, 128)), (0, 0), 2.5)
    blurred = cv2.resize(coarse, (256, 256), interpolation=cv2.INTER_CUBIC)
    fine = matte(picture, coarse, KEYPOINTS)
    assert 0 <= fine.min() <= fine.max() <= 1
    assert np.abs(fine - truth).mean() < 0.25 * np.abs(blurred - truth).mean()


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from([32, 64, 100]), st.floats(0, 40))
def test_at_rest_the_layers_are_the_picture_whatever_it_is(seed, size, blur):
    """No value is off by more than 2 of 255, be the matte as wrong as it may."""
    rng = np.random.default_rng(seed)
    alpha = rng.uniform(-0.5, 1.5, (size, size)).astype(np.float32)
    alpha = cv2.GaussianBlur(alpha, (0, 0), 0.1 + blur).clip(0, 1)
    picture = rng.integers(0, 256, (size, size, 3), np.uint8)
    made = part(picture, alpha)
    colours, through = (np.ascontiguousarray(made.front[..., channels]) for channels in (slice(3), 3))
    shown = cv2.add(colours, shine(made.back, through))
    assert np.abs(shown.astype(int) - picture).max() <= 2


def test_the_background_is_the_picture_wherever_it_shows():
    picture, alpha, _ = hairs(512)
    made = part(picture, alpha)
    away = cv2.dilate((alpha > 0).astype(np.uint8), matting.disc(4)) == 0
    assert away.mean() > 0.5
    assert np.array_equal(made.back[away], picture[away])
    assert not made.front[away][:, :3].any()
    assert (made.front[away][:, 3] == 255).all()
    # what is hidden is filled in from what is beside it: none of the dark head is left
    assert made.back.min() > 100
