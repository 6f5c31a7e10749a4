"""`ifmdm bench`: what each stage costs on this machine.

Everything runs as it does in `ifmdm render` with the default settings and the backend that is asked for, but for
threads: OpenCV and ONNX Runtime get one each, so that a stage's time is that of one core. Wall time is what a viewer
waits. Processor time is what the machine spends, on all its cores, and the better figure where others compete for them.
"""

import argparse
import contextlib
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path

import av
import cv2
import numpy as np
import onnxruntime
from tqdm import tqdm

from engine.backend import NAMES
from engine.errors import InputError
from engine.features import FEATURES_PER_LATENT, LATENT_HOP, SAMPLE_RATE, LogMel
from engine.head import OFFLINE, Head, Model
from engine.motion.timing import LATENT_RATE
from engine.portrait import load_portrait
from engine.speech import SpeechInput, read_voice
from engine.stream import LATENCIES
from plugin import __version__, bench_growth, bench_live, bench_profile, bench_sessions, bench_start
from plugin import render as clips
from plugin.memory import resident
from plugin.settings import settings_for_measuring
from transports.file import ENCODER_THREADS
from transports.webrtc.encoders import VideoEncoder, can_encode, to_i420
from transports.webrtc.options import CODECS, WebRtcOptions

PORTRAIT, FPS, SIZE = "ada", 45, 512
WARM_UP = 2
#: How often each stage is run, in the order of the pipeline.
RUNS = {
    "load weights": 10,
    "find face": 20,
    "portrait networks": 20,
    "resampling": 100,
    "speech features": 100,
    "motion": 100,
    "coefficients": 300,
    "render": 300,
    "colour conversion": 300,
    "VP8 encoding": 300,
    "H.264 encoding": 300,
    "voice to frames": 20,
    "ifmdm render": 5,
}
QUICK, FEWEST = 10, 2  # how many times fewer runs with --quick, but so many
#: Which options each kind of measurement takes. The plain one, of the stages, has no word of its own.
PLAIN = "the plain bench"
TAKES = {
    "live": {"seconds", "latency", "backend"},
    "--sessions": {"seconds", "latency", "encode", "backend"},
    "--growth": {"seconds", "latency", "backend"},
    "--profile": {"seconds"},
    PLAIN: {"backend", "quick"},
}
LATENCY = "interactive"
#: How often `ifmdm run` is started.
STARTS = 5
#: What a browser's microphone gives, and how much of it at once.
MICROPHONE_RATE, MICROPHONE_SECONDS = 48_000, 0.02
#: Frames that are encoded over and over, forwards and backwards, so that no cut is among them.
ENCODED = 90


class BenchError(InputError):
    """The measurement cannot be kept as asked. One line: what is wrong, what to do."""


@dataclass(frozen=True)
class Stage:
    """What one stage costs. per: what is measured, e.g. "frame"; median_ms and p95_ms: wall time of one of them;
    cpu_ms: processor time, median; real_time: how many times faster than playing, where that means something."""

    name: str
    per: str
    runs: int
    median_ms: float
    p95_ms: float
    cpu_ms: float
    real_time: float | None = None


@dataclass(frozen=True)
class Plan:
    """A stage to be measured. run: does it once; seconds: how much video or voice one run is, if any."""

    name: str
    per: str
    run: Callable[[], object]
    seconds: float | None = None
    warm_up: int = WARM_UP


def runs(name: str, share: int) -> int:
    return max(FEWEST, RUNS[name] // share)


def measure(plan: Plan, count: int, bar: tqdm) -> Stage:
    """Run a stage `count` times, after some runs to warm up."""
    bar.set_description(plan.name)
    for _ in range(plan.warm_up):
        plan.run()
    walls, cpus = [], []
    for _ in range(count):
        wall, cpu = time.perf_counter(), time.process_time()
        plan.run()
        walls.append(1000 * (time.perf_counter() - wall))
        cpus.append(1000 * (time.process_time() - cpu))
        bar.update()
    per = plan.seconds or 1.0  # what takes longer than a second is told by the second
    median, p95 = (float(np.percentile(walls, share)) / per for share in (50, 95))
    real_time = 1000 / median if plan.seconds else None
    return Stage(plan.name, plan.per, count, median, p95, float(np.median(cpus)) / per, real_time)


def plans(folder: Path, backend: str = "auto") -> Iterator[Plan]:
    """The stages in the order of the pipeline. folder: for what `ifmdm render` writes."""
    picture = clips.bundled_portraits()[PORTRAIT]
    portrait = load_portrait(picture)
    voice = read_voice(clips.BUNDLED_VOICE).mono16k()
    seconds = max(1, len(voice) // SAMPLE_RATE)
    chunks = cycle(np.array_split(voice[: seconds * SAMPLE_RATE], seconds))

    yield Plan("load weights", "start", lambda: Model.load(backend=backend).prepare(portrait))
    model = Model.load(backend=backend)
    yield Plan("find face", "portrait", lambda: load_portrait(picture))
    yield Plan("portrait networks", "portrait", lambda: model.prepare(portrait))

    whole = round(MICROPHONE_RATE * MICROPHONE_SECONDS)
    stereo = np.random.default_rng(0).normal(0, 0.1, (MICROPHONE_RATE // whole, whole, 2)).astype(np.float32)
    taken = SpeechInput(MICROPHONE_RATE, 2)
    yield Plan("resampling", "s of voice", lambda: [taken.push(chunk) for chunk in stereo], seconds=1.0)

    hearing = LogMel()
    yield Plan("speech features", "s of voice", lambda: hearing.push(next(chunks)), seconds=1.0)

    motion, pace = Head(model, portrait, fps=FPS, size=SIZE).performance.motion, OFFLINE
    hop, ahead = pace.hop * FEATURES_PER_LATENT, pace.look_ahead * FEATURES_PER_LATENT
    features = LogMel().push(np.resize(voice, RUNS["motion"] * pace.hop * LATENT_HOP))
    hops = cycle(features.reshape(-1, hop, features.shape[1]))
    motion.push(features[:ahead])  # so that each hop's worth of speech from here on makes one hop
    latents: list[np.ndarray] = []
    yield Plan("motion", "hop", lambda: latents.extend(motion.push(next(hops))))

    shown = cycle(latents)
    yield Plan("coefficients", "frame", lambda: model.coefficients(next(shown)))
    moves = cycle([model.coefficients(latent) for latent in latents])
    renderer = model.renderer(model.prepare(portrait), SIZE)
    yield Plan("render", "frame", lambda: renderer.render(next(moves)))

    yield from encoding(Head(model, portrait, fps=FPS, size=SIZE), voice)

    speaker = Head(model, portrait, fps=FPS, size=SIZE)
    yield Plan("voice to frames", "s of video", lambda: speaker.push(next(chunks)), seconds=1.0)

    flags = {"head.portrait": PORTRAIT, "video.fps": FPS, "video.size": SIZE, "engine.backend": backend}
    settings = settings_for_measuring(flags | {"render.output": str(folder / "bench.mp4")})
    length = len(voice) / SAMPLE_RATE
    yield Plan("ifmdm render", "s of video", lambda: clips.render(settings, progress=False), length, warm_up=0)


def encoding(head: Head, voice: np.ndarray) -> Iterator[Plan]:
    """What each frame costs on its way to WebRTC viewers: a second or two of the head speaking."""
    shown: list[np.ndarray] = []
    for chunk in cycle(np.array_split(voice, -(-len(voice) // SAMPLE_RATE))):
        shown += [frame.image for frame in head.push(chunk)]
        if len(shown) >= ENCODED:
            break
    there_and_back = [*shown, *shown[-2:0:-1]]
    images, out = cycle(there_and_back), np.empty((SIZE * 3 // 2, SIZE), np.uint8)
    yield Plan("colour conversion", "frame", lambda: to_i420(next(images), out))
    pictures = [to_i420(image) for image in there_and_back]
    for name, codec in (("VP8 encoding", "vp8"), ("H.264 encoding", "h264")):
        if not can_encode(codec):
            continue
        encoder, numbered = VideoEncoder(codec, SIZE, SIZE, FPS, WebRtcOptions().bitrate), enumerate(cycle(pictures))

        def encode(encoder: VideoEncoder = encoder, numbered: Iterator[tuple[int, np.ndarray]] = numbered) -> None:
            index, picture = next(numbered)
            encoder.encode(picture, index, keyframe=index == 0)

        yield Plan(name, "frame", encode)


def machine() -> dict[str, object]:
    """What the figures depend on."""
    name = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "processor": name or platform.machine(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "system": platform.platform(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def versions() -> dict[str, str]:
    modules = {"numpy": np, "opencv": cv2, "onnxruntime": onnxruntime, "av": av}
    if "torch" in sys.modules:  # of a GPU's backend; it is not imported to be asked
        modules["torch"] = sys.modules["torch"]
    ours = {"ifmdm": __version__, "python": platform.python_version()}
    return ours | {name: module.__version__ for name, module in modules.items()}


def bench(share: int = 1, progress: bool = True, backend: str = "auto") -> dict[str, object]:
    """Measure everything; what `--json` writes."""
    pace = OFFLINE
    threads = cv2.getNumThreads()
    start = bench_start.bench_start(max(FEWEST, STARTS // share), progress, backend)
    cv2.setNumThreads(1)
    stages = []
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            tqdm(
                total=sum(runs(name, share) for name in RUNS),
                file=sys.stderr,
                disable=not progress,
                unit=" runs",
                mininterval=0.1 if sys.stderr.isatty() else 2.0,
            ) as bar,
        ):
            for plan in plans(Path(folder), backend):
                stages.append(measure(plan, runs(plan.name, share), bar))
    finally:
        cv2.setNumThreads(threads)
    return {
        "threads": {"opencv": 1, "onnxruntime": 1, "encoder": ENCODER_THREADS},
        "settings": {"portrait": PORTRAIT, "fps": FPS, "size": SIZE, "hop_seconds": pace.hop / LATENT_RATE}
        | asdict(pace),
        "weights": Model.load(backend="cpu").config.get("training", {}),
        "start": start,
        "resident_mb": None if (held := resident()) is None else round(held),
        "peak_memory_mb": bench_start.peak_memory(),
        "stages": [asdict(stage) for stage in stages],
    }


def table(result: dict) -> str:
    """The figures for people to read."""
    machine, settings = result["machine"], result["settings"]
    load = "" if machine["load"] is None else f", load {machine['load']:g} before"
    lines = [
        f"{machine['processor']}, {machine['cores']} cores{load}; "
        + ", ".join(f"{name} {number}" for name, number in result["versions"].items()),
        f"{settings['size']}x{settings['size']} at {settings['fps']} fps, a hop is {settings['hop_seconds']:g} s; "
        "one thread for OpenCV and for ONNX Runtime"
        + (f"; peak memory {result['peak_memory_mb']} MB" if result["peak_memory_mb"] else ""),
        "",
        f"{'stage':<19}{'per':<12}{'runs':>5}{'median ms':>11}{'p95 ms':>9}{'cpu ms':>9}{'x real time':>13}",
    ]
    for stage in result["stages"]:
        speed = "" if stage["real_time"] is None else f"{stage['real_time']:.1f}"
        lines.append(
            f"{stage['name']:<19}{stage['per']:<12}{stage['runs']:>5}{stage['median_ms']:>11.2f}"
            f"{stage['p95_ms']:>9.2f}{stage['cpu_ms']:>9.2f}{speed:>13}"
        )
    lines += ["", bench_start.table(result["start"])]
    return "\n".join(line.rstrip() for line in lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    kinds = parser.add_mutually_exclusive_group()
    for kind in (bench_live, bench_sessions, bench_growth, bench_profile):
        kind.add_arguments(kinds)
    parser.add_argument(
        "--seconds", type=positive, metavar="S",
        help="how long to measure: live 60 by default, --sessions 20 each, --growth 3600 of stream time, --profile 6",
    )  # fmt: skip
    parser.add_argument("--latency", choices=tuple(LATENCIES), help=f"of the live heads (default {LATENCY})")
    parser.add_argument(
        "--encode", choices=("none", *CODECS),
        help="encode the pictures and voice of every head of --sessions, too (default none)",
    )  # fmt: skip
    parser.add_argument(
        "--backend", choices=NAMES, help="what computes (default auto: the GPU where it works; --profile: cpu)"
    )
    parser.add_argument(
        "--quick", action="store_true", default=None, help=f"{QUICK} times fewer runs of the stages, for a first look"
    )


def positive(text: str) -> float:
    """What `--seconds` takes."""
    with contextlib.suppress(ValueError):
        if 0 < (number := float(text)) < math.inf:
            return number
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")


def check_options(args: argparse.Namespace) -> None:
    """Raises BenchError for an option that what is asked for would not heed."""
    asked = next((kind for kind in TAKES if getattr(args, kind.strip("-"), None)), PLAIN)
    for name in ("seconds", "latency", "encode", "backend", "quick"):
        if getattr(args, name) is not None and name not in TAKES[asked]:
            takers = [kind for kind, taken in TAKES.items() if name in taken]
            raise BenchError(f"--{name} is of {', '.join(takers)}: leave it out of {asked}")


def chosen(args: argparse.Namespace, backend: str) -> tuple[Callable[[], dict], Callable[[dict], str]]:
    """What the command line asks for: what measures it, and what tells the figures."""
    latency = args.latency or LATENCY
    how = {"latency": latency, "backend": backend}
    if args.live:
        return lambda: bench_live.bench_live(args.seconds or 60.0, **how), bench_live.table
    if args.sessions:
        heads = (args.seconds or bench_sessions.SECONDS, latency, args.encode or "none")
        if args.sessions == "max":
            return lambda: bench_sessions.most_sessions(*heads, backend=backend), bench_sessions.table
        return lambda: bench_sessions.bench_sessions([args.sessions], *heads, backend=backend), bench_sessions.table
    if args.growth:
        return lambda: bench_growth.bench_growth(args.seconds or 3600.0, **how), bench_growth.table
    if args.profile:
        return lambda: bench_profile.bench_profile(args.seconds or bench_profile.SECONDS), bench_profile.table
    return lambda: bench(QUICK if args.quick else 1, backend=backend), table


def run(args: argparse.Namespace) -> int:
    """Measure, print the table. Raises InputError for an option out of place, a file that cannot be written or a
    backend that does not work, before anything is measured."""
    check_options(args)
    if args.json:
        try:
            args.json.open("a").close()
        except OSError as error:
            raise BenchError(f"{args.json}: cannot be written ({error.strerror}); give another file") from error
    backend = Model.load(backend="cpu" if args.profile else args.backend or "auto").backend
    measured, told = chosen(args, backend.name)
    result = {"machine": machine(), "versions": versions(), "backend": str(backend)} | measured()
    print(f"backend: {backend}")
    print(told(result), flush=True)
    if args.json:  # last, since the disk may be full
        try:
            args.json.write_text(json.dumps(result, indent=1) + "\n")
        except OSError as error:
            raise BenchError(f"{args.json}: cannot be written ({error.strerror}); the figures are above") from error
    return 0
