"""Nonsense read by espeak-ng, and how open lips should be in it: what stage 2 learns closures from.

An hour of film says p, b and m a few thousand times, a little out of step with its own sound, and the average of such
closures is a mouth half open. A synthesiser says when each phoneme begins, in any voice. Only the opening of the lips
is learned from it; all else is film. No voice by which `ifmdm evaluate --voices` judges closures is read
here, nor German nor Spanish, nor a sentence of any language; of English, the Scottish reading of nonsense is.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from engine.features import LATENT_HOP
from engine.motion.timing import LATENT_RATE
from engine.training.phonemes import VOICES, Voice, expected_opening, synthesise

#: Languages that read Latin letters, each in their own way.
LANGUAGES = ("fr-be", "it", "pt-br", "nl", "pl", "tr", "sv", "ro", "id", "sw", "fi", "hu", "cs", "en-gb-scotland", "hr")
#: espeak-ng's variants: other speakers of any language.
SPEAKERS = ("m1", "m2", "m4", "m5", "m6", "m7", "f1", "f2", "f5")
ONSETS = (*"pbmpbmfvtdkgsznlrj", "st", "pl", "br", "tr", "")
VOWELS = (*"aeiouaao", "ai", "au")
CODAS = ("", "", "", "", *"nmlrspt")
#: Lips are open at most this much more than is expected of the moment alone, however open they are before and after.
COARTICULATION = 0.1


@dataclass(frozen=True)
class Reading:
    """samples (n,) float32 at 16 kHz; opening (m,): of the lips, in 0..1, at the latents' rate."""

    samples: np.ndarray
    opening: np.ndarray


def nonsense(rng: np.random.Generator) -> str:
    """A few words of a few syllables, many of them with p, b and m."""

    def one(of: tuple[str, ...]) -> str:
        return of[rng.integers(len(of))]

    words = ("".join(one(ONSETS) + one(VOWELS) + one(CODAS) for _ in range(rng.integers(1, 4))) for _ in range(9))
    return " ".join(word + ("," if rng.random() < 0.12 else "") for word in words) + "."


def lips(opening: np.ndarray) -> np.ndarray:
    """(n,) as phonemes ask for it -> as lips that are on their way do it: smooth, but closed where they must close."""
    around = np.pad(opening, 1, mode="edge")
    smooth = 0.25 * around[:-2] + 0.5 * opening + 0.25 * around[2:]
    return np.minimum(smooth, opening + COARTICULATION).astype(np.float32)


def read(count: int, seed: int) -> Iterator[Reading]:
    """`count` readings; the same for the same seed. Raises InputError without espeak-ng."""

    def one(number: int) -> Reading:
        rng = np.random.default_rng((seed, number))
        language, speaker = LANGUAGES[rng.integers(len(LANGUAGES))], SPEAKERS[rng.integers(len(SPEAKERS))]
        voice = Voice("espeak-ng", f"{language}+{speaker}", language)
        assert voice.name not in {judge.name for judge in VOICES}
        said = synthesise(voice, nonsense(rng))
        frames = len(said.samples) // LATENT_HOP
        return Reading(said.samples, lips(expected_opening(said.phonemes, frames, LATENT_RATE)))

    with ThreadPoolExecutor(2) as pool:
        yield from pool.map(one, range(count))
