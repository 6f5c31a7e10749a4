"""WHEP (draft-ietf-wish-whep-03): a viewer sends an offer and gets the head; its voice, too, if that is wanted."""

from collections.abc import Callable, Collection

from aiohttp import web

from transports.webrtc.broadcast import Broadcast
from transports.webrtc.listening import Listener, attend, hasten, outlast
from transports.webrtc.offers import Offer, Part
from transports.webrtc.options import CODECS, links
from transports.webrtc.refusals import Refusal
from transports.webrtc.sessions import RETRY_AFTER, created, negotiate, read_request, session_routes
from transports.webrtc.showing import show


def choose(offer: Offer, codecs: Collection[str]) -> tuple[Part | None, Part | None]:
    """The parts for picture and voice. Raises Refusal if nothing of the head could be shown or heard."""
    video = offer.first("video", lambda part: part.takes and bool(part.codecs & set(codecs)))
    audio = offer.first("audio", lambda part: part.takes and "opus" in part.codecs)
    if video is None:
        offer.faults("video", lambda part: part.takes)
        if any(part.kind == "video" and part.takes for part in offer.parts):
            names = " or ".join(CODECS[codec] for codec in codecs)
            raise Refusal(406, f"no video codec in common: offer {names}")
    if video is None and audio is None:
        offer.faults("audio", lambda part: part.takes)
        if any(part.takes and part.kind == "audio" for part in offer.parts):
            raise Refusal(406, "no audio codec in common: offer opus")
        raise Refusal(422, "the offer wants neither picture nor voice: offer recvonly video, audio or both")
    return video, audio


def whep_routes(
    broadcast: Broadcast, listen: Callable[[], Listener] | None = None, path: str = "/whep"
) -> list[web.RouteDef]:
    """Routes for aiohttp. listen: makes what a viewer's own voice goes to, if its offer has one; None to send only."""
    options = broadcast.options

    async def post(request: web.Request) -> web.Response:
        offer = await read_request(request)
        video, audio = choose(offer, options.codecs)
        kept = [part for part in (video, audio) if part is not None]
        if not broadcast.running:
            raise Refusal(503, "the head is not running", {"Retry-After": RETRY_AFTER})
        async with broadcast.sessions.coming(options.servers()) as session:
            codec = next(name for name in options.codecs if name in video.codecs) if video else ""
            speaks = listen is not None and audio is not None and audio.gives
            direction = ("sendrecv" if speaks else "sendonly") if audio else ""
            found = show(broadcast, session, codec, direction)
            answer = await negotiate(session, offer, kept)
            if speaks:
                hasten(found["audio"].receiver)
                outlast(found["audio"].receiver)
                track = found["audio"].receiver.track
                session.connected.append(lambda: session.ended.append(attend(track, listen())))
        return created(request, session, answer, links(options))

    return session_routes(path, broadcast.sessions, post, links(options))
