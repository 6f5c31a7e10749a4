"""A head over HTTP: WebRTC in and out, sound over a WebSocket, the controls, what it is doing.

The same for the head that `ifmdm run` starts and for those that are made over HTTP (plugin/sessions.py): each has a
room of its own, with its own peers and limits.
"""

import asyncio
import contextlib
import io
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from aiohttp import hdrs, web
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.decoder import DecoderError
from engine.portrait import Portrait, PortraitError
from plugin import __version__
from plugin.queries import strict
from plugin.render import bundled_portraits
from plugin.run import Show, Studio
from plugin.settings import Real
from transports.media import Replayable
from transports.webrtc.broadcast import Broadcast
from transports.webrtc.whep import whep_routes
from transports.webrtc.whip import Speakers, whip_routes
from transports.websocket import SpeechSockets

#: The largest picture that is taken, how many may be on their way at once, and how long a body may take to arrive.
UPLOAD_BYTES = 10 << 20
UPLOADS = 4
UPLOAD_SECONDS = 30.0
#: For what comes of it, with others before it: one is decoded in engine.decoder.SECONDS at most.
READ_SECONDS = 25.0
#: Speakers over WebSocket at once.
SOCKETS = 4
#: A peer that does not close is cut off after so long.
CLOSE_SECONDS = 2.0
#: Frames a second are counted over this, and a head that made none in it has stalled.
PULSE_SECONDS = 3.0
BEAT_SECONDS = 0.5
_THUMBNAIL = 192
_RETRY = {"Retry-After": "2"}

_log = logging.getLogger(__name__)


class StyleChange(BaseModel):
    """The body of POST /style."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    intensity: Annotated[Real, Field(ge=0, le=2)] | None = None
    pose: (
        tuple[
            Annotated[Real, Field(ge=-20, le=20)],
            Annotated[Real, Field(ge=-15, le=15)],
            Annotated[Real, Field(ge=-15, le=15)],
        ]
        | None
    ) = None


class PortraitChoice(BaseModel):
    """The body of POST /portrait for one that is there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(max_length=100)


@dataclass
class Pulse:
    """How many frames a second were made lately."""

    beats: deque[tuple[float, int]] = field(default_factory=deque)

    def beat(self, now: float, made: int) -> None:
        """now: seconds; made: frames so far."""
        self.beats.append((now, made))
        while len(self.beats) > 2 and now - self.beats[1][0] >= PULSE_SECONDS:
            self.beats.popleft()

    @property
    def rate(self) -> float:
        (then, before), (now, after) = (self.beats[0], self.beats[-1]) if self.beats else ((0, 0), (0, 0))
        return (after - before) / (now - then) if now > then else 0.0

    @property
    def stalled(self) -> bool:
        return bool(self.beats) and self.beats[-1][0] - self.beats[0][0] >= PULSE_SECONDS and self.rate == 0


def _jpeg(image: Image.Image) -> bytes:
    small = io.BytesIO()
    image.save(small, "JPEG", quality=85)
    return small.getvalue()


@lru_cache(maxsize=16)
def _bundled_thumbnail(path: Path) -> bytes:
    """A small JPEG of a bundled portrait."""
    with Image.open(path) as image:
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
        return _jpeg(image)


def thumbnail(portrait: Portrait) -> bytes:
    """A small JPEG of it."""
    image = Image.fromarray(portrait.pixels)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return _jpeg(image)


@dataclass(frozen=True, eq=False)
class Own:
    """A face that somebody brought. face: as Show.prepare makes it; picture: a small JPEG."""

    face: Any
    picture: bytes


class Room:
    """A head and all who watch it and speak to it. In the event loop."""

    def __init__(
        self, show: Show, broadcast: Broadcast, labels: Mapping[str, str] | None = None, picture: bytes = b""
    ) -> None:  # fmt: skip
        """broadcast: one of the show's sinks. labels: what its log lines say of it. picture: a small JPEG of its first
        face, for where that is not bundled."""
        self.show, self.broadcast, self._labels = show, broadcast, dict(labels or {})
        self.picture = picture
        brought = picture and show.portrait not in bundled_portraits()
        self._own = {show.portrait: Own(show.face, picture)} if brought else {}
        self.options = broadcast.options
        self.sockets = SpeechSockets(lambda: show.invite(live=False), show.interrupt, SOCKETS)
        self.speakers = Speakers(self.options, show.invite)
        self.pulse, self.lateness = Pulse(), Pulse()
        self._changing, self._uploads = False, asyncio.Semaphore(UPLOADS)
        show.listeners.append(self.sockets.interrupt)

    def routes(self) -> list[web.RouteDef]:
        """What there is of a head, the paths beginning at its own."""
        own = [
            web.get("/health", self._health),
            web.get("/state", self._state),
            web.post("/interrupt", self._interrupt),
            web.post("/play", self._play),
            web.post("/style", self._style),
            web.get("/portraits", self._portraits),
            web.get("/portraits/{name}", self._picture),
            web.post("/portrait", self._portrait),
        ]
        return [
            *strict(own, {"/portrait": ("consent",)}),
            web.get("/speak", self.sockets.handle, allow_head=False),
            *whep_routes(self.broadcast, self.show.invite),
            *whip_routes(self.speakers),
        ]

    async def beat(self) -> None:
        """Watch the head's pulse, and tell who comes and goes."""
        peers = self.peers()
        while True:
            self.look(time.monotonic())
            if (now := self.peers()) != peers:
                for kind, count in now.items():
                    if count != peers[kind]:
                        came = "came" if count > peers[kind] else "left"
                        _log.info(f"{kind} {came}", extra={kind: count, **self._labels})
                peers = now
            await asyncio.sleep(BEAT_SECONDS)

    def look(self, now: float) -> None:
        """Take the pulse. now: seconds of time.monotonic()."""
        figures = self.show.stream.figures
        self.pulse.beat(now, figures.made)
        self.lateness.beat(now, figures.late)

    def peers(self) -> dict[str, int]:
        return {"viewers": self.broadcast.viewers, "speakers": self.speakers.count}

    @property
    def empty(self) -> bool:
        """Whether nobody is here, nor about to come."""
        return not (len(self.broadcast.sessions) or self.speakers.count or self.sockets.count)

    @property
    def late(self) -> float:
        """The share of frames that were late, of those made lately."""
        return self.lateness.rate / self.pulse.rate if self.pulse.rate else 0.0

    def figures(self) -> dict[str, float]:
        """For metrics."""
        told = {
            "frames_per_second": self.pulse.rate,
            "speakers": self.speakers.count,
            "speaking_sockets": self.sockets.count,
            "socket_backlog_seconds": self.sockets.backlog,
        }
        return told | {f"webrtc_{name}": value for name, value in self.broadcast.figures().items()}

    async def aclose(self) -> None:
        """Tell all peers, within seconds."""
        with contextlib.suppress(ValueError):
            self.show.listeners.remove(self.sockets.interrupt)
        leaving = [each.aclose() for each in (self.sockets, self.speakers, self.broadcast)]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await asyncio.gather(*leaving, return_exceptions=True)

    # --- what is told

    async def _health(self, _: web.Request) -> web.Response:
        """200 while frames are made, else 503. What a device has wrong is told and leaves the head healthy."""
        problems = [problem for problem in self.show.problems.values() if problem]
        status = "stalled" if self.pulse.stalled else "degraded" if problems else "ok"
        told = {"status": status, "frames_per_second": round(self.pulse.rate, 2), "problems": problems}
        return web.json_response(told, status=503 if self.pulse.stalled else 200)

    async def _state(self, _: web.Request) -> web.Response:
        show, figures = self.show, self.show.figures()
        return web.json_response(
            {
                "version": __version__,
                "portrait": show.portrait,
                "intensity": show.style.intensity,
                "pose": list(show.style.pose),
                "speaking": show.stream.unspoken > 0,
                "guest": show.floor.speaker is not None and not show.floor.ceded,
                "speaker": self.speakers.etag(show.floor.speaker),
                "resting": isinstance(show.source, Replayable) and show.source.resting,
                "frames_per_second": round(self.pulse.rate, 2),
                "fps": show.form.fps,
                "size": show.form.width,
                "latency_seconds": round(figures["latency_seconds_median"], 3),
                "frames": figures["frames"],
                "late": figures["frames_late"],
                **self.peers(),
                "ice_servers": [
                    {"urls": each.url, "username": each.username, "credential": each.password}
                    if each.is_turn
                    else {"urls": each.url}
                    for each in self.options.servers()
                ],
                "problems": [problem for problem in show.problems.values() if problem],
            }
        )

    # --- the controls

    async def _interrupt(self, _: web.Request) -> web.Response:
        figures = self.show.stream.figures
        before = figures.interrupts
        self.show.interrupt()
        if figures.interrupts > before:  # not once more for whoever asks again and again
            _log.info("interrupted", extra=self._labels)
        return web.Response(status=204)

    async def _play(self, _: web.Request) -> web.Response:
        """The recording of the house once more, where it rests since an interrupt."""
        if not isinstance(self.show.source, Replayable):
            raise web.HTTPConflict(text="there is no recording to play: the voice comes from elsewhere")
        self.show.source.play()
        return web.Response(status=204)

    async def _style(self, request: web.Request) -> web.Response:
        change = await read_json(request, StyleChange)
        self.show.restyle(**change.model_dump(exclude_none=True))
        style = self.show.style
        return web.json_response({"intensity": style.intensity, "pose": list(style.pose)})

    async def _portraits(self, _: web.Request) -> web.Response:
        names = [*((name, False) for name in bundled_portraits()), *((name, True) for name in self._own)]
        # relative to this list, wherever a proxy shows it
        told = [{"name": name, "picture": f"portraits/{name}", "own": own} for name, own in names]
        return web.json_response({"portrait": self.show.portrait, "portraits": told})

    async def _picture(self, request: web.Request) -> web.Response:
        # looked up by name, never as a path
        name = request.match_info["name"]
        if (own := self._own.get(name)) is not None:  # another one may come under this name
            return web.Response(body=own.picture, content_type="image/jpeg")
        path = bundled_portraits().get(name)
        if path is None:
            raise web.HTTPNotFound(text="no such portrait")
        body = await asyncio.to_thread(_bundled_thumbnail, path)
        return web.Response(body=body, content_type="image/jpeg", headers={hdrs.CACHE_CONTROL: "private, max-age=3600"})

    async def _portrait(self, request: web.Request) -> web.Response:
        """A portrait by name, as JSON, or a picture as the body, whose use somebody agreed to."""
        # before it keeps out others: a body may take long to arrive
        if request.content_type == "application/json":
            name = (await read_json(request, PortraitChoice)).name
            picture: Path | Portrait | None = None if name in self._own else bundled(name, self._own)
        elif self._uploads.locked():  # each holds what has come of it
            raise web.HTTPServiceUnavailable(text="other pictures are on their way; try again", headers=_RETRY)
        else:
            async with self._uploads:
                name, picture = "uploaded", await find_face(self.show.studio, await read_picture(request))
        with self._alone():
            if picture is None:
                await self.show.show_face(self._own[name].face, name)
            else:
                await self._prepare(picture, name)
        _log.info("another portrait", extra={"portrait": name, **self._labels})
        return web.json_response({"portrait": name})

    async def _prepare(self, picture: Path | Portrait, name: str) -> None:
        """Show another face; one that somebody brought can be chosen by its name from then on. Raises the refusal."""
        small = thumbnail(picture) if isinstance(picture, Portrait) else b""
        with refusing():
            face = await self.show.change_portrait(picture, name)
        if small:  # listed from the moment on at which it is shown
            self._own[name] = Own(face, small)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One portrait is prepared at a time: it takes a core."""
        if self._changing:
            raise web.HTTPConflict(text="another portrait is being prepared; try again", headers=_RETRY)
        self._changing = True
        try:
            yield
        finally:
            self._changing = False


def bundled(name: str, others: Iterable[str] = ()) -> Path:
    """A bundled portrait, looked up by name, never as a path. others: that there are, too. Raises the refusal, in one
    line."""
    path = bundled_portraits().get(name)
    if path is None:
        raise web.HTTPNotFound(text=f"no such portrait; there are {', '.join([*bundled_portraits(), *others])}")
    return path


@contextlib.asynccontextmanager
async def _in_time(what: str) -> AsyncIterator[None]:
    """For reading a body in: one that does not come must not hold up what waits for it. Raises the refusal."""
    try:
        async with asyncio.timeout(UPLOAD_SECONDS):
            yield
    except TimeoutError:
        raise web.HTTPRequestTimeout(text=f"{what} did not arrive within {UPLOAD_SECONDS:.0f} s") from None


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """For what makes a portrait of a picture. Raises the refusal, in one line."""
    try:
        yield
    except PortraitError as error:
        raise web.HTTPUnprocessableEntity(text=str(error)) from None
    except DecoderError as error:
        raise web.HTTPServiceUnavailable(text=str(error), headers=_RETRY) from None


async def find_face(studio: Studio, picture: bytes) -> Portrait:
    """The face of a picture that somebody sent. Raises the refusal, in one line."""
    try:
        async with asyncio.timeout(READ_SECONDS):
            with refusing():
                return await studio.read(picture)
    except TimeoutError:
        text = "pictures take too long here now; try again"
        raise web.HTTPServiceUnavailable(text=text, headers=_RETRY) from None


async def read_json(request: web.Request, kind: type[BaseModel]) -> Any:
    """The body, as what is asked for. Raises the refusal, in one line."""
    if request.content_type != "application/json":  # which no form of another site can send
        raise web.HTTPUnsupportedMediaType(text="send application/json")
    async with _in_time("the body"):
        body = await request.read()
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        status = web.HTTPBadRequest if first["type"] == "json_invalid" else web.HTTPUnprocessableEntity
        raise status(text=" ".join(f"{where}: {first['msg']}".split()).lstrip(": ")) from None


async def read_picture(request: web.Request) -> bytes:
    """The body, as a picture that may be used. Raises the refusal, in one line."""
    if request.content_type not in ("image/jpeg", "image/png", "image/webp", "application/octet-stream"):
        raise web.HTTPUnsupportedMediaType(
            text="send a JPEG, PNG or WebP picture with its Content-Type (image/jpeg, image/png or image/webp), "
            "or the name of a portrait as application/json"
        )
    if request.query.get("consent") != "true":
        raise web.HTTPForbidden(text="a face needs consent: if it is yours or its owner agreed, say ?consent=true")
    too_large = web.HTTPRequestEntityTooLarge(
        UPLOAD_BYTES, text=f"the picture is larger than {UPLOAD_BYTES >> 20} MiB; send a smaller copy"
    )
    if (request.content_length or 0) > UPLOAD_BYTES:
        raise too_large
    parts, size = [], 0
    async with _in_time("the picture"):
        async for part in request.content.iter_any():
            parts.append(part)
            size += len(part)
            if size > UPLOAD_BYTES:
                raise too_large
    if not size:
        raise web.HTTPBadRequest(text="the picture is empty")
    return b"".join(parts)
