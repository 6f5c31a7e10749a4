"""`ifmdm train latents`: every frame of every clip with sound through the frozen encoder, for stage 2 to learn from.

Writes `latents.npy` (N, D) float32, `audio.npy` (M,) float16 at 16 kHz, aligned with the picture's first frame,
`latents.json` (clips) and `care.npy` (D, D + 4), by which stage 2 weighs its errors: on the diagonal of the first D
columns, how much each latent number moves the picture; in the last four, how the distances that viewers watch (lips
apart, mouth wide, lids apart) follow from the latent.
"""

import argparse
import json
import time
from pathlib import Path

import av
import cv2
import numpy as np
import torch

from engine.features import SAMPLE_RATE
from engine.motion.timing import LATENT_RATE
from engine.renderer.boxes import eyes_box, mouth_box
from engine.renderer.network import Renderer, away, mix, sample
from engine.training.batches import Cache, Sampler, collate, keypoints_of
from engine.training.checkpoint import load_learned
from engine.training.encoder import distances
from engine.training.precision import half
from engine.training.prepare import SIZE
from engine.training.stage1 import encode, grid_points, load_modes, portrait_fields, render, spread

#: Clips of the corpus whose first frames are grey.
DAMAGED = ("grid/s1_bbizzn.mp4", "grid/s1_brwa4p.mp4", "grid/s1_lgbf8n.mp4")


def load_renderer(folder: Path, device: str = "cpu") -> Renderer:
    """The renderer of a run of stage 1, or of a weights folder. Raises InputError."""
    model = Renderer().to(device).eval()
    load_learned(model, folder, "renderer")
    return model


def read_clip(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """All frames (n, 256, 256, 3) uint8 and the sound (m,) float32 at 16 kHz, both from the first frame's time on."""
    frames, sounds, first_video, first_audio = [], [], None, None
    resampler = av.AudioResampler("flt", "mono", SAMPLE_RATE)
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            first_video = frame.time if first_video is None else first_video
            picture = frame.to_ndarray(format="rgb24")
            if picture.shape[:2] != (SIZE, SIZE):
                picture = cv2.resize(picture, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
            frames.append(picture)
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            first_audio = frame.time if first_audio is None else first_audio
            sounds += [part.to_ndarray()[0] for part in resampler.resample(frame)]
        sounds += [part.to_ndarray()[0] for part in resampler.resample(None)]
    sound = np.concatenate(sounds) if sounds else np.zeros(0, np.float32)
    offset = round(((first_audio or 0.0) - (first_video or 0.0)) * SAMPLE_RATE)
    sound = np.pad(sound, (offset, 0)) if offset > 0 else sound[-offset:]
    return np.stack(frames), sound


@torch.no_grad()
def encode_clip(model: Renderer, frames: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
    """frames (n, 256, 256, 3) uint8 and the first frame's keypoints (5, 2) -> latents (n, D) float32."""
    device = next(model.parameters()).device
    mouth = torch.from_numpy(mouth_box(keypoints))[None].to(device)
    eyes = torch.from_numpy(eyes_box(keypoints))[None].to(device)
    out = []
    for at in range(0, len(frames), 32):
        part = torch.from_numpy(frames[at : at + 32]).to(device).permute(0, 3, 1, 2)[None].float() / 255
        with half(device.type):
            out.append(encode(model, part, mouth, eyes)[0].cpu().numpy())
    return np.concatenate(out).astype(np.float32)


def at_rate(latents: np.ndarray, fps: float) -> np.ndarray:
    """Latents (n, D) of a clip's frames -> those at 25 Hz, by linear interpolation."""
    if abs(fps - LATENT_RATE) < 0.1:
        return latents
    at = np.arange(0, len(latents) - 1, fps / LATENT_RATE)
    low = at.astype(int)
    part = (at - low).astype(np.float32)[:, None]
    return latents[low] * (1 - part) + latents[low + 1] * part


@torch.no_grad()
def sensitivity(model: Renderer, sampler: Sampler, clips: list[dict], within: np.ndarray) -> np.ndarray:
    """(D,) how much one within-clip deviation of each latent number changes the picture: what it does to the mouth and
    the eyes with the head held still, and, at a third of the weight, what it does to everything. Each part is scaled to
    a mean of one; the sum is kept between 0.3 and 5."""
    local, whole = np.zeros(len(within)), np.zeros(len(within))
    device = next(model.parameters()).device
    everywhere = torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=device)
    for number, clip in enumerate(clips):
        batch = collate([sampler.draw(clip, np.random.default_rng(number))]).on(device)
        frames, mouth, eyes = batch.frames, batch.mouth, batch.eyes
        latent = encode(model, frames[:, :1], mouth, eyes)[:, 0]
        fields = portrait_fields(model, frames[:, 0], mouth, eyes)
        moved = latent[:, None] + torch.diag(torch.from_numpy(within).to(device))[None]
        weights = away(model.coefficients(torch.cat([latent[:, None], moved], 1)))
        still = weights.clone()
        still[..., : model.shape.head] = 0
        portrait = frames[:, 0].expand(len(within), -1, -1, -1)
        for total, w, box in ((local, still, mouth), (local, still, eyes), (whole, weights, everywhere)):
            motion = mix(model.shape, fields, w, mouth, eyes, batch.held, batch.shut)
            points = grid_points(box.expand(len(within), 4), 64, 64)
            total += (render(motion, portrait, points) - sample(portrait, points)).abs().mean((1, 2)).cpu().numpy()
    care = local / local.mean() + whole / whole.mean() / 3
    return np.clip(care / care.mean(), 0.3, 5.0).astype(np.float32)


def watched(cache: Cache, clips: list[dict], latents: list[np.ndarray]) -> np.ndarray:
    """(D, 4) weights that read the watched distances off a latent's change, in deviations of the distance: ridge
    regression within clips, over the frames whose landmarks are known."""
    changes, goals = [], []
    for clip, z in zip(clips, latents, strict=True):
        at = np.array(clip["frames_at"])
        at = at[at < len(z)]
        seen = torch.from_numpy(cache.landmarks_of(clip)[: len(at), :, :2])
        distance = distances(seen).numpy()
        changes.append(z[at] - z[at].mean(0))
        goals.append(distance - distance.mean(0))
    x, y = np.concatenate(changes), np.concatenate(goals)
    y = y / y.std(0)
    scale = x.std(0) + 1e-6
    weights = np.linalg.solve((x / scale).T @ (x / scale) + np.eye(x.shape[1]) * 0.01 * len(x), (x / scale).T @ y)
    weights = weights / scale[:, None]
    print("watched distances explained: " + " ".join(f"{v:.3f}" for v in 1 - (y - x @ weights).var(0)), flush=True)
    return weights.astype(np.float32)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="folder made by `ifmdm train prepare`")
    parser.add_argument("--renderer", type=Path, required=True, help="run folder of `ifmdm train renderer`, or weights")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def run(args: argparse.Namespace) -> int:
    args.output.mkdir(parents=True, exist_ok=True)
    model = load_renderer(args.renderer, args.device)
    cache = Cache.open(args.cache)
    clips, latents, sounds, start, audio_start = [], [], [], 0, 0
    wanted = [c for c in cache.clips if c["audio"] == "1" and c["frames_at"][0] == 0 and c["path"] not in DAMAGED]
    began = time.monotonic()
    for number, clip in enumerate(wanted):
        frames, sound = read_clip(args.data / clip["path"])
        z = at_rate(encode_clip(model, frames, keypoints_of(cache.landmarks_of(clip)[0])), float(clip["fps"]))
        latents.append(z)
        sounds.append(sound.astype(np.float16))
        keep = {k: clip[k] for k in ("path", "source", "identity", "split", "fps")}
        clips.append(keep | {"start": start, "count": len(z), "audio_start": audio_start, "audio_count": len(sound)})
        start, audio_start = start + len(z), audio_start + len(sound)
        if number % 100 == 0:
            print(
                f"{number}/{len(wanted)} clips, {start} frames, {(time.monotonic() - began) / 60:.1f} min",
                flush=True,
            )
    every = np.concatenate(latents)
    within = np.concatenate([z - z.mean(0) for z in latents]).std(0)
    modes = load_modes(cache, args.cache)
    sampler = Sampler(cache, modes, cache.split("train"), 1, augment=False, stills=False)
    diagonal = np.diag(np.sqrt(sensitivity(model, sampler, spread(cache.split("train"), 24), within)))
    train = [i for i, clip in enumerate(wanted) if clip["split"] == "train"]
    train = [i for i in train if abs(float(wanted[i]["fps"]) - LATENT_RATE) < 0.1]  # their frames have latents
    reading = watched(cache, [wanted[i] for i in train], [latents[i] for i in train]) * within[:, None]
    np.save(args.output / "care.npy", np.concatenate([diagonal, 2 * reading], 1).astype(np.float32))
    np.save(args.output / "latents.npy", every)
    np.save(args.output / "audio.npy", np.concatenate(sounds))
    (args.output / "latents.json").write_text(json.dumps(clips))
    print(f"latents: {args.output}, {len(clips)} clips, {len(every)} frames")
    return 0
