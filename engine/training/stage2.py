"""`ifmdm train motion`: stage 2, the motion diffusion transformer, on the frozen latents of stage 1.

Flow matching (Lipman et al. 2023, with the straight paths of Liu et al. 2023): x_t = (1 - t) x + t e, the network
learns e - x. Windows start with a random clean prefix; speech and statistics are dropped at random, so that guidance
(Ho and Salimans 2022) and unconditional motion come from the same weights. The speech encoder, taught by a recogniser
(see distil.py), stays as it is or learns along: what of speech shows on lips is not all that tells words apart.
"""

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from engine.errors import InputError
from engine.features import FFT, HOP, LATENT_HOP, WINDOW, hann, mel_filters
from engine.motion.network import MotionShape, MotionTransformer, SpeechEncoder
from engine.training import readings
from engine.training.ahead import ahead
from engine.training.checkpoint import Run, cosine_rate, load_learned, set_rate, shipped_part, start_from_weights
from engine.training.microphones import augment
from engine.training.precision import half
from engine.training.readings import Reading

DROP_SPEECH, DROP_STATISTICS = 0.1, 0.15
SPEEDS = (0.87, 1.14)
#: How many of the windows are read by a synthesiser (if there are readings), and what their lips weigh in the loss.
READ_SHARE, READ_WEIGHT = 0.2, 1.5
#: The mean of a clip of a second or two tells where its head will yet go, which nobody knows at run time: who believes
#: it makes up for each turn by one to the other side. So it is told wrongly, by so many of the clip's own deviations,
#: in all that moves neither lips nor lids.
ASTRAY = 1.0
#: Who learns lips from film over and over learns the film by heart. So where another speaker teaches them, this share
#: of what is learned of lips and lids is what that one says rather than what was filmed (Furlanello et al. 2018, "Born
#: again neural networks").
KEEP = 0.8
#: Windows of each source are drawn by seconds of speech times this: few minutes of other languages and people must
#: weigh against the many of one newsroom.
SOURCE_WEIGHT = {"lrc_ar": 1.0, "grid": 0.8, "talkvid": 3.0, "vasa1": 3.0}


@dataclass(frozen=True)
class Corpus:
    """Latents and audio of all clips (see latents.py). latents (N, D) float32; audio (M,) float16 at 16 kHz."""

    latents: np.ndarray
    audio: np.ndarray
    clips: list[dict]  # manifest row, start, count (latents), audio_start, audio_count; late (frames): see align.py

    @classmethod
    def open(cls, folder: Path) -> "Corpus":
        if not (folder / "latents.json").is_file():
            raise InputError(f"{folder}: no latents here; make them with `ifmdm train latents`")
        return cls(
            np.load(folder / "latents.npy"),
            np.load(folder / "audio.npy", mmap_mode="r"),
            json.loads((folder / "latents.json").read_text()),
        )

    def split(self, name: str) -> list[dict]:
        """Clips of "train" or "val" that last 20 latents. Raises InputError where there are none."""
        clips = [clip for clip in self.clips if clip["split"] == name and clip["count"] >= 20]
        if not clips:
            raise InputError(f"no clip of {name} among the latents that lasts 0.8 s; training learns from those of "
                             "train and is judged by those of val")  # fmt: skip
        return clips

    def latents_of(self, clip: dict) -> np.ndarray:
        return self.latents[clip["start"] : clip["start"] + clip["count"]]

    def audio_of(self, clip: dict) -> np.ndarray:
        audio = self.audio[clip["audio_start"] : clip["audio_start"] + clip["audio_count"]].astype(np.float32)
        wanted, late = clip["count"] * LATENT_HOP, round(clip.get("late", 0.0) * LATENT_HOP)
        audio = audio[late:] if late > 0 else np.pad(audio, (-late, 0))
        return np.pad(audio, (0, max(0, wanted - len(audio))))[:wanted]


@dataclass(frozen=True)
class Normaliser:
    """Latents <-> what the transformer sees. centre and total (D,): mean and deviation over all clips, for the mean
    condition; within (D,): deviation inside clips, for the motion itself."""

    centre: np.ndarray
    total: np.ndarray
    within: np.ndarray

    @classmethod
    def fit(cls, corpus: Corpus, clips: list[dict]) -> "Normaliser":
        parts = [corpus.latents_of(clip) for clip in clips]
        every = np.concatenate(parts)
        inside = np.concatenate([part - part.mean(0) for part in parts])
        return cls(every.mean(0), every.std(0), np.maximum(inside.std(0), 1e-4))

    @classmethod
    def load(cls, folder: Path) -> "Normaliser":
        """That of a run of `ifmdm train motion`, or of a weights folder. Raises InputError."""
        if (folder / "weights.safetensors").is_file():
            known = {name: array.numpy() for name, array in shipped_part(folder, "runtime").items()}
        elif (folder / "normaliser.npz").is_file():
            known = np.load(folder / "normaliser.npz", allow_pickle=False)
        else:
            raise InputError(f"{folder}: no run of `ifmdm train motion` that was begun, and no weights")
        return cls(*(known[name] for name in ("centre", "total", "within")))

    def statistics(self, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
        """Mean and deviation (D,) of a clip's latents -> the condition (2 D,)."""
        spread = np.log(np.maximum(deviation, 1e-4) / self.within)
        return np.concatenate([(mean - self.centre) / self.total, np.clip(spread, -2.5, 2.5)]).astype(np.float32)


def log_mel(audio: Tensor, filters: Tensor, window: Tensor) -> Tensor:
    """Batched twin of engine.features.LogMel: audio (B, WINDOW - HOP + n * 640) -> (B, 2 n, 64)."""
    frames = audio.unfold(1, WINDOW, HOP) * window
    power = torch.fft.rfft(frames, FFT).abs().square()
    return torch.log10((power @ filters).clamp(min=1e-7)) * 0.5 + 2.0


def warp_features(features: Tensor, generator: torch.Generator) -> Tensor:
    """Other voices and rooms: shift the bands a little (vocal tract length), tilt and bend the spectrum."""
    batch, _, bands = features.shape
    shift = torch.rand(batch, 1, generator=generator).to(features.device) * 0.16 - 0.08
    at = torch.arange(bands, device=features.device)[None] * (1 + shift)
    low = at.floor().clamp(0, bands - 2).long()
    part = (at - low).clamp(0, 1)[:, None]
    index = low[:, None].expand(-1, features.shape[1], -1)
    features = features.gather(2, index) * (1 - part) + features.gather(2, index + 1) * part
    knots = torch.randn(batch, 1, 4, generator=generator).to(features.device) * 0.12
    return features + torch.nn.functional.interpolate(knots, bands, mode="linear", align_corners=True)


def at_speed(track: np.ndarray, speed: float) -> np.ndarray:
    """(n, ...) played `speed` times as fast. Speech gets another pitch and other resonances, as if of another head."""
    at = np.arange(0, len(track) - 1, speed)
    low = np.minimum(at.astype(np.int64), len(track) - 2)  # the last of `at` may be rounded up to the end
    part = (at - low).astype(np.float32).reshape(-1, *[1] * (track.ndim - 1))
    return track[low] * (1 - part) + track[low + 1] * part


@dataclass
class Windows:
    """A batch for the transformer; shapes as in MotionTransformer.forward, features (B, 2 W, 64)."""

    latents: Tensor
    present: Tensor
    features: Tensor
    statistics: Tensor
    true: Tensor  # (B, 2 D) the statistics as they are, see ASTRAY
    prefix: Tensor  # (B,) length of the clean past, counted from the first present token
    read: Tensor  # (B,) 1 where only the lips' opening is right: a synthesiser read it


def watched(care: np.ndarray) -> np.ndarray:
    """care (D, M), see latents.py -> (D, 4) orthonormal: what of the normalised latent moves lips and lids."""
    return np.linalg.qr(care[:, len(care) : len(care) + 4])[0]


@dataclass(frozen=True)
class Lips:
    """How the lips' opening is read off normalised latents, reading (D,), and what else moves as they open: along (D,),
    the change of the latents that goes with a unit of it in film."""

    reading: np.ndarray
    along: np.ndarray

    @classmethod
    def fit(cls, corpus: Corpus, clips: list[dict], normaliser: Normaliser, reading: np.ndarray) -> "Lips":
        parts = [corpus.latents_of(clip) for clip in clips]
        inside = np.concatenate([z - z.mean(0) for z in parts]) / normaliser.within
        opening = inside @ reading
        return cls(reading, (inside.T @ opening / (opening @ opening)).astype(np.float32))

    def put(self, latents: np.ndarray, opening: np.ndarray) -> np.ndarray:
        """Normalised latents (n, D), their lips made as open as (n,) says."""
        return latents + (opening - latents @ self.reading)[:, None] * self.along


class WindowSampler:
    """Draws windows; the same seed and step give the same batch."""

    def __init__(
        self, corpus: Corpus, clips: list[dict], normaliser: Normaliser, shape: MotionShape,
        readings: list[Reading] | None = None, care: np.ndarray | None = None,
    ):  # fmt: skip
        """readings: see readings.py; care (D, M): needed to augment, to know what moves lips and lids."""
        self.corpus, self.clips, self.normaliser, self.shape = corpus, clips, normaliser, shape
        self.readings, self.lips, self.watched = readings or [], None, None
        if care is not None:
            self.watched = watched(care)
        if self.readings:
            self.lips = Lips.fit(corpus, clips, normaliser, care[:, shape.latent])
        weight = np.array([clip["count"] * SOURCE_WEIGHT.get(clip["source"], 1.0) for clip in clips])
        self.weight = weight / weight.sum()
        self.filters, self.window = torch.from_numpy(mel_filters()), torch.from_numpy(hann())

    def starts(self, clips: list[dict]) -> Windows:
        """Each clip's first window, as it is."""
        length = self.shape.window
        latents = np.zeros((len(clips), length, self.shape.latent), np.float32)
        present = np.zeros((len(clips), length), np.float32)
        audio = np.zeros((len(clips), WINDOW - HOP + length * LATENT_HOP), np.float32)
        statistics = np.zeros((len(clips), 2 * self.shape.latent), np.float32)
        for row, clip in enumerate(clips):
            z = self.corpus.latents_of(clip)
            count = min(length, len(z))
            latents[row, :count] = (z[:count] - z.mean(0)) / self.normaliser.within
            present[row, :count] = 1
            audio[row, WINDOW - HOP :][: count * LATENT_HOP] = self.corpus.audio_of(clip)[: count * LATENT_HOP]
            statistics[row] = self.normaliser.statistics(z.mean(0), z.std(0))
        features = log_mel(torch.from_numpy(audio), self.filters, self.window)
        latents, present, statistics = (torch.from_numpy(x) for x in (latents, present, statistics))
        none = torch.zeros(len(clips))
        return Windows(latents, present, features, statistics, statistics, none.long(), none)

    def batch(self, size: int, seed: int, step: int, augmented: bool = True) -> Windows:
        rng = np.random.default_rng((seed, step))
        length = self.shape.window
        latents = np.zeros((size, length, self.shape.latent), np.float32)
        present = np.zeros((size, length), np.float32)
        audio = np.zeros((size, WINDOW - HOP + length * LATENT_HOP), np.float32)
        statistics, true = np.zeros((2, size, 2 * self.shape.latent), np.float32)
        read = np.zeros(size, np.float32)
        for row, pick in enumerate(rng.choice(len(self.clips), size, p=self.weight)):
            clip = self.clips[pick]
            z, sound = self.corpus.latents_of(clip), self.corpus.audio_of(clip)
            if augmented and self.readings and rng.random() < READ_SHARE:
                read[row] = 1
                z, sound = self._read(z, self.readings[rng.integers(len(self.readings))], rng)
            if augmented and rng.random() < 0.6:
                speed = float(rng.uniform(*SPEEDS))
                z, sound = at_speed(z, speed), at_speed(sound, speed)
            if augmented:
                sound = augment(sound, rng)
            count = min(length, len(z))
            if augmented and rng.random() < 0.35:  # streams begin: a past of nothing, then little by little
                count = int(rng.integers(8, count + 1))
            at = rng.integers(len(z) - count + 1)
            mean, deviation = z.mean(0), z.std(0)
            # a clip shorter than the window sits at either end of it: streams begin, and pasts are cut off
            left = rng.integers(length - count + 1) if rng.random() < 0.3 else length - count
            latents[row, left : left + count] = (z[at : at + count] - mean) / self.normaliser.within
            present[row, left : left + count] = 1
            head = WINDOW - HOP
            piece = sound[max(0, at * LATENT_HOP - head) : (at + count) * LATENT_HOP]
            end = head + (left + count) * LATENT_HOP
            audio[row, end - len(piece) : end] = piece
            true[row] = statistics[row] = self.normaliser.statistics(mean, deviation)
            if augmented:
                mean = mean + self._astray(deviation / self.normaliser.within, rng) * self.normaliser.within
                statistics[row] = self.normaliser.statistics(mean, deviation)
        features = log_mel(torch.from_numpy(audio), self.filters, self.window)
        if augmented:
            features = warp_features(features, torch.Generator().manual_seed(int(rng.integers(2**31))))
        count = present.sum(1)
        prefix = np.where(rng.random(size) < 0.15, rng.integers(0, 3, size), rng.random(size) * (count - 6))
        return Windows(
            torch.from_numpy(latents),
            torch.from_numpy(present),
            features,
            torch.from_numpy(statistics),
            torch.from_numpy(true),
            torch.from_numpy(np.maximum(prefix, 0).astype(np.int64)),
            torch.from_numpy(read),
        )

    def _astray(self, deviation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(D,) by how much another centre a clip of normalised deviation (D,) is told."""
        off = ASTRAY * deviation * rng.standard_normal(len(deviation))
        return (off - self.watched @ (off @ self.watched)).astype(np.float32)

    def _read(self, z: np.ndarray, reading: Reading, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A clip's latents (n, D) with the lips of a reading, as wide as the clip's own, and the reading's sound."""
        count = min(len(z), len(reading.opening))
        first, then = rng.integers(len(z) - count + 1), rng.integers(len(reading.opening) - count + 1)
        z, opening = z[first : first + count], reading.opening[then : then + count]
        inside = (z - z.mean(0)) / self.normaliser.within
        lips = (opening - opening.mean()) / max(float(opening.std()), 0.1) * (inside @ self.lips.reading).std()
        inside = self.lips.put(inside, lips.astype(np.float32))
        return inside * self.normaliser.within + z.mean(0), reading.samples[then * LATENT_HOP :][: count * LATENT_HOP]


def flow_loss(
    model: MotionTransformer, batch: Windows, speech: Tensor, generator: torch.Generator, care: Tensor,
    elder: "Elder | None" = None,
) -> Tensor:  # fmt: skip
    """Flow-matching loss on the tokens after the prefix, weighed by care (D, M): what of an error matters. speech
    (B, W, S): what the speech encoder makes of the batch's features. elder: what teaches the lips."""
    latents, present = batch.latents, batch.present
    size = len(latents)
    device = latents.device
    order = present.cumsum(1) - 1  # index among present tokens
    past = ((order < batch.prefix[:, None]) & (present > 0)).float()
    # more of the time near pure noise, where few-step sampling lives or dies
    t = torch.sigmoid(torch.randn(size, 1, generator=generator) + 0.3).to(device)
    t = torch.where(torch.rand(size, 1, generator=generator).to(device) < 0.15, torch.ones_like(t), t)
    noise = torch.randn(latents.shape, generator=generator).to(device)
    level = t * (1 - past)
    # the past at run time is what the model itself made: a little wrong
    blur = torch.randn(latents.shape, generator=generator).to(device) * 0.05
    mixed = latents * (1 - level[..., None]) + noise * level[..., None] + blur * past[..., None]
    hears = (torch.rand(size, generator=generator) > DROP_SPEECH).float().to(device)
    knows = (torch.rand(size, generator=generator) > DROP_STATISTICS).float().to(device)
    with half(device.type):
        velocity = model(mixed, level, past, present, speech, hears, batch.statistics, knows).float()
    new = (present * (1 - past))[..., None]
    flow = noise - latents
    if elder is not None:
        said = elder(mixed, level, past, present, batch.features, hears, batch.true, knows)
        share = KEEP * (1 - batch.read[:, None, None])
        flow = flow + share * ((said - flow) @ elder.watched) @ elder.watched.T
    error = (velocity - flow) @ care
    lips = torch.zeros(care.shape[1], device=device)
    lips[care.shape[0]] = READ_WEIGHT  # the first of the watched distances, see latents.py
    error = error * torch.where(batch.read[:, None, None] > 0, lips, torch.ones_like(lips))
    return (error.square() * new).sum() / (new.sum() * care.square().sum())


@torch.no_grad()
def generate(
    model: MotionTransformer,
    speech: Tensor,
    first: Tensor,
    statistics: Tensor,
    steps: int = 4,
    guidance: float = 1.0,
    seed: int = 0,
) -> Tensor:
    """Offline check during training: one window from speech alone, after one known latent. speech (B, W, S), first
    (B, D) normalised, statistics (B, 2 D) -> (B, W, D) normalised."""  # fmt: skip
    size, length = len(speech), model.shape.window
    x = torch.randn(size, length, model.shape.latent, generator=torch.Generator().manual_seed(seed)).to(speech.device)
    past = torch.zeros(size, length, device=speech.device)
    past[:, 0] = 1
    present, one = torch.ones_like(past), torch.ones(size, device=speech.device)
    times = torch.linspace(1, 0, steps + 1)
    for now, then in pairwise(times):
        x[:, 0] = first
        level = now * (1 - past)
        velocity = model(x, level, past, present, speech, one, statistics, one)
        if guidance != 1.0:
            blind = model(x, level, past, present, speech, 0 * one, statistics, one)
            velocity = blind + guidance * (velocity - blind)
        x = x + (then - now) * velocity
    x[:, 0] = first
    return x


def held_out(
    model: MotionTransformer, encoder: SpeechEncoder, sampler: WindowSampler, care: Tensor, device: str
) -> dict[str, float]:
    """Loss, and the correlation of generated with real lips (the first watched distance of care, see latents.py) in
    windows generated from speech and one latent, beside the same with another clip's speech."""
    model.eval()
    losses, right, wrong, spread = [], [], [], []
    lips = care[:, care.shape[0]]
    for step in range(4):
        batch = sampler.batch(48, 12345, step, augmented=False)
        batch = Windows(**{k: v.to(device) for k, v in vars(batch).items()})
        with torch.no_grad():
            speech = encoder(batch.features)
            losses.append(float(flow_loss(model, batch, speech, torch.Generator().manual_seed(step), care)))
        keep = batch.present[:, 0] > 0  # windows that fill from the left
        mask = batch.present[keep]
        true = _centred(batch.latents[keep] @ lips, mask)
        for out, heard in ((right, speech[keep]), (wrong, speech[keep].roll(1, 0))):
            made = generate(model, heard, batch.latents[keep][:, 0], batch.statistics[keep])
            made = _centred(made @ lips, mask)
            if out is right:
                spread.append((made.square().sum(1) / true.square().sum(1).clamp(min=1e-6)).sqrt())
            out.append((true * made).sum(1) / (true.square().sum(1) * made.square().sum(1)).sqrt().clamp(min=1e-6))
    model.train()
    return {
        "loss": float(np.mean(losses)),
        "lips_correlation": float(torch.cat(right).mean()),
        "other_voice": float(torch.cat(wrong).mean()),
        "lips_spread": float(torch.cat(spread).median()),
    }


def _centred(x: Tensor, mask: Tensor) -> Tensor:
    """(B, W) less its mean where mask is 1, zero elsewhere."""
    return (x - (x * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)) * mask


class Speaker(nn.Module):
    """All that learns in stage 2: the transformer, and the speech encoder that it listens through."""

    def __init__(self, motion: MotionTransformer, speech: SpeechEncoder):
        super().__init__()
        self.motion, self.speech = motion, speech


@dataclass(frozen=True)
class Elder:
    """A speaker that has learned already, and teaches another how lips and lids move (KEEP). It knows the statistics as
    they are. watched (D, 4): see there."""

    speaker: Speaker
    watched: Tensor

    @classmethod
    def of(cls, weights: Path, shape: MotionShape, care: Tensor) -> "Elder":
        """That of a weights folder, which does not learn. Raises InputError."""
        speaker = Speaker(MotionTransformer(shape), SpeechEncoder(shape.speech)).to(care.device)
        for part in ("motion", "speech"):
            load_learned(getattr(speaker, part), weights, part)
        watched_there = torch.from_numpy(watched(care.cpu().numpy())).to(care.device)
        return cls(speaker.eval().requires_grad_(False), watched_there)

    @torch.no_grad()
    def __call__(self, mixed, level, past, present, features, hears, statistics, knows) -> Tensor:
        """As MotionTransformer.forward, of features instead of speech."""
        with half(mixed.device.type):
            speech = self.speaker.speech(features)
            return self.speaker.motion(mixed, level, past, present, speech, hears, statistics, knows).float()


def load_motion(folder: Path, shape: MotionShape) -> MotionTransformer:
    """The transformer of a run of `ifmdm train motion`, or of a weights folder. Raises InputError."""
    model = MotionTransformer(shape).eval()
    load_learned(model, folder, "motion")
    return model


def load_speech(folder: Path, shape: MotionShape) -> SpeechEncoder:
    """The speech encoder of a run of `ifmdm train speech` or `ifmdm train motion`, or of a weights folder. It stays as
    it is. Raises InputError."""
    encoder = SpeechEncoder(shape.speech).eval().requires_grad_(False)
    load_learned(encoder, folder, "speech")
    return encoder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--latents", type=Path, required=True, help="folder made by `ifmdm train latents`")
    parser.add_argument("--speech", type=Path, required=True, help="run folder of `ifmdm train speech` or "
                        "`motion`, or weights")  # fmt: skip
    parser.add_argument("--tune-speech", type=float, default=0.0, metavar="SHARE", help="let the speech encoder learn "
                        "along, at this share of the rate")  # fmt: skip
    parser.add_argument("--run", type=Path, required=True, help="folder of this run: checkpoint and log")
    parser.add_argument("--from", type=Path, dest="weights", help="weights, or another run, that a new run starts from")
    parser.add_argument("--elder", type=Path, metavar="WEIGHTS", help="weights folder that lips and lids are learned "
                        "from rather than from film")  # fmt: skip
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop (resumably) after this long")
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--rate", type=float, default=6e-4)
    parser.add_argument("--readings", type=int, default=0, help="learn closures from so many texts, read by espeak-ng")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="as of `ifmdm train renderer`")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def run(args: argparse.Namespace) -> int:
    corpus = Corpus.open(args.latents)
    clips, others = corpus.split("train"), corpus.split("val")
    normaliser = Normaliser.fit(corpus, clips)
    shape = MotionShape(latent=corpus.latents.shape[1])
    weighing = np.load(args.latents / "care.npy")
    care = torch.from_numpy(weighing).to(args.device)
    spoken = []
    for reading in readings.read(args.readings, args.seed):
        spoken.append(reading)
        if len(spoken) % 100 == 0:
            print(f"{len(spoken)}/{args.readings} texts read", flush=True)
    train = WindowSampler(corpus, clips, normaliser, shape, spoken, weighing)
    held = WindowSampler(corpus, others, normaliser, shape)
    speech = load_speech(args.speech, shape)
    torch.manual_seed(args.seed)
    model = Speaker(MotionTransformer(shape), speech.requires_grad_(args.tune_speech > 0)).to(args.device)
    groups = [{"params": list(model.motion.parameters())}]
    if args.tune_speech > 0:
        groups.append({"params": list(model.speech.parameters()), "share": args.tune_speech})
    optimiser = torch.optim.AdamW(groups, args.rate, weight_decay=0.03, betas=(0.9, 0.98))
    elder = Elder.of(args.elder, shape, care) if args.elder is not None else None
    if args.weights is not None:
        start_from_weights(model.motion, args.run, args.weights, "motion")
    state = Run.open(args.run, model, optimiser)
    args.run.mkdir(parents=True, exist_ok=True)
    step = state.step
    np.savez(args.run / "normaliser.npz", **vars(normaliser))
    config = {"arguments": vars(args), "shape": asdict(shape)}
    (args.run / "config.json").write_text(json.dumps(config, indent=1, default=str))

    def save() -> None:
        state.save()
        judge = Speaker(MotionTransformer(shape), SpeechEncoder(shape.speech)).to(args.device)
        judge.load_state_dict(state.average)
        state.report(held_out(judge.motion, judge.speech, held, care, args.device))

    started, total, since = time.monotonic(), 0.0, 0
    for batch in ahead(partial(train.batch, args.batch, args.seed), range(step, args.steps), args.workers):
        if time.monotonic() - started >= args.minutes * 60:
            break
        batch = Windows(**{k: v.to(args.device) for k, v in vars(batch).items()})
        set_rate(optimiser, cosine_rate(args.rate, step, args.steps, 200, 0.02))
        torch.manual_seed(args.seed * 1_000_003 + step)  # of dropout
        with half(args.device):
            heard = model.speech(batch.features).float()
        noise = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        loss = flow_loss(model.motion, batch, heard, noise, care, elder)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step, since, total = state.advance(0.998), since + 1, total + float(loss.detach())
        if step % 100 == 0:
            print(
                f"step {step} {(time.monotonic() - started) / 60:.1f} min loss {total / since:.4f}",
                flush=True,
            )
            total, since = 0.0, 0
        if step % 400 == 0:
            save()
    if step % 400:  # the end, or no more time
        save()
    return 0
