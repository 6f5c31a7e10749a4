"""`ifmdm train prepare`: clips -> a cache of frames and landmarks that stage 1 trains on.

The cache is a folder: `frames.u8` (N, 256, 256, 3) uint8 RGB, `landmarks.npy` (N, 478, 3) float32 in 0..1 of the
picture (MediaPipe face mesh with irises; z in the unit of x), `mattes.u8` (N, 128, 128) uint8: how much of a pixel is
the person's (MediaPipe selfie segmentation), `index.json` (one entry a clip: manifest row, `start`,
`count`, `frames_at`). Landmarks serve the bootstrap and the crops of training only; nothing of them is shipped. Mattes
teach the portrait network its own.
"""

import argparse
import csv
import json
import multiprocessing
import os
from pathlib import Path

import numpy as np

from engine.errors import InputError
from engine.training import modes
from engine.training.landmarks import COUNT

SIZE = 256
MATTE = 128
#: Frames taken of a clip, evenly spaced: short clips have little to show, long ones vary more.
FRAMES_PER_CLIP = {"lrc_ar": 10, "grid": 12, "talkvid": 32, "vasa1": 64, "liveportrait": 48}
FRAMES_OTHERWISE = 24


def read_manifest(data: Path, tier: str = "all") -> list[dict]:
    """Rows of `manifest.csv` that hold pictures and are of a tier. Raises InputError where there is none."""
    path = data / "manifest.csv"
    if not path.is_file():
        raise InputError(f"{path}: no manifest found; --data must name a folder with manifest.csv and its clips")
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if Path(row["path"]).suffix in (".mp4", ".jpg")]
    return [row for row in rows if tier in ("all", row["tier"])]


def _frames(path: Path, count: int) -> list[tuple[int, np.ndarray]]:
    import av
    import cv2

    if path.suffix == ".jpg":
        return [(0, cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB))]
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    at = np.unique(np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int))
    return [(int(i), frames[i].to_ndarray(format="rgb24")) for i in at]


def _prepare_part(data: Path, tier: str, cache: Path, part: int, parts: int) -> None:
    os.environ["GLOG_minloglevel"] = "3"  # noqa: SIM112  (its name in lower case is what glog reads)
    import cv2
    import mediapipe as mp

    cv2.setNumThreads(1)
    rows = read_manifest(data, tier)[part::parts]
    mesh = mp.solutions.face_mesh.FaceMesh(
        static_image_mode=True, max_num_faces=1, refine_landmarks=True, min_detection_confidence=0.3
    )
    person = mp.solutions.selfie_segmentation.SelfieSegmentation(model_selection=0)
    landmarks, index, start = [], [], 0
    with (cache / f"frames_{part}.u8").open("wb") as pixels, (cache / f"mattes_{part}.u8").open("wb") as mattes:
        for number, row in enumerate(rows):
            kept = []
            for at, frame in _frames(data / row["path"], FRAMES_PER_CLIP.get(row["source"], FRAMES_OTHERWISE)):
                found = mesh.process(frame).multi_face_landmarks
                if not found:
                    continue
                landmarks.append(np.array([[p.x, p.y, p.z] for p in found[0].landmark], np.float32))
                small = frame
                if frame.shape[:2] != (SIZE, SIZE):
                    small = cv2.resize(frame, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
                pixels.write(np.ascontiguousarray(small).tobytes())
                matte = person.process(small).segmentation_mask
                matte = cv2.resize(matte, (MATTE, MATTE), interpolation=cv2.INTER_AREA)
                mattes.write((matte * 255).round().astype(np.uint8).tobytes())
                kept.append(at)
            if kept:
                index.append(dict(row, start=start, count=len(kept), frames_at=kept))
                start += len(kept)
            if number % 100 == 0:
                print(f"part {part + 1}/{parts}: {number}/{len(rows)} files, {start} frames", flush=True)
    np.save(cache / f"landmarks_{part}.npy", np.array(landmarks, np.float32).reshape(-1, COUNT, 3))
    (cache / f"index_{part}.json").write_text(json.dumps(index))


def join_parts(cache: Path, parts: int) -> None:
    """Concatenate what the workers wrote into one cache, and drop the parts, and the modes of what was there before."""
    (cache / modes.FILE).unlink(missing_ok=True)
    index, landmarks, start = [], [], 0
    with (cache / "frames.u8").open("wb") as frames, (cache / "mattes.u8").open("wb") as mattes:
        for part in range(parts):
            for name, out in (("frames", frames), ("mattes", mattes)):
                with (cache / f"{name}_{part}.u8").open("rb") as pixels:
                    while block := pixels.read(1 << 26):
                        out.write(block)
            landmarks.append(np.load(cache / f"landmarks_{part}.npy"))
            for entry in json.loads((cache / f"index_{part}.json").read_text()):
                index.append(dict(entry, start=entry["start"] + start))
            start += len(landmarks[-1])
    np.save(cache / "landmarks.npy", np.concatenate(landmarks))
    (cache / "index.json").write_text(json.dumps(index))
    for part in range(parts):
        for name in (f"frames_{part}.u8", f"mattes_{part}.u8", f"landmarks_{part}.npy", f"index_{part}.json"):
            (cache / name).unlink()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.csv and its clips")
    parser.add_argument("--cache", type=Path, required=True, help="folder for the prepared frames (about 6 GB)")
    parser.add_argument("--tier", choices=("clean", "all"), default="all", help="clean: freely usable data alone, and "
                        "so all that is trained from this cache")  # fmt: skip
    parser.add_argument("--films", type=int, default=0, metavar="N", help="clips to make of each still, moved as "
                        "people in the data move (default: 0)")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")


def run(args: argparse.Namespace) -> int:
    read_manifest(args.data, args.tier)
    args.cache.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_prepare_part, args=(args.data, args.tier, args.cache, part, args.jobs))
        for part in range(args.jobs)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise InputError(f"{args.data}: preparing failed in a worker; its message is above")
    join_parts(args.cache, args.jobs)
    if args.films:
        from engine.training.filming import film_stills  # it stands on this module

        print(f"filmed: {film_stills(args.cache, args.films)} clips of stills")
    print(f"prepared: {args.cache}")
    return 0
