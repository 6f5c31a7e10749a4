"""Voices: files of any kind and streams of any rate, turned into the 16 kHz mono that the engine hears."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from engine.errors import InputError

SAMPLE_RATE = 16_000
MAX_SECONDS = 3600
#: Of all channels of a voice that is kept as it was made: 0.8 GB, twice while it is read. An hour of mono at 48 kHz,
#: half an hour of stereo.
MAX_SAMPLES = 200_000_000

_RATES = (4_000, 768_000)
_FLOOR_DB = -120.0


class VoiceError(InputError):
    """Sound that cannot drive a head. One line: which source, what is wrong, what to do."""


@dataclass(frozen=True, eq=False)
class Voice:
    """A recording as it was made.

    samples: (n, channels) float32, nominally in [-1, 1], one or two channels, n > 0, all finite.
    rate: samples per second. source: the file it came from, for messages.
    """

    samples: np.ndarray
    rate: int
    source: str

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate

    def mono16k(self) -> np.ndarray:
        """What the engine hears, just as if streamed: (ceil(n * 16000 / rate),) float32 in [-1, 1]."""
        stream = SpeechInput(self.rate, self.samples.shape[1])
        return np.concatenate([stream.push(self.samples), stream.finish()])


def to_mono(chunk: np.ndarray, channels: int = 1) -> np.ndarray:
    """Samples (n, channels), or (n,) of one channel, float or int16, at any rate -> a copy (n,) float32 in [-1, 1], the
    channels averaged. Floats beyond are clipped. Raises VoiceError for NaN, infinite or ill-shaped samples."""
    chunk = np.asarray(chunk)
    if chunk.ndim == 1:
        chunk = chunk[:, None]
    if chunk.ndim != 2 or chunk.shape[1] != channels:
        raise VoiceError(f"a chunk of shape {chunk.shape} does not hold {channels} channel(s)")
    if chunk.dtype == np.int16:
        chunk = chunk.astype(np.float32) / np.float32(32768)
    elif chunk.dtype.kind != "f":
        raise VoiceError(f"samples of type {chunk.dtype} cannot be used; give float32 or int16")
    if not np.isfinite(chunk).all():
        raise VoiceError("the sound holds NaN or infinite samples; check the program that makes it")
    chunk = np.clip(chunk, -1, 1).astype(np.float32)
    # Channel by channel: numpy's own mean may add in another order for another chunk size.
    mono = chunk[:, 0].copy()
    for channel in range(1, channels):
        mono += chunk[:, channel]
    return mono / np.float32(channels)


class SpeechInput:
    """Turns a stream of sound into 16 kHz mono, the same to the last bit however it is cut into chunks.

    Sample i of the output is the sound at i / 16000 s of the input: nothing is shifted in time, though the
    last samples of a chunk (10 ms and a few samples of the filter) come out with a later one. After finish()
    exactly ceil(n * 16000 / rate) samples came out for n given. 16 kHz mono passes untouched.
    """

    def __init__(self, rate: int, channels: int = 1) -> None:
        """rate: 4000 to 768000 samples a second; channels are averaged. Raises VoiceError for others."""
        if not _RATES[0] <= rate <= _RATES[1]:
            raise VoiceError(f"a sample rate of {rate} Hz cannot be used; give {_RATES[0]} to {_RATES[1]} Hz")
        if channels < 1:
            raise VoiceError(f"sound with {channels} channels cannot be used; give at least one")
        self.rate = rate
        self.channels = channels
        # The resampler's rounding may depend on the sizes it is fed, so it only ever sees blocks of 10 ms.
        self._block = rate // 100
        self._resampler = None if rate == SAMPLE_RATE else av.AudioResampler("flt", "mono", SAMPLE_RATE)
        self._pending = np.zeros(0, np.float32)
        self._taken = 0
        self._given = 0
        self._finished = False

    def push(self, chunk: np.ndarray) -> np.ndarray:
        """Take (n, channels) or (n,) float or int16; give what is ready, (m,) float32 in [-1, 1].

        Floats beyond [-1, 1] are clipped. Raises VoiceError for NaN, infinite or ill-shaped samples, without
        having taken any of them. Not to be called after finish().
        """
        if self._finished:
            raise RuntimeError("push() after finish(); make a new SpeechInput")
        mono = to_mono(chunk, self.channels)
        self._taken += len(mono)
        if self._resampler is None:
            return self._give(mono)
        self._pending = np.concatenate([self._pending, mono])
        whole = len(self._pending) // self._block * self._block
        blocks, self._pending = self._pending[:whole], self._pending[whole:]
        return self._give(self._resample(blocks))

    def finish(self) -> np.ndarray:
        """End the stream and give the rest, (m,) float32."""
        if self._finished or self._resampler is None:
            self._finished = True
            return np.zeros(0, np.float32)
        self._finished = True
        # A further block of silence pushes the last real samples through the filter.
        tail = np.zeros(2 * self._block, np.float32)
        tail[: len(self._pending)] = self._pending
        rest = np.concatenate([self._resample(tail), self._collect(None)])
        missing = -(-self._taken * SAMPLE_RATE // self.rate) - self._given
        return self._give(np.pad(rest, (0, max(0, missing - len(rest))))[:missing])

    def _give(self, samples: np.ndarray) -> np.ndarray:
        self._given += len(samples)
        return samples

    def _resample(self, blocks: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [np.zeros(0, np.float32)]
            + [self._collect(blocks[at : at + self._block]) for at in range(0, len(blocks), self._block)]
        )

    def _collect(self, block: np.ndarray | None) -> np.ndarray:
        frame = None
        if block is not None:
            frame = av.AudioFrame.from_ndarray(block[None], format="flt", layout="mono")
            frame.sample_rate = self.rate
        out = [np.zeros(0, np.float32)] + [made.to_ndarray()[0] for made in self._resampler.resample(frame)]
        return np.clip(np.concatenate(out), -1, 1)


def read_voice(path: str | Path) -> Voice:
    """Read the sound of any audio or video file that FFmpeg decodes, at its own rate.

    One or two channels stay as they are, more are averaged to one. Silence is a voice like any other.
    Raises VoiceError if there is no such file or no sound in it, if it is damaged, holds NaN or infinite
    samples, or is longer than MAX_SECONDS or than MAX_SAMPLES in all its channels.
    """
    name = _shown(path)
    parts, held = [], 0
    for part in _sound(Path(path), name):
        held += part[0].size
        if held > MAX_SAMPLES:
            raise VoiceError(
                f"{name}: holds more than {MAX_SAMPLES // 1_000_000} million samples; "
                "cut it into parts, or export it with one channel or fewer samples a second"
            )
        parts.append(part)
    return Voice(np.concatenate([samples for samples, _ in parts]), parts[0][1], name)


def read_speech(path: str | Path) -> Voice:
    """What the engine hears of a file: as read_voice(path).mono16k(), (n, 1), but nothing more is ever kept of it."""
    name = _shown(path)
    parts, stream = [], None
    for part, rate in _sound(Path(path), name):
        stream = stream or SpeechInput(rate, part.shape[1])
        parts.append(stream.push(part))
    return Voice(np.concatenate([*parts, stream.finish()])[:, None], SAMPLE_RATE, name)


def _shown(path: str | Path) -> str:
    """A name may hold a line break; the message must still be one line."""
    return "".join(c if c.isprintable() else "?" for c in str(path))


def _sound(path: Path, name: str) -> Iterator[tuple[np.ndarray, int]]:
    """The sound of a file, part after part, (n, 1 or 2) float32, and its rate: n > 0 in all. Raises as read_voice."""
    file, taken = _checked(path, name), 0
    try:
        # An absolute path is never taken for a URL or another of FFmpeg's protocols.
        with av.open(str(file), metadata_errors="ignore") as container:
            for part, rate in _decode(container, name):
                if not np.isfinite(part).all():
                    raise VoiceError(f"{name}: holds NaN or infinite samples; export it again")
                taken += len(part)
                yield part, rate
    except VoiceError:
        raise
    except (av.FFmpegError, ValueError, OSError) as error:
        raise VoiceError(f"{name}: not sound, or damaged; give WAV, FLAC, MP3 or such") from error
    if not taken:
        raise VoiceError(f"{name}: holds no samples; record it again")


def _checked(path: Path, name: str) -> Path:
    try:
        if path.is_dir():
            raise VoiceError(f"{name}: this is a directory; give the sound file itself")
        if not path.exists():
            raise VoiceError(f"{name}: no such file; check the path of the voice")
        if not path.is_file():
            raise VoiceError(f"{name}: not a regular file; give an audio or video file")
        with path.open("rb") as file:
            if not file.read(1):
                raise VoiceError(f"{name}: the file is empty; record it again")
        return path.resolve()
    except VoiceError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "the path is not valid"
        raise VoiceError(f"{name}: cannot be read ({reason}); check the path and access") from error


def _decode(container: av.container.InputContainer, name: str) -> Iterator[tuple[np.ndarray, int]]:
    if not container.streams.audio:
        raise VoiceError(f"{name}: there is no sound in it; give a file with an audio track")
    stream = container.streams.audio[0]
    rate = channels = None
    taken = 0
    damaged = False
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.FFmpegError:
            # Junk after the last sound is common (tags, a cut packet) and harmless; before it, it is not.
            damaged = True
            continue
        for frame in frames:
            if damaged:
                raise VoiceError(f"{name}: damaged near {taken / (rate or 1):.1f} s; get a whole copy")
            part = _floats(frame)
            if rate is None:
                rate, channels = frame.sample_rate, part.shape[1]
                if not _RATES[0] <= rate <= _RATES[1]:
                    raise VoiceError(
                        f"{name}: has {rate} samples a second; export it with {_RATES[0]} to {_RATES[1]}"
                    )
            if (frame.sample_rate, part.shape[1]) != (rate, channels):
                raise VoiceError(f"{name}: rate or channels change at {taken / rate:.1f} s; export it again")
            taken += len(part)
            if taken > MAX_SECONDS * rate:
                raise VoiceError(f"{name}: longer than {MAX_SECONDS // 60} minutes; cut it into parts")
            yield part if channels <= 2 else part.mean(axis=1, keepdims=True), rate
    if damaged and not taken:
        raise VoiceError(f"{name}: damaged, nothing in it can be decoded; get a whole copy")
    # FFmpeg skips damaged FLAC without a word, but FLAC states its length.
    if stream.codec_context.name == "flac" and stream.duration and rate:
        stated = float(stream.duration * stream.time_base)
        if taken / rate < stated - 0.05:
            raise VoiceError(f"{name}: damaged, {taken / rate:.1f} of {stated:.1f} s left; get a whole copy")


def _floats(frame: av.AudioFrame) -> np.ndarray:
    """(n, channels) float32 in [-1, 1] from any of FFmpeg's sample formats."""
    raw = frame.to_ndarray()
    raw = raw.T if frame.format.is_planar else raw.reshape(-1, len(frame.layout.channels))
    if raw.dtype.kind == "f":
        return np.ascontiguousarray(raw, np.float32)
    if raw.dtype == np.uint8:
        return (raw.astype(np.float32) - 128) / 128
    return (raw / -float(np.iinfo(raw.dtype).min)).astype(np.float32)


def level_db(samples: np.ndarray) -> float:
    """Root mean square level of float or int16 in dB of full scale, no lower than -120 (also for no samples at all)."""
    if len(samples) == 0:
        return _FLOOR_DB
    full_scale = 32768 if samples.dtype == np.int16 else 1
    power = float(np.mean(np.square(samples, dtype=np.float64))) / full_scale**2
    return max(_FLOOR_DB, 10 * float(np.log10(max(power, 1e-30))))


def is_silent(samples: np.ndarray, threshold_db: float = -60.0) -> bool:
    """Whether nobody can be heard speaking: the level is under the threshold, in dB of full scale."""
    return level_db(samples) < threshold_db
