"""`ifmdm doctor`, `ifmdm devices` and `ifmdm config check`: what is there, what is not, and how to mend it."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plugin import worker
from plugin.settings import (
    DEFAULT_CONFIG,
    RenderSettings,
    Settings,
    SettingsError,
    load_settings,
    settings_for_measuring,
    where,
)
from plugin.streams import one_line

GOOD, POOR, BAD = "ok", "note", "FAILS"
#: How long a driver may take to answer.
DRIVER_SECONDS = 10.0


@dataclass(frozen=True)
class Finding:
    """A check's outcome. state: GOOD, POOR (works, with a drawback or without an option) or BAD."""

    check: str
    state: str
    text: str

    def __str__(self) -> str:
        return f"{self.state:5} {self.check}: {one_line(self.text)}"


Check = Callable[[Settings], tuple[str, str]]


def check_python(_: Settings) -> tuple[str, str]:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info >= (3, 13):
        return POOR, f"{version}; tested are 3.11 and 3.12"
    return GOOD, version


def check_weights(settings: Settings) -> tuple[str, str]:
    from engine.model import check_hashes, find_weights

    name = settings.engine.weights
    config = check_hashes(find_weights(name))
    return GOOD, f"{name}: {len(config['sha256'])} files, none damaged; {config.get('licence', 'licence not stated')}"


def check_backend(settings: Settings) -> tuple[str, str]:
    """What would compute, and where an NVIDIA GPU is left alone, why."""
    import onnxruntime

    from engine.backend import CpuBackend
    from engine.model import Model, find_weights

    asked = settings.engine.backend
    backend = Model.load(find_weights(settings.engine.weights), backend=asked).backend
    spared = isinstance(backend, CpuBackend) and backend.note
    return POOR if spared else GOOD, f"{backend} (asked for: {asked}); ONNX Runtime {onnxruntime.__version__}"


def check_portrait(settings: Settings) -> tuple[str, str]:
    from engine.portrait import load_portrait
    from plugin.render import find_portrait

    path = find_portrait(settings.head.portrait, settings.head.consent)
    load_portrait(path)
    return GOOD, f"{settings.head.portrait} has a face"


def check_source(settings: Settings) -> tuple[str, str]:
    from plugin.adapters import check_names, make_source

    check_names(settings)
    make_source(settings)
    return GOOD, settings.live.source


def check_recording(settings: Settings) -> tuple[str, str]:
    from plugin.render import check_record
    from transports.file import encoder_note
    from transports.recording import next_take

    if not settings.live.record:
        return GOOD, "none asked for"
    check_record(settings)
    written = f"{next_take(settings.live.record)} can be written"
    return (POOR, f"{written}; {note}") if (note := encoder_note()) else (GOOD, written)


def check_clip(settings: Settings) -> tuple[str, str]:
    """What [render] asks for, where it asks for anything: `ifmdm run` does not need it."""
    from engine.speech import read_voice
    from plugin.render import clip_inputs

    if settings.render == RenderSettings():
        return GOOD, "none asked for"
    _, sound = clip_inputs(settings)
    if warning := read_voice(sound).warning:
        return POOR, warning
    return GOOD, f"{settings.render.output} can be written"


def asked(call: Callable[..., Any], *given: Any) -> Any:
    """What a driver comes to. Raises TransportError if it does not answer."""
    from transports.media import TransportError

    try:
        return worker.wait_for(DRIVER_SECONDS, call, *given)
    except worker.Unanswered:
        told = f"the driver did not answer in {DRIVER_SECONDS:g} s; restart what uses it, or the machine"
        raise TransportError(told) from None


def check_camera(settings: Settings) -> tuple[str, str]:
    from transports.media import TransportError
    from transports.virtual_camera import CameraOptions, try_camera

    wanted = "camera" in settings.live.outputs
    options = CameraOptions(**settings.camera.model_dump())
    try:
        device = asked(try_camera, options, settings.video.size, settings.video.fps)
    except TransportError as error:
        return (BAD if wanted else POOR), str(error)
    return GOOD, f"{device} can be opened"


def _check_sound(settings: Settings, output: bool) -> tuple[str, str]:
    from transports.media import TransportError
    from transports.portaudio import find_device, load_sounddevice

    wanted = "audio" in settings.live.outputs if output else settings.live.source == "microphone"
    device = settings.audio.device if output else settings.microphone.device
    try:
        found = asked(lambda: find_device(load_sounddevice(), device, output))
    except TransportError as error:
        return (BAD if wanted else POOR), str(error)
    return GOOD, f"{found.index}: {found.name}, {found.rate} Hz"


def check_audio(settings: Settings) -> tuple[str, str]:
    return _check_sound(settings, output=True)


def check_microphone(settings: Settings) -> tuple[str, str]:
    return _check_sound(settings, output=False)


def check_port(settings: Settings) -> tuple[str, str]:
    from plugin.server import Server

    if not settings.server.enabled:
        return GOOD, "none asked for: enabled = false under [server]"
    server = Server.bind(settings)
    server.close()
    port = settings.server.port
    return GOOD, f"port {port} of {settings.server.host} is free" if port else "any port that is free"


def check_address(settings: Settings) -> tuple[str, str]:
    """What to type into a browser, here and on another device."""
    from plugin.server import address, reachable

    server = settings.server
    if not server.enabled:
        return GOOD, "no page: enabled = false under [server]"
    here = address("127.0.0.1" if server.is_local else server.host, server.port)
    if server.is_local:
        other = reachable("0.0.0.0")
        return GOOD, (
            f"{here}, from this machine only; for others set host = \"0.0.0.0\" and a token under [server], then open "
            f"{address(other, server.port)} there"
        )
    return POOR, (
        f"{here} from other devices, with the token; a browser gives its microphone to http://localhost and https:// "
        "only, so to speak from there put a proxy with HTTPS before it and list its address in origins"
    )


def check_speed(settings: Settings) -> tuple[str, str]:
    """A few seconds of the real thing, unpaced."""
    from engine.features import SAMPLE_RATE
    from engine.model import Model, find_weights
    from engine.portrait import load_portrait
    from engine.stream import LATENCIES, StreamCore, StreamSettings
    from plugin.render import find_portrait

    model = Model.load(find_weights(settings.engine.weights), backend=settings.engine.backend)
    portrait = load_portrait(find_portrait(settings.head.portrait, settings.head.consent))
    pace = LATENCIES[settings.live.latency].pace
    core = StreamCore(model, model.prepare(portrait), StreamSettings(settings.video.fps, settings.video.size, pace))
    core.tick(core.due(2))  # what is slow the first time
    core.push(np.random.default_rng(0).normal(0, 0.1, SAMPLE_RATE).clip(-1, 1).astype(np.float32))
    began = time.perf_counter()
    core.tick(SAMPLE_RATE)
    took = time.perf_counter() - began
    text = f"a second of {settings.video.fps} frames a second takes {took:.2f} s"
    if took > 0.9:
        return BAD, f"{text}: too slow; lower fps or size under [video]"
    if took > 0.6:
        return POOR, f"{text}: little is left for encoders; close other programs, or lower fps or size under [video]"
    return GOOD, text


CHECKS: dict[str, Check] = {
    "Python": check_python,
    "weights": check_weights,
    "backend": check_backend,
    "portrait": check_portrait,
    "voice": check_source,
    "recording": check_recording,
    "clip": check_clip,
    "camera": check_camera,
    "audio output": check_audio,
    "microphone": check_microphone,
    "port": check_port,
    "address": check_address,
    "speed": check_speed,
}


def examine(config: Path | None, checks: dict[str, Check] | None = None) -> Iterator[Finding]:
    """All findings, one after another; none keeps the next from being looked for."""
    try:
        settings = load_settings({}, config)
        path = config or (DEFAULT_CONFIG if os.path.lexists(DEFAULT_CONFIG) else "no config.toml here, all defaults")
        yield Finding("settings", GOOD, str(path))
    except SettingsError as error:
        yield from (Finding("settings", BAD, problem) for problem in error.problems)
        settings = error.rest or settings_for_measuring({})
    for name, check in (CHECKS if checks is None else checks).items():
        try:
            yield Finding(name, *check(settings))
        except ValueError as error:  # InputError, TransportError: a line that says how to mend it
            yield Finding(name, BAD, str(error))
        except Exception as error:
            yield Finding(name, BAD, f"{type(error).__name__}: {error}")


def doctor(config: Path | None) -> bool:
    """Print a line a check; whether nothing fails."""
    fine = True
    for finding in examine(config):
        print(finding, flush=True)
        fine = fine and finding.state != BAD
    return fine


#: What else each look of config_check hangs on, beside the setting that it is named after.
_BESIDE = {
    "live.outputs": ("whip.url", "whip.token", "whip.ice_servers", "whip.turn_username", "whip.turn_password"),
    "server.host": ("server.token",),
    "webrtc.ice_servers": ("webrtc.turn_username", "webrtc.turn_password"),
}


def config_check(config: Path | None) -> bool:
    """Print a line for every setting that cannot be used; whether there is none."""
    from engine.speech import read_voice
    from plugin.adapters import check_sink_names, check_source_name, make_sinks, make_source
    from plugin.render import check_clip_paths, check_record
    from plugin.settings import check_server
    from transports.webrtc.options import WebRtcOptions

    problems: dict[str, None] = {}  # several looks may find the same
    try:
        settings = load_settings({}, config)
    except SettingsError as error:
        problems.update(dict.fromkeys(error.problems))
        settings = error.rest
    looks: list[tuple[str, Callable[[Settings], object]]] = [
        ("live.source", check_source_name),
        ("live.outputs", lambda known: check_sink_names(known) or make_sinks(known)),
        ("server.host", check_server),
        ("webrtc.codecs", lambda known: known.server.enabled and WebRtcOptions(known.webrtc.codecs)),
        ("webrtc.ice_servers", lambda known: known.server.enabled and _servers(known)),
        ("head.portrait", check_portrait),
        ("engine.weights", check_weights),
        ("live.record", check_record),
        ("render.output", lambda known: known.render != RenderSettings() and check_clip_paths(known)),
        ("render.audio", lambda known: known.render.audio and read_voice(Path(known.render.audio))),
        ("voice.file", lambda known: known.live.source == "file" and make_source(known)),
    ]
    refused = tuple(problems)

    def is_refused(setting: str) -> bool:
        return any(problem.startswith(f"{where(setting, config)}:") for problem in refused)

    for setting, look in looks if settings else []:
        if any(map(is_refused, (setting, *_BESIDE.get(setting, ())))):
            continue  # what is looked at then is a default in its place, of which nothing is to be told
        try:
            look(settings)
        except ValueError as error:
            section, name = setting.split(".")
            value = getattr(getattr(settings, section), name)
            problems[_placed(str(error), setting, value, where(setting, config))] = None
    if problems:
        print(*map(one_line, problems), sep="\n")
    else:
        path = config or (DEFAULT_CONFIG if os.path.lexists(DEFAULT_CONFIG) else None)
        print(f"{path}: every setting can be used" if path else "there is no config.toml here: all defaults")
    return not problems


def _servers(settings: Settings) -> None:
    """Raises TransportError."""
    from transports.webrtc.ice_servers import ice_servers

    ice_servers(settings.webrtc.ice_servers, settings.webrtc.turn_username, settings.webrtc.turn_password)


def _placed(problem: str, setting: str, value: object, place: str) -> str:
    """A problem with a setting, beginning with the place where it is set instead of with its name or value."""
    for beginning in (f"{setting} = {value!r}", setting, str(value)):
        problem = problem.removeprefix(f"{beginning}: ")
    return f"{place}: {problem}"


def devices() -> None:
    """Print the cameras, microphones and sound outputs of this machine."""
    from transports.media import TransportError
    from transports.portaudio import load_sounddevice, sound_devices
    from transports.virtual_camera import MEND, camera_backends, virtual_devices

    print("Virtual cameras ([camera] device):")
    cameras = virtual_devices()
    for path, name in cameras:
        print(f"  {path}  {name}")
    if not cameras and sys.platform == "linux":  # elsewhere they have no names
        print(f"  none; {MEND['linux']}")
    print(f"  backends: {', '.join(camera_backends()) or 'none'}")
    try:
        found = asked(lambda: sound_devices(load_sounddevice()))
    except TransportError as error:
        print(f"Microphones and sound outputs: {error}")
        return
    for title, usable in (
        ("Microphones ([microphone] device):", [each for each in found if each.inputs]),
        ("Sound outputs ([audio] device):", [each for each in found if each.outputs]),
    ):
        print(title)
        for each in usable:
            print(f"  {each.index}: {each.name}, {each.rate} Hz")
        if not usable:
            print("  none")
