"""`ifmdm bench live`: the whole live head on this machine, for a while, with one WebRTC viewer.

The head runs here as `ifmdm run` makes it, with its server. A microphone is played by a task that delivers 20 ms at a
time on the clock: words and pauses. A viewer watches over WHEP from a process of its own, so that what it costs is not
counted, though it takes its share of the machine. With each word that begins, the bench paints a white square into the
corner of its frame: the viewer finds both, and so the distance between lips and voice.

Latency is from the moment a word's first chunk was delivered until the frame that carries its first sound is out.
"""

import argparse
import asyncio
import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from engine.speech import SAMPLE_RATE, read_voice
from plugin.memory import resident
from plugin.render import BUNDLED_VOICE
from plugin.run import Show, make_show
from plugin.settings import settings_for_measuring
from transports.media import LazySink, MediaFormat, MediaFrame, Sink, TransportError

CHUNK_SECONDS = 0.02
#: A word and the pause after it; a frame louder than this has begun a word if the pause was this long at least.
WORD_SECONDS, PAUSE_SECONDS = 0.8, 0.7
LOUD, QUIET_SECONDS = 0.05, 0.3
#: Side of the square that the viewer looks for, as a share of the picture's: large enough to survive encoding.
SQUARE = 8
WARM_UP_SECONDS = 4.0
INTERRUPTS, SPOKEN_SECONDS, LISTEN_SECONDS = 10, 1.2, 0.6
#: The sound of a program that is interrupted.
PROGRAM_SECONDS = 5.0
VIEWER_SECONDS = 30.0  # to come up


@dataclass
class Probe(LazySink):
    """Sees what every other sink is given. words: when the frames that begin one were out; loud: when the last frame
    with a voice was; gaps: seconds between pictures."""

    name = "bench"
    fps: int = 45
    words: list[float] = field(default_factory=list)
    loud: float = 0.0
    gaps: list[float] = field(default_factory=list)
    lateness: list[float] = field(default_factory=list)
    _quiet_since: int = -(10**9)
    _last: float = 0.0
    _word: bool = False

    def open(self, form: MediaFormat) -> None:
        self.fps = form.fps

    def send(self, frame: MediaFrame) -> None:
        now = time.monotonic()
        if self._last:
            self.gaps.append(now - self._last)
        self._last = now
        self.lateness.append(now - frame.time)
        self._word = False
        if len(frame.audio) and np.abs(frame.audio).max() > LOUD:
            self._word = frame.pts - self._quiet_since > QUIET_SECONDS * SAMPLE_RATE
            if self._word:
                self.words.append(now)
            self._quiet_since, self.loud = frame.pts + len(frame.audio), now

    def marked(self, frame: MediaFrame) -> MediaFrame:
        """The frame, after `send`, with a square if a word begins in it."""
        if frame.image is None:
            return frame
        image, side = frame.image.copy(), frame.image.shape[0] // SQUARE
        image[:side, :side] = 255 if self._word else 0
        return replace(frame, image=image)

    def close(self) -> None:
        pass


@dataclass
class Marked(LazySink):
    """A sink behind the probe, whose pictures are marked."""

    probe: Probe
    sink: Sink

    @property
    def name(self) -> str:
        return self.sink.name

    def open(self, form: MediaFormat) -> None:
        self.sink.open(form)

    def send(self, frame: MediaFrame) -> None:
        self.sink.send(self.probe.marked(frame))

    def interrupt(self) -> None:
        self.sink.interrupt()

    def check(self) -> str:
        return self.sink.check()

    def close(self) -> None:
        self.sink.close()


def words(voice: np.ndarray) -> Iterator[tuple[np.ndarray, bool]]:
    """Chunks (320,) of a voice for ever, and whether a word begins with it: words of the voice, loud from their first
    sample on, and silence between them."""
    size, length = int(CHUNK_SECONDS * SAMPLE_RATE), int(WORD_SECONDS * SAMPLE_RATE)
    pause = np.zeros(int(PAUSE_SECONDS * SAMPLE_RATE) // size * size, np.float32)
    at = 0
    while True:
        loud = np.flatnonzero(np.abs(voice[at : len(voice) - length]) > 3 * LOUD)
        if not len(loud):
            at = 0
            continue
        at += int(loud[0])
        word = voice[at : at + length // size * size]
        at += length
        for place, chunk in enumerate(np.concatenate([word, pause]).reshape(-1, size)):
            yield chunk, place == 0


@dataclass
class Microphone:
    """Delivers words on the clock. said: when each word's first chunk was delivered."""

    said: list[float] = field(default_factory=list)

    async def speak(self, show: Show, voice: np.ndarray) -> None:
        ear = show.invite(live=True)
        begin, sent = time.monotonic(), 0
        for chunk, first in words(voice):
            sent += len(chunk)
            # a microphone delivers a chunk when its last sample was heard
            await asyncio.sleep(max(0.0, begin + sent / SAMPLE_RATE - time.monotonic()))
            if first:
                self.said.append(time.monotonic())
            ear.deliver(chunk, SAMPLE_RATE)


async def interrupts(show: Show, probe: Probe, voice: np.ndarray, bar: tqdm) -> list[float]:
    """Seconds from each of some interrupts of a speaking program until the last frame with its voice was out."""
    took = []
    for _ in range(INTERRUPTS):
        ear = show.invite(live=False)
        ear.deliver(voice[: int(PROGRAM_SECONDS * SAMPLE_RATE)], SAMPLE_RATE)
        ear.finish()
        await asyncio.sleep(SPOKEN_SECONDS)
        asked = time.monotonic()
        show.interrupt()
        await asyncio.sleep(LISTEN_SECONDS)
        took.append(max(0.0, probe.loud - asked))
        ear.leave()
        bar.update(SPOKEN_SECONDS + LISTEN_SECONDS)
    return took


@dataclass(frozen=True)
class Cost:
    """What this process has used so far, in seconds of processor time: all of it, and by thread."""

    whole: float
    threads: dict[str, float]

    @classmethod
    def now(cls) -> "Cost":
        threads: dict[str, float] = {}
        tick = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0
        for thread in threading.enumerate():
            with contextlib.suppress(OSError, ValueError, IndexError):  # not Linux, or it just ended
                fields = Path(f"/proc/self/task/{thread.native_id}/stat").read_text().rpartition(")")[2].split()
                name = thread.name.split("_")[0]
                threads[name] = threads.get(name, 0.0) + (int(fields[11]) + int(fields[12])) / tick
        return cls(time.process_time(), threads)

    def since(self, before: "Cost", seconds: float) -> dict[str, float]:
        """Parts of one core."""
        names = {"MainThread": "event loop", "engine": "engine", "webrtc": "encoder"}
        parts = {
            name: (self.threads[thread] - before.threads.get(thread, 0.0)) / seconds
            for thread, name in names.items()
            if thread in self.threads
        }
        return {"all": (self.whole - before.whole) / seconds} | parts


def percentiles(values: list[float], scale: float = 1000.0) -> dict[str, float]:
    if not values:
        return {"count": 0}
    median, p95 = np.percentile(np.array(values) * scale, [50, 95])
    return {"count": len(values), "median": round(float(median), 1), "p95": round(float(p95), 1)}


def latencies(said: list[float], out: list[float]) -> list[float]:
    """Seconds from each word to the frame that begins it, which is the next one within 2 s."""
    found = []
    for moment in said:
        after = [when for when in out if moment <= when < moment + 2]
        if after:
            found.append(after[0] - moment)
    return found


@contextlib.asynccontextmanager
async def _viewing(address: str) -> AsyncIterator[Callable[[], Awaitable[dict]]]:
    """Somebody watches from another process. Call what is given to have them leave and tell what they saw."""
    command = [sys.executable, "-m", "plugin.bench_viewer", f"{address}whep"]
    where = Path(__file__).parents[1]
    pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
    process = await asyncio.create_subprocess_exec(*command, **pipes, cwd=where)

    async def leave() -> dict:
        process.stdin.close()
        async with asyncio.timeout(VIEWER_SECONDS):
            return json.loads(await process.stdout.read())

    try:
        async with asyncio.timeout(VIEWER_SECONDS):
            if not await process.stdout.readline():
                raise TransportError("the viewer of the bench did not start; `ifmdm doctor` tells what is missing")
        yield leave
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _measure(seconds: float, latency: str, backend: str, bar: tqdm) -> dict:
    flags = {"server.port": "0", "server.host": "127.0.0.1", "live.source": "none", "live.latency": latency}
    settings = settings_for_measuring(flags | {"engine.backend": backend})
    began = time.monotonic()
    told: list[str] = []
    show = await asyncio.to_thread(partial(make_show, settings, told.append))
    ready = time.monotonic() - began
    probe, microphone = Probe(), Microphone()
    show.sinks[:] = [probe, *(Marked(probe, sink) for sink in show.sinks)]
    probe.open(show.form)
    voice = read_voice(BUNDLED_VOICE).mono16k()
    stop = asyncio.Event()
    result: dict = {}

    async def watched(leave: Callable[[], Awaitable[dict]]) -> None:
        await asyncio.sleep(WARM_UP_SECONDS)
        for kept in (probe.words, probe.gaps, probe.lateness, microphone.said):
            kept.clear()
        before, cost, start = show.figures(), Cost.now(), time.monotonic()
        for _ in range(max(1, round(seconds))):
            await asyncio.sleep(seconds / max(1, round(seconds)))
            bar.update(seconds / max(1, round(seconds)))
        after, spent = show.figures(), time.monotonic() - start
        result["cpu"] = {name: round(value, 3) for name, value in Cost.now().since(cost, spent).items()}
        result["seconds"] = round(spent, 1)
        frames = after["frames"] - before["frames"]
        result["frames"] = {
            "per_second": round(frames / spent, 2),
            **{name: int(after[f"frames_{name}"] - before[f"frames_{name}"]) for name in ("late", "undrawn", "lost")},
            "resyncs": int(after["resyncs"] - before["resyncs"]),
        }
        bad = result["frames"]["late"] + result["frames"]["lost"]
        result["frames"]["late_or_lost_percent"] = round(100 * bad / max(1, frames), 2)
        result["out_after_time_ms"] = percentiles(probe.lateness)
        result["work_ms"] = {"median": round(1000 * after["work_seconds_median"], 1),
                             "p95": round(1000 * after["work_seconds_p95"], 1)}  # fmt: skip
        result["voice_to_frame_ms"] = percentiles(latencies(microphone.said, probe.words))
        result["resident_mb"] = None if (held := resident()) is None else round(held)
        result["viewer"] = await leave()

    async def work() -> None:
        while not any(line.startswith("open ") for line in told):
            await asyncio.sleep(0.05)
        address = next(line for line in told if line.startswith("open ")).split()[1]
        speaker = asyncio.create_task(microphone.speak(show, voice))
        async with _viewing(address) as leave:
            await watched(leave)
        speaker.cancel()
        await asyncio.gather(speaker, return_exceptions=True)
        show.floor.speaker = None
        show.interrupt()
        await asyncio.sleep(LISTEN_SECONDS)
        result["interrupt_ms"] = percentiles(await interrupts(show, probe, voice, bar))
        stop.set()

    async def worked(_: Show) -> None:
        await work()

    show.services.append(worked)
    await show.run(0, stop)
    return {"latency": latency, "ready_seconds": round(ready, 2)} | result


def bench_live(
    seconds: float, latency: str = "interactive", progress: bool = True, backend: str = "auto"
) -> dict:
    """Measure for so many seconds. Raises InputError or TransportError."""
    whole = seconds + INTERRUPTS * (SPOKEN_SECONDS + LISTEN_SECONDS)
    form = "live {bar} {n:.0f}/{total:.0f} s"
    with tqdm(total=whole, file=sys.stderr, disable=not progress, bar_format=form, mininterval=1.0) as bar:
        return asyncio.run(_measure(seconds, latency, backend, bar))


def table(result: dict) -> str:
    """The figures for people to read."""

    def ms(name: str, figures: dict) -> str:
        if not figures.get("count", 1):
            return f"{name:<28}not measured"
        count = f" of {figures['count']}" if "count" in figures else ""
        return f"{name:<28}median {figures['median']:.1f} ms, p95 {figures['p95']:.1f} ms{count}"

    frames, viewer = result["frames"], result["viewer"]
    lines = [
        f"{result['seconds']:g} s of the live head, latency {result['latency']}, one WebRTC viewer",
        f"{'frames':<28}{frames['per_second']:.2f} a second; late {frames['late']}, without a picture "
        f"{frames['undrawn']}, lost {frames['lost']}: {frames['late_or_lost_percent']:.2f} % late or lost",
        ms("frame out after its time", result["out_after_time_ms"]),
        ms("engine's work a tick", result["work_ms"]),
        ms("voice in to frame out", result["voice_to_frame_ms"]),
        ms("interrupt to silence", result["interrupt_ms"]),
        f"{'viewer receives':<28}{viewer['per_second']:.2f} frames a second, longest gap "
        f"{viewer['longest_gap_ms']:.0f} ms, first after {viewer['first_frame_seconds']:.2f} s",
        ms("lips after voice at viewer", viewer["lip_offset_ms"]),
        f"{'processor, of one core':<28}" + ", ".join(f"{name} {part:.2f}" for name, part in result["cpu"].items()),
        f"{'memory':<28}{result['resident_mb']} MB" if result["resident_mb"] else "",
    ]
    return "\n".join(line for line in lines if line)


def add_arguments(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("live", nargs="?", choices=("live",), help="measure the live head with a viewer instead")
