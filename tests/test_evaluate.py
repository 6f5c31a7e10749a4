"""The evaluation as a whole, on drawn faces.

The landmarker and the face vectors are stand-ins that read the drawings: MediaPipe and dlib belong to an
extra that the tests do without. All between them and the figures is real, from the mp4 files on.
"""

import argparse
import csv
import functools
import json
import math
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from drawn_faces import SIZE, drawn, landmarks_of_drawing, person_of_drawing, vector_of_drawing

from engine.errors import InputError
from engine.portrait import PortraitError
from engine.training import evaluate as evaluation
from engine.training.clips import ClipError, find_clips, read_frames, read_voice
from engine.training.evaluate import CopyPortrait, Options, Tools, evaluate
from engine.training.landmarks import find_landmarks
from engine.training.report import table

SECONDS = 1.6
COUNT = round(SECONDS * 25)


class Oracle:
    """Knows the real clips by their first frames, and answers with them, `late` frames too late.

    A voice that is not the clip's own moves nothing.
    """

    def __init__(self, folder: Path, late: int = 0) -> None:
        self.late = late
        self.known = []
        for path in sorted(folder.rglob("*.mp4")):
            frames = read_frames(path, 250)
            voice = None if path.stem == "mute" else read_voice(path, 10)
            self.known.append((frames, voice))

    def reenact(self, portrait: np.ndarray, frames: list[np.ndarray]) -> list[np.ndarray]:
        return frames

    def speak(self, portrait: np.ndarray, voice: np.ndarray, count: int, seed: int) -> list[np.ndarray]:
        assert voice.shape == (count * 640,)
        assert voice.dtype == np.float32
        for frames, own in self.known:
            if np.array_equal(frames[0], portrait):
                if own is not None and np.array_equal(own[:8000], voice[:8000]):
                    return [frames[max(0, index - self.late)] for index in range(count)]
                return [portrait] * count
        raise AssertionError("a portrait of no clip")


def oracle_tools(folder: Path, late: int = 0) -> Tools:
    return Tools(Oracle(folder, late), landmarks_of_drawing, vector_of_drawing, person_of_drawing)


def copy_tools() -> Tools:
    return Tools(CopyPortrait(), landmarks_of_drawing, vector_of_drawing, person_of_drawing)


def write_clip(path: Path, frames: list[np.ndarray], voice: np.ndarray | None, rate: int = 25) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=rate, options={"crf": "12"})
        video.height, video.width = frames[0].shape[:2]
        video.pix_fmt = "yuv420p"
        audio = None
        if voice is not None:
            audio = container.add_stream("aac", rate=16_000, layout="mono")
        for image in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode(None))
        if audio is not None:
            for start in range(0, len(voice), 1024):
                part = voice[None, start : start + 1024].astype(np.float32)
                frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="mono")
                frame.sample_rate, frame.pts = 16_000, start
                container.mux(audio.encode(frame))
            container.mux(audio.encode(None))


def openings(seed: int, count: int = COUNT) -> np.ndarray:
    wave = np.convolve(np.random.default_rng(seed).uniform(0, 1, count + 6), np.ones(4) / 4, "same")[3:-3]
    return np.clip((wave - wave.min()) / np.ptp(wave), 0, 1)


def tone(seed: int, seconds: float = SECONDS) -> np.ndarray:
    times = np.arange(round(seconds * 16_000)) / 16_000
    return 0.3 * np.sin(2 * np.pi * (150 + 40 * seed) * times).astype(np.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Six clips of two sources with a manifest, one of them without sound and one of the train split."""
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    people = (("a", "ann"), ("a", "ann"), ("a", "bob"), ("b", "b"), ("b", "b"), ("b", "b"))
    for seed, (source, identity) in enumerate(people):
        name = f"{source}/{'mute' if seed == 4 else f'clip{seed}'}.mp4"
        shade = {"ann": 120, "bob": 160, "b": 200}[identity]
        frames = [
            drawn(opening, 0.5 + 0.04 * np.sin(index / 4), shade)
            for index, opening in enumerate(openings(seed))
        ]
        write_clip(folder / name, frames, None if seed == 4 else tone(seed))
        rows.append(
            {
                "path": name,
                "source": source,
                "identity": identity,
                "split": "train" if seed == 5 else "val",
                "audio": int(seed != 4),
            }
        )
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.fixture(scope="module")
def perfect(data, tmp_path_factory) -> dict:
    sheets = tmp_path_factory.mktemp("sheets")
    result = evaluate(
        find_clips(data), functools.partial(oracle_tools, data), Options(sheets=sheets, idle=True)
    )
    result["sheets"] = sheets
    return result


# ---------------------------------------------------------------------------------------------- figures


def test_the_truth_gets_perfect_figures(perfect):
    everyone = perfect["all"]
    assert (everyone["clips"], everyone["clips_with_sound"], everyone["frames"]) == (5, 4, 5 * COUNT)
    for region in ("face", "mouth", "eyes"):
        part = everyone["reenact"]["reconstruction"][region]
        assert part["l1_ratio"]["value"] == part["l1"]["value"] == 0
        assert part["ssim"]["value"] == pytest.approx(1)
        assert part["l1_copy"]["value"] > 0
    for task, clips in (("reenact", 5), ("voice", 4)):
        sync, motion = everyone[task]["sync"], everyone[task]["motion"]
        assert sync["lag"] == 0
        assert sync["correlation"]["value"] == pytest.approx(1)
        assert sync["correlation"]["n"] == clips
        assert sync["pooled"] == pytest.approx(1)
        for name in ("face", "head", "mouth"):
            assert motion["spread"][name]["value"] == pytest.approx(1)
        assert motion["jitter"]["value"] == pytest.approx(1)
        assert everyone[task]["identity"]["cosine"]["value"] == pytest.approx(
            everyone["real"]["identity"]["cosine"]["value"]
        )
        assert everyone[task]["detail"] == everyone["real"]["detail"] or task == "voice"


def test_the_sound_of_another_clip_is_the_control(perfect):
    voice = perfect["all"]["voice"]
    assert voice["other_audio"]["correlation"] == pytest.approx(
        {"value": 0, "low": 0, "high": 0, "n": 4}
    )  # this oracle keeps still when the voice is not the clip's own
    assert voice["other_audio"]["lag"] == 0
    assert abs(voice["other_real"]["correlation"]["value"]) < 0.6
    assert voice["other_real"]["correlation"]["n"] == 4
    lent = {clip["name"]: clip["other"] for clip in perfect["clips"]}
    assert lent["a/clip0.mp4"] == "a/clip2.mp4"  # clip1 is the same person
    assert lent["b/mute.mp4"] is None


def test_copying_the_portrait_is_the_baseline(data):
    everyone = evaluate(find_clips(data), copy_tools, Options())["all"]
    for region in ("face", "mouth", "eyes"):
        part = everyone["reenact"]["reconstruction"][region]
        assert part["l1_ratio"]["value"] == part["l1_ratio_median"]["value"] == 1
        assert part["psnr"] == part["psnr_copy"]
    for task in ("reenact", "voice"):
        assert everyone[task]["sync"]["correlation"]["value"] == 0
        assert everyone[task]["motion"]["spread"]["face"]["value"] == 0
        assert everyone[task]["motion"]["jitter"]["value"] == 0
        assert everyone[task]["identity"]["cosine"]["value"] == pytest.approx(1)
        assert everyone[task]["detail"]["value"] == pytest.approx(1)


def test_a_mouth_that_is_late_is_found_late(data):
    clips = find_clips(data)
    voice = evaluate(clips, functools.partial(oracle_tools, data, 2), Options())["all"]["voice"]
    assert voice["sync"]["lag"] == 2
    assert voice["sync"]["correlation"]["value"] > 0.98
    assert voice["sync"]["correlation_lag0"]["value"] < 0.8


def test_figures_come_by_source_and_strangers_are_told_apart(perfect):
    assert set(perfect["by_source"]) == {"a", "b"}
    assert [perfect["by_source"][source]["clips"] for source in "ab"] == [3, 2]
    assert perfect["strangers"]["cosine"]["pairs"] == 2  # ann twice against bob; who b's are is not known
    assert perfect["strangers"]["cosine"]["value"] < perfect["all"]["real"]["identity"]["cosine"]["value"]


def test_sheets_and_plots_are_drawn(perfect):
    names = {path.name for path in perfect["sheets"].iterdir()}
    assert names == {
        *(f"a_clip{i}.png" for i in range(3)),
        "b_clip3.png",
        "b_mute.png",
        "idle.png",
        "lags.png",
        "openings.png",
    }
    assert cv2.imread(str(perfect["sheets"] / "a_clip0.png")).shape[1] == 8 * 160


def test_silence_is_looked_at_too(perfect):
    assert perfect["idle"]["portrait"] == "a/clip0.mp4"
    assert perfect["idle"]["face"] == 0


def test_the_table_tells_the_headlines(perfect):
    text = table(perfect)
    assert "5 clips (4 with sound" in text
    assert "mouth: correlation at lag +0           1.000" in text
    assert "Idle, 6 s of silence" in text
    assert "nan" not in text


def test_two_processes_find_what_one_finds(data, perfect):
    clips = find_clips(data)
    result = evaluate(clips, functools.partial(oracle_tools, data), Options(jobs=2))
    assert result["all"] == perfect["all"]


def test_lost_faces_are_counted_not_measured(data):
    class Blank(CopyPortrait):
        def speak(self, portrait, voice, count, seed):
            return [np.zeros_like(portrait)] * count

    tools = Tools(Blank(), landmarks_of_drawing, vector_of_drawing, person_of_drawing)
    result = evaluate(find_clips(data), lambda: tools, Options())
    assert result["all"]["faces_lost"] == {"reenact": 0, "voice": 4, "other": 4}
    assert result["all"]["voice"]["sync"]["correlation"]["n"] == 0
    assert "faces were lost" in table(result)


def test_a_subject_that_miscounts_is_a_fault(data):
    class Short(CopyPortrait):
        def reenact(self, portrait, frames):
            return [portrait]

    tools = Tools(Short(), landmarks_of_drawing, vector_of_drawing, person_of_drawing)
    with pytest.raises(ValueError, match=f"1 frames where {COUNT}"):
        evaluate(find_clips(data), lambda: tools, Options())


# ---------------------------------------------------------------------------------------------- clips


def test_clips_that_cannot_be_used_are_named_and_skipped(data, tmp_path):
    (tmp_path / "good.mp4").write_bytes((data / "a/clip0.mp4").read_bytes())
    (tmp_path / "torn.mp4").write_bytes((data / "a/clip0.mp4").read_bytes()[:2000])
    (tmp_path / "text.mp4").write_text("no video")
    write_clip(tmp_path / "grey.mp4", [np.full((SIZE, SIZE, 3), 99, np.uint8)] * 30, tone(0))
    write_clip(tmp_path / "short.mp4", [drawn(0.5)] * 2, None)
    result = evaluate(find_clips(tmp_path), copy_tools, Options())
    assert [clip["name"] for clip in result["clips"]] == ["good.mp4"]
    why = {clip["name"]: clip["why"] for clip in result["skipped"]}
    assert set(why) == {"torn.mp4", "text.mp4", "grey.mp4", "short.mp4"}
    assert "no face found in its first frame" in why["grey.mp4"]
    assert all("\n" not in line and "skipped: " + line in table(result) for line in why.values())
    (tmp_path / "good.mp4").unlink()
    with pytest.raises(InputError, match="none of the 4 clips can be used"):
        evaluate(find_clips(tmp_path), copy_tools, Options())


def test_a_first_frame_that_the_engine_refuses_is_one_clip_less(data):
    class Picky(CopyPortrait):
        def reenact(self, portrait, frames):
            if portrait[0, 0, 0] > 140:
                raise PortraitError("no face found")
            return super().reenact(portrait, frames)

    tools = Tools(Picky(), landmarks_of_drawing, vector_of_drawing, person_of_drawing)
    result = evaluate(find_clips(data), lambda: tools, Options())
    assert [clip["name"] for clip in result["clips"]] == ["a/clip0.mp4", "a/clip1.mp4"]
    assert {clip["name"] for clip in result["skipped"]} == {"a/clip2.mp4", "b/clip3.mp4", "b/mute.mp4"}
    assert "no portrait: no face found" in result["skipped"][0]["why"]


def test_folders_without_a_manifest_give_all_their_clips(data, tmp_path):
    (tmp_path / "some").mkdir()
    for name in ("some/one.mp4", "two.MP4"):
        (tmp_path / name).write_bytes((data / "b/mute.mp4").read_bytes())
    clips = find_clips(tmp_path)
    assert [(clip.name, clip.source) for clip in clips] == [
        ("some/one.mp4", "some"),
        ("two.MP4", tmp_path.name),
    ]
    assert {(clip.identity, clip.audio) for clip in clips} == {(None, False)}
    result = evaluate(clips, copy_tools, Options())
    assert result["all"]["voice"]["sync"]["correlation"]["n"] == 0
    assert "Lip sync" not in table(result)


def test_what_a_manifest_says_is_heard(data):
    clips = find_clips(data)
    assert [clip.name for clip in clips][-1] == "b/mute.mp4"
    assert [clip.identity for clip in clips] == ["ann", "ann", "bob", None, None]
    assert [clip.name for clip in find_clips(data, "train")] == ["b/clip5.mp4"]
    with pytest.raises(InputError, match="no clips in the split 'test'; it has: train, val"):
        find_clips(data, "test")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: folder.rmdir(), "no such folder"),
        (lambda folder: None, "no clips found"),
        (lambda folder: (folder / "manifest.csv").write_text("a,b\n1,2\n"), "no column 'path'"),
        (lambda folder: (folder / "manifest.csv").write_bytes(b"path\n\xff\xfe.mp4\n"), "cannot be read"),
    ],
)
def test_folders_that_will_not_do_get_one_line(tmp_path, prepare, message):
    folder = tmp_path / "clips"
    folder.mkdir()
    prepare(folder)
    with pytest.raises(InputError, match=message) as caught:
        find_clips(folder)
    assert "\n" not in str(caught.value)


def test_a_split_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no manifest\.csv"):
        find_clips(tmp_path, "val")


@pytest.mark.parametrize("rate", [10, 24, 30, 50])
def test_other_rates_become_25_by_the_nearest_frame(tmp_path, rate):
    count = round(1.2 * rate)
    shades = np.linspace(20, 230, count)
    frames = [np.full((64, 64, 3), shade, np.uint8) for shade in shades]
    write_clip(tmp_path / "clip.mp4", frames, None, rate)
    found = np.array([frame.mean() for frame in read_frames(tmp_path / "clip.mp4", 250)])
    instants = np.arange(math.ceil(25 * count / rate - 0.1)) / 25
    assert len(found) == len(instants)
    nearest = np.minimum(instants * rate, count - 1)
    assert (
        np.abs(found - np.interp(nearest, np.arange(count), shades)).max() < 0.5 * np.ptp(shades) / count + 3
    )
    assert len(read_frames(tmp_path / "clip.mp4", 12)) == 12


def test_frames_become_square_and_no_larger_than_needed(tmp_path):
    wide = np.zeros((540, 960, 3), np.uint8)
    wide[:, 210:750] = 200  # the middle square
    write_clip(tmp_path / "wide.mp4", [wide] * 5, None)
    frame = read_frames(tmp_path / "wide.mp4", 3)[0]
    assert frame.shape == (512, 512, 3)
    assert frame.mean() > 195


def test_a_voice_starts_with_its_picture(tmp_path):
    click = np.zeros(16_000, np.float32)
    click[8000:8200] = 0.8
    write_clip(tmp_path / "clip.mp4", [drawn(0)] * 25, click)
    voice = read_voice(tmp_path / "clip.mp4", 1.0)
    assert voice.dtype == np.float32
    assert len(voice) <= 16_000
    assert np.flatnonzero(np.abs(voice) > 0.3)[0] == pytest.approx(8000, abs=40)
    assert len(read_voice(tmp_path / "clip.mp4", 0.25)) == 4000
    with pytest.raises(ClipError, match="no sound"):
        write_clip(tmp_path / "mute.mp4", [drawn(0)] * 5, None)
        read_voice(tmp_path / "mute.mp4", 1)


def test_landmarks_of_real_clips_are_kept_and_gaps_are_filled(tmp_path):
    calls = []

    def landmarker(image):
        calls.append(1)
        return landmarks_of_drawing(image)

    pictures = [drawn(0.5, 0.4), np.zeros((SIZE, SIZE, 3), np.uint8), drawn(0.5, 0.6)]
    points, found = find_landmarks(pictures, landmarker, tmp_path / "cache")
    assert found.tolist() == [True, False, True]
    assert points[1] == pytest.approx((points[0] + points[2]) / 2, abs=1e-5)
    again, _ = find_landmarks(pictures, landmarker, tmp_path / "cache")
    assert len(calls) == 3
    assert (again == points).all()
    assert np.isnan(find_landmarks(pictures[1:2], landmarker)[0]).all()


# ---------------------------------------------------------------------------------------------- the command


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    evaluation.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


@pytest.fixture
def no_extra_needed(monkeypatch):
    """The stand-ins in the place of the tools of the extra, which counts as installed."""
    monkeypatch.setattr(evaluation, "make_tools", lambda subject, weights: copy_tools())
    monkeypatch.setattr(evaluation.importlib.util, "find_spec", lambda name: object())


def test_the_command_prints_a_table_and_writes_json(data, tmp_path, capsys, no_extra_needed):
    file = tmp_path / "new" / "figures.json"
    words = ("--data", data, "--subject", "copy", "--jobs", 1, "--limit", 3, "--json", file)
    assert evaluation.run(arguments(*words)) == 0
    out, err = capsys.readouterr()
    assert "3 clips (2 with sound" in out
    assert "3/3" in err
    found = json.loads(file.read_text())
    assert found["about"]["subject"] == "copy"
    assert found["about"]["split"] == "val"
    assert [clip["name"] for clip in found["clips"]] == ["a/clip0.mp4", "a/clip2.mp4", "b/mute.mp4"]
    assert {"definitions", "all", "by_source", "skipped"} <= set(found)
    assert str(tmp_path) not in file.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--limit", 0), "--limit 0: must be at least 1"),
        (("--frames", 2), "--frames 2: must be at least 3"),
        (("--jobs", 0), "--jobs 0: must be at least 1"),
        (("--weights", "nowhere"), "nowhere: no such folder"),
        (("--split", "test"), "no clips in the split 'test'"),
    ],
)
def test_arguments_that_will_not_do_get_one_line(data, no_extra_needed, words, message):
    with pytest.raises(InputError, match=message) as caught:
        evaluation.run(arguments("--data", data, *words))
    assert "\n" not in str(caught.value)


def test_results_that_cannot_be_kept_are_refused_before_the_work(data, tmp_path, no_extra_needed):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        evaluation.run(arguments("--data", data, "--subject", "copy", "--json", tmp_path / "file" / "x.json"))


def test_without_the_extra_one_line_says_what_to_install(data, monkeypatch):
    monkeypatch.setattr(evaluation.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs mediapipe.*pip install -c constraints.txt '\.\[evaluate\]'"):
        evaluation.run(arguments("--data", data))


def test_the_hash_of_weights_knows_names_and_contents(tmp_path):
    assert evaluation.weights_hash(tmp_path) is None
    (tmp_path / "a.bin").write_bytes(b"1")
    first = evaluation.weights_hash(tmp_path)
    assert evaluation.weights_hash(tmp_path) == first
    (tmp_path / "a.bin").rename(tmp_path / "b.bin")
    assert evaluation.weights_hash(tmp_path) != first
