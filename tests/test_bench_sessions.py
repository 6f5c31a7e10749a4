"""`ifmdm bench --sessions` and `--growth`: that they measure what they say. How good the figures are, is no matter of
tests."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import cv2
import numpy as np
import pytest
from live_fakes import LatentRenderer, LoudnessModel, portrait
from tqdm import tqdm

import engine.model
from engine.speech import SAMPLE_RATE
from engine.stream import LATENCIES, StreamCore, StreamSettings
from plugin import bench_growth, bench_sessions, cli
from plugin.live import LiveStream


@pytest.fixture
def small(untrained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engine.model, "WEIGHTS", untrained.directory)
    monkeypatch.setattr(bench_sessions, "SIZE", 64)
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
    told = capsys.readouterr().out
    (trial,) = result["trials"]
    assert trial["heads"] == 2 and trial["seconds"] >= 2
    assert 0 < trial["frames_per_second"] < 60
    assert trial["out_after_time_ms"]["count"] > 20
    assert 0 <= trial["late_percent"] <= trial["worst_late_percent"] + 0.01
    assert trial["cores_used"] > 0
    assert result["most"] == (2 if trial["holds"] else 0)
    assert result["machine"]["cores"] >= 1
    assert f"{trial['frames_per_second']:.2f}" in told
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


def test_heads_that_cannot_keep_up_do_not_hold(monkeypatch):
    """A head whose pictures take longer than there is time for."""

    class Slow(StreamCore):
        def __init__(self, *given):
            super().__init__(*given, renderer=LatentRenderer)

        def tick(self, samples, skip=False):
            frames = super().tick(samples, skip)
            if frames and asyncio._get_running_loop() is None:  # in the engine's thread
                bench_sessions.time.sleep(0.08)
            return frames

    monkeypatch.setattr(bench_sessions, "StreamCore", Slow)
    monkeypatch.setattr(bench_sessions, "WARM_UP_SECONDS", 0.2)
    with tqdm(disable=True) as bar:
        work = bench_sessions._trial(LoudnessModel(), portrait(), VOICE, 1, 1.0, LATENCIES["interactive"], bar)
        trial = asyncio.run(work)
    assert not trial["holds"]
    assert trial["worst_late_percent"] > 50
    assert trial["undrawn"] > 5


def test_streams_share_a_pool_and_one_that_fails_or_ends_leaves_it_to_the_others():
    class Failing(StreamCore):
        def tick(self, samples, skip=False):
            if self.state.frames > 5:
                raise RuntimeError("broken")
            return super().tick(samples, skip)

    async def work() -> int:
        pool = ThreadPoolExecutor(1)
        made = [stream(), Failing(LoudnessModel(), portrait(), stream().settings, renderer=LatentRenderer), stream()]
        sound, failing, ending = (LiveStream(core, 0.03, pool=pool) for core in made)
        async with sound, failing, ending:
            with pytest.raises(RuntimeError, match="broken"):
                async for _ in failing:
                    pass
            await ending.close()
            first = None
            async with asyncio.timeout(20):
                async for frame in sound:
                    first = frame.index if first is None else first
                    if frame.index > first + 20:
                        break
        assert pool.submit(lambda: 7).result(5) == 7
        pool.shutdown()
        return frame.index - first

    assert asyncio.run(work()) == 21


def test_the_most_is_the_last_that_holds_and_a_failure_is_tried_again(monkeypatch):
    tried = []

    async def trial(model, face, voice, count, *_):
        tried.append(count)
        return {"heads": count, "holds": count < 3 or (count == 3 and tried.count(3) == 2)}

    monkeypatch.setattr(bench_sessions, "_trial", trial)
    result = bench_sessions.most_sessions(1.0, progress=False)
    assert tried == [1, 2, 3, 3, 4, 4]
    assert result["most"] == 3


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
