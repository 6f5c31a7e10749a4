"""Packets of all kinds as they come from the network, where anybody can send any: one that cannot be read is dropped.

aiortc and aioice do so with most, and at others end the connection, or tell the log of a fault of ours. They are
reached into here, all in one place: RTCDtlsTransport._handle_rtp_data and _handle_rtcp_data,
RTCIceTransport._connection and its _protocols; tests/test_webrtc_broadcast.py checks.
"""

import logging
from collections.abc import Callable

from aiortc import RTCDtlsTransport, RTCIceTransport

#: Sources of RTP that one peer may have: a report names no more (RFC 3550 section 6.4.2).
MAX_SOURCES = 31

_log = logging.getLogger(__name__)


def tolerate_media(transport: RTCDtlsTransport) -> None:
    """Have a packet that cannot be read be dropped (RFC 3550 section A.1, RFC 8285 section 4.1), and those of a peer's
    sources beyond MAX_SOURCES. aiortc ends the connection at some packets that it cannot read, such as one with a
    header extension of an unusual length, and cannot be closed once it has more sources to report on."""
    rtp, rtcp, sources = transport._handle_rtp_data, transport._handle_rtcp_data, set()

    async def known(data: bytes, **more: object) -> None:
        source = data[8:12]
        if source in sources or len(sources) < MAX_SOURCES:
            sources.add(source)
            await rtp(data, **more)

    transport._handle_rtp_data, transport._handle_rtcp_data = _dropping(known), _dropping(rtcp)


def _dropping(handle: Callable) -> Callable:
    async def dropping(data: bytes, **more: object) -> None:
        try:
            await handle(data, **more)
        except ConnectionError:
            raise
        except Exception as error:
            _log.debug("a packet was dropped: %s: %s", type(error).__name__, error)

    return dropping


def tolerate_checks(transport: RTCIceTransport) -> None:
    """The same for STUN, which comes before anybody is known (RFC 8489 section 6.3). Call it once there are our own
    candidates."""
    for protocol in transport._connection._protocols:
        protocol.datagram_received = _noted(protocol.datagram_received)


def _noted(handle: Callable) -> Callable:
    def noted(data: bytes, address: tuple) -> None:
        try:
            handle(data, address)
        except Exception as error:
            _log.debug("a packet was dropped: %s: %s", type(error).__name__, error)

    return noted
