"""How long a start takes: `ifmdm run` in a process of its own, with its server, from the command until a frame is out.

The process is this module: it does what the command does, with one more sink, which notes the first frame and ends the
show. Clocks are the system's monotonic one, the same for both processes.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from transports.media import LazySink, MediaFormat, MediaFrame, TransportError

#: Settings as `ifmdm run` has them by default, but for the port, which may be taken.
FLAGS = {"server.port": "0", "server.host": "127.0.0.1"}
START_SECONDS = 60.0


def peak_memory() -> int | None:
    """MB that this process held at most."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(most / (2**20 if sys.platform == "darwin" else 2**10))


class FirstFrame(LazySink):
    """Notes when the first picture was out."""

    name = "first frame"
    came: float | None = None

    def __init__(self, ended: Callable[[], None]) -> None:
        self._ended = ended

    def open(self, form: MediaFormat) -> None:
        pass

    def send(self, frame: MediaFrame) -> None:
        if self.came is None and frame.image is not None:
            self.came = time.monotonic()
            self._ended()

    def close(self) -> None:
        pass


def main() -> None:
    """The process, with the name of a backend: run until the first frame, then print what was seen, as JSON, on one
    line."""
    import asyncio

    from plugin import cli  # noqa: F401  the command begins with it
    from plugin.run import Show, make_show, run
    from plugin.settings import settings_for_measuring

    seen: dict[str, Any] = {"imported": time.monotonic()}
    ended = asyncio.Event()
    sink = FirstFrame(ended.set)

    def make(*given: Any, **more: Any) -> Show:
        show = make_show(*given, **more)
        seen["made"] = time.monotonic()

        async def until(_: Show) -> None:
            await ended.wait()

        show.sinks.append(sink)
        show.services.append(until)
        return show

    run(settings_for_measuring(FLAGS | {"engine.backend": sys.argv[1]}), make)
    from plugin.memory import resident

    seen |= {"first_frame": sink.came, "torch": "torch" in sys.modules}
    seen |= {"resident_mb": resident(), "peak_memory_mb": peak_memory()}
    print(json.dumps(seen), flush=True)


def start_once(backend: str = "auto") -> dict:
    """One start: moments in seconds after the command, whether torch was imported, MB of memory. Raises
    TransportError if it did not come up."""
    command = [sys.executable, "-m", "plugin.bench_start", backend]
    pipes = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    began = time.monotonic()
    try:
        done = subprocess.run(command, cwd=Path(__file__).parents[1], timeout=START_SECONDS, **pipes)
    except subprocess.TimeoutExpired as error:
        raise TransportError(f"`ifmdm run` showed no frame in {START_SECONDS:g} s; see `ifmdm doctor`") from error
    if done.returncode:
        told = (done.stderr.strip().splitlines() or ["no word why"])[-1]
        raise TransportError(f"`ifmdm run` did not start: {told}")
    seen = json.loads(done.stdout.strip().splitlines()[-1])
    return seen | {name: seen[name] - began for name in ("imported", "made", "first_frame")}


def bench_start(runs: int, progress: bool = True, backend: str = "auto") -> dict:
    """Start so many times, and once before to have the files in memory, as on a machine that is not just booted."""
    starts = []
    for run in tqdm(range(runs + 1), "start", file=sys.stderr, disable=not progress, unit=" runs", mininterval=1.0):
        seen = start_once(backend)
        if run:
            starts.append(seen)

    def seconds(name: str) -> dict[str, float]:
        median, p95 = np.percentile([each[name] for each in starts], [50, 95])
        return {"median": round(float(median), 3), "p95": round(float(p95), 3)}

    def most(name: str) -> int | None:
        held = [each[name] for each in starts if each[name] is not None]
        return round(max(held)) if held else None

    return {
        "runs": runs,
        "imported_seconds": seconds("imported"),
        "made_seconds": seconds("made"),
        "first_frame_seconds": seconds("first_frame"),
        "torch_imported": any(each["torch"] for each in starts),
        "resident_mb": most("resident_mb"),
        "peak_memory_mb": most("peak_memory_mb"),
    }


def table(result: dict) -> str:
    """The figures for people to read."""
    first, made, imported = (result[f"{name}_seconds"] for name in ("first_frame", "made", "imported"))
    return (
        f"`ifmdm run`, {result['runs']} starts: first frame after {first['median']:.2f} s (p95 {first['p95']:.2f}); "
        f"modules imported after {imported['median']:.2f} s, all ready after {made['median']:.2f} s\n"
        f"torch {'WAS' if result['torch_imported'] else 'not'} imported; "
        f"memory then {result['resident_mb']} MB, at most {result['peak_memory_mb']} MB"
    )


if __name__ == "__main__":
    main()
