"""Sessions over HTTP, as WHIP (RFC 9725) and WHEP (draft-ietf-wish-whep) have them in common.

A POST with an offer makes a session: a peer connection under a name that nobody guesses. Its URL takes DELETE, and
PATCH for candidates that come later (trickle ICE); ICE is not restarted. Sessions end by DELETE, by the peer's closing,
when ICE finds that the peer is gone (RFC 7675, half a minute), and when no connection comes about.
"""

import asyncio
import contextlib
import logging
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiortc import RTCConfiguration, RTCIceCandidate, RTCPeerConnection, RTCSessionDescription

from transports.webrtc.candidates import CandidateQuota, is_name, read_candidate
from transports.webrtc.description import unreadable
from transports.webrtc.dtls import take_rsa
from transports.webrtc.ice_servers import IceServer
from transports.webrtc.offers import Offer, Part, answer, read_offer, routes, take
from transports.webrtc.packets import tolerate_checks, tolerate_media
from transports.webrtc.refusals import Refusal

SDP, FRAGMENT = "application/sdp", "application/trickle-ice-sdpfrag"
#: The largest body, and how long it may take to arrive.
MAX_BYTES, BODY_SECONDS = 64 * 1024, 10.0
#: Time for ICE and DTLS, and to let a peer go.
CONNECT_SECONDS, LEAVE_SECONDS = 20.0, 3.0
RETRY_AFTER = "5"

_log = logging.getLogger(__name__)


class Session:
    """One peer. ended: called once when it is over, whatever was the reason; connected: when media can flow; ufrags: of
    ICE, that the peer has; routes: as of offers.routes."""

    def __init__(self, servers: Sequence[IceServer]) -> None:
        """servers: those that its own addresses are asked of."""
        self.id, self.etag = secrets.token_urlsafe(16), f'"{secrets.token_hex(8)}"'
        # without servers of its own, aiortc would ask one of its makers' choice
        self.connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        take_rsa(self.connection)
        self._servers = servers
        self.ended: list[Callable[[], None]] = []
        self.connected: list[Callable[[], None]] = []
        self.ufrags: frozenset[str] = frozenset()
        self.routes: Mapping[str, str] = {}
        self._quota = CandidateQuota()
        self._lookups: set[asyncio.Task] = set()
        self._over: asyncio.Task | None = None
        self._limit: asyncio.TimerHandle | None = None

    def watch(self) -> None:
        """Notice when the peer comes and goes."""
        came = False

        def give_up() -> None:
            _log.info(f"a peer was not connected within {CONNECT_SECONDS:g} s: {self._missing()}")
            self.end()

        self._limit = asyncio.get_running_loop().call_later(CONNECT_SECONDS, give_up)

        def changed() -> None:
            nonlocal came
            state = self.connection.connectionState
            if state == "failed" and not came:
                _log.info(f"a peer could not be connected: {self._missing()}")
            if state == "connected":
                came = True
                self._limit.cancel()
                waiting, self.connected = self.connected, []
                for call in waiting:
                    call()
            elif state in ("failed", "closed"):
                self.end()

        self.connection.on("connectionstatechange", changed)

    def _missing(self) -> str:
        """Which of the two steps to a connection did not succeed."""
        transports = {each.receiver.transport for each in self.connection.getTransceivers()}
        if any(
            each.transport.state not in ("connected", "completed") and each.state != "failed" for each in transports
        ):
            return "no packets come through between it and this machine (ICE)"
        return "its DTLS and ours do not agree, perhaps on the kind of its certificate"

    async def gather(self) -> None:
        """Set the local description, for which our own candidates are gathered. aiortc is not told the servers itself,
        as it takes no IPv6 address for one, and of each kind just one; it is aioice that asks them."""
        stun = next((each for each in self._servers if not each.is_turn and not each.is_ipv6), None)  # asked by IPv4
        turn = next((each for each in self._servers if each.is_turn), None)
        transports = dict.fromkeys(each.receiver.transport for each in self.connection.getTransceivers())
        for transport in transports:
            tolerate_media(transport)
            ice = transport.transport.iceGatherer._connection
            if stun is not None:
                ice.stun_server = stun.host, stun.port
            if turn is not None:
                ice.turn_server, ice.turn_transport = (turn.host, turn.port), turn.transport
                ice.turn_ssl = turn.scheme == "turns"
                ice.turn_username, ice.turn_password = turn.username, turn.password
        await self.connection.setLocalDescription()
        for transport in transports:
            tolerate_checks(transport.transport)

    async def add(self, candidates: Iterable[tuple[str, RTCIceCandidate]]) -> None:
        """Have candidates checked, as far as this peer's quota goes. candidates: (mid of the part that it was told
        for, "" for the first one; candidate). That no more come is not told to aiortc: a peer comes by its own checks,
        too, and aiortc would fail at once where it was told of no candidate.

        Those under mDNS names, as browsers tell them that hide their addresses, are looked up, which takes a second, in
        vain across networks; nobody waits for it, as the peer's own checks mostly come first and tell its address."""
        first = next(iter(self.routes.values()), None)
        for mid, candidate in candidates:
            route = self.routes.get(mid) if mid else first
            if route is None or not self._quota.admits(candidate):
                continue
            candidate.sdpMid = route
            if is_name(candidate):
                task = asyncio.ensure_future(self._look_up(candidate))
                self._lookups.add(task)
                task.add_done_callback(self._lookups.discard)
            else:
                await self.connection.addIceCandidate(candidate)

    async def _look_up(self, candidate: RTCIceCandidate) -> None:
        try:
            await self.connection.addIceCandidate(candidate)
        except Exception as error:  # closed meanwhile
            _log.debug("a candidate was not added: %s: %s", type(error).__name__, error)

    def end(self) -> asyncio.Future:
        """It is over; what to await until nothing is left of it, which does not end if whoever awaits it does."""
        if self._over is None:
            if self._limit is not None:
                self._limit.cancel()
            for task in self._lookups:
                task.cancel()
            ended, self.ended, self.connected = self.ended, [], []
            for call in ended:
                call()
            self._over = asyncio.ensure_future(self._close())
        return asyncio.shield(self._over)

    async def _close(self) -> None:
        try:
            await asyncio.wait_for(self.connection.close(), LEAVE_SECONDS)
        except Exception as error:
            _log.warning("a peer connection did not close: %s: %s", type(error).__name__, error)


class Sessions:
    """The sessions of an endpoint, `limit` at most."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: dict[str, Session] = {}
        self._coming = 0
        self._leaving: set[asyncio.Future] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._open)

    def get(self, name: str) -> Session:
        """Raises Refusal."""
        if name not in self._open:
            raise Refusal(404, "there is no such session")
        return self._open[name]

    @contextlib.asynccontextmanager
    async def coming(self, servers: Sequence[IceServer]) -> AsyncIterator[Session]:
        """Negotiate a new session in this block: after it the session is one of these, or over if that failed. Raises
        Refusal."""
        taken = len(self._open) + self._coming
        if self._closed or taken >= self._limit:
            full = f"{taken} of {self._limit} places {'is' if self._limit == 1 else 'are'} taken"
            reason = "the head is about to end" if self._closed else full
            raise Refusal(503, f"{reason}; try again later", {"Retry-After": RETRY_AFTER})
        session = Session(servers)
        self._coming += 1
        try:
            yield session
            if self._closed:
                raise Refusal(503, "the head is about to end", {"Retry-After": RETRY_AFTER})
        except BaseException:
            await session.end()
            raise
        finally:
            self._coming -= 1
        self._open[session.id] = session
        session.ended.append(lambda: self._forget(session))
        session.watch()

    def _forget(self, session: Session) -> None:
        self._open.pop(session.id, None)
        # called within Session.end, before its task is there
        asyncio.get_running_loop().call_soon(self._keep, session)

    def _keep(self, session: Session) -> None:
        over = session.end()
        self._leaving.add(over)
        over.add_done_callback(self._leaving.discard)

    async def aclose(self) -> None:
        """End all, and let no more come."""
        self._closed = True
        over = [session.end() for session in list(self._open.values())]
        await asyncio.gather(*over, *self._leaving, return_exceptions=True)


def refusing(handler: Callable[[web.Request], Awaitable[web.Response]]) -> Callable:
    """A handler whose Refusal becomes the response: its status and one line of text."""

    async def handle(request: web.Request) -> web.Response:
        try:
            return await handler(request)
        except Refusal as refusal:
            # unread bytes of a body that was refused must not be taken for the next request
            response = web.Response(status=refusal.status, text=f"{refusal}\n", headers=refusal.headers)
            if not request.content.at_eof() or request.content.exception() is not None:
                response.force_close()
            return response

    return handle


async def read_body(request: web.Request, kind: str) -> str:
    """The body, which must be of the content type `kind`. Raises Refusal."""
    if request.content_type != kind:
        raise Refusal(415, f"send {kind}", {"Accept-Post" if kind == SDP else "Accept-Patch": kind})
    body = bytearray()
    if (request.content_length or 0) > MAX_BYTES:
        raise Refusal(413, f"more than {MAX_BYTES} bytes")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.content.iter_chunked(MAX_BYTES):
                body += chunk
                if len(body) > MAX_BYTES:
                    raise Refusal(413, f"more than {MAX_BYTES} bytes")
        return body.decode()
    except TimeoutError:
        raise Refusal(408, f"the body did not arrive within {BODY_SECONDS:g} s") from None
    except (UnicodeDecodeError, web.RequestPayloadError, HttpProcessingError):
        request.content.feed_eof()  # else aiohttp reads on to the end, and logs the same error with a traceback
        raise Refusal(400, "the body cannot be read; send UTF-8") from None


def check_accept(request: web.Request) -> None:
    """Raises Refusal if the client takes no SDP."""
    accepted = request.headers.get("Accept", "*/*").lower()
    if not any(kind in accepted for kind in ("*/*", "application/*", SDP)):
        raise Refusal(406, f"the answer is {SDP}")


async def read_request(request: web.Request) -> Offer:
    """The offer of a POST. Raises Refusal."""
    text = await read_body(request, SDP)
    check_accept(request)
    return read_offer(text)


async def negotiate(session: Session, offer: Offer, kept: Sequence[Part]) -> str:
    """Answer the parts that are kept, for which the connection has its transceivers. Raises Refusal.

    Nothing connects before the caller awaits something: until then it can say what is to happen when it does."""
    connection = session.connection
    session.ufrags = frozenset(part.transport.ufrag for part in offer.parts) - {""}
    session.routes = routes(offer, kept)
    try:
        await connection.setRemoteDescription(RTCSessionDescription(take(offer, kept), "offer"))
        await session.add((part.mid, candidate) for part in offer.parts for candidate in part.candidates)
        await session.gather()
    except Exception as error:  # of many kinds: what was understood here and aiortc cannot do
        _log.info("an offer was refused: %s: %s", type(error).__name__, error)
        raise Refusal(422, "the offer cannot be answered") from None
    return answer(offer, kept, connection.localDescription.sdp)


def created(request: web.Request, session: Session, text: str, links: Sequence[str]) -> web.Response:
    """201, with the session's URL, relative to the one that was asked: a proxy may show this server below a path."""
    response = web.Response(status=201, text=text, content_type=SDP)
    last = request.rel_url.raw_path.rpartition("/")[2]
    response.headers["Location"] = f"{last}/{session.id}" if last else session.id
    response.headers["ETag"] = session.etag
    response.headers["Accept-Patch"] = FRAGMENT
    for link in links:
        response.headers.add("Link", link)
    return response


async def trickle(session: Session, request: web.Request) -> web.Response:
    """Candidates that were found after the offer (RFC 8840 section 9, RFC 9725 section 4.3). Raises Refusal."""
    text = await read_body(request, FRAGMENT)
    match = request.headers.get("If-Match")
    ufrag = re.search(r"(?m)^a=ice-ufrag:(\S+)", text)
    if match == "*" or (ufrag and ufrag[1] not in session.ufrags):
        raise Refusal(422, "ICE cannot be restarted here: begin a new session")
    # some clients send no If-Match; there is one ICE session only, so nothing can be mistaken
    if match is not None and match != session.etag:
        raise Refusal(412, "this is not the session's ETag")
    await session.add(read_fragment(text))
    return web.Response(status=204)


def read_fragment(text: str) -> list[tuple[str, RTCIceCandidate]]:
    """(mid, candidate) of all that can be used. Raises Refusal (400)."""
    mid, found = "", []
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("a=mid:"):
            mid = line.removeprefix("a=mid:").strip()
        elif line.startswith("a=candidate:"):
            try:
                candidate = read_candidate(line.removeprefix("a=candidate:"))
            except ValueError as error:
                raise unreadable(number, line, str(error)) from None
            if candidate is not None:
                found.append((mid, candidate))
    return found


def session_routes(
    path: str, sessions: Sessions, post: Callable[[web.Request], Awaitable[web.Response]], links: Sequence[str]
) -> list[web.RouteDef]:
    """POST and OPTIONS at `path`, PATCH, DELETE and OPTIONS at the sessions below it. Other methods get 405."""

    async def options(request: web.Request) -> web.Response:
        response = web.Response(status=204, headers={"Allow": "OPTIONS, POST", "Accept-Post": SDP})
        for link in links:
            response.headers.add("Link", link)
        return response

    async def session_options(request: web.Request) -> web.Response:
        return web.Response(status=204, headers={"Allow": "DELETE, OPTIONS, PATCH", "Accept-Patch": FRAGMENT})

    async def patch(request: web.Request) -> web.Response:
        return await trickle(sessions.get(request.match_info["session"]), request)

    async def delete(request: web.Request) -> web.Response:
        await sessions.get(request.match_info["session"]).end()
        return web.Response()

    return [
        *(web.post(each, refusing(post)) for each in (path, f"{path}/")),  # as people type it
        *(web.options(each, options) for each in (path, f"{path}/")),
        web.patch(f"{path}/{{session}}", refusing(patch)),
        web.delete(f"{path}/{{session}}", refusing(delete)),
        web.options(f"{path}/{{session}}", session_options),
    ]
