"""`ifmdm evaluate`: how well the engine does on people and sentences it was not trained on.

Two tasks on each clip. *Reenactment*: its first frame is the portrait, its own motion the driver. *Voice*:
its first frame and its sound, and once more with the sound of another clip, which a mouth that listens must
not fit. `report.py` makes figures of what is measured here. What is not in the data at all is evaluated in `voices.py`
(synthetic voices) and `stills.py` (24 held-out stills).
"""

import argparse
import functools
import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from engine.errors import InputError
from engine.model import DEFAULT_WEIGHTS, find_weights
from engine.portrait import PortraitError
from engine.speech import read_voice as read_sound
from engine.training import metrics, phonemes, report, sheets, stills, voices
from engine.training.clips import RATE, Clip, ClipError, find_clips, fit_voice, read_frames, read_voice
from engine.training.degrade import CONDITIONS
from engine.training.halo import SelfieSegmentation, halo
from engine.training.identity import FaceVectors
from engine.training.landmarks import FaceMesh, eye_opening, mouth_opening, regions
from engine.training.tracks import (
    SIZE,
    CopyPortrait,
    Tools,
    Track,
    make_track,
    measure_detail,
    measure_identity,
    measure_motion,
)
from engine.training.workers import Call, results

#: Faces are about half the picture high in the training data; a clip far from that is judged unfairly.
SMALL_FACE = 0.25
IDLE_SECONDS = 6
#: Sheets are made of the first clips, and of the first of each source: by rule, never by hand.
SHEETS_FIRST, SHEETS_PER_SOURCE = 12, 4


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


def make_tools(subject: str, weights: Path | None) -> Tools:
    """The real tools; `subject` is "model" or "copy".

    Raises ModuleNotFoundError without the extras, InputError where the weights are at fault.
    """
    cv2.setNumThreads(1)  # one process a core does better than many threads in each
    if subject == "copy":
        return Tools(CopyPortrait(), FaceMesh(), FaceVectors(), SelfieSegmentation())
    from engine.training.subject import Trained

    return Tools(Trained(weights), FaceMesh(), FaceVectors(), SelfieSegmentation())


# ------------------------------------------------------------------------------------------------ one clip


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


def evaluate_clip(task: Task, tools: Tools) -> dict:
    """All that is measured on one clip, for `report.summarise`. Raises ClipError if it cannot be used."""
    clip, options = task.clip, task.options
    frames = read_frames(clip.path, options.frames)
    count, portrait = len(frames), frames[0]
    real = make_track(frames, count, tools.landmarker, options.cache)
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
        "motion": {"real": measure_motion(real, real.points[0])},
        "identities": {},
        "halo": {},
        "detail": {"real": measure_detail(real, portrait, real.points[0])},
    }
    height = float(np.ptp(real.points[0, :468, 1]))
    if height < SMALL_FACE:
        record["notes"].append(
            f"{clip.path}: the face is only {height:.2f} of the picture high; crop closer to it"
        )
    vector = tools.embedder(portrait, real.points[0])
    record["vector"] = vector
    record["identities"]["real"] = measure_identity(real, vector, tools.embedder)

    def measure(role: str, pictures: list[np.ndarray]) -> Track:
        made = make_track(pictures, count, tools.landmarker)
        record["found"][role] = float(made.found.mean())
        if made.usable:
            record["opening"][role] = mouth_opening(made.points)
            if role != "other":
                record["halo"][role] = halo(portrait, pictures, tools.people)
                record["motion"][role] = measure_motion(made, real.points[0])
                record["identities"][role] = measure_identity(made, vector, tools.embedder)
                record["detail"][role] = measure_detail(made, portrait, real.points[0])
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
    track = make_track(tools.subject.speak(portrait, silence, count, task.seed), count, tools.landmarker)
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
    motion = measure_motion(track, track.points[0])
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


def _attempt(task: Task, tools: Tools, measure: Callable[[Task, Tools], dict] = evaluate_clip) -> dict:
    try:
        return measure(task, tools)
    except ClipError as error:
        return {"name": task.clip.name, "skipped": str(error)}
    except PortraitError as error:  # the engine finds no face where the landmarker does
        return {
            "name": task.clip.name,
            "skipped": f"{task.clip.path}: its first frame is no portrait: {error}",
        }


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
    calls: list[Call] = [(_attempt, task) for task in tasks]
    if options.idle:
        sheet = options.sheets / "idle.png" if options.sheets else None
        calls.append((functools.partial(_attempt, measure=evaluate_idle), replace(tasks[0], sheet=sheet)))
    records, skipped, idling = [], [], None
    for index, record in enumerate(results(calls, make, options.jobs)):
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
    parser.add_argument("--data", type=Path, help="folder of talking clips, mp4 framed around the face")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--voices",
        action="store_true",
        help="instead: do lips close for p, b, m of synthetic voices (flite, espeak-ng)? With --data the same on "
        "its GRID clips that have word times",
    )
    what.add_argument(
        "--stills", type=Path, metavar="DIR", help="instead: 24 held-out stills of all kinds, from this folder"
    )
    parser.add_argument(
        "--degraded", action="store_true", help="with --voices: also with noise, echo and a low bitrate"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--sheets", type=Path, metavar="DIR", help="write contact sheets and plots there")
    parser.add_argument(
        "--split", help="which split of the folder's manifest.csv (default: val; all without manifest)"
    )
    parser.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="evaluate N clips, spread evenly over the split; or N stills, or N sentences of each voice",
    )
    parser.add_argument(
        "--weights", type=find_weights, metavar="SET", help="research, clean or a folder (default: research)"
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
    # Whoever runs this knows where the pictures and the voice are that come with it.
    parser.set_defaults(bundled_portraits=None, bundled_voice=None)


def run(args: argparse.Namespace) -> int:
    for module in ("mediapipe", "dlib", "face_recognition_models"):
        if importlib.util.find_spec(module) is None:
            raise InputError(
                f"evaluation needs {module}, which is not installed: pip install -c constraints.txt '.[evaluate]'"
            )
    for name in ("limit", "frames", "jobs"):
        value = getattr(args, name)
        least = 3 if name == "frames" else 1
        if value is not None and value < least:
            raise InputError(f"--{name} {value}: must be at least {least}")
    weights = None
    if args.subject == "model":
        directory = args.weights or find_weights(DEFAULT_WEIGHTS)
        if not directory.is_dir():
            raise InputError(f"{directory}: no such folder; --weights must name a folder of weights")
        weights = {"directory": directory.name, "sha256": weights_hash(directory)}
    job = _job(args)
    _writable(args.json, args.sheets, args.cache)

    from tqdm import tqdm

    with tqdm(total=job.total, unit=job.unit, file=sys.stderr, dynamic_ncols=True) as bar:

        def progress(name: str) -> None:
            bar.set_postfix_str(name, refresh=False)
            bar.update()

        result = job.work(functools.partial(make_tools, args.subject, args.weights), progress)
    result["about"] = {
        "split": job.split,
        "limit": args.limit,
        "subject": args.subject,
        "weights": weights,
        "frames": args.frames,
        "seed": args.seed,
        "versions": report.versions(),
    }
    print(job.table(result), flush=True)
    if args.json is not None:  # last, since the disk may be full
        try:
            args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"{args.json}: cannot be written ({error.strerror}); the figures are above") from error
    return 0


@dataclass(frozen=True)
class _Job:
    """What was asked for: how much of what it is, what does it, and what shows its result."""

    total: int
    unit: str
    work: Callable[[Callable[[], Tools], Callable[[str], None]], dict]
    table: Callable[[dict], str]
    split: str | None = None


def _job(args: argparse.Namespace) -> _Job:
    """Everything is read and checked here, before minutes of work. Raises InputError."""
    if args.degraded and not args.voices:
        raise InputError("--degraded: only with --voices")
    if args.stills is not None:
        return _stills_job(args)
    if args.data is None and not args.voices:
        raise InputError("nothing to evaluate: give --data DIR, --voices or --stills DIR")
    clips: list[Clip] = []
    if args.data is not None:
        clips = find_clips(args.data, args.split)
    if args.voices:
        return _voices_job(args, clips)
    if args.limit is not None and args.limit < len(clips):
        clips = [clips[i] for i in np.linspace(0, len(clips) - 1, args.limit).round().astype(int)]
    options = Options(args.frames, args.seed, args.jobs, args.cache, args.sheets, args.idle)
    split = args.split or ("val" if (args.data / "manifest.csv").is_file() else None)
    return _Job(
        len(clips), "clip", lambda make, progress: evaluate(clips, make, options, progress), report.table, split
    )


def _voices_job(args: argparse.Namespace, clips: list[Clip]) -> _Job:
    phonemes.require_synthesisers()
    conditions = [*CONDITIONS] if args.degraded else ["clean"]
    tasks = voices.plan(voices.check(args.bundled_portraits), conditions, args.limit, args.seed)
    grid = voices.grid_tasks(clips, args.data, args.seed, args.cache) if clips else []
    return _Job(
        len(tasks) + len(grid),
        "track",
        lambda make, progress: voices.evaluate_voices(tasks, grid, make, args.jobs, args.sheets, progress),
        voices.table,
    )


def _stills_job(args: argparse.Namespace) -> _Job:
    if args.data is not None:
        raise InputError("--stills and --data do not go together: evaluate the one, then the other")
    if args.bundled_voice is None:
        raise InputError("--stills: no bundled voice here; run it as `ifmdm evaluate`")
    found = stills.find_stills(args.stills, args.limit)
    voice = read_sound(args.bundled_voice).mono16k()
    return _Job(
        len(found),
        "still",
        lambda make, progress: stills.evaluate_stills(found, voice, make, args.seed, args.jobs, args.sheets, progress),
        stills.table,
    )


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
