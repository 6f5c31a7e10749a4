"""The voice of a peer, from its packets to whom it is for."""

import asyncio
import logging
from collections.abc import Callable
from fractions import Fraction
from typing import Protocol

import av
import numpy as np
from aiortc import MediaStreamTrack, RTCRtpReceiver
from aiortc.jitterbuffer import MAX_MISORDER, JitterFrame
from aiortc.mediastreams import MediaStreamError
from aiortc.rtp import RtcpByePacket, RtpPacket

#: Lost voice becomes silence, up to here at a time. Who was silent for longer begins anew.
GAP_SECONDS = 1.0
#: A peer of which no packet comes for so long is not heard any more, and others may speak, though its session goes on:
#: that a peer is gone shows in half a minute (RFC 7675). Its voice comes in packets of 20 ms, or of 400 ms in pauses.
LOST_SECONDS = 2.0

_log = logging.getLogger(__name__)


class Listener(Protocol):
    """What a voice goes to, in the event loop."""

    def deliver(self, samples: np.ndarray, rate: int) -> bool:
        """samples: (n,) or (n, channels), int16 or float32; rate: Hz."""

    def finish(self) -> None:
        """No more comes: what was held back can be used."""

    def leave(self) -> None:
        """The speaker is gone, or lost for now: others may speak. What is delivered later may be heard again."""


class GapFiller:
    """Puts silence where packets were lost, so that what moves by the voice stays in step with it."""

    def __init__(self) -> None:
        self.filled = 0  # samples
        self._next: Fraction | None = None  # seconds

    def fill(self, samples: np.ndarray, rate: int, at: Fraction | None) -> np.ndarray:
        """samples: (n, channels) whose first is at `at` seconds (None: unknown). The same, with silence before it."""
        missing = 0 if self._next is None or at is None else round((at - self._next) * rate)
        self._next = None if at is None else at + Fraction(len(samples), rate)
        if 0 < missing <= GAP_SECONDS * rate:
            self.filled += missing
            samples = np.concatenate([np.zeros((missing, samples.shape[1]), samples.dtype), samples])
        return samples


def samples_of(frame: av.AudioFrame) -> np.ndarray:
    """(n, channels) int16 or float32."""
    array = frame.to_ndarray()
    array = array.T if frame.format.is_planar else array.reshape(-1, frame.layout.nb_channels)
    return array if array.dtype in (np.int16, np.float32) else array.astype(np.float32)


async def hear(track: MediaStreamTrack, listener: Listener) -> None:
    """Deliver a peer's track until it ends; while nothing comes of it, the listener is left. The track is always read:
    aiortc's queue in it has no bound."""
    filler, loop = GapFiller(), asyncio.get_running_loop()

    def lose() -> None:
        listener.finish()
        listener.leave()

    try:
        while True:
            lost = loop.call_later(LOST_SECONDS, lose)
            try:
                frame = await track.recv()
            finally:
                lost.cancel()
            at = None if frame.pts is None or frame.time_base is None else frame.pts * Fraction(frame.time_base)
            samples = filler.fill(samples_of(frame), frame.sample_rate, at)
            listener.deliver(samples[:, 0] if samples.shape[1] == 1 else samples, frame.sample_rate)
    except MediaStreamError:
        pass
    finally:
        lose()


class InOrder:
    """Packets of voice, each as it comes, in the place of aiortc's jitter buffer; one that was overtaken is lost."""

    def __init__(self) -> None:
        self._last: int | None = None

    def add(self, packet: RtpPacket) -> tuple[bool, JitterFrame | None]:
        """(False: a voice needs no keyframe, what can be decoded)."""
        number = packet.sequence_number
        if self._last is not None and (self._last - number) % 2**16 < MAX_MISORDER:
            return False, None
        self._last = number
        if not packet._data:  # padding, or nothing to say; to a decoder it would be the end of all
            return False, None
        return False, JitterFrame(packet._data, packet.timestamp)


def hasten(receiver: RTCRtpReceiver) -> None:
    """Have an audio receiver give out packets as they come, before it starts.

    aiortc's buffer holds 4 packets of 20 ms in any case, 16 for one that is missing, and it never gets shorter again:
    320 ms from the first loss on. Whoever hears this has a cushion of its own. Does nothing if there is no such place.
    """
    place = "_RTCRtpReceiver__jitter_buffer"
    if hasattr(receiver, place):
        setattr(receiver, place, InOrder())


def outlast(receiver: RTCRtpReceiver) -> None:
    """Have a receiver go on when a peer says goodbye for one of its sources (RTCP BYE, RFC 3550 section 6.6), as one
    does that changes its SSRC. aiortc would end the track, for good; that nothing more comes is noticed anyway."""
    handle = receiver._handle_rtcp_packet

    async def outlasting(packet: object) -> None:
        if not isinstance(packet, RtcpByePacket):
            await handle(packet)

    receiver._handle_rtcp_packet = outlasting


def attend(track: MediaStreamTrack, listener: Listener) -> Callable[[], None]:
    """Begin to hear; returns what ends it."""
    task = asyncio.ensure_future(hear(track, listener))

    def done(task: asyncio.Task) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("a voice was not heard to its end: %s: %s", type(error).__name__, error)

    task.add_done_callback(done)
    return lambda: task.cancel() and None
