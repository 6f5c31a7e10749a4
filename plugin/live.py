"""The live head in time: the engine's stream against the clock of the machine, for asyncio.

    async with LiveStream(core, margin=0.04) as stream:
        stream.push(samples)              # from any thread, at any time
        async for frame in stream:        # each at its time
            ...

The stream computes in a thread of its own; the event loop only waits and hands over. Streams share no threads: one
that is stuck holds up nobody but itself, which no pool can promise whose threads may all be stuck.
Frame i is out at `begin + due(i) / 16000 + margin`, absolute, so nothing adds up. Frames that are computed too late for
their time are not drawn (their sound goes out all the same), and after a second in which nothing ran (a suspended
machine) time goes on from now. What an interrupt made stale is dropped where it waits: in the inbox, in the engine,
among finished frames. What waits for the engine is bounded, whoever asks how often: of interrupts there is at most one,
since a second has nothing more to stop, of styles and portraits the latest, and of voice the backlog. An engine that
does not come back is left behind when its stream is closed, so that nothing else waits for it.
"""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Self

import numpy as np

from engine.backend import Renderer
from engine.features import SAMPLE_RATE
from engine.head import Style
from engine.speech import to_mono
from engine.stream import StreamCore, StreamFrame
from transports.media import MediaFrame

#: After so long without a tick, time that passed is given up.
RESYNC_SECONDS = 1.0
#: An engine that is at work for so long when its stream is closed is left behind.
CLOSE_SECONDS = 2.0
#: How many of the latest figures are kept.
RECENT = 512
#: Pieces of voice in the inbox that are shorter than this, in samples, are joined: senders choose how short they are.
PIECE = SAMPLE_RATE // 25


@dataclass
class LiveFigures:
    """What happened so far. made: frames given out; undrawn: those without a picture, being late; late: frames ready
    after their time; lost: finished frames that nobody took in time; resyncs: see RESYNC_SECONDS; interrupts: of those,
    what stopped something; work: seconds each tick took; latency: seconds from voice being pushed to its frame being
    out, as scheduled."""

    made: int = 0
    undrawn: int = 0
    late: int = 0
    lost: int = 0
    resyncs: int = 0
    interrupts: int = 0
    work: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    latency: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))


class _EngineThread(Executor):
    """One thread that does one thing after another. Unlike a pool's, it does not keep the process from ending."""

    def __init__(self) -> None:
        self._waiting: SimpleQueue[tuple[Future, Callable[[], Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def submit(self, call: Callable[..., Any], /, *args: Any, **more: Any) -> Future:
        if not self._thread.is_alive():
            self._thread.start()
        future: Future = Future()
        self._waiting.put((future, lambda: call(*args, **more)))
        return future

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            future, call = item
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:  # as a pool: it is for whoever waits for the result
                    future.set_exception(error)
            del item, future, call  # what was done must not be kept until there is more to do

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._waiting.put(None)
        if wait and self._thread.is_alive():
            self._thread.join()


@dataclass(eq=False)
class _Voice:
    samples: np.ndarray
    live: bool
    came: float


@dataclass
class _Inbox:
    """What the engine is to do at its next tick, in this order. interrupted: stop what it was given before; face:
    prepared, and what draws it; style: to move in from now on; voice: to hear after all that, size samples of it."""

    interrupted: bool = False
    face: tuple[Any, Renderer | None] | None = None
    style: Style | None = None
    voice: deque[_Voice] = field(default_factory=deque)
    size: int = 0

    def add(self, piece: _Voice) -> None:
        self.size += len(piece.samples)
        last = self.voice[-1] if self.voice else None
        if last is not None and last.live == piece.live and len(last.samples) + len(piece.samples) <= PIECE:
            last.samples = np.concatenate([last.samples, piece.samples])
        elif len(piece.samples):
            self.voice.append(piece)

    def forget(self, count: int) -> None:
        """Drop the oldest pieces of voice, at least `count` samples."""
        while count > 0 and self.voice:
            dropped = len(self.voice.popleft().samples)
            self.size -= dropped
            count -= dropped


class LiveStream:
    """See the module. `push`, `interrupt`, `restyle` and `change_portrait` are for any thread and return at once."""

    def __init__(
        self, core: StreamCore, margin: float, stamp: Callable[[np.ndarray], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):  # fmt: skip
        """margin: seconds between a frame being due in the engine and being out. stamp: draws onto every picture."""
        self.figures = LiveFigures()
        self._core, self._margin, self._stamp, self._clock = core, margin, stamp, clock
        self._fps = core.settings.fps
        self._lock = threading.Lock()
        self._inbox = _Inbox()
        self._hearing = 0  # samples out of the inbox that are not in the engine yet
        self._backlog = 0  # samples that wait in the engine, but for those that an interrupt in the inbox will drop
        self._generation = 0
        self._stops = 0  # interrupts that the engine was or will be given: the generation of the next frames
        self._heard = False  # the engine was given voice since the last of those
        self._out = False  # frames with voice were given out since the last interrupt
        self._voice_end = 0
        self._released = 0
        self._begin = 0.0
        self._ready: deque[MediaFrame] = deque()
        self._ready_limit = math.ceil(margin * self._fps) + 4
        self._wake = asyncio.Event()
        self._closing = asyncio.Event()
        self._engine = _EngineThread()
        self._task: asyncio.Task | None = None

    async def __aenter__(self) -> Self:
        self._begin = self._clock()
        self._task = asyncio.create_task(self._compute())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop, within seconds. Whoever iterates comes to the end."""
        self._closing.set()
        self._wake.set()
        stuck: set[asyncio.Task] = set()
        if self._task is not None:
            _, stuck = await asyncio.wait([self._task], timeout=CLOSE_SECONDS)
        for task in stuck:
            task.cancel()
            await asyncio.wait([task])
        self._engine.shutdown(wait=not stuck)

    @property
    def room(self) -> int:
        """Samples that push would take now."""
        with self._lock:
            return self._room()

    def _room(self) -> int:
        return max(0, self._core.settings.backlog - self._waiting())

    def _waiting(self) -> int:
        return self._backlog + self._hearing + self._inbox.size

    @property
    def backlog(self) -> int:
        """Samples of voice that wait."""
        with self._lock:
            return self._waiting()

    @property
    def unspoken(self) -> int:
        """Samples until the last of what was pushed is out, waiting included; 0 if it is."""
        with self._lock:
            return self._inbox.size + self._hearing + max(0, self._voice_end - self._released)

    @property
    def generation(self) -> int:
        """Interrupts so far, whether they found anything to stop or not."""
        return self._generation

    def push(self, samples: np.ndarray, live: bool = False) -> int:
        """Voice, mono (n,) at 16 kHz. Returns how many samples were taken; see StreamCore.push. Raises VoiceError."""
        with self._lock:
            # here, since an error in the engine's thread would end the stream
            taken = to_mono(samples if live else samples[: self._room()])
            self._take(taken, live)
        return len(taken)

    def push_whole(self, samples: np.ndarray, live: bool, generation: int) -> bool:
        """As push, but all or nothing: False, with none taken, if there is no room for all. What was made before an
        interrupt is stale and is dropped. generation: as it was when the samples were made. Raises VoiceError."""
        voice = to_mono(samples)
        with self._lock:
            if generation != self._generation:
                return True
            if not live and len(voice) > self._room():
                return False
            self._take(voice, live)
        return True

    def _take(self, voice: np.ndarray, live: bool) -> None:
        self._inbox.add(_Voice(voice, live, self._clock()))
        self._inbox.forget(self._inbox.size - self._core.settings.backlog)  # live, and the engine stands still

    def interrupt(self) -> bool:
        """Stop speaking at once and drop all that was pushed before. Returns whether frames with voice were given out
        since the last interrupt: whoever shows them may still hold some."""
        with self._lock:
            self._generation += 1
            self.figures.interrupts += self._heard or self._inbox.size > 0
            self._inbox.forget(self._inbox.size)
            if self._heard:
                self._inbox.interrupted = True
                self._stops += 1
            self._hearing = self._backlog = self._voice_end = 0
            out, self._heard, self._out = self._out, False, False
        return out

    def restyle(self, style: Style) -> None:
        with self._lock:
            self._inbox.style = style

    def make_renderer(self, prepared: Any) -> Renderer:
        """What draws a portrait here; takes its time, in the thread that calls it."""
        return self._core.make_renderer(prepared)

    def change_portrait(self, prepared: Any, renderer: Renderer | None = None) -> None:
        """prepared: by Model.prepare; renderer: of it, by make_renderer. Both take their time: call them in a thread.
        Without a renderer the engine makes it, and the stream stutters."""
        with self._lock:
            self._inbox.face = prepared, renderer

    @property
    def silent(self) -> bool:
        """Whether all that was pushed has been spoken."""
        with self._lock:
            return not (self._inbox.size or self._hearing) and self._released >= self._voice_end

    async def __aiter__(self) -> AsyncIterator[MediaFrame]:
        """Frames, each at its time. For one consumer; one that is too slow misses frames, and time goes on."""
        while True:
            while not self._ready:
                if self._closing.is_set():
                    return
                if self._task is not None and self._task.done():
                    self._task.result()  # raises what stopped the engine
                    return
                self._wake.clear()
                await self._wake.wait()
            frame = self._ready.popleft()
            if not self._stale(frame) and (wait := frame.time - self._clock()) > 0:
                await asyncio.sleep(wait)
            if self._stale(frame):
                continue
            with self._lock:
                self._released = frame.pts + len(frame.audio)
                self._out |= bool(frame.audio.any())
            yield frame

    def _stale(self, frame: MediaFrame) -> bool:
        """Whether it has voice from before an interrupt. One without is shown: else who interrupts often enough would
        have the picture stand still."""
        return frame.generation < self._stops and bool(frame.audio.any())

    async def _compute(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while not self._closing.is_set():
                if (wait := self._when() - self._clock()) > 0:
                    await asyncio.sleep(wait)
                for frame in await loop.run_in_executor(self._engine, self._work):
                    self._offer(frame)
                self._wake.set()
        finally:
            self._wake.set()

    def _when(self) -> float:
        """When the engine has something to do next. A hop is made once its speech is there, not when a frame asks."""
        return self._begin + self._core.next_due / SAMPLE_RATE

    def _offer(self, frame: MediaFrame) -> None:
        if self._stale(frame):
            return
        while self._ready and self._stale(self._ready[0]):
            self._ready.popleft()
        if len(self._ready) >= self._ready_limit:
            self._ready.popleft()
            self.figures.lost += 1
        self._ready.append(frame)

    def _work(self) -> list[MediaFrame]:
        """In the engine's thread: hear what came, and make what is due."""
        core, figures, began = self._core, self.figures, self._clock()
        due = core.next_due
        behind = began - self._when()
        if behind > RESYNC_SECONDS:
            self._begin += behind
            figures.resyncs += 1
            behind = 0.0
        self._hear()
        now = max(due, int((began - self._begin) * SAMPLE_RATE))
        frames = core.tick(now - core.state.now, skip=behind > self._margin)
        self._look()
        ended = self._clock()
        figures.work.append(ended - began)
        return [self._timed(frame, ended) for frame in frames]

    def _hear(self) -> None:
        """Hand what came to the engine. Without the lock, since a command may take as long as a hop."""
        core = self._core
        with self._lock:
            inbox, self._inbox = self._inbox, _Inbox()
            self._hearing = inbox.size
            self._heard |= inbox.size > 0
        if inbox.interrupted:
            core.interrupt()
        if inbox.face is not None:
            core.change_portrait(*inbox.face)
        if inbox.style is not None:
            core.restyle(inbox.style)
        end = None
        for piece in inbox.voice:
            out = self._begin + (core.next_position + core.due(0)) / SAMPLE_RATE + self._margin
            self.figures.latency.append(out - piece.came)
            core.push(piece.samples, piece.live)
            end = core.next_position
        self._look(end)

    def _look(self, end: int | None = None) -> None:
        """Take note of what waits in the engine, and of the position at which its voice ends, if that changed; unless
        an interrupt came meanwhile, which the engine does not know of yet and which drops all of it."""
        with self._lock:
            if self._inbox.interrupted:
                return
            self._hearing, self._backlog = 0, self._core.backlog
            if end is not None:
                self._voice_end = end

    def _timed(self, frame: StreamFrame, ready: float) -> MediaFrame:
        out = self._begin + self._core.due(frame.index) / SAMPLE_RATE + self._margin
        self.figures.made += 1
        self.figures.undrawn += frame.image is None
        self.figures.late += ready > out
        if frame.image is not None and self._stamp is not None:
            self._stamp(frame.image)
        return MediaFrame(frame.index, frame.pts, frame.image, frame.audio, out, frame.generation)
