"""Face landmarks of pictures, and what can be read off them: regions, mouth and eye opening, head pose.

Landmarks are MediaPipe's face mesh with irises: (478, 3) float32, x and y in 0..1 of the picture, z in the
unit of x.
"""

import contextlib
import hashlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from engine.training.modes import EYE_OUTLINES, LIP_PAIRS, LIPS, STABLE, rigid_fit

COUNT = 478
#: One picture -> landmarks (478, 3), or None where no face is found.
Landmarker = Callable[[np.ndarray], np.ndarray | None]

_EYE_CORNERS = (33, 133, 362, 263)
_BELOW_NOSE = 2
#: Corners and two pairs of lids of each eye: the points of the eye aspect ratio (Soukupova and Cech 2016).
_EYES = ((33, 133, (160, 144), (158, 153)), (362, 263, (385, 380), (387, 373)))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Send file descriptor 2 nowhere: MediaPipe's C++ parts log there before their log level can be set."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class FaceMesh:
    """MediaPipe's face mesh, each picture on its own: no tracking, so that no frame smooths another.

    Raises ModuleNotFoundError without the extra.
    """

    version = "mediapipe-0.10.14 face mesh, refined, static"

    def __init__(self) -> None:
        os.environ.setdefault("GLOG_minloglevel", "3")
        with quiet():
            import mediapipe

            self._mesh = mediapipe.solutions.face_mesh.FaceMesh(
                static_image_mode=True, max_num_faces=1, refine_landmarks=True, min_detection_confidence=0.3
            )
            self(np.zeros((64, 64, 3), np.uint8))  # the first picture starts the graph, which logs too

    def __call__(self, picture: np.ndarray) -> np.ndarray | None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # protobuf's deprecations, from inside mediapipe
            found = self._mesh.process(np.ascontiguousarray(picture)).multi_face_landmarks
        return np.array([[p.x, p.y, p.z] for p in found[0].landmark], np.float32) if found else None


def find_landmarks(
    pictures: list[np.ndarray], landmarker: Landmarker, cache: Path | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Landmarks (n, 478, 3) of n pictures, and where a face was found (n,) bool.

    Pictures without a face get the landmarks between their neighbours'; if none has a face, all are NaN. With
    `cache` the answer is kept in that folder under the hash of the pictures.
    """
    file = None
    if cache is not None:
        digest = hashlib.sha256(getattr(landmarker, "version", type(landmarker).__name__).encode())
        for picture in pictures:
            digest.update(np.ascontiguousarray(picture))
        file = cache / f"{digest.hexdigest()[:32]}.npz"
        if file.is_file():
            with np.load(file, allow_pickle=False) as kept:
                return kept["points"], kept["found"]
    each = [landmarker(picture) for picture in pictures]
    found = np.array([points is not None for points in each])
    result = np.full((len(each), COUNT, 3), np.nan, np.float32)
    if found.any():
        at = np.flatnonzero(found)
        known = np.stack([each[i] for i in at]).reshape(len(at), -1)
        times = np.arange(len(each))
        flat = np.stack([np.interp(times, at, column) for column in known.T], 1)
        result = flat.reshape(len(each), COUNT, 3).astype(np.float32)
    if file is not None:
        cache.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.npz")  # another process may be writing the same one
        np.savez(part, points=result, found=found)
        part.replace(file)
    return result, found


def regions(points: np.ndarray, size: int) -> dict[str, np.ndarray]:
    """Masks (size, size) bool around one face: "face", "mouth" and "eyes".

    mouth: the box of the lips, 1.6 times as wide and high, at least half as high as wide. eyes: such a box
    around each eye. face: the convex hull of all points, grown by 3 % of the picture, and the other two.
    """
    pixels = points[:468, :2] * size
    face = np.zeros((size, size), np.uint8)
    cv2.fillConvexPoly(face, cv2.convexHull(pixels.round().astype(np.int32)), 1)
    reach = max(1, round(0.03 * size))
    face = cv2.dilate(face, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1)))
    mouth = _box(pixels[LIPS], size)
    eyes = _box(pixels[EYE_OUTLINES[0]], size) | _box(pixels[EYE_OUTLINES[1]], size)
    return {"face": face.astype(bool) | mouth | eyes, "mouth": mouth, "eyes": eyes}


def _box(pixels: np.ndarray, size: int) -> np.ndarray:
    low, high = pixels.min(0), pixels.max(0)
    middle, half = (low + high) / 2, 1.6 * (high - low) / 2
    half[1] = max(half[1], half[0] / 2)
    x0, y0 = np.clip(np.floor(middle - half).astype(int), 0, size - 1)  # never empty, even off the picture
    x1, y1 = np.clip(np.ceil(middle + half).astype(int), 1, size)
    mask = np.zeros((size, size), bool)
    mask[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = True
    return mask


def inner_face(points: np.ndarray, size: int) -> np.ndarray:
    """Mask (size, size) bool of the face without its outline, shrunk by 3 % of the picture."""
    mask = np.zeros((size, size), np.uint8)
    cv2.fillConvexPoly(mask, cv2.convexHull((points[:468, :2] * size).round().astype(np.int32)), 1)
    reach = max(1, round(0.03 * size))
    shrunk = cv2.erode(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1)))
    return (shrunk if shrunk.any() else mask).astype(bool)


def mouth_opening(points: np.ndarray) -> np.ndarray:
    """(n, 478, 3) -> (n,): the gap between the inner lips over the distance from the eyes to below the nose.

    The gap is the mean of three, at the middle of the lips and to both sides. The scale is measured on parts
    that speech does not move, in each frame, so that coming nearer is not opening the mouth.
    """
    flat = points[..., :2]
    upper, lower = (flat[:, list(side[1:4])] for side in LIP_PAIRS)
    gap = np.linalg.norm(lower - upper, axis=-1).mean(1)
    scale = np.linalg.norm(flat[:, list(_EYE_CORNERS)].mean(1) - flat[:, _BELOW_NOSE], axis=-1)
    return gap / np.maximum(scale, 1e-6)


def eye_opening(points: np.ndarray) -> np.ndarray:
    """(n, 478, 3) -> (n,): the eye aspect ratio, mean of both eyes."""
    flat = points[..., :2]
    ratios = []
    for outer, inner, *lids in _EYES:
        width = np.linalg.norm(flat[:, outer] - flat[:, inner], axis=-1)
        height = sum(np.linalg.norm(flat[:, up] - flat[:, down], axis=-1) for up, down in lids) / len(lids)
        ratios.append(height / np.maximum(width, 1e-6))
    return np.mean(ratios, 0)


def head_motion(points: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rigid part of the motion of (n, 478, 3), against one face (478, 3), from points that expressions
    hardly move.

    Returns the angles (n, 3), yaw, pitch and roll in degrees relative to the reference, and the reference's
    stable points moved rigidly with each frame (n, k, 2) in 0..1.
    """
    still = reference[STABLE] - reference[STABLE].mean(0)
    scale, rotation, translation = rigid_fit(points[:, STABLE], still)
    angles = np.stack(
        [
            np.arctan2(-rotation[:, 2, 0], np.hypot(rotation[:, 2, 1], rotation[:, 2, 2])),
            np.arctan2(rotation[:, 2, 1], rotation[:, 2, 2]),
            np.arctan2(rotation[:, 1, 0], rotation[:, 0, 0]),
        ],
        1,
    )
    moved = scale[:, None, None] * np.einsum("mj,nij->nmi", still, rotation) + translation[:, None]
    return np.rad2deg(angles), moved[..., :2]
