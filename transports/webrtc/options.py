"""What can be chosen about WebRTC, and the ICE servers among it."""

import logging
import re
from dataclasses import dataclass, replace

from aiortc import RTCConfiguration, RTCIceServer

from transports.media import TransportError
from transports.webrtc.encoders import can_encode

_log = logging.getLogger(__name__)

#: What video may be called in `codecs`, and its name in SDP.
CODECS = {"vp8": "VP8", "h264": "H264"}

_ICE = re.compile(r"(stuns?|turns?):(?:([^:@]+):([^@]+)@)?([^@?]+)(\?transport=(?:udp|tcp))?")


@dataclass(frozen=True)
class WebRtcOptions:
    """codecs: "vp8" and "h264", the one preferred first; bitrate: of video, bits a second; viewers, speakers: WHEP and
    WHIP sessions at once; ice_servers: "stun:host:port" or "turn:user:password@host:port". Refuses what cannot be with
    a TransportError."""

    codecs: tuple[str, ...] = ("vp8", "h264")
    bitrate: int = 2_000_000
    viewers: int = 16
    speakers: int = 4
    ice_servers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.codecs or set(self.codecs) - set(CODECS) or len(set(self.codecs)) != len(self.codecs):
            raise TransportError(f"webrtc codecs {', '.join(self.codecs)!r}: give vp8, h264 or both, each once")
        if not 100_000 <= self.bitrate <= 20_000_000:
            raise TransportError(f"webrtc bitrate {self.bitrate}: give 100000 to 20000000 bits a second")
        ice_servers(self.ice_servers)


def encodable(options: WebRtcOptions) -> WebRtcOptions:
    """Without the codecs that PyAV's FFmpeg cannot encode, which is logged. Raises TransportError if none is left."""
    lacking = [codec for codec in options.codecs if not can_encode(codec)]
    if not lacking:
        return options
    kept = tuple(codec for codec in options.codecs if codec not in lacking)
    if not kept:
        raise TransportError(f"webrtc codecs {', '.join(lacking)}: PyAV's FFmpeg cannot encode that; give vp8")
    told = f"WebRTC without {', '.join(lacking)}: PyAV's FFmpeg cannot encode that; viewers get {', '.join(kept)}"
    _log.warning(told)
    return replace(options, codecs=kept)


def ice_servers(addresses: tuple[str, ...]) -> list[RTCIceServer]:
    """Raises TransportError. Of several of a kind the first is used (a limit of aiortc)."""
    servers = []
    for address in addresses:
        match = _ICE.fullmatch(address)
        if match is None or (match[1].startswith("turn") and not match[2]):
            shown = re.sub(r":[^:@]*@", ":...@", address)
            raise TransportError(f"ICE server {shown!r}: give stun:host:port or turn:user:password@host:port")
        servers.append(RTCIceServer(f"{match[1]}:{match[4]}{match[5] or ''}", match[2], match[3]))
    return servers


def configuration(options: WebRtcOptions) -> RTCConfiguration:
    """For a peer connection. Without ICE servers none is asked: aiortc would ask one of its own choice."""
    return RTCConfiguration(iceServers=ice_servers(options.ice_servers))


def links(options: WebRtcOptions) -> list[str]:
    """Link header values that tell a client the ICE servers (RFC 9725 section 4.6)."""
    found = []
    for server in ice_servers(options.ice_servers):
        parts = [f"<{server.urls}>", 'rel="ice-server"']
        if server.username:
            parts += [f'username="{server.username}"', f'credential="{server.credential}"']
            parts.append('credential-type="password"')
        found.append("; ".join(parts))
    return found
