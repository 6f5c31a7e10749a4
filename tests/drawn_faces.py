"""Drawn faces, and stand-ins for the tools that read them: MediaPipe and dlib belong to an extra tests do without."""

import cv2
import numpy as np

SIZE = 96
RED, GREEN = (230, 30, 30), (30, 200, 60)


def drawn(opening: float, x: float = 0.5, shade: int = 128) -> np.ndarray:
    """A green face on grey, `x` its middle in 0..1, with a red mouth `opening` (0..1) open."""
    image = np.full((SIZE, SIZE, 3), shade, np.uint8)
    middle = round(x * SIZE)
    cv2.ellipse(image, (middle, 48), (28, 38), 0, 0, 360, GREEN, -1)
    height = 2 + 16 * opening
    cv2.rectangle(image, (middle - 10, 66), (middle + 9, 66 + round(height) - 1), RED, -1)
    return image


def landmarks_of_drawing(image: np.ndarray) -> np.ndarray | None:
    """Stands in for MediaPipe: (478, 3), with the lips where the red is and the rest where the green is."""
    colours = image.astype(int)
    red = (colours[..., 0] > 130) & (colours[..., 1] < 110)
    green = (colours[..., 1] > 130) & (colours[..., 0] < 110)
    if red.sum() < 5 or green.sum() < 100:
        return None
    size = len(image)
    middle = np.nonzero(green | red)[1].mean() / size
    gap = red.sum(0).max() / size
    points = np.random.default_rng(0).uniform(-0.2, 0.2, (478, 3)).astype(np.float32)
    points += (middle, 0.5, 0)
    for (outer, inner), eye in (((33, 133), -0.1), ((263, 362), 0.1)):
        points[outer, :2], points[inner, :2] = (middle + eye - 0.04, 0.4), (middle + eye + 0.04, 0.4)
    points[2, :2] = middle, 0.6
    for at, upper, lower in ((-0.03, 82, 87), (0, 13, 14), (0.03, 312, 317)):
        points[upper, :2], points[lower, :2] = (middle + at, 0.68), (middle + at, 0.68 + gap)
    return points


def vector_of_drawing(image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Stands in for dlib: the colour of the background says who it is."""
    return np.array([float(image[:8].mean()), 100.0])


def person_of_drawing(image: np.ndarray) -> np.ndarray:
    """Stands in for a segmenter: 1 where the green and the red are, 0 elsewhere."""
    colours = image.astype(int)
    return (np.abs(colours[..., 0] - colours[..., 1]) > 60).astype(np.float32)
