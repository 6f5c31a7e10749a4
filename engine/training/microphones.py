"""Voices as microphones, rooms and lines may give them, drawn at random: what training hears. What evaluation judges by
is fixed, see degrade.py.

All take and give (n,) float32 mono at 16 kHz, in step with what came in.
"""

import numpy as np

from engine.features import SAMPLE_RATE
from engine.training.degrade import heard_in

#: How much louder or quieter a voice comes in, in dB.
GAIN = (-14.0, 8.0)
#: How often a room, a line and noise are added.
ROOMS, LINES, NOISES = 0.3, 0.15, 0.6
#: Seconds until a room's echo has fallen by 60 dB, and its energy against that of the direct sound.
ECHO, SHARE = (0.15, 0.7), (0.1, 1.2)
#: What a line lets through, in Hz, from below and up to.
LOW, HIGH = (50.0, 350.0), (3200.0, 6000.0)
#: Power of the voice as it came in over that of noise, in dB: one that has become quieter is deeper in it.
SIGNAL_TO_NOISE = (5.0, 45.0)


def augment(voice: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A voice through a room, a line, and with noise, or without some of them; louder or quieter in any case."""
    level = np.sqrt(np.square(voice).mean()) + 1e-6
    voice = voice * np.float32(10 ** (rng.uniform(*GAIN) / 20))
    if rng.random() < ROOMS:
        voice = echoing(voice, rng)
    if rng.random() < LINES:
        voice = filtered(voice, rng.uniform(*LOW), rng.uniform(*HIGH))
    if rng.random() < NOISES:
        voice = voice + noise(len(voice), rng) * np.float32(level * 10 ** (-rng.uniform(*SIGNAL_TO_NOISE) / 20))
    return voice


def echoing(voice: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The direct sound and a room: decaying noise (Moorer 1979, "About this reverberation business"), darker than the
    voice, from some milliseconds on; as loud as what came in."""
    seconds, share = rng.uniform(*ECHO), rng.uniform(*SHARE)
    times = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    room = rng.normal(0, 1, len(times)) * 10 ** (-3 * times / seconds)
    room = np.convolve(room, (1.0, rng.uniform(0, 0.9)), "same")  # walls swallow what is high
    room[times < rng.uniform(0.001, 0.012)] = 0
    room *= np.sqrt(share / (np.square(room).sum() + 1e-12))
    room[0] = 1
    return heard_in(room, voice)


def filtered(voice: np.ndarray, low: float, high: float) -> np.ndarray:
    """What a line lets through that falls by 12 dB an octave below `low`, and by 24 above `high`, in Hz."""
    frequency = np.fft.rfftfreq(len(voice), 1 / SAMPLE_RATE)
    passed = 1 / (1 + (low / np.maximum(frequency, 1e-3)) ** 2) / (1 + (frequency / high) ** 4)
    return np.fft.irfft(np.fft.rfft(voice) * passed, len(voice)).astype(np.float32)


def noise(count: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of a mean power of one whose power falls with the frequency to a power between 0 (white) and 2 (brown)."""
    frequency = np.maximum(np.fft.rfftfreq(count, 1 / SAMPLE_RATE), 30.0)
    spectrum = np.fft.rfft(rng.standard_normal(count)) * frequency ** (-rng.uniform(0, 2) / 2)
    made = np.fft.irfft(spectrum, count)
    return (made / (made.std() + 1e-9)).astype(np.float32)
