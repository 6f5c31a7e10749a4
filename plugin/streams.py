"""The standard streams of the process, made such that what is told can fail no work.

Whatever a name holds can be shown in some way, and a reader that went away, a full disk or a closed terminal loses the
text and nothing else.
"""

import io
import os
import re
import select
import sys
from typing import TextIO

#: How long a reader that is there and takes nothing is waited for, where the system does not wait by itself.
STALLED_SECONDS = 1.0


_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def one_line(text: str) -> str:
    """A text as one line that does nothing to a terminal, whatever is in the names in it."""
    return _CONTROL.sub("?", " ".join(text.split()))


class Lenient(io.RawIOBase):
    """Writes to `raw`, and drops what that does not take. error: why something was lost the first time, if it was for
    another reason than that nobody reads any more."""

    def __init__(self, raw: io.RawIOBase) -> None:
        super().__init__()
        self._raw = raw
        self.error: OSError | None = None

    def write(self, data: memoryview) -> int:
        size = memoryview(data).nbytes
        try:
            taken = self._raw.write(data)
            if taken is None:  # the descriptor does not block: another program has set that
                select.select([], [self._raw.fileno()], [], STALLED_SECONDS)
                taken = self._raw.write(data)
        except BrokenPipeError:
            return size
        except OSError as error:
            self.error = self.error or error
            return size
        return size if taken is None else taken

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def isatty(self) -> bool:
        return self._raw.isatty()


def open_descriptors() -> None:
    """Open /dev/null in the place of standard streams that are closed (`2>&-`): the next file or connection would get
    their number, and native libraries would write their messages into it."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)


def _lenient(stream: TextIO | None, always_by_line: bool) -> TextIO:
    if stream is None:  # it was closed
        return open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # under PYTHONUNBUFFERED there is nothing between
    if not isinstance(raw, io.RawIOBase):
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(Lenient(raw)), stream.encoding, "backslashreplace",
        line_buffering=always_by_line or stream.isatty() or buffer is raw,
    )  # fmt: skip


def make_lenient() -> None:
    """Replace sys.stdout and sys.stderr. sys.stdin stays None where it is closed."""
    sys.stdout, sys.stderr = _lenient(sys.stdout, False), _lenient(sys.stderr, True)


def flushed(stream: TextIO) -> str:
    """Write out what waits. Why some of the text was lost, in a few words; "" if it was not."""
    stream.flush()
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    error = raw.error if isinstance(raw, Lenient) else None
    return "" if error is None else error.strerror or str(error)
