"""A portrait that smiles with open lips, with its lips closed.

What is drawn of speech begins with closed lips: they part, and uncover what a mouth holds (see inside.py). A smile
shows its teeth, and no fields learned from film ever brought its lips together for p, b and m. So before anything is
made of such a portrait its own skin is drawn together over its teeth, along the lips' inner edges, which a network
finds (see network.LipsNetwork): the lower lip and the chin come up, the upper lip comes down a little. Its teeth, which
are fixed to the skull, are kept, and seen again when its lips part.
"""

import cv2
import numpy as np

from engine.renderer.inside import raster
from engine.renderer.lips import smoothstep
from engine.renderer.outline import Outline

#: A smile's lips are at least so far apart, in widths of the mouth, and its mouth so wide, in widths of its box:
#: those of the held-out stills are 0.37 to 0.45 wide, mouths in the middle of a word 0.34. The latter are left as they
#: are, since film has taught how they close: closed here, they followed the voice less well. So are lips that are a
#: little parted: the network does not tell them surely from lips that meet, which would be drawn thinner.
OPEN, WIDE = 0.05, 0.37
#: The upper lip goes this share of the way.
COMES_DOWN = 0.3
#: How far below and above where they meet skin goes along, in widths of the mouth.
CHIN, NOSE = 0.75, 0.34
#: The network is off by one or two pixels of 256: so much of either lip is taken for teeth rather than the other way,
#: in widths of the mouth (at 0.02 some lips did not meet); and how wide and how dark the line is along which they do.
SPARED, LINE, SHADE = 0.035, 0.016, 0.35
#: Its own teeth are taken so far from the lips, and their edge is as soft, in widths of the mouth.
WITHIN = 0.02


def smiles(lips: Outline) -> bool:
    """Whether lips are open in a smile, which shows teeth."""
    return lips.opening() > OPEN and float(np.hypot(lips.across, lips.down)) > WIDE


def close(pixels: np.ndarray, box: np.ndarray, lips: Outline) -> np.ndarray:
    """A picture (S, S, 3) uint8 with lips that are open in its mouth's box (4,) -> the same with lips that meet."""
    size = len(pixels)
    left, top = np.floor((box[:2] - 0.1 * box[2:]) * size).clip(0, size - 1).astype(int)
    right, bottom = np.ceil((box[:2] + 1.2 * box[2:]) * size).clip((left + 1, top + 1), size).astype(int)
    grid = np.stack(np.meshgrid(np.arange(left, right) + 0.5, np.arange(top, bottom) + 0.5), -1) / size
    x, y = lips.frame((grid - box[:2]) / box[2])
    upper, lower = lips.edges(x)
    amid = 1 - smoothstep(np.abs(x), 0.46, 0.54)
    upper, lower = upper - SPARED * amid, lower + SPARED * amid
    gap = (lower - upper).clip(0, None)
    meet = upper + COMES_DOWN * gap
    below = y - meet
    comes_up = (lower - meet) * (1 - smoothstep(below / CHIN, 0.0, 1.0))
    comes_down = (meet - upper) * (1 - smoothstep(-below / NOSE, 0.0, 1.0))
    source = y + np.where(below > 0, comes_up, -comes_down) * (gap > 0)
    at = (lips.points(x, source) * box[2] + box[:2]) * size - 0.5
    moved = cv2.remap(pixels, at.astype(np.float32), None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    line = np.exp(-np.square(below / LINE)) * amid * smoothstep(gap, 0.01, 0.06)
    closed = pixels.copy()
    closed[top:bottom, left:right] = (moved * (1 - SHADE * line[..., None])).round().astype(np.uint8)
    return closed


def teeth(pixels: np.ndarray, box: np.ndarray, lips: Outline, side: int) -> np.ndarray:
    """What a picture (S, S, 3) uint8 shows between lips that are open in its mouth's box (4,), over that box:
    (side, side, 4) float32, colours in 0..255, and how far they are known, in 0..1."""
    unit = raster(np.array([0, 0, 1, 1]), side, side)
    x, y = lips.frame(unit)
    upper, lower = lips.edges(x)
    known = smoothstep(np.minimum(y - upper, lower - y), 0.5 * WITHIN, 1.5 * WITHIN)
    at = ((unit * box[2:] + box[:2]) * len(pixels) - 0.5).astype(np.float32)
    shown = cv2.remap(pixels, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.dstack([shown, known]).astype(np.float32)
