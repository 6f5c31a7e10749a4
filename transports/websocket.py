"""A voice over a WebSocket: what a speech synthesiser or a voice agent sends.

    GET /speak?encoding=s16le&rate=24000&channels=1

Binary messages are raw samples of that form, lower byte first, channels interleaved in the order of WAV and FLAC (RFC
9639, section 9.1.3: left, right, centre, LFE, back left, back right, side left, side right for 8), cut anywhere: what
is left of a sample goes before the next message. WAV is taken as well, its header cut anywhere or without a length,
before each utterance or once: what the header says of encoding (whole numbers of 8 to 32 bits, floats, A-law, mu-law),
rate and channels holds in place of what was asked for and of what `ready` said, until the next header, `end`, or
interrupt of this sender. A message is 8 MiB at the most (`MESSAGE_BYTES`); a larger one closes with 1009. Messages may
come faster than they are spoken. Text messages are JSON objects:

    {"type": "interrupt"}   stop speaking and drop all that was sent before
    {"type": "end"}         the utterance is complete; played follows when it is spoken

and so are the answers:

    {"type": "ready", "encoding": "s16le", "rate": 24000, "channels": 1}
    {"type": "started"}                       the first sound of an utterance is out
    {"type": "played", "seconds": 2.5}        all of it is; 0 if somebody else was speaking and this went unheard
    {"type": "interrupted", "seconds": 1.25, "by": "sender"}
                                              it was cut off after so long, by this sender or by somebody else ("other")

An utterance begins with the first sample after the one before, and is over with `end`, with an interrupt of this
sender, or when somebody else interrupts: what comes after that is a new one, so a sender that wants what was under way
meanwhile to be dropped, too, sends an interrupt. An `end` with no sample before it is an utterance of no sound.

- Each utterance gets exactly one end message, played or interrupted, in the order in which they were sent. They are
  spoken one after another.
- Each interrupt gets exactly one answer, after all that was sent before it is answered: the `interrupted` of the last
  utterance that it cut off. Several that wait have one each; if none does, the answer is `interrupted` after 0 seconds.
- An interrupt of somebody else is told only if there is an utterance that it cuts off.

Nothing is lost where a sender is too fast: nothing more is read, and its TCP connection waits, while `BACKLOG_BYTES` or
`BACKLOG_UTTERANCES` wait beside what the head itself holds, while it has not read `BACKLOG_ANSWERS` answers, and as
long as it sends more than `MESSAGES_PER_SECOND`. A message may hold up to `MESSAGE_BYTES`.

Who is heard first has the floor, and others go unheard. It is free for others who speak as soon as all complete
utterances are spoken, and for the house `PAUSE_SECONDS` later, or earlier if the sender closes. In the middle of an
utterance a sender keeps it over a pause of `PAUSE_SECONDS`, counted from when all that came is spoken; after that its
next sound takes it again, if it is free.

A sender that breaks these rules is closed with 1003 (a message that is neither, such as MP3, Ogg, WebM, FLAC or base64)
or 1008 (a form there is not, or a name in the query that is none of the three nor `token`) and a reason (RFC 6455,
section 7.4); an error of ours closes with 1011. One that closes normally, with 1000 or without a code, is spoken to its
end. What one sent that goes in any other way, such as by a reset connection, is dropped at once.
"""

import asyncio
import contextlib
import json
import logging
import select
import socket as sockets
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from transports.media import TransportError
from transports.queries import unknown_name
from transports.sound_formats import CHANNELS, ENCODINGS, RATES, PcmForm, Sound, SoundReader, sound_as_text

#: What may wait here: bytes as sent, some minutes of 16 kHz speech; utterances; answers that the sender has not read.
BACKLOG_BYTES, BACKLOG_UTTERANCES, BACKLOG_ANSWERS = 8 << 20, 256, 64
#: The largest message; a larger one closes the connection with 1009.
MESSAGE_BYTES = BACKLOG_BYTES
#: How much of a message is looked at in one turn of the event loop, and the longest text.
READ_BYTES, TEXT_CHARACTERS = 1 << 16, 1 << 16
#: Messages of any kind that are read of a sender in a second, and how many may come at once: of 20 ms each, that is
#: twenty times the speed of speech. More would take their share of the event loop's core from the head.
MESSAGES_PER_SECOND, MESSAGES_AT_ONCE = 1000.0, 500
#: What a sender can say of its form.
FORM_NAMES = ("encoding", "rate", "channels")
#: The head is fed this much at a time, and looked at this often.
CHUNK_SECONDS = 0.05
POLL_SECONDS = 0.02
#: What a resampler holds back of what was delivered seems to be out, and is not: less than this.
HELD_SECONDS = 0.02
#: How long a sender keeps the floor with nothing left to speak.
PAUSE_SECONDS = 2.0
#: A ping this often keeps proxies from closing a silent connection. Nobody waits for the pong: while nothing is read,
#: it would not be seen. That a peer is gone is for TCP to find out, in so long at the most, or for an answer that it
#: does not take.
PING_SECONDS = 20.0
GONE_SECONDS = 30.0
CLOSE_SECONDS = 1.0
#: Close codes of a sender that has said all it had to say; 0 stands for none, as browsers close (RFC 6455, 7.1.5).
_NORMAL = (WSCloseCode.OK, 0)

_log = logging.getLogger(__name__)


class Voice(Protocol):
    """What a voice goes to. In the event loop."""

    def deliver(self, samples: np.ndarray, rate: int) -> bool:
        """As transports.media.Deliver."""

    def finish(self) -> bool:
        """No more comes for now: what a resampler holds back is spoken. False as long as there is no room for it."""

    def cede(self) -> None:
        """All that was to be said is: another may have the floor, and this one again with its next sound."""

    def leave(self) -> None:
        """Nothing more comes for now, and the floor is free."""

    def abandon(self) -> None:
        """As leave, and what was delivered and is not out yet is not spoken."""

    @property
    def heard(self) -> bool:
        """Whether what is delivered now is spoken; not while somebody else speaks, nor before the first sound."""

    @property
    def unspoken(self) -> float:
        """Seconds until the last of what was delivered is out; 0 if it is."""


def parse_form(query: Mapping[str, str]) -> PcmForm:
    """The form that a request asks for. Raises TransportError, with a line short enough for a close frame."""
    if wrong := unknown_name(query, FORM_NAMES):
        raise TransportError(wrong)
    encoding = query.get("encoding", PcmForm.encoding)
    if encoding not in ENCODINGS:
        raise TransportError(f"encoding: give {' or '.join(ENCODINGS)}")
    limits = {"rate": RATES, "channels": CHANNELS}
    numbers = {}
    for name, (low, high) in limits.items():
        text = query.get(name, str(getattr(PcmForm, name)))
        number = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else -1
        if not low <= number <= high:
            raise TransportError(f"{name}: give a whole number from {low} to {high}")
        numbers[name] = number
    return PcmForm(encoding, **numbers)


def slices(sound: Sound) -> Iterator[Sound]:
    """Pieces that always find room in time, however long a message was."""
    step = max(1, round(sound.rate * CHUNK_SECONDS))
    for start in range(0, len(sound.samples), step):
        yield Sound(sound.samples[start : start + step], sound.rate)


@dataclass
class Utterance:
    """See the module. pieces: what is not delivered yet; complete: nothing more is added to it; ended: all of it is
    delivered. In seconds, delivered: given to the head and heard; spoken: out, as far as was seen."""

    delivered: float = 0.0
    spoken: float = 0.0
    started: bool = False
    complete: bool = False
    ended: bool = False
    pieces: deque[Sound] = field(default_factory=deque)

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


@dataclass
class Speech:
    """What a sender said and is not out yet, and what it is still to be told: the rules of the module, without a clock
    or a connection. utterances: those without an end message, the first of which is being spoken; size: bytes of their
    pieces; answers: to be sent."""

    utterances: deque[Utterance] = field(default_factory=deque)
    size: int = 0
    answers: deque[dict[str, Any]] = field(default_factory=deque)

    @property
    def waits(self) -> bool:
        """Whether there is something to deliver."""
        return bool(self.utterances) and bool(self.utterances[0].pieces or self._ends)

    @property
    def _ends(self) -> bool:
        first = self.utterances[0]
        return first.complete and not first.ended

    @property
    def seconds(self) -> float:
        """Of sound that is not delivered yet."""
        return sum(piece.seconds for utterance in self.utterances for piece in utterance.pieces)

    def put(self, sound: Sound) -> None:
        """Add sound to the utterance that is open, or begin one."""
        if not len(sound.samples):
            return
        if not self.utterances or self.utterances[-1].complete:
            self.utterances.append(Utterance())
        pieces = self.utterances[-1].pieces
        self.size += sound.samples.nbytes
        if pieces and sound.follows(pieces[-1]):  # however short messages are, pieces are not
            sound = Sound(np.concatenate([pieces.pop().samples, sound.samples]), sound.rate)
        pieces.extend(slices(sound))

    def end(self) -> None:
        """The utterance that is open is complete; if there is none, one of no sound."""
        if not self.utterances or self.utterances[-1].complete:
            self.utterances.append(Utterance())
        self.utterances[-1].complete = True

    def cut(self, unspoken: float, own: bool) -> None:
        """Somebody interrupts. unspoken: seconds of what was delivered; own: whether it is the sender."""
        self.look(unspoken)
        told = [utterance.spoken for utterance in self.utterances] or ([0.0] if own else [])
        by = "sender" if own else "other"
        self.answers.extend({"type": "interrupted", "seconds": round(seconds, 3), "by": by} for seconds in told)
        self.utterances.clear()
        self.size = 0

    def deliver(self, voice: Voice) -> bool:
        """The next piece, or the end, of the first utterance. False if there is none, or no room for it."""
        if not self.waits:
            return False
        first = self.utterances[0]
        if not first.pieces:
            first.ended = voice.finish()
            return first.ended
        sound = first.pieces[0]
        if not voice.deliver(sound.samples, sound.rate):
            return False
        first.pieces.popleft()
        self.size -= sound.samples.nbytes
        if voice.heard:
            first.delivered += sound.seconds
        return True

    def look(self, unspoken: float) -> None:
        """See what became of the first utterance. unspoken: seconds of what was delivered."""
        if self.utterances:
            self.answers.extend(self.utterances[0].look(unspoken))
            if self.utterances[0].ended and unspoken <= 0:
                self.utterances.popleft()


@dataclass
class RateLimit:
    """How often something may be done: `rate` times a second, `burst` times at once."""

    rate: float
    burst: float
    spent: float = 0.0
    then: float = 0.0

    def spend(self, now: float) -> float:
        """Do it once more. now: seconds. Returns the seconds to wait until it may be done again."""
        self.spent = max(0.0, self.spent - (now - self.then) * self.rate) + 1
        self.then = now
        return max(0.0, (self.spent - self.burst) / self.rate)


Peer = Literal["there", "closing", "gone"]


def peer_of(transport: asyncio.BaseTransport | None) -> Peer:
    """What a peer's system says of it while nothing is read: closing: nothing comes after what is here; gone: it has
    reset the connection. "there" where the system cannot tell (Windows)."""
    raw = None if transport is None or transport.is_closing() else transport.get_extra_info("socket")
    if raw is None or raw.fileno() < 0:
        return "closing"
    if not hasattr(select, "poll"):
        return "there"
    poll, half_closed = select.poll(), getattr(select, "POLLRDHUP", 0)
    poll.register(raw.fileno(), half_closed)
    events = dict(poll.poll(0)).get(raw.fileno(), 0)
    if events & (select.POLLERR | select.POLLHUP):
        return "gone"
    return "closing" if events & half_closed else "there"


def _notice_when_gone(request: web.Request) -> None:
    """Bytes that are not acknowledged, such as those of a ping, end the connection (RFC 5482)."""
    raw = request.transport.get_extra_info("socket") if request.transport else None
    if raw is not None and hasattr(sockets, "TCP_USER_TIMEOUT"):
        with contextlib.suppress(OSError):
            raw.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_USER_TIMEOUT, int(1000 * GONE_SECONDS))


class Socket(Protocol):
    """What a sender needs of an aiohttp.web.WebSocketResponse."""

    async def receive(self) -> WSMessage: ...
    async def send_str(self, data: str) -> None: ...
    async def ping(self) -> None: ...
    async def pong(self, message: bytes) -> None: ...


@dataclass(eq=False)
class Sender:
    """One connection: it is read, so that an interrupt is seen at once, while what it said is delivered as there is
    room for it and what there is to tell is sent. on_interrupt: stops the head, and calls interrupt of every sender.
    peer: how its connection is; closed: whether the head is about to end."""

    socket: Socket
    voice: Voice
    form: PcmForm
    on_interrupt: Callable[[], None]
    peer: Callable[[], Peer] = lambda: "there"
    closed: Callable[[], bool] = lambda: False
    speech: Speech = field(default_factory=Speech)
    _reader: SoundReader = field(init=False)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _answered: asyncio.Event = field(default_factory=asyncio.Event)
    _silent: float | None = None  # since when all that came is out

    def __post_init__(self) -> None:
        self._reader = SoundReader(self.form)

    def interrupt(self, own: bool = False) -> None:
        """What came so far is stale."""
        self.speech.cut(self.voice.unspoken, own)
        self._changed.set()
        self._answered.set()

    async def serve(self) -> bool:
        """Until the connection ends and, if it was closed normally, all is spoken; whether it was. Raises an
        ExceptionGroup of TransportError, for what the sender did wrong, of ConnectionError and of what went wrong."""
        async with asyncio.TaskGroup() as group:
            beside = [group.create_task(each) for each in (self._feed(), self._answer(), self._ping())]
            well = await self._read()
            if well:  # nobody else speaks before
                self._put(self._reader.end())
                if self.speech.utterances and not self.speech.utterances[-1].complete:
                    self.speech.end()
                self._changed.set()
                while self.speech.utterances and not self.closed():
                    await asyncio.sleep(POLL_SECONDS)
            for task in beside:
                task.cancel()
        return well

    async def _feed(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            moved = self.speech.deliver(self.voice)
            self.speech.look(self.voice.unspoken)
            if self.speech.answers:
                self._answered.set()
            if moved:
                await asyncio.sleep(0)
                continue
            self._rest(clock())
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS if self.speech.waits or self.voice.heard else None):
                    await self._changed.wait()

    def _rest(self, now: float) -> None:
        """Give up the floor when all that came is spoken."""
        if not self.voice.heard or self.speech.waits or self.voice.unspoken > 0:
            self._silent = None
        elif self._silent is None:
            self._silent = now
            if not self.speech.utterances:
                self.voice.cede()
            elif self.voice.finish() and self.voice.unspoken > 0:  # in a pause what a resampler held back comes, too
                self._silent = None
        elif now - self._silent >= PAUSE_SECONDS:
            self.voice.leave()

    async def _answer(self) -> None:
        while True:
            await self._answered.wait()
            self._answered.clear()
            while self.speech.answers:
                await self._send(self.socket.send_str, json.dumps(self.speech.answers[0]))
                self.speech.answers.popleft()

    async def _ping(self) -> None:
        while True:
            await asyncio.sleep(PING_SECONDS)
            await self._send(self.socket.ping)

    async def _send(self, send: Callable[..., Awaitable[None]], *message: Any) -> None:
        """To one that has closed nothing is sent: it would answer with a reset, and what it sent before be lost. Raises
        ConnectionError for one that takes nothing any more."""
        if self.peer() != "there":
            return
        try:
            async with asyncio.timeout(GONE_SECONDS):
                with contextlib.suppress(ConnectionError):
                    await send(*message)
        except TimeoutError:
            raise ConnectionAbortedError("the sender does not read its answers") from None

    async def _read(self) -> bool:
        """Until it closes; whether normally."""
        clock = asyncio.get_running_loop().time
        limit = RateLimit(MESSAGES_PER_SECOND, MESSAGES_AT_ONCE)
        while True:
            message = await self.socket.receive()
            if message.type is WSMsgType.BINARY:
                for at in range(0, len(message.data), READ_BYTES):
                    self._put(self._reader.push(message.data[at : at + READ_BYTES]))
                    await asyncio.sleep(0)
            elif message.type is WSMsgType.TEXT:
                self._obey(message.data)
            elif message.type is WSMsgType.PING:
                await self._send(self.socket.pong, message.data)
            elif message.type is WSMsgType.CLOSE:
                return message.data in _NORMAL
            elif message.type is not WSMsgType.PONG:
                return False
            wait = limit.spend(clock())
            await asyncio.sleep(wait)  # even of 0: receive does not let go while there is more
            if wait and self.peer() == "gone":
                return False
            while self._full():
                await asyncio.sleep(POLL_SECONDS)
                if self.peer() == "gone":
                    return False

    def _put(self, sounds: Iterable[Sound]) -> None:
        for sound in sounds:
            self.speech.put(sound)
        self._changed.set()

    def _full(self) -> bool:
        """Whether nothing more is to be read. Of one that closes all bytes are here: they are read to see how."""
        speech = self.speech
        if len(speech.utterances) > BACKLOG_UTTERANCES or len(speech.answers) > BACKLOG_ANSWERS:
            return True
        return speech.size > BACKLOG_BYTES and self.peer() != "closing"

    def _obey(self, text: str) -> None:
        if len(text) > TEXT_CHARACTERS:
            raise TransportError("a text message is too long: send sound as binary messages")
        try:
            kind = json.loads(text)["type"]
        except (ValueError, TypeError, KeyError, IndexError, RecursionError):
            kind = None
        if kind == "end":
            self._put(self._reader.end())
            self.speech.end()
        elif kind == "interrupt":
            self._reader.drop()
            self.interrupt(own=True)
            self.on_interrupt()
        elif sound_as_text(text):
            raise TransportError("this is sound as text: decode it, and send the samples as binary messages")
        else:
            raise TransportError('give binary samples, {"type": "interrupt"} or {"type": "end"}')


class SpeechSockets:
    """All that speak over a WebSocket."""

    def __init__(self, listen: Callable[[], Voice], interrupt: Callable[[], None], limit: int) -> None:
        """listen: makes what one connection's voice goes to. interrupt: stops the head, and calls ours. limit:
        connections at once."""
        self._listen, self._interrupt, self._limit = listen, interrupt, limit
        self._senders: set[Sender] = set()
        self._closed = False

    @property
    def count(self) -> int:
        return len(self._senders)

    @property
    def backlog(self) -> float:
        """Seconds of voice that wait here, of all connections."""
        return sum(sender.speech.seconds for sender in self._senders)

    def interrupt(self) -> None:
        """Somebody interrupts: what waits here is dropped, and each sender told."""
        for sender in self._senders:
            sender.interrupt()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """The handler of GET /speak."""
        # without compression: a small message stays small. Pings are answered where messages are counted.
        socket = web.WebSocketResponse(
            max_msg_size=MESSAGE_BYTES + 1, compress=False, timeout=CLOSE_SECONDS, autoping=False
        )
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
        transport = request.transport
        sender = Sender(socket, self._listen(), form, self._interrupt, lambda: peer_of(transport), lambda: self._closed)
        self._senders.add(sender)
        _log.info("somebody speaks over a WebSocket", extra={"rate": form.rate, "channels": form.channels})
        well = False
        try:
            await socket.send_json({"type": "ready"} | vars(form))
            well = await self._serve(sender, socket)
        finally:
            self._senders.discard(sender)
            (sender.voice.leave if well else sender.voice.abandon)()
            _log.info("the WebSocket is closed", extra={"code": socket.close_code})
        return socket

    async def _serve(self, sender: Sender, socket: web.WebSocketResponse) -> bool:
        """Whether what it said was spoken to its end."""
        well = False
        try:
            well = await sender.serve()
        except* TransportError as wrong:
            reason = str(wrong.exceptions[0]).encode()
            await socket.close(code=WSCloseCode.UNSUPPORTED_DATA, message=reason)
        except* ConnectionError:
            pass  # gone
        except* Exception as group:
            error = group.exceptions[0]
            _log.error("a voice over a WebSocket failed: %s: %s", type(error).__name__, error)
            await socket.close(code=WSCloseCode.INTERNAL_ERROR, message=b"an error of ifmdm; its log has more")
        return well

    async def aclose(self) -> None:
        """Tell all that the head goes away (1001), and close."""
        self._closed = True
        closing = [
            sender.socket.close(code=WSCloseCode.GOING_AWAY, message=b"the head stops") for sender in self._senders
        ]
        await asyncio.gather(*closing, return_exceptions=True)
