"""Lids that close, drawn: skin that comes down over the eye, its lashes at its edge.

Lids of a portrait are open, and textures learned from film at 256 pixels, where a blink is three frames, make of them a
shade over the eye. Where the eyes are open in the portrait a network tells (an `Outline` each), how far the lids have
come down a number read off the latent; what they look like is made, once a portrait, of its own skin about the eye.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from engine.renderer.inside import raster
from engine.renderer.lips import smoothstep
from engine.renderer.outline import Outline

#: Height and width of the picture of closed lids, over the eyes' box.
LIDS = (96, 192)
#: How much of the way down to the lower lid its edge is soft, and its lashes are wide.
EDGE, LASHES = 0.22, 0.2
#: How open most eyes are, in widths of an eye, and what share of that landmarks leave of closed ones.
USUAL, LEFT = 0.29, 0.25
#: How far above the roots of its lashes a lid begins, on the same way.
TOP = 0.25
#: Lids end above the first of these, however far down they come. Without an end, the lower edge of the eyes' box
#: would seem to lie on their way, since all beyond it is 0, and each blink would draw a line over the cheeks.
END = (1 + EDGE, 1.5)
#: Eyes that are read to be less closed than this are open, and from so much on wholly closed.
SLACK, SHUT = 0.2, 0.65
#: In widths of an eye: how far above its opening lashes are rooted, and how far off it skin is taken.
ROOTS, ABOVE, BELOW = 0.05, (0.06, 0.12, 0.18, 0.24), (0.08, 0.14, 0.2)


@dataclass(frozen=True)
class Lids:
    """Closed lids, over the eyes' box. picture (96, 192, 5) float32: colours in 0..255, how far down the way that the
    upper lid comes a place lies (0: where lashes are rooted, 1: at the lower lid), and whether it comes there, in 0..1;
    lashes: how light they are, as a share of the skin beside them."""

    picture: np.ndarray
    lashes: float

    @classmethod
    def of(cls, eyes: tuple[Outline, Outline], crop: np.ndarray) -> "Lids":
        """Drawn where two eyes are, of what is seen in their box: crop (96, 192, 3) in 0..255."""
        height, width = LIDS
        at = raster(np.array([0, 0, 1, height / width]), height, width)
        frames = [eye.frame(at) for eye in eyes]
        ways = [_way(eye, *frame) for eye, frame in zip(eyes, frames, strict=True)]
        off = [(x, way) for (x, _), way in zip(frames, ways, strict=True)]
        known = np.all([(np.abs(x) > 0.56) | (np.abs(way - 0.5) > 0.8) for x, way in off], 0)
        known = known.astype(np.float32)[..., None]
        skin = cv2.GaussianBlur(crop * known, (0, 0), 2.5)
        skin /= np.maximum(cv2.GaussianBlur(known, (0, 0), 2.5)[..., None], 1e-3)
        picture = np.dstack([skin, np.zeros(LIDS), np.zeros(LIDS)]).astype(np.float32)
        lashes = []
        for eye, (x, _), way in zip(eyes, frames, ways, strict=True):
            upper, lower = eye.edges(x)
            over = _lightest([pick(skin, eye.points(x, upper - ROOTS - off)) for off in ABOVE])
            under = _lightest([pick(skin, eye.points(x, lower + off)) for off in BELOW])
            colour = over + (under - over) * (0.2 + 0.4 * smoothstep(way, 0.2, 1.0))[..., None]
            colour = colour * (0.9 + 0.1 * smoothstep(way, 0.0, 0.4))[..., None]  # in the fold it is darker
            near = np.abs(x) < 0.7
            there = (1 - smoothstep(np.abs(x), 0.44, 0.54)) * smoothstep(way, -TOP, 0.0) * (1 - smoothstep(way, *END))
            picture[near] = np.dstack([colour, way, there])[near]
            lashes.append(_lashes(eye, crop, skin))
        return cls(picture.astype(np.float32), float(np.mean(lashes)))


def crop_of(pixels: np.ndarray, box: np.ndarray) -> np.ndarray:
    """What a square picture (S, S, 3) shows in an eyes' box (4,): (96, 192, 3)."""
    at = (raster(box, *LIDS) * len(pixels) - 0.5).astype(np.float32)
    return cv2.remap(pixels, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _way(eye: Outline, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How far down the way of an eye's upper lid places in its own frame lie."""
    upper, lower = eye.edges(x)
    return ((y - upper + ROOTS) / np.maximum(lower - upper + ROOTS, 0.02)).clip(-1, 2)


def _lightest(pictures: list[np.ndarray]) -> np.ndarray:
    """The one that is lightest: skin, not brows, folds or lashes."""
    return max(pictures, key=lambda picture: float(np.median(picture)))


def pick(picture: np.ndarray, points: np.ndarray) -> np.ndarray:
    """A picture (96, 192, C) of the eyes' box at points (h, w, 2) in widths of it -> (h, w, C)."""
    return cv2.remap(
        picture, (points * LIDS[1] - 0.5).astype(np.float32), None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )


def _lashes(eye: Outline, crop: np.ndarray, skin: np.ndarray) -> float:
    """How dark an eye's upper lashes are in the portrait, as a share of the skin above them."""
    x, off = np.meshgrid(np.linspace(-0.35, 0.35, 15), np.linspace(-0.08, 0.06, 8))
    upper = eye.edges(x)[0]
    dark = pick(np.asarray(crop, np.float32), eye.points(x, upper + off)).mean(-1).min(0)
    light = pick(skin, eye.points(x, upper - ROOTS - ABOVE[1])).mean(-1)[0]
    return float(np.clip(np.median(dark / np.maximum(light, 1)), 0.25, 0.9))


def closed(openness):
    """How open eyes are, as Outline.opening or landmarks.eye_opening say -> how far they are closed, as gauges say."""
    return (1 - openness / USUAL) / (1 - LEFT)


def left_open(own):
    """How open eyes are, as a share of most people's, that are read to be closed by `own`."""
    return (1 - own).clip(0.3, None)


def closure(read):
    """How far eyes shall be seen to close, in 0..1, of how much of their opening the lids are read to have closed (see
    network.Gauges)."""
    return ((read - SLACK) * (1 / (SHUT - SLACK))).clip(0, 1)


def come_down(along, there, closure, lashes, exp):
    """How far lids cover places, and how light they are there (1: as in the picture of closed lids): places that lie
    `along` on their way, as far as a lid comes `there` (see Lids), of eyes closed by `closure` (0: as in the portrait,
    1: wholly). Arrays of NumPy or torch, and the exponential function of either."""
    edge = closure * (1 + EDGE + TOP) - TOP
    # where `along` is interpolated between places far apart, an open eye shall still be as it was
    cover = smoothstep(edge - along, 0.0, EDGE) * there * (20 * closure).clip(0, 1)
    line = (along - edge + 0.5 * (EDGE + LASHES)) * (1 / (0.5 * LASHES))
    return cover, 1 - (1 - lashes) * exp(-line * line)
