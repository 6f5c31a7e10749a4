"""Voice in, frames out: the same however the voice comes, as many as it is long, alive in silence."""

from collections.abc import Callable
from math import ceil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.features import SAMPLE_RATE
from engine.head import Frame, Head, Model, Pace, Style
from engine.renderer.cpu import CpuRenderer
from engine.speech import VoiceError
from engine.style import statistics

SIZE = 128


@pytest.fixture(scope="module")
def head_of(weights, ada_portrait) -> Callable[..., Head]:
    """Makes heads on one model and one portrait, which is prepared once: that is the dear part."""
    model = Model.load(weights)
    prepared = model.prepare(ada_portrait)
    object.__setattr__(model, "prepare", lambda portrait, backdrop=None: prepared)

    def make(fps: int = 25, seed: int = 0, **more: object) -> Head:
        return Head(model, ada_portrait, fps=fps, size=SIZE, seed=seed, **more)

    return make


@pytest.fixture
def unpainted(monkeypatch):
    """Frames are not painted: for tests of when there is one, not of what it shows."""
    monkeypatch.setattr(CpuRenderer, "render", lambda self, coefficients: np.zeros((1, 1, 3), np.uint8))


def voice(seconds: float, seed: int = 0) -> np.ndarray:
    """Something like syllables: a buzz that comes and goes, with some noise."""
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    rng = np.random.default_rng(seed)
    buzz = sum(np.sin(2 * np.pi * (110 + 10 * seed) * k * t) / k for k in range(1, 12))
    return ((0.15 * buzz + 0.02 * rng.standard_normal(len(t))) * np.abs(np.sin(2 * np.pi * 2.5 * t))).astype(np.float32)


def listen(head: Head) -> list[np.ndarray]:
    """Every latent that the head's motion makes from now on."""
    motion = head.performance.motion
    made, push = [], motion.push
    motion.push = lambda features: made.append(push(features)) or made[-1]
    return made


def speak(head: Head, samples: np.ndarray, sizes: list[int]) -> tuple[list[Frame], np.ndarray]:
    """Frames and latents of a voice given in chunks of these sizes, over and over."""
    latents, frames, at, turn = listen(head), [], 0, 0
    while at < len(samples):
        step = sizes[turn % len(sizes)]
        frames += head.push(samples[at : at + step])
        at, turn = at + step, turn + 1
    frames += head.finish()
    return frames, np.concatenate([part for part in latents if len(part)])


# The fixture makes heads, it holds no state of them.
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.one_of(
        st.lists(st.integers(1, SAMPLE_RATE), min_size=1, max_size=5),
        st.lists(st.integers(1, 700), min_size=2, max_size=9),
    ),
    fps=st.sampled_from([25, 45]),
    seed=st.integers(0, 2**32 - 1),
)
def test_offline_equals_streaming(head_of, sizes, fps, seed):
    samples = voice(0.8)
    if max(sizes) < 100:  # thousands of pushes; tiny pieces alone are of test_sample_by_sample_equals_at_once
        sizes = [*sizes, 997]
    whole, latents = speak(head_of(fps, seed), samples, [len(samples)])
    frames, streamed = speak(head_of(fps, seed), samples, sizes)
    assert len(whole) == ceil(0.8 * fps)
    assert np.array_equal(streamed, latents)
    assert [frame.index for frame in frames] == [frame.index for frame in whole] == list(range(len(whole)))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(frames, whole, strict=True))


def test_sample_by_sample_equals_at_once(head_of):
    samples = voice(0.5)
    whole, latents = speak(head_of(), samples, [len(samples)])
    frames, streamed = speak(head_of(), samples, [1])
    assert np.array_equal(streamed, latents)
    assert all(np.array_equal(a.image, b.image) for a, b in zip(frames, whole, strict=True))


def test_a_voice_makes_a_moving_face(head_of, ada_portrait):
    frames = head_of(45).push(voice(1.2))
    assert len(frames) > 30
    for frame in frames:
        assert frame.image.shape == (SIZE, SIZE, 3)
        assert frame.image.dtype == np.uint8
        assert frame.image.flags.c_contiguous
    assert len({frame.image.tobytes() for frame in frames}) > 0.9 * len(frames)
    assert not any(np.shares_memory(a.image, b.image) for a in frames[:3] for b in frames[3:6])


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.one_of(st.integers(0, 3), st.integers(0, 9000)), cut=st.integers(0, 9000))
@pytest.mark.parametrize("fps", [1, 25, 30, 45, 60, 120])
def test_as_many_frames_as_the_voice_is_long(head_of, unpainted, fps, count, cut):
    head, samples = head_of(fps), voice(count / SAMPLE_RATE)
    frames = head.push(samples[:cut]) + head.push(samples[cut:])
    assert len(frames) <= ceil(count * fps / SAMPLE_RATE)  # never ahead of the voice
    frames += head.finish()
    assert len(frames) == ceil(count * fps / SAMPLE_RATE)
    assert [frame.index for frame in frames] == list(range(len(frames)))
    assert head.finish() == []


def test_frames_come_within_the_pace(head_of, unpainted):
    """Live, a frame may lag its voice by a hop, its look-ahead, the spline's two latents and a feature block."""
    head, given = head_of(25, pace=Pace(hop=3, look_ahead=2)), 0
    for second in range(4):
        for chunk in np.split(voice(1.0, second), 50):
            given += len(head.push(chunk))
        assert given >= 25 * (second + 1) - (3 + 2 + 2 + 1)


def test_same_seed_same_video_other_seed_other_video(head_of):
    samples = voice(0.8)
    videos = [speak(head_of(seed=seed), samples, [4000]) for seed in (5, 5, 6)]
    assert np.array_equal(videos[0][1], videos[1][1])
    assert all(np.array_equal(a.image, b.image) for a, b in zip(videos[0][0], videos[1][0], strict=True))
    assert not np.array_equal(videos[0][1], videos[2][1])
    assert any((a.image != b.image).any() for a, b in zip(videos[0][0], videos[2][0], strict=True))


def test_another_voice_moves_another_way(head_of):
    first, second = (speak(head_of(), voice(0.8, seed), [4000])[1] for seed in (0, 4))
    assert np.abs(first - second).max() > 1e-3


def test_silence_idles(head_of):
    frames, latents = speak(head_of(), np.zeros(SAMPLE_RATE, np.float32), [1600])
    assert len(frames) == 25
    assert np.isfinite(latents).all()
    assert (latents.std(0) > 0).all()
    assert any((frame.image != frames[0].image).any() for frame in frames)


def test_no_voice_no_frames(head_of):
    head = head_of()
    assert head.push(np.zeros(0, np.float32)) == []
    assert head.finish() == []


@pytest.mark.parametrize("bad", [np.array([np.nan], np.float32), np.zeros((4, 2)), np.zeros(4, np.int32)])
def test_what_is_no_voice_is_refused_and_is_not_heard(head_of, unpainted, bad):
    head = head_of()
    with pytest.raises(VoiceError):
        head.push(bad)
    assert head.finish() == []


def test_whole_numbers_are_as_loud_as_what_they_stand_for(head_of, unpainted):
    whole = (voice(0.5) * 20_000).astype(np.int16)
    _, latents = speak(head_of(), whole, [len(whole)])
    _, expected = speak(head_of(), whole / np.float32(32768), [len(whole)])
    assert np.array_equal(latents, expected)


@pytest.mark.parametrize("wrong", [{"fps": 0}, {"size": 8}, {"seed": -1}])
def test_a_form_that_cannot_be_is_refused_before_anything_is_made(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Head(None, None, **wrong)


def test_style_moves_what_the_network_is_told(head_of, untrained):
    model = Model.load(untrained.directory)
    latent = np.linspace(-1, 1, 6).astype(np.float32)
    plain = statistics(model, latent, Style())
    # lips and lids, the first four numbers, are where people's are who speak: see below
    assert np.allclose(plain.mean[4:], (0.9 * latent + model.arrays["mean_from_portrait"][-1])[4:], atol=1e-6)
    assert np.array_equal(plain.deviation, model.arrays["deviation"])
    turned = statistics(model, latent, Style(pose=(10, -5, 2)))
    way = np.array([10, -5, 2]) @ model.arrays["degrees"]
    assert np.allclose((turned.mean - plain.mean)[4:], way[4:], atol=1e-6)
    lively = statistics(model, latent, Style(intensity=2))
    lips = np.square(model.arrays["lips"]).sum(0)  # shares of each number: what moves the lips is left as wide as it is
    assert np.allclose(lively.deviation, np.sqrt(lips + 4 * (1 - lips)) * plain.deviation)
    still = statistics(model, latent, Style(intensity=0))
    assert np.allclose(still.deviation, np.sqrt(lips) * plain.deviation, atol=2e-3)
    assert np.array_equal(lively.mean, plain.mean)
    assert (statistics(model, latent, Style(intensity=0)).deviation > 0).all()


def test_lips_of_a_stranger_who_speaks_are_as_far_apart_as_peoples(untrained):
    model = Model.load(untrained.directory)
    latent = np.linspace(-0.3, 0.3, 6).astype(np.float32)
    own = np.append(latent, 1.0).astype(np.float32) @ model.arrays["mean_from_portrait"]
    lips, lids = model.gauges(own)[0] + 0.002, model.gauges(latent)[1]
    model.arrays["speaking"] = np.array([lips], np.float32)
    told = statistics(model, latent, Style())
    before, after = (np.abs(model.gauges(mean) - [lips, lids]) for mean in (own, told.mean))
    assert after[0] < 0.1 * before[0] and after[1] < 0.1 * before[1]  # and eyes are as open as in the portrait
    assert np.allclose(told.mean[4:], own[4:], atol=1e-6)  # along what moves lips and lids alone


@pytest.mark.parametrize("style", [Style(intensity=0), Style(intensity=2), Style(pose=(20, 15, -15))])
def test_any_style_speaks(head_of, style):
    plain = speak(head_of(), voice(0.6), [9600])[1]
    frames, latents = speak(head_of(style=style), voice(0.6), [9600])
    assert len(frames) == 15
    assert np.isfinite(latents).all()
    assert not np.array_equal(latents, plain)


def test_state_is_bounded_over_a_long_voice(head_of, unpainted):
    head = head_of(pace=Pace(hop=4, look_ahead=3, steps=1))
    motion, track, features = head.performance.motion, head.performance.track, head.performance.features
    for second in range(40):
        head.push(voice(1.0, second % 3))
        if second == 4:
            sizes = (len(motion.state.past), len(track.held))
    assert len(motion.state.past) <= sizes[0]
    assert len(track.held) <= sizes[1] + 4
    assert len(features.pending) <= 80 + 640
    assert len(motion.state.features) <= 2 * motion.window + 2 * 25
