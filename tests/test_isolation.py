"""What goes wrong in one session stays there: real heads, of the weights that ship, on the real server, with real
viewers. That they go on is all that is looked for, never how fast: that is for the bench."""

import asyncio
import contextlib
import signal
import sys
import threading
from pathlib import Path

import aioice
import pytest
from browsing import Program
from test_faults import pictures
from test_server import serving, told, words
from test_sessions import ask, create, room
from webrtc_peers import Viewer, until, watching

from engine.head import Model
from engine.renderer.cpu import CpuRenderer
from plugin import sessions as sessions_module

HERE = Path(__file__).parent
#: Heads that are stuck at once: more than the cores of a small machine.
STUCK = 3


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def live(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 120))


@contextlib.asynccontextmanager
async def heads():
    """A server of real heads."""
    async with serving(model=Model.load(), renderer=CpuRenderer, server__sessions=str(STUCK + 1)) as served:
        yield served


async def go_on(served, path: str, viewer: Viewer) -> None:
    """The head of the settings, a session, and who watches it go on for a while."""
    made = [served.show.stream.figures, room(served, path).show.stream.figures]
    before, seen = [each.made for each in made], len(viewer.pictures)
    await until(lambda: all(each.made > was + 30 for each, was in zip(made, before, strict=True)), 30)
    await until(lambda: len(viewer.pictures) > seen + 15, 30)


@pytest.mark.parametrize("where", ["renderer", "motion", "voice"])
def test_a_head_that_fails_ends_alone(where):
    def fail(*_, **__):
        raise ZeroDivisionError(f"in the {where}")

    async def look():
        async with heads() as served:
            bad, good = await create(served, portrait="bo"), await create(served, portrait="chidi")
            async with watching(served.client, f"{served.url}{good}/whep") as viewer:
                await until(lambda: viewer.pictures, 30)
                core = room(served, bad).show.stream._core
                core._renderer.render = fail if where == "renderer" else core._renderer.render
                motion, features = core.performance.motion, core.performance.features
                motion.denoiser = fail if where == "motion" else motion.denoiser
                features.push = fail if where == "voice" else features.push
                await until(lambda: served.server.sessions.count == 1, 30)
                await go_on(served, good, viewer)
                status, text, _ = await ask(served, "GET", bad)
                assert (status, text) == (404, "there is no such session: it ended, since it failed")
                again = await create(served)
                await until(lambda: room(served, again).show.stream.figures.made > 5, 30)

    live(look())


def test_heads_whose_motion_takes_seconds_hold_up_nobody_else_and_go_on_themselves(monkeypatch):
    monkeypatch.setattr(sessions_module, "STALL_SECONDS", 100.0)  # they are slow, not given up
    release, inside = threading.Event(), []

    def slow(denoise):
        def wait(*given, **named):
            inside.append(1)
            release.wait(100)
            return denoise(*given, **named)

        return wait

    async def look():
        async with heads() as served:
            good = await create(served)
            stuck = [await create(served, portrait="dalia") for _ in range(STUCK)]
            async with (
                watching(served.client, f"{served.url}{good}/whep") as viewer,
                served.client.ws_connect(f"{served.url}{good}/speak") as socket,
            ):
                await until(lambda: viewer.pictures, 30)
                streams = [room(served, path).show.stream for path in stuck]
                for stream in streams:
                    motion = stream._core.performance.motion
                    motion.denoiser = slow(motion.denoiser)
                await until(lambda: len(inside) == STUCK, 30)
                before = [stream.figures.made for stream in streams]
                await go_on(served, good, viewer)
                # it listens and speaks, sessions come and go, and those that are stuck can still be talked to
                await socket.send_bytes(words(0.4).tobytes())
                await socket.send_json({"type": "end"})
                assert (await told(socket, "played"))["seconds"] == 0.4
                assert (await ask(served, "DELETE", good))[0] == 204
                again = await create(served)
                await until(lambda: room(served, again).show.stream.figures.made > 5, 30)
                assert (await ask(served, "POST", f"{stuck[0]}/style", json={"intensity": 0.5}))[0] == 200
                assert [stream.figures.made for stream in streams] == before  # all the while
                assert len(inside) == STUCK
                release.set()
                for stream, was in zip(streams, before, strict=True):
                    await until(lambda figures=stream.figures, was=was: figures.made > was + 30, 30)
                assert served.server.sessions.count == STUCK + 1

    try:
        live(look())
    finally:
        release.set()


def test_a_viewer_that_stops_reading_is_nothing_to_the_other_sessions_nor_to_its_own(monkeypatch):
    monkeypatch.setattr(aioice.ice, "CONSENT_INTERVAL", 0.5)

    async def look():
        async with heads() as served:
            own, other = await create(served, portrait="bo"), await create(served, portrait="chidi")
            async with (
                watching(served.client, f"{served.url}{own}/whep") as beside,
                watching(served.client, f"{served.url}{other}/whep") as viewer,
            ):
                with Program([sys.executable, HERE / "lone_viewer.py", f"{served.url}{own}/whep"]) as poor:
                    await pictures(poor, 10)
                    broadcast = room(served, own).broadcast
                    assert broadcast.viewers == 2
                    tracks = [track for each in broadcast._viewers for track in (each.video, each.voice)]
                    poor.process.send_signal(signal.SIGSTOP)
                    for path, watched in ((other, viewer), (own, beside)):
                        await go_on(served, path, watched)
                        assert len(tracks) == 4 and all(track.count <= track.limit <= 30 for track in tracks)
                    poor.process.kill()
                    await until(lambda: broadcast.viewers == 1, 60)
                await go_on(served, other, viewer)
                assert served.server.sessions.count == 2

    live(look())
