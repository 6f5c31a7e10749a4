"""`ifmdm bench --sessions`: how many heads one process keeps at 45 fps, with one copy of the weights.

Each head is what POST /sessions makes (plugin/sessions.py), badge and all, with a portrait prepared for it alone, the
bundled ones in turn, on the machine's clock; it speaks the bundled voice over and over. Its frames go to its WebRTC
output, where nobody watches and so nothing is encoded; with `--encode` a viewer does, so that voice and pictures are
encoded as they are for WHEP, and what comes out is dropped: the network is not in the figures. Heads begin apart from
each other, as visitors do: at once they would all make their hops of motion at the same moments.

A frame is late if it was ready after its deadline, if it was handed out by more than half a frame after it, if nobody
came to take it, or if the encoder did not come to it before the next.
"""

import argparse
import asyncio
import contextlib
import gc
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from aiortc.mediastreams import MediaStreamError
from tqdm import tqdm

from engine.head import Model, Style
from engine.motion.timing import LATENT_RATE
from engine.stream import LATENCIES
from plugin import render as clips
from plugin.bench_live import percentiles
from plugin.memory import resident
from plugin.run import Show, Studio
from plugin.sessions import make_head, one_thread_each
from plugin.settings import settings_for_measuring
from transports.media import LazySink, MediaFormat, MediaFrame
from transports.webrtc.broadcast import Broadcast, PacketTrack
from transports.webrtc.options import CODECS, WebRtcOptions

FPS, SIZE = 45, 512
SECONDS, WARM_UP_SECONDS = 20.0, 2.0
#: A count of heads holds if each of them made this share of its frames, and was late with less than that.
MADE, LATE = 0.99, 0.01
#: Where `--sessions max` gives up looking for a limit.
MOST = 256
TRIES = 2
STEP_SECONDS = 0.5


@dataclass
class Watch(LazySink):
    """Notes how long after its time each frame is handed out, in seconds."""

    name = "bench"
    after: list[float] = field(default_factory=list)

    def open(self, form: MediaFormat) -> None:
        pass

    def send(self, frame: MediaFrame) -> None:
        self.after.append(time.monotonic() - frame.time)

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Counts:
    """Of one head, since its begin."""

    made: int
    late: int
    undrawn: int
    lost: int
    resyncs: int
    dropped: int

    def __sub__(self, before: "Counts") -> "Counts":
        return Counts(*(after - then for after, then in zip(vars(self).values(), vars(before).values(), strict=True)))


@dataclass(frozen=True)
class Bed:
    """What measures heads. encode: "vp8", "h264" or "none"; bare: MB of memory that the process held without heads, if
    known; bar: told of seconds that passed."""

    studio: Studio
    encode: str
    bare: float | None
    bar: tqdm

    def make(self, number: int) -> tuple[Show, Broadcast, Watch]:
        """The head of a number, nothing running, as a session; takes a fraction of a second."""
        portraits = list(clips.bundled_portraits().items())
        name, picture = portraits[number % len(portraits)]
        face = self.studio.prepare(picture)
        show, broadcast = make_head(self.studio, WebRtcOptions(), face, Style(), name, "", number, "bundled")
        watch = Watch()
        show.sinks.append(watch)
        return show, broadcast, watch


async def _drain(track: PacketTrack) -> None:
    with contextlib.suppress(MediaStreamError):
        while True:
            await track.recv()


def _counts(show: Show, broadcast: Broadcast) -> Counts:
    each = show.stream.figures
    return Counts(each.made, each.late, each.undrawn, each.lost, each.resyncs, broadcast.counts.dropped)


async def _trial(bed: Bed, count: int, seconds: float) -> dict:
    hop = LATENCIES[bed.studio.settings.live.latency].pace.hop / LATENT_RATE
    heads = [await asyncio.to_thread(bed.make, number) for number in range(count)]
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        began = time.monotonic()
        for number, (show, broadcast, _) in enumerate(heads):
            if bed.encode != "none":
                viewer = broadcast.viewer(bed.encode, voice=True)
                broadcast.join(viewer)
                for track in (viewer.video, viewer.voice):
                    group.create_task(_drain(track))
            # the golden ratio spreads any number of them evenly over a hop
            await asyncio.sleep(began + hop * (number + number * 0.618 % 1) - time.monotonic())
            group.create_task(show.run(0, stop))
        await _wait(WARM_UP_SECONDS, bed.bar)
        for *_, watch in heads:
            watch.after.clear()
        before = [_counts(show, broadcast) for show, broadcast, _ in heads]
        start, cpu = time.monotonic(), time.process_time()
        await _wait(seconds, bed.bar)
        spent, cpu = time.monotonic() - start, time.process_time() - cpu
        after = [_counts(show, broadcast) for show, broadcast, _ in heads]
        held = resident()
        stop.set()
    counts = [late - early for late, early in zip(after, before, strict=True)]
    told = _told(counts, [watch.after for *_, watch in heads], spent)
    head_mb = None if held is None or bed.bare is None else round((held - bed.bare) / count)
    memory = {"resident_mb": None if held is None else round(held), "head_mb": head_mb}
    return {"heads": count, "seconds": round(spent, 1)} | told | {"cores_used": round(cpu / spent, 2)} | memory


async def _wait(seconds: float, bar: tqdm) -> None:
    steps = max(1, round(seconds / STEP_SECONDS))
    for _ in range(steps):
        await asyncio.sleep(seconds / steps)
        bar.update(seconds / steps)


def _told(counts: list[Counts], out_after: list[list[float]], spent: float) -> dict:
    """counts: of each head in `spent` seconds; out_after: seconds by which its frames were handed out after their
    time."""
    due = FPS * spent
    shares = []
    for each, after in zip(counts, out_after, strict=True):
        # what is undrawn was late
        late = max(each.late, each.undrawn, sum(one > 0.5 / FPS for one in after)) + each.lost + each.dropped
        # time that was given up made no frames at all: those are missing
        shares.append((min(late, each.made) + max(0.0, due - each.made - 1)) / due)
    made, worst = [each.made for each in counts], max(shares)
    return {
        "frames_per_second": round(min(made) / spent, 2),
        "late_percent": round(100 * sum(shares) / len(shares), 2),
        "worst_late_percent": round(100 * worst, 2),
        **{name: sum(getattr(each, name) for each in counts) for name in ("undrawn", "lost", "dropped", "resyncs")},
        "out_after_time_ms": percentiles([one for after in out_after for one in after]),
        "holds": worst < LATE and min(made) >= MADE * due - 1,
    }


def bench_sessions(
    counts: Iterable[int], seconds: float, latency: str = "interactive", encode: str = "none", progress: bool = True,
    backend: str = "auto",
) -> dict:  # fmt: skip
    """Measure so many heads at once, for so many seconds each. encode: see Bed."""
    with _trials(seconds, latency, encode, progress, backend) as trial:
        trials = [trial(count) for count in counts]
    return _result(latency, encode, trials)


def most_sessions(
    seconds: float, latency: str = "interactive", encode: str = "none", progress: bool = True,
    backend: str = "auto",
) -> dict:  # fmt: skip
    """One head, two, ... until a number does not hold. It is tried twice, since something else may have disturbed it
    the first time."""
    trials: list[dict] = []
    with _trials(seconds, latency, encode, progress, backend) as trial:
        for count in range(1, MOST + 1):
            for _ in range(TRIES):
                trials.append(trial(count))
                if trials[-1]["holds"]:
                    break
            else:
                break
    return _result(latency, encode, trials)


@contextlib.contextmanager
def _trials(
    seconds: float, latency: str, encode: str, progress: bool, backend: str
) -> Iterator[Callable[[int], dict]]:  # fmt: skip
    """What measures a number of heads."""
    settings = settings_for_measuring({"video.fps": FPS, "video.size": SIZE, "live.latency": latency})
    studio = Studio(settings, Model.load(backend=backend))
    studio.warm(studio.prepare(next(iter(clips.bundled_portraits().values()))))
    whole, form = WARM_UP_SECONDS + seconds, "{desc} |{bar:20}| {n:.0f} of {total:.0f} s"
    shown = {"file": sys.stderr, "disable": not progress, "bar_format": form, "mininterval": 1.0}
    with one_thread_each(), tqdm(total=whole, desc="warming up", **shown) as bar:
        gc.collect()
        bed = Bed(studio, encode, resident(), bar)

        def trial(count: int) -> dict:
            gc.collect()  # the heads before
            bar.set_description_str(f"{count} {'head' if count == 1 else 'heads'}", refresh=False)
            bar.reset(whole)
            return asyncio.run(_trial(bed, count, seconds))

        yield trial


def _result(latency: str, encode: str, trials: list[dict]) -> dict:
    return {
        "latency": latency,
        "encode": encode,
        "most": max((trial["heads"] for trial in trials if trial["holds"]), default=0),
        "trials": trials,
    }


def trials_table(trials: list[dict]) -> str:
    def known(number: int | None) -> str:
        return "?" if number is None else str(number)

    lines = [
        f"{'heads':>5}{'fps':>8}{'late %':>8}{'worst %':>9}{'out late ms':>13}{'cores':>7}{'MB':>6}{'MB a head':>11}"
        "  holds"
    ]
    for each in trials:
        lines.append(
            f"{each['heads']:>5}{each['frames_per_second']:>8.2f}{each['late_percent']:>8.2f}"
            f"{each['worst_late_percent']:>9.2f}{each['out_after_time_ms'].get('p95', 0):>13.1f}"
            f"{each['cores_used']:>7.2f}{known(each['resident_mb']):>6}{known(each['head_mb']):>11}"
            f"  {'yes' if each['holds'] else 'no'}"
        )
    return "\n".join(lines)


def verdict(result: dict) -> str:
    most, least = result["most"], result["trials"][0]["heads"]
    if most:
        return f"{most} {'head holds' if most == 1 else 'heads hold'}"
    return f"{least} {'head does' if least == 1 else 'heads do'} not hold"


def table(result: dict) -> str:
    """The figures for people to read."""
    encoded = {"none": "nothing encoded"} | {codec: f"each encoded in {name}" for codec, name in CODECS.items()}
    return "\n".join([
        f"{SIZE}x{SIZE} at {FPS} fps, latency {result['latency']}, {encoded[result['encode']]}, one process; "
        "fps of the slowest head, worst: the head with most late frames",
        trials_table(result["trials"]),
        f"{verdict(result)} {FPS} fps with under {100 * LATE:g} % of any head's frames late",
    ])  # fmt: skip


def heads(text: str) -> int | str:
    """What `--sessions` takes."""
    if text == "max" or (text.isdecimal() and 1 <= int(text) <= MOST):
        return text if text == "max" else int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of heads (1 to {MOST}, or max)")


def add_arguments(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--sessions", type=heads, metavar="N|max", help="measure N heads at once, or find the most that keep up"
    )
