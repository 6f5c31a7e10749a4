"""Speech features: the same however the audio comes, never looking ahead, equal to what training saw."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.features import BANDS, FLOOR, HOP, LATENT_HOP, WINDOW, LogMel, hann, mel_filters, scale

SILENCE = scale(np.float32(FLOOR))


def noise(count: int, seed: int = 0) -> np.ndarray:
    """Noise that swells and fades, so that every feature differs."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(count) * 0.3 * np.abs(np.sin(np.arange(count) / 900))).astype(np.float32)


def in_chunks(samples: np.ndarray, sizes: list[int]) -> np.ndarray:
    """Features of samples that come in chunks of these sizes, over and over."""
    stream, parts, at, turn = LogMel(), [], 0, 0
    while at < len(samples):
        step = sizes[turn % len(sizes)]
        parts.append(stream.push(samples[at : at + step]))
        at, turn = at + step, turn + 1
    return np.concatenate(parts)


@given(
    count=st.integers(0, 6000),
    sizes=st.lists(st.one_of(st.integers(1, 3), st.integers(1, 3000)), min_size=1, max_size=8),
    seed=st.integers(0, 99),
)
def test_chunks_do_not_show(count, sizes, seed):
    samples = noise(count, seed)
    whole = LogMel().push(samples)
    assert whole.shape == (count // LATENT_HOP * 2, BANDS)
    assert whole.dtype == np.float32
    if count:
        assert np.array_equal(in_chunks(samples, sizes), whole)


@given(at=st.integers(0, 5999), seed=st.integers(0, 99))
def test_what_comes_later_never_changes_a_feature(at, seed):
    samples = noise(6000, seed)
    other = samples.copy()
    other[at:] = noise(6000 - at, seed + 1)
    ended = at // HOP  # feature k is made of samples before 320 (k + 1)
    assert np.array_equal(LogMel().push(samples)[:ended], LogMel().push(other)[:ended])


@given(at=st.integers(0, 5759))
def test_an_impulse_lands_in_the_features_whose_window_holds_it(at):
    samples = np.zeros(5760, np.float32)
    samples[at] = 1
    expected = np.full(len(samples) // HOP, FLOOR)
    for k in range(len(expected)):
        place = at - (HOP * (k + 1) - WINDOW)
        if 0 <= place < WINDOW:
            # an impulse has the same power everywhere, that of the window where it stands; filters sum to one
            expected[k] = max(float(hann()[place]) ** 2, FLOOR)
    heard = LogMel().push(samples)
    assert np.abs(heard - scale(expected)[:, None]).max() < 1e-4
    assert np.allclose(heard[: at // HOP], SILENCE, atol=1e-6)


def test_silence_and_loudness_are_where_the_scale_says():
    assert pytest.approx(-1.5) == SILENCE
    assert np.allclose(LogMel().push(np.zeros(LATENT_HOP * 3, np.float32)), SILENCE, atol=1e-6)
    loud = LogMel().push(np.random.default_rng(0).standard_normal(16000).astype(np.float32) * 0.3)
    assert loud[2:].max() < 2.5
    assert loud[2:].mean() > 0.5


def test_a_tone_wakes_the_band_it_belongs_to():
    for hertz in (200, 1000, 4000):
        tone = 0.5 * np.sin(2 * np.pi * hertz * np.arange(LATENT_HOP * 3) / 16000).astype(np.float32)
        band = LogMel().push(tone)[2:].mean(0).argmax()
        centre = mel_filters()[:, band].argmax() * 16000 / 512
        assert abs(centre - hertz) < 0.03 * hertz + 40


def test_filters_and_window_are_normalised():
    assert mel_filters().shape == (257, BANDS)
    assert np.allclose(mel_filters().sum(0), 1, atol=1e-5)
    assert (mel_filters() >= 0).all()
    assert pytest.approx(1, abs=1e-5) == float((hann() ** 2).sum())
    assert np.array_equal(hann(), hann()[::-1])


def test_training_hears_the_same():
    torch = pytest.importorskip("torch")
    from engine.training.stage2 import log_mel

    audio = np.stack([noise(LATENT_HOP * 20, 1), noise(LATENT_HOP * 20, 2) * 0.01])
    padded = np.pad(audio, ((0, 0), (WINDOW - HOP, 0)))
    batched = log_mel(torch.from_numpy(padded), torch.from_numpy(mel_filters()), torch.from_numpy(hann())).numpy()
    streamed = np.stack([LogMel().push(row) for row in audio])
    assert batched.shape == streamed.shape
    assert np.abs(batched - streamed).max() < 1e-4
