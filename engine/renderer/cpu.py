"""Stage 1 at run time on the CPU: NumPy and OpenCV, a few milliseconds a frame.

The arithmetic is that of engine/renderer/network.py (see its formula), done on a canvas of 256 x 256 and enlarged to
the frame: displacements are smooth, so only the last look-up, the portrait's own pixels, runs at full size.
"""

import math
from dataclasses import astuple, dataclass

import cv2
import numpy as np

from engine.renderer import lids, lips
from engine.renderer.backdrop import Backdrop
from engine.renderer.boxes import eyes_box, mouth_box
from engine.renderer.inside import Inside, Place, apart, uncovered
from engine.renderer.lids import Lids
from engine.renderer.matte import Layers, beyond, part, scaled, shine
from engine.renderer.outline import Outline

CANVAS = 256
#: The portrait is kept so many times as fine as it is shown, by Lanczos' filter, and frames pick from it bilinearly.
#: Picking from the plain portrait blurs whatever moves by a part of a pixel: 47 % of the Laplacian energy stays, of a
#: portrait three times as fine 81 %, at the same cost a frame. Odd, so that every pixel has one of its own and a
#: portrait at rest is shown exactly.
FINER = 3
#: And what picking and stretching still take is given back beforehand to the places between pixels: this much of what a
#: Gaussian of CRISP_BLUR pixels would blur. Skin that is merely moved has 1.07 of its detail then (at 0.19: 1.00), that
#: of portraits that speak, which stretches, 0.95 (0.88).
CRISP, CRISP_BLUR = 0.26, 0.7


@dataclass(frozen=True)
class FieldCounts:
    """How many coefficients there are of each kind, in their order."""

    head: int
    face: int
    mouth_flow: int
    mouth_texture: int
    eyes_flow: int
    eyes_texture: int


#: Lips are never further apart than this, in sides of the mouth's box: no gauge says so much of anybody.
WIDEST = 0.35
#: The network that tells how far lips are apart is off by 0.015: what it says below the first is nothing, and what it
#: says above the second is believed.
SURE = (0.01, 0.05)
#: Open smiles close by less than they are told to, and are told this much more: nothing more at the first of these
#: openings, all of it from the second on.
WILLING, SMILE = 1.4, (0.05, 0.08)
#: A blink of film reads as so much of a closure on the median face, and between 0.1 and 1.4 on others: how much
#: further their lids shall close, as a factor, at least and at most.
BLINK, BLINKING = 0.7, (0.6, 3.0)
#: What follows the coefficients of all fields: how far lips are apart and eyes closed, see network.Gauges.
GAUGES = 2


@dataclass(frozen=True)
class Patch:
    """The fields of one box, laid on the canvas. left, top: its first pixel there; flow (Kf, h * w * 2) in canvas
    pixels; texture (Kt, h * w * 4): premultiplied colour in 0..255 and opacity; drawn (C, h, w): what is drawn there,
    see PreparedPortrait; spot: the part of it, rows and columns, where anything is; height and width in canvas
    pixels."""

    left: int
    top: int
    height: int
    width: int
    flow: np.ndarray
    texture: np.ndarray
    drawn: np.ndarray
    spot: tuple[slice, slice]

    @property
    def rows(self) -> slice:
        return slice(self.top, self.top + self.height)

    @property
    def columns(self) -> slice:
        return slice(self.left, self.left + self.width)


@dataclass(frozen=True)
class PreparedPortrait:
    """A portrait ready to move. pixels (S, S, 3) uint8 RGB; matte (m, m) float32 in 0..1: the person's share of each,
    see matting.py; latent (D,) its own motion; coefficients (C,) h of it; head (Kh, 32 * 32 * 2) and face
    (Kf, 128 * 128 * 2) in canvas pixels; patches: mouth, eyes; inside: of the mouth. Drawn of the mouth are its depth
    and how far what it holds is shown (2, h, w), see inside.py; of the eyes the colours of closed lids, how far down
    their way a place lies, whether they come there, and how light their lashes are (6, h, w), see lids.py. misread
    (D,): what the encoder says too much of this face, see engine/anchor.py; blinking: how much further its lids close
    than the gauge says, as a factor; backdrop: what is shown behind the person, if not their own background."""

    pixels: np.ndarray
    matte: np.ndarray
    latent: np.ndarray
    coefficients: np.ndarray
    counts: FieldCounts
    head: np.ndarray
    face: np.ndarray
    patches: tuple[Patch, Patch]
    inside: Inside
    misread: np.ndarray
    blinking: float = 1.0
    backdrop: Backdrop | None = None


def portrait_inputs(pixels: np.ndarray, keypoints: np.ndarray) -> dict[str, np.ndarray]:
    """Square RGB pixels and keypoints (5, 2) -> what the portrait graph takes: picture (1, 3, 256, 256) in 0..1,
    mouth_box and eyes_box (1, 4)."""
    small = pixels if len(pixels) == CANVAS else scaled(pixels, CANVAS)
    return {
        "picture": np.ascontiguousarray(small.transpose(2, 0, 1)[None], np.float32) / 255,
        "mouth_box": mouth_box(keypoints)[None],
        "eyes_box": eyes_box(keypoints)[None],
    }


def lay_patch(fields: np.ndarray, box: np.ndarray, flows: int, drawn: np.ndarray, visible: np.ndarray) -> Patch:
    """Fields of a box (Kf * 2 + Kt * 4, h, w), in fractions, what is drawn over it (C, h', w') and where anything of
    that may ever be seen (h', w') -> the same on the canvas' pixels under the box."""
    # at least one pixel, even if the box lies outside: it gets zeros
    left, top = np.clip(np.floor(box[:2] * CANVAS), 0, CANVAS - 1).astype(int)
    right, bottom = np.clip(np.ceil((box[:2] + box[2:]) * CANVAS), (left + 1, top + 1), CANVAS).astype(int)

    def lay(planes: np.ndarray) -> np.ndarray:
        height, width = planes.shape[1:]
        x = ((np.arange(left, right) + 0.5) / CANVAS - box[0]) / box[2] * width - 0.5
        y = ((np.arange(top, bottom) + 0.5) / CANVAS - box[1]) / box[3] * height - 0.5
        grid = np.meshgrid(x.astype(np.float32), y.astype(np.float32))
        return np.stack([
            cv2.remap(plane, *grid, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
            for plane in planes.astype(np.float32)
        ])  # fmt: skip

    laid = lay(fields)
    rows, columns = laid.shape[1:]

    def stack(planes: np.ndarray, gains: tuple[float, ...]) -> np.ndarray:
        shaped = np.reshape(planes, (-1, len(gains), rows, columns)).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(shaped * np.array(gains), np.float32).reshape(len(shaped), -1)

    flow = stack(laid[: 2 * flows], (CANVAS, CANVAS))
    texture = stack(laid[2 * flows :], (255.0, 255.0, 255.0, 1.0))
    down, across = (np.flatnonzero((lay(visible[None])[0] > 0).any(axis)) for axis in (1, 0))
    spot = tuple(slice(int(x[0]), int(x[-1]) + 1) if len(x) else slice(0, 0) for x in (down, across))
    return Patch(int(left), int(top), rows, columns, flow, texture, lay(drawn), spot)


def prepare(
    pixels: np.ndarray,
    matte: np.ndarray,
    keypoints: np.ndarray,
    counts: FieldCounts,
    latent: np.ndarray,
    coefficients: np.ndarray,
    fields: dict[str, np.ndarray],
    misread: np.ndarray,
    blinking: float = 1.0,
    teeth: np.ndarray | None = None,
) -> PreparedPortrait:
    """Outputs of the networks -> a portrait ready to move.

    pixels (S, S, 3) uint8; keypoints (5, 2); matte (m, m), latent (D,), coefficients (C,), misread (D,) and blinking:
    as in PreparedPortrait; fields: head (1, Kh, 2, 32, 32), face (1, Kf, 2, 128, 128), mouth, eyes, share, place and
    sight as in network.Fields. teeth: of a portrait whose lips were open, see closing.teeth."""

    def rows(field: np.ndarray) -> np.ndarray:
        laid = field[0].transpose(0, 2, 3, 1) * CANVAS
        return np.ascontiguousarray(laid, np.float32).reshape(len(laid), -1)

    boxes = mouth_box(keypoints), eyes_box(keypoints)
    inside = Inside.of(boxes[0], Place(*fields["place"][0].tolist()), fields["share"][0, 0], teeth)
    left, right = (Outline(*numbers) for numbers in fields["sight"][0].tolist())
    shut = Lids.of((left, right), lids.crop_of(pixels, boxes[1]))
    drawn = (
        np.stack([inside.depth, inside.picture[..., 3]]),
        np.dstack([shut.picture, np.full(lids.LIDS, shut.lashes, np.float32)]).transpose(2, 0, 1),
    )
    return PreparedPortrait(
        pixels,
        matte,
        latent,
        coefficients,
        counts,
        rows(fields["head"]),
        rows(fields["face"]),
        (
            lay_patch(fields["mouth"][0], boxes[0], counts.mouth_flow, drawn[0], np.abs(inside.depth) < WIDEST),
            lay_patch(fields["eyes"][0], boxes[1], counts.eyes_flow, drawn[1], shut.picture[..., 4]),
        ),
        inside,
        misread,
        blinking,
    )


def resting(fields: dict[str, np.ndarray]) -> np.ndarray:
    """(2,) what the gauges should say of a portrait, by where its networks find lips and lids."""
    opening = np.mean([Outline(*numbers).opening() for numbers in fields["sight"][0].tolist()])
    gap = np.float64(Place(*fields["place"][0].tolist()).gap)
    apart = gap * (lips.smoothstep(gap, *SURE) + (WILLING - 1) * lips.smoothstep(gap, *SMILE))
    return np.array([apart, lids.closed(opening)], np.float32)


def away(coefficients: np.ndarray, own: np.ndarray, blinking: float = 1.0) -> np.ndarray:
    """How coefficients (C,) differ from a portrait's own, as network.away: (C,) float32. blinking: see
    PreparedPortrait."""
    off = (coefficients - own).astype(np.float32)
    off[-1] *= blinking / lids.left_open(own[-1])
    return off


def blinking(coefficients: np.ndarray, own: np.ndarray) -> float:
    """The factor that makes a whole blink of a portrait whose coefficients are `own` (C,) read as most faces' does, of
    what is read of it (C,)."""
    read = max(float(away(coefficients, own)[-1]), 1e-6)
    return float(np.clip(BLINK / read, *BLINKING))


def margin(size: int) -> int:
    """How many pixels beyond each edge of a portrait are kept of the person, to be shown at a size."""
    return size // 16


def fine_layers(portrait: PreparedPortrait, size: int) -> Layers:
    """A portrait as it is kept to be shown at a size: the person and what is kept beyond each edge, of a side of
    FINER * (size + 2 * margin(size)), see FINER; and the background (size, size, 3)."""
    pixels, matte = portrait.pixels, portrait.matte
    if len(pixels) != size:
        kind = cv2.INTER_AREA if len(pixels) > size else cv2.INTER_CUBIC
        pixels = cv2.resize(pixels, (size, size), interpolation=kind)
    if len(matte) != size:
        matte = scaled(matte, size)
    plain = part(pixels, matte)
    colours = plain.front[..., :3]
    crisp = plain.front.copy()
    crisp[..., :3] = cv2.addWeighted(colours, 1 + CRISP, cv2.GaussianBlur(colours, (0, 0), CRISP_BLUR), -CRISP, 0)
    fine = cv2.resize(crisp, None, fx=FINER, fy=FINER, interpolation=cv2.INTER_LANCZOS4)
    fine[FINER // 2 :: FINER, FINER // 2 :: FINER] = plain.front
    back = plain.back if portrait.backdrop is None else portrait.backdrop.behind(plain.back)
    return Layers(beyond(fine, FINER * margin(size)), back)


def mix(weights: np.ndarray, fields: np.ndarray, out: np.ndarray) -> np.ndarray:
    """sum_k weights[k] fields[k] for weights (K,) and fields (K, n), into the first n numbers of `out`; -> (n,).

    Not by BLAS: its threads would spin between frames and burn a second core for a product that takes 0.1 ms, and its
    sums depend on how many there are."""
    return np.einsum("k,kn->n", weights, fields, out=out[: fields.shape[1]])


def part_lips(texture: np.ndarray, patch: Patch, gauges: np.ndarray) -> None:
    """Give a mouth's texture (h, w, 4) its sharp edges, and uncover what lies between lips, in place."""
    texture *= lips.gain(texture[..., 3:])
    if gauges[0] > 0:
        opacity, (depth, shown) = texture[*patch.spot, 3], patch.drawn[:, *patch.spot]
        opacity[...] = uncovered(opacity, shown * apart(depth, min(gauges[0], WIDEST)))


def close_lids(texture: np.ndarray, patch: Patch, gauges: np.ndarray) -> None:
    """Bring the lids down over an eyes' texture (h, w, 4), in place."""
    closure = lids.closure(gauges[1])
    if closure > 0:
        drawn, texture = patch.drawn[:, *patch.spot], texture[patch.spot]
        colour, (way, there, lashes) = drawn[:3], drawn[3:]
        cover, light = lids.come_down(way, there, closure, lashes, np.exp)
        texture *= (1 - cover)[..., None]
        texture[..., 3] += cover
        cover *= light
        for channel in range(3):
            texture[..., channel] += colour[channel] * cover


class CpuRenderer:
    """Renders frames of one portrait at one size. Buffers are made once: new memory is dear on virtual machines."""

    def __init__(self, portrait: PreparedPortrait, size: int):
        self.portrait, self.size = portrait, size
        shown = fine_layers(portrait, size)
        self._front, self._back = shown.front, shown.back
        self._moving = np.empty((size, size, 4), np.uint8)
        self._through = np.empty((size, size), np.uint8)
        self._shining = np.empty((size, size, 3), np.uint8)
        self._grid = self._raster(CANVAS)
        self._full_grid = (self._raster(size) + margin(size)) * FINER + FINER // 2
        self._map = np.empty((CANVAS, CANVAS, 2), np.float32)
        self._flow = np.empty((CANVAS, CANVAS, 2), np.float32)
        self._moved = np.empty((CANVAS, CANVAS, 2), np.float32)
        self._full = np.empty((size, size, 2), np.float32)
        self._texture = np.zeros((CANVAS, CANVAS, 4), np.float32)
        patches = portrait.patches
        widest = max(part.shape[1] for part in (portrait.head, portrait.face, *(p.texture for p in patches)))
        self._mixed = np.empty(widest, np.float32)
        self._carried = np.empty(CANVAS * CANVAS * 4, np.float32)
        self._enlarged = np.empty((3, size * size * 3), np.float32)
        self._splits = np.cumsum(astuple(portrait.counts))
        self._covered = (
            min(p.top for p in patches), min(p.left for p in patches),
            max(p.top + p.height for p in patches), max(p.left + p.width for p in patches),
        )  # fmt: skip
        self._hidden = portrait.inside.extent(CANVAS)

    @staticmethod
    def _raster(side: int) -> np.ndarray:
        """(side, side, 2) float32: each pixel's own x and y."""
        axis = np.arange(side, dtype=np.float32)
        return np.ascontiguousarray(np.stack(np.meshgrid(axis, axis), -1))

    def render(self, coefficients: np.ndarray) -> np.ndarray:
        """Coefficients (C,) of the motion to show -> frame (size, size, 3) uint8 RGB, the caller's to keep."""
        weights = away(coefficients, self.portrait.coefficients, self.portrait.blinking)
        head, face, mouth_flow, mouth_texture, eyes_flow, eyes_texture, gauges = np.split(weights, self._splits)
        self._move(head, face, (mouth_flow, eyes_flow))
        cv2.remap(
            self._front, self._full, None, cv2.INTER_LINEAR, dst=self._moving, borderMode=cv2.BORDER_REPLICATE
        )
        cv2.extractChannel(self._moving, 3, dst=self._through)
        shine(self._back, self._through, self._shining)
        frame = cv2.cvtColor(self._moving, cv2.COLOR_RGBA2RGB)
        cv2.add(frame, self._shining, dst=frame)
        self._paint(frame, (mouth_texture, eyes_texture), gauges)
        return frame

    def _spread(self, weights: np.ndarray, field: np.ndarray, out: np.ndarray) -> None:
        """Mix a field of the whole picture (K, side * side * 2) and enlarge it to the canvas, into `out`."""
        side = int(np.sqrt(field.shape[1] // 2))
        mixed = mix(weights, field, self._mixed).reshape(side, side, 2)
        cv2.resize(mixed, (CANVAS, CANVAS), dst=out, interpolation=cv2.INTER_LINEAR)

    def _move(self, head: np.ndarray, face: np.ndarray, patches: tuple[np.ndarray, np.ndarray]) -> None:
        """Fill `_map`, where each canvas pixel lies on the still head, and `_full`, its source in the portrait."""
        self._spread(head, self.portrait.head, self._map)
        cv2.add(self._map, self._grid, dst=self._map)
        self._spread(face, self.portrait.face, self._flow)
        for patch, weights in zip(self.portrait.patches, patches, strict=True):
            part = self._flow[patch.rows, patch.columns]
            part += mix(weights, patch.flow, self._mixed).reshape(part.shape)
        cv2.remap(self._flow, self._map, None, cv2.INTER_LINEAR, dst=self._moved, borderMode=cv2.BORDER_REPLICATE)
        cv2.add(self._moved, self._map, dst=self._moved)
        cv2.subtract(self._moved, self._grid, dst=self._moved)  # displacement alone: the identity enlarges exactly
        cv2.resize(self._moved, (self.size, self.size), dst=self._full, interpolation=cv2.INTER_LINEAR)
        cv2.scaleAdd(self._full, FINER * self.size / CANVAS, self._full_grid, dst=self._full)

    def _region(self, top: int, left: int, bottom: int, right: int) -> tuple[int, int, int, int]:
        """Top, left, bottom and right, on the canvas, of what such a part of it covers once the head carried it; such
        that its edges are edges of the frame's pixels, too."""
        here = slice(top, bottom), slice(left, right)
        low, high, _, _ = cv2.minMaxLoc((self._map[here] - self._grid[here]).reshape(-1, 1))
        margin = int(min(max(-low, high, 0.0), CANVAS)) + 2
        step = CANVAS // math.gcd(CANVAS, self.size)
        return (
            max(0, (top - margin) // step * step),
            max(0, (left - margin) // step * step),
            min(CANVAS, -(-(bottom + margin) // step) * step),
            min(CANVAS, -(-(right + margin) // step) * step),
        )

    def _paint(self, frame: np.ndarray, weights: tuple[np.ndarray, np.ndarray], gauges: np.ndarray) -> None:
        """Lay the patches' textures over the frame, where the head carried them: frame = frame * (1 - a) + t. gauges
        (2,): how much further than in the portrait lips are apart and eyes closed."""
        patches = self.portrait.patches
        for patch in patches:
            self._texture[patch.rows, patch.columns] = 0
        for patch, weight, change in zip(patches, weights, (part_lips, close_lids), strict=True):
            part = self._texture[patch.rows, patch.columns]
            mixed = mix(weight, patch.texture, self._mixed).reshape(part.shape)
            change(mixed, patch, gauges)
            part += mixed
        top, left, bottom, right = self._region(*self._covered)
        height, width = bottom - top, right - left
        carried = self._carried[: height * width * 4].reshape(height, width, 4)
        cv2.remap(
            self._texture, self._map[top:bottom, left:right], None, cv2.INTER_LINEAR, dst=carried,
            borderMode=cv2.BORDER_CONSTANT, borderValue=0,
        )  # fmt: skip
        opacity = cv2.extractChannel(carried, 3)
        # the colours, that is; as network.Motion.trace
        cv2.divide(carried, cv2.merge([cv2.max(opacity, 1.0)] * 4), dst=carried)
        kept = 1 - np.maximum(0.1 * opacity, np.minimum(opacity, 1.0))  # as network.opacity
        y0, x0, y1, x1 = self._in_frame(top, left, bottom, right)
        size = (x1 - x0, y1 - y0)
        colour, keep, work = (b[: size[0] * size[1] * 3].reshape(size[1], size[0], 3) for b in self._enlarged)
        cv2.resize(cv2.cvtColor(carried, cv2.COLOR_BGRA2BGR), size, dst=colour, interpolation=cv2.INTER_LINEAR)
        cv2.resize(cv2.merge([kept, kept, kept]), size, dst=keep, interpolation=cv2.INTER_LINEAR)
        if self._hidden is not None:
            region = np.clip(self._region(*self._hidden), (top, left, top, left), (bottom, right, bottom, right))
            a, b, c, d = region.tolist()
            v0, u0, v1, u1 = self._in_frame(a, b, c, d)
            self._uncover(
                colour[v0 - y0 : v1 - y0, u0 - x0 : u1 - x0], opacity[a - top : c - top, b - left : d - left],
                self._map[a:c, b:d],
            )  # fmt: skip
        part = frame[y0:y1, x0:x1]
        cv2.multiply(part, keep, dst=work, dtype=cv2.CV_32F)
        cv2.add(work, colour, dst=part, dtype=cv2.CV_8U)

    def _in_frame(self, *edges: int) -> tuple[int, ...]:
        """Edges on the canvas, as `_region` gives them -> in the frame's pixels."""
        return tuple(edge * self.size // CANVAS for edge in edges)

    def _uncover(self, colour: np.ndarray, opacity: np.ndarray, where: np.ndarray) -> None:
        """Show what the mouth holds, at the frame's size: colour (h, w, 3) of the textures there, in place, and on the
        canvas their opacity and where each pixel lies on the still head."""
        held = self.portrait.inside
        size, side = colour.shape[1::-1], len(held.picture)
        step = side / (held.box[2:] * CANVAS)
        places = cv2.resize((where + 0.5 - held.box[:2] * CANVAS) * step - 0.5, size, interpolation=cv2.INTER_LINEAR)
        found = cv2.remap(held.picture, places, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
        shown = cv2.extractChannel(found, 3)
        cover = cv2.resize(opacity.clip(0, 1), size, interpolation=cv2.INTER_LINEAR) * shown
        # by OpenCV, which does in 0.05 ms what NumPy does in 0.5 where one number goes with three
        own, uncovered = 1 - shown, cv2.cvtColor(found, cv2.COLOR_BGRA2BGR)
        cv2.multiply(colour, cv2.merge([own, own, own]), dst=colour)
        cv2.multiply(uncovered, cv2.merge([cover, cover, cover]), dst=uncovered)
        cv2.add(colour, uncovered, dst=colour)
