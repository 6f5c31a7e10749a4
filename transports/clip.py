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
        self._stop, self._skip, self._wanted = threading.Event(), threading.Event(), threading.Event()
        self._wanted.set()
        self._giving = threading.Lock()
        self._thread: threading.Thread | None = None

    def open(self, deliver: Deliver, ended: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=self._run, args=(deliver, ended), name="clip", daemon=True)
        self._thread.start()

    def check(self) -> str:
        return ""

    @property
    def resting(self) -> bool:
        """Whether it was interrupted, and waits for `play`."""
        return not self._wanted.is_set()

    def interrupt(self) -> None:
        """Leave the rest out: with loop it rests until `play`, else this is the end. Nothing more of it is delivered
        from now on, not even a chunk that was on its way: that takes a millisecond, which is waited for."""
        if self._loop:
            self._wanted.clear()
        self._skip.set()
        with self._giving:
            pass

    def play(self) -> None:
        """If it rests, begin again."""
        self._wanted.set()

    def close(self) -> None:
        for event in (self._stop, self._skip, self._wanted):
            event.set()
        if self._thread is not None:
            self._thread.join(1)

    def _run(self, deliver: Deliver, ended: Callable[[], None]) -> None:
        begins = time.monotonic()
        while True:
            whole = self._say(begins, deliver)
            self._skip.clear()
            if self._stop.is_set():
                return
            if not self._loop:
                return ended()
            if whole and not self.resting:
                begins = max(begins + len(self._samples) / self._rate, time.monotonic()) + self._pause
            else:
                self._wanted.wait()
                begins = time.monotonic()

    def _say(self, begins: float, deliver: Deliver) -> bool:
        """All of it, from the time `begins` on; False if it was left off."""
        step = max(1, round(self._rate * CHUNK_SECONDS))
        for at in range(0, len(self._samples), step):
            # absolute, so that small delays do not add up to a slower voice
            wait = max(0.0, begins + at / self._rate - time.monotonic())
            while True:
                if self._skip.wait(wait):
                    return False
                with self._giving:
                    if self._skip.is_set():
                        return False
                    if deliver(self._samples[at : at + step], self._rate):
                        break
                wait = CHUNK_SECONDS
        return True
