"""A voice over a WebSocket: what a speech synthesiser or a voice agent sends.

    GET /speak?encoding=s16le&rate=24000&channels=1

Binary messages are raw samples of that form, lower byte first, channels interleaved, cut anywhere: what is left of a
sample goes before the next message. They may come faster than they are spoken; when `BACKLOG_BYTES` or
`BACKLOG_PIECES` wait beside what the head itself holds, nothing more is read until there is room, and the sender's TCP
connection waits. Text messages are JSON objects:

    {"type": "interrupt"}   stop speaking and drop all that was sent before
    {"type": "end"}         the utterance is complete; played follows when it is spoken

and so are the answers:

    {"type": "ready", "encoding": "s16le", "rate": 24000, "channels": 1}
    {"type": "started"}                       the first sound of an utterance is out
    {"type": "played", "seconds": 2.5}        all of it is; 0 if somebody else was speaking and this went unheard
    {"type": "interrupted", "seconds": 1.25}  it was cut off, by this sender or somebody else, after so long

A sender that breaks these rules is closed with 1003 (a message that is neither) or 1008 (a form there is not) and a
reason (RFC 6455, section 7.4). One that closes normally is spoken to its end.
"""

import asyncio
import contextlib
import json
import logging
import socket as sockets
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from aiohttp import WSCloseCode, WSMsgType, web

from transports.media import TransportError
from transports.pcm import ENCODINGS

#: What may wait here, in bytes as sent: some minutes of 16 kHz speech; and in pieces, of which an end is one.
BACKLOG_BYTES, BACKLOG_PIECES = 8 << 20, 1 << 15
#: The largest message; a larger one closes the connection with 1009.
MESSAGE_BYTES = 1 << 20
#: The head is fed this much at a time, and looked at this often.
CHUNK_SECONDS = 0.05
POLL_SECONDS = 0.02
#: What a resampler holds back of what was delivered seems to be out, and is not: less than this.
HELD_SECONDS = 0.02
#: A ping this often keeps proxies from closing a silent connection. Nobody waits for the pong: while nothing is read,
#: it would not be seen. That a peer is gone is for TCP to find out, in so long at the most.
PING_SECONDS = 20.0
GONE_SECONDS = 30.0
CLOSE_SECONDS = 1.0

_log = logging.getLogger(__name__)


class Voice(Protocol):
    """What a voice goes to. In the event loop."""

    def deliver(self, samples: np.ndarray, rate: int) -> bool:
        """As transports.media.Deliver."""

    def finish(self) -> None:
        """An utterance is complete: what a resampler holds back is spoken too."""

    def drop(self) -> None:
        """What a resampler holds back is not spoken."""

    def leave(self) -> None:
        """Nothing more will come."""

    @property
    def heard(self) -> bool:
        """Whether what is delivered now is spoken; not while somebody else speaks, nor before the first sound."""

    @property
    def unspoken(self) -> float:
        """Seconds until the last of what was delivered is out; 0 if it is."""


@dataclass(frozen=True)
class PcmForm:
    """What a sender's bytes mean. encoding: s16le or f32le; rate: Hz; channels: interleaved."""

    encoding: str = "s16le"
    rate: int = 16_000
    channels: int = 1

    @property
    def frame(self) -> int:
        """Bytes of one moment."""
        return ENCODINGS[self.encoding].itemsize * self.channels


def parse_form(query: Mapping[str, str]) -> PcmForm:
    """The form that a request asks for. Raises TransportError, with a line short enough for a close frame."""
    encoding = query.get("encoding", PcmForm.encoding)
    if encoding not in ENCODINGS:
        raise TransportError(f"encoding: give {' or '.join(ENCODINGS)}")
    limits = {"rate": (4_000, 768_000), "channels": (1, 8)}
    numbers = {}
    for name, (low, high) in limits.items():
        text = query.get(name, str(getattr(PcmForm, name)))
        number = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else -1
        if not low <= number <= high:
            raise TransportError(f"{name}: give a whole number from {low} to {high}")
        numbers[name] = number
    return PcmForm(encoding, **numbers)


@dataclass
class Splitter:
    """Bytes cut anywhere -> whole samples. rest: what is left of a moment, less than PcmForm.frame bytes."""

    form: PcmForm
    rest: bytes = b""

    def push(self, data: bytes) -> np.ndarray:
        """(n, channels) int16 or float32."""
        data = self.rest + data
        whole = len(data) // self.form.frame * self.form.frame
        self.rest = data[whole:]
        kind = ENCODINGS[self.form.encoding]
        native = np.float32 if kind.kind == "f" else np.int16
        return np.frombuffer(data[:whole], kind).reshape(-1, self.form.channels).astype(native)


def slices(samples: np.ndarray, rate: int) -> Iterator[np.ndarray]:
    """Pieces that always find room in time, however long a message was."""
    step = max(1, round(rate * CHUNK_SECONDS))
    for start in range(0, len(samples), step):
        yield samples[start : start + step]


@dataclass
class Utterance:
    """Between two ends or interrupts, in seconds. delivered: given to the head; spoken: out, as far as was seen."""

    delivered: float = 0.0
    spoken: float = 0.0
    started: bool = False
    ended: bool = False

    def look(self, unspoken: float) -> list[dict[str, Any]]:
        """What there is to tell of it, `unspoken` seconds of it being left."""
        self.spoken = max(self.spoken, self.delivered - unspoken)
        told: list[dict[str, Any]] = []
        played = self.ended and unspoken <= 0
        if self.spoken > (0 if played else HELD_SECONDS) and not self.started:
            self.started = True
            told.append({"type": "started"})
        if played:
            told.append({"type": "played", "seconds": round(self.spoken, 3)})
        return told


def _notice_when_gone(request: web.Request) -> None:
    """Bytes that are not acknowledged, such as those of a ping, end the connection (RFC 5482)."""
    raw = request.transport.get_extra_info("socket") if request.transport else None
    if raw is not None and hasattr(sockets, "TCP_USER_TIMEOUT"):
        with contextlib.suppress(OSError):
            raw.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_USER_TIMEOUT, int(1000 * GONE_SECONDS))


@dataclass(eq=False)
class _Sender:
    """One connection: a reader, which must see an interrupt at once, and a feeder, which waits for room."""

    socket: web.WebSocketResponse
    voice: Voice
    form: PcmForm
    on_interrupt: Callable[[], None]
    waiting: deque[np.ndarray | None] = field(default_factory=deque)  # None: the utterance ends
    size: int = 0
    utterance: Utterance = field(default_factory=Utterance)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    told: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=64))

    def put(self, samples: np.ndarray | None) -> None:
        if samples is None:
            self.waiting.append(None)
        else:
            self.size += samples.nbytes
            if self.waiting and self.waiting[-1] is not None:  # however short messages are, pieces are not
                samples = np.concatenate([self.waiting.pop(), samples])
            self.waiting.extend(slices(samples, self.form.rate))
        self.changed.set()

    def interrupt(self) -> None:
        """What came so far is stale."""
        self.utterance.look(self.voice.unspoken)
        open_ = self.utterance.delivered > 0 or self.waiting
        self.waiting.clear()
        self.size = 0
        self.voice.drop()
        if open_:
            self.told.append({"type": "interrupted", "seconds": round(self.utterance.spoken, 3)})
        self.utterance = Utterance()
        self.changed.set()

    async def feed(self) -> None:
        """For as long as it is connected: what waits goes to the head, one utterance after another."""
        while True:
            while not self.waiting or self.utterance.ended:
                self.changed.clear()
                if not self.waiting or self.utterance.ended:
                    await self.changed.wait()
            samples = self.waiting[0]
            if samples is None:
                self.waiting.popleft()
                self.voice.finish()
                self.utterance.ended = True
            elif self.voice.deliver(samples, self.form.rate):
                self.waiting.popleft()
                self.size -= samples.nbytes
                if self.voice.heard:
                    self.utterance.delivered += len(samples) / self.form.rate
                await asyncio.sleep(0)
            else:
                await asyncio.sleep(POLL_SECONDS)

    async def report(self) -> None:
        """Tell what becomes of it."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            self.told.extend(self.utterance.look(self.voice.unspoken))
            while self.told:
                message = self.told.popleft()
                if message["type"] == "played":
                    self.utterance = Utterance()
                    self.changed.set()
                with contextlib.suppress(ConnectionError):  # gone, and spoken to its end
                    await self.socket.send_str(json.dumps(message))

    async def ping(self) -> None:
        while True:
            await asyncio.sleep(PING_SECONDS)
            with contextlib.suppress(ConnectionError):
                await self.socket.ping()

    async def read(self) -> int:
        """Until it closes; the code it closed with, or that it is to be closed with."""
        splitter = Splitter(self.form)
        async for message in self.socket:
            if message.type is WSMsgType.BINARY:
                self.put(splitter.push(message.data))
            elif message.type is WSMsgType.TEXT:
                self._obey(message.data)
            while self.size > BACKLOG_BYTES or len(self.waiting) > BACKLOG_PIECES:
                await asyncio.sleep(POLL_SECONDS)
        return self.socket.close_code or WSCloseCode.ABNORMAL_CLOSURE

    def _obey(self, text: str) -> None:
        try:
            kind = json.loads(text)["type"]
        except (ValueError, TypeError, KeyError, IndexError, RecursionError):
            kind = None
        if kind == "end":
            self.put(None)
        elif kind == "interrupt":
            self.on_interrupt()
        else:
            raise TransportError('give binary samples, {"type": "interrupt"} or {"type": "end"}')


class SpeechSockets:
    """All that speak over a WebSocket."""

    def __init__(self, listen: Callable[[], Voice], interrupt: Callable[[], None], limit: int) -> None:
        """listen: makes what one connection's voice goes to. interrupt: stops the head, and calls ours. limit:
        connections at once."""
        self._listen, self._interrupt, self._limit = listen, interrupt, limit
        self._senders: set[_Sender] = set()
        self._closed = False

    @property
    def count(self) -> int:
        return len(self._senders)

    @property
    def backlog(self) -> float:
        """Seconds of voice that wait here, of all connections."""
        return sum(sender.size / sender.form.frame / sender.form.rate for sender in self._senders)

    def interrupt(self) -> None:
        """Somebody interrupts: what waits here is dropped, and each sender told."""
        for sender in self._senders:
            sender.interrupt()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """The handler of GET /speak."""
        # without compression: a small message stays small
        socket = web.WebSocketResponse(max_msg_size=MESSAGE_BYTES, compress=False, timeout=CLOSE_SECONDS)
        if not socket.can_prepare(request):
            raise web.HTTPUpgradeRequired(
                text="this is for a WebSocket: connect to it as ws://HOST/speak", headers={"Upgrade": "websocket"}
            )
        if self.count >= self._limit:
            raise web.HTTPServiceUnavailable(
                text=f"{self.count} speak already, which is the limit; try again later", headers={"Retry-After": "5"}
            )
        await socket.prepare(request)
        _notice_when_gone(request)
        try:
            form = parse_form(request.query)
        except TransportError as error:
            await socket.close(code=WSCloseCode.POLICY_VIOLATION, message=str(error).encode())
            return socket
        sender = _Sender(socket, self._listen(), form, self._interrupt)
        self._senders.add(sender)
        _log.info("somebody speaks over a WebSocket", extra={"rate": form.rate, "channels": form.channels})
        try:
            await socket.send_json({"type": "ready"} | vars(form))
            await self._serve(sender)
        finally:
            self._senders.discard(sender)
            sender.voice.leave()
            _log.info("the WebSocket is closed", extra={"code": socket.close_code})
        return socket

    async def _serve(self, sender: _Sender) -> None:
        tasks = [asyncio.ensure_future(each) for each in (sender.feed(), sender.report(), sender.ping())]
        try:
            if await sender.read() == WSCloseCode.OK:  # what it sent is still spoken, and nobody else speaks before
                while sender.waiting and not self._closed:
                    await asyncio.sleep(POLL_SECONDS)
                sender.voice.finish()
                while sender.voice.unspoken > 0 and not self._closed:
                    await asyncio.sleep(POLL_SECONDS)
        except TransportError as error:
            await sender.socket.close(code=WSCloseCode.UNSUPPORTED_DATA, message=str(error).encode())
        except ConnectionError:
            pass  # gone
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def aclose(self) -> None:
        """Tell all that the head goes away (1001), and close."""
        self._closed = True
        closing = [
            sender.socket.close(code=WSCloseCode.GOING_AWAY, message=b"the head stops") for sender in self._senders
        ]
        await asyncio.gather(*closing, return_exceptions=True)
