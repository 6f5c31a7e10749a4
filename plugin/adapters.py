"""Sources and outputs by name: ours, and those that other packages register.

A package adds one under the entry-point group `ifmdm.sinks` or `ifmdm.sources`, as a factory that takes a mapping of
options (its section [plugins.NAME]) and returns a transports.media.Sink or Source. Ours are registered in the same
groups by pyproject.toml, and listed here as well, so that they are there in a checkout that was never installed.
"""

import importlib
import logging
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from engine.speech import read_speech
from plugin.render import BUNDLED_VOICE
from plugin.settings import Settings, SettingsError
from transports.clip import ClipSource
from transports.media import Sink, Source

SINKS, SOURCES = "ifmdm.sinks", "ifmdm.sources"
BUILT_IN = {
    SINKS: {
        "camera": "transports.virtual_camera:create",
        "audio": "transports.audio_device:create",
        "whip": "transports.webrtc.publish:create",
    },
    SOURCES: {
        "file": "plugin.adapters:create_clip",
        "microphone": "transports.microphone:create",
        "stdin": "transports.pcm:create",
    },
}
#: The section of the settings that holds the options of each of ours.
_SECTIONS = {"file": "voice"}

_log = logging.getLogger(__name__)

Factory = Callable[[Mapping[str, Any]], Any]


def create_clip(options: Mapping[str, Any]) -> ClipSource:
    """The source "file". options: those of [voice]. Raises VoiceError."""
    voice = read_speech(Path(options["file"]) if options["file"] else BUNDLED_VOICE)
    if voice.warning:
        _log.warning(voice.warning)
    return ClipSource(voice.samples, voice.rate, options["loop"], options["pause"])


def names(group: str) -> list[str]:
    """What there is in a group: ours, then the others'."""
    return list(dict.fromkeys([*BUILT_IN[group], *(point.name for point in entry_points(group=group))]))


def _factory(group: str, name: str) -> Factory:
    if name in BUILT_IN[group]:
        module, function = BUILT_IN[group][name].split(":")
        return getattr(importlib.import_module(module), function)
    (point,) = entry_points(group=group, name=name)[:1]
    return point.load()


def _options(settings: Settings, group: str, name: str) -> dict[str, Any]:
    if name in BUILT_IN[group]:
        return getattr(settings, _SECTIONS.get(name, name)).model_dump()
    return (settings.plugins.model_extra or {}).get(name, {})


def check_names(settings: Settings) -> None:
    """Raises SettingsError for a source or an output that nobody brings, and for an output named twice."""
    check_source_name(settings)
    check_sink_names(settings)


def check_source_name(settings: Settings) -> None:
    sources = [*names(SOURCES), "none"]
    if settings.live.source not in sources:
        raise SettingsError(f"live.source = {settings.live.source!r}: no such source; there are {', '.join(sources)}")


def check_sink_names(settings: Settings) -> None:
    sinks = names(SINKS)
    for name in settings.live.outputs:
        if name not in sinks:
            raise SettingsError(f"live.outputs: {name!r}: no such output; there are {', '.join(sinks)}")
        if settings.live.outputs.count(name) > 1:
            raise SettingsError(f"live.outputs: {name!r} is there twice; name each output once")


def make_source(settings: Settings) -> Source | None:
    """The source that the settings ask for, not open yet; None for "none"."""
    name = settings.live.source
    return None if name == "none" else _factory(SOURCES, name)(_options(settings, SOURCES, name))


def make_sinks(settings: Settings) -> list[Sink]:
    """The outputs that the settings ask for, not open yet, without the recording."""
    return [_factory(SINKS, name)(_options(settings, SINKS, name)) for name in settings.live.outputs]
