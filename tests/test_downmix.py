"""Many channels into one: as loud as mono, whatever they are, and the same however they are cut."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.downmix import ORDERS, Downmix, weights
from engine.speech import SAMPLE_RATE, SpeechInput, level_db, read_voice

RATES = (8_000, 16_000, 44_100, 48_000)


@pytest.fixture(scope="module")
def voice(assets) -> np.ndarray:
    """Four seconds of the bundled one at 24 kHz, which begin with words."""
    return read_voice(assets / "voice.flac").samples[: 4 * 24_000, 0]


def put(voice: np.ndarray, channels: int, *gains: float) -> np.ndarray:
    """(n, channels): the voice in the first channels, each with a gain."""
    return voice[:, None] * np.float32([*gains, *[0] * (channels - len(gains))])


def mixed(samples: np.ndarray, rate: int = 24_000, sizes: tuple[int, ...] = ()) -> np.ndarray:
    mix, parts, at, turn = Downmix(rate, samples.shape[1]), [], 0, 0
    while at < len(samples):
        size = sizes[turn % len(sizes)] if sizes else len(samples)
        parts.append(mix.push(samples[at : at + size]))
        at, turn = at + size, turn + 1
    return np.concatenate([*parts, mix.finish()])


def change(samples: np.ndarray, voice: np.ndarray, rate: int = 24_000) -> float:
    """dB by which the mix is louder than the voice alone."""
    return level_db(mixed(samples, rate)) - level_db(voice)


@settings(max_examples=40)
@given(
    rate=st.sampled_from(RATES),
    channels=st.integers(1, 9),
    seconds=st.floats(0, 0.3),
    kinds=st.lists(st.sampled_from(["noise", "one", "opposite", "same", "silence"]), min_size=1, max_size=5),
    sizes=st.lists(st.sampled_from([1, 7, 160, 441, 479, 480, 4096]), min_size=1, max_size=4),
)
def test_any_cut_gives_the_same_bits(rate, channels, seconds, kinds, sizes):
    rng, parts = np.random.default_rng(0), []
    for kind in kinds:
        part = rng.uniform(-0.5, 0.5, (round(seconds * rate), channels)).astype(np.float32)
        if kind in ("one", "opposite", "same"):
            place = np.arange(channels)
            part[:] = part[:, :1] * {"one": place == 0, "same": 1, "opposite": (-1) ** place}[kind]
        parts.append(part * (kind != "silence"))
    samples = np.concatenate(parts)
    if min(sizes) < 100:
        sizes.append(997)
    whole = mixed(samples, rate)
    assert len(whole) == len(samples) and whole.dtype == np.float32 and np.abs(whole).max(initial=0) <= 1
    assert mixed(samples, rate, tuple(sizes)).tobytes() == whole.tobytes()


def test_one_channel_and_ordinary_stereo_are_what_they_were(voice):
    assert np.array_equal(mixed(voice[:, None]), voice)
    left, right = voice, np.roll(voice, 5000)
    assert np.array_equal(mixed(np.stack([left, right], 1)), (left + right) / 2)


@pytest.mark.parametrize("channels", [2, 3, 4, 5, 6, 7, 8, 12])
def test_the_same_in_every_channel_is_as_loud_as_mono(voice, channels):
    assert change(put(voice, channels, *[1] * channels), voice) == pytest.approx(0, abs=0.05)
    loud = np.ones((4800, channels), np.float32)
    assert mixed(loud) == pytest.approx(loud[:, 0], abs=1e-6)


@pytest.mark.parametrize("channels", sorted(ORDERS))
def test_each_loudspeaker_counts_as_in_ffmpeg(voice, channels):
    """Its matrix without the scaling: centre 0 dB, left and right -3, surrounds -6, no LFE."""
    for place, name in enumerate(ORDERS[channels]):
        heard = change(put(voice, channels, *[0] * place, 1), voice)
        if name == "LFE":
            assert heard < -60
        else:
            expected = {"FC": 0, "FL": -3.01, "FR": -3.01}.get(name, -6.02)
            assert heard == pytest.approx(expected, abs=0.05), name
    assert change(put(voice, channels, 1, 1), voice) == pytest.approx(0, abs=0.05)  # in the middle between two


@pytest.mark.parametrize("layout", ["3.0", "4.0", "quad", "5.0", "5.1", "5.1(side)", "6.1", "7.1", "7.1(wide)"])
def test_the_weights_are_those_of_ffmpeg(layout):
    """As its resampler mixes floats, which it does not scale. Wide fronts it does not mix at all."""
    import av

    channels = av.AudioLayout(layout).channels
    frame = av.AudioFrame.from_ndarray(np.full((1, 64 * len(channels)), 0.1, np.float32), format="flt", layout=layout)
    frame.sample_rate = SAMPLE_RATE
    (made,) = av.AudioResampler("flt", "mono", SAMPLE_RATE).resample(frame)
    names = tuple(channel.name for channel in channels)
    ours = sum(weights(len(channels), names))
    assert made.to_ndarray()[0, 30] == pytest.approx(0.1 * ours, rel=1e-4), names


@pytest.mark.parametrize(
    "gains",
    [(1, -1), (1, -0.9), (0.8, -1), (1, -0.5), (1, -1, 0, 0, 0, 0), (0, 0, 0, 0, 1, -1), (1, -1, 0, 0, 0, 0, 0, 0)],
)
def test_a_voice_that_cancels_itself_is_as_loud_as_mono(voice, gains):
    """Opposite phase, alike or not, in two channels of two, six or eight."""
    assert change(put(voice, len(gains), *gains), voice) == pytest.approx(0, abs=0.3)


def test_a_voice_turns_upside_down_and_back_without_a_click(voice):
    """The right channel is turned over for a second, and again: after 0.2 s the voice is back, and no step is larger
    than those of the voice."""
    second = 24_000
    # a steady tone shows every step
    tone = (0.5 * np.sin(2 * np.pi * 200 * np.arange(5 * second) / second)).astype(np.float32)
    sign = np.where((np.arange(5 * second) // second) % 2 == 1, -1, 1).astype(np.float32)
    # turned over where it is zero
    out = mixed(np.stack([tone, tone * sign], 1))
    for begin in range(5):
        part = slice(begin * second + second // 5, (begin + 1) * second)
        assert level_db(out[part]) == pytest.approx(level_db(tone), abs=0.1)
    assert np.abs(np.diff(out)).max() < 1.1 * np.abs(np.diff(tone)).max()


def test_noise_under_a_cancelled_voice_and_pauses_do_not_bring_the_loss_back(voice):
    noise = np.random.default_rng(0).standard_normal((len(voice), 2)).astype(np.float32) * 0.001
    voice = voice.copy()
    voice[24_000:48_000] = 0  # a pause, in which both channels are noise
    out = mixed(put(voice, 2, 1, -1) + noise)
    for part in (slice(0, 24_000), slice(48_000, None)):
        assert level_db(out[part]) - level_db(voice[part]) == pytest.approx(0, abs=0.3)


def test_ordinary_stereo_rooms_are_left_alone(voice):
    """Two microphones of which one hears 0.3 ms later and softer, with an echo: never one of them alone."""
    rng = np.random.default_rng(1)
    for delay, gain in ((7, 0.8), (12, 1.0), (24, 0.5)):
        rooms = [rng.standard_normal(2400) * np.exp(-np.arange(2400) / 500) * 0.03 for _ in "lr"]
        echo = [np.convolve(voice, room)[: len(voice)] for room in rooms]
        both = np.stack([voice + echo[0], gain * np.roll(voice, delay) + echo[1]], 1).astype(np.float32) / 2
        assert np.array_equal(mixed(both), (both[:, 0] + both[:, 1]) / 2)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("gains", [(1,), (1, 1), (1, -1), (0, 0, 1, 0, 0, 0), (0, 0, 1, 0, 0, 0, 0, 0), (1,) * 8])
def test_the_engine_hears_every_form_as_loud(rate, gains):
    tone = (0.25 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)).astype(np.float32)
    samples = put(tone, len(gains), *gains)
    stream = SpeechInput(rate, len(gains))
    heard = np.concatenate([stream.push((samples * 32767).astype(np.int16)), stream.finish()])
    assert len(heard) == SAMPLE_RATE
    assert level_db(heard) == pytest.approx(20 * np.log10(0.25 / np.sqrt(2)), abs=0.1)
