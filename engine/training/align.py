"""`ifmdm train align`: how late each clip's sound is against its picture, as a trained motion model hears it.

Short clips cut from broadcasts are off by up to two frames either way, each by its own amount (docs/experiments.md). A
motion model averages over that in training, so its lips blur; but on each clip its own motion says where the real lips
are. Every clip's lips are made from its sound, slid along the real ones, and the slide at which they fit best, where it
is convincing, is written as the clip's `late` (frames, positive: the sound comes too late) into `latents.json`.
Training on the clips so aligned, and aligning again, is expectation maximisation over the offsets.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from engine.motion.network import MotionShape, MotionTransformer
from engine.training.metrics import lagged_correlations
from engine.training.stage2 import Corpus, Normaliser, WindowSampler, generate, load_motion, load_speech

REACH = 4
#: A slide must fit this well to be believed, and each frame of it costs so much of the correlation (squared).
CONVINCING, COST = 0.5, 0.008
#: How many times the lips are made: what chance adds to them differs, what speech does stays.
TAKES = 3
BATCH = 64


def slide(real: np.ndarray, made: np.ndarray) -> float | None:
    """Frames by which the made series (n,) is late, to a part of a frame; None where nothing convinces."""
    lags = np.arange(-REACH, REACH + 1)
    curve = lagged_correlations(real, made, REACH) - COST * np.square(lags)
    best = int(curve.argmax())
    if curve[best] < CONVINCING or best in (0, 2 * REACH):
        return None
    before, here, after = curve[best - 1 : best + 2]
    return float(lags[best] + 0.5 * (before - after) / min(before - 2 * here + after, -1e-6))


def made_lips(
    sampler: WindowSampler, clips: list[dict], encoder, model: MotionTransformer, lips: torch.Tensor
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each clip's first window: the real lips and those made from its sound (n,)."""
    out = []
    for first in range(0, len(clips), BATCH):
        some = clips[first : first + BATCH]
        batch = sampler.starts(some)
        with torch.no_grad():
            speech = encoder(batch.features)
            takes = [
                generate(model, speech, batch.latents[:, 0], batch.statistics, guidance=2.0, seed=seed) @ lips
                for seed in range(TAKES)
            ]
        real, made = (batch.latents @ lips).numpy(), torch.stack(takes).mean(0).numpy()
        lengths = batch.present.sum(1).long().tolist()
        out += [(r[:n], m[:n]) for r, m, n in zip(real, made, lengths, strict=True)]
        print(f"{first + len(some)}/{len(clips)} clips", flush=True)
    return out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--latents", type=Path, required=True, help="folder made by `ifmdm train latents`")
    parser.add_argument("--speech", type=Path, required=True, help="run folder of `ifmdm train speech` or "
                        "`motion`, or weights")  # fmt: skip
    parser.add_argument("--motion", type=Path, required=True, help="run folder of `ifmdm train motion`, or "
                        "weights")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    corpus = Corpus.open(args.latents)
    clips = corpus.split("train")
    shape = MotionShape(latent=corpus.latents.shape[1])
    care = torch.from_numpy(np.load(args.latents / "care.npy"))
    model = load_motion(args.motion, shape)
    sampler = WindowSampler(corpus, clips, Normaliser.load(args.motion), shape)
    series = made_lips(sampler, clips, load_speech(args.speech, shape), model, care[:, shape.latent])
    by_source: dict[str, list[float | None]] = {}
    for clip, (real, made) in zip(clips, series, strict=True):
        more = slide(real, made)
        by_source.setdefault(clip["source"], []).append(more)
        clip["late"] = clip.get("late", 0.0) + (more or 0.0)
    for source, slides in sorted(by_source.items()):
        known = np.array([s for s in slides if s is not None])
        spread = np.percentile(known, [5, 25, 50, 75, 95]).round(2).tolist() if len(known) else []
        print(f"{source}: {len(known)} of {len(slides)} clips convince; percentiles 5 to 95 of their slide {spread}")
    (args.latents / "latents.json").write_text(json.dumps(corpus.clips))
    return 0
