"""The live loop, moved by hand: what goes in comes out, when it may, however it was cut."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live_fakes import LatentRenderer, LoudnessModel, portrait

from engine.features import LATENT_HOP, SAMPLE_RATE
from engine.head import Head, Style
from engine.model import Model
from engine.motion.generator import Pace, Statistics
from engine.speech import VoiceError
from engine.stream import GLIDE, LATENCIES, Fifo, StreamCore, StreamSettings, delay

SECOND = SAMPLE_RATE


def core(**changes) -> StreamCore:
    given = {"fps": 45, "size": 16, "cushion": 0} | changes
    style = given.pop("style", Style())
    return StreamCore(LoudnessModel(), portrait(), StreamSettings(**given), style, LatentRenderer)


def voice(n: int, level: float = 0.5, seed: int = 0) -> np.ndarray:
    # never zero, so that silence is told from voice
    return np.random.default_rng(seed).uniform(0.1, level, n).astype(np.float32)


def sound(frames) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.float32), *(frame.audio for frame in frames)])


def loud(frames) -> np.ndarray:
    return np.array([frame.image[0, 0, 0] for frame in frames])


def ticks(stream: StreamCore, samples: int, step: int = 320):
    frames = []
    for at in range(0, samples, step):
        frames += stream.tick(min(step, samples - at))
    return frames


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("push"), st.integers(0, 4000)),
            st.tuples(st.just("tick"), st.integers(0, 5000)),
        ),
        max_size=40,
    ),
    fps=st.sampled_from([1, 24, 25, 30, 45, 60, 120]),
    latency=st.sampled_from(sorted(LATENCIES)),
)
@settings(max_examples=40)
def test_any_mixture_of_pushes_and_ticks_keeps_the_sound_whole(steps, fps, latency):
    chosen = LATENCIES[latency]
    stream = core(fps=fps, pace=chosen.pace, cushion=chosen.cushion)
    frames, pushed, clock = [], [], 0
    for what, count in steps:
        if what == "push":
            pushed.append(voice(count, seed=len(pushed)))
            assert stream.push(pushed[-1]) == count
        else:
            clock += count
            frames += stream.tick(count)
    clock += delay(chosen.pace) + 4 * SECOND
    frames += stream.tick(delay(chosen.pace) + 4 * SECOND)
    heard, wanted = sound(frames), np.concatenate([np.zeros(0, np.float32), *pushed])
    kept = heard[heard != 0]  # the gaps are silence, and nothing else was added or lost
    assert (kept == wanted[: len(kept)]).all()
    assert len(kept) + stream.backlog + np.count_nonzero(stream._line.take(10**9)) == len(wanted)
    # one clock: frame i is given out at its time, carries the sound from its time on, and none is missing
    assert [frame.index for frame in frames] == list(range(len(frames)))
    assert all(frame.pts == -(-frame.index * SAMPLE_RATE // fps) for frame in frames)
    assert all(frame.seconds == Fraction(frame.index, fps) for frame in frames)
    assert stream.due(len(frames) - 1) <= clock < stream.due(len(frames))
    assert [f.pts + len(f.audio) for f in frames[:-1]] == [f.pts for f in frames[1:]]


@given(
    cuts=st.lists(st.integers(1, 30_000), min_size=1, max_size=8),
    chunks=st.lists(st.integers(1, 9_000), min_size=1, max_size=8),
)
@settings(max_examples=25)
def test_how_time_and_voice_are_cut_does_not_show(cuts, chunks):
    spoken = voice(SECOND)
    whole = core()
    whole.push(spoken)
    expected = whole.tick(2 * SECOND)
    stream, frames, clock, at, turn = core(), [], 0, 0, 0
    while clock < 2 * SECOND:
        # the voice is never late: at least what the next tick needs is there
        step = min(cuts[turn % len(cuts)], 2 * SECOND - clock)
        while at < min(len(spoken), clock + step + LATENT_HOP):
            at += stream.push(spoken[at : at + chunks[turn % len(chunks)]])
        frames += stream.tick(step)
        clock, turn = clock + step, turn + 1
    assert (sound(frames) == sound(expected)).all()
    assert (loud(frames) == loud(expected)).all()


@pytest.mark.parametrize(
    "bad", [np.array([0.1, np.nan], np.float32), np.array([np.inf]), np.zeros((4, 2)), np.zeros(4, np.int32)]
)
@pytest.mark.parametrize("live", [False, True])
def test_what_is_no_voice_is_refused_and_spoils_nothing(bad, live):
    stream, clean = core(), core()
    for each in (stream, clean):
        each.push(voice(5000), live)
    with pytest.raises(VoiceError):
        stream.push(bad, live)
    assert (loud(stream.tick(SECOND)) == loud(clean.tick(SECOND))).all()


def test_whole_numbers_are_as_loud_as_what_they_stand_for():
    whole = np.random.default_rng(0).integers(-20_000, 20_000, 9000).astype(np.int16)
    stream, other = core(), core()
    stream.push(whole)
    other.push(whole / np.float32(32768))
    frames, expected = stream.tick(SECOND), other.tick(SECOND)
    assert (sound(frames) == sound(expected)).all() and (loud(frames) == loud(expected)).all()


@pytest.mark.parametrize("fps", [1, 7, 25, 45])
def test_live_is_what_a_clip_would_be(fps, monkeypatch):
    model, face = LoudnessModel(), portrait(0.1, 0.0, 0.0)
    monkeypatch.setattr(LoudnessModel, "prepare", lambda *_: face)
    spoken, style = voice(3 * SECOND), Style(1.2, (3.0, 0.0, 1.0))
    head = Head(model, face, fps=fps, size=16, style=style, seed=5, pace=StreamSettings().pace)
    clip = head.push(spoken) + head.finish()
    stream = StreamCore(model, face, StreamSettings(fps, 16, cushion=0, seed=5), style, LatentRenderer)
    stream.push(spoken)
    live = ticks(stream, 6 * SECOND, 333)
    assert len(clip) == -(-len(spoken) * fps // SAMPLE_RATE)
    # the end of a clip is heard as if silence followed, and live it does
    shown = np.array(stream._renderer.seen)[: len(clip)]
    assert (shown == np.array(head._renderer.seen)[: len(clip)]).all()
    assert len(live) > len(clip)


def test_live_is_a_clip_with_real_networks(weights, ada_portrait):
    model = Model.load(weights)
    spoken = voice(SECOND // 2)
    head = Head(model, ada_portrait, size=128, pace=StreamSettings().pace)
    clip = head.push(spoken) + head.finish()
    stream = StreamCore(model, model.prepare(ada_portrait), StreamSettings(size=128, cushion=0))
    stream.push(spoken)
    live = ticks(stream, SECOND, 500)
    assert all((a.image == b.image).all() for a, b in zip(clip, live, strict=False))
    stream.interrupt()
    stream.restyle(Style(0.5, (5.0, 0.0, 0.0)))
    assert all(frame.image.shape == (128, 128, 3) for frame in ticks(stream, SECOND))


@pytest.mark.parametrize("latency", sorted(LATENCIES))
@pytest.mark.parametrize("step", [160, 356, 1024])
def test_voice_is_shown_when_it_was_promised(latency, step):
    chosen = LATENCIES[latency]
    stream = core(pace=chosen.pace, cushion=chosen.cushion)
    ticks(stream, 3 * SECOND, step)
    at = stream.state.now
    stream.push(voice(SECOND // 4, 0.9))
    frames = ticks(stream, SECOND, step)
    (first,) = [f for f in frames if f.audio.any()][:1]
    start = first.pts + np.flatnonzero(first.audio)[0]
    assert start == at + chosen.cushion
    assert loud([first])[0] > 0 or loud(frames)[frames.index(first) + 2] > 0
    assert stream.due(first.index) - at <= (chosen.seconds - chosen.margin) * SAMPLE_RATE
    # lips and voice part together: the picture is still where the sound is
    silent = [f for f in frames if not f.audio.any()]
    assert all(loud([f])[0] == 0 for f in silent if f.pts > start + SECOND // 4 + 2000)


def test_the_stated_latencies_hold():
    told = {name: round(latency.seconds * 1000) for name, latency in LATENCIES.items()}
    assert told == {"interactive": 260, "balanced": 450, "quality": 730}


def test_idle_moves_without_voice_and_speech_joins_without_a_jump():
    stream = core()
    frames = ticks(stream, 2 * SECOND)
    stream.push(voice(SECOND))
    ticks(stream, 3 * SECOND)
    latents = np.array(stream._renderer.seen)
    assert not sound(frames).any()
    assert np.abs(np.diff(latents[:60, 1])).max() > 0
    # no step is larger than the loudest hop's own: idle and speech are one motion
    steps = np.abs(np.diff(latents[:, 1:], axis=0)).max(axis=1)
    assert steps.max() < 4 * np.percentile(steps, 90)


def test_hours_do_not_drift():
    stream = core(fps=120)
    stream.state.frames = 120 * 3600 * 5
    stream.state.now = stream.state.heard = stream.due(stream.state.frames) // LATENT_HOP * LATENT_HOP
    assert stream._starts(stream.state.frames) == 5 * 3600 * SAMPLE_RATE
    assert stream.performance.track.before(stream.state.frames) == 5 * 3600 * 25


@pytest.mark.parametrize("when", [0, 3000, 7000, 20_000, 20_320, 21_111])
@pytest.mark.parametrize("latency", sorted(LATENCIES))
def test_an_interrupt_leaves_no_old_sound_and_no_old_lips(when, latency):
    pace = LATENCIES[latency].pace
    stream = core(pace=pace)
    stream.push(voice(5 * SECOND, 0.9))
    before = ticks(stream, when)
    stream.interrupt()
    assert stream.backlog == 0
    after = ticks(stream, 2 * SECOND)
    assert {f.generation for f in before} <= {0}
    assert {f.generation for f in after} == {1}
    assert not sound(after).any()
    assert all(a.pts + len(a.audio) == b.pts for a, b in itertools.pairwise(before + after))
    # the latents that the shown frame needs stay, for the sake of a smooth end: at most 80 ms of lips
    assert not loud(after)[: len(after)][5:].any()
    assert [f.index for f in before + after] == list(range(len(before + after)))
    # and the next words are spoken whole
    words = voice(SECOND, 0.9, seed=9)
    stream.push(words)
    said = sound(ticks(stream, 3 * SECOND))
    assert (said[said != 0] == words).all()


def test_words_right_after_an_interrupt_have_their_cushion():
    stream = core(cushion=800)
    stream.push(voice(5 * SECOND))
    ticks(stream, SECOND)
    stream.interrupt()
    at = stream.state.now
    stream.push(voice(SECOND))
    frames = ticks(stream, SECOND)
    assert frames[0].pts + np.flatnonzero(sound(frames))[0] == at + 800


def test_steering_leaves_the_motion_where_it_is():
    motion = core().performance.motion
    motion.state.past = np.arange(9, dtype=np.float32).reshape(3, 3)
    before = motion.state.past * motion.within + motion.statistics.mean
    motion.steer(Statistics(np.array([1, -2, 3], np.float32), motion.statistics.deviation))
    assert np.allclose(motion.state.past * motion.within + motion.statistics.mean, before)


def test_an_interrupt_at_a_frame_a_second():
    stream = core(fps=1, pace=LATENCIES["quality"].pace)
    stream.push(voice(20 * SECOND, 0.9))
    for when in (8000, 40_000, 44_000):
        ticks(stream, when)
        stream.interrupt()
        assert not sound(ticks(stream, 5 * SECOND)).any()
        assert len(stream.performance.motion.state.past) > 0
        stream.push(voice(20 * SECOND, 0.9))


def test_interrupting_is_one_hop_of_work():
    stream = core()
    stream.push(voice(5 * SECOND))
    ticks(stream, 2 * SECOND)
    before = stream._model.evaluations
    stream.interrupt()
    assert stream._model.evaluations - before <= 2 * stream.settings.pace.steps


def test_interrupting_where_nothing_was_said_is_no_work_and_changes_nothing():
    stream, left_alone = core(cushion=800), core(cushion=800)
    for each in (stream, left_alone):
        ticks(each, SECOND)
    before = stream._model.evaluations
    for _ in range(100):
        stream.push(voice(100))  # which waits, and is never heard
        stream.interrupt()
    assert (stream._model.evaluations, stream.backlog, stream.state.generation) == (before, 0, 100)
    ours, others = ticks(stream, SECOND), ticks(left_alone, SECOND)
    assert not sound(ours).any()
    assert np.array_equal(np.array(stream._renderer.seen), np.array(left_alone._renderer.seen))
    assert len(ours) == len(others)
    stream.push(voice(SECOND))
    ticks(stream, SECOND)
    stream.interrupt()
    before = stream._model.evaluations
    stream.interrupt()  # the second of two
    assert stream._model.evaluations == before


def test_an_interrupt_is_no_jump():
    stream = core(pace=Pace(hop=4, look_ahead=3, steps=4))
    stream.push(voice(5 * SECOND, 0.9))
    ticks(stream, 2 * SECOND)
    stream.interrupt()
    ticks(stream, SECOND)
    loudness = np.array(stream._renderer.seen)[:, 0]
    assert loudness[60] > 1
    assert np.abs(np.diff(loudness)).max() < 0.75 * np.ptp(loudness)


def test_a_full_backlog_refuses_or_forgets():
    stream = core(backlog=1000)
    assert stream.push(voice(700)) == 700
    assert stream.push(voice(700, seed=1)) == 300
    assert stream.push(voice(5)) == 0
    assert (stream.backlog, stream.state.refused) == (1000, 405)
    live = core(backlog=1000)
    first, second = voice(700), voice(700, seed=1)
    assert live.push(first, live=True) == live.push(second, live=True) == 700
    assert (live.backlog, live.state.replaced) == (1000, 400)
    said = sound(live.tick(SECOND))
    assert (said[said != 0] == np.concatenate([first[400:], second])).all()
    assert live.push(voice(5000), live=True) == 5000
    assert (live.backlog, live.state.replaced) == (1000, 4400)


@given(jitter=st.lists(st.integers(0, 320), min_size=50, max_size=50))
@settings(max_examples=30)
def test_a_sender_whose_jitter_the_cushion_covers_is_heard_without_a_gap(jitter):
    stream, spoken, frames = core(cushion=320, pace=Pace(2, 1, 1)), voice(50 * 320), []
    arrivals = [at * 320 + late for at, late in enumerate(jitter)]
    arrivals[0] = 0  # the first chunk sets the pace
    for now in range(0, 2 * SECOND, 16):
        while arrivals and arrivals[0] <= now:
            at = (50 - len(arrivals)) * 320
            arrivals.pop(0)
            stream.push(spoken[at : at + 320], live=True)
        frames += stream.tick(16)
    heard = sound(frames)
    start = np.flatnonzero(heard)[0]
    assert (heard[start : start + len(spoken)] == spoken).all()
    assert stream.state.replaced == 0


def test_late_voice_is_late_with_its_lips():
    stream = core(cushion=0)
    burst = voice(LATENT_HOP * 5, 0.9)
    stream.push(burst)
    frames = ticks(stream, SECOND // 2)
    stream.push(burst)
    frames += ticks(stream, 2 * SECOND)
    heard = sound(frames)
    starts = [i for i in range(1, len(heard)) if heard[i] and not heard[i - 1]]
    assert starts == [SECOND // 2]  # the first began at 0
    lips = loud(frames)
    for start in (0, SECOND // 2):
        middle = (start + len(burst) // 2) * 45 // SAMPLE_RATE
        assert lips[middle] > 100
        assert lips[middle + 12] == 0


def test_style_glides():
    stream = core()
    ticks(stream, SECOND)
    stream.restyle(Style(1.0, (0.0, 5.0, 0.0)))
    ticks(stream, 3 * SECOND)
    assert (stream.performance.motion.statistics.mean == [0, 5, 0]).all()
    assert stream.performance.goal is stream.performance.motion.statistics
    moved = np.array(stream._renderer.seen)[:, 1]
    assert moved[-60:].mean() - moved[:30].mean() > 3
    assert np.abs(np.diff(moved)).max() < 2
    assert GLIDE * LATENT_HOP < SAMPLE_RATE


def test_another_face_goes_on_with_the_same_motion():
    stream, same = core(), core()
    for each in (stream, same):
        each.push(voice(3 * SECOND))
        ticks(each, SECOND)
    other = portrait(2.0, 1.0, -1.0)
    stream.change_portrait(other)
    moved, stayed = ticks(stream, 2 * SECOND), ticks(same, 2 * SECOND)
    assert len(moved) == len(stayed)
    assert (sound(moved) == sound(stayed)).all()
    difference = np.array(stream._renderer.seen) - np.array(same._renderer.seen)[-len(moved) :]
    assert np.allclose(difference[:5], other.latent, atol=1e-5)
    assert stream._renderer.portrait is other


def test_late_pictures_are_skipped_and_sound_is_not():
    stream = core()
    stream.push(voice(2 * SECOND))
    frames = stream.tick(SECOND, skip=True)
    assert len(frames) > 20
    assert [f.image is None for f in frames] == [True] * (len(frames) - 1) + [False]
    assert sound(frames).all()


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 50)), max_size=40))
def test_fifo_keeps_order(steps):
    fifo, given_, taken = Fifo(), 0, []
    for push, count in steps:
        if push:
            fifo.push(np.arange(given_, given_ + count))
            given_ += count
        else:
            part = fifo.take(count)
            assert len(part) <= count
            taken += part.tolist()
        assert fifo.size == given_ - len(taken)
    assert taken == list(range(len(taken)))


def test_a_face_that_cannot_be_drawn_changes_nothing():
    stream, same = core(), core()
    for each in (stream, same):
        each.push(voice(3 * SECOND))
        ticks(each, SECOND)
    stream._make_renderer = lambda portrait, size: 1 / 0
    with pytest.raises(ZeroDivisionError):
        stream.change_portrait(portrait(2.0, 1.0, -1.0))
    ticks(stream, 2 * SECOND), ticks(same, 2 * SECOND)
    assert np.array_equal(stream._renderer.seen, same._renderer.seen)


def test_a_face_whose_renderer_is_made_already_costs_the_stream_nothing():
    stream, other = core(), portrait(2.0, 1.0, -1.0)
    ticks(stream, SECOND)
    made = stream.make_renderer(other)
    stream._make_renderer = lambda portrait, size: 1 / 0
    stream.change_portrait(other, made)
    assert len(made.seen) == 0 and made.size == 16
    ticks(stream, SECOND)
    assert len(made.seen) == 45


def test_the_default_is_one_of_the_latencies_that_were_measured():
    chosen = LATENCIES["balanced"]
    assert (StreamSettings().pace, StreamSettings().cushion) == (chosen.pace, chosen.cushion)


@pytest.mark.parametrize(
    "wrong",
    [{"fps": 0}, {"fps": 45.0}, {"size": 8}, {"size": 512.5}, {"seed": -1}, {"cushion": -1}, {"backlog": 0}],
)
def test_settings_that_cannot_be_are_refused_in_a_line(wrong):
    with pytest.raises(ValueError, match=f"^[^\n]*{next(iter(wrong))}[^\n]*$"):
        StreamSettings(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"hop": 0}, {"steps": 0}, {"brief": 0}, {"look_ahead": -1}, {"temperature": -0.1},
        {"temperature": float("nan")}, {"guidance": float("inf")},
    ],
)  # fmt: skip
def test_a_pace_that_cannot_be_is_refused_in_a_line(wrong):
    with pytest.raises(ValueError, match=f"^[^\n]*{next(iter(wrong))}[^\n]*$"):
        Pace(**wrong)
