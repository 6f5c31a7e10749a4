"""What signals do: Ctrl-C, SIGTERM, and SIGHUP of a terminal that is closed (on Windows SIGBREAK).

Before there is anything to undo they end the process at once. An exception out of a handler would not do there: in the
middle of an import native code turns it into another error. Where there is something to undo they unwind the stack.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")

Handler = Callable[[int, FrameType | None], None]


def ending() -> list[signal.Signals]:
    """The signals that ask this process to end: those this system has, but for SIGHUP under nohup."""
    there = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
    closed = getattr(signal, "SIGHUP", None)
    return [each for each in there if each != closed or signal.getsignal(each) is not signal.SIG_IGN]


def status_of(number: int) -> int:
    """The exit status of a command that a signal ended, as shells have it."""
    return 128 + number


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Afterwards signals do what they did before, whatever was set meanwhile: an event loop leaves the system's
    defaults. Outside the main thread nothing changes."""
    before = {number: signal.getsignal(number) for number in ending()}
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            for number, was in before.items():
                signal.signal(number, was if was is not None else signal.SIG_DFL)


@contextlib.contextmanager
def handled(handler: Handler) -> Iterator[None]:
    """While it lasts, signals go to the handler. Outside the main thread nothing changes."""
    with kept():
        with contextlib.suppress(ValueError):  # not in the main thread: whoever started it handles signals
            for number in ending():
                signal.signal(number, handler)
        yield


def ignored() -> None:
    """From now on signals do nothing: for the last moment of a process. Outside the main thread nothing changes."""
    with contextlib.suppress(ValueError):
        for number in ending():
            signal.signal(number, signal.SIG_IGN)


def end_at_once(number: int, _: FrameType | None = None) -> None:
    """A handler. Nothing of Python's is used, which the signal may have interrupted."""
    if number == signal.SIGINT:
        with contextlib.suppress(OSError):
            os.write(2, b"ifmdm: interrupted\n")
    os._exit(status_of(number))


class Unwinding:
    """See `unwinding`."""

    def __init__(self) -> None:
        self._came: list[int] = []
        self._holding = False

    def leave(self, number: int, _: FrameType | None) -> None:
        """A handler."""
        self._came.append(number)
        if not self._holding:
            self.end()

    def end(self, cause: BaseException | None = None) -> None:
        """Raises what a signal that came is to raise."""
        if self._came:
            first = self._came[0]
            raise (KeyboardInterrupt() if first == signal.SIGINT else SystemExit(status_of(first))) from cause

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """While it lasts, signals wait: for what must not be interrupted between being made and being looked after."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        self.end()


@contextlib.contextmanager
def unwinding() -> Iterator[Unwinding]:
    """While it lasts, a signal raises KeyboardInterrupt (Ctrl-C) or SystemExit, so that half-written files go; and what
    becomes of that on its way out is the same again."""
    state = Unwinding()
    with handled(state.leave):
        try:
            yield state
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            state.end(error)
            raise
        state.end()  # whoever caught it did not mean to
