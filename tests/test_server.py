"""The server as browsers and programs meet it: real HTTP and WebSockets, to a live head with a small model."""

import asyncio
import contextlib
import json
import re
import socket
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import aiohttp
import numpy as np
import pytest
from browsing import write_wav
from live_fakes import LatentRenderer, LoudnessModel
from pictures import UNLIMITED, many_scans
from prometheus_client.parser import text_string_to_metric_families
from wav_files import wav
from webrtc_peers import until

from engine import decoder as decoder_module
from engine.features import SAMPLE_RATE
from plugin import doctor
from plugin import room as room_module
from plugin import sessions as sessions_module
from plugin.connections import Limits
from plugin.guard import Guard
from plugin.render import bundled_portraits
from plugin.room import Pulse
from plugin.run import Ear, Show, make_show
from plugin.server import Server, address, listen
from plugin.settings import SettingsError, load_settings
from transports import websocket
from transports.media import LazySink, TransportError
from transports.sound_formats import PcmForm
from transports.websocket import Utterance, parse_form

TOKEN = "correct-horse"
FACE = bundled_portraits()["bo"].read_bytes()
#: How the threads of pools are called, which start as they are needed, up to a number, and stay.
POOLS = ("asyncio_", "picture_", "portrait_")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Screen(LazySink):
    def __init__(self):
        self.frames = []

    def open(self, form):
        pass

    def send(self, frame):
        self.frames.append(frame)

    def close(self):
        pass

    @property
    def sound(self) -> np.ndarray:
        """What was said, without the silence."""
        heard = np.concatenate([np.zeros(0, np.float32), *(frame.audio for frame in self.frames)])
        return heard[heard != 0]


@dataclass
class Served:
    """A running head, and a client of its server."""

    show: Show
    url: str
    client: aiohttp.ClientSession
    screen: Screen
    stop: asyncio.Event
    task: asyncio.Task
    told: list[str] = field(default_factory=list)

    @property
    def server(self) -> Server:
        return self.show.services[0].__self__

    def speak(self, query: str = "", **more):
        return self.client.ws_connect(f"{self.url}/speak{query}", **more)


@contextlib.asynccontextmanager
async def serving(token: str = "", model=None, renderer=LatentRenderer, limits: Limits | None = None, **flags):
    given = {"server.port": "0", "server.token": token, "live.source": "none", "live.latency": "interactive"}
    settings = load_settings({**given, "video.size": "128", **{k.replace("__", "."): v for k, v in flags.items()}})
    told: list[str] = []
    show = make_show(settings, told.append, model or LoudnessModel(), renderer)
    server = show.services[0].__self__
    server.limits = limits or server.limits
    show.stream._ready_limit = 10_000  # a busy machine loses no sound here; losing frames is tested in test_live.py
    screen = Screen()
    show.sinks.append(screen)
    stop = asyncio.Event()
    task = asyncio.create_task(show.run(0, stop))
    async with aiohttp.ClientSession() as client:
        while not told and not task.done():
            await asyncio.sleep(0.01)
        try:
            url = re.search(r"http://\S+[^/\s]", " ".join(told))[0]
            yield Served(show, url, client, screen, stop, task, told)
        finally:
            stop.set()
            await asyncio.wait_for(task, 10)


def live(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 30))


# --- the page, and what every answer says


def test_the_page_needs_nothing_of_another_host():
    async def look():
        async with serving() as served:
            answers = {}
            for path in ("/", "/?view=clean", "/page.js", "/page.css", "/icon.svg"):
                async with served.client.get(served.url + path) as answer:
                    answers[path] = (answer.status, answer.content_type, await answer.text(), dict(answer.headers))
            return answers

    answers = live(look())
    assert {path: answer[:2] for path, answer in answers.items()} == {
        "/": (200, "text/html"),
        "/?view=clean": (200, "text/html"),
        "/page.js": (200, "text/javascript"),
        "/page.css": (200, "text/css"),
        "/icon.svg": (200, "image/svg+xml"),
    }
    for path, (_, _, text, headers) in answers.items():
        named = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text)) - {"http://www.w3.org"}
        assert not named, path
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
        assert "unsafe" not in policy and "http" not in policy and "*" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Server"] == "ifmdm"
    page = answers["/"][2]
    # the policy forbids what is written into the page itself
    assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=", page)
    # what the script asks for by id is in the page
    for name in re.findall(r'\$\("([\w-]+)"\)', answers["/page.js"][2]):
        assert f'id="{name}"' in page, name


def test_whatever_goes_wrong_is_one_line_that_tells_nothing_of_the_inside(monkeypatch, caplog):
    async def look():
        async with serving() as served:

            def broken():
                raise ZeroDivisionError("inside")

            monkeypatch.setattr(served.server.room, "peers", broken)
            answers = []
            for method, path in (("GET", "/state"), ("GET", "/none"), ("POST", "/health"), ("GET", "/../etc/passwd")):
                async with served.client.request(method, served.url + path) as answer:
                    answers.append((answer.status, answer.content_type, await answer.text(), answer.headers["Server"]))
            port = urlsplit(served.url).port
            for bytes_ in (b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nHost: \x00\r\n\r\n", b"GET /\xff HTTP/9.9\r\n\r\n"):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(bytes_)
                answer = (await asyncio.wait_for(reader.read(), 5)).decode()
                writer.close()
                assert " 400 " in answer.splitlines()[0]
                assert not re.search("aiohttp|Python|Traceback", answer)
                answers.append((400, "text/plain", answer.partition("\r\n\r\n")[2], "ifmdm"))
            monkeypatch.undo()
            return answers

    answers = live(look())
    assert [answer[0] for answer in answers] == [500, 404, 405, 404, 400, 400, 400]
    for _, kind, text, server in answers:
        assert (kind, server) == ("text/plain", "ifmdm")
        assert text.count("\n") == 0 < len(text)
        assert not re.search("inside|Zero|Traceback|aiohttp|Python", text)
    assert "inside" in caplog.text  # for us


# --- who may come in


def test_every_route_needs_the_token_and_only_the_token():
    async def ask(served, method, path, **headers):
        async with served.client.request(method, served.url + path, headers=headers, allow_redirects=False) as answer:
            return answer.status

    async def look():
        async with serving(token=TOKEN, server__sessions="2") as served:
            bearer = {"Authorization": f"Bearer {TOKEN}"}
            async with served.client.post(f"{served.url}/sessions", headers=bearer) as answer:
                session = urlsplit(urljoin(str(answer.url), answer.headers["Location"])).path
            files = ("/", "/page.js", "/page.css", "/icon.svg")
            public = {"/favicon.ico", *files, *(session + file for file in files)}
            routes = {
                (route.method, re.sub(r"[{}]", "", route.resource.canonical.replace("/sessions/{id}", session)))
                for route in served.server.app().router.routes()
            }
            assert len(routes) > 45
            own = {"/health", "/speak", "/whep", "/whep/session", "/whip", "/portrait", "/style", "/state"}
            assert {path for _, path in routes} >= {"/metrics", *own, "/sessions", *(session + path for path in own)}
            for method, path in sorted(routes, key=lambda route: (route[0] == "DELETE", route)):
                method = "GET" if method == "*" else method
                if path in public:
                    assert await ask(served, method, path) in (200, 308)
                    continue
                for given in (
                    {}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"},
                    {"Authorization": TOKEN}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": "Bearer"},
                    {"Cookie": f"token={TOKEN}"},
                ):  # fmt: skip
                    assert await ask(served, method, path, **given) == 401, (method, path, given)
                assert await ask(served, method, f"{path}?token={TOKEN}") == 401
                assert await ask(served, method, path, Authorization=f"bearer {TOKEN}") != 401, (method, path)
            assert await ask(served, "GET", "/unknown") == 401
            # a browser's WebSocket can set no header
            for query, fine in ((f"?token={TOKEN}", True), ("?token=wrong", False), ("", False)):
                try:
                    async with served.speak(query):
                        assert fine
                except aiohttp.WSServerHandshakeError as error:
                    assert not fine and error.status == 401

    live(look())


@pytest.mark.parametrize(
    ("host", "fine"),
    [
        ("127.0.0.1:{port}", True),
        ("localhost:{port}", True),
        ("localhost:9999", True),  # a tunnel
        ("[::1]:{port}", True),
        ("127.9.9.9", True),
        ("evil.example", False),
        ("evil.example:{port}", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("192.168.1.5:{port}", False),
        ("[::1", False),
    ],
)  # fmt: skip
def test_without_a_token_only_names_of_this_machine_are_answered(host, fine):
    assert Guard().allows_host(host.format(port=8080)) is fine
    assert Guard(TOKEN).allows_host(host.format(port=8080))


def test_pages_of_other_origins_are_refused_unless_listed():
    ours, theirs = "https://ours.example", "https://theirs.example"

    async def ask(served, method, path, origin, **headers):
        headers |= {"Origin": origin} if origin else {}
        async with served.client.request(method, served.url + path, headers=headers) as answer:
            allowed = {k: v for k, v in answer.headers.items() if k.startswith("Access-Control")}
            return answer.status, allowed, answer.headers.get("Vary")

    async def look():
        async with serving(token=TOKEN, server__origins=ours) as served:
            bearer = {"Authorization": f"Bearer {TOKEN}"}
            preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
            assert (await ask(served, "POST", "/interrupt", served.url, **bearer))[:2] == (204, {})
            assert (await ask(served, "POST", "/interrupt", None, **bearer))[:2] == (204, {})
            for origin in (theirs, "null", "https://ours.example.evil", "http://ours.example"):
                assert (await ask(served, "POST", "/interrupt", origin, **bearer))[:2] == (403, {})
                assert (await ask(served, "OPTIONS", "/whep", origin, **preflight))[:2] == (403, {})
                with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
                    await served.speak(f"?token={TOKEN}", origin=origin)
            status, allowed, vary = await ask(served, "OPTIONS", "/whep", ours, **preflight)
            assert status == 204 and vary == "Origin"
            assert allowed["Access-Control-Allow-Origin"] == ours
            assert {"POST", "DELETE", "PATCH"} <= set(allowed["Access-Control-Allow-Methods"].split(", "))
            assert "Authorization" in allowed["Access-Control-Allow-Headers"]
            # a preflight opens nothing
            assert (await ask(served, "OPTIONS", "/whep", ours))[0] == 401
            for path, given in (("/state", bearer), ("/state", {})):
                status, allowed, vary = await ask(served, "GET", path, ours, **given)
                assert status == (200 if given else 401)
                assert allowed["Access-Control-Allow-Origin"] == ours
                assert {"Location", "Link", "ETag"} <= set(allowed["Access-Control-Expose-Headers"].split(", "))
                assert "Access-Control-Allow-Credentials" not in allowed

    live(look())


def test_what_another_site_sends_to_a_machine_without_a_token_is_refused():
    async def look():
        async with serving() as served:
            for headers, status in (
                ({}, 204),
                ({"Origin": served.url}, 204),
                ({"Origin": "https://evil.example"}, 403),
                ({"Host": "evil.example", "Origin": "http://evil.example"}, 421),  # DNS rebinding
                ({"Host": "evil.example"}, 421),
            ):
                async with served.client.post(served.url + "/interrupt", headers=headers) as answer:
                    assert answer.status == status, headers
                    assert (await answer.text()).count("\n") == 0

    live(look())


# --- what is sent


JSON = "application/json"


@pytest.mark.parametrize(
    ("path", "kind", "body", "status", "told"),
    [
        ("/style", JSON, b'{"intensity": 1.5, "pose": [5, -3, 1]}', 200, '"intensity": 1.5, "pose": [5.0, -3.0, 1.0]'),
        ("/style", JSON, b"{}", 200, '"intensity": 1.0'),
        ("/style", JSON, b'{"intensity": 2.1}', 422, "intensity: Input should be less than or equal to 2"),
        ("/style", JSON, b'{"intensity": NaN}', 422, "intensity"),
        ("/style", JSON, b'{"intensity": true}', 422, "intensity"),
        ("/style", JSON, b'{"pose": [1, 2]}', 422, "pose"),
        ("/style", JSON, b'{"colour": "red"}', 422, "colour: Extra inputs are not permitted"),
        ("/style", JSON, b"{", 400, "Invalid JSON"),
        ("/style", JSON, b"[" * 60_000, 400, "Invalid JSON"),
        ("/style", JSON, b"\xff\xfe", 400, "Invalid JSON"),
        ("/style", JSON, b" " * 70_000, 413, "Maximum request body size"),
        ("/style", "text/plain", b"{}", 415, "send application/json"),
        ("/portrait", JSON, b'{"name": "bo"}', 200, '{"portrait": "bo"}'),
        ("/portrait", JSON, b'{"name": "../voice"}', 404, "no such portrait; there are ada, bo, chidi, dalia"),
        ("/portrait", JSON, b'{"name": "/etc/passwd"}', 404, "no such portrait"),
        ("/portrait", JSON, b'{"path": "bo"}', 422, "name: Field required"),
        ("/portrait?consent=true", "image/jpeg", FACE, 200, '{"portrait": "uploaded"}'),
        ("/portrait", "image/jpeg", FACE, 403, "a face needs consent"),
        ("/portrait?consnt=true", "image/jpeg", FACE, 400, "consnt: no such name in the query; did you mean consent?"),
        ("/style?intensity=2", JSON, b"{}", 400, "intensity: no such name in the query; there are none here"),
        ("/interrupt?session=1", JSON, b"", 400, "session: no such name in the query; there are none here"),
        ("/sessions?consen=true", "image/jpeg", FACE, 400, "consen: no such name in the query; did you mean consent?"),
        ("/portrait?consent=perhaps", "image/jpeg", FACE, 403, "a face needs consent"),
        ("/portrait?consent=true", "image/jpeg", FACE[:3000], 422, "the JPEG is damaged or cut short"),
        ("/portrait?consent=true", "image/png", b"plain words", 422, "not a picture"),
        ("/portrait?consent=true", "image/jpeg", b"", 400, "the picture is empty"),
        ("/portrait?consent=true", "image/gif", b"GIF89a", 415, "send a JPEG, PNG or WebP"),
        ("/portrait?consent=true", "application/x-www-form-urlencoded", FACE, 415, "with its Content-Type (image/jpeg"),
        ("/portrait?consent=true", "multipart/form-data; boundary=x", b"--x--", 415, "send a JPEG"),
        ("/portrait?consent=true", "image/jpeg", bytes(11 << 20), 413, "larger than 10 MiB"),
    ],
)  # fmt: skip
def test_a_body_is_taken_or_refused_in_one_line(path, kind, body, status, told):
    async def look():
        async with serving() as served:
            async with served.client.post(served.url + path, data=body, headers={"Content-Type": kind}) as answer:
                got = answer.status, await answer.text()
            async with served.client.get(served.url + "/state") as answer:
                return *got, await answer.json()

    got, text, state = live(look())
    assert (got, text.count("\n")) == (status, 0), text
    assert told in text
    assert state["portrait"] == (json.loads(text)["portrait"] if "/portrait" in path and status == 200 else "ada")
    if "/style" in path and status == 200:
        assert [state["intensity"], state["pose"]] == list(json.loads(text).values())


@pytest.mark.parametrize("path", ["/whip", "/whep"])
def test_clients_of_a_standard_may_add_names_to_its_addresses(path):
    async def ask():
        async with serving() as served:
            for query in ("", "?stream=mine&token=abc"):
                async with served.client.post(served.url + path + query, data=b"") as answer:
                    yield answer.status, (await answer.text()).strip()

    async def both():
        return [each async for each in ask()]

    assert live(both()) == [(415, "send application/sdp")] * 2


def test_a_picture_without_a_length_is_limited_too_and_one_that_never_comes(monkeypatch):
    monkeypatch.setattr(room_module, "UPLOAD_SECONDS", 0.3)

    async def many(count, wait=0.0):
        for _ in range(count):
            yield bytes(1 << 20)
            await asyncio.sleep(wait)

    async def look():
        async with serving() as served:
            where, kind = served.url + "/portrait?consent=true", {"Content-Type": "image/jpeg"}
            got = []
            for body in (many(20), many(2, 5.0)):
                with contextlib.suppress(aiohttp.ClientError):
                    async with served.client.post(where, data=body, headers=kind) as answer:
                        got.append(answer.status)
            # the next one is not held up
            async with served.client.post(where, data=FACE, headers=kind) as answer:
                return [*got, answer.status]

    got = live(look())
    assert got[-2:] == [408, 200]
    assert set(got[:-2]) <= {413}


async def begin(url: str, path: str, kind: str):
    """Somebody sends the first byte of a body, and no more."""
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: 1000\r\n\r\n{{"
    writer.write(head.encode())
    await writer.drain()
    return reader, writer


async def end(peer) -> str:
    """How that was answered: the status, and the line."""
    reader, writer = peer
    answer = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 8)).decode()
    length = int(re.search(r"(?i)content-length: (\d+)", answer)[1])
    answer = f"{answer.split()[1]} {(await reader.readexactly(length)).decode()}"
    writer.close()
    return answer


@pytest.mark.parametrize(
    ("path", "kind", "count", "told"),
    [
        ("/portrait", JSON, 1, "408 the body did not arrive within 1 s"),
        ("/portrait?consent=true", "image/jpeg", 1, "408 the picture did not arrive within 1 s"),
        ("/style", JSON, 1, "408 the body did not arrive within 1 s"),
        ("/sessions", JSON, sessions_module.COMING, "408 the body did not arrive within 1 s"),
    ],
)
def test_a_body_that_does_not_come_holds_up_nobody_and_is_given_up(path, kind, count, told, monkeypatch):
    async def look():
        async with serving(server__sessions="1") as served:
            peers = [await begin(served.url, path, kind) for _ in range(count)]
            await asyncio.sleep(0.1)
            async with served.client.post(served.url + "/portrait", json={"name": "bo"}) as answer:
                assert answer.status == 200
            async with served.client.post(served.url + "/sessions", json={}) as answer:
                assert answer.status == 201
            return [await end(peer) for peer in peers]

    monkeypatch.setattr(room_module, "UPLOAD_SECONDS", 1.0)
    assert live(look()) == [told] * count


def test_few_pictures_are_on_their_way_at_once(monkeypatch):
    monkeypatch.setattr(room_module, "UPLOADS", 2)

    async def look():
        async with serving() as served:
            peers = [await begin(served.url, "/portrait?consent=true", "image/jpeg") for _ in range(2)]
            await until(lambda: served.server.room._uploads.locked())
            another = await begin(served.url, "/portrait?consent=true", "image/jpeg")
            refused = await end(another)
            for _, writer in peers:
                writer.close()
            await until(lambda: not served.server.room._uploads.locked())
            return refused

    assert live(look()) == "503 other pictures are on their way; try again"


def test_one_portrait_at_a_time():
    async def look():
        async with serving() as served:
            prepare, begun = served.show.prepare, asyncio.Event()
            loop = asyncio.get_running_loop()

            def slow(picture):
                loop.call_soon_threadsafe(begun.set)
                time.sleep(0.3)
                return prepare(picture)

            served.show.prepare = slow

            async def change(name):
                async with served.client.post(served.url + "/portrait", json={"name": name}) as answer:
                    return answer.status, answer.headers.get("Retry-After")

            first = asyncio.create_task(change("bo"))
            await begun.wait()
            second = await change("chidi")
            return await first, second, await change("dalia"), served.show.portrait

    assert live(look()) == ((200, None), (409, "2"), (200, None), "dalia")


def test_portraits_are_listed_with_small_pictures():
    async def look():
        async with serving() as served:
            async with served.client.get(served.url + "/portraits") as answer:
                listed = await answer.json()
            sizes = []
            for each in listed["portraits"]:
                async with served.client.get(urljoin(f"{served.url}/portraits", each["picture"])) as answer:
                    assert answer.content_type == "image/jpeg"
                    sizes.append(len(await answer.read()))
            for name in ("nobody", "..%2Fvoice.flac", "%2e%2e%2f%2e%2e%2fsettings.py", "ada.jpg"):
                async with served.client.get(f"{served.url}/portraits/{name}") as answer:
                    assert answer.status == 404
            return listed, sizes

    listed, sizes = live(look())
    assert listed["portrait"] == "ada"
    assert [each["name"] for each in listed["portraits"]] == ["ada", "bo", "chidi", "dalia"]
    assert all(1_000 < size < 30_000 for size in sizes)


def test_a_face_that_somebody_brought_can_be_chosen_again():
    """By its name and without its picture, which is a small one by then; as often as others were chosen."""
    Path("mine.jpg").write_bytes(FACE)
    other = bundled_portraits()["chidi"].read_bytes()

    async def look():
        async with serving(head__portrait="mine.jpg", head__consent="true", server__sessions="2") as served:
            shown, prepared = [], []
            stream, prepare = served.show.stream, served.show.prepare
            stream.change_portrait = lambda face, renderer: shown.append(face)
            served.show.prepare = lambda picture: prepared.append(prepare(picture)) or prepared[-1]

            async def post(path, **more):
                async with served.client.post(served.url + path, **more) as answer:
                    where = urljoin(path, answer.headers.get("Location", ""))
                    return answer.status, await answer.text(), where

            async def listed(base=""):
                async with served.client.get(f"{served.url}{base}/portraits") as answer:
                    told = await answer.json()
                own = [each for each in told["portraits"] if each["own"]]
                for each in own:
                    async with served.client.get(urljoin(f"{served.url}{base}/portraits", each["picture"])) as answer:
                        assert (answer.status, answer.content_type) == (200, "image/jpeg")
                        assert answer.headers["Cache-Control"] == "no-store"  # another may come under its name
                        each["picture"] = await answer.read()
                        assert len(each["picture"]) < 30_000
                return told["portrait"], {each["name"]: each["picture"] for each in own}

            upload = {"data": other, "headers": {"Content-Type": "image/jpeg"}}
            first = await listed()
            assert first[0] == "own" and list(first[1]) == ["own"]
            assert (await post("/portrait", json={"name": "uploaded"}))[0] == 404
            assert (await post("/portrait?consent=true", **upload))[0] == 200
            for name in ("bo", "uploaded", "own"):
                assert (await post("/portrait", json={"name": name}))[:2] == (200, json.dumps({"portrait": name}))
                assert (await listed())[0] == name
            assert shown == [prepared[0], prepared[1], prepared[0], served.show.face]
            second = (await listed())[1]
            assert list(second) == ["own", "uploaded"] and len(set(second.values())) == 2
            assert second["own"] == first[1]["own"]
            status, text, _ = await post("/portrait", json={"name": "else"})
            assert (status, text) == (404, "no such portrait; there are ada, bo, chidi, dalia, own, uploaded")

            # a session has those of its own
            for given, name in (({"json": {}}, "own"), (upload, "uploaded")):
                where = "/sessions?consent=true" if name == "uploaded" else "/sessions"
                _, _, base = await post(where, **given)
                assert await listed(base) == (name, {name: second[name]})
                assert (await post(f"{base}/portrait", json={"name": "bo"}))[0] == 200
                assert (await post(f"{base}/portrait", json={"name": name}))[0] == 200

    live(look())


def test_the_end_of_a_large_body_is_no_head_of_a_request():
    """However it is cut into reads; what of a head is too long ends the connection."""

    async def look():
        async with serving() as served:
            told = []
            for size in (70_000, 199_584, 300_000, 1_000_000, 2_086_761, 5_000_000):
                sent = {"data": bytes(size), "headers": {"Content-Type": "image/jpeg"}}
                async with served.client.post(served.url + "/portrait?consent=true", **sent) as answer:
                    told.append((answer.status, await answer.text()))
            return told

    assert live(look()) == [(422, "uploaded picture: not a picture; give a JPEG, PNG or WebP file")] * 6


def test_pictures_that_decode_for_ever_hold_up_nobody_else(monkeypatch):
    """As many as are decoded at once: other portraits, heads and sessions go on, and each is refused in the end. They
    are of no kind that is known beforehand, since the limits that are read first are off here."""
    monkeypatch.setattr(decoder_module, "_PROGRAM", UNLIMITED)
    hostile = {"data": many_scans(20_000), "headers": {"Content-Type": "image/jpeg"}}
    good = {"data": FACE, "headers": {"Content-Type": "image/jpeg"}}

    async def look():
        async with serving(server__sessions="3") as served:

            async def ask(path, **more):
                async with served.client.post(served.url + path, **more) as answer:
                    return answer.status, await answer.text(), answer.headers.get("Location")

            served.show.studio.decoder.seconds = 1e6
            _, _, where = await ask("/sessions", json={"portrait": "dalia"})
            other = f"/{where.lstrip('/')}"
            frames = len(served.screen.frames)
            bad = [
                asyncio.create_task(ask(f"{path}?consent=true", **hostile))
                for path in ("/portrait", f"{other}/portrait", "/sessions")
            ]
            await asyncio.sleep(0.5)
            first = await ask("/portrait", json={"name": "bo"})
            second = await ask(f"{other}/portrait", json={"name": "chidi"})
            made = await ask("/sessions", json={"portrait": "ada"})
            assert not any(task.done() for task in bad)
            served.show.studio.decoder.seconds = 1.0
            assert (first[0], second[0], made[0]) == (200, 200, 201)
            assert len(served.screen.frames) > frames + 5
            waited = await ask("/portrait?consent=true", **good)  # behind them, and not for ever
            assert waited[0] == 200, waited
            return [(status, text) for status, text, _ in await asyncio.gather(*bad)]

    told = "uploaded picture: it takes more than 1 s to decode; save it anew, or smaller"
    assert live(look()) == [(422, told)] * 3


def test_a_picture_that_is_refused_by_its_own_word_is_refused_at_once():
    """What decodes for minutes where nobody counts its scans."""

    async def look():
        async with serving() as served:
            served.show.studio.decoder.seconds = 1e6
            hostile = {"data": many_scans(20_000), "headers": {"Content-Type": "image/jpeg"}}
            async with served.client.post(served.url + "/portrait?consent=true", **hostile) as answer:
                return answer.status, await answer.text()

    assert live(look()) == (422, "uploaded picture: the JPEG has more than 64 scans; save it anew")


def test_pictures_wait_for_others_no_longer_than_is_said(monkeypatch):
    monkeypatch.setattr(decoder_module, "_PROGRAM", UNLIMITED)
    monkeypatch.setattr(room_module, "READ_SECONDS", 1.0)
    hostile = {"data": many_scans(20_000), "headers": {"Content-Type": "image/jpeg"}}

    async def look():
        async with serving() as served, served.client.post(
            served.url + "/portrait?consent=true", **hostile
        ) as answer:
            return answer.status, await answer.text(), answer.headers["Retry-After"]

    assert live(look()) == (503, "pictures take too long here now; try again", "2")


# --- what is told


def test_health_state_and_metrics_tell_what_happens():
    async def look():
        async with serving() as served:
            await until(lambda: served.server.room.pulse.rate > 20)
            served.show.stream.push(np.full(1600, 0.5, np.float32))
            await until(lambda: served.show.stream.figures.latency)
            served.show.problems["camera"] = "camera: it is gone"
            async with served.client.get(served.url + "/health") as answer:
                health = answer.status, await answer.json()
            async with served.client.get(served.url + "/state") as answer:
                state = await answer.json()
            async with served.client.get(served.url + "/none") as answer:
                assert answer.status == 404
            async with served.client.get(served.url + "/metrics") as answer:
                assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
                text = await answer.text()
            return health, state, text

    (status, health), state, text = live(look())
    assert (status, health["status"], health["problems"]) == (200, "degraded", ["camera: it is gone"])
    assert 20 < health["frames_per_second"] < 60
    expected = {"portrait": "ada", "fps": 45, "size": 128, "viewers": 0, "guest": False, "ice_servers": []}
    assert {name: state[name] for name in expected} == expected
    assert state["latency_seconds"] == pytest.approx(0.25, abs=0.1)
    samples = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            samples[sample.name, *sample.labels.values()] = sample.value
    assert samples["ifmdm_frames_total",] >= 10
    assert samples["ifmdm_latency_seconds", "0.95"] > 0.1
    assert samples["ifmdm_work_seconds", "0.5"] > 0
    assert samples["ifmdm_problem", "camera"] == 1
    for name in ("ifmdm_frames_late_total", "ifmdm_frames_undrawn_total", "ifmdm_frames_lost_total",
                 "ifmdm_interrupts_total", "ifmdm_webrtc_viewers", "ifmdm_speakers", "ifmdm_speaking_sockets",
                 "ifmdm_backlog_seconds", "ifmdm_socket_backlog_seconds", "ifmdm_resyncs_total"):  # fmt: skip
        assert samples[name,] >= 0
    assert samples["process_resident_memory_bytes",] > 1e6
    assert samples["ifmdm_requests_total", "GET", "/state", "200"] == 1
    assert samples["ifmdm_requests_total", "GET", "other", "404"] == 1  # what somebody makes up is no label


def test_a_head_that_makes_no_frames_is_not_healthy():
    pulse = Pulse()
    assert (pulse.rate, pulse.stalled) == (0, False)
    for step in range(20):
        pulse.beat(step * 0.5, step * 22)
    assert pulse.rate == pytest.approx(44)
    assert not pulse.stalled
    for step in range(20, 30):
        pulse.beat(step * 0.5, 19 * 22)
    assert pulse.stalled
    assert len(pulse.beats) < 10

    async def look():
        async with serving() as served:
            served.server.room.pulse = pulse
            pulse.beat = lambda *_: None
            async with served.client.get(served.url + "/health") as answer:
                return answer.status, (await answer.json())["status"]

    assert live(look()) == (503, "stalled")


# --- speech over a WebSocket


def words(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).integers(1000, 20_000, round(SAMPLE_RATE * seconds)).astype("<i2")


async def told(socket, kind: str) -> dict:
    """The next message of a kind."""
    while True:
        message = await socket.receive_json(timeout=8)
        if message["type"] == kind:
            return message


@pytest.mark.parametrize("form", ["s16le", "f32le"])
def test_speech_in_odd_pieces_is_spoken_to_the_last_sample(form):
    sent = words(0.6)
    data = sent.tobytes() if form == "s16le" else (sent / 32768).astype("<f4").tobytes()

    async def talk():
        async with serving() as served, served.speak(f"?encoding={form}&rate=16000&channels=1") as socket:
            ready = await socket.receive_json()
            cuts = np.random.default_rng(1).integers(1, 700, 200).cumsum()
            for piece in np.split(np.frombuffer(data, np.uint8), cuts[cuts < len(data)]):
                await socket.send_bytes(piece.tobytes())
            await socket.send_json({"type": "end"})
            started = await told(socket, "started")
            begun = len(served.screen.sound)
            played = await told(socket, "played")
            spoken = served.screen.sound
            # and another one on the same connection
            await socket.send_bytes(data)
            await socket.send_json({"type": "end"})
            return ready, started, begun, played, spoken, await told(socket, "played")

    ready, started, begun, played, spoken, again = live(talk())
    assert ready == {"type": "ready", "encoding": form, "rate": 16_000, "channels": 1}
    assert started == {"type": "started"}
    assert 0 < begun < len(sent)
    assert played == again == {"type": "played", "seconds": 0.6}
    assert spoken == pytest.approx(sent / 32768, abs=1e-6)


def test_another_rate_and_two_channels():
    async def talk():
        async with serving() as served, served.speak("?rate=48000&channels=2") as socket:
            tone = (12_000 * np.sin(np.arange(24_000) * 2 * np.pi * 300 / 48_000)).astype("<i2")
            await socket.send_bytes(np.stack([tone, tone], 1).tobytes())
            await socket.send_json({"type": "end"})
            return await told(socket, "played"), served.screen.sound

    played, spoken = live(talk())
    assert played["seconds"] == 0.5
    assert len(spoken) == pytest.approx(8000, abs=100)
    assert np.abs(spoken).max() == pytest.approx(12_000 / 32768, rel=0.05)


def test_the_header_of_a_wav_file_wins_and_is_not_heard():
    """Two utterances, each with its header, and one without; the first is cut within its header."""
    sent = words(0.5)

    async def talk():
        async with serving() as served, served.speak("?rate=48000&channels=2&encoding=f32le") as socket:
            played = []
            for size, cuts in ((0xFFFFFFFF, [5, 21]), (None, [1000])):
                file = wav(sent.tobytes(), rate=SAMPLE_RATE, size=size)
                for piece in np.split(np.frombuffer(file, np.uint8), cuts):
                    await socket.send_bytes(piece.tobytes())
                await socket.send_json({"type": "end"})
                played.append((await told(socket, "played"))["seconds"])
            before = len(served.screen.sound)
            raw = np.full((4800, 2), 0.25, "<f4")
            await socket.send_bytes(raw.tobytes())
            await socket.send_json({"type": "end"})
            return played, (await told(socket, "played"))["seconds"], served.screen.sound[:before]

    played, raw, spoken = live(talk())
    assert (played, raw) == ([0.5, 0.5], 0.1)
    assert spoken == pytest.approx(np.concatenate([sent, sent]) / 32768, abs=1e-6)


def test_a_voice_in_any_of_many_channels_is_as_loud_as_in_one():
    """One of two upside down, the centre of 5.1 and of 7.1, all of 7.1; as WAV and raw by turns."""
    tone = 0.25 * np.sin(2 * np.pi * 300 * np.arange(7_200) / 24_000)
    forms = [(1, -1), (1, -1), (0, 0, 1, 0, 0, 0), (0, 0, 1, 0, 0, 0), (0, 0, 1, 0, 0, 0, 0, 0), (1,) * 8]

    async def talk():
        levels = []
        async with serving() as served:
            for turn, gains in enumerate(forms):
                samples = (tone[:, None] * gains * 32767).astype("<i2")
                query = f"?rate=24000&channels={len(gains)}" if turn % 2 else ""
                before = len(served.screen.sound)
                async with served.speak(query) as socket:
                    data = samples.tobytes()
                    await socket.send_bytes(data if turn % 2 else wav(data, channels=len(gains)))
                    await socket.send_json({"type": "end"})
                    assert (await told(socket, "played"))["seconds"] == pytest.approx(0.3, abs=0.001)
                heard = served.screen.sound[before:]
                levels.append(20 * np.log10(np.sqrt(np.sum(heard**2) / 4_800)))
        return levels

    assert live(talk()) == pytest.approx([20 * np.log10(0.25 / np.sqrt(2))] * len(forms), abs=0.2)


def test_a_message_of_all_that_may_wait_is_taken():
    """A minute and a half at 48 kHz as one message, as synthesisers that answer in one piece send it."""

    async def talk():
        async with serving() as served, served.speak("?rate=48000") as socket:
            await socket.send_bytes(np.resize(words(1), websocket.MESSAGE_BYTES // 2).tobytes())
            await told(socket, "started")
            show, sockets = served.show, served.server.room.sockets
            began, seconds = time.monotonic(), websocket.MESSAGE_BYTES / 2 / 48_000

            def missing() -> float:  # seconds that neither wait nor were spoken since
                waits = sockets.backlog + show.stream.unspoken / SAMPLE_RATE
                return seconds - waits - (time.monotonic() - began)

            await until(lambda: abs(missing()) < 2)  # it is read in turns
            await socket.send_json({"type": "interrupt"})
            await told(socket, "interrupted")
            # a byte more is refused, and the next speaker is heard
            with contextlib.suppress(ConnectionError):
                await socket.send_bytes(bytes(websocket.MESSAGE_BYTES + 1))
            await until(lambda: served.server.room.sockets.count == 0)
            async with served.speak() as other:
                await other.send_bytes(words(0.1).tobytes())
                await told(other, "started")

    live(talk())


@pytest.mark.parametrize("by", ["the sender", "somebody else"])
def test_an_interrupt_drops_all_that_was_sent(by):
    async def talk():
        async with serving(live__backlog="1") as served, served.speak() as socket:
            await socket.send_bytes(words(20).tobytes() + b"\x00")  # a byte too many, which the next message completes
            await told(socket, "started")
            await until(lambda: len(served.screen.sound) > 4000)
            assert served.server.room.sockets.backlog > 15
            if by == "the sender":
                await socket.send_json({"type": "interrupt"})
            else:
                async with served.client.post(served.url + "/interrupt") as answer:
                    assert answer.status == 204
            interrupted = await told(socket, "interrupted")
            spoken = len(served.screen.sound)
            assert served.server.room.sockets.backlog == 0
            await asyncio.sleep(0.4)
            after = len(served.screen.sound)
            last = words(0.3)
            await socket.send_bytes(b"\x10" + last.tobytes())
            await socket.send_json({"type": "end"})
            played = await told(socket, "played")
            return interrupted, spoken, after, played, served.screen.sound[after:], last

    interrupted, spoken, after, played, then, last = live(talk())
    assert after == spoken
    assert interrupted["seconds"] == pytest.approx(spoken / SAMPLE_RATE, abs=0.15)
    assert played["seconds"] == pytest.approx(0.3, abs=0.001)
    # the odd byte and its other half are a sample of what came after
    assert (then * 32768).round().astype(int).tolist() == [0x1000, *last.tolist()]


def test_a_sender_that_is_too_fast_waits(monkeypatch):
    monkeypatch.setattr(websocket, "BACKLOG_BYTES", 64_000)
    brief = aiohttp.ClientWSTimeout(ws_close=0.2)

    async def talk():
        async with serving(live__backlog="1") as served, served.speak(timeout=brief) as socket:
            seen = []

            async def send():
                for _ in range(120):
                    await socket.send_bytes(words(4).tobytes())

            sending = asyncio.create_task(send())
            for _ in range(60):
                await asyncio.sleep(0.02)
                seen.append(served.server.room.sockets.backlog)
            done = sending.done()
            sending.cancel()
            await socket.close(code=1001)
            return done, max(seen)

    done, most = live(talk())
    assert not done  # 480 s of it do not fit into the buffers of a connection
    assert 1 < most <= 2 + 4


def test_what_was_sent_before_a_normal_close_is_spoken():
    sent = words(1.5)

    async def talk():
        async with serving(live__backlog="0.5") as served:
            async with served.speak() as socket:
                await socket.send_bytes(sent.tobytes())
            await until(lambda: served.server.room.sockets.count == 0 and served.show.stream.silent)
            assert served.show.floor.speaker is None
            return served.screen.sound

    assert live(talk()) == pytest.approx(sent / 32768, abs=1e-6)


@pytest.mark.parametrize("kind", ["samples", "ends"])
def test_messages_without_number_are_no_way_around_what_may_wait(kind, monkeypatch):
    """Samples one by one are joined to few pieces, and utterances are counted."""
    monkeypatch.setattr(websocket, "BACKLOG_UTTERANCES", 20)
    sent = words(2.5)

    async def talk():
        async with serving(live__backlog="0.5") as served, served.speak() as socket:
            (sender,) = served.server.room.sockets._senders
            seen = []

            async def watch():
                while True:
                    waiting = sender.speech.utterances
                    seen.append(sum(len(each.pieces) for each in waiting) if kind == "samples" else len(waiting))
                    await asyncio.sleep(0.001)

            watching = asyncio.create_task(watch())
            if kind == "ends":
                await socket.send_bytes(sent.tobytes())
                for _ in range(100):
                    await socket.send_json({"type": "end"})
                await until(lambda: max(seen, default=0) > 20)
                answers = [await told(socket, "played") for _ in range(100)]
                assert [each["seconds"] for each in answers] == [2.5] + 99 * [0]
            else:
                await socket.send_bytes(sent[:-1000].tobytes())  # the head is full, and the others wait
                for sample in sent[-1000:].tolist():
                    await socket.send_bytes(sample.to_bytes(2, "little"))
                await socket.send_json({"type": "end"})
                assert (await told(socket, "played"))["seconds"] == 2.5
                assert (served.screen.sound * 32768).round().astype(int).tolist() == sent.tolist()
            watching.cancel()
            return max(seen)

    # ends beyond the bound are not read; 50 pieces are all of the voice
    most = live(talk())
    assert most == 21 if kind == "ends" else most <= 50


async def call_out(ear) -> None:
    """Somebody speaks all the time, as into a microphone: a constant -0.25."""
    while True:
        ear.deliver(np.full(320, -0.25, np.float32), SAMPLE_RATE)
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("who", ["house", "guest"])
def test_nobody_cuts_off_what_was_sent_before_a_normal_close(who):
    """All of it waits in the head when the sender goes, and somebody else speaks meanwhile."""
    sent = words(1.5)

    async def talk():
        async with serving() as served:
            async with served.speak() as socket:
                await socket.send_bytes(sent.tobytes())
                await until(lambda: served.show.stream.unspoken > SAMPLE_RATE)
            house = Ear(served.show.stream, True, served.show.floor)
            other = asyncio.create_task(call_out(house if who == "house" else served.show.invite()))
            await until(lambda: (served.screen.sound < 0).any())
            other.cancel()
            return served.screen.sound

    assert live(talk())[: len(sent)] == pytest.approx(sent / 32768, abs=1e-6)


@pytest.mark.parametrize("end", ["interrupt", "stop", "session"])
def test_a_sender_that_has_gone_waits_no_longer_when_the_head_is_interrupted_or_ends(end):
    async def talk():
        async with serving(server__sessions="1") as served:
            where, room = served.url, served.server.room
            if end == "session":
                async with served.client.post(f"{where}/sessions") as answer:
                    where = urljoin(str(answer.url), answer.headers["Location"])
                room = served.server.sessions.rooms[0]
            async with served.client.ws_connect(f"{where}/speak") as socket:
                await socket.send_bytes(words(20).tobytes())
                await until(lambda: room.show.stream.unspoken > 10 * SAMPLE_RATE)
            assert room.sockets.count == 1
            if end == "interrupt":
                async with served.client.post(f"{where}/interrupt") as answer:
                    assert answer.status == 204
            elif end == "session":
                async with served.client.delete(where) as answer:
                    assert answer.status == 204
            else:
                served.stop.set()
                await served.task
            await until(lambda: room.sockets.count == 0, 3)
            assert room.show.floor.speaker is None

    live(talk())


def test_pings_are_answered_and_messages_of_a_mebibyte_taken():
    async def talk():
        async with serving() as served, raw_socket(served) as (reader, writer):
            writer.write(b"\x82\xff" + (1 << 20).to_bytes(8, "big") + bytes(4) + bytes(1 << 20))  # the largest message
            writer.write(b"\x89\x85" + bytes(4) + b"hello")
            assert (await reader.readuntil(b"}")).endswith(b'"channels": 1}')
            return await asyncio.wait_for(reader.readexactly(7), 5)

    assert live(talk()) == b"\x8a\x05hello"


def test_an_interrupt_right_behind_the_sound_is_always_answered():
    async def talk():
        async with serving() as served, served.speak() as socket:
            assert (await socket.receive_json())["type"] == "ready"
            for _ in range(40):
                await socket.send_bytes(words(0.1).tobytes())
                await socket.send_json({"type": "interrupt"})
            await socket.send_bytes(words(0.2).tobytes())
            await socket.send_json({"type": "end"})
            await socket.send_json({"type": "interrupt"})  # between end and played
            await socket.send_json({"type": "interrupt"})  # of nothing
            await socket.send_bytes(words(0.2).tobytes())
            await socket.send_json({"type": "end"})
            await socket.send_json({"type": "end"})
            answers = [await socket.receive_json(timeout=8) for _ in range(45)]
            await asyncio.sleep(0.2)
            async with served.client.post(served.url + "/interrupt"):
                pass
            with pytest.raises(TimeoutError):  # and nothing else is told
                await socket.receive(timeout=0.3)
            return answers, len(served.screen.sound)

    answers, spoken = live(talk())
    cut = {"type": "interrupted", "seconds": 0.0, "by": "sender"}
    assert answers[:42] == [cut] * 42
    assert answers[42:] == [{"type": "started"}, {"type": "played", "seconds": 0.2}, {"type": "played", "seconds": 0}]
    assert spoken == 3200


class Laborious(LoudnessModel):
    """A model that takes its time: a hop of motion is 20 ms of waiting."""

    def velocity(self, **given):
        time.sleep(0.01)
        return super().velocity(**given)


def masked(text: str) -> bytes:
    """A text message as clients send it (RFC 6455, 5.2), with a mask of zeros."""
    data = text.encode()
    return bytes([0x81, 0x80 | len(data), 0, 0, 0, 0]) + data


@contextlib.asynccontextmanager
async def raw_socket(served: Served, size: int = 1 << 16):
    """A connection to /speak that is ours to spoil."""
    where = urlsplit(served.url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port, limit=size)
    writer.write(
        f"GET /speak HTTP/1.1\r\nHost: {where.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("kind", ["interrupt", "end", "POST /interrupt", "POST /style", "POST /play"])
def test_no_number_of_requests_stops_the_head(kind, tmp_path):
    """Two thousand messages in one write, or a thousand requests, while it speaks: half the frames would be enough."""
    write_wav(tmp_path / "voice.wav", words(1) / 32768, SAMPLE_RATE)

    async def flood():
        house = {"live__source": "file", "voice__file": "voice.wav"} if kind == "POST /play" else {}
        async with serving(model=Laborious(), **house) as served, raw_socket(served) as (reader, writer):
            figures = served.show.stream.figures
            served.show.stream.push(words(2))
            await until(lambda: len(served.screen.sound) > 1000)
            count = 2000
            if kind.startswith("POST"):
                count = 1000
                reader, writer = await asyncio.open_connection(*writer.get_extra_info("peername"))
                body = '{"intensity": 1}' if kind.endswith("style") else ""
                writer.write(
                    f"{kind} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                    f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
                    * count
                )
                answer = b"HTTP/1.1 20"
            else:
                writer.write(masked(json.dumps({"type": kind})) * count)
                answer = b'"interrupted"' if kind == "interrupt" else b'"played"'
            before, began, told = figures.made, time.monotonic(), b""
            while told.count(answer) < count:
                told += await reader.read(1 << 16)
            await asyncio.sleep(max(0.0, began + 1 - time.monotonic()))
            share = (figures.made - before) / 45 / (time.monotonic() - began)
            async with served.client.get(served.url + "/health") as health:
                assert health.status == 200
            writer.transport.abort()
            return share, told.count(answer), count, figures.interrupts

    share, answered, count, interrupts = live(flood())
    assert share > 0.5
    assert answered == count
    assert interrupts <= 1


@pytest.mark.parametrize("how", ["reset", "closed without a word"])
def test_the_floor_is_free_as_soon_as_a_connection_is_lost(how, monkeypatch):
    """However much of what it sent is not read yet."""
    monkeypatch.setattr(websocket, "BACKLOG_BYTES", 100_000)

    async def talk():
        async with serving() as served, raw_socket(served) as (_, writer):
            sound = words(1.9).tobytes()[:60_000]
            message = b"\x82\xfe" + len(sound).to_bytes(2, "big") + bytes(4) + sound
            for _ in range(22):
                writer.write(message)
            await until(lambda: len(served.screen.sound) > 1000)
            room = served.server.room
            await until(lambda: room.sockets.backlog > 3)
            await until(lambda: not writer.transport.get_write_buffer_size())  # its end comes behind what it sent
            assert served.show.floor.speaker is not None
            if how == "reset":
                raw = writer.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            else:
                writer.write_eof()
            await until(lambda: served.show.floor.speaker is None, 4)
            await until(lambda: room.sockets.count == 0, 4)
            assert served.show.stream.unspoken == 0

    live(talk())


def test_an_error_of_ours_closes_the_connection_in_one_line_and_gives_its_place_back(monkeypatch, caplog):
    async def talk():
        async with serving() as served, served.speak() as socket:
            monkeypatch.setattr(Ear, "deliver", lambda *_: 1 / 0)
            await socket.send_bytes(words(0.2).tobytes())
            while (got := await socket.receive(timeout=5)).type is aiohttp.WSMsgType.TEXT:
                pass
            await until(lambda: served.server.room.sockets.count == 0)
            return got.type, got.data, got.extra

    assert live(talk()) == (aiohttp.WSMsgType.CLOSE, 1011, "an error of ifmdm; its log has more")
    wrong = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [record.getMessage() for record in wrong] == [
        "a voice over a WebSocket failed: ZeroDivisionError: division by zero"
    ]
    assert wrong[0].exc_info is None


def test_an_idle_sender_lets_others_speak_and_speaks_again(monkeypatch):
    monkeypatch.setattr(websocket, "PAUSE_SECONDS", 0.5)

    async def talk():
        async with serving() as served, served.speak("?rate=24000") as idle, served.speak() as other:
            sent = words(0.3)
            await idle.send_bytes(sent.tobytes())  # and no end
            await told(idle, "started")
            await until(lambda: served.show.floor.speaker is None)
            await other.send_bytes(words(0.2).tobytes())
            await other.send_json({"type": "end"})
            played = [await told(other, "played")]
            await idle.send_bytes(sent.tobytes())  # at once: what is complete is over when it is out
            await idle.send_json({"type": "end"})
            played.append(await told(idle, "played"))
            return played, len(served.screen.sound)

    (other, idle), spoken = live(talk())
    assert other["seconds"] == 0.2
    assert idle["seconds"] == pytest.approx(0.4, abs=0.002)
    assert spoken == pytest.approx((0.2 + 0.4) * SAMPLE_RATE, abs=20)  # to the last sample that a resampler held back


@pytest.mark.parametrize(
    ("query", "message", "code", "reason"),
    [
        ("?encoding=mp3", None, 1008, "encoding: give s16le or f32le"),
        ("?rate=100", None, 1008, "rate: give a whole number from 4000 to 768000"),
        ("?rate=1e5", None, 1008, "rate: give a whole number"),
        ("?channels=0", None, 1008, "channels: give a whole number from 1 to 8"),
        ("?sample_rate=24000", None, 1008, "sample_rate: no such name in the query; did you mean rate?"),
        ("?encodng=f32le", None, 1008, "encodng: no such name in the query; did you mean encoding?"),
        ("", b"fLaC\0\0\0\x22" + bytes(99), 1003, "this is a FLAC file: send WAV, or raw s16le or f32le samples"),
        ("", '{"audio": "' + 20 * "UklG" + '"}', 1003, "this is sound as text: decode it, and send"),
        ("", b'{"type": "end"}', 1003, "this is JSON as a binary message: send it as a text message"),
        ("", "hello", 1003, "give binary samples"),
        ("", '{"type": "sing"}', 1003, "give binary samples"),
        ("", "[]", 1003, "give binary samples"),
        ("", "[" * 20_000, 1003, "give binary samples"),
        ("", "[" * 70_000, 1003, "a text message is too long: send sound as binary messages"),
    ],
)  # fmt: skip
def test_a_sender_that_breaks_the_rules_is_told_which(query, message, code, reason):
    async def talk():
        async with serving() as served, served.speak(query) as socket:
            if isinstance(message, bytes):
                await socket.send_bytes(message)
            elif message is not None:
                await socket.send_str(message)
            while (got := await socket.receive(timeout=5)).type is aiohttp.WSMsgType.TEXT:
                pass
            await until(lambda: served.server.room.sockets.count == 0)
            return got.type, got.data, got.extra

    kind, data, extra = live(talk())
    assert (kind, data) == (aiohttp.WSMsgType.CLOSE, code)
    assert reason in extra


@pytest.mark.parametrize("headers", [{}, {"Upgrade": "websocket"}, {"Upgrade": "websocket", "Connection": "upgrade"}])
def test_what_is_no_websocket_is_told_so_in_one_line(headers):
    async def ask():
        async with serving() as served, served.client.get(served.url + "/speak", headers=headers) as answer:
            return answer.status, await answer.text(), answer.headers.get("Upgrade")

    assert live(ask()) == (426, "this is for a WebSocket: connect to it as ws://HOST/speak", "websocket")


def test_more_speakers_than_allowed_are_asked_to_wait_and_the_second_goes_unheard():
    async def talk():
        async with serving() as served, contextlib.AsyncExitStack() as stack:
            first, second, *_ = [await stack.enter_async_context(served.speak()) for _ in range(room_module.SOCKETS)]
            with pytest.raises(aiohttp.WSServerHandshakeError, match="503"):
                await served.speak()
            await first.send_bytes(words(0.5).tobytes())
            await told(first, "started")
            await second.send_bytes(words(0.5).tobytes())
            await second.send_json({"type": "end"})
            unheard = await told(second, "played")
            await first.send_json({"type": "end"})
            return unheard, await told(first, "played"), len(served.screen.sound)

    unheard, played, spoken = live(talk())
    assert unheard == {"type": "played", "seconds": 0}
    assert played == {"type": "played", "seconds": 0.5}
    assert spoken == 8000


def test_what_becomes_of_an_utterance():
    said = Utterance(delivered=2.0)
    assert said.look(2.4) == []  # it is still on its way
    assert said.look(1.9) == [{"type": "started"}]
    assert said.look(0.5) == []
    said.delivered = 3.0
    assert said.look(2.0) == []  # after a gap: what was spoken stays spoken
    assert said.spoken == 1.5
    said.ended = True
    assert said.look(0.0) == [{"type": "played", "seconds": 3.0}]
    assert parse_form({}) == PcmForm("s16le", 16_000, 1)


def test_an_utterance_has_not_started_while_all_of_it_waits():
    said = Utterance()
    for samples in range(1, 100):  # seconds are no sum of pieces to the last digit, and a resampler holds some back
        said.delivered += samples / SAMPLE_RATE
        assert said.look(max(0, samples * (samples + 1) // 2 - 80) / SAMPLE_RATE) == []
    short = Utterance(delivered=0.01, ended=True)
    assert short.look(0.0) == [{"type": "started"}, {"type": "played", "seconds": 0.01}]


# --- coming and going


def test_at_the_end_everybody_is_told_within_seconds():
    async def leave():
        async with serving() as served:
            socket = await served.speak()
            await socket.receive_json()
            slow = await asyncio.open_connection("127.0.0.1", urlsplit(served.url).port)  # asks for nothing
            began = time.monotonic()
            served.stop.set()
            message = await socket.receive(timeout=5)
            await served.task
            took = time.monotonic() - began
            with pytest.raises(aiohttp.ClientConnectionError):
                await served.client.get(served.url + "/health")
            assert await slow[0].read() == b""
            return message, took

    async def all_of_it():
        before = asyncio.all_tasks()
        message, took = await leave()
        await asyncio.sleep(0.05)
        return message, took, asyncio.all_tasks() - before

    message, took, left = live(all_of_it())
    assert (message.type, message.data, message.extra) == (aiohttp.WSMsgType.CLOSE, 1001, "the head stops")
    assert took < 3
    assert left == set()


def test_an_interrupt_leaves_off_the_clip_of_the_house_until_it_is_asked_for(tmp_path):
    sent = words(2) / 32768
    write_wav(tmp_path / "voice.wav", sent, SAMPLE_RATE)

    async def listen():
        async with serving(live__source="file", voice__file="voice.wav", voice__pause="0") as served:
            resting = []

            async def post(path):
                async with served.client.post(served.url + path) as answer:
                    assert answer.status == 204
                async with served.client.get(served.url + "/state") as answer:
                    resting.append((await answer.json())["resting"])

            await until(lambda: len(served.screen.sound) > 1000)
            await post("/interrupt")
            await asyncio.sleep(0.1)
            before = len(served.screen.sound)
            await asyncio.sleep(0.8)
            more = len(served.screen.sound) - before
            await post("/play")
            await until(lambda: len(served.screen.sound) > before + 1000)
            return more, resting, served.screen.sound[before:][:1000]

    more, resting, again = live(listen())
    assert (more, resting) == (0, [True, False])
    assert again == pytest.approx(sent[:1000], abs=1e-3)  # from its beginning


def test_there_is_nothing_to_play_where_the_voice_is_no_recording():
    async def look():
        async with serving() as served:
            async with served.client.get(served.url + "/state") as answer:
                assert (await answer.json())["resting"] is False
            async with served.client.post(served.url + "/play") as answer:
                return answer.status, await answer.text()

    assert live(look()) == (409, "there is no recording to play: the voice comes from elsewhere")


def test_a_picture_of_ones_own_is_told_without_its_path(tmp_path):
    (tmp_path / "secret-name.jpg").write_bytes(FACE)

    async def look():
        flags = {"head__portrait": str(tmp_path / "secret-name.jpg"), "head__consent": "true"}
        async with serving(**flags) as served, served.client.get(served.url + "/state") as answer:
            return await answer.text()

    told = live(look())
    assert json.loads(told)["portrait"] == "own"
    assert "secret-name" not in told


def test_a_guest_over_a_websocket_silences_the_house(assets):
    async def talk():
        async with serving(live__source="file", voice__file=str(assets / "voice.flac")) as served:
            await until(lambda: len(served.screen.sound) > 1000)
            async with served.speak() as socket:
                await socket.send_bytes(words(0.5).tobytes())
                await told(socket, "started")
                async with served.client.get(served.url + "/state") as answer:
                    state = await answer.json()
                await socket.send_json({"type": "end"})
                await told(socket, "played")
                before = len(served.screen.sound)
                await asyncio.sleep(0.3)
                quiet = len(served.screen.sound) == before
            await until(lambda: len(served.screen.sound) > before)
            return state, quiet

    state, quiet = live(talk())
    assert state["guest"] and state["speaking"]
    assert quiet


def test_the_port_is_one_line_when_it_cannot_be_had():
    with listen("127.0.0.1", 0) as door:
        port = door.getsockname()[1]
        with pytest.raises(TransportError, match=f"port {port} of 127.0.0.1 is taken; choose another with --port"):
            Server.bind(load_settings({"server.port": str(port)}))
    with pytest.raises(TransportError, match=r"no such address on this machine|assign"):
        listen("203.0.113.7", 0)
    assert address("::1", 80) == "http://[::1]:80/"
    assert address("127.0.0.1", 8080) == "http://127.0.0.1:8080/"
    assert "0.0.0.0" not in address("0.0.0.0", 8080)


# --- the settings


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.9", "example.org"])
def test_no_address_but_this_machines_without_a_token(host):
    for make in (Server.bind, lambda s: make_show(s, print, LoudnessModel(), LatentRenderer)):
        with pytest.raises(SettingsError, match=r"server\.host = '.*needs a token.*set token under"):
            make(load_settings({"server.host": host, "server.port": "0"}))
    assert load_settings({"server.host": host, "server.token": TOKEN}).server.token == TOKEN


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.5", "::1", "localhost"])
def test_this_machines_addresses_need_none(host):
    assert load_settings({"server.host": host}).server.is_local


def test_the_page_is_told_the_ice_servers_with_user_and_password(caplog):
    given = {
        "webrtc__ice_servers": "stun:a.example:1,turn:b.example?transport=tcp,turns:[::1]",
        "webrtc__turn_username": "1700000000:bob",
        "webrtc__turn_password": "s3cr@t",
    }

    async def look():
        async with serving(**given) as served, served.client.get(served.url + "/state") as answer:
            return (await answer.json())["ice_servers"], served.told

    servers, told = live(look())
    secret = {"username": "1700000000:bob", "credential": "s3cr@t"}
    turn = [{"urls": url, **secret} for url in ("turn:b.example?transport=tcp", "turns:[::1]")]
    assert servers == [{"urls": "stun:a.example:1"}, *turn]
    assert "s3cr@t" not in caplog.text + " ".join(told)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[server]\ntoken = 'short'", "config.toml: server.token = ***: give 8 or more letters"),
        ("[server]\ntoken = 'has spaces in it'", "config.toml: server.token = ***: give 8 or more"),
        ("[server]\norigins = ['*']", "config.toml: server.origins = ['*']: give a list of origins"),
        ("[server]\norigins = ['https://a.example/page']", "config.toml: server.origins"),
        ("[server]\nport = 70000", "config.toml: server.port = 70000: give a whole number from 0"),
        ("[webrtc]\ncodecs = ['av1']", "config.toml: webrtc.codecs = ['av1']: give a list of vp8, h264"),
        ("[webrtc]\ncodecs = []", "config.toml: webrtc.codecs = []: give a list"),
        (
            "[webrtc]\nice_servers = ['turn:host']\nturn_password = 'secret-word'\nspeakers = 0",
            "config.toml: webrtc.speakers = 0",
        ),
        ("[webrtc]\nice_servers = ['turn:me:secret-word@host']", "config.toml: webrtc.ice_servers = ***: give a list"),
        ("[webrtc]\nice_servers = ['http://secret-word']", "config.toml: webrtc.ice_servers = ***: give a list"),
        ("[log]\nlevel = 'loud'", "config.toml: log.level = 'loud': give debug, info"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_named_and_secrets_are_not(text, told):
    Path("config.toml").write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_settings({})
    assert str(caught.value).startswith(told)
    assert "secret-word" not in str(caught.value) and "short" not in str(caught.value)


def test_secrets_are_in_no_representation():
    turn = {"webrtc.ice_servers": "turn:host:1", "webrtc.turn_username": "me", "webrtc.turn_password": "secret-word"}
    settings = load_settings({"server.token": TOKEN} | turn)
    assert TOKEN not in repr(settings) and "secret-word" not in repr(settings)


def test_the_doctor_looks_at_the_port_and_tells_what_to_open():
    with listen("127.0.0.1", 0) as door:
        port = str(door.getsockname()[1])
        with pytest.raises(TransportError, match="is taken"):
            doctor.check_port(load_settings({"server.port": port}))
    state, text = doctor.check_port(load_settings({"server.port": port}))
    assert (state, text) == (doctor.GOOD, f"port {port} of 127.0.0.1 is free")
    state, text = doctor.check_address(load_settings({"server.port": port}))
    assert state == doctor.GOOD
    assert f"http://127.0.0.1:{port}/" in text and "token" in text
    state, text = doctor.check_address(load_settings({"server.host": "0.0.0.0", "server.token": TOKEN}))
    assert state == doctor.POOR
    assert ":8080/" in text and "0.0.0.0" not in text and TOKEN not in text
    for check in (doctor.check_port, doctor.check_address):
        assert check(load_settings({"server.enabled": "false"}))[0] == doctor.GOOD
    with pytest.raises(SettingsError, match="needs a token"):
        doctor.check_port(load_settings({"server.host": "0.0.0.0"}))
