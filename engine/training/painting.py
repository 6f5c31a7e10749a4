"""What opens and what closes on a still, painted as a picture to learn from: the inside of a mouth, and lids.

A still shows neither its teeth nor its lids, and clips at 256 pixels show a blur of them, whose median is the colour of
lips. Landmarks say where a still's mouth would open and where its lids would come down as another person moves; here is
what would be seen there: upper teeth, which are fixed to the skull, darkness and a tongue; the skin above the eye, and
lashes at the lid's edge.
"""

from dataclasses import dataclass

import cv2
import numpy as np

#: Where one upper tooth ends and the next begins, in widths of the mouth from the middle of the face.
BETWEEN_TEETH = (0.0, 0.165, 0.29, 0.4)
#: How far below the line of the closed lips upper teeth reach, in widths of the mouth.
TEETH = 0.07
#: Colours in 0..1 under full light.
ENAMEL, DARKNESS, TONGUE = (np.array(c) for c in ((0.93, 0.89, 0.83), (0.13, 0.055, 0.05), (0.42, 0.19, 0.18)))
#: Of both eyes, from the outer corner to the inner: the edge of the upper lid, and the crease above it.
LID_EDGES = ([33, 246, 161, 160, 159, 158, 157, 173, 133], [263, 466, 388, 387, 386, 385, 384, 398, 362])
LID_CREASES = ([247, 30, 29, 27, 28, 56, 190], [467, 260, 259, 257, 258, 286, 414])
#: Height of the lashes' shadow at a lid's edge, in widths of the eye.
LASHES = 0.07


def _smoothstep(x: np.ndarray, since: float, until: float) -> np.ndarray:
    along = np.clip((x - since) / (until - since), 0, 1)
    return along * along * (3 - 2 * along)


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
    bend = 1 - np.square(2 * x)
    y = y - frame.of((points[13] + points[14]) / 2)[1] * bend  # below the line of the lips
    off = np.abs(x)
    teeth = 1 - _smoothstep(y - TEETH * np.clip(0.4 + 0.6 * bend, 0, 1), -0.014, 0.014)
    gaps = np.min([np.abs(off - between) for between in BETWEEN_TEETH], axis=0)
    enamel = ENAMEL * ((0.4 + 0.42 * light) * (1 - 0.6 * _smoothstep(off, 0.1, 0.48)))[..., None]
    enamel = enamel * (0.8 + 0.2 * _smoothstep(gaps, 0.0, 0.02))[..., None]
    enamel = enamel * (0.75 + 0.25 * _smoothstep(y, -0.08, 0.02))[..., None]  # in the shade of the upper lip
    tongue = 0.8 * _smoothstep(y, 0.14, 0.26) * (1 - _smoothstep(off, 0.2, 0.42))
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


def lids_down(
    still: np.ndarray, moved: np.ndarray, picture: np.ndarray, box: np.ndarray, height: int, width: int
) -> np.ndarray:
    """Landmarks (478, 2+) of a still and of what it moves to, the still (S, S, 3) uint8 and the eyes window (4,) there
    -> what lids look like there, (height, width, 3) in 0..1."""
    at = raster(box, height, width)
    soft = cv2.GaussianBlur(picture, (0, 0), len(picture) / 170).astype(np.float64) / 255
    pictures, nearness = [], []

    def seen(points: np.ndarray) -> np.ndarray:
        pixels = np.clip(points[:, :2] * len(picture) - 0.5, 0, len(picture) - 1).round().astype(int)
        return soft[pixels[:, 1], pixels[:, 0]]

    for edge, crease in zip(LID_EDGES, LID_CREASES, strict=True):
        points = moved[edge, :2].astype(np.float64)
        frame = Frame.between(points[0], points[-1], moved[152, :2].astype(np.float64))
        x, y = frame.of(at)
        edge_x, edge_y = frame.of(points)
        skin = seen(still[crease])
        skin = np.maximum(skin, skin.mean(0))  # the crease itself may be a dark line
        places = np.linspace(-0.4, 0.4, len(skin))
        lid = np.stack([np.interp(x, places, skin[:, c]) for c in range(3)], -1)
        above = np.interp(x, edge_x, edge_y) - y  # how far above the lid's edge
        lash = seen(still[edge]).min(0) * 0.6
        share = 0.75 * (1 - _smoothstep(above, 0.2 * LASHES, LASHES))[..., None]
        pictures.append(lid + (lash - lid) * share)
        nearness.append(np.square(at - frame.origin).sum(-1))
    return np.where((nearness[0] < nearness[1])[..., None], pictures[0], pictures[1])
