"""The live head in real time, with a small model in place of the trained one."""

import asyncio
import importlib.metadata
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from live_fakes import AtOnce, LatentRenderer, LoudnessModel, VirtualTime, in_virtual_time, portrait

from engine.features import SAMPLE_RATE
from engine.head import Style
from engine.motion.generator import Pace
from engine.speech import VoiceError
from engine.stream import StreamCore, StreamSettings
from plugin import adapters, cli, doctor, run
from plugin.live import LiveStream
from plugin.run import Ear, Show
from plugin.settings import Settings, SettingsError, load_settings
from transports.clip import ClipSource
from transports.media import LazySink, MediaFormat, MediaFrame, TransportError
from transports.pcm import PcmSource
from transports.recording import RecordingSink

ROOT = Path(__file__).parent.parent
FPS, SIZE = 45, 64
FAST = Pace(hop=1, look_ahead=1, steps=1)

pytestmark = pytest.mark.usefixtures("elsewhere")


def core(**changes) -> StreamCore:
    given = {"fps": FPS, "size": SIZE, "pace": FAST, "cushion": 320} | changes
    return StreamCore(LoudnessModel(), portrait(), StreamSettings(**given), Style(), LatentRenderer)


def voice(n: int, level: float = 0.9) -> np.ndarray:
    return np.random.default_rng(0).uniform(0.1, level, n).astype(np.float32)


def sound(frames) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.float32), *(frame.audio for frame in frames)])


def live(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 20))


# --- the stream


def in_step(performer: StreamCore, loop: VirtualTime, **given) -> LiveStream:
    """A stream whose time is the loop's."""
    stream = LiveStream(performer, **{"clock": loop.time} | given)
    stream._engine = AtOnce()
    return stream


def test_frames_come_at_their_time_with_the_voice_that_was_pushed():
    async def watch(loop):
        words, frames, moments = voice(4000), [], []
        async with in_step(core(), loop, margin=0.05) as stream:
            async for frame in stream:
                moments.append(loop.time())
                frames.append(frame)
                if frame.index == 10:
                    assert stream.push(words) == 4000
                if frame.index == 60:
                    break
            assert stream.silent
            return words, frames, moments, stream.figures

    words, frames, moments, figures = in_virtual_time(watch)
    heard = sound(frames)
    assert (heard[heard != 0] == words).all()
    assert [frame.index for frame in frames] == list(range(61))
    assert np.diff([f.time for f in frames]) == pytest.approx(1 / FPS, abs=0.0001)
    assert moments == pytest.approx([f.time for f in frames], abs=1e-6)
    assert figures.made >= 61 and figures.late == 0
    # 4 latents of delay, the cushion and the margin; the rest is the moment of the push within a block of 40 ms
    assert list(figures.latency) == pytest.approx([0.16 + 0.02 + 0.05], abs=0.04)


def test_frames_come_on_the_clock_of_the_machine():
    async def watch():
        async with LiveStream(core(), margin=0.05) as stream:
            frames, taken = [], asyncio.create_task(asyncio.to_thread(stream.push, voice(4000)))
            async for frame in stream:
                assert time.monotonic() >= frame.time
                frames.append(frame)
                if frame.index >= 60:
                    return frames, await taken

    frames, taken = live(watch())
    assert taken == 4000
    indices = [frame.index for frame in frames]
    assert indices == sorted(set(indices))
    assert any(frame.audio.any() for frame in frames)


def test_nothing_old_leaves_after_an_interrupt():
    async def watch(loop):
        async with in_step(core(pace=Pace(4, 3, 2)), loop, margin=0.1) as stream:
            stream.push(voice(10 * SAMPLE_RATE))
            after, interrupted = [], False
            async for frame in stream:
                if interrupted:
                    after.append(frame)
                elif len(frame.audio) and frame.audio.all() and frame.image[0, 0, 0]:
                    stream.interrupt()
                    assert stream.backlog == 0
                    interrupted, moment = True, loop.time()
                if len(after) == 25:
                    return after, moment, stream.figures

    after, moment, figures = in_virtual_time(watch)
    assert {frame.generation for frame in after} == {1}
    assert after[0].time - moment < 0.1 + 2 / FPS  # what waited is dropped, and it goes on
    assert not sound(after).any()
    # the lips close over what the frame on display needed already, which is out within the margin and two latents
    assert not any(frame.image[0, 0, 0] for frame in after if frame.time > moment + 0.1 + 0.08)
    assert (figures.late, figures.undrawn, figures.interrupts) == (0, 0, 1)


def test_a_stale_frame_is_dropped_wherever_it_waits():
    async def watch(loop):
        def finished(index: int, generation: int, wait: float) -> MediaFrame:
            return MediaFrame(index, 0, None, np.ones(1, np.float32), loop.time() + wait, generation)

        def interrupt():
            stream.push(voice(10))
            stream._hear()  # the engine has it
            stream.interrupt()

        stream = in_step(core(), loop, margin=0.1)  # not started: frames are put in by hand
        stream._offer(finished(0, 0, 9))
        interrupt()
        stream._offer(finished(1, 0, 9))  # was in the making
        stream._offer(finished(2, 1, 0.1))
        waiting = asyncio.ensure_future(anext(aiter(stream)))
        await asyncio.sleep(0.03)  # it has the frame and waits for its time
        interrupt()
        stream._offer(finished(3, 2, 0.1))
        assert (await waiting).index == 3
        assert not stream._ready
        await stream.close()

    in_virtual_time(watch)


@pytest.mark.parametrize("said", [False, True])
def test_interrupts_without_number_are_one_and_the_picture_goes_on(said):
    """Two hundred at a time, at every frame of a second; with a word before each, too."""

    async def watch(loop):
        performer = core(pace=Pace(4, 3, 2))
        async with in_step(performer, loop, margin=0.05) as stream:
            stream.push(voice(10 * SAMPLE_RATE))
            frames, before, asked = [], None, 0
            async for frame in stream:
                frames.append(frame)
                if frame.index < FPS:
                    continue
                before = performer._model.evaluations if before is None else before
                for _ in range(200):
                    if said:
                        stream.push(words)
                    stream.interrupt()
                asked += 200
                if frame.index >= 2 * FPS:
                    more = performer._model.evaluations - before
                    return frames, more, performer.state.generation, stream.figures, asked

    words = voice(20)
    frames, evaluations, given, figures, asked = in_virtual_time(watch)
    hop = 2  # steps
    assert figures.late == figures.lost == 0
    # but for those with a voice that was interrupted, which waited for their time, each frame is shown
    assert len(frames) > 2 * FPS - 0.05 * FPS - 2
    assert evaluations <= hop * (1 + SAMPLE_RATE // (4 * 640) + 1)  # what a second takes anyway, and one hop more
    assert given == 1  # a word that was never heard is none to stop in the engine
    assert figures.interrupts == (asked if said else 1)


def test_a_word_that_is_heard_before_each_interrupt_costs_no_frames():
    async def watch(loop):
        async with in_step(core(pace=Pace(4, 3, 2)), loop, margin=0.05) as stream:
            shown = 0
            async for frame in stream:
                shown += 1
                stream.push(voice(3000))
                if frame.index % 3 == 2:  # after 67 ms, of which the cushion is 20
                    stream.interrupt()
                if frame.index >= 3 * FPS:
                    return shown, stream.figures

    shown, figures = in_virtual_time(watch)
    assert shown == 3 * FPS + 1 and figures.late == figures.lost == 0
    assert figures.interrupts == FPS


@pytest.mark.parametrize("when", ["push", "tick"])
def test_an_interrupt_while_the_engine_is_at_work_leaves_the_whole_backlog_free(when, monkeypatch):
    """In its thread it hears what came before, which is stale by then."""

    async def watch(loop):
        performer = core(backlog=SAMPLE_RATE)
        stream = in_step(performer, loop, margin=0.05)
        work = getattr(performer, when)

        def interrupted(*given, **named):
            result = work(*given, **named)
            stream.interrupt()
            return result

        stream.push(voice(SAMPLE_RATE))
        setattr(performer, when, interrupted)
        stream._work()
        setattr(performer, when, work)
        assert (stream.backlog, stream.unspoken, stream.room) == (0, 0, SAMPLE_RATE)
        words = -voice(SAMPLE_RATE)
        assert stream.push_whole(words, False, stream.generation)
        frames = []
        for _ in range(4 * FPS):
            loop.spend(1 / FPS)
            frames += stream._work()
        heard = sound(frames)
        assert (heard[heard != 0] == words).all()
        assert stream.backlog == 0
        await stream.close()

    in_virtual_time(watch)


def test_a_voice_is_taken_whole_or_not_at_all_and_not_after_an_interrupt():
    async def fill():
        stream = LiveStream(core(backlog=1000), margin=0.02)
        assert stream.push_whole(voice(700), False, 0)
        assert not stream.push_whole(voice(700), False, 0)
        assert stream.backlog == 700
        assert stream.push_whole(voice(300), False, 0)
        assert not stream.interrupt()  # nothing of it was shown yet
        assert stream.push_whole(voice(300), False, 0)  # taken, and dropped
        assert (stream.backlog, stream.generation) == (0, 1)
        assert stream.push_whole(voice(300), False, 1)
        assert stream.backlog == 300
        with pytest.raises(VoiceError):
            stream.push_whole(np.array([np.nan], np.float32), False, 1)
        await stream.close()

    live(fill())


def test_orders_without_number_are_the_latest_and_pieces_of_voice_are_joined():
    async def fill(loop):
        performer, given = core(), []
        for name in ("restyle", "change_portrait", "push", "interrupt"):
            setattr(performer, name, lambda *order, name=name: given.append((name, order[0] if order else None)))
        stream = in_step(performer, loop, margin=0.02)
        for number in range(1000):
            stream.restyle(Style(number / 1000))
            stream.change_portrait(number)
        words = voice(4000)
        for sample in words:
            stream.push(sample[None])
        stream._hear()
        await stream.close()
        return given, words

    given, words = in_virtual_time(fill)
    assert given[:2] == [("change_portrait", 999), ("restyle", Style(0.999))]
    pieces = [samples for _, samples in given[2:]]
    assert [len(piece) for piece in pieces] == [640] * 6 + [160]
    assert (np.concatenate(pieces) == words).all()


def test_a_slow_consumer_misses_frames_and_nothing_piles_up():
    async def watch(loop):
        async with in_step(core(), loop, margin=0.02) as stream:
            seen = []
            async for frame in stream:
                seen.append(frame.index)
                await asyncio.sleep(0.1)
                assert len(stream._ready) <= stream._ready_limit
                if len(seen) == 8:
                    return seen, stream.figures.lost

    seen, lost = in_virtual_time(watch)
    assert seen == sorted(seen)
    assert lost > 5
    assert seen[-1] - seen[0] > 15


def test_an_engine_too_slow_drops_pictures_and_keeps_the_sound():
    async def watch(loop):
        slow = core()
        draw = slow._renderer.render

        def render(coefficients):
            loop.spend(0.06)
            return draw(coefficients)

        slow._renderer.render = render
        async with in_step(slow, loop, margin=0.02) as stream:
            stream.push(voice(5 * SAMPLE_RATE))
            frames = []
            async for frame in stream:
                frames.append(frame)
                if frame.index >= 50:
                    return frames, stream.figures

    frames, figures = in_virtual_time(watch)
    # 0.06 s are 2.7 frames: about one of them is drawn
    assert figures.undrawn / figures.made == pytest.approx(1 - 1 / 2.7, abs=0.1)
    assert figures.late > 0.9 * figures.made
    assert (figures.lost, figures.resyncs) == (0, 0)
    assert [f.index for f in frames] == list(range(len(frames)))
    assert np.count_nonzero(sound(frames)) > 14_000


def test_after_a_pause_of_the_machine_time_goes_on_from_now():
    jump = [0.0]

    async def watch(loop):
        stream = in_step(core(), loop, margin=0.02, clock=lambda: loop.time() + jump[0])
        indices = []
        async with stream:
            async for frame in stream:
                indices.append(frame.index)
                if len(indices) == 10:
                    jump[0] = 60.0
                if len(indices) == 30:
                    return indices, stream.figures

    indices, figures = in_virtual_time(watch)
    assert indices == list(range(30))
    assert figures.resyncs == 1


@pytest.mark.parametrize("bad", [np.array([0.1, np.nan], np.float32), np.zeros((4, 2)), np.zeros(4, np.int32)])
def test_what_is_no_voice_is_refused_where_it_is_pushed(bad):
    """In the engine's thread it would end the stream."""

    async def watch(loop):
        async with in_step(core(), loop, margin=0.02) as stream:
            async for frame in stream:
                if frame.index == 5:
                    with pytest.raises(VoiceError):
                        stream.push(bad)
                    assert stream.push(np.full(4000, 16384, np.int16)) == 4000
                if frame.index == 60:
                    assert stream.silent
                    return True
                assert frame.audio.max() in (0, 0.5)

    assert in_virtual_time(watch)


def test_style_and_face_change_while_it_runs():
    async def watch(loop):
        performer = core()
        async with in_step(performer, loop, margin=0.02, stamp=lambda image: image.fill(7)) as stream:
            async for frame in stream:
                if frame.index == 5:
                    stream.restyle(Style(2.0, (1.0, 0.0, 0.0)))
                    stream.change_portrait(portrait(3.0, 0.0, 0.0))
                if frame.index == 20:
                    assert (frame.image == 7).all()
                    return performer

    performer = in_virtual_time(watch)
    assert performer.performance._portrait.latent[0] == 3
    assert performer.performance.goal.mean[0] == 4


def test_what_stops_the_engine_is_told():
    async def watch():
        broken = core()
        broken._model.coefficients = lambda latent: 1 / 0
        async with LiveStream(broken, margin=0.02) as stream:
            async for _ in stream:
                pass

    with pytest.raises(ZeroDivisionError):
        live(watch())


def test_the_inbox_is_bounded():
    async def fill():
        stream = LiveStream(core(backlog=1000), margin=0.02)  # not started: nobody empties it
        assert stream.push(voice(700)) == 700
        assert stream.push(voice(700)) == 300
        assert stream.room == 0
        assert stream.push(voice(600), live=True) == 600
        assert stream.backlog <= 1000
        stream.restyle(Style())
        stream.interrupt()
        assert stream.backlog == 0
        assert stream._inbox.style == Style()  # the order stays
        await stream.close()

    live(fill())


# --- what a source gives


class Listener:
    """Takes the voice as a LiveStream would."""

    def __init__(self, room: int = 10**6):
        self.room, self.got, self.generation = room, [], 0

    def push_whole(self, samples, live, generation):
        if generation == self.generation:
            self.got.append(samples)
        return True


def test_any_voice_becomes_the_engines():
    listener = Listener()
    ear = Ear(listener, live=False)
    tone = np.sin(np.arange(48_000) * 0.05).astype(np.float32)
    for at in range(0, 48_000, 1000):
        assert ear.deliver(np.stack([tone, tone], 1)[at : at + 1000], 48_000)
    ear.finish()
    assert sum(map(len, listener.got)) == 16_000
    assert ear.deliver(np.array([np.nan, np.inf, 0.5], np.float32), 16_000)
    assert listener.got[-1].tolist() == [0, 1, 0.5]
    assert ear.deliver(np.array([16384], np.int16), 16_000)
    assert listener.got[-1].tolist() == [0.5]


def test_a_source_waits_for_room_and_a_microphone_does_not():
    listener = Listener(room=100)
    assert not Ear(listener, live=False).deliver(np.zeros(200, np.float32), 16_000)
    assert listener.got == []
    assert Ear(listener, live=True).deliver(np.zeros(200, np.float32), 16_000)


def test_what_there_is_no_room_for_after_all_is_not_lost():
    """Others pushed between the look for room and the push: what a resampler gave out by then is kept."""
    listener, refuses = Listener(), iter([True, True, False, True, True, False, False, True] + [False] * 100)
    take = listener.push_whole
    listener.push_whole = lambda *given: not next(refuses) and take(*given)
    ear, tone, at = Ear(listener, live=False), np.sin(np.arange(24_000) * 0.05).astype(np.float32), 0
    for _ in range(100):
        if at < len(tone) and ear.deliver(tone[at : at + 480], 24_000):
            at += 480
    while not ear.finish():
        pass
    alone = Listener()
    whole = Ear(alone, live=False)
    assert whole.deliver(tone, 24_000) and whole.finish()
    assert (np.concatenate(listener.got) == np.concatenate(alone.got)).all()
    assert sum(map(len, listener.got)) == 16_000


@pytest.mark.parametrize("by", ["interrupt", "guest"])
def test_what_the_house_says_during_an_interrupt_is_not_heard_after_it(by):
    """Its source has a thread: a chunk of it, and what a resampler holds back, is on its way when somebody interrupts
    or takes the floor."""

    async def talk():
        whole = show([Screen()])
        house, guest = Ear(whole.stream, False, whole.floor), whole.invite(live=False)
        assert house.deliver(voice(480), 24_000)
        push = whole.stream.push_whole

        def late(*given):
            whole.stream.push_whole = push
            if by == "interrupt":
                whole.interrupt()
            else:
                assert guest.deliver(-voice(160), SAMPLE_RATE)
            return push(*given)

        whole.stream.push_whole = late
        assert house.deliver(voice(480), 24_000)
        assert whole.stream.backlog == (0 if by == "interrupt" else 160)
        guest.leave()
        assert house.deliver(np.zeros(480, np.float32), 24_000) and house.finish()
        said = np.concatenate([piece.samples for piece in whole.stream._inbox.voice])
        assert not (said > 0).any()
        await whole.stream.close()

    live(talk())


def test_a_guest_that_has_said_all_lets_others_speak_and_the_house_once_it_leaves():
    async def talk():
        whole = show([Screen()])
        house, first, second = Ear(whole.stream, False, whole.floor), whole.invite(), whole.invite()
        words, hush = voice(320), np.zeros(320, np.float32)
        first.deliver(words, SAMPLE_RATE)
        second.deliver(words, SAMPLE_RATE)
        assert first.heard and not second.heard
        first.cede()
        assert first.heard and not house.heard
        second.deliver(hush, SAMPLE_RATE)
        assert first.heard  # nothing was said
        first.deliver(words, SAMPLE_RATE)
        second.deliver(words, SAMPLE_RATE)
        assert first.heard  # it went on
        first.cede()
        second.cede()  # which has no floor to give
        second.deliver(words, SAMPLE_RATE)
        assert second.heard and not first.heard
        first.cede()
        first.leave()
        first.abandon()
        assert second.heard
        before = whole.stream.generation
        second.abandon()
        assert house.heard and whole.stream.generation == before + 1 and whole.stream.backlog == 0
        first.deliver(words, SAMPLE_RATE)
        assert first.heard
        await whole.stream.close()

    live(talk())


def test_a_guest_speaks_before_the_house_and_not_by_being_there():
    async def talk():
        whole = show([Screen()], pace=FAST)
        listener = whole.stream = Listener()
        listener.interrupt = lambda: listener.got.append("interrupt") or True
        house, guest = Ear(listener, False, whole.floor), whole.invite()
        words, hush = voice(320), np.zeros(320, np.float32)
        assert house.deliver(words, 16_000)
        assert guest.deliver(hush, 16_000)  # a muted microphone
        guest._stream = listener
        assert house.deliver(words, 16_000)
        assert guest.deliver(words, 16_000)
        assert house.deliver(words, 16_000)  # goes unheard
        assert guest.deliver(hush, 16_000)
        second = whole.invite()
        assert second.deliver(words, 16_000)
        second.leave()
        guest.leave()
        assert house.deliver(words, 16_000)
        assert whole.sinks[0].interrupts == 1
        return [entry if isinstance(entry, str) else bool(entry.any()) for entry in listener.got]

    assert live(talk()) == [True, True, "interrupt", True, False, True]


@pytest.mark.parametrize(("kind", "scale"), [(np.float32, 1), (np.int16, 32768)])
def test_a_microphone_that_only_hisses_gets_no_floor_whatever_its_samples_are(kind, scale):
    async def talk():
        whole = show([Screen()])
        guest = whole.invite()
        hiss = np.random.default_rng(0).integers(-1, 2, 960).astype(np.int16)  # the last bit of a sound card
        assert guest.deliver((hiss / 32768 * scale).astype(kind), 48_000)
        assert not guest.heard
        assert guest.deliver((voice(960) * scale * 0.05).astype(kind), 48_000)
        assert guest.heard

    live(talk())


# --- the show


class Screen(LazySink):
    def __init__(self, name="screen", lag=None):
        self.name, self._lag = name, lag
        self.frames, self.aligned, self.interrupts, self.closed, self.problem = [], [], 0, 0, ""

    def open(self, form):
        self.form = form

    def send(self, frame):
        self.frames.append(frame)

    def interrupt(self):
        self.interrupts += 1

    def lag(self):
        return self._lag

    def align(self, lag):
        self.aligned.append(lag)

    def check(self):
        return self.problem

    def close(self):
        self.closed += 1


def show(sinks, source=None, **changes) -> Show:
    form = MediaFormat(SIZE, SIZE, FPS, SAMPLE_RATE)
    for sink in sinks:
        sink.open(form)
    told = []
    made = Show(LiveStream(core(**changes), 0.03), form, source, sinks, tell=told.append)
    made.told = told
    return made


def test_a_clip_is_shown_to_its_end_on_all_sinks(tmp_path):
    async def play():
        words = voice(8000)
        screen, quick = Screen(lag=0.2), Screen("quick", lag=0.05)
        recording = RecordingSink(tmp_path / "a.mp4")
        whole = show([screen, quick, recording], ClipSource(words, SAMPLE_RATE))
        await whole.run(0, asyncio.Event())
        return words, screen, quick

    words, screen, quick = live(play())
    heard = sound(screen.frames)
    assert (heard[heard != 0] == words).all()
    assert len(screen.frames) < 3 * FPS
    assert [f.index for f in quick.frames] == [f.index for f in screen.frames]
    assert screen.aligned[-1] == quick.aligned[-1] == 0.2
    assert screen.closed == quick.closed == 1
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert len(list(container.decode(video=0))) == len(screen.frames)


def test_a_pipe_that_gives_no_sound_is_an_error_once_what_came_before_is_spoken(tmp_path):
    """An utterance, and a WAV of a kind that cannot be read: the first is heard and recorded."""
    words = (voice(4000) * 32767).astype("<i2")
    other = b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\x55\0\1\0\x80\x3e\0\0\0\0\0\0\1\0\0\0data\0\0\0\0"

    async def play():
        screen, recording = Screen(), RecordingSink(tmp_path / "a.mp4")
        with pytest.raises(TransportError, match=r"^standard input: WAV of format 85 with 0 bits cannot be read: send"):
            await show([screen, recording], PcmSource(io.BytesIO(words.tobytes() + other))).run(0, asyncio.Event())
        return sound(screen.frames)

    heard = live(play())
    # zero crossings are no samples to be found again
    assert len(heard[heard != 0]) == pytest.approx(len(words), abs=200) and (tmp_path / "a.mp4").exists()


def test_it_ends_in_time_or_when_told(monkeypatch):
    monkeypatch.setattr(run, "_CHECK_SECONDS", 0.02)

    async def play():
        screen = Screen()
        began = time.monotonic()
        await show([screen]).run(0.4, asyncio.Event())
        assert 0.4 <= time.monotonic() - began < 2
        stop, screen = asyncio.Event(), Screen()
        whole = show([screen])
        screen.problem = "screen: it is dark"
        task = asyncio.create_task(whole.run(0, stop))
        await asyncio.sleep(0.2)
        assert "screen: it is dark" in whole.status(began)
        screen.problem = ""
        whole.stream.push(voice(SAMPLE_RATE))
        while not sound(screen.frames).any():
            await asyncio.sleep(0.02)
        whole.interrupt()
        whole.interrupt()  # which finds nothing to stop
        stop.set()
        await task
        assert whole.told == ["screen: it is dark", "screen: works again"]
        assert screen.interrupts == screen.closed == 1
        assert whole.stream.figures.interrupts == 1

    live(play())


def test_one_that_cannot_close_keeps_no_other_from_closing():
    class Stuck(Screen):
        def close(self):
            raise TransportError("stuck")

    async def play():
        screen = Screen()
        with pytest.raises(TransportError, match="stuck"):
            await show([Stuck(), screen]).run(0.1, asyncio.Event())
        assert screen.closed == 1

    live(play())


def failing(kind, *names: str):
    """A device of a package that is not ours, some of whose calls fail."""

    def fail(self, *_):
        raise KeyError("mine")

    return type("Foreign", (kind,), dict.fromkeys(names, fail))


@pytest.mark.parametrize("names", [("send", "check"), ("send",), ("check",), ("lag",), ("align",)])
def test_a_sink_that_fails_stops_no_other_and_is_told_once(names, monkeypatch):
    monkeypatch.setattr(run, "_CHECK_SECONDS", 0.2)

    async def play():
        screen = Screen(lag=0.2)
        whole = show([failing(Screen, *names)("foreign"), screen])
        await whole.run(0.7, asyncio.Event())
        assert len(screen.frames) > 5
        assert screen.aligned and screen.closed == 1
        assert whole.told == ["foreign: KeyError: 'mine'"]
        assert whole.figures()["frames"] >= len(screen.frames)
        assert whole.figures()["problems"] == 1

    live(play())


def test_one_that_fails_at_an_interrupt_or_at_the_end_keeps_no_other_from_it(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "_CHECK_SECONDS", 0.02)

    async def play():
        screen, recording = Screen(), RecordingSink(tmp_path / "a.mp4")
        source = failing(ClipSource, "interrupt", "close")(voice(SAMPLE_RATE), SAMPLE_RATE, loop=True, pause=0.0)
        whole = show([failing(Screen, "interrupt")("foreign"), screen, recording], source)
        task = asyncio.create_task(whole.run(0, stop := asyncio.Event()))

        async def speaks():
            before = len(screen.frames)
            while not sound(screen.frames[before:]).any():
                await asyncio.sleep(0.01)

        await speaks()
        while len(screen.frames) < 30:
            await asyncio.sleep(0.01)
        whole.interrupt()
        assert whole.told == ["file: KeyError: 'mine'", "foreign: KeyError: 'mine'"]
        assert screen.interrupts == 1
        await speaks()
        guest = whole.invite()
        guest.deliver(voice(320), SAMPLE_RATE)
        assert screen.interrupts == 2
        stop.set()
        await task
        source._stop.set()
        assert screen.closed == 1

    live(play())
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert len(list(container.decode(video=0))) >= 20


def test_what_is_wrong_is_told_apart_from_what_happens(monkeypatch):
    monkeypatch.setattr(run, "_CHECK_SECONDS", 0.02)

    async def play():
        screen, alerts = Screen(), []
        whole = show([screen])
        whole.alert = alerts.append
        screen.problem = "screen: it is dark"
        whole.stream.figures.resyncs = 1
        task = asyncio.create_task(whole.run(0, stop := asyncio.Event()))
        await asyncio.sleep(0.2)
        screen.problem = ""
        await asyncio.sleep(0.2)
        stop.set()
        await task
        assert alerts == ["the machine stood still for a while; time goes on from now", "screen: it is dark"]
        assert whole.told == ["screen: works again"]

    live(play())


def paced(*looks: tuple[float, int, int], fps: int = 45, size: int = 512) -> tuple[run.Punctuality, list[str]]:
    """What comes of looks of so many seconds each, with frames made and late in them, and what is to be logged."""
    pace, warned = run.Punctuality(MediaFormat(size, size, fps, SAMPLE_RATE)), []
    now, made, late = 100.0, 1, 0
    pace.look(now, made, late)
    for seconds, more, behind in looks:
        now, made, late = now + seconds, made + more, late + behind
        if pace.look(now, made, late):
            warned.append(pace.problem)
    return pace, warned


def test_a_machine_that_is_too_slow_is_named_once_a_minute():
    slow, well = (1.0, 45, 27), (1.0, 45, 0)
    told = "too slow for 45 fps at 512: 60 % of the frames of the last 3 s came late; try --fps 25 or --size 256"
    pace, warned = paced(*[slow] * 50)
    assert warned == [pace.problem] == [told]
    _, warned = paced(*[slow] * 70)
    assert warned == [told, told.replace("3 s", "10 s")]
    pace, warned = paced(*[slow] * 5, *[well] * 10, *[slow] * 5)
    assert warned == [told] and "too slow for 45 fps" in pace.problem
    pace, warned = paced(*[slow] * 5, *[well] * 10)
    assert warned == [told] and pace.problem == ""


def test_frames_that_are_never_made_are_late_and_a_mend_is_no_more_than_there_is():
    pace, _ = paced(*[(1.0, 9, 0)] * 4, fps=25)
    assert pace.problem == "too slow for 25 fps at 512: 64 % of the frames of the last 3 s came late; try --size 256"
    pace, _ = paced(*[(1.0, 1, 1)] * 4, fps=25, size=256)
    assert pace.problem.endswith("100 % of the frames of the last 3 s came late; close other programs")


@pytest.mark.parametrize(
    "looks",
    [
        [(1.0, 45, 8)] * 20,  # one in six
        [(1.0, 45, 45)] * 2,  # too short to tell
        [*[(1.0, 45, 0)] * 5, (3600.0, 46, 45), *[(1.0, 45, 0)] * 5],  # it slept
        [(4.2, 45, 40), (1.0, 45, 0)],  # stopped, soon after the start
        [(1.0, 45, 0), (30.0, 45, 40), (1.0, 45, 10), (1.0, 45, 0)],
        [(1.0, 0, 0)] * 20,  # it has stalled
    ],
)
def test_what_is_no_slow_machine_is_not_called_one(looks):
    pace, warned = paced(*looks)
    assert (warned, pace.problem) == ([], "")


def test_a_slow_machine_is_told_as_a_problem_and_did_not_stand_still(monkeypatch):
    monkeypatch.setattr(run, "_CHECK_SECONDS", 0.1)
    monkeypatch.setattr(run, "SLOW_SECONDS", 0.3)

    async def play():
        screen, alerts = Screen(), []
        whole = show([screen])
        whole.alert = alerts.append
        draw = whole.stream._core._renderer.render
        whole.stream._core._renderer.render = lambda coefficients: time.sleep(0.1) or draw(coefficients)
        task = asyncio.create_task(whole.run(0, stop := asyncio.Event()))
        while not whole.problems.get("speed"):
            await asyncio.sleep(0.01)
        whole.stream.figures.resyncs += 1
        await asyncio.sleep(0.5)
        assert whole.problems["speed"] in whole.status(time.monotonic())
        assert whole.figures()["problems"] == 1
        stop.set()
        await task
        (told,) = alerts
        assert told.startswith("too slow for 45 fps at 64: ") and told.endswith("came late; try --fps 25")

    live(play())


def test_services_run_beside_and_another_face_is_prepared_beside():
    async def play():
        seen = []

        async def serve(whole):
            await whole.change_portrait(Path("face"))
            seen.append(whole)

        whole = show([Screen()])
        whole.services.append(serve)
        whole.prepare = lambda path: portrait(2.0, 0.0, 0.0)
        makers, make = [], whole.stream._core._make_renderer
        whole.stream._core._make_renderer = lambda *given: makers.append(threading.current_thread()) or make(*given)
        await whole.run(5, asyncio.Event())  # a service that ends, ends the show
        assert seen == [whole]
        # nor does the stream stand still for what draws it
        assert len(makers) == 1 and makers[0] not in (threading.main_thread(), whole.stream._engine._thread)

        async def broken(_):
            raise TransportError("the port is taken")

        whole = show([Screen()])
        whole.services.append(broken)
        with pytest.raises(TransportError, match="the port is taken"):
            await whole.run(5, asyncio.Event())

    live(play())


def test_why_it_could_not_start_is_told_and_not_what_followed(tmp_path):
    class Absent(ClipSource):
        def open(self, deliver, ended):
            raise TransportError("no microphone")

    async def play():
        with pytest.raises(TransportError, match="no microphone"):
            await show([RecordingSink(tmp_path / "a.mp4")], Absent(voice(10), 16_000)).run(1, asyncio.Event())

    live(play())
    assert list(tmp_path.iterdir()) == []


def test_after_many_shows_nothing_is_left():
    async def play():
        before = asyncio.all_tasks()
        for _ in range(10):
            clip = ClipSource(voice(100), SAMPLE_RATE, loop=True, pause=0.0)
            await show([Screen()], clip).run(0.05, asyncio.Event())
        assert asyncio.all_tasks() == before

    before = threading.active_count()
    live(play())
    assert threading.active_count() <= before


# --- the settings


def test_our_adapters_are_registered_under_the_names_we_know():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"] == adapters.BUILT_IN


def test_what_other_packages_bring(monkeypatch):
    seen = []

    def points(group, name=None):
        made = [SimpleNamespace(name="mirror", load=lambda: lambda options: seen.append(options) or Screen())]
        return made if group == "ifmdm.sinks" and name in (None, "mirror") else []

    monkeypatch.setattr(adapters, "entry_points", points)
    Path("config.toml").write_text('[live]\noutputs = ["mirror"]\nsource = "none"\n[plugins.mirror]\nside = "left"\n')
    settings = load_settings({})
    adapters.check_names(settings)
    (sink,) = adapters.make_sinks(settings)
    assert isinstance(sink, Screen)
    assert seen == [{"side": "left"}]
    assert adapters.make_source(settings) is None
    assert importlib.metadata.entry_points is not points


def test_ours_are_made_with_their_settings():
    settings = load_settings(
        {"live.outputs": "camera,audio", "camera.shape": "wide", "audio.device": "Cable", "camera.fps": "0"}
    )
    camera, audio = adapters.make_sinks(settings)
    assert (camera._options.shape, camera._options.fps, audio._device) == ("wide", 0, "Cable")
    for source in ("microphone", "stdin", "file"):
        assert adapters.make_source(load_settings({"live.source": source})) is not None


def refused_by_config_check(text: str, told: str, capsys) -> str:
    """A config.toml whose one fault is told in one line, which begins with the file and the setting and goes on as
    `told` does. What is told is given back."""
    Path("config.toml").write_text(text)
    assert cli.main(["config", "check"]) == 2
    shown = capsys.readouterr().out
    assert re.match(r"config\.toml: \w+\.\w+ = .*: ", shown)
    problem = shown.removeprefix("config.toml: ")
    assert problem.startswith(told) or told.partition(": ")[2] in problem
    assert told.partition(": ")[0] in shown
    assert shown.count("\n") == 1
    return shown



@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[live]\nlatency = 'low'", "config.toml: live.latency = 'low': give interactive, balanced or quality"),
        ("[live]\noutputs = 'camera'", "config.toml: live.outputs = 'camera': give a list of camera, audio"),
        ("[live]\noutputs = [3]", "config.toml: live.outputs = [3]: give a list of camera, audio"),
        ("[live]\nseconds = -1", "config.toml: live.seconds = -1: give a number of seconds"),
        ("[live]\nseconds = inf", "config.toml: live.seconds = inf: give a number of seconds"),
        ("[live]\nbacklog = 0", "config.toml: live.backlog = 0: give a number of seconds from 0.5 to 600"),
        ("[camera]\nfps = 500", "config.toml: camera.fps = 500: give a whole number from 1 to 120, 0 for"),
        ("[camera]\nbackground = 'red'", "config.toml: camera.background = 'red': give blur or a colour such as"),
        ("[camera]\nbackground = '#12345g'", "config.toml: camera.background = '#12345g': give blur or a colour"),
        ("[camera]\nshape = 'round'", "config.toml: camera.shape = 'round': give square or wide"),
        ("[camera]\ncolour = 'red'", "config.toml: camera.colour = 'red': there is no such setting; [camera] has"),
        ("[stdin]\nencoding = 'u8'", "config.toml: stdin.encoding = 'u8': give s16le or f32le"),
        ("[plugins]\nmirror = 3", "config.toml: plugins.mirror = 3: this is a section: write [plugins.mirror]"),
        ("[live]\nsource = 'radio'", "live.source = 'radio': no such source; there are file, microphone, stdin"),
        ("[live]\noutputs = ['tv']", "live.outputs: 'tv': no such output; there are camera, audio, whip"),
        ("[live]\noutputs = ['audio', 'audio']", "live.outputs: 'audio' is there twice"),
        ("[live]\nrecord = 'out.avi'", "out.avi: the output is an MP4 file"),
        ("[voice]\nfile = 'none.wav'", "none.wav: no such file"),
        ("[head]\nportrait = 'me.jpg'", "me.jpg: not a bundled portrait"),
        ("[webrtc]\ncodecs = ['vp8', 'vp8']\n[server]\nport = 0", "webrtc codecs 'vp8, vp8': give vp8, h264 or both"),
        ("[webrtc]\nice_servers = ['turn:example.org']\n[server]\nport = 0", "ICE server 'turn:example.org': a TURN"),
        # nothing is told of the defaults that are looked at in place of what is refused
        (
            "[webrtc]\nice_servers = ['turn:u:p@h']\nturn_username = 'u'\nturn_password = 'p'\n[server]\nport = 0",
            "config.toml: webrtc.ice_servers = ***: give a list of stun:HOST:PORT",
        ),
        (
            "[live]\noutputs = ['whip']\n[whip]\nurl = 'https://h/whip'\nice_servers = ['turn:u:p@h']\n"
            "turn_username = 'u'\nturn_password = 'p'\n[server]\nport = 0",
            "config.toml: whip.ice_servers = ***: give a list of stun:HOST:PORT",
        ),
        ("[server]\nhost = '0.0.0.0'\ntoken = 'short'\nport = 0", "config.toml: server.token = ***: give 8 or more"),
        ("[engine]\nweights = '/nowhere'\n[server]\nport = 0", "/nowhere: no config.json; give one of research, clean"),
    ],
)
def test_live_settings_that_cannot_be_are_refused_in_one_line(text, told, capsys):
    refused_by_config_check(text, told, capsys)
    assert cli.main(["run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"ifmdm: {told}")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[render]\naudio = 'none.wav'", "none.wav: no such file"),
        ("[render]\noutput = 'x.txt'", "x.txt: the output is an MP4 file"),
        ("[render]\noutput = 'none/x.mp4'", "none/x.mp4: there is no folder"),
        ("[render]\naudio = 'a.mp4'\noutput = 'a.mp4'", "a.mp4: this is also an input"),
    ],
)
def test_what_render_refuses_is_told_by_config_check_and_the_doctor(text, told, capsys, assets):
    shutil.copy(assets / "voice.flac", "a.mp4")
    shown = refused_by_config_check(text, told, capsys)
    _, finding = doctor.examine(None, {"clip": doctor.CHECKS["clip"]})
    assert str(finding).startswith(f"FAILS clip: {told}")
    assert cli.main(["render"]) == 2
    error = capsys.readouterr().err
    assert str(finding) == f"FAILS clip: {error.removeprefix('ifmdm: ').strip()}"
    assert error.partition(f"{told.partition(': ')[0]}: ")[2] == shown.rpartition("': ")[2]


def test_config_check_tells_all_that_is_wrong_and_where(capsys, monkeypatch):
    def told(text: str) -> list[str]:
        Path("config.toml").write_text(text)
        assert cli.main(["config", "check"]) == 2
        return capsys.readouterr().out.splitlines()

    assert len(told("[video]\nfps = 0\nsize = 3\n[camera]\nshape = 'round'\n")) == 3
    lines = told("[head]\nportrait = 'me.jpg'\nconsent = true\n[engine]\nweights = 'none'\n")
    assert [line.partition(": ")[2].partition(": ")[0] for line in lines] == [
        "head.portrait = 'me.jpg'", "engine.weights = 'none'"
    ]  # fmt: skip
    (line,) = told("[head]\nportrait = 'eda'\n[render]\noutput = 'b.mp4'\n")
    assert line.startswith("config.toml: head.portrait = 'eda': no bundled portrait and no file has this name; bundled")
    lines = told("[live]\nsource = 'radio'\noutputs = ['tv']\n")
    assert lines[0].startswith("config.toml: live.source = 'radio': no such source; there are")
    assert lines[1].startswith("config.toml: live.outputs = ['tv']: 'tv': no such output; there are")
    assert len(told("[live]\noutputs = ['tv']\n[voice]\nfile = 'none.wav'\n")) == 2
    # what is wrong in one place hides nothing in another
    lines = told("[video]\nfps = '30'\n[head]\nportrait = 'eda'\n[server]\nhost = '0.0.0.0'\n")
    assert [line.partition(" = ")[0] for line in lines] == [
        "config.toml: video.fps", "config.toml: server.host", "config.toml: head.portrait"
    ]  # fmt: skip
    monkeypatch.setenv("IFMDM_HEAD__PORTRAIT", "uda")
    (line,) = told("[head]\nportrait = 'eda'\n")
    assert line.startswith("IFMDM_HEAD__PORTRAIT=uda: no bundled portrait")
    monkeypatch.delenv("IFMDM_HEAD__PORTRAIT")
    assert told("fps 30")[0].startswith("config.toml: this is not TOML")
    assert cli.main(["config", "check", "--config", str(ROOT / "config.toml")]) == 0
    assert "every setting can be used" in capsys.readouterr().out


def test_settings_from_the_environment(monkeypatch):
    monkeypatch.setenv("IFMDM_LIVE__OUTPUTS", "camera, audio")
    monkeypatch.setenv("IFMDM_CAMERA__DEVICE", "/dev/video9")
    got = load_settings({})
    assert got.live.outputs == ("camera", "audio")
    assert got.camera.device == "/dev/video9"
    assert load_settings({"live.outputs": ""}).live.outputs == ()
    monkeypatch.setenv("IFMDM_LIVE__SECONDS", "soon")
    with pytest.raises(SettingsError, match="IFMDM_LIVE__SECONDS=soon: give a number of seconds"):
        load_settings({})


# --- doctor and devices


def test_the_doctor_looks_at_everything_whatever_fails():
    def broken(_):
        raise ZeroDivisionError("by\nzero")

    def refused(_):
        raise TransportError("no camera; plug one in")

    Path("config.toml").write_text("[video]\nfps = 0\nsize = 3\n")
    checks = {"one": broken, "two": refused, "three": lambda s: (doctor.GOOD, str(s.video.fps))}
    lines = [str(finding) for finding in doctor.examine(None, checks)]
    assert [line.split(":")[0] for line in lines] == [
        "FAILS settings",
        "FAILS settings",
        "FAILS one",
        "FAILS two",
        "ok    three",
    ]
    assert lines[2] == "FAILS one: ZeroDivisionError: by zero"
    assert lines[3] == "FAILS two: no camera; plug one in"
    assert lines[4].endswith(": 45")


def test_the_doctors_own_checks(monkeypatch):
    settings = Settings()
    assert doctor.check_python(settings)[0] in (doctor.GOOD, doctor.POOR)
    assert doctor.check_portrait(settings) == (doctor.GOOD, "ada has a face")
    assert doctor.check_backend(settings)[0] == doctor.GOOD
    assert doctor.check_recording(load_settings({"live.record": "a.mp4"}))[0] == doctor.GOOD

    def absent(*_):
        raise TransportError("none")

    monkeypatch.setattr("transports.virtual_camera.try_camera", absent)
    monkeypatch.setattr("transports.portaudio.load_sounddevice", absent)
    # what nobody asked for may be missing
    assert [check(settings)[0] for check in (doctor.check_camera, doctor.check_audio, doctor.check_microphone)] == [
        doctor.POOR
    ] * 3
    asked = load_settings({"live.outputs": "camera,audio", "live.source": "microphone"})
    assert [check(asked)[0] for check in (doctor.check_camera, doctor.check_audio, doctor.check_microphone)] == [
        doctor.BAD
    ] * 3


def test_the_doctor_measures_speed(monkeypatch):
    model = LoudnessModel()
    monkeypatch.setattr("engine.head.Model.load", lambda weights, backend: model)
    state, text = doctor.check_speed(load_settings({"video.size": "128"}))
    assert state == doctor.GOOD
    assert "a second of 45 frames a second takes" in text


@pytest.mark.parametrize(
    ("took", "state", "said"),
    [(0.5, doctor.GOOD, "takes 0.50 s"), (0.7, doctor.POOR, "0.70 s: little is left"), (1.0, doctor.BAD, "too slow")],
)
def test_the_doctor_judges_speed_by_the_time_that_a_second_takes(took, state, said, monkeypatch):
    monkeypatch.setattr("engine.head.Model.load", lambda weights, backend: LoudnessModel())
    moments = iter([100.0, 100.0 + took])
    monkeypatch.setattr(doctor, "time", SimpleNamespace(perf_counter=lambda: next(moments)))
    got, text = doctor.check_speed(load_settings({"video.size": "128"}))
    assert got == state and said in text
    assert ("lower fps or size under [video]" in text) == (state != doctor.GOOD)


def test_devices_are_listed(monkeypatch, capsys):
    found = [{"name": "Mic A", "max_input_channels": 1, "max_output_channels": 0, "default_samplerate": 44100.0}]
    module = SimpleNamespace(query_devices=lambda: found)
    monkeypatch.setattr("transports.virtual_camera.virtual_devices", lambda: [("/dev/video2", "ifmdm")])
    monkeypatch.setattr("transports.portaudio.load_sounddevice", lambda: module)
    assert cli.main(["devices"]) == 0
    shown = capsys.readouterr().out
    assert "/dev/video2  ifmdm" in shown
    assert "0: Mic A, 44100 Hz" in shown
    assert shown.rstrip().endswith("none")
    assert "load one" not in shown
    monkeypatch.setattr("transports.virtual_camera.virtual_devices", lambda: [])
    monkeypatch.setattr(sys, "platform", "linux")
    assert cli.main(["devices"]) == 0
    assert "device):\n  none; load one: sudo modprobe v4l2loopback" in capsys.readouterr().out


# --- the command


PROGRAM = f"""
import functools, sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from live_fakes import LatentRenderer, LoudnessModel
from plugin import run
from plugin.cli import main
run.run.__defaults__ = (functools.partial(run.make_show, model=LoudnessModel(), renderer=LatentRenderer), None)
sys.exit(main())
"""


def start(*args: str, folder: Path, **more) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "run", "--size", "128", "--no-server", *args],
        cwd=folder,
        env=env,
        stderr=subprocess.PIPE,
        **more,
    )


def length(path: Path) -> tuple[int, float]:
    """Frames of a recording, and the loudest of its sound."""
    with av.open(str(path)) as container:
        frames = len(list(container.decode(video=0)))
    with av.open(str(path)) as container:
        return frames, max(float(np.abs(part.to_ndarray()).max()) for part in container.decode(audio=0))


def test_a_recording_of_so_many_seconds(tmp_path):
    child = start("--seconds", "1.5", "--record", "a.mp4", folder=tmp_path)
    _, shown = child.communicate(timeout=60)
    assert child.returncode == 0, shown
    frames, loudest = length(tmp_path / "a.mp4")
    assert 0.5 * FPS < frames <= 1.5 * FPS
    assert loudest > 0.05
    assert b"ada is live; voice: file; shown: a.mp4; 0.45 s from voice to frame" in shown
    assert b"ended after" in shown
    assert b"Traceback" not in shown


def test_an_earlier_recording_is_kept_and_one_that_was_cut_off_is_named(tmp_path):
    child = start("--record", "a.mp4", folder=tmp_path)
    try:
        while not any(b"moov" in part.read_bytes() for part in tmp_path.glob(".a-*.part")):
            time.sleep(0.05)
    finally:
        child.kill()
        child.communicate(timeout=30)
    (part,) = tmp_path.iterdir()
    (tmp_path / "a.mp4").write_text("precious")
    child = start("--seconds", "1.5", "--record", "a.mp4", folder=tmp_path)
    _, shown = child.communicate(timeout=60)
    assert child.returncode == 0, shown
    lines = shown.decode().splitlines()
    assert lines[0] == (
        f"ifmdm: {part}: an earlier recording that was cut off, unless another program is making it; rename it to a "
        "name that ends in .mp4 to keep it"
    )
    assert lines[1] == "ifmdm: a.mp4 is there already and is kept; this recording will be a-2.mp4"
    assert "shown: a-2.mp4;" in lines[2]
    assert (tmp_path / "a.mp4").read_text() == "precious"
    assert length(tmp_path / "a-2.mp4")[0] > 0.5 * FPS
    assert length(part.rename(tmp_path / "kept.mp4"))[0] >= FPS // 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_a_clean_end(number, tmp_path):
    child = start("--record", "a.mp4", folder=tmp_path)
    try:
        assert b"is live" in child.stderr.readline()
        time.sleep(1.2)
        child.send_signal(number)
        _, shown = child.communicate(timeout=30)
    finally:
        child.kill()
    assert child.returncode == 0, shown
    assert b"Traceback" not in shown
    assert length(tmp_path / "a.mp4")[0] > 20
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_another_program_speaks_through_a_pipe(tmp_path):
    words = (voice(SAMPLE_RATE // 2) * 32767).astype("<i2")
    child = start("--source", "stdin", "--record", "a.mp4", folder=tmp_path, stdin=subprocess.PIPE)
    _, shown = child.communicate(words.tobytes(), timeout=60)
    assert child.returncode == 0, shown
    frames, loudest = length(tmp_path / "a.mp4")
    assert loudest > 0.5
    assert frames >= FPS // 2


def test_a_recording_that_would_replace_what_it_is_made_of_is_refused_and_touches_nothing(capsys):
    """By the command, by `config check` and by the doctor."""
    for name, kept in (("talk.mp4", "the voice"), ("face.mp4", "the face")):
        Path(name).write_text(kept)
    Path("other.mp4").symlink_to("talk.mp4")
    face = "[head]\nportrait = 'face.mp4'\nconsent = true\n[live]\nrecord = 'face.mp4'"
    for text in (
        "[voice]\nfile = 'talk.mp4'\n[live]\nrecord = 'talk.mp4'",
        "[voice]\nfile = 'other.mp4'\n[live]\nrecord = 'talk.mp4'",
        face,
    ):
        told = f"{text.split()[-1][1:-1]}: this is also an input; give another name for the output"
        Path("config.toml").write_text(text)
        assert cli.main(["run"]) == 2
        assert capsys.readouterr().err == f"ifmdm: {told}\n"
        assert cli.main(["config", "check"]) == 2
        place, problem = told.split(": ", 1)
        assert f"config.toml: live.record = '{place}': {problem}\n" in capsys.readouterr().out
        _, finding = doctor.examine(None, {"recording": doctor.check_recording})
        assert str(finding) == f"FAILS recording: {told}"
    assert Path("talk.mp4").read_text() == "the voice"
    # a voice that is not spoken is no input
    doctor.check_recording(load_settings({"voice.file": "a.mp4", "live.record": "a.mp4", "live.source": "none"}))


@pytest.mark.parametrize("args", [("--outputs", "camera", "--camera", "/dev/none"), ("--source", "microphone")])
def test_a_device_that_is_not_there_is_one_line(args, tmp_path):
    child = start(*args, "--seconds", "1", folder=tmp_path)
    _, shown = child.communicate(timeout=60)
    if args[1] == "microphone" and child.returncode == 0:
        pytest.skip("this machine has a microphone")
    assert child.returncode == 2
    assert b"Traceback" not in shown
    assert shown.startswith(b"ifmdm: ") and shown.count(b"\n") == 1  # it is not said to be live, and then not to be


@pytest.mark.parametrize("args", [("--outputs", "camera"), ("--source", "microphone"), ("--outputs", "audio")])
def test_devices_are_looked_for_before_anything_takes_time(args, monkeypatch, capsys, tmp_path):
    def absent(*_):
        raise TransportError("it is not there")

    monkeypatch.setattr("transports.virtual_camera.VirtualCameraSink._connect", absent)
    for user in ("microphone", "audio_device"):
        monkeypatch.setattr(f"transports.{user}.load_sounddevice", absent)
    monkeypatch.setattr(run.Model, "load", lambda *_, **__: pytest.fail("the weights were loaded"))
    assert cli.main(["run", "--port", "0", "--record", "a.mp4", *args]) == 2
    assert capsys.readouterr().err == "ifmdm: it is not there\n"
    assert list(tmp_path.iterdir()) == []


def test_one_whose_microphone_does_not_open_was_never_live():
    class Absent(ClipSource):
        def open(self, deliver, ended):
            raise TransportError("no microphone")

    said = []
    with pytest.raises(TransportError, match="no microphone"):
        live(show([], Absent(voice(10), 16_000)).run(1, asyncio.Event(), lambda: said.append("live")))
    assert said == []
    live(show([], ClipSource(voice(10), 16_000)).run(0.1, asyncio.Event(), lambda: said.append("live")))
    assert said == ["live"]


def test_stopped_while_it_loads_it_ends_at_once_and_was_never_live():
    out, asked = io.StringIO(), []

    def make(settings, tell, stopped):
        os.kill(os.getpid(), signal.SIGINT)
        while not stopped():
            time.sleep(0.01)
        return run.make_show(settings, tell, LoudnessModel(), LatentRenderer, lambda: asked.append(1) or stopped())

    run.run(load_settings({"server.port": "0", "live.record": "a.mp4", "video.size": "128"}), make, out)
    assert out.getvalue() == "ifmdm: ended before it was live\n"
    assert asked == [1]
    assert list(Path().iterdir()) == []


def test_the_last_line_tells_no_latency_of_no_frames():
    whole = show([])
    whole.stream.figures.latency.append(0.45)
    assert whole.status(time.monotonic()) == "0:00  0 frames  0 late"
    whole.stream.figures.made = 1
    assert whole.status(time.monotonic()) == "0:00  1 frames  0 late  voice to frame 450 ms"
