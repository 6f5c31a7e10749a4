"""`ifmdm run` with its server, as a program of its own."""

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import aiohttp
import av
import pytest
from pictures import UNLIMITED, many_scans

ROOT = Path(__file__).parent.parent
TOKEN = "correct-horse-battery"
#: An upload that decodes for minutes, the limits that are read beforehand being off.
SLOW = f"from engine import decoder; decoder._PROGRAM = {UNLIMITED!r}"
PROGRAM = f"""
import functools, sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from live_fakes import LatentRenderer, LoudnessModel
from plugin import run
from plugin.cli import main
run.run.__defaults__ = (functools.partial(run.make_show, model=LoudnessModel(), renderer=LatentRenderer), None)
sys.exit(main())
"""


class Child:
    """The program, and what it told. Is killed at the end, whatever happens."""

    def __init__(self, *args: str, folder: Path, first: str = "", **env: str):
        mine = {name: value for name, value in os.environ.items() if not name.upper().startswith("IFMDM_")}
        self.told: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"{first}\n{PROGRAM}", "run", "--size", "128", *args],
            cwd=folder, env=mine | {"PYTHONPATH": str(ROOT)} | env, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def wait_for(self, pattern: str) -> str:
        for line in self.process.stderr:
            self.told.append(line)
            if found := re.search(pattern, line):
                return found[0]
        raise AssertionError(f"{pattern} was never told: {''.join(self.told)}")

    def end(self, seconds: float = 30) -> tuple[int, str]:
        _, rest = self.process.communicate(timeout=seconds)
        return self.process.returncode, "".join(self.told) + rest


def get(url: str, token: str = ""):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
        return answer.read().decode()


def test_by_itself_it_serves_the_bundled_head_and_ends_in_time(tmp_path):
    with Child("--port", "0", "--seconds", "3", folder=tmp_path) as child:
        url = child.wait_for(r"http://127\.0\.0\.1:\d+/")
        assert "<video" in get(url)
        assert json.loads(get(url + "state"))["portrait"] == "ada"
        status, told = child.end()
    assert status == 0
    assert "ada is live; voice: file; shown: page;" in told
    assert "Traceback" not in told
    assert all(line.startswith("ifmdm: ") for line in told.splitlines())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_tells_the_peers_and_frees_the_port(number, tmp_path):
    async def speak(child, url):
        async with aiohttp.ClientSession() as client, client.ws_connect(f"{url}speak") as sender:
            await sender.receive_json()
            began = time.monotonic()
            child.process.send_signal(number)
            message = await sender.receive(timeout=10)
            return message.type, message.data, time.monotonic() - began

    with Child("--port", "0", "--record", "a.mp4", folder=tmp_path) as child:
        url = child.wait_for(r"http://127\.0\.0\.1:\d+/")
        time.sleep(0.7)
        kind, code, took = asyncio.run(speak(child, url))
        status, told = child.end(10)
        assert (kind, code) == (aiohttp.WSMsgType.CLOSE, 1001)
        assert took < 3
        assert status == 0 and "Traceback" not in told, told
        assert (tmp_path / "a.mp4").stat().st_size > 1000
        with socket.create_server(("127.0.0.1", int(url.split(":")[-1].strip("/")))):
            pass


def test_a_port_that_is_taken_is_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with Child("--port", port, "--record", "a.mp4", folder=tmp_path) as child:
            status, told = child.end()
    assert status == 2
    assert told == (
        f"ifmdm: port {port} of 127.0.0.1 is taken; choose another with --port (0 takes any that is free), "
        "or end the program that has it\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_another_address_needs_a_token_and_gets_one_from_the_environment(tmp_path):
    with Child("--host", "0.0.0.0", "--port", "0", folder=tmp_path) as child:
        status, told = child.end()
    assert status == 2
    assert told.count("\n") == 1 and "needs a token" in told
    with Child("--host", "0.0.0.0", "--port", "0", folder=tmp_path, IFMDM_SERVER__TOKEN=TOKEN,
               IFMDM_LOG__LEVEL="debug", IFMDM_LOG__FORMAT="json") as child:  # fmt: skip
        port = child.wait_for(r"http://[^ ]+ \(it asks for the token\)").split(":")[-1].split("/")[0]
        url = f"http://127.0.0.1:{port}/"
        for token in ("", "wrong"):
            with pytest.raises(urllib.error.HTTPError, match="401"):
                get(url + "state", token)
        assert json.loads(get(url + "state", TOKEN))["version"]

        async def speak():
            async with aiohttp.ClientSession() as client, client.ws_connect(f"{url}speak?token={TOKEN}") as sender:
                await sender.send_bytes(b"\x00\x10" * 400)

        asyncio.run(speak())
        child.process.send_signal(signal.SIGTERM)
        status, told = child.end()
    assert status == 0
    lines = [json.loads(line) for line in told.splitlines()]
    assert any("WebSocket" in line["message"] for line in lines)
    assert TOKEN not in told


def upload(url: str, picture: bytes) -> threading.Thread:
    """Send it, and wait for what comes of it in another thread."""

    def send() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            headers = {"Content-Type": "image/jpeg"}
            urllib.request.urlopen(urllib.request.Request(url, picture, headers), timeout=60).read()

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_end_does_not_wait_for_a_picture(number, tmp_path):
    """Two are decoded, and four more wait for them; the recording is whole, and no process is left."""
    hostile = many_scans(20_000)
    with Child("--port", "0", "--record", "a.mp4", folder=tmp_path, first=SLOW) as child:
        url = child.wait_for(r"http://127\.0\.0\.1:\d+/")
        time.sleep(1)
        for path in ("portrait", "sessions", "sessions", "sessions", "portrait", "portrait"):
            upload(f"{url}{path}?consent=true", hostile)
        left = decoders_of(child)
        time.sleep(0.5)
        began = time.monotonic()
        child.process.send_signal(number)
        status, told = child.end()
        took = time.monotonic() - began
    assert status == 0 and "Traceback" not in told, told
    assert took < 10, took  # of the 15 and more for which each would be decoded
    with av.open(str(tmp_path / "a.mp4")) as recording:
        assert sum(1 for _ in recording.decode(video=0)) > 25
    assert not [pid for pid in left if Path(f"/proc/{pid}").exists()]


def decoders_of(child: Child) -> list[int]:
    """The processes that it started, in any thread, once there are any; none where the system does not tell."""
    found: list[int] = []
    threads, until = Path(f"/proc/{child.process.pid}/task"), time.monotonic() + 20
    while threads.exists() and not found:
        assert time.monotonic() < until and child.process.poll() is None, "no picture was decoded"
        for children in threads.glob("*/children"):
            with contextlib.suppress(OSError):
                found += map(int, children.read_text().split())
        time.sleep(0.05)
    return found


def test_the_end_before_it_is_live_does_not_wait_for_its_own_portrait(tmp_path):
    (tmp_path / "own.jpg").write_bytes(many_scans(20_000))
    given = ("--no-server", "--record", "a.mp4", "--portrait", "own.jpg", "--consent")
    with Child(*given, folder=tmp_path, first=SLOW) as child:
        decoders_of(child)
        child.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        status, told = child.end()
        assert time.monotonic() - began < 8
    assert status == 0 and told.splitlines()[-1] == "ifmdm: ended before it was live"
    with Child(*given, folder=tmp_path) as child:  # and with the limits on it is refused in a line
        status, told = child.end()
    assert status != 0
    assert told.splitlines()[-1] == "ifmdm: own.jpg: the JPEG has more than 64 scans; save it anew"


def test_ended_before_the_first_frame_there_is_no_recording_and_no_failure(tmp_path):
    with Child("--no-server", "--record", "a.mp4", "--seconds", "0.05", folder=tmp_path) as child:
        status, told = child.end()
    assert status == 0
    assert told.splitlines()[-1] == "ifmdm: a.mp4: nothing was recorded, since it ended before the first frame"
    assert list(tmp_path.iterdir()) == []
    with Child("--no-server", "--record", "a.mp4", folder=tmp_path) as child:
        child.wait_for("ada is live")
        child.process.send_signal(signal.SIGINT)
        status, told = child.end()
    assert status == 0
    assert "Traceback" not in told
