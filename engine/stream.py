"""The live head: voice pushed in as it comes, frames out at a fixed rate, each with its own slice of that voice.

There is one clock, counted in samples at 16 kHz. Position s of the stream is spoken and shown at clock
s + delay(pace): the voice waits until the motion that belongs to it is made. `StreamCore` holds that logic and no clock
of its own: whoever owns it says how far time went. The same calls in the same order give the same frames and the same
sound, to the last bit.

Rules of the voice:
- It is heard in order and without a change. A frame's slice of sound and its picture are cut from the same positions,
  so lips and voice never move against each other, whatever happens below.
- Voice that comes while nothing else waits begins `cushion` samples after it came, which evens out the jitter of
  whoever sends it. If the voice runs dry, the gap is silence, and what comes later begins as above: late sound is heard
  late, with its lips.
- At most `backlog` samples wait. More are refused: push returns how many were taken, so a program that makes speech
  faster than real time waits for room. With `live=True` (a microphone, a call) at most 250 ms wait, and more replaces
  the oldest: what was said long ago is of no use, so the delay stays bounded.
- With no voice the head hears silence and idles: same model, same motion, no seam.
- An interrupt drops all voice that was not spoken yet and the motion made for it. Motion goes on from the latents that
  the frame on display needs, but for the last, which hardly weighs in it, as if silence had followed: there is no jump.
  Where no voice was heard since the last interrupt there is no such motion, and it costs nothing.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from engine.backend import Renderer
from engine.features import LATENT_HOP, SAMPLE_RATE
from engine.motion.generator import Pace
from engine.motion.timing import SPLINE_REACH
from engine.performance import Performance, check_form
from engine.speech import to_mono
from engine.style import Style

__all__ = ["LATENCIES", "Latency", "StreamCore", "StreamFrame", "StreamSettings", "delay"]

#: Blocks of 40 ms over which a change of style is spread.
GLIDE = 20
#: Samples of live voice that may wait: the jitter of a poor network, not more.
LIVE_BACKLOG = SAMPLE_RATE // 4


def delay(pace: Pace) -> int:
    """Samples from a position's voice being heard to its frame being made, at the worst place in a hop: the latents
    that the frame needs ahead, a whole hop, and the hop's look-ahead."""
    return (SPLINE_REACH + pace.hop + pace.look_ahead) * LATENT_HOP


@dataclass(frozen=True)
class Latency:
    """A choice between answering soon and moving well. pace: of the motion; cushion: samples by which voice that
    comes after a pause is held back; margin: seconds left for computing a frame before it is due outside."""

    pace: Pace
    cushion: int
    margin: float

    @property
    def seconds(self) -> float:
        """From a sample being pushed to the frame that shows it, with a steady sender and 7 frames a second or more;
        of fewer, one lasts longer."""
        return (delay(self.pace) + self.cushion) / SAMPLE_RATE + self.margin


#: interactive 260 ms, balanced 450 ms, quality 730 ms from voice to frame at most. The shorter a hop, the fewer steps
#: and the less guidance it takes (docs/experiments.md): more of both makes heads shake and lips follow no better.
LATENCIES = {
    "interactive": Latency(Pace(2, 1, 2, guidance=1.5, temperature=0.4, brief=4, calm=True), 320, 0.04),
    "balanced": Latency(Pace(4, 3, 3, guidance=1.75, temperature=0.4), 480, 0.06),
    "quality": Latency(Pace(8, 6, 6, guidance=1.75, temperature=0.4), 640, 0.05),
}


@dataclass(frozen=True)
class StreamSettings:
    """What stays the same for a stream's life. fps: whole frames a second; size: side of the picture; pace, cushion:
    see Latency; backlog: samples of voice that may wait; seed: of the motion. Raises ValueError for what cannot be."""

    fps: int = 45
    size: int = 512
    pace: Pace = LATENCIES["balanced"].pace
    cushion: int = LATENCIES["balanced"].cushion
    backlog: int = 30 * SAMPLE_RATE
    seed: int = 0

    def __post_init__(self) -> None:
        check_form(self.fps, self.size, self.seed)
        if self.cushion < 0 or self.backlog < 1:
            raise ValueError(f"cushion must be 0 or more, backlog 1 or more, not {self.cushion} and {self.backlog}")


@dataclass(frozen=True, eq=False)
class StreamFrame:
    """index: frames since the start; pts: first sample of its sound; seconds: index / fps, exactly; image
    (size, size, 3) uint8 RGB, or None if it came too late to be drawn; audio (n,) float32, the sound from this frame
    to the next; generation: interrupts so far."""

    index: int
    pts: int
    seconds: Fraction
    image: np.ndarray | None
    audio: np.ndarray
    generation: int


@dataclass
class Fifo:
    """Samples that wait, in order. size: how many."""

    size: int = 0
    _chunks: deque[np.ndarray] = field(default_factory=deque)

    def push(self, samples: np.ndarray) -> None:
        if len(samples):
            self._chunks.append(np.array(samples, np.float32))  # a copy: the sender may reuse its buffer
            self.size += len(samples)

    def take(self, count: int) -> np.ndarray:
        """The oldest samples, `count` or as many as there are."""
        parts, wanted = [np.zeros(0, np.float32)], min(count, self.size)
        self.size -= wanted
        while wanted:
            chunk = self._chunks.popleft()
            parts.append(chunk[:wanted])
            if len(chunk) > wanted:
                self._chunks.appendleft(chunk[wanted:])
            wanted -= len(parts[-1])
        return np.concatenate(parts)

    def clear(self) -> None:
        self._chunks.clear()
        self.size = 0


@dataclass
class StreamState:
    """now: the clock; heard: samples the model was given (whole blocks of 640); frames: given out; begins: position at
    which the waiting voice begins, None while it flows or there is none; spoken: whether voice was heard since the last
    interrupt; refused, replaced: samples of voice that found no room."""

    now: int = 0
    heard: int = 0
    frames: int = 0
    generation: int = 0
    dry: bool = True
    begins: int | None = None
    spoken: bool = False
    refused: int = 0
    replaced: int = 0


class StreamCore:
    """See the module. Not for several threads at once.

    model: engine.model.Model (or what has its `window`, `arrays`, `velocity`, `listen`, `coefficients`, `closed`,
    `gauges` and `ways`). portrait: prepared by the model. renderer: makes what draws a prepared portrait at a size; the
    model's own if not given.
    """

    def __init__(
        self, model: Any, portrait: Any, settings: StreamSettings | None = None, style: Style | None = None,
        renderer: Callable[[Any, int], Renderer] | None = None,
    ):  # fmt: skip
        self.settings = settings or StreamSettings()
        self.state = StreamState()
        self._model = model
        self._make_renderer = renderer or model.renderer
        self._renderer = self.make_renderer(portrait)
        self.performance = Performance(
            model, portrait, style or Style(),
            fps=self.settings.fps, seed=self.settings.seed, pace=self.settings.pace,
        )  # fmt: skip
        # at a few frames a second the sound of one frame is longer than the model's delay
        self._delay = max(delay(self.settings.pace), SAMPLE_RATE // self.settings.fps + 1 + LATENT_HOP)
        self._waiting = Fifo()
        self._line = Fifo()  # heard, not spoken yet

    @property
    def backlog(self) -> int:
        """Samples of voice that wait to be heard."""
        return self._waiting.size

    @property
    def next_position(self) -> int:
        """Where voice that is pushed now will begin."""
        state = self.state
        if not state.dry:
            return state.heard + self._waiting.size
        begins = state.begins if state.begins is not None else state.now + self.settings.cushion
        return begins + self._waiting.size

    def due(self, frame: int) -> int:
        """The clock at which a frame is given out."""
        return self._starts(frame) + self._delay

    @property
    def next_due(self) -> int:
        """The clock at which there is something to do: a block to hear or a frame to give out."""
        return min(self.state.heard + LATENT_HOP, self.due(self.state.frames))

    def _starts(self, frame: int) -> int:
        return -(-frame * SAMPLE_RATE // self.settings.fps)

    def push(self, samples: np.ndarray, live: bool = False) -> int:
        """Voice, mono (n,) at 16 kHz, n any, float or int16. Returns how many samples were taken: all but what found no
        room. With `live` all are taken and the oldest make room. Raises VoiceError, having taken none, if what it would
        take is no such voice, see engine.speech.to_mono."""
        limit = self.settings.backlog
        if live:
            limit = min(limit, LIVE_BACKLOG)
            taken = to_mono(samples[-limit:])
            replaced = self._waiting.take(max(0, self._waiting.size + len(taken) - limit))
            self.state.replaced += len(replaced) + len(samples) - len(taken)
        else:
            taken = to_mono(samples[: max(0, limit - self._waiting.size)])
            self.state.refused += len(samples) - len(taken)
        if len(taken) and self.state.dry and self.state.begins is None:
            self.state.begins = self.state.now + self.settings.cushion
        self._waiting.push(taken)
        return len(samples) if live else len(taken)

    def tick(self, samples: int, skip: bool = False) -> list[StreamFrame]:
        """Let the clock go on by so many samples; the frames that became due, in order. skip: draw only the newest of
        several (the caller is late); the others carry their sound and no image."""
        state = self.state
        state.now += samples
        due: list[tuple[int, np.ndarray, np.ndarray]] = []
        # in the order of the clock, so that long and short ticks do the same
        while True:
            block, frame = state.heard + LATENT_HOP, self.due(state.frames)
            if block <= state.now and block <= frame:
                self._hear(self._next_block())
            elif frame <= state.now:
                due.append(self._next_frame())
            else:
                break
        return [self._draw(*each, drawn=not skip or each is due[-1]) for each in due]

    def interrupt(self) -> None:
        """Stop speaking: nothing that was pushed so far is heard or shown any more."""
        state = self.state
        state.generation += 1
        self._waiting.clear()
        state.dry, state.begins = True, None
        if not state.spoken:
            return
        state.spoken = False
        silent = self._line.size
        self._line.clear()
        self._line.push(np.zeros(silent, np.float32))
        self.performance.interrupt(max(0, state.frames - 1))

    def restyle(self, style: Style) -> None:
        """Change intensity and pose; the head gets there within a second, without a jump."""
        self.performance.restyle(style, GLIDE)

    def make_renderer(self, portrait: Any) -> Renderer:
        """What draws a prepared portrait in this stream. For any thread: it takes up to a second, in which the stream
        would stand still."""
        return self._make_renderer(portrait, self.settings.size)

    def change_portrait(self, portrait: Any, renderer: Renderer | None = None) -> None:
        """Show another prepared portrait from the next frame on. It goes on with the motion of the one before, moved to
        where this face is centred. renderer: from make_renderer, made here if not given."""
        renderer = renderer or self.make_renderer(portrait)  # first: if it cannot be made, all stays as it is
        self.performance.change_portrait(portrait)
        self._renderer = renderer

    def _next_block(self) -> np.ndarray:
        """The next 640 samples to hear: voice where there is some, else silence."""
        state, block = self.state, np.zeros(LATENT_HOP, np.float32)
        start = 0
        if state.dry:
            if state.begins is None or state.begins >= state.heard + LATENT_HOP:
                return block
            start = max(0, state.begins - state.heard)
            state.dry, state.begins = False, None
        voice = self._waiting.take(LATENT_HOP - start)
        block[start : start + len(voice)] = voice
        state.spoken |= len(voice) > 0
        # exactly enough is not dry: the next chunk may still come in time
        state.dry = len(voice) < LATENT_HOP - start
        return block

    def _hear(self, block: np.ndarray) -> None:
        self._line.push(block)
        self.state.heard += len(block)
        self.performance.hear(block)

    def _next_frame(self) -> tuple[int, np.ndarray, np.ndarray]:
        index = self.state.frames
        self.state.frames += 1
        audio = self._line.take(self._starts(index + 1) - self._starts(index))
        return index, self.performance.take(index), audio

    def _draw(self, index: int, latent: np.ndarray, audio: np.ndarray, drawn: bool) -> StreamFrame:
        image = self._renderer.render(self._model.coefficients(latent)) if drawn else None
        seconds = Fraction(index, self.settings.fps)
        return StreamFrame(index, self._starts(index), seconds, image, audio, self.state.generation)
