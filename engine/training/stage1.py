"""`ifmdm train renderer`: stage 1, the motion encoder and the motion-basis renderer, learned together.

Self-supervised: the motion of a target frame, read by the encoder, must move the clip's portrait into that frame. The
bootstrap gives the first latents and flows a direction (landmarks' modes and displacements), then fades to nothing and
the pictures alone judge.
"""

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.errors import InputError
from engine.renderer.cpu import GAUGES
from engine.renderer.network import CROP, EYES, MOUTH, Fields, Layers, Motion, Renderer, away, layers, mix, sample
from engine.training.ahead import ahead
from engine.training.batches import EYES_RASTER, MOUTH_RASTER, Batch, Cache, Sampler, collate
from engine.training.checkpoint import Run, append, set_rate, start_from_weights
from engine.training.discriminator import Discriminator, adversarial_loss, discriminator_loss
from engine.training.modes import EYELIDS, FILE, LIP_PAIRS, LIPS, POSE, Modes, fit_modes
from engine.training.perceptual import Perceptual
from engine.training.precision import half

EXPRESSIONS = 18
VALIDATION_CLIPS = 32
ADVERSARY_WARMUP = 300  # steps
LIP = 6  # how far about the inside of a mouth a painted one is looked at as closely, in pixels of the mouth's raster
#: How near, in sides of the mouth's box, lips touch: that is a pixel of most clips, and landmarks say nothing finer.
TOUCHING = 0.008
PERCEPTUAL_EVERY = 3  # the perceptual loss is dear: it looks at every third target


@dataclass(frozen=True)
class Schedule:
    """When the bootstrap lets go, as shares of its own length, and the learning rate over all steps."""

    steps: int
    bootstrap: int
    start: int = 0  # a run that begins with trained weights begins where the bootstrap has let go of the latents
    teacher_until: float = 0.1  # latents come from the motion modes before, and mix towards the encoder's until...
    encoder_from: float = 0.25  # ...here
    latents_until: float = 0.35  # the modes say what the encoder's latents should be, less and less until here
    landmarks_until: float = 0.5  # the weight of all landmark terms falls to zero here
    freeze_encoder: float = 0.65  # from here on the latent stays as it is, so that stage 2 can start beside
    warmup: int = 100
    rate: float = 1.2e-3
    final_rate: float = 4e-5

    def teacher(self, step: int) -> float:
        """Share of clips whose latents come from the motion modes."""
        return self._fading(step, self.teacher_until, self.encoder_from)

    def landmarks(self, step: int) -> float:
        return self._fading(step, self.encoder_from, self.landmarks_until)

    def tied(self, step: int) -> float:
        """How much the encoder's latents are held to the motion modes'."""
        return self._fading(step, self.encoder_from, self.latents_until)

    def _fading(self, step: int, since: float, until: float) -> float:
        """1 until a share of the bootstrap has passed, 0 from another one on, and falling between."""
        return float(np.clip((until - step / self.bootstrap) / (until - since), 0, 1))

    def frozen(self, step: int) -> bool:
        return step >= self.freeze_encoder * self.bootstrap

    def learning_rate(self, step: int) -> float:
        along = min(1.0, (step - self.start) / max(1, self.steps - self.start))
        cosine = self.final_rate + (self.rate - self.final_rate) * 0.5 * (1 + math.cos(math.pi * along))
        return cosine * min(1.0, (step - self.start + 1) / self.warmup)


def grid_points(box: Tensor, height: int, width: int) -> Tensor:
    """Boxes (N, 4) -> pixel centres of a height x width raster over each, (N, height * width, 2) in 0..1."""
    y = (torch.arange(height) + 0.5) / height
    x = (torch.arange(width) + 0.5) / width
    raster = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1).reshape(1, -1, 2).to(box.device)
    return box[:, None, :2] + raster * box[:, None, 2:]


def crop(frames: Tensor, box: Tensor, height: int, width: int) -> Tensor:
    """frames (N, 3, S, S), boxes (N, 4) -> (N, 3, height, width)."""
    return sample(frames, grid_points(box, height, width)).mT.reshape(len(frames), 3, height, width)


def halve(frames: Tensor) -> Tensor:
    return F.avg_pool2d(frames, 2)


def encode(model: Renderer, frames: Tensor, mouth: Tensor, eyes: Tensor) -> Tensor:
    """frames (B, T, 3, 256, 256), the clip's boxes (B, 4) -> latents (B, T, D)."""
    batch, times = frames.shape[:2]
    flat = frames.flatten(0, 1)
    mouths = crop(flat, mouth.repeat_interleave(times, 0), CROP, CROP)
    eye = crop(flat, eyes.repeat_interleave(times, 0), CROP // 2, CROP)
    return model.encoder(halve(flat), mouths, eye).float().view(batch, times, -1)


def shone(frames: Tensor) -> Tensor:
    """frames (B, T, 3, S, S), each with a light and a tint of its own: no motion, and the encoder must not see any."""
    gain = torch.exp(0.12 * torch.randn(*frames.shape[:2], 1, 1, 1, device=frames.device))
    tint = torch.exp(0.04 * torch.randn(*frames.shape[:3], 1, 1, device=frames.device))
    return (frames * (gain * tint)).clamp(max=1)


def worn(frames: Tensor) -> Tensor:
    """frames (B, T, 3, S, S), half of the clips as soft as worse cameras make them, all with some noise: the encoder
    must see the same motion."""
    batch, size = frames.shape[0], frames.shape[-1]
    out = frames.clone()
    for clip in torch.nonzero(torch.rand(batch) < 0.5)[:, 0].tolist():
        less = round(size * float(0.3 + 0.6 * torch.rand(())))
        small = F.interpolate(frames[clip], less, mode="bilinear", align_corners=False, antialias=True)
        out[clip] = F.interpolate(small, size, mode="bilinear", align_corners=False)
    loud = 0.03 * torch.rand(batch, 1, 1, 1, 1, device=frames.device)
    return (out + loud * torch.randn_like(frames)).clamp(0, 1)


def portrait_fields(model: Renderer, portrait: Tensor, mouth: Tensor, eyes: Tensor) -> Fields:
    """portrait (B, 3, 256, 256) and its boxes (B, 4) -> Fields."""
    return model.portrait(halve(portrait), crop(portrait, mouth, MOUTH, MOUTH), crop(portrait, eyes, *EYES))


def render(motion: Motion, portrait: Tensor, points: Tensor) -> Tensor:
    """Portraits (N, 3, H, W) moved, at output points (N, M, 2) -> colours (N, M, 3)."""
    return covered(motion, portrait, points)[0]


def covered(motion: Motion, portrait: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """As render, and the opacity of the texture there (N, M)."""
    source, colour, opacity = motion.trace(points)
    return sample(portrait, source) * (1 - opacity) + colour, opacity[..., 0]


def render_layers(motion: Motion, portrait: Layers, points: Tensor) -> Tensor:
    """As render, the background staying where it is."""
    source, colour, opacity = motion.trace(points)
    front = sample(portrait.front, source)
    whole = front[..., :3] + front[..., 3:] * sample(portrait.back, points)
    return whole * (1 - opacity) + colour


def gradient_l1(a: Tensor, b: Tensor) -> Tensor:
    """Per-picture L1 of the differences between neighbours, (N, 3, H, W) -> (N,)."""
    d = a - b
    return (d[..., 1:, :] - d[..., :-1, :]).abs().mean((1, 2, 3)) + (d[..., 1:] - d[..., :-1]).abs().mean((1, 2, 3))


def welsch(off: Tensor, scale: float = 0.15) -> Tensor:
    """Welsch's loss of colour differences (N, 3, H, W) -> (N, H, W), at most 0.2. Between the lips lie teeth, tongue or
    darkness: their median, which L1 asks for, is the colour of lips, and looks closed. This asks for the likeliest."""
    return 0.2 * (1 - torch.exp(-off.square().sum(1) / (2 * scale**2)))


def _share(loss: Tensor, measure: Tensor, of: Tensor) -> Tensor:
    """The factor by which a loss pulls at `of` as strongly as another one does (Esser et al. 2021, equation 7)."""
    if not of.requires_grad:
        return torch.ones((), device=of.device)
    strong = torch.autograd.grad(measure, of, retain_graph=True)[0].norm()
    return (strong / torch.autograd.grad(loss, of, retain_graph=True)[0].norm().clamp(min=1e-9)).clamp(max=1e3)


def losses(
    model: Renderer, batch: Batch, teacher: Tensor, perceptual: Perceptual | None, train_encoder: bool = True,
    discriminator: Discriminator | None = None, train_portrait: bool = True,
) -> dict[str, Tensor]:
    """All loss terms of a batch. teacher (B,) bool: clips whose latents come from the motion modes. The term
    "discriminator" is for its own optimiser."""
    size, times = batch.frames.shape[0], batch.frames.shape[1] - 1
    stills = batch.real == 0
    autocast = half(batch.frames.device.type)
    seen = shone(worn(batch.frames)) if train_encoder else batch.frames
    with autocast:
        with torch.set_grad_enabled(train_encoder):
            encoded = encode(model, seen, batch.mouth, batch.eyes)
            if len(batch.driver):  # a still moves from where it is as its driver moves
                driven = encode(model, batch.driver, batch.driver_mouth, batch.driver_eyes)
                encoded = encoded.clone()
                encoded[stills] = encoded[stills, :1] + driven - driven[:, :1]
        with torch.set_grad_enabled(train_portrait):
            fields = portrait_fields(model, batch.frames[:, 0], batch.mouth, batch.eyes)
    latent = torch.where(teacher[:, None, None], batch.latents, encoded)
    weights = model.coefficients(latent)
    if len(batch.driver):  # lips and lids as far as the driver's: the still's own may be misread, see engine/anchor.py
        weights = weights.clone()
        weights[stills, :, -GAUGES:] = model.coefficients.gauges(driven)
    motion = mix(model.shape, fields, away(weights), batch.mouth, batch.eyes, batch.held, batch.shut)

    targets = batch.frames[:, 1:].flatten(0, 1)
    portrait = batch.frames[:, :1].expand(-1, times, -1, -1, -1).flatten(0, 1)
    real = batch.real.repeat_interleave(times)
    real = real / real.sum().clamp(min=1)

    # the whole picture, at a random phase of the raster
    whole = torch.tensor([0.0, 0.0, 1.0, 1.0], device=targets.device).expand(len(targets), 4)
    points = grid_points(whole, 80, 80) + (torch.rand(2, device=targets.device) - 0.5) / 80
    small = halve(batch.frames.flatten(0, 1)).view(size, times + 1, 3, 128, 128)
    still = layers(small[:, 0], batch.matte)[torch.arange(size, device=targets.device).repeat_interleave(times)]
    picture = (render_layers(motion, still, points) - sample(small[:, 1:].flatten(0, 1), points)).abs().mean((1, 2))

    out = {"picture": (picture * real).sum()}
    out["matte"] = F.binary_cross_entropy_with_logits(fields.matte, batch.matte)
    covers: dict[str, Tensor] = {}
    for name, boxes, height, width in (
        ("mouth", batch.target_mouth, MOUTH_RASTER, MOUTH_RASTER),
        ("eyes", batch.target_eyes, *EYES_RASTER),
    ):
        points = grid_points(boxes.flatten(0, 1), height, width)
        ours, covers[name] = covered(motion, portrait, points)
        ours = ours.mT.reshape(-1, 3, height, width)
        true = sample(targets, points).mT.reshape(size, times, 3, height, width)
        true[stills] = batch.painted_mouth if name == "mouth" else batch.painted_eyes
        true = true.flatten(0, 1)
        out[name] = (ours - true).abs().mean()
        out[name + "_gradient"] = gradient_l1(ours, true).mean()
        if name == "eyes":  # a blink is rare and small, and decides whether a face lives
            lids = batch.lids.flatten(0, 1)
            out["lids"] = ((ours - true).abs().mean(1) * lids).sum() / lids.sum().clamp(min=50)
        if name == "mouth":
            between = batch.inside.flatten(0, 1)
            filmed = between * (batch.real.repeat_interleave(times) > 0)[:, None, None]
            out["cavity"] = (welsch(ours - true) * filmed).sum() / filmed.sum().clamp(min=50)
            # on stills the truth is one, and far away at first, where Welsch's loss is flat; and the lips stay clean
            painted = F.max_pool2d(between - filmed, 2 * LIP + 1, 1, LIP)
            out["painted"] = ((ours - true).abs().mean(1) * painted).sum() / painted.sum().clamp(min=50)
        if name == "mouth" and perceptual is not None:
            some = torch.arange(0, len(ours), PERCEPTUAL_EVERY, device=ours.device)
            with autocast:
                distance = perceptual(ours[some], true[some])
            out["perceptual"] = (distance * real[some]).sum() * PERCEPTUAL_EVERY
        people = real > 0
        if name == "mouth" and discriminator is not None and people.any():  # a batch may be of stills alone
            with autocast:
                seen, far = adversarial_loss(discriminator, true[people], ours[people])
                out["discriminator"] = discriminator_loss(discriminator, true[people], ours[people])
            out["adversary"] = seen * _share(seen, WEIGHTS["mouth"] * out["mouth"], ours)
            out["features"] = far

    if len(batch.driver):  # on stills, what lips uncover is what is drawn; film's pictures say where it shall be seen
        out["share"] = (fields.share[stills][:, 0] - batch.behind).abs().mean()

    # what lies between the lips is new: say so while landmarks judge, or the lips stretch over it for good
    cover, inside = covers["mouth"], batch.inside.flatten(0, 1).flatten(1)
    out["inside"] = ((cover - inside).square() * (1 + 6 * inside)).mean()

    # where lips meet, and met in the portrait, nothing new can be seen: too thin a line for the above to matter there
    upper, lower = (batch.landmarks[:, :, side] for side in LIP_PAIRS)
    meet = ((lower - upper).norm(dim=-1) < TOUCHING * batch.mouth[:, None, None, 2]).float()
    meet = (meet[:, 1:] * meet[:, :1]).flatten(0, 1)
    cover = motion.trace(((upper + lower) / 2)[:, 1:].flatten(0, 1))[2][..., 0]
    out["touch"] = (cover.square() * meet).sum() / meet.sum().clamp(min=50)

    # and so is a lid that comes down; beside it, textures may paint where the eyes look
    cover, lids = covers["eyes"], batch.lids.flatten(0, 1).flatten(1)
    out["cover"] = ((cover - lids).square() * (0.1 + 6 * lids)).mean()

    points = batch.landmarks[:, 1:].flatten(0, 1)
    source, _, _ = motion.trace(points)
    off = (source - batch.landmarks[:, :1].expand(-1, times, -1, -1).flatten(0, 1)).abs().sum(-1)
    care = torch.ones(off.shape[1], device=off.device)
    care[LIPS + EYELIDS] = 8.0
    out["landmarks"] = (off * care).mean()
    difference = (encoded - batch.latents) * batch.real[:, None, None]
    inside = difference - difference.mean(1, keepdim=True)
    out["latent"] = inside.pow(2).mean() + 0.3 * difference[..., :POSE].pow(2).mean() + 0.1 * difference.pow(2).mean()
    out["range"] = (encoded.abs() - 3).clamp(min=0).pow(2).mean()
    return out


WEIGHTS = {
    "picture": 4.0,
    "mouth": 3.0,
    "mouth_gradient": 2.0,
    "eyes": 1.5,
    "eyes_gradient": 1.0,
    "lids": 0.5,
    "cavity": 0.6,
    "painted": 1.6,
    "touch": 0.6,
    "share": 1.5,
    "perceptual": 0.07,
    "range": 0.1,
    "matte": 0.5,
    "adversary": 0.8,  # of the strength of the mouth's own loss
    "features": 0.25,
    "discriminator": 1.0,  # reaches the discriminator alone
}
LANDMARK_WEIGHTS = {"landmarks": 6.0, "latent": 0.6, "inside": 0.6, "cover": 2.0}


@torch.no_grad()
def validate(model: Renderer, sampler: Sampler, clips: list[dict], sheet: Path | None) -> dict[str, float]:
    """L1 in the face, mouth and eyes windows of held-out clips, over L1 of copying the portrait."""
    model.eval()
    sums = dict.fromkeys(("face", "mouth", "eyes"), 0.0)
    copies = dict(sums)
    rows = []
    for number, clip in enumerate(clips):
        rng = np.random.default_rng(number)
        part = sampler.draw(clip, rng)
        device = next(model.parameters()).device
        batch = collate([part]).on(device)
        frames, mouth, eyes = batch.frames, batch.mouth, batch.eyes
        with half(device.type):
            latent = encode(model, frames, mouth, eyes)
            fields = portrait_fields(model, frames[:, 0], mouth, eyes)
        weights = model.coefficients(latent)
        motion = mix(model.shape, fields, away(weights), mouth, eyes, batch.held, batch.shut)
        targets = frames[0, 1:]
        portrait = frames[:, 0].expand(len(targets), -1, -1, -1)
        matte = F.interpolate(fields.matte.sigmoid(), scale_factor=2.0, mode="bilinear", align_corners=False)
        parted = layers(frames[:, 0], matte)[torch.zeros(len(targets), dtype=torch.long, device=device)]
        face = batch.target_mouth[0].clone()
        unit = face[:, 2:3] / 2.1
        face = torch.cat([face[:, :2] + face[:, 2:] / 2 - unit * torch.tensor([1.4, 2.1], device=device),
                          unit * torch.tensor([2.8, 3.2], device=device)], 1)  # fmt: skip
        regions = {"face": (face, 112, 98), "mouth": (batch.target_mouth[0], 64, 64),
                   "eyes": (batch.target_eyes[0], 32, 64)}  # fmt: skip
        for name, (box, height, width) in regions.items():
            points = grid_points(box, height, width)
            true = sample(targets, points)
            ours = render_layers(motion, parted, points) if name == "face" else render(motion, portrait, points)
            sums[name] += float((ours.clamp(0, 1) - true).abs().mean())
            copies[name] += float((sample(portrait, points) - true).abs().mean())
        if sheet is not None and number < 10:
            points = grid_points(torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=device).expand(2, 4), 192, 192)
            two = replace(motion, **{name: field[:2] for name, field in vars(motion).items()})
            ours = render_layers(two, parted[:2], points).view(2, 192, 192, 3)
            true = sample(targets[:2], points).view(2, 192, 192, 3)
            still = sample(portrait[:1], points[:1]).view(192, 192, 3)
            rows.append(torch.cat([still, true[0], ours[0], true[1], ours[1]], 1).clamp(0, 1).cpu().numpy())
    if sheet is not None:
        column = max(1, len(rows) // 2)
        columns = [np.concatenate(rows[at : at + column]) for at in range(0, 2 * column, column) if rows[at:]]
        picture = np.concatenate(columns, 1)
        cv2.imwrite(str(sheet), (picture[..., ::-1] * 255).round().astype(np.uint8))
    model.train()
    return {f"{name}_ratio": sums[name] / copies[name] for name in sums}


def load_modes(cache: Cache, folder: Path) -> Modes:
    """Motion modes of the cache's training clips, fitted once."""
    path = folder / FILE
    if not path.is_file():
        clips = [cache.landmarks_of(clip) for clip in cache.split("train") if clip["count"] > 3]
        fit_modes(clips, EXPRESSIONS).save(path)
    return Modes.load(path)


def spread(clips: list[dict], count: int) -> list[dict]:
    """`count` moving clips, evenly over the list."""
    moving = [clip for clip in clips if clip["count"] > 2]
    return [moving[i] for i in np.unique(np.linspace(0, len(moving) - 1, min(count, len(moving))).astype(int))]


def open_run(folder: Path, device: str, weights: Path | None = None) -> Run:
    """A run of stage 1: as its checkpoint left it, or new (from a weights folder, if given)."""
    model = Renderer().to(device).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), Schedule.rate, weight_decay=1e-3, betas=(0.9, 0.98))
    if weights is not None:
        start_from_weights(model, folder, weights, "renderer")
    return Run.open(folder, model, optimiser)


def open_adversary(folder: Path, device: str) -> Run:
    """The discriminator of a run of stage 1, kept beside it."""
    (folder / "adversary").mkdir(exist_ok=True)
    judge = Discriminator().to(device)
    return Run.open(folder / "adversary", judge, torch.optim.Adam(judge.parameters(), 5e-4, betas=(0.0, 0.99)))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cache", type=Path, required=True, help="folder made by `ifmdm train prepare`")
    parser.add_argument("--run", type=Path, required=True, help="folder of this run: checkpoint, log, sheets")
    parser.add_argument("--from", type=Path, dest="weights", help="weights, or another run, that a new run starts from")
    parser.add_argument("--steps", type=int, default=4000, help="length of the whole schedule")
    parser.add_argument("--start", type=int, default=0, help="step that a new run begins with (with --from: past a "
                        "quarter of the bootstrap, or latents come from landmarks again)")  # fmt: skip
    parser.add_argument("--bootstrap", type=int, help="length of the bootstrap's schedule, if not that of the run")
    keep = parser.add_mutually_exclusive_group()
    keep.add_argument("--keep-encoder", action="store_true", help="train portrait and coefficients alone")
    keep.add_argument("--keep-portrait", action="store_true", help="train encoder and coefficients alone: two thirds "
                      "of a step's cost")  # fmt: skip
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop (resumably) after this long")
    parser.add_argument("--batch", type=int, default=12, help="clips a step")
    parser.add_argument("--targets", type=int, default=5, help="targets a clip")
    parser.add_argument("--perceptual-from", type=int, default=10**9, help="step from which the perceptual loss counts")
    parser.add_argument("--adversary-from", type=int, default=10**9, help="step from which the adversary counts")
    parser.add_argument("--rate", type=float, default=Schedule.rate, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="processes that draw batches; one for each core that a "
                        "GPU has beside it (default: a thread)")  # fmt: skip
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def run(args: argparse.Namespace) -> int:
    schedule = Schedule(args.steps, args.bootstrap or args.steps, args.start, rate=args.rate)
    if args.weights is not None and schedule.teacher(args.start) > 0:
        least = math.ceil(schedule.encoder_from * schedule.bootstrap)
        raise InputError(f"--from: before step {least} landmarks say what the latents are, not the encoder that the "
                         f"weights have; give --start {least} or later, and --steps beyond it")  # fmt: skip
    cache = Cache.open(args.cache)
    modes = load_modes(cache, args.cache)
    state = open_run(args.run, args.device, args.weights)
    args.run.mkdir(parents=True, exist_ok=True)
    adversary = open_adversary(args.run, args.device) if args.adversary_from < args.steps else None
    state.step = max(state.step, args.start)
    model, optimiser, average, step = state.model, state.optimiser, state.average, state.step
    for apart in (model.portrait.place, model.portrait.sight, model.portrait.lips, model.coefficients.gauges):
        apart.requires_grad_(False)  # they learn apart, see place.py and gauges.py
    train = Sampler(cache, modes, cache.split("train"), args.targets)
    held = Sampler(cache, modes, cache.split("val"), args.targets, augment=False, stills=False)
    held_clips = spread(cache.split("val"), VALIDATION_CLIPS)
    if not held_clips:
        raise InputError(f"{args.cache}: no clip of val that moves, to judge by; prepare one")
    perceptual = Perceptual().to(args.device) if args.perceptual_from < args.steps else None
    config = {"arguments": vars(args), "schedule": asdict(schedule), "shape": asdict(model.shape)}
    (args.run / "config.json").write_text(json.dumps(config, indent=1, default=str))

    def save() -> None:
        state.save()
        if adversary is not None:
            adversary.save()

    def check() -> None:
        judge = Renderer(model.shape).to(args.device)
        judge.load_state_dict(average)
        state.report(validate(judge, held, held_clips, args.run / f"sheet_{step:06d}.png"))

    if args.keep_encoder or schedule.frozen(step):
        state.settle("encoder")
    if args.keep_portrait:
        state.settle("portrait")
    started, totals, since = time.monotonic(), {}, 0
    for batch in ahead(partial(train.batch, args.batch, args.seed), range(step, args.steps), args.workers):
        if time.monotonic() - started >= args.minutes * 60:
            break
        batch = batch.on(args.device)
        torch.manual_seed(args.seed * 1_000_003 + step)
        if step > 0 and schedule.frozen(step) and not schedule.frozen(step - 1):
            state.settle("encoder")
        set_rate(optimiser, schedule.learning_rate(step))
        teacher = torch.rand(args.batch, device=args.device) < schedule.teacher(step)
        judge = perceptual if step >= args.perceptual_from else None
        learns = not (args.keep_encoder or schedule.frozen(step))
        fought = adversary.model if adversary is not None and step >= args.adversary_from else None
        terms = losses(model, batch, teacher, judge, learns, fought, not args.keep_portrait)
        weights = WEIGHTS | {k: v * schedule.landmarks(step) for k, v in LANDMARK_WEIGHTS.items()}
        weights["latent"] *= schedule.tied(step)
        # the adversary must have learned something before it is listened to
        weights["adversary"] *= float(np.clip((step - args.adversary_from) / ADVERSARY_WARMUP, 0, 1))
        loss = sum(weights[name] * value for name, value in terms.items())
        optimiser.zero_grad(set_to_none=True)
        if fought is not None:
            adversary.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if fought is not None:
            adversary.optimiser.step()
            adversary.advance(0.99)
        step, since = state.advance(0.995), since + 1
        for name, value in terms.items():
            totals[name] = totals.get(name, 0.0) + float(value.detach())
        if step % 50 == 0:
            means = {name: value / since for name, value in totals.items()}
            rate = (time.monotonic() - started) / 60
            print(
                f"step {step} {rate:.1f} min " + " ".join(f"{k} {v:.4f}" for k, v in means.items()),
                flush=True,
            )
            append(args.run / "train.jsonl", {"step": step} | means)
            totals, since = {}, 0
        if step % 100 == 0:
            save()
        if step % 200 == 0:
            check()
    save()
    if step % 200:  # the end, or no more time
        check()
    return 0
