"""The live head over HTTP: its page, what its room has (plugin/room.py), more heads (plugin/sessions.py), and metrics.

A service of the show (plugin/run.py): it runs beside the stream in the same event loop, and ends with it. Whoever may
come in is decided in plugin/guard.py, for all routes alike.
"""

import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
from pathlib import Path

from aiohttp import hdrs, web

from engine.portrait import PortraitError
from plugin.guard import Guard, plain_errors
from plugin.metrics import Metrics
from plugin.render import bundled_portraits
from plugin.room import CLOSE_SECONDS, Room, thumbnail
from plugin.run import Show
from plugin.sessions import Sessions
from plugin.settings import Settings, check_server
from transports.media import TransportError
from transports.webrtc.broadcast import Broadcast
from transports.webrtc.options import WebRtcOptions

PAGE = Path(__file__).parent / "page"
_PAGE_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
#: The page of a session is the same as the head's.
_SESSION_PAGE = "/sessions/{id}/"
#: The largest body of a request that brings no picture.
BODY_BYTES = 64 << 10
#: Connections of any kind at once.
CONNECTIONS = 512
#: A connection that asks for nothing for so long is cut off.
IDLE_SECONDS = 30.0

_log = logging.getLogger(__name__)


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
        self.broadcast = Broadcast(WebRtcOptions(**settings.webrtc.model_dump()))
        public = frozenset([*_PAGE_FILES, "/favicon.ico", _SESSION_PAGE])
        self._guard = Guard(settings.server.token, frozenset(settings.server.origins), public)
        self._files = {path: (PAGE / name).read_bytes() for path, (name, _) in _PAGE_FILES.items()}

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
        allowed = self._settings.server
        first = b""
        if show.portrait not in bundled_portraits():
            with contextlib.suppress(PortraitError):  # the file may be gone by now
                first = await asyncio.to_thread(thumbnail, Path(self._settings.head.portrait))
        self.room = Room(show, self.broadcast, picture=first)
        self.sessions = Sessions(self.room, allowed.sessions, allowed.session_idle)
        self._metrics = Metrics(show, self.room.figures, self.sessions)
        runner = web.AppRunner(self.app(), handle_signals=False, shutdown_timeout=CLOSE_SECONDS / 4)
        await runner.setup()
        loop = asyncio.get_running_loop()
        given = {"loop": loop, "logger": _log, "access_log": None, "keepalive_timeout": IDLE_SECONDS}
        site = await loop.create_server(lambda: _Connection(runner.server, **given), sock=self._door)
        asks = " (it asks for the token)" if self._guard.token else ""
        show.tell(f"open {self.address}{asks}")
        try:
            await self.room.beat()
        finally:
            site.close()
            await asyncio.gather(self.room.aclose(), self.sessions.aclose(), return_exceptions=True)
            await runner.cleanup()

    def app(self) -> web.Application:
        """The application: every route, the guard around them."""
        app = web.Application(middlewares=[plain_errors, self._guard.middleware()], client_max_size=BODY_BYTES)
        app.on_response_prepare.extend([self._guard.mark, self._metrics.count])
        app.add_routes([web.get(path, self._file) for path in _PAGE_FILES])
        app.add_routes(
            [
                web.get("/favicon.ico", self._icon),
                web.get("/metrics", self._show_metrics),
                *self.room.routes(),
                web.get(_SESSION_PAGE, self._session_page),
                *self.sessions.routes(),
            ]
        )
        return app

    # --- the page

    async def _file(self, request: web.Request) -> web.Response:
        return self._page_file(request.path)

    async def _session_page(self, request: web.Request) -> web.Response:
        self.sessions.get(request.match_info["id"])
        return self._page_file("/")

    def _page_file(self, path: str) -> web.Response:
        kind, headers = _PAGE_FILES[path][1], {hdrs.CACHE_CONTROL: "no-cache"}
        return web.Response(body=self._files[path], content_type=kind, charset="utf-8", headers=headers)

    async def _icon(self, _: web.Request) -> web.Response:
        raise web.HTTPPermanentRedirect("/icon.svg")

    async def _show_metrics(self, _: web.Request) -> web.Response:
        return self._metrics.page()
