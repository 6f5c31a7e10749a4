"""Sessions: heads that are made and ended over HTTP, many in one process, of one copy of the weights.

    POST /sessions        {"portrait": "bo", "intensity": 1.2, "voice": "bundled"}, or a picture -> 201, its Location
    GET /sessions         those there are; GET /sessions/ID is one
    DELETE /sessions/ID   its peers are told, and nothing of it is left
    /sessions/ID/whep     and all else that a room has (plugin/room.py)

Each has an engine thread, peers, limits and an end of its own. One whose engine fails, or makes no frames for
STALL_SECONDS, ends, and its peers are told; one that nobody watches or speaks to ends after the time that the settings
say. What all share is the event loop, in which nothing computes, and Python's lock, which whatever is dear lets go of.

How many there may be is measured when the first is asked for: the processor time that a second of a watched head
takes, against SHARE of the cores, and the memory that it takes, against MEMORY_SHARE of what is free at the moment.
Where that was too much after all, since other programs run, none is added while frames of those that run are late.
"""

import asyncio
import copy
import logging
import os
import secrets
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
from aiohttp import web
from pydantic import Field

from engine.head import Style
from engine.portrait import Portrait
from plugin.adapters import create_clip
from plugin.memory import available, resident
from plugin.queries import strict
from plugin.room import (
    BEAT_SECONDS,
    CLOSE_SECONDS,
    Room,
    StyleChange,
    bundled,
    find_face,
    read_json,
    read_picture,
    refusing,
    thumbnail,
)
from plugin.run import Show, Studio
from plugin.settings import Whole
from transports.webrtc.broadcast import Broadcast
from transports.webrtc.encoders import VideoEncoder, to_i420
from transports.webrtc.options import WebRtcOptions

#: Of all cores, what heads may take by the measurement. The rest is for the network, Python and bursts.
SHARE = 0.7
#: The same of free memory. A head takes no less than LEAST_MB, even if memory that was given back served it.
MEMORY_SHARE, LEAST_MB = 0.8, 50.0
#: With more late frames than this anywhere, the machine is full.
LATE_SHARE = 0.05
#: A head that has stalled (plugin/room.py) for so long is given up.
STALL_SECONDS = 7.0
#: For preparing the portrait, and for what ends.
MAKE_SECONDS = 20.0
END_SECONDS = 5.0
#: Requests for a session that may wait for one another, and how many that ended are remembered.
COMING, ENDED = 4, 64
#: Figures of the stream that are summed over all sessions.
SUMMED = ("made", "undrawn", "late", "lost")
_WHY = {
    "deleted": "it was ended",
    "idle": "it ended, since nobody watched it or spoke to it",
    "stalled": "it ended, since it made no frames",
    "failed": "it ended, since it failed",
    "closed": "the server ends",
}
#: Addresses are told relative to the one that was asked, which a proxy may show below a path. Here: to "/sessions".
_WITHIN = "sessions/"
_RETRY, _RETRY_FULL = {"Retry-After": "2"}, {"Retry-After": "10"}

_log = logging.getLogger(__name__)


class SessionOrder(StyleChange):
    """The body of POST /sessions: what is not said is as in the settings; the voice is silent but for guests."""

    portrait: Annotated[str, Field(max_length=100)] | None = None
    latency: Literal["interactive", "balanced", "quality"] | None = None
    seed: Annotated[Whole, Field(ge=0, le=2**32 - 1)] | None = None
    voice: Literal["none", "bundled"] = "none"


def cores() -> float:
    """Cores that this process may use, by its affinity and its control group."""
    count = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return count if quota == "max" else min(count, int(quota) / int(period))
    except (OSError, ValueError):
        return count


@contextmanager
def one_thread_each() -> Iterator[None]:
    """OpenCV with one thread a call: heads share the cores among them, not within a picture."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


@dataclass(frozen=True)
class Cost:
    """What a head takes. cores: seconds of one core for each second, computed and encoded once; mb: memory, with a
    portrait of its own, None where the system does not tell."""

    cores: float
    mb: float | None


def cost(studio: Studio, face: Any, options: WebRtcOptions) -> Cost:
    """Measure a head like `face` on this machine, in a second of its core."""
    before = resident()
    core = studio.core(copy.deepcopy(face))
    form = core.settings
    encoder, i420 = VideoEncoder(options.codecs[0], form.size, form.size, form.fps, options.bitrate), None
    core.tick(core.due(0))
    began = time.thread_time()
    for index in range(1, form.fps + 1):
        for frame in core.tick(core.due(index) - core.state.now):
            i420 = to_i420(frame.image, i420)
            encoder.encode(i420, frame.index, False)
    spent, after = time.thread_time() - began, resident()
    return Cost(spent, None if before is None or after is None else max(LEAST_MB, after - before))


def capacity(cost: Cost, cores: float, running: int = 0, free: float | None = None) -> int:
    """Sessions that fit beside the head that `ifmdm run` starts: into the cores, and into memory where what is free is
    known, in MB, with so many of them running already."""
    most = max(0, int(SHARE * cores / cost.cores) - 1)
    if free is None or cost.mb is None:
        return most
    return min(most, running + int(MEMORY_SHARE * free / cost.mb))


def make_head(
    studio: Studio, options: WebRtcOptions, face: Any, style: Style, name: str, latency: str, seed: int, voice: str
) -> tuple[Show, Broadcast]:  # fmt: skip
    """A head as sessions are, nothing running: what it is, and what its viewers watch. voice: as SessionOrder's;
    the others: as Studio.show's."""
    show, broadcast = studio.show(face, style, name, latency, seed), Broadcast(options)
    if voice == "bundled":
        show.source = create_clip({"file": "", "loop": True, "pause": 1.0})
    broadcast.open(show.form)
    show.sinks.append(broadcast)
    return show, broadcast


@dataclass(eq=False)
class Session:
    """One head. handlers: of its room, by method and path; over: why it is to end, once it is; seen: when somebody was
    last there, and began, in seconds of time.monotonic()."""

    id: str
    room: Room
    began: float
    seen: float
    over: asyncio.Future[str]
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.handlers = {(route.method, route.path): route.handler for route in self.room.routes()}

    def end(self, why: str) -> None:
        if not self.over.done():
            self.over.set_result(why)

    def told(self, now: float, within: str = "") -> dict[str, Any]:
        """For those who ask. within: goes before what is relative to the session's own address."""
        return {
            "id": self.id,
            "url": f"{within}{self.id}/",
            "portrait": self.room.show.portrait,
            "seconds": round(now - self.began, 1),
            "frames_per_second": round(self.room.pulse.rate, 2),
            "stalled": self.room.pulse.stalled,
            **self.room.peers(),
            "sockets": self.room.sockets.count,
        }


class Sessions:
    """All sessions of a server. In the event loop."""

    def __init__(self, house: Room, allowed: int | Literal["auto"], idle: float) -> None:
        """house: of the head that `ifmdm run` started. allowed: how many at once, "auto" to measure it. idle: seconds
        after which one ends where nobody is."""
        self._house, self._allowed, self._idle = house, allowed, idle
        self._portrait = house.show.portrait  # what its first face is called
        self._cost: Cost | None = None
        self._sharing, self._alone = False, ExitStack()
        self._open: dict[str, Session] = {}
        self._tasks: dict[asyncio.Task, Session] = {}
        self._making = asyncio.Lock()
        self._coming = 0
        self._closed = False
        self._gone: deque[tuple[str, str]] = deque(maxlen=ENDED)
        self._past: Counter[str] = Counter()
        self.created = 0
        self.ended: Counter[str] = Counter(dict.fromkeys(_WHY, 0))

    @property
    def count(self) -> int:
        """Those that run or are about to be over."""
        return len(self._tasks)

    @property
    def limit(self) -> int | None:
        """None if it was not measured yet. By memory it changes with what else the machine does."""
        if self._allowed != "auto":
            return self._allowed
        return None if self._cost is None else capacity(self._cost, cores(), self.count, available())

    @property
    def rooms(self) -> list[Room]:
        return [session.room for session in self._open.values()]

    def counts(self) -> dict[str, int]:
        """Of all sessions that are or were: SUMMED."""
        running = [session.room.show.stream.figures for session in self._tasks.values()]
        return {name: self._past[name] + sum(getattr(each, name) for each in running) for name in SUMMED}

    def get(self, name: str) -> Session:
        """Raises the refusal."""
        if name not in self._open:
            why = dict(self._gone).get(name)
            raise web.HTTPNotFound(text=f"there is no such session{f': {_WHY[why]}' if why else ''}")
        return self._open[name]

    def routes(self) -> list[web.RouteDef]:
        """All of them: sessions, and a room's routes in each."""
        own = [
            web.post("/sessions", self._create),
            web.get("/sessions", self._list),
            web.get("/sessions/{id}", self._tell),
            web.delete("/sessions/{id}", self._delete),
        ]
        return [
            *strict(own, {"/sessions": ("consent",)}),
            *(
                web.RouteDef(each.method, f"/sessions/{{id}}{each.path}", self._inside(each), each.kwargs)
                for each in self._house.routes()
            ),
        ]

    def _inside(self, route: web.RouteDef) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """What hands a request to the same route of the session that is named."""

        async def handle(request: web.Request) -> web.StreamResponse:
            return await self.get(request.match_info["id"]).handlers[route.method, route.path](request)

        return handle

    async def _list(self, _: web.Request) -> web.Response:
        now = time.monotonic()
        told = [session.told(now, _WITHIN) for session in self._open.values()]
        return web.json_response({"sessions": told, "limit": self.limit})

    async def _tell(self, request: web.Request) -> web.Response:
        return web.json_response(self.get(request.match_info["id"]).told(time.monotonic()))

    async def _delete(self, request: web.Request) -> web.Response:
        session = self.get(request.match_info["id"])
        session.end("deleted")
        # not for ever, and not given up when whoever asked goes
        await asyncio.wait([task for task, each in self._tasks.items() if each is session])
        return web.Response(status=204)

    async def _create(self, request: web.Request) -> web.Response:
        if self._allowed == 0:
            raise web.HTTPForbidden(text="sessions are turned off: set sessions under [server]")
        order, shown = SessionOrder(), False
        if request.content_type not in ("application/json", "text/plain"):
            shown = request.body_exists
        elif request.body_exists:
            order = await read_json(request, SessionOrder)
        picture: Path | Portrait | None = None if order.portrait is None else bundled(order.portrait)
        self._check_room()  # after what no wait would mend, before a picture is read
        with self._comes():
            if shown:
                picture = await find_face(self._house.show.studio, await read_picture(request))
            name = order.portrait or ("uploaded" if picture is not None else self._portrait)
            async with self._making:
                if not self._sharing:
                    self._sharing = True
                    self._alone.enter_context(one_thread_each())
                await self._measure()
                self._check_room()
                session = await self._make(order, picture, name)
        told = session.told(time.monotonic(), _WITHIN)
        return web.json_response(told, status=201, headers={"Location": f"{_WITHIN}{session.id}"})

    @contextmanager
    def _comes(self) -> Iterator[None]:
        """Few at a time: each holds a picture, and takes a core."""
        if self._coming >= COMING:
            raise web.HTTPServiceUnavailable(text="other sessions are being made; try again", headers=_RETRY)
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1

    async def _measure(self) -> None:
        if self.limit is not None:
            return
        show = self._house.show
        self._cost = each = await show.studio.work(cost, show.studio, show.face, self._house.options)
        memory = "" if each.mb is None else f" and {each.mb:.0f} MB"
        _log.info(f"a head takes {each.cores:.2f} of {cores():g} cores{memory}: {self.limit} sessions fit")

    def _check_room(self) -> None:
        """Raises the refusal."""
        if self._closed:
            raise web.HTTPServiceUnavailable(text="the server is about to end", headers=_RETRY)
        if self.limit is not None and self.count >= self.limit:
            taken = f"{self.count} of {self.limit} places {'is' if self.limit == 1 else 'are'} taken"
            why = ", which is what this machine can run" if self._allowed == "auto" else ""
            raise web.HTTPServiceUnavailable(text=f"{taken}{why}; try again later", headers=_RETRY_FULL)
        if self._allowed == "auto" and any(room.late > LATE_SHARE for room in (self._house, *self.rooms)):
            raise web.HTTPServiceUnavailable(
                text="heads on this machine are late already; try again later", headers=_RETRY_FULL
            )

    async def _make(self, order: SessionOrder, picture: Path | Portrait | None, name: str) -> Session:
        """Raises the refusal."""
        ident = secrets.token_urlsafe(9)
        labels = {"session": ident}
        try:
            async with asyncio.timeout(MAKE_SECONDS):
                with refusing():
                    show, broadcast = await self._house.show.studio.work(self._prepare, order, picture, name)
        except TimeoutError:
            raise web.HTTPServiceUnavailable(text="the portrait was not ready in time", headers=_RETRY_FULL) from None
        small = thumbnail(picture) if isinstance(picture, Portrait) else self._house.picture
        self._check_room()  # the server may be about to end by now
        show.tell = lambda line: _log.info(line, extra=labels)
        show.alert = lambda line: _log.warning(line, extra=labels)
        room, now = Room(show, broadcast, labels, small), time.monotonic()
        show.services.append(lambda _: room.beat())
        session = Session(ident, room, now, now, asyncio.get_running_loop().create_future())
        self._open[ident] = session
        self.created += 1
        task = asyncio.ensure_future(self._live(session))
        self._tasks[task] = session
        task.add_done_callback(self._forget)
        _log.info("a session began", extra={**labels, "sessions": self.count})
        return session

    def _prepare(self, order: SessionOrder, picture: Path | Portrait | None, name: str) -> tuple[Show, Broadcast]:
        """In a thread: everything of a session that takes time."""
        house = self._house.show
        studio = house.studio
        face = house.face if picture is None else studio.prepare(picture)
        head = studio.settings.head
        style = Style(
            head.intensity if order.intensity is None else order.intensity,
            head.pose if order.pose is None else order.pose,
        )
        # heads beside each other must not move as one
        seed = secrets.randbits(32) if order.seed is None else order.seed
        return make_head(studio, self._house.options, face, style, name, order.latency or "", seed, order.voice)

    async def _live(self, session: Session) -> None:
        """From its beginning to its end, whatever that is: nothing of it gets out of here."""
        show = asyncio.ensure_future(session.room.show.run(0, session.stop))
        watch = asyncio.ensure_future(self._watch(session))
        await asyncio.wait([show, watch, session.over], return_when=asyncio.FIRST_COMPLETED)
        watch.cancel()
        session.end("failed")  # if nothing else was the reason
        why = session.over.result()
        del self._open[session.id]
        self._gone.append((session.id, why))
        await session.room.aclose()
        session.stop.set()
        done, _ = await asyncio.wait([show], timeout=END_SECONDS)
        error = show.exception() if done else TimeoutError("it does not stop, and is left behind")
        if not done:
            show.cancel()
        if error is not None or why in ("failed", "stalled"):
            more = {"session": session.id, "why": why}
            _log.error("a session failed; the others go on", exc_info=error, extra=more)
        else:
            _log.info("a session ended", extra={"session": session.id, "why": why})
        self.ended[why] += 1

    async def _watch(self, session: Session) -> None:
        """End it when nobody has been there, or it has made nothing, for too long."""
        stalled = 0.0
        while not session.over.done():
            await asyncio.sleep(BEAT_SECONDS)
            now = time.monotonic()
            if not session.room.empty:
                session.seen = now
            # counted in beats, so that a machine that was asleep has not stalled
            stalled = stalled + BEAT_SECONDS if session.room.pulse.stalled else 0.0
            if stalled >= STALL_SECONDS:
                session.end("stalled")
            elif now - session.seen >= self._idle:
                session.end("idle")

    def _forget(self, task: asyncio.Task) -> None:
        figures = self._tasks.pop(task).room.show.stream.figures
        self._past.update({name: getattr(figures, name) for name in SUMMED})
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a session did not end well", exc_info=error)

    async def aclose(self) -> None:
        """End all, their peers told, and let no more come."""
        self._closed = True
        for session in self._tasks.values():
            session.end("closed")
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=CLOSE_SECONDS + END_SECONDS)
        self._alone.close()  # as it was before there were others
