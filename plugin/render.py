"""A portrait and a voice in, an MP4 of the portrait speaking out."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from engine.errors import InputError
from engine.portrait import Portrait, load_portrait
from engine.renderer.backdrop import Backdrop
from engine.speech import SpeechInput, Voice, read_voice
from plugin import __version__
from plugin.badge import Badge
from plugin.settings import Settings
from plugin.signals import unwinding
from transports.file import Mp4Writer, check_output, encoder_note

ASSETS = Path(__file__).parent / "assets"
BUNDLED_VOICE = ASSETS / "voice.flac"
PROVENANCE = f"AI-generated talking head made with ifmdm {__version__}"

# How much voice goes in at a time: short enough for a lively bar and little memory.
_CHUNK_SECONDS = 0.2
# A portrait is never prepared smaller than the networks see it, whatever the size of the video.
_PORTRAIT_SIZE = 512


class RenderError(InputError):
    """A clip that cannot be made as asked. One line: what is wrong, what to do."""


class TimedImage(Protocol):
    """A frame of the engine, as far as it matters here."""

    @property
    def image(self) -> np.ndarray: ...


class Speaker(Protocol):
    """A head of the engine: 16 kHz mono goes in, the frames that became due come out."""

    def push(self, samples: np.ndarray) -> list[TimedImage]: ...
    def finish(self) -> list[TimedImage]: ...


@dataclass(frozen=True)
class Clip:
    """What was made. seconds: how long it plays; took: how long making it took, all included."""

    path: Path
    frames: int
    seconds: float
    took: float

    def __str__(self) -> str:
        speed = self.seconds / max(self.took, 1e-9)
        pace = f"{speed:.1f} x real time" if speed >= 1 else "slower than real time"
        return f"{self.path}: {self.seconds:.1f} s of video in {self.took:.1f} s, {pace}"


def bundled_portraits() -> dict[str, Path]:
    """The portraits that come with ifmdm, by name."""
    return {path.stem: path for path in sorted((ASSETS / "portraits").glob("*.jpg"))}


def find_portrait(portrait: str, consent: bool) -> Path:
    """The picture file that `portrait` means: a bundled one by name or path, or with consent any other."""
    bundled = bundled_portraits()
    if portrait in bundled:
        return bundled[portrait]
    path = Path(portrait)
    try:
        there = path.exists()
    except (OSError, ValueError) as error:  # a name too long, or with a NUL
        reason = getattr(error, "strerror", None) or "the path is not valid"
        raise RenderError(f"{portrait}: cannot be read ({reason}); check the path of the portrait") from error
    if not there and not path.suffix:
        raise RenderError(
            f"{portrait}: no bundled portrait and no file has this name; bundled are {', '.join(bundled)}"
        )
    if not consent and path.resolve() not in {known.resolve() for known in bundled.values()}:
        raise RenderError(
            f"{portrait}: not a bundled portrait; if the face is yours or its owner agreed, "
            "say so with --consent (or consent = true under [head] in config.toml)"
        )
    return path


def check_paths(output: str, *inputs: Path) -> None:
    """Refuse, before any work is done, an output that cannot be written or that would replace an input."""
    target = check_output(output)
    for path in inputs:
        if target == path.resolve():
            raise RenderError(f"{output}: this is also an input; give another name for the output")


def clip_inputs(settings: Settings) -> tuple[Path, Path]:
    """The picture and the voice of the clip that the settings ask for. Refuses as find_portrait and check_paths do."""
    picture = find_portrait(settings.head.portrait, settings.head.consent)
    check_clip_paths(settings)
    return picture, _clip_voice(settings)


def check_clip_paths(settings: Settings) -> None:
    """Refuse the output of the clip that the settings ask for, as check_paths does."""
    check_paths(settings.render.output, _picture(settings), _clip_voice(settings))


def check_record(settings: Settings) -> None:
    """Refuse a recording of the live head, if there is to be one, as check_paths does."""
    live, voice = settings.live, settings.voice
    if live.record:
        spoken = Path(voice.file) if live.source == "file" and voice.file else BUNDLED_VOICE
        check_paths(live.record, _picture(settings), spoken)


def _picture(settings: Settings) -> Path:
    portrait = settings.head.portrait
    return bundled_portraits().get(portrait, Path(portrait))


def _clip_voice(settings: Settings) -> Path:
    return Path(settings.render.audio) if settings.render.audio else BUNDLED_VOICE


def chunks(voice: Voice) -> Iterator[np.ndarray]:
    """The voice in pieces of a fraction of a second, (n, channels)."""
    step = max(1, round(voice.rate * _CHUNK_SECONDS))
    for start in range(0, len(voice.samples), step):
        yield voice.samples[start : start + step]


def speak(voice: Voice, head: Speaker) -> Iterator[tuple[np.ndarray, list[TimedImage]]]:
    """Let the head speak: pieces of the voice, each with the frames that became due with it."""
    hearing = SpeechInput(voice.rate, voice.samples.shape[1])
    for chunk in chunks(voice):
        yield chunk, head.push(hearing.push(chunk))
    yield voice.samples[:0], [*head.push(hearing.finish()), *head.finish()]


def start_head(portrait: Portrait, settings: Settings, tell: bool = False) -> Speaker:
    """The engine's head with the weights that are asked for. tell: say on standard error what may be done with them."""
    from engine.head import Head, Model, Style
    from engine.model import find_weights

    model = Model.load(find_weights(settings.engine.weights), backend=settings.engine.backend)
    if tell:
        print(f"weights {settings.engine.weights}: {model.licence}", file=sys.stderr)
    return Head(
        model,
        portrait,
        fps=settings.video.fps,
        size=settings.video.size,
        style=Style(intensity=settings.head.intensity, pose=settings.head.pose),
        seed=settings.head.seed,
        backdrop=Backdrop.of(settings.video.background),
    )


def render(
    settings: Settings, start: Callable[[Portrait, Settings], Speaker] | None = None, progress: bool = True
) -> Clip:
    """Make the clip that the settings ask for; the weights' licence, a warning of the voice and a progress bar go to
    standard error. start: makes the head (default: start_head).

    The voice keeps its rate, up to 48 kHz, and one or two channels; more are mixed to one. An existing output file is
    replaced once the new one is whole. Raises InputError or OutputError (ValueErrors of one line) for what cannot be
    done.
    """
    began = time.perf_counter()
    video, output = settings.video, settings.render.output
    picture, sound = clip_inputs(settings)
    voice = read_voice(sound)
    if voice.warning and progress:
        print(voice.warning, file=sys.stderr)
    start = start or partial(start_head, tell=progress)
    head = start(load_portrait(picture, max(video.size, _PORTRAIT_SIZE)), settings)
    badge = Badge(video.size) if video.badge else None
    if progress and (note := encoder_note()):
        print(note, file=sys.stderr)

    with unwinding() as signals, contextlib.ExitStack() as stack:
        with signals.held():
            writer = stack.enter_context(
                Mp4Writer(
                    output,
                    width=video.size,
                    height=video.size,
                    fps=video.fps,
                    audio_rate=voice.rate,
                    audio_channels=voice.samples.shape[1],
                    tags={"comment": PROVENANCE, "description": PROVENANCE},
                )
            )
        bar = stack.enter_context(
            tqdm(
                total=ceil(voice.seconds * video.fps),
                unit=" frames",
                desc="Rendering",
                file=sys.stderr,
                disable=not progress,
                # A log is no place for a bar that moves ten times a second.
                mininterval=0.1 if sys.stderr.isatty() else 2.0,
            )
        )
        for piece, frames in speak(voice, head):
            writer.write_audio(piece)
            for frame in frames:
                writer.write_video(badge.put_on(frame.image) if badge else frame.image)
            bar.update(len(frames))
    return Clip(Path(output), writer.frames, writer.frames / video.fps, time.perf_counter() - began)
