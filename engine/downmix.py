"""Many channels of a voice into one, as loud as it was.

Two channels are averaged. More are weighted as ITU-R BS.775 and FFmpeg do it (centre 1, left and right 1/sqrt(2),
surrounds 1/2, no low-frequency effects), and turned down where channels that say the same would add up to more than the
loudest of them. Where the sum loses what the channels hold, since one is the other upside down, the loudest channel is
heard instead. Decided every 10 ms from levels of the last tenths of a second, and faded from one to the next, so that
the same comes out however a stream is cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, sqrt

import numpy as np

#: The order of channels where only their number is known: that of WAV and FLAC (RFC 9639, section 9.1.3).
ORDERS = {
    3: ("FL", "FR", "FC"),
    4: ("FL", "FR", "BL", "BR"),
    5: ("FL", "FR", "FC", "BL", "BR"),
    6: ("FL", "FR", "FC", "LFE", "BL", "BR"),
    7: ("FL", "FR", "FC", "LFE", "BC", "SL", "SR"),
    8: ("FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR"),
}
_FRONT, _SURROUND = sqrt(0.5), 0.5
_WEIGHTS = {
    "FC": 1.0, "LFE": 0.0, "LFE2": 0.0, "FL": _FRONT, "FR": _FRONT, "FLC": _FRONT, "FRC": _FRONT, "DL": _FRONT,
    "DR": _FRONT,
}  # fmt: skip
#: All that FFmpeg calls a loudspeaker. Others are directions of a sound field (AMBI0, ...), or no name at all.
KNOWN_CHANNELS = frozenset(
    [
        *_WEIGHTS, "BL", "BR", "BC", "SL", "SR", "TC", "TFL", "TFC", "TFR", "TBL", "TBC", "TBR", "WL", "WR", "SDL",
        "SDR", "TSL", "TSR", "BFC", "BFL", "BFR", "SSL", "SSR", "TTL", "TTR",
    ]
)  # fmt: skip
_BLOCKS_A_SECOND = 100
#: The sum has lost the voice under the first share of the power of its parts, and has it again over the second.
#: Between two channels as loud as each other that is a correlation of -0.75 and -0.5.
_LOST, _FOUND = 0.25, 0.5
#: Another channel is heard instead of the one before where it has so many times its power.
_LOUDER = 4.0
#: How fast levels of the past fade, a block: those that tell a loss, and those that tell how loud the sum is.
_FAST, _SLOW = exp(-1 / 4), exp(-1 / 50)
#: Power under which nothing is decided, and no change is heard.
_SILENCE = 1e-9


def weights(channels: int, names: Sequence[str] = ()) -> tuple[float, ...]:
    """What each channel counts in the sum. names: as FFmpeg calls them; by their number without."""
    if channels <= 2:
        return (1 / channels,) * channels
    names = names or ORDERS.get(channels, ())
    known = tuple(_WEIGHTS.get(name, _SURROUND) for name in names)
    return known if any(known) else (1.0,) * channels


@dataclass
class _Levels:
    """Power of the past, each block a little less than the one after. parts: of each channel; whole: of the sum."""

    fade: float
    parts: list[float]
    whole: float = 0.0

    def add(self, parts: Sequence[float], whole: float) -> None:
        self.parts = [self.fade * before + now for before, now in zip(self.parts, parts, strict=True)]
        self.whole = self.fade * self.whole + whole


class Downmix:
    """See the module."""

    def __init__(self, rate: int, channels: int, names: Sequence[str] = ()) -> None:
        """rate: 100 or more samples a second; channels: 1 or more; names: of the channels in FFmpeg's words (FL, FR,
        FC, LFE, ...), where they are known."""
        self._channels, self._block = channels, rate // _BLOCKS_A_SECOND
        self._weights = weights(channels, names)
        self._pending = np.zeros((0, channels), np.float32)
        self._fast = _Levels(_FAST, [0.0] * channels)  # each channel as it counts
        self._slow = _Levels(_SLOW, [0.0] * channels)
        self._single: int | None = None
        self._last: tuple[float, ...] | None = None  # the weights at the end of what was given; None in silence

    def push(self, samples: np.ndarray) -> np.ndarray:
        """(n, channels) float32 -> what is ready, (m,) float32 in [-1, 1]; less than 10 ms come later."""
        if self._channels == 1:
            return samples[:, 0].copy()
        samples = np.concatenate([self._pending, samples])
        count = len(samples) // self._block
        whole, self._pending = samples[: count * self._block], samples[count * self._block :]
        return self._mix(whole, self._block)

    def finish(self) -> np.ndarray:
        """The rest, (m,) float32."""
        rest, self._pending = self._pending, self._pending[:0]
        return self._mix(rest, len(rest))

    def _mix(self, samples: np.ndarray, block: int) -> np.ndarray:
        if not len(samples):
            return np.zeros(0, np.float32)
        # (channels, blocks, samples of a block): each sum runs along memory, in the same order for any number of blocks
        parts = np.ascontiguousarray(samples.T).reshape(self._channels, -1, block)
        whole = sum(part * np.float32(weight) for part, weight in zip(parts, self._weights, strict=True))
        powers = (np.square(parts, dtype=np.float64).sum(-1) / block).T.tolist()
        sums = (np.square(whole, dtype=np.float64).sum(-1) / block).tolist()
        pairs = [self._decide(power, loud) for power, loud in zip(powers, sums, strict=True)]
        begin, end = np.float32(list(zip(*pairs, strict=True)))[..., None].transpose(0, 2, 1, 3)
        ramp = np.arange(1, block + 1, dtype=np.float32) / np.float32(block)
        out = sum(part * (a + (b - a) * ramp) for part, a, b in zip(parts, begin, end, strict=True))
        return np.clip(out.reshape(-1), -1, 1)

    def _decide(self, power: Sequence[float], whole: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The weights at the beginning and at the end of a block. power: of each channel; whole: of their sum."""
        self._fast.add([weight * weight * each for weight, each in zip(self._weights, power, strict=True)], whole)
        self._slow.add([each if weight else 0.0 for weight, each in zip(self._weights, power, strict=True)], whole)
        known = sum(self._fast.parts)
        if known > _SILENCE:
            self._choose(self._fast.whole / known)
        now = self._now()
        silent = sum(power) < _SILENCE
        begin = now if self._last is None else self._last
        self._last = None if silent else now
        return begin, now

    def _choose(self, kept: float) -> None:
        parts = self._fast.parts
        loudest = max(range(self._channels), key=parts.__getitem__)
        if self._single is None:
            self._single = loudest if kept < _LOST else None
        elif kept > _FOUND:
            self._single = None
        elif parts[loudest] > _LOUDER * parts[self._single]:
            self._single = loudest

    def _now(self) -> tuple[float, ...]:
        if self._single is not None:
            return tuple(float(channel == self._single) for channel in range(self._channels))
        slow = self._slow
        if self._channels <= 2 or slow.whole <= _SILENCE:
            return self._weights
        gain = min(1.0, sqrt(max(slow.parts) / slow.whole))
        return tuple(gain * weight for weight in self._weights)
