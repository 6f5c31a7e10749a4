"""Connections by clients that mean no good, or mean well and are slow: real sockets, to a live head with a small model.
The deadlines are the real ones, made short."""

import asyncio
import base64
import contextlib
import os
import re
import resource
import socket
import sys
import time
from urllib.parse import urlsplit

import aiohttp
import pytest
from test_server import live, serving
from test_server_run import Child
from webrtc_peers import until

from plugin.connections import Limits, allowed, origin_of

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux what became of a connection")


class Peer:
    """A client that does only what a test lets it do. small: it takes in as little as it can; address: its own."""

    def __init__(self, served, small: bool = False, address: str = "127.0.0.1") -> None:
        self.socket = socket.socket()
        if small:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        self.socket.bind((address, 0))
        self.socket.connect(("127.0.0.1", urlsplit(served.url).port))
        self.socket.setblocking(False)

    async def send(self, data: bytes) -> None:
        """As far as it is taken before the connection is cut."""
        with contextlib.suppress(ConnectionError):
            await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def read(self, until: bytes = b"") -> bytes:
        """All that comes, until it is cut or this has come."""
        loop, got = asyncio.get_running_loop(), b""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(8):
                while (not until or until not in got) and (data := await loop.sock_recv(self.socket, 65536)):
                    got += data
        return got

    @property
    def is_cut(self) -> bool:
        """Whether the server has ended it, whatever lies here unread."""
        return self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) != b"\x01"  # as if for ever

    def close(self) -> None:
        self.socket.close()


@contextlib.contextmanager
def peers(served, count: int, **about):
    made = [Peer(served, **about) for _ in range(count)]
    try:
        yield made
    finally:
        for each in made:
            each.close()


async def health(served) -> int:
    """Asked by a client that has no connection yet."""
    async with aiohttp.ClientSession() as client, client.get(f"{served.url}/health") as answer:
        return answer.status


def request(line: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"{line} HTTP/1.1", "Host: localhost", *headers]
    return "".join(f"{each}\r\n" for each in lines).encode() + b"\r\n" + body


def statuses(answer: bytes) -> list[int]:
    return [int(each) for each in re.findall(rb"HTTP/1\.[01] (\d+) ", answer)]


async def all_cut(crowd, served) -> None:
    """The server goes on meanwhile, for others."""
    end = time.monotonic() + 8
    while not all(each.is_cut for each in crowd):
        assert time.monotonic() < end, [each.is_cut for each in crowd]
        assert await health(served) == 200
        await asyncio.sleep(0.05)


# --- clients that do not read

PAGE = request("GET /page.js") * 400
#: A WebSocket whose every ping is to be answered.
UPGRADE = request("GET /speak", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13",
                  f"Sec-WebSocket-Key: {base64.b64encode(bytes(16)).decode()}")  # fmt: skip
PINGS = (b"\x89\xfd" + bytes(4) + bytes(125)) * 60_000


@linux
def test_a_client_that_never_reads_is_cut():
    """By the deadline alone: there is room for it. Files, figures, and a WebSocket."""

    async def look():
        async with serving(limits=Limits(write=0.6, look=0.1)) as served:
            with peers(served, 3, small=True) as crowd:
                asked = (PAGE, request("GET /metrics") * 400, UPGRADE + PINGS)
                sent = [asyncio.ensure_future(each.send(what)) for each, what in zip(crowd, asked, strict=True)]
                await until(lambda: served.server.room.sockets.count == 1)
                await all_cut(crowd, served)
                await asyncio.gather(*sent)
            await until(lambda: served.server.room.sockets.count == 0)

    live(look())


@linux
def test_a_client_that_never_reads_does_not_hold_up_the_end():
    async def look():
        async with serving() as served:
            with peers(served, 3, small=True) as crowd:
                sent = [asyncio.ensure_future(each.send(PAGE)) for each in crowd]
                held = served.server.connections._open
                await until(lambda: sum(each._wire.get_write_buffer_size() > 0 for each in held) == 3)
                served.stop.set()
                await asyncio.wait_for(served.task, 3)
                await asyncio.gather(*sent)
                assert all(each.is_cut for each in crowd)

    live(look())


@linux
def test_as_many_as_there_may_be_keep_nobody_out():
    """Neither those that do not read, nor those that do not ask, nor those whose body does not come."""
    body = request("POST /style", "Content-Type: application/json", "Content-Length: 9", body=b"{")

    async def look():
        async with serving(limits=Limits(connections=6, address_share=1.0)) as served:
            for asked, small in ((PAGE, True), (b"", False), (request("GET /state")[:-2], False), (body, False)):
                with peers(served, 12, small=small) as crowd:
                    sent = [asyncio.ensure_future(each.send(asked)) for each in crowd]
                    assert [await health(served) for _ in range(3)] == [200] * 3, asked[:40]
                    assert sum(not each.is_cut for each in crowd) <= 6
                await asyncio.gather(*sent)

    live(look())


def test_a_client_that_reads_slowly_gets_everything():
    """Each piece within the deadline, all of it not."""

    async def look():
        async with serving(limits=Limits(write=0.5, look=0.05)) as served:
            with peers(served, 1, small=True) as (peer,):
                sent = asyncio.ensure_future(peer.send(request("GET /page.js") * 20))
                loop, got, waited = asyncio.get_running_loop(), 0, 0.0
                await until(lambda: len(served.server.connections) == 1)
                (connection,) = served.server.connections._open
                all_of_it = 20 * len(served.server._files["/page.js"])
                while got < all_of_it:
                    before = time.monotonic()
                    got += len(await loop.sock_recv(peer.socket, 65536))
                    await asyncio.sleep(0.001)
                    if connection._wire.get_write_buffer_size():
                        waited += time.monotonic() - before
                await sent
                return waited

    assert live(look()) > 0.6


@linux
def test_an_address_has_its_share_and_others_theirs():
    async def look():
        async with serving(limits=Limits(connections=40, address_share=0.1)) as served:
            with peers(served, 3, address="127.0.0.2") as few, peers(served, 20, address="127.0.0.3") as many:
                assert await health(served) == 200
                await until(lambda: sum(not each.is_cut for each in many) == 4)
                assert not any(each.is_cut for each in (*few, *many[-4:]))  # the oldest went

    live(look())


def test_one_that_speaks_keeps_its_place():
    async def look():
        async with serving(limits=Limits(connections=4)) as served, served.speak() as socket:
            assert (await socket.receive_json())["type"] == "ready"
            with peers(served, 20):
                assert await health(served) == 200
                await socket.send_json({"type": "end"})
                assert (await socket.receive_json(timeout=5))["type"] == "played"

    live(look())


def test_places_that_are_all_in_use_are_not_given_away():
    async def look():
        async with serving(limits=Limits(connections=2, address_share=1.0)) as served:
            async with served.speak() as first, served.speak() as second:
                with pytest.raises(aiohttp.ClientConnectionError):
                    await health(served)
                for each in (first, second):
                    await each.send_json({"type": "end"})
            await until(lambda: served.server.room.sockets.count == 0)
            assert await health(served) == 200

    live(look())


# --- clients that ask slowly, or much


@linux
def test_a_request_that_does_not_come_is_not_waited_for():
    """Nor one of which a byte comes now and then, before the first answer and after it."""

    async def look():
        async with serving(limits=Limits(idle=0.5, look=0.1)) as served:
            with peers(served, 4) as crowd:
                for number, each in enumerate(crowd):
                    if number > 1:
                        await each.send(request("GET /health"))
                        await each.read(b"}")
                    await each.send((b"", b"GET /health HTTP/1.1\r\nX: ")[number % 2])
                end = time.monotonic() + 5
                while not all(each.is_cut for each in crowd):
                    assert time.monotonic() < end
                    await asyncio.sleep(0.05)
                    for each in crowd[1::2]:
                        await each.send(b"x")

    live(look())


TOO_LARGE = {
    "long": request("GET /health", *(f"X-{number}: {'x' * 1000}" for number in range(120))),
    "many": request("GET /health", *(f"X-{number}: x" for number in range(1000))),
    "line": request("GET /health", f"X: {'x' * 20_000}"),
    "path": request(f"GET /{'x' * 20_000}"),
    "word": b"x" * 200_000,
    "lines": b"GET /health HTTP/1.1\r\n" + b"\r\n" * 100_000,
}


def test_a_head_that_is_too_large_is_refused():
    async def look():
        async with serving() as served:
            for name, asked in TOO_LARGE.items():
                with peers(served, 1) as (peer,):
                    for start in range(0, len(asked), 1000):  # as it comes over a network
                        await peer.send(asked[start : start + 1000])
                        await asyncio.sleep(0)
                    assert statuses(await peer.read()) in ([], [400]), name
            assert await health(served) == 200

    live(look())


def test_requests_that_wait_for_the_one_before_are_few_and_all_are_answered():
    async def look():
        async with serving() as served:
            figures, waiting = served.show.figures, []

            def looked() -> dict:
                waiting.extend(len(each._messages) for each in served.server.connections._open)
                return figures()

            served.show.figures = looked
            with peers(served, 1) as (peer,):
                asked = request("GET /state") * 60 + request("GET /health", "Connection: close")
                sent = asyncio.ensure_future(peer.send(asked))
                answer = await peer.read()
                await sent
            return statuses(answer), max(waiting)

    assert live(look()) == ([200] * 61, Limits.pipelined)


# --- descriptors


def test_connections_leave_descriptors_for_everything_else():
    assert [allowed(512, each) for each in (None, 1 << 20, 1024, 256, 40, 1)] == [512, 512, 512, 128, 20, 1]


def test_limits_are_of_a_network_where_one_client_has_all_its_addresses():
    assert origin_of(("10.0.0.1", 80)) == "10.0.0.1" != origin_of(("10.0.0.2", 80))
    assert origin_of(("2001:db8::1", 80, 0, 0)) == origin_of(("2001:db8::ffff:1", 9, 0, 0)) == "2001:db8::/64"
    assert origin_of(("2001:db8:1::1", 80, 0, 0)) != "2001:db8::/64"
    assert origin_of(("fe80::1%eth0", 80, 0, 2)) == "fe80::/64"
    assert origin_of(None) == origin_of("") == ""


@linux
def test_too_few_descriptors_are_told_once_with_the_mend_and_the_head_goes_on(tmp_path):
    """In a process of its own, which may have hardly more than it has at its start."""
    with Child("--port", "0", "--source", "none", folder=tmp_path) as child:
        url = child.wait_for(r"http://127\.0\.0\.1:\d+/")
        count = len(os.listdir(f"/proc/{child.process.pid}/fd"))
        resource.prlimit(child.process.pid, resource.RLIMIT_NOFILE, (count + 8, count + 8))
        port = int(url.split(":")[-1].strip("/"))
        held = []
        try:
            for _ in range(60):
                held.append(socket.create_connection(("127.0.0.1", port), 5))

            async def ask() -> int:
                async with aiohttp.ClientSession() as client, client.get(f"{url}health") as answer:
                    return answer.status

            time.sleep(1)
            assert [asyncio.run(ask()) for _ in range(3)] == [200] * 3
        finally:
            for each in held:
                each.close()
        child.process.terminate()
        status, told = child.end()
    assert status == 0
    lines = [line for line in told.splitlines() if "ulimit" in line or "accept" in line or "files" in line]
    assert len(lines) == 1, told
    assert re.fullmatch(
        r"ifmdm: a client could not be let in, too many open files: this process may have \d+ files and sockets; "
        r"raise it with `ulimit -n` \(connections \d+\)", lines[0]
    )  # fmt: skip
    assert "Traceback" not in told
