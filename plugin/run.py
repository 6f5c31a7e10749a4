"""`ifmdm run`: a source speaks, the head shows it, any number of outputs at once."""

import asyncio
import contextlib
import logging
import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from math import ceil, inf
from pathlib import Path
from statistics import median
from typing import Any, TextIO

import numpy as np

from engine.decoder import Decoder, DecoderError
from engine.head import Model, Style
from engine.model import find_weights
from engine.portrait import Portrait, load_portrait
from engine.renderer.backdrop import Backdrop
from engine.speech import SAMPLE_RATE, SpeechInput, is_silent
from engine.stream import LATENCIES, Renderer, StreamCore, StreamSettings
from plugin import signals, worker
from plugin.adapters import check_names, make_sinks, make_source
from plugin.badge import Badge
from plugin.live import LiveStream
from plugin.log import Terminal, logging_to
from plugin.render import PROVENANCE, bundled_portraits, check_record, find_portrait
from plugin.settings import Settings, check_server
from transports.file import encoder_note
from transports.media import (
    CLOSE_SECONDS,
    Failing,
    Interruptible,
    MediaFormat,
    Probed,
    Sink,
    Source,
    TransportError,
)
from transports.recording import RecordingSink, cut_off, next_take

#: A portrait is never prepared smaller than the networks see it, whatever the size of the video.
_PORTRAIT_SIZE = 512
#: Pictures that are decoded, and portraits that are prepared, at once; each takes a core.
READERS, MAKERS = 2, 2
_CHECK_SECONDS = 1.0
#: How long devices may take to be looked after, and a source to be closed, until the others go on without them.
ANSWER_SECONDS = 3.0
#: How long the start may take to notice that it is to end.
STOP_SECONDS = 10.0
#: A second Ctrl-C is one that comes so long after the first; before, it is the same one that came on two ways.
AGAIN_SECONDS = 0.5
#: A guest louder than this speaks; a muted or idle microphone is below.
GUEST_SILENCE_DB = -50.0
_STATUS_SECONDS = 0.5
#: With more frames than the first share late or never made in the last looks, the machine is too slow; with fewer than
#: the second, it is fast enough again. That takes so many seconds to tell, and is logged again after so many.
SLOW_SHARE, SWIFT_SHARE, SLOW_LOOKS = 0.25, 0.1, 10
SLOW_SECONDS, SLOW_AGAIN_SECONDS = 3.0, 60.0
#: A look that comes so late tells nothing about speed: the process was stopped, or the machine slept.
STILL_SECONDS = 2.5


_log = logging.getLogger(__name__)


class Floor:
    """Who may speak: the house (the source of the settings) until a guest does, and again when no guest has the floor.

    speaker: the guest that is heard. ceded: it has said what it had to say, and another guest may take the floor; the
    house waits until it leaves."""

    def __init__(self) -> None:
        self.speaker: Ear | None = None
        self.ceded = False

    def ask(self, ear: "Ear", samples: np.ndarray) -> None:
        """A guest gets the floor with the first sound, not by being there."""
        if is_silent(samples, GUEST_SILENCE_DB):
            return
        if self.speaker is ear:
            self.ceded = False
        elif self.speaker is None or self.ceded:
            self.speaker, self.ceded = ear, False
            ear.hush()


class Ear:
    """What a source delivers, at any rate, becomes the engine's voice."""

    def __init__(
        self, stream: LiveStream, live: bool, floor: Floor | None = None, guest: bool = False,
        hush: Callable[[], None] = lambda: None,
    ):  # fmt: skip
        """live: see engine/stream.py. guest: speaks before the house. hush: stops what is being spoken; called when a
        guest gets the floor, or goes in the middle of what it said."""
        self.guest, self.hush = guest, hush
        self._stream, self._live, self._floor = stream, live, floor or Floor()
        self._input: SpeechInput | None = None
        self._made: list[np.ndarray] = []  # out of the resampler, and not in the stream yet
        self._generation = stream.generation  # of what the resampler holds back, and of what was made

    @property
    def heard(self) -> bool:
        """Whether what is delivered is spoken."""
        return self._floor.speaker is (self if self.guest else None)

    @property
    def unspoken(self) -> float:
        """Seconds until the last of what was delivered is out; 0 if it is, or goes unheard."""
        return self._stream.unspoken / SAMPLE_RATE if self.heard else 0.0

    def cede(self) -> None:
        """A guest has said what it had to say: another may speak now, the house once this one leaves."""
        if self._floor.speaker is self:
            self._floor.ceded = True

    def leave(self) -> None:
        """A guest goes, or was not heard for so long that others may speak. It gets the floor again with the next
        sound, if it is free."""
        if self._floor.speaker is self:
            self._floor.speaker, self._floor.ceded = None, False

    def abandon(self) -> None:
        """A guest is gone in the middle of what it said: the rest is not spoken."""
        if self._floor.speaker is self:
            self.hush()
        self.leave()

    def deliver(self, samples: np.ndarray, rate: int) -> bool:
        """As transports.media.Deliver. What somebody says who has not the floor is taken and goes unheard, and so is
        what was on its way here during an interrupt."""
        if samples.dtype.kind == "f":
            samples = np.nan_to_num(samples, nan=0.0, posinf=1.0, neginf=-1.0)  # one bad sample must not end a stream
        if self.guest:
            self._floor.ask(self, samples)
        # before the look at the floor: who takes it from the house, in another thread, interrupts
        generation = self._stream.generation
        if not self.heard:
            return True
        self._forget_stale(generation)
        # a resampler holds back some milliseconds, which may come out with this chunk
        if not self._live and self._stream.room < ceil(len(samples) * SAMPLE_RATE / rate) + SAMPLE_RATE // 50:
            return False
        if not self._pass_on():
            return False
        channels = 1 if samples.ndim == 1 else samples.shape[1]
        if self._input is None or (self._input.rate, self._input.channels) != (rate, channels):
            if not self.finish():
                return False
            self._input = SpeechInput(rate, channels)
        self._made.append(self._input.push(samples))
        self._pass_on()
        return True

    def finish(self) -> bool:
        """No more comes for now: what a resampler holds back is spoken, if this is heard. False as long as there is no
        room for it: ask again."""
        generation = self._stream.generation
        if not self.heard:
            self._input, self._made = None, []
            return True
        self._forget_stale(generation)
        if self._input is not None:
            self._made.append(self._input.finish())
            self._input = None
        return self._pass_on()

    def _forget_stale(self, generation: int) -> None:
        """What was made before an interrupt is not spoken after it."""
        if generation != self._generation:
            self._input, self._made, self._generation = None, [], generation

    def _pass_on(self) -> bool:
        """Whether all that was made is in the stream: in order, a piece as a whole or not at all."""
        while self._made and self._stream.push_whole(self._made[0], self._live, self._generation):
            self._made.pop(0)
        return not self._made


@dataclass
class Punctuality:
    """Whether the machine keeps up with frames like `form`. problem: a line, "" if it does."""

    form: MediaFormat
    problem: str = ""
    _looks: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=SLOW_LOOKS))  # seconds, share late
    _last: tuple[float, int, int] | None = None
    _told: float = -inf

    @property
    def late(self) -> float:
        """The share of the frames of the last looks that were late or never made. A look counts as much as another, so
        that a machine that slept for an hour was not slow."""
        return sum(share for _, share in self._looks) / max(1, len(self._looks))

    def look(self, now: float, made: int, late: int) -> bool:
        """Whether the problem is to be logged. now: seconds; made, late: frames so far."""
        before, self._last = self._last, (now, made, late) if made else None  # the first takes as long as it takes
        if before is None or made == before[1]:  # a head that makes none has stalled, which is something else
            return False
        seconds, in_time = now - before[0], (made - late) - (before[1] - before[2])
        if seconds > STILL_SECONDS:  # the machine stood still, which is something else again
            return False
        self._looks.append((seconds, min(1.0, max(0.0, 1 - in_time / (seconds * self.form.fps)))))
        span = sum(seconds for seconds, _ in self._looks)
        if span < SLOW_SECONDS or self.late <= (SWIFT_SHARE if self.problem else SLOW_SHARE):
            self.problem = ""
            return False
        again = now - self._told >= SLOW_AGAIN_SECONDS
        if again or not self.problem:
            self.problem = self._explained(span)
        self._told = now if again else self._told
        return again

    def _explained(self, span: float) -> str:
        form = self.form
        less = " or ".join(["--fps 25"] * (form.fps > 25) + ["--size 256"] * (form.width > 256))
        mend = f"try {less}" if less else "close other programs"
        return (
            f"too slow for {form.fps} fps at {form.width}: {100 * self.late:.0f} % of the frames of the last "
            f"{span:.0f} s came late; {mend}"
        )


@dataclass
class Show:
    """A live stream with its source and sinks. problems: what is wrong with each right now, by name. services: what
    runs beside it in the event loop, such as a server; each is called with the show, which ends when one of them ends.
    Sinks may come and go while it runs (add them open). prepare: a picture, as file, bytes or portrait, whose use
    somebody may agree to -> what LiveStream.make_renderer takes. tell: is told what happens; alert: what is wrong, else
    tell is. portrait: what the face is called; style: as it is now. listeners: called at an interrupt, before it
    happens, for what waits outside the stream. studio: makes other heads of the same weights; face: the first one,
    prepared; own: the portrait of that, where it is not bundled."""

    stream: LiveStream
    form: MediaFormat
    source: Source | None = None
    sinks: list[Sink] = field(default_factory=list)
    services: list[Callable[["Show"], Awaitable[None]]] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    tell: Callable[[str], None] = lambda line: None
    alert: Callable[[str], None] | None = None
    prepare: Callable[[Path | bytes | Portrait], Any] | None = None
    floor: Floor = field(default_factory=Floor)
    portrait: str = ""
    style: Style = field(default_factory=Style)
    listeners: list[Callable[[], None]] = field(default_factory=list)
    studio: "Studio | None" = None
    face: Any = None
    own: Portrait | None = None
    _failed: set[str] = field(default_factory=set, init=False)  # names, since all were last looked after

    def interrupt(self) -> None:
        """Stop speaking, here, in what the sinks hold and in what guests sent ahead. In the event loop. Where nothing
        was said since the last one, it costs nothing."""
        for listen in self.listeners:
            listen()
        if isinstance(self.source, Interruptible) and self.floor.speaker is None:
            self._call(self.source, self.source.interrupt)
        self._hush()

    def _hush(self) -> None:
        if self.stream.interrupt():  # else the sinks were given nothing but silence since the last time
            for sink in self.sinks:
                self._call(sink, sink.interrupt)

    def invite(self, live: bool = True) -> Ear:
        """An ear for a guest's voice: the house is interrupted when the guest begins to speak, and silent until it
        leaves (Ear.leave). Deliver to it in the event loop."""
        return Ear(self.stream, live, self.floor, guest=True, hush=self._hush)

    async def change_portrait(self, picture: Path | bytes | Portrait, name: str = "") -> Any:
        """Show another face, prepared beside the running one, and give it back. Raises PortraitError, the old face
        staying."""
        face = await self._work(self.prepare, picture)
        await self.show_face(face, name)
        return face

    async def show_face(self, face: Any, name: str) -> None:
        """Show a face that is prepared. Making what draws it takes its time, too, which the stream must not lose."""
        self.stream.change_portrait(face, await self._work(self.stream.make_renderer, face))
        self.portrait = name

    async def _work(self, call: Callable[..., Any], *given: Any) -> Any:
        return await (self.studio.work(call, *given) if self.studio else asyncio.to_thread(call, *given))

    def restyle(self, **changes: Any) -> None:
        """Change the intensity or the pose; see engine.head.Style."""
        self.style = replace(self.style, **changes)
        self.stream.restyle(self.style)

    def figures(self) -> dict[str, float]:
        """For health and metrics: counts since the start, and the latest seconds."""
        each = self.stream.figures

        def percentile(values: Collection[float], part: float) -> float:
            return float(np.percentile(list(values), part)) if values else 0.0

        return {
            "frames": each.made,
            "frames_undrawn": each.undrawn,
            "frames_late": each.late,
            "frames_lost": each.lost,
            "resyncs": each.resyncs,
            "interrupts": each.interrupts,
            "backlog_seconds": self.stream.backlog / SAMPLE_RATE,
            "latency_seconds_median": percentile(each.latency, 50),
            "latency_seconds_p95": percentile(each.latency, 95),
            "work_seconds_median": percentile(each.work, 50),
            "work_seconds_p95": percentile(each.work, 95),
            "problems": sum(map(bool, self.problems.values())),
        }

    async def run(self, seconds: float, stop: asyncio.Event, opened: Callable[[], None] = lambda: None) -> None:
        """Until `stop` is set, `seconds` (if not 0) are over, or the source ends and all it gave is spoken. Sinks must
        be open; source and sinks are closed at the end, whatever it was. opened: is called once the source is open,
        too. Raises TransportError if one could not be opened or finish."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_exit(self.close)
            await stack.enter_async_context(self.stream)
            ear = Ear(self.stream, self.source is not None and self.source.live, self.floor)
            if self.source is not None:
                self.source.open(ear.deliver, lambda: loop.call_soon_threadsafe(ended.set))
            opened()
            work = [self._pump(), self._watch(), self._spoken(ear, ended), stop.wait(), self._limit(seconds)]
            tasks = [asyncio.ensure_future(each) for each in (*work, *(serve(self) for serve in self.services))]
            stack.push_async_callback(_cancel, tasks)
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()

    async def _limit(self, seconds: float) -> None:
        await (asyncio.sleep(seconds) if seconds else asyncio.Event().wait())

    async def _spoken(self, ear: Ear, ended: asyncio.Event) -> None:
        """Until all is out that a source gave whose end is told."""
        await ended.wait()
        while not (ear.finish() and self.stream.silent):
            await asyncio.sleep(0.05)
        if isinstance(self.source, Failing) and self.source.failure:
            raise TransportError(self.source.failure)

    async def _pump(self) -> None:
        async for frame in self.stream:
            for sink in self.sinks:
                self._call(sink, sink.send, frame)

    async def _watch(self) -> None:
        """Look after the devices, and keep them in step with the slowest."""
        resyncs, pace, warn = 0, Punctuality(self.form), self.alert or self.tell
        checks: dict[int, asyncio.Future] = {}  # of those that have not answered, by id
        while True:
            figures, late = self.stream.figures, pace.late
            if pace.look(time.monotonic(), figures.made, figures.late):
                warn(pace.problem)
            if pace.problem or "speed" in self.problems:
                self.problems["speed"] = pace.problem
            if figures.resyncs > resyncs:
                resyncs = figures.resyncs
                if late <= SLOW_SHARE:  # else it did not stand still, but has too much to do
                    warn("the machine stood still for a while; time goes on from now")
            failed, self._failed = self._failed, set()
            devices = [each for each in (self.source, *self.sinks) if each is not None]
            late_ones = checks
            checks = {id(each): checks.get(id(each)) or worker.begin(each.check, name="check") for each in devices}
            fresh = [check for each, check in checks.items() if each not in late_ones]
            if fresh:
                await asyncio.wait(fresh, timeout=ANSWER_SECONDS)
            for each in devices:
                if not checks[id(each)].done():  # it is not asked again until it has answered
                    self._report(each.name, f"{each.name}: its driver does not answer")
                    continue
                try:
                    problem = checks.pop(id(each)).result()
                except Exception as error:
                    self._blame(each, error)
                    continue
                if problem or each.name not in failed:  # to find nothing wrong is not to have mended what just failed
                    self._report(each.name, problem)
            lags = [lag for sink in self.sinks if (lag := self._call(sink, sink.lag)) is not None]
            for sink in self.sinks:
                if lags:
                    self._call(sink, sink.align, max(lags))
            await asyncio.sleep(_CHECK_SECONDS)

    def _call(self, device: Source | Sink, call: Callable[..., Any], *given: Any) -> Any:
        """What it comes to; None if it fails, in which case the others go on."""
        try:
            return call(*given)
        except Exception as error:  # of a package that is not ours
            self._blame(device, error)
            return None

    def _blame(self, device: Source | Sink, error: Exception) -> None:
        self._failed.add(device.name)
        self._report(device.name, f"{device.name}: {type(error).__name__}: {error}")

    def _report(self, name: str, problem: str) -> None:
        """Keep what is wrong, and tell it once."""
        if problem and problem != self.problems.get(name):
            (self.alert or self.tell)(problem)
        elif not problem and self.problems.get(name):
            self.tell(f"{name}: works again")
        self.problems[name] = problem

    async def close(self, kind: type | None = None, error: BaseException | None = None, trace: object = None) -> None:
        """Source first, then all sinks at once: none may keep another from finishing. Raises TransportError if one of
        those could not, unless there is an error already."""
        if self.source is not None:
            try:
                await worker.within(ANSWER_SECONDS, self.source.close, name="close")
            except worker.Unanswered:
                self._report(self.source.name, f"{self.source.name}: its driver does not answer; it is left as it is")
            except Exception as failure:
                self._blame(self.source, failure)
        results = await asyncio.gather(*map(_close, self.sinks), return_exceptions=True)
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
            *([f"voice to frame {took}"] if figures.made else []),
            *(f"{name}: {problem or 'ok'}" for name, problem in self.problems.items()),
        ]
        return "  ".join(parts)


async def _close(sink: Sink) -> None:
    """Raises TransportError for one that is not closed in its time."""
    try:
        await worker.within(getattr(sink, "close_seconds", CLOSE_SECONDS), sink.close, name="close")
    except worker.Unanswered:
        raise TransportError(f"{sink.name}: its driver does not answer; it is left as it is") from None


async def _cancel(tasks: Sequence[asyncio.Task]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(frozen=True, eq=False)
class Studio:
    """What all heads of a process have in common: one copy of the weights, and how heads are made. For any thread, but
    `read` and `work`, which are for the event loop.

    model: engine.model.Model (or what stands in for it). renderer: see StreamCore. readers, makers: threads of their
    own, since asyncio's are for what closes outputs, which must not wait behind pictures."""

    settings: Settings
    model: Any
    renderer: Callable[[Any, int], Renderer] | None = None
    decoder: Decoder = field(default_factory=Decoder)
    readers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(READERS, "picture"))
    makers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(MAKERS, "portrait"))

    def load(self, picture: Path | bytes) -> Portrait:
        """A picture as file or bytes -> its face. Raises PortraitError or DecoderError."""
        return _load(self.settings, picture, self.decoder)

    def prepare(self, picture: Path | bytes | Portrait) -> Any:
        """What heads are made of; takes a second of a core. Raises PortraitError or DecoderError."""
        portrait = picture if isinstance(picture, Portrait) else self.load(picture)
        return self.model.prepare(portrait, Backdrop.of(self.settings.video.background))

    async def read(self, picture: bytes) -> Portrait:
        """As `load`, at most READERS at once."""
        return await asyncio.get_running_loop().run_in_executor(self.readers, self.load, picture)

    async def work(self, call: Callable[..., Any], *given: Any) -> Any:
        """Anything else that takes its time, at most MAKERS at once."""
        return await asyncio.get_running_loop().run_in_executor(self.makers, partial(call, *given))

    def close(self) -> None:
        """Read and make no more, and wait for nothing: what is decoded now is given up."""
        self.decoder.close()
        for threads in (self.readers, self.makers):
            threads.shutdown(wait=False, cancel_futures=True)

    def core(self, face: Any, style: Style | None = None, latency: str = "", seed: int | None = None) -> StreamCore:
        """A head without a clock. latency, seed: as in the settings, which say what is not given."""
        video, live = self.settings.video, self.settings.live
        chosen = LATENCIES[latency or live.latency]
        backlog, seed = round(live.backlog * SAMPLE_RATE), self.settings.head.seed if seed is None else seed
        form = StreamSettings(video.fps, video.size, chosen.pace, chosen.cushion, backlog, seed)
        return StreamCore(self.model, face, form, style, self.renderer)

    def warm(self, face: Any) -> None:
        """Run every network once: the first time takes long, and would be seen as a stutter."""
        core = self.core(face)
        core.tick(core.due(1))

    def show(
        self, face: Any, style: Style, name: str, latency: str = "", seed: int | None = None, **more: Any
    ) -> "Show":
        """A head in time, with nothing to hear or be seen on yet. name: of its portrait; more: fields of Show."""
        video = self.settings.video
        stamp = Badge(video.size).stamp if video.badge else None
        margin = LATENCIES[latency or self.settings.live.latency].margin
        stream = LiveStream(self.core(face, style, latency, seed), margin, stamp)
        form = MediaFormat(video.size, video.size, video.fps, SAMPLE_RATE)
        return Show(stream, form, prepare=self.prepare, portrait=name, style=style, studio=self, face=face, **more)


def _load(settings: Settings, picture: Path | bytes, decoder: Decoder) -> Portrait:
    return load_portrait(picture, max(settings.video.size, _PORTRAIT_SIZE), decoder)


class Stopped(Exception):
    """The head was stopped before it was there."""


def make_show(
    settings: Settings, tell: Callable[[str], None], model: Model | None = None,
    renderer: Callable[[Any, int], Renderer] | None = None, stopped: Callable[[], bool] = lambda: False,
) -> Show:  # fmt: skip
    """Everything that the settings ask for, sinks open, nothing running. stopped: asked between what takes long.
    Raises InputError, TransportError or Stopped, with nothing left open."""
    head, video, live = settings.head, settings.video, settings.live
    check_names(settings)
    check_server(settings)
    picture = find_portrait(head.portrait, head.consent)
    sinks = make_sinks(settings)
    check_record(settings)
    if live.record:
        sinks.append(_recording(live.record, tell))
    source = make_source(settings)
    with contextlib.ExitStack() as undo:
        _go_on(stopped)
        decoder = Decoder(stopped=stopped)
        beside = undo.enter_context(ThreadPoolExecutor(1))  # modules and weights take as long to load
        undo.callback(decoder.close)
        loading = beside.submit(_load, settings, picture, decoder)
        # first what may be refused, then what takes time
        server = None
        if settings.server.enabled:
            from plugin.server import Server  # brings aiohttp and aiortc

            server = Server.bind(settings)
            undo.callback(server.close)
            sinks.append(server.broadcast)
        if isinstance(source, Probed):
            source.probe()
        form = MediaFormat(video.size, video.size, video.fps, SAMPLE_RATE)
        for sink in sinks:
            sink.open(form)
            undo.callback(_close_quietly, sink)
        _go_on(stopped)
        if model is None:
            model = Model.load(find_weights(settings.engine.weights), backend=settings.engine.backend)
            tell(f"computing on {model.backend}; weights {settings.engine.weights}: {model.licence}")
        _go_on(stopped)
        studio = Studio(settings, model, renderer, decoder)
        try:
            portrait = loading.result()
        except DecoderError:
            _go_on(stopped)
            raise
        beside.shutdown()
        face = studio.prepare(portrait)
        _go_on(stopped)
        studio.warm(face)
        _go_on(stopped)
        style = Style(head.intensity, head.pose)
        bundled = head.portrait in bundled_portraits()
        name = head.portrait if bundled else "own"  # a path is nobody's business
        services = [] if server is None else [server.serve]
        show = studio.show(face, style, name, source=source, sinks=sinks, services=services, tell=tell)
        show.own = None if bundled else portrait
        undo.pop_all()
        return show


def _go_on(stopped: Callable[[], bool]) -> None:
    if stopped():
        raise Stopped


def _close_quietly(sink: Sink) -> None:
    with contextlib.suppress(Exception):  # what went wrong before is told
        sink.close()


def _recording(path: str, tell: Callable[[str], None]) -> RecordingSink:
    """A recording that replaces no earlier one. tell: is told of what there is of those."""
    for part in cut_off(path):
        tell(
            f"{part}: an earlier recording that was cut off, unless another program is making it; rename it to a name "
            "that ends in .mp4 to keep it"
        )
    take = next_take(path)
    if take != Path(path):
        tell(f"{path} is there already and is kept; this recording will be {take}")
    if note := encoder_note():
        tell(note)
    return RecordingSink(take, {"comment": PROVENANCE, "description": PROVENANCE})


async def _made(make: Callable[[], Show], stop: asyncio.Event) -> Show:
    """What `make` comes to, in a thread, which is left behind if it does not stop when it should: a driver may be
    stuck. Raises Stopped."""
    making, stopped = worker.begin(make, name="start"), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait([making, stopped], return_when=asyncio.FIRST_COMPLETED)
        if not making.done():
            await asyncio.wait([making], timeout=STOP_SECONDS)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([making], timeout=STOP_SECONDS)
        if making.done() and making.exception() is None:
            await making.result().close()
        raise
    finally:
        stopped.cancel()
    if not making.done():
        raise Stopped
    return making.result()


@dataclass
class Leaving:
    """What the signals do that ask for the end: the first sets `stop`, a second Ctrl-C ends the process at once."""

    stop: asyncio.Event
    show: Show | None = None
    _first: float = inf

    def leave(self, number: int) -> None:
        if not self.stop.is_set():
            self.stop.set()
            self._first = time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._first > AGAIN_SECONDS:
            for sink in self.show.sinks if self.show else []:
                if isinstance(sink, RecordingSink) and sink.part.exists():
                    _log.warning(f"{sink.path}: not finished; what was recorded is in {sink.part}")
            signals.end_at_once(number)


async def _run(settings: Settings, terminal: Terminal, make: Callable[..., Show]) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    leaving = Leaving(stop)
    loop.set_default_executor(_Unwaited())
    with contextlib.suppress(RuntimeError, ValueError):  # not in the main thread
        for number in signals.ending():
            try:
                loop.add_signal_handler(number, leaving.leave, number)
            except NotImplementedError:  # Windows
                signal.signal(number, lambda number, _: loop.call_soon_threadsafe(leaving.leave, number))
    try:
        show = leaving.show = await _made(partial(make, settings, _log.info, stopped=stop.is_set), stop)
    except Stopped:
        _log.info("ended before it was live")
        return
    show.alert = _log.warning
    began = time.monotonic()

    def announce() -> None:
        recording = [str(sink.path) for sink in show.sinks if isinstance(sink, RecordingSink)]
        shown = ", ".join([*settings.live.outputs, *recording, *(["page"] if settings.server.enabled else [])])
        _log.info(
            f"{settings.head.portrait} is live; voice: {settings.live.source}; shown: {shown or 'nowhere'}; "
            f"{LATENCIES[settings.live.latency].seconds:.2f} s from voice to frame; Ctrl-C ends"
        )
        if not shown:
            _log.warning("nothing shows it: set outputs under [live], or give --outputs or --record FILE")

    async def report() -> None:
        while True:
            terminal.status(show.status(began))
            await asyncio.sleep(_STATUS_SECONDS)

    reporter = asyncio.create_task(report())
    try:
        await show.run(settings.live.seconds, stop, announce)
    finally:
        await _cancel([reporter])
        terminal.clear()
    _log.info(f"ended after {show.status(began)}")
    for sink in show.sinks:
        if isinstance(sink, RecordingSink) and not sink.frames:
            _log.warning(f"{sink.path}: nothing was recorded, since it ended before the first frame")


class _Unwaited(ThreadPoolExecutor):
    """For the event loop's threads: asyncio waits at the end for all of them, and one may be stuck. All work that
    matters has been waited for by then."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait=False, cancel_futures=True)


def run(settings: Settings, make: Callable[..., Show] = make_show, out: TextIO | None = None) -> None:
    """Run the live head until it is stopped. Ctrl-C, SIGTERM and SIGHUP are the normal end: devices are released and
    the recording is finished. A second Ctrl-C ends the process. Raises InputError or TransportError for what cannot be
    used."""
    with logging_to(out, settings.log.level, settings.log.format) as terminal, signals.kept():
        asyncio.run(_run(settings, terminal, make))
