"""Many heads in one process, over real HTTP, WebSockets and WebRTC, with a small model."""

import asyncio
import json
import threading
import time

import aiohttp
import cv2
import numpy as np
import pytest
from live_fakes import LatentRenderer, LoudnessModel
from prometheus_client.parser import text_string_to_metric_families
from test_server import FACE, POOLS, TOKEN, live, serving, told, words
from webrtc_peers import until, watching

from engine.stream import LATENCIES
from plugin import live as live_module
from plugin import room as room_module
from plugin import sessions as sessions_module
from plugin.render import find_portrait
from plugin.run import MAKERS, Studio
from plugin.sessions import Cost, capacity, cores, cost
from plugin.settings import SettingsError, load_settings
from transports.webrtc.options import WebRtcOptions


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def brisk(monkeypatch):
    """What takes seconds takes tenths."""
    monkeypatch.setattr(room_module, "PULSE_SECONDS", 0.4)
    for module in (room_module, sessions_module):
        monkeypatch.setattr(module, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(sessions_module, "STALL_SECONDS", 0.2)
    monkeypatch.setattr(live_module, "CLOSE_SECONDS", 0.3)


async def ask(served, method: str, path: str, **more):
    """(status, what was told, headers)."""
    async with served.client.request(method, served.url + path, **more) as answer:
        text = await answer.text()
        return answer.status, json.loads(text) if answer.content_type == "application/json" else text, answer.headers


async def create(served, **order) -> str:
    """The path of a new session."""
    status, session, headers = await ask(served, "POST", "/sessions", json=order)
    assert status == 201, session
    # both relative to the address that was asked, which a proxy may show below a path
    assert headers["Location"] + "/" == session["url"] == f"sessions/{session['id']}/"
    return f"/{headers['Location']}"


async def samples(served) -> dict[tuple, float]:
    _, text, _ = await ask(served, "GET", "/metrics")
    families = text_string_to_metric_families(text)
    return {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}


def room(served, path: str):
    return served.server.sessions.get(path.split("/")[-1]).room


def test_each_has_a_portrait_a_style_a_voice_and_viewers_of_its_own():
    async def look():
        async with serving(server__sessions="4") as served:
            one = await create(served, portrait="bo", intensity=1.5, pose=[5, 0, 0])
            other = await create(served, portrait="chidi")
            assert (await ask(served, "POST", f"{other}/style", json={"intensity": 0.5}))[0] == 200
            assert (await ask(served, "POST", f"{other}/portrait", json={"name": "dalia"}))[0] == 200
            states = [(await ask(served, "GET", f"{each}/state"))[1] for each in ("", one, other)]
            assert [state["portrait"] for state in states] == ["ada", "bo", "dalia"]
            assert [state["intensity"] for state in states] == [1.0, 1.5, 0.5]
            assert [state["pose"][0] for state in states] == [0, 5, 0]
            listed = (await ask(served, "GET", "/sessions"))[1]
            assert listed["limit"] == 4
            assert [each["url"] for each in listed["sessions"]] == [f"{one}/"[1:], f"{other}/"[1:]]
            async with (
                watching(served.client, f"{served.url}{one}/whep") as viewer,
                watching(served.client, f"{served.url}{other}/whep", "h264") as second,
                served.client.ws_connect(f"{served.url}{one}/speak") as socket,
            ):
                await until(lambda: viewer.pictures and second.pictures)
                assert viewer.location.startswith(f"{one}/whep/")
                await socket.send_bytes(words(0.6).tobytes())
                await socket.send_json({"type": "end"})
                assert (await told(socket, "played"))["seconds"] == 0.6
                await until(lambda: any(np.abs(each.to_ndarray()).max() > 1000 for _, each in viewer.voice))
                assert not any(np.abs(each.to_ndarray()).max() > 100 for _, each in second.voice)
                assert len(served.screen.sound) == 0  # nor does the head of the settings say it
                found = await samples(served)
                assert (found["ifmdm_sessions",], found["ifmdm_session_viewers",]) == (2, 2)
                assert found["ifmdm_session_sockets",] == 1
                assert found["ifmdm_webrtc_viewers",] == 0
                assert (await ask(served, "GET", one))[1]["viewers"] == 1
                # only the one that is ended
                assert (await ask(served, "DELETE", one))[0] == 204
                assert (await socket.receive(timeout=5)).type is aiohttp.WSMsgType.CLOSE
                await until(lambda: viewer.peer.connectionState == "closed")
                had = len(second.pictures)
                await until(lambda: len(second.pictures) > had + 10)
            for path in ("", "/state", "/whep", "/"):
                status, text, _ = await ask(served, "GET" if path != "/whep" else "POST", one + path)
                assert (status, text) == (404, "there is no such session: it was ended")
            found = await samples(served)
            assert found["ifmdm_sessions_ended_total", "deleted"] == 1
            assert found["ifmdm_session_frames_total",] > 20
            routes = {labels[1] for name, *labels in found if name == "ifmdm_requests_total"}
            assert "/sessions/{id}/whep" in routes
            assert not any(one.split("/")[-1] in route for route in routes)

    live(look())


def test_all_speak_from_one_copy_of_the_weights_each_in_a_thread_of_its_own():
    def engines() -> int:
        return sum(thread.name == "engine" for thread in threading.enumerate())

    before = engines()

    async def look():
        async with serving(server__sessions="3") as served:
            paths = [await create(served, voice="bundled") for _ in range(3)]
            streams = [served.show.stream, *(room(served, path).show.stream for path in paths)]
            assert len({id(stream._core._model) for stream in streams}) == 1
            await until(lambda: all(stream.unspoken for stream in streams[1:]))
            assert not streams[0].unspoken
            await until(lambda: engines() == before + 4)

    live(look())
    assert engines() == before


@pytest.mark.parametrize(
    ("body", "kind", "status", "said"),
    [
        (b"", None, 201, ""),
        (b'{"portrait": "bo", "latency": "quality", "seed": 7, "voice": "none"}', "application/json", 201, ""),
        (b'{"portrait": "nobody"}', "application/json", 404, "no such portrait; there are ada, bo, chidi, dalia"),
        (b'{"portrait": "../voice"}', "application/json", 404, "no such portrait"),
        (b'{"intensity": 3}', "application/json", 422, "intensity: Input should be less than or equal to 2"),
        (b'{"voice": "/etc/passwd"}', "application/json", 422, "voice: Input should be 'none' or 'bundled'"),
        (b'{"colour": "red"}', "application/json", 422, "colour: Extra inputs"),
        (b"{", "application/json", 400, "Invalid JSON"),
        (b" " * 70_000, "application/json", 413, "Maximum request body size"),
        (b"{}", "text/plain", 415, "send application/json"),
        (FACE, "image/jpeg", 403, "a face needs consent"),
    ],
)  # fmt: skip
def test_what_is_asked_for_is_given_or_refused_in_one_line(body, kind, status, said):
    async def look():
        async with serving(server__sessions="1") as served:
            headers = {"Content-Type": kind} if kind else {}
            got, text, _ = await ask(served, "POST", "/sessions", data=body, headers=headers)
            return got, text, served.server.sessions.count

    got, text, count = live(look())
    assert (got, count) == (status, int(status == 201)), text
    assert status == 201 or (said in text and "\n" not in text)


def test_a_face_of_ones_own():
    async def look():
        async with serving(server__sessions="1") as served:
            for picture, status in ((FACE[:3000], 422), (bytes(11 << 20), 413), (FACE, 201)):
                got, text, _ = await ask(
                    served, "POST", "/sessions?consent=true", data=picture, headers={"Content-Type": "image/jpeg"}
                )
                assert got == status, text
            return text["portrait"]

    assert live(look()) == "uploaded"


def test_past_the_limit_they_are_asked_to_wait_and_one_that_ends_makes_room():
    async def look():
        async with serving(server__sessions="2") as served:
            first, _ = await create(served), await create(served)
            status, text, headers = await ask(served, "POST", "/sessions", json={})
            assert (status, text) == (503, "2 of 2 places are taken; try again later")
            assert int(headers["Retry-After"]) > 0
            await ask(served, "DELETE", first)
            await create(served)
            # at once, too: each of them is made or refused
            for each in (await ask(served, "GET", "/sessions"))[1]["sessions"]:
                await ask(served, "DELETE", f"/sessions/{each['id']}")
            answers = await asyncio.gather(*(ask(served, "POST", "/sessions", json={}) for _ in range(7)))
            return sorted(status for status, *_ in answers), served.server.sessions.count

    statuses, count = live(look())
    assert statuses == [201] * 2 + [503] * 5
    assert count == 2


@pytest.mark.parametrize(
    ("order", "status", "said"),
    [
        (b"{", 400, "Invalid JSON"),
        (b'{"portrait": "nobody"}', 404, "no such portrait"),
        (b'{"intensity": 3}', 422, "intensity: "),
        (b'{"portrait": "bo"}', 503, "1 of 1 places is taken; try again later"),
    ],
)
def test_what_no_wait_would_mend_is_told_where_there_is_no_room_either(order, status, said):
    async def look():
        async with serving(server__sessions="1") as served:
            await create(served)
            return await ask(served, "POST", "/sessions", data=order, headers={"Content-Type": "application/json"})

    got, text, _ = live(look())
    assert got == status and text.startswith(said), text


def test_seed_and_latency_reach_the_head():
    async def look():
        async with serving(server__sessions="2") as served:
            made = [await create(served, seed=7, latency="quality"), await create(served)]
            return served.show.stream, *(room(served, path).show.stream for path in made)

    house, own, other = live(look())
    assert own._core.settings.seed == 7
    for stream, name in ((own, "quality"), (house, "interactive"), (other, "interactive")):  # as in the settings
        assert (stream._core.settings.pace, stream._margin) == (LATENCIES[name].pace, LATENCIES[name].margin)


def test_heads_move_differently_but_for_those_of_one_seed():
    """The small model's latents are the noise that their seed gives, but for the first."""

    async def look():
        async with serving(server__sessions="4") as served:
            paths = [await create(served, **order) for order in ({}, {}, {"seed": 7}, {"seed": 7})]
            drawn = [room(served, path).show.stream._core._renderer.seen for path in paths]
            await until(lambda: all(len(each) > 20 for each in drawn))
            return [np.array([latent[1:] for latent in list(each)[:20]]) for each in drawn]

    one, other, same, again = live(look())
    assert (same == again).all()
    assert abs(one - other).max() > 1e-3 and abs(one - same).max() > 1e-3


def test_none_where_they_are_turned_off():
    async def look():
        async with serving(server__sessions="0") as served:
            listed = (await ask(served, "GET", "/sessions"))[1]
            return listed, (await ask(served, "POST", "/sessions"))[:2]

    listed, refused = live(look())
    assert listed == {"sessions": [], "limit": 0}
    assert refused == (403, "sessions are turned off: set sessions under [server]")


def test_the_machine_is_measured_when_the_first_is_asked_for(monkeypatch):
    measured = []

    def measure(*of):
        measured.append(of)
        return Cost(0.25, 50.0)

    free = [1000.0]
    monkeypatch.setattr(sessions_module, "cost", measure)
    monkeypatch.setattr(sessions_module, "cores", lambda: 1.2)
    monkeypatch.setattr(sessions_module, "available", lambda: free[0])

    async def look():
        async with serving() as served:
            assert (await ask(served, "GET", "/sessions"))[1]["limit"] is None
            monkeypatch.setattr(served.server.room.__class__, "late", 0.0)
            first = await create(served)
            assert (await ask(served, "GET", "/sessions"))[1]["limit"] == 2
            # less than was measured, when something else takes the machine
            monkeypatch.setattr(served.server.room.__class__, "late", 0.5)
            late = await ask(served, "POST", "/sessions", json={})
            monkeypatch.setattr(served.server.room.__class__, "late", 0.0)
            # and less when something else takes the memory, as long as it does
            free[0] = 60.0
            assert (await ask(served, "GET", "/sessions"))[1]["limit"] == 1
            scarce = await ask(served, "POST", "/sessions", json={})
            free[0] = 1000.0
            await create(served)
            full = await ask(served, "POST", "/sessions", json={})
            assert (await ask(served, "GET", first))[0] == 200
            return late, scarce, full

    late, scarce, full = live(look())
    assert late[:2] == (503, "heads on this machine are late already; try again later")
    assert scarce[:2] == (503, "1 of 1 places is taken, which is what this machine can run; try again later")
    assert full[:2] == (503, "2 of 2 places are taken, which is what this machine can run; try again later")
    assert all(int(refused[2]["Retry-After"]) > 0 for refused in (late, scarce, full))
    assert len(measured) == 1


def test_what_fits_is_reckoned_from_the_cost_of_one():
    assert capacity(Cost(0.25, 50.0), 2) == 4  # five of a quarter in 1.4 cores, one of which runs already
    assert capacity(Cost(0.7, 50.0), 1) == 0
    assert capacity(Cost(2.0, 50.0), 1) == 0
    assert 0 < cores() <= 4096


@pytest.mark.parametrize(
    ("mb", "running", "free", "fit"),
    [
        (50.0, 0, 130.0, 2),  # 80 % of what is free
        (50.0, 3, 130.0, 4),  # those that run have theirs already; then the cores say no
        (50.0, 1, 60.0, 1),
        (50.0, 3, 0.0, 3),
        (50.0, 0, 10_000.0, 4),
        (None, 0, 1.0, 4),  # where the system tells nothing of memory
        (50.0, 0, None, 4),
    ],
)
def test_what_fits_must_have_memory_too(mb, running, free, fit):
    assert capacity(Cost(0.25, mb), 2, running, free) == fit


def test_the_cost_of_a_head_is_measured():
    settings = load_settings({"video.size": "128"})
    studio = Studio(settings, LoudnessModel(), LatentRenderer)
    face = studio.prepare(find_portrait("ada", False))
    each = cost(studio, face, WebRtcOptions())
    assert 0 < each.cores < 5
    assert each.mb is None or sessions_module.LEAST_MB <= each.mb < 500


def test_one_where_nobody_is_ends_by_itself(brisk):
    async def look():
        async with serving(server__sessions="2", server__session_idle="1") as served:
            left, kept = await create(served), await create(served)
            async with served.client.ws_connect(f"{served.url}{kept}/speak"):
                await until(lambda: served.server.sessions.count == 1)
                await asyncio.sleep(0.3)
                assert (await ask(served, "GET", kept))[0] == 200
                status, text, _ = await ask(served, "GET", left)
                assert (status, text) == (
                    404, "there is no such session: it ended, since nobody watched it or spoke to it"
                )  # fmt: skip
            await until(lambda: served.server.sessions.count == 0)
            return served.server.sessions.ended["idle"]

    assert live(look()) == 2


@pytest.mark.parametrize("kind", ["raises", "blocks"])
def test_one_that_breaks_takes_nothing_with_it(kind, brisk, caplog):
    release = threading.Event()

    def fault():
        if kind == "raises":
            raise ZeroDivisionError("inside")
        release.wait(60)

    async def look():
        async with serving(server__sessions="2") as served:
            bad, good = await create(served), await create(served)
            async with (
                watching(served.client, f"{served.url}{bad}/whep") as seen,
                watching(served.client, f"{served.url}{good}/whep") as other,
                served.client.ws_connect(f"{served.url}{bad}/speak") as socket,
            ):
                await socket.receive_json()
                await until(lambda: seen.pictures and other.pictures)
                frames = len(served.screen.frames)
                room(served, bad).show.stream._core._renderer.render = lambda _: fault()
                # whoever was there is told, and the others' pictures go on
                assert (await socket.receive(timeout=8)).data == 1001
                await until(lambda: seen.peer.connectionState == "closed")
                await until(lambda: served.server.sessions.count == 1)
                had = len(other.pictures)
                await until(lambda: len(other.pictures) > had + 10)
                assert len(served.screen.frames) > frames + 10
                assert (await ask(served, "GET", "/health"))[0] == 200
                status, text, _ = await ask(served, "GET", f"{bad}/state")
                assert status == 404
                again = await create(served)  # and there is room for another
                await until(lambda: room(served, again).show.stream.figures.made)
            return text, dict(served.server.sessions.ended)

    try:
        text, ended = live(look())
    finally:
        release.set()
    why, told_ = {"raises": ("failed", "it failed"), "blocks": ("stalled", "it made no frames")}[kind]
    assert text == f"there is no such session: it ended, since {told_}"
    assert ended[why] == 1
    (error,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert error.getMessage() == "a session failed; the others go on"
    assert (kind == "raises") == isinstance((error.exc_info or [0, 0])[1], ZeroDivisionError)


def test_heads_beside_each_other_share_the_cores_among_them_not_within_a_picture():
    before = cv2.getNumThreads()

    async def look():
        async with serving(server__sessions="2") as served:
            alone = cv2.getNumThreads()
            assert (await ask(served, "POST", "/sessions", json={"portrait": "nobody"}))[0] == 404
            for _ in range(2):
                await create(served)
            return alone, cv2.getNumThreads()

    assert live(look()) == (before, 1)
    assert cv2.getNumThreads() == before


def test_at_the_end_the_peers_of_all_sessions_are_told_even_of_one_that_is_stuck(monkeypatch):
    monkeypatch.setattr(live_module, "CLOSE_SECONDS", 0.5)
    release = threading.Event()

    async def leave():
        async with serving(server__sessions="2") as served:
            paths = ["", await create(served), await create(served)]
            sockets = [await served.client.ws_connect(f"{served.url}{path}/speak") for path in paths]
            for socket in sockets:
                await socket.receive_json()
            room(served, paths[1]).show.stream._core._renderer.render = lambda _: release.wait(60)
            await asyncio.sleep(0.2)
            began = time.monotonic()
            served.stop.set()
            codes = [(await socket.receive(timeout=5)).data for socket in sockets]
            heard = time.monotonic() - began
            await served.task
            return codes, heard, time.monotonic() - began

    async def all_of_it():
        before = asyncio.all_tasks()
        left = await leave()
        await asyncio.sleep(0.05)
        return *left, asyncio.all_tasks() - before

    try:
        codes, heard, took, tasks = live(all_of_it())
    finally:
        release.set()
    assert codes == [1001] * 3
    assert heard < 4 and took < 8
    assert tasks == set()


def test_nothing_stays_of_sessions_that_came_and_went():
    async def look():
        async with serving(server__sessions="3") as served:

            async def visit(_: int) -> None:
                path = await create(served)
                async with served.client.ws_connect(f"{served.url}{path}/speak") as socket:
                    await socket.send_bytes(bytes(3200))
                    await until(lambda: room(served, path).show.stream.figures.made)
                assert (await ask(served, "DELETE", path))[0] == 204

            def held():
                threads = [each.name for each in threading.enumerate() if not each.name.startswith(POOLS)]
                tasks = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]
                # the client keeps as many connections as it once needed
                return len(threads), sum(name != "RequestHandler.start" for name in tasks)

            await asyncio.gather(visit(0), visit(0))
            await asyncio.sleep(0.1)
            before = held()
            for turn in range(6):
                await asyncio.gather(*(visit(turn) for _ in range(2)))
            await until(lambda: held()[0] <= before[0] and held()[1] <= before[1])
            await until(lambda: sum(each.name.startswith("portrait_") for each in threading.enumerate()) <= MAKERS)
            sessions = served.server.sessions
            assert (sessions.count, sessions.created, sessions.ended["deleted"]) == (0, 14, 14)
            assert sessions.counts()["made"] == sessions._past["made"] > 0

    live(look())


def test_the_page_of_a_session_is_the_heads_with_its_own_paths():
    async def look():
        async with serving(token=TOKEN, server__sessions="1") as served:
            bearer = {"Authorization": f"Bearer {TOKEN}"}
            _, session, _ = await ask(served, "POST", "/sessions", headers=bearer)
            path = f"/{session['url']}"
            for file in ("page.js", "page.css", "icon.svg"):
                here, there = [await ask(served, "GET", base + file) for base in (path, "/")]
                assert here[:2] == there[:2] and here[0] == 200
                assert here[2]["Content-Type"] == there[2]["Content-Type"]
                assert (await ask(served, "GET", f"/sessions/none/{file}"))[0] == 404
            listed = (await ask(served, "GET", f"{path}portraits", headers=bearer))[1]
            for each in listed["portraits"]:
                async with served.client.get(f"{served.url}{path}{each['picture']}", headers=bearer) as answer:
                    assert answer.content_type == "image/jpeg"
            return [await ask(served, "GET", each) for each in (path, "/", "/sessions/none/")]

    here, there, nowhere = live(look())
    assert (here[0], there[0], nowhere[0]) == (200, 200, 404)
    # by which it knows that a 404 is its end
    assert here[1] == there[1].replace("<html ", "<html data-session ", 1) != there[1]


@pytest.mark.parametrize("value", ["-1", "many", "1.5", "1001", "true"])
def test_a_limit_that_cannot_be_is_named(value):
    with pytest.raises(SettingsError, match=r"server\.sessions .*: give auto or a whole number from 0"):
        load_settings({"server.sessions": value})
    assert load_settings({"server.sessions": "12"}).server.sessions == 12
    assert load_settings({}).server.sessions == "auto"
