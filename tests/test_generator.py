"""Streaming motion, with a stand-in for the trained network: what it is asked, and that chunks and time do not show."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.features import BANDS, FLOOR, scale
from engine.motion.generator import BEARING, FREE, MOMENTUM, POSTURE, REACH, STEADY, MotionGenerator, Pace, Statistics
from engine.motion.samplers import times

WINDOW, LATENT = 12, 3
LIPS, LIDS, HEAD = np.array([[[0.6, 0.8, 0.0]], [[0.8, -0.6, 0.0]], [[0.0, 0.0, 1.0]]], np.float32)
#: A deviation of the third number is half a degree of yaw.
DEGREES = np.array([[0, 0, 2.0], [0.1, 0, 0], [0, 0.1, 0]], np.float32)
SILENCE = scale(np.float32(FLOOR))


class Fake:
    """Not the trained network: a velocity that depends on everything it is told, and a record of what that was."""

    def __init__(self, keep: bool = True):
        self.calls: list[dict[str, np.ndarray]] = []
        self.keep = keep

    def __call__(self, **given: np.ndarray) -> np.ndarray:
        if self.keep:
            self.calls.append({name: value.copy() for name, value in given.items()})
        heard = given["speech"][..., :LATENT] * given["hears"][:, None, None]
        known = given["statistics"][:, None, :LATENT] * given["knows"][:, None, None]
        around = (given["latents"] * given["present"][..., None]).sum(1, keepdims=True)
        return np.tanh(given["latents"] - 0.3 * around + heard + known * given["noise"][..., None])


def listen(features: np.ndarray) -> np.ndarray:
    """Not the trained network: the features themselves, those of one latent side by side."""
    return features.reshape(len(features), WINDOW, -1)


def generator(denoiser: Fake | None = None, seed: int = 0, **pace: float) -> MotionGenerator:
    rng = np.random.default_rng(5)
    centre, mean, first = (rng.normal(size=LATENT).astype(np.float32) for _ in range(3))
    total, within, deviation = (rng.uniform(0.2, 0.8, LATENT).astype(np.float32) for _ in range(3))
    return MotionGenerator(
        denoiser or Fake(keep=False), listen, WINDOW, centre, total, within, within, LIPS, LIDS, HEAD, DEGREES,
        Statistics(mean, deviation), first, seed,
        Pace(**({"hop": 3, "look_ahead": 2, "steps": 2} | pace)),
    )  # fmt: skip


def speech(latents: int, seed: int = 0) -> np.ndarray:
    """Features of so many latents."""
    return np.random.default_rng(seed).normal(size=(latents * 2, BANDS)).astype(np.float32)


def unsteadied(given: np.ndarray) -> np.ndarray:
    """Normalised latents (n, 3) as given out, the portrait's own first -> as the sampler made them."""
    step = np.linalg.inv(np.eye(LATENT) - (1 - STEADY) * HEAD.T @ HEAD)
    for _ in range(2):
        given = np.concatenate([given[:1], given[:-1] + np.diff(given, axis=0) @ step])
    return given


def standing(past: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What of a past (n, 3) is shown, and where its head is centred meanwhile (3,)."""
    turned = past @ HEAD[0]
    stood = np.where(np.arange(len(past)) < len(past) - MOMENTUM, turned[-MOMENTUM:][0], turned)
    posture = POSTURE * stood.mean()
    return past + np.outer(stood - posture - turned, HEAD[0]), posture * HEAD[0]


def test_heads_are_steadied_and_lips_and_lids_are_not():
    fake = Fake()
    stream = generator(fake, hop=1, look_ahead=0)
    given = (np.concatenate([stream.first[None], stream.push(speech(30))]) - stream.statistics.mean) / stream.within
    for number, call in enumerate(fake.calls[2::2], 1):  # what was made is the next hop's past, its head's place aside
        off = call["latents"][0, 10] - unsteadied(given)[number]
        assert np.allclose(off - off @ HEAD[0] * HEAD[0], 0, atol=1e-4)
    made = unsteadied(given)
    assert np.abs(np.diff(given @ HEAD[0], 2)).mean() < 0.4 * np.abs(np.diff(made @ HEAD[0], 2)).mean()
    for sharp in (LIPS, LIDS):
        assert np.allclose(given @ sharp.T, made @ sharp.T, atol=1e-5)


def test_an_interrupt_goes_on_from_what_was_given_out():
    stream = generator()
    given = stream.push(speech(14))
    stream.interrupt(3)
    last = (given[-4] - stream.statistics.mean) / stream.swing
    assert np.allclose(stream.state.steadied[-1], last, atol=1e-5)
    assert len(stream.state.eased) == len(stream.state.steadied) == len(stream.state.past)


def test_the_first_window_begins_with_the_portrait():
    fake = Fake()
    stream = generator(fake)
    heard = speech(5)
    assert len(stream.push(heard)) == 3
    assert len(fake.calls) == 2
    first = fake.calls[0]
    assert {name: value.shape for name, value in first.items()} == {
        "latents": (1, 12, 3), "noise": (1, 12), "past": (1, 12), "present": (1, 12), "speech": (1, 12, 128),
        "hears": (1,), "statistics": (1, 6), "knows": (1,),
    }  # fmt: skip
    assert all(value.dtype == np.float32 for value in first.values())
    assert first["past"][0].tolist() == [0] * 6 + [1] + [0] * 5
    assert first["present"][0].tolist() == [0] * 6 + [1] * 6
    own = (stream.first - stream.statistics.mean) / stream.within
    posture = POSTURE * own @ HEAD[0] * HEAD[0]
    assert np.allclose(first["latents"][0, 6], own - posture, atol=1e-6)
    assert (first["latents"][0, :6] == 0).all()
    assert np.array_equal(first["speech"][0, 7:], heard.reshape(5, 128))
    assert np.allclose(first["speech"][0, :7], SILENCE)  # nothing was said before the stream began
    assert first["hears"] == first["knows"] == 1
    assert np.allclose(first["statistics"][0], stream.condition(posture), atol=1e-6)


def test_later_windows_hold_what_was_made_clean_and_the_new_noisy():
    fake = Fake()
    stream = generator(fake)
    heard = speech(40)
    made = stream.push(heard)
    assert len(made) == 36  # in hops of 3, each with 2 of look-ahead
    levels = times(2)[:-1]
    normalised = np.concatenate([stream.first[None], made])
    normalised = unsteadied((normalised - stream.statistics.mean) / stream.within)
    for number, call in enumerate(fake.calls):
        hop, step = divmod(number, 2)
        count = min(1 + 3 * hop, 7)  # the past that fits beside 3 new and 2 ahead
        past = np.arange(12) >= 7 - count
        past[7:] = False
        assert np.array_equal(call["past"][0], past)
        assert np.array_equal(call["present"][0], np.arange(12) >= 7 - count)
        assert np.allclose(call["noise"][0], np.where(past, 0, levels[step]))
        shown, _ = standing(normalised[1 + 3 * hop - count : 1 + 3 * hop])
        assert np.allclose(call["latents"][0, past], shown, atol=1e-5)
        # a feature stands beside its latent; the portrait's own latent, number -1, was silent
        said = np.concatenate([np.full((2, BANDS), SILENCE, np.float32), heard])
        from_latent = 1 + 3 * hop - count
        wanted = said[2 * from_latent : 2 * (3 * hop + 6)]
        assert np.array_equal(call["speech"][0, 7 - count :], wanted.reshape(-1, 128))


def test_temperature_quietens_the_lips_alone_and_lids_have_more_of_it():
    def noise(temperature: float, blinks: float = 1.0) -> np.ndarray:
        fake = Fake()
        stream = generator(fake, temperature=temperature)
        stream.blinks = blinks
        stream.push(speech(5))
        return fake.calls[0]["latents"][0, 7:]

    full, half, none = noise(1.0), noise(0.5), noise(0.0)
    plain = np.random.default_rng((0, 0)).standard_normal((5, LATENT), np.float32)
    assert np.allclose(full @ LIPS.T, plain @ LIPS.T, atol=1e-6)
    assert np.allclose(full @ LIDS.T, plain @ LIDS.T, atol=1e-6)
    assert np.allclose(noise(1.0, 2.5) @ LIDS.T, 2.5 * plain @ LIDS.T, atol=1e-6)
    assert np.allclose(full[:, 2], plain[:, 2], atol=1e-6)
    beside = np.array([[0.8, -0.6, 0.0], [0.0, 0.0, 1.0]], np.float32)
    assert np.abs(full @ LIPS.T).max() > 0.3
    assert np.allclose(half @ LIPS.T, 0.5 * full @ LIPS.T, atol=1e-6)
    assert np.allclose(none @ LIPS.T, 0, atol=1e-6)
    for other in (half, none):
        assert np.allclose(other @ beside.T, full @ beside.T, atol=1e-6)


def test_the_noise_of_a_hop_depends_on_seed_and_number_alone():
    streams = [Fake() for _ in range(3)]
    generator(streams[0], seed=7).push(speech(20, 1))
    generator(streams[1], seed=7).push(speech(20, 2))
    generator(streams[2], seed=8).push(speech(20, 1))
    noise = [[call["latents"][0, 7:] for call in fake.calls[::2]] for fake in streams]
    assert all(np.array_equal(a, b) for a, b in zip(noise[0], noise[1], strict=True))
    assert all((a != b).all() for a, b in zip(noise[0], noise[2], strict=True))
    assert len({part.tobytes() for part in noise[0]}) == len(noise[0])
    assert np.abs(np.mean(noise)) < 0.25
    assert 0.7 < np.std(noise) < 1.3


@given(
    cuts=st.lists(st.integers(0, 17), min_size=1, max_size=30),
    hop=st.integers(1, 5),
    look_ahead=st.integers(0, 4),
    guidance=st.sampled_from([1.0, 1.7]),
    seed=st.integers(0, 2**32 - 1),
)
def test_chunks_do_not_show(cuts, hop, look_ahead, guidance, seed):
    pace = {"hop": hop, "look_ahead": look_ahead, "guidance": guidance}
    heard = speech(sum(cuts) // 2 + 1)[: sum(cuts)]
    stream, parts, at = generator(seed=seed, **pace), [], 0
    for cut in cuts:
        parts.append(stream.push(heard[at : at + cut]))
        at += cut
        # nothing is held back longer than the pace says
        assert sum(map(len, parts)) == max(0, (at // 2 - look_ahead) // hop * hop)
    whole = generator(seed=seed, **pace).push(heard)
    assert whole.dtype == np.float32
    assert np.array_equal(np.concatenate(parts), whole)
    assert np.isfinite(whole).all()


def test_look_ahead_is_all_that_is_seen_of_what_comes():
    heard, other = speech(30, 1), speech(30, 1)
    other[2 * 14 :] = speech(16, 2)  # differs from latent 14 on
    a, b = generator().push(heard), generator().push(other)
    assert np.array_equal(a[:12], b[:12])  # hops of 3 with 2 ahead: 12, 13 and 14 are made knowing 14
    assert (a[12:15] != b[12:15]).any()


def test_same_seed_same_motion_other_seed_other_motion():
    heard = speech(30)
    assert np.array_equal(generator(seed=3).push(heard), generator(seed=3).push(heard))
    assert (generator(seed=3).push(heard) != generator(seed=4).push(heard)).any()


def test_guidance_steps_from_deaf_to_hearing_in_one_batch():
    heard, fake = speech(5), Fake()
    stream = generator(fake, guidance=2.5, steps=1)
    made = stream.push(heard)
    (call,) = fake.calls
    assert call["hears"].tolist() == [1, 0]
    assert call["knows"].tolist() == [1, 1]
    for name in ("latents", "noise", "past", "present", "speech", "statistics"):
        assert np.array_equal(call[name][0], call[name][1])
    hearing, deaf = Fake()(**call)[:, -5:]
    flowed = call["latents"][0, -5:] - (deaf + 2.5 * (hearing - deaf))
    given = (np.concatenate([stream.first[None], made]) - stream.statistics.mean) / stream.within
    posture = POSTURE * given[0] @ HEAD[0] * HEAD[0]
    assert np.allclose(unsteadied(given)[1:], flowed[:3] + posture, atol=1e-4)
    plain = generator(guidance=1.0).push(heard)
    assert np.array_equal(plain, generator().push(heard))
    assert (plain != generator(guidance=1.01).push(heard)).any()


def test_statistics_are_told_as_training_told_them():
    torch_side = pytest.importorskip("engine.training.stage2")
    stream = generator()
    normaliser = torch_side.Normaliser(stream.centre, stream.total, stream.within)
    told = normaliser.statistics(stream.statistics.mean, stream.statistics.deviation)
    nowhere = np.zeros(LATENT, np.float32)
    assert np.allclose(stream.condition(nowhere), told, atol=1e-6)
    still = Statistics(stream.statistics.mean, np.zeros(LATENT, np.float32))
    stream.statistics = still
    assert np.isfinite(stream.condition(nowhere)).all()


def test_state_is_bounded_over_a_long_stream():
    stream, made = generator(steps=1), 0
    for _ in range(2000):
        made += len(stream.push(speech(1)[:1]))
        assert len(stream.state.past) <= WINDOW - 5
        assert len(stream.state.features) <= 2 * WINDOW
        # neither may keep alive a larger array that it is a part of
        for kept in (stream.state.past, stream.state.features):
            assert kept.base is None or kept.base.size <= 4 * WINDOW * BANDS
    assert made == 996
    assert stream.state.hops == 332


def test_much_speech_at_once_is_not_kept():
    stream = generator(steps=1)
    stream.push(speech(5000))
    stream.push(speech(1))
    kept = stream.state.features
    assert (kept.base if kept.base is not None else kept).size <= 4 * WINDOW * BANDS


@pytest.mark.parametrize("pace", [{"hop": 0}, {"look_ahead": -1}, {"steps": 0}, {"hop": 10, "look_ahead": 2}])
def test_a_pace_that_cannot_be_kept_is_refused(pace):
    with pytest.raises(ValueError, match="pace"):
        generator(**pace)


def test_where_nobody_speaks_little_of_the_past_is_shown():
    still = np.full((40, BANDS), SILENCE, np.float32)
    hiss = still * 0.3 + np.random.default_rng(0).normal(0, 0.3, still.shape).astype(np.float32)
    talk = still + np.abs(np.sin(np.arange(40)))[:, None].astype(np.float32)
    for features, most in ((still, 2), (hiss, 2), (talk, WINDOW - 5)):
        fake = Fake()
        generator(fake, brief=2).push(features)
        assert fake.calls[-1]["past"][0].sum() == most
        assert fake.calls[-1]["present"][0].sum() == most + 5
        latents, past = fake.calls[-1]["latents"][0], fake.calls[-1]["past"][0]
        assert not latents[: WINDOW - 5 - most].any()
        assert np.array_equal(np.flatnonzero(past), np.arange(WINDOW - 5 - most, WINDOW - 5))
    # and what is shown is the latest
    whole, brief = Fake(), Fake()
    generator(whole, brief=WINDOW).push(still[:10])
    generator(brief, brief=1).push(still[:10])
    assert np.array_equal(whole.calls[0]["latents"], brief.calls[0]["latents"])


def test_a_head_that_turned_is_centred_where_it_is_rather_than_swinging_back():
    fake = Fake()
    stream = generator(fake)
    stream.push(speech(60))
    past = stream.state.past
    stream.push(speech(3, seed=1))
    call = fake.calls[-1]
    wanted, posture = standing(past)
    shown = call["latents"][0][-5 - len(past) : -5]
    assert np.allclose(shown, wanted, atol=1e-5)
    # and the model is told that it is centred elsewhere
    centred = (stream.statistics.mean + posture * stream.swing - stream.centre) / stream.total
    assert np.allclose(call["statistics"][0, :LATENT], centred, atol=1e-5)
    for sharp in (LIPS, LIDS):
        assert np.allclose(shown @ sharp.T, past @ sharp.T, atol=1e-5)


def test_at_a_calm_pace_the_rest_of_the_face_does_not_tell_how_a_head_swung():
    shown, told = {}, {}
    for calm in (False, True):
        fake = Fake()
        stream = replace(generator(fake, calm=calm), lids=np.zeros((0, LATENT), np.float32))
        stream.push(speech(60))
        past = stream.state.past = np.random.default_rng(1).normal(size=stream.state.past.shape).astype(np.float32)
        stream.push(speech(3, seed=1))
        shown[calm] = fake.calls[-1]["latents"][0][-5 - len(past) : -5]
        told[calm] = fake.calls[-1]["statistics"][0, :LATENT] * stream.total / stream.swing
    rest = past @ LIDS[0]
    stood = np.where(np.arange(len(past)) < len(past) - MOMENTUM, rest[-MOMENTUM], rest)
    assert np.allclose(shown[False] @ LIDS[0], rest, atol=1e-5)
    assert np.allclose(shown[True] @ LIDS[0], stood - BEARING * stood.mean(), atol=1e-5)
    assert np.allclose((told[True] - told[False]) @ LIDS[0], BEARING * stood.mean(), atol=1e-4)
    for sharp in (LIPS, HEAD):
        assert np.allclose(shown[True] @ sharp.T, shown[False] @ sharp.T, atol=1e-5)


def test_who_makes_up_for_each_turn_does_not_swing():
    """A model whose head goes where all that it sees is zero on average: left alone, it would swing for ever."""

    def denoise(**given: np.ndarray) -> np.ndarray:
        known, new = given["past"], (given["present"] - given["past"]).sum(1)
        goal = -((given["latents"] @ HEAD[0]) * known).sum(1) / new
        return (given["latents"] - goal[:, None] * HEAD[0]) / np.maximum(given["noise"], 1e-6)[..., None]

    stream = generator(denoise, hop=2, look_ahead=0)
    turned = (stream.push(speech(200)) - stream.statistics.mean) / stream.swing @ HEAD[0]
    assert np.abs(turned[-50:]).max() < 0.05 * np.abs(turned[:50]).max()


@settings(max_examples=40, deadline=None)
@given(st.floats(-100, 100))
def test_a_head_turns_so_far_and_lips_go_where_they_will(goal):
    """A model whose head goes so many degrees away from where it is centred, and whose lips are as far apart."""
    stream = generator(hop=2, look_ahead=0)
    degree = float(DEGREES[0, 2] / stream.swing[2])

    def denoise(**given: np.ndarray) -> np.ndarray:
        wanted = goal * degree * HEAD[0] + 7 * LIPS[0]
        return (given["latents"] - wanted) / np.maximum(given["noise"], 1e-6)[..., None]

    stream.denoiser = denoise
    latents = (stream.push(speech(200))[-1] - stream.statistics.mean) / stream.swing
    turned = float(latents @ HEAD[0]) / degree
    assert abs(turned) < REACH + 1e-3
    assert np.sign(turned) == np.sign(goal) or abs(goal) < 1e-3
    assert abs(latents @ LIPS[0] - 7) < 0.01


def test_where_heads_are_held_back_there_is_no_step():
    stream = generator()
    degree = float(DEGREES[0, 2] / stream.swing[2])
    angles = np.linspace(0, 30, 301)
    kept = stream._held_back((angles[:, None] * degree * HEAD[0]).astype(np.float32)) @ HEAD[0] / degree
    free = angles <= FREE
    assert np.allclose(kept[free], angles[free], atol=1e-3)
    slopes = np.diff(kept) / np.diff(angles)
    assert (slopes > -1e-3).all() and (np.diff(slopes) < 1e-2).all() and kept[-1] < REACH + 1e-3
