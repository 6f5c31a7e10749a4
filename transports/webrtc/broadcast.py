"""The head to any number of viewers: encoded once for each codec in use, not at all while nobody watches.

`send` leaves the picture in a slot, from which a thread takes the latest: one that the thread does not come to is
dropped and counted. Times stay right, since they come from the frame's index. The voice is encoded at once, in a sixth
of a millisecond, and waits for no picture: an even flow keeps the viewers' buffers short. Encoded pieces go into a
short queue per viewer, from which aiortc sends.

Times: RTP time is index * 90000 / fps for pictures and position * 48000 / rate for voice, and both sender reports are
dated by the same clock (transports/webrtc/rtcp.py), so that a viewer that goes by them shows lips and voice together,
however long the encoding takes. For one that goes by arrival, the voice is early by no more than that.

Keyframes are made when a viewer joins or asks (PLI, FIR), at most one in KEYFRAME_SECONDS for all, and for the same
viewer at most one in VIEWER_KEYFRAME_SECONDS: a request in between is answered when that time is over.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import median

import av
import numpy as np
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError

from transports.media import LazySink, MediaFormat, MediaFrame, TransportError
from transports.webrtc.encoders import (
    VIDEO_CLOCK,
    VOICE_CLOCK,
    VOICE_PACKET_SECONDS,
    VOICE_RATES,
    Picture,
    VideoEncoder,
    VoiceEncoder,
    to_i420,
)
from transports.webrtc.options import WebRtcOptions
from transports.webrtc.rtcp import Feedback
from transports.webrtc.sessions import Sessions
from transports.webrtc.thinning import Thinning

KEYFRAME_SECONDS = 0.25
VIEWER_KEYFRAME_SECONDS = 0.75
#: What may wait for one viewer. A queue of pictures that is full is emptied, and goes on at a keyframe.
QUEUE_SECONDS = 0.5
#: Bytes that the system may owe a viewer before pictures wait in its queue.
MAX_WAITING = 128 * 1024
CLOSE_SECONDS = 5.0
#: Seconds and pictures that figures are made of.
RECENT_SECONDS, RECENT = 2.0, 512
_NAME = "webrtc"


class PacketTrack(MediaStreamTrack):
    """What was encoded already, for one peer. clock: RTP ticks a second."""

    def __init__(self, kind: str, clock: int, limit: int) -> None:
        """kind: "audio" or "video"; limit: packets that may wait."""
        super().__init__()
        self.kind, self.clock, self.limit = kind, clock, limit
        self.last: int | None = None  # RTP time of what was taken last
        self.waiting: Callable[[], int] = lambda: 0  # bytes that the system did not take yet
        self._queue: deque[av.Packet] = deque()
        self._wake = asyncio.Event()

    @property
    def count(self) -> int:
        """Packets that wait."""
        return len(self._queue)

    def put(self, packet: av.Packet) -> None:
        self._queue.append(packet)
        self._wake.set()

    def clear(self) -> None:
        self._queue.clear()

    def stop(self) -> None:
        super().stop()
        self._queue.clear()
        self._wake.set()

    async def recv(self) -> av.Packet:
        while self.readyState == "live":
            if not self._queue:
                self._wake.clear()
                await self._wake.wait()
            elif self.waiting() > MAX_WAITING:
                await asyncio.sleep(0.01)
            else:
                packet = self._queue.popleft()
                self.last = packet.pts
                return packet
        raise MediaStreamError


@dataclass(eq=False)
class Viewer:
    """One peer. codec: of its pictures, "" without any; wants: it asked for a keyframe; keyframed: when one was last
    made at its wish."""

    codec: str
    video: PacketTrack | None
    voice: PacketTrack | None
    thinning: Thinning = field(default_factory=Thinning)
    wants: bool = False
    keyframed: float = -math.inf


@dataclass
class Figures:
    """Counts since the start, and the latest: seconds each picture took to encode, (when, bytes) of each."""

    encoded: int = 0
    dropped: int = 0
    keyframes: int = 0
    requests: int = 0
    thinned: int = 0
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    sizes: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=RECENT))

    def bitrate(self, now: float) -> float:
        """Bits a second of video made in the last RECENT_SECONDS, of all codecs together."""
        return 8 * sum(size for when, size in self.sizes if when > now - RECENT_SECONDS) / RECENT_SECONDS


@dataclass(eq=False)
class _Work:
    """For the thread. codecs: what to encode, with whether as a keyframe."""

    index: int
    image: np.ndarray
    codecs: dict[str, bool]


@dataclass(eq=False)
class _Made:
    pictures: dict[str, list[Picture]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    problem: str = ""


class _Pictures:
    """Everything that belongs to the thread."""

    def __init__(self, form: MediaFormat, bitrate: int) -> None:
        self._form, self._bitrate = form, bitrate
        self._video: dict[str, VideoEncoder] = {}
        self._i420: np.ndarray | None = None

    def run(self, work: _Work) -> _Made:
        form, made = self._form, _Made()
        for codec in set(self._video) - set(work.codecs):
            del self._video[codec]  # nobody watches it
        began = time.perf_counter()
        try:
            self._i420 = to_i420(work.image, self._i420)
            for codec, keyframe in work.codecs.items():
                if codec not in self._video:
                    self._video[codec] = VideoEncoder(codec, form.width, form.height, form.fps, self._bitrate)
                made.pictures[codec] = self._video[codec].encode(self._i420, work.index, keyframe)
                made.seconds.append(time.perf_counter() - began)
                began = time.perf_counter()
        except av.FFmpegError as error:
            self._video.clear()
            made.problem = f"{_NAME}: the picture cannot be encoded ({error})"
        return made


class Broadcast(LazySink):
    """See the module. `open`, `check` and `close` are for any thread, all else for the event loop."""

    name = _NAME

    def __init__(self, options: WebRtcOptions, clock: Callable[[], float] = time.monotonic) -> None:
        self.options, self._clock = options, clock
        self.sessions = Sessions(options.viewers)
        self.counts = Figures()
        self._form: MediaFormat | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._viewers: list[Viewer] = []
        self._keyframed: dict[str, float] = {}
        self._index, self._image, self._fresh = 0, None, False
        self._encoded = -1  # index of the last picture that was encoded
        self._anchor: float | None = None
        self._busy = False
        self._closed = False
        self._problem = ""

    @property
    def viewers(self) -> int:
        return len(self._viewers)

    def open(self, form: MediaFormat) -> None:
        if form.audio_rate not in VOICE_RATES:
            raise TransportError(f"webrtc: Opus takes no sound of {form.audio_rate} Hz; give it 16000")
        self._form = form
        self._pool = ThreadPoolExecutor(1, "webrtc")
        self._pictures = _Pictures(form, self.options.bitrate)
        self._voice = VoiceEncoder(form.audio_rate)

    @property
    def running(self) -> bool:
        return self._form is not None and not self._closed

    def viewer(self, codec: str, voice: bool) -> Viewer:
        """One to be, with pictures in `codec` ("" for none) and, if it likes, the voice. It is served from `join` on
        until `leave`."""
        self._loop = asyncio.get_running_loop()
        limit = math.ceil(self._form.fps * QUEUE_SECONDS)
        pictures = PacketTrack("video", VIDEO_CLOCK, limit) if codec else None
        sound = PacketTrack("audio", VOICE_CLOCK, math.ceil(QUEUE_SECONDS / VOICE_PACKET_SECONDS)) if voice else None
        return Viewer(codec, pictures, sound)

    def join(self, viewer: Viewer) -> None:
        self._viewers.append(viewer)

    def leave(self, viewer: Viewer) -> None:
        for track in (viewer.video, viewer.voice):
            if track is not None:
                track.stop()
        if viewer in self._viewers:
            self._viewers.remove(viewer)
        if not self._viewers:
            self._fresh = False

    def feedback(self, viewer: Viewer) -> Feedback:
        """What to do with what a viewer reports about its pictures."""

        def keyframe() -> None:
            self.counts.requests += 1
            viewer.wants = True

        def loss(part: float) -> None:
            viewer.thinning.report(part, self.counts.bitrate(self._clock()) / max(1, len(self._codecs())))

        def remb(bitrate: float) -> None:
            viewer.thinning.remb = bitrate

        return Feedback(keyframe, loss, remb)

    def seconds(self) -> float | None:
        """What the stream's clock reads now: frame i is at i / fps."""
        return None if self._anchor is None else self._clock() - self._anchor

    def send(self, frame: MediaFrame) -> None:
        self._anchor = frame.time - float(frame.seconds(self._form.fps))
        if frame.image is not None:
            self.counts.dropped += self._fresh
            self._image, self._fresh = frame.image, bool(self._viewers)
        self._index = frame.index
        if not self._viewers:
            return
        self._speak(frame)
        self._draw()

    def _speak(self, frame: MediaFrame) -> None:
        listening = [viewer.voice for viewer in self._viewers if viewer.voice is not None]
        try:
            packets = self._voice.encode(frame.pts, frame.audio) if listening else []
        except av.FFmpegError as error:
            self._voice = VoiceEncoder(self._form.audio_rate)
            self._problem = f"{_NAME}: the voice cannot be encoded ({error})"
            return
        for voice in listening:
            for packet in packets:
                if voice.count >= voice.limit:
                    voice.clear()
                voice.put(packet)

    def interrupt(self) -> None:
        self.counts.dropped += self._fresh
        self._fresh = False
        self._voice.hush()
        for viewer in self._viewers:
            if viewer.voice is not None:
                viewer.voice.clear()
            if viewer.video is not None and viewer.video.count:
                self._cut(viewer)

    def _codecs(self) -> set[str]:
        return {viewer.codec for viewer in self._viewers if viewer.codec}

    def _keyframe_due(self, codec: str, now: float) -> bool:
        """Whether to make a keyframe now; takes note that the wishes are met."""
        if now - self._keyframed.get(codec, -math.inf) < KEYFRAME_SECONDS:
            return False
        wishing = [
            viewer
            for viewer in self._viewers
            if viewer.codec == codec
            and (viewer.wants or not viewer.thinning.whole)
            and viewer.thinning.affords(now)
            and now - viewer.keyframed >= VIEWER_KEYFRAME_SECONDS
        ]
        for viewer in wishing:
            viewer.wants, viewer.keyframed = False, now
        if wishing:
            self._keyframed[codec] = now
        return bool(wishing)

    def _draw(self) -> None:
        """Give the thread the latest picture, unless it is at work: a new one, or the old one where a keyframe is
        wanted."""
        if self._busy or self._closed or self._image is None or self._index <= self._encoded:
            return
        now = self._clock()
        keyframes = {codec: self._keyframe_due(codec, now) for codec in sorted(self._codecs())}
        if not keyframes or not (self._fresh or any(keyframes.values())):
            return
        self._encoded, self._fresh, self._busy = self._index, False, True
        work = _Work(self._index, self._image, keyframes)
        self._loop.run_in_executor(self._pool, self._pictures.run, work).add_done_callback(self._drawn)

    def _drawn(self, done: asyncio.Future) -> None:
        self._busy = False
        if self._closed or done.cancelled():
            return
        if (error := done.exception()) is not None:
            self._problem = f"{_NAME}: {type(error).__name__}: {error}"
            return
        made: _Made = done.result()
        self._problem = made.problem
        now, counts = self._clock(), self.counts
        counts.seconds.extend(made.seconds)
        for codec, pictures in made.pictures.items():
            for picture in pictures:
                counts.encoded += 1
                counts.keyframes += picture.keyframe
                counts.sizes.append((now, picture.size))
                for viewer in self._viewers:
                    if viewer.codec == codec:
                        self._hand(viewer, picture, now)
        self._draw()

    def _hand(self, viewer: Viewer, picture: Picture, now: float) -> None:
        if viewer.video.count >= viewer.video.limit:
            self._cut(viewer)
        if viewer.thinning.admit(picture.size, picture.keyframe, now):
            viewer.video.put(picture.packet)
            viewer.wants &= not picture.keyframe
        else:
            self.counts.thinned += viewer.thinning.begun

    def _cut(self, viewer: Viewer) -> None:
        """What waits for a viewer is lost; it goes on at a keyframe."""
        self.counts.thinned += viewer.video.count
        viewer.video.clear()
        viewer.thinning.whole = False

    def figures(self) -> dict[str, float]:
        """For health and metrics: counts since the start, and the latest seconds."""
        counts = self.counts
        return {
            "viewers": len(self._viewers),
            "frames_encoded": counts.encoded,
            "frames_dropped": counts.dropped,
            "frames_thinned": counts.thinned,
            "keyframes": counts.keyframes,
            "keyframe_requests": counts.requests,
            "encode_seconds_median": median(counts.seconds) if counts.seconds else 0.0,
            "encode_seconds_p95": float(np.percentile(counts.seconds, 95)) if counts.seconds else 0.0,
            "bitrate": counts.bitrate(self._clock()),
        }

    def check(self) -> str:
        return self._problem

    async def aclose(self) -> None:
        """Tell the peers and end. In the event loop."""
        self._closed = True
        await self.sessions.aclose()
        for viewer in list(self._viewers):
            self.leave(viewer)
        if self._form is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """The same from another thread, as sinks are closed."""
        self._closed = True
        close_from_thread(self._loop, self.aclose)
        if self._form is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def close_from_thread(loop: asyncio.AbstractEventLoop | None, aclose: Callable) -> None:
    """Run `aclose` in the event loop of what it closes, if there is one that runs, and wait, but not for ever."""
    if loop is None or not loop.is_running():
        return
    try:
        here = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    if here is loop:
        raise RuntimeError("close() would wait for its own event loop: await aclose() there")
    try:
        asyncio.run_coroutine_threadsafe(aclose(), loop).result(CLOSE_SECONDS)
    except TimeoutError:
        raise TransportError(f"webrtc: the peers did not let go within {CLOSE_SECONDS:g} s") from None
