"""Boxes: where on a portrait the mouth and the eyes lie.

A box is (x, y, width, height) in 0..1 of the square picture: its upper left corner and its size. All sizes follow from
one length, the distance between the midpoints of the eyes and of the mouth corners, which turns of the head change
least.
"""

import numpy as np

MOUTH_SIDE = 2.1
MOUTH_BELOW = 0.12  # the jaw opens downwards: the box sits a little under the lips
EYES_WIDTH, EYES_HEIGHT = 2.4, 1.2
EYES_ABOVE = 0.05


def unit_length(keypoints: np.ndarray) -> float:
    """Distance from the eyes' midpoint to the mouth's, in 0..1, of keypoints (5, 2) in YuNet's order."""
    return float(np.hypot(*(keypoints[3:].mean(0) - keypoints[:2].mean(0))))


def _box(centre: np.ndarray, width: float, height: float) -> np.ndarray:
    return np.array([centre[0] - width / 2, centre[1] - height / 2, width, height], np.float32)


def mouth_box(keypoints: np.ndarray) -> np.ndarray:
    """(4,) square box around the mouth."""
    unit = unit_length(keypoints)
    return _box(keypoints[3:].mean(0) + np.array([0, MOUTH_BELOW * unit]), MOUTH_SIDE * unit, MOUTH_SIDE * unit)


def eyes_box(keypoints: np.ndarray) -> np.ndarray:
    """(4,) box, twice as wide as high, around both eyes."""
    unit = unit_length(keypoints)
    return _box(keypoints[:2].mean(0) - np.array([0, EYES_ABOVE * unit]), EYES_WIDTH * unit, EYES_HEIGHT * unit)
