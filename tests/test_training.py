"""Training on a made-up corpus: what goes in is in register, and a run that stops goes on exactly as if it had not."""

import argparse
import itertools
import json
import shutil
import wave
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from engine.errors import InputError  # noqa: E402
from engine.features import BANDS, LATENT_HOP, LogMel  # noqa: E402
from engine.model import FILES, RUNTIME_ARRAYS, WEIGHTS  # noqa: E402
from engine.motion.network import MotionShape, MotionTransformer, SpeechEncoder  # noqa: E402
from engine.renderer.boxes import MOUTH_SIDE, eyes_box, mouth_box  # noqa: E402
from engine.renderer.inside import INSIDE  # noqa: E402
from engine.renderer.lids import LIDS  # noqa: E402
from engine.renderer.network import EYES, MOUTH, Gauges, Motion, Renderer  # noqa: E402
from engine.training import (  # noqa: E402
    batches,
    distil,
    encoder,
    espeak,
    export,
    filming,
    gauges,
    microphones,
    place,
    precision,
    prepare,
    readings,
    stage1,
    stage2,
    teacher,
    turning,
)
from engine.training.ahead import ahead  # noqa: E402
from engine.training.batches import (  # noqa: E402
    EYE_OUTLINES,
    EYES_RASTER,
    MOUTH_RASTER,
    SOURCE_WEIGHT,
    Augmentation,
    Cache,
    Sampler,
    _painted,
    closed_lids,
    collate,
    keypoints_of,
    mouth_place,
    pick,
)
from engine.training.discriminator import Discriminator, adversarial_loss, discriminator_loss  # noqa: E402
from engine.training.landmarks import COUNT as LANDMARKS  # noqa: E402
from engine.training.latents import load_renderer  # noqa: E402
from engine.training.modes import LIP_PAIRS, POSE, POSE_UNIT, STABLE, Modes, fit_modes, rigid_fit  # noqa: E402
from engine.training.painting import borrow  # noqa: E402
from engine.training.phonemes import VOICES, Voice, synthesise  # noqa: E402
from engine.training.prepare import MATTE, SIZE  # noqa: E402

LATENT = POSE + stage1.EXPRESSIONS


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def head() -> np.ndarray:
    """(478, 3) a symmetric head of made-up points, centred on its stable ones; eyes and mouth are where they belong.
    A point's mirror image is the next one or the one before, but for the points that pictures are cropped by."""
    rng = np.random.default_rng(0)
    points = np.zeros((LANDMARKS, 3), np.float32)
    known = {33: (-0.45, -0.35, 0), 133: (-0.2, -0.35, 0), 61: (-0.3, 0.5, 0), 78: (-0.2, 0.5, 0)}
    pairs = [(33, 263), (133, 362), (61, 291), (78, 308)]
    middle = {1: (0, 0.1, -0.5), 13: (0, 0.48, 0), 14: (0, 0.52, 0)}
    rest = [i for i in range(LANDMARKS) if i not in middle and i not in itertools.chain(*pairs)]
    for left, right in [*pairs, *zip(rest[::2], rest[1::2], strict=False)]:
        points[left] = known.get(left, rng.uniform((0.03, -0.8, -0.4), (0.8, 0.9, 0.4)))
        points[right] = points[left] * (-1, 1, 1)
    for i, point in middle.items():
        points[i] = point
    points[rest[-1]] = (0, -0.7, 0.1)
    points -= points[STABLE].mean(0)
    points[:, 0] -= points[:, 0].mean()
    return (points / np.sqrt((points[STABLE] ** 2).sum(1).mean())).astype(np.float32)


def turn(yaw: float, pitch: float, roll: float) -> np.ndarray:
    (cy, cp, cr), (sy, sp, sr) = np.cos([yaw, pitch, roll]), np.sin([yaw, pitch, roll])
    around_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    around_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    around_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return around_z @ around_y @ around_x


def posed(points: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Points of a head at yaw, pitch, roll, x, y and log scale."""
    return (np.exp(pose[5]) * points @ turn(*pose[:3]).T + [0.5 + pose[3], 0.5 + pose[4], 0]).astype(np.float32)


def film(count: int, seed: int) -> np.ndarray:
    """(count, 478, 3) landmarks of somebody who nods and speaks."""
    rng = np.random.default_rng(seed)
    face = head() + rng.normal(0, 0.02, (LANDMARKS, 3))
    poses = rng.normal(0, [0.1, 0.1, 0.1, 0.02, 0.02, 0.02], (count, POSE))
    poses[:, 5] -= 1.6
    modes = np.random.default_rng(1).normal(0, 0.03, (20, LANDMARKS, 3))
    faces = face + np.einsum("nk,kmi->nmi", rng.normal(size=(count, 20)), modes)
    return np.stack([posed(face, pose) for face, pose in zip(faces, poses, strict=True)])


def photograph(landmarks: np.ndarray, seed: int) -> np.ndarray:
    """(256, 256, 3) a picture in which a disc stands at each eye and at the mouth."""
    rng = np.random.default_rng(seed)
    picture = cv2.resize(rng.integers(60, 200, (5, 5, 3), np.uint8), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    for x, y in keypoints_of(landmarks) * SIZE:
        cv2.circle(picture, (int(x), int(y)), 7, (240, 240, 240), -1)
    return picture


CLIPS = (  # source, split, frames
    ("lrc_ar", "train", 8), ("lrc_ar", "train", 6), ("vasa1", "train", 8), ("portraits", "train", 1),
    ("lrc_ar", "val", 5), ("talkvid", "val", 4), ("grid", "test", 4),
)  # fmt: skip


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    index, landmarks, start = [], [], 0
    with (folder / "frames.u8").open("wb") as pixels:
        for number, (source, split, count) in enumerate(CLIPS):
            landmarks.append(film(count, number))
            for points in landmarks[-1]:
                pixels.write(photograph(points, number).tobytes())
            entry = {"path": f"{source}/{number}.mp4", "source": source, "split": split, "tier": "clean", "audio": "1"}
            entry["fps"] = "25.0"
            index.append(entry | {"start": start, "count": count, "frames_at": [3 * i for i in range(count)]})
            start += count
    np.save(folder / "landmarks.npy", np.concatenate(landmarks))
    person = (np.hypot(*(np.mgrid[:MATTE, :MATTE] - MATTE / 2)) < 40).astype(np.uint8) * 255
    (folder / "mattes.u8").write_bytes(person.tobytes() * start)
    (folder / "index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def cache(cache_folder) -> Cache:
    return Cache.open(cache_folder)


@pytest.fixture(scope="module")
def modes(cache, cache_folder) -> Modes:
    return stage1.load_modes(cache, cache_folder)


@pytest.fixture(scope="module")
def plain_modes() -> Modes:
    """Modes of the made-up head itself, so that its numbers are known."""
    canonical = head()
    basis = np.random.default_rng(2).normal(0, 0.1, (4, LANDMARKS * 3)).astype(np.float32)
    mirrored = canonical * np.array([-1, 1, 1], np.float32)
    mirror = ((mirrored[:, None] - canonical[None]) ** 2).sum(-1).argmin(1)
    return Modes(canonical, basis, mirror, np.ones_like(canonical))


angles = st.floats(-0.5, 0.5)


# --- motion modes


@given(pose=st.tuples(angles, angles, angles, st.floats(-0.2, 0.2), st.floats(-0.2, 0.2), st.floats(-2.5, -1)))
def test_latents_know_pose(plain_modes, pose):
    latent = plain_modes.latents(posed(plain_modes.canonical, np.array(pose))[None])[0]
    known = latent[:POSE] * POSE_UNIT
    assert np.abs(known[:5] - pose[:5]).max() < 1e-4
    assert known[5] == pytest.approx(pose[5] + 1.8, abs=1e-4)
    assert np.abs(latent[POSE:]).max() < 1e-3


def test_latents_know_expressions_whatever_the_pose(plain_modes):
    basis = plain_modes.basis.copy().reshape(4, LANDMARKS, 3)
    basis[:, STABLE] = 0  # what is stable does not move
    flat = np.linalg.qr(basis.reshape(4, -1).T)[0].T.astype(np.float32) * 0.5
    modes = Modes(plain_modes.canonical, flat, plain_modes.mirror, plain_modes.weight)
    wanted = np.random.default_rng(0).normal(0, 0.3, (5, 4)).astype(np.float32)
    faces = modes.canonical + (wanted @ flat).reshape(5, LANDMARKS, 3)
    pose = np.array([0.3, -0.2, 0.1, 0.05, -0.03, -1.5])
    seen = modes.latents(np.stack([posed(face, pose) for face in faces]))
    assert np.abs(seen[:, POSE:] - wanted).max() < 1e-3
    assert np.abs(seen[:, :POSE] * POSE_UNIT - pose - [0, 0, 0, 0, 0, 1.8]).max() < 1e-3


def test_a_mirrored_face_turns_the_other_way(plain_modes):
    assert np.array_equal(plain_modes.mirror[plain_modes.mirror], np.arange(LANDMARKS))
    points = posed(plain_modes.canonical, np.array([0.3, -0.2, 0.15, 0.05, 0.02, -1.6]))[None]
    change = Augmentation(np.eye(2, 3, dtype=np.float32), True, np.ones(3, np.float32), np.zeros(3, np.float32))
    here = plain_modes.latents(points)[0]
    there = plain_modes.latents(change.landmarks(points, plain_modes.mirror))[0]
    assert np.abs(there[:POSE] - here[:POSE] * [-1, 1, -1, -1, 1, 1]).max() < 1e-3
    assert np.abs(there[POSE:]).max() < 1e-3


def test_fitted_modes_explain_the_clips_they_came_from(modes, cache, tmp_path):
    clips = [cache.landmarks_of(clip) for clip in cache.split("train") if clip["count"] > 3]
    assert modes.size == LATENT
    poses = np.concatenate([modes.latents(clip)[:, :POSE] for clip in clips]) * POSE_UNIT
    assert np.abs(poses[:, :3].std(0) - 0.1).max() < 0.05  # as the clips were made
    assert np.allclose(modes.canonical[STABLE].mean(0), 0, atol=0.05)
    spread = np.concatenate([(z := modes.latents(clip)[:, POSE:]) - z.mean(0) for clip in clips]).std(0)
    assert (spread > 0.1).all()
    assert (spread < 0.6).all()
    modes.save(tmp_path / "modes.npz")
    again = Modes.load(tmp_path / "modes.npz")
    assert all(np.array_equal(a, b) for a, b in zip(vars(again).values(), vars(modes).values(), strict=True))
    few = fit_modes(clips[:1], 2)
    assert few.basis.shape == (2, LANDMARKS * 3)


def test_rigid_fit_undoes_a_similarity():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(30, 3))
    turns = np.stack([turn(*rng.uniform(-1, 1, 3)) for _ in range(6)])
    scales, shifts = rng.uniform(0.1, 3, 6), rng.normal(size=(6, 3))
    moved = np.einsum("n,nij,mj->nmi", scales, turns, points) + shifts[:, None]
    scale, rotation, shift = rigid_fit(moved, points)
    assert np.allclose(scale, scales)
    assert np.allclose(rotation, turns)
    assert np.allclose(shift, shifts)
    flat = rigid_fit(moved * [1, 1, 0], points)[1]
    assert np.allclose(np.linalg.det(flat), 1)  # never a reflection


# --- batches


@given(seed=st.integers(0, 10_000), which=st.integers(0, LANDMARKS - 1), swayed=st.booleans())
@settings(max_examples=40)
def test_picture_and_landmarks_stay_in_register(plain_modes, seed, which, swayed):
    rng = np.random.default_rng(seed)
    points = rng.uniform(0.3, 0.7, (1, LANDMARKS, 3)).astype(np.float32)
    at = points[0, which, :2] * SIZE - 0.5  # in pixels, whose centres are at half pixels of 0..1
    rows, columns = np.mgrid[:SIZE, :SIZE]
    blob = 255 * np.exp(-((columns - at[0]) ** 2 + (rows - at[1]) ** 2) / (2 * 3**2))
    picture = np.repeat(blob[..., None], 3, 2).round().astype(np.uint8)
    change = Augmentation.draw(rng)
    change = Augmentation(change.matrix, change.mirror, np.ones(3, np.float32), np.zeros(3, np.float32))
    change = change.swayed(rng) if swayed else change
    warped = change.frame(picture)[..., 0].astype(float)
    seen = np.array([(warped * columns).sum(), (warped * rows).sum()]) / warped.sum()
    moved = change.landmarks(points, plain_modes.mirror)
    name = plain_modes.mirror[which] if change.mirror else which
    assert np.abs(seen - (moved[0, name, :2] * SIZE - 0.5)).max() < 0.25


def test_colours_change_by_gain_and_shift():
    picture = np.full((SIZE, SIZE, 3), 100, np.uint8)
    change = Augmentation(
        np.eye(2, 3, dtype=np.float32), False, np.array([1, 1.5, 3], np.float32), np.array([0.1, 0, 0], np.float32)
    )
    assert np.abs(change.frame(picture)[128, 128].astype(int) - [125, 150, 255]).max() <= 1


@pytest.mark.parametrize("workers", [0, 2])
def test_steps_are_drawn_ahead_in_their_order(cache, modes, workers):
    draw = partial(Sampler(cache, modes, cache.split("train"), 2).batch, 2, 5)
    for step, batch in zip(range(7, 10), ahead(draw, range(7, 10), workers), strict=True):
        for name, value in vars(draw(step)).items():
            assert torch.equal(value, getattr(batch, name)), (step, name)
    assert list(ahead(draw, range(3, 3), workers)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_drawn_is_raised_and_nothing_hangs(workers):
    def draw(step):
        if step == 2:
            raise ValueError("out of paper")
        return torch.tensor(step)

    drawn = ahead(draw, range(5), workers)
    assert [int(next(drawn)), int(next(drawn))] == [0, 1]
    with pytest.raises(ValueError, match="out of paper"):
        next(drawn)


def test_the_same_seed_and_step_draw_the_same_batch(cache, modes):
    sampler = Sampler(cache, modes, cache.split("train"), 3)
    first, again = sampler.batch(3, 5, 7), Sampler(cache, modes, cache.split("train"), 3).batch(3, 5, 7)
    for name, value in vars(first).items():
        assert torch.equal(value, getattr(again, name)), name
    assert not torch.equal(first.frames, sampler.batch(3, 5, 8).frames)
    assert not torch.equal(first.frames, sampler.batch(3, 6, 7).frames)
    assert first.frames.dtype == torch.uint8  # as bytes to where it is learned from
    assert torch.equal(first.on("cpu").frames, first.frames.float() / 255)
    shapes = {name: tuple(value.shape) for name, value in vars(first).items()}
    stills = int((first.real == 0).sum())
    assert shapes == {
        "frames": (3, 4, 3, SIZE, SIZE), "landmarks": (3, 4, LANDMARKS, 2), "latents": (3, 4, LATENT),
        "mouth": (3, 4), "eyes": (3, 4), "target_mouth": (3, 3, 4), "target_eyes": (3, 3, 4), "inside": (3, 3, 72, 72),
        "lids": (3, 3, 36, 72), "matte": (3, 1, MATTE, MATTE), "real": (3,),
        "driver": (stills, 4, 3, SIZE, SIZE), "driver_mouth": (stills, 4), "driver_eyes": (stills, 4),
        "painted_mouth": (stills, 3, 3, 72, 72), "painted_eyes": (stills, 3, 3, 36, 72),
        "behind": (stills, INSIDE, INSIDE), "held": (3, 4, INSIDE, INSIDE), "shut": (3, 6, *LIDS),
    }  # fmt: skip
    assert 0 <= first.on("cpu").frames.min() < first.on("cpu").frames.max() <= 1


def test_lids_cover_what_was_open():
    box = np.array([0.1, 0.3, 0.8, 0.4], np.float32)

    def eyes(opening: float, turned: float = 0.0) -> np.ndarray:
        points = np.zeros((LANDMARKS, 3), np.float32)
        for outline, middle in zip(EYE_OUTLINES, (0.3, 0.7), strict=True):
            around = np.linspace(0, 2 * np.pi, 16, endpoint=False)
            points[outline, 0], points[outline, 1] = middle - 0.1 * np.cos(around), 0.5 + opening * np.sin(around)
        return points + np.array([turned, 0, 0], np.float32)

    def area(opening: float, turned: float = 0.0) -> float:
        mask = closed_lids(eyes(0.05), eyes(opening, turned), box + np.array([turned, 0, 0, 0]))
        return mask.mean() * box[2] * box[3]

    whole = 2 * np.pi * 0.1 * 0.05
    assert area(0.05) == area(0.04) == area(0.08) == 0  # open, a little less, wider
    assert area(0.0) == pytest.approx(whole, rel=0.25)  # the raster takes in the border
    assert area(0.0, turned=0.05) == area(0.0)  # the head's motion is no lid's
    assert 0.2 * whole < area(0.025) < 0.7 * whole


def test_frames_landmarks_and_latents_of_a_draw_belong_together(cache, modes):
    clip = cache.split("train")[0]
    part = Sampler(cache, modes, [clip], 5, augment=False).draw(clip, np.random.default_rng(0))
    landmarks = cache.landmarks_of(clip)
    latents = modes.latents(landmarks)
    latents[:, POSE:] -= latents[:, POSE:].mean(0)
    for frame, points, latent, mouth in zip(
        part["frames"], part["landmarks"], part["latents"], part["mouth"], strict=True
    ):
        at = int(np.abs(landmarks[..., :2] - points).sum((1, 2)).argmin())
        assert np.array_equal(points, landmarks[at, :, :2])
        assert np.array_equal(frame, cache.frames[clip["start"] + at])
        assert np.allclose(latent, latents[at], atol=1e-5)
        corners = points[[61, 291]].mean(0)
        assert (mouth[:2] < corners).all()
        assert (corners < mouth[:2] + mouth[2:]).all()
    assert np.allclose(part["mouth"][:, 2:], part["mouth"][0, 2:])  # all are judged in windows of one size
    assert part["real"] == 1


@pytest.mark.parametrize("plain", [True, False])
def test_frames_in_front_of_plain_walls_sway_each_by_itself(cache, modes, plain, monkeypatch):
    clip = cache.split("train")[0]
    monkeypatch.setattr(batches, "PLAIN", (clip["source"],) if plain else ())
    landmarks = cache.landmarks.copy()
    landmarks[clip["start"] : clip["start"] + clip["count"]] = landmarks[clip["start"]]  # who does not move
    part = Sampler(replace(cache, landmarks=landmarks), modes, [clip], 5).draw(clip, np.random.default_rng(3))
    leant = np.abs(part["landmarks"][1:] - part["landmarks"][0]).max((1, 2))
    assert (leant > 0.01).all() if plain else (leant == 0).all()
    assert np.abs(part["latents"][:, POSE:] - part["latents"][0, POSE:]).max() < 0.05  # in their faces nothing moves


def test_worse_cameras_show_the_same():
    torch.manual_seed(0)
    frames = torch.nn.functional.interpolate(torch.rand(8, 3, 8, 8), 64, mode="bilinear")[:, None].repeat(1, 2, 1, 1, 1)
    before = frames.clone()
    worn = stage1.worn(frames)
    assert worn.shape == frames.shape and worn.min() >= 0 and worn.max() <= 1
    assert 0.001 < (worn - frames).abs().mean() < 0.05
    assert frames.equal(before)


def test_a_still_borrows_motion_and_is_judged_by_landmarks_and_what_is_painted(cache, modes):
    clips = cache.split("train")
    still = next(clip for clip in clips if clip["source"] == "portraits")
    sampler = Sampler(cache, modes, clips, 3, augment=False)
    part = sampler.draw(still, np.random.default_rng(0))
    assert part["real"] == 0
    assert (part["frames"] == cache.frames[still["start"]]).all()
    assert np.allclose(part["landmarks"][0], cache.landmarks_of(still)[0, :, :2], atol=1e-5)
    assert np.abs(part["landmarks"][1:] - part["landmarks"][0]).max() > 0.01
    own, motion = cache.landmarks_of(still)[0], cache.landmarks_of(clips[0])
    moved, carried = borrow(own, motion, modes.canonical)
    before, after = modes.latents(motion), modes.latents(moved)
    # it moves as the clip does, from where the still is
    assert np.allclose(after[:, 3:POSE] - after[0, 3:POSE], before[:, 3:POSE] - before[0, 3:POSE], atol=0.02)
    assert np.allclose(after[:, POSE:] - after[0, POSE:], before[:, POSE:] - before[0, POSE:], atol=0.05)
    face = modes.latents(carried)[:, POSE:]  # its head moves likewise, but nothing in its face
    assert np.allclose(face, face[0], atol=0.02)
    batch = collate([part]).on("cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        terms = stage1.losses(Renderer(), batch, torch.tensor([False]), None)
    assert terms["picture"] == 0
    named = ("landmarks", "mouth", "eyes", "mouth_gradient", "share")
    assert min(terms[name] for name in named) > 0


def test_lips_that_meet_show_nothing_between_them(cache, modes):
    """What covers the line of lips that meet, and met in the portrait, counts; where they are or were apart, not."""
    sampler = Sampler(cache, modes, cache.split("train"), 12, augment=False)
    batch = collate([sampler.draw(cache.clips[0], np.random.default_rng(0))]).on("cpu")
    torch.manual_seed(0)
    model = Renderer()

    def lips(first: float, then: float) -> torch.Tensor:
        points = batch.landmarks.clone()
        points[:, :, LIP_PAIRS[1]] = points[:, :, LIP_PAIRS[0]]
        points[:, :1, LIP_PAIRS[1], 1] += first
        points[:, 1:, LIP_PAIRS[1], 1] += then
        return points

    def asked(landmarks: torch.Tensor, cover: float) -> float:
        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr(Motion, "trace", lambda _, p: (p, torch.zeros(*p.shape[:2], 3),
                                                         torch.full((*p.shape[:2], 1), cover)))  # fmt: skip
            again = replace(batch, landmarks=landmarks)
            return float(stage1.losses(model, again, torch.tensor([False]), None)["touch"])

    assert asked(lips(0, 0), 0.0) == 0
    assert asked(lips(0, 0), 1.0) == pytest.approx(1)
    assert asked(lips(0, 0), 0.2) == pytest.approx(0.04)
    assert asked(lips(0, 0.05), 1.0) == 0
    assert asked(lips(0.05, 0), 1.0) == 0


def test_a_painted_still_at_rest_is_that_still(cache, modes):
    still = next(clip for clip in cache.split("train") if clip["source"] == "portraits")
    frame, landmarks = cache.frames[still["start"]], cache.landmarks_of(still)[0]
    keypoints = keypoints_of(landmarks)
    mouth, eyes = (np.stack([box(keypoints)] * 2) for box in (mouth_box, eyes_box))
    twice = np.stack([landmarks] * 2)
    painted = _painted(frame, twice, twice, mouth, eyes, mouth_place(frame, landmarks, mouth[0], sharp=True))
    whole = torch.from_numpy(frame.copy()).permute(2, 0, 1)[None].float() / 255
    for name, box, raster in (("mouth", mouth, (MOUTH_RASTER, MOUTH_RASTER)), ("eyes", eyes, EYES_RASTER)):
        shown = stage1.crop(whole, torch.from_numpy(box[:1]).float(), *raster)[0].permute(1, 2, 0).numpy()
        assert np.abs(painted[f"painted_{name}"][0] - shown).mean() < 0.004


def test_a_filmed_still_at_rest_is_that_still(cache, modes):
    still = next(clip for clip in cache.split("train") if clip["source"] == "portraits")
    frame, matte = cache.frames[still["start"]], cache.mattes[still["start"]]
    twice = cache.landmarks_of(still).repeat(2, 0)
    clip = filming.film(np.array(frame), np.array(matte), twice, twice)
    assert clip.frames.shape == (1, SIZE, SIZE, 3)
    assert np.abs(clip.frames[0].astype(int) - frame).mean() < 1.5
    # the person stands where they did; the matte given is coarse, and is drawn to the picture's edges
    assert np.abs(clip.mattes[0].astype(int) - matte).mean() < 12


def test_a_filmed_still_moves_in_front_of_what_is_behind_it(cache, modes):
    still = next(clip for clip in cache.split("train") if clip["source"] == "portraits")
    frame, matte = np.array(cache.frames[still["start"]]), np.array(cache.mattes[still["start"]])
    aside = cache.landmarks_of(still).repeat(2, 0)
    aside[1, :, 0] += 0.08
    clip = filming.film(frame, matte, aside, aside)
    moved, shift = clip.frames[0].astype(int), round(0.08 * SIZE)
    person = cv2.resize(matte, (SIZE, SIZE)) > 250
    inner = cv2.erode(person.astype(np.uint8), np.ones((25, 25))) > 0
    assert np.abs(moved[:, shift:] - frame[:, :-shift])[inner[:, :-shift]].mean() < 3
    outside = cv2.dilate(person.astype(np.uint8), np.ones((61, 61))) == 0
    assert np.abs(moved - frame)[outside].mean() < 1
    assert np.array_equal(clip.landmarks, aside[1:])


def test_films_of_stills_join_the_cache(cache_folder, tmp_path):
    folder = Path(shutil.copytree(cache_folder, tmp_path / "cache"))
    before = Cache.open(folder)
    assert filming.film_stills(folder, each=2, frames=3) == 2
    after = Cache.open(folder)
    made = [clip for clip in after.clips if clip["source"] == filming.SOURCE]
    assert [clip["count"] for clip in made] == [3, 3]
    assert len(after.landmarks) == len(after.frames) == len(after.mattes) == len(before.landmarks) + 6
    assert np.array_equal(after.frames[: len(before.frames)], before.frames)
    one, other = (after.frames[clip["start"] : clip["start"] + 3] for clip in made)
    assert not np.array_equal(one, other)
    faces = after.landmarks_of(made[0])
    assert np.abs(faces - before.landmarks_of(before.clips[3])).max() > 0.01
    batch = Sampler(after, fit_modes([film(8, 0)], stage1.EXPRESSIONS), made, 2).batch(2, 0, 0).on("cpu")
    assert (batch.real == 1).all()  # film like any other
    assert "audio" not in made[0] or made[0]["frames_at"] == [0, 1, 2]


def test_a_film_is_the_same_for_a_seed(cache, modes):
    still = next(clip for clip in cache.split("train") if clip["source"] == "portraits")
    one, again, other = (filming.shoot(cache, modes, still, 2, seed) for seed in (1, 1, 2))
    assert np.array_equal(one.frames, again.frames)
    assert not np.array_equal(one.landmarks, other.landmarks)


@given(st.tuples(*[st.floats(-0.5, 0.5)] * 3), st.floats(0.5, 2))
@settings(max_examples=20, deadline=None)
def test_a_borrowed_head_is_turned_further(modes, angles, widely):
    """The head turns by as much as is asked for beyond the donor's motion."""
    own, motion = film(1, 3)[0], film(2, 4)
    plain, _ = borrow(own, motion, modes.canonical)
    turned, carried = borrow(own, motion, modes.canonical, widely, np.array([(0, 0, 0), angles]))
    head, before = (rigid_fit(points[:, STABLE], modes.canonical[STABLE])[1] for points in (carried, plain))
    further = rigid_fit(carried[1:, STABLE], borrow(own, motion, modes.canonical)[1][1, STABLE])[1][0]
    assert np.allclose(further, turn(*angles), atol=0.03)
    assert np.allclose(head[0], before[0], atol=0.03)
    assert np.allclose(turned[0], own, atol=1e-4)


def test_a_tier_is_all_that_a_cache_is_made_of(tmp_path):
    (tmp_path / "manifest.csv").write_text(
        "path,source,tier\na.mp4,grid,clean\nb.mp4,lrc_ar,research\nc.jpg,portraits,clean\nd.flac,voice,clean\n"
    )
    assert [row["path"] for row in prepare.read_manifest(tmp_path, "clean")] == ["a.mp4", "c.jpg"]
    assert [row["path"] for row in prepare.read_manifest(tmp_path)] == ["a.mp4", "b.mp4", "c.jpg"]


def test_a_cache_is_joined_of_parts_some_of_them_empty(tmp_path):
    (tmp_path / "modes.npz").touch()  # of what was prepared there before
    for part, count in enumerate((2, 0, 1)):
        for name, side in (("frames", SIZE * SIZE * 3), ("mattes", MATTE * MATTE)):
            (tmp_path / f"{name}_{part}.u8").write_bytes(bytes([part]) * side * count)
        np.save(tmp_path / f"landmarks_{part}.npy", np.full((count, LANDMARKS, 3), part, np.float32))
        index = [{"path": f"{part}.mp4", "split": "train", "start": 0, "count": count}] * (count > 0)
        (tmp_path / f"index_{part}.json").write_text(json.dumps(index))
    prepare.join_parts(tmp_path, 3)
    cache = Cache.open(tmp_path)
    assert [(clip["start"], clip["count"]) for clip in cache.clips] == [(0, 2), (2, 1)]
    assert cache.landmarks[:, 0, 0].tolist() == cache.frames[:, 0, 0, 0].tolist() == [0, 0, 2]
    assert {path.name for path in tmp_path.iterdir()} == {"frames.u8", "mattes.u8", "landmarks.npy", "index.json"}


def test_half_precision_only_where_the_processor_has_it(monkeypatch):
    for able in (False, True):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda able=able: able)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        with precision.half("cpu"):
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == (torch.bfloat16 if able else torch.float32)


def test_a_still_is_driven_by_what_the_encoder_sees_of_another(cache, modes):
    clips = cache.split("train")
    still = next(clip for clip in clips if clip["source"] == "portraits")
    batch = collate([Sampler(cache, modes, clips, 3).draw(still, np.random.default_rng(0))]).on("cpu")
    resting = replace(batch, driver=batch.driver[:, :1].expand_as(batch.driver))
    torch.manual_seed(0)
    model = Renderer()
    with torch.no_grad():
        moved, rested, again = (
            stage1.losses(model, b, torch.tensor([False]), None, train_encoder=False)["landmarks"]
            for b in (batch, resting, batch)
        )
    assert moved == again
    assert moved != rested  # the driver's frames are what moves it


def test_a_folder_that_is_no_cache_is_refused(tmp_path):
    with pytest.raises(InputError, match="ifmdm train prepare"):
        Cache.open(tmp_path)
    with pytest.raises(InputError, match="ifmdm train latents"):
        stage2.Corpus.open(tmp_path)


# --- stage 1


class Ticks:
    """Stands in for the clock: a second passes at every look."""

    def __init__(self) -> None:
        self.now = 0

    def monotonic(self) -> int:
        self.now += 1
        return self.now


def arguments(module, monkeypatch, *flags: object) -> argparse.Namespace:
    monkeypatch.setattr(module, "time", Ticks(), raising=False)
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return parser.parse_args([str(flag) for flag in (*flags, "--device", "cpu")])


def checkpoint(run: Path) -> dict:
    return torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)


def same_state(a, b) -> bool:
    """Whether two checkpoints hold the same numbers to the last bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_state(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same_state(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def train_renderer(cache_folder: Path, run: Path, *flags: object) -> list[tuple]:
    """Four steps of stage 1, checked by a stand-in; returns what that was given each time."""
    checks = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage1, "validate", lambda *given: checks.append(given) or {"mouth_ratio": 1.0})
        torch.manual_seed(3)
        common = ("--cache", cache_folder, "--run", run, "--steps", 4, "--batch", 1, "--targets", 1)
        assert stage1.run(arguments(stage1, patch, *common, *flags)) == 0
    return checks


@pytest.fixture(scope="module")
def renderer_run(cache_folder, modes, tmp_path_factory) -> Path:
    """A short run of stage 1, from its first step to its last."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("renderer")
    train_renderer(cache_folder, folder)
    torch.set_num_threads(before)
    return folder


def test_stage1_goes_on_exactly_where_it_stopped(cache_folder, renderer_run, tmp_path, capsys):
    checks = train_renderer(cache_folder, tmp_path, "--minutes", 2.5 / 60)  # by the stand-in clock: two steps
    halfway = checkpoint(tmp_path)
    assert halfway["step"] == 2
    checks += train_renderer(cache_folder, tmp_path)
    assert "resumed at step 2" in capsys.readouterr().out
    whole, resumed = checkpoint(renderer_run), checkpoint(tmp_path)
    assert whole["step"] == 4
    assert set(whole) == {"model", "optimiser", "average", "step"}
    assert same_state(whole, resumed)
    assert not same_state(whole["model"], halfway["model"])
    assert len(checks) == 2
    logged = [json.loads(line) for line in (tmp_path / "held_out.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged] == [2, 4]


def test_a_run_of_stage1_can_start_from_the_weights_that_ship(cache_folder, modes, tmp_path, capsys):
    with pytest.raises(InputError, match="--start 1 or later"):  # landmarks would undo what the encoder knows
        train_renderer(cache_folder, tmp_path, "--from", WEIGHTS["research"])
    begin = ("--from", WEIGHTS["research"], "--start", 1)
    train_renderer(cache_folder, tmp_path, *begin, "--minutes", 1.5 / 60)
    assert capsys.readouterr().out.count("started from") == 1
    trained, shipped = checkpoint(tmp_path), load_file(WEIGHTS["research"] / "weights.safetensors")
    assert trained["step"] == 2  # a small one, since the rate warms up
    for part in ("model", "average"):
        fitting = [n for n, v in trained[part].items() if shipped.get(f"renderer.{n}", torch.empty(0)).shape == v.shape]
        assert len(fitting) > 50
        for name in fitting:
            assert torch.allclose(trained[part][name], shipped[f"renderer.{name}"].float(), atol=1e-3)
    with pytest.raises(InputError, match="this run has begun"):
        train_renderer(cache_folder, tmp_path, *begin)


@pytest.mark.parametrize("part", ["encoder", "portrait"])
def test_what_is_kept_stays_what_its_average_was(part, cache_folder, renderer_run, tmp_path):
    """It is the average that ships, and that latents were read with."""
    shutil.copy(renderer_run / "checkpoint.pt", tmp_path)
    before = checkpoint(tmp_path)["average"]
    train_renderer(cache_folder, tmp_path, "--steps", 6, f"--keep-{part}")
    after = checkpoint(tmp_path)
    assert after["step"] == 6
    kept = [name for name in before if name.startswith(part)]
    assert all(torch.equal(after["average"][name], before[name]) for name in kept)
    assert all(torch.equal(after["model"][name], before[name]) for name in kept)
    assert not same_state(after["average"], before)


def test_a_batch_of_stills_alone_tells_the_adversary_nothing(cache, modes):
    sampler = Sampler(cache, modes, cache.split("train"), 1)
    still = next(clip for clip in sampler.clips if clip["count"] == 1)
    batch = collate([sampler.draw(still, np.random.default_rng(0))]).on("cpu")
    terms = stage1.losses(Renderer(), batch, torch.tensor([False]), None, True, Discriminator())
    assert all(torch.isfinite(value) for value in terms.values())
    assert "adversary" not in terms


def test_what_was_learned_is_read_from_runs_and_weights(renderer_run, latents_folder, tmp_path):
    run, shipped = load_renderer(renderer_run), load_renderer(WEIGHTS["research"])
    assert same_state(dict(run.state_dict()), checkpoint(renderer_run)["average"])
    stored = load_file(WEIGHTS["research"] / "weights.safetensors")
    assert all(torch.equal(value, stored[f"renderer.{n}"].float()) for n, value in shipped.state_dict().items())
    assert np.array_equal(stage2.Normaliser.load(WEIGHTS["research"]).within, stored["runtime.within"].numpy())
    for load in (load_renderer, stage2.Normaliser.load, lambda at: stage2.load_motion(at, MotionShape())):
        with pytest.raises(InputError, match=str(tmp_path)):
            load(tmp_path)
    with pytest.raises(InputError, match="no speech there of this shape"):
        stage2.load_speech(renderer_run, MotionShape())


def test_a_run_may_begin_with_another(renderer_run, cache_folder, tmp_path):
    train_renderer(cache_folder, tmp_path, "--from", renderer_run, "--start", 1, "--minutes", 1.5 / 60)
    begun, before = checkpoint(tmp_path)["average"], checkpoint(renderer_run)["average"]
    assert all(torch.allclose(begun[name], value, atol=1e-3) for name, value in before.items())


def test_without_clips_to_learn_from_or_judge_by_nothing_is_begun(cache, latents_folder):
    alone = replace(cache, clips=[clip for clip in cache.clips if clip["split"] == "train"])
    assert alone.split("train")
    with pytest.raises(InputError, match="nothing of val"):
        alone.split("val")
    corpus = stage2.Corpus.open(latents_folder)
    with pytest.raises(InputError, match="no clip of val"):
        replace(corpus, clips=corpus.split("train")).split("val")


def test_where_mouths_and_eyes_are_is_learned_apart(cache_folder, modes, renderer_run, tmp_path, monkeypatch):
    shutil.copy(renderer_run / "checkpoint.pt", tmp_path)
    before = checkpoint(tmp_path)
    flags = ("--cache", cache_folder, "--run", tmp_path, "--batch", 2, "--steps", 2)
    for parts in (("lips",), place.PARTS):
        assert place.run(arguments(place, monkeypatch, *flags, "--parts", *parts)) == 0
        after = checkpoint(tmp_path)
        assert after["step"] == before["step"]
        for part in ("model", "average"):
            changed = {name for name, value in after[part].items() if not torch.equal(value, before[part][name])}
            assert {name.split(".")[1] for name in changed} == set(parts)
    train_renderer(cache_folder, tmp_path, "--steps", 5)  # stage 1 goes on from there, and leaves it alone
    last = checkpoint(tmp_path)
    assert last["step"] == 5
    kept = [name for name in last["model"] if name.startswith(tuple(f"portrait.{part}." for part in place.PARTS))]
    assert kept and all(torch.equal(last["model"][name], after["model"][name]) for name in kept)


def test_gauges_are_learned_apart(cache_folder, modes, renderer_run, tmp_path, monkeypatch, capsys):
    shutil.copy(renderer_run / "checkpoint.pt", tmp_path)
    before = checkpoint(tmp_path)
    flags = ("--cache", cache_folder, "--run", tmp_path, "--batch", 8, "--steps", 3)
    assert gauges.run(arguments(gauges, monkeypatch, *flags)) == 0
    assert "held-out correlation lips" in capsys.readouterr().out
    after = checkpoint(tmp_path)
    for part in ("model", "average"):
        changed = {name for name, value in after[part].items() if not torch.equal(value, before[part][name])}
        assert changed and all(name.startswith("coefficients.gauges.") for name in changed)
    assert all(torch.equal(after["model"][name], after["average"][name]) for name in changed)
    train_renderer(cache_folder, tmp_path, "--steps", 5)
    last = checkpoint(tmp_path)["model"]
    assert all(torch.equal(last[name], after["model"][name]) for name in changed)


def test_gauges_learn_what_landmarks_say():
    """Latents that hold the opening of lips and eyes, plainly: the gauges find it, and differences are what counts."""
    rng = np.random.default_rng(0)
    eyes, gaps = rng.uniform(0.02, 0.3, 600), rng.uniform(0, 0.1, 600)
    latents = torch.from_numpy(np.stack([eyes * 4 - 0.6, gaps * 12, rng.normal(size=600)], 1).astype(np.float32))
    pairs = gauges.Pairs([np.arange(i, i + 20) for i in range(0, 600, 20)], latents, gaps, eyes)
    torch.manual_seed(0)
    pupil = Gauges(3)
    learn = torch.optim.Adam(pupil.parameters(), 1e-2)
    for step in range(300):
        loss = gauges.lesson(pupil, *pairs.batch(64, 0, step)).sum()
        learn.zero_grad()
        loss.backward()
        learn.step()
    one, other, *right = pairs.batch(400, 1, 0)
    said = pupil(one).detach(), pupil(other).detach()
    assert torch.equal(gauges.change(said[0], said[0]), torch.zeros_like(said[0]))
    told, right = (gauges.change(*both).clamp(-0.2, 1) for both in (said, right))
    assert np.corrcoef(told[:, 0], right[:, 0])[0, 1] > 0.95
    assert np.corrcoef(told[:, 1], right[:, 1])[0, 1] > 0.9


def test_what_landmarks_say_of_lips_and_eyes_is_in_the_box_own_measure():
    points = np.zeros((2, LANDMARKS, 3), np.float32)
    points[:, [33, 133, 362, 263], :2] = [[0.35, 0.4], [0.45, 0.4], [0.55, 0.4], [0.65, 0.4]]
    points[:, [61, 291], :2] = [[0.42, 0.6], [0.58, 0.6]]
    points[1, list(LIP_PAIRS[1]), 1] = 0.042  # the lower lip, a tenth of the box's side lower
    apart, eyes = gauges.measure(points)
    assert apart == pytest.approx([0, 0.042 / (MOUTH_SIDE * 0.2)], abs=1e-4)
    assert eyes.shape == (2,)


def test_sources_are_picked_as_they_weigh_and_their_clips_evenly():
    clips = [{"source": source, "number": number} for source in ("lrc_ar", "grid") for number in range(3)]
    picked = pick(clips, 6000, np.random.default_rng(0))
    shares = {source: np.mean([clip["source"] == source for clip in picked]) for source in ("lrc_ar", "grid")}
    assert shares["lrc_ar"] / shares["grid"] == pytest.approx(SOURCE_WEIGHT["lrc_ar"] / SOURCE_WEIGHT["grid"], rel=0.1)
    counts = np.bincount([clip["number"] for clip in picked])
    assert counts.min() > 0.9 * counts.max()


def test_faces_are_drawn_alike_for_the_same_seed_and_step(cache, modes):
    faces = place.Faces(cache, modes, cache.split("train"))
    first, again, other = faces.batch(4, 1, 2), faces.batch(4, 1, 2), faces.batch(4, 1, 3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    mouths, places, lips, eyes, sights = first
    assert mouths.shape == (4, 3, MOUTH, MOUTH) and places.shape == (4, 9) and lips.shape == (4, 10)
    assert eyes.shape == (4, 3, *EYES) and sights.shape == (4, 2, 10)
    assert all(crops.min() >= 0 and crops.max() <= 1 for crops in (mouths, eyes))
    assert (sights[:, 0, 0] < sights[:, 1, 0]).all()  # that on the left of the picture comes first
    networks = place.Places()
    assert networks.off(*first).min() > 0
    networks.place.forward, networks.sight.forward = lambda _: places, lambda _: sights
    networks.lips.forward = lambda _: lips
    assert torch.equal(networks.off(*first), torch.zeros(29))


def test_the_encoders_lessons_fit_between_stretches_of_stage1(cache_folder, modes, renderer_run, tmp_path, monkeypatch):
    monkeypatch.setattr(stage1, "validate", lambda *_: {})
    shutil.copy(renderer_run / "checkpoint.pt", tmp_path)
    before = checkpoint(tmp_path)
    flags = ("--cache", cache_folder, "--run", tmp_path, "--batch", 1)
    assert encoder.run(arguments(encoder, monkeypatch, *flags, "--steps", 2)) == 0
    after = checkpoint(tmp_path)
    assert after["step"] == before["step"]
    for part in ("model", "average"):
        changed = {name for name, value in after[part].items() if not torch.equal(value, before[part][name])}
        assert changed
        assert all(name.startswith("encoder.") for name in changed)
    assert stage1.run(arguments(stage1, monkeypatch, *flags, "--steps", 5, "--targets", 1)) == 0
    assert checkpoint(tmp_path)["step"] == 5


def test_watched_distances_do_not_depend_on_size_or_place():
    points = torch.from_numpy(film(3, 0)[..., :2])
    seen = encoder.distances(points)
    assert seen.shape == (3, 4)
    assert (seen > 0).all()
    assert torch.allclose(encoder.distances(points * 0.7 + 0.1), seen, atol=1e-4)
    opened = points.clone()
    opened[:, 14] += 2 * (points[:, 14] - points[:, 13])
    assert (encoder.distances(opened)[:, 0] > seen[:, 0]).all()
    assert torch.equal(encoder.distances(opened)[:, 1:], seen[:, 1:])


def test_validation_of_a_renderer_that_does_nothing_is_copying(cache, modes, tmp_path):
    sampler = Sampler(cache, modes, cache.split("val"), 2, augment=False, stills=False)
    clips = stage1.spread(cache.split("val"), 2)
    assert len(clips) == 2
    torch.manual_seed(0)
    model = Renderer()
    for parameter in model.coefficients.parameters():  # and so of its gauges
        torch.nn.init.zeros_(parameter)
    sheet = tmp_path / "sheet.png"
    figures = stage1.validate(model, sampler, clips, sheet)
    assert figures == pytest.approx({"face_ratio": 1, "mouth_ratio": 1, "eyes_ratio": 1}, abs=1e-3)
    assert cv2.imread(str(sheet)).shape == (192, 2 * 5 * 192, 3)


def test_the_schedule_lets_go_of_landmarks():
    schedule = stage1.Schedule(1000, 1000)
    steps = range(0, 1001, 10)
    for course in (schedule.teacher, schedule.landmarks):
        values = [course(step) for step in steps]
        assert values[0] == 1
        assert values[-1] == 0
        assert values == sorted(values, reverse=True)
    assert schedule.learning_rate(0) < schedule.learning_rate(99) > schedule.learning_rate(999) > 0
    assert [schedule.frozen(step) for step in (0, 649, 650, 999)] == [False, False, True, True]


# --- stage 2


@pytest.fixture(scope="module")
def latents_folder(tmp_path_factory, cache) -> Path:
    """Latents whose first number is the frame's index; voices that differ from frame to frame."""
    folder = tmp_path_factory.mktemp("latents")
    rng = np.random.default_rng(0)
    clips, latents, sounds = [], [], []
    for number, entry in enumerate(cache.clips):
        count = (60, 24, 45, 30, 40, 50, 22)[number]
        z = rng.normal(0, 0.3, (count, LATENT)) + rng.normal(0, 0.5, LATENT)
        z[:, 0] = np.arange(count)
        loud = np.repeat(rng.uniform(0.02, 0.5, count), LATENT_HOP)
        sound = (rng.standard_normal(count * LATENT_HOP) * loud)[: count * LATENT_HOP - 100 * (number % 3)]
        keep = {k: entry[k] for k in ("path", "source", "split")} | {"identity": str(number)}
        clips.append(keep | {"start": sum(map(len, latents)), "count": count})
        clips[-1] |= {"audio_start": sum(map(len, sounds)), "audio_count": len(sound)}
        latents.append(z.astype(np.float32))
        sounds.append(sound.astype(np.float16))
    np.save(folder / "latents.npy", np.concatenate(latents))
    np.save(folder / "audio.npy", np.concatenate(sounds))
    care = np.concatenate([np.eye(LATENT), rng.normal(0, 0.1, (LATENT, 4))], 1)
    np.save(folder / "care.npy", care.astype(np.float32))
    (folder / "latents.json").write_text(json.dumps(clips))
    return folder


SMALL = partial(MotionShape, window=32, width=24, depth=1, heads=2)


def window_sampler(folder: Path) -> stage2.WindowSampler:
    corpus = stage2.Corpus.open(folder)
    clips = corpus.split("train")
    assert [clip["count"] for clip in clips] == [60, 24, 45, 30]
    care = np.load(folder / "care.npy")
    normaliser = stage2.Normaliser.fit(corpus, clips)
    return stage2.WindowSampler(corpus, clips, normaliser, SMALL(latent=LATENT), care=care)


def test_windows_hold_speech_beside_its_latents(latents_folder):
    sampler = window_sampler(latents_folder)
    corpus, within = sampler.corpus, sampler.normaliser.within
    heard = [LogMel().push(corpus.audio_of(clip)) for clip in sampler.clips]
    batch = sampler.batch(24, 0, 0, augmented=False)
    met = set()
    for latents, present, features, statistics in zip(
        batch.latents.numpy(), batch.present.numpy(), batch.features.numpy(), batch.statistics.numpy(), strict=True
    ):
        tokens = np.nonzero(present)[0]
        assert np.array_equal(tokens, np.arange(tokens[0], tokens[-1] + 1))
        assert (latents[present == 0] == 0).all()
        # which clip it is, by its statistics; which part of it, by the first number
        means = [corpus.latents_of(clip).mean(0) for clip in sampler.clips]
        told = statistics[:LATENT] * sampler.normaliser.total + sampler.normaliser.centre
        pick = int(np.abs(np.stack(means) - told).sum(1).argmin())
        whole = corpus.latents_of(sampler.clips[pick])
        shown = latents[tokens] * within + means[pick]
        start = round(float(shown[0, 0]))
        assert np.allclose(shown, whole[start : start + len(tokens)], atol=1e-3)
        assert len(tokens) == min(32, len(whole))
        assert features.shape == (64, BANDS)
        ours = features[2 * tokens[0] : 2 * tokens[-1] + 2]
        assert np.abs(ours - heard[pick][2 * start : 2 * (start + len(tokens))]).max() < 1e-3
        met.add(pick)
    assert met == {0, 1, 2, 3}
    count = batch.present.sum(1)
    assert (batch.prefix >= 0).all()
    assert (batch.prefix < count).all()


def test_the_same_seed_and_step_draw_the_same_windows(latents_folder):
    sampler = window_sampler(latents_folder)
    for augmented in (False, True):
        first, again, other = (sampler.batch(4, 1, step, augmented) for step in (2, 2, 3))
        assert all(torch.equal(value, getattr(again, name)) for name, value in vars(first).items())
        assert not torch.equal(first.features, other.features)
        assert all(torch.isfinite(value.float()).all() for value in vars(first).values())


def test_clips_are_told_another_mean_in_all_but_lips_and_lids(latents_folder):
    sampler = window_sampler(latents_folder)
    plain = sampler.batch(24, 0, 0, augmented=False)
    assert torch.equal(plain.statistics, plain.true)
    batch = sampler.batch(200, 0, 0)
    wrong, true = (x[:, :LATENT].numpy() * sampler.normaliser.total for x in (batch.statistics, batch.true))
    off = (wrong - true) / sampler.normaliser.within
    assert np.abs(off @ stage2.watched(np.load(latents_folder / "care.npy"))).max() < 1e-3
    assert 0.2 < np.abs(off).mean() < 2  # in deviations of all clips
    assert torch.equal(batch.statistics[:, LATENT:], batch.true[:, LATENT:])


def test_lips_are_learned_from_an_elder_and_the_rest_from_film(latents_folder):
    sampler = window_sampler(latents_folder)
    batch = sampler.batch(6, 0, 0, augmented=False)
    care = torch.from_numpy(np.load(latents_folder / "care.npy"))
    lips = torch.from_numpy(stage2.watched(care.numpy()))

    class Same:
        """An elder who says the same of everything."""

        watched = lips

        def __call__(self, mixed, *rest):
            assert torch.equal(rest[5], batch.true)
            return torch.full_like(mixed, 3.0)

    def loss(flow) -> float:
        def model(mixed, level, past, present, *_):
            true = (mixed - batch.latents) / level.clamp(min=1e-3)[..., None]
            return flow(true * (1 - past[..., None]))

        with torch.autocast("cpu", enabled=False):
            generator = torch.Generator().manual_seed(0)
            return float(stage2.flow_loss(model, batch, torch.zeros(6, 32, 256), generator, care, Same()))

    said = stage2.KEEP * lips @ lips.T
    assert loss(lambda true: true + (3.0 - true) @ said) < 1e-4 < loss(lambda true: true)
    assert loss(lambda true: torch.full_like(true, 3.0)) > 1e-2


@given(st.integers(0, 2**31), st.sampled_from([640, 15999, 16000, 64000]))
def test_augmented_speech_is_as_long_and_in_step(seed, count):
    rng = np.random.default_rng(seed)
    loud = np.repeat(rng.uniform(0.01, 0.1, count // 64 + 1), 64)[:count]
    audio = (rng.standard_normal(count) * loud).astype(np.float32)
    changed = microphones.augment(audio, rng)
    assert changed.shape == audio.shape and changed.dtype == np.float32 and np.isfinite(changed).all()
    if count >= 15999:  # never late: the voice as it came in is what it is most like
        middle = audio[100 : count - 100]
        slides = [np.corrcoef(middle, changed[100 + d : count - 100 + d])[0, 1] for d in range(-9, 10)]
        # at worst the voice is 14 dB quieter, in an echo, a line and noise at once, and a line smears it over samples
        assert abs(int(np.argmax(slides)) - 9) <= 1 and slides[9] > 0.05
    assert np.isfinite(microphones.augment(np.zeros(count, np.float32), rng)).all()


def test_lines_rooms_and_noise_are_what_they_say():
    rng = np.random.default_rng(0)
    audio = rng.standard_normal(32000).astype(np.float32)
    spectrum = np.abs(np.fft.rfft(microphones.filtered(audio, 300, 3400))) / np.abs(np.fft.rfft(audio))
    assert spectrum[2000] > 0.9 > 0.55 > spectrum[600] > 0.45 and spectrum[13600] < 0.07  # 0.5 Hz apart
    click = np.zeros(32000, np.float32)
    click[8000] = 1
    wet = microphones.echoing(click, rng)
    assert not wet[:8000].round(6).any() and wet.argmax() == 8000 and np.square(wet).sum() == pytest.approx(1, abs=1e-3)
    assert np.square(wet[8010:]).sum() > 0.05 and not wet[8000 + 11200 + 1 :].round(6).any()
    made = microphones.noise(32000, rng)
    assert np.square(made).mean() == pytest.approx(1, abs=0.01)


def test_warped_features_are_near():
    audio = np.random.default_rng(0).standard_normal(16000).astype(np.float32) * 0.1
    features = torch.from_numpy(LogMel().push(audio))[None]
    warped = stage2.warp_features(features, torch.Generator().manual_seed(0))
    assert warped.shape == features.shape
    assert 0 < (warped - features).abs().mean() < 0.5


def test_the_loss_sees_only_what_is_new(latents_folder):
    """A network that knows the flow of new tokens has no loss, whatever it says of the past and the absent."""
    batch = window_sampler(latents_folder).batch(6, 0, 0)
    care = torch.from_numpy(np.load(latents_folder / "care.npy"))

    def knowing(mixed, level, past, present, speech, hears, statistics, knows):
        assert ((past == 1) <= (present == 1)).all()
        assert (past.sum(1) == batch.prefix).all()
        assert (level[past == 1] == 0).all()
        flow = (mixed - batch.latents) / level.clamp(min=1e-3)[..., None]  # x + t (e - x) = mixed
        new = ((1 - past) * present)[..., None] > 0
        return torch.where(new, flow, torch.full_like(mixed, 9.0))

    def loss(model) -> float:
        with torch.autocast("cpu", enabled=False):
            speech = torch.zeros(6, 32, 256)
            return float(stage2.flow_loss(model, batch, speech, torch.Generator().manual_seed(0), care))

    assert loss(knowing) < 1e-4
    assert loss(lambda mixed, *_: torch.zeros_like(mixed)) > 0.5


def test_lips_of_a_reading_close_where_they_must():
    asked = np.array([1, 1, 0, 0, 1, 0.3, 1, 1, 0, 1, 1.0])
    given = readings.lips(asked)
    assert given.shape == asked.shape
    assert (given[asked == 0] <= readings.COARTICULATION + 1e-6).all()
    assert 0.6 < given[0] < 1.01
    assert given[1] < 1  # on their way already
    words = [readings.nonsense(np.random.default_rng(seed)) for seed in range(20)]
    assert len(set(words)) == 20
    assert words == [readings.nonsense(np.random.default_rng(seed)) for seed in range(20)]
    assert sum(text.count(letter) for text in words for letter in "pbm") > 100


def test_readings_are_read_alike_by_voices_that_judge_nothing():
    if espeak.library_file() is None:
        pytest.skip("espeak-ng is not installed (Debian: espeak-ng)")
    first, again = (list(readings.read(3, 5)) for _ in range(2))
    for one, two in zip(first, again, strict=True):
        assert np.array_equal(one.samples, two.samples)
        assert len(one.opening) == len(one.samples) // LATENT_HOP
        assert 0 <= one.opening.min() < 0.2 < 0.6 < one.opening.max() <= 1
    names = [f"{language}+m1" for language in readings.LANGUAGES] + [f"it+{speaker}" for speaker in readings.SPEAKERS]
    for name in names:
        assert len(synthesise(Voice("espeak-ng", name, name), "Bama.").phonemes) > 3, name
    judges = {voice.language for voice in VOICES} | {voice.name for voice in VOICES}
    assert not judges & set(readings.LANGUAGES)


def test_windows_that_were_read_have_the_readings_lips(latents_folder, monkeypatch):
    monkeypatch.setattr(stage2, "READ_SHARE", 0.5)
    monkeypatch.setattr(stage2, "SPEEDS", (1.0, 1.0))
    plain, care = window_sampler(latents_folder), np.load(latents_folder / "care.npy")
    opening = np.tile([0, 0, 1, 1, 1], 12).astype(np.float32)
    sound = np.repeat(0.01 + opening, LATENT_HOP) * np.random.default_rng(0).standard_normal(60 * LATENT_HOP)
    known = [readings.Reading(sound.astype(np.float32), opening)]
    sampler = stage2.WindowSampler(plain.corpus, plain.clips, plain.normaliser, plain.shape, known, care)
    assert (sampler.batch(8, 0, 0, augmented=False).read == 0).all()
    batch = sampler.batch(16, 0, 0)
    assert 3 < batch.read.sum() < 13
    for latents, present, features, read in zip(batch.latents, batch.present, batch.features, batch.read, strict=True):
        lips = (latents.numpy() @ care[:, LATENT])[present.numpy() > 0]
        loud = features.mean(1).view(-1, 2).mean(1).numpy()[present.numpy() > 0]
        if read and len(lips) > 12:
            assert np.corrcoef(lips, loud)[0, 1] > 0.8  # the sound is loud where they are open
    # only the lips' opening is learned from them
    batch = replace(batch, read=torch.ones(16))
    blind = torch.from_numpy(care.copy())
    blind[:, LATENT] = 0

    def loss(care: torch.Tensor) -> float:
        generator, speech = torch.Generator().manual_seed(0), torch.zeros(16, 32, 256)
        with torch.autocast("cpu", enabled=False):
            return float(stage2.flow_loss(lambda mixed, *_: 0 * mixed, batch, speech, generator, care))

    assert loss(blind) == 0 < loss(torch.from_numpy(care))


def speech_run(folder: Path) -> Path:
    """A run folder of a student that has learned nothing."""
    run = folder / "speech"
    if not run.is_dir():
        run.mkdir()
        torch.manual_seed(1)
        torch.save({"average": distil.Student(MotionShape()).state_dict(), "step": 0}, run / "checkpoint.pt")
    return run


def test_stage2_goes_on_exactly_where_it_stopped(latents_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stage2, "MotionShape", SMALL)
    monkeypatch.setattr(stage2, "held_out", lambda *_: {"loss": 0.5})

    def train(run: Path, *flags: object) -> None:
        torch.manual_seed(3)
        folders = ("--latents", latents_folder, "--speech", speech_run(tmp_path), "--run", run)
        assert stage2.run(arguments(stage2, monkeypatch, *folders, "--steps", 4, "--batch", 3, *flags)) == 0

    train(tmp_path / "whole")
    train(tmp_path / "parts", "--minutes", 2.5 / 60)
    halfway = checkpoint(tmp_path / "parts")
    assert halfway["step"] == 2
    train(tmp_path / "parts")
    assert "resumed at step 2" in capsys.readouterr().out
    whole, resumed = (checkpoint(tmp_path / name) for name in ("whole", "parts"))
    assert whole["step"] == 4
    assert set(whole) == {"model", "optimiser", "average", "step"}
    assert same_state(whole, resumed)
    assert not same_state(whole["model"], halfway["model"])


def test_a_run_of_stage2_can_start_from_weights(latents_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(stage2, "MotionShape", SMALL)
    monkeypatch.setattr(stage2, "held_out", lambda *_: {"loss": 0.5})
    torch.manual_seed(5)
    given = MotionTransformer(SMALL(latent=LATENT)).state_dict()
    save_file({f"motion.{name}": value.half() for name, value in given.items()}, tmp_path / "weights.safetensors")
    folders = ("--latents", latents_folder, "--speech", speech_run(tmp_path), "--run", tmp_path / "run")
    flags = ("--steps", 1, "--batch", 3, "--from", tmp_path)
    assert stage2.run(arguments(stage2, monkeypatch, *folders, *flags)) == 0
    for part in ("model", "average"):
        state = checkpoint(tmp_path / "run")[part]
        for name, value in given.items():
            assert torch.allclose(state[f"motion.{name}"], value, atol=1e-3)
    with pytest.raises(InputError, match="this run has begun"):
        stage2.run(arguments(stage2, monkeypatch, *folders, *flags))


def test_a_run_of_stage2_can_learn_from_an_elder(latents_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(stage2, "MotionShape", SMALL)
    monkeypatch.setattr(stage2, "held_out", lambda *_: {"loss": 0.5})
    torch.manual_seed(5)
    elder = stage2.Speaker(MotionTransformer(SMALL(latent=LATENT)), SpeechEncoder(256)).state_dict()
    save_file({name: value.half() for name, value in elder.items()}, tmp_path / "weights.safetensors")

    def train(run: str, *flags: object) -> dict:
        folders = ("--latents", latents_folder, "--speech", speech_run(tmp_path), "--run", tmp_path / run)
        assert stage2.run(arguments(stage2, monkeypatch, *folders, "--steps", 2, "--batch", 3, *flags)) == 0
        return checkpoint(tmp_path / run)["model"]

    assert not same_state(train("alone"), train("taught", "--elder", tmp_path))
    with pytest.raises(InputError, match="no motion there of this shape"):
        train("refused", "--elder", WEIGHTS["research"])


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_speech_encoder_learns_along_if_it_shall(share, latents_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(stage2, "MotionShape", SMALL)
    monkeypatch.setattr(stage2, "held_out", lambda *_: {"loss": 0.5})
    before = stage2.load_speech(speech_run(tmp_path), MotionShape()).state_dict()
    folders = ("--latents", latents_folder, "--speech", speech_run(tmp_path), "--run", tmp_path / "run")
    flags = ("--steps", 3, "--batch", 3, "--tune-speech", share)
    torch.manual_seed(3)
    assert stage2.run(arguments(stage2, monkeypatch, *folders, *flags)) == 0
    after = stage2.load_speech(tmp_path / "run", MotionShape()).state_dict()
    assert same_state(before, after) == (share == 0)
    state = checkpoint(tmp_path / "run")["average"]
    motion = stage2.load_motion(tmp_path / "run", SMALL(latent=LATENT))
    assert all(torch.equal(value, state[f"motion.{name}"]) for name, value in motion.state_dict().items())


def test_stage2_can_listen_with_the_speech_encoder_that_ships():
    encoder = stage2.load_speech(WEIGHTS["research"], MotionShape())
    shipped = load_file(WEIGHTS["research"] / "weights.safetensors")
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, shipped[f"speech.{name}"].float())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_held_out_figures(latents_folder):
    sampler = window_sampler(latents_folder)
    care = torch.from_numpy(np.load(latents_folder / "care.npy"))
    torch.manual_seed(0)
    figures = stage2.held_out(MotionTransformer(SMALL(latent=LATENT)), SpeechEncoder(256), sampler, care, "cpu")
    assert all(np.isfinite(value) for value in figures.values())
    assert figures["loss"] > 0.5
    assert abs(figures["lips_correlation"]) <= 1


def test_generating_a_window_keeps_its_first_latent():
    torch.manual_seed(0)
    model = MotionTransformer(SMALL(latent=LATENT)).eval()
    first = torch.randn(2, LATENT)
    made = stage2.generate(model, torch.zeros(2, 32, 256), first, torch.zeros(2, 2 * LATENT), guidance=2.0)
    assert made.shape == (2, 32, LATENT)
    assert torch.equal(made[:, 0], first)
    assert torch.isfinite(made).all()


# --- the speech encoder and its teacher


@given(st.integers(2, 100_000), st.floats(0.5, 2))
@settings(max_examples=200, deadline=None)
def test_any_track_is_played_at_any_speed(length, speed):
    played = stage2.at_speed(np.arange(length), speed)
    assert len(played) == len(np.arange(0, length - 1, speed))
    assert (np.diff(played) > 0).all()
    assert played[0] == 0
    assert played[-1] <= length - 1


def test_the_teacher_hears_sound_files_and_readings_without_any_film(tmp_path, monkeypatch):
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(np.full(1600, 1000, np.int16).tobytes())
    reading = readings.Reading(np.ones(800, np.float32), np.ones(1, np.float32))
    monkeypatch.setattr(teacher, "read", lambda count, seed: [reading] * count)
    args = argparse.Namespace(latents=None, readings=2, audio=[tmp_path])
    heard = list(teacher.pieces(args))
    assert [(split, source) for split, source, _ in heard] == [
        ("val", "readings"), ("train", "readings"), ("val", tmp_path.name),
    ]  # fmt: skip
    assert len(heard[2][2]) == pytest.approx(1600, abs=40)


def test_a_teacher_without_anything_to_hear_is_refused(tmp_path):
    parser = argparse.ArgumentParser()
    teacher.add_arguments(parser)
    with pytest.raises(InputError, match="nothing to hear"):
        teacher.run(parser.parse_args(["--output", str(tmp_path / "lessons")]))
    assert not (tmp_path / "lessons").exists()


def test_the_teacher_hears_pieces_with_pauses_between():
    rng = np.random.default_rng(0)
    lengths = [5.0, 12.0, 12.0, 70.0, 0.3, 2.0]
    parts = [("train", str(number), rng.normal(0, 0.1, int(16000 * s))) for number, s in enumerate(lengths)]
    parts.append(("train", "silent", np.zeros(16000 * 3)))
    groups = list(teacher.packed(iter(parts)))
    heard = {}
    for group in groups:
        assert sum(len(piece) for *_, piece in group) / 16000 + 0.5 * (len(group) + 1) <= 30
        for _, source, piece in group:
            assert len(piece) % LATENT_HOP == 0
            heard[source] = heard.get(source, 0) + len(piece) / 16000
    assert set(heard) == {"0", "1", "2", "3", "5"}  # too short, and nothing to hear
    assert all(abs(heard[str(number)] - lengths[number]) < 0.6 for number in (0, 1, 2, 3, 5))


def test_whisper_mel_is_that_of_a_tone():
    tone = np.sin(2 * np.pi * 1000 * np.arange(480_000) / 16_000).astype(np.float32)
    mel = teacher.whisper_mel(tone)
    assert mel.shape == (1, 80, 3000) and mel.dtype == np.float32
    # Slaney's scale puts 1 kHz at mel 15 of 45.245, so the band with its middle next to it is number 26
    assert mel[0, :, 1500].argmax() == 26
    assert mel.max() - mel.min() <= 2 + 1e-6  # 8 decades over 4


def test_speed_moves_time_and_pitch():
    track = np.arange(100, dtype=np.float32)
    assert np.allclose(stage2.at_speed(track, 1.25), np.arange(0, 99, 1.25))
    tone = np.sin(2 * np.pi * 400 * np.arange(16_000) / 16_000).astype(np.float32)
    faster = stage2.at_speed(tone, 1.1)
    spectrum = np.abs(np.fft.rfft(faster[:14_000]))
    assert spectrum.argmax() * 16_000 / 14_000 == pytest.approx(440, abs=2)


def lessons(folder: Path) -> Path:
    """Made-up lessons: what the teacher hears is the loudness of the moment."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    counts = [60, 45, 20, 13]
    loud = np.concatenate([np.repeat(rng.uniform(0.01, 0.3, count // 5 + 1), 5)[:count] for count in counts])
    audio = (rng.standard_normal(len(loud) * 640) * np.repeat(loud, 640)).astype(np.float16)
    features = (np.log(loud)[:, None] * rng.normal(size=(1, teacher.WIDTH))).astype(np.float16)
    np.save(folder / "audio.npy", audio)
    np.save(folder / "features.npy", features)
    starts = np.cumsum([0, *counts[:-1]]).tolist()
    clips = [
        {"split": split, "source": "made up", "speed": 1.0, "start": start, "count": count}
        for split, start, count in zip(("train", "train", "train", "val"), starts, counts, strict=True)
    ]
    (folder / "teacher.json").write_text(json.dumps(clips))
    return folder


def test_the_student_learns_and_goes_on_exactly_where_it_stopped(tmp_path, monkeypatch, capsys):
    folder = lessons(tmp_path / "lessons")

    def train(run: Path, steps: int, *flags: object) -> None:
        common = ("--teacher", folder, "--run", run, "--steps", steps, "--batch", 4)
        parser = argparse.ArgumentParser()
        distil.add_arguments(parser)
        assert distil.run(parser.parse_args([str(word) for word in (*common, *flags)])) == 0

    monkeypatch.setattr(distil, "understood", lambda *_: 0.5)
    train(tmp_path / "whole", 4)
    monkeypatch.setattr(distil, "time", SimpleNamespace(monotonic=itertools.count().__next__))
    train(tmp_path / "parts", 4, "--minutes", 3.5 / 60)
    monkeypatch.undo()
    halfway = checkpoint(tmp_path / "parts")
    assert 0 < halfway["step"] < 4
    train(tmp_path / "parts", 4)
    assert f"resumed at step {halfway['step']}" in capsys.readouterr().out
    whole, resumed = (checkpoint(tmp_path / name) for name in ("whole", "parts"))
    assert same_state(whole["model"], resumed["model"])
    train(tmp_path / "long", 60, "--rate", 4e-3)
    logged = [json.loads(line) for line in (tmp_path / "long" / "held_out.jsonl").read_text().splitlines()]
    assert logged[-1]["understood"] > 0.3


# --- export


def test_export_gathers_averaged_weights_and_what_the_runtime_must_know(
    latents_folder, cache_folder, cache, modes, tmp_path, monkeypatch
):
    renderer, motion = Renderer(), MotionTransformer(SMALL(latent=LATENT))
    for name, model, step in (("renderer", renderer, 7), ("motion", motion, 9)):
        (tmp_path / name).mkdir()
        prefix = "motion." if name == "motion" else ""
        right = {prefix + key: value for key, value in model.state_dict().items()}
        wrong = {key: torch.full_like(value, 5.0) for key, value in right.items()}
        torch.save({"average": right, "model": wrong, "step": step}, tmp_path / name / "checkpoint.pt")
    corpus = stage2.Corpus.open(latents_folder)
    clips = corpus.split("train")
    normaliser = stage2.Normaliser.fit(corpus, clips)
    np.savez(tmp_path / "motion" / "normaliser.npz", **vars(normaliser))
    monkeypatch.setattr(export, "MotionShape", SMALL)
    given = {}

    def keep(renderer, speech, motion, arrays, output, note, licence):
        given.update(renderer=renderer, speech=speech, motion=motion, arrays=arrays, note=note, licence=licence)
        output.mkdir()
        for name in (*FILES, "config.json"):
            (output / name).touch(0o600)

    monkeypatch.setattr(export, "export", keep)
    monkeypatch.setattr(export, "calibrate", lambda *_: normaliser.within)
    monkeypatch.setattr(export, "widen", lambda _, corpus, heads, mouths: heads * mouths * normaliser.within)
    written = {}
    monkeypatch.setattr(export, "write_array", lambda _, name, value: written.update({name: value}))
    parser = argparse.ArgumentParser()
    export.add_arguments(parser)
    flags = {"renderer": tmp_path / "renderer", "speech": speech_run(tmp_path), "motion": tmp_path / "motion",
             "latents": latents_folder, "cache": cache_folder, "output": tmp_path / "weights"}  # fmt: skip
    flags |= {"blinks": 2.2, "heads": 2, "mouths": 1.5}
    args = parser.parse_args([str(word) for name, value in flags.items() for word in (f"--{name}", value)])
    assert export.run(args) == 0
    assert given["note"] == {"renderer_steps": 7, "motion_steps": 9}
    assert given["licence"] == "not stated"
    for name, model in (("renderer", renderer), ("motion", motion)):
        assert same_state(dict(given[name].state_dict()), dict(model.state_dict()))
    assert np.array_equal(written["runtime.swing"], 3 * normaliser.within)
    arrays = given["arrays"]
    assert set(arrays) == {f"runtime.{name}" for name in RUNTIME_ARRAYS}
    assert arrays["runtime.blinks"] == pytest.approx([2.2])
    assert all(value.dtype == np.float32 and np.isfinite(value).all() for value in arrays.values())
    assert np.array_equal(arrays["runtime.within"], normaliser.within)
    assert arrays["runtime.degrees"].shape == (3, LATENT)
    # a clip's mean latent from any one of its frames: better than the mean of all clips
    mean_of = arrays["runtime.mean_from_portrait"]
    assert mean_of.shape == (LATENT + 1, LATENT)
    off, far = 0.0, 0.0
    for clip in clips:
        z = corpus.latents_of(clip)
        off += np.abs(np.append(z[5], 1.0) @ mean_of - z.mean(0))[1:].mean()
        far += np.abs(normaliser.centre - z.mean(0))[1:].mean()
    assert off < far
    # and a face unlike any on film keeps its own look
    strange = normaliser.centre + 20 * normaliser.within
    assert np.abs(np.append(strange, 1.0) @ mean_of - strange).mean() < 0.3 * np.abs(strange - normaliser.centre).mean()
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "weights").iterdir()} == {0o644}


def test_a_renderer_that_kept_its_encoder_is_exported_with_all_else_as_it_was(tmp_path, monkeypatch, capsys):
    shipped = load_file(WEIGHTS["research"] / "weights.safetensors")
    renderer, run = Renderer(), tmp_path / "renderer"
    run.mkdir()
    own = renderer.state_dict()
    kept = {n: shipped[f"renderer.{n}"].float() for n in own if n.startswith("encoder.")}
    torch.save({"average": own | kept, "step": 7}, run / "checkpoint.pt")
    given = {}

    def keep(renderer, speech, motion, arrays, output, note, licence):
        given.update(renderer=renderer, speech=speech, motion=motion, arrays=arrays, note=note, licence=licence)
        output.mkdir()
        for name in (*FILES, "config.json"):
            (output / name).touch()

    def asked(*flags: object) -> argparse.Namespace:
        parser = argparse.ArgumentParser()
        export.add_arguments(parser)
        return parser.parse_args([str(flag) for flag in ("--renderer", run, "--output", tmp_path / "weights", *flags)])

    monkeypatch.setattr(export, "export", keep)
    assert export.run(asked("--from", WEIGHTS["research"])) == 0
    assert "the gauges are other ones" in capsys.readouterr().out  # than those that `speaking` and `blink` were read by
    assert same_state(given["renderer"].state_dict(), own | kept)
    for part in ("motion", "speech"):
        for name, value in given[part].state_dict().items():
            assert torch.equal(value, shipped[f"{part}.{name}"].float())
    assert set(given["arrays"]) == {f"runtime.{name}" for name in RUNTIME_ARRAYS}
    assert all(np.array_equal(value, shipped[name].numpy()) for name, value in given["arrays"].items())
    assert given["note"]["renderer_steps"] == 7
    assert "non-commercial" in given["licence"]
    torch.save({"average": own, "step": 7}, run / "checkpoint.pt")
    with pytest.raises(InputError, match="its encoder is not the renderer's"):
        export.run(asked("--from", WEIGHTS["research"]))
    with pytest.raises(InputError, match="--speech is missing"):
        export.run(asked())
    older = tmp_path / "older"
    shutil.copytree(WEIGHTS["research"], older)
    some = {name: value for name, value in shipped.items() if name != "runtime.speaking"}
    save_file(some, older / "weights.safetensors")
    torch.save({"average": own | kept, "step": 7}, run / "checkpoint.pt")
    with pytest.raises(InputError, match="older: of an older version, without `speaking`"):
        export.run(asked("--from", older))


def test_a_blink_is_the_mean_of_those_in_film_along_the_lids_alone():
    """Clips whose eyes close move along a direction of the lids, and otherwise at random; one does not blink."""
    rng, within = np.random.default_rng(0), np.array([0.5, 1, 2, 1])
    lids = np.eye(4)[:2]
    clips = [np.concatenate([rng.normal(0, 1e-3, (9, 4)), [[far * 0.5, 0, 3, 0]]]) for far in (4.0, 5.0, 0.1)]
    blink = export.blink_of(clips, lambda latents: np.stack([latents[:, 0] * 0, latents[:, 0]], 1), lids, within)
    assert np.allclose(blink, [4.5 * 0.5, 0, 0, 0], atol=0.01)
    assert not export.blink_of(clips[2:], lambda latents: latents[:, :2] * 0, lids, within).any()


def test_lips_of_people_who_speak_are_as_far_apart_as_in_the_mean_of_people():
    clips = [("a", np.full((4, 3), 0.01)), ("a", np.full((9, 3), 0.03)), ("b", np.array([[0.0, 9, 9], [0.2, 9, 9]]))]
    assert export.speaking_of(clips, lambda latents: latents[:, :2]) == pytest.approx([(0.02 + 0.1) / 2])


def test_pose_directions_are_what_a_degree_does(cache_folder, cache, modes, latents_folder):
    corpus = stage2.Corpus.open(latents_folder)
    true = np.random.default_rng(0).normal(0, 0.1, (3, LATENT))
    latents = corpus.latents.copy()
    for clip, entry in zip(corpus.clips, cache.clips, strict=True):
        pose = np.degrees(modes.latents(cache.landmarks_of(entry))[:, :3] * POSE_UNIT[:3])
        at = [i for i in entry["frames_at"] if i < clip["count"]]
        latents[[clip["start"] + i for i in at]] = pose[: len(at)] @ true + 3
    poses = export.Poses.of(stage2.Corpus(latents, corpus.audio, corpus.clips), cache_folder)
    assert np.abs(poses.degrees - true).max() < 0.005
    turned = modes.latents(cache.landmarks_of(cache.clips[0]))[:, :3]
    told = np.degrees(turned * POSE_UNIT[:3]) @ true @ poses.reading[:, :3]
    assert np.abs((told - told.mean(0)) - (turned - turned.mean(0))).max() < 0.1 * np.ptp(turned, 0).max()


# --- heads that turn


@given(st.integers(0, 2**31), st.integers(30, 400))
def test_heads_keep_postures_and_nod_where_it_is_loud(seed, count):
    rng = np.random.default_rng(seed)
    loud = np.full(count, -60.0)
    beats = np.arange(12, count, 20)
    loud[beats] = 0.0
    assert np.array_equal(turning.stresses(loud), beats)
    assert len(turning.stresses(np.full(count, -60.0))) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turning, "LIVELY", 0.0)  # each as wide as another
        made = turning.poses(loud, rng)
    assert made.shape == (count, POSE) and np.abs(made.mean(0)).max() < 1e-9
    assert (np.abs(np.diff(made, axis=0)) < 2 * turning.POSTURES).all()  # no jump in 40 ms


def test_speech_moves_heads_more_than_silence_and_pitch_follows_it():
    def moves(loud: np.ndarray) -> np.ndarray:
        return np.array([turning.poses(loud, np.random.default_rng(seed)) for seed in range(200)])

    silence, speech = np.full(100, -60.0), np.full(100, -20.0)
    speech[[20, 45, 70]] = -3.0
    still, spoken = moves(silence), moves(speech)
    pace = [np.abs(np.diff(made, axis=1)).mean((0, 1)) for made in (still, spoken)]
    assert (pace[1] > 1.3 * pace[0]).all()
    pitch = spoken.mean(0)[:, 1]  # what chance does is gone in the mean: nods are left, down where it is loud
    assert pitch[[20, 45, 70]].min() > pitch[[32, 57, 85]].max() + np.radians(0.3)


@given(angles, angles, angles)
def test_a_head_turns_about_its_neck(plain_modes, yaw, pitch, roll):
    postures = np.array([[0.0] * POSE, [yaw, pitch, roll, 0.2, -0.1, 0.02]])
    eyes = np.linalg.norm(plain_modes.canonical[263] - plain_modes.canonical[33])
    neck = eyes * np.array([0, *turning.NECK])
    rotations = np.stack([turn(*posture[:3]) for posture in postures])
    points = np.einsum("nij,mj->nmi", rotations, plain_modes.canonical - neck) + neck
    points[1, :, :2] += eyes * postures[1, 3:5]
    middle = points[:, STABLE].mean(1, keepdims=True)  # nearer, and all but where it is in the picture grows
    points = (points - middle) * np.exp(postures[:, 5])[:, None, None] + middle
    told = plain_modes.latents((points * np.exp(-1.8) + 0.5).astype(np.float32))[:, :POSE]
    assert np.allclose(turning.hinged(postures, plain_modes), told - told[0], atol=4e-3)


def test_copies_of_latents_turn_and_share_their_clips_sound(latents_folder, cache_folder, renderer_run, tmp_path):
    parser = argparse.ArgumentParser()
    turning.add_arguments(parser)
    flags = {"latents": latents_folder, "cache": cache_folder, "renderer": renderer_run, "output": tmp_path / "turned"}
    words = [str(word) for name, value in (flags | {"copies": 2}).items() for word in (f"--{name}", value)]
    assert turning.run(parser.parse_args(words)) == 0
    before, after = stage2.Corpus.open(latents_folder), stage2.Corpus.open(tmp_path / "turned")
    assert after.clips[: len(before.clips)] == before.clips
    assert np.array_equal(after.latents[: len(before.latents)], before.latents)
    trained, copies = before.split("train"), after.clips[len(before.clips) :]
    assert [c["path"] for c in copies] == [c["path"] for c in trained for _ in range(2)]
    changes = []
    for copy in copies:
        clip = next(c for c in trained if c["path"] == copy["path"])
        assert copy["turned"] and np.array_equal(after.audio_of(copy), before.audio_of(clip))
        changes.append(after.latents_of(copy) - before.latents_of(clip))
    assert all(0 < np.abs(change).max() > 10 * np.abs(change.mean(0)).max() for change in changes)
    every = np.concatenate(changes)
    assert np.linalg.matrix_rank(every, tol=1e-3 * np.linalg.norm(every)) <= POSE
    assert np.array_equal(np.load(tmp_path / "turned" / "care.npy"), np.load(latents_folder / "care.npy"))
    # what tells poses off latents knows nothing of the copies'
    assert len(export.Poses.of(after, cache_folder).latents) == len(export.Poses.of(before, cache_folder).latents)
    with pytest.raises(InputError, match="another folder"):
        turning.run(parser.parse_args([*words[:-4], "--output", str(latents_folder)]))


@pytest.mark.parametrize(
    ("module", "lacks"),
    [
        (stage1, ("--cache",)), (place, ("--cache",)), (encoder, ("--cache",)), (gauges, ("--cache",)),
        (distil, ("--teacher",)), (stage2, ("--latents", "--speech")),
    ],
)  # fmt: skip
def test_a_run_without_what_it_learns_from_leaves_no_folder(module, lacks, tmp_path):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    missing = [word for flag in lacks for word in (flag, str(tmp_path / "nope"))]
    with pytest.raises(InputError, match="nope"):
        module.run(parser.parse_args([*missing, "--run", str(tmp_path / "run")]))
    assert list(tmp_path.iterdir()) == []


# --- the adversary, and clips aligned in time


def test_the_discriminator_learns_to_tell_blur_from_detail():
    generator = torch.Generator().manual_seed(0)
    true = torch.rand(16, 3, 72, 72, generator=generator) * 0.3 + 0.4
    made = torch.nn.functional.avg_pool2d(true, 5, 1, 2, count_include_pad=False)
    torch.manual_seed(0)
    judge = Discriminator()
    optimiser = torch.optim.Adam(judge.parameters(), 1e-3, betas=(0.0, 0.99))
    first = float(discriminator_loss(judge, true, made).detach())
    for _ in range(25):
        optimiser.zero_grad()
        discriminator_loss(judge, true, made).backward()
        optimiser.step()
    assert float(discriminator_loss(judge, true, made).detach()) < 0.7 * first
    # what fools it is what has the detail, and fooling it teaches it nothing
    optimiser.zero_grad()
    made.requires_grad_(True)
    seen, far = adversarial_loss(judge, true, made)
    (seen + far).backward()
    assert all(parameter.grad is None for parameter in judge.parameters())
    with torch.no_grad():
        assert adversarial_loss(judge, true, true)[0] < seen
        assert adversarial_loss(judge, true, true)[1] == 0


def test_the_adversary_pulls_as_strongly_as_it_may():
    from engine.training.stage1 import _share

    picture = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    strong, weak = (picture * 5).sum(), (picture * 0.3).square().sum()
    pull = torch.autograd.grad(weak * _share(weak, strong, picture), picture)[0].norm()
    assert float(pull) == pytest.approx(float(torch.autograd.grad(strong, picture)[0].norm()), rel=1e-4)


@pytest.mark.parametrize("late", [-2.3, -1.0, 0.0, 0.4, 1.5, 3.0])
def test_a_slide_is_found_to_a_part_of_a_frame(late):
    from engine.training.align import slide

    rng = np.random.default_rng(4)
    at = np.arange(36)
    waves = [(rng.uniform(0.25, 0.9), rng.uniform(0, 6)) for _ in range(6)]
    real = sum(np.sin(w * at + p) for w, p in waves)
    made = sum(np.sin(w * (at - late) + p) for w, p in waves) + rng.normal(0, 0.3, 36)
    assert slide(real, made) == pytest.approx(late, abs=0.3)
    assert slide(real, rng.normal(size=36)) is None


def test_sound_that_comes_late_is_moved_to_its_picture():
    sound = np.arange(10 * 640, dtype=np.float16) % 1000
    clip = {"start": 0, "count": 8, "audio_start": 0, "audio_count": len(sound)}
    corpus = stage2.Corpus(np.zeros((8, 4), np.float32), sound, [clip])
    whole = corpus.audio_of(clip)
    assert np.array_equal(corpus.audio_of(clip | {"late": 0.5}), sound[320 : 320 + 8 * 640].astype(np.float32))
    early = corpus.audio_of(clip | {"late": -1.0})
    assert not early[:640].any()
    assert np.array_equal(early[640:], whole[:-640])


def test_latents_of_thirty_frames_a_second_are_read_at_twenty_five():
    from engine.training.latents import at_rate

    ramp = np.arange(36, dtype=np.float32)[:, None] / 30  # seconds
    even = at_rate(ramp, 30.0)
    assert len(even) == 30
    assert np.allclose(even[:, 0], np.arange(30) / 25, atol=1e-5)
    assert at_rate(ramp, 25.0) is ramp


@given(seed=st.integers(0, 2**32 - 1))
def test_swing_is_stretched_along_what_lacks_and_nowhere_else(seed):
    rng = np.random.default_rng(seed)
    swing, factors = rng.uniform(0.5, 2, 8).astype(np.float32), rng.uniform(1, 2, 3)
    along = export.stretched(swing, np.eye(8)[[1, 4, 6]], factors)
    assert along[[1, 4, 6]] == pytest.approx(swing[[1, 4, 6]] * factors, rel=1e-5)
    assert np.array_equal(np.delete(along, [1, 4, 6]), np.delete(swing, [1, 4, 6]))
    directions = np.linalg.qr(rng.standard_normal((8, 3)))[0].T
    anyhow = export.stretched(swing, directions, factors) / swing
    assert anyhow.min() >= 1 - 1e-6
    assert anyhow.max() <= factors.max() + 1e-6
