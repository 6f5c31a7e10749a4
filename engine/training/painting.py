"""Pictures of a still that moves as somebody else does, painted to learn from.

Portraits are stills, sharp and well lit; clips that move are neither, and show between the lips a blur whose median is
the colour of lips. Landmarks say where a still's lips and lids would be: its own pixels are bent there, and where the
mouth opens there is painted what would be seen: upper teeth, which are fixed to the skull, darkness and a tongue.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from engine.renderer.lips import smoothstep

#: Where one upper tooth ends and the next begins, in widths of the mouth from the middle of the face.
BETWEEN_TEETH = (0.0, 0.165, 0.29, 0.4)
#: How far below the line of the closed lips upper teeth reach, in widths of the mouth.
TEETH = 0.07
#: Colours in 0..1 under full light.
ENAMEL, DARKNESS, TONGUE = (np.array(c) for c in ((0.93, 0.89, 0.83), (0.13, 0.055, 0.05), (0.42, 0.19, 0.18)))


def raster(box: np.ndarray, height: int, width: int) -> np.ndarray:
    """Box (4,) -> centres of a raster's pixels over it, (height, width, 2) in 0..1 of the picture."""
    y, x = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    return np.stack(np.meshgrid(x, y), -1) * box[2:] + box[:2]


@dataclass(frozen=True)
class Frame:
    """Coordinates of an organ between two corners: the origin in their middle (2,), x along (2,), y downwards (2,), and
    the distance of the corners, which is the unit."""

    origin: np.ndarray
    along: np.ndarray
    down: np.ndarray
    width: float

    @classmethod
    def between(cls, left: np.ndarray, right: np.ndarray, below: np.ndarray) -> "Frame":
        """From two corners (2,) and a point (2,) below them."""
        width = max(float(np.linalg.norm(right - left)), 1e-6)
        along = (right - left) / width
        down = np.array([-along[1], along[0]])
        return cls((left + right) / 2, along, down if (below - left) @ down > 0 else -down, width)

    def of(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points (..., 2) -> x and y in this frame."""
        off = (points - self.origin) / self.width
        return off @ self.along, off @ self.down


def brightness(picture: np.ndarray, box: np.ndarray) -> float:
    """How bright the skin in a box (4,) of a picture (S, S, 3) uint8 is, in 0..1."""
    left, top = np.clip(box[:2] * len(picture), 0, len(picture) - 2).astype(int)
    right, bottom = np.clip(((box[:2] + box[2:]) * len(picture)).astype(int), (left + 1, top + 1), len(picture))
    return float(np.percentile(picture[top:bottom, left:right].mean(-1), 85)) / 255


def mouth_inside(carried: np.ndarray, box: np.ndarray, light: float, side: int) -> np.ndarray:
    """Landmarks (478, 2+) of a still with closed lips, carried by its head's motion alone, and a mouth window (4,) ->
    what would be seen there if the lips were not in the way, (side, side, 3) in 0..1. light: brightness of the skin."""
    points = carried[:, :2].astype(np.float64)
    frame = Frame.between(points[78], points[308], points[152])
    x, y = frame.of(raster(box, side, side))
    bow = 1 - np.square(2 * x)
    y = y - frame.of((points[13] + points[14]) / 2)[1] * bow  # below the line of the lips
    off = np.abs(x)
    teeth = 1 - smoothstep(y - TEETH * np.clip(0.4 + 0.6 * bow, 0, 1), -0.014, 0.014)
    gaps = np.min([np.abs(off - between) for between in BETWEEN_TEETH], axis=0)
    enamel = ENAMEL * ((0.4 + 0.42 * light) * (1 - 0.6 * smoothstep(off, 0.1, 0.48)))[..., None]
    enamel = enamel * (0.8 + 0.2 * smoothstep(gaps, 0.0, 0.02))[..., None]
    enamel = enamel * (0.75 + 0.25 * smoothstep(y, -0.08, 0.02))[..., None]  # in the shade of the upper lip
    tongue = 0.8 * smoothstep(y, 0.14, 0.26) * (1 - smoothstep(off, 0.2, 0.42))
    deep = (DARKNESS + (TONGUE - DARKNESS) * tongue[..., None]) * (0.35 + 0.75 * light)
    return deep + (enamel - deep) * teeth[..., None]


def own_inside(
    still: np.ndarray, lips: np.ndarray, here: np.ndarray, carried: np.ndarray, box: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """What a still (S, S, 3) uint8 itself shows between its lips, the outline (k, 2), carried by its head's motion,
    which takes points `here` (n, 2) to `carried` (n, 2), seen in a mouth window (4,) -> colours (side, side, 3) in 0..1
    and where they are known (side, side, 1)."""
    size = len(still)
    back = np.linalg.lstsq(np.c_[carried, np.ones(len(carried))], here, rcond=None)[0]
    pixels = ((raster(box, side, side) @ back[:2] + back[2]) * size - 0.5).astype(np.float32)
    known = np.zeros((size, size), np.uint8)
    cv2.fillPoly(known, [np.round((lips * size - 0.5) * 16).astype(np.int32)], 255, lineType=cv2.LINE_AA, shift=4)
    colours = cv2.remap(still, pixels, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return colours / 255, cv2.remap(known, pixels, None, cv2.INTER_LINEAR)[..., None] / 255


def bend(
    still: np.ndarray, before: np.ndarray, after: np.ndarray, box: np.ndarray, height: int, width: int
) -> np.ndarray:
    """A still (S, S, 3) uint8 whose points `before` (n, 2) have moved to `after` (n, 2), seen in a window (4,) there,
    (height, width, 3) in 0..1. Between the points the displacement is interpolated by radial functions of the distance
    itself, the smoothest in three dimensions."""
    points, count = after.astype(np.float64), len(after)
    system = np.zeros((count + 3, count + 3))
    system[:count, :count] = _distances(points, points) + 1e-3 * np.eye(count)
    system[:count, count:] = np.c_[points, np.ones(count)]
    system[count:, :count] = system[:count, count:].T
    weights = np.linalg.solve(system, np.concatenate([before - after, np.zeros((3, 2))]))
    at = raster(box, height, width).reshape(-1, 2)
    source = at + _distances(at, points) @ weights[:count] + np.c_[at, np.ones(len(at))] @ weights[count:]
    pixels = (source.reshape(height, width, 2) * len(still) - 0.5).astype(np.float32)
    return cv2.remap(still, pixels, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) / np.float32(255)


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, 2) and (m, 2) -> (n, m), negative, which makes the system conditionally positive definite."""
    square = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T
    return -np.sqrt(np.maximum(square, 0))
