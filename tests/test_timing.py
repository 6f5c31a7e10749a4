"""From latents at 25 Hz to frames: exact times, no judder, the same in any chunks, bounded memory."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.motion.timing import LATENT_RATE, Track, catmull_rom

RATES = (1, 5, 12, 24, 25, 30, 45, 50, 60, 120)


def frames_due(latents: int, fps: int) -> int:
    """Frames that `latents` latents settle: those with two latents after the one at or before them."""
    return next(j for j in itertools.count() if j * LATENT_RATE // fps + 2 >= latents)


class Timeline:
    """A track's frames as soon as they are known."""

    def __init__(self, fps: int):
        self.track, self.frames = Track(fps), 0

    def push(self, latents: np.ndarray) -> list[np.ndarray]:
        self.track.push(latents)
        due = []
        while self.track.knows(self.frames):
            due.append(self.track.take(self.frames))
            self.frames += 1
        return due


def ramp(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.float64)[:, None] * [1.0, -2.0]


@pytest.mark.parametrize("fps", RATES)
def test_frame_j_shows_time_j_over_fps(fps):
    timeline = Timeline(fps)
    shown = np.array(timeline.push(ramp(800)))
    assert len(shown) == timeline.frames == frames_due(800, fps)
    times = np.arange(len(shown)) * LATENT_RATE / fps
    later = times >= 1  # nothing lies before the first latent, so the way to the second is an ease-in
    assert np.abs(shown[later] - times[later, None] * [1.0, -2.0]).max() < 2e-6 * 800


@pytest.mark.parametrize("fps", [25, 45, 50, 60])
def test_frames_on_a_latent_are_that_latent(fps):
    latents = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    shown = Timeline(fps).push(latents)
    met = 0
    for j, frame in enumerate(shown):
        index, rest = divmod(j * LATENT_RATE, fps)
        if rest == 0:
            assert np.array_equal(frame, latents[index])
            met += 1
    assert met >= 12


@given(
    fps=st.sampled_from(RATES),
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=30),
    seed=st.integers(0, 99),
)
def test_chunks_do_not_show_and_frames_come_when_due(fps, sizes, seed):
    latents = np.random.default_rng(seed).normal(size=(sum(sizes), 3)).astype(np.float32)
    timeline, frames, at = Timeline(fps), [], 0
    for size in sizes:
        frames += timeline.push(latents[at : at + size])
        at += size
        assert len(frames) == (frames_due(at, fps) if at else 0)
    whole = Timeline(fps).push(latents)
    assert len(frames) == len(whole)
    assert all(np.array_equal(a, b) for a, b in zip(frames, whole, strict=True))


@given(seed=st.integers(0, 999), fine=st.sampled_from([8, 16]))
def test_speed_has_no_jumps(seed, fine):
    latents = np.random.default_rng(seed).uniform(-1, 1, (20, 2))
    shown = np.array(Timeline(LATENT_RATE * fine).push(latents))
    # Between values in -1..1 such a spline's second derivative is within 12; a polygon's corners exceed this.
    assert np.abs(np.diff(shown, 2, axis=0)).max() <= 12 / fine**2 * 1.01
    assert np.abs(shown).max() < 1.3


def test_a_spline_between_two_latents_starts_and_ends_on_them():
    rng = np.random.default_rng(0)
    before, a, b, after = rng.normal(size=(4, 6)).astype(np.float32)
    assert np.array_equal(catmull_rom(before, a, b, after, 0.0), a)
    assert np.allclose(catmull_rom(before, a, b, after, 1.0), b, atol=1e-6)
    along = 1 / 1024
    assert np.allclose((catmull_rom(before, a, b, after, along) - a) / along, (b - before) / 2, atol=0.02)


@pytest.mark.parametrize("fps", [1, 5, 25, 45, 60])
def test_memory_is_bounded_and_nothing_drifts(fps):
    timeline, count, most = Timeline(fps), 0, 0
    for start in range(0, 30_000, 4):  # twenty minutes, a hop at a time
        for frame in timeline.push(np.arange(start, start + 4, dtype=np.float64)[:, None]):
            if count * LATENT_RATE % fps == 0:
                assert frame[0] == count * LATENT_RATE // fps
            count += 1
        most = max(most, len(timeline.track.held))
    assert count == frames_due(30_000, fps)
    assert most <= 8 + LATENT_RATE // fps
