"""`ifmdm bench --sessions`: how many heads one process keeps at 45 fps, with one copy of the weights.

Each head is a live stream of its own, as `ifmdm run` makes it, badge and all, on the machine's clock, and speaks
without a pause. All compute in one pool with a thread for each core (or on a GPU for each head: they wait for it
together). Frames are taken at their time and dropped: nothing is encoded. Heads begin apart from each other, as
visitors do: at once they would all make their hops of motion at the same moments.
"""

import argparse
import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from tqdm import tqdm

from engine.head import Model
from engine.motion.timing import LATENT_RATE
from engine.portrait import load_portrait
from engine.speech import read_voice
from engine.stream import LATENCIES, Latency, StreamCore, StreamSettings
from plugin import render as clips
from plugin.badge import Badge
from plugin.bench_live import percentiles, resident
from plugin.live import LiveStream

PORTRAIT, FPS, SIZE = "ada", 45, 512
WARM_UP_SECONDS = 2.0
#: A count of heads holds if each of them made this share of its frames, and was late with less than that.
MADE, LATE = 0.99, 0.01
#: Where `--sessions max` gives up looking for a limit.
MOST = 256
TRIES = 2
REFILL_SECONDS = 1.0


def cores_here() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """OpenCV with one thread a call: heads share the cores among them, not within a picture."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


async def _speak(stream: LiveStream, voice: np.ndarray) -> None:
    while True:
        while stream.push(voice):
            pass
        await asyncio.sleep(REFILL_SECONDS)


async def _watch(stream: LiveStream, lateness: list[float]) -> None:
    async for frame in stream:
        lateness.append(time.monotonic() - frame.time)


async def _trial(
    model: Model, portrait: object, voice: np.ndarray, count: int, seconds: float, latency: Latency, bar: tqdm
) -> dict:  # fmt: skip
    settings = StreamSettings(FPS, SIZE, latency.pace, latency.cushion)
    cores = [StreamCore(model, portrait, settings) for _ in range(count)]
    for core in cores:
        core.tick(core.due(1))  # as at a start; then anew
    cores = [StreamCore(model, portrait, settings) for _ in range(count)]
    badge = Badge(SIZE)
    pool = ThreadPoolExecutor(count if model.backend.gathers else cores_here(), "engine")
    heads = [LiveStream(core, latency.margin, badge.stamp, pool=pool) for core in cores]
    lateness: list[list[float]] = [[] for _ in heads]
    hop = latency.pace.hop / LATENT_RATE
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(pool.shutdown)
        began = time.monotonic()
        for number, head in enumerate(heads):
            # the golden ratio spreads any number of them evenly over a hop
            await asyncio.sleep(began + hop * (number + number * 0.618 % 1) - time.monotonic())
            await stack.enter_async_context(head)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_speak(head, voice)) for head in heads]
            tasks += [group.create_task(_watch(*each)) for each in zip(heads, lateness, strict=True)]
            await asyncio.sleep(WARM_UP_SECONDS)
            for each in lateness:
                each.clear()
            before = [(f.made, f.late, f.undrawn, f.lost, f.resyncs) for f in (head.figures for head in heads)]
            start, cpu = time.monotonic(), time.process_time()
            for _ in range(max(1, round(seconds))):
                await asyncio.sleep(seconds / max(1, round(seconds)))
                bar.update(seconds / max(1, round(seconds)))
            spent, cpu = time.monotonic() - start, time.process_time() - cpu
            after = [(f.made, f.late, f.undrawn, f.lost, f.resyncs) for f in (head.figures for head in heads)]
            held = resident()
            for task in tasks:
                task.cancel()
    figures = np.array(after) - np.array(before)
    made, late, undrawn, lost, resyncs = figures.T
    # what is undrawn was late, and what is lost may have been
    bad = np.minimum(np.maximum(late, undrawn) + lost, made)
    due = FPS * spent
    # time that was given up made no frames at all: those are missing
    worst = float(np.max((bad + np.maximum(0, due - made - 1)) / due))
    return {
        "heads": count,
        "seconds": round(spent, 1),
        "frames_per_second": round(float(np.min(made)) / spent, 2),
        "late_percent": round(100 * float(bad.sum()) / max(1, int(made.sum())), 2),
        "worst_late_percent": round(100 * worst, 2),
        "undrawn": int(undrawn.sum()),
        "lost": int(lost.sum()),
        "resyncs": int(resyncs.sum()),
        "out_after_time_ms": percentiles([each for head in lateness for each in head]),
        "cores_used": round(cpu / spent, 2),
        "resident_mb": None if held is None else round(held),
        "holds": bool(worst < LATE and np.min(made) >= MADE * due - 1),
    }


def bench_sessions(
    counts: Iterable[int], seconds: float, latency: str = "interactive", progress: bool = True, backend: str = "auto"
) -> dict:
    """Measure so many heads at once, for so many seconds each."""
    with _trials(seconds, latency, progress, backend) as trial:
        trials = [trial(count) for count in counts]
    return _result(latency, trials)


def most_sessions(
    seconds: float, latency: str = "interactive", progress: bool = True, backend: str = "auto"
) -> dict:
    """One head, two, ... until a number does not hold. It is tried twice, since something else may have disturbed it
    the first time."""
    trials: list[dict] = []
    with _trials(seconds, latency, progress, backend) as trial:
        for count in range(1, MOST + 1):
            for _ in range(TRIES):
                trials.append(trial(count))
                if trials[-1]["holds"]:
                    break
            else:
                break
    return _result(latency, trials)


@contextlib.contextmanager
def _trials(seconds: float, latency: str, progress: bool, backend: str) -> Iterator[Callable[[int], dict]]:
    """What measures a number of heads."""
    model = Model.load(backend=backend)
    portrait = model.prepare(load_portrait(clips.bundled_portraits()[PORTRAIT], SIZE))
    voice = read_voice(clips.BUNDLED_VOICE).mono16k()
    form = "{desc} {n:.0f} s"
    with one_thread_each(), tqdm(file=sys.stderr, disable=not progress, bar_format=form, mininterval=1.0) as bar:

        def trial(count: int) -> dict:
            bar.set_description(f"{count} heads")
            return asyncio.run(_trial(model, portrait, voice, count, seconds, LATENCIES[latency], bar))

        yield trial


def _result(latency: str, trials: list[dict]) -> dict:
    return {
        "latency": latency,
        "most": max((trial["heads"] for trial in trials if trial["holds"]), default=0),
        "trials": trials,
    }


def trials_table(trials: list[dict]) -> str:
    lines = [f"{'heads':>5}{'fps':>8}{'late %':>8}{'worst %':>9}{'out late ms':>13}{'cores':>7}{'MB':>6}  holds"]
    for each in trials:
        lines.append(
            f"{each['heads']:>5}{each['frames_per_second']:>8.2f}{each['late_percent']:>8.2f}"
            f"{each['worst_late_percent']:>9.2f}{each['out_after_time_ms'].get('p95', 0):>13.1f}"
            f"{each['cores_used']:>7.2f}{each['resident_mb'] or 0:>6}  {'yes' if each['holds'] else 'no'}"
        )
    return "\n".join(lines)


def table(result: dict) -> str:
    """The figures for people to read."""
    return "\n".join([
        f"{SIZE}x{SIZE} at {FPS} fps, latency {result['latency']}, nothing encoded, one process",
        trials_table(result["trials"]),
        f"{result['most']} heads hold {FPS} fps with under {100 * LATE:g} % of any head's frames late",
    ])  # fmt: skip


def heads(text: str) -> int | str:
    """What `--sessions` takes."""
    if text == "max" or (text.isdecimal() and 1 <= int(text) <= MOST):
        return text if text == "max" else int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of heads (1 to {MOST}, or max)")


def add_arguments(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--sessions", type=heads, metavar="N|max", help="measure N heads at once, or find the most that keep up"
    )
