"""Stage 1 at run time on the CPU: NumPy and OpenCV, a few milliseconds a frame.

The arithmetic is that of engine/renderer/network.py (see its formula), done on a canvas of 256 x 256 and enlarged to
the frame: displacements are smooth, so only the last look-up, the portrait's own pixels, runs at full size.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from engine.renderer.boxes import eyes_box, mouth_box

CANVAS = 256


@dataclass(frozen=True)
class FieldCounts:
    """How many coefficients there are of each kind, in their order."""

    head: int
    face: int
    mouth_flow: int
    mouth_texture: int
    eyes_flow: int
    eyes_texture: int


@dataclass(frozen=True)
class Patch:
    """The fields of one box, laid on the canvas. left, top: its first pixel there; flow (Kf, h * w * 2) in canvas
    pixels; texture (Kt, h * w * 4): premultiplied colour in 0..255 and opacity; height and width in canvas pixels."""

    left: int
    top: int
    height: int
    width: int
    flow: np.ndarray
    texture: np.ndarray


@dataclass(frozen=True)
class PreparedPortrait:
    """A portrait ready to move. pixels (S, S, 3) uint8 RGB; latent (D,) its own motion; coefficients (C,) h of it;
    head (Kh, 32 * 32 * 2) and face (Kf, 128 * 128 * 2) in canvas pixels; patches: mouth, eyes."""

    pixels: np.ndarray
    latent: np.ndarray
    coefficients: np.ndarray
    counts: FieldCounts
    head: np.ndarray
    face: np.ndarray
    patches: tuple[Patch, Patch]


def portrait_inputs(pixels: np.ndarray, keypoints: np.ndarray) -> dict[str, np.ndarray]:
    """Square RGB pixels and keypoints (5, 2) -> what the portrait graph takes: picture (1, 3, 256, 256) in 0..1,
    mouth_box and eyes_box (1, 4)."""
    small = pixels if len(pixels) == CANVAS else cv2.resize(pixels, (CANVAS, CANVAS), interpolation=cv2.INTER_AREA)
    return {
        "picture": np.ascontiguousarray(small.transpose(2, 0, 1)[None], np.float32) / 255,
        "mouth_box": mouth_box(keypoints)[None],
        "eyes_box": eyes_box(keypoints)[None],
    }


def lay_patch(fields: np.ndarray, box: np.ndarray, flows: int) -> Patch:
    """Fields of a box (Kf * 2 + Kt * 4, h, w), in fractions -> the same on the canvas' pixels under the box."""
    left, top = np.maximum(np.floor(box[:2] * CANVAS), 0).astype(int)
    right, bottom = np.minimum(np.ceil((box[:2] + box[2:]) * CANVAS), CANVAS).astype(int)
    height, width = fields.shape[1:]
    x = ((np.arange(left, right) + 0.5) / CANVAS - box[0]) / box[2] * width - 0.5
    y = ((np.arange(top, bottom) + 0.5) / CANVAS - box[1]) / box[3] * height - 0.5
    grid_x, grid_y = np.meshgrid(x.astype(np.float32), y.astype(np.float32))
    laid = [
        cv2.remap(plane, grid_x, grid_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
        for plane in fields.astype(np.float32)
    ]
    rows, columns = grid_x.shape

    def stack(planes: list[np.ndarray], gains: tuple[float, ...]) -> np.ndarray:
        shaped = np.reshape(planes, (-1, len(gains), rows, columns)).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(shaped * np.array(gains), np.float32).reshape(len(shaped), -1)

    flow = stack(laid[: 2 * flows], (CANVAS, CANVAS))
    texture = stack(laid[2 * flows :], (255.0, 255.0, 255.0, 1.0))
    return Patch(int(left), int(top), rows, columns, flow, texture)


def prepare(
    pixels: np.ndarray,
    keypoints: np.ndarray,
    counts: FieldCounts,
    latent: np.ndarray,
    coefficients: np.ndarray,
    fields: dict[str, np.ndarray],
) -> PreparedPortrait:
    """Outputs of the networks -> a portrait ready to move.

    pixels (S, S, 3) uint8; keypoints (5, 2); latent (D,) and coefficients (C,) of the portrait; fields: head
    (1, Kh, 2, 32, 32), face (1, Kf, 2, 128, 128), mouth and eyes as in network.Fields."""

    def rows(field: np.ndarray) -> np.ndarray:
        laid = field[0].transpose(0, 2, 3, 1) * CANVAS
        return np.ascontiguousarray(laid, np.float32).reshape(len(laid), -1)

    return PreparedPortrait(
        pixels,
        latent,
        coefficients,
        counts,
        rows(fields["head"]),
        rows(fields["face"]),
        (
            lay_patch(fields["mouth"][0], mouth_box(keypoints), counts.mouth_flow),
            lay_patch(fields["eyes"][0], eyes_box(keypoints), counts.eyes_flow),
        ),
    )


class CpuRenderer:
    """Renders frames of one portrait at one size. Buffers are made once: new memory is dear on virtual machines."""

    def __init__(self, portrait: PreparedPortrait, size: int):
        self.portrait, self.size = portrait, size
        pixels = portrait.pixels
        if len(pixels) != size:
            kind = cv2.INTER_AREA if len(pixels) > size else cv2.INTER_CUBIC
            pixels = cv2.resize(pixels, (size, size), interpolation=kind)
        self._pixels = pixels
        self._grid = self._raster(CANVAS)
        self._full_grid = self._raster(size)
        self._map = np.empty((CANVAS, CANVAS, 2), np.float32)
        self._flow = np.empty((CANVAS, CANVAS, 2), np.float32)
        self._moved = np.empty((CANVAS, CANVAS, 2), np.float32)
        self._full = np.empty((size, size, 2), np.float32)
        counts = portrait.counts
        sizes = (
            counts.head,
            counts.face,
            counts.mouth_flow,
            counts.mouth_texture,
            counts.eyes_flow,
            counts.eyes_texture,
        )
        self._splits = np.cumsum(sizes)[:-1]

    @staticmethod
    def _raster(side: int) -> np.ndarray:
        """(side, side, 2) float32: each pixel's own x and y."""
        axis = np.arange(side, dtype=np.float32)
        return np.ascontiguousarray(np.stack(np.meshgrid(axis, axis), -1))

    def render(self, coefficients: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Coefficients (C,) of the motion to show -> frame (size, size, 3) uint8 RGB, written to `out` if given."""
        weights = (coefficients - self.portrait.coefficients).astype(np.float32)
        head, face, mouth_flow, mouth_texture, eyes_flow, eyes_texture = np.split(weights, self._splits)
        self._move(head, face, (mouth_flow, eyes_flow))
        frame = cv2.remap(self._pixels, self._full, None, cv2.INTER_LINEAR, dst=out, borderMode=cv2.BORDER_REPLICATE)
        for patch, texture in zip(self.portrait.patches, (mouth_texture, eyes_texture), strict=True):
            self._paint(frame, patch, texture)
        return frame

    def _move(self, head: np.ndarray, face: np.ndarray, patches: tuple[np.ndarray, np.ndarray]) -> None:
        """Fill `_map`, where each canvas pixel lies on the still head, and `_full`, its source in the portrait."""
        portrait, canvas = self.portrait, (CANVAS, CANVAS)
        side = int(np.sqrt(portrait.head.shape[1] // 2))
        cv2.resize(
            (head @ portrait.head).reshape(side, side, 2),
            canvas,
            dst=self._map,
            interpolation=cv2.INTER_LINEAR,
        )
        cv2.add(self._map, self._grid, dst=self._map)
        side = int(np.sqrt(portrait.face.shape[1] // 2))
        cv2.resize(
            (face @ portrait.face).reshape(side, side, 2),
            canvas,
            dst=self._flow,
            interpolation=cv2.INTER_LINEAR,
        )
        for patch, weights in zip(portrait.patches, patches, strict=True):
            part = self._flow[patch.top : patch.top + patch.height, patch.left : patch.left + patch.width]
            part += (weights @ patch.flow).reshape(part.shape)
        cv2.remap(self._flow, self._map, None, cv2.INTER_LINEAR, dst=self._moved, borderMode=cv2.BORDER_REPLICATE)
        cv2.add(self._moved, self._map, dst=self._moved)
        cv2.subtract(self._moved, self._grid, dst=self._moved)  # displacement alone: the identity enlarges exactly
        cv2.resize(self._moved, (self.size, self.size), dst=self._full, interpolation=cv2.INTER_LINEAR)
        cv2.scaleAdd(self._full, self.size / CANVAS, self._full_grid, dst=self._full)

    def _paint(self, frame: np.ndarray, patch: Patch, weights: np.ndarray) -> None:
        """Lay a patch's texture over the frame, where the head carried it."""
        texture = (weights @ patch.texture).reshape(patch.height, patch.width, 4)
        rows = slice(patch.top, patch.top + patch.height)
        columns = slice(patch.left, patch.left + patch.width)
        shift = self._map[rows, columns] - self._grid[rows, columns]
        margin = int(np.ceil(max(-shift.min(), shift.max(), 0.0))) + 1
        top, left = max(0, patch.top - margin), max(0, patch.left - margin)
        bottom = min(CANVAS, patch.top + patch.height + margin)
        right = min(CANVAS, patch.left + patch.width + margin)
        at = self._map[top:bottom, left:right] - np.array([patch.left, patch.top], np.float32)
        moved = cv2.remap(texture, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
        opacity = moved[..., 3]
        np.maximum(0.1 * opacity, np.minimum(opacity, 1.0), out=opacity)  # as network.opacity
        scale = self.size / CANVAS
        x0, y0 = int(left * scale), int(top * scale)
        x1, y1 = min(self.size, int(np.ceil(right * scale))), min(self.size, int(np.ceil(bottom * scale)))
        # frame pixel -> canvas pixel of `moved`, pixel centres at half pixels
        inverse = np.array(
            [[1 / scale, 0, (x0 + 0.5) / scale - 0.5 - left], [0, 1 / scale, (y0 + 0.5) / scale - 0.5 - top]]
        )
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        enlarged = cv2.warpAffine(moved, inverse, (x1 - x0, y1 - y0), flags=flags, borderMode=cv2.BORDER_CONSTANT)
        part = frame[y0:y1, x0:x1]
        part[...] = cv2.add(part * (1 - enlarged[..., 3:]), enlarged[..., :3], dtype=cv2.CV_8U)
