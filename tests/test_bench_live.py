"""`ifmdm bench live`: that it measures what it says. How good the figures are, is no matter of tests."""

import asyncio
import contextlib
import json
import math
from dataclasses import dataclass, field
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
from live_fakes import VirtualTime, in_virtual_time
from tqdm import tqdm

import engine.model
from engine.speech import SAMPLE_RATE
from plugin import bench_live, bench_viewer, cli
from transports.media import MediaFormat, MediaFrame

FORM = MediaFormat(64, 64, 45, SAMPLE_RATE)


def frame(index: int, loudness: float) -> MediaFrame:
    size = SAMPLE_RATE // 45
    image = np.full((64, 64, 3), 90, np.uint8)
    return MediaFrame(index, index * size, image, np.full(size, loudness, np.float32), 0.0)


def test_words_begin_loud_and_end_in_silence():
    rng = np.random.default_rng(0)
    voice = rng.normal(0, 0.2, 5 * SAMPLE_RATE).astype(np.float32)
    voice[: SAMPLE_RATE // 2] = 0
    chunks = list(islice(bench_live.words(voice), 400))
    assert all(len(chunk) == 320 for chunk, _ in chunks)
    begins = [place for place, (_, first) in enumerate(chunks) if first]
    assert begins[0] == 0 and np.diff(begins).tolist() == [75] * (len(begins) - 1)
    for place in begins[1:]:
        assert not np.concatenate([chunk for chunk, _ in chunks[place - 20 : place]]).any()
        assert abs(chunks[place][0][0]) > bench_live.LOUD


def test_the_probe_notes_and_marks_where_words_begin():
    probe = bench_live.Probe()
    probe.open(FORM)
    marks = []
    for index in range(90):
        speaks = index % 45 >= 30
        given = frame(index, 0.3 if speaks else 0.0)
        probe.send(given)
        shown = probe.marked(given).image
        marks.append(bool(shown[0, 0, 0] == 255))
        assert shown[0, 0, 0] in (0, 255) and (shown[8:, 8:] == 90).all()
        assert (given.image == 90).all()  # other sinks see it as it is
    assert np.flatnonzero(marks).tolist() == [30, 75]
    assert len(probe.words) == 2
    assert len(probe.gaps) == 89


@dataclass
class Late:
    """Stands in for a show and its ears: a piece of voice is out `delay` after its turn, and so is an interrupt."""

    loop: VirtualTime
    probe: bench_live.Probe
    delay: float
    _coming: list[asyncio.TimerHandle] = field(default_factory=list)
    _pts: int = 0

    def invite(self, live: bool) -> "Late":
        return self

    def deliver(self, samples: np.ndarray, rate: int) -> None:
        for at in range(0, len(samples), 320):
            given = MediaFrame(0, self._pts, None, samples[at : at + 320], 0.0)
            self._coming.append(self.loop.call_later(self.delay + at / rate, self.probe.send, given))
            self._pts += 320

    def interrupt(self) -> None:
        for handle in self._coming:
            if handle.when() > self.loop.time() + self.delay:
                handle.cancel()

    def finish(self) -> None:
        pass

    leave = finish


@pytest.mark.parametrize("delay", [0.125, 0.5])
def test_what_comes_late_is_measured_so(delay, monkeypatch):
    """On a clock that no busy machine disturbs: the time from a word to its frame, and from an interrupt to silence."""
    voice = np.random.default_rng(0).uniform(0.1, 0.9, 5 * SAMPLE_RATE).astype(np.float32)

    async def measure(loop: VirtualTime):
        monkeypatch.setattr(bench_live, "time", SimpleNamespace(monotonic=loop.time))
        probe, microphone = bench_live.Probe(), bench_live.Microphone()
        show = Late(loop, probe, delay)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(microphone.speak(show, voice), 10)
        waited = bench_live.latencies(microphone.said, probe.words)
        return waited, await bench_live.interrupts(show, probe, voice, tqdm(disable=True))

    waited, interrupted = in_virtual_time(measure)
    assert len(waited) == 7 and waited == pytest.approx([delay] * 7)
    # a piece of 20 ms may just have begun
    assert len(interrupted) == bench_live.INTERRUPTS and all(delay - 0.021 < took <= delay for took in interrupted)


def test_latency_is_to_the_next_word_that_is_out():
    assert bench_live.latencies([1.0, 3.0, 9.0], [0.5, 1.25, 3.5, 20.0]) == [0.25, 0.5]


def test_lips_are_compared_with_the_nearest_sound():
    assert bench_viewer.offsets([1.0, 2.0, 9.0], [1.1, 1.98, 5.0]) == pytest.approx([-0.1, 0.02])
    assert bench_viewer.offsets([1.0], []) == []


def test_a_live_head_is_measured_with_a_viewer(users_settings, untrained, tmp_path, monkeypatch, capsys):
    """Real: server, WebRTC, viewer process."""
    monkeypatch.setitem(engine.model.WEIGHTS, "research", untrained.directory)
    monkeypatch.setattr(bench_live, "INTERRUPTS", 1)
    monkeypatch.setattr(bench_live, "WARM_UP_SECONDS", 1.0)
    assert cli.main(["bench", "live", "--seconds", "5", "--json", "live.json"]) == 0
    result = json.loads((tmp_path / "live.json").read_text())
    told = capsys.readouterr().out
    assert result["seconds"] >= 5
    assert result["frames"]["per_second"] > 5  # of 45, not of the 3 that the user has set
    assert result["viewer"]["frames"] > 10
    assert f"{result['frames']['per_second']:.2f} a second" in told
    latency = result["voice_to_frame_ms"]
    assert latency["count"] >= 1 and 50 < latency["median"] <= latency["p95"] < math.inf
    assert result["interrupt_ms"]["count"] == 1 and 0 <= result["interrupt_ms"]["median"] < math.inf
    assert {"all", "event loop", "engine", "encoder"} <= set(result["cpu"])
    assert 0 < result["cpu"]["engine"] < result["cpu"]["all"] < math.inf
    assert result["viewer"]["lip_offset_ms"]["count"] >= 1
