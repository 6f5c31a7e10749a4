# ruff: noqa: RUF001 (letters of the phonetic alphabet look like others)
"""Speech whose phonemes are known: sentences read by flite and espeak-ng, and how open a mouth should be for each.

Both say themselves when each phoneme begins. None of VOICES is in the training data; other voices of espeak-ng may be,
see readings.py.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from engine.errors import InputError
from engine.speech import SAMPLE_RATE, VoiceError, read_voice
from engine.training import espeak

BILABIAL, NARROW, CLOSE, MID, OPEN, SILENCE, OTHER = (
    "bilabial",
    "narrow",
    "close vowel",
    "mid vowel",
    "open vowel",
    "silence",
    "other consonant",
)
#: How open the mouth is expected to be, as a share of its range: a rough order, the same for all languages.
OPENNESS = {BILABIAL: 0.0, NARROW: 0.15, CLOSE: 0.3, MID: 0.6, OPEN: 1.0, SILENCE: 0.0, OTHER: 0.3}

#: First letters of phonemes in IPA: a diphthong or an affricate counts as what it begins with.
_IPA = {
    BILABIAL: "pbm",
    NARROW: "fvʋβɸ",
    CLOSE: "iyɨʉɯuɪʏʊ",
    MID: "eøɘɵɤoəɛœɜɞʌɔɚɝɐ",
    OPEN: "aæɑɒɶ",
}
_ARPABET = {
    BILABIAL: ("p", "b", "m"),
    NARROW: ("f", "v"),
    CLOSE: ("iy", "ih", "uh", "uw"),
    MID: ("ah", "ax", "axr", "eh", "er", "ey", "ow", "oy", "ao"),
    OPEN: ("aa", "ae", "ay", "aw"),
    SILENCE: ("pau", "sil", "h#"),
}
_STRESS = "ˈˌ'ʔ"

_PACKAGES = "sudo apt-get install flite espeak-ng"
#: espeak-ng tells of p when it bursts; the silence of the closed lips before it is this long.
_CLOSED_BEFORE_BURST = 0.03


@dataclass(frozen=True)
class Phoneme:
    """kind: one of the classes of OPENNESS. start, end: seconds."""

    name: str
    kind: str
    start: float
    end: float

    def later(self, seconds: float) -> "Phoneme":
        return replace(self, start=self.start + seconds, end=self.end + seconds)


@dataclass(frozen=True)
class Voice:
    """engine: "flite" or "espeak-ng". name: as that calls it. language: of the sentences it reads."""

    engine: str
    name: str
    language: str

    @property
    def label(self) -> str:
        return f"{self.engine} {self.name}"


#: flite's three voices that were recorded from people at 16 kHz, and four languages and speakers of espeak-ng.
VOICES = (
    Voice("flite", "slt", "en"),
    Voice("flite", "rms", "en"),
    Voice("flite", "awb", "en"),
    Voice("espeak-ng", "en-us", "en"),
    Voice("espeak-ng", "en-gb-x-rp+f3", "en"),
    Voice("espeak-ng", "de+m3", "de"),
    Voice("espeak-ng", "es+f4", "es"),
)

#: Much of what closes the lips, and much of what opens them wide.
SENTENCES = {
    "en": (
        "Papa may buy Bob a map.",
        "My mama made a big apple pie.",
        "A calm man got a cab in Paris.",
        "Bobby had a happy lamb.",
        "Pam popped a balloon at the party.",
        "The mob began to pack up at half past five.",
        "Tom bought a pump and a lamp.",
        "Barb may not stop by the farm.",
        "Maybe a lamb slept in the barn.",
        "Papa and Mama sat by the map.",
        "A bad cop jumped on top of the bus.",
        "Pop the bottle, but stop at the top.",
    ),
    "de": (
        "Papa mag am Abend Marmelade.",
        "Mama backt am Samstag Apfelbrot.",
        "Barbara malt am Bach ein Bild.",
        "Am Montag kam ein Paket aus Bamberg.",
        "Paul hat im Park Pampelmusen.",
        "Bald blüht am Haus der Mohn.",
        "Opa bat um Post aus Panama.",
        "Mama, bitte mach das Bad warm.",
        "Am Bahnhof brannte lange die Lampe.",
        "Der Maler packt am Abend Pappe ein.",
        "Bob hat am Arm ein Band.",
        "Papa, komm bald am Abend heim.",
    ),
    "es": (
        "Papá mandó un mapa a mamá.",
        "Mamá prepara pan para Pablo.",
        "Pepa compra patatas para mañana.",
        "Mi mamá ama a Paco.",
        "Bárbara también cambia la tapa.",
        "El campo parece un mapa.",
        "Papá tapa la lámpara.",
        "Paco pasa por la plaza.",
        "La rampa acaba en la campana.",
        "Pon la manta en la cama, papá.",
        "Mañana empaco la maleta.",
        "Ana pinta un mapa para Tomás.",
    ),
}


@dataclass(frozen=True)
class Utterance:
    """One sentence as read. samples: (n,) float32 mono at 16 kHz; phonemes: in order, without gaps."""

    text: str
    samples: np.ndarray
    phonemes: tuple[Phoneme, ...]

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


def kind_of(name: str, alphabet: str = "ipa") -> str:
    """The class of a phoneme, in IPA or in flite's ARPABET ("arpabet"). No name at all is silence."""
    if alphabet == "arpabet":
        return next((kind for kind, names in _ARPABET.items() if name in names), OTHER)
    letters = name.lstrip(_STRESS)
    if not letters:
        return OTHER if name else SILENCE  # a glottal stop says nothing about lips
    return next((kind for kind, first in _IPA.items() if letters[0] in first), OTHER)


def synthesise(voice: Voice, text: str) -> Utterance:
    """The text as the voice reads it. The same text always sounds the same.

    Raises InputError, naming the Debian packages, where the synthesiser is not there or does not do its work.
    """
    return {"flite": _flite, "espeak-ng": _espeak}[voice.engine](voice, text)


def require_synthesisers() -> None:
    """Raise InputError, naming the Debian packages, unless flite and espeak-ng are both there."""
    absent = [
        name
        for name, there in (("flite", shutil.which("flite")), ("espeak-ng", espeak.library_file()))
        if not there
    ]
    if absent:
        raise InputError(f"synthetic voices need {' and '.join(absent)}, not installed here: {_PACKAGES}")


def _read(voice: Voice, command: Callable[[str], list[str]]) -> tuple[str, np.ndarray]:
    """What a synthesiser printed, and the sound (n,) that it wrote to the file its command was given."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "voice.wav"
        try:
            done = subprocess.run(command(str(file)), capture_output=True, timeout=60, check=True)
            return done.stdout.decode("utf-8", "ignore"), read_voice(file).mono16k()
        except (OSError, subprocess.SubprocessError, VoiceError) as error:
            raise InputError(
                f"{voice.engine} could not speak with the voice {voice.name} ({type(error).__name__}); "
                f"is it installed? {_PACKAGES}"
            ) from None


# ------------------------------------------------------------------------------------------------ flite


def _flite(voice: Voice, text: str) -> Utterance:
    printed, samples = _read(
        voice, lambda file: ["flite", "-voice", voice.name, "-psdur", "-t", text, "-o", file]
    )
    return Utterance(text, samples, parse_flite(printed, len(samples) / SAMPLE_RATE))


def parse_flite(printed: str, seconds: float) -> tuple[Phoneme, ...]:
    """What `flite -psdur` prints, "pau:0.193 b:0.217 ...": each phoneme and when it ends; the last with the sound."""
    phonemes: list[Phoneme] = []
    start = 0.0
    for word in printed.split():
        name, _, end = word.rpartition(":")
        stop = min(float(end), seconds)
        phonemes.append(Phoneme(name, kind_of(name, "arpabet"), start, stop))
        start = stop
    if phonemes:
        phonemes[-1] = replace(phonemes[-1], end=max(seconds, phonemes[-1].start))
    return tuple(phonemes)


# ------------------------------------------------------------------------------------------------ espeak-ng


def _espeak(voice: Voice, text: str) -> Utterance:
    script = str(Path(espeak.__file__))
    printed, samples = _read(voice, lambda file: [sys.executable, "-I", script, voice.name, file, text])
    events = [(name, float(at)) for at, _, name in (line.partition(" ") for line in printed.splitlines())]
    return Utterance(text, samples, from_events(events, len(samples) / SAMPLE_RATE))


def from_events(events: list[tuple[str, float]], seconds: float) -> tuple[Phoneme, ...]:
    """Phonemes from espeak-ng's events, (IPA, start in s): each lasts until the next, the last until the end.

    It tells of an unvoiced stop at its burst; a p is moved back to where the lips have closed for it.
    """
    starts = [(name, max(0.0, at - _CLOSED_BEFORE_BURST) if name.startswith("p") else at) for name, at in events]
    phonemes: list[Phoneme] = []
    if starts and starts[0][1] > 0:
        phonemes.append(Phoneme("", SILENCE, 0.0, starts[0][1]))
    for index, (name, start) in enumerate(starts):
        end = starts[index + 1][1] if index + 1 < len(starts) else seconds
        if end > start:
            phonemes.append(Phoneme(name, kind_of(name), start, end))
    return tuple(phonemes)


# ------------------------------------------------------------------------------------------------ expectation


def expected_opening(phonemes: tuple[Phoneme, ...], frames: int, rate: int) -> np.ndarray:
    """(frames,) in 0..1: the mean openness of what is said within half a frame of each frame's time, frame / rate."""
    fine = 16  # instants a frame
    times = (np.arange(frames * fine) + 0.5) / (fine * rate) - 0.5 / rate
    values = np.zeros(len(times))
    for phoneme in phonemes:
        values[(times >= phoneme.start) & (times < phoneme.end)] = OPENNESS[phoneme.kind]
    return values.reshape(frames, fine).mean(1)
