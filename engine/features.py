"""Speech features: 64 log-mel bands at 50 Hz, computed as the audio arrives.

Feature k is made of the 400 samples that end with sample 320 (k + 1) at 16 kHz (a 25 ms Hann window every 20 ms), so
it never looks ahead. Two features belong to each motion latent (25 Hz, 640 samples).
"""

from dataclasses import dataclass, field

import numpy as np

SAMPLE_RATE = 16_000
HOP = 320
WINDOW = 400
FFT = 512
BANDS = 64
LATENT_HOP = 640  # samples a latent
FEATURES_PER_LATENT = LATENT_HOP // HOP
FLOOR = 1e-7


def mel_filters() -> np.ndarray:
    """(257, 64) triangular filters from 60 to 7600 Hz, evenly spaced on the HTK mel scale, each of sum one."""

    def mel(hertz: float | np.ndarray) -> float | np.ndarray:
        return 2595.0 * np.log10(1.0 + hertz / 700.0)

    edges = 700.0 * (10.0 ** (np.linspace(mel(60.0), mel(7600.0), BANDS + 2) / 2595.0) - 1.0)
    bins = np.fft.rfftfreq(FFT, 1.0 / SAMPLE_RATE)[:, None]
    rise = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    filters = np.maximum(0.0, np.minimum(rise, fall))
    return (filters / np.maximum(filters.sum(0), 1e-9)).astype(np.float32)


def hann() -> np.ndarray:
    """(400,) Hann window whose squares sum to one, so that features do not depend on its length."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(WINDOW) + 0.5) / WINDOW)
    return (window / np.sqrt((window**2).sum())).astype(np.float32)


@dataclass
class LogMel:
    """Streaming log-mel: state is the samples that later features still need.

    Work is done in blocks of one latent (640 samples), never more nor fewer at a time, so that the result does not
    depend on how the audio was cut into chunks.
    """

    pending: np.ndarray = field(default_factory=lambda: np.zeros(WINDOW - HOP, np.float32))
    _filters: np.ndarray = field(default_factory=mel_filters, repr=False)
    _window: np.ndarray = field(default_factory=hann, repr=False)

    def push(self, samples: np.ndarray) -> np.ndarray:
        """float32 mono samples (n,) at 16 kHz -> the features that became complete, (2 m, 64) float32."""
        self.pending = np.concatenate([self.pending, samples.astype(np.float32, copy=False)])
        blocks = []
        while len(self.pending) >= WINDOW - HOP + LATENT_HOP:
            blocks.append(self._block(self.pending[: WINDOW - HOP + LATENT_HOP]))
            self.pending = self.pending[LATENT_HOP:]
        return np.concatenate(blocks) if blocks else np.zeros((0, BANDS), np.float32)

    def _block(self, samples: np.ndarray) -> np.ndarray:
        frames = np.stack([samples[:WINDOW], samples[HOP : HOP + WINDOW]]) * self._window
        power = np.abs(np.fft.rfft(frames, FFT)) ** 2
        return scale(power.astype(np.float32) @ self._filters)


def scale(power: np.ndarray) -> np.ndarray:
    """Band powers -> features of about -1 (digital silence is -1.5) to 1.5 (loud speech)."""
    return np.log10(np.maximum(power, FLOOR)) * 0.5 + 2.0
