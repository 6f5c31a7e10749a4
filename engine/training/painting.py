"""Pictures of a still that moves as somebody else does, painted to learn from.

Portraits are stills, sharp and well lit; clips that move are neither, and show between the lips a blur whose median is
the colour of lips. Landmarks say where a still's lips and lids would be: its own pixels are bent there, and where the
mouth opens there is painted what would be seen: upper teeth, which are fixed to the skull, darkness and a tongue.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np

from engine.renderer.inside import ENAMEL, TEETH, Place, raster, teeth_in
from engine.renderer.lips import smoothstep
from engine.renderer.outline import Outline
from engine.training.modes import EYE_OUTLINES, INNER_LIPS, STABLE, rigid_fit


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


def turn(angles: np.ndarray) -> np.ndarray:
    """Yaw, pitch and roll (n, 3) in radians -> rotations (n, 3, 3)."""
    (sy, sp, sr), (cy, cp, cr) = np.sin(angles).T, np.cos(angles).T
    none, one = np.zeros_like(cy), np.ones_like(cy)

    def stacked(*rows: tuple[np.ndarray, ...]) -> np.ndarray:
        return np.stack([np.stack(row, -1) for row in rows], -2)

    yaw = stacked((cy, none, sy), (none, one, none), (-sy, none, cy))
    pitch = stacked((one, none, none), (none, cp, -sp), (none, sp, cp))
    return stacked((cr, -sr, none), (sr, cr, none), (none, none, one)) @ yaw @ pitch


def borrow(
    still: np.ndarray, motion: np.ndarray, canonical: np.ndarray, widely: float = 1.0, angles: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """A still's landmarks (478, 3) moved as a clip's (n, 478, 3) move from its first, and moved as its head alone
    moves. canonical (478, 3): the modes' head; widely: how widely the face moves, as a factor; angles (n, 3): yaw,
    pitch and roll by which the head is turned further, in radians."""
    s0, r0, t0 = (x[0] for x in rigid_fit(still[None, STABLE], canonical[STABLE]))
    s, r, t = rigid_fit(motion[:, STABLE], canonical[STABLE])
    head = (still - t0) @ r0 / s0
    face = np.einsum("nmi,nij->nmj", motion - t[:, None], r) / s[:, None, None]
    rotation = np.einsum("nij,kj,kl->nil", r, r[0], r0)
    if angles is not None:
        rotation = turn(angles) @ rotation
    size, place = (s0 * s / s[0])[:, None, None], t0 + (t - t[0])[:, None]
    moved = np.einsum("nmj,nij->nmi", head + widely * (face - face[0]), rotation) * size + place
    carried = np.einsum("mj,nij->nmi", head, rotation) * size + place
    return moved.astype(np.float32), carried.astype(np.float32)


def brightness(picture: np.ndarray, box: np.ndarray) -> float:
    """How bright the skin in a box (4,) of a picture (S, S, 3) uint8 is, in 0..1."""
    left, top = np.clip(box[:2] * len(picture), 0, len(picture) - 2).astype(int)
    right, bottom = np.clip(((box[:2] + box[2:]) * len(picture)).astype(int), (left + 1, top + 1), len(picture))
    return float(np.percentile(picture[top:bottom, left:right].mean(-1), 85)) / 255


def place_of(landmarks: np.ndarray, box: np.ndarray, look: Place | None = None, light: float = 1.0) -> Place:
    """Landmarks (478, 2+) and a mouth window (4,) -> the mouth's place there. look: a place whose line, edge, light and
    enamel it has, for landmarks that a head's motion alone has carried from there; else that of lips which are closed
    in such a light of the skin."""
    points = landmarks[:, :2].astype(np.float64)
    middle, along = ((points[78] + points[308]) / 2 - box[:2]) / box[2:], (points[308] - points[78]) / box[2:]
    if look is None:
        frame = Frame.between(points[78], points[308], points[152])
        line = frame.of(0.75 * points[13] + 0.25 * points[14])[1]  # the upper lip hardly moves
        look = Place(0, 0, 1, 0, float(line), TEETH, light, teeth_in(light))
    return replace(look, x=middle[0], y=middle[1], across=along[0], up=along[1])


def eyes_of(landmarks: np.ndarray, box: np.ndarray) -> tuple[Outline, Outline]:
    """Landmarks (478, 2+) and an eyes window (4,) -> where the eyes are, that on the left of the picture first."""
    points = (landmarks[:, :2].astype(np.float64) - box[:2]) / box[2]
    eyes = []
    for outline, turned in zip(EYE_OUTLINES, (False, True), strict=True):
        outer, below, inner, above = outline[0], outline[1:8], outline[8], outline[9:]
        left, right = (inner, outer) if turned else (outer, inner)
        eyes.append(Outline.of((points[left], points[right]), points[above], points[below]))
    return eyes[0], eyes[1]


def lips_of(landmarks: np.ndarray, box: np.ndarray) -> Outline:
    """Landmarks (478, 2+) and a mouth window (4,) -> where lips meet, or what lies between them."""
    points = (landmarks[INNER_LIPS, :2].astype(np.float64) - box[:2]) / box[2]
    return Outline.of((points[0], points[10]), points[1:10], points[11:])


def smiling(place: Place, still: np.ndarray, landmarks: np.ndarray, box: np.ndarray) -> Place:
    """The place of a mouth that is open in a still (S, S, 3) uint8 with landmarks (478, 2+), in a window (4,): its
    upper teeth reach down to the lower lip, and are as light as what is seen there."""
    points = landmarks[:, :2].astype(np.float64)
    frame = Frame.between(points[78], points[308], points[152])
    line, edge = (frame.of(points[at])[1] for at in (13, 14))
    colours, known = own_inside(still, points[INNER_LIPS], points[STABLE], points[STABLE], box, 64)
    seen = colours.mean(-1)[known[..., 0] > 0.5]
    light = float(np.percentile(seen, 75)) / ENAMEL.mean() if len(seen) else place.enamel
    return replace(place, line=float(line), edge=float(edge - line), enamel=min(light, 1.0))


def behind_lips(landmarks: np.ndarray, box: np.ndarray, side: int) -> np.ndarray:
    """Landmarks (478, 2+) of a still and its mouth window (4,) -> where, behind its lips, something may come to light:
    (side, side) in 0..1. Lips drop by up to two thirds of their width, and rise by a sixth."""
    points = landmarks[:, :2].astype(np.float64)
    frame = Frame.between(points[78], points[308], points[152])
    x, y = frame.of(raster(box, side, side))
    y = y - frame.of((points[13] + points[14]) / 2)[1]
    sides = 1 - smoothstep(np.abs(x), 0.5, 0.62)
    return sides * smoothstep(y, -0.32, -0.2) * (1 - smoothstep(y, 0.65, 0.8))


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
    known = cv2.erode(known, np.ones((3, 3), np.uint8))  # landmarks are a pixel off, and lips are no teeth
    colours = cv2.remap(still, pixels, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return colours / 255, cv2.remap(known, pixels, None, cv2.INTER_LINEAR)[..., None] / 255


def bend(
    still: np.ndarray, before: np.ndarray, after: np.ndarray, box: np.ndarray, height: int, width: int
) -> np.ndarray:
    """A still (S, S, 3) uint8 whose points `before` (n, 2) have moved to `after` (n, 2), seen in a window (4,) there,
    (height, width, 3) in 0..1."""
    source = bending(before, after, box, height, width)
    pixels = (source * len(still) - 0.5).astype(np.float32)
    return cv2.remap(still, pixels, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) / np.float32(255)


def bending(before: np.ndarray, after: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """Where, as points `before` (n, 2) move to `after` (n, 2), what is seen in a window (4,) comes from:
    (height, width, 2). Between the points the displacement is interpolated by radial functions of the distance itself,
    the smoothest in three dimensions."""
    points, count = after.astype(np.float64), len(after)
    system = np.zeros((count + 3, count + 3))
    system[:count, :count] = _distances(points, points) + 1e-3 * np.eye(count)
    system[:count, count:] = np.c_[points, np.ones(count)]
    system[count:, :count] = system[:count, count:].T
    weights = np.linalg.solve(system, np.concatenate([before - after, np.zeros((3, 2))]))
    at = raster(box, height, width).reshape(-1, 2)
    source = at + _distances(at, points) @ weights[:count] + np.c_[at, np.ones(len(at))] @ weights[count:]
    return source.reshape(height, width, 2)


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, 2) and (m, 2) -> (n, m), negative, which makes the system conditionally positive definite."""
    square = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T
    return -np.sqrt(np.maximum(square, 0))
