"""`ifmdm train gauges`: teach a run to read off a latent how far lips are apart and eyes are closed.

Lips that part and lids that come down are drawn (see renderer/inside.py and lids.py), and by how much, the latent
knows: landmarks say it of every frame, and the encoder's latents of the same frames are the input. It takes minutes, is
done anew whenever the encoder has learned, and stage 1 leaves it alone.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.renderer.boxes import eyes_box, mouth_box
from engine.renderer.lids import closed
from engine.renderer.network import Gauges, Renderer, away
from engine.training.batches import Cache, keypoints_of, lips_apart
from engine.training.checkpoint import add_lesson_arguments, set_rate
from engine.training.landmarks import eye_opening
from engine.training.precision import half
from engine.training.stage1 import encode, open_run

RATE = 3e-3
#: How much what they say themselves counts, beside what they say of a change.
ALONE = 0.3
#: Latents are read a little differently each time; and how often the eyes are the clip's most closed ones.
NOISE, BLINKS = 0.02, 0.3


@dataclass(frozen=True)
class Pairs:
    """Draws pairs of frames of a clip; the same seed and step give the same ones. latents (n, D), gaps (n,) and
    eyes (n,) of all frames: see `measure`."""

    clips: list[np.ndarray]
    latents: Tensor
    gaps: np.ndarray
    eyes: np.ndarray

    def batch(self, size: int, seed: int, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Latents of portraits and of targets (B, D), and what gauges shall say of each (B, 2)."""
        rng = np.random.default_rng((seed, step))
        drawn = [self.clips[i] for i in rng.integers(len(self.clips), size=size)]
        one = np.array([rng.choice(frames) for frames in drawn])
        other = np.array([
            frames[self.eyes[frames].argmin()] if rng.random() < BLINKS else rng.choice(frames) for frames in drawn
        ])  # fmt: skip
        first, then = (np.stack([self.gaps[at], closed(self.eyes[at])], 1).astype(np.float32) for at in (one, other))
        return self.latents[one], self.latents[other], torch.from_numpy(first), torch.from_numpy(then)


def measure(landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Landmarks (n, 478, 2+) -> how far lips are apart, in sides of the mouth's box, and how open eyes are (n,)."""
    sides = np.array([mouth_box(keypoints_of(points))[2] for points in landmarks])
    return lips_apart(landmarks) / sides, eye_opening(landmarks)


@torch.no_grad()
def read_latents(model: Renderer, cache: Cache, clips: list[dict], device: str) -> Tensor:
    """The encoder's latents (n, D) of all frames of the cache that belong to the clips; zeros elsewhere."""
    latents = torch.zeros(len(cache.landmarks), model.shape.latent)
    for number, clip in enumerate(clips):
        begin, count = clip["start"], clip["count"]
        keypoints = keypoints_of(cache.landmarks[begin])
        boxes = (torch.from_numpy(box(keypoints))[None].to(device) for box in (mouth_box, eyes_box))
        frames = torch.from_numpy(np.array(cache.frames[begin : begin + count])).to(device)
        frames = frames.permute(0, 3, 1, 2).float()[None] / 255
        with half(device):
            latents[begin : begin + count] = encode(model, frames, *boxes)[0].cpu()
        if number % 200 == 199:
            print(f"read {number + 1} of {len(clips)} clips", flush=True)
    return latents


def change(first: Tensor, then: Tensor) -> Tensor:
    """What gauges say of portraits and of targets (B, 2) -> what is drawn of it: how much further apart lips are, in
    sides of the mouth's box, and how much of their opening eyes have closed."""
    return away(torch.stack([first, then], 1))[:, 0]


def lesson(gauges: Gauges, one: Tensor, other: Tensor, first: Tensor, then: Tensor) -> Tensor:
    """How far what gauges say of latents (B, D) is from what is right (B, 2), in the gauges' units: (2,). Of eyes wider
    open than in the portrait, or more closed than closed, hardly anything counts: nothing is drawn of it."""
    said = gauges(one), gauges(other)
    off = (change(*said) - change(first, then)) / gauges.unit
    alone = ((said[0] - first).abs() + (said[1] - then).abs()).mean(0) / gauges.unit
    lips = off[:, 0].abs().mean()
    seen, right = (x[:, 1].clamp(-0.2, 1) for x in (change(*said), change(first, then)))
    return torch.stack([lips, 2 * (seen - right).abs().mean() + 0.1 * off[:, 1].abs().mean()]) + ALONE * alone


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_lesson_arguments(parser, 3000, 512, "pairs of frames")
    parser.add_argument("--from", type=Path, dest="weights", help="weights folder that a new run starts from")


def run(args: argparse.Namespace) -> int:
    cache = Cache.open(args.cache)
    state = open_run(args.run, args.device, args.weights)
    args.run.mkdir(parents=True, exist_ok=True)
    reader = Renderer(state.model.shape).to(args.device)
    reader.load_state_dict(state.average)
    clips = {name: [c for c in cache.split(name) if c["count"] > 4] for name in ("train", "val")}
    latents = read_latents(reader.eval(), cache, [*clips["train"], *clips["val"]], args.device)
    gaps, eyes = measure(cache.landmarks)
    train, held = (
        Pairs([np.arange(c["start"], c["start"] + c["count"]) for c in some], latents, gaps, eyes)
        for some in clips.values()
    )
    gauges = Gauges(state.model.shape.latent)
    pupil = torch.optim.AdamW(gauges.parameters(), RATE, weight_decay=1e-3)
    for step in range(args.steps):
        set_rate(pupil, RATE * (1 - step / args.steps))
        one, other, *right = train.batch(args.batch, args.seed, step)
        noise = NOISE * torch.randn(2, *one.shape, generator=torch.Generator().manual_seed(step))
        loss = lesson(gauges, one + noise[0], other + noise[1], *right).sum()
        pupil.zero_grad(set_to_none=True)
        loss.backward()
        pupil.step()
        if (step + 1) % 500 == 0 or step + 1 == args.steps:
            with torch.no_grad():
                one, other, *right = held.batch(4000, 1, 0)
                told, right = (change(*both).clamp(-0.2, 1) for both in ((gauges(one), gauges(other)), right))
            lips, lids = (np.corrcoef(a, b)[0, 1] for a, b in zip(told.T, right.T, strict=True))
            told = f"loss {float(loss.detach()):.4f} held-out correlation lips {lips:.3f} lids {lids:.3f}"
            print(f"step {step + 1} {told}", flush=True)
    state.model.coefficients.gauges.load_state_dict(gauges.state_dict())
    state.average.update({f"coefficients.gauges.{n}": v.clone() for n, v in gauges.state_dict().items()})
    state.save()
    return 0
