"""The head to another server: a WHIP client (RFC 9725), the output "whip".

It keeps trying: after a refusal, or when server or peer go, it begins anew after a pause that doubles up to a minute,
with jitter, and not before a server that said Retry-After. `check` says what is the matter. A token goes to the origin
of the given address only, not to where that redirects. At the end the session is deleted.
"""

import asyncio
import contextlib
import email.utils
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlsplit

from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout
from aiortc import RTCSessionDescription

from transports.media import LazySink, MediaFormat, MediaFrame, TransportError, one_line
from transports.webrtc.answers import read_answer
from transports.webrtc.broadcast import Broadcast, close_from_thread
from transports.webrtc.encoders import can_encode
from transports.webrtc.offers import with_one_fingerprint
from transports.webrtc.options import CODECS, WebRtcOptions
from transports.webrtc.refusals import Refusal
from transports.webrtc.sessions import CONNECT_SECONDS, MAX_BYTES, SDP, Session
from transports.webrtc.showing import show

PAUSE_SECONDS, MAX_PAUSE_SECONDS, MAX_RETRY_AFTER = 1.0, 60.0, 600.0
REQUEST_SECONDS, DELETE_SECONDS = 15.0, 2.0
MAX_REDIRECTS = 5
#: A connection that held for so long was a good one: the next pause is a short one again.
GOOD_SECONDS = 10.0

_REASONS = {401: "the token is missing or wrong", 403: "the token is not allowed to publish", 404: "no such endpoint"}


class _Failed(Exception):
    """Publishing did not come about. after: seconds that the server asks to wait."""

    def __init__(self, message: str, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


@dataclass(frozen=True)
class WhipOptions:
    """url: of the endpoint; token: bearer token, "" for none; codec: "h264" or "vp8"; bitrate: of video, bits a second;
    ice_servers, turn_username, turn_password: as in WebRtcOptions."""

    url: str
    token: str = ""
    codec: str = "h264"
    bitrate: int = 2_000_000
    ice_servers: tuple[str, ...] = ()
    turn_username: str = ""
    turn_password: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise TransportError("whip url: give the address of a WHIP endpoint, such as https://host/whip")
        if not self.token.isascii() or not self.token.isprintable():
            raise TransportError("whip token: it has characters that no header may have")
        if self.codec not in CODECS:
            raise TransportError(f"whip codec {self.codec!r}: give {' or '.join(CODECS)}")
        if not can_encode(self.codec):
            others = " or ".join(filter(can_encode, CODECS))
            raise TransportError(f"whip codec {self.codec!r}: PyAV's FFmpeg cannot encode that; give {others}")
        self.webrtc()

    def webrtc(self) -> WebRtcOptions:
        """What of it a Broadcast takes. Raises TransportError."""
        servers = self.ice_servers, self.turn_username, self.turn_password
        return WebRtcOptions((self.codec,), self.bitrate, 16, 4, *servers)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def retry_after(value: str | None, now: float) -> float:
    """Seconds to wait by a Retry-After header, in either form (RFC 9110 section 10.2.3); 0 if there is no sense in it.
    now: seconds of time.time()."""
    try:
        seconds = float(int(value or 0))
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - now
        except ValueError:
            return 0.0
    return min(max(0.0, seconds), MAX_RETRY_AFTER)


class WhipSink(LazySink):
    """See the module. `send` and `interrupt` are for the event loop, all else for any thread."""

    name = "whip"

    def __init__(self, options: WhipOptions, pause: float = PAUSE_SECONDS) -> None:
        """pause: seconds before the first new attempt."""
        self._options, self._pause = options, pause
        self.broadcast = Broadcast(options.webrtc())
        self.broadcast.name = self.name
        self.attempts = 0
        self._host = urlsplit(options.url).netloc.rpartition("@")[2]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task | None = None
        self._problem = ""
        self._closed = False

    @property
    def connected(self) -> bool:
        return self.broadcast.viewers > 0

    def open(self, form: MediaFormat) -> None:
        self.broadcast.open(form)

    def send(self, frame: MediaFrame) -> None:
        if self._task is None and not self._closed:
            self._loop = asyncio.get_running_loop()
            self._task = self._loop.create_task(self._run())
        self.broadcast.send(frame)

    def interrupt(self) -> None:
        self.broadcast.interrupt()

    def check(self) -> str:
        return self._problem or self.broadcast.check()

    async def aclose(self) -> None:
        """Delete the session and end. In the event loop."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self.broadcast.aclose()

    def close(self) -> None:
        self._closed = True
        close_from_thread(self._loop, self.aclose)
        self.broadcast.close()

    async def _run(self) -> None:
        tries = 0
        async with ClientSession(timeout=ClientTimeout(total=REQUEST_SECONDS)) as client:
            while True:
                began, after = time.monotonic(), 0.0
                try:
                    await self._publish(client)
                    reason = "the connection was lost"
                except _Failed as failure:
                    reason, after = str(failure), failure.after
                except Refusal as refusal:
                    reason = f"its answer cannot be taken: {refusal}"
                except (ClientError, TimeoutError, OSError) as error:
                    reason = one_line(error) or "no answer in time"
                except Exception as error:  # an answer that aiortc cannot make sense of
                    reason = f"{type(error).__name__}: {one_line(error)}"
                tries = 0 if time.monotonic() - began > GOOD_SECONDS else tries + 1
                longest = min(MAX_PAUSE_SECONDS, self._pause * 2 ** min(max(0, tries - 1), 16))
                pause = max(after, longest * random.uniform(0.5, 1.0))
                self._problem = f"whip: {self._host}: {reason}; again in {pause:.0f} s"
                await asyncio.sleep(pause)

    async def _publish(self, client: ClientSession) -> None:
        """Connect, and return when the connection is over. Raises _Failed, and what aiohttp and aiortc raise."""
        self.attempts += 1
        session = Session(self.broadcast.options.servers())
        over, met = asyncio.Event(), asyncio.Event()
        session.ended.append(over.set)
        resource = None
        try:
            connection = session.connection
            show(self.broadcast, session, self._options.codec, "sendonly")
            session.connected += [met.set, self._connected]
            await session.gather()
            offer = with_one_fingerprint(connection.localDescription.sdp)
            resource, text = await self._post(client, offer)
            answer = read_answer(text, offer)
            session.routes = answer.routes
            await connection.setRemoteDescription(RTCSessionDescription(answer.text, "answer"))
            await session.add(answer.candidates)
            session.watch()
            await over.wait()
            if not met.is_set():
                raise _Failed(f"no connection within {CONNECT_SECONDS:g} s")
        finally:
            if resource is not None:
                await self._delete(client, resource)
            await session.end()

    def _connected(self) -> None:
        self._problem = ""

    def _headers(self, url: str) -> dict[str, str]:
        known = self._options.token and _origin(url) == _origin(self._options.url)
        return {"Authorization": f"Bearer {self._options.token}"} if known else {}

    async def _post(self, client: ClientSession, offer: str) -> tuple[str, str]:
        """(address of the session, answer)."""
        url = self._options.url
        for _ in range(MAX_REDIRECTS + 1):
            headers = {"Content-Type": SDP, "Accept": SDP} | self._headers(url)
            async with client.post(url, data=offer.encode(), headers=headers, allow_redirects=False) as response:
                location = response.headers.get("Location")
                if response.status in (307, 308) and location:
                    url = _resolve(url, location)
                    continue
                return await self._created(url, response)
        raise _Failed(f"more than {MAX_REDIRECTS} redirects")

    async def _created(self, url: str, response: ClientResponse) -> tuple[str, str]:
        if response.status != 201:
            reason = _REASONS.get(response.status, response.reason or "")
            after = retry_after(response.headers.get("Retry-After"), time.time())
            raise _Failed(f"{response.status}: {reason}", after)
        if "Location" not in response.headers or response.content_type != SDP:
            raise _Failed("the answer is not that of a WHIP server")
        answer = await response.content.read(MAX_BYTES + 1)
        while len(answer) <= MAX_BYTES and (more := await response.content.read(MAX_BYTES + 1)):
            answer += more
        if len(answer) > MAX_BYTES:
            raise _Failed("the answer is too long")
        return _resolve(url, response.headers["Location"]), answer.decode(errors="replace")

    async def _delete(self, client: ClientSession, resource: str) -> None:
        with contextlib.suppress(ClientError, TimeoutError, OSError):
            async with client.delete(
                resource, headers=self._headers(resource), timeout=ClientTimeout(total=DELETE_SECONDS)
            ):
                pass


def _resolve(url: str, location: str) -> str:
    resolved = urljoin(url, location)
    if urlsplit(resolved).scheme not in ("http", "https"):
        raise _Failed("the server points to an address that is none of HTTP")
    return resolved


def create(options: Mapping[str, Any]) -> WhipSink:
    """The output "whip". options: those of WhipOptions."""
    return WhipSink(WhipOptions(**{name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}))
