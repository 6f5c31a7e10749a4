"""Real peers for the tests of WebRTC: a head without a model, and viewers and speakers by aiortc over real HTTP."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import numpy as np
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError

from transports.media import MediaFormat, MediaFrame

RATE, FPS = 16_000, 45
ALONE = RTCConfiguration(iceServers=[])


def flat(value: int, size: int) -> np.ndarray:
    return np.full((size, size, 3), value, np.uint8)


@dataclass
class Head:
    """Gives frames to sinks in real time. picture: index -> image or None; voice: positions (n,) -> samples."""

    sinks: list
    size: int = 64
    fps: int = FPS
    picture: Callable[[int], np.ndarray | None] | None = None
    voice: Callable[[np.ndarray], np.ndarray] = lambda at: 0.1 * np.sin(at * 0.1)
    index: int = 0
    generation: int = 0

    def __post_init__(self):
        self.form = MediaFormat(self.size, self.size, self.fps, RATE)
        self.picture = self.picture or (lambda index: flat(40 + index % 100, self.size))

    def frame(self, index: int, when: float) -> MediaFrame:
        start, end = index * RATE // self.fps, (index + 1) * RATE // self.fps
        audio = self.voice(np.arange(start, end)).astype(np.float32)
        return MediaFrame(index, start, self.picture(index), audio, when, self.generation)

    async def run(self):
        begin = time.monotonic() - self.index / self.fps
        while True:
            due = begin + self.index / self.fps
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            frame = self.frame(self.index, due)
            self.index += 1
            for sink in self.sinks:
                sink.send(frame)

    @contextlib.asynccontextmanager
    async def live(self) -> AsyncIterator["Head"]:
        for sink in self.sinks:
            sink.open(self.form)
        task = asyncio.create_task(self.run())
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def serving(*routes: web.RouteDef) -> AsyncIterator[tuple[ClientSession, str]]:
    """(client, "http://127.0.0.1:port") of a server with the routes."""
    app = web.Application()
    app.add_routes(routes)
    server = TestServer(app)
    await server.start_server()
    try:
        async with ClientSession() as client:
            yield client, str(server.make_url("")).rstrip("/")
    finally:
        await server.close()


async def offer(peer: RTCPeerConnection) -> str:
    await peer.setLocalDescription()
    return peer.localDescription.sdp


async def post(client: ClientSession, url: str, sdp: str, **headers: str):
    """(status, headers, text) of a POST of SDP."""
    async with client.post(url, data=sdp.encode(), headers={"Content-Type": "application/sdp"} | headers) as response:
        return response.status, response.headers, await response.text()


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for something; fails when it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


@dataclass
class Viewer:
    """A peer that watches. pictures, voice: (when it came, frame) of all frames decoded."""

    client: ClientSession
    url: str
    codec: str = ""
    peer: RTCPeerConnection = field(default_factory=lambda: RTCPeerConnection(ALONE))
    pictures: list = field(default_factory=list)
    voice: list = field(default_factory=list)
    location: str = ""
    keep: int = 100_000

    async def watch(self, kinds: tuple[str, ...] = ("video", "audio"), connect: bool = True) -> str:
        """Connect; returns the answer."""
        for kind in kinds:
            transceiver = self.peer.addTransceiver(kind, "recvonly")
            if kind == "video" and self.codec:
                known = transceiver.receiver.getCapabilities("video").codecs
                transceiver.setCodecPreferences([each for each in known if each.name.lower() == self.codec])
        self.tasks = []

        @self.peer.on("track")
        def track(track):
            into = self.pictures if track.kind == "video" else self.voice
            self.tasks.append(asyncio.ensure_future(self._collect(track, into)))

        status, headers, text = await post(self.client, self.url, await offer(self.peer))
        assert status == 201, text
        self.location = headers["Location"]
        await self.peer.setRemoteDescription(RTCSessionDescription(text, "answer"))
        if connect:
            await until(lambda: self.peer.connectionState == "connected")
        return text

    async def _collect(self, track, into):
        with contextlib.suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                into.append((time.monotonic(), frame))
                del into[: -self.keep]

    async def leave(self):
        await self.peer.close()
        await asyncio.gather(*self.tasks)


@contextlib.asynccontextmanager
async def watching(client, url, codec="", kinds=("video", "audio")) -> AsyncIterator[Viewer]:
    viewer = Viewer(client, url, codec)
    await viewer.watch(kinds)
    try:
        yield viewer
    finally:
        await viewer.leave()


@dataclass
class Heard:
    """A Listener that keeps what it is given."""

    chunks: list = field(default_factory=list)
    rates: set = field(default_factory=set)
    finished: int = 0
    left: int = 0

    def deliver(self, samples, rate):
        self.chunks.append(samples.copy())
        self.rates.add(rate)
        return True

    def finish(self):
        self.finished += 1

    def leave(self):
        self.left += 1

    @property
    def count(self):
        return sum(map(len, self.chunks))
