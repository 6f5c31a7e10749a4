"""A model small enough to think through: its latent is how loud the speech is, and its picture is its latent. And a
clock that no busy machine disturbs."""

import asyncio
import selectors
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np

from engine.backend import CpuBackend
from engine.features import FLOOR, scale

D = 3
SILENT = float(scale(np.float32(FLOOR)))


@dataclass
class LoudnessModel:
    """Stands in for engine.model.Model. Latent 0 of a moment is the mean of its features above silence; the others are
    the noise, so that they tell hops apart."""

    window: int = 40
    evaluations: int = 0
    backend: CpuBackend = field(default_factory=CpuBackend)
    arrays: dict = field(
        default_factory=lambda: {
            "centre": np.zeros(D, np.float32),
            "total": np.ones(D, np.float32),
            "within": np.ones(D, np.float32),
            "swing": np.ones(D, np.float32),
            "lips": np.eye(1, D, dtype=np.float32),
            "lids": np.eye(1, D, 1, dtype=np.float32),
            "head": np.eye(1, D, 2, dtype=np.float32),
            "mean_from_portrait": np.concatenate([np.eye(D), np.zeros((1, D))]).astype(np.float32),
            "deviation": np.ones(D, np.float32),
            "degrees": np.eye(D, dtype=np.float32),
            "blink": np.zeros(D, np.float32),
            "blinks": np.ones(1, np.float32),
            "speaking": np.zeros(1, np.float32),
        }
    )

    def listen(self, features):
        return features.reshape(len(features), self.window, -1)

    def velocity(self, latents, noise, past, present, speech, hears, statistics, knows):
        self.evaluations += 1
        goal = latents * 0.1
        goal[..., 0] = speech.mean(-1) - SILENT
        # the straight path from the noise of now to the goal
        return (latents - goal) / np.maximum(noise, 1e-6)[..., None]

    def coefficients(self, latent):
        return latent

    def closed(self, portrait, latent):
        return 0.0

    def gauges(self, latent):
        return np.zeros(2, np.float32)

    @property
    def ways(self):
        return self.arrays["lips"], self.arrays["lids"]

    def prepare(self, picture, backdrop=None):
        return portrait()

    def renderer(self, prepared, size):
        return LatentRenderer(prepared, size)


@dataclass
class LatentRenderer:
    """A picture whose first pixel says how loud the moment is, 0..255; `seen` keeps the latents themselves."""

    portrait: SimpleNamespace
    size: int
    seen: deque = field(default_factory=lambda: deque(maxlen=10_000))

    def render(self, coefficients):
        self.seen.append(coefficients)
        image = np.zeros((self.size, self.size, 3), np.uint8)
        image[...] = np.clip((coefficients[0] - self.portrait.latent[0]) * 60, 0, 255).astype(np.uint8)
        return image


def portrait(*latent: float) -> SimpleNamespace:
    return SimpleNamespace(latent=np.array(latent or (0.0, 0.0, 0.0), np.float32))


class VirtualTime(asyncio.SelectorEventLoop):
    """An event loop that waits for nothing: where it would, its clock goes on at once. Computing takes no time but what
    `spend` says. For what needs nothing but a clock: neither threads nor the network come to their right."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__(_Hurry(self))

    def time(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds


class _Hurry(selectors.DefaultSelector):
    def __init__(self, loop: VirtualTime) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout=None):
        assert timeout is not None, "everything waits, and nothing will ever happen"
        self._loop.spend(max(0.0, timeout))
        return super().select(0)


class AtOnce(Executor):
    """Stands in for an engine's thread: what is asked for is done before anything else happens."""

    def submit(self, call: Callable, /, *given, **named) -> Future:
        future: Future = Future()
        try:
            future.set_result(call(*given, **named))
        except BaseException as error:
            future.set_exception(error)
        return future


def in_virtual_time(work: Callable[[VirtualTime], object]):
    """What a coroutine, made with its loop, comes to."""
    with asyncio.Runner(loop_factory=VirtualTime) as runner:
        return runner.run(work(runner.get_loop()))
