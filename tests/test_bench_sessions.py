"""`ifmdm bench --sessions` and `--growth`: that they measure what they say. How good the figures are, is no matter of
tests."""

import asyncio
import json
import threading
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest
from live_fakes import LatentRenderer, LoudnessModel, portrait
from tqdm import tqdm

import engine.model
from engine.renderer import cpu
from engine.speech import SAMPLE_RATE
from engine.stream import LATENCIES, StreamCore, StreamSettings
from plugin import bench_growth, bench_profile, bench_sessions, cli
from plugin.run import Studio
from plugin.settings import load_settings
from transports.webrtc import broadcast
from transports.webrtc.encoders import VideoEncoder


@pytest.fixture
def small(users_settings, untrained, tmp_path, monkeypatch):
    monkeypatch.setitem(engine.model.WEIGHTS, "research", untrained.directory)
    monkeypatch.setattr(bench_sessions, "SIZE", 128)
    monkeypatch.setattr(bench_sessions, "WARM_UP_SECONDS", 0.5)
    return tmp_path


def stream() -> StreamCore:
    latency = LATENCIES["interactive"]
    settings = StreamSettings(45, 16, latency.pace, latency.cushion)
    return StreamCore(LoudnessModel(), portrait(), settings, renderer=LatentRenderer)


VOICE = np.random.default_rng(0).normal(0, 0.1, 7001).astype(np.float32)


def test_heads_at_once_are_measured_and_told(small, capsys):
    threads = cv2.getNumThreads()
    assert cli.main(["bench", "--sessions", "2", "--seconds", "2", "--json", "heads.json"]) == 0
    result = json.loads((small / "heads.json").read_text())
    shown = capsys.readouterr()
    (trial,) = result["trials"]
    assert trial["heads"] == 2 and trial["seconds"] >= 2
    assert 0 < trial["frames_per_second"] < 60
    assert trial["out_after_time_ms"]["count"] > 20
    assert 0 <= trial["late_percent"] <= trial["worst_late_percent"] + 0.01
    assert trial["cores_used"] > 0
    assert trial["dropped"] == 0  # nothing was encoded
    assert trial["resident_mb"] is None or 0 <= trial["head_mb"] < trial["resident_mb"]
    assert (result["most"], result["encode"]) == (2 if trial["holds"] else 0, "none")
    assert result["machine"]["cores"] >= 1
    header, row, verdict = shown.out.splitlines()[-3:]
    assert " ".join(header.split()) == "heads fps late % worst % out late ms cores MB MB a head holds"
    assert f"{trial['frames_per_second']:.2f}" in row and row.endswith("yes" if trial["holds"] else "no")
    holds = "hold" if trial["holds"] else "do not hold"
    assert verdict == f"2 heads {holds} 45 fps with under 1 % of any head's frames late"
    assert "2 heads |" in shown.err  # progress
    assert cv2.getNumThreads() == threads


def test_heads_of_a_backend_that_draws_them_together_are_measured(small, monkeypatch, capsys):
    """As on a GPU, with the processor in its place."""
    pytest.importorskip("torch")
    from engine.backend import TorchBackend

    made = []

    def choose(name, probe):
        made.append((name, TorchBackend("cpu")))
        return made[-1][1]

    monkeypatch.setattr(engine.model, "choose", choose)
    command = ["bench", "--sessions", "2", "--seconds", "1", "--backend", "cuda", "--json", "heads.json"]
    assert cli.main(command) == 0
    result = json.loads((small / "heads.json").read_text())
    assert [name for name, _ in made] == ["cuda", "cpu"]  # as asked for, then as found
    assert result["backend"] == str(made[0][1])
    assert result["versions"]["torch"]
    assert capsys.readouterr().out.startswith(f"backend: {result['backend']}\n")
    (trial,) = result["trials"]
    assert trial["heads"] == 2 and trial["frames_per_second"] > 0
    for _, backend in made:
        backend.close()


class Drawn(LatentRenderer):
    """Draws, and does something more with the portrait it draws."""

    more = staticmethod(lambda portrait: None)

    def render(self, coefficients):
        self.more(self.portrait)
        return super().render(coefficients)


@pytest.fixture
def bed(tmp_path, monkeypatch):
    """What measures heads of a small model; `more` is done with each picture."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench_sessions, "WARM_UP_SECONDS", 0.2)
    monkeypatch.setattr(
        LoudnessModel, "prepare", lambda _, picture, backdrop=None: portrait(float(picture.pixels.mean()), 0.0, 0.0)
    )
    settings = load_settings({"video.size": 128, "live.latency": "interactive"})

    def make(more=lambda portrait: None, encode: str = "none") -> bench_sessions.Bed:
        monkeypatch.setattr(Drawn, "more", staticmethod(more))
        return bench_sessions.Bed(Studio(settings, LoudnessModel(), Drawn), encode, None, tqdm(disable=True))

    return make


def test_heads_that_cannot_keep_up_do_not_hold(bed):
    """Pictures take longer than there is time for."""
    trial = asyncio.run(bench_sessions._trial(bed(lambda _: time.sleep(0.08)), 1, 1.0))
    assert not trial["holds"]
    assert trial["worst_late_percent"] > 50
    assert trial["undrawn"] > 5
    assert trial["head_mb"] is None  # as where the system tells nothing of memory
    assert "?" in bench_sessions.trials_table([trial])


def test_heads_have_portraits_of_their_own_the_bundled_ones_in_turn_and_threads_of_their_own(bed):
    drawn: dict[int, set] = {}

    def note(face):
        drawn.setdefault(threading.get_ident(), set()).add((id(face), float(face.latent[0])))

    trial = asyncio.run(bench_sessions._trial(bed(note), 5, 0.5))
    assert trial["heads"] == 5
    assert all(len(faces) == 1 for faces in drawn.values())
    faces = {face for (face,) in drawn.values()}
    assert len(drawn) == len(faces) == 5
    assert len({latent for _, latent in faces}) == 4


@pytest.mark.parametrize("codec", ["vp8", "h264"])
def test_every_head_is_encoded_as_for_whep_where_that_is_asked_for(bed, codec, monkeypatch):
    made, encode = [], VideoEncoder.encode
    monkeypatch.setattr(broadcast, "VideoEncoder", lambda *given: made.append(VideoEncoder(*given)) or made[-1])
    encoded: dict[int, int] = {}

    def count(encoder, *given):
        encoded[id(encoder)] = encoded.get(id(encoder), 0) + 1
        return encode(encoder, *given)

    monkeypatch.setattr(VideoEncoder, "encode", count)
    trial = asyncio.run(bench_sessions._trial(bed(encode=codec), 2, 1.0))
    assert [encoder._codec for encoder in made] == [codec] * 2
    assert len(encoded) == 2 and min(encoded.values()) > 5
    assert trial["heads"] == 2


def test_what_is_late():
    def counts(**some):
        return bench_sessions.Counts(**(dict.fromkeys(("late", "undrawn", "lost", "resyncs", "dropped"), 0) | some))

    def told(*each):
        return bench_sessions._told(*zip(*each, strict=True), spent=10.0)

    in_time, whole = [0.001] * 450, counts(made=450)
    good = told((whole, in_time), (counts(made=449), in_time[1:]))
    assert good["holds"] and good["late_percent"] == 0
    assert good["frames_per_second"] == 44.9
    # by any of them alone: ready late, without a picture, not taken, not encoded, handed out late, never made
    for each, after in (
        (counts(made=450, late=9), in_time),
        (counts(made=450, undrawn=9), in_time),
        (counts(made=450, lost=9), in_time),
        (counts(made=450, dropped=9), in_time),
        (whole, [0.02] * 9 + in_time[9:]),
        (counts(made=440), in_time[10:]),
    ):
        bad = told((whole, in_time), (each, after))
        assert not bad["holds"]
        assert bad["worst_late_percent"] == 2
    assert told((whole, [0.02] * 3 + in_time[3:]), (whole, in_time))["late_percent"] == 0.33


def test_the_most_is_the_last_that_holds_and_a_failure_is_tried_again(small, monkeypatch):
    tried = []

    async def trial(bed, count, seconds):
        tried.append(count)
        return {"heads": count, "holds": count < 3 or (count == 3 and tried.count(3) == 2)}

    monkeypatch.setattr(bench_sessions, "_trial", trial)
    result = bench_sessions.most_sessions(1.0, progress=False)
    assert tried == [1, 2, 3, 3, 4, 4]
    assert result["most"] == 3
    assert bench_sessions.verdict(result) == "3 heads hold"
    none = {"most": 0, "trials": [{"heads": 1}, {"heads": 1}]}
    assert bench_sessions.verdict(none) == "1 head does not hold"


def test_a_long_stream_is_checked_to_the_last_sample():
    core = stream()
    speaker, exact = bench_growth.Speaker(core, VOICE), bench_growth.Exactness()
    frames = []
    for _ in range(4):
        speaker.speak()
        frames += core.tick(SAMPLE_RATE)
    for frame in frames:
        exact.check(frame, speaker)
    assert exact.frames == len(frames) > 150
    assert exact.samples == sum(len(frame.audio) for frame in frames)
    assert exact.wrong == 0 and exact.apart < 1
    assert any(frame.audio.any() for frame in frames)  # it is a voice that was compared


@pytest.mark.parametrize(
    "spoil",
    [
        lambda frame: replace(frame, audio=np.roll(frame.audio, 1)),
        lambda frame: replace(frame, pts=frame.pts + 400),
        lambda frame: replace(frame, index=frame.index + 1),
    ],
)
def test_what_is_not_exact_is_seen(spoil):
    core = stream()
    speaker, exact = bench_growth.Speaker(core, VOICE), bench_growth.Exactness()
    speaker.speak()
    frames = core.tick(SAMPLE_RATE)
    frames[20] = spoil(frames[20])
    for frame in frames:
        exact.check(frame, speaker)
    assert exact.wrong > 0


def test_growth_is_measured_and_told(small, monkeypatch, capsys):
    monkeypatch.setattr(bench_growth, "SIZES", (64, 96))
    monkeypatch.setattr(bench_growth, "SIZE", 64)
    monkeypatch.setattr(bench_growth, "SIZE_SECONDS", 1)
    monkeypatch.setattr(bench_growth, "STEP_SECONDS", 2)
    monkeypatch.setattr(bench_growth, "HEADS", 1)
    monkeypatch.setattr(bench_growth, "HEADS_SECONDS", 1.0)
    assert cli.main(["bench", "--growth", "--seconds", "5", "--json", "growth.json"]) == 0
    result = json.loads((small / "growth.json").read_text())
    told = capsys.readouterr().out
    assert [each["size"] for each in result["sizes"]] == [64, 96]
    for each in result["sizes"]:
        assert 0 < each["frame_ms_median"] <= each["frame_ms_p95"]
        assert each["cpu_ms_per_second"] > 0
    long = result["length"]
    assert [step["second"] for step in long["steps"]] == [2, 4, 5]
    assert long["frames"] == pytest.approx(5 * 45, abs=15)
    assert long["wrong_samples"] == 0 and long["samples_apart"] < 1
    assert [each["heads"] for each in result["heads"]] == [1]
    assert "0 of them wrong" in told


def test_the_parts_of_a_frame_are_measured_and_told(small, monkeypatch, capsys):
    """On the processor, whatever else the machine has, and it says so."""
    monkeypatch.setattr(bench_profile, "SIZE", 128)
    asked, choose = [], engine.model.choose
    monkeypatch.setattr(engine.model, "choose", lambda name, probe: asked.append(name) or choose(name, probe))
    plain = (cpu.cv2, cpu.mix)
    assert cli.main(["bench", "--profile", "--seconds", "0.5", "--json", "profile.json"]) == 0
    assert (cpu.cv2, cpu.mix) == plain
    result = json.loads((small / "profile.json").read_text())
    told = capsys.readouterr().out
    assert asked == ["cpu", "cpu"]
    assert result["backend"] == "cpu" and told.startswith("backend: cpu\n")
    parts = result["parts_ms"]
    assert list(parts) == [*dict.fromkeys(bench_profile.PARTS.values()), bench_profile.REST]
    assert result["frames"] == pytest.approx(0.5 * 45, abs=2)
    # every part is there in the renderer as it is, and they are all there is
    assert all(each["mean"] > 0 for each in parts.values())
    assert sum(each["mean"] for each in parts.values()) == pytest.approx(result["frame_ms"]["mean"], rel=0.02)
    assert all(name in told for name in parts)
