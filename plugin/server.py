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

from plugin.connections import Connection, Connections, Limits, allowed, attended, descriptors
from plugin.guard import Guard, plain_errors
from plugin.metrics import Metrics
from plugin.room import CLOSE_SECONDS, Room, thumbnail
from plugin.run import Show
from plugin.sessions import Sessions
from plugin.settings import Settings, check_server
from transports.media import TransportError
from transports.webrtc.broadcast import Broadcast
from transports.webrtc.options import WebRtcOptions, encodable

PAGE = Path(__file__).parent / "page"
_PAGE_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
#: The page of a session is the same as the head's, below the session's own address.
_SESSION_FILES = {f"/sessions/{{id}}{path}": path for path in _PAGE_FILES}
#: The largest body of a request that brings no picture.
BODY_BYTES = 64 << 10
#: What the system holds of answers that a client does not read, for each connection: else it may be megabytes.
UNREAD_BYTES = 128 << 10

_log = logging.getLogger(__name__)


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections on an address. Raises TransportError in one line."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        door = socket.create_server((host, port), family=family, backlog=128)
        door.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD_BYTES)  # which each connection inherits
        return door
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


class Server:
    """The server of one show."""

    def __init__(self, settings: Settings, door: socket.socket, limits: Limits | None = None) -> None:
        """door: a socket that listens; see `bind`. limits: of connections; None for the usual, within what the system
        allows."""
        self._settings, self._door = settings, door
        self.limits = limits or Limits(connections=allowed(Limits.connections, descriptors()))
        self.broadcast = Broadcast(encodable(WebRtcOptions(**settings.webrtc.model_dump())))
        public = frozenset([*_PAGE_FILES, "/favicon.ico", *_SESSION_FILES])
        self._guard = Guard(settings.server.token, frozenset(settings.server.origins), public)
        self._files = {path: (PAGE / name).read_bytes() for path, (name, _) in _PAGE_FILES.items()}
        # by which the page knows that it may end; its address need not tell, behind a proxy
        self._session_page = self._files["/"].replace(b"<html ", b"<html data-session ", 1)

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
        asked = self._settings.server
        first = b"" if show.own is None else thumbnail(show.own)
        self.room = Room(show, self.broadcast, picture=first)
        self.sessions = Sessions(self.room, asked.sessions, asked.session_idle)
        self.connections = Connections(self.limits, lambda each: Connection(runner.server, each, logger=_log))
        self._metrics = Metrics(show, self._figures, self.sessions)
        runner = web.AppRunner(self.app(), handle_signals=False, shutdown_timeout=CLOSE_SECONDS / 4)
        await runner.setup()
        asks = " (it asks for the token)" if self._guard.token else ""
        show.tell(f"open {self.address}{asks}")
        try:
            async with asyncio.TaskGroup() as group:
                for work in (self.room.beat(), self.connections.accept(self._door), self.connections.watch()):
                    group.create_task(work)
        finally:
            show.studio.close()
            self._door.close()
            await asyncio.gather(self.room.aclose(), self.sessions.aclose(), return_exceptions=True)
            await runner.cleanup()
            self.connections.close()  # those whose client does not read are still there

    def _figures(self) -> dict[str, float]:
        return self.room.figures() | {"connections": len(self.connections)}

    def app(self) -> web.Application:
        """The application: every route, the guard around them."""
        around = [attended, plain_errors, self._guard.middleware()]
        app = web.Application(middlewares=around, client_max_size=BODY_BYTES)
        app.on_response_prepare.extend([self._guard.mark, self._metrics.count, _close_after_refusal])
        routes = [
            *(web.get(path, self._file) for path in _PAGE_FILES),
            web.get("/favicon.ico", self._icon),
            web.get("/metrics", self._show_metrics),
            *self.room.routes(),
            *(web.get(path, self._session_file) for path in _SESSION_FILES),
            *self.sessions.routes(),
        ]
        expects = {"expect_handler": self._guard.expect}
        app.add_routes([web.RouteDef(each.method, each.path, each.handler, each.kwargs | expects) for each in routes])
        return app

    # --- the page

    async def _file(self, request: web.Request) -> web.Response:
        return self._page_file(request.path, self._files[request.path])

    async def _session_file(self, request: web.Request) -> web.Response:
        self.sessions.get(request.match_info["id"])
        path = _SESSION_FILES[request.match_info.route.resource.canonical]
        return self._page_file(path, self._session_page if path == "/" else self._files[path])

    def _page_file(self, path: str, body: bytes) -> web.Response:
        kind, headers = _PAGE_FILES[path][1], {hdrs.CACHE_CONTROL: "no-cache"}
        return web.Response(body=body, content_type=kind, charset="utf-8", headers=headers)

    async def _icon(self, _: web.Request) -> web.Response:
        raise web.HTTPPermanentRedirect("icon.svg")

    async def _show_metrics(self, _: web.Request) -> web.Response:
        return self._metrics.page()


async def _close_after_refusal(request: web.Request, response: web.StreamResponse) -> None:
    """For on_response_prepare."""
    request.protocol.refuse_rest(request, response)
