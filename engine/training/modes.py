"""Motion modes: the coordinates that landmarks give the first latents.

A face's 478 landmarks are taken apart into a rigid pose against a canonical head (Umeyama 1991) and an expression
(coefficients of the principal components of what is left, within clips). Stage 1 starts by regressing these numbers
and then lets go of them: what ships is whatever the pictures made of them.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

FILE = "modes.npz"  # in a cache's folder
POSE = 6  # yaw, pitch, roll (radians), x, y (fractions of the picture), log scale
#: What one unit of latent means at the start, so that all of them vary by a few tenths.
POSE_UNIT = np.array([0.25, 0.25, 0.25, 0.1, 0.1, 0.15], np.float32)

LIPS = [
    61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 185, 40, 39, 37, 0, 267, 269, 270, 409,
    78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 191, 80, 81, 82, 13, 312, 311, 310, 415,
]  # fmt: skip
#: The inner outline of the lips, in order.
INNER_LIPS = [78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308, 324, 318, 402, 317, 14, 87, 178, 88, 95]
#: The outlines of both eyes, in order, each from its outer corner along the lower lid to the inner one and back.
EYE_OUTLINES = (
    [33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246],
    [263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466],
)
#: Landmarks of the inner lips, upper and lower ones that meet, the middle in the middle.
LIP_PAIRS = ((81, 82, 13, 312, 311), (178, 87, 14, 317, 402))
EYELIDS = [*EYE_OUTLINES[0], *EYE_OUTLINES[1]]
IRISES = list(range(468, 478))
#: Points that expressions hardly move: brow ridge, nose bridge, temples, outer cheeks.
STABLE = [
    6, 168, 197, 195, 5, 4, 1, 122, 351, 193, 417, 127, 356, 234, 454, 93, 323, 33, 263, 133, 362, 10, 109, 338, 151, 9,
]  # fmt: skip


def rigid_fit(points: np.ndarray, canonical: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Similarity that takes `canonical` (M, 3) onto `points` (N, M, 3), least squares (Umeyama 1991).

    Returns scale (N,), rotation (N, 3, 3), translation (N, 3): points = scale * canonical @ rotation.T + translation.
    """
    mean, mean0 = points.mean(1), canonical.mean(0)
    centred, centred0 = points - mean[:, None], canonical - mean0
    u, s, vt = np.linalg.svd(np.einsum("nmi,mj->nij", centred, centred0) / len(canonical))
    sign = np.ones((len(points), 3), points.dtype)
    sign[:, 2] = np.sign(np.linalg.det(u) * np.linalg.det(vt))
    rotation = np.einsum("nij,nj,njk->nik", u, sign, vt)
    scale = (s * sign).sum(1) / (centred0**2).sum(1).mean()
    return scale, rotation, mean - scale[:, None] * np.einsum("nij,j->ni", rotation, mean0)


@dataclass(frozen=True)
class Modes:
    """canonical (478, 3): the mean head, centred on the origin, unit size; basis (E, 478 * 3): expression modes,
    scaled so that coefficients have a within-clip standard deviation of about 0.3; mirror (478,): the index of each
    landmark's mirror image; weight (478, 3): what expressions care about (lips and eyes more, depth less)."""

    canonical: np.ndarray
    basis: np.ndarray
    mirror: np.ndarray
    weight: np.ndarray

    @property
    def size(self) -> int:
        return POSE + len(self.basis)

    def latents(self, landmarks: np.ndarray) -> np.ndarray:
        """(N, 478, 3) landmarks -> (N, 6 + E) latents: pose, then expression (which still holds the identity)."""
        scale, rotation, translation = rigid_fit(landmarks[:, STABLE], self.canonical[STABLE])
        pose = np.stack(
            [
                np.arctan2(-rotation[:, 2, 0], np.hypot(rotation[:, 2, 1], rotation[:, 2, 2])),
                np.arctan2(rotation[:, 2, 1], rotation[:, 2, 2]),
                np.arctan2(rotation[:, 1, 0], rotation[:, 0, 0]),
                translation[:, 0] - 0.5,
                translation[:, 1] - 0.5,
                np.log(np.maximum(scale, 1e-6)) + 1.8,
            ],
            1,
        )
        aligned = np.einsum("nmi,nij->nmj", landmarks - translation[:, None], rotation) / scale[:, None, None]
        away = ((aligned - self.canonical) * self.weight).reshape(len(landmarks), -1)
        norms = (self.basis**2).sum(1)
        return np.concatenate([pose / POSE_UNIT, away @ self.basis.T / norms], 1).astype(np.float32)

    def save(self, path: Path) -> None:
        np.savez(path, canonical=self.canonical, basis=self.basis, mirror=self.mirror, weight=self.weight)

    @classmethod
    def load(cls, path: Path) -> "Modes":
        with np.load(path, allow_pickle=False) as data:
            return cls(*(data[name] for name in ("canonical", "basis", "mirror", "weight")))


def fit_modes(clips: list[np.ndarray], expressions: int) -> Modes:
    """Learn the canonical head and `expressions` modes from clips of landmarks, each (n, 478, 3)."""
    heads = np.concatenate([clip[:: max(1, len(clip) // 4)] for clip in clips])
    canonical = heads[0] - heads[0].mean(0)
    for _ in range(4):  # generalised Procrustes: align all to the mean, take the mean again
        canonical = canonical - canonical[STABLE].mean(0)
        canonical /= np.sqrt((canonical[STABLE] ** 2).sum(1).mean())
        scale, rotation, translation = rigid_fit(heads[:, STABLE], canonical[STABLE])
        canonical = (
            (np.einsum("nmi,nij->nmj", heads - translation[:, None], rotation) / scale[:, None, None]).mean(0)
        ).astype(np.float32)
    mirrored = canonical * np.array([-1, 1, 1], np.float32)
    mirror = ((mirrored[:, None] - canonical[None]) ** 2).sum(-1).argmin(1)
    weight = np.ones_like(canonical)
    weight[LIPS], weight[EYELIDS], weight[IRISES] = 3.0, 3.0, 2.0
    weight[:, 2] *= 0.3  # depth is the landmarker's guess
    away = []
    for clip in clips:
        scale, rotation, translation = rigid_fit(clip[:, STABLE], canonical[STABLE])
        aligned = np.einsum("nmi,nij->nmj", clip - translation[:, None], rotation) / scale[:, None, None]
        away.append(((aligned - aligned.mean(0)) * weight).reshape(len(clip), -1))
    away = np.concatenate(away).astype(np.float32)
    covariance = away.T @ away / len(away)
    values, vectors = np.linalg.eigh(covariance)
    order = np.argsort(values)[::-1][:expressions]
    basis = (vectors[:, order] * (np.sqrt(values[order]) / 0.3)).T
    return Modes(canonical, np.ascontiguousarray(basis, np.float32), mirror, weight)
