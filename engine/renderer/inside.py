"""What a mouth holds, drawn: upper teeth, which are fixed to the skull, darkness below them and a tongue.

A portrait with closed lips does not show it, a mixture of textures learned from film is the grey average of all that
mouths ever showed, and speech uncovers little of it for moments. So it is drawn, once a portrait, where a network finds
the mouth (`Place`), and lips that part uncover it (network.py says how): as far as the textures say, and where those
say nothing, under a beard, as far as a number read off the latent says that lips are apart (`apart`).
"""

from dataclasses import astuple, dataclass

import numpy as np

from engine.renderer.lips import smoothstep

#: Side of the picture of what a mouth holds, over the mouth's box.
INSIDE = 192
#: Where one upper tooth ends and the next begins, in widths of the mouth from the middle of the face.
BETWEEN_TEETH = (0.0, 0.165, 0.29, 0.4)
#: How far below the line of closed lips upper teeth reach, in widths of the mouth.
TEETH = 0.055
#: How much of the way that lips part the upper one goes, and how soft their edges are, in sides of the mouth's box.
RISE, SOFT = 0.2, 0.014
#: Colours in 0..1 under full light.
ENAMEL, DARKNESS, TONGUE = (np.array(c) for c in ((0.93, 0.89, 0.83), (0.13, 0.055, 0.05), (0.42, 0.19, 0.18)))


@dataclass(frozen=True)
class Place:
    """Where a mouth is in its box, and how light it is there. x, y: the middle between its corners, in 0..1 of the box;
    across, up: from there to the left corner (on the right of the picture), twice, likewise; line: how far below the
    corners closed lips meet, in widths of the mouth; edge: how far below that upper teeth reach, likewise; light: of
    the skin, in 0..1; enamel: of the teeth, as a share of ENAMEL; gap: how far apart lips are, in sides of the box."""

    x: float
    y: float
    across: float
    up: float
    line: float
    edge: float
    light: float
    enamel: float
    gap: float = 0.0

    def vector(self) -> np.ndarray:
        """(9,), as a network tells it."""
        return np.array(astuple(self), np.float32)


def teeth_in(light: float) -> float:
    """Share of ENAMEL that teeth have in a light of 0..1."""
    return 0.4 + 0.42 * light


def raster(box: np.ndarray, height: int, width: int) -> np.ndarray:
    """Box (4,) -> centres of a raster's pixels over it, (height, width, 2) in 0..1 of the picture."""
    y, x = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    return np.stack(np.meshgrid(x, y), -1) * box[2:] + box[:2]


def below_line(place: Place, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each place in the box (side, side): how far along the mouth it lies, from -0.5 to 0.5 between its corners, and
    how far below the line of closed lips, in widths of the mouth."""
    off = raster(np.array([0, 0, 1, 1]), side, side) - [place.x, place.y]
    square = max(place.across**2 + place.up**2, 1e-6)
    x = off @ [place.across, place.up] / square
    return x, off @ [-place.up, place.across] / square - place.line * (1 - np.square(2 * x))


def depth(place: Place, side: int) -> np.ndarray:
    """How far below the line along which lips meet each place lies, or, if they do not in the portrait, below its lower
    lip: (side, side) in sides of the box, and as if it were in the middle of the mouth, off which lips part less."""
    x, y = below_line(place, side)
    parted = max(place.edge - TEETH, 0.0)
    deep = (y / np.sqrt((1 - np.square(2 * x)).clip(1e-3, 1)) - parted) * np.hypot(place.across, place.up)
    return np.where(np.abs(x) < 0.5, deep, -1.0)  # beyond its corners no mouth opens


def apart(depth, opening):
    """Whether places of such a depth are seen between lips which, in their middle, are further apart than in the
    portrait by `opening`, both in sides of the mouth's box: 0..1. Arrays of NumPy or torch."""
    return smoothstep((1 - RISE) * opening - depth, 0.0, SOFT) * smoothstep(depth + RISE * opening, 0.0, SOFT)


def uncovered(opacity, parted):
    """Opacity of a mouth's texture where it is at least how far lips are `parted`; what is below zero stays there."""
    return opacity + (parted - opacity.clip(0, None)).clip(0, None)


def draw(place: Place, side: int) -> np.ndarray:
    """What would be seen in the box if lips were not in the way: (side, side, 3) in 0..1."""
    x, y = below_line(place, side)
    bow = 1 - np.square(2 * x)
    aside = np.abs(x)
    gaps = np.min([np.abs(aside - between) for between in BETWEEN_TEETH], axis=0)
    rounded = 0.013 * (1 - smoothstep(gaps, 0.0, 0.05))  # each tooth's edge
    teeth = 1 - smoothstep(y + rounded - place.edge * np.clip(0.4 + 0.6 * bow, 0, 1), -0.012, 0.012)
    enamel = ENAMEL * (place.enamel * (1 - 0.6 * smoothstep(aside, 0.1, 0.48)))[..., None]
    enamel = enamel * (0.8 + 0.2 * smoothstep(gaps, 0.0, 0.02))[..., None]
    enamel = enamel * (0.65 + 0.35 * smoothstep(y, -0.06, 0.03))[..., None]  # in the shade of the upper lip
    tongue = 0.8 * smoothstep(y, 0.14, 0.26) * (1 - smoothstep(aside, 0.2, 0.42))
    deep = (DARKNESS + (TONGUE - DARKNESS) * tongue[..., None]) * (0.35 + 0.75 * place.light)
    return (deep + (enamel - deep) * teeth[..., None]).clip(0, 1)


@dataclass(frozen=True)
class Inside:
    """What a mouth holds, laid in its portrait. box (4,): where it lies, in 0..1 of the picture; picture (n, n, 4)
    float32: colours in 0..255, and how far they are shown; depth (n, n): of each place, see `depth`."""

    box: np.ndarray
    picture: np.ndarray
    depth: np.ndarray

    @classmethod
    def of(cls, box: np.ndarray, place: Place, share: np.ndarray, own: np.ndarray | None = None) -> "Inside":
        """Drawn in a mouth box (4,) where the mouth is; share (n, n) in 0..1; own (n, n, 4): what the portrait itself
        shows there, see closing.teeth."""
        colours = draw(place, len(share)) * 255
        if own is not None:
            colours += (own[..., :3] - colours) * own[..., 3:]
        picture = np.dstack([colours, share]).astype(np.float32)
        return cls(box, picture, depth(place, len(share)).astype(np.float32))

    def extent(self, canvas: int) -> tuple[int, int, int, int] | None:
        """Top, left, bottom and right of the pixels it can be seen on, of a portrait that has `canvas` to a side; None
        where it is not shown at all."""
        down, across = np.nonzero(self.picture[..., 3] > 1 / 255)
        if not len(down):
            return None
        start, step = self.box[:2] * canvas, self.box[2:] * canvas / len(self.picture)
        low = np.floor(start + np.array([across.min() - 1, down.min() - 1]) * step).clip(0, canvas - 1).astype(int)
        high = np.ceil(start + np.array([across.max() + 2, down.max() + 2]) * step).clip(low + 1, canvas).astype(int)
        return int(low[1]), int(low[0]), int(high[1]), int(high[0])
