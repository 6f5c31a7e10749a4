"""Pictures are decoded in a process of their own: it may be ended when it takes too long, whatever it is at, and the
memory that it takes is limited and given back. Bytes go in and bytes come out (engine/picture.py)."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import IO

import numpy as np

from engine.errors import InputError
from engine.formats import MAX_DECODED, PictureError

#: The dearest that engine.picture lets through take 3 to 5 on a free core.
SECONDS = 15.0
_POLL_SECONDS = 0.1
# As the interpreter that runs this finds its modules, without reading its site's files again.
_PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from engine.picture import main; main()"


class DecoderError(InputError):
    """The picture is not at fault: the process could not be started, or was to end. One line."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """pixels: (height, width, 3) uint8 RGB, read only. reduced: by how much its sides are shorter than the file's."""

    pixels: np.ndarray
    reduced: int = 1


@dataclass(eq=False)
class Decoder:
    """For any thread; one process a call. seconds: after which one is ended. stopped: asked meanwhile whether what it
    is for is to end."""

    seconds: float = SECONDS
    stopped: Callable[[], bool] = lambda: False
    _closed: Event = field(default_factory=Event)

    def __call__(self, data: bytes) -> Decoded:
        """data: of the file. Raises PictureError, or DecoderError."""
        began = time.monotonic()
        with self._start() as process:
            # communicate() forgets what it has not sent yet when its time is up
            feeder, process.stdin = Thread(target=_feed, args=(process.stdin, data)), None
            feeder.start()
            try:
                said = self._await(process, began)
            finally:
                process.kill()
                feeder.join()
        if process.returncode == 1 and not said:  # it found no Pillow, or the like
            raise DecoderError("the process that decodes pictures does not work here; install ifmdm anew")
        return _understood(said)

    def close(self) -> None:
        """End what runs; nothing is decoded any more."""
        self._closed.set()

    def _await(self, process: subprocess.Popen, began: float) -> bytes:
        while True:
            if self._closed.is_set() or self.stopped():
                raise DecoderError("the picture was not decoded, since the program is about to end")
            try:
                return process.communicate(timeout=_POLL_SECONDS)[0]
            except subprocess.TimeoutExpired:
                if time.monotonic() - began > self.seconds:
                    told = f"it takes more than {self.seconds:.0f} s to decode; save it anew, or smaller"
                    raise PictureError(told) from None

    def _start(self) -> subprocess.Popen:
        path = [os.path.abspath(each) for each in (*sys.path, Path(__file__).parents[1])]
        hidden = getattr(subprocess, "CREATE_NO_WINDOW", 0)  # Windows opens a console otherwise
        try:
            return subprocess.Popen(
                [sys.executable, "-S", "-c", _PROGRAM, *path],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, creationflags=hidden,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )  # fmt: skip
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DecoderError(f"the process that decodes pictures cannot be started ({reason}); try again") from error


def _feed(pipe: IO[bytes], data: bytes) -> None:
    with contextlib.suppress(OSError), pipe:  # it may have ended before all is read
        pipe.write(data)


def _understood(said: bytes) -> Decoded:
    """What the process wrote, which is believed no more than the picture."""
    start = said.find(b"\n") + 1
    try:
        told = json.loads(said[:start])
        if "refused" in told:
            words = "".join(c if c.isprintable() else "?" for c in str(told["refused"]))
            raise PictureError(words[:300])
        width, height, reduced = (int(told[name]) for name in ("width", "height", "reduced"))
    except PictureError:
        raise
    except (ValueError, TypeError, KeyError):
        # it was ended from outside, by the system's limits or a fault of a library
        raise PictureError("it cannot be decoded within the limits of memory; save it anew, or smaller") from None
    if min(width, height) < 1 or width * height > MAX_DECODED or len(said) - start != width * height * 3:
        raise PictureError("it cannot be decoded; save it anew")
    return Decoded(np.frombuffer(said, np.uint8, offset=start).reshape(height, width, 3), reduced)
