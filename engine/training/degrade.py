"""A voice as worse microphones, rooms and lines give it, always the same for the same voice and never shifted in time.

All take and give (n,) float32 mono at 16 kHz.
"""

import io
from fractions import Fraction

import av
import numpy as np

from engine.speech import SAMPLE_RATE

SIGNAL_TO_NOISE_DB = 10
#: The room: seconds until its echo has fallen by 60 dB, and its energy against that of the direct sound.
ECHO_SECONDS, ECHO_SHARE = 0.5, 1.0
OPUS_BITS = 8_000


def noisy(samples: np.ndarray) -> np.ndarray:
    """White noise, 10 dB under the mean power of what is louder than a hundredth of the peak."""
    loud = samples[np.abs(samples) > 0.01 * np.abs(samples).max(initial=0)]
    if not len(loud):
        return samples
    power = np.square(loud, dtype=np.float64).mean() / 10 ** (SIGNAL_TO_NOISE_DB / 10)
    noise = np.random.default_rng(0).normal(0, np.sqrt(power), len(samples))
    return (samples + noise).astype(np.float32)


def echoing(samples: np.ndarray) -> np.ndarray:
    """The direct sound and as much energy again of a room: decaying noise from 5 ms on, at the power that came in."""
    times = np.arange(round(ECHO_SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    room = np.random.default_rng(0).normal(0, 1, len(times)) * 10 ** (-3 * times / ECHO_SECONDS)
    room[times < 0.005] = 0
    room *= np.sqrt(ECHO_SHARE / np.square(room).sum())
    room[0] = 1
    return heard_in(room, samples)


def heard_in(room: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """A voice in a room whose impulse response (m,) is given, at the power that came in."""
    length = len(samples) + len(room)
    wet = np.fft.irfft(np.fft.rfft(samples, length) * np.fft.rfft(room, length), length)[: len(samples)]
    power, made = np.square(samples, dtype=np.float64).sum(), np.square(wet).sum()
    return (wet * np.sqrt(power / made if made else 1)).astype(np.float32)


def low_bitrate(samples: np.ndarray) -> np.ndarray:
    """Through Opus at 8 kbit/s and back, what the codec delays taken out again."""
    file = io.BytesIO()
    with av.open(file, "w", format="ogg") as out:
        stream = out.add_stream("libopus", rate=SAMPLE_RATE, layout="mono", options={"application": "voip"})
        stream.codec_context.bit_rate = OPUS_BITS
        step = SAMPLE_RATE // 50
        for start in range(0, len(samples), step):
            block = np.clip(np.pad(samples[start : start + step], (0, max(0, start + step - len(samples)))), -1, 1)
            frame = av.AudioFrame.from_ndarray(
                (block * 32767).round().astype(np.int16)[None], format="s16", layout="mono"
            )
            frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, start, Fraction(1, SAMPLE_RATE)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    file.seek(0)
    resampler = av.AudioResampler("flt", "mono", SAMPLE_RATE)
    blocks = []
    with av.open(file) as back:
        for frame in back.decode(audio=0):
            if not blocks:
                blocks.append(np.zeros(max(0, round((frame.time or 0) * SAMPLE_RATE)), np.float32))
            frame.pts = None
            blocks += [part.to_ndarray().reshape(-1) for part in resampler.resample(frame)]
    blocks += [part.to_ndarray().reshape(-1) for part in resampler.resample(None)]
    heard = np.concatenate([np.zeros(0, np.float32), *blocks])[: len(samples)]
    return np.pad(heard, (0, len(samples) - len(heard))).astype(np.float32)


CONDITIONS = {
    "clean": lambda samples: samples,
    f"noise at {SIGNAL_TO_NOISE_DB} dB": noisy,
    "echo": echoing,
    f"Opus at {OPUS_BITS // 1000} kbit/s": low_bitrate,
}
