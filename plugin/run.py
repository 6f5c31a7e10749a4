"""`ifmdm run`: a source speaks, the head shows it, any number of outputs at once."""

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil
from statistics import median
from typing import Any, TextIO

import numpy as np

from engine.head import Model, Style
from engine.portrait import load_portrait
from engine.renderer.cpu import CpuRenderer
from engine.speech import SAMPLE_RATE, SpeechInput
from engine.stream import LATENCIES, Renderer, StreamCore, StreamSettings
from plugin.adapters import check_names, make_sinks, make_source
from plugin.badge import Badge
from plugin.live import LiveStream
from plugin.render import BUNDLED_VOICE, PROVENANCE, check_paths, find_portrait
from plugin.settings import Settings
from transports.media import MediaFormat, Sink, Source, TransportError
from transports.recording import RecordingSink

#: A portrait is never prepared smaller than the networks see it, whatever the size of the video.
_PORTRAIT_SIZE = 512
_CHECK_SECONDS = 1.0
_STATUS_SECONDS = 0.5


class Ear:
    """What a source delivers, at any rate, becomes the engine's voice."""

    def __init__(self, stream: LiveStream, live: bool) -> None:
        self._stream, self._live = stream, live
        self._input: SpeechInput | None = None

    def deliver(self, samples: np.ndarray, rate: int) -> bool:
        """As transports.media.Deliver."""
        # a resampler holds back some milliseconds, which may come out with this chunk
        if not self._live and self._stream.room < ceil(len(samples) * SAMPLE_RATE / rate) + SAMPLE_RATE // 50:
            return False
        channels = 1 if samples.ndim == 1 else samples.shape[1]
        if self._input is None or (self._input.rate, self._input.channels) != (rate, channels):
            self.finish()
            self._input = SpeechInput(rate, channels)
        if samples.dtype.kind == "f":
            samples = np.nan_to_num(samples, nan=0.0, posinf=1.0, neginf=-1.0)  # one bad sample must not end a stream
        self._stream.push(self._input.push(samples), self._live)
        return True

    def finish(self) -> None:
        """The rest of what a resampler holds back."""
        if self._input is not None:
            self._stream.push(self._input.finish(), self._live)
            self._input = None


@dataclass
class Show:
    """A live stream with its source and sinks. problems: what is wrong with each right now, by name."""

    stream: LiveStream
    form: MediaFormat
    source: Source | None = None
    sinks: list[Sink] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    tell: Callable[[str], None] = lambda line: None

    def interrupt(self) -> None:
        """Stop speaking, here and in what the sinks hold. In the event loop."""
        self.stream.interrupt()
        for sink in self.sinks:
            sink.interrupt()

    async def run(self, seconds: float, stop: asyncio.Event) -> None:
        """Until `stop` is set, `seconds` (if not 0) are over, or the source ends and all it gave is spoken. Sinks must
        be open; source and sinks are closed at the end, whatever it was. Raises TransportError if one could not
        finish."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_exit(self._close)
            await stack.enter_async_context(self.stream)
            if self.source is not None:
                ear = Ear(self.stream, self.source.live)

                def end() -> None:
                    ear.finish()
                    loop.call_soon_threadsafe(ended.set)

                self.source.open(ear.deliver, end)
            tasks = [
                asyncio.create_task(work)
                for work in (self._pump(), self._watch(), self._spoken(ended), stop.wait(), self._limit(seconds))
            ]
            stack.push_async_callback(_cancel, tasks)
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()

    async def _limit(self, seconds: float) -> None:
        await (asyncio.sleep(seconds) if seconds else asyncio.Event().wait())

    async def _spoken(self, ended: asyncio.Event) -> None:
        await ended.wait()
        while not self.stream.silent:
            await asyncio.sleep(0.05)

    async def _pump(self) -> None:
        async for frame in self.stream:
            for sink in self.sinks:
                sink.send(frame)

    async def _watch(self) -> None:
        """Look after the devices, and keep them in step with the slowest."""
        while True:
            for each in (self.source, *self.sinks):
                if each is None:
                    continue
                problem = await asyncio.to_thread(each.check)
                if problem and problem != self.problems.get(each.name):
                    self.tell(problem)
                elif not problem and self.problems.get(each.name):
                    self.tell(f"{each.name}: works again")
                self.problems[each.name] = problem
            lags = [lag for sink in self.sinks if (lag := sink.lag()) is not None]
            for sink in self.sinks:
                if lags:
                    sink.align(max(lags))
            await asyncio.sleep(_CHECK_SECONDS)

    async def _close(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        """Source first, then all sinks at once: none may keep another from finishing."""
        if self.source is not None:
            self.source.close()
        results = await asyncio.gather(*(asyncio.to_thread(sink.close) for sink in self.sinks), return_exceptions=True)
        failed = [result for result in results if isinstance(result, Exception)]
        if failed and error is None:  # else that one is why
            raise failed[0]

    def status(self, began: float) -> str:
        """One line of figures."""
        figures = self.stream.figures
        minutes, seconds = divmod(int(time.monotonic() - began), 60)
        took = f"{1000 * median(figures.latency):.0f} ms" if figures.latency else "no voice yet"
        parts = [
            f"{minutes}:{seconds:02d}",
            f"{figures.made} frames",
            f"{figures.late} late",
            f"voice to frame {took}",
            *(f"{name}: {problem or 'ok'}" for name, problem in self.problems.items()),
        ]
        return "  ".join(parts)


async def _cancel(tasks: Sequence[asyncio.Task]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def make_show(
    settings: Settings, tell: Callable[[str], None], model: Model | None = None,
    renderer: Callable[[Any, int], Renderer] = CpuRenderer,
) -> Show:  # fmt: skip
    """Everything that the settings ask for, sinks open, nothing running. Raises InputError or TransportError."""
    video, head, live = settings.video, settings.head, settings.live
    check_names(settings)
    picture = find_portrait(head.portrait, head.consent)
    sinks = make_sinks(settings)
    if live.record:
        check_paths(live.record, picture, BUNDLED_VOICE)
        sinks.append(RecordingSink(live.record, {"comment": PROVENANCE, "description": PROVENANCE}))
    source = make_source(settings)
    latency = LATENCIES[live.latency]
    model = model or Model.load()
    core = StreamCore(
        model,
        model.prepare(load_portrait(picture, max(video.size, _PORTRAIT_SIZE))),
        StreamSettings(
            video.fps,
            video.size,
            latency.pace,
            latency.cushion,
            # what a microphone said long ago is of no use
            round(live.backlog * SAMPLE_RATE) if source is None or not source.live else SAMPLE_RATE // 4,
            head.seed,
        ),
        Style(head.intensity, head.pose),
        renderer,
    )
    stream = LiveStream(core, latency.margin, Badge(video.size).stamp if video.badge else None)
    form = MediaFormat(video.size, video.size, video.fps, SAMPLE_RATE)
    show = Show(stream, form, source, tell=tell)
    try:
        for sink in sinks:
            sink.open(form)
            show.sinks.append(sink)
    except Exception:
        for sink in show.sinks:
            with contextlib.suppress(TransportError):  # a recording without a frame
                sink.close()
        raise
    return show


class _Terminal:
    """Lines for a person: what happens on lines of its own, and a status that is written over, on a terminal only."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._live, self._shown = out, out.isatty(), 0

    def tell(self, line: str) -> None:
        self.clear()
        print(f"ifmdm: {line}", file=self._out, flush=True)

    def status(self, line: str) -> None:
        if self._live:
            self.clear()
            self._out.write(line[:200])
            self._out.flush()
            self._shown = min(len(line), 200)

    def clear(self) -> None:
        if self._shown:
            self._out.write("\r" + " " * self._shown + "\r")
            self._shown = 0


async def _run(settings: Settings, terminal: _Terminal, make: Callable[..., Show]) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def leave() -> None:
        if stop.is_set():
            raise KeyboardInterrupt  # the second time: at once, and files are lost
        stop.set()

    # Windows has no such handlers: there Ctrl-C cancels this, which cleans up just the same
    with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, leave)
    show = await asyncio.to_thread(make, settings, terminal.tell)
    shown = ", ".join([*settings.live.outputs, *([settings.live.record] if settings.live.record else [])])
    terminal.tell(
        f"{settings.head.portrait} is live; voice: {settings.live.source}; shown: {shown or 'nowhere'}; "
        f"{LATENCIES[settings.live.latency].seconds:.2f} s from voice to frame; Ctrl-C ends"
    )
    if not shown:
        terminal.tell("nothing shows it: set outputs under [live], or give --outputs or --record FILE")
    began = time.monotonic()

    async def report() -> None:
        while True:
            terminal.status(show.status(began))
            await asyncio.sleep(_STATUS_SECONDS)

    reporter = asyncio.create_task(report())
    try:
        await show.run(settings.live.seconds, stop)
    finally:
        await _cancel([reporter])
        terminal.clear()
    terminal.tell(f"ended after {show.status(began)}")


def run(settings: Settings, make: Callable[..., Show] = make_show, out: TextIO | None = None) -> None:
    """Run the live head until it is stopped. Ctrl-C and SIGTERM are the normal end: devices are released and the
    recording is finished. Raises InputError or TransportError for what cannot be used."""
    asyncio.run(_run(settings, _Terminal(out or sys.stderr), make))
