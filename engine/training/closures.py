"""Does a mouth close for p, b and m, and open for the vowels? Figures from an opening over time and phonemes.

All openings here are shares of the track's own range, as `in_range` gives them, so that a mouth that opens wide and one
that mumbles are judged alike; how wide it opens is told beside. Chance is measured, never assumed: the same windows at
random times of the same speech, and the same windows in the mouth that was made for another sentence.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from engine.training.clips import RATE
from engine.training.phonemes import BILABIAL, OPEN, SILENCE, Phoneme, expected_opening

#: The range of a mouth: from this percentile of its opening to that.
RANGE = (5, 90)
#: Lips count as closed below this share of the range.
CLOSED = 0.25
#: How far from the phoneme they may be so, in seconds.
MARGINS = (0.04, 0.08)
#: Windows at random times for each bilabial.
DRAWS = 10


@dataclass(frozen=True)
class Spoken:
    """One sentence: its mouth (n,), shares of the range at RATE, from its start, and its phonemes (in s from there)."""

    opening: np.ndarray
    phonemes: tuple[Phoneme, ...]

    @property
    def seconds(self) -> float:
        return (len(self.opening) - 1) / RATE


def mouth_range(opening: np.ndarray) -> tuple[float, float]:
    """The opening (n,) of a mouth at its closed and open ends, as `landmarks.mouth_opening` measures it."""
    low, high = np.percentile(opening, RANGE)
    return float(low), float(high)


def in_range(opening: np.ndarray) -> np.ndarray:
    """(n,) as shares of its range: 0 at the closed end, 1 at the open one. A mouth that does not move is all 1: a mouth
    that never closes has closed for nothing."""
    low, high = mouth_range(opening)
    if high - low < 1e-6:
        return np.ones(len(opening))
    return (np.asarray(opening, float) - low) / (high - low)


def lowest(opening: np.ndarray, start: float, end: float) -> float:
    """The least opening in start..end (s), straight lines between the frames; beyond the ends the first or last."""
    times = np.arange(len(opening)) / RATE
    inside = opening[(times > start) & (times < end)]
    return float(min([*np.interp([start, end], times, opening), *inside]))


def average(opening: np.ndarray, start: float, end: float) -> float:
    """The mean opening in start..end (s), likewise."""
    times = np.linspace(start, end, 9)
    return float(np.interp(times, np.arange(len(opening)) / RATE, opening).mean())


def measure(spoken: Spoken, other: Spoken | None, rng: np.random.Generator) -> dict:
    """What one sentence tells. Keys "own", "other" and "random" hold, for each margin, the least openings around its
    bilabials; "bilabial" and "open" mean openings in those phonemes; "curves" the expected opening, the mouth and the
    other's mouth, all as long as the sentence; "phonemes" its phonemes.
    """
    closures = [(phoneme.start, phoneme.end) for phoneme in spoken.phonemes if phoneme.kind == BILABIAL]
    said = [phoneme for phoneme in spoken.phonemes if phoneme.kind != SILENCE]
    found: dict = {
        "own": _lowest_near(spoken.opening, closures),
        "other": _lowest_near(other.opening, _moved_into(closures, other.seconds)) if other else _lowest_near(None, []),
        "bilabial": [average(spoken.opening, start, end) for start, end in closures],
        "open": [average(spoken.opening, p.start, p.end) for p in spoken.phonemes if p.kind == OPEN],
    }
    random = []
    if said:
        first, last = said[0].start, said[-1].end
        for start, end in closures:
            length = end - start
            random += [(at, at + length) for at in rng.uniform(first, max(first, last - length), DRAWS)]
    found["random"] = _lowest_near(spoken.opening, random)
    expected = expected_opening(spoken.phonemes, len(spoken.opening), RATE)
    found["curves"] = {"expected": expected, "own": spoken.opening}
    found["phonemes"] = spoken.phonemes
    if other is not None:
        found["curves"]["other"] = np.resize(other.opening, len(expected))
    return found


def _lowest_near(opening: np.ndarray | None, times: list[tuple[float, float]]) -> list[list[float]]:
    """For each margin, the least opening around each of the times."""
    return [[lowest(opening, start - margin, end + margin) for start, end in times] for margin in MARGINS]


def _moved_into(times: list[tuple[float, float]], seconds: float) -> list[tuple[float, float]]:
    """The times in a sentence of another length: those past its end begin again at its start."""
    return [
        (at, at + end - start) for start, end in times for at in [start % max(seconds - (end - start), 1e-3)]
    ]


def share_closed(sentences: list[dict], role: str, margin: int, level: float = CLOSED) -> np.ndarray:
    """(n, 2) for a ratio over sentences: bilabials around which the opening falls below `level`, and all of them."""
    each = [np.array(sentence[role][margin]) for sentence in sentences]
    return np.array([((values < level).sum(), len(values)) for values in each], float).reshape(-1, 2)


def means(sentences: list[dict], key: Callable[[dict], list[float]]) -> np.ndarray:
    """(n, 2) for a ratio over sentences: the sum of some openings, and how many they are."""
    return np.array([(sum(key(sentence)), len(key(sentence))) for sentence in sentences], float).reshape(-1, 2)
