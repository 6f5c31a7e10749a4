"""`ifmdm bench --growth`: what a head costs as its picture grows, as the stream grows long, and as heads grow many.

Size and length are measured without a clock: the stream's loop is told that time passed and does its work as fast as
it can, so processor time is that of one core. A long stream draws one picture a second, since what could grow with
time is not in the pictures: motion, voice and the counting of both run in full. What comes out is checked to the last
bit: every sample of voice against what was pushed, every frame's time against its number.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from engine.head import Model
from engine.portrait import load_portrait
from engine.speech import SAMPLE_RATE, read_voice
from engine.stream import LATENCIES, Latency, StreamCore, StreamFrame, StreamSettings
from plugin import bench_sessions
from plugin import render as clips
from plugin.memory import resident
from plugin.sessions import one_thread_each

PORTRAIT, FPS, SIZE = "ada", 45, 512
SIZES = (256, 384, 512, 640, 768, 1024)
#: Seconds of stream measured at each size, after one to warm up.
SIZE_SECONDS = 6
#: Of a long stream: seconds between two figures.
STEP_SECONDS = 60
#: Of the heads at once: how many, and seconds each.
HEADS, HEADS_SECONDS = 5, 10.0


@dataclass
class Speaker:
    """Keeps a stream speaking: a voice, over and over, pushed a second ahead. sent: samples so far; first: where the
    first of them begins in the stream."""

    core: StreamCore
    voice: np.ndarray
    sent: int = 0
    first: int = field(init=False)

    def __post_init__(self) -> None:
        self.first = self.core.next_position

    def speak(self) -> None:
        at = np.arange(self.sent, self.sent + 2 * SAMPLE_RATE - self.core.backlog) % len(self.voice)
        self.sent += self.core.push(self.voice[at])

    def expected(self, pts: int, length: int) -> np.ndarray:
        """What is to be heard from position `pts` on."""
        at = np.arange(pts - self.first, pts - self.first + length)
        return np.where(at < 0, np.float32(0), self.voice[at % len(self.voice)])


@dataclass
class Exactness:
    """How far frames and sound are from where they belong. frames; samples: given out; wrong: samples that are not
    those that were pushed; apart: most samples between a frame's time and its sound's."""

    frames: int = 0
    samples: int = 0
    wrong: int = 0
    apart: float = 0.0

    def check(self, frame: StreamFrame, speaker: Speaker) -> None:
        self.apart = max(self.apart, abs(float(frame.pts - frame.seconds * SAMPLE_RATE)))
        in_order = frame.index == self.frames and frame.pts == self.samples
        right = speaker.expected(self.samples, len(frame.audio)) == frame.audio
        self.wrong += int(np.count_nonzero(~right)) if in_order else len(frame.audio)
        self.frames += 1
        self.samples += len(frame.audio)


def _core(model: Model, size: int, latency: Latency) -> StreamCore:
    picture = load_portrait(clips.bundled_portraits()[PORTRAIT], max(size, SIZE))
    settings = StreamSettings(FPS, size, latency.pace, latency.cushion)
    return StreamCore(model, model.prepare(picture), settings)


def by_size(model: Model, voice: np.ndarray, latency: Latency, bar: tqdm) -> Iterator[dict]:
    """A second of stream at each size, in milliseconds of one core: all of it, and what the pictures take."""
    for size in SIZES:
        before = resident()
        core = _core(model, size, latency)
        speaker, walls, draws = Speaker(core, voice), [], []
        draw = core._draw

        def drawn(*given, draw=draw, draws=draws, **named):
            began = time.thread_time()
            frame = draw(*given, **named)
            draws.append(time.thread_time() - began)
            return frame

        core._draw = drawn
        for second in range(SIZE_SECONDS + 1):
            speaker.speak()
            if second == 1:
                draws.clear()
            began = time.thread_time()
            for frame in range(FPS):
                core.tick((frame + 1) * SAMPLE_RATE // FPS - frame * SAMPLE_RATE // FPS)
            walls.append(time.thread_time() - began)
            bar.update()
        after = resident()
        yield {
            "size": size,
            "cpu_ms_per_second": round(1000 * float(np.median(walls[1:])), 1),
            "pictures_ms_per_second": round(1000 * float(np.mean(draws)) * FPS, 1),
            "frame_ms_median": round(1000 * float(np.median(draws)), 2),
            "frame_ms_p95": round(1000 * float(np.percentile(draws, 95)), 2),
            "added_mb": None if before is None or after is None else round(after - before),
        }


def by_length(model: Model, voice: np.ndarray, seconds: int, latency: Latency, bar: tqdm) -> dict:
    """A long stream: cost and memory of each of its stretches, and how exact it is."""
    core = _core(model, SIZE, latency)
    speaker, exact, steps = Speaker(core, voice), Exactness(), []
    began, cpu = time.perf_counter(), time.thread_time()
    for second in range(1, seconds + 1):
        speaker.speak()
        for frame in core.tick(SAMPLE_RATE, skip=True):
            exact.check(frame, speaker)
        bar.update()
        if second % STEP_SECONDS == 0 or second == seconds:
            spent, cpu = time.thread_time() - cpu, time.thread_time()
            part = second % STEP_SECONDS or STEP_SECONDS
            held = resident()
            steps.append({"second": second, "cpu_ms_per_second": round(1000 * spent / part, 1),
                          "resident_mb": None if held is None else round(held, 1)})  # fmt: skip
    return {
        "seconds": seconds,
        "took_seconds": round(time.perf_counter() - began, 1),
        "frames": exact.frames,
        "samples": exact.samples,
        "wrong_samples": exact.wrong,
        "samples_apart": round(exact.apart, 3),
        "steps": steps,
    }


def bench_growth(
    seconds: float, latency: str = "interactive", progress: bool = True, backend: str = "auto"
) -> dict:
    """Measure. seconds: of the long stream."""
    model = Model.load(backend=backend)
    voice = read_voice(clips.BUNDLED_VOICE).mono16k()
    length = max(1, round(seconds))
    whole = len(SIZES) * (SIZE_SECONDS + 1) + length
    with one_thread_each(), tqdm(total=whole, file=sys.stderr, disable=not progress, unit=" s", mininterval=1.0) as bar:
        bar.set_description("length")
        long = by_length(model, voice, length, LATENCIES[latency], bar)
        bar.set_description("size")
        sizes = list(by_size(model, voice, LATENCIES[latency], bar))
    heads = bench_sessions.bench_sessions(
        range(1, HEADS + 1), HEADS_SECONDS, latency, progress=progress, backend=backend
    )
    return {"latency": latency, "sizes": sizes, "length": long, "heads": heads["trials"]}


def table(result: dict) -> str:
    """The figures for people to read."""
    long = result["length"]
    first, last = long["steps"][0], long["steps"][-1]
    lines = [
        f"latency {result['latency']}, {FPS} fps; processor time is that of one core",
        "",
        f"{'size':>6}{'ms a second':>13}{'ms a frame':>12}{'p95':>8}{'MB more':>9}",
        *(
            f"{each['size']:>6}{each['cpu_ms_per_second']:>13.1f}{each['frame_ms_median']:>12.2f}"
            f"{each['frame_ms_p95']:>8.2f}{'' if each['added_mb'] is None else each['added_mb']:>9}"
            for each in result["sizes"]
        ),
        "",
        f"{long['seconds']} s of stream in {long['took_seconds']:g} s: {long['frames']} frames, {long['samples']} "
        f"samples, {long['wrong_samples']} of them wrong; sound and picture never more than {long['samples_apart']:g} "
        "samples apart",
        f"a second of it took {first['cpu_ms_per_second']:g} ms at first and {last['cpu_ms_per_second']:g} ms at the "
        f"end; memory {first['resident_mb']} MB and {last['resident_mb']} MB",
        "",
        bench_sessions.trials_table(result["heads"]),
    ]
    return "\n".join(lines)


def add_arguments(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--growth", action="store_true", help="measure what size, length of the stream and number of heads cost"
    )
