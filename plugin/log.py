"""What `ifmdm run` tells on standard error: lines for a person, or an object a line for a program.

Modules log with the standard library, to the logger of their own name; what belongs to a line goes into `extra`. Never
logged: sound, pictures, tokens, addresses of those who watch, what a request holds. A traceback is shown at level debug
only. What libraries say is shown from warnings on, the same again not before AGAIN_SECONDS are over.
"""

import contextlib
import json
import logging
import math
import select
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from plugin.streams import one_line

OURS = ("engine", "plugin", "transports")
#: Of libraries: seconds from one line of a kind to the next, and kinds that are remembered.
AGAIN_SECONDS, KINDS = 10.0, 256
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _more(record: logging.LogRecord) -> dict[str, Any]:
    """What was given as `extra`."""
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def _error(record: logging.LogRecord) -> str:
    error = record.exc_info[1] if record.exc_info else None
    return "" if error is None else f"{type(error).__name__}: {error}"


def _trace(record: logging.LogRecord) -> list[str]:
    if not record.exc_info or not logging.getLogger(OURS[1]).isEnabledFor(logging.DEBUG):
        return []
    return "".join(traceback.format_exception(*record.exc_info)).splitlines()


class TextFormatter(logging.Formatter):
    """`ifmdm: what happened (viewers 2)`."""

    def format(self, record: logging.LogRecord) -> str:
        more = ", ".join(f"{name} {value}" for name, value in _more(record).items())
        parts = [record.getMessage(), f"({more})" if more else "", _error(record)]
        grave = "" if record.levelno < logging.ERROR else f"{record.levelname.lower()}: "
        line = one_line(" ".join(part for part in parts if part))
        return "\n".join([f"ifmdm: {grave}{line}", *_trace(record)])


def _scalar(value: object) -> object:
    """A file name that is not UTF-8 as text that is: JSON knows no lone surrogates (RFC 8259 section 8.2)."""
    if isinstance(value, int | float | bool | None):
        return value
    return str(value).encode("utf-8", "backslashreplace").decode()


class JsonFormatter(logging.Formatter):
    """One object a line: time (RFC 3339, UTC), level, logger, message, what else belongs to it, and error. In ASCII,
    which is the same in whatever encoding the line is written."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        told = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": " ".join(record.getMessage().split()),
            **_more(record),
        }
        if error := _error(record):
            told["error"] = " ".join(error.split())
        told = {name: _scalar(value) for name, value in told.items()}
        if trace := _trace(record):
            told["trace"] = [_scalar(line) for line in trace]
        return json.dumps(told)


class Terminal(logging.Handler):
    """Log lines, and on a terminal a status line below them that is written over. status: only where a person reads,
    and not among objects for a program.

    Nothing that becomes of the text stops the head: lines that a terminal takes not (Ctrl-S), or a pipe that nobody
    reads from, are left out, and counted in the next that is shown."""

    def __init__(self, out: TextIO, form: str = "text") -> None:
        super().__init__()
        self.addFilter(OneOfAKind())
        self.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
        self._out, self._live, self._shown = out, form == "text" and out.isatty(), 0
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        if not self._takes():
            self._lost += 1
            return
        self._clear()
        if self._lost:
            lost, self._lost = self._lost, 0
            told = f"{lost} lines were not shown, since nobody read them"
            self._write(self.format(logging.LogRecord(__name__, logging.WARNING, "", 0, told, (), None)) + "\n")
        self._write(self.format(record) + "\n")

    def status(self, line: str) -> None:
        with self.lock:
            if self._live and self._takes():
                self._clear()
                self._shown = len(self._write(line[:200]))

    def clear(self) -> None:
        with self.lock:
            self._clear()

    def _clear(self) -> None:
        if self._shown and self._takes():
            self._write("\r" + " " * self._shown + "\r")
            self._shown = 0

    def _takes(self) -> bool:
        """Whether some thousand characters can be written without waiting; where that cannot be known, yes."""
        try:
            return bool(select.select([], [self._out.fileno()], [], 0)[1])
        except (OSError, ValueError):  # no descriptor behind it, or Windows
            return True

    def _write(self, text: str) -> str:
        """What was shown, as it was."""
        encoding = getattr(self._out, "encoding", None) or "utf-8"
        text = text.encode(encoding, "backslashreplace").decode(encoding)
        with contextlib.suppress(OSError, ValueError):  # nobody reads any more
            self._out.write(text)
            self._out.flush()
        return text


class OneOfAKind(logging.Filter):
    """Of what other packages log, one line of a kind in AGAIN_SECONDS: some tell of each packet of a peer's that is not
    as it should be, and a peer sends as many as it likes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._told: dict[tuple[str, int, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] in OURS:
            return True
        now, kind = self._clock(), (record.name, record.levelno, str(record.msg)[:200])
        if now - self._told.get(kind, -math.inf) < AGAIN_SECONDS:
            return False
        if len(self._told) >= KINDS:
            self._told.clear()
        self._told[kind] = now
        return True


@contextlib.contextmanager
def logging_to(out: TextIO | None = None, level: str = "info", form: str = "text") -> Iterator[Terminal]:
    """While it lasts, what is logged goes to `out` (None: standard error). level: debug, info, warning or error, of our
    own modules; form: text or json."""
    terminal, root = Terminal(out or sys.stderr, form), logging.getLogger()
    before = {name: logging.getLogger(name).level for name in OURS} | {None: root.level}
    root.addHandler(terminal)
    root.setLevel(logging.WARNING)
    for name in OURS:
        logging.getLogger(name).setLevel(level.upper())
    try:
        yield terminal
    finally:
        terminal.clear()
        root.removeHandler(terminal)
        for name, was in before.items():
            logging.getLogger(name).setLevel(was)
