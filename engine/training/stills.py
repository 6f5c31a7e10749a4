"""`ifmdm evaluate --stills`: 24 stills of all kinds that training does not see, each speaking, each looked at.

They are CC0 pictures of people who do not exist. The set they were chosen from holds one person with glasses and no
painting.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from engine.errors import InputError
from engine.portrait import PortraitError, load_portrait
from engine.training import closures, report, sheets
from engine.training.clips import RATE, SAMPLES_PER_FRAME, fit_voice
from engine.training.halo import halo
from engine.training.held_out import HELD_OUT
from engine.training.landmarks import mouth_opening
from engine.training.tracks import (
    FULL,
    SIZE,
    Tools,
    make_track,
    measure_detail,
    measure_identity,
    measure_motion,
    resized,
)
from engine.training.workers import Call, results

#: Frames on a sheet beside the portrait, and stills on a sheet.
FRAMES, ROWS = 9, 6
#: The background is what lies outside the hull of the face's landmarks, grown by so much about its middle.
GROWN = 1.3

DEFINITIONS = {
    "found": "share of frames in which a face is found",
    "detail": "energy of the Laplacian inside the face, frames over portrait",
    "cosine": "of dlib's face vectors, four frames spread over the clip against the portrait",
    "blinks": "a minute, as `evaluate --data` counts them",
    "mouth": "opening from its {} to its {} percentile; in the portrait: of the still itself".format(*closures.RANGE),
    "background": f"mean absolute difference to the portrait, in 0..255, outside the face's hull grown by "
    f"{100 * (GROWN - 1):.0f} %; hair, neck and shoulders count, and they do move with a head",
    "halo": report.DEFINITIONS["halo"].replace("clip", "still"),
}


@dataclass(frozen=True)
class StillTask:
    path: Path
    samples: np.ndarray
    seed: int


def find_stills(folder: Path, limit: int | None = None) -> list[Path]:
    """The files of the held-out stills in a folder, in the order of the list. Raises InputError if any is missing."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; --stills must name the folder of the stills")
    files = {path.stem: path for path in sorted(folder.glob("*.jpg"))}
    missing = [name for name in HELD_OUT if name not in files]
    if missing:
        raise InputError(f"{folder}: {len(missing)} of the {len(HELD_OUT)} stills are not here, first {missing[0]}.jpg")
    return [files[name] for name in list(HELD_OUT)[:limit]]


def background(points: np.ndarray, size: int) -> np.ndarray:
    """Mask (size, size) bool of what lies outside the grown hull of a face's landmarks (478, 3)."""
    hull = cv2.convexHull((points[:468, :2] * size).astype(np.float32))[:, 0]
    middle = hull.mean(0)
    mask = np.zeros((size, size), np.uint8)
    cv2.fillConvexPoly(mask, (middle + GROWN * (hull - middle)).round().astype(np.int32), 1)
    return mask == 0


def stirred(portrait: np.ndarray, frames: list[np.ndarray], mask: np.ndarray) -> float:
    """Mean absolute difference, in 0..255, of frames to the portrait within a mask; 0 where the mask is empty."""
    if not mask.any():
        return 0.0
    still = portrait[mask].astype(np.int16)
    return float(np.mean([np.abs(frame[mask] - still).mean() for frame in frames]))


def evaluate_still(task: StillTask, tools: Tools) -> dict:
    """The still speaking: its figures, and under "looks" the portrait and nine frames, for the sheets."""
    record: dict = {"name": task.path.stem, "why": HELD_OUT[task.path.stem]}
    count = len(task.samples) // SAMPLES_PER_FRAME
    try:
        portrait = load_portrait(task.path, FULL).pixels
        pictures = tools.subject.speak(portrait, task.samples, count, task.seed)
    except PortraitError as error:
        return {**record, "refused": str(error)}
    shown = [portrait, *(pictures[round(count * (i + 1) / (FRAMES + 1))] for i in range(FRAMES))]
    record["looks"] = np.stack([resized(picture, sheets.CELL) for picture in shown])
    points = tools.landmarker(resized(portrait, SIZE))
    track = make_track(pictures, count, tools.landmarker)
    record["found"] = float(track.found.mean())
    if points is None or not track.usable:
        return record
    low, high = closures.mouth_range(mouth_opening(track.points))
    mask = background(points, FULL)
    return {
        **record,
        "detail": measure_detail(track, portrait, points),
        "identity": measure_identity(track, tools.embedder(portrait, points), tools.embedder),
        "blinks": measure_motion(track, points)["blinks"] * 60 * RATE / count,
        "mouth": {"low": low, "high": high, "portrait": float(mouth_opening(points[None])[0])},
        "background": stirred(portrait, pictures[:: max(1, count // 50)], mask),
        "background_share": float(mask.mean()),
        "halo": halo(portrait, pictures, tools.people),
    }


def evaluate_stills(
    stills: list[Path],
    voice: np.ndarray,
    make: Callable[[], Tools],
    seed: int,
    jobs: int,
    folder: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict:
    """Let each of the stills say `voice` (n,) at 16 kHz, with the tools that `make` makes, the seed counting up.

    folder: where the contact sheets go, stills_1.jpg and on. `progress` is called with each name when it is done.
    """
    samples = fit_voice(voice, math.ceil(len(voice) / SAMPLES_PER_FRAME))
    calls: list[Call] = [(evaluate_still, StillTask(path, samples, seed + i)) for i, path in enumerate(stills)]
    records = []
    for record in results(calls, make, jobs):
        records.append(record)
        if progress is not None:
            progress(record["name"])
    if folder is not None:
        draw(records, folder)
    kept = [{key: value for key, value in record.items() if key != "looks"} for record in records]
    return report.jsonable({"definitions": DEFINITIONS, "all": _figures(records), "stills": kept})


def _figures(records: list[dict]) -> dict:
    known = [record for record in records if "mouth" in record]
    return {
        "stills": len(records),
        "measured": len(known),
        "refused": sum("refused" in record for record in records),
        "detail": report.figure([r["detail"] for r in known if r["detail"] is not None]),
        "cosine": report.figure([r["identity"]["cosine"] for r in known if r["identity"]]),
        "blinks": report.figure([r["blinks"] for r in known]),
        "mouth": report.figure([r["mouth"]["high"] - r["mouth"]["low"] for r in known]),
        "background": report.figure([r["background"] for r in known]),
        "halo": report.halo_figure([r["halo"] for r in known]),
    }


def draw(records: list[dict], folder: Path) -> None:
    """`stills_1.jpg` and on: each still and nine frames at even times of its clip."""
    for first in range(0, len(records), ROWS):
        rows = [(f"{r['name']}: {r['why']}", list(r["looks"])) for r in records[first : first + ROWS] if "looks" in r]
        if rows:
            number = first // ROWS + 1
            sheet = sheets.contact_sheet(f"the portrait, and {FRAMES} frames at even times", rows, [], {})
            sheets.save(sheet, folder / f"stills_{number}.jpg")


def table(result: dict) -> str:
    """The figures as text, from what `evaluate_stills` returns."""
    about = result.get("about", {})
    weights = (about.get("weights") or {}).get("sha256")
    everyone = result["all"]
    lines = [
        f"{everyone['stills']} stills, {everyone['measured']} measured, {everyone['refused']} refused"
        + (f"; weights {weights[:12]}" if weights else f"; {about.get('subject', '')}".rstrip("; ")),
        "",
        f"{'':<12}{'found':>7}{'detail':>8}{'cosine':>8}{'blinks':>8}{'mouth':>15}{'(still)':>8}{'background':>12}"
        f"{'halo':>8}",
    ]
    for record in result["stills"]:
        if "refused" in record:
            lines.append(f"  {record['name']:<10}  refused: {record['refused']}")
            continue
        cells = f"{record['found']:>7.2f}"
        if "mouth" in record:
            mouth, cosine = record["mouth"], (record["identity"] or {}).get("cosine")
            span = f"{mouth['low']:.3f} .. {mouth['high']:.3f}"
            cells += f"{_number(record['detail'], 8)}{_number(cosine, 8, 3)}{record['blinks']:>8.1f}{span:>15}"
            cells += f"{mouth['portrait']:>8.3f}{record['background']:>12.2f}"
            cells += _number(record["halo"], 8, 4)
        lines.append(f"  {record['name']:<10}{cells}  {record['why']}")
    means = [_number(everyone[name]["value"], 0, 3) for name in ("detail", "cosine", "blinks", "mouth", "background")]
    lines += ["", "mean: detail {}, cosine {}, blinks {}, mouth {} wide, background {}".format(*means)]
    lines += ["halo: mean {}, worst {}".format(*(_number(everyone["halo"][x], 0, 4) for x in ("value", "worst")))]
    lines += ["", *(f"{name}: {told}" for name, told in DEFINITIONS.items())]
    return "\n".join(lines)


def _number(value: float | None, width: int, digits: int = 2) -> str:
    return f"{'-' if value is None else format(value, f'.{digits}f'):>{width}}"
