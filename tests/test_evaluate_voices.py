# ruff: noqa: RUF001 (letters of the phonetic alphabet look like others)
"""Closures on known phonemes, on mouths that open and close on cue.

The synthesisers are stand-ins whose voices are as loud as a mouth should be open; flite and espeak-ng themselves are
tried where they are installed.
"""

import argparse
import functools
import itertools
import json
import shutil
import subprocess

import numpy as np
import pytest
from drawn_faces import drawn, landmarks_of_drawing, person_of_drawing, vector_of_drawing

from engine.errors import InputError
from engine.training import closures, degrade, espeak, phonemes, voices
from engine.training import evaluate as evaluation
from engine.training.clips import RATE, SAMPLES_PER_FRAME
from engine.training.phonemes import (
    BILABIAL,
    CLOSE,
    MID,
    NARROW,
    OPEN,
    OPENNESS,
    OTHER,
    SENTENCES,
    SILENCE,
    VOICES,
    Phoneme,
    Utterance,
    expected_opening,
    from_events,
    kind_of,
    parse_flite,
    synthesise,
)
from engine.training.tracks import CopyPortrait, Tools

LEAST = 0.01  # so that what is closed and spoken is not silence


def loud_as_open(voice: phonemes.Voice, text: str) -> Utterance:
    """Stands in for a synthesiser: closed and open by turns, each text at a rhythm of its own."""
    rng = np.random.default_rng(list((voice.name + text).encode()))
    said = [Phoneme("", SILENCE, 0.0, 0.12)]
    for _ in range(6):
        for name, kind in (("p", BILABIAL), ("a", OPEN), ("t", OTHER), ("e", MID)):
            start = said[-1].end
            said.append(Phoneme(name, kind, start, start + rng.choice([0.08, 0.12, 0.2])))
    times = np.arange(round(said[-1].end * 16_000)) / 16_000
    level = np.zeros(len(times), np.float32)
    for phoneme in said:
        level[(times >= phoneme.start) & (times < phoneme.end)] = 0.8 * OPENNESS[phoneme.kind] + LEAST
    carrier = np.where(np.arange(len(times)) % 2, 1, -1)
    return Utterance(text, (level * carrier).astype(np.float32), tuple(said))


def grey(opening: float) -> np.ndarray:
    """The cheapest of mouths: the lighter the picture, the wider it is open."""
    return np.full((256, 256, 3), round(200 * opening) + 20, np.uint8)


def landmarks_of_grey(picture: np.ndarray) -> np.ndarray | None:
    level = int(picture[0, 0, 0])
    if not level:
        return None
    points = np.full((478, 3), 0.5, np.float32)
    points[[33, 133, 362, 263], 1], points[2, 1] = 0.4, 0.6
    points[[87, 14, 317], 1] = 0.5 + 0.2 * (level - 20) / 200
    return points


class Puppet(CopyPortrait):
    """Opens its mouth as far as the voice is loud within half a frame, `late` frames late."""

    def __init__(self, late: int = 0) -> None:
        self.late = late

    def speak(self, portrait, voice, count, seed):
        half = SAMPLES_PER_FRAME // 2
        heard = np.abs(np.pad(voice, (half + self.late * SAMPLES_PER_FRAME, half)))
        levels = [heard[i * SAMPLES_PER_FRAME :][:SAMPLES_PER_FRAME].mean() for i in range(count)]
        return [grey(min(1.0, level)) for level in levels]


class Deaf(CopyPortrait):
    """Opens and closes as its own rhythm goes, whatever the voice says."""

    def speak(self, portrait, voice, count, seed):
        wave = np.random.default_rng(len(voice)).uniform(0, 1, count // 3 + 2)
        return [grey(opening) for opening in np.interp(np.arange(count) / 3, np.arange(len(wave)), wave)]


def tools(subject) -> Tools:
    return Tools(subject, landmarks_of_grey, vector_of_drawing, person_of_drawing)


@pytest.fixture(scope="module")
def tasks(assets) -> list[voices.VoiceTask]:
    found = voices.check(assets / "portraits")
    return voices.plan(found, ["clean", "echo"], 4, 0, read=loud_as_open)


def figures(tasks, subject) -> dict:
    return voices.evaluate_voices(tasks, [], lambda: tools(subject), 1)


@pytest.fixture(scope="module")
def good(tasks) -> dict:
    return figures(tasks, Puppet())


# ---------------------------------------------------------------------------------------------- figures


def test_a_mouth_on_cue_closes_every_time_and_beats_chance(good):
    near = good["all"]["closed"]["40 ms"]
    assert near["own"]["value"] == 1
    assert near["random"]["value"] < 0.8
    assert near["other"]["value"] < 0.8
    assert good["all"]["bilabial"]["value"] < 0.2 < 0.7 < good["all"]["open"]["value"]
    assert good["all"]["correlation"]["correlation"]["value"] > 0.95
    assert good["all"]["correlation"]["lag"] == 0
    assert abs(good["all"]["correlation_other"]["correlation"]["value"]) < 0.4
    assert good["all"]["skill"] == good["all"]["shut"]["value"] == 1
    # as good as can be: what the expectation itself would get
    assert good["ideal"]["closed"]["40 ms"]["own"]["value"] == 1
    assert good["ideal"]["closed"]["40 ms"]["random"]["value"] == pytest.approx(near["random"]["value"], abs=0.1)
    assert good["ideal"]["correlation"]["correlation"]["value"] == pytest.approx(1)


def test_a_mouth_that_does_not_listen_is_at_chance(tasks):
    everyone = figures(tasks, Deaf())["all"]
    near = everyone["closed"]["40 ms"]
    assert near["own"]["value"] == pytest.approx(near["random"]["value"], abs=0.1)
    assert near["own"]["value"] == pytest.approx(near["other"]["value"], abs=0.15)
    assert everyone["open"]["value"] == pytest.approx(everyone["bilabial"]["value"], abs=0.1)
    assert abs(everyone["correlation"]["correlation"]["value"]) < 0.2
    assert abs(everyone["skill"]) < 0.25


def test_a_mouth_that_does_not_move_closes_for_nothing(tasks):
    class Open(CopyPortrait):
        def speak(self, portrait, voice, count, seed):
            return [grey(0.5)] * count

    everyone = figures(tasks, Open())["all"]
    assert {figure["value"] for figure in everyone["closed"]["80 ms"].values()} == {0}
    assert everyone["correlation"]["correlation"]["value"] == 0
    assert everyone["low"]["value"] == everyone["high"]["value"] > 0
    assert everyone["shut"]["value"] == 0


def test_a_late_mouth_is_found_late(tasks):
    everyone = figures(tasks, Puppet(3))["all"]
    assert everyone["correlation"]["lag"] == 3
    assert everyone["closed"]["40 ms"]["own"]["value"] < 0.9


def test_figures_come_by_voice_portrait_and_condition(good, tasks):
    assert list(good["by_voice"]) == [voice.label for voice in VOICES]
    assert len(good["by_portrait"]) == voices.PORTRAITS
    assert list(good["by_condition"]) == ["clean", "echo"]
    assert len(tasks) == len(VOICES) * (voices.PORTRAITS + 1)
    # what is degraded is held against the same portrait and the same sentences
    assert good["by_condition"]["clean"]["bilabials"] == good["by_condition"]["echo"]["bilabials"]
    assert good["all"]["sentences"] == 4 * len(VOICES) * voices.PORTRAITS
    assert good["by_voice"]["flite slt"]["bilabials"] == 6 * 4 * voices.PORTRAITS


def test_the_table_tells_all_rows(good):
    text = voices.table(good)
    for row in ("flite slt", "espeak-ng de+m3", "ada", "echo", "all"):
        assert f"  {row} " in text
    assert " nan" not in text
    assert json.dumps(good)


def test_lost_faces_are_named_not_measured(tasks):
    class Blank(CopyPortrait):
        def speak(self, portrait, voice, count, seed):
            return [np.zeros((256, 256, 3), np.uint8)] * count

    result = figures(tasks[:2], Blank())
    assert result["all"]["sentences"] == 0
    assert result["lost"] == ["flite slt on ada, clean", "flite slt on bo, clean"]
    assert "faces lost: flite slt on ada" in voices.table(result)


def test_a_plot_is_grey(tasks, tmp_path):
    voices.evaluate_voices(tasks[:1], [], lambda: tools(Puppet()), 1, tmp_path)
    assert (tmp_path / "voices.png").is_file()


# ---------------------------------------------------------------------------------------------- parts


def test_the_least_opening_is_found_between_frames_too():
    opening = np.array([1.0, 0.0, 1.0, 1.0])
    assert closures.lowest(opening, 0.03, 0.05) == 0
    assert closures.lowest(opening, 0.05, 0.07) == pytest.approx(0.25)
    assert closures.lowest(opening, 0.5, 0.6) == 1
    assert closures.average(opening, 0.04, 0.08) == pytest.approx(0.5)


def test_openings_become_shares_of_their_range():
    opening = np.linspace(0.1, 0.3, 101)
    shares = closures.in_range(opening)
    assert shares[5] == pytest.approx(0)
    assert shares[90] == pytest.approx(1)


def test_tracks_are_whole_frames_with_sentences_in_their_places():
    utterances = [loud_as_open(VOICES[0], text) for text in ("one", "two")]
    samples, sentences = voices.compose(utterances)
    assert len(samples) % SAMPLES_PER_FRAME == 0
    for utterance, sentence in zip(utterances, sentences, strict=True):
        start = sentence.start * SAMPLES_PER_FRAME
        assert np.array_equal(samples[start:][: len(utterance.samples)], utterance.samples)
        assert not samples[start - SAMPLES_PER_FRAME : start].any()


def test_what_is_expected_of_a_mouth():
    said = (Phoneme("p", BILABIAL, 0, 0.1), Phoneme("a", OPEN, 0.1, 0.2), Phoneme("f", NARROW, 0.2, 0.3))
    curve = expected_opening(said, 8, 25)
    assert curve[[0, 1, 4, 7]] == pytest.approx([0, 0, 1, 0.15])
    assert curve[2] == pytest.approx(0)  # 60 to 100 ms
    assert curve[5] == pytest.approx((1 + 0.15) / 2)  # 180 to 220 ms


@pytest.mark.parametrize(
    ("name", "kind"),
    {"p": BILABIAL, "pf": BILABIAL, "f": NARROW, "β": NARROW, "aɪ": OPEN, "ˈɑː": OPEN, "eɪ": MID, "iː": CLOSE,
     "ʃ": OTHER, "": SILENCE, "ʔ": OTHER}.items(),
)
def test_ipa_is_known_by_its_first_letter(name, kind):
    assert kind_of(name) == kind


def test_what_flite_prints_becomes_phonemes():
    said = parse_flite("pau:0.193 b:0.217 aa:0.428 pau:0.487 \n", 0.5)
    assert [(p.name, p.kind) for p in said] == [("pau", SILENCE), ("b", BILABIAL), ("aa", OPEN), ("pau", SILENCE)]
    assert (said[1].start, said[1].end) == (0.193, 0.217)
    assert said[-1].end == 0.5


def test_what_espeak_tells_becomes_phonemes_and_p_closes_before_it_bursts():
    said = from_events([("a", 0.05), ("p", 0.2), ("a", 0.25), ("", 0.4)], 0.6)
    assert [p.kind for p in said] == [SILENCE, OPEN, BILABIAL, OPEN, SILENCE]
    assert said[2].start == pytest.approx(0.17)
    assert all(one.end == other.start for one, other in itertools.pairwise(said))
    assert said[-1].end == 0.6


def test_word_times_of_grid():
    said = voices.grid_words("0 15250 sil\n15250 21000 bin\n21000 25750 m\n25750 30000 at\nnonsense\n")
    closed = [(p.name, p.start, p.end) for p in said if p.kind == BILABIAL]
    assert closed == [("bin", 0.61, pytest.approx(0.67)), ("m", pytest.approx(0.97), 1.03)]


def test_sentences_are_as_many_in_each_language():
    assert {len(SENTENCES[voice.language]) for voice in VOICES} == {12}


@pytest.mark.parametrize("condition", degrade.CONDITIONS)
def test_degraded_voices_stay_in_their_time(condition, assets):
    rng = np.random.default_rng(0)
    voice = np.convolve(rng.normal(0, 0.1, 24_000), np.ones(8) / 8, "same")
    voice *= np.interp(np.arange(24_000), [0, 8000, 8001, 12_000, 24_000], [0, 0, 1, 0.2, 1])
    voice = voice.astype(np.float32)
    heard = degrade.CONDITIONS[condition](voice)
    assert heard.shape == voice.shape
    assert heard.dtype == np.float32
    assert np.array_equal(heard, degrade.CONDITIONS[condition](voice))
    spectrum = np.fft.rfft(heard, 65_536) * np.conj(np.fft.rfft(voice, 65_536))
    shift = int(np.fft.irfft(spectrum).argmax())
    assert min(shift, 65_536 - shift) <= 32  # 2 ms
    power = np.square(heard).mean() / np.square(voice).mean()
    assert 0.5 < power < 1.5


def test_noise_is_as_loud_as_told():
    voice = np.sin(np.arange(16_000) / 3).astype(np.float32)
    noise = degrade.noisy(voice) - voice
    assert 10 * np.log10(np.square(voice).mean() / np.square(noise).mean()) == pytest.approx(10, abs=0.3)


# ---------------------------------------------------------------------------------------------- synthesisers

SPEAKS = {"flite": shutil.which("flite"), "espeak-ng": espeak.library_file()}


@pytest.mark.parametrize("voice", VOICES, ids=lambda voice: voice.label)
def test_synthesisers_tell_when_lips_close(voice):
    if not SPEAKS[voice.engine]:
        pytest.skip(f"{voice.engine} is not installed (Debian: {voice.engine})")
    said = synthesise(voice, "Papa, papa, papa.")
    assert said.samples.dtype == np.float32
    assert np.abs(said.samples).max() > 0.1
    assert all(one.end == other.start for one, other in itertools.pairwise(said.phonemes))
    assert said.phonemes[-1].end == pytest.approx(said.seconds)
    closures_of = [p for p in said.phonemes if p.kind == BILABIAL]
    vowels = [p for p in said.phonemes if p.kind in (OPEN, MID)]
    assert len(closures_of) == len(vowels) == 6

    def power(phoneme: Phoneme, lead: float) -> float:
        middle = round(16_000 * (phoneme.start + lead))
        return float(np.square(said.samples[max(0, middle - 80) : middle + 80]).mean())

    # the lips of a p keep the sound in: 30 ms from its start it is far quieter than in the middle of the vowels
    quiet = np.median([power(p, 0.03) for p in closures_of[1:]])
    assert quiet < 0.05 * np.median([power(p, (p.end - p.start) / 2) for p in vowels])
    again = synthesise(voice, "Papa, papa, papa.")
    assert np.array_equal(again.samples, said.samples)
    assert again.phonemes == said.phonemes


def test_missing_synthesisers_are_named_with_their_packages(monkeypatch):
    monkeypatch.setattr(phonemes.shutil, "which", lambda name: None)
    monkeypatch.setattr(phonemes.espeak, "library_file", lambda: None)
    with pytest.raises(InputError, match=r"need flite and espeak-ng.*apt-get install flite espeak-ng") as caught:
        phonemes.require_synthesisers()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("failure", [FileNotFoundError("flite"), subprocess.TimeoutExpired("flite", 60)])
def test_a_synthesiser_that_fails_is_one_line(failure, monkeypatch):
    def run(*_, **__):
        raise failure

    monkeypatch.setattr(phonemes.subprocess, "run", run)
    for voice in (VOICES[0], VOICES[-1]):
        with pytest.raises(InputError, match=f"{voice.engine} could not speak") as caught:
            synthesise(voice, "Papa.")
        assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------- the command


def test_the_command_measures_voices(assets, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluation, "make_tools", lambda subject, weights: tools(Puppet()))
    monkeypatch.setattr(evaluation.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(phonemes, "require_synthesisers", lambda: None)
    monkeypatch.setattr(voices, "plan", functools.partial(voices.plan, read=loud_as_open))
    parser = argparse.ArgumentParser()
    evaluation.add_arguments(parser)
    parser.set_defaults(bundled_portraits=assets / "portraits")
    file = tmp_path / "figures.json"
    words = ["--voices", "--subject", "copy", "--jobs", "1", "--limit", "2", "--json", str(file)]
    assert evaluation.run(parser.parse_args(words)) == 0
    out, err = capsys.readouterr()
    assert "espeak-ng es+f4" in out
    assert "14/14" in err
    found = json.loads(file.read_text())
    assert found["all"]["closed"]["40 ms"]["own"]["value"] == 1
    assert found["about"]["subject"] == "copy"
    for words, message in ((["--degraded"], "only with --voices"), ([], "nothing to evaluate")):
        with pytest.raises(InputError, match=message):
            evaluation.run(parser.parse_args(words))


def test_grid_clips_are_measured_beside_ours(tmp_path):
    from test_evaluate import write_clip

    from engine.training.clips import find_clips

    said = voices.grid_words("0 12500 sil\n12500 20000 bin\n20000 26000 at\n26000 32500 place\n32500 50000 sil\n")
    count = 2 * RATE
    mouth = 1 - sum(np.exp(-(((np.arange(count) / RATE - at) / 0.08) ** 2)) for at in (0.52, 1.06))
    frames = [drawn(opening) for opening in mouth.clip(0, 1)]
    (tmp_path / "grid_align").mkdir()
    (tmp_path / "grid_align" / "s1_a.align").write_text(
        "0 12500 sil\n12500 20000 bin\n20000 26000 at\n26000 32500 place\n32500 50000 sil\n"
    )
    write_clip(tmp_path / "grid" / "s1_a.mp4", frames, np.full(2 * 16_000, 0.3, np.float32))
    write_clip(tmp_path / "grid" / "other.mp4", frames, None)
    grid = voices.grid_tasks(find_clips(tmp_path), tmp_path, 0, None)
    assert [(task.clip.name, task.phonemes) for task in grid] == [("grid/s1_a.mp4", said)]
    with pytest.raises(InputError, match="no clip here has word times"):
        voices.grid_tasks(find_clips(tmp_path)[:1], tmp_path, 0, None)
    tools = Tools(CopyPortrait(), landmarks_of_drawing, vector_of_drawing, person_of_drawing)
    record = voices.evaluate_grid(grid[0], tools)
    spoken = voices.summarise([], [record], 0)["grid"]
    assert spoken["real"]["closed"]["40 ms"]["own"]["value"] == 1
    assert spoken["real"]["closed"]["40 ms"]["random"]["value"] < 0.8
    assert spoken["ours"]["closed"]["40 ms"]["own"]["value"] == 0
    assert spoken["real"]["bilabials"] == 2
