"""Talking clips on disk, as evaluation wants them: square frames at 25 a second, and their voice."""

import csv
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np

from engine.errors import InputError

RATE = 25
VOICE_RATE = 16_000
SAMPLES_PER_FRAME = VOICE_RATE // RATE
#: Larger frames are scaled down to this: the engine's native size.
MAX_SIDE = 512


class ClipError(InputError):
    """One clip that cannot be used; the others still can."""


@dataclass(frozen=True)
class Clip:
    """name: the path under the data folder. source: which collection. identity: None if unknown."""

    path: Path
    name: str
    source: str
    identity: str | None
    audio: bool


def find_clips(data: Path, split: str | None = None) -> list[Clip]:
    """The clips of a folder: rows of its manifest.csv in `split` ("val" if None), or all its mp4 files if it
    has none.

    Raises InputError where there are none.
    """
    if not data.is_dir():
        raise InputError(f"{data}: no such folder; --data must name a folder of talking clips (mp4)")
    manifest = data / "manifest.csv"
    if not manifest.is_file():
        if split is not None:
            raise InputError(f"{data}: no manifest.csv here to tell the split {split!r}; leave --split away")
        paths = sorted(path for path in data.rglob("*") if path.suffix.lower() == ".mp4" and path.is_file())
        if not paths:
            raise InputError(f"{data}: no clips found; --data must name a folder of talking clips (mp4)")
        return [
            Clip(path, str(name), name.parts[0] if len(name.parts) > 1 else data.name, None, has_audio(path))
            for path in paths
            for name in [path.relative_to(data)]
        ]
    try:
        with manifest.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{manifest}: cannot be read as a table ({error.__class__.__name__})") from None
    if rows and "path" not in rows[0]:
        raise InputError(f"{manifest}: no column 'path'; its first line must name the columns")
    rows = [row for row in rows if (row["path"] or "").lower().endswith(".mp4")]
    split = split or "val"
    chosen = [row for row in rows if row.get("split", split) == split]
    if not chosen:
        splits = ", ".join(sorted({row.get("split") or "" for row in rows} - {""})) or "none"
        raise InputError(f"{manifest}: no clips in the split {split!r}; it has: {splits}")
    clips = []
    for row in chosen:
        path = data / row["path"]
        source = row.get("source") or Path(row["path"]).parts[0]
        identity = row.get("identity") or None
        audio = row["audio"] not in ("", "0") if row.get("audio") is not None else has_audio(path)
        # An identity that is only the name of its source says that nobody knows.
        clips.append(Clip(path, row["path"], source, None if identity == source else identity, audio))
    return clips


def has_audio(path: Path) -> bool:
    try:
        with av.open(str(path)) as container:
            return bool(container.streams.audio)
    except (OSError, av.error.FFmpegError):
        return False  # read_frames says what is wrong with it


def read_frames(path: Path, limit: int) -> list[np.ndarray]:
    """At most `limit` frames (S, S, 3) uint8 RGB at 25 a second: the nearest frame for each instant.

    A frame that is not square is cropped to its middle; one over 512 pixels is scaled down. Raises ClipError.
    """
    frames: list[np.ndarray] = []
    before: tuple[float, av.VideoFrame] | None = None
    start, gap = 0.0, 1 / RATE
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ClipError(f"{path}: no video in it")
            for frame in container.decode(video=0):
                time = frame.time if frame.time is not None else (start + before[0] + gap if before else 0.0)
                if before is None:
                    start = time
                time -= start
                # All instants nearer to the previous frame than to this one are settled.
                while before and len(frames) < limit and len(frames) / RATE < (before[0] + time) / 2:
                    frames.append(_square(before[1]))
                if len(frames) >= limit:
                    return frames
                gap = time - before[0] if before else gap
                before = (time, frame)
    except (OSError, av.error.FFmpegError) as error:
        raise ClipError(f"{path}: cannot be read as a video ({error.__class__.__name__})") from None
    while before and len(frames) < limit and len(frames) / RATE < before[0] + gap - 1e-3:
        frames.append(_square(before[1]))
    if len(frames) < 3:
        raise ClipError(f"{path}: {len(frames)} frames at {RATE} a second are too few")
    return frames


def _square(frame: av.VideoFrame) -> np.ndarray:
    picture = frame.to_ndarray(format="rgb24")
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    picture = picture[top : top + side, left : left + side]
    if side > MAX_SIDE:
        return cv2.resize(picture, (MAX_SIDE, MAX_SIDE), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(picture)


def read_voice(path: Path, seconds: float) -> np.ndarray:
    """The first `seconds` of a clip's sound, (n,) float32 mono at 16 kHz, sample 0 at its first video frame.

    May be shorter than asked, never longer. Raises ClipError.
    """
    wanted = round(seconds * VOICE_RATE)
    blocks: list[np.ndarray] = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise ClipError(f"{path}: no sound in it")
            audio = container.streams.audio[0]
            video = container.streams.video[0] if container.streams.video else None
            zero = float(video.start_time * video.time_base) if video and video.start_time else 0.0
            resampler = av.AudioResampler(format="flt", layout="mono", rate=VOICE_RATE)
            have = 0
            for frame in container.decode(audio):
                if not blocks:
                    lead = round(((frame.time or 0.0) - zero) * VOICE_RATE)
                    blocks.append(np.zeros(max(0, lead), np.float32))
                    have = lead  # negative: sound from before the picture, cut below
                frame.pts = None
                for part in resampler.resample(frame):
                    blocks.append(part.to_ndarray().reshape(-1))
                    have += blocks[-1].size
                if have >= wanted:
                    break
            blocks += [part.to_ndarray().reshape(-1) for part in resampler.resample(None)]
    except (OSError, av.error.FFmpegError) as error:
        raise ClipError(f"{path}: its sound cannot be read ({error.__class__.__name__})") from None
    if len(blocks) < 2:
        raise ClipError(f"{path}: its sound is empty")
    return np.concatenate(blocks)[max(0, -lead) :][:wanted].astype(np.float32, copy=False)


def fit_voice(samples: np.ndarray, frames: int, loop: bool = False) -> np.ndarray:
    """Exactly as many samples as `frames` last: cut, or continued by silence (or, with `loop`, by itself)."""
    wanted = frames * SAMPLES_PER_FRAME
    if loop and 0 < len(samples) < wanted:
        samples = np.tile(samples, -(-wanted // len(samples)))
    return np.pad(samples[:wanted], (0, max(0, wanted - len(samples))))
