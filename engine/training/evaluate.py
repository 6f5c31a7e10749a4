"""`ifmdm evaluate`: how well the engine does on people and sentences it was not trained on.

Two tasks on each clip. *Reenactment*: its first frame is the portrait, its own motion the driver. *Voice*:
its first frame and its sound, and once more with the sound of another clip, which a mouth that listens must
not fit. `report.py` makes figures of what is measured here.
"""

import argparse
import concurrent.futures
import functools
import hashlib
import importlib.util
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from engine.errors import InputError
from engine.portrait import PortraitError
from engine.training import metrics, report, sheets
from engine.training.clips import RATE, Clip, ClipError, find_clips, fit_voice, read_frames, read_voice
from engine.training.identity import SAME_PERSON, FaceVectors
from engine.training.landmarks import (
    FaceMesh,
    Landmarker,
    eye_opening,
    find_landmarks,
    head_motion,
    inner_face,
    mouth_opening,
    regions,
)

#: Pictures are compared, and landmarks found, at this size, whatever the size of the clip.
SIZE = 256
#: A track in which fewer faces are found is not measured by its landmarks.
FOUND_ENOUGH = 0.8
#: Faces are about half the picture high in the training data; a clip far from that is judged unfairly.
SMALL_FACE = 0.25
IDLE_SECONDS = 6
#: Sheets are made of the first clips, and of the first of each source: by rule, never by hand.
SHEETS_FIRST, SHEETS_PER_SOURCE = 12, 4


class Subject(Protocol):
    """What is evaluated. Pictures are (S, S, 3) uint8 RGB; those it makes may have a size of their own."""

    def reenact(self, portrait: np.ndarray, frames: list[np.ndarray]) -> list[np.ndarray]:
        """The portrait moving as `frames` do, one picture for each; frames[0] is the portrait itself."""
        ...

    def speak(self, portrait: np.ndarray, voice: np.ndarray, count: int, seed: int) -> list[np.ndarray]:
        """The portrait saying `voice` (count * 640,) float32 mono at 16 kHz: `count` pictures at 25 Hz."""
        ...


#: A picture and its landmarks -> a vector of who it is.
Embedder = Callable[[np.ndarray, np.ndarray], np.ndarray]


class CopyPortrait:
    """The honest baseline: the portrait, again and again."""

    def reenact(self, portrait: np.ndarray, frames: list[np.ndarray]) -> list[np.ndarray]:
        return [portrait] * len(frames)

    def speak(self, portrait: np.ndarray, voice: np.ndarray, count: int, seed: int) -> list[np.ndarray]:
        return [portrait] * count


@dataclass(frozen=True)
class Tools:
    subject: Subject
    landmarker: Landmarker
    embedder: Embedder


@dataclass(frozen=True)
class Options:
    """frames: at most, of a clip. seed: the first clip's; the next has the next. cache: of real landmarks."""

    frames: int = 250
    seed: int = 0
    jobs: int = 1
    cache: Path | None = None
    sheets: Path | None = None
    idle: bool = False


@dataclass(frozen=True)
class Task:
    clip: Clip
    other: Clip | None
    seed: int
    sheet: Path | None
    options: Options


@dataclass(frozen=True)
class Track:
    """A video as measured: all frames at 256 x 256, and a few (`looks`, at `times`) at its own size."""

    small: list[np.ndarray]
    points: np.ndarray
    found: np.ndarray
    looks: list[np.ndarray]
    times: list[int]

    @property
    def usable(self) -> bool:
        return float(self.found.mean()) >= FOUND_ENOUGH


def make_tools(subject: str, weights: Path | None) -> Tools:
    """The real tools; `subject` is "model" or "copy".

    Raises ModuleNotFoundError without the extras, InputError where the weights are at fault.
    """
    cv2.setNumThreads(1)  # one process a core does better than many threads in each
    if subject == "copy":
        return Tools(CopyPortrait(), FaceMesh(), FaceVectors())
    from engine.training.subject import Trained

    return Tools(Trained(weights), FaceMesh(), FaceVectors())


# ------------------------------------------------------------------------------------------------ one clip


def _track(
    pictures: Iterable[np.ndarray], count: int, landmarker: Landmarker, cache: Path | None = None
) -> Track:
    pictures = list(pictures)
    if len(pictures) != count:
        raise ValueError(f"the subject made {len(pictures)} frames where {count} were asked for")
    times = sheets.even_times(count)
    looks = [pictures[time] for time in times]
    # A picture that is repeated (the copying baseline) is scaled and looked at once.
    small: list[np.ndarray] = []
    for index, picture in enumerate(pictures):
        same = index and picture is pictures[index - 1]
        small.append(small[-1] if same else _resized(picture, SIZE))
    if all(picture is small[0] for picture in small):
        points, found = find_landmarks(small[:1], landmarker, cache)
        points, found = np.repeat(points, count, 0), np.repeat(found, count)
    else:
        points, found = find_landmarks(small, landmarker, cache)
    return Track(small, points, found, looks, times)


def _resized(picture: np.ndarray, size: int) -> np.ndarray:
    if len(picture) == size:
        return picture
    way = cv2.INTER_AREA if len(picture) > size else cv2.INTER_CUBIC
    return cv2.resize(picture, (size, size), interpolation=way)


def _reconstruction(real: Track, made: Track) -> dict:
    """Per region, mean [L1, MSE, SSIM] over all frames but the first, of ours and of copying."""
    sums: dict[str, dict[str, np.ndarray]] = {}
    for true, ours, points in zip(real.small[1:], made.small[1:], real.points[1:], strict=True):
        masks = regions(points, SIZE)
        for who, picture in (("ours", ours), ("copy", real.small[0])):
            for region, values in metrics.compare(true, picture, masks).items():
                into = sums.setdefault(region, {})
                into[who] = into.get(who, 0.0) + values
    count = len(real.small) - 1
    return {region: {who: (v / count).tolist() for who, v in both.items()} for region, both in sums.items()}


def _motion(track: Track, reference: np.ndarray) -> dict:
    """Spread and jitter in pixels at 256 x 256, angles in degrees, openings in their own units, blinks."""
    angles, head = head_motion(track.points, reference)
    flat = track.points[:, :468, :2] * SIZE
    eyes = eye_opening(track.points)
    return {
        "face": metrics.spread(flat),
        "head": metrics.spread(head * SIZE),
        "mouth": float(mouth_opening(track.points).std()),
        "eyes": float(eyes.std()),
        **dict(zip(("yaw", "pitch", "roll"), angles.std(0).tolist(), strict=True)),
        "jitter": metrics.jitter(flat),
        "head_jitter": metrics.jitter(head * SIZE),
        "blinks": metrics.count_blinks(eyes, RATE),
    }


def _identity(track: Track, portrait: np.ndarray, embedder: Embedder) -> dict | None:
    """Mean cosine and distance of four frames spread over the track to the portrait's vector."""
    at = [i for i in range(len(track.times) - 1, 0, -2) if track.found[track.times[i]]]
    if not at:
        return None
    vectors = [embedder(track.looks[i], track.points[track.times[i]]) for i in at]
    far = [float(np.linalg.norm(vector - portrait)) for vector in vectors]
    return {
        "cosine": float(np.mean([metrics.cosine(vector, portrait) for vector in vectors])),
        "distance": float(np.mean(far)),
        "same": float(np.mean([distance < SAME_PERSON for distance in far])),
    }


def _detail(track: Track, portrait: np.ndarray, points: np.ndarray) -> float | None:
    """Laplacian energy inside the face, frames over portrait, both at the size of the frames."""
    size = len(track.looks[0])
    base = metrics.laplacian_energy(_resized(portrait, size), inner_face(points, size))
    energies = [
        metrics.laplacian_energy(look, inner_face(track.points[time], size))
        for look, time in zip(track.looks[1:], track.times[1:], strict=True)
        if track.found[time]
    ]
    return float(np.mean(energies) / base) if energies and base > 0 else None


def evaluate_clip(task: Task, tools: Tools) -> dict:
    """All that is measured on one clip, for `report.summarise`. Raises ClipError if it cannot be used."""
    clip, options = task.clip, task.options
    frames = read_frames(clip.path, options.frames)
    count, portrait = len(frames), frames[0]
    real = _track(frames, count, tools.landmarker, options.cache)
    if not real.found[0] or not real.usable:
        where = "its first frame" if not real.found[0] else "more than a fifth of its frames"
        raise ClipError(f"{clip.path}: no face found in {where}")
    record = {
        "name": clip.name,
        "source": clip.source,
        "identity": clip.identity,
        "frames": count,
        "other": None,
        "found": {"real": float(real.found.mean())},
        "notes": [],
        "opening": {"real": mouth_opening(real.points)},
        "motion": {"real": _motion(real, real.points[0])},
        "identities": {},
        "detail": {"real": _detail(real, portrait, real.points[0])},
    }
    height = float(np.ptp(real.points[0, :468, 1]))
    if height < SMALL_FACE:
        record["notes"].append(
            f"{clip.path}: the face is only {height:.2f} of the picture high; crop closer to it"
        )
    vector = tools.embedder(portrait, real.points[0])
    record["vector"] = vector
    record["identities"]["real"] = _identity(real, vector, tools.embedder)

    def measure(role: str, pictures: list[np.ndarray]) -> Track:
        made = _track(pictures, count, tools.landmarker)
        record["found"][role] = float(made.found.mean())
        if made.usable:
            record["opening"][role] = mouth_opening(made.points)
            if role != "other":
                record["motion"][role] = _motion(made, real.points[0])
                record["identities"][role] = _identity(made, vector, tools.embedder)
                record["detail"][role] = _detail(made, portrait, real.points[0])
        return made

    tracks = {"real": real, "reenacted": measure("reenact", tools.subject.reenact(portrait, frames))}
    record["reconstruction"] = _reconstruction(real, tracks["reenacted"])
    del frames
    try:
        voice = read_voice(clip.path, count / RATE) if clip.audio else None
    except ClipError as error:
        voice = None
        record["notes"].append(f"{error}; counted for reenactment only")
    if voice is not None:
        pictures = tools.subject.speak(portrait, fit_voice(voice, count), count, task.seed)
        tracks["voice"] = measure("voice", pictures)
        del pictures
        try:
            other = read_voice(task.other.path, count / RATE) if task.other else None
        except ClipError as error:
            other = None
            record["notes"].append(f"{error}; could not serve as the other voice")
        if other is not None:
            record["other"] = task.other.name
            measure("other", tools.subject.speak(portrait, fit_voice(other, count, True), count, task.seed))
    if task.sheet is not None:
        labels = {"real": "real", "reenacted": "ours, reenacted", "voice": "ours, from the voice"}
        sheets.save(
            sheets.contact_sheet(
                f"{clip.name}  ({count} frames)",
                [(labels[name], track.looks) for name, track in tracks.items()],
                [time / RATE for time in real.times],
                {f"mouth, {role}": series for role, series in record["opening"].items()},
            ),
            task.sheet,
        )
    return record


def evaluate_idle(task: Task, tools: Tools) -> dict:
    """The first frame of a clip in silence."""
    portrait = read_frames(task.clip.path, task.options.frames)[0]
    count = IDLE_SECONDS * RATE
    silence = np.zeros(count * (16_000 // RATE), np.float32)
    track = _track(tools.subject.speak(portrait, silence, count, task.seed), count, tools.landmarker)
    if not track.usable:
        return {"portrait": task.clip.name, "found": float(track.found.mean())}
    if task.sheet is not None:
        sheet = sheets.contact_sheet(
            f"{task.clip.name}: silence",
            [("ours, idle", track.looks)],
            [time / RATE for time in track.times],
            {"mouth": mouth_opening(track.points), "eyes": eye_opening(track.points)},
        )
        sheets.save(sheet, task.sheet)
    motion = _motion(track, track.points[0])
    return {
        "portrait": task.clip.name,
        "seconds": IDLE_SECONDS,
        "blinks_per_minute": motion["blinks"] * 60 / IDLE_SECONDS,
        **motion,
    }


# ------------------------------------------------------------------------------------------------ all clips


def pair_voices(clips: list[Clip]) -> list[Clip | None]:
    """For each clip with sound, the clip that lends the other voice: the next one that is not known to be the
    same person and has not been lent yet; where there is none, the next one at all. None for clips without
    sound.
    """
    sounding = [index for index, clip in enumerate(clips) if clip.audio]
    lent: set[int] = set()
    others: list[Clip | None] = [None] * len(clips)
    for place, index in enumerate(sounding):
        following = sounding[place + 1 :] + sounding[:place]
        known = clips[index].identity
        strangers = [i for i in following if known is None or clips[i].identity != known]
        choice = [i for i in strangers if i not in lent] or strangers or following
        if choice:
            lent.add(choice[0])
            others[index] = clips[choice[0]]
    return others


def _plan(clips: list[Clip], options: Options) -> list[Task]:
    seen: dict[str, int] = {}
    tasks = []
    for index, (clip, other) in enumerate(zip(clips, pair_voices(clips), strict=True)):
        seen[clip.source] = seen.get(clip.source, 0) + 1
        shown = options.sheets is not None and (
            index < SHEETS_FIRST or seen[clip.source] <= SHEETS_PER_SOURCE
        )
        name = clip.name.replace("/", "_").replace(os.sep, "_").removesuffix(".mp4")
        tasks.append(
            Task(
                clip, other, options.seed + index, options.sheets / f"{name}.png" if shown else None, options
            )
        )
    return tasks


_kept: Tools | None = None  # of a worker process: made at its first task, used for all


def _run_task(task: Task, make: Callable[[], Tools], idle: bool = False) -> dict:
    global _kept
    if _kept is None:
        _kept = make()
    return _attempt(task, _kept, idle)


def _attempt(task: Task, tools: Tools, idle: bool = False) -> dict:
    try:
        return evaluate_idle(task, tools) if idle else evaluate_clip(task, tools)
    except ClipError as error:
        return {"name": task.clip.name, "skipped": str(error)}
    except PortraitError as error:  # the engine finds no face where the landmarker does
        return {
            "name": task.clip.name,
            "skipped": f"{task.clip.path}: its first frame is no portrait: {error}",
        }


def _results(tasks: list[Task], idle: Task | None, make: Callable[[], Tools], jobs: int) -> Iterator[dict]:
    """The records of the tasks in their order, then the idle one's."""
    if jobs <= 1:
        tools = make()
        yield from (_attempt(task, tools) for task in tasks)
        if idle:
            yield _attempt(idle, tools, True)
        return
    # Spawned, not forked: the landmarker has threads of its own.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context) as pool:
        try:
            waiting = [pool.submit(_run_task, task, make) for task in tasks]
            if idle:
                waiting.append(pool.submit(_run_task, idle, make, True))
            for future in waiting:
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def evaluate(
    clips: list[Clip],
    make: Callable[[], Tools],
    options: Options,
    progress: Callable[[str], None] | None = None,
) -> dict:
    """Evaluate clips with the tools that `make` makes (in each worker; picklable if options.jobs > 1).

    Returns what `--json` holds, less what only `run` knows. `progress` is called with the name of each clip
    when it is done. Raises InputError where no clip can be used.
    """
    tasks = _plan(clips, options)
    idle = None
    if options.idle:
        sheet = options.sheets / "idle.png" if options.sheets else None
        idle = replace(tasks[0], sheet=sheet)
    records, skipped, idling = [], [], None
    for index, record in enumerate(_results(tasks, idle, make, options.jobs)):
        if index == len(tasks):
            idling = record
        elif "skipped" in record:
            skipped.append({"name": record["name"], "why": record["skipped"]})
        else:
            records.append(record)
        if progress is not None and index < len(tasks):
            progress(tasks[index].clip.name)
    if not records:
        raise InputError(f"none of the {len(clips)} clips can be used; the first: {skipped[0]['why']}")
    result = report.summarise(records)
    result["skipped"] = skipped
    result["notes"] = [note for record in records for note in record["notes"]]
    if idling is not None:
        result["idle"] = idling
    if options.sheets is not None:
        report.draw(result, records, [task.clip.name for task in tasks if task.sheet], options.sheets)
    return report.jsonable(result)


def weights_hash(directory: Path) -> str | None:
    """SHA-256 over the names and contents of the files of a weights folder; None where it has none."""
    digest = hashlib.sha256()
    files = sorted(
        path for path in directory.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    )
    for path in files:
        digest.update(path.relative_to(directory).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest() if files else None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of talking clips, mp4 framed around the face"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--sheets", type=Path, metavar="DIR", help="write contact sheets and plots there")
    parser.add_argument(
        "--split", help="which split of the folder's manifest.csv (default: val; all without manifest)"
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="evaluate N clips, spread evenly over the split"
    )
    parser.add_argument(
        "--weights", type=Path, metavar="DIR", help="weights to evaluate (default: those that ship)"
    )
    parser.add_argument(
        "--subject", choices=("model", "copy"), default="model", help="copy: the baseline alone"
    )
    parser.add_argument(
        "--frames", type=int, default=250, metavar="N", help="the most frames of a clip (default: 250)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the motion made from a voice (default: 0)")
    parser.add_argument(
        "--idle", action="store_true", help="also look at 6 s of silence on the first portrait"
    )
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes (default: 2)")
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="keep the landmarks of the real clips there"
    )


def run(args: argparse.Namespace) -> int:
    for module in ("mediapipe", "dlib", "face_recognition_models"):
        if importlib.util.find_spec(module) is None:
            raise InputError(
                f"evaluation needs {module}, which is not installed: pip install 'ifmdm[evaluate]'"
            )
    for name in ("limit", "frames", "jobs"):
        value = getattr(args, name)
        least = 3 if name == "frames" else 1
        if value is not None and value < least:
            raise InputError(f"--{name} {value}: must be at least {least}")
    clips = find_clips(args.data, args.split)
    if args.limit is not None and args.limit < len(clips):
        clips = [clips[i] for i in np.linspace(0, len(clips) - 1, args.limit).round().astype(int)]
    weights = None
    if args.subject == "model":
        directory = args.weights or Path(__file__).parents[1] / "weights"
        if not directory.is_dir():
            raise InputError(f"{directory}: no such folder; --weights must name a folder of weights")
        weights = {"directory": directory.name, "sha256": weights_hash(directory)}
    _writable(args.json, args.sheets, args.cache)
    options = Options(args.frames, args.seed, args.jobs, args.cache, args.sheets, args.idle)
    make = functools.partial(make_tools, args.subject, args.weights)

    from tqdm import tqdm

    with tqdm(total=len(clips), unit="clip", file=sys.stderr, dynamic_ncols=True) as bar:

        def progress(name: str) -> None:
            bar.set_postfix_str(name, refresh=False)
            bar.update()

        result = evaluate(clips, make, options, progress)
    result["about"] = {
        "split": args.split or ("val" if (args.data / "manifest.csv").is_file() else None),
        "limit": args.limit,
        "subject": args.subject,
        "weights": weights,
        "frames": args.frames,
        "seed": args.seed,
        "versions": report.versions(),
    }
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(report.table(result))
    return 0


def _writable(file: Path | None, *folders: Path | None) -> None:
    """Find out before minutes of work whether the results can be kept."""
    try:
        for folder in (*folders, file.parent if file else None):
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
        if file is not None:
            with file.open("a", encoding="utf-8"):
                pass
    except OSError as error:
        raise InputError(f"{error.filename or file}: cannot be written ({error.strerror})") from None
