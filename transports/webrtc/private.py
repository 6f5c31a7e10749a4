"""The private parts of aiortc and aioice that this package reaches into, in one list.

pyproject.toml allows the versions that have them. Where one is gone all the same, part of what hangs on it would be
worse and nobody would know: it is looked for when this package is imported.
"""

from importlib.metadata import version
from types import FunctionType

import aioice
from aiortc import (
    RTCCertificate,
    RTCDtlsTransport,
    RTCIceGatherer,
    RTCIceTransport,
    RTCPeerConnection,
    RTCRtpReceiver,
    RTCRtpSender,
)
from aiortc.rtcdtlstransport import RtpRouter

#: What is looked for in what a function does, or in what a class has or sets when it is made.
PARTS: tuple[tuple[type | FunctionType, tuple[str, ...]], ...] = (
    (RTCRtpSender, ("_handle_rtcp_packet", "_send_rtcp", "_ssrc", "transport")),
    (RTCRtpReceiver, ("_RTCRtpReceiver__jitter_buffer",)),
    (RTCRtpReceiver._handle_rtp_packet, ("_data",)),  # of a packet, for the jitter buffer
    (RTCDtlsTransport, ("_rtp_router", "transport")),
    (RtpRouter, ("register_sender",)),
    (RTCIceTransport, ("_connection",)),
    (RTCIceGatherer, ("_connection",)),
    (aioice.Connection, ("_nominated", "stun_server", "turn_server", "turn_transport", "turn_ssl", "turn_username")),
    (RTCPeerConnection, ("_RTCPeerConnection__certificates",)),
    (RTCCertificate, ("_create_ssl_context",)),
)


def missing() -> list[str]:
    """The parts that are gone, each with the version of what lacks it."""

    def names(owner: type | FunctionType) -> set[str]:
        code = owner.__init__.__code__ if isinstance(owner, type) else owner.__code__
        return set(code.co_names) | set(dir(owner))

    return [
        f"{owner.__qualname__}.{part} of {package} {version(package)}"
        for owner, parts in PARTS
        for package in [owner.__module__.partition(".")[0]]
        for part in parts
        if part not in names(owner)
    ]
