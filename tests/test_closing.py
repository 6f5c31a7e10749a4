"""Lips that are open in a portrait are closed along their edges, and what was between them is kept."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine.model import WEIGHTS, Model
from engine.portrait import Portrait
from engine.renderer import closing
from engine.renderer.boxes import mouth_box
from engine.renderer.closing import OPEN, SPARED, WIDE, close, smiles, teeth
from engine.renderer.cpu import CpuRenderer
from engine.renderer.inside import raster
from engine.renderer.outline import Outline

SKIN, LIP, TOOTH = (200, 160, 140), (170, 60, 70), (245, 245, 245)
BOX = np.array([0.3, 0.5, 0.4, 0.4], np.float32)
SMILE = Outline(0.5, 0.45, 0.4, 0.0, -0.02, 0.0, 0.0, 0.16, 0.0, 0.0)


def drawn(lips: Outline, size: int = 512) -> np.ndarray:
    """A picture of skin with lips about an opening that shows teeth."""
    picture = np.full((size, size, 3), SKIN, np.uint8)
    at = (raster(np.array([0, 0, 1, 1]), size, size) - BOX[:2]) / BOX[2]
    x, y = lips.frame(at)
    upper, lower = lips.edges(x)
    amid = np.abs(x) < 0.5
    picture[amid & (y > upper - 0.15) & (y < lower + 0.18)] = LIP
    picture[amid & (y > upper) & (y < lower)] = TOOTH
    return picture


def white(picture: np.ndarray) -> int:
    return int((picture.min(-1) > 215).sum())


outlines = st.builds(
    Outline,
    x=st.floats(0.4, 0.6), y=st.floats(0.4, 0.5), across=st.floats(0.3, 0.45), down=st.floats(-0.1, 0.1),
    above=st.floats(-0.05, 0.08), above_tilt=st.floats(-0.05, 0.05), above_bow=st.floats(-0.1, 0.1),
    below=st.floats(0.1, 0.3), below_tilt=st.floats(-0.05, 0.05), below_bow=st.floats(-0.1, 0.1),
)  # fmt: skip


@given(outlines)
@settings(max_examples=12, deadline=None)
def test_no_tooth_is_left_between_lips_that_meet(lips):
    open_ = drawn(lips)
    closed = close(open_, BOX, lips)
    assume(white(open_) > 200)
    assert white(closed) <= 0.02 * white(open_)
    # nothing but the mouth and what is about it has moved
    far = np.ones(open_.shape[:2], bool)
    far[round(0.45 * 512) : round(0.99 * 512), round(0.25 * 512) : round(0.8 * 512)] = False
    assert np.array_equal(closed[far], open_[far])
    lip = lambda picture: int((np.abs(picture.astype(int) - LIP).sum(-1) < 60).sum())  # noqa: E731
    assert lip(closed) > 0.6 * lip(open_)  # both are there still


def test_lips_come_together_by_what_they_were_apart():
    """A mark on the chin just below the lower lip rises by most of the opening, one above the upper lip sinks a little,
    one at the nose stays."""
    picture = drawn(SMILE)
    at = np.array([SMILE.points(np.float64(0), np.float64(y)) for y in (-0.4, -0.17, 0.36)])
    marks = np.round((at * BOX[2] + BOX[:2]) * 512 - 0.5).astype(int)
    for x, y in marks:
        cv2.circle(picture, (int(x), int(y)), 2, (0, 0, 255), -1)
    closed = close(picture, BOX, SMILE)
    column = closed[:, marks[0, 0] - 3 : marks[0, 0] + 4].astype(int)
    blue = ((column[..., 2] > 180) & (column[..., 0] < 90)).any(1)
    seen = np.flatnonzero(np.diff(blue.astype(int)) == 1)
    width = SMILE.across * BOX[2] * 512
    nose, above, chin = (seen + 3 - marks[:, 1]) / width
    assert abs(nose) < 0.01
    assert 0.005 < above < 0.06
    assert -0.14 < chin < -0.05


def test_what_lies_between_lips_is_kept():
    kept = teeth(drawn(SMILE), BOX, SMILE, 192)
    x, y = SMILE.frame(raster(np.array([0, 0, 1, 1]), 192, 192))
    upper, lower = SMILE.edges(x)
    between = (y > upper + 0.04) & (y < lower - 0.04)
    assert (kept[between, 3] == 1).all()
    assert (np.abs(kept[between, :3] - TOOTH) < 3).all()
    assert (kept[(y < upper) | (y > lower), 3] == 0).all()


def test_lips_that_meet_are_left_alone():
    assert smiles(SMILE)
    assert not smiles(replace(SMILE, above=0.0, below=0.6 * OPEN))
    assert not smiles(replace(SMILE, across=0.9 * WIDE))  # in the middle of a word
    barely = replace(SMILE, above=0.0, below=0.0)
    picture = drawn(barely)
    moved = np.abs(close(picture, BOX, barely).astype(int) - picture).sum(-1) > 30
    assert moved.sum() < 8 * SPARED * BOX[2] * 512 * SMILE.across * BOX[2] * 512


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load(WEIGHTS["research"])


def opened(portrait: Portrait, lips: Outline, wide: float) -> np.ndarray:
    """The picture of somebody whose lips meet, with lips that are apart by `wide` widths of the mouth, on teeth."""
    box, size = mouth_box(portrait.keypoints), len(portrait.pixels)
    at = raster(np.array([0, 0, 1, 1]), size, size)
    x, y = lips.frame((at - box[:2]) / box[2])
    arch = (1 - 4 * x**2).clip(0, 1) ** 0.7
    meet, gap = sum(lips.edges(x)) / 2, wide * arch
    source = np.where(y > meet + gap / 2, y - gap * (1 - (y - meet - gap / 2)).clip(0, 1), y)
    back = ((lips.points(x, source) * box[2] + box[:2]) * size - 0.5).astype(np.float32)
    picture = cv2.remap(portrait.pixels, back, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    picture[(y > meet) & (y < meet + gap) & (arch > 0.1)] = (236, 228, 214)
    return picture


@pytest.mark.parametrize("name", ["ada", "dalia"])
def test_a_portrait_that_shows_its_teeth_closes_its_lips(model, assets, monkeypatch, name):
    """And shows those teeth again when its lips part."""
    monkeypatch.setattr(closing, "WIDE", 0.25)  # no bundled portrait smiles
    from engine.portrait import load_portrait

    closed = load_portrait(assets / "portraits" / f"{name}.jpg", 512)
    fields, _ = model._fields(closed.pixels, closed.keypoints)
    lips = Outline(*fields["lips"][0].tolist())
    smiling = Portrait(opened(closed, lips, 0.2), closed.keypoints, "smile")
    found = Outline(*model._fields(smiling.pixels, smiling.keypoints)[0]["lips"][0].tolist())
    assert smiles(found)
    assert found.opening() == pytest.approx(0.18, abs=0.05)
    prepared = model.prepare(smiling)
    box = (mouth_box(closed.keypoints) * 512).astype(int)
    window = np.s_[box[1] : box[1] + box[3], box[0] : box[0] + box[2]]
    light = [int((picture[window].min(-1) > 200).sum()) for picture in (smiling.pixels, prepared.pixels)]
    assert light[1] < 0.1 * light[0]
    at_rest = CpuRenderer(prepared, 512).render(prepared.coefficients)
    assert np.abs(at_rest.astype(int) - prepared.pixels).mean() < 1
    assert not smiles(Outline(*model._fields(prepared.pixels, closed.keypoints)[0]["lips"][0].tolist()))
    assert prepared.inside.picture[..., :3].max() > 200
