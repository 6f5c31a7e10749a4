"""A video as evaluation measures it, and the tools that make and look at one."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from engine.training import metrics, sheets
from engine.training.camera import camera_path, steadied
from engine.training.clips import RATE
from engine.training.halo import People
from engine.training.identity import SAME_PERSON
from engine.training.landmarks import (
    Landmarker,
    eye_opening,
    find_landmarks,
    head_motion,
    inner_face,
    mouth_opening,
)

#: Pictures are compared, and landmarks found, at this size, whatever the size of the clip.
SIZE = 256
#: Stills, and portraits that are stills, are shown at this size.
FULL = 512
#: A track in which fewer faces are found is not measured by its landmarks.
FOUND_ENOUGH = 0.8


class Subject(Protocol):
    """What is evaluated. Pictures are (S, S, 3) uint8 RGB; those it makes may have a size of their own."""

    def reenact(self, portrait: np.ndarray, frames: list[np.ndarray]) -> list[np.ndarray]:
        """The portrait moving as `frames` do, one picture for each; frames[0] is the portrait itself."""
        ...

    def speak(self, portrait: np.ndarray, voice: np.ndarray, count: int, seed: int) -> list[np.ndarray]:
        """The portrait saying `voice` (count * 640,) float32 mono at 16 kHz: `count` pictures at 25 Hz."""
        ...


#: A picture and its landmarks -> a vector of who it is.
Embedder = Callable[[np.ndarray, np.ndarray], np.ndarray]


class CopyPortrait:
    """The honest baseline: the portrait, again and again."""

    def reenact(self, portrait: np.ndarray, frames: list[np.ndarray]) -> list[np.ndarray]:
        return [portrait] * len(frames)

    def speak(self, portrait: np.ndarray, voice: np.ndarray, count: int, seed: int) -> list[np.ndarray]:
        return [portrait] * count


@dataclass(frozen=True)
class Tools:
    subject: Subject
    landmarker: Landmarker
    embedder: Embedder
    people: People


@dataclass(frozen=True)
class Track:
    """A video as measured: all frames at 256 x 256, and a few (`looks`, at `times`) at its own size."""

    small: list[np.ndarray]
    points: np.ndarray
    found: np.ndarray
    looks: list[np.ndarray]
    times: list[int]

    @property
    def usable(self) -> bool:
        return float(self.found.mean()) >= FOUND_ENOUGH


def make_track(
    pictures: Iterable[np.ndarray], count: int, landmarker: Landmarker, cache: Path | None = None
) -> Track:
    pictures = list(pictures)
    if len(pictures) != count:
        raise ValueError(f"the subject made {len(pictures)} frames where {count} were asked for")
    times = sheets.even_times(count)
    looks = [pictures[time] for time in times]
    # A picture that is repeated (the copying baseline) is scaled and looked at once.
    small: list[np.ndarray] = []
    for index, picture in enumerate(pictures):
        same = index and picture is pictures[index - 1]
        small.append(small[-1] if same else resized(picture, SIZE))
    if all(picture is small[0] for picture in small):
        points, found = find_landmarks(small[:1], landmarker, cache)
        points, found = np.repeat(points, count, 0), np.repeat(found, count)
    else:
        points, found = find_landmarks(small, landmarker, cache)
    return Track(small, points, found, looks, times)


def resized(picture: np.ndarray, size: int) -> np.ndarray:
    if len(picture) == size:
        return picture
    way = cv2.INTER_AREA if len(picture) > size else cv2.INTER_CUBIC
    return cv2.resize(picture, (size, size), interpolation=way)


def measure_motion(track: Track, reference: np.ndarray) -> dict:
    """Spread and jitter in pixels at 256 x 256, angles in degrees, openings in their own units, blinks. The head is
    measured against the background, so that a camera that pans is no head that moves."""
    angles, head = head_motion(track.points, reference)
    head = steadied(head * SIZE, camera_path(track.small, track.points))
    flat = track.points[:, :468, :2] * SIZE
    eyes = eye_opening(track.points)
    return {
        "face": metrics.spread(flat),
        "head": metrics.spread(head),
        "mouth": float(mouth_opening(track.points).std()),
        "eyes": float(eyes.std()),
        **dict(zip(("yaw", "pitch", "roll"), angles.std(0).tolist(), strict=True)),
        "jitter": metrics.jitter(flat),
        "head_jitter": metrics.jitter(head),
        "blinks": metrics.count_blinks(eyes, RATE),
    }


def measure_identity(track: Track, portrait: np.ndarray, embedder: Embedder) -> dict | None:
    """Mean cosine and distance of four frames spread over the track to the portrait's vector."""
    at = [i for i in range(len(track.times) - 1, 0, -2) if track.found[track.times[i]]]
    if not at:
        return None
    vectors = [embedder(track.looks[i], track.points[track.times[i]]) for i in at]
    far = [float(np.linalg.norm(vector - portrait)) for vector in vectors]
    return {
        "cosine": float(np.mean([metrics.cosine(vector, portrait) for vector in vectors])),
        "distance": float(np.mean(far)),
        "same": float(np.mean([distance < SAME_PERSON for distance in far])),
    }


def measure_detail(track: Track, portrait: np.ndarray, points: np.ndarray) -> float | None:
    """Laplacian energy inside the face, frames over portrait, both at the size of the frames."""
    size = len(track.looks[0])
    base = metrics.laplacian_energy(resized(portrait, size), inner_face(points, size))
    energies = [
        metrics.laplacian_energy(look, inner_face(track.points[time], size))
        for look, time in zip(track.looks[1:], track.times[1:], strict=True)
        if track.found[time]
    ]
    return float(np.mean(energies) / base) if energies and base > 0 else None


