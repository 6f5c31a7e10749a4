"""A recording as the voice, once or over and over, at the speed at which it is heard."""

import threading
import time
from collections.abc import Callable

import numpy as np

from transports.media import Deliver

CHUNK_SECONDS = 0.02


class ClipSource:
    """Delivers a voice in chunks of 20 ms, each when it would have been spoken."""

    name = "file"
    live = False

    def __init__(self, samples: np.ndarray, rate: int, loop: bool = False, pause: float = 1.0) -> None:
        """samples: (n,) or (n, channels) float32; loop: begin again `pause` seconds after the end."""
        self._samples, self._rate, self._loop, self._pause = samples, rate, loop, pause
        self._stop, self._skip = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def open(self, deliver: Deliver, ended: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=self._run, args=(deliver, ended), name="clip", daemon=True)
        self._thread.start()

    def check(self) -> str:
        return ""

    def interrupt(self) -> None:
        """Leave the rest out: with loop it begins again after the pause, else this is the end."""
        self._skip.set()

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(1)

    def _run(self, deliver: Deliver, ended: Callable[[], None]) -> None:
        begins, step = time.monotonic(), max(1, round(self._rate * CHUNK_SECONDS))
        while not self._stop.is_set():
            self._skip.clear()
            for at in range(0, len(self._samples), step):
                # absolute, so that small delays do not add up to a slower voice
                if self._stop.wait(max(0.0, begins + at / self._rate - time.monotonic())):
                    return
                if self._skip.is_set():
                    begins = time.monotonic() - len(self._samples) / self._rate
                    break
                while not self._skip.is_set() and not deliver(self._samples[at : at + step], self._rate):
                    if self._stop.wait(CHUNK_SECONDS):
                        return
            if not self._loop:
                break
            begins = max(begins + len(self._samples) / self._rate, time.monotonic()) + self._pause
        if not self._stop.is_set():
            ended()
