"""From the records of single clips to the figures of a split, the table and the plots of `ifmdm evaluate`."""

import importlib.metadata
import math
import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np

from engine.training import metrics, sheets
from engine.training.clips import RATE

#: Lags tried for lip sync, in frames of 1/25 s to either side.
REACH = 5
#: Clips shorter than this, or whose real mouth varies less (standard deviation), say nothing about sync.
SYNC_FRAMES = 20
SYNC_OPENING = 0.02
REGIONS = ("face", "mouth", "eyes")
#: Names of the reported spreads in the records, and how to read them.
SPREADS = ("face", "head", "yaw", "pitch", "roll", "mouth", "eyes")

DEFINITIONS = {
    "value": "mean over clips if not said otherwise; low, high: 95 % bootstrap interval; n: clips",
    "reenact": "the first frame is the portrait, the clip's own frames drive it",
    "voice": "the first frame is the portrait, the clip's sound drives it",
    "size": "pictures are compared, and landmarks found, at 256x256, 25 frames/s; frame 0 is not compared",
    "regions": "on the landmarks of the true frame: face = convex hull grown by 3 % of the picture; "
    "mouth = 1.6 x the box of the lips, at least half as high as wide; eyes = the same around each eye",
    "l1": "mean absolute error, pictures in 0..1",
    "l1_ratio": "sum of ours over sum of copying the portrait, over all frames of all clips",
    "l1_ratio_median": "median over clips of the clip's ratio",
    "psnr": f"dB, of the clip's mean squared error, at most {metrics.PSNR_LIMIT:g}; mean over clips",
    "ssim": "luma, gaussian window 11x11 sigma 1.5, mean of the map over the region",
    "opening": "gap of the inner lips (mean of three) over the distance from the eyes to below the nose",
    "sync": "Pearson correlation of the opening of the made video with that of the real one, a positive lag "
    f"meaning that the made one is late; lags within {REACH} frames. Clips are left out if shorter than "
    f"{SYNC_FRAMES} frames, or if the real opening varies by less than {SYNC_OPENING} (standard "
    "deviation), or if faces get lost",
    "correlation": "HEADLINE: mean over clips at the one lag that is best for the mean of all clips",
    "correlation_lag0": "mean over clips at lag 0",
    "per_clip_best": "mean over clips of each clip's best lag: biased upwards, most of all on short clips",
    "pooled": "one correlation over all frames of all clips at the one lag, each clip's means removed",
    "other_audio": "the same with the sound of another clip, at its own best lag: what is not listening",
    "other_real": "the real mouth of that other clip against the real mouth of this one: what a perfect "
    "model would get with the other sound (sentences of one pattern look alike)",
    "spread": "root mean square distance from the mean over time; ratio: sum of made over sum of real. face: "
    "all 468 landmarks (px); head: their rigid part, against the background (px); yaw, pitch, roll (degrees); mouth: "
    "opening; eyes: aspect ratio",
    "jitter": "root mean square second difference of the 468 landmarks, px/frame^2; ratio as for "
    "spread. The noise of the landmarks on real, compressed video is part of the real figure",
    "blinks_per_minute": "dips of the eye aspect ratio below 0.6 of the clip's open eye, at most half a "
    "second long; all blinks over all minutes",
    "identity": "dlib's face vectors, four frames spread over the clip against the portrait. cosine; "
    "distance (Euclidean; dlib: under 0.6 one person); same: share of frames under 0.6. real: the clip's "
    "own frames (ceiling); strangers: first frames of different known people (floor)",
    "detail": "energy of the Laplacian inside the face, frames over portrait, at the size of the frames",
    "halo": "share of a ring of 48 px (of 512) beside the person, where MediaPipe's segmentation sees background both "
    "in the portrait and in the frame, that differs from the portrait by more than 12 of 255; every 5th frame. worst: "
    "the clip that has most of it",
}


def _mean(samples: np.ndarray) -> np.ndarray:
    return samples.mean(-1)


def ratio(pairs: np.ndarray) -> np.ndarray:
    """(..., n, 2) -> (...): sum of the first over sum of the second."""
    above, below = np.moveaxis(pairs.sum(-2), -1, 0)
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def _median_ratio(pairs: np.ndarray) -> np.ndarray:
    """(..., n, 2) -> (...): median of the first over the second; a clip whose second is 0 counts as 1."""
    above, below = np.moveaxis(pairs, -1, 0)
    return np.median(np.divide(above, below, out=np.ones_like(above), where=below > 0), -1)


def figure(samples: list | np.ndarray, statistic: Callable[[np.ndarray], np.ndarray] = _mean) -> dict:
    """{"value", "low", "high", "n"} of a statistic over clips, the rows of `samples`."""
    samples = np.asarray(samples, np.float64)
    if len(samples) == 0:
        return {"value": math.nan, "low": math.nan, "high": math.nan, "n": 0}
    low, high = metrics.bootstrap_interval(samples, statistic)
    return {"value": float(statistic(samples)), "low": low, "high": high, "n": len(samples)}


def _reconstruction(records: list[dict]) -> dict:
    out = {}
    for region in REGIONS:
        ours = np.array([record["reconstruction"][region]["ours"] for record in records])
        copy = np.array([record["reconstruction"][region]["copy"] for record in records])
        frames = np.array([record["frames"] - 1 for record in records])[:, None]
        sums = np.stack([ours[:, 0], copy[:, 0]], 1)
        out[region] = {
            "l1_ratio": figure(sums * frames, ratio),
            "l1_ratio_median": figure(sums, _median_ratio),
        }
        for name, values in (("", ours), ("_copy", copy)):
            out[region][f"l1{name}"] = figure(values[:, 0])
            out[region][f"psnr{name}"] = figure([metrics.psnr(value) for value in values[:, 1]])
            out[region][f"ssim{name}"] = figure(values[:, 2])
    return out


def _fits_sync(record: dict) -> bool:
    return record["frames"] >= SYNC_FRAMES and record["opening"]["real"].std() >= SYNC_OPENING


def _looped(series: np.ndarray, count: int) -> np.ndarray:
    return np.tile(series, -(-count // len(series)))[:count]


def sync(pairs: list[tuple[np.ndarray, np.ndarray]], lag: int | None = None) -> dict:
    """Figures of (real, made) openings, at the given lag or else at the best one for their mean."""
    if not pairs:
        return {"correlation": figure([]), "lag": None, "n": 0}
    curves = np.array([metrics.lagged_correlations(real, made, REACH) for real, made in pairs])
    mean = curves.mean(0)
    # Of equal lags the one nearest to zero: a mouth that does not move is not late.
    best = max(range(len(mean)), key=lambda at: (round(mean[at], 9), -abs(at - REACH)))
    at = best if lag is None else REACH + lag
    shift = at - REACH
    real = [pair[0][max(0, -shift) : len(pair[0]) - max(0, shift)] for pair in pairs]
    made = [pair[1][max(0, shift) : len(pair[1]) - max(0, -shift)] for pair in pairs]
    pooled = metrics.correlation(
        np.concatenate([series - series.mean() for series in real]),
        np.concatenate([series - series.mean() for series in made]),
    )
    return {
        "correlation": figure(curves[:, at]),
        "lag": shift,
        "own_best_lag": best - REACH,
        "correlation_lag0": figure(curves[:, REACH]),
        "per_clip_best": figure(curves.max(1)),
        "pooled": pooled,
        "curve": mean.tolist(),
    }


def _sync_pairs(records: list[dict], role: str) -> list[tuple[np.ndarray, np.ndarray]]:
    return [
        (record["opening"]["real"], record["opening"][role])
        for record in records
        if _fits_sync(record) and role in record["opening"]
    ]


def _other_real(records: list[dict], everyone: list[dict]) -> list[tuple[np.ndarray, np.ndarray]]:
    known = {record["name"]: record["opening"]["real"] for record in everyone}
    return [
        (record["opening"]["real"], _looped(known[record["other"]], record["frames"]))
        for record in records
        if _fits_sync(record) and record["other"] in known
    ]


def _motion(records: list[dict], role: str) -> dict:
    rows = [
        (record["motion"][role], record["motion"]["real"], record)
        for record in records
        if role in record["motion"]
    ]
    if not rows:
        return {}
    minutes = sum(record["frames"] for *_, record in rows) / RATE / 60
    out = {
        "spread": {
            name: figure([(made[name], real[name]) for made, real, _ in rows], ratio) for name in SPREADS
        },
        "spread_median": {
            name: figure([(made[name], real[name]) for made, real, _ in rows], _median_ratio)
            for name in SPREADS
        },
        "mean": {name: float(np.mean([made[name] for made, *_ in rows])) for name in (*SPREADS, "jitter")},
        "mean_real": {
            name: float(np.mean([real[name] for _, real, _ in rows])) for name in (*SPREADS, "jitter")
        },
        "jitter": figure([(made["jitter"], real["jitter"]) for made, real, _ in rows], ratio),
        "head_jitter": figure([(made["head_jitter"], real["head_jitter"]) for made, real, _ in rows], ratio),
        "blinks_per_minute": sum(made["blinks"] for made, *_ in rows) / minutes,
        "blinks_per_minute_real": sum(real["blinks"] for _, real, _ in rows) / minutes,
    }
    return out


def _identity(records: list[dict], role: str) -> dict:
    rows = [found for record in records if (found := record["identities"].get(role))]
    return {name: figure([row[name] for row in rows]) for name in ("cosine", "distance", "same")}


def _strangers(records: list[dict]) -> dict:
    """Pairs of first frames of people known to differ: both identities known and different."""
    known = [record for record in records if record["identity"] is not None]
    pairs = [
        (metrics.cosine(a["vector"], b["vector"]), float(np.linalg.norm(a["vector"] - b["vector"])))
        for i, a in enumerate(known)
        for b in known[:i]
        if a["identity"] != b["identity"]
    ]
    return {
        "cosine": {
            "value": float(np.mean([pair[0] for pair in pairs])) if pairs else math.nan,
            "pairs": len(pairs),
        },
        "distance": {
            "value": float(np.mean([pair[1] for pair in pairs])) if pairs else math.nan,
            "pairs": len(pairs),
        },
    }


def _detail(records: list[dict], role: str) -> dict:
    return figure([value for record in records if (value := record["detail"].get(role)) is not None])


def halo_figure(shares: list[float | None]) -> dict:
    """Of the halos of clips or stills: the mean, as `figure` gives it, and the worst; None where there was none to
    judge."""
    known = [share for share in shares if share is not None]
    return figure(known) | {"worst": max(known, default=math.nan)}


def _group(records: list[dict], everyone: list[dict], lags: dict[str, int | None]) -> dict:
    """All figures of some records; `lags` are the one lags of everyone, empty when these are everyone."""
    out = {
        "clips": len(records),
        "clips_with_sound": sum("voice" in record["found"] for record in records),
        "frames": sum(record["frames"] for record in records),
        "sync_left_out": sum("voice" in record["found"] and not _fits_sync(record) for record in records),
        "faces_lost": {
            role: sum(role in record["found"] and role not in record["opening"] for record in records)
            for role in ("reenact", "voice", "other")
        },
    }
    own = sync(_sync_pairs(records, "voice"), lags.get("voice"))
    out["voice"] = {
        "sync": own,
        "other_audio": sync(_sync_pairs(records, "other"), lags.get("other")),
        "other_real": sync(_other_real(records, everyone), lags.get("other_real")),
        "motion": _motion(records, "voice"),
        "identity": _identity(records, "voice"),
        "detail": _detail(records, "voice"),
        "halo": halo_figure([record["halo"].get("voice") for record in records]),
    }
    out["reenact"] = {
        "reconstruction": _reconstruction(records),
        "sync": sync(_sync_pairs(records, "reenact"), lags.get("reenact")),
        "motion": _motion(records, "reenact"),
        "identity": _identity(records, "reenact"),
        "detail": _detail(records, "reenact"),
        "halo": halo_figure([record["halo"].get("reenact") for record in records]),
    }
    out["real"] = {"identity": _identity(records, "real"), "detail": _detail(records, "real")}
    return out


def summarise(records: list[dict]) -> dict:
    """Figures over all records, by source, and of each: definitions, all, by_source, strangers, clips."""
    overall = _group(records, records, {})
    lags = {
        "voice": overall["voice"]["sync"]["lag"],
        "other": overall["voice"]["other_audio"]["lag"],
        "other_real": overall["voice"]["other_real"]["lag"],
        "reenact": overall["reenact"]["sync"]["lag"],
    }
    sources = sorted({record["source"] for record in records})
    return {
        "definitions": DEFINITIONS,
        "all": overall,
        "by_source": {
            source: _group([record for record in records if record["source"] == source], records, lags)
            for source in sources
        },
        "strangers": _strangers(records),
        "clips": [{key: value for key, value in record.items() if key != "vector"} for record in records],
    }


def jsonable(value: object) -> object:
    """Plain lists and numbers, five digits, null for what is not a number."""
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, np.ndarray):
        return jsonable(value.tolist())
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


def versions() -> dict[str, str]:
    """Versions of what the figures depend on, where installed."""
    found = {"python": platform.python_version()}
    for name in (
        "ifmdm",
        "numpy",
        "opencv-python-headless",
        "av",
        "mediapipe",
        "dlib-bin",
        "torch",
        "onnxruntime-gpu",
    ):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


# ------------------------------------------------------------------------------------------------ for people


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


class _Lines(list):
    """The table as it grows. Columns: label, ours, interval, clips, and what to hold it against."""

    def head(self, title: str, beside: str) -> None:
        self.extend(["", f"{title:<38}{'ours':>8}  {'95 %':^15}{'n':>4}  {beside}"])

    def add(self, label: str, found: dict, beside: str = "", digits: int = 3) -> None:
        interval = ""
        if found.get("low") is not None:
            interval = f"{found['low']:.{digits}f} .. {found['high']:.{digits}f}"
        value = _number(found.get("value"), digits)
        self.append(f"  {label:<36}{value:>8}  {interval:^15}{found.get('n', ''):>4}  {beside}".rstrip())

    def add_reconstruction(self, parts: dict) -> None:
        for region in REGIONS:
            part = parts[region]
            median = _number(part["l1_ratio_median"]["value"])
            self.add(
                f"{region}: L1, ratio to copying", part["l1_ratio"], f"1 (median of clips: ours {median})"
            )
            for name, digits in (("l1", 4), ("psnr", 2), ("ssim", 3)):
                copy = _number(part[f"{name}_copy"]["value"], digits)
                self.add(f"{region}: {name.upper()}", part[name], copy, digits)

    def add_sync(self, sync: dict, other: dict | None) -> None:
        def beside(name: str) -> str:
            return "0" if other is None else _number((other.get(name) or {}).get("value"))

        def at(figures: dict | None) -> str:
            return "" if figures is None or figures["lag"] is None else f" at lag {figures['lag']:+d}"

        self.add(f"mouth: correlation{at(sync)}", sync["correlation"], beside("correlation") + at(other))
        if "curve" in sync:
            biased = beside("per_clip_best") + " (biased upwards)"
            pooled = "0" if other is None else _number(other.get("pooled"))
            self.add("mouth: correlation at lag 0", sync["correlation_lag0"], beside("correlation_lag0"))
            self.add("mouth: mean of clips' best lags", sync["per_clip_best"], biased)
            self.add("mouth: pooled over frames", {"value": sync["pooled"]}, pooled)

    def add_motion(self, motion: dict) -> None:
        for name in ("face", "head", "mouth", "eyes"):
            digits, unit = (1, " px") if name in ("face", "head") else (3, "")
            means = [_number(motion[mean][name], digits) for mean in ("mean_real", "mean")]
            beside = f"1 ({means[0]}{unit}, ours {means[1]})"
            self.add(f"spread of {name}, ratio to real", motion["spread"][name], beside)
        real = _number(motion["mean_real"]["jitter"])
        self.add("jitter, ratio to real", motion["jitter"], f"1 ({real} px/frame^2)")
        blinks = {"value": motion["blinks_per_minute"]}
        self.add("blinks a minute", blinks, _number(motion["blinks_per_minute_real"], 1), 1)

    def add_identity(self, identity: dict, real: dict, strangers: dict) -> None:
        for name, what, digits in (
            ("cosine", "cosine", 3),
            ("distance", "distance", 3),
            ("same", "under 0.6", 2),
        ):
            beside = _number(real[name]["value"], digits)
            if name in strangers:
                floor = strangers[name]
                beside += f"; strangers {_number(floor['value'], digits)} ({floor['pairs']} pairs)"
            self.add(f"identity: {what}", identity[name], beside, digits)


def table(result: dict) -> str:
    """The figures as text, from what `evaluate` returns."""
    everyone, about = result["all"], result.get("about", {})
    reenact, voice, real = everyone["reenact"], everyone["voice"], everyone["real"]
    weights = (about.get("weights") or {}).get("sha256")
    lines = _Lines()
    lines.append(
        f"{everyone['clips']} clips ({everyone['clips_with_sound']} with sound, {everyone['frames']} frames)"
        + (f", split {about['split']}" if about.get("split") else "")
        + (f"; weights {weights[:12]}" if weights else f"; {about.get('subject', '')}".rstrip("; "))
    )
    lines.head("Reenactment, 256x256", "copying the portrait")
    lines.add_reconstruction(reenact["reconstruction"])
    lines.add_sync(reenact["sync"], None)
    if voice["motion"]:
        lines.head("Lip sync from the voice", "the sound of another clip (copying: 0)")
        lines.add_sync(voice["sync"], voice["other_audio"])
        lines.add(
            "a perfect model, other sound", voice["other_real"]["correlation"], "that clip's real mouth"
        )
        still = everyone["sync_left_out"]
        lines.append(f"  left out of sync: {still} clips (short, or the real mouth hardly moves)")
    for title, part in (("Reenactment", reenact), ("Voice", voice)):
        if part["motion"]:
            lines.head(f"{title}: motion and looks", "real clips (copying: 0 motion, cosine 1, detail 1)")
            lines.add_motion(part["motion"])
            lines.add_identity(part["identity"], real["identity"], result["strangers"])
            lines.add("detail, ratio to portrait", part["detail"], _number(real["detail"]["value"]))
            lines.add("halo, of the ring", part["halo"], f"worst {_number(part['halo']['worst'])}")
    lines += ["", *_by_source(result)]
    idle = result.get("idle")
    if idle and "face" in idle:
        lines += [
            "",
            f"Idle, {idle['seconds']} s of silence on {idle['portrait']}: {idle['blinks_per_minute']:.0f} "
            f"blinks a minute; spread of face {idle['face']:.2f} px, head {idle['head']:.2f} px, "
            f"mouth {idle['mouth']:.3f}; jitter {idle['jitter']:.2f} px/frame^2",
        ]
    lost = {role: count for role, count in everyone["faces_lost"].items() if count}
    if lost:
        lines += ["", "clips in whose made frames faces were lost, not measured: " + str(lost).strip("{}")]
    lines += [f"skipped: {clip['why']}" for clip in result["skipped"]]
    lines += [f"note: {note}" for note in result["notes"]]
    lines += ["", "sync: " + DEFINITIONS["sync"], "correlation: " + DEFINITIONS["correlation"]]
    return "\n".join(lines)


def _by_source(result: dict) -> list[str]:
    columns = (
        ("face L1", lambda g: g["reenact"]["reconstruction"]["face"]["l1_ratio"]),
        ("mouth L1", lambda g: g["reenact"]["reconstruction"]["mouth"]["l1_ratio"]),
        ("eyes L1", lambda g: g["reenact"]["reconstruction"]["eyes"]["l1_ratio"]),
        ("sync", lambda g: g["voice"]["sync"]["correlation"]),
        ("other", lambda g: g["voice"]["other_audio"]["correlation"]),
        ("perfect", lambda g: g["voice"]["other_real"]["correlation"]),
        ("spread", lambda g: g["voice"]["motion"].get("spread", {}).get("face", {})),
        ("jitter", lambda g: g["voice"]["motion"].get("jitter", {})),
        ("cosine", lambda g: g["voice"]["identity"]["cosine"]),
        ("detail", lambda g: g["voice"]["detail"]),
        ("halo", lambda g: g["voice"]["halo"]),
    )
    lines = [f"{'by source':<14}{'clips':>6}" + "".join(f"{name:>10}" for name, _ in columns)]
    for source, group in [*result["by_source"].items(), ("all", result["all"])]:
        cells = "".join(f"{_number(get(group).get('value')):>10}" for _, get in columns)
        lines.append(f"{source:<14}{group['clips']:>6}{cells}")
    lines += [
        "  L1: reenactment, ratio to copying. The rest: from the voice; sync at the one lag of all clips;",
        "  other: the sound of another clip; perfect: the real mouth of that clip",
    ]
    return lines


def draw(result: dict, records: list[dict], shown: list[str], folder: Path) -> None:
    """`openings.png`: mouth openings of the shown clips; `lags.png`: mean correlation over lag."""
    rows = []
    for record in records:
        if record["name"] in shown:
            openings = {role: series for role, series in record["opening"].items() if role != "other"}
            rows.append(sheets.plot(openings, 900, 120, f"{record['name']}: mouth opening over frames"))
    if rows:
        sheets.save(np.vstack(rows), folder / "openings.png")
    voice, reenact = result["all"]["voice"], result["all"]["reenact"]
    curves = {
        "own sound": voice["sync"].get("curve"),
        "other sound": voice["other_audio"].get("curve"),
        "other clip's real mouth": voice["other_real"].get("curve"),
        "reenacted": reenact["sync"].get("curve"),
    }
    curves = {name: np.array(curve) for name, curve in curves.items() if curve is not None}
    if curves:
        title = "mean correlation of mouth openings over lag (frames; positive: late)"
        sheets.save(sheets.plot(curves, 900, 240, title, x0=-REACH), folder / "lags.png")
