"""How much of each pixel along a person's outline is the person's, and which colours are theirs.

A segmenter (segment.py) says roughly where somebody is; only a narrow band along that outline is unknown. There,
closed-form matting (Levin, Lischinski and Weiss 2008) finds single hairs: in each window of 3 x 3 pixels the person's
share is taken for an affine function of the colour. The linear system that follows is solved in the band alone, by
conjugate gradients. (The library pymatting gives the same, within 0.02 in the band, but brings 350 MB of SciPy, Numba
and LLVM, and compiles for 45 s when it is first imported.)
"""

import cv2
import numpy as np

#: Pictures with more pixels than this on a side are looked at when scaled to it.
SIDE = 512
#: Other pieces of a mask count as the person's if they lie so near to the one with the face, in sides of the picture.
BESIDE = 12 / 512
#: How far the band reaches inwards and outwards of the outline, in sides of the picture.
INWARDS, OUTWARDS = 6 / 512, 8 / 512
#: What the segmenter is sure of, and what of.
SURE, NOBODY = 0.8, 0.2
#: What is added to nine times the variance of colour in a window, for noise; colours are in 0..1.
NOISE = 1e-6
#: Steps of conjugate gradients at most, and the residual, as a share of the first, at which they end.
STEPS, RESIDUAL = 120, 1e-3
#: Steps times unknown pixels, at most: where nearly all is unknown, less is made of it than the segmenter's guess.
WORK = 8_000_000
#: So many windows are looked at together, for memory's sake.
WINDOWS = 8192

def disc(radius: float) -> np.ndarray:
    """A round structuring element of a radius in pixels."""
    side = 2 * max(1, round(radius)) + 1
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))


def matte(pixels: np.ndarray, mask: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
    """Picture (S, S, 3) uint8, where the person roughly is in it (n, n) in 0..1, and its keypoints (5, 2) -> how much
    of each pixel is the person's: (m, m) float32 in 0..1, m the lesser of S and SIDE."""
    size = min(len(pixels), SIDE)
    if len(pixels) != size:
        pixels = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA)
    if len(mask) != size:
        kind = cv2.INTER_CUBIC if len(mask) < size else cv2.INTER_AREA
        mask = cv2.resize(mask.astype(np.float32), (size, size), interpolation=kind).clip(0, 1)
    rough = person(mask, keypoints)
    return closed_form(pixels / np.float32(255), trimap(rough), rough)


def person(mask: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
    """Mask (S, S) float32 in 0..1 of people -> that of the one whose face has the keypoints (5, 2). What lies
    between those is theirs whatever the mask says (no more: beside a face in profile is the wall), and so is the piece
    of the mask that it is in, and what nearly touches that; another person apart from them is background."""
    size = len(mask)
    face = np.zeros((size, size), np.uint8)
    cv2.fillConvexPoly(face, cv2.convexHull((keypoints * size).astype(np.float32)).round().astype(np.int32), 1)
    whole = np.maximum(mask, face)
    _, pieces = cv2.connectedComponents((whole > 0.5).astype(np.uint8))
    near = disc(BESIDE * size)
    own = np.isin(pieces, np.setdiff1d(pieces[face > 0], 0))
    beside = pieces[cv2.dilate(own.astype(np.uint8), near) > 0]
    own |= np.isin(pieces, np.setdiff1d(beside, 0))
    return np.where(cv2.dilate(own.astype(np.uint8), near) > 0, whole, np.float32(0))


def trimap(mask: np.ndarray) -> np.ndarray:
    """Mask (S, S) in 0..1 -> (S, S) float32: 1 where the person surely is, 0 where surely nobody is, 0.5 in between, a
    band along the outline."""
    size = len(mask)
    inside = cv2.erode((mask > SURE).astype(np.uint8), disc(INWARDS * size))
    outside = cv2.erode((mask < NOBODY).astype(np.uint8), disc(OUTWARDS * size))
    return np.where(inside > 0, np.float32(1), np.where(outside > 0, np.float32(0), np.float32(0.5)))


def closed_form(picture: np.ndarray, known: np.ndarray, first: np.ndarray | None = None) -> np.ndarray:
    """Picture (H, W, 3) in 0..1 and a trimap (H, W) of 0, 1 and 0.5 for what is asked -> (H, W) float32 in 0..1.
    first (H, W): what to begin with in the band."""
    height, width = known.shape
    unknown = known == 0.5
    solved = known.astype(np.float64)
    if first is not None:
        solved[unknown] = first[unknown]
    # the windows that see anything unknown, none beyond the picture's edge
    inner = np.zeros_like(unknown)
    inner[1:-1, 1:-1] = cv2.dilate(unknown.astype(np.uint8), np.ones((3, 3), np.uint8))[1:-1, 1:-1] > 0
    middles, places = np.flatnonzero(inner), np.flatnonzero(unknown)
    if len(places) == 0 or len(middles) == 0:
        return solved.astype(np.float32)
    steps = np.array([dy * width + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
    row = np.full(height * width, -1, np.int32)
    row[places] = np.arange(len(places))
    colours = picture.reshape(-1, 3)
    # the matrix by its 25 diagonals: how a pixel goes with that two rows or columns away, or nearer
    matrix = np.zeros((25, len(places)))
    for start in range(0, len(middles), WINDOWS):
        seen = middles[start : start + WINDOWS, None] + steps
        likeness, rows = _likeness(colours[seen].astype(np.float64)), row[seen]
        for a in range(9):
            there = np.flatnonzero(rows[:, a] >= 0)
            at = rows[there, a]
            for b in range(9):
                matrix[(b // 3 - a // 3 + 2) * 5 + (b % 3 - a % 3 + 2), at] += likeness[there, a, b]
    offsets = np.array([dy * width + dx for dy in range(-2, 3) for dx in range(-2, 3)])
    # those beyond the edge weigh nothing
    neighbours = (places + offsets[:, None]).clip(0, height * width - 1).astype(np.int32)
    everything = solved.ravel()

    def product(values: np.ndarray) -> np.ndarray:
        """The matrix times what all pixels hold."""
        return np.einsum("kn,kn->n", matrix, values[neighbours])

    scale = 1 / np.maximum(matrix[12], 1e-9)
    left = -product(everything)
    ready = scale * left
    way = np.zeros_like(everything)
    way[places] = ready
    now = left @ ready
    goal = now * RESIDUAL**2
    for _ in range(min(STEPS, WORK // len(places))):
        if now <= goal:
            break
        ahead = product(way)
        step = now / (way[places] @ ahead)
        everything[places] += step * way[places]
        left -= step * ahead
        ready = scale * left
        before, now = now, left @ ready
        way[places] = ready + now / before * way[places]
    return everything.reshape(height, width).clip(0, 1).astype(np.float32)


def _likeness(colours: np.ndarray) -> np.ndarray:
    """Colours (m, 9, 3) of windows -> what each adds to the matting Laplacian (m, 9, 9)."""
    off = colours - colours.mean(1, keepdims=True)
    spread = np.einsum("mic,mid->mcd", off, off) / 9
    spread[:, range(3), range(3)] += NOISE / 9
    together = np.matmul(np.matmul(off, _inverse(spread)), off.transpose(0, 2, 1))
    return np.eye(9) - (1 + together) / 9


def _inverse(matrices: np.ndarray) -> np.ndarray:
    """Symmetric (m, 3, 3) -> their inverses: by cofactors, many at once."""
    a, b, c, d, e, f = (matrices[:, i, j] for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)))
    first, second, third = d * f - e * e, c * e - b * f, b * e - c * d
    whole = a * first + b * second + c * third
    rest = (a * f - c * c, b * c - a * e, a * d - b * b)
    return (
        np.stack([first, second, third, second, rest[0], rest[1], third, rest[1], rest[2]], 1) / whole[:, None]
    ).reshape(-1, 3, 3)
