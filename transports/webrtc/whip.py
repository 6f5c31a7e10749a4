"""WHIP (RFC 9725): somebody sends a voice, and the head speaks it.

Of an offer the first part with sound is taken. Pictures, as OBS sends them, are answered as inactive, so that nothing
is sent in vain; parts without a codec in common, and more voices than one, are refused alone.
"""

from collections.abc import Callable

from aiohttp import web
from aiortc import MediaStreamTrack

from transports.webrtc.listening import Listener, attend, hasten, outlast
from transports.webrtc.offers import Offer, Part
from transports.webrtc.options import WebRtcOptions, links
from transports.webrtc.refusals import Refusal
from transports.webrtc.sessions import Session, Sessions, created, negotiate, read_request, session_routes


class Speakers:
    """The peers that send a voice. listen: makes what each one's voice goes to."""

    def __init__(self, options: WebRtcOptions, listen: Callable[[], Listener]) -> None:
        self.options, self.listen = options, listen
        self.sessions = Sessions(options.speakers)
        self._heard: dict[str, Listener] = {}  # by the ETag of the session

    def attend(self, session: Session, track: MediaStreamTrack) -> None:
        """Begin to hear a peer, until its session ends."""
        listener = self.listen()
        self._heard[session.etag] = listener
        session.ended.extend([attend(track, listener), lambda: self._heard.pop(session.etag)])

    def etag(self, listener: object) -> str | None:
        """The ETag of the session whose voice goes to a listener. It tells that speaker which one it is, and nobody
        how to end it, as the session's URL would."""
        return next((etag for etag, each in self._heard.items() if each is listener), None)

    @property
    def count(self) -> int:
        return len(self.sessions)

    async def aclose(self) -> None:
        """Tell the peers and end. In the event loop."""
        await self.sessions.aclose()


def choose(offer: Offer) -> tuple[Part, Part | None]:
    """The part with the voice, and one with pictures on the same transport, to be answered as inactive. Raises
    Refusal."""
    voice = offer.first("audio", lambda part: part.gives and bool(part.codecs))
    if voice is None:
        offer.faults("audio", lambda part: part.gives)
        if not any(part.kind == "audio" and part.gives for part in offer.parts):
            raise Refusal(422, "the offer has no voice: offer sendonly audio")
        raise Refusal(406, "no audio codec in common: offer opus")
    together = voice.group is not None
    return voice, offer.first("video", lambda part: together and part.group == voice.group and bool(part.codecs))


def whip_routes(speakers: Speakers, path: str = "/whip") -> list[web.RouteDef]:
    """Routes for aiohttp."""
    options = speakers.options

    async def post(request: web.Request) -> web.Response:
        offer = await read_request(request)
        voice, pictures = choose(offer)
        kept = [part for part in (voice, pictures) if part is not None]
        async with speakers.sessions.coming(options.servers()) as session:
            transceiver = session.connection.addTransceiver("audio", "recvonly")
            if pictures is not None:
                session.connection.addTransceiver("video", "inactive")
            answer = await negotiate(session, offer, kept)
            hasten(transceiver.receiver)
            outlast(transceiver.receiver)
            track = transceiver.receiver.track
            session.connected.append(lambda: speakers.attend(session, track))
        return created(request, session, answer, links(options))

    return session_routes(path, speakers.sessions, post, links(options))
