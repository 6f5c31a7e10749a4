"""What goes wrong while the head runs: viewers that vanish, stop and come in crowds, devices that are unplugged, offers
that make no sense, and the end in the middle of it all. The head goes on, and says what is wrong in one line.

Peers, HTTP and processes are real. Where no hardware can be, a fake stands at the border of the library: pyvirtualcam's
driver and the module sounddevice. `make test-camera` removes a real camera.
"""

import asyncio
import contextlib
import gc
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import aioice
import av
import numpy as np
import pytest
import pyvirtualcam
from aiortc import RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import AudioStreamTrack
from browsing import LiveHead, Program
from hypothesis import given, settings
from hypothesis import strategies as st
from live_fakes import LatentRenderer, LoudnessModel
from test_server import POOLS, serving
from webrtc_peers import ALONE, Viewer, offer, post, until, watching

from plugin.run import make_show
from plugin.server import listen
from plugin.settings import load_settings
from transports import microphone, portaudio, virtual_camera

HERE = Path(__file__).parent


def live(coroutine, seconds: float = 60.0):
    return asyncio.run(asyncio.wait_for(coroutine, seconds))


# --- viewers


async def pictures(viewer: Program, after: int = 0) -> int:
    """How many pictures a viewer of its own process has had, once they are more than `after`."""
    until_then = time.monotonic() + 20
    while True:
        counts = [int(count) for count in re.findall(r"pictures (\d+)", viewer.said())]
        if counts and counts[-1] > after:
            return counts[-1]
        assert time.monotonic() < until_then, viewer.said()
        await asyncio.sleep(0.05)


def test_viewers_that_stop_and_vanish_are_nothing_to_the_others(monkeypatch):
    """A process that is stopped takes nothing in; killed, it says no goodbye."""
    monkeypatch.setattr(aioice.ice, "CONSENT_INTERVAL", 0.5)

    async def look():
        async with serving(live__source="none") as served, watching(served.client, f"{served.url}/whep") as other:
            with Program([sys.executable, HERE / "lone_viewer.py", f"{served.url}/whep"]) as poor:
                await pictures(poor, 10)
                assert served.server.broadcast.viewers == 2
                poor.process.send_signal(signal.SIGSTOP)
                had, frames = len(other.pictures), len(served.screen.frames)
                await asyncio.sleep(1.5)
                waits = [track for viewer in served.server.broadcast._viewers for track in (viewer.video, viewer.voice)]
                assert len(waits) == 4 and all(track.count <= track.limit <= 30 for track in waits)
                assert len(other.pictures) - had > 15
                assert len(served.screen.frames) - frames > 15
                stopped_at = await pictures(poor)
                poor.process.send_signal(signal.SIGCONT)
                await pictures(poor, stopped_at + 10)  # and it is in the picture again
                poor.process.kill()
                await until(lambda: served.server.broadcast.viewers == 1, 30)
            had = len(other.pictures)
            await until(lambda: len(other.pictures) > had + 10)
            assert not any(served.show.problems.values())

    live(look())


def test_nothing_stays_of_fifty_that_came_and_went():
    """Viewers, speakers and senders over WebSocket, of the whole server; both ends of each are in this process."""
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc here")

    def held() -> dict[str, int]:
        gc.collect()
        return {
            "tasks": len(asyncio.all_tasks()),
            "files": len(os.listdir("/proc/self/fd")),
            # but those of pools, which grow to their size
            "threads": sum(not each.name.startswith(POOLS) for each in threading.enumerate()),
            "peers": sum(isinstance(each, RTCPeerConnection) for each in gc.get_objects()),
        }

    def resident() -> float:
        """Mebibytes."""
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    async def look():
        async with serving() as served:
            client, url = served.client, served.url

            async def watch(number: int) -> None:
                viewer = Viewer(client, f"{url}/whep", ("vp8", "h264")[number % 2], keep=1)
                await viewer.watch()
                if number % 3 == 0:
                    async with client.delete(url + viewer.location) as answer:
                        assert answer.status == 200
                await viewer.leave()

            async def speak(number: int) -> None:
                peer = RTCPeerConnection(ALONE)
                peer.addTrack(AudioStreamTrack())
                status, headers, text = await post(client, f"{url}/whip", await offer(peer))
                assert status == 201, text
                await peer.setRemoteDescription(RTCSessionDescription(text, "answer"))
                await until(lambda: peer.connectionState == "connected")
                if number % 2:
                    async with client.delete(url + headers["Location"]) as answer:
                        assert answer.status == 200
                await peer.close()

            async def send(number: int) -> None:
                async with served.speak() as socket:
                    await socket.send_bytes(bytes(640))

            async def visit(number: int) -> None:
                await (watch, watch, watch, speak, send)[number % 5](number)

            def empty() -> bool:
                server = served.server
                return not (len(server.broadcast.sessions) or server.room.speakers.count or server.room.sockets.count)

            async def settled() -> dict[str, int]:
                await until(empty)
                await asyncio.sleep(0.3)
                return held()

            async def crowd(turns: int) -> None:
                for turn in range(turns):
                    await asyncio.gather(*(visit(5 * turn + each) for each in range(5)))

            async with watching(client, f"{url}/whep") as first:
                await until(lambda: first.pictures)  # the encoder has its thread from now on
            await crowd(2)  # the client keeps as many connections as it once needed
            before, memory = await settled(), resident()
            await crowd(10)
            end, after = time.monotonic() + 10, await settled()
            while any(after[name] > before[name] for name in before):
                assert time.monotonic() < end, (before, after, threading.enumerate())
                after = await settled()
            assert resident() - memory < 64
            assert served.server.broadcast.viewers == 0

    live(look())


# --- offers

#: Lines that have no business in an offer.
STRAY = ["", "a=", "m=", "m=video", "v=1", "\x00", "a=candidate:1", "a=mid:\u20ac" * 99]


def real_offer() -> str:
    async def make():
        peer = RTCPeerConnection(ALONE)
        peer.addTransceiver("video", "recvonly")
        peer.addTransceiver("audio", "sendrecv")
        text = await offer(peer)
        await peer.close()
        return text

    return asyncio.run(make())


def test_offers_that_make_no_sense_are_refused_in_one_line(caplog):
    lines = real_offer().splitlines()
    at = st.integers(0, len(lines) - 1)
    change = st.one_of(
        st.tuples(st.just("drop"), at, at),
        st.tuples(st.just("twice"), at, at),
        st.tuples(st.just("swap"), at, at),
        st.tuples(st.just("cut"), at, st.integers(0, 40)),
        st.tuples(st.sampled_from(STRAY), at, at),
    )

    def changed(changes) -> str:
        now = list(lines)
        for what, first, second in changes:
            first, second = first % len(now), second % len(now)
            if what == "drop" and len(now) > 1:
                del now[first]
            elif what == "twice":
                now.insert(second, now[first])
            elif what == "swap":
                now[first], now[second] = now[second], now[first]
            elif what == "cut":
                now[first] = now[first][:second]
            else:
                now.insert(first, what)
        return "\r\n".join(now) + "\r\n"

    async def look():
        async with serving() as served:

            async def ask(path: str, text: str) -> None:
                status, headers, told = await post(served.client, served.url + path, text)
                if status == 201:
                    async with served.client.delete(served.url + headers["Location"]):
                        return
                assert status in (400, 406, 413, 422), (status, told)
                assert told.count("\n") <= 1 and len(told) < 200 and "Traceback" not in told

            loop = asyncio.get_running_loop()

            @given(st.lists(change, min_size=1, max_size=6), st.sampled_from(["/whep", "/whip"]))
            @settings(max_examples=40)
            def try_one(changes, path):
                asyncio.run_coroutine_threadsafe(ask(path, changed(changes)), loop).result(20)

            await asyncio.to_thread(try_one)
            await until(lambda: not len(served.server.broadcast.sessions) and not served.server.room.speakers.count)
            async with watching(served.client, f"{served.url}/whep") as viewer:
                await until(lambda: viewer.pictures)

    live(look())
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


# --- devices


def test_a_camera_that_is_removed_and_comes_back(monkeypatch):
    """In the running head: the viewers notice nothing, health and the status name the camera until it is back."""
    driver = SimpleNamespace(there=True, sent=0)

    class Camera:
        def __init__(self, **_):
            if not driver.there:
                raise RuntimeError("no such device")

        def send(self, _):
            if not driver.there:
                raise RuntimeError("the device was removed")
            driver.sent += 1

        def close(self):
            pass

        def device(self):
            return "fake"

        def native_fourcc(self):
            return None

    monkeypatch.setitem(pyvirtualcam.camera.BACKENDS, "fake", Camera)
    monkeypatch.setattr(virtual_camera, "RETRY_SECONDS", (0.05,))
    monkeypatch.setattr("plugin.run._CHECK_SECONDS", 0.1)

    async def look():
        async with serving(live__outputs="camera", camera__backend="fake") as served:

            async def health() -> dict:
                async with served.client.get(f"{served.url}/health") as answer:
                    return {"status": answer.status} | {"told": await answer.json()}

            async with watching(served.client, f"{served.url}/whep") as viewer:
                await until(lambda: driver.sent and viewer.pictures)
                driver.there = False
                await until(lambda: "camera" in served.show.problems and served.show.problems["camera"])
                problem = served.show.problems["camera"]
                assert "no such device" in problem or "was removed" in problem
                assert "\n" not in problem
                told = await health()
                assert (told["status"], told["told"]["status"]) == (200, "degraded")
                had = len(viewer.pictures)
                await until(lambda: len(viewer.pictures) > had + 20)
                driver.there, sent = True, driver.sent
                await until(lambda: driver.sent > sent and not served.show.problems["camera"])
                assert (await health())["told"]["status"] == "ok"
            assert any("camera: works again" in line for line in served.told)

    live(look())


def test_a_microphone_that_is_unplugged_and_comes_back(monkeypatch):
    """The head idles meanwhile, and speaks again by itself."""
    device = {"name": "Mic", "max_input_channels": 1, "max_output_channels": 0, "default_samplerate": 16000.0}
    plugged = threading.Event()
    plugged.set()

    class Stream:
        """A thread that calls back as PortAudio's would, while the microphone is there."""

        def __init__(self, **about):
            if not plugged.is_set():
                raise module.PortAudioError("Device unavailable")
            self._callback, self._ended = about["callback"], threading.Event()

        def start(self):
            threading.Thread(target=self._run, daemon=True).start()

        def _run(self):
            while not self._ended.wait(0.02) and plugged.is_set():
                self._callback(np.full((320, 1), 0.4, np.float32), 320, None, None)

        def abort(self):
            self._ended.set()

        def close(self):
            pass

    module = SimpleNamespace(
        query_devices=lambda: [device],
        default=SimpleNamespace(device=[0, -1]),
        InputStream=Stream,
        PortAudioError=type("PortAudioError", (Exception,), {}),
    )
    monkeypatch.setattr(microphone, "load_sounddevice", lambda: module)
    monkeypatch.setattr(portaudio, "DEAD_SECONDS", 0.3)
    monkeypatch.setattr(portaudio, "RETRY_SECONDS", (0.3,))
    monkeypatch.setattr("plugin.run._CHECK_SECONDS", 0.1)

    async def look():
        async with serving(live__source="microphone") as served:
            show, frames = served.show, served.screen.frames
            await until(lambda: any(frame.audio.any() for frame in frames))
            plugged.clear()
            await until(lambda: show.problems.get("microphone"))
            assert "\n" not in show.problems["microphone"]
            made = len(frames)
            await until(lambda: len(frames) > made + 45)
            assert not frames[-1].audio.any()  # silence, and the head idles
            plugged.set()
            await until(lambda: not show.problems["microphone"])
            made = len(frames)
            await until(lambda: any(frame.audio.any() for frame in frames[made:]))

    live(look())


# --- the end


def test_the_end_with_a_viewer_connected_is_quick_and_leaves_a_whole_recording(tmp_path):
    with (
        LiveHead(tmp_path / "head", "--record", "out.mp4", "--size", "128") as head,
        Program([sys.executable, HERE / "lone_viewer.py", f"{head.address}/whep"]) as viewer,
    ):
        viewer.wait_for(r"pictures [1-9]\d")
        assert head.terminate() < 15
        viewer.wait_for("gone")  # it was told
        assert viewer.process.wait(10) == 0
    assert "Traceback" not in head.said()
    with av.open(str(tmp_path / "head" / "out.mp4")) as recording:
        count = sum(1 for _ in recording.decode(video=0))
        assert count >= 10  # as many as the viewer had
        seconds = [float(stream.duration * stream.time_base) for stream in recording.streams]
    assert seconds[0] == pytest.approx(count / 45, abs=0.03)
    assert seconds[0] == pytest.approx(seconds[1], abs=0.1)


def test_the_end_before_it_has_begun_is_an_end(tmp_path):
    command = [sys.executable, "-m", "plugin.cli", "run", "--port", "0", "--record", "out.mp4"]
    with Program(command, cwd=tmp_path) as head:
        time.sleep(0.7)  # anywhere in its start
        head.process.terminate()
        assert head.process.wait(20) in (0, 143, -signal.SIGTERM), head.said()
    assert "Traceback" not in head.said()
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".toml"]


def test_a_show_whose_sink_cannot_open_leaves_nothing_behind(tmp_path, monkeypatch):
    """The port is taken and the camera is not there: one line, and the port is free again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(virtual_camera, "virtual_devices", lambda: [])
    monkeypatch.setattr(virtual_camera.sys, "platform", "linux")
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    given_ = {"server.port": str(port), "live.outputs": "camera", "live.source": "none", "video.size": "128"}
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    with pytest.raises(ValueError, match="there is no virtual camera"):
        make_show(load_settings(given_), print, LoudnessModel(), LatentRenderer)
    listen("127.0.0.1", port).close()
    gc.collect()
    with contextlib.suppress(FileNotFoundError):
        assert len(os.listdir("/proc/self/fd")) <= len(before)
