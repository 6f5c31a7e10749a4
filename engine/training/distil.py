"""`ifmdm train speech`: the speech encoder of stage 2 learns what a speech recogniser hears (see teacher.py).

Windows are as long as at run time, and the teacher has heard what came before and after them: the student learns to
say as much as can be known so far. Its input is disturbed as microphones and rooms disturb it, the teacher's was clean.
"""

import argparse
import json
import math
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.errors import InputError
from engine.features import HOP, LATENT_HOP, WINDOW, hann, mel_filters
from engine.motion.network import MotionShape, SpeechEncoder
from engine.training.ahead import ahead
from engine.training.checkpoint import Run, cosine_rate, set_rate
from engine.training.microphones import augment
from engine.training.precision import half
from engine.training.stage2 import log_mel, warp_features
from engine.training.teacher import WIDTH


@dataclass(frozen=True)
class Lessons:
    """A folder made by `ifmdm train teacher`. features (N, 384), audio (640 N,)."""

    features: np.ndarray
    audio: np.ndarray
    clips: list[dict]

    @classmethod
    def open(cls, folder: Path) -> "Lessons":
        if not (folder / "teacher.json").is_file():
            raise InputError(f"{folder}: no lessons here; make them with `ifmdm train teacher`")
        arrays = (np.load(folder / name, mmap_mode="r") for name in ("features.npy", "audio.npy"))
        return cls(*arrays, json.loads((folder / "teacher.json").read_text()))


class Student(nn.Module):
    """The speech encoder, and a layer that puts what it says into the teacher's words."""

    def __init__(self, shape: MotionShape):
        super().__init__()
        self.speech = SpeechEncoder(shape.speech)
        self.words = nn.Linear(shape.speech, WIDTH)

    def forward(self, features: Tensor) -> Tensor:
        return self.words(self.speech(features))


class LessonSampler:
    """Draws windows; the same seed and step give the same batch."""

    def __init__(self, lessons: Lessons, split: str, window: int):
        self.lessons, self.window = lessons, window
        self.clips = [clip for clip in lessons.clips if clip["split"] == split and clip["count"] >= 12]
        # pieces of a newsroom are many and short; each second of speech is as likely, but no source rules
        minutes: dict[str, float] = {}
        for clip in self.clips:
            minutes[clip["source"]] = minutes.get(clip["source"], 0) + clip["count"] / 1500
        weight = np.array([clip["count"] * minutes[clip["source"]] ** -0.3 for clip in self.clips])
        self.weight = weight / weight.sum()
        sample = np.concatenate([self._words(clip) for clip in self.clips[:: max(1, len(self.clips) // 400)]])
        self.mean, self.deviation = sample.mean(0), sample.std(0) + 1e-3
        self.filters, self.hann = torch.from_numpy(mel_filters()), torch.from_numpy(hann())

    def _words(self, clip: dict) -> np.ndarray:
        return self.lessons.features[clip["start"] : clip["start"] + clip["count"]].astype(np.float32)

    def batch(self, size: int, seed: int, step: int, augmented: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """Log-mel (B, 2 W, 64), the teacher's words normalised (B, W, 384), and where there are any (B, W)."""
        rng = np.random.default_rng((seed, step))
        head = WINDOW - HOP
        audio = np.zeros((size, head + self.window * LATENT_HOP), np.float32)
        words = np.zeros((size, self.window, WIDTH), np.float32)
        present = np.zeros((size, self.window), np.float32)
        for row, pick in enumerate(rng.choice(len(self.clips), size, p=self.weight)):
            clip = self.clips[pick]
            count = min(self.window, clip["count"])
            at, left = rng.integers(clip["count"] - count + 1), rng.integers(self.window - count + 1)
            begin = clip["start"] + at
            before = min(head, int(at) * LATENT_HOP)
            sound = self.lessons.audio[begin * LATENT_HOP - before : (begin + count) * LATENT_HOP].astype(np.float32)
            if augmented:
                sound = augment(sound, rng)
            place = head + left * LATENT_HOP
            audio[row, place - before : place + count * LATENT_HOP] = sound
            words[row, left : left + count] = self.lessons.features[begin : begin + count]
            present[row, left : left + count] = 1
        features = log_mel(torch.from_numpy(audio), self.filters, self.hann)
        if augmented:
            features = warp_features(features, torch.Generator().manual_seed(int(rng.integers(2**31))))
        words = (words - self.mean) / self.deviation
        return features, torch.from_numpy(words.astype(np.float32)), torch.from_numpy(present)


def lesson_loss(said: Tensor, words: Tensor, present: Tensor) -> Tensor:
    """Mean square of what was not understood, with outliers of the teacher's damped."""
    return (F.smooth_l1_loss(said, words, reduction="none", beta=1.5).mean(-1) * present).sum() / present.sum() * 3


@torch.no_grad()
def understood(model: Student, held: LessonSampler) -> float:
    """Share of the teacher's variance explained in held-out speech."""
    model.eval()
    missed = total = 0.0
    for step in range(6):
        features, words, present = held.batch(48, 777, step, augmented=False)
        error = (model(features) - words).square().mean(-1)
        missed += float((error * present).sum())
        total += float((words.square().mean(-1) * present).sum())
    model.train()
    return 1 - missed / total


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--teacher", type=Path, required=True, help="folder made by `ifmdm train teacher`")
    parser.add_argument("--run", type=Path, required=True, help="folder of this run: checkpoint and log")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop (resumably) after this long")
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> int:
    shape = MotionShape()
    lessons = Lessons.open(args.teacher)
    train, held = (LessonSampler(lessons, split, shape.window) for split in ("train", "val"))
    held.mean, held.deviation = train.mean, train.deviation
    torch.manual_seed(args.seed)
    model = Student(shape)
    optimiser = torch.optim.AdamW(model.parameters(), args.rate, weight_decay=0.02, betas=(0.9, 0.98))
    state = Run.open(args.run, model, optimiser)
    args.run.mkdir(parents=True, exist_ok=True)
    step = state.step

    def save() -> None:
        state.save()
        judge = Student(shape)
        judge.load_state_dict(state.average)
        state.report({"understood": understood(judge, held)})

    started, total, since = time.monotonic(), 0.0, 0
    for features, words, present in ahead(partial(train.batch, args.batch, args.seed), range(step, args.steps)):
        if time.monotonic() - started >= args.minutes * 60:
            break
        set_rate(optimiser, cosine_rate(args.rate, step, args.steps, 200, 0.02))
        with half("cpu"):
            said = model(features).float()
        loss = lesson_loss(said, words, present)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step, since, total = state.advance(0.995), since + 1, total + float(loss.detach())
        if step % 50 == 0:
            print(f"step {step} {(time.monotonic() - started) / 60:.1f} min loss {total / since:.4f}", flush=True)
            total, since = 0.0, 0
        if step % 400 == 0:
            save()
    if step % 400:  # the end, or no more time
        save()
    return 0
