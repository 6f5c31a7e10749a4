"""The figures of evaluation, on signals and pictures whose figures are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.training import metrics
from engine.training.clips import Clip, fit_voice
from engine.training.evaluate import pair_voices
from engine.training.landmarks import eye_opening, head_motion, mouth_opening, regions
from engine.training.report import figure, jsonable

seeds = st.integers(0, 2**32 - 1)


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def speech(seed: int, count: int) -> np.ndarray:
    """Something that moves like a mouth: noise smoothed over a few frames, never negative."""
    wave = np.convolve(noise(seed, count + 8), np.ones(5) / 5, "same")[4:-4]
    return np.maximum(wave, 0)


def picture(seed: int, size: int = 48) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3)).astype(np.uint8)


# ---------------------------------------------------------------------------------------------- series


@given(seeds, st.integers(-5, 5), st.floats(0.01, 100), st.floats(-10, 10))
def test_a_known_lag_is_recovered(seed, lag, gain, offset):
    long = speech(seed, 90)
    real, made = long[10:80], gain * long[10 - lag : 80 - lag] + offset
    curve = metrics.lagged_correlations(real, made, 5)
    assert curve.argmax() - 5 == lag
    assert curve.max() == pytest.approx(1)


def test_unrelated_series_do_not_correlate_in_the_mean_but_each_has_a_best_lag():
    curves = [
        metrics.lagged_correlations(speech(seed, 30), speech(10_000 + seed, 30), 5) for seed in range(300)
    ]
    assert abs(np.mean(curves, 0)).max() < 0.06
    # Why the best lag of each clip is no honest figure:
    assert np.mean([curve.max() for curve in curves]) > 0.25


@given(seeds)
def test_correlation_knows_no_scale_no_offset_and_no_order(seed):
    one, other = noise(seed, 40), noise(seed + 1, 40)
    found = metrics.correlation(one, other)
    assert -1 <= found <= 1
    assert metrics.correlation(other, 3 * one - 2) == pytest.approx(found)
    assert metrics.correlation(one, -one) == pytest.approx(-1)


def test_a_mouth_that_does_not_move_correlates_with_nothing():
    assert metrics.correlation(np.full(30, 0.3), noise(0, 30)) == 0
    assert not metrics.lagged_correlations(noise(0, 30), np.full(30, 0.3), 5).any()


def test_series_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="cannot be compared"):
        metrics.lagged_correlations(np.zeros(30), np.zeros(29), 5)
    with pytest.raises(ValueError, match="cannot be compared"):
        metrics.lagged_correlations(np.zeros(6), np.zeros(6), 5)


@given(seeds, st.floats(0.1, 10))
def test_spread_and_jitter_grow_with_the_motion_and_ignore_where_it_is(seed, gain):
    points = noise(seed, 20, 7, 2)
    assert metrics.spread(gain * points + 5) == pytest.approx(gain * metrics.spread(points))
    assert metrics.jitter(gain * points + 5) == pytest.approx(gain * metrics.jitter(points))


def test_spread_and_jitter_of_motions_that_can_be_worked_out():
    times = np.arange(100.0)[:, None, None]
    steady = np.concatenate([times, 0 * times], 2)  # one point at one pixel a frame
    assert metrics.jitter(steady) == pytest.approx(0)
    assert metrics.spread(steady) == pytest.approx(np.arange(100).std())
    assert metrics.jitter(np.concatenate([times**2, 0 * times], 2)) == pytest.approx(2)


@pytest.mark.parametrize(
    ("dips", "blinks"),
    [
        ([], 0),
        ([(10, 4)], 1),
        ([(10, 4), (20, 3), (40, 5)], 3),
        ([(0, 3)], 1),
        ([(72, 3)], 1),
        ([(20, 13)], 0),  # longer than half a second: closed, not blinking
    ],
)
def test_blinks_are_short_dips(dips, blinks):
    opening = 0.3 + 0.01 * noise(1, 75)
    for start, length in dips:
        opening[start : start + length] = 0.08
    assert metrics.count_blinks(opening, 25) == blinks


def test_a_blink_that_flutters_is_one():
    opening = np.full(75, 0.3)
    opening[10:16] = 0.08, 0.05, 0.2, 0.06, 0.1, 0.2
    assert metrics.count_blinks(opening, 25) == 1


def test_the_interval_holds_the_mean_and_narrows_with_more_clips():
    def over_clips(samples):
        return samples.mean(-1)

    few, many = 2 + noise(3, 10), 2 + noise(3, 1000)
    low, high = metrics.bootstrap_interval(many, over_clips)
    assert low < 2 < high
    assert high - low == pytest.approx(4 / np.sqrt(1000), rel=0.2)
    wide = metrics.bootstrap_interval(few, over_clips)
    assert wide[1] - wide[0] > 3 * (high - low)
    assert np.isnan(metrics.bootstrap_interval(few[:2], over_clips)).all()


def test_a_figure_of_no_clips_is_not_a_number_and_becomes_null():
    assert jsonable(figure([])) == {"value": None, "low": None, "high": None, "n": 0}
    assert jsonable({"a": np.float32(0.5), "b": [np.int64(3), np.inf], "c": np.array([True, False])}) == {
        "a": 0.5,
        "b": [3, None],
        "c": [True, False],
    }


# ---------------------------------------------------------------------------------------------- pictures


@given(seeds)
def test_a_picture_against_itself_is_perfect(seed):
    one = picture(seed)
    everywhere = {"all": np.ones(one.shape[:2], bool)}
    error, squared, similarity = metrics.compare(one, one, everywhere)["all"]
    assert (error, squared) == (0, 0)
    assert similarity == pytest.approx(1)
    assert metrics.psnr(squared) == metrics.PSNR_LIMIT


def test_errors_that_can_be_worked_out_stay_in_their_region():
    one = np.full((64, 64, 3), 100, np.uint8)
    other = one.copy()
    other[:32] += 51
    top = np.zeros((64, 64), bool)
    top[:32] = True
    found = metrics.compare(one, other, {"top": top, "bottom": ~top})
    assert found["top"][0] == pytest.approx(0.2)
    assert metrics.psnr(found["top"][1]) == pytest.approx(-20 * np.log10(0.2))
    assert (found["bottom"][:2] == 0).all()


def test_a_region_is_judged_as_in_the_whole_picture():
    one, other = picture(5, 80), picture(6, 80)
    spot = np.zeros((80, 80), bool)
    spot[30:44, 20:33] = True
    found = metrics.compare(one, other, {"spot": spot})["spot"]
    whole = metrics.ssim_map(metrics.luma(one), metrics.luma(other))
    assert found[2] == pytest.approx(whole[spot].mean(), rel=1e-5)


def test_ssim_of_flat_pictures_follows_its_formula_and_falls_with_noise():
    dark, light = np.full((32, 32), 50.0), np.full((32, 32), 100.0)
    c1 = (0.01 * 255) ** 2
    expected = (2 * 50 * 100 + c1) / (50**2 + 100**2 + c1)
    assert metrics.ssim_map(dark, light) == pytest.approx(np.full((32, 32), expected))
    one = 128 + 30 * noise(0, 64, 64)
    found = [metrics.ssim_map(one, one + level * noise(1, 64, 64)).mean() for level in (0, 5, 20, 80)]
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.5


def test_blurring_takes_detail_away():
    import cv2

    sharp = picture(4)
    everywhere = np.ones(sharp.shape[:2], bool)
    blurred = cv2.GaussianBlur(sharp, (5, 5), 1.0)
    assert metrics.laplacian_energy(blurred, everywhere) < 0.2 * metrics.laplacian_energy(sharp, everywhere)
    assert metrics.laplacian_energy(np.full_like(sharp, 9), everywhere) == pytest.approx(0, abs=1e-3)


def test_cosine_of_angles():
    assert metrics.cosine(np.array([1.0, 0]), np.array([0, 2.0])) == 0
    assert metrics.cosine(np.array([1.0, 1]), np.array([3.0, 3])) == pytest.approx(1)


# ---------------------------------------------------------------------------------------------- landmarks


def face(seed: int = 0) -> np.ndarray:
    """Landmarks of no face in particular: what the measures read is in its place, the rest is scattered."""
    points = np.random.default_rng(seed).uniform(0.3, 0.7, (478, 3)).astype(np.float32)
    points[:, 2] *= 0.2
    for (outer, inner), x in (((33, 133), 0.4), ((263, 362), 0.6)):
        points[outer, :2], points[inner, :2] = (x - 0.04, 0.4), (x + 0.04, 0.4)
    points[2, :2] = 0.5, 0.6
    for x, upper, lower in ((0.48, 82, 87), (0.5, 13, 14), (0.52, 312, 317)):
        points[upper, :2], points[lower, :2] = (x, 0.65), (x, 0.67)
    return points


def turned(points: np.ndarray, yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Points turned about the middle of the picture: first rolled, then nodded, then turned (degrees)."""
    a, b, c = np.deg2rad([yaw, pitch, roll])
    about_y = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    middle = np.array([0.5, 0.5, 0])
    return ((points - middle) @ (about_z @ about_y @ about_x).T + middle).astype(np.float32)


@given(st.floats(0.5, 2), st.floats(-0.2, 0.2), st.floats(-90, 90))
def test_mouth_opening_knows_no_size_no_place_and_no_roll(scale, shift, roll):
    points = face()
    moved = scale * turned(points, 0, 0, roll) + np.float32(shift)
    assert mouth_opening(moved[None])[0] == pytest.approx(0.1, rel=1e-3)  # 0.02 over 0.2


def test_mouth_opening_follows_the_lower_lip_alone():
    points = np.stack([face()] * 3)
    points[1, [87, 14, 317], 1] += 0.04
    points[2, 0] += 0.1  # the outer lip
    assert mouth_opening(points) == pytest.approx([0.1, 0.3, 0.1], rel=1e-3)


def test_eye_opening_is_height_over_width():
    points = np.stack([face()] * 2)
    for pairs, x in ((((160, 144), (158, 153)), 0.4), (((385, 380), (387, 373)), 0.6)):
        for up, down in pairs:
            points[:, up, :2], points[:, down, :2] = (x, 0.388), (x, 0.412)
            points[1, up, 1] = points[1, down, 1] = 0.4
    assert eye_opening(points) == pytest.approx([0.3, 0], abs=1e-4)


@given(st.floats(-40, 40), st.floats(-30, 30), st.floats(-40, 40))
def test_head_motion_finds_the_angles(yaw, pitch, roll):
    points = face()
    angles, moved = head_motion(turned(points, yaw, pitch, roll)[None], points)
    assert angles[0] == pytest.approx([yaw, pitch, roll], abs=0.1)
    still, at_rest = head_motion(points[None], points)
    assert still[0] == pytest.approx([0, 0, 0], abs=0.05)
    assert moved.shape == at_rest.shape


@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(0, 2))
def test_regions_are_never_empty_even_when_the_face_leaves_the_picture(x, y, scale):
    points = (face() - 0.5) * np.float32(scale) + np.array([0.5 + x, 0.5 + y, 0], np.float32)
    for mask in regions(points, 64).values():
        assert mask.shape == (64, 64)
        assert mask.any()


# ---------------------------------------------------------------------------------------------- voices


@given(st.integers(1, 5000), st.integers(1, 6), st.booleans())
def test_a_voice_is_made_to_last_as_long_as_the_frames(length, frames, loop):
    samples = noise(0, length).astype(np.float32)
    fitted = fit_voice(samples, frames, loop)
    assert fitted.shape == (frames * 640,)
    assert fitted.dtype == np.float32
    shared = min(length, len(fitted))
    assert (fitted[:shared] == samples[:shared]).all()
    if len(fitted) > length:
        assert fitted[length] == (samples[0] if loop else 0)


@given(st.lists(st.tuples(st.sampled_from([None, "a", "b", "c"]), st.booleans()), max_size=12))
def test_the_other_voice_is_of_another_clip_and_of_another_person_where_there_is_one(rows):
    clips = [
        Clip(path=None, name=str(index), source="s", identity=identity, audio=audio)
        for index, (identity, audio) in enumerate(rows)
    ]
    for clip, other in zip(clips, pair_voices(clips), strict=True):
        rest = [c for c in clips if c.audio and c is not clip]
        if not clip.audio or not rest:
            assert other is None
            continue
        assert other in rest
        strangers = [c for c in rest if clip.identity is None or c.identity != clip.identity]
        assert other in strangers or not strangers


def test_other_voices_are_lent_once_while_they_last():
    clips = [Clip(None, str(i), "s", None, True) for i in range(7)]
    assert len({other.name for other in pair_voices(clips)}) == 7
