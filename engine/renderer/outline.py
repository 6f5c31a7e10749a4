"""An opening between two edges that meet at its corners: an eye between its lids, a mouth between its lips."""

from dataclasses import astuple, dataclass

import numpy as np


@dataclass(frozen=True)
class Outline:
    """Where an eye or a mouth is, in a box of the eyes or of the mouth, in widths of that box. x, y: the middle between
    its corners; across, down: from there to the corner on the right of the picture, twice; above, above_tilt, above_bow
    and below...: how far the edges of its lids or lips lie above and below the line of its corners, in widths of it, as
    the curve (1 - 4 x^2)^0.7 (edge + tilt x + bow x^2) for x of -0.5 to 0.5 from corner to corner."""

    x: float
    y: float
    across: float
    down: float
    above: float
    above_tilt: float
    above_bow: float
    below: float
    below_tilt: float
    below_bow: float

    @classmethod
    def of(cls, corners: tuple[np.ndarray, np.ndarray], above: np.ndarray, below: np.ndarray) -> "Outline":
        """The one that fits points best: its corners (2,), that on the left of the picture first, and points of its
        edges (n, 2), in widths of the box."""
        left, right = corners
        middle, along = (left + right) / 2, right - left
        flat = cls(*middle, *along, *[0.0] * 6)
        curves = []
        for points, sign in ((above, -1), (below, 1)):
            x, y = flat.frame(points)
            x = x.clip(-0.45, 0.45)
            terms = arch_of(x)[:, None] * np.stack([x**0, x, x**2], 1)
            curves += np.linalg.lstsq(terms, sign * y, rcond=None)[0].tolist()
        return cls(*middle.tolist(), *along.tolist(), *curves)

    def vector(self) -> np.ndarray:
        """(10,), as a network tells it."""
        return np.array(astuple(self), np.float32)

    def frame(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points (..., 2) in widths of the box -> x and y in its own frame."""
        square = max(self.across**2 + self.down**2, 1e-8)
        off = points - [self.x, self.y]
        return off @ [self.across, self.down] / square, off @ [-self.down, self.across] / square

    def points(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """x and y in its own frame -> points (..., 2) in widths of the box."""
        return np.stack(
            [self.x + x * self.across - y * self.down, self.y + x * self.down + y * self.across], -1
        )

    def opening(self) -> float:
        """How open it is, for an eye as landmarks.eye_opening says: its edges' mean distance at two places, in widths
        of it."""
        upper, lower = self.edges(np.array([-0.17, 0.17]))
        return float((lower - upper).mean())

    def edges(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """y of the upper and of the lower edge at x of -0.5 to 0.5; beyond the corners both are zero."""
        arch = arch_of(x)
        upper = -arch * (self.above + self.above_tilt * x + self.above_bow * x**2)
        return upper, arch * (self.below + self.below_tilt * x + self.below_bow * x**2)


def arch_of(x: np.ndarray) -> np.ndarray:
    """What all edges have in common; see Outline."""
    return (1 - 4 * np.square(x)).clip(0, 1) ** 0.7
