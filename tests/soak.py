"""The live head under changing load, for a long time: do memory, threads, descriptors and tasks stay flat?

    python tests/soak.py [MINUTES]        (10; `make test-soak`)

Starts `ifmdm run` with the weights that ship. Every 5 s a viewer connects over WHEP, watches and leaves; every second
viewer is killed instead. Meanwhile a program speaks over the WebSocket and interrupts itself, others interrupt over
HTTP, the portrait changes by name and by upload, and a session is made and ended. Prints one line a minute with the
lowest figures of that minute, and exits with 1 if the head failed, stalled or logged an error.
"""

import asyncio
import itertools
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from aiohttp import ClientSession, ClientTimeout
from browsing import ROOT, Program

import plugin

PERIOD = 5.0
FIGURES = ("rss_mb", "threads", "descriptors", "tasks")
HEAD = """
import asyncio, json, os, sys, threading
from plugin import run
from plugin.cli import main
made = run.make_show

async def report(show):
    while True:
        pages = int(open("/proc/self/statm").read().split()[1])
        print(json.dumps({
            "rss_mb": pages * os.sysconf("SC_PAGE_SIZE") >> 20,
            "threads": threading.active_count(),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "tasks": len(asyncio.all_tasks()),
        }), flush=True)
        await asyncio.sleep(1)

def make(*args, **kwargs):
    show = made(*args, **kwargs)
    show.services.append(report)
    return show

run.run.__defaults__ = (make, None)
sys.exit(main())
"""


async def watch(url: str) -> None:
    """Viewers that come and go, each a process of its own."""
    for index in itertools.count():
        with Program([sys.executable, ROOT / "tests" / "lone_viewer.py", f"{url}/whep"]) as viewer:
            await asyncio.sleep(PERIOD * 0.8)
            viewer.process.send_signal(signal.SIGKILL if index % 2 else signal.SIGINT)
        await asyncio.sleep(PERIOD * 0.2)


async def speak(client: ClientSession, url: str) -> None:
    """A voice over the WebSocket: utterances that end, and one in three that is interrupted."""
    noise = np.random.default_rng(0).normal(0, 4000, 32_000).astype("<i2").tobytes()
    for index in itertools.count():
        async with client.ws_connect(f"{url}/speak") as socket:
            await socket.send_bytes(noise)
            await socket.send_json({"type": "interrupt" if index % 3 == 0 else "end"})
            async with asyncio.timeout(30):
                async for message in socket:
                    if json.loads(message.data)["type"] in ("played", "interrupted"):
                        break
        await asyncio.sleep(1.0)


async def interrupt(client: ClientSession, url: str) -> None:
    while True:
        async with client.post(f"{url}/interrupt"):
            await asyncio.sleep(1.3)


async def change(client: ClientSession, url: str) -> None:
    """Portraits by name and by upload; a session now and then."""
    picture = (Path(plugin.__file__).parent / "assets" / "portraits" / "bo.jpg").read_bytes()
    names = itertools.cycle(["bo", "chidi", "dalia", "ada"])
    for index in itertools.count():
        if index % 3 == 2:
            await client.post(
                f"{url}/portrait?consent=true", data=picture, headers={"Content-Type": "image/jpeg"}
            )
        else:
            await client.post(f"{url}/portrait", json={"name": next(names)})
        if index % 4 == 3:
            async with client.post(f"{url}/sessions", json={"portrait": "bo"}) as answer:
                place = answer.headers.get("Location")
            if place:
                await asyncio.sleep(3)
                await client.delete(f"{url}{place}")
        await asyncio.sleep(7.0)


def lowest(told: list[dict]) -> dict:
    return {name: min(each[name] for each in told) for name in FIGURES}


async def main(minutes: float) -> int:
    folder = tempfile.mkdtemp()
    failed = False
    with Program([sys.executable, "-c", HEAD, "run", "--port", "0"], cwd=Path(folder)) as head:
        url = head.wait_for(r"open (http://[^\s/]+)")[1]
        head.wait_for("is live")
        async with ClientSession(timeout=ClientTimeout(30)) as client:
            actors = [watch(url), speak(client, url), interrupt(client, url), change(client, url)]
            tasks = [asyncio.ensure_future(each) for each in actors]
            began, seen = time.monotonic(), 0
            while time.monotonic() - began < 60 * minutes and head.process.poll() is None:
                await asyncio.sleep(min(60.0, 60 * minutes))
                lines = head.said().splitlines()
                told = [json.loads(line) for line in lines[seen:] if line.startswith('{"rss_mb"')]
                seen = len(lines)
                async with client.get(f"{url}/state") as answer:
                    state = await answer.json()
                figures = lowest(told) | {"frames": state["frames"], "late": state["late"]}
                print(f"{(time.monotonic() - began) / 60:5.1f} min  {figures}", flush=True)
                for task in tasks:
                    if task.done():
                        failed = True
                        print(f"an actor ended: {task.exception()!r}", flush=True)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        took = head.terminate()
        log = [line for line in head.said().splitlines() if not line.startswith('{"rss_mb"')]
    wrong = [line for line in log if "Traceback" in line or " ERROR " in line or "error of ifmdm" in line]
    print(f"ended in {took:.1f} s; {len(log)} lines of log, {len(wrong)} errors")
    print("\n".join(wrong[:20]))
    return int(failed or bool(wrong))


if __name__ == "__main__":
    sys.path.insert(0, os.fspath(ROOT / "tests"))
    sys.exit(asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 10.0)))
