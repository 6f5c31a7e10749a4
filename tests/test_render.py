"""From a portrait and a voice to a file: the wiring with a small stand-in head, then the real thing."""

import itertools
import re
import subprocess
import sys
import weakref
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil
from pathlib import Path

import av
import numpy as np
import pytest

from engine.errors import InputError
from engine.speech import SAMPLE_RATE
from plugin.adapters import create_clip
from plugin.badge import Badge, draw_badge
from plugin.render import PROVENANCE, Clip, bundled_portraits, find_portrait, render
from plugin.settings import load_settings
from transports.file import OutputError

ROOT = Path(__file__).parent.parent
SIZE = 128


@dataclass(eq=False)
class Shown:
    image: np.ndarray


@dataclass
class Lamp:
    """A stand-in for the head: as many frames as the engine promises, white while something loud is heard."""

    fps: int
    size: int
    heard: list[np.ndarray] = field(default_factory=list)
    made: int = 0
    alive: weakref.WeakSet = field(default_factory=weakref.WeakSet)
    most_alive: int = 0

    def push(self, samples):
        self.heard.append(samples)
        return self._due(int(self._taken * self.fps // SAMPLE_RATE))

    def finish(self):
        return self._due(ceil(self._taken * self.fps / SAMPLE_RATE))

    @property
    def _taken(self):
        return sum(map(len, self.heard))

    def _due(self, total):
        voice = np.concatenate(self.heard)
        frames = []
        for i in range(self.made, total):
            part = voice[i * SAMPLE_RATE // self.fps : (i + 1) * SAMPLE_RATE // self.fps]
            loud = len(part) and np.abs(part).max() > 0.3
            frames.append(Shown(np.full((self.size, self.size, 3), 255 if loud else 0, np.uint8)))
            self.alive.add(frames[-1])
        self.made = max(self.made, total)
        self.most_alive = max(self.most_alive, len(self.alive))
        return frames


def lamp(portrait, settings):
    assert portrait.pixels.shape == (512, 512, 3)
    return Lamp(settings.video.fps, settings.video.size)


def write_voice(path: Path, samples: np.ndarray, rate: int) -> Path:
    """samples: (n, channels) float."""
    with av.open(str(path), "w") as container:
        layout = "mono" if samples.shape[1] == 1 else "stereo"
        stream = container.add_stream("pcm_s16le", rate=rate, layout=layout)
        ints = np.round(samples * 32767).astype(np.int16).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(ints, format="s16", layout=layout)
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def clicking(seconds: float, click_at: float, rate: int = 16000, channels: int = 1) -> np.ndarray:
    samples = np.zeros((round(seconds * rate), channels))
    start = round(click_at * rate)
    samples[start : start + rate // 500] = 0.9
    return samples


def make(tmp_path: Path, voice: np.ndarray, rate: int = 16000, start=lamp, **flags: str):
    sound = write_voice(tmp_path / "voice.wav", voice, rate)
    chosen = {"render.audio": str(sound), "render.output": str(tmp_path / "out.mp4"), "video.size": str(SIZE)}
    return render(load_settings(chosen | {k.replace("__", "."): v for k, v in flags.items()}), start)


def frames_of(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


@pytest.mark.parametrize("seconds", [1 / 16000, 0.01, 0.5, 1.003])
@pytest.mark.parametrize("fps", [1, 45])
def test_the_video_is_as_long_as_the_voice(tmp_path, seconds, fps):
    clip = make(tmp_path, clicking(seconds, 0), video__fps=str(fps))
    assert clip.frames == len(frames_of(clip.path)) == ceil(round(seconds * 16000) * fps / 16000)
    with av.open(str(clip.path)) as container:
        lengths = [float(s.duration * s.time_base) for s in container.streams]
    assert max(lengths) - min(lengths) < 1 / fps + 0.001
    assert f"{clip.path}: {clip.seconds:.1f} s of video in " in str(clip)
    assert re.search(r"[1-9]\d*\.\d x real time$|slower than real time$", str(clip))


@pytest.mark.parametrize(("took", "said"), [(5.0, "2.0 x real time"), (30.0, "slower than real time")])
def test_a_clip_says_how_fast_it_was_made(took, said):
    assert str(Clip(Path("a.mp4"), 450, 10.0, took)) == f"a.mp4: 10.0 s of video in {took:.1f} s, {said}"


@pytest.mark.parametrize(("rate", "channels", "fps"), [(16000, 1, 25), (44100, 2, 45), (48000, 1, 60)])
def test_picture_and_voice_meet_at_the_frame(tmp_path, rate, channels, fps):
    at = 0.6
    clip = make(tmp_path, clicking(1.2, at, rate, channels), rate, video__fps=str(fps), video__badge="false")
    frames = frames_of(clip.path)
    lit = [frame.pts * frame.time_base for frame in frames if frame.to_ndarray(format="gray").mean() > 128]
    # The 2 ms of the click, and the ringing of the resampler about it, may touch a neighbour.
    assert Fraction(int(at * fps), fps) in lit
    assert len(lit) <= 3
    with av.open(str(clip.path)) as container:
        stream = container.streams.audio[0]
        assert (stream.rate, stream.channels) == (rate, channels)
        sound = [(frame.pts, frame.to_ndarray()) for frame in container.decode(audio=0)]
    first, samples = sound[0][0], np.concatenate([part for _, part in sound], axis=1)
    heard = (first + np.argmax(np.abs(samples[0]) > 0.4)) / rate
    assert heard == pytest.approx(at, abs=0.004)


def test_frames_go_out_as_they_come(tmp_path):
    heads = []

    def start(portrait, settings):
        heads.append(lamp(portrait, settings))
        return heads[0]

    clip = make(tmp_path, clicking(6, 3), start=start)
    assert clip.frames == 270
    assert max(map(len, heads[0].heard)) <= SAMPLE_RATE // 2
    assert heads[0].most_alive < 60


def test_progress_is_shown_and_can_be_silenced(tmp_path, capfd):
    make(tmp_path, clicking(0.5, 0))
    shown = capfd.readouterr()
    assert "Rendering" in shown.err
    assert "23/23" in shown.err
    assert shown.out == ""


def test_the_file_says_what_it_is_with_and_without_the_badge(tmp_path):
    for badge in ("true", "false"):
        clip = make(tmp_path, clicking(0.2, 9), video__badge=badge)
        with av.open(str(clip.path)) as container:
            assert container.metadata["comment"] == container.metadata["description"] == PROVENANCE
        corner = frames_of(clip.path)[-1].to_ndarray(format="gray")[-30:, -30:]
        assert (corner.max() > 180) == (badge == "true")


def test_the_badge_changes_its_corner_only_and_not_the_callers_frame():
    for size in (128, 512, 1024):
        image = np.full((size, size, 3), 90, np.uint8)
        badged = Badge(size).put_on(image)
        assert (image == 90).all()
        changed = np.argwhere((badged != 90).any(axis=2))
        assert changed.min() > 0.75 * size
        assert changed.max() < size
        assert np.ptp(changed, axis=0).max() < 0.2 * size
        assert badged.max() > 220
        plate = draw_badge(size)
        assert plate[0, 0, 3] == 0  # rounded: nothing in the very corner
        assert (Badge(size).put_on(image) == badged).all()


def test_interrupted_it_leaves_the_old_file(tmp_path):
    (tmp_path / "out.mp4").write_bytes(b"old")

    class Stopped(Lamp):
        def finish(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, clicking(1, 0), start=lambda _, s: Stopped(s.video.fps, s.video.size))
    assert (tmp_path / "out.mp4").read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.mp4", "voice.wav"]


def test_bundled_portraits_need_no_consent_others_do(tmp_path):
    bundled = bundled_portraits()
    assert "ada" in bundled
    assert find_portrait("ada", consent=False) == bundled["ada"]
    assert find_portrait(str(bundled["ada"]), consent=False) == bundled["ada"]
    other = tmp_path / "me.jpg"
    other.write_bytes(bundled["ada"].read_bytes())
    with pytest.raises(InputError, match="--consent"):
        find_portrait(str(other), consent=False)
    assert find_portrait(str(other), consent=True) == other
    with pytest.raises(InputError, match=r"bundled are ada, "):
        find_portrait("adda", consent=True)


def test_an_input_is_never_overwritten(tmp_path):
    def never(*_):
        raise AssertionError("the head was started")

    with pytest.raises(InputError, match="also an input"):
        make(tmp_path, clicking(0.1, 0), start=never, render__audio=str(tmp_path / "out.mp4"))
    with pytest.raises(OutputError, match="no folder"):
        make(tmp_path, clicking(0.1, 0), start=never, render__output=str(tmp_path / "no" / "out.mp4"))


def run_ifmdm(*args: str, cwd: Path) -> subprocess.CompletedProcess:
    """Run the command in a process of its own, which then tells whether torch came along."""
    program = (
        "import sys\nfrom plugin.cli import main\nstatus = main()\n"
        "print('torch' in sys.modules, file=sys.stderr)\nsys.exit(status)"
    )
    return subprocess.run(
        [sys.executable, "-c", program, *args],
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """A second of the bundled voice, in which somebody speaks."""
    from engine.speech import read_voice
    from plugin.render import BUNDLED_VOICE

    voice = read_voice(BUNDLED_VOICE)
    samples = voice.samples[2 * voice.rate : 3 * voice.rate]
    return write_voice(tmp_path_factory.mktemp("voice") / "spoken.wav", samples, voice.rate)



@pytest.mark.parametrize(("weights", "licence"), [("research", "non-commercial"), ("clean", "any use")])
def test_the_real_thing_speaks_the_same_way_twice_and_without_torch(tmp_path, spoken, weights, licence):
    flags = ["--audio", str(spoken), "--size", "256", "--fps", "30", "--seed", "7", "--pose", "-5,0,2"]
    flags += ["--weights", weights]
    for name in ("a.mp4", "b.mp4"):
        done = run_ifmdm("render", *flags, "--output", name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert re.search(r"[1-9]\d*\.\d x real time$|slower than real time$", done.stdout.strip())
        assert done.stderr.split()[-1] == "False"
        assert licence in done.stderr.splitlines()[0]
    frames = [frame.to_ndarray(format="rgb24") for frame in frames_of(tmp_path / "a.mp4")]
    assert len(frames) == 30
    assert frames[0].shape == (256, 256, 3)
    # Alive, and still a face rather than noise.
    motion = np.mean([np.abs(a.astype(int) - b).mean() for a, b in itertools.pairwise(frames)])
    assert 0.01 < motion < 20
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_another_seed_speaks_another_way(tmp_path, spoken):
    pictures = []
    for seed in ("1", "2"):
        flags = ["--audio", str(spoken), "--size", "128", "--fps", "25", "--seed", seed, "-o", f"{seed}.mp4"]
        assert run_ifmdm("render", *flags, cwd=tmp_path).returncode == 0
        pictures.append(frames_of(tmp_path / f"{seed}.mp4")[-1].to_ndarray(format="gray"))
    assert (pictures[0] != pictures[1]).any()


def test_a_voice_that_is_cut_off_is_rendered_and_said_to_be(tmp_path, capsys, caplog):
    cut = write_voice(tmp_path / "whole.wav", clicking(2, 0.5), 16_000)
    cut.write_bytes(cut.read_bytes()[:-32_000])
    said = f"{cut}: cut off: it ends after 1.0 of 2.0 s; get a whole copy"
    clip = make(tmp_path, clicking(0.1, 0), render__audio=str(cut))
    assert clip.seconds == pytest.approx(1, abs=0.05)
    assert said in capsys.readouterr().err.splitlines()
    create_clip({"file": str(cut), "loop": False, "pause": 1.0})
    assert caplog.messages == [said]


def test_opposite_phase_moves_the_head_and_stays_as_it_is_in_the_clip(tmp_path):
    voice = clicking(1, 0.5)
    heads = []

    def start(portrait, settings):
        heads.append(lamp(portrait, settings))
        return heads[0]

    make(tmp_path, voice * [1, -1], start=start)
    assert np.abs(np.concatenate(heads[0].heard)).max() == pytest.approx(0.9, abs=0.01)
    with av.open(str(tmp_path / "out.mp4")) as container:
        sound = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)
    assert np.abs(sound[0] + sound[1]).max() < 0.1 < np.abs(sound[0]).max()
