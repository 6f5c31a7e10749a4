"""The head to one peer, whoever offered: what aiortc needs to send what a Broadcast encodes."""

from aiortc import RTCRtpSender, RTCRtpTransceiver
from aiortc.rtcrtpparameters import RTCRtpCodecCapability

from transports.webrtc.broadcast import Broadcast, PacketTrack
from transports.webrtc.rtcp import date, hear, spare, waiting
from transports.webrtc.sessions import Session


def capabilities(kind: str, name: str) -> list[RTCRtpCodecCapability]:
    """What aiortc can do of a codec, with retransmission."""
    known = RTCRtpSender.getCapabilities(kind).codecs
    return [codec for codec in known if codec.name.lower() in (name, "rtx")]


def wire(sender: RTCRtpSender, track: PacketTrack, broadcast: Broadcast) -> None:
    """Tie a sender to the broadcast's clock, its queue to what the system takes, and bound what it sends once more."""
    spare(sender)
    track.waiting = lambda: waiting(sender)
    date(sender, track.clock, lambda: track.last, broadcast.seconds)


def show(broadcast: Broadcast, session: Session, codec: str, audio: str) -> dict[str, RTCRtpTransceiver]:
    """Have a session's peer see the head in `codec` ("" for not) while it is connected. audio: the direction of its
    sound, "" for none. Returns the transceivers by kind, to be negotiated."""
    viewer = broadcast.viewer(codec, bool(audio))
    found = {}
    if viewer.video is not None:
        found["video"] = session.connection.addTransceiver(viewer.video, "sendonly")
        found["video"].setCodecPreferences(capabilities("video", codec))
    if viewer.voice is not None:
        found["audio"] = session.connection.addTransceiver(viewer.voice, audio)
        found["audio"].setCodecPreferences(capabilities("audio", "opus"))
    for transceiver, track in zip(found.values(), filter(None, (viewer.video, viewer.voice)), strict=True):
        wire(transceiver.sender, track, broadcast)
    feedback = broadcast.feedback(viewer)

    def connected() -> None:
        if "video" in found:
            hear(found["video"].sender, feedback)
        broadcast.join(viewer)

    session.connected.append(connected)
    session.ended.append(lambda: broadcast.leave(viewer))
    return found
