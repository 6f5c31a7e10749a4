"""A portrait taken apart: the person in front, the background behind, which stays still while the person moves.

How much of a pixel is the person's is known (see matting.py; engine/renderer/network.py, layers, has the formula). The
background is the picture itself wherever it shows; what the person hides is filled in. Of that only a few hundredths of
the picture's side along the outline ever show, as a head turns: the background's mirror image there has its texture and
goes on where an edge or a horizon meets the person.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from engine.renderer.lips import smoothstep
from engine.renderer.matting import disc

#: The side at which mirrors are laid, and what none shows is filled in: both are smooth, whatever the picture's size.
FILL = 256
#: The background is mirrored where it comes next to the person, across counting so much nearer than down (shelves,
#: horizons and seams of walls go across), by a line that is smooth within this share of the side.
ACROSS, SMOOTH = 2, 1 / 32
#: What is mirrored from the right and what is from the left are cross-faded within this share of the side.
FADE = 1 / 50
#: Where less than this of a pixel is background, it is filled in.
SEEN = 0.97
#: So far around the person, in sides of the picture, and where a fifth of a pixel there is theirs, nothing of the
#: background is believed: the rest of a hair is there.
RIM, HIDES = 3 / 512, 5.0
#: So far from what is known, in sides of the picture, mirror images begin to be seen, and nothing else is.
DEEP = (2 / 512, 12 / 512)
#: So many levels of 255 a picture at rest may be brighter than the portrait.
LEVEL = np.float32(1)
#: The mirror image of which a crown is made is drawn out so many times: what ends just below the edge does not end just
#: above it once more.
DRAWN_OUT = 3
#: A head that nods is drawn out about so much above a picture's upper edge, and its crown is so much flatter.
NODDING = 1.7


@dataclass(frozen=True)
class Layers:
    """front (S, S, 4) uint8: what the person adds to the picture, and how much of the background shows through; back
    (S, S, 3) uint8: the background, filled in where the person was."""

    front: np.ndarray
    back: np.ndarray


def scaled(picture: np.ndarray, side: int) -> np.ndarray:
    """A square (S, S) or (S, S, 3) -> the same of another side: averaged where it shrinks, and bilinear where it grows,
    since to average makes blocks there."""
    kind = cv2.INTER_AREA if side < len(picture) else cv2.INTER_LINEAR
    return cv2.resize(picture, (side, side), interpolation=kind)


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


def mirrors(hidden: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """What is hidden (S, S) bool -> where its mirror images to the right and to the left lie, x and y (S, S, 2) float32
    in pixels, as far beyond the nearest place that is not hidden as it lies before it, and what share (S, S) of it each
    shows. What has that place straight above or below is in both, and so is, where it is, what is not hidden."""
    size = len(hidden)
    here = np.stack(np.meshgrid(*[np.arange(size, dtype=np.float32)] * 2), -1)
    off = _outwards(hidden, here)
    aside = np.sign(off[..., 0])
    share = cv2.GaussianBlur((1 + aside) / 2, (0, 0), FADE * size)
    images = []
    for side, part in ((1, share), (-1, 1 - share)):
        # smooth on either side for itself, and on beyond where they meet: in between lies what is hidden most
        own = (aside != -side).astype(np.float32)
        amount = np.maximum(cv2.GaussianBlur(own, (0, 0), SMOOTH * size), 1e-3)
        way = cv2.GaussianBlur(off * own[..., None], (0, 0), SMOOTH * size) / amount[..., None]
        images.append((here + 2 * way, part))
    return images


def _outwards(hidden: np.ndarray, here: np.ndarray) -> np.ndarray:
    """What is hidden (S, S) bool, and each pixel's own x and y (S, S, 2) float32 -> the way from it to the nearest that
    is not hidden; none if everything is."""
    tall = np.repeat(hidden.astype(np.uint8), ACROSS, 0)
    _, labels = cv2.distanceTransformWithLabels(tall, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    rows, columns = np.nonzero(tall == 0)
    if len(rows) == 0:
        return np.zeros_like(here)
    nearest = np.zeros((labels.max() + 1, 2), np.float32)
    nearest[labels[rows, columns]] = np.stack([columns, rows // ACROSS], 1)
    return np.where(hidden[..., None], nearest[labels[ACROSS // 2 :: ACROSS]] - here, 0)


def behind(pixels: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Picture (S, S, 3) uint8 and how much of each pixel is background (S, S) float32 -> (S, S, 3) float32, the
    background where little of it is known: the mirror images of what is, and what lies around where those are none."""
    size = len(pixels)
    small, known_there = scaled(pixels, FILL).astype(np.float32), scaled(known, FILL)
    filled = cv2.resize(fill(small, known_there), (size, size), interpolation=cv2.INTER_LINEAR)
    shown, amount = np.zeros_like(filled), np.zeros_like(known)
    for places, share in mirrors(known_there < SEEN):
        # where a mirror shows what is smooth as well, and need not be found for each pixel
        seen = (places + 0.5) * np.float32(size / FILL) - 0.5
        seen, share = (cv2.resize(x, (size, size), interpolation=cv2.INTER_LINEAR) for x in (seen, share))
        image, there = (
            cv2.remap(x, seen, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101) for x in (pixels, known)
        )
        there *= share
        shown += image * there[..., None]
        amount += there
    # half is enough: where one of both shows nothing, the other does; right beside what is known, what lies around is
    # nearer to the truth than any mirror image
    deep = cv2.distanceTransform((known < SEEN).astype(np.uint8), cv2.DIST_L2, 3) / np.float32(size)
    sure = (2 * amount).clip(max=1) * smoothstep(deep, *DEEP)
    return shown * (sure / np.maximum(amount, 1e-4))[..., None] + filled * (1 - sure)[..., None]


def part(pixels: np.ndarray, matte: np.ndarray) -> Layers:
    """Picture (S, S, 3) uint8 and matte (S, S) in 0..1 -> Layers, from which the picture at rest comes back, no value
    off by more than 2 of 255."""
    hidden = cv2.dilate(matte.astype(np.float32), disc(RIM * len(pixels)))
    known = 1 - (HIDES * hidden).clip(max=1)
    back = cv2.add(pixels * known[..., None], behind(pixels, known) * (1 - known[..., None]), dtype=cv2.CV_8U)
    # where a picture is darker than what would show through, less of that does
    most = ((pixels + LEVEL) / np.maximum(back, 1)).min(-1)
    through = cv2.convertScaleAbs(np.minimum(1 - matte, most), alpha=255)
    front = cv2.subtract(pixels, shine(back, through))
    return Layers(np.dstack([front, through]), back)


def shine(back: np.ndarray, through: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """What of the background (S, S, 3) shows through (S, S), both uint8. Taking a picture apart and putting it together
    round alike, since both do it here."""
    wide = cv2.cvtColor(through, cv2.COLOR_GRAY2RGB, dst=out)
    return cv2.multiply(back, wide, dst=wide, scale=1 / 255)


def beyond(front: np.ndarray, margin: int) -> np.ndarray:
    """The person (S, S, 4), as in Layers, with so many pixels more on each side: mirrored where the person reaches the
    picture's edge, for a shoulder that moves inwards; nobody where the background reaches it, for hair near the edge
    would be mirrored there, and come down from above when its head nods. A head that the upper edge cuts gets a crown,
    for mirrored whole it would wear itself upside down."""
    around = [margin] * 4
    wide = cv2.copyMakeBorder(front, *around, cv2.BORDER_REFLECT_101)
    through = cv2.copyMakeBorder(front[..., 3], *around, cv2.BORDER_REPLICATE)
    theirs = crown(front[..., 3] < 128, margin)
    if theirs is not None:
        wide[:margin] = wide[margin + np.arange(margin, 0, -1) // DRAWN_OUT]
        above = np.rint(255 * (1 - theirs)).astype(np.uint8)
        through[:margin] = np.maximum(through[:margin], np.pad(above, [(0, 0), (margin, margin)], mode="reflect"))
    inner = slice(margin, -margin)
    for side in ((slice(margin),), (slice(-margin, None),), (inner, slice(margin)), (inner, slice(-margin, None))):
        share = through[side][..., None].astype(np.float32) / 255
        wide[side] = np.rint(wide[side] * (1 - share) + np.array([0, 0, 0, 255], np.float32) * share)
    return wide


def crown(person: np.ndarray, margin: int) -> np.ndarray | None:
    """Where the person is (S, S) bool -> how much is theirs of what lies above the picture (margin, S), the row next to
    it last: what leaves the picture there closes as a circle does whose chords are the widths at the edge and as deep
    below it, and as wide again beyond a corner that it fills. None if all of the edge is theirs."""
    size = person.shape[1]
    y, x = NODDING * np.arange(margin, 0, -1)[:, None], np.arange(size)
    theirs = np.zeros((margin, size), np.float32)
    below = _runs(person[margin])
    for left, right in _runs(person[0]):
        if left == 0 and right == size:
            return None
        under = [run for run in below if run[0] < right and run[1] > left] or [(left, right)]
        here, there = (_chord(low, high, size) for low, high in ((left, right), (under[0][0], under[-1][1])))
        sink = max(0.0, (there[1] ** 2 - here[1] ** 2) / margin + margin)
        half = np.sqrt(np.maximum(here[1] ** 2 - sink * y - y**2, 0))
        off = np.abs(x + 0.5 - here[0] - (here[0] - there[0]) / margin * y)
        theirs = np.maximum(theirs, off < half)
    return cv2.blur(theirs, (3, 3))


def _runs(row: np.ndarray) -> list[tuple[int, int]]:
    """Where a row (n,) of bool is true: from and up to."""
    turns = np.flatnonzero(np.diff(np.pad(row.astype(np.int8), 1)))
    return list(zip(turns[::2].tolist(), turns[1::2].tolist(), strict=True))


def _chord(left: int, right: int, size: int) -> tuple[float, float]:
    """The middle and half the width of a run in a row of so many pixels, as wide again beyond a corner it fills."""
    left, right = left - right * (left == 0), right + (size - left) * (right == size)
    return (left + right) / 2, (right - left) / 2
