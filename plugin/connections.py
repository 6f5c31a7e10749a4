"""Connections to the server: how many there are, and that none is kept open by a client that does nothing with it.

A connection waits for its client while it is idle, while a request or its body is on its way, and while an answer is
not read. Each of these has a deadline, after which the connection is cut. Where there are as many connections as
allowed, a new one takes the place of the one that has waited for its client the longest: connections that do nothing
keep nobody out, however many they are. One whose request is being worked on, or that is a WebSocket, keeps its place.

Nothing here depends on what aiohttp does when it closes: its close waits, without a limit, for the client to read.
"""

import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from aiohttp import HttpVersion10, HttpVersion11, hdrs, web
from aiohttp.http import HttpRequestParser
from aiohttp.http_exceptions import HttpProcessingError

#: What reading a body raises where it is not as HTTP has it; the second where aiohttp has no compiled parser.
UNREADABLE = (web.RequestPayloadError, HttpProcessingError)
VERSIONS = (HttpVersion10, HttpVersion11)
#: Of the descriptors that the system allows, what connections may take: files, devices and WebRTC need the others.
DESCRIPTOR_SHARE = 0.5
#: What accept() says where the system has no more to give.
EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
#: Then it is tried again after so many seconds (the first if another connection made room), and told again after so
#: many.
ROOM_SECONDS, ACCEPT_AGAIN_SECONDS, TELL_AGAIN_SECONDS = 0.01, 0.2, 60.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """connections: at once. address_share: of them, what one address may have (for IPv6 a network of 64 bits); not less
    than half, since behind a proxy, or on this machine, all clients have one. pipelined: requests of a connection that
    may wait for the one before. read_bytes: of one connection, before others have their turn. head_bytes: of a
    request's head. frame_bytes, frame_share: what may be around the bytes of a chunked body, and by how many more for
    each of them; chunks of a byte each take long to read. idle: seconds in which a request must come, after the
    connection was opened or the request before was answered. write: seconds in which a client must have read what waits
    for it. linger, linger_bytes: how long, and how much, is read and thrown away of a body that was refused, so that
    clients that send it to its end before they read see the answer. look: seconds between two looks at all of this."""

    connections: int = 512
    address_share: float = 0.5
    pipelined: int = 4
    read_bytes: int = 16 << 10
    head_bytes: int = 64 << 10
    frame_bytes: int = 8 << 10
    frame_share: float = 0.25
    idle: float = 30.0
    write: float = 20.0
    linger: float = 2.0
    linger_bytes: int = 16 << 20
    look: float = 1.0

    @property
    def per_address(self) -> int:
        return max(1, int(self.address_share * self.connections))


def descriptors() -> int | None:
    """How many files and sockets the system lets this process have open; None where it does not say."""
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def allowed(most: int, descriptors: int | None) -> int:
    """Connections at once, `most` at the most, that leave descriptors for everything else."""
    return most if descriptors is None else max(1, min(most, int(DESCRIPTOR_SHARE * descriptors)))


def origin_of(peer: Any) -> str:
    """Who has a connection, as far as limits go. peer: what getpeername gave."""
    try:
        address = ipaddress.ip_address(peer[0].partition("%")[0])
    except (TypeError, ValueError, IndexError, AttributeError):
        return ""
    if address.version == 6:  # whoever has one of these has all of them
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


class Connection(web.RequestHandler):
    """One connection. What is not HTTP at all is answered without a word on what we are made of.

    Bodies are taken as they are: `Content-Encoding` is refused in plugin/guard.py, and never decoded."""

    __slots__ = (
        "_all",
        "_at_work",
        "_body",
        "_chunked",
        "_drained",
        "_frame",
        "_head",
        "_spare",
        "_unread",
        "_waits",
        "_wire",
        "limits",
    )

    def __init__(self, server: web.Server, connections: "Connections", **given: Any) -> None:
        loop, limits = asyncio.get_running_loop(), connections.limits
        # what is idle is cut in `look`
        super().__init__(
            server, loop=loop, access_log=None, keepalive_timeout=3600, lingering_time=limits.linger,
            auto_decompress=False, **given,
        )  # fmt: skip
        # aiohttp has 32 of them, each with a head of its own
        self._max_msg_queue_size = limits.pipelined
        self._msg_queue_resume_size = limits.pipelined // 2
        self._parser = HttpRequestParser(
            self, loop, self._read_bufsize, payload_exception=web.RequestPayloadError, auto_decompress=False,
            max_msg_queue_size=limits.pipelined,
        )  # fmt: skip
        self.limits, self._all = limits, connections
        self._wire: asyncio.Transport | None = None  # aiohttp lets go of its own before everything is sent
        self._at_work: Any = None  # the body of the request that is worked on
        self._waits = loop.time()
        self._body: Any = None  # of the request that came last
        self._head = 0  # bytes of one that has not come wholly
        self._chunked = False
        self._frame = 0  # bytes that came of the body, with what HTTP puts around them
        self._spare: int | None = None  # bytes that may still be thrown away
        self._unread: float | None = None  # since when something waits to be read
        self._drained = False

    # --- what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = transport
        transport.max_size = self.limits.read_bytes  # of asyncio's transports of sockets: 256 KiB
        super().connection_made(transport)
        self._all.add(self, origin_of(transport.get_extra_info("peername")))

    def connection_lost(self, error: BaseException | None) -> None:
        self._all.discard(self)
        super().connection_lost(error)

    def resume_writing(self) -> None:
        self._drained = True
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._spare is not None:  # thrown away as it is, which costs nothing
            self._spare -= len(data)
            if self._spare < 0:
                self.cut()
            return
        # the last of a body is no head, though the body has ended once it is taken in
        before, between = self._request_count, self._body is None or self._body.is_eof()
        super().data_received(data)
        if self._request_count != before:
            if self._body is not None and not self._body.is_eof():  # what came cannot be its rest
                self._body.set_exception(web.RequestPayloadError("it is not as it was announced"))
            self._head, (message, self._body) = 0, self._messages[-1]
            self._chunked = getattr(message, "chunked", False)
            self._frame = len(data) - data.find(b"\r\n\r\n")  # about: a head may have been before it
            if any(getattr(asked, "version", HttpVersion11) not in VERSIONS for asked, _ in self._messages):
                return self.cut()  # aiohttp would answer as HTTP/2.0, which this is not
        elif self._upgraded:
            return
        elif between:
            self._head += len(data)
            if self._head > self.limits.head_bytes:
                self.cut()
        else:
            self._frame += len(data)
        if self._chunked and not self._body.is_eof():
            taken = self._body.total_bytes
            if self._frame - taken > self.limits.frame_bytes + self.limits.frame_share * taken:
                self.cut()

    # --- what aiohttp calls

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        _log.debug("a request that cannot be read", extra={"status": status})
        if request.writer.output_size > 0:
            raise ConnectionError("an answer is under way already")
        response = web.Response(status=status, text="this request cannot be read", headers={hdrs.SERVER: "ifmdm"})
        response.force_close()
        return response

    def log_exception(self, *told: Any, **more: Any) -> None:
        # what it cannot read of a body that nobody asked for is no fault of ours
        error = more.get("exc_info")
        if isinstance(error, (*UNREADABLE, ConnectionError)):
            _log.debug("a body that cannot be read: %s", error)
        else:
            super().log_exception(*told, **more)

    # --- ours

    @contextlib.contextmanager
    def working(self, request: web.Request) -> Iterator[None]:
        """While a request is worked on, the client is not waited for, but for a body that is still to come."""
        self._at_work, self._waits = request.content, self._loop.time()
        try:
            yield
        finally:
            self._at_work, self._waits = None, self._loop.time()

    def refuse_rest(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Before an answer is sent: if the body has not come wholly by now, it is no longer wanted. A little of it is
        read, so that the client gets the answer, and the connection closed."""
        if request.content.is_eof() and request.content.exception() is None:
            return
        response.force_close()
        response.headers[hdrs.CONNECTION] = "close"
        if self._spare is None:
            self._spare = self.limits.linger_bytes

    def waits(self) -> tuple[bool, float] | None:
        """For those that wait for their client, by which the first to go is found: whether a request is half done, and
        since when they wait, in seconds of the loop's time."""
        if self._unread is not None:
            return False, self._unread
        if self._at_work is None:
            return False, self._waits
        return None if self._at_work.is_eof() else (True, self._waits)

    def look(self, now: float) -> None:
        """Cut it if it has waited for too long. now: seconds of the loop's time."""
        if not self._wire.get_write_buffer_size():
            self._unread = None
        elif self._unread is None or self._drained:  # much of it was read; what came behind has a time of its own
            self._unread = now
        elif now - self._unread >= self.limits.write:
            return self.cut()
        self._drained = False
        if self._unread is None and self._at_work is None and now - self._waits >= self.limits.idle:
            self.cut()

    def cut(self) -> None:
        """At once, whatever is not read yet: nor does the system keep that, as it would for minutes."""
        self._all.discard(self)
        raw = self._wire.get_extra_info("socket")
        if raw is not None and raw.fileno() >= 0 and _untaken(raw):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._wire.abort()


def _untaken(raw: socket.socket) -> bool:
    """Whether the system holds bytes that the other end has not taken; as far as it tells, which Linux does."""
    try:
        import fcntl
        import termios

        return any(fcntl.ioctl(raw.fileno(), termios.TIOCOUTQ, bytes(4)))
    except (ImportError, OSError):
        return False


@web.middleware
async def attended(request: web.Request, handler: Callable) -> web.StreamResponse:
    """Around everything: tells the connection that its request is worked on."""
    with request.protocol.working(request):
        return await handler(request)


class Connections:
    """All connections of a server, and the door they come through. In the event loop."""

    def __init__(self, limits: Limits, make: Callable[["Connections"], Connection]) -> None:
        self.limits, self._make = limits, make
        self._open: dict[Connection, str] = {}
        self._told = float("-inf")

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: Connection, origin: str) -> None:
        """Take one in; another goes where there are too many of its origin, or in all."""
        self._open[connection] = origin
        counts = Counter(self._open.values())
        if counts[origin] > self.limits.per_address:
            crowd = origin
        elif len(self._open) > self.limits.connections:
            crowd = max(counts, key=counts.get)
        else:
            return
        if not self._give_way([each for each, of in self._open.items() if of == crowd and each is not connection]):
            connection.cut()

    def discard(self, connection: Connection) -> None:
        self._open.pop(connection, None)

    def _give_way(self, among: list[Connection]) -> bool:
        """Cut the one that has waited for its client the longest; whether there is one that waits."""
        waiting = [(waits, each) for each in among if (waits := each.waits()) is not None]
        if waiting:
            min(waiting, key=lambda each: each[0])[1].cut()
        return bool(waiting)

    async def accept(self, door: socket.socket) -> None:
        """Let clients in, until cancelled. asyncio's own server tries again so often where descriptors are exhausted
        that the log fills."""
        loop = asyncio.get_running_loop()
        door.setblocking(False)
        while True:
            try:
                arrived, _ = await loop.sock_accept(door)
            except OSError as error:
                if error.errno in EXHAUSTED:
                    await asyncio.sleep(self._exhausted(error))
                else:  # of that one connection, which is gone: see accept(2)
                    _log.debug("a connection failed: %s", error)
                    await asyncio.sleep(ROOM_SECONDS)
                continue
            try:
                await loop.connect_accepted_socket(lambda: self._make(self), arrived)
            except OSError as error:
                arrived.close()
                _log.debug("a connection failed: %s", error)

    def _exhausted(self, error: OSError) -> float:
        """What can be given up makes room, and it is told once in a while. Seconds after which to try again."""
        made_room = self._give_way(list(self._open))
        self._tell(error)
        return ROOM_SECONDS if made_room else ACCEPT_AGAIN_SECONDS

    def _tell(self, error: OSError) -> None:
        if (now := time.monotonic()) - self._told < TELL_AGAIN_SECONDS:
            return
        self._told = now
        most = descriptors()
        mend = "" if most is None else f": this process may have {most} files and sockets; raise it with `ulimit -n`"
        _log.warning(f"a client could not be let in, {error.strerror.lower()}{mend}", extra={"connections": len(self)})

    async def watch(self) -> None:
        """Keep the deadlines, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self.limits.look)
            now = loop.time()
            for connection in list(self._open):
                connection.look(now)

    def close(self) -> None:
        """Cut all that are left."""
        for connection in list(self._open):
            connection.cut()
