"""`ifmdm bench`: that every stage is measured and told. How fast it is, is no matter of tests."""

import argparse
import json
import math
import wave
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

import engine.model
from engine.motion.generator import MotionGenerator
from plugin import bench, bench_start, cli, render
from transports.media import TransportError

STAGES = ["load weights", "find face", "portrait networks", "resampling", "speech features", "motion",
          "coefficients", "render", "colour conversion", "VP8 encoding", "H.264 encoding", "voice to frames",
          "ifmdm render"]  # fmt: skip


@pytest.fixture
def small(users_settings, untrained, tmp_path, monkeypatch):
    """A second of voice, random weights, small frames and few runs."""
    monkeypatch.setitem(engine.model.WEIGHTS, "research", untrained.directory)
    with wave.open(str(tmp_path / "voice.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes((np.random.default_rng(0).normal(0, 3000, 16000)).astype(np.int16).tobytes())
    monkeypatch.setattr(render, "BUNDLED_VOICE", tmp_path / "voice.wav")
    monkeypatch.setattr(bench, "RUNS", dict.fromkeys(bench.RUNS, 20))
    monkeypatch.setattr(bench, "SIZE", 128)
    monkeypatch.setattr(bench, "FPS", 25)
    monkeypatch.setattr(bench, "ENCODED", 20)
    monkeypatch.setattr(bench, "STARTS", 2)
    return tmp_path


def test_every_stage_is_measured_and_told(small, capsys):
    threads = cv2.getNumThreads()
    assert cli.main(["bench", "--quick", "--json", "figures.json"]) == 0
    shown = capsys.readouterr()
    result = json.loads((small / "figures.json").read_text())
    assert list(bench.RUNS) == STAGES
    assert [stage["name"] for stage in result["stages"]] == STAGES
    for stage in result["stages"]:
        assert 0 < stage["median_ms"] <= stage["p95_ms"] < math.inf
        assert 0 <= stage["cpu_ms"] < math.inf
        assert stage["runs"] == 2
        real_time = stage["real_time"]
        assert (real_time is not None) == stage["per"].startswith("s of")
        assert real_time is None or real_time == pytest.approx(1000 / stage["median_ms"])
        (line,) = (line for line in shown.out.splitlines() if line.startswith(f"{stage['name']:<19}"))
        assert f"{stage['median_ms']:.2f}" in line
    keys = {"machine", "versions", "backend", "threads", "settings", "weights", "start", "resident_mb"}
    assert set(result) == keys | {"peak_memory_mb", "stages"}
    assert 0 < result["resident_mb"] <= result["peak_memory_mb"]
    assert result["machine"]["cores"] >= 1
    assert result["versions"]["numpy"] == np.__version__
    assert result["threads"]["opencv"] == result["threads"]["onnxruntime"] == 1
    assert result["settings"]["size"] == 128
    assert result["weights"] == {"renderer_steps": 0, "motion_steps": 0}
    assert result["machine"]["processor"] in shown.out
    assert shown.out.startswith(f"backend: {result['backend']}\n")
    assert "ifmdm render" in shown.err  # progress
    assert "26/26" in shown.err
    assert cv2.getNumThreads() == threads
    assert sorted(path.name for path in small.iterdir()) == ["config.toml", "figures.json", "mine.mp4", "voice.wav"]


def test_a_run_of_the_motion_stage_is_one_hop(small, monkeypatch):
    hops, make = [], MotionGenerator._hop
    monkeypatch.setattr(MotionGenerator, "_hop", lambda stream: hops.append(stream) or make(stream))
    motion = next(plan for plan in bench.plans(small) if plan.name == "motion")
    for count in range(5):
        assert len(hops) == count
        motion.run()


def test_figures_that_cannot_be_kept_are_refused_before_measuring(small, monkeypatch, capsys):
    monkeypatch.setattr(bench, "bench", lambda *_, **__: pytest.fail("measured"))
    assert cli.main(["bench", "--json", "none/figures.json"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("ifmdm: none/figures.json: cannot be written")
    assert shown.count("\n") == 1


def test_median_and_p95_are_of_the_runs(monkeypatch):
    clock = iter(np.cumsum([0, *[x for k in range(1, 22) for x in (k / 1000, 0)]]))
    clocks = SimpleNamespace(perf_counter=lambda: float(next(clock)), process_time=lambda: 0.0)
    monkeypatch.setattr(bench, "time", clocks)
    plan = bench.Plan("stage", "s of video", lambda: None, seconds=2.0, warm_up=0)
    with bench.tqdm(disable=True) as bar:
        stage = bench.measure(plan, 21, bar)
    assert stage.median_ms == pytest.approx(11 / 2)
    assert stage.p95_ms == pytest.approx(20 / 2)
    assert stage.real_time == pytest.approx(1000 / 5.5)


def test_the_start_is_of_the_real_command_and_free_of_torch(users_settings):
    """In a process of its own, from a folder whose settings it must not take."""
    result = bench_start.bench_start(1, progress=False)
    assert result["runs"] == 1 and result["torch_imported"] is False
    moments = [result[f"{name}_seconds"]["median"] for name in ("imported", "made", "first_frame")]
    assert 0 < moments[0] < moments[1] < moments[2] < bench_start.START_SECONDS
    assert 50 < result["resident_mb"] <= result["peak_memory_mb"]
    assert "torch not imported" in bench_start.table(result)


def test_a_start_that_fails_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(bench_start.sys, "executable", "/bin/false")
    with pytest.raises(TransportError, match="did not start: no word why"):
        bench_start.start_once()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--encode", "vp8"], "--encode is of --sessions: leave it out of the plain bench"),
        (["--seconds", "3"], "--seconds is of live, --sessions, --growth, --profile: leave it out of the plain bench"),
        (["--latency", "quality"], "--latency is of live, --sessions, --growth: leave it out of the plain bench"),
        (["--profile", "--latency", "quality"], "--latency is of live, --sessions, --growth: leave it out of"),
        (["--profile", "--backend", "cuda"], "--backend is of live, --sessions, --growth, the plain bench: leave it"),
        (["--profile", "--encode", "vp8"], "--encode is of --sessions: leave it out of --profile"),
        (["--growth", "--encode", "none"], "--encode is of --sessions: leave it out of --growth"),
        (["live", "--quick"], "--quick is of the plain bench: leave it out of live"),
        (["--sessions", "max", "--quick"], "--quick is of the plain bench: leave it out of --sessions"),
    ],
)  # fmt: skip
def test_an_option_that_would_not_be_heeded_is_refused_in_one_line(words, told, monkeypatch, capsys):
    monkeypatch.setattr(bench, "chosen", lambda *_: pytest.fail("measured"))
    assert cli.main(["bench", *words]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"ifmdm: {told}")
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [["live", "--seconds", "3", "--latency", "quality", "--backend", "cpu"],
     ["--sessions", "2", "--seconds", "3", "--latency", "quality", "--backend", "cpu", "--encode", "vp8"],
     ["--growth", "--seconds", "3", "--latency", "quality", "--backend", "cpu"],
     ["--profile", "--seconds", "3"], ["--quick", "--backend", "cpu"], []],
)  # fmt: skip
def test_an_option_that_is_heeded_is_not_refused(words):
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    bench.check_options(parser.parse_args(words))


@pytest.mark.parametrize("words", [["--sessions", "0"], ["--sessions", "many"], ["--seconds", "-1"],
                                   ["--seconds", "nan"], ["live", "--growth"]])  # fmt: skip
def test_what_cannot_be_measured_is_refused_in_one_line(words, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["bench", *words])
    assert left.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
