"""The live head over HTTP: the page, WebRTC in and out, sound over a WebSocket, the controls, health and metrics.

A service of the show (plugin/run.py): it runs beside the stream in the same event loop, and ends with it. Whoever may
come in is decided in plugin/guard.py, for all routes alike.
"""

import asyncio
import contextlib
import errno
import io
import ipaddress
import logging
import socket
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from aiohttp import hdrs, web
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.portrait import PortraitError
from plugin import __version__
from plugin.guard import Guard, plain_errors
from plugin.metrics import Metrics
from plugin.render import bundled_portraits
from plugin.run import Show
from plugin.settings import Real, Settings, check_server
from transports.media import TransportError
from transports.webrtc.broadcast import Broadcast
from transports.webrtc.options import WebRtcOptions, ice_servers
from transports.webrtc.whep import whep_routes
from transports.webrtc.whip import Speakers, whip_routes
from transports.websocket import SpeechSockets

PAGE = Path(__file__).parent / "page"
_PAGE_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
#: The largest picture that is taken, and how long it may take to arrive.
UPLOAD_BYTES = 10 << 20
UPLOAD_SECONDS = 30.0
#: The largest body of any other request.
BODY_BYTES = 64 << 10
#: Speakers over WebSocket, and connections of any kind, at once.
SOCKETS = 4
CONNECTIONS = 512
#: A connection that asks for nothing for so long, and a peer that does not close, are cut off.
IDLE_SECONDS = 30.0
CLOSE_SECONDS = 2.0
#: Frames a second are counted over this, and a head that made none in it has stalled.
PULSE_SECONDS = 3.0
BEAT_SECONDS = 0.5
_THUMBNAIL = 192

_log = logging.getLogger(__name__)


class StyleChange(BaseModel):
    """The body of POST /style."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    intensity: Annotated[Real, Field(ge=0, le=2)] | None = None
    pose: (
        tuple[
            Annotated[Real, Field(ge=-20, le=20)],
            Annotated[Real, Field(ge=-15, le=15)],
            Annotated[Real, Field(ge=-15, le=15)],
        ]
        | None
    ) = None


class PortraitChoice(BaseModel):
    """The body of POST /portrait for a bundled one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(max_length=100)


@dataclass
class Pulse:
    """How many frames a second were made lately."""

    beats: deque[tuple[float, int]] = field(default_factory=deque)

    def beat(self, now: float, made: int) -> None:
        """now: seconds; made: frames so far."""
        self.beats.append((now, made))
        while len(self.beats) > 2 and now - self.beats[1][0] >= PULSE_SECONDS:
            self.beats.popleft()

    @property
    def rate(self) -> float:
        (then, before), (now, after) = (self.beats[0], self.beats[-1]) if self.beats else ((0, 0), (0, 0))
        return (after - before) / (now - then) if now > then else 0.0

    @property
    def stalled(self) -> bool:
        return bool(self.beats) and self.beats[-1][0] - self.beats[0][0] >= PULSE_SECONDS and self.rate == 0


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections on an address. Raises TransportError in one line."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise TransportError(
                f"port {port} of {host} is taken; choose another with --port (0 takes any that is free), "
                "or end the program that has it"
            ) from None
        if error.errno == errno.EACCES:
            raise TransportError(f"port {port} is not allowed to you; choose one above 1023 with --port") from None
        why = "no such address on this machine" if isinstance(error, socket.gaierror) else error.strerror or error
        raise TransportError(f"server.host = {host!r}, port {port}: {why}; 127.0.0.1 is always there") from None


def reachable(host: str) -> str:
    """The address under which a browser finds a server that listens on `host`: for all addresses, the one of this
    machine that its network sees, as far as that can be told."""
    try:
        if not ipaddress.ip_address(host).is_unspecified:
            return host
    except ValueError:
        return host
    # no packet is sent; the system only chooses the interface that it would take
    family, far = (socket.AF_INET6, "2001:db8::1") if ":" in host else (socket.AF_INET, "192.0.2.1")
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((far, 9))
        return probe.getsockname()[0]
    return "localhost"


def address(host: str, port: int) -> str:
    """What to type into a browser."""
    name = reachable(host)
    return f"http://{f'[{name}]' if ':' in name else name}:{port}/"


@lru_cache(maxsize=16)
def _thumbnail(path: Path) -> bytes:
    """A small JPEG of a bundled portrait."""
    small = io.BytesIO()
    with Image.open(path) as image:
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
        image.save(small, "JPEG", quality=85)
    return small.getvalue()


class _Connection(web.RequestHandler):
    """One connection. What is not HTTP at all is answered without a word on what we are made of."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if len(self._manager.connections) > CONNECTIONS:
            transport.abort()
            return
        asyncio.get_running_loop().call_later(IDLE_SECONDS, self._expect_request)

    def _expect_request(self) -> None:
        if self.transport is not None and not self._request_count:
            self.transport.abort()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        _log.debug("a request that cannot be read", extra={"status": status})
        if request.writer.output_size > 0:
            raise ConnectionError("an answer is under way already")
        response = web.Response(status=status, text="this request cannot be read", headers={hdrs.SERVER: "ifmdm"})
        response.force_close()
        return response


class Server:
    """The server of one show."""

    def __init__(self, settings: Settings, door: socket.socket) -> None:
        """door: a socket that listens; see `bind`."""
        self._settings, self._door = settings, door
        options = WebRtcOptions(**settings.webrtc.model_dump())
        self.options = options
        self.broadcast = Broadcast(options)
        self._guard = Guard(
            settings.server.token, frozenset(settings.server.origins), frozenset([*_PAGE_FILES, "/favicon.ico"])
        )
        self._pulse = Pulse()
        self._files = {path: (PAGE / name).read_bytes() for path, (name, _) in _PAGE_FILES.items()}
        self._changing = False

    @classmethod
    def bind(cls, settings: Settings) -> "Server":
        """Take the port, before anything else takes time. Raises SettingsError or TransportError."""
        check_server(settings)
        return cls(settings, listen(settings.server.host, settings.server.port))

    @property
    def address(self) -> str:
        """What to type into a browser."""
        return address(self._settings.server.host, self._door.getsockname()[1])

    def close(self) -> None:
        """Give the port back."""
        self._door.close()

    async def serve(self, show: Show) -> None:
        """Answer until cancelled; then all peers are told, within seconds."""
        self._show = show
        self._sockets = SpeechSockets(lambda: show.invite(live=False), show.interrupt, SOCKETS)
        self._speakers = Speakers(self.options, show.invite)
        self._metrics = Metrics(show, self._figures)
        show.listeners.append(self._sockets.interrupt)
        runner = web.AppRunner(self.app(), handle_signals=False, shutdown_timeout=CLOSE_SECONDS / 4)
        await runner.setup()
        loop = asyncio.get_running_loop()
        given = {"loop": loop, "logger": _log, "access_log": None, "keepalive_timeout": IDLE_SECONDS}
        site = await loop.create_server(lambda: _Connection(runner.server, **given), sock=self._door)
        asks = " (it asks for the token)" if self._guard.token else ""
        show.tell(f"open {self.address}{asks}")
        try:
            await self._beat()
        finally:
            show.listeners.remove(self._sockets.interrupt)
            site.close()
            leaving = [each.aclose() for each in (self._sockets, self._speakers, self.broadcast)]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await asyncio.gather(*leaving, return_exceptions=True)
            await runner.cleanup()

    async def _beat(self) -> None:
        """Watch the head's pulse, and tell who comes and goes."""
        peers = self._peers()
        while True:
            self._pulse.beat(time.monotonic(), self._show.stream.figures.made)
            if (now := self._peers()) != peers:
                for kind, count in now.items():
                    if count != peers[kind]:
                        _log.info(f"{kind} {'came' if count > peers[kind] else 'left'}", extra={kind: count})
                peers = now
            await asyncio.sleep(BEAT_SECONDS)

    def _peers(self) -> dict[str, int]:
        return {"viewers": self.broadcast.viewers, "speakers": self._speakers.count}

    def app(self) -> web.Application:
        """The application: every route, the guard around them."""
        app = web.Application(middlewares=[plain_errors, self._guard.middleware()], client_max_size=BODY_BYTES)
        app.on_response_prepare.extend([self._guard.mark, self._metrics.count])
        app.add_routes([web.get(path, self._file) for path in _PAGE_FILES])
        app.add_routes(
            [
                web.get("/favicon.ico", self._icon),
                web.get("/health", self._health),
                web.get("/metrics", self._show_metrics),
                web.get("/state", self._state),
                web.post("/interrupt", self._interrupt),
                web.post("/style", self._style),
                web.get("/portraits", self._portraits),
                web.get("/portraits/{name}", self._picture),
                web.post("/portrait", self._portrait),
                web.get("/speak", self._sockets.handle, allow_head=False),
                *whep_routes(self.broadcast, self._show.invite),
                *whip_routes(self._speakers),
            ]
        )
        return app

    # --- the page

    async def _file(self, request: web.Request) -> web.Response:
        kind = _PAGE_FILES[request.path][1]
        return web.Response(
            body=self._files[request.path], content_type=kind, charset="utf-8", headers={hdrs.CACHE_CONTROL: "no-cache"}
        )

    async def _icon(self, _: web.Request) -> web.Response:
        raise web.HTTPPermanentRedirect("/icon.svg")

    # --- what is told

    def _figures(self) -> dict[str, float]:
        told = {
            "frames_per_second": self._pulse.rate,
            "speakers": self._speakers.count,
            "speaking_sockets": self._sockets.count,
            "socket_backlog_seconds": self._sockets.backlog,
        }
        return told | {f"webrtc_{name}": value for name, value in self.broadcast.figures().items()}

    async def _show_metrics(self, _: web.Request) -> web.Response:
        return self._metrics.page()

    async def _health(self, _: web.Request) -> web.Response:
        """200 while frames are made, else 503. What a device has wrong is told and leaves the head healthy."""
        problems = [problem for problem in self._show.problems.values() if problem]
        status = "stalled" if self._pulse.stalled else "degraded" if problems else "ok"
        told = {"status": status, "frames_per_second": round(self._pulse.rate, 2), "problems": problems}
        return web.json_response(told, status=503 if self._pulse.stalled else 200)

    async def _state(self, _: web.Request) -> web.Response:
        show, figures = self._show, self._show.figures()
        return web.json_response(
            {
                "version": __version__,
                "portrait": show.portrait,
                "intensity": show.style.intensity,
                "pose": list(show.style.pose),
                "speaking": show.stream.unspoken > 0,
                "guest": show.floor.speaker is not None,
                "frames_per_second": round(self._pulse.rate, 2),
                "fps": show.form.fps,
                "size": show.form.width,
                "latency_seconds": round(figures["latency_seconds_median"], 3),
                "frames": figures["frames"],
                "late": figures["frames_late"],
                **self._peers(),
                "ice_servers": [
                    {"urls": each.urls, "username": each.username, "credential": each.credential}
                    if each.username
                    else {"urls": each.urls}
                    for each in ice_servers(self.options.ice_servers)
                ],
                "problems": [problem for problem in show.problems.values() if problem],
            }
        )

    # --- the controls

    async def _interrupt(self, _: web.Request) -> web.Response:
        self._show.interrupt()
        _log.info("interrupted")
        return web.Response(status=204)

    async def _style(self, request: web.Request) -> web.Response:
        change = await _read_json(request, StyleChange)
        self._show.restyle(**change.model_dump(exclude_none=True))
        style = self._show.style
        return web.json_response({"intensity": style.intensity, "pose": list(style.pose)})

    async def _portraits(self, _: web.Request) -> web.Response:
        told = [{"name": name, "picture": f"/portraits/{name}"} for name in bundled_portraits()]
        return web.json_response({"portrait": self._show.portrait, "portraits": told})

    async def _picture(self, request: web.Request) -> web.Response:
        # looked up by name, never as a path
        path = bundled_portraits().get(request.match_info["name"])
        if path is None:
            raise web.HTTPNotFound(text="no such portrait")
        body = await asyncio.to_thread(_thumbnail, path)
        return web.Response(body=body, content_type="image/jpeg", headers={hdrs.CACHE_CONTROL: "private, max-age=3600"})

    async def _portrait(self, request: web.Request) -> web.Response:
        """A bundled portrait by name, as JSON, or a picture as the body, whose use somebody agreed to."""
        with self._alone():
            if request.content_type == "application/json":
                name = (await _read_json(request, PortraitChoice)).name
                picture: Path | bytes | None = bundled_portraits().get(name)
                if picture is None:
                    raise web.HTTPNotFound(text=f"no such portrait; there are {', '.join(bundled_portraits())}")
            else:
                name, picture = "uploaded", await _read_picture(request)
            try:
                await self._show.change_portrait(picture, name)
            except PortraitError as error:
                raise web.HTTPUnprocessableEntity(text=str(error)) from None
        _log.info("another portrait", extra={"portrait": name})
        return web.json_response({"portrait": name})

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One portrait is prepared at a time: it takes a core."""
        if self._changing:
            raise web.HTTPConflict(text="another portrait is being prepared; try again", headers={"Retry-After": "2"})
        self._changing = True
        try:
            yield
        finally:
            self._changing = False


async def _read_json(request: web.Request, kind: type[BaseModel]) -> Any:
    """The body, as what is asked for. Raises the refusal, in one line."""
    if request.content_type != "application/json":  # which no form of another site can send
        raise web.HTTPUnsupportedMediaType(text="send application/json")
    try:
        return kind.model_validate_json(await request.read())
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        status = web.HTTPBadRequest if first["type"] == "json_invalid" else web.HTTPUnprocessableEntity
        raise status(text=" ".join(f"{where}: {first['msg']}".split()).lstrip(": ")) from None


async def _read_picture(request: web.Request) -> bytes:
    """The body, as a picture that may be used. Raises the refusal, in one line."""
    if request.content_type not in ("image/jpeg", "image/png", "image/webp", "application/octet-stream"):
        raise web.HTTPUnsupportedMediaType(text="send a JPEG, PNG or WebP picture, or the name of a bundled portrait")
    if request.query.get("consent") != "true":
        raise web.HTTPForbidden(text="a face needs consent: if it is yours or its owner agreed, say ?consent=true")
    too_large = web.HTTPRequestEntityTooLarge(
        UPLOAD_BYTES, text=f"the picture is larger than {UPLOAD_BYTES >> 20} MiB; send a smaller copy"
    )
    if (request.content_length or 0) > UPLOAD_BYTES:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(UPLOAD_SECONDS):
            async for part in request.content.iter_any():
                parts.append(part)
                size += len(part)
                if size > UPLOAD_BYTES:
                    raise too_large
    except TimeoutError:
        raise web.HTTPRequestTimeout(text=f"the picture did not arrive within {UPLOAD_SECONDS:.0f} s") from None
    if not size:
        raise web.HTTPBadRequest(text="the picture is empty")
    return b"".join(parts)
