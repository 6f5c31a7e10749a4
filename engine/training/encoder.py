"""`ifmdm train encoder`: teach a run's motion encoder the motion modes, before or between stretches of stage 1.

Learning together with the renderer teaches the encoder lips slowly and lids hardly at all: they are a sliver of the
loss and blinks are rare. Here it learns them from landmarks directly, at a fraction of a step's cost: differences
between frames of a clip, in all modes, and above all the few distances that a viewer watches (lips apart, mouth wide,
lids apart).
"""

import argparse
import time
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.training.ahead import ahead
from engine.training.batches import Batch, Cache, Sampler
from engine.training.checkpoint import add_lesson_arguments, cosine_rate, follow, set_rate, snapshot
from engine.training.modes import POSE, Modes
from engine.training.precision import half
from engine.training.stage1 import encode, load_modes, open_run

#: Pairs of landmarks whose distances matter: lips at three places, mouth corners, right lids, left lids.
DISTANCES = (((13, 14), (82, 87), (312, 317)), ((61, 291),), ((159, 145), (160, 144)), ((386, 374), (385, 380)))
EYES, MOUTH_CORNERS = (33, 133, 362, 263), (61, 291)


def distances(landmarks: Tensor) -> Tensor:
    """(..., 478, 2) landmarks -> (..., 4) distances in units of eyes to mouth."""
    unit = (landmarks[..., EYES, :].mean(-2) - landmarks[..., MOUTH_CORNERS, :].mean(-2)).norm(dim=-1)
    parts = [
        torch.stack([(landmarks[..., a, :] - landmarks[..., b, :]).norm(dim=-1) for a, b in pairs]).mean(0)
        for pairs in DISTANCES
    ]
    return torch.stack(parts, -1) / unit[..., None]


def readout(cache: Cache, modes: Modes, clips: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """How distances follow from expression modes, within clips: weights (E, 4) by ridge regression, and the distances'
    within-clip deviations (4,)."""
    z, d = [], []
    for clip in clips:
        landmarks = cache.landmarks_of(clip)
        latent = modes.latents(landmarks)[:, POSE:]
        distance = distances(torch.from_numpy(landmarks[..., :2])).numpy()
        z.append(latent - latent.mean(0))
        d.append(distance - distance.mean(0))
    z, d = np.concatenate(z), np.concatenate(d)
    spread = d.std(0)
    weights = np.linalg.solve(z.T @ z + np.eye(z.shape[1]) * 0.01 * len(z), z.T @ (d / spread))
    return weights.astype(np.float32), spread.astype(np.float32)


def lesson(encoded: Tensor, batch: Batch, weights: Tensor, spread: Tensor) -> dict[str, Tensor]:
    """Loss terms of latents (B, T, D) that the encoder gave for a batch."""
    off = encoded - batch.latents
    inside = off - off.mean(1, keepdim=True)
    goal = distances(batch.landmarks) / spread
    goal = goal - goal.mean(1, keepdim=True)
    told = encoded[..., POSE:] @ weights
    told = told - told.mean(1, keepdim=True)
    return {
        "modes": F.smooth_l1_loss(inside / 0.3, torch.zeros_like(inside), beta=1.0),
        "pose": off[..., :POSE].square().mean(),
        "centre": 0.1 * off.square().mean(),
        "distances": F.smooth_l1_loss(told, goal, beta=1.0),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_lesson_arguments(parser, 1600, 14, "clips")


def run(args: argparse.Namespace) -> int:
    cache = Cache.open(args.cache)
    modes = load_modes(cache, args.cache)
    state = open_run(args.run, args.device)
    args.run.mkdir(parents=True, exist_ok=True)
    model = state.model
    encoder: nn.Module = model.encoder
    clips = [clip for clip in cache.split("train") if clip["count"] > 3]
    weights, spread = (torch.from_numpy(x).to(args.device) for x in readout(cache, modes, clips))
    train = Sampler(cache, modes, clips, 4, stills=False, drawings=False)
    held = replace(train, clips=[clip for clip in cache.split("val") if clip["count"] > 3], augment=False)
    examination = [held.batch(24, 1, number) for number in range(4)]
    teacher = torch.optim.AdamW(encoder.parameters(), 1e-3, weight_decay=0.01, betas=(0.9, 0.98))
    average = snapshot(encoder)
    began, totals = time.monotonic(), {}

    def examine() -> str:
        kept = snapshot(encoder)
        encoder.load_state_dict(average)
        goals, tolds = [], []
        with torch.no_grad(), half(args.device):
            for batch in examination:
                batch = batch.on(args.device)
                encoded = encode(model, batch.frames, batch.mouth, batch.eyes)
                goal = distances(batch.landmarks) / spread
                goals.append(goal - goal.mean(1, keepdim=True))
                told = encoded[..., POSE:] @ weights
                tolds.append(told - told.mean(1, keepdim=True))
        encoder.load_state_dict(kept)
        goal, told = torch.cat(goals).flatten(0, 1), torch.cat(tolds).flatten(0, 1)
        r2 = 1 - (goal - told).square().sum(0) / goal.square().sum(0)
        return "held-out R2: lips {:.3f} width {:.3f} lids {:.3f} {:.3f}".format(*r2.tolist())

    drawn = ahead(partial(train.batch, args.batch, args.seed + 7), range(args.steps))
    for step, batch in enumerate(drawn):
        batch = batch.on(args.device)
        set_rate(teacher, cosine_rate(1e-3, step, args.steps, 100))
        with half(args.device):
            encoded = encode(model, batch.frames, batch.mouth, batch.eyes)
        terms = lesson(encoded, batch, weights, spread)
        teacher.zero_grad(set_to_none=True)
        sum(terms.values()).backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        teacher.step()
        follow(average, encoder, 0.01)
        for name, value in terms.items():
            totals[name] = totals.get(name, 0.0) + float(value.detach()) / 100
        if (step + 1) % 100 == 0:
            line = " ".join(f"{name} {value:.3f}" for name, value in totals.items())
            print(f"step {step + 1} {(time.monotonic() - began) / 60:.1f} min {line} {examine()}", flush=True)
            totals = {}
    encoder.load_state_dict(average)
    # the renderer's optimiser starts afresh for the encoder: its moments belong to another net by now
    for name, parameter in encoder.named_parameters():
        state.optimiser.state.pop(parameter, None)
        state.average[f"encoder.{name}"] = parameter.detach().clone()
    state.save()
    return 0
