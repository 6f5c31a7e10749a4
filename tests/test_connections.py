"""Connections by clients that mean no good, or mean well and are slow: real sockets, to a live head with a small model.
The deadlines are the real ones, made short."""

import asyncio
import contextlib
import gzip
import logging
import re
import resource
import signal
import socket
import time
from urllib.parse import urlsplit

import aiohttp
import pytest
from test_server import FACE, TOKEN, live, serving, until
from test_server_run import Child

from plugin.connections import Limits, allowed, origin_of

HOST = b"Host: localhost\r\n"


def port_of(served) -> int:
    return urlsplit(served.url).port


class Peer:
    """A client that does nothing but what a test lets it do. small: whether it takes in as little as it can."""

    def __init__(self, served, small: bool = False) -> None:
        self.socket = socket.socket()
        if small:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        self.socket.connect(("127.0.0.1", port_of(served)))
        self.socket.setblocking(False)

    async def send(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def read(self, seconds: float = 5.0) -> bytes:
        """All that comes until it is cut."""
        loop, got = asyncio.get_running_loop(), b""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(seconds):
                while data := await loop.sock_recv(self.socket, 65536):
                    got += data
        return got

    @property
    def is_cut(self) -> bool:
        """Whether the server has ended it, whatever lies here unread."""
        info = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        return info[0] != 1  # TCP_ESTABLISHED

    def close(self) -> None:
        self.socket.close()


@contextlib.contextmanager
def peers(served, count: int, small: bool = False):
    made = [Peer(served, small) for _ in range(count)]
    try:
        yield made
    finally:
        for each in made:
            each.close()


async def health(served) -> int:
    """By a client that has no connection yet."""
    async with aiohttp.ClientSession() as client, client.get(f"{served.url}/health") as answer:
        return answer.status


def post(path: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", *headers]
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + body


def statuses(answer: bytes) -> list[int]:
    return [int(each) for each in re.findall(rb"HTTP/1\.[01] (\d+)", answer)]


# --- clients that do not read


def test_clients_that_never_read_are_cut_and_keep_nobody_out():
    """As many as there may be at all, each with more to read than it ever takes."""
    limits = Limits(connections=16, write=1.0, look=0.1)

    async def look():
        async with serving(limits=limits) as served:
            with peers(served, 40, small=True) as crowd:
                for each in crowd:
                    await asyncio.wait([asyncio.ensure_future(each.send(b"GET /page.js HTTP/1.1\r\n" + HOST + b"\r\n"))])
                asked = [asyncio.ensure_future(each.send(b"GET /page.js HTTP/1.1\r\n%s\r\n" % HOST * 400)) for each in crowd]
                began = time.monotonic()
                waits = []
                while not all(each.is_cut for each in crowd):
                    assert time.monotonic() - began < 8, [each.is_cut for each in crowd]
                    before = time.monotonic()
                    assert await health(served) == 200
                    waits.append(time.monotonic() - before)
                    await asyncio.sleep(0.05)
                await asyncio.gather(*asked)
            return waits

    assert max(live(look())) < 1.0
