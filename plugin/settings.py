"""Every setting, what it may be, and where it comes from.

A setting is looked for among the flags of the command, then in the environment (IFMDM_VIDEO__FPS), then in
the config file, then here. Each field's description says what is allowed: it is what help and refusals print.
"""

import codecs
import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.sources import EnvSettingsSource, InitSettingsSource

from engine.errors import InputError
from transports.webrtc.ice_servers import FORMS, read_ice_server

ENV_PREFIX = "IFMDM_"
ENV_DELIMITER = "__"
DEFAULT_CONFIG = Path("config.toml")
#: A device may have no end.
MAX_CONFIG_BYTES = 1 << 20
#: Variables that begin as ours do and are no settings: they are for the tests.
_NO_SETTINGS = ("IFMDM_REQUIRE_BROWSER", "IFMDM_WATCH_SECONDS")


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("true and false are no numbers")
    return value


def _true_or_false(value: Any) -> Any:
    if isinstance(value, str) and value.lower() not in ("true", "false", "1", "0"):
        raise ValueError("neither true nor false")
    return value


def _named(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """pydantic takes no name that is not UTF-8, which Python spells with lone surrogates (PEP 383)."""
    return value if isinstance(value, str) and _SURROGATE.search(value) else check(value)


_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SURROGATE = re.compile("[\ud800-\udfff]")
#: The name of a file or a device, which a system may have in any encoding.
Name = Annotated[str, WrapValidator(_named)]

# pydantic would read fps = true as 1.
_NUMBER = BeforeValidator(_no_bool)
# And consent = "y" as true.
Flag = Annotated[bool, BeforeValidator(_true_or_false)]
Whole = Annotated[int, _NUMBER]
Real = Annotated[float, _NUMBER]

#: Settings that are lists, written a,b,c on the command line and in the environment.
_LISTS = ("head.pose", "live.outputs", "server.origins", "webrtc.codecs", "webrtc.ice_servers", "whip.ice_servers")
#: Settings whose value is never shown.
#: That of ice_servers is among them, as it is where other programs have a password.
_SECRETS = (
    "server.token", "whip.token", "webrtc.ice_servers", "webrtc.turn_password", "whip.ice_servers",
    "whip.turn_password",
)  # fmt: skip

_BACKSLASH = (
    "a backslash between \"...\" begins a special character: write the path between '...', or with / in place of \\"
)

_SECTION = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


Seconds = Annotated[float, _NUMBER, Field(ge=0, le=10**9, allow_inf_nan=False)]


def _names(value: Any) -> Any:
    """["camera", "audio"] from itself or from camera,audio."""
    if not isinstance(value, list | tuple):
        return value
    stripped = [name.strip() if isinstance(name, str) else name for name in value]
    return [name for name in stripped if name != ""]


def _colour_or_blur(value: str) -> str:
    digits = value.removeprefix("#")
    if value != "blur" and (len(digits) != 6 or digits == value or set(digits.lower()) - set("0123456789abcdef")):
        raise ValueError("not a colour")
    return value


def _backdrop(value: str) -> str:
    """A picture's file is looked for when it is shown."""
    return _colour_or_blur(value) if value.startswith("#") else value


def _origin(value: str) -> str:
    """What a browser sends as Origin: scheme, host and, unless it is the usual one, port."""
    scheme, _, host = value.partition("://")
    if scheme not in ("http", "https") or not host or set(host) & set("/?#@* "):
        raise ValueError("not an origin")
    return value.lower()


def _ice_server(value: str) -> str:
    read_ice_server(value)
    return value


_ICE_SERVERS = f"a list of {FORMS}; a user and a password go into turn_username and turn_password"


class SettingsError(InputError):
    """A setting that cannot be used. One line: where it was given, its value, what is allowed. problems: the lines for
    all settings that cannot be used, this one first. rest: the settings with defaults in place of those, if known."""

    def __init__(self, message: str, *others: str, rest: "Settings | None" = None) -> None:
        super().__init__(message)
        self.problems, self.rest = (message, *others), rest


class HeadSettings(BaseModel):
    """Who speaks, and how."""

    model_config = _SECTION

    portrait: Name = Field("ada", min_length=1, description="the name of a bundled portrait or a picture file")
    consent: Flag = Field(False, description="true if you may use a face that is not bundled, else false")
    intensity: Real = Field(1.0, ge=0, le=2, description="a number from 0 (still) to 2 (twice as lively)")
    pose: tuple[
        Annotated[Real, Field(ge=-20, le=20)],
        Annotated[Real, Field(ge=-15, le=15)],
        Annotated[Real, Field(ge=-15, le=15)],
    ] = Field(
        (0.0, 0.0, 0.0),
        description="yaw, pitch, roll in degrees: three numbers within -20..20, -15..15, -15..15",
    )
    seed: Whole = Field(0, ge=0, le=2**32 - 1, description="a whole number from 0 to 4294967295")


class VideoSettings(BaseModel):
    """What the frames are like."""

    model_config = _SECTION

    fps: Whole = Field(45, ge=1, le=120, description="a whole number from 1 to 120")
    size: Whole = Field(512, ge=128, le=1024, multiple_of=2, description="an even number from 128 to 1024")
    background: Annotated[str, AfterValidator(_backdrop)] = Field(
        "", description="blur, a colour such as #202428, or a picture file; none for the portrait's own"
    )
    badge: Flag = Field(True, description='true for an "AI" badge in the corner, else false')


class EngineSettings(BaseModel):
    """What computes."""

    model_config = _SECTION

    weights: Name = Field(
        "research", min_length=1, description="research, clean, or a folder made by `ifmdm train export`"
    )
    backend: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto, cpu or cuda (an NVIDIA GPU)")


class RenderSettings(BaseModel):
    """What `ifmdm render` reads and writes."""

    model_config = _SECTION

    audio: Name = Field("", description="a file with a voice; none for the bundled voice")
    output: Name = Field("out.mp4", min_length=1, description="an MP4 file in a folder that exists")


class LiveSettings(BaseModel):
    """What `ifmdm run` hears, and where it shows."""

    model_config = _SECTION

    source: str = Field(
        "file", min_length=1, description="file, microphone, stdin, none, or a source that another package brings"
    )
    outputs: Annotated[tuple[str, ...], BeforeValidator(_names)] = Field(
        (), description="a list of camera, audio, whip, or outputs that other packages bring"
    )
    record: Name = Field("", description="an MP4 file in a folder that exists; none for no recording")
    latency: Literal["interactive", "balanced", "quality"] = Field(
        "balanced", description="interactive, balanced or quality"
    )
    backlog: Annotated[float, _NUMBER] = Field(30.0, ge=0.5, le=600, description="a number of seconds from 0.5 to 600")
    seconds: Seconds = Field(0.0, description="a number of seconds, 0 for until it is stopped")


class VoiceSettings(BaseModel):
    """The file that is spoken with source = "file"."""

    model_config = _SECTION

    file: Name = Field("", description="a file with a voice; none for the bundled voice")
    loop: Flag = Field(True, description="true to begin again at the end, false to stop there")
    pause: Seconds = Field(1.0, description="a number of seconds")


class MicrophoneSettings(BaseModel):
    """The microphone of source = "microphone"."""

    model_config = _SECTION

    device: Name = Field("", description="a number or name that `ifmdm devices` shows; none for the usual one")


class StdinSettings(BaseModel):
    """Raw sound on standard input, source = "stdin"."""

    model_config = _SECTION

    encoding: Literal["s16le", "f32le"] = Field("s16le", description="s16le or f32le")
    rate: Whole = Field(16_000, ge=4_000, le=768_000, description="a whole number of Hz from 4000 to 768000")
    channels: Whole = Field(1, ge=1, le=8, description="a whole number from 1 to 8")


class CameraSettings(BaseModel):
    """The virtual camera of outputs = ["camera"]."""

    model_config = _SECTION

    device: Name = Field("", description="a device such as /dev/video2; none for the first virtual one")
    backend: str = Field("", description="v4l2loopback, obs or unitycapture; none for what this system has")
    fps: Whole = Field(30, ge=0, le=120, description="a whole number from 1 to 120, 0 for the head's own")
    shape: Literal["square", "wide"] = Field("square", description="square or wide")
    background: Annotated[str, AfterValidator(_colour_or_blur)] = Field(
        "blur", description="blur or a colour such as #202428"
    )


class AudioSettings(BaseModel):
    """The sound device of outputs = ["audio"]."""

    model_config = _SECTION

    device: Name = Field("", description="a number or name that `ifmdm devices` shows; none for the usual one")


class ServerSettings(BaseModel):
    """The page, WebRTC, WebSocket and metrics, over HTTP."""

    model_config = _SECTION

    enabled: Flag = Field(True, description="true or false")
    host: str = Field("127.0.0.1", min_length=1, description="an address of this machine, 0.0.0.0 for all of them")
    port: Whole = Field(8080, ge=0, le=65535, description="a whole number from 0 (any that is free) to 65535")
    token: str = Field(
        "",
        pattern=r"^([A-Za-z0-9._~+/-]{8,}=*)?$",
        repr=False,
        description="8 or more letters, digits or -._~+/; none for this machine only",
    )
    origins: Annotated[tuple[Annotated[str, AfterValidator(_origin)], ...], BeforeValidator(_names)] = Field(
        (), description="a list of origins such as https://example.org"
    )
    sessions: Literal["auto"] | Annotated[Whole, Field(ge=0, le=1000)] = Field(
        "auto", description="auto or a whole number from 0 (none) to 1000"
    )
    session_idle: Annotated[float, _NUMBER] = Field(
        60.0, ge=1, le=86_400, description="a number of seconds from 1 to 86400"
    )

    @property
    def is_local(self) -> bool:
        """Whether nobody but this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


class WebRtcSettings(BaseModel):
    """Viewers and speakers over WebRTC."""

    model_config = _SECTION

    codecs: Annotated[tuple[Literal["vp8", "h264"], ...], BeforeValidator(_names)] = Field(
        ("vp8", "h264"), min_length=1, description="a list of vp8, h264"
    )
    bitrate: Whole = Field(2_000_000, ge=100_000, le=20_000_000, description="bits a second from 100000 to 20000000")
    viewers: Whole = Field(16, ge=1, le=1000, description="a whole number from 1 to 1000")
    speakers: Whole = Field(4, ge=1, le=100, description="a whole number from 1 to 100")
    ice_servers: Annotated[tuple[Annotated[str, AfterValidator(_ice_server)], ...], BeforeValidator(_names)] = Field(
        (), repr=False, description=_ICE_SERVERS
    )
    turn_username: str = Field("", description="the user of the TURN servers among ice_servers; none if there are none")
    turn_password: str = Field(
        "", repr=False, description="the password of the TURN servers among ice_servers; none if there are none"
    )


class WhipSettings(BaseModel):
    """Another server that the head is sent to, outputs = ["whip"]."""

    model_config = _SECTION

    url: str = Field("", description="the address of a WHIP endpoint, such as https://host/whip")
    token: str = Field("", repr=False, description="the bearer token of that server; none if it needs none")
    codec: Literal["h264", "vp8"] = Field("h264", description="h264 or vp8")
    bitrate: Whole = Field(2_000_000, ge=100_000, le=20_000_000, description="bits a second from 100000 to 20000000")
    ice_servers: Annotated[tuple[Annotated[str, AfterValidator(_ice_server)], ...], BeforeValidator(_names)] = Field(
        (), repr=False, description=_ICE_SERVERS
    )
    turn_username: str = Field("", description="the user of the TURN servers among ice_servers; none if there are none")
    turn_password: str = Field(
        "", repr=False, description="the password of the TURN servers among ice_servers; none if there are none"
    )


class LogSettings(BaseModel):
    """What is told on standard error."""

    model_config = _SECTION

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="debug, info, warning or error")
    format: Literal["text", "json"] = Field("text", description="text or json")


class PluginSettings(BaseModel):
    """Options of sources and outputs that other packages bring: a section [plugins.NAME] each, checked by them."""

    model_config = ConfigDict(extra="allow", frozen=True, hide_input_in_errors=True)
    __pydantic_extra__: dict[str, dict[str, Any]]


class Settings(BaseSettings):
    """All settings, checked."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix=ENV_PREFIX, env_nested_delimiter=ENV_DELIMITER
    )

    head: HeadSettings = HeadSettings()
    video: VideoSettings = VideoSettings()
    engine: EngineSettings = EngineSettings()
    render: RenderSettings = RenderSettings()
    live: LiveSettings = LiveSettings()
    voice: VoiceSettings = VoiceSettings()
    microphone: MicrophoneSettings = MicrophoneSettings()
    stdin: StdinSettings = StdinSettings()
    camera: CameraSettings = CameraSettings()
    audio: AudioSettings = AudioSettings()
    server: ServerSettings = ServerSettings()
    webrtc: WebRtcSettings = WebRtcSettings()
    whip: WhipSettings = WhipSettings()
    log: LogSettings = LogSettings()
    plugins: PluginSettings = PluginSettings()


def check_server(settings: Settings) -> None:
    """Raises SettingsError for a server that others could reach and anybody could use."""
    server = settings.server
    if server.enabled and not server.token and not server.is_local:
        raise SettingsError(
            f"server.host = {server.host!r}: other machines could reach it, so it needs a token: set token under "
            "[server] in config.toml or IFMDM_SERVER__TOKEN (openssl rand -hex 16 makes one)"
        )


class _Environment(EnvSettingsSource):
    """The environment, where a list is written as on the command line: 5,0,0."""

    def decode_complex_value(self, field_name: str, field: Any, value: Any) -> Any:
        return _split(value)


def _split(value: Any) -> Any:
    """The items of a list that is written a,b,c or [a,b,c]; one may end in a bracket of its own."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    return (text[1:-1] if text.startswith("[") and text.endswith("]") else text).split(",")


def describe(setting: str) -> str:
    """What a setting such as "video.fps" may be, and what it is by default: for help texts."""
    section, name = setting.split(".")
    field = Settings.model_fields[section].annotation.model_fields[name]
    default = field.default
    if isinstance(default, tuple):
        default = ",".join(f"{number:g}" for number in default)
    elif isinstance(default, float):
        default = f"{default:g}"
    return f"{field.description} (default {default})" if default != "" else field.description


def load_settings(
    flags: Mapping[str, Any], config: Path | None = None, names: Mapping[str, str] | None = None
) -> Settings:
    """Gather the settings and check them.

    flags: what the command line says, as {"video.fps": "30"}; a list is written 5,0,0. config: the config
    file; None takes config.toml of the current folder if there is one. names: what each flag is called, for
    refusals, as {"video.fps": "--fps"}.

    Raises SettingsError, also for a key that does not exist and for a file that cannot be read.
    """
    config, from_file = _file(config)

    def gather(wrong: set[tuple[str, ...]]) -> Settings:
        class Sourced(Settings):
            @classmethod
            def settings_customise_sources(
                cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, **_: Any
            ) -> tuple[Any, ...]:
                sources = init_settings, _Environment(settings_cls), InitSettingsSource(settings_cls, from_file)
                return tuple(partial(_leave_out, source, wrong) for source in sources) if wrong else sources

        return Sourced(**_by_section(flags))

    special = set(_special(from_file))
    odd = (*_mistyped(from_file), *sorted(special))
    wrong = [path for path in odd if ".".join(path) not in flags and _variable(path) is None]
    try:
        settings = gather(set())
    except ValidationError as error:
        wrong += [tuple(str(part) for part in each["loc"][:2]) for each in error.errors()]
    places = [(path, _where(path, flags, names or {}, config, from_file)) for path in wrong]
    lines = [
        *_misspelt(),
        *(f"{place}: {_BACKSLASH}" if path in special else _explain(path, place) for path, place in places),
    ]
    if lines:
        raise SettingsError(*dict.fromkeys(lines), rest=gather(set(wrong)) if wrong else settings)
    return settings


def where(setting: str, config: Path | None = None) -> str:
    """The place where a setting such as "video.fps" comes from, with its value, if no flag says it: what a refusal
    begins with. config: as load_settings's."""
    return _where(tuple(setting.split(".")), {}, {}, *_file(config))


def _file(config: Path | None) -> tuple[Path | None, dict[str, Any]]:
    """The config file that there is, and what it says. Raises SettingsError."""
    if config is None and os.path.lexists(DEFAULT_CONFIG):  # a folder or a broken link is somebody's mistake
        config = DEFAULT_CONFIG
    return config, _read(config) if config else {}


def _leave_out(source: PydanticBaseSettingsSource, wrong: set[tuple[str, ...]]) -> dict[str, Any]:
    """What a source says, without sections and settings that cannot be used."""
    return {
        section: {name: value for name, value in given.items() if (section, name) not in wrong}
        for section, given in source().items()
        if (section,) not in wrong
    }


def _mistyped(from_file: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Settings that a TOML file gives as text, or as 1 and 0, and that are numbers, or true and false. Flags and the
    environment have nothing but text, which is why pydantic takes it."""

    def odd(default: Any, given: Any) -> bool:
        if isinstance(default, bool):
            return not isinstance(given, bool)
        if isinstance(default, tuple) and isinstance(given, list):
            return any(map(odd, default, given))
        return isinstance(default, int | float) and isinstance(given, str)

    for section, given in from_file.items():
        known = Settings.model_fields[section].annotation.model_fields if section in Settings.model_fields else {}
        for name, value in given.items() if isinstance(given, Mapping) else ():
            if name in known and odd(known[name].default, value):
                yield section, name


def _special(from_file: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Settings of ours whose text has special characters in it: "C:\\new\\take.mp4" is TOML, and no path."""
    for section, given in from_file.items():
        if section in Settings.model_fields and section != "plugins" and isinstance(given, Mapping):
            for name, value in given.items():
                if isinstance(value, str) and _CONTROL.search(value):
                    yield section, name


def _misspelt() -> list[str]:
    """A line for each variable that is called as ours are and means no setting. What it says may be a secret."""
    names = [
        ENV_PREFIX + ENV_DELIMITER.join((section, name)).upper()
        for section, field in Settings.model_fields.items()
        for name in field.annotation.model_fields
    ]
    lines = []
    for variable in sorted(os.environ):
        section, *name = variable.upper().removeprefix(ENV_PREFIX).lower().split(ENV_DELIMITER)
        if not variable.upper().startswith(ENV_PREFIX) or variable.upper() in _NO_SETTINGS:
            continue
        # a name that its section does not have is found with all else that is wrong
        if section in Settings.model_fields and (len(name) < 2 or section == "plugins"):
            continue
        near = difflib.get_close_matches(variable.upper(), names, 1)
        mend = f"did you mean {near[0]}?" if near else f"they are called as in {names[0]}"
        lines.append(f"{variable}: there is no such setting; {mend}")
    return lines


def _variable(path: tuple[str, ...]) -> str | None:
    """The environment's value of a setting; None if it has none."""
    variable = ENV_PREFIX + ENV_DELIMITER.join(path).upper()
    return next((value for name, value in os.environ.items() if name.upper() == variable), None)


def settings_for_measuring(flags: Mapping[str, Any]) -> Settings:
    """The defaults but for what the flags say. Neither a config file nor the environment has a say, so that figures
    are of what is measured, and nothing of a user's own is shown, recorded over or waited for."""

    class Plain(Settings):
        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, **_: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return (init_settings,)

    return Plain(**_by_section(flags))


def _by_section(flags: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{"video.fps": "30"} -> {"video": {"fps": "30"}}, lists cut apart."""
    given: dict[str, dict[str, Any]] = {}
    for setting, value in flags.items():
        section, name = setting.split(".")
        given.setdefault(section, {})[name] = _split(value) if setting in _LISTS else value
    return given


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise SettingsError(f"{path}: the config file cannot be read ({_reason(error)})") from error
    if len(data) > MAX_CONFIG_BYTES:
        raise SettingsError(f"{path}: more than {MAX_CONFIG_BYTES >> 20} MiB is no config file; give another one")
    text = _decoded(path, data)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, tomllib.TOMLDecodeError) else "a number too long, or nested too deeply"
        raise SettingsError(f"{path}: this is not TOML: {reason}{_backslash_hint(text, reason)}") from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _decoded(path: Path, data: bytes) -> str:
    """TOML is UTF-8; editors of Windows put a mark before it, or write UTF-16."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data[:4]:
        raise SettingsError(f"{path}: this is UTF-16, and TOML is UTF-8: save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SettingsError(
            f"{path}: this is not TOML: line {line} is not UTF-8 (byte 0x{data[error.start]:02x}): save it as UTF-8"
        ) from error


def _backslash_hint(text: str, reason: str) -> str:
    """What to write instead of "C:\\Users\\me", if that is what is wrong."""
    line = re.search(r"at line (\d+)", reason)
    lines = text.splitlines()
    wrong = lines[int(line[1]) - 1] if line and int(line[1]) <= len(lines) else ""
    if not re.search(r'"[^"]*\\', wrong):
        return ""
    return f"; {_BACKSLASH}"


def _where(
    path: tuple[str, ...],
    flags: Mapping[str, Any],
    names: Mapping[str, str],
    config: Path | None,
    from_file: Mapping[str, Any],
) -> str:
    """The flag, variable or line of the config file that says what a setting is, or that it is the default."""
    setting = ".".join(path)
    if setting in flags:
        return f"{names.get(setting, setting)} {_shown(setting, flags[setting])}"
    if (value := _variable(path)) is not None:
        return f"{ENV_PREFIX}{ENV_DELIMITER.join(path).upper()}={_shown(setting, value)}"
    given: Any = from_file
    for part in path:
        given = given.get(part) if isinstance(given, Mapping) else given
    if given is None:
        section = Settings.model_fields.get(path[0])
        known = section.annotation.model_fields.get(path[-1]) if section else None
        return f"{setting} = {_as_toml(known.default)} by default" if known else setting
    return f"{config}: {setting} = {_shown(setting, _as_toml(given))}"


def _explain(path: tuple[str, ...], place: str) -> str:
    """One line for a section, or a setting of one, that is wrong. place: as _where says it."""
    section = Settings.model_fields.get(path[0])
    if section is None:
        return f"{place}: there is no such section or setting; there are {_listed(Settings)}"
    if len(path) == 1:
        return f"{place}: this is a section: write [{path[0]}] and its settings below"
    known = section.annotation.model_fields
    if section.annotation is PluginSettings:
        return f"{place}: this is a section: write [plugins.{path[1]}] and its settings below"
    if path[1] not in known:
        return f"{place}: there is no such setting; [{path[0]}] has {_listed(section.annotation)}"
    return f"{place}: give {known[path[1]].description}"


def _shown(setting: str, value: Any) -> Any:
    return "***" if setting in _SECRETS else value


def _as_toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{...}"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _listed(model: type[BaseModel]) -> str:
    return ", ".join(model.model_fields)
