"""A portrait taken apart: the person in front, the background behind, which stays still while the person moves.

The portrait network says at 128 x 128 how much of a pixel is the person's (see engine/renderer/network.py, layers, for
the formula); here that is brought to the picture's own edges, and what the person hides is filled in.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from engine.renderer.boxes import unit_length

#: The side at which hidden background is filled in: it is smooth there, whatever the size of the picture.
FILL = 256
#: The matte's edge follows that of the picture within this share of its side.
EDGE = 1 / 32
#: What is less than this of the person, or more than one less this, is none or all: a faint veil would stay behind.
VEIL = 0.06


@dataclass(frozen=True)
class Layers:
    """front (S, S, 4) uint8: what the person adds to the picture, and how much of the background shows through; back
    (S, S, 3) uint8: the background, filled in where the person was."""

    front: np.ndarray
    back: np.ndarray


def refine(matte: np.ndarray, pixels: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
    """Coarse matte (n, n) in 0..1 and the picture (S, S, 3) uint8 with its keypoints (5, 2) -> matte (S, S) float32.

    A guided filter (He, Sun and Tang 2013) draws the edge where the picture has one. The middle of the face is the
    person's whatever the network thought."""
    size = len(pixels)
    coarse = cv2.resize(matte.astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    guide = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    side = 2 * max(1, round(EDGE * size)) + 1

    def mean(x: np.ndarray) -> np.ndarray:
        return cv2.blur(x, (side, side))

    centre, level = mean(guide), mean(coarse)
    slope = (mean(guide * coarse) - centre * level) / (mean(guide * guide) - centre * centre + 1e-3)
    fine = mean(slope) * guide + mean(level - slope * centre)
    face = np.zeros((size, size), np.uint8)
    unit = unit_length(keypoints) * size
    middle = keypoints.mean(0) * size
    cv2.ellipse(face, (tuple(middle.tolist()), (2.0 * unit, 2.4 * unit), 0), 255, -1)
    return np.maximum(((fine - VEIL) / (1 - 2 * VEIL)).clip(0, 1), face.astype(np.float32) / 255)


def fill(picture: np.ndarray, known: np.ndarray) -> np.ndarray:
    """picture (n, n, 3) and known (n, n) float32, n a power of two -> the picture with what is not known filled in from
    around it (push-pull, Gortler et al. 1996)."""
    if len(picture) == 1:
        return picture
    half = (len(picture) // 2,) * 2
    weight = cv2.resize(known, half, interpolation=cv2.INTER_AREA)
    coarse = cv2.resize(picture * known[..., None], half, interpolation=cv2.INTER_AREA)
    coarse = fill(coarse.reshape(*half, 3) / np.maximum(weight, 1e-4)[..., None], np.minimum(weight * 4, 1))
    coarse = cv2.resize(coarse, (len(picture),) * 2, interpolation=cv2.INTER_LINEAR)
    return picture * known[..., None] + coarse * (1 - known[..., None])


def part(pixels: np.ndarray, matte: np.ndarray) -> Layers:
    """Picture (S, S, 3) uint8 and matte (S, S) in 0..1 -> Layers, from which the picture at rest comes back."""
    size = len(pixels)
    reach = 2 * round(size / 32) + 1
    grown = cv2.dilate(matte.astype(np.float32), np.ones((reach, reach), np.uint8))
    known = 1 - (grown * 1.5).clip(max=1)
    small = cv2.resize(pixels, (FILL, FILL), interpolation=cv2.INTER_AREA).astype(np.float32)
    filled = fill(small, cv2.resize(known, (FILL, FILL), interpolation=cv2.INTER_AREA))
    filled = cv2.resize(filled, (size, size), interpolation=cv2.INTER_LINEAR)
    back = cv2.add(pixels * known[..., None], filled * (1 - known[..., None]), dtype=cv2.CV_8U)
    through = cv2.convertScaleAbs(1 - matte, alpha=255)
    front = cv2.subtract(pixels, shine(back, through))
    return Layers(np.dstack([front, through]), back)


def shine(back: np.ndarray, through: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """What of the background (S, S, 3) shows through (S, S), both uint8. Taking a picture apart and putting it together
    round alike, since both do it here."""
    wide = cv2.cvtColor(through, cv2.COLOR_GRAY2RGB, dst=out)
    return cv2.multiply(back, wide, dst=wide, scale=1 / 255)
