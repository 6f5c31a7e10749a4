"""`ifmdm evaluate --voices`: do lips close for p, b and m when voices speak that are in no data?

Sentences of known phonemes are read by synthetic voices and spoken by bundled portraits; `closures.py` says what is
measured. With a folder of GRID clips and their word times the same is measured on a real mouth, and on ours speaking
with that person's voice: what the figures are worth.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.errors import InputError
from engine.portrait import load_portrait
from engine.training import closures, report, sheets
from engine.training.clips import RATE, SAMPLES_PER_FRAME, Clip, ClipError, fit_voice, read_frames, read_voice
from engine.training.degrade import CONDITIONS
from engine.training.landmarks import mouth_opening
from engine.training.phonemes import BILABIAL, OTHER, SENTENCES, SILENCE, VOICES, Phoneme, Utterance, Voice, synthesise
from engine.training.tracks import FULL, Tools, make_track
from engine.training.workers import Call, results

#: The first so many bundled portraits speak; the first alone hears what is degraded, and fewer sentences of it.
PORTRAITS = 2
DEGRADED_SENTENCES = 6
#: Silence before, between and after the sentences of a track, in frames.
PAUSE = 10
#: Word times of GRID are counted in these, a second; b, p (at the start) and m (at the end) are given so many seconds.
GRID_TICKS = 25_000
GRID_CLOSURE = 0.06
#: Lips whose opening is less are shut, whatever the range: real ones come to 0.002, and 0.02 of a face is a hair's gap.
SHUT = 0.02

DEFINITIONS = {
    "opening": "gap of the inner lips over the distance from the eyes to below the nose, 25 frames/s; given as a "
    "share of the track's range, from its {} to its {} percentile (low, high)".format(*closures.RANGE),
    "closed": f"share of p, b, m around which the opening falls below {closures.CLOSED:g} of the range, within so many "
    "ms of the phoneme's interval; own: of this sentence; other: the same windows in the mouth made for the next "
    f"sentence of the track; random: windows of those lengths at {closures.DRAWS} random times of the sentence each",
    "skill": "(own - random) / (1 - random) of the closures within 40 ms: 0 is chance, 1 never misses. In sentences "
    "full of p, b, m lips are closed at many random times; ideal: what a mouth exactly as expected would get",
    "shut": f"share of p, b, m around which the opening itself falls below {SHUT:g} within 40 ms, whatever the range",
    "bilabial, open": "mean opening in p, b, m, and in open vowels, as shares of the range",
    "correlation": "of the opening with the one expected of the phonemes (p, b, m and silence 0; f, v 0.15; close "
    "vowels and other consonants 0.3, mid vowels 0.6, open ones 1), mean over sentences at the one lag that is best; "
    "a positive lag: the mouth is late; other: beside the mouth made for the next sentence",
    "voices": "flite and espeak-ng, which tell their phonemes' times; real, ours on GRID: by word times alone, "
    "b and p at the start of words, and m",
    "value": "over sentences; low, high: 95 % bootstrap interval; n: sentences",
}


@dataclass(frozen=True)
class Sentence:
    """start, count: frames of the track. phonemes: from the sentence's start, in s."""

    start: int
    count: int
    phonemes: tuple[Phoneme, ...]


@dataclass(frozen=True)
class VoiceTask:
    """A portrait (512, 512, 3) that speaks a track of sentences."""

    voice: str
    condition: str
    portrait: str
    pixels: np.ndarray
    samples: np.ndarray
    sentences: tuple[Sentence, ...]
    seed: int


@dataclass(frozen=True)
class GridTask:
    clip: Clip
    phonemes: tuple[Phoneme, ...]
    seed: int
    cache: Path | None


# ------------------------------------------------------------------------------------------------ what is spoken


def compose(utterances: list[Utterance]) -> tuple[np.ndarray, tuple[Sentence, ...]]:
    """A track (n,) of whole frames with a pause around each sentence, and where the sentences are in it."""
    blocks = [np.zeros(PAUSE * SAMPLES_PER_FRAME, np.float32)]
    sentences = []
    at = PAUSE
    for utterance in utterances:
        count = math.ceil(len(utterance.samples) / SAMPLES_PER_FRAME)
        sentences.append(Sentence(at, count, utterance.phonemes))
        blocks.append(fit_voice(utterance.samples, count + PAUSE))
        at += count + PAUSE
    return np.concatenate(blocks), tuple(sentences)


def plan(
    portraits: list[Path],
    conditions: list[str],
    limit: int | None,
    seed: int,
    read: Callable[[Voice, str], Utterance] = synthesise,
) -> list[VoiceTask]:
    """The tracks: each voice on each portrait, then each condition but "clean" on the first one."""
    tasks = []
    faces = [(path.stem, load_portrait(path, FULL).pixels) for path in portraits[:PORTRAITS]]
    for voice in VOICES:
        utterances = [read(voice, text) for text in SENTENCES[voice.language][:limit]]
        for condition in conditions:
            clean = condition == "clean"
            samples, sentences = compose(utterances if clean else utterances[:DEGRADED_SENTENCES])
            heard = CONDITIONS[condition](samples)
            for name, pixels in faces if clean else faces[:1]:
                tasks.append(VoiceTask(voice.label, condition, name, pixels, heard, sentences, seed))
    return sorted(tasks, key=lambda task: conditions.index(task.condition))


def grid_words(text: str) -> tuple[Phoneme, ...]:
    """The bilabials of one of GRID's word time files (lines "START END WORD"), and between them anything else."""
    phonemes: list[Phoneme] = []
    for line in text.splitlines():
        try:
            first, last, word = line.split()
            start, end = int(first) / GRID_TICKS, int(last) / GRID_TICKS
        except ValueError:
            continue
        if word[0] in "bp":
            phonemes.append(Phoneme(word, BILABIAL, start, start + GRID_CLOSURE))
            start += GRID_CLOSURE
        elif word == "m":
            phonemes.append(Phoneme(word, BILABIAL, end - GRID_CLOSURE, end))
            end -= GRID_CLOSURE
        phonemes.append(Phoneme(word, SILENCE if word == "sil" else OTHER, start, end))
    return tuple(phonemes)


def grid_tasks(clips: list[Clip], data: Path, seed: int, cache: Path | None) -> list[GridTask]:
    """Those of the clips whose word times lie in the data's folder grid_align. Raises InputError if there are none."""
    tasks = []
    for clip in clips:
        file = data / "grid_align" / f"{clip.path.stem}.align"
        if clip.audio and file.is_file():
            tasks.append(GridTask(clip, grid_words(file.read_text(encoding="utf-8", errors="replace")), seed, cache))
    if not tasks:
        raise InputError(f"{data}: no clip here has word times in grid_align/NAME.align; leave --data away")
    return tasks


# ------------------------------------------------------------------------------------------------ what is measured


def evaluate_voice(task: VoiceTask, tools: Tools) -> dict:
    """What each sentence of a track tells; no "sentences" if faces got lost."""
    count = len(task.samples) // SAMPLES_PER_FRAME
    track = make_track(tools.subject.speak(task.pixels, task.samples, count, task.seed), count, tools.landmarker)
    record = {
        "voice": task.voice,
        "condition": task.condition,
        "portrait": task.portrait,
        "found": float(track.found.mean()),
    }
    if track.usable:
        record |= _mouth(mouth_opening(track.points))
        spoken = [
            closures.Spoken(record["opening"][sentence.start : sentence.start + sentence.count], sentence.phonemes)
            for sentence in task.sentences
        ]
        record["sentences"] = _each(spoken, task.seed)
    return record


def _mouth(opening: np.ndarray) -> dict:
    low, high = closures.mouth_range(opening)
    return {"low": low, "high": high, "opening": closures.in_range(opening)}


def _each(spoken: list[closures.Spoken], seed: int) -> list[dict]:
    rng = np.random.default_rng(seed)
    following = [*spoken[1:], *spoken[:1]] if len(spoken) > 1 else [None]
    return [closures.measure(own, other, rng) for own, other in zip(spoken, following, strict=True)]


def evaluate_grid(task: GridTask, tools: Tools) -> dict:
    """The mouths of a clip, the real one and ours made from its first frame and sound, by role."""
    record: dict = {"name": task.clip.name, "phonemes": task.phonemes}
    try:
        frames = read_frames(task.clip.path, 250)
        voice = fit_voice(read_voice(task.clip.path, len(frames) / RATE), len(frames))
        made = tools.subject.speak(frames[0], voice, len(frames), task.seed)
    except (ClipError, InputError) as error:
        return {**record, "skipped": f"{task.clip.name}: {error}"}
    for role, pictures, cache in (("real", frames, task.cache), ("ours", made, None)):
        track = make_track(pictures, len(frames), tools.landmarker, cache)
        if track.usable:
            record[role] = _mouth(mouth_opening(track.points))
    return record


# ------------------------------------------------------------------------------------------------ figures


def _figures(records: list[dict], lag: int | None = None) -> dict:
    """Of the sentences of some records; at the given lag, or else the one that is best for them."""
    records = [record for record in records if "sentences" in record]
    sentences = [sentence for record in records for sentence in record["sentences"]]
    out: dict = {
        "tracks": len(records),
        "sentences": len(sentences),
        "bilabials": sum(len(sentence["own"][0]) for sentence in sentences),
        "low": report.figure([record["low"] for record in records]),
        "high": report.figure([record["high"] for record in records]),
        "closed": {},
    }
    for at, margin in enumerate(closures.MARGINS):
        out["closed"][f"{1000 * margin:.0f} ms"] = {
            role: report.figure(closures.share_closed(sentences, role, at), report.ratio)
            for role in ("own", "other", "random")
        }
    shut = [
        closures.share_closed(r["sentences"], "own", 0, (SHUT - r["low"]) / max(r["high"] - r["low"], 1e-6))
        for r in records
    ]
    out["shut"] = report.figure(np.concatenate([np.zeros((0, 2)), *shut]), report.ratio)
    near = out["closed"][f"{1000 * closures.MARGINS[0]:.0f} ms"]
    chance = near["random"]["value"]
    out["skill"] = (near["own"]["value"] - chance) / (1 - chance) if chance < 1 else math.nan
    for name in ("bilabial", "open"):
        out[name] = report.figure(closures.means(sentences, lambda s, name=name: s[name]), report.ratio)
    for role in ("own", "other"):
        curves = [sentence["curves"] for sentence in sentences if role in sentence["curves"]]
        pairs = [(each["expected"], each[role]) for each in curves if len(each["expected"]) >= report.SYNC_FRAMES]
        out["correlation" if role == "own" else "correlation_other"] = report.sync(pairs, lag)
    return out


def _as_expected(record: dict) -> dict:
    """The record of a mouth that does what is expected of it, in the same sentences."""
    spoken = [
        closures.Spoken(sentence["curves"]["expected"], sentence["phonemes"]) for sentence in record["sentences"]
    ]
    return {"low": 0.0, "high": 1.0, "sentences": _each(spoken, 0)}


def _grid_figures(records: list[dict], role: str, seed: int) -> dict:
    """Of the clips as sentences, each the next one's other; words tell nothing of vowels."""
    known = [record for record in records if role in record]
    spoken = [closures.Spoken(record[role]["opening"], record["phonemes"]) for record in known]
    each = _each(spoken, seed) if spoken else []
    for sentence in each:
        sentence["curves"] = {}
    return _figures(
        [{**record[role], "sentences": [sentence]} for record, sentence in zip(known, each, strict=True)]
    )


def summarise(records: list[dict], grid: list[dict], seed: int) -> dict:
    """Figures of all clean tracks, by voice, by portrait and by condition, and of GRID's clips."""
    clean = [record for record in records if record["condition"] == "clean"]
    overall = _figures(clean)
    lag = overall["correlation"]["lag"]

    def grouped(records: list[dict], key: str) -> dict:
        names = dict.fromkeys(record[key] for record in records)
        return {name: _figures([record for record in records if record[key] == name], lag) for name in names}

    out = {
        "definitions": DEFINITIONS,
        "all": overall,
        # no opening of its own: only shares of the range
        "ideal": _figures([_as_expected(record) for record in clean if "sentences" in record])
        | {name: report.figure([]) for name in ("shut", "low", "high")},
        "by_voice": grouped(clean, "voice"),
        "by_portrait": grouped(clean, "portrait"),
        "lost": [f"{r['voice']} on {r['portrait']}, {r['condition']}" for r in records if "sentences" not in r],
        "skipped": [record["skipped"] for record in grid if "skipped" in record],
    }
    if len(clean) < len(records):
        # Like with like: the first portrait and the first sentences, clean too.
        first = clean[0]["portrait"]
        same = [
            {**record, "sentences": record["sentences"][:DEGRADED_SENTENCES]}
            for record in clean
            if record["portrait"] == first and "sentences" in record
        ]
        worse = [record for record in records if record["condition"] != "clean"]
        out["by_condition"] = {"clean": _figures(same, lag), **grouped(worse, "condition")}
    if grid:
        out["grid"] = {role: _grid_figures(grid, role, seed) for role in ("real", "ours")}
    return out


def evaluate_voices(
    tasks: list[VoiceTask],
    grid: list[GridTask],
    make: Callable[[], Tools],
    jobs: int,
    folder: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict:
    """Measure tracks and GRID's clips with the tools that `make` makes; what `--json` holds, less what only `run`
    knows. `folder`: where a plot goes. `progress` is called with the name of each when it is done.
    """
    calls: list[Call] = [(evaluate_voice, task) for task in tasks] + [(evaluate_grid, task) for task in grid]
    names = [f"{task.voice}, {task.portrait}, {task.condition}" for task in tasks] + [task.clip.name for task in grid]
    records = []
    for name, record in zip(names, results(calls, make, jobs), strict=True):
        records.append(record)
        if progress is not None:
            progress(name)
    spoken, clips = records[: len(tasks)], records[len(tasks) :]
    result = summarise(spoken, clips, tasks[0].seed)
    if folder is not None:
        draw(spoken, folder)
    result["tracks"] = [
        {key: record[key] for key in ("voice", "condition", "portrait", "found", "low", "high") if key in record}
        for record in spoken
    ]
    return report.jsonable(result)


def draw(records: list[dict], folder: Path) -> None:
    """`voices.png`: of each voice on the first portrait, the first two sentences, opening and expectation."""
    rows = []
    for record in records:
        if record["condition"] != "clean" or record["portrait"] != records[0]["portrait"]:
            continue
        for sentence in record.get("sentences", [])[:2]:
            curves = {"expected": sentence["curves"]["expected"], "mouth": sentence["curves"]["own"]}
            rows.append(sheets.plot(curves, 900, 120, f"{record['voice']}: opening over frames, share of its range"))
    if rows:
        sheets.save(np.vstack(rows), folder / "voices.png")


# ------------------------------------------------------------------------------------------------ for people


def table(result: dict) -> str:
    """The figures as text, from what `evaluate_voices` returns."""
    about = result.get("about", {})
    weights = (about.get("weights") or {}).get("sha256")
    everyone = result["all"]
    margins = list(everyone["closed"])
    head = "".join(f"{f'closed {margin}':>14}{'other':>7}{'random':>8}" for margin in margins)
    lines = [
        f"{everyone['sentences']} sentences, {everyone['bilabials']} times p, b or m"
        + (f"; weights {weights[:12]}" if weights else f"; {about.get('subject', '')}".rstrip("; ")),
        "",
        f"{'':<26}{'p,b,m':>6}{head}{'skill':>7}{'shut':>7}{'in pbm':>8}{'vowels':>8}{'corr.':>7}{'lag':>5}{'other':>7}"
        f"{'low':>7}{'high':>7}",
    ]
    for title, groups in (
        ("by voice", result["by_voice"]),
        ("by portrait", result["by_portrait"]),
        ("", {"all": everyone, "ideal": result["ideal"]}),
        ("first portrait, as heard", result.get("by_condition", {})),
        ("GRID, by word times", result.get("grid", {})),
    ):
        if title and groups:
            lines.append(title)
        lines += [_row(name, group) for name, group in groups.items()]
    low, high = everyone["closed"][margins[0]]["own"]["low"], everyone["closed"][margins[0]]["own"]["high"]
    if low is not None and high is not None:
        lines += ["", f"all, closed within {margins[0]}: 95 % interval over sentences {low:.2f} .. {high:.2f}"]
    lines += [f"faces lost: {what}" for what in result["lost"]] + [f"skipped: {why}" for why in result["skipped"]]
    lines += ["", *(f"{name}: {DEFINITIONS[name]}" for name in ("closed", "skill", "shut", "opening", "correlation"))]
    return "\n".join(lines)


def _row(name: str, group: dict) -> str:
    def number(figure: dict, width: int, digits: int = 2) -> str:
        value = figure["value"]
        return f"{'-' if value is None else format(value, f'.{digits}f'):>{width}}"

    cells = "".join(
        number(closed["own"], 14) + number(closed["other"], 7) + number(closed["random"], 8)
        for closed in group["closed"].values()
    )
    own = group["correlation"]
    lag = own.get("own_best_lag")
    return (
        f"  {name:<24}{group['bilabials']:>6}{cells}{number({'value': group['skill']}, 7)}{number(group['shut'], 7)}"
        f"{number(group['bilabial'], 8)}{number(group['open'], 8)}"
        f"{number(own['correlation'], 7)}{'-' if lag is None else f'{lag:+d}':>5}"
        f"{number(group['correlation_other']['correlation'], 7)}"
        f"{number(group['low'], 7, 3)}{number(group['high'], 7, 3)}"
    )


def check(portraits: Path | None) -> list[Path]:
    """The pictures of the folder that is to speak, in order. Raises InputError if there are none."""
    found = sorted(portraits.glob("*.jpg")) if portraits else []
    if not found:
        raise InputError("--voices: no bundled portraits here to speak; run it as `ifmdm evaluate`")
    return found
