"""What one sender says over a WebSocket and what it is told: any order of sound, ends and interrupts."""

import asyncio
import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from aiohttp import WSMessage, WSMsgType
from hypothesis import given, settings
from hypothesis import strategies as st
from live_fakes import VirtualTime, in_virtual_time

from transports import websocket
from transports.media import TransportError
from transports.websocket import PAUSE_SECONDS, PcmForm, Sender

RATE = 16_000
#: From a sample being delivered after a pause to its being out, and what the head holds beside, in seconds.
DELAY, ROOM = 0.3, 1.0
CLOSED = WSMessage(WSMsgType.CLOSED, None, None)


@dataclass
class Mouth:
    """A voice that is spoken in the time of the loop. speaks: whether it has the floor, or may take it."""

    loop: VirtualTime
    speaks: bool = True
    heard: bool = False
    ceded: bool = False
    until: float = 0.0

    def deliver(self, samples, rate):
        if not self.speaks:
            return True
        self.heard, self.ceded = True, False
        if self.unspoken > ROOM:
            return False
        self.until = max(self.until, self.loop.time() + DELAY) + len(samples) / rate
        return True

    def finish(self):
        return self.unspoken <= ROOM

    def cede(self):
        self.ceded = True

    def leave(self):
        self.heard = self.ceded = False

    def abandon(self):
        self.leave()

    @property
    def unspoken(self):
        # a sum of pieces is no exact number of seconds, and a head counts in samples
        return max(0.0, round(self.until - self.loop.time(), 6)) if self.heard else 0.0

    def stop(self):
        self.until = 0.0


class Line:
    """A connection: what was sent to the sender, and what the sender is to read."""

    def __init__(self, slow: bool = False):
        self.sent, self.coming, self.slow = [], asyncio.Queue(), slow
        self.reads = asyncio.Event()

    async def receive(self) -> WSMessage:
        return await self.coming.get()

    async def send_str(self, data):
        if self.slow:
            await self.reads.wait()
        self.sent.append(json.loads(data))

    async def ping(self):
        pass

    async def pong(self, message):
        self.sent.append({"type": "pong"})

    def sound(self, seconds: float) -> None:
        samples = np.full(round(seconds * RATE), 1000, "<i2")
        self.coming.put_nowait(WSMessage(WSMsgType.BINARY, samples.tobytes(), None))

    def tell(self, kind: str) -> None:
        self.coming.put_nowait(WSMessage(WSMsgType.TEXT, json.dumps({"type": kind}), None))

    def close(self, code: int = 1000) -> None:
        self.coming.put_nowait(WSMessage(WSMsgType.CLOSE, code, None))

    def ends(self) -> Iterator[tuple]:
        for message in self.sent:
            if message["type"] in ("played", "interrupted"):
                yield tuple(message.values())


def speaker(loop: VirtualTime, slow: bool = False, **more) -> tuple[Sender, Mouth, Line]:
    mouth, line = Mouth(loop), Line(slow)
    sender = Sender(line, mouth, PcmForm(), lambda: None, **more)

    def interrupt():  # as Show.interrupt: all senders are told, then the head stops
        sender.interrupt()
        mouth.stop()

    sender.on_interrupt = interrupt
    return sender, mouth, line


async def settle() -> None:
    """Let everything happen that takes no time."""
    for _ in range(200):
        await asyncio.sleep(0)


def steps(*taken):
    """What a sender is told after steps: a number is a wait, "sound" half a second of it."""

    async def play(loop):
        sender, _, line = speaker(loop)
        task = asyncio.ensure_future(sender.serve())
        for step in taken:
            if isinstance(step, float):
                await asyncio.sleep(step)
            elif step == "sound":
                line.sound(0.5)
            elif step == "other":
                await settle()
                sender.on_interrupt()
            elif step == "close":
                line.close()
            else:
                line.tell(step)
        await settle()
        told = list(line.ends())
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return told

    return in_virtual_time(play)


PLAYED, NONE = ("played", 0.5), ("played", 0.0)


def cut(seconds: float = 0.0, by: str = "sender") -> tuple:
    return "interrupted", seconds, by


@pytest.mark.parametrize(
    ("taken", "told"),
    [
        (["interrupt"], [cut()]),
        (["interrupt"] * 40, [cut()] * 40),
        (["sound", "interrupt"] * 40, [cut()] * 40),  # right behind the sound, before the head has it
        (["sound", 0.02, "interrupt"], [cut()]),  # the head has it, and none is out
        (["sound", DELAY + 0.2, "interrupt"], [cut(0.2)]),
        (["sound", "end", DELAY + 0.2, "interrupt"], [cut(0.2)]),  # between end and played
        (["sound", "end", 2.0, "interrupt"], [PLAYED, cut()]),
        (["end"], [NONE]),
        (["end", "end"], [NONE, NONE]),
        (["sound", "end", "end", 2.0], [PLAYED, NONE]),
        (["sound", "end", "sound", "end", "interrupt"], [cut(), cut()]),
        (["sound", "end", "sound", "end", "sound", DELAY + 0.3, "interrupt"], [cut(0.3), cut(), cut()]),
        (["sound", "other", 0.1], [cut(by="other")]),
        (["other", 0.1], []),
        (["sound", "other", "interrupt"], [cut(by="other"), cut()]),
        (["sound", "end", "sound", DELAY + 0.2, "other"], [cut(0.2, "other"), cut(by="other")]),
        (["sound", "other", "sound", "end", 2.0], [cut(by="other"), PLAYED]),
        (["sound", "interrupt", "sound", "end", 2.0, "interrupt"], [cut(), PLAYED, cut()]),
        (["sound", "sound", "close", 3.0], [("played", 1.0)]),
    ],
)
def test_each_utterance_has_one_end_and_each_interrupt_one_answer_in_order(taken, told):
    assert steps(*taken) == [(*each[:1], pytest.approx(each[1], abs=0.03), *each[2:]) for each in told]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("sound"), st.floats(0.001, 3)),
            st.tuples(st.just("wait"), st.floats(0, 4)),
            st.sampled_from([("end", 0), ("interrupt", 0), ("other", 0), ("deaf", 0), ("hears", 0)]),
        ),
        max_size=25,
    )
)
@settings(max_examples=60)
def test_any_order_of_sound_ends_and_interrupts_is_answered_as_the_protocol_says(taken):
    async def play(loop):
        sender, mouth, line = speaker(loop)
        task = asyncio.ensure_future(sender.serve())
        open_: deque[list] = deque()  # of each utterance without an end message: seconds, whether it is complete
        seen = 0

        def heed() -> None:
            """What was told since: what is played, is so in order, complete, and for no longer than it is."""
            nonlocal seen
            fresh, seen = list(line.ends())[seen:], len(list(line.ends()))
            for kind, seconds, *_ in fresh:
                length, complete = open_.popleft()
                assert kind == "played" and complete
                assert -1e-3 <= seconds <= length + 1e-3

        for step, amount in taken:
            await settle()
            heed()
            if step == "sound":
                line.sound(amount)
                if not open_ or open_[-1][1]:
                    open_.append([0.0, False])
                open_[-1][0] += amount
            elif step == "end":
                line.tell("end")
                if not open_ or open_[-1][1]:
                    open_.append([0.0, False])
                open_[-1][1] = True
            elif step in ("interrupt", "other"):
                own = step == "interrupt"
                # what is just out counts as played: it is told first
                lengths = [length for length, _ in open_]
                line.tell("interrupt") if own else sender.on_interrupt()
                await settle()
                fresh, seen = list(line.ends())[seen:], len(list(line.ends()))
                while fresh and fresh[0][0] == "played":
                    fresh.pop(0)
                    lengths.pop(0)
                assert [each[::2] for each in fresh] == [cut(by="sender" if own else "other")[::2]] * (
                    len(lengths) or own
                )
                assert all(each[1] <= length + 1e-3 for each, length in zip(fresh, lengths, strict=False))
                assert all(each[1] == 0 for each in fresh[1:])
                assert mouth.unspoken == 0 and sender.speech.size == 0
                open_.clear()
            elif step == "wait":
                await asyncio.sleep(amount)
            else:
                mouth.speaks = step == "hears"
                mouth.heard &= mouth.speaks
        await asyncio.sleep(1)
        until = loop.time() + 100
        while (sender.speech.waits or mouth.heard) and loop.time() < until:
            await asyncio.sleep(1)
        heed()
        assert [complete for _, complete in open_] in ([], [False])  # all that is complete is played
        assert not mouth.heard  # and the floor is free
        assert not sender.speech.waits and not sender.speech.answers
        line.close()
        await asyncio.sleep(0.1)
        for each in open_:  # a normal close is an end
            each[1] = True
        assert await task is True
        heed()
        assert not open_

    in_virtual_time(play)


def test_the_floor_is_free_when_what_was_said_is_out():
    async def play(loop):
        sender, mouth, line = speaker(loop)
        task = asyncio.ensure_future(sender.serve())
        line.sound(0.5)
        await asyncio.sleep(DELAY + 0.5 + PAUSE_SECONDS - 0.1)
        assert mouth.heard and not mouth.ceded  # in the middle of an utterance, over a pause
        await asyncio.sleep(0.2)
        assert not mouth.heard
        line.sound(0.5)  # of the same utterance
        line.tell("end")
        await asyncio.sleep(DELAY + 0.4)
        assert mouth.heard and not mouth.ceded
        await asyncio.sleep(0.2)
        assert mouth.heard and mouth.ceded  # it is complete: who else speaks may, and the house must wait
        line.sound(0.1)
        await asyncio.sleep(0.1)
        assert not mouth.ceded
        await asyncio.sleep(DELAY + PAUSE_SECONDS + 0.2)
        assert not mouth.heard
        assert list(line.ends()) == [("played", 1.0)]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    in_virtual_time(play)


def test_a_sender_that_does_not_read_its_answers_loses_none_and_is_not_read_on():
    async def play(loop):
        sender, _, line = speaker(loop, slow=True)
        task = asyncio.ensure_future(sender.serve())
        for _ in range(300):
            line.sound(0.01)
            line.tell("interrupt")
        await asyncio.sleep(20)
        assert len(sender.speech.answers) == websocket.BACKLOG_ANSWERS + 1
        assert line.coming.qsize() > 400 and not line.sent
        line.reads.set()
        await asyncio.sleep(20)
        assert list(line.ends()) == [cut()] * 300 and not sender.speech.answers
        line.reads.clear()  # and one that never reads them is gone
        line.tell("interrupt")
        with pytest.raises(BaseExceptionGroup) as gone:
            await task
        assert [type(each) for each in gone.value.exceptions] == [ConnectionAbortedError]

    in_virtual_time(play)


@pytest.mark.parametrize("kind", ["interrupt", "end", "sound", "ping"])
def test_messages_without_end_take_turns_with_everything_else(kind):
    """A thousand in a second are read, however many there are, and whatever else there is to do is done between."""

    async def play(loop):
        sender, _, line = speaker(loop)
        turns, task = 0, asyncio.ensure_future(sender.serve())

        async def flood():
            while True:
                while line.coming.qsize() < 100:
                    if kind == "sound":
                        line.sound(1 / RATE)
                    elif kind == "ping":
                        line.coming.put_nowait(WSMessage(WSMsgType.PING, b"", None))
                    else:
                        line.tell(kind)
                await asyncio.sleep(0.001)

        read, receive = [0], line.receive

        async def count():
            read[0] += 1
            return await receive()

        line.receive = count
        flooding, begun = asyncio.ensure_future(flood()), loop.time()
        while loop.time() < begun + 4:
            turns += 1
            await asyncio.sleep(0.001)
        for each in (task, flooding):
            each.cancel()
        await asyncio.gather(task, flooding, return_exceptions=True)
        return turns, read[0]

    turns, read = in_virtual_time(play)
    assert turns > 2000
    most = websocket.MESSAGES_AT_ONCE + 4 * websocket.MESSAGES_PER_SECOND
    assert read <= most + 2
    assert read > 0.9 * most


@pytest.mark.parametrize("kind", ["interrupt", "end"])
def test_what_came_at_once_is_read_a_message_at_a_time(kind):
    async def play(loop):
        sender, _, line = speaker(loop)
        for _ in range(100):
            line.tell(kind)
        task, left = asyncio.ensure_future(sender.serve()), [100]
        for _ in range(500):
            await asyncio.sleep(0)
            left.append(line.coming.qsize())
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return left[-1], -np.diff(left).min()

    assert in_virtual_time(play) == (0, 1)


@pytest.mark.parametrize("where", ["deliver", "finish", "cede", "leave"])
def test_what_goes_wrong_in_the_head_ends_the_connection(where):
    async def play(loop):
        sender, mouth, line = speaker(loop)
        setattr(mouth, where, lambda *_: 1 / 0)
        task = asyncio.ensure_future(sender.serve())
        line.sound(0.2)
        line.tell("end")
        with pytest.raises(BaseExceptionGroup) as wrong:
            await asyncio.wait_for(task, 10)
        assert [type(each) for each in wrong.value.exceptions] == [ZeroDivisionError]

    in_virtual_time(play)


def test_only_a_normal_close_is_spoken_to_its_end():
    async def end(loop, message):
        sender, _, line = speaker(loop)
        line.sound(3)
        line.coming.put_nowait(message)
        begun = loop.time()
        return await sender.serve(), loop.time() - begun

    for code in (1000, 0):
        well, took = in_virtual_time(lambda loop, code=code: end(loop, WSMessage(WSMsgType.CLOSE, code, None)))
        assert well and took == pytest.approx(3 + DELAY, abs=0.1)
    for message in (WSMessage(WSMsgType.CLOSE, 1001, None), CLOSED, WSMessage(WSMsgType.ERROR, OSError(), None)):
        well, took = in_virtual_time(lambda loop, message=message: end(loop, message))
        assert not well and took < 0.1


def test_one_that_is_reset_is_noticed_while_nothing_is_read_of_it(monkeypatch):
    monkeypatch.setattr(websocket, "BACKLOG_BYTES", 1000)

    async def end(loop, state):
        peers = iter(["there"] * 10)
        sender, _, line = speaker(loop, peer=lambda: next(peers, state))
        for _ in range(10):
            line.sound(3)
        line.close()
        begun = loop.time()
        return await sender.serve(), loop.time() - begun

    well, took = in_virtual_time(lambda loop: end(loop, "gone"))
    assert not well and took < 0.5
    # one that has closed has sent all of it, which is read to see whether it closed well
    well, took = in_virtual_time(lambda loop: end(loop, "closing"))
    assert well and took == pytest.approx(30 + DELAY, abs=1)


def test_a_message_that_is_none_is_what_the_sender_did_wrong():
    async def play(loop):
        sender, _, line = speaker(loop)
        line.tell("sing")
        with pytest.raises(BaseExceptionGroup) as wrong:
            await sender.serve()
        return wrong.value.exceptions

    (error,) = in_virtual_time(play)
    assert isinstance(error, TransportError)
