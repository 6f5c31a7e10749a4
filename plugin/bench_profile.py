"""`ifmdm bench --profile`: where the time of a frame goes.

Every call of OpenCV and every mixing of fields that the CPU's renderer makes is timed, over frames of the bundled voice
as they are drawn live, in processor time of one core, in which nobody else's work is.
"""

import argparse
import contextlib
import inspect
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from engine.head import Model
from engine.portrait import load_portrait
from engine.renderer import cpu
from engine.speech import SAMPLE_RATE, read_voice
from engine.stream import LATENCIES, StreamCore, StreamSettings
from plugin import render as clips
from plugin.sessions import one_thread_each

PORTRAIT, FPS, SIZE = "ada", 45, 512
#: Of the bundled voice, after WARM_UP_SECONDS.
SECONDS, WARM_UP_SECONDS = 6.0, 1.0
#: (the renderer's method, what it calls) -> part of a frame, in the order of work. Other calls are the rest.
PARTS = {
    ("_spread", "mix"): "mixing of fields",
    ("_move", "mix"): "mixing of fields",
    ("_paint", "mix"): "mixing of fields",
    ("_spread", "resize"): "enlarging",
    ("_move", "resize"): "enlarging",
    ("_paint", "resize"): "enlarging",
    ("_move", "remap"): "look-ups on the canvas",
    ("_paint", "remap"): "look-ups on the canvas",
    ("render", "remap"): "last look-up: the portrait's pixels",
    ("render", "extractChannel"): "background",
    ("render", "shine"): "background",
    ("render", "cvtColor"): "background",
    ("render", "add"): "background",
    ("_paint", "cvtColor"): "painting",
    ("_paint", "extractChannel"): "painting",
    ("_paint", "merge"): "painting",
    ("_paint", "multiply"): "painting",
    ("_paint", "add"): "painting",
}
REST = "all the rest"


@dataclass
class Clock:
    """Stands where the renderer looks for OpenCV, and times what it calls. spent: seconds by part, of one frame."""

    module: Any
    spent: Counter[str] = field(default_factory=Counter)

    def timed(self, name: str, call: Callable) -> Callable:
        def run(*given: Any, **named: Any) -> Any:
            caller = inspect.currentframe().f_back.f_code.co_name
            began = time.thread_time()
            try:
                return call(*given, **named)
            finally:
                self.spent[PARTS.get((caller, name), REST)] += time.thread_time() - began

        return run

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.module, name)
        if inspect.isroutine(found):
            found = self.timed(name, found)
        setattr(self, name, found)  # found at once the next time
        return found


@contextlib.contextmanager
def timed() -> Iterator[Clock]:
    """The renderer's calls are timed meanwhile."""
    clock, plain = Clock(cpu.cv2), (cpu.cv2, cpu.mix, cpu.shine)
    cpu.cv2, cpu.mix, cpu.shine = clock, clock.timed("mix", cpu.mix), clock.timed("shine", cpu.shine)
    try:
        yield clock
    finally:
        cpu.cv2, cpu.mix, cpu.shine = plain


def bench_profile(seconds: float, progress: bool = True) -> dict:
    """Draw so many seconds; milliseconds of each part of a frame."""
    model, latency = Model.load(backend="cpu"), LATENCIES["interactive"]
    portrait = model.prepare(load_portrait(clips.bundled_portraits()[PORTRAIT], SIZE))
    core = StreamCore(model, portrait, StreamSettings(FPS, SIZE, latency.pace, latency.cushion))
    core.push(read_voice(clips.BUNDLED_VOICE).mono16k())
    frames: list[Counter[str]] = []
    draw = core._renderer.render
    with one_thread_each(), timed() as clock:

        def drawn(coefficients: np.ndarray) -> np.ndarray:
            clock.spent = Counter()
            began = time.thread_time()
            image = draw(coefficients)
            whole = time.thread_time() - began
            parts = sum(clock.spent.values()) - clock.spent[REST]
            frames.append(clock.spent | Counter({REST: whole - parts}))
            return image

        core._renderer.render = drawn
        core.tick(round(WARM_UP_SECONDS * SAMPLE_RATE))
        frames.clear()
        ticks = max(1, round(seconds * FPS))
        for _ in tqdm(range(ticks), "frames", file=sys.stderr, disable=not progress, mininterval=1.0):
            core.tick(SAMPLE_RATE // FPS)
    parts = {part: [1000 * each[part] for each in frames] for part in (*dict.fromkeys(PARTS.values()), REST)}
    whole = [1000 * sum(each.values()) for each in frames]

    def told(values: list[float]) -> dict[str, float]:
        median, p95 = np.percentile(values, [50, 95])
        figures = {"mean": np.mean(values), "median": median, "p95": p95}
        return {name: round(float(value), 3) for name, value in figures.items()}

    parts_ms = {part: told(values) for part, values in parts.items()}
    return {"size": SIZE, "frames": len(frames), "frame_ms": told(whole), "parts_ms": parts_ms}


def table(result: dict) -> str:
    """The figures for people to read."""
    rows = result["parts_ms"] | {"a frame": result["frame_ms"]}
    return "\n".join([
        f"{result['frames']} frames of {result['size']}x{result['size']}, ms of processor time of one core",
        f"{'part':<38}{'mean':>7}{'median':>8}{'p95':>7}{'share':>8}",
        *(
            f"{name:<38}{each['mean']:>7.2f}{each['median']:>8.2f}{each['p95']:>7.2f}"
            f"{each['mean'] / result['frame_ms']['mean']:>8.0%}"
            for name, each in rows.items()
        ),
    ])  # fmt: skip


def add_arguments(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--profile", action="store_true", help="measure where the time of a frame goes")
