"""A portrait's own latent, put right where the encoder misreads a face it does not know.

What is drawn follows the difference between a latent and the portrait's own. A moustache or full lips are read as an
open mouth, narrow eyes as half closed ones: then the mouth of that portrait hardly ever opens, and its eyes never shut.
How far its lips are apart and its eyes open, the networks that find them see in the picture itself
(renderer/network.py, PlaceNetwork and SightNetwork); the latent is moved, along what moves lips and lids and nothing
else, until it says the same.
"""

from collections.abc import Callable

import numpy as np

#: Steps of Newton's method; how far it looks for the slope, and how far it may go altogether, in deviations of motion.
STEPS, LOOK, FARTHEST = 4, 0.25, 8.0


def anchored(
    latent: np.ndarray, gauges: Callable[[np.ndarray], np.ndarray], seen: np.ndarray, ways: tuple[np.ndarray, ...]
) -> np.ndarray:
    """Latent (D,) moved so that gauges say what is seen, a number for each of the ways: the directions (n, D) it may be
    moved along, each as long as motion deviates along it. gauges: latent (D,) -> as many numbers as there are ways."""
    start = latent
    for _ in range(STEPS):
        for number, way in enumerate(ways):
            now = gauges(latent)[number]
            slope = np.array([gauges(latent + LOOK * along)[number] - now for along in way]) / LOOK
            steep = float(slope @ slope)
            if steep > 1e-9:
                latent = latent + (seen[number] - now) / steep * (slope @ way)
    off = latent - start
    far = max((float(np.abs(_along(off, way)).max()) for way in ways), default=0.0)
    return (start + off * min(1.0, FARTHEST / max(far, 1e-9))).astype(np.float32)


def _along(off: np.ndarray, way: np.ndarray) -> np.ndarray:
    """How many deviations something lies along each direction (n, D) of a way."""
    return way @ off / np.maximum((way * way).sum(1), 1e-12)
