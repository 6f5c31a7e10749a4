"""Streaming motion: speech features in, motion latents out, a hop at a time.

Every hop denoises one window whose layout never changes: the past that was already said, `hop` new latents and
`look_ahead` more that only see what comes (their speech is known, they are made anew in the next hop). Work is done hop
by hop whatever the audio's chunks were, and each hop's noise depends on the seed and the hop's number alone, so that
offline and streaming give the same latents.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.features import BANDS, FEATURES_PER_LATENT, FLOOR, scale
from engine.motion.samplers import euler

#: latents (B, W, D), noise (B, W), past (B, W), present (B, W), speech (B, W, S), hears (B,), statistics (B, 2 D),
#: knows (B,) -> velocity (B, W, D); see engine/motion/network.py.
Denoiser = Callable[..., np.ndarray]
#: features (1, 2 W, 64) -> speech (1, W, S)
Listener = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Pace:
    """How far a hop goes. hop, look_ahead: latents of 40 ms; steps: sampler steps; guidance: how strongly speech is
    followed (1: as learned; above: more, at twice the cost); temperature: how far noise may lead the lips from the
    likeliest motion (the deviation of the noise that sampling starts from, along them). Lips follow the voice, and
    chance makes them mumble; where the head turns and when the eyes blink is chance, and has all of it. brief: how many
    latents of its past are shown to the model where nobody speaks, see SPEAKS; calm: whether the face's past is shown
    to it as the head's is, see MOMENTUM."""

    hop: int = 4
    look_ahead: int = 3
    steps: int = 4
    guidance: float = 1.0
    temperature: float = 1.0
    brief: int = 12
    calm: bool = False

    def __post_init__(self) -> None:
        if min(self.hop, self.steps, self.brief) < 1 or self.look_ahead < 0:
            raise ValueError(f"{self}: a pace has hop, steps and brief from 1 on, and look_ahead from 0 on")
        if not (math.isfinite(self.guidance) and 0 <= self.temperature < math.inf):
            raise ValueError(f"{self}: a pace has a finite guidance, and a finite temperature from 0 on")


#: For what need not be fast: a clip. Guidance and temperature by measurement (MODEL_CARD.md).
OFFLINE = Pace(hop=4, look_ahead=8, steps=4, guidance=1.75, temperature=0.4)


#: Heads follow through two poles: of the way to where the sampler says, something goes so much in a latent's 40 ms, and
#: of the way to that, the head. Each hop is sampled anew, and a head has more mass than that: it may turn back, but not
#: at once. Of the face, lips and lids go all of the way at once, and the rest, which is chance, through one pole.
STEADY = 0.45
EASE = 0.7


#: Where nobody speaks, the model, which hardly ever heard that, swings on what it did itself like a pendulum, once in
#: three seconds; so it is then shown little of its past (Pace.brief). Nobody speaks where the features' mean over the
#: bands stays within so much in all that is heard (noise: 0.2 in 1.6 s; speech: 0.6, in as much noise 0.3).
SPEAKS = 0.25


#: The model has learned from clips, and that within a clip a head is on average where the statistics say. So it would
#: make up for each turn by one to the other side, and swing like a pendulum, once in two seconds of speech. Hence it is
#: shown the head's way of the last latents alone, as if the head had stood still before; and where it stood counts by
#: so much as the place where it is centred, the rest of which draws it back. What of the face moves neither head, lips
#: nor lids swings along, and tells on it; if a pace is calm, that is shown so, too, and counts by less: the shorter the
#: hops, the more a head swings, and the less this takes of all else.
MOMENTUM, POSTURE, BEARING = 2, 0.7, 0.3


#: How far a head may turn from where it is centred, in degrees, and from where on it is held back: postures add up in
#: long speech, and beyond this a portrait bends, and speakers hardly go.
REACH, FREE = 10.0, 5.0


@dataclass(frozen=True)
class Statistics:
    """Where motion is centred and how wide it swings: mean and deviation (D,) of the latents to be made."""

    mean: np.ndarray
    deviation: np.ndarray


@dataclass
class MotionState:
    """What a stream carries from hop to hop. past (n, D): normalised latents already made; eased, steadied (n, D): the
    same after the first poles, and after both, as given out; features (m, 64): those not yet consumed, preceded by
    those of the past; hops: how many were made."""

    past: np.ndarray
    eased: np.ndarray
    steadied: np.ndarray
    features: np.ndarray
    hops: int = 0


@dataclass
class MotionGenerator:
    """Makes the latents of one stream. centre, total, within (D,): how the network's inputs are normalised (see
    training/stage2.py, Normaliser); swing (D,): what one unit of its output is worth (within, corrected for how much
    less the sampler moves than it is asked to, and than people do, see training/export.py, calibrate and widen)."""

    denoiser: Denoiser
    listener: Listener
    window: int
    centre: np.ndarray
    total: np.ndarray
    within: np.ndarray
    swing: np.ndarray
    lips: np.ndarray  # (n, D) orthonormal: directions of the normalised latent that move the lips
    lids: np.ndarray  # (m, D), as lips, and orthogonal to them
    head: np.ndarray  # (k, D), as lids: what turns and moves the head
    degrees: np.ndarray  # (3, D): how a latent changes with one degree of yaw, pitch and roll
    statistics: Statistics
    first: np.ndarray  # (D,) the portrait's own latent: motion starts there
    seed: int = 0
    pace: Pace = field(default_factory=Pace)
    blinks: float = 1.0  # how much more noise lids get: blinks are rare and sharp, and a few steps lose half
    state: MotionState = field(init=False)
    _angles: np.ndarray = field(init=False)  # (3, D): reads the angles, in degrees, off a normalised latent
    _rest: np.ndarray = field(init=False)  # (n, D), as head: what moves neither head, lips nor lids

    @classmethod
    def of(
        cls, model: Any, statistics: Statistics, first: np.ndarray, seed: int, pace: Pace,
        swing: np.ndarray | None = None,
    ) -> "MotionGenerator":  # fmt: skip
        """That of an engine.model.Model, or of what has its `velocity`, `listen`, `window` and `arrays`. swing: another
        than the model's."""
        names = ("centre", "total", "within", "swing", "lips", "lids", "head", "degrees")
        known = {name: model.arrays[name] for name in names}
        if swing is not None:
            known["swing"] = swing
        return cls(
            model.velocity, model.listen, model.window, **known, statistics=statistics, first=first, seed=seed,
            pace=pace, blinks=float(model.arrays["blinks"][0]),
        )  # fmt: skip

    def __post_init__(self) -> None:
        pace = self.pace
        if pace.hop + pace.look_ahead >= self.window:
            raise ValueError(f"{pace}: such a pace has no place in a window of {self.window} latents")
        self._angles = (np.linalg.pinv(self.degrees / self.within).T * (self.swing / self.within)).astype(np.float32)
        known = np.concatenate([self.lips, self.lids, self.head])
        self._rest = np.linalg.svd(known)[2][len(known) :].astype(np.float32)
        silence = np.full((FEATURES_PER_LATENT, BANDS), scale(np.float32(FLOOR)), np.float32)
        first = self._normalise(self.first)[None]
        self.state = MotionState(first, first, first, silence)

    def _normalise(self, latent: np.ndarray) -> np.ndarray:
        return ((latent - self.statistics.mean) / self.swing).astype(np.float32)

    def condition(self, posture: np.ndarray) -> np.ndarray:
        """(2 D,) the statistics as the network takes them, of a head centred by so much (D,) elsewhere."""
        spread = np.log(np.maximum(self.statistics.deviation, 1e-4) / self.within)
        mean = (self.statistics.mean + posture * self.swing - self.centre) / self.total
        return np.concatenate([mean, np.clip(spread, -2.5, 2.5)]).astype(np.float32)

    def push(self, features: np.ndarray) -> np.ndarray:
        """New speech features (n, 64) -> the latents (m, D) that became due, m a multiple of the hop."""
        self.state.features = np.concatenate([self.state.features, features])
        made = []
        while self._waiting() >= self.pace.hop + self.pace.look_ahead:
            made.append(self._hop())
        return np.concatenate(made) if made else np.zeros((0, len(self.within)), np.float32)

    def interrupt(self, dropped: int) -> None:
        """Forget the last `dropped` latents made, and all speech after those that stay, as if silence had followed."""
        state = self.state
        state.past = state.past[: len(state.past) - dropped]
        state.eased, state.steadied = state.eased[: len(state.past)], state.steadied[: len(state.past)]
        state.features[len(state.past) * FEATURES_PER_LATENT :] = scale(np.float32(FLOOR))

    def steer(self, statistics: Statistics) -> None:
        """Aim at other statistics from the next hop on; the motion made so far stays where it is."""
        shift = (self.statistics.mean - statistics.mean) / self.swing
        state = self.state
        state.past, state.eased, state.steadied = (
            (known + shift).astype(np.float32) for known in (state.past, state.eased, state.steadied)
        )
        self.statistics = statistics

    def _waiting(self) -> int:
        """Latents whose speech has come but which are not made yet."""
        return len(self.state.features) // FEATURES_PER_LATENT - len(self.state.past)

    def _hop(self) -> np.ndarray:
        state, pace, window = self.state, self.pace, self.window
        new = pace.hop + pace.look_ahead
        made = len(state.past)
        heard = state.features[: (made + new) * FEATURES_PER_LATENT]
        count = made if np.ptp(heard.mean(1)) > SPEAKS else min(made, pace.brief)
        shown, posture = self._posed(state.past[made - count :])
        latents = np.zeros((window, len(self.within)), np.float32)
        latents[window - new - count : window - new] = shown
        past = np.zeros(window, np.float32)
        past[window - new - count : window - new] = 1
        present = np.zeros(window, np.float32)
        present[window - new - count :] = 1
        features = np.full((window * FEATURES_PER_LATENT, BANDS), scale(np.float32(FLOOR)), np.float32)
        features[len(features) - len(heard) :] = heard
        # counter-based noise: hop n of seed s is the same whatever happened before
        noise = np.random.default_rng((self.seed, state.hops)).standard_normal((new, len(self.within)), np.float32)
        noise -= np.float32(1 - pace.temperature) * (noise @ self.lips.T) @ self.lips
        noise += np.float32(self.blinks - 1) * (noise @ self.lids.T) @ self.lids
        speech = self.listener(features[None])[0]
        fresh = self._denoise(latents, past, present, speech, self.condition(posture), noise)[: pace.hop]
        fresh = self._held_back(fresh + posture)
        keep = window - new
        dropped = max(0, made + pace.hop - keep)
        eased = self._follow(fresh, state.eased[-1], EASE)
        given = self._follow(eased, state.steadied[-1], 1.0)
        state.past = np.concatenate([state.past, fresh])[-keep:]
        state.eased = np.concatenate([state.eased, eased])[-keep:]
        state.steadied = np.concatenate([state.steadied, given])[-keep:]
        state.features = state.features[dropped * FEATURES_PER_LATENT :]
        state.hops += 1
        return given * self.swing + self.statistics.mean

    def _posed(self, past: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The past (n, D) as the model is shown it, and where the head is centred meanwhile (D,): see MOMENTUM."""
        change, posture = _stood(past, self.head, POSTURE)
        if self.pace.calm:
            changes, bearing = _stood(past, self._rest, BEARING)
            change, posture = change + changes, posture + bearing
        return past + change, posture

    def _held_back(self, latents: np.ndarray) -> np.ndarray:
        """Latents (n, D), their heads turned by no more than REACH degrees in all, and moved by as much less."""
        moved = along(latents, self.head)
        angle = np.sqrt(np.square((moved[:, None] * self._angles).sum(2)).sum(1))
        beyond = np.maximum(angle - FREE, 0)
        kept = np.minimum(angle, FREE) + (REACH - FREE) * np.tanh(beyond / (REACH - FREE))
        return latents - np.where(beyond > 0, 1 - kept / np.maximum(angle, FREE), 0)[:, None].astype(np.float32) * moved

    def _follow(self, latents: np.ndarray, last: np.ndarray, ease: float) -> np.ndarray:
        """Latents (n, D) that follow on one (D,) -> the same with the head through one pole of STEADY, and what moves
        neither head, lips nor lids through one of `ease`."""
        sharp = np.concatenate([self.lips, self.lids])
        given = [last]
        for latent in latents:
            off = latent - given[-1]
            turned, said = along(off[None], self.head)[0], along(off[None], sharp)[0]
            rest = off - turned - said
            given.append(latent - np.float32(1 - STEADY) * turned - np.float32(1 - ease) * rest)
        return np.stack(given[1:])

    def _denoise(self, latents, past, present, speech, statistics, noise) -> np.ndarray:
        """Window with a clean past and noise (new, D) -> latents (new, D)."""
        new = len(noise)
        batch = 1 if self.pace.guidance == 1.0 else 2
        hears = np.array([1.0, 0.0][:batch], np.float32)

        def repeat(x: np.ndarray) -> np.ndarray:
            return np.repeat(x[None], batch, 0)

        fixed = {
            "past": repeat(past),
            "present": repeat(present),
            "speech": repeat(speech),
            "hears": hears,
            "statistics": repeat(statistics),
            "knows": np.ones(batch, np.float32),
        }
        window = latents.copy()

        def velocity(x: np.ndarray, t: float) -> np.ndarray:
            window[-new:] = x
            level = (1 - past) * np.float32(t)
            v = self.denoiser(latents=repeat(window), noise=repeat(level), **fixed)[:, -new:]
            return v[0] if batch == 1 else v[1] + np.float32(self.pace.guidance) * (v[0] - v[1])

        return euler(velocity, noise, self.pace.steps)


def along(vectors: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """What of vectors (n, D) lies along orthonormal directions (k, D): (n, D). Not by BLAS, whose last bit depends on
    where in memory a vector lies, and offline and streaming must agree."""
    return ((vectors[:, None] * directions).sum(2)[..., None] * directions).sum(1)


def _stood(past: np.ndarray, directions: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """What to add to the past (n, D) for its motion along orthonormal directions (k, D) to be that of the last MOMENTUM
    latents alone, less a share of where it was before them; and that share (D,)."""
    moved = along(past, directions)
    stood = moved.copy()
    stood[:-MOMENTUM] = stood[-MOMENTUM:][0]
    centre = np.float32(share) * stood.mean(0)
    return stood - centre - moved, centre
