"""What viewers report and what we tell them, in RTCP.

aiortc hands out none of it. So this module reaches into its senders, all in one place, and needs there:
RTCRtpSender._handle_rtcp_packet, _send_rtcp, _ssrc and transport._rtp_router; tests/test_webrtc_broadcast.py checks.
"""

import math
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from aiortc import RTCRtpSender, clock
from aiortc.rtp import (
    RTCP_PSFB_APP,
    RTCP_PSFB_FIR,
    RTCP_PSFB_PLI,
    RTCP_RTPFB_NACK,
    RtcpPsfbPacket,
    RtcpRrPacket,
    RtcpRtpfbPacket,
    RtcpSrPacket,
    unpack_remb_fci,
)

#: Packets of one stream that are sent to one viewer once more: in a second, and at once. A report of 1200 bytes may ask
#: for 5000 of them; that many, again and again, would keep the event loop from everything else.
RESENT_PER_SECOND, RESENT_AT_ONCE = 400.0, 128


@dataclass
class Feedback:
    """What a viewer may say of a stream. keyframe: it needs one (PLI, RFC 4585; FIR, RFC 5104); loss: part of the
    packets lost since it last said so, 0 to 1; remb: bits a second that it thinks the way to it carries."""

    keyframe: Callable[[], None] = lambda: None
    loss: Callable[[float], None] = lambda part: None
    remb: Callable[[float], None] = lambda bitrate: None


@dataclass
class Resending:
    """Which of the packets that a viewer misses it gets once more. left: how many it may have at `then`, in seconds."""

    left: float = RESENT_AT_ONCE
    then: float = math.inf

    def admit(self, lost: Iterable[int], now: float) -> list[int]:
        """Each once, as far as its allowance goes; the others need a keyframe, which it will ask for."""
        self.left = min(RESENT_AT_ONCE, self.left + max(0.0, now - self.then) * RESENT_PER_SECOND)
        self.then = now
        kept = list(dict.fromkeys(lost))[: int(self.left)]
        self.left -= len(kept)
        return kept


def spare(sender: RTCRtpSender, now: Callable[[], float] = time.monotonic) -> None:
    """Bound what a viewer has a sender send once more (generic NACK, RFC 4585 section 6.2.1)."""
    handle, resending = sender._handle_rtcp_packet, Resending()

    async def sparing(packet: object) -> None:
        if isinstance(packet, RtcpRtpfbPacket) and packet.fmt == RTCP_RTPFB_NACK:
            packet.lost = resending.admit(packet.lost, now())
        await handle(packet)

    sender._handle_rtcp_packet = sparing


def hear(sender: RTCRtpSender, feedback: Feedback) -> None:
    """Have `feedback` told what comes for this sender. Call it when the peer is connected: before, aiortc may still
    give the sender another transport."""
    handle = sender._handle_rtcp_packet

    async def hearing(packet: object) -> None:
        if isinstance(packet, RtcpPsfbPacket) and packet.fmt in (RTCP_PSFB_PLI, RTCP_PSFB_FIR):
            feedback.keyframe()
        elif isinstance(packet, RtcpPsfbPacket) and packet.fmt == RTCP_PSFB_APP:
            try:
                bitrate, sources = unpack_remb_fci(packet.fci)
            except (ValueError, struct.error):
                return
            if sender._ssrc in sources:
                feedback.remb(bitrate)
        elif isinstance(packet, RtcpRrPacket | RtcpSrPacket):
            for report in packet.reports:
                if report.ssrc == sender._ssrc:
                    feedback.loss(report.fraction_lost / 256)
        await handle(packet)

    sender._handle_rtcp_packet = hearing
    # aiortc routes no FIR
    sender.transport._rtp_router.register_sender(_Intra(sender._ssrc, feedback.keyframe), 0)


class _Intra:
    """Takes what is addressed to nobody: a FIR names its stream in its body (RFC 5104 section 4.3.1.2)."""

    def __init__(self, ssrc: int, keyframe: Callable[[], None]) -> None:
        self._ssrc, self._named, self._keyframe = 0, ssrc, keyframe

    async def _handle_rtcp_packet(self, packet: object) -> None:
        if isinstance(packet, RtcpPsfbPacket) and packet.fmt == RTCP_PSFB_FIR:
            named = [struct.unpack_from("!L", packet.fci, at)[0] for at in range(0, len(packet.fci) - 7, 8)]
            if self._named in named:
                self._keyframe()


def date(sender: RTCRtpSender, rate: int, sent: Callable[[], int | None], seconds: Callable[[], float | None]) -> None:
    """Have sender reports say what the RTP clock reads at their time (RFC 3550 section 6.4.1).

    aiortc pairs the moment of the last packet with that packet's time, so that whatever passes between a frame's time
    and its being sent moves lips against voice. rate: of the RTP clock; sent: RTP time of the last packet, without
    aiortc's random beginning; seconds: what the stream's clock reads now. None: not known yet.
    """
    send = sender._send_rtcp

    async def dating(packets: list) -> None:
        last, now = sent(), seconds()
        for packet in packets:
            if isinstance(packet, RtcpSrPacket) and last is not None and now is not None:
                info = packet.sender_info
                beginning = info.rtp_timestamp - last
                ago = (clock.current_ntp_time() - info.ntp_timestamp) / 2**32
                info.rtp_timestamp = (beginning + round((now - ago) * rate)) % 2**32
        await send(packets)

    sender._send_rtcp = dating


def waiting(sender: RTCRtpSender) -> int:
    """Bytes that the system would not take yet."""
    try:
        pairs = sender.transport.transport._connection._nominated.values()
        return sum(pair.protocol.transport.get_write_buffer_size() for pair in pairs)
    except AttributeError:  # relayed, or not connected
        return 0
