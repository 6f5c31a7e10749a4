"""The voice to a sound device: a loudspeaker, or a virtual cable that a meeting takes as its microphone.

Every frame says when it is to be out. The device says, with each block it asks for, when that block will be heard. The
sink plays the position of the voice that belongs to that moment, plus the lag of the slowest output, so the voice meets
the camera's picture without a delay typed in by anybody, and follows if it changes. A device whose clock runs a little
fast or slow is followed by single samples.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import av
import numpy as np

from transports.media import LazySink, MediaFormat, MediaFrame
from transports.portaudio import DeviceStream, find_device, list_anew, load_sounddevice

BLOCK_SECONDS = 0.01
#: A wrong position is mended at once beyond the first, sample by sample beyond the second.
JUMP_SECONDS, DRIFT_SECONDS = 0.04, 0.004
#: Voice that may wait to be played.
BUFFER_SECONDS = 3.0
#: How much earlier than its last moment voice should be there.
SLACK_SECONDS = 0.015


class PlayLine:
    """Samples at the device's rate, by position in the stream: written once, in order, and read at any position."""

    def __init__(self, rate: int) -> None:
        self._limit = round(rate * BUFFER_SECONDS)
        self._samples = np.zeros(self._limit, np.float32)
        self.start = 0  # the oldest position held
        self.end = 0  # one past the newest

    def write(self, at: int, samples: np.ndarray) -> None:
        """Put samples at a position at or after the end; what lies between is silence."""
        if at < self.end or at > self.end + self._limit:
            self.start = self.end = at  # another time altogether
            self._samples[:] = 0
        fresh = np.concatenate([np.zeros(at - self.end, np.float32), samples])[-self._limit :]
        self.end = at + len(samples)
        places = np.arange(self.end - len(fresh), self.end) % self._limit
        self._samples[places] = fresh
        self.start = max(self.start, self.end - self._limit)

    def read(self, at: int, count: int) -> np.ndarray:
        """(count,) samples from a position on; silence where there are none."""
        places = np.arange(at, at + count)
        out = self._samples[places % self._limit].copy()
        out[(places < self.start) | (places >= self.end)] = 0
        return out

    def hush(self) -> None:
        """What is held becomes silence."""
        self._samples[:] = 0


class AudioDeviceSink(LazySink):
    """See the module."""

    name = "audio"

    def __init__(self, device: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        """device: a number, a name or a part of it (see `ifmdm devices`); "" is the system's default."""
        self._device = device
        self._lock = threading.Lock()
        self._stream = DeviceStream(self._begin, "the audio output takes no sound; is it plugged in?", clock)
        self._target: float | None = None
        self._needs: deque[float] = deque(maxlen=200)
        self._anchor: float | None = None
        self._position: int | None = None

    def open(self, form: MediaFormat) -> None:
        self._form = form
        self._begin()

    def _begin(self, anew: bool = False) -> None:
        module = load_sounddevice()
        if anew:
            list_anew(module)
        device = find_device(module, self._device, output=True)
        with self._lock:
            self._rate = device.rate
            self._line = PlayLine(device.rate)
            self._resampler = av.AudioResampler("flt", "mono", device.rate)
            self._next: int | None = None  # position, in the voice's samples, that the resampler goes on from
            self._written = 0
            self._position = None
        self._stream.start(
            lambda: module.OutputStream(
                device=device.index, samplerate=device.rate, channels=min(2, device.outputs), dtype="float32",
                blocksize=round(device.rate * BLOCK_SECONDS), latency="low", callback=self._give,
            ),
            f"{device.name}: the audio output cannot be opened", (module.PortAudioError, ValueError, OSError),
        )  # fmt: skip

    def send(self, frame: MediaFrame) -> None:
        with self._lock:
            self._anchor = frame.time - frame.pts / self._form.audio_rate
            if self._next != frame.pts:
                # begun, or frames were lost: the resampler starts anew at the right place
                self._resampler = av.AudioResampler("flt", "mono", self._rate)
                self._written = round(frame.pts * self._rate / self._form.audio_rate)
            self._next = frame.pts + len(frame.audio)
            made = self._resample(frame.audio)
            self._line.write(self._written, made)
            self._written += len(made)

    def _resample(self, samples: np.ndarray) -> np.ndarray:
        if self._rate == self._form.audio_rate or not len(samples):
            return samples
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None], np.float32), "flt", "mono")
        frame.sample_rate = self._form.audio_rate
        parts = [np.zeros(0, np.float32), *(part.to_ndarray()[0] for part in self._resampler.resample(frame))]
        return np.clip(np.concatenate(parts), -1, 1)

    def _give(self, out: np.ndarray, frames: int, when: object, status: object) -> None:
        """PortAudio's thread asks for the next block."""
        now = self._stream.beat()
        ahead = max(0.0, when.outputBufferDacTime - when.currentTime)
        with self._lock:
            self._needs.append(ahead + frames / self._rate + SLACK_SECONDS)
            if self._anchor is None:
                out[:] = 0
                return
            target = self._target if self._target is not None else max(self._needs)
            wanted = round((now + ahead - target - self._anchor) * self._rate)
            out[:] = self._line.read(self._follow(wanted), frames)[:, None]
            self._position += frames

    def _follow(self, wanted: int) -> int:
        """The position to play: the next one, corrected towards the wanted one."""
        error = 0 if self._position is None else wanted - self._position
        if self._position is None or abs(error) > JUMP_SECONDS * self._rate:
            self._position = wanted
        elif abs(error) > DRIFT_SECONDS * self._rate:
            self._position += 1 if error > 0 else -1
        return self._position

    def interrupt(self) -> None:
        with self._lock:
            self._line.hush()
            self._next = None  # what the resampler holds back, too

    def lag(self) -> float | None:
        with self._lock:
            return max(self._needs) if self._needs else None

    def align(self, lag: float) -> None:
        with self._lock:
            own = max(self._needs, default=0.0)
            self._target = max(lag, own)

    def check(self) -> str:
        return self._stream.check()

    def close(self) -> None:
        self._stream.close()


def create(options: Mapping[str, Any]) -> AudioDeviceSink:
    """The output "audio". options: device."""
    return AudioDeviceSink(**options)
