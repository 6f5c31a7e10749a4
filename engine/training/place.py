"""`ifmdm train place`: teach a run's portrait network where mouths are, before or between stretches of stage 1.

What lies behind lips is drawn (see renderer/inside.py) where the mouth is, and that must be known to a pixel on any
face. Landmarks say it of every frame there is. It takes minutes, and stage 1 leaves it alone.
"""

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.renderer.boxes import mouth_box
from engine.renderer.network import MOUTH, PlaceNetwork
from engine.training.batches import Augmentation, Cache, keypoints_of, mouth_place, pick
from engine.training.checkpoint import cosine_rate, follow, set_rate, snapshot
from engine.training.modes import Modes
from engine.training.stage1 import crop, load_modes, open_run

#: How far the window of a mouth is off at run time, where another detector places it: in fractions of the picture, and
#: in the logarithm of its side.
OFF, ZOOM = 0.007, 0.05


@dataclass(frozen=True)
class Mouths:
    """Draws frames; the same seed and step give the same ones."""

    cache: Cache
    modes: Modes
    clips: list[dict]

    def batch(self, size: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Mouth crops (B, 3, 96, 96), and where the mouths are (B, 8)."""
        rng = np.random.default_rng((seed, step))
        drawn = [self._draw(clip, rng) for clip in pick(self.clips, size, rng)]
        frames, boxes, places = (torch.from_numpy(np.stack(column)) for column in zip(*drawn, strict=True))
        return crop(frames.permute(0, 3, 1, 2).float() / 255, boxes, MOUTH, MOUTH), places

    def _draw(self, clip: dict, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        at = clip["start"] + rng.integers(clip["count"])
        change = Augmentation.draw(rng)
        frame = change.frame(self.cache.frames[at])
        landmarks = change.landmarks(self.cache.landmarks[at : at + 1], self.modes.mirror)[0]
        box = mouth_box(keypoints_of(landmarks))
        side = box[2:] * np.float32(np.exp(rng.normal(0, ZOOM)))
        box = np.concatenate([box[:2] + (box[2:] - side) / 2 + rng.normal(0, OFF, 2), side]).astype(np.float32)
        return frame, box, mouth_place(frame, landmarks, box, sharp=clip["source"] == "portraits").vector()


def off(network: PlaceNetwork, crops: Tensor, places: Tensor) -> Tensor:
    """Mean distance of each number (8,) from what is right, in the network's units."""
    with torch.autocast(crops.device.type, torch.bfloat16):
        ours = network(crops)
    return ((ours - places) / network.unit).abs().mean(0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cache", type=Path, required=True, help="folder made by `ifmdm train prepare`")
    parser.add_argument("--run", type=Path, required=True, help="run folder of `ifmdm train renderer`, or a new one")
    parser.add_argument("--from", type=Path, dest="weights", help="weights folder that a new run starts from")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--tier", choices=("clean", "all"), default="all", help="clean: freely usable data alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def run(args: argparse.Namespace) -> int:
    args.run.mkdir(parents=True, exist_ok=True)
    cache = Cache.open(args.cache)
    modes = load_modes(cache, args.cache)
    state = open_run(args.run, args.device, args.weights)
    network = state.model.portrait.place
    tiers = ("clean",) if args.tier == "clean" else ("clean", "research")
    train = Mouths(cache, modes, cache.split("train", tiers))
    examination = Mouths(cache, modes, cache.split("val")).batch(200, 1, 0)
    pupil = torch.optim.AdamW(network.parameters(), args.rate, weight_decay=1e-3, betas=(0.9, 0.98))
    average, examined = snapshot(network), PlaceNetwork().to(args.device)
    began, total = time.monotonic(), 0.0
    with ThreadPoolExecutor(1) as ahead:
        upcoming = ahead.submit(train.batch, args.batch, args.seed, 0)
        for step in range(args.steps):
            drawn = [part.to(args.device) for part in upcoming.result()]
            upcoming = ahead.submit(train.batch, args.batch, args.seed, step + 1)
            set_rate(pupil, cosine_rate(args.rate, step, args.steps, 50))
            loss = off(network, *drawn).mean()
            pupil.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            pupil.step()
            follow(average, network, 0.02)
            total += float(loss.detach())
            if (step + 1) % 100 == 0:
                examined.load_state_dict(average)
                with torch.no_grad():
                    each = off(examined, *(part.to(args.device) for part in examination))
                told = " ".join(f"{value:.3f}" for value in each)
                print(f"step {step + 1} {(time.monotonic() - began) / 60:.1f} min loss {total / 100:.4f} "
                      f"held-out {told}", flush=True)  # fmt: skip
                total = 0.0
    network.load_state_dict(average)
    state.average.update({f"portrait.place.{name}": value for name, value in average.items()})
    state.save()
    return 0
