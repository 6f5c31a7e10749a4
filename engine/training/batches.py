"""Batches for stage 1: one portrait and several targets of the same clip, augmented alike.

What changes from frame to frame must be motion and nothing else, so a clip's augmentation (similarity, mirror, colour)
is drawn once and applied to all of its frames.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from engine.errors import InputError
from engine.renderer.boxes import eyes_box, mouth_box
from engine.renderer.inside import INSIDE, Place, depth, draw
from engine.renderer.lids import LIDS, Lids, crop_of
from engine.training.held_out import held_out
from engine.training.modes import EYE_OUTLINES, EYELIDS, INNER_LIPS, LIP_PAIRS, LIPS, POSE, STABLE, Modes
from engine.training.painting import behind_lips, bend, borrow, brightness, eyes_of, own_inside, place_of, smiling
from engine.training.prepare import MATTE, SIZE

#: How often each source is drawn; within a source every clip is as likely.
SOURCE_WEIGHT = {
    "lrc_ar": 0.26,
    "grid": 0.13,
    "talkvid": 0.17,
    "vasa1": 0.1,
    "liveportrait": 0.06,
    "portraits": 0.12,
    "stills": 0.18,  # films of them; where there are none, portraits are drawn as often as both
}


#: Film in front of plain walls: its frames may be moved apart from each other, as if people leaned.
PLAIN = ("grid",)
#: Side of the raster on which the mouth window is judged.
MOUTH_RASTER = 72
#: Lips further apart than this share of the mouth's width show what is between them.
PARTED = 0.12


def keypoints_of(landmarks: np.ndarray) -> np.ndarray:
    """(478, 2+) landmarks -> (5, 2) keypoints in YuNet's order, where landmarks place them: eyes' centres, nose tip,
    mouth corners."""
    points = landmarks[:, :2]
    return np.stack([points[[33, 133]].mean(0), points[[263, 362]].mean(0), points[1], points[61], points[291]])


#: The raster on which the eyes window is judged: height and width.
EYES_RASTER = (36, 72)
#: An eye less open than these shares of the portrait's is closing, and closed.
CLOSING, CLOSED = 0.65, 0.3


NOTHING_HELD, NOTHING_SHUT = np.zeros((INSIDE, INSIDE, 4), np.float32), np.zeros((*LIDS, 6), np.float32)


@dataclass(frozen=True)
class Cache:
    """A prepared folder (see prepare.py), mapped into memory."""

    frames: np.ndarray
    landmarks: np.ndarray
    mattes: np.ndarray
    clips: list[dict]

    @classmethod
    def open(cls, folder: Path) -> "Cache":
        if not (folder / "index.json").is_file():
            raise InputError(f"{folder}: not a prepared cache; make one with `ifmdm train prepare`")
        landmarks = np.load(folder / "landmarks.npy")
        frames = np.memmap(folder / "frames.u8", np.uint8, "r", shape=(len(landmarks), SIZE, SIZE, 3))
        mattes = np.memmap(folder / "mattes.u8", np.uint8, "r", shape=(len(landmarks), MATTE, MATTE))
        return cls(frames, landmarks, mattes, json.loads((folder / "index.json").read_text()))

    def split(self, name: str) -> list[dict]:
        """Clips and stills of "train" or "val", but for those held out. Raises InputError where there are none."""
        chosen = [clip for clip in self.clips if clip["split"] == name and not held_out(clip["path"])]
        if not chosen:
            raise InputError(f"nothing of {name} in this cache; training learns from what is of train and is judged by "
                             "what is of val")  # fmt: skip
        return chosen

    def landmarks_of(self, clip: dict) -> np.ndarray:
        return self.landmarks[clip["start"] : clip["start"] + clip["count"]]


@dataclass
class Batch:
    """B clips of 1 + T frames. frames (B, 1 + T, 3, 256, 256), the portrait first, uint8 as they are drawn and in 0..1
    where they are learned from (see `on`); landmarks (B, 1 + T, 478, 2); latents (B, 1 + T, D): what the motion modes
    say; mouth and eyes (B, 4): the portrait's boxes; target_mouth and target_eyes (B, T, 4): the targets' windows, as
    large; inside (B, T, 72, 72): 1 between the lips, over the mouth window; lids (B, T, 36, 72): 1 where lids have come
    down over what is open eye in the portrait, over the eyes window; matte (B, 1, 128, 128): how much of the portrait's
    pixels is the person's; held (B, 4, 192, 192): what is drawn in the portrait's mouth, and its depth, see inside.py;
    shut (B, 6, 96, 192): its closed lids and how light their lashes are, see lids.py; real (B,): 0 where the targets
    are made up from a still, so that only landmarks and what is painted judge. driver (S, 1 + T, 3, 256, 256),
    driver_mouth and driver_eyes (S, 4): for the S stills among them, in order, the frames of another person whose
    motion they borrow. painted_mouth (S, T, 3, 72, 72) and painted_eyes (S, T, 3, 36, 72): what they would look like in
    the targets' windows (see painting.py). behind (S, 192, 192): where, over the stills' own mouth boxes, what their
    mouths hold may come to light."""

    frames: Tensor
    landmarks: Tensor
    latents: Tensor
    mouth: Tensor
    eyes: Tensor
    target_mouth: Tensor
    target_eyes: Tensor
    inside: Tensor
    lids: Tensor
    matte: Tensor
    held: Tensor
    shut: Tensor
    real: Tensor
    driver: Tensor
    driver_mouth: Tensor
    driver_eyes: Tensor
    painted_mouth: Tensor
    painted_eyes: Tensor
    behind: Tensor

    def on(self, device: str | torch.device) -> "Batch":
        """The same there, its pictures in 0..1: they travel as bytes, a quarter of the way."""
        moved = {name: value.to(device) for name, value in vars(self).items()}
        return Batch(**{k: v.float() / 255 if v.dtype == torch.uint8 else v for k, v in moved.items()})


@dataclass(frozen=True)
class Augmentation:
    """What is done to all frames of a clip: a similarity (2, 3) in 0..1, a mirror, and colour gain and shift (3,)."""

    matrix: np.ndarray
    mirror: bool
    gain: np.ndarray
    shift: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Augmentation":
        turn, place = _similarity(rng, 0.06, 0.08, 0.025)
        matrix = np.concatenate([turn, place[:, None]], 1).astype(np.float32)
        gain = np.exp(rng.normal(0, 0.22) + rng.normal(0, 0.1, 3)).astype(np.float32)
        return cls(matrix, bool(rng.random() < 0.5), gain, rng.normal(0, 0.03, 3).astype(np.float32))

    def swayed(self, rng: np.random.Generator) -> "Augmentation":
        """The same, and after it one frame's own small similarity, as if a body had leaned."""
        turn, place = _similarity(rng, 0.03, 0.015, 0.015)
        matrix = np.concatenate([turn @ self.matrix[:, :2], (turn @ self.matrix[:, 2] + place)[:, None]], 1)
        return replace(self, matrix=matrix.astype(np.float32))

    def landmarks(self, points: np.ndarray, mirror_of: np.ndarray) -> np.ndarray:
        """(n, 478, 3) landmarks after the augmentation; mirror_of: each landmark's mirror image."""
        if self.mirror:
            points = points[:, mirror_of] * np.array([-1, 1, 1], np.float32) + np.array([1, 0, 0], np.float32)
        zoom = np.sqrt(np.abs(np.linalg.det(self.matrix[:, :2])))
        return np.concatenate([points[..., :2] @ self.matrix[:, :2].T + self.matrix[:, 2], points[..., 2:] * zoom], -1)

    def place(self, picture: np.ndarray) -> np.ndarray:
        """(S, S, ...) uint8 mirrored and moved, its colours as they were."""
        if self.mirror:
            picture = cv2.flip(picture, 1)  # a tenth of the time of NumPy's own
        size, pixels = len(picture), self.matrix.copy()
        pixels[:, 2] = size * self.matrix[:, 2] - 0.5 + self.matrix[:, :2] @ [0.5, 0.5]
        return cv2.warpAffine(picture, pixels, (size, size), borderMode=cv2.BORDER_REPLICATE)

    def frame(self, picture: np.ndarray) -> np.ndarray:
        """(256, 256, 3) uint8 after the augmentation."""
        picture = self.place(picture)
        table = np.clip((np.arange(256)[:, None] / 255 * self.gain + self.shift) * 255, 0, 255).astype(np.uint8)
        return cv2.LUT(picture, table[None])


def _similarity(rng: np.random.Generator, angle: float, zoom: float, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """A similarity about the picture's middle: matrix (2, 2) and shift (2,), of such deviations of the angle (radians),
    the log of the zoom and the shift."""
    by, larger = rng.normal(0, angle), np.exp(rng.normal(0, zoom))
    turn = larger * np.array([[np.cos(by), -np.sin(by)], [np.sin(by), np.cos(by)]])
    return turn, rng.normal(0.5, shift, 2) - turn @ [0.5, 0.5]


def _of_first_size(boxes: np.ndarray) -> np.ndarray:
    """Boxes (n, 4) -> the same centres, all of the first one's size: windows that targets are judged in."""
    size = np.broadcast_to(boxes[0, 2:], (len(boxes), 2))
    return np.concatenate([boxes[:, :2] + (boxes[:, 2:] - size) / 2, size], 1)


def _extremes_first(at: np.ndarray, landmarks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Reorder a clip's frames: often the one with the lips closest first (portraits mostly come with closed lips), then
    the widest mouth and the most closed eyes, which are rare and matter most."""
    lips = landmarks[:, 14, 1] - landmarks[:, 13, 1]
    lids = landmarks[:, 145, 1] - landmarks[:, 159, 1] + landmarks[:, 374, 1] - landmarks[:, 386, 1]
    first = [lips.argmin() if rng.random() < 0.5 else at[0]]
    first += [frame for frame in (lips.argmax(), lids.argmin()) if rng.random() < 0.6]
    first = list(dict.fromkeys(first))
    return np.array(first + [frame for frame in at if frame not in first])


def lip_gap(landmarks: np.ndarray) -> np.ndarray:
    """(..., 478, 2+) landmarks -> how far apart the lips are inside, in widths of the mouth."""
    upper, lower, left, right = (landmarks[..., i, :2] for i in (13, 14, 78, 308))
    across = np.linalg.norm(right - left, axis=-1)
    return np.linalg.norm(lower - upper, axis=-1) / np.maximum(across, 1e-6)


def lips_apart(landmarks: np.ndarray) -> np.ndarray:
    """(..., 478, 2+) landmarks -> the distance of the inner lips in and about their middle, in 0..1 of the picture."""
    upper, lower = (landmarks[..., side[1:4], :2] for side in LIP_PAIRS)
    return np.linalg.norm(lower - upper, axis=-1).mean(-1)


def between_lips(landmarks: np.ndarray, box: np.ndarray) -> np.ndarray:
    """(478, 2+) landmarks and a mouth window (4,) -> mask (72, 72) uint8 of what lies between the lips."""
    mask = np.zeros((MOUTH_RASTER, MOUTH_RASTER), np.uint8)
    points = (landmarks[INNER_LIPS, :2] - box[:2]) / box[2:] * MOUTH_RASTER - 0.5
    cv2.fillPoly(mask, [np.round(points * 16).astype(np.int32)], 1, lineType=cv2.LINE_8, shift=4)
    gap = landmarks[14, 1] - landmarks[13, 1]
    return mask if gap > 0.02 * box[3] else np.zeros_like(mask)  # closed lips have an outline, but nothing inside


def closed_lids(portrait: np.ndarray, landmarks: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Landmarks (478, 2+) of the portrait and of a target, and the target's eyes window (4,) -> mask (36, 72) uint8 of
    what the lids cover there and leave open in the portrait."""
    height, width = EYES_RASTER
    mask = np.zeros(EYES_RASTER, np.uint8)
    for outline in EYE_OUTLINES:
        before, after = portrait[outline, :2].astype(np.float64), landmarks[outline, :2].astype(np.float64)
        # as complex numbers, so that a similarity that takes the corners to the corners is one quotient
        old, new = before @ [1, 1j], after @ [1, 1j]
        moved = new[0] + (old - old[0]) * (new[8] - new[0]) / (old[8] - old[0])
        before = np.stack([moved.real, moved.imag], 1)
        left = _area(after) / max(_area(before), 1e-9)
        if left > CLOSING:
            continue
        for points, value in ((before, 1), (after, 0)) if left > CLOSED else ((before, 1),):
            pixels = (points - box[:2]) / box[2:] * [width, height] - 0.5
            cv2.fillPoly(mask, [np.round(pixels * 16).astype(np.int32)], value, lineType=cv2.LINE_8, shift=4)
    return mask


def _area(polygon: np.ndarray) -> float:
    """Of a polygon (n, 2), by the shoelace formula."""
    x, y = polygon.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def uncovered(
    still: np.ndarray, landmarks: np.ndarray, moved: np.ndarray, head: np.ndarray, window: np.ndarray, look: Place
) -> tuple[np.ndarray, np.ndarray]:
    """What a still (S, S, 3) with landmarks (478, 2+) shows between lips that have moved (478, 2+), where its head
    alone has gone (478, 2+), in a mouth window (4,): (72, 72, 3) in 0..1, and where it is seen (72, 72)."""
    inside, start = draw(place_of(head, window, look), MOUTH_RASTER), landmarks[:, :2]
    if lip_gap(landmarks) > PARTED:  # its teeth stay where they are in its head, whatever the lips do
        own, known = own_inside(still, start[INNER_LIPS], start[STABLE], head[STABLE, :2], window, MOUTH_RASTER)
        inside = inside + (own - inside) * known
    return inside, cv2.GaussianBlur(between_lips(moved, window).astype(np.float32), (0, 0), 0.7)


def _painted(
    still: np.ndarray, landmarks: np.ndarray, carried: np.ndarray, mouth: np.ndarray, eyes: np.ndarray, look: Place
) -> dict[str, np.ndarray]:
    """A still (S, S, 3), its landmarks moved and carried by the head alone (1 + T, 478, 2+), the still first, its
    windows (1 + T, 4) and its mouth's place -> what is painted on it, see Batch."""
    start = landmarks[0, :, :2]
    around_mouth, around_eyes = (_around(start, box, kept) for box, kept in ((mouth[0], LIPS), (eyes[0], EYELIDS)))
    mouths, eye_pictures = [], []
    for moved, head, window, eyes_window in zip(landmarks[1:], carried[1:], mouth[1:], eyes[1:], strict=True):
        inside, mask = uncovered(still, landmarks[0], moved, head, window, look)
        outside = bend(still, start[around_mouth], moved[around_mouth, :2], window, MOUTH_RASTER, MOUTH_RASTER)
        mouths.append(outside + (inside - outside) * mask[..., None])
        eye_pictures.append(bend(still, start[around_eyes], moved[around_eyes, :2], eyes_window, *EYES_RASTER))
    return {"painted_mouth": np.stack(mouths), "painted_eyes": np.stack(eye_pictures)}


def mouth_place(frame: np.ndarray, landmarks: np.ndarray, box: np.ndarray, sharp: bool) -> Place:
    """Where a frame's (S, S, 3) mouth is in its window (4,), by its landmarks (478, 2+). sharp: whether it can be seen
    what an open mouth shows."""
    place = replace(place_of(landmarks, box, light=brightness(frame, box)), gap=float(lips_apart(landmarks) / box[2]))
    return smiling(place, frame, landmarks, box) if sharp and lip_gap(landmarks) > PARTED else place


def closed(frame: np.ndarray, landmarks: np.ndarray, box: np.ndarray) -> np.ndarray:
    """What a frame's (S, S, 3) closed lids look like in its eyes' window (4,), by its landmarks (478, 2+):
    (96, 192, 6), see lids.Lids, colours in 0..1, and how light the lashes are."""
    shut = Lids.of(eyes_of(landmarks, box), crop_of(frame, box))
    return np.dstack([shut.picture[..., :3] / 255, shut.picture[..., 3:], np.full(LIDS, shut.lashes)])


def _around(landmarks: np.ndarray, box: np.ndarray, kept: list[int]) -> np.ndarray:
    """Indices of the landmarks (478, 2) that pictures are bent by in a box (4,): those `kept`, and every third one of
    the others in and about it."""
    near = np.abs((landmarks - box[:2]) / box[2:] - 0.5).max(1) < 0.8
    return np.union1d(np.nonzero(near)[0][::3], kept)


def pick(clips: list[dict], size: int, rng: np.random.Generator) -> list[dict]:
    """`size` of the clips, each source as often as it weighs."""
    by_source: dict[str, list[dict]] = {}
    for clip in clips:
        by_source.setdefault(clip["source"], []).append(clip)
    names = sorted(by_source)
    weight = np.array([SOURCE_WEIGHT.get(name, 0.1) for name in names])
    if "portraits" in names and "stills" not in names:
        weight[names.index("portraits")] += SOURCE_WEIGHT["stills"]
    sources = [by_source[names[i]] for i in rng.choice(len(names), size, p=weight / weight.sum())]
    return [source[rng.integers(len(source))] for source in sources]


@dataclass(frozen=True)
class Sampler:
    """Draws batches; the same seed and step give the same batch, so that a resumed run goes on exactly. drawings:
    whether what is drawn in mouths and over eyes is needed (`held` and `shut`, else zeros): it is most of the cost."""

    cache: Cache
    modes: Modes
    clips: list[dict]
    targets: int
    augment: bool = True
    stills: bool = True
    drawings: bool = True

    def batch(self, size: int, seed: int, step: int) -> Batch:
        rng = np.random.default_rng((seed, step))
        clips = [c for c in self.clips if c["count"] > 1 or (self.stills and c["source"] == "portraits")]
        return collate([self.draw(clip, rng) for clip in pick(clips, size, rng)])

    def draw(self, clip: dict, rng: np.random.Generator) -> dict:
        """One clip's share of a batch, as NumPy arrays."""
        landmarks = self.cache.landmarks_of(clip)
        still = clip["count"] == 1
        if still:
            donor = next(c for c in (self.clips[i] for i in rng.permutation(len(self.clips))) if c["count"] > 4)
            motion, plain = self.cache.landmarks_of(donor), donor["source"] in PLAIN
            taken = rng.integers(donor["count"], size=1 + self.targets)
            # where the donor's lips are as far apart as the still's: from there, they open and close as much
            taken[0] = np.abs(lip_gap(motion) - lip_gap(landmarks)).argmin()
            motion = motion[taken]
            driver = [self.cache.frames[donor["start"] + i] for i in taken]
            landmarks, carried = borrow(landmarks[0], motion, self.modes.canonical)
            at = np.zeros(1, int)
        else:
            plain = clip["source"] in PLAIN
            at = rng.permutation(clip["count"])
            if self.augment:
                at = _extremes_first(at, landmarks, rng)
            at = at[np.arange(1 + self.targets) % clip["count"]]
        frames = [self.cache.frames[clip["start"] + i] for i in at]
        matte = self.cache.mattes[clip["start"] + at[0]]
        jitter, zoom = np.zeros((2, 2), np.float32), np.ones(2, np.float32)
        mirror, every = self.modes.mirror, landmarks  # of all frames: their mean is how the person looks
        if not still:
            landmarks = landmarks[at]
        if self.augment:
            change = Augmentation.draw(rng)
            changes = [change] + [change.swayed(rng) if plain else change for _ in range(self.targets)]

            def changed(points: np.ndarray) -> np.ndarray:
                return np.concatenate([c.landmarks(p[None], mirror) for c, p in zip(changes, points, strict=True)])

            every, landmarks, matte = change.landmarks(every, mirror), changed(landmarks), change.place(matte)
            frames = [c.frame(f) for c, f in zip(changes, frames, strict=False)]  # a still is one
            if still:
                driver, motion = [c.frame(f) for c, f in zip(changes, driver, strict=True)], changed(motion)
                carried = changed(carried)
            jitter = rng.normal(0, 0.006, (2, 2)).astype(np.float32)
            zoom = np.exp(rng.normal(0, 0.04, 2)).astype(np.float32)
        latents = self.modes.latents(landmarks)
        latents[:, POSE:] -= self.modes.latents(every)[:, POSE:].mean(0)
        keypoints = [keypoints_of(points) for points in landmarks]
        mouth = _of_first_size(np.stack([mouth_box(points) for points in keypoints]))
        eyes = _of_first_size(np.stack([eyes_box(points) for points in keypoints]))
        for boxes, off, larger in zip((mouth, eyes), jitter, zoom, strict=True):
            # at run time another detector places the portrait's boxes
            boxes[0, :2] += off + boxes[0, 2:] * (1 - larger) / 2
            boxes[0, 2:] *= larger
        borrowed = {}
        if still or self.drawings:
            place = mouth_place(frames[0], landmarks[0], mouth[0], sharp=still)
        if still:
            donated = keypoints_of(motion[0])
            boxes = {"driver_mouth": mouth_box(donated), "driver_eyes": eyes_box(donated)}
            borrowed = {"driver": np.stack(driver), "behind": behind_lips(landmarks[0], mouth[0], INSIDE)} | boxes
            borrowed |= _painted(frames[0], landmarks, carried, mouth, eyes, place)
        return borrowed | {
            "frames": np.stack(frames * (1 + self.targets) if still else frames),
            "landmarks": landmarks[..., :2],
            "latents": latents,
            "mouth": mouth,
            "eyes": eyes,
            "inside": np.stack([between_lips(p, box) for p, box in zip(landmarks[1:], mouth[1:], strict=True)]),
            "lids": np.stack(
                [closed_lids(landmarks[0], p, box) for p, box in zip(landmarks[1:], eyes[1:], strict=True)]
            ),
            "matte": matte[None],
            "held": np.dstack([draw(place, INSIDE), depth(place, INSIDE)]) if self.drawings else NOTHING_HELD,
            "shut": closed(frames[0], landmarks[0], eyes[0]) if self.drawings else NOTHING_SHUT,
            "real": 0.0 if still else 1.0,
        }


def collate(parts: list[dict]) -> Batch:
    """Draws of several clips -> one batch of tensors."""

    def stack(name: str) -> Tensor:
        return torch.from_numpy(np.stack([part[name] for part in parts])).float()

    def pictures(frames: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(frames)).permute(0, 1, 4, 2, 3)

    frames = pictures([part["frames"] for part in parts])
    times = frames.shape[1] - 1
    mouth, eyes = stack("mouth"), stack("eyes")
    stills = [part for part in parts if "driver" in part]

    def boxes(name: str) -> Tensor:
        return torch.from_numpy(np.array([part[name] for part in stills], np.float32).reshape(-1, 4))

    def painted(name: str, *shape: int) -> Tensor:
        return torch.from_numpy(np.array([part[name] for part in stills], np.float32).reshape(len(stills), *shape))

    return Batch(
        frames=frames,
        landmarks=stack("landmarks"),
        latents=stack("latents"),
        mouth=mouth[:, 0],
        eyes=eyes[:, 0],
        target_mouth=mouth[:, 1:],
        target_eyes=eyes[:, 1:],
        inside=stack("inside"),
        lids=stack("lids"),
        matte=stack("matte") / 255,
        held=stack("held").permute(0, 3, 1, 2),
        shut=stack("shut").permute(0, 3, 1, 2),
        real=torch.tensor([part["real"] for part in parts]),
        driver=pictures([part["driver"] for part in stills]) if stills else frames[:0],
        driver_mouth=boxes("driver_mouth"),
        driver_eyes=boxes("driver_eyes"),
        painted_mouth=painted("painted_mouth", times, MOUTH_RASTER, MOUTH_RASTER, 3).permute(0, 1, 4, 2, 3),
        painted_eyes=painted("painted_eyes", times, *EYES_RASTER, 3).permute(0, 1, 4, 2, 3),
        behind=painted("behind", INSIDE, INSIDE),
    )
