"""Voices: files of any kind and streams of any rate, turned into the 16 kHz mono that the engine hears."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from engine.containers import SLACK_SECONDS, choose_track, cut_off, is_tag, lacks_index, offset
from engine.downmix import KNOWN_CHANNELS, Downmix
from engine.errors import InputError

SAMPLE_RATE = 16_000
MAX_SECONDS = 3600
#: Of all channels of a voice that is kept as it was made: 0.8 GB, twice while it is read. An hour of mono at 48 kHz,
#: half an hour of stereo.
MAX_SAMPLES = 200_000_000

_RATES = (4_000, 768_000)
_FLOOR_DB = -120.0
#: FFmpeg's AV_NUM_DATA_POINTERS. PyAV looks for the end of so many planes, and of more, in what lies behind them in
#: memory, and crashes (18.1): such frames are interleaved first.
_POINTERS = 8


class VoiceError(InputError):
    """Sound that cannot drive a head. One line: which source, what is wrong, what to do."""


@dataclass(frozen=True, eq=False)
class Voice:
    """A recording as it was made.

    samples: (n, channels) float32, nominally in [-1, 1], one or two channels, n > 0, all finite.
    rate: samples per second. source: the file it came from, for messages. warning: a line on what is wrong with that
    file, though it can be used; "" if nothing is.
    """

    samples: np.ndarray
    rate: int
    source: str
    warning: str = ""

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate

    def mono16k(self) -> np.ndarray:
        """What the engine hears, just as if streamed: (ceil(n * 16000 / rate),) float32 in [-1, 1]."""
        stream = SpeechInput(self.rate, self.samples.shape[1])
        return np.concatenate([stream.push(self.samples), stream.finish()])


def to_mono(chunk: np.ndarray) -> np.ndarray:
    """Samples of one channel, (n,) or (n, 1), float or int16, at any rate -> a copy (n,) float32 in [-1, 1]. Floats
    beyond are clipped. Raises VoiceError for NaN, infinite or ill-shaped samples."""
    return _checked_samples(chunk, 1)[:, 0]


def _checked_samples(chunk: np.ndarray, channels: int) -> np.ndarray:
    """As to_mono, of so many channels: (n, channels) float32."""
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
    return np.clip(chunk, -1, 1).astype(np.float32)


class SpeechInput:
    """Turns a stream of sound into 16 kHz mono, the same to the last bit however it is cut into chunks.

    Sample i of the output is the sound at i / 16000 s of the input: nothing is shifted in time, though the
    last samples of a chunk (10 ms and a few samples of the filter) come out with a later one. After finish()
    exactly ceil(n * 16000 / rate) samples came out for n given. 16 kHz mono passes untouched.
    """

    def __init__(self, rate: int, channels: int = 1) -> None:
        """rate: 4000 to 768000 samples a second; channels: mixed to one as engine/downmix.py does it, in the order of
        WAV. Raises VoiceError for others."""
        if not _RATES[0] <= rate <= _RATES[1]:
            raise VoiceError(f"a sample rate of {rate} Hz cannot be used; give {_RATES[0]} to {_RATES[1]} Hz")
        if channels < 1:
            raise VoiceError(f"sound with {channels} channels cannot be used; give at least one")
        self.rate = rate
        self.channels = channels
        # The resampler's rounding may depend on the sizes it is fed, so it only ever sees blocks of 10 ms.
        self._block = rate // 100
        self._resampler = None if rate == SAMPLE_RATE else av.AudioResampler("flt", "mono", SAMPLE_RATE)
        self._downmix = Downmix(rate, channels)
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
        samples = _checked_samples(chunk, self.channels)
        self._taken += len(samples)
        return self._hear(self._downmix.push(samples))

    def _hear(self, mono: np.ndarray) -> np.ndarray:
        if self._resampler is None:
            return self._give(mono)
        self._pending = np.concatenate([self._pending, mono])
        whole = len(self._pending) // self._block * self._block
        blocks, self._pending = self._pending[:whole], self._pending[whole:]
        return self._give(self._resample(blocks))

    def finish(self) -> np.ndarray:
        """End the stream and give the rest, (m,) float32."""
        if self._finished:
            return np.zeros(0, np.float32)
        self._finished = True
        before = self._hear(self._downmix.finish())
        return before if self._resampler is None else np.concatenate([before, self._flush()])

    def _flush(self) -> np.ndarray:
        """What the resampler holds."""
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

    Of several tracks it is the one that the file calls its default; where that begins later than the file, silence
    comes first. One or two channels stay as they are, more are mixed to one (engine/downmix.py). Silence is a voice
    like any other. A file that is cut off, as far as it tells, is read to its end, with a warning.
    Raises VoiceError if there is no such file or no sound in it, if it is damaged, holds NaN or infinite
    samples, or is longer than MAX_SECONDS or than MAX_SAMPLES in all its channels.
    """
    name = _shown(path)
    parts, held, warnings = [], 0, []
    for part in _sound(Path(path), name, warnings):
        held += part[0].size
        if held > MAX_SAMPLES:
            raise VoiceError(
                f"{name}: holds more than {MAX_SAMPLES // 1_000_000} million samples; "
                "cut it into parts, or export it with one channel or fewer samples a second"
            )
        parts.append(part)
    return Voice(np.concatenate([samples for samples, _ in parts]), parts[0][1], name, *warnings)


def read_speech(path: str | Path) -> Voice:
    """What the engine hears of a file: as read_voice(path).mono16k(), (n, 1), but nothing more is ever kept of it."""
    name = _shown(path)
    parts, stream, warnings = [], None, []
    for part, rate in _sound(Path(path), name, warnings):
        stream = stream or SpeechInput(rate, part.shape[1])
        parts.append(stream.push(part))
    return Voice(np.concatenate([*parts, stream.finish()])[:, None], SAMPLE_RATE, name, *warnings)


def _shown(path: str | Path) -> str:
    """A name may hold a line break; the message must still be one line."""
    return "".join(c if c.isprintable() else "?" for c in str(path))


def _sound(path: Path, name: str, warnings: list[str]) -> Iterator[tuple[np.ndarray, int]]:
    """The sound of a file, part after part, (n, 1 or 2) float32, and its rate: n > 0 in all. What is wrong with it is
    added to `warnings`, one line at most. Raises as read_voice."""
    file, taken = _checked(path, name), 0
    try:
        # An absolute path is never taken for a URL or another of FFmpeg's protocols.
        with av.open(str(file), metadata_errors="ignore") as container:
            for part, rate in _decode(file, container, name, warnings):
                taken += len(part)
                yield part, rate
    except VoiceError:
        raise
    except (av.FFmpegError, ValueError, OSError) as error:
        why = "not sound, or damaged; give WAV, FLAC, MP3 or such"
        if lacks_index(file):
            why = "an MP4 without its index: cut off, or never finished; get a whole copy"
        raise VoiceError(f"{name}: {why}") from error
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


@dataclass
class _Reading:
    """A file that is being read. rate: Hz and channels: of the track, 0 before its first sound; taken: samples so far;
    damaged: whether a packet could not be decoded; begins, ends: of the sound so far, in seconds of the file's own
    time, None where it has none."""

    name: str
    rate: int = 0
    channels: int = 0
    taken: int = 0
    damaged: bool = False
    begins: float | None = None
    ends: float | None = None

    def check(self, frame: av.AudioFrame, part: np.ndarray) -> None:
        """What comes next fits to what came before, as far as it was good. Raises VoiceError."""
        if self.damaged:
            raise VoiceError(f"{self.name}: damaged near {self.taken / (self.rate or 1):.1f} s; get a whole copy")
        if not self.rate:
            self.rate, self.channels = frame.sample_rate, part.shape[1]
            if not _RATES[0] <= self.rate <= _RATES[1]:
                raise VoiceError(
                    f"{self.name}: has {self.rate} samples a second; export it with {_RATES[0]} to {_RATES[1]}"
                )
        if (frame.sample_rate, part.shape[1]) != (self.rate, self.channels):
            raise VoiceError(f"{self.name}: rate or channels change at {self.taken / self.rate:.1f} s; export it again")
        if not np.isfinite(part).all():
            raise VoiceError(f"{self.name}: holds NaN or infinite samples; export it again")

    def take(self, frame: av.AudioFrame) -> None:
        """Raises VoiceError for too much."""
        at = None if frame.pts is None else float(frame.pts * frame.time_base)
        self.begins = self.begins if self.taken else at
        self.ends = None if at is None else at + frame.samples / self.rate
        self.taken += frame.samples
        if self.taken > MAX_SECONDS * self.rate:
            raise VoiceError(f"{self.name}: longer than {MAX_SECONDS // 60} minutes; cut it into parts")


def _decode(
    path: Path, container: av.container.InputContainer, name: str, warnings: list[str]
) -> Iterator[tuple[np.ndarray, int]]:
    """As _sound: the track that is meant, from the beginning of the file on."""
    stream = choose_track(container)
    if stream is None:
        raise VoiceError(f"{name}: there is no sound in it; give a file with an audio track")
    late = offset(container, stream)
    if late > MAX_SECONDS:
        raise VoiceError(f"{name}: its sound begins after {late / 60:.0f} minutes; cut that off")
    reading, mix, unheard = _Reading(name), None, 0
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.FFmpegError:
            # Junk after the last sound is common (tags, a cut packet) and harmless; before it, it is not.
            reading.damaged |= not is_tag(bytes(packet))
            continue
        for frame in frames:
            part = _floats(frame)
            first = not reading.rate
            reading.damaged &= packet.size > 0  # what a decoder held is good
            reading.check(frame, part)
            reading.take(frame)
            if first:
                mix = Downmix(reading.rate, reading.channels, _channel_names(frame))
                unheard = round(max(0.0, -late) * reading.rate)
                silence = np.zeros((round(max(0.0, late) * reading.rate), reading.channels), np.float32)
                part = np.concatenate([silence, part])
            part, unheard = part[unheard:], max(0, unheard - len(part))
            yield part if reading.channels <= 2 else mix.push(part)[:, None], reading.rate
    if mix is not None and reading.channels > 2:
        yield mix.finish()[:, None], reading.rate
    if reading.damaged and not reading.taken:
        raise VoiceError(f"{name}: damaged, nothing in it can be decoded; get a whole copy")
    if not reading.taken:
        return
    heard = reading.taken / reading.rate
    words = cut_off(path, container, stream, late, heard)
    # FFmpeg skips damaged FLAC without a word, and goes on behind it: then there is less than up to the last of it
    spread = heard if reading.begins is None or reading.ends is None else reading.ends - reading.begins
    if words and stream.codec_context.name == "flac" and heard < spread - SLACK_SECONDS / 2:
        raise VoiceError(f"{name}: damaged, {heard:.1f} of {spread:.1f} s left; get a whole copy")
    if words:
        warnings.append(f"{name}: {words}")


def _channel_names(frame: av.AudioFrame) -> tuple[str, ...]:
    """As FFmpeg calls the channels; none where the file does not say which they are."""
    try:
        names = tuple(channel.name for channel in frame.layout.channels)
    except ValueError:
        return ()
    return names if all(name in KNOWN_CHANNELS for name in names) else ()


def _floats(frame: av.AudioFrame) -> np.ndarray:
    """(n, channels) float32 in [-1, 1] from any of FFmpeg's sample formats."""
    if frame.format.is_planar and frame.layout.nb_channels >= _POINTERS:
        (frame,) = av.AudioResampler("flt", frame.layout, frame.sample_rate).resample(frame)
    raw = frame.to_ndarray()
    raw = raw.T if frame.format.is_planar else raw.reshape(-1, frame.layout.nb_channels)
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
