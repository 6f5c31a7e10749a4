"""What can be chosen about WebRTC."""

import logging
from dataclasses import dataclass, field, replace

from transports.media import TransportError
from transports.webrtc.encoders import can_encode
from transports.webrtc.ice_servers import IceServer, ice_servers, link

_log = logging.getLogger(__name__)

#: What video may be called in `codecs`, and its name in SDP.
CODECS = {"vp8": "VP8", "h264": "H264"}


@dataclass(frozen=True)
class WebRtcOptions:
    """codecs: "vp8" and "h264", the one preferred first; bitrate: of video, bits a second; viewers, speakers: WHEP and
    WHIP sessions at once; ice_servers: addresses as of ice_servers.py; turn_username, turn_password: for all TURN
    servers among them. Refuses what cannot be with a TransportError."""

    codecs: tuple[str, ...] = ("vp8", "h264")
    bitrate: int = 2_000_000
    viewers: int = 16
    speakers: int = 4
    ice_servers: tuple[str, ...] = ()
    turn_username: str = ""
    turn_password: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if not self.codecs or set(self.codecs) - set(CODECS) or len(set(self.codecs)) != len(self.codecs):
            raise TransportError(f"webrtc codecs {', '.join(self.codecs)!r}: give vp8, h264 or both, each once")
        if not 100_000 <= self.bitrate <= 20_000_000:
            raise TransportError(f"webrtc bitrate {self.bitrate}: give 100000 to 20000000 bits a second")
        self.servers()

    def servers(self) -> list[IceServer]:
        """The ICE servers."""
        return ice_servers(self.ice_servers, self.turn_username, self.turn_password)


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


def links(options: WebRtcOptions) -> list[str]:
    """Link header values that tell a client the ICE servers."""
    return [link(server) for server in options.servers()]
