"""`ifmdm train turn`: beside each training clip's latents, copies of them whose heads turn as they speak.

Who reads commands in front of a camera sits still, and a model that saw nobody else has heads that do. What speakers'
heads do is known: they shift from one posture to another, stay there a while, and nod where the voice is loud
(Hadar, Steiner, Grant and Rose 1983; Munhall et al. 2004, "Visual prosody and speech intelligibility"). Here such poses
are made up along with each clip's sound, and added to its latents along the directions that turn a head. Those are
measured on film whose heads do turn, if only that made of stills.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch

from engine.errors import InputError
from engine.features import LATENT_HOP
from engine.motion.timing import LATENT_RATE
from engine.renderer.network import Renderer
from engine.training.batches import Cache, keypoints_of
from engine.training.latents import encode_clip, load_renderer
from engine.training.modes import POSE, POSE_UNIT, Modes
from engine.training.painting import turn
from engine.training.stage1 import load_modes, spread
from engine.training.stage2 import Corpus

#: Deviations of a posture: yaw, pitch and roll in radians, and how far a body leans: right, down (in distances between
#: the eyes' outer corners, of 90 mm) and nearer (log of the size). Each copy's are this much wider or narrower.
POSTURES, LIVELY = np.array([*np.radians((3.0, 3.6, 0.8)), 0.06, 0.03, 0.015]), 0.45
#: Seconds that a posture is kept, on average, in speech and in silence; how long it takes to get to the next one.
KEPT, IDLE, SHIFT = 0.6, 1.5, (0.35, 0.9)
#: A loud syllable is nodded at so often, by so many radians (median), in so many seconds.
NODS, NOD, NODDING = 0.55, np.radians(1.6), 0.44
#: Somebody speaks where it is no quieter than this below the loudest, in dB.
QUIET = 25.0
#: Where a head turns about: the neck, below and behind the middle of the face, in the same distances.
NECK = (0.9, 1.0)


def loudness(sound: np.ndarray) -> np.ndarray:
    """Sound (n * 640,) at 16 kHz -> (n,) dB below the loudest latent's, over about 120 ms."""
    power = np.square(sound.reshape(-1, LATENT_HOP).astype(np.float64)).mean(1)
    power = np.convolve(power, (0.25, 0.5, 0.25), "same")
    return 10 * np.log10((power + 1e-9) / (power.max() + 1e-9))


def stresses(loud: np.ndarray) -> np.ndarray:
    """(n,) dB -> where it is loudest for 0.2 s on either side, and somebody speaks."""
    near = LATENT_RATE // 5
    padded = np.pad(loud, near, constant_values=-np.inf)
    highest = np.lib.stride_tricks.sliding_window_view(padded, 2 * near + 1).max(1)
    return np.nonzero((loud >= highest) & (loud > -QUIET / 2))[0]


def poses(loud: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n,) dB -> (n, 6) as POSTURES, about a mean of zero: how a head may turn and lean that says this."""
    time = np.arange(len(loud)) / LATENT_RATE
    made, at, posture = np.zeros((len(loud), len(POSTURES))), -rng.exponential(KEPT), np.zeros(len(POSTURES))
    while at < time[-1]:
        following, seconds = 0.3 * posture + rng.normal(0, POSTURES), rng.uniform(*SHIFT)
        along = np.clip((time - at) / seconds, 0, 1)
        # the least jerk there is between two postures (Flash and Hogan 1985)
        made += (along**3 * (10 - 15 * along + 6 * along**2))[:, None] * (following - posture)
        posture = following
        spoken = loud[max(int(at * LATENT_RATE), 0)] > -QUIET
        at += rng.gamma(2.0, (KEPT if spoken else IDLE) / 2)
    for stress in stresses(loud):
        if rng.random() < NODS:
            along = np.clip((time - stress / LATENT_RATE) / NODDING + 0.5, 0, 1)
            far = np.array([rng.normal(0, 0.3), np.exp(rng.normal(0, 0.4)), rng.normal(0, 0.3)]) * NOD
            made[:, :3] += (0.5 - 0.5 * np.cos(2 * np.pi * along))[:, None] * far
    made *= np.exp(rng.normal(0, LIVELY))
    return made - made.mean(0)


def hinged(posture: np.ndarray, modes: Modes) -> np.ndarray:
    """Postures (n, 6), as POSTURES, of heads that turn about their necks -> what that changes of their poses (n, 6), in
    units of POSE_UNIT, for heads as large in the picture as clips have them."""
    eyes = np.linalg.norm(modes.canonical[263] - modes.canonical[33])
    face = -eyes * np.array([0.0, *NECK])  # seen from the neck; depth grows away from the camera
    size = np.exp(-1.8)  # see Modes.latents
    moved = size * (turn(posture[:, :3]) @ face - face)
    change = np.concatenate([posture[:, :3], moved[:, :2] + size * eyes * posture[:, 3:5], posture[:, 5:]], 1)
    return change / POSE_UNIT


def directions(model: Renderer, cache: Cache, modes: Modes, clips: list[dict]) -> np.ndarray:
    """(6, D): how the latent changes with each number of the pose, all else alike, by ridge regression within clips of
    what the encoder and the motion modes see of their frames."""
    seen, told = [], []
    for clip in clips:
        landmarks = cache.landmarks_of(clip)
        frames = np.array(cache.frames[clip["start"] : clip["start"] + clip["count"]])
        latents, known = encode_clip(model, frames, keypoints_of(landmarks[0])), modes.latents(landmarks)
        seen.append(known - known.mean(0))
        told.append(latents - latents.mean(0))
    x, y = np.concatenate(seen), np.concatenate(told)
    way = np.linalg.solve(x.T @ x + np.eye(x.shape[1]) * 1e-4 * len(x), x.T @ y)
    left = 1 - (y - x @ way).var(0).sum() / y.var(0).sum()
    print(f"latents of {len(clips)} clips explained by landmarks: {left:.2f}", flush=True)
    return way[:POSE].astype(np.float32)


def turned(corpus: Corpus, way: np.ndarray, modes: Modes, copies: int, seed: int) -> tuple[np.ndarray, list[dict]]:
    """The latents and clips of a corpus, and of each training clip so many copies whose heads turn: they share its
    sound, and say that they are `turned`."""
    latents, clips, start = [corpus.latents], list(corpus.clips), len(corpus.latents)
    for number, clip in enumerate(corpus.clips):
        if clip["split"] != "train":
            continue
        loud = loudness(corpus.audio_of(clip))
        for copy in range(copies):
            change = hinged(poses(loud, np.random.default_rng((seed, number, copy))), modes)
            latents.append(corpus.latents_of(clip) + (change @ way).astype(np.float32))
            clips.append(clip | {"start": start, "turned": True})
            start += clip["count"]
    return np.concatenate(latents), clips


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--latents", type=Path, required=True, help="folder made by `ifmdm train latents`")
    parser.add_argument("--cache", type=Path, required=True, help="folder made by `ifmdm train prepare`")
    parser.add_argument("--renderer", type=Path, required=True, help="run folder, or weights, whose encoder the "
                        "latents are of")  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, help="folder of latents to write")
    parser.add_argument("--copies", type=int, default=3, help="of each training clip")
    parser.add_argument("--clips", type=int, default=300, help="clips of the cache that tell what turns a head")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> int:
    if args.output.resolve() == args.latents.resolve():
        raise InputError(f"--output: {args.output} holds the latents that are read; give another folder")
    corpus, cache = Corpus.open(args.latents), Cache.open(args.cache)
    modes = load_modes(cache, args.cache)
    with torch.no_grad():
        way = directions(load_renderer(args.renderer), cache, modes, spread(cache.split("train"), args.clips))
    latents, clips = turned(corpus, way, modes, args.copies, args.seed)
    args.output.mkdir(parents=True, exist_ok=True)
    np.save(args.output / "latents.npy", latents)
    (args.output / "latents.json").write_text(json.dumps(clips))
    for name in ("audio.npy", "care.npy"):
        shutil.copyfile(args.latents / name, args.output / name)
    print(f"latents: {args.output}, {len(clips)} clips, {len(latents)} frames")
    return 0
