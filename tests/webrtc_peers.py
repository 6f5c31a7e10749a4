"""Real peers for the tests of WebRTC: a head without a model, and viewers and speakers by aiortc over real HTTP."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from urllib.parse import urljoin, urlsplit

import numpy as np
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError
from aiortc.rtp import RtcpSrPacket

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
    """(status, headers, text) of a POST of SDP; Location as a path from the root, to which clients resolve it."""
    async with client.post(url, data=sdp.encode(), headers={"Content-Type": "application/sdp"} | headers) as response:
        told = response.headers.copy()
        if "Location" in told:
            told["Location"] = urlsplit(urljoin(url, told["Location"])).path
        return response.status, told, await response.text()


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
        for task in self.tasks:  # a track that never began does not end
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


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


def listeners():
    """([], what adds a Listener to that list, and gives it, for each speaker)."""
    ears = []

    def listen():
        ears.append(Heard())
        return ears[-1]

    return ears, listen


def flash(index: int, size: int, fps: int = FPS) -> np.ndarray:
    """White for one frame a second, else dark."""
    return flat(235 if index % fps == fps // 3 else 20, size)


def click(at: np.ndarray, fps: int = FPS) -> np.ndarray:
    """A tone of 10 ms, begun with the frame that flashes."""
    since = at % RATE - (fps // 3) * RATE // fps
    return np.where((since >= 0) & (since < RATE // 100), 0.8 * np.sin(2 * np.pi * 1000 * since / RATE), 0.0)


@dataclass
class Dated:
    """The clock of the sender, as a viewer knows it from sender reports, for one kind."""

    receiver: object
    rate: int
    report: tuple[int, int] | None = None

    def __post_init__(self):
        handle = self.receiver._handle_rtcp_packet

        async def noting(packet):
            if isinstance(packet, RtcpSrPacket):
                self.report = packet.sender_info.ntp_timestamp, packet.sender_info.rtp_timestamp
            await handle(packet)

        self.receiver._handle_rtcp_packet = noting

    def seconds(self, pts: int) -> float:
        """When the sender's clock says that `pts` of a decoded frame was."""
        ntp, rtp = self.report
        stamp = (pts + self.receiver._RTCRtpReceiver__timestamp_mapper._origin) % 2**32
        return ntp / 2**32 + ((stamp - rtp + 2**31) % 2**32 - 2**31) / self.rate


def flashes(viewer: Viewer) -> list[tuple[float, int]]:
    """(when it came, pts) of each frame that flashed."""
    found, dark = [], True
    for came, frame in viewer.pictures:
        bright = frame.to_ndarray()[: frame.height].mean() > 128
        if bright and dark:
            found.append((came, frame.pts))
        dark = not bright
    return found


def clicks(viewer: Viewer) -> list[tuple[float, int]]:
    """(when it came, pts of the first sample) of each click."""
    found, quiet = [], 10**9
    for came, frame in viewer.voice:
        loud = np.abs(frame.to_ndarray().reshape(-1, 2)[:, 0].astype(int)) > 6000
        for place in np.flatnonzero(loud):
            if frame.pts + place - quiet > 4800 or quiet == 10**9:
                found.append((came, frame.pts + int(place)))
            quiet = frame.pts + place
    return found
