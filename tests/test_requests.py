"""Requests as no good client sends them: bodies that are coded, cut, endless or not asked for, and any bytes at all.
Raw HTTP to a live head with a small model."""

import asyncio
import json
import logging
import os
import re
import zlib
from urllib.parse import urljoin

from hypothesis import given, settings
from hypothesis import strategies as st
from reverse_proxy import ReverseProxy
from test_connections import health, peers, request, statuses
from test_server import FACE, TOKEN, live, serving
from webrtc_peers import until, watching

from plugin import room as room_module
from plugin.connections import Limits
from plugin.guard import Guard
from transports.webrtc import sessions as webrtc_sessions

JSON = "Content-Type: application/json"
BEARER = f"Authorization: Bearer {TOKEN}"
#: Every route that takes a body, and the kind of body that it takes.
TAKE = {
    "/style": JSON,
    "/portrait": JSON,
    "/portrait?consent=true": "Content-Type: image/jpeg",
    "/sessions": JSON,
    "/sessions?consent=true": "Content-Type: image/jpeg",
    "/whep": "Content-Type: application/sdp",
    "/whip": "Content-Type: application/sdp",
}
#: And those that take none.
LEAVE = ("/interrupt", "/play", "/none")


def told_wrong(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


async def ask(served, *sent: bytes) -> bytes:
    """What is answered until the connection is closed."""
    with peers(served, 1) as (peer,):
        for each in sent:
            await peer.send(each)
            await asyncio.sleep(0.005 * (each is not sent[-1]))
        return await peer.read()


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data)


def test_no_body_is_decoded():
    """Eight megabytes of spaces, in eight kilobytes."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    bomb = squeeze.compress(b" " * (8 << 20)) + squeeze.flush()

    async def look():
        async with serving(token=TOKEN, server__sessions="1") as served:
            for coding in ("gzip", "deflate", "br", "zstd", "GZIP", "identity, gzip", "x-own"):
                coded = f"Content-Encoding: {coding}", f"Content-Length: {len(bomb)}", "Connection: close"
                for path, kind in TAKE.items():
                    answer = await ask(served, request(f"POST {path}", kind, *coded, body=bomb))
                    assert statuses(answer) == [401] and answer.endswith(
                        b"a token is needed: Authorization: Bearer TOKEN"
                    )
                    answer = await ask(served, request(f"POST {path}", kind, *coded, BEARER, body=bomb))
                    assert statuses(answer) == [415] and b"\r\nAccept-Encoding: identity\r\n" in answer
                    assert answer.endswith(b"\r\n\r\nsend the body as it is, without Content-Encoding")

    live(look())


def test_what_is_said_to_be_coded_as_it_is_is_taken():
    async def look():
        async with serving() as served:
            kinds = JSON, "Content-Encoding: Identity", "Content-Length: 2", "Connection: close"
            return statuses(await ask(served, request("POST /style", *kinds, body=b"{}")))

    assert live(look()) == [200]


BROKEN = {
    "not gzip": ("Content-Encoding: gzip\r\nContent-Length: 5", b"plain", 415),
    "no size": ("Transfer-Encoding: chunked", b"zz\r\nhello\r\n", 400),
    "no end of a chunk": ("Transfer-Encoding: chunked", b"3\r\nhello world\r\n0\r\n\r\n", 400),
    "a huge size": ("Transfer-Encoding: chunked", b"f" * 40 + b"\r\nhello", 400),
    "coded for the way": ("Transfer-Encoding: gzip, chunked", chunked(b"{}"), 400),
    "two lengths": ("Content-Length: 2\r\nContent-Length: 3", b"{} ", 400),
    "length and chunks": ("Content-Length: 2\r\nTransfer-Encoding: chunked", chunked(b"{}"), 400),
    "a length below none": ("Content-Length: -1", b"", 400),
    "a length without end": (f"Content-Length: {'9' * 30}", b"{}", 400),
}  # fmt: skip


def test_a_body_that_cannot_be_read_is_refused_on_every_route(caplog):
    async def look():
        async with serving(server__sessions="1", limits=Limits(linger=0.05)) as served:
            for headers, body, status in BROKEN.values():
                for path, kind in (*TAKE.items(), *((path, JSON) for path in LEAVE)):
                    asked = request(f"POST {path}", kind, *headers.split("\r\n"), "Connection: close", body=body)
                    for parts in ([asked], [asked[: -len(body) or None], body]):
                        answer = await ask(served, *parts)
                        (got,) = statuses(answer)
                        assert got == status or (path in LEAVE and got in (204, 404, 409)), (parts, answer)
                        assert answer.partition(b"\r\n\r\n")[2].strip().count(b"\n") == 0, (parts, answer)
            assert await health(served) == 200

    live(look())
    assert told_wrong(caplog) == []


def test_a_body_that_nobody_reads_ends_the_connection_and_is_no_request(caplog):
    """Its rest, which may look like one: neither where the answer is given before it came, nor where it is refused."""
    inside = request("POST /interrupt")

    async def look():
        async with serving(server__sessions="1", limits=Limits(linger=0.1)) as served:
            interrupts = []
            served.show.listeners.append(lambda: interrupts.append(1))
            for line in ("GET /health", *(f"POST {path}" for path in (*TAKE, *LEAVE))):
                begun = request(line, "Content-Type: x/y", f"Content-Length: {2 * len(inside)}", body=inside)
                interrupts.clear()
                with peers(served, 1) as (peer,):
                    await peer.send(begun)
                    first = await peer.read(b"\r\n\r\n")
                    await peer.send(inside * 3)
                    answer = first + await peer.read()
                assert b"\r\nConnection: close\r\n" in answer and len(statuses(answer)) == 1, answer
                assert len(interrupts) == (line == "POST /interrupt")

    live(look())
    assert told_wrong(caplog) == []


def test_a_body_in_chunks_is_taken_and_one_of_hardly_anything_else_is_not(caplog):
    """Chunks of a byte each take a thousand times as long to read as they are."""

    def chunks(data: bytes, size: int) -> bytes:
        parts = [data[at : at + size] for at in range(0, len(data), size)]
        return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"

    async def look():
        async with serving(server__sessions="1") as served:

            async def sent(path: str, kind: str, data: bytes, size: int) -> list[int]:
                framed = kind, "Transfer-Encoding: chunked", "Connection: close"
                return statuses(await ask(served, request(f"POST {path}", *framed, body=chunks(data, size))))

            picture, kind = "/portrait?consent=true", "Content-Type: image/jpeg"
            assert await sent(picture, kind, FACE, 64) == await sent(picture, kind, FACE, 5000) == [200]
            assert await sent("/style", JSON, b'{"intensity": 1.5}', 1) == [200]
            for path, kind in TAKE.items():
                assert await sent(path, kind, bytes(30_000), 1) == []
            assert await health(served) == 200

    live(look())
    assert told_wrong(caplog) == []


def test_of_a_body_without_the_token_little_is_read():
    """However much is sent, and for however long: its sender is told, and cut."""
    limits = Limits(linger=0.5, linger_bytes=1 << 20)

    async def look():
        async with serving(token=TOKEN, limits=limits) as served:
            for slow in (False, True):
                with peers(served, 1) as (peer,):
                    await peer.send(
                        request("POST /portrait?consent=true", "Content-Type: image/jpeg", "Content-Length: 99999999")
                    )
                    reading = asyncio.ensure_future(peer.read())
                    sent = 0
                    while not reading.done() and sent < 90e6:
                        await peer.send(bytes(1 if slow else 1 << 18))
                        sent += 1 if slow else 1 << 18
                        await asyncio.sleep(0.05 if slow else 0)
                    assert statuses(await reading) == [401]
                    assert slow or sent < 20e6  # with what the system keeps for both

    live(look())


def test_nobody_is_asked_for_a_body_that_would_be_refused():
    """`Expect: 100-continue`, as curl sends it for what is large."""
    expects = "Expect: 100-continue", "Content-Length: 2"

    async def look():
        async with serving(token=TOKEN, limits=Limits(linger=0.1, idle=1.0, look=0.1)) as served:
            got = []
            for more in ([], [BEARER, "Origin: https://evil.example"], [BEARER, "Content-Encoding: gzip"]):
                got += [statuses(await ask(served, request("POST /style", JSON, *expects, *more)))]
            with peers(served, 1) as (peer,):
                await peer.send(request("POST /style", JSON, BEARER, *expects, "Connection: close"))
                first = await peer.read(b"\r\n\r\n")
                await peer.send(b"{}")
                got += [statuses(first), statuses(await peer.read())]
            got += [statuses(await ask(served, request("POST /style", JSON, BEARER, "Expect: wonders")))]
            return got

    assert live(look()) == [[401], [403], [415], [100], [200], [417]]


def test_a_websocket_is_not_compressed():
    async def look():
        async with serving() as served, served.client.ws_connect(f"{served.url}/speak", compress=15) as socket:
            return socket.compress, socket._response.headers.get("Sec-WebSocket-Extensions")

    assert live(look()) == (0, None)


def test_what_the_system_has_no_more_of_is_no_fault_of_ours(monkeypatch, caplog):
    async def look():
        async with serving() as served:

            def full():
                raise OSError(24, "Too many open files")

            monkeypatch.setattr(served.server.room, "peers", full)
            async with served.client.get(f"{served.url}/state") as answer:
                told = answer.status, await answer.text()
            monkeypatch.undo()
            return told

    assert live(look()) == (503, "too many open files; try again later")
    assert told_wrong(caplog) == []


# --- any bytes at all

ROUTES = (
    *TAKE, *TAKE, *LEAVE, "/", "/page.js", "/favicon.ico", "/health", "/state", "/metrics", "/portraits",
    "/portraits/ada", "/speak", "/sessions", "/sessions/x", "/sessions/x/", "/sessions/x/whep", "/whep/x", "/whip/x",
)  # fmt: skip
ODD_ROUTES = (
    "*", "", "http://localhost/state", "//evil/state", "/%2e%2e/", "/portraits/%ff%00", "/./state", "/state#x",
    "localhost:80", "/portraits/\u20ac", "/state?rate=\u00e9&x=%", "/state?a=%ed%a0%80", "/speak?rate=%00",
)  # fmt: skip
METHODS = ("GET", "GET", "POST", "POST", "POST", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS")
ODD_METHODS = ("CONNECT", "TRACE", "PRI", "get", "M-SEARCH")
LINES = (
    "Content-Type: application/json", "Content-Type: application/sdp", "Content-Type: image/jpeg", "Connection: close",
    "Content-Type: application/trickle-ice-sdpfrag", "Origin: http://localhost", "Expect: 100-continue", "If-Match: *",
    "Connection: upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "Accept: text/html",
    "Sec-WebSocket-Version: 13", "Access-Control-Request-Method: POST", "Content-Encoding: identity",
)  # fmt: skip
HEADERS = (
    "Host", "Content-Type", "Content-Length", "Transfer-Encoding", "Content-Encoding", "Expect", "Connection",
    "Upgrade", "Origin", "Authorization", "Access-Control-Request-Method", "If-Match", "Accept", "Cookie",
    "Sec-WebSocket-Key", "Sec-WebSocket-Version", "Sec-WebSocket-Extensions", "Sec-WebSocket-Key1", "Range", "X",
)  # fmt: skip
VALUES = (
    "localhost", "application/json", "image/jpeg; x=\u00e9", "application/sdp", "0", "2", "-1", "1e3", "9999999999",
    "chunked", "gzip", "identity", "100-continue", "close", "keep-alive", "upgrade", "websocket", "h2c", "null", "*",
    "http://localhost", "Bearer \u20ac", "Basic", "POST", "*/*", "text/html", "AAAAAAAAAAAAAAAAAAAAAA==", "13",
    "bytes=-", "a=b; c", "permessage-deflate", "multipart/form-data; boundary=", ",", "\t", "", "http://[", "//",
)  # fmt: skip
BODIES = (
    b"{}", b'{"name": "bo"}', b'{"intensity": 1e999}', b'{"name": "\xed\xa0\x80"}', b'{"pose": [1, 2, 3]}', b"v=0\r\n",
    b"v=0\r\nm=audio 9 RTP/AVP 0\r\n", b"a=candidate:1", b"", b"[" * 500, b'{"name": "\\ud800"}', b'{"": {}}',
)  # fmt: skip


@st.composite
def requests(draw) -> bytes:
    """Mostly what could be one."""
    odd = st.binary(max_size=12)

    def seldom() -> bool:
        return draw(st.integers(0, 11)) == 7

    def text(known, seldom_known) -> bytes:
        if not seldom():
            return draw(st.sampled_from(known)).encode()
        return draw(odd) if seldom() else draw(st.sampled_from(seldom_known)).encode()

    def header() -> bytes:
        if not seldom():
            return draw(st.sampled_from(LINES)).encode()
        return text(HEADERS, HEADERS) + b":" + text(VALUES, VALUES)

    version = draw(st.sampled_from([b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.1 ", b""])) if seldom() else b"HTTP/1.1"
    lines = [b" ".join((text(METHODS, ODD_METHODS), text(ROUTES, ODD_ROUTES), version))]
    lines += [] if seldom() else [b"Host: localhost"]
    lines += [header() for _ in range(draw(st.integers(0, 3)))]
    body = draw(st.sampled_from(BODIES)) if draw(st.booleans()) else draw(st.binary(max_size=60))
    frame, wrong = draw(st.sampled_from(["none", "length", "length", "chunks"])), seldom()
    if frame == "length":
        lines.append(b"Content-Length: %d" % (len(body) + (draw(st.integers(-3, 3)) if wrong else 0)))
    if frame == "chunks":
        lines.append(b"Transfer-Encoding: chunked")
        body = chunked(body)
        if wrong:
            at = draw(st.integers(0, len(body)))
            body = body[:at] + draw(odd) + body[at + draw(st.integers(0, 3)) :]
    sent = b"\r\n".join([*lines, b"", b""]) + (body if frame != "none" or wrong else b"")
    if seldom():
        at = draw(st.integers(0, len(sent)))
        sent = sent[:at] + draw(odd) + sent[at + draw(st.integers(0, 12)) :]
    return sent


def answers(got: bytes) -> list[tuple[int, bytes, dict[str, str]]]:
    """Statuses, bodies and headers. Fails where it is not HTTP; what comes behind an upgrade is left."""
    found = []
    while got:
        head, gap, got = got.partition(b"\r\n\r\n")
        assert gap, head
        first, *lines = head.decode("ascii").split("\r\n")
        status = re.fullmatch(r"HTTP/1\.[01] (\d{3}) [ -~]*", first)
        assert status, first
        headers = dict(line.lower().split(": ", 1) for line in lines)
        assert "transfer-encoding" not in headers
        # a HEAD is answered with a length, and no body
        length = 0 if got.startswith(b"HTTP/1.") else int(headers.get("content-length", 0))
        found.append((int(status[1]), got[:length], headers))
        got = got[length:]
        if status[1] == "101":
            break
    return found


def test_any_bytes_are_answered_or_the_connection_is_closed(monkeypatch, caplog):
    monkeypatch.setattr(room_module, "UPLOAD_SECONDS", 0.1)
    monkeypatch.setattr(webrtc_sessions, "BODY_SECONDS", 0.1)
    limits = Limits(linger=0.05, idle=0.1, look=0.02)

    async def try_out(served, sent: bytes) -> None:
        with peers(served, 1) as (peer,):
            await peer.send(sent)
            got = await peer.read()
        for status, body, headers in answers(got):
            assert status < 500, (sent, got)
            if status >= 400:
                assert body.count(b"\n") <= 1 and len(body) < 300 and b"Traceback" not in body
                assert headers["content-type"].startswith("text/plain"), got
            assert headers.get("server") == "ifmdm" or status in (100, 101), (sent, got)

    async def look():
        async with serving(server__sessions="0", limits=limits) as served:
            loop = asyncio.get_running_loop()

            @given(st.lists(requests(), min_size=1, max_size=3))
            @settings(max_examples=int(os.environ.get("FUZZ_EXAMPLES", 60)))
            def try_one(several):
                asyncio.run_coroutine_threadsafe(try_out(served, b"".join(several)), loop).result(20)
                assert not told_wrong(caplog), (several, told_wrong(caplog))

            await asyncio.to_thread(try_one)
            assert await health(served) == 200
            await until(lambda: not len(served.server.connections))

    asyncio.run(look())
    assert "Traceback" not in caplog.text


# --- behind a proxy that shows it below a path


def test_every_address_that_is_told_is_right_below_a_path():
    async def look():
        async with serving(token=TOKEN, server__sessions="1") as served:
            with ReverseProxy(served.url) as proxy:
                base = proxy.address
                # as the page's requests have them
                own = {"Authorization": f"Bearer {TOKEN}", "Origin": base.removesuffix("/avatar")}
                client = served.client
                client.headers.update(own)

                async def ask(method: str, url: str, **more):
                    async with client.request(method, url, **more) as answer:
                        body = await answer.read()
                        told = json.loads(body) if answer.content_type == "application/json" else body
                        return answer.status, told, str(answer.url), answer.headers

                async with watching(client, f"{base}/whep") as viewer:
                    await until(lambda: viewer.pictures)
                    assert viewer.location.startswith("/avatar/whep/")
                    status, *_ = await ask("DELETE", urljoin(base, viewer.location))
                    assert status == 200 and not served.server.broadcast.viewers
                status, made, where, headers = await ask("POST", f"{base}/sessions", json={})
                assert status == 201
                session = urljoin(where, headers["Location"])
                assert session == f"{base}/sessions/{made['id']}"
                assert urljoin(where, made["url"]) == f"{session}/"
                for url in (f"{base}/sessions", session):
                    status, told, where, _ = await ask("GET", url)
                    (one,) = told.get("sessions", [told])
                    assert (status, urljoin(where, one["url"])) == (200, f"{session}/")
                for place in (base, session):
                    _, told, where, _ = await ask("GET", f"{place}/portraits")
                    pictures = [urljoin(where, each["picture"]) for each in told["portraits"]]
                    assert pictures[0] == f"{place}/portraits/ada"
                    assert [(await ask("GET", each))[0] for each in pictures] == [200] * 4
                    status, page, where, _ = await ask("GET", f"{place}/")
                    files = re.findall(r'(?:href|src)="([^#"]+)"', page.decode())
                    assert [urljoin(where, each) for each in files] == [
                        f"{place}/icon.svg", f"{place}/page.css", f"{place}/page.js"
                    ]  # fmt: skip
                    assert [(await ask("GET", urljoin(where, each)))[0] for each in files] == [200] * 3
                    assert (b"<html data-session " in page) == (place == session)
                    async with client.ws_connect(f"{place}/speak") as socket:
                        assert (await socket.receive_json())["type"] == "ready"
                assert (await ask("GET", f"{base}/favicon.ico"))[2] == f"{base}/icon.svg"
                assert (await ask("DELETE", session))[0] == 204
                assert all(each.startswith("/avatar/") for each in proxy.asked)

    live(look())


def test_what_a_proxy_has_to_say_and_what_is_to_be_listed():
    """The page's own requests name its origin, which must be the host that was asked, or listed."""

    async def ask(keep_host: bool, **given) -> int:
        async with serving(**given) as served:
            with ReverseProxy(served.url, keep_host=keep_host) as proxy:
                bearer = {"Authorization": f"Bearer {TOKEN}", "Origin": proxy.address.removesuffix("/avatar")}
                async with served.client.post(f"{proxy.address}/interrupt", headers=bearer) as answer:
                    return answer.status

    assert live(ask(True, token=TOKEN)) == 204
    assert live(ask(False, token=TOKEN)) == 403
    listed = Guard(origins=frozenset({"https://head.example"}))
    assert listed.allows_host("head.example") and listed.allows_host("127.0.0.1:8080")
    assert not listed.allows_host("head.example:81") and not listed.allows_host("evil.example")
    assert listed.allows_origin("https://head.example", "127.0.0.1:8080")
