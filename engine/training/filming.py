"""Stills made into film: each moves as a talking head of the cache does, turned further and speaking more widely.

A hundred people on film teach an encoder a hundred faces; stills show many more, but do not move. Landmarks say where
a still's points would be: the person's pixels are bent there, in front of a background that stays where it is, and
between lips that part there is drawn what would be seen (see painting.py). What comes out is a clip like any other.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from engine.renderer import matting
from engine.renderer.boxes import mouth_box
from engine.renderer.matte import part
from engine.training.batches import Cache, keypoints_of, lip_gap, mouth_place, uncovered
from engine.training.modes import EYELIDS, IRISES, LIPS, Modes, fit_modes
from engine.training.painting import bending, borrow
from engine.training.prepare import MATTE, SIZE

SOURCE = "stills"
#: Deviations of how a clip's head is turned beside its donor's, once for all its frames and for each of them: yaw,
#: pitch, roll, in radians.
TURNED, TURNING = (0.06, 0.04, 0.04), (0.10, 0.07, 0.05)
#: How widely the face moves, as a factor of the donor's motion.
WIDELY = (0.8, 1.7)
#: Every so many-th landmark bends the picture, beside those of lips, lids and irises.
THINNED = 5


@dataclass(frozen=True)
class Clip:
    """frames (T, 256, 256, 3) uint8; landmarks (T, 478, 3) float32; mattes (T, 128, 128) uint8."""

    frames: np.ndarray
    landmarks: np.ndarray
    mattes: np.ndarray


def film(still: np.ndarray, matte: np.ndarray, points: np.ndarray, carried: np.ndarray) -> Clip:
    """A still (256, 256, 3) uint8 with its matte (128, 128) uint8 as its landmarks (1 + T, 478, 3) tell, those at rest
    first; carried (1 + T, 478, 3): by the head alone. At rest it is left out."""
    rest = points[0]
    layers = part(still, matting.matte(still, matte / np.float32(255), keypoints_of(rest)))
    look = mouth_place(still, rest, mouth_box(keypoints_of(rest)), sharp=True)
    kept = np.union1d(np.arange(0, len(rest), THINNED), LIPS + EYELIDS + IRISES)
    frames, mattes = [], []
    for now, head in zip(points[1:], carried[1:], strict=True):
        # twice as coarse, since this is what costs
        source = bending(rest[kept, :2], now[kept, :2], np.array([0, 0, 1, 1]), SIZE // 2, SIZE // 2)
        pixels = cv2.resize(source * SIZE - 0.5, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR).astype(np.float32)
        front = cv2.remap(layers.front, pixels, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) / 255.0
        picture = front[..., :3] + front[..., 3:] * (layers.back / 255.0)
        box = mouth_box(keypoints_of(now))
        inside = np.dstack(uncovered(still, rest, now, head, box, look))
        inside = _put(inside.astype(np.float32), box)
        picture += (inside[..., :3] - picture) * inside[..., 3:]
        frames.append((picture * 255).clip(0, 255).round().astype(np.uint8))
        covered = cv2.resize(1 - front[..., 3], (MATTE, MATTE), interpolation=cv2.INTER_AREA)
        mattes.append((covered * 255).round().astype(np.uint8))
    return Clip(np.stack(frames), points[1:], np.stack(mattes))


def _put(window: np.ndarray, box: np.ndarray) -> np.ndarray:
    """What is seen in a window (n, n, 4) over a box (4,) of the picture -> in the picture, zeros elsewhere."""
    zoom = box[2:] * SIZE / len(window)
    to = np.array([[zoom[0], 0, box[0] * SIZE], [0, zoom[1], box[1] * SIZE]])
    to[:, 2] += (zoom - 1) / 2
    return cv2.warpAffine(window, to, (SIZE, SIZE), flags=cv2.INTER_LINEAR)


def shoot(cache: Cache, modes: Modes, still: dict, frames: int, seed: int) -> Clip:
    """A clip of a still of the cache, of so many frames, after a clip of somebody who talks; the same for a seed."""
    rng = np.random.default_rng((seed, still["start"]))
    rest, donors = cache.landmarks_of(still)[0], [c for c in cache.split("train") if c["count"] >= 8]
    motion = cache.landmarks_of(donors[rng.integers(len(donors))])
    # from where the donor's lips are as far apart as the still's: from there, they open and close as much
    begin = np.abs(lip_gap(motion) - lip_gap(rest)).argmin()
    at = np.r_[begin, rng.permutation(len(motion))[np.arange(frames) % len(motion)]]
    angles = rng.normal(0, TURNED, 3) + rng.normal(0, TURNING, (1 + frames, 3))
    angles[0] = 0
    points, carried = borrow(rest, motion[at], modes.canonical, rng.uniform(*WIDELY), angles)
    picture = np.array(cache.frames[still["start"]])
    return film(picture, np.array(cache.mattes[still["start"]]), points, carried)


def film_stills(folder: Path, each: int, frames: int = 10) -> int:
    """Add `each` clips of `frames` frames of every still of a prepared cache to it. Returns how many there are now."""
    cache = Cache.open(folder)
    modes = fit_modes([cache.landmarks_of(clip) for clip in cache.split("train") if clip["count"] > 3], 1)
    stills = [clip for clip in cache.split("train") if clip["count"] == 1]
    landmarks, index, start = [cache.landmarks], list(cache.clips), len(cache.landmarks)
    jobs = [(still, take) for still in stills for take in range(each)]
    with (
        (folder / "frames.u8").open("ab") as pixels,
        (folder / "mattes.u8").open("ab") as mattes,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        made = pool.map(lambda job: (job[0], shoot(cache, modes, job[0], frames, job[1])), jobs)
        for number, (still, clip) in enumerate(made):
            pixels.write(clip.frames.tobytes())
            mattes.write(clip.mattes.tobytes())
            landmarks.append(clip.landmarks)
            index.append(still | {"source": SOURCE, "start": start, "count": frames, "frames_at": list(range(frames))})
            start += frames
            if number % 50 == 0:
                print(f"filming: {number} of {len(jobs)}", flush=True)
    np.save(folder / "landmarks.npy", np.concatenate(landmarks))
    (folder / "index.json").write_text(json.dumps(index))
    return len(jobs)
