"""`ifmdm train place`: teach a run's portrait network where mouths and eyes are, before or amid stretches of stage 1.

What lies behind lips is drawn, and lids that close (see renderer/inside.py and lids.py), where the mouth and the eyes
are, and smiles are closed along the inner edges of their lips (renderer/closing.py). That must be known to a pixel on
any face. Landmarks say it of every frame there is. It takes minutes, and
stage 1 leaves it alone.
"""

import argparse
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from engine.renderer.boxes import eyes_box, mouth_box
from engine.renderer.network import EYES, MOUTH, LipsNetwork, PlaceNetwork, SightNetwork
from engine.training.ahead import ahead
from engine.training.batches import Augmentation, Cache, keypoints_of, mouth_place, pick
from engine.training.checkpoint import add_lesson_arguments, cosine_rate, follow, set_rate, snapshot
from engine.training.modes import Modes
from engine.training.painting import eyes_of, lips_of
from engine.training.precision import half
from engine.training.stage1 import crop, load_modes, open_run

#: How far a window is off at run time, where another detector places it: in fractions of the picture, and
#: in the logarithm of its side.
OFF, ZOOM = 0.007, 0.05
PARTS = ("place", "sight", "lips")


class Places(nn.Module):
    """What is taught here of a portrait network."""

    def __init__(
        self, place: PlaceNetwork | None = None, sight: SightNetwork | None = None, lips: LipsNetwork | None = None
    ):
        super().__init__()
        self.place, self.sight, self.lips = place or PlaceNetwork(), sight or SightNetwork(), lips or LipsNetwork()

    def off(self, mouths: Tensor, places: Tensor, lips: Tensor, eyes: Tensor, sights: Tensor) -> Tensor:
        """Crops (B, 3, 96, 96) and (B, 3, 48, 96), and what is right of them (B, 9), (B, 10) and (B, 2, 10) -> mean
        distance of each number (29,) from that, in the networks' units; both eyes' together."""
        with half(mouths.device.type):
            ours, told, seen = self.place(mouths), self.lips(mouths), self.sight(eyes)
        mouth, edges = (ours - places) / self.place.unit, (told - lips) / self.lips.unit
        eye = (seen - sights) / self.sight.unit
        return torch.cat([mouth.abs().mean(0), edges.abs().mean(0), eye.abs().mean((0, 1))])


@dataclass(frozen=True)
class Faces:
    """Draws frames; the same seed and step give the same ones."""

    cache: Cache
    modes: Modes
    clips: list[dict]

    def batch(self, size: int, seed: int, step: int) -> tuple[Tensor, ...]:
        """As Places.off takes them."""
        rng = np.random.default_rng((seed, step))
        drawn = [self._draw(clip, rng) for clip in pick(self.clips, size, rng)]
        frames, mouths, places, lips, eyes, sights = (torch.from_numpy(np.stack(x)) for x in zip(*drawn, strict=True))
        frames = frames.permute(0, 3, 1, 2).float() / 255
        return crop(frames, mouths, MOUTH, MOUTH), places, lips, crop(frames, eyes, *EYES), sights

    def _draw(self, clip: dict, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        at = clip["start"] + rng.integers(clip["count"])
        change = Augmentation.draw(rng)
        frame = change.frame(self.cache.frames[at])
        landmarks = change.landmarks(self.cache.landmarks[at : at + 1], self.modes.mirror)[0]
        mouth, eyes = (_misplaced(box(keypoints_of(landmarks)), rng) for box in (mouth_box, eyes_box))
        place = mouth_place(frame, landmarks, mouth, sharp=clip["source"] == "portraits").vector()
        lips = lips_of(landmarks, mouth).vector()
        return frame, mouth, place, lips, eyes, np.stack([eye.vector() for eye in eyes_of(landmarks, eyes)])


def _misplaced(box: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    size = box[2:] * np.float32(np.exp(rng.normal(0, ZOOM)))
    return np.concatenate([box[:2] + (box[2:] - size) / 2 + rng.normal(0, OFF, 2), size]).astype(np.float32)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_lesson_arguments(parser, 2000, 64, "faces")
    parser.add_argument("--from", type=Path, dest="weights", help="weights folder that a new run starts from")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to teach; the others stay as "
                        "they are (default: all)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    cache = Cache.open(args.cache)
    modes = load_modes(cache, args.cache)
    state = open_run(args.run, args.device, args.weights)
    args.run.mkdir(parents=True, exist_ok=True)
    network = Places(state.model.portrait.place, state.model.portrait.sight, state.model.portrait.lips)
    for name in PARTS:
        getattr(network, name).requires_grad_(name in args.parts)
    train = Faces(cache, modes, cache.split("train"))
    examination = Faces(cache, modes, cache.split("val")).batch(200, 1, 0)
    pupil = torch.optim.AdamW(network.parameters(), args.rate, weight_decay=1e-3, betas=(0.9, 0.98))
    average, examined = snapshot(network), Places().to(args.device)
    began, total = time.monotonic(), 0.0
    for step, faces in enumerate(ahead(partial(train.batch, args.batch, args.seed), range(args.steps))):
        drawn = [part.to(args.device) for part in faces]
        set_rate(pupil, cosine_rate(args.rate, step, args.steps, 50))
        loss = network.off(*drawn).mean()
        pupil.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        pupil.step()
        follow(average, network, 0.02)
        total += float(loss.detach())
        if (step + 1) % 100 == 0:
            examined.load_state_dict(average)
            with torch.no_grad():
                each = examined.off(*(part.to(args.device) for part in examination))
            told = " ".join(f"{value:.3f}" for value in each)
            print(f"step {step + 1} {(time.monotonic() - began) / 60:.1f} min loss {total / 100:.4f} "
                  f"held-out {told}", flush=True)  # fmt: skip
            total = 0.0
    network.load_state_dict(average)
    state.average.update({f"portrait.{name}": value for name, value in average.items()})
    state.save()
    return 0
