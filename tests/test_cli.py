"""The command line and the settings: what is asked for is done, what cannot be is refused in one line."""

import errno
import importlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plugin import __version__, cli, render
from plugin.settings import Settings, SettingsError, load_settings, settings_for_measuring

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.usefixtures("elsewhere")


def run(*args: str) -> int:
    try:
        return cli.main(args)
    except SystemExit as left:
        return left.code


@pytest.fixture
def rendered(monkeypatch):
    """Stands in for the rendering; gives the settings that reached it."""
    seen = []

    def fake(settings, *_, **__):
        seen.append(settings)
        return "rendered"

    monkeypatch.setattr(render, "render", fake)
    return seen


def test_help_is_quick_and_brings_nothing_heavy():
    program = (
        "import sys\nfrom plugin.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'av', 'cv2', 'onnxruntime', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]"
    for command in ("render", "train", "evaluate"):
        assert command in done.stdout


def test_version_and_helps(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"ifmdm {__version__}\n"
    assert run() == 2
    assert "COMMAND" in capsys.readouterr().out
    assert run("train", "--help") == 0
    out = capsys.readouterr().out
    for part in cli._TRAINING:
        assert f"    {part} " in out
    assert run("render", "--help") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "from 1 to 120 (default 45)" in out
    assert "Make an MP4" in out


def test_flags_reach_the_settings(rendered, capsys):
    flags = (
        "--portrait bo --audio v.wav -o o.mp4 --fps 30 --size 256 --intensity 1.5 --pose -5,2.5,-1 --seed 9"
        " --weights clean --background #20c040"
    )
    assert run("render", *flags.split(), "--no-badge", "--consent") == 0
    assert capsys.readouterr().out == "rendered\n"
    (got,) = rendered
    assert got.engine.weights == "clean"
    assert got.model_dump(include={"head", "video", "render"}) == {
        "head": {"portrait": "bo", "consent": True, "intensity": 1.5, "pose": (-5.0, 2.5, -1.0), "seed": 9},
        "video": {"fps": 30, "size": 256, "background": "#20c040", "badge": False},
        "render": {"audio": "v.wav", "output": "o.mp4"},
    }


def test_flag_before_environment_before_file_before_default(rendered, monkeypatch):
    Path("config.toml").write_text("[video]\nfps = 25\nsize = 256\n[head]\nseed = 3\npose = [1, 2, 3]\n")
    monkeypatch.setenv("IFMDM_VIDEO__FPS", "30")
    monkeypatch.setenv("IFMDM_VIDEO__SIZE", "300")
    monkeypatch.setenv("ifmdm_head__pose", "-1,0,0")
    assert run("render", "--fps", "60") == 0
    (got,) = rendered
    assert (got.video.fps, got.video.size, got.head.seed, got.head.pose) == (60, 300, 3, (-1, 0, 0))
    assert got.head.intensity == 1.0


def test_what_is_measured_are_the_defaults_whatever_a_user_has_set(users_settings):
    assert settings_for_measuring({}).model_dump() == {
        name: section.annotation().model_dump() for name, section in Settings.model_fields.items()
    }
    got = settings_for_measuring({"head.pose": "5,0,0", "live.latency": "quality"})
    assert (got.head.pose, got.live.latency, got.video.fps) == ((5, 0, 0), "quality", 45)


def test_another_config_file(rendered):
    Path("mine.toml").write_text("[video]\nbadge = false\n")
    assert run("render", "--config", "mine.toml", "--badge") == 0
    assert run("render", "--config", "mine.toml") == 0
    assert [got.video.badge for got in rendered] == [True, False]


def test_the_config_file_of_the_project_shows_the_defaults():
    assert load_settings({}, ROOT / "config.toml").model_dump() == load_settings({}).model_dump()
    text = (ROOT / "config.toml").read_text()
    for section in Settings.model_fields.values():
        for name in section.annotation.model_fields:
            assert f"\n{name} = " in text


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--fps", "0"], "--fps 0: give a whole number from 1 to 120"),
        (["--fps", "29.97"], "--fps 29.97: give a whole number"),
        (["--size", "513"], "--size 513: give an even number from 128 to 1024"),
        (["--background", "#12"], "--background #12: give blur, a colour such as #202428, or a picture file"),
        (["--size", "2048"], "--size 2048: give an even number from 128 to 1024"),
        (["--intensity", "nan"], "--intensity nan: give a number from 0"),
        (["--intensity", "2.1"], "--intensity 2.1: give a number from 0"),
        (["--pose", "30,0,0"], "--pose 30,0,0: give yaw, pitch, roll in degrees"),
        (["--pose", "-5,0"], "--pose -5,0: give yaw, pitch, roll in degrees"),
        (["--seed", "-1"], "--seed -1: give a whole number from 0"),
        (["--portrait", ""], "--portrait : give the name of a bundled portrait"),
        (["--portrait", "nobody"], "nobody: no bundled portrait and no file has this name; bundled are ada"),
        (["--portrait", "me.jpg"], "me.jpg: not a bundled portrait"),
        (["--portrait", "me.jpg", "--consent"], "me.jpg"),
        (["--audio", "none.wav"], "none.wav: no such file"),
        (["--output", "none/o.mp4"], "none/o.mp4: there is no folder"),
        (["--output", "o.avi"], "o.avi: the output is an MP4 file"),
        (["--colour", "red"], "unrecognized arguments: --colour red (see ifmdm --help)"),
        (["--port", "8080"], "unrecognized arguments: --port 8080 (see ifmdm --help)"),
        (["--fps"], "argument --fps: expected one argument"),
        (["--config", "none.toml"], "none.toml: the config file cannot be read"),
        (["--portrait", f"{'a' * 5000}.jpg"], "a.jpg: cannot be read (File name too long); check the path"),
        (["--portrait", f"{'a' * 5000}.jpg", "--consent"], "a.jpg: cannot be read (File name too long); check"),
        (["--audio", f"{'a' * 5000}.wav"], "a.wav: cannot be read (File name too long); check the path"),
        (["--output", f"{'a' * 5000}.mp4"], "a.mp4: no file can be written there"),
        (["--weights", "a" * 5000], "a/config.json: cannot be read"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(args, told, capsys):
    assert run("render", *args) == 2
    shown = capsys.readouterr()
    assert told in shown.err
    assert shown.err.startswith("ifmdm")
    assert shown.err.count("\n") == 1
    assert shown.out == ""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[video]\nfps = 400", "config.toml: video.fps = 400: give a whole number from 1 to 120"),
        ("[video]\nfps = true", "config.toml: video.fps = true: give a whole number"),
        ("[video]\nfsp = 25", "config.toml: video.fsp = 25: there is no such setting; [video] has fps, size"),
        (
            "[vido]\nfps = 25",
            "config.toml: vido = {...}: there is no such section or setting; there are head",
        ),
        ("fps = 25", "config.toml: fps = 25: there is no such section"),
        ("video = 25", "config.toml: video = 25: this is a section: write [video]"),
        ("[head]\npose = 3", "config.toml: head.pose = 3: give yaw, pitch, roll"),
        ("[head]\nconsent = 'yes'", "config.toml: head.consent = 'yes': give true if you may"),
        ("[head]\nconsent = 'true'", "config.toml: head.consent = 'true': give true if you may"),
        ("[video]\nbadge = 1", "config.toml: video.badge = 1: give true for"),
        ("[video]\nfps = '30'", "config.toml: video.fps = '30': give a whole number"),
        ("[voice]\npause = '1.5'", "config.toml: voice.pause = '1.5': give a number of seconds"),
        ("[head]\npose = ['1', 2, 3]", "config.toml: head.pose = ['1', 2, 3]: give yaw, pitch, roll"),
        ("[head]\nconsent = 'perhaps'", "config.toml: head.consent = 'perhaps': give true if you may"),
        ("fps 25", "config.toml: this is not TOML: "),
        ("\xff", "config.toml: this is not TOML: line 1 is not UTF-8 (byte 0xff): save it as UTF-8"),
        ("[head]\nportrait = 'caf\xe9'", "config.toml: this is not TOML: line 2 is not UTF-8 (byte 0xe9)"),
        ("\xff\xfe[\0v\0", "config.toml: this is UTF-16, and TOML is UTF-8: save it as UTF-8"),
        ("\xfe\xff\0[\0v", "config.toml: this is UTF-16"),
        ("[\0v\0]\0", "config.toml: this is UTF-16"),
        ("[video]\nfps = " + "9" * 5000, "config.toml: this is not TOML: a number too long"),
        ("x = " + "[" * 5000, "config.toml: this is not TOML: a number too long, or nested too deeply"),
    ],
)
def test_a_wrong_config_file_is_named_with_key_value_and_what_is_allowed(text, told, capsys):
    Path("config.toml").write_bytes(text.encode("latin-1"))
    assert run("render") == 2
    assert capsys.readouterr().err.startswith(f"ifmdm: {told}")


@pytest.mark.parametrize("command", [["render"], ["config", "check"], ["run"]])
@pytest.mark.parametrize(
    ("make", "told"),
    [
        (Path.mkdir, "config.toml: the config file cannot be read (Is a directory)"),
        (lambda path: path.symlink_to("gone.toml"), "config.toml: the config file cannot be read (No such file"),
        (lambda path: path.symlink_to(path), "config.toml: the config file cannot be read (Too many levels of"),
        (lambda path: path.symlink_to("/dev/zero"), "config.toml: more than 1 MiB is no config file"),
    ],
    ids=["folder", "broken link", "loop", "endless"],
)
def test_a_config_file_that_is_none_is_not_passed_over(make, told, command, capsys):
    make(Path("config.toml"))
    assert run(*command) == 2
    shown = capsys.readouterr()
    assert (shown.out + shown.err).removeprefix("ifmdm: ").startswith(told)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_config_file_as_windows_writes_it(newline):
    """With a mark before it and other ends of lines."""
    text = f"[video]{newline}fps = 25{newline}[head]{newline}portrait = 'C:\\Users\\me\\你好.jpg'{newline}"
    Path("config.toml").write_bytes(b"\xef\xbb\xbf" + text.encode())
    got = load_settings({})
    assert (got.video.fps, got.head.portrait) == (25, "C:\\Users\\me\\你好.jpg")


@pytest.mark.parametrize(
    "path", ["C:\\Users\\me.wav", "C:\\me\\a.wav", "C:\\new\\take.wav", "C:\\fast\\bo.wav", "\\\\server\\me.wav"]
)
def test_backslashes_that_toml_takes_for_something_else_get_a_hint_that_helps(path, capsys):
    hint = """write the path between '...', or with / in place of \\"""
    Path("config.toml").write_text(f'[render]\naudio = "{path}"\n')
    assert run("render") == 2
    shown = capsys.readouterr().err
    assert shown.startswith("ifmdm: config.toml: ") and shown.endswith(f"{hint}\n") and shown.count("\n") == 1
    for text in (f"'{path}'", path.replace("\\", "/").join('""')):  # as it says
        Path("config.toml").write_text(f"[render]\naudio = {text}\n")
        assert run("render") == 2
        assert ": no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("IFMDM_VIDEO__FPS", "fast", "IFMDM_VIDEO__FPS=fast: give a whole number from 1 to 120"),
        ("IFMDM_VIDEO__FSP", "5", "IFMDM_VIDEO__FSP=5: there is no such setting; [video] has fps"),
        ("IFMDM_HEAD__POSE", "1,2", "IFMDM_HEAD__POSE=1,2: give yaw, pitch, roll"),
        ("IFMDM_HEAD__CONSENT", "yes", "IFMDM_HEAD__CONSENT=yes: give true if you may"),
        ("IFMDM_VIDEO", "5", "IFMDM_VIDEO=5: this is a section"),
        ("IFMDM_VIDEO_FPS", "5", "IFMDM_VIDEO_FPS: there is no such setting; did you mean IFMDM_VIDEO__FPS?"),
        ("IFMDM_VIDIO__FPS", "5", "IFMDM_VIDIO__FPS: there is no such setting; did you mean IFMDM_VIDEO__FPS?"),
        ("ifmdm_server_token", "secret", "ifmdm_server_token: there is no such setting; did you mean IFMDM_SERVER__"),
        ("IFMDM_VIDEO__FSP__X", "5", "IFMDM_VIDEO__FSP__X: there is no such setting; did you mean IFMDM_VIDEO__FPS?"),
        ("IFMDM_Q", "5", "IFMDM_Q: there is no such setting; they are called as in IFMDM_HEAD__PORTRAIT"),
    ],
)
def test_a_wrong_environment_is_named(name, value, told, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings({})
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize(("value", "means"), [("true", True), ("False", False), ("1", True), ("0", False)])
def test_what_is_true_and_false_in_the_environment(value, means, monkeypatch):
    monkeypatch.setenv("IFMDM_VIDEO__BADGE", value)
    assert load_settings({}).video.badge is means


def test_other_names_of_the_environment_are_no_settings(monkeypatch):
    Path("config.toml").write_text("[video]\nfps = '25'\n")  # overridden, and never looked at
    monkeypatch.setenv("IFMDM_VIDEO__FPS", "30")
    monkeypatch.setenv("IFMDM_PLUGINS__MIRROR__SIDE", "left")
    monkeypatch.setenv("IFMDM_WATCH_SECONDS", "5")
    monkeypatch.setenv("OTHER_VIDEO_FPS", "5")
    got = load_settings({})
    assert (got.video.fps, got.plugins.model_extra) == (30, {"mirror": {"side": "left"}})


def test_all_that_is_wrong_is_named_and_the_rest_can_be_used(monkeypatch):
    Path("config.toml").write_text("[video]\nfps = '25'\nsize = 256\n[head]\nconsent = 1\nseed = 3\npose = 4\n[vido]\n")
    monkeypatch.setenv("IFMDM_VIDEO_SIZE", "128")
    with pytest.raises(SettingsError) as caught:
        load_settings({"head.intensity": "9"}, names={"head.intensity": "--intensity"})
    places = [line.split(":")[:2] for line in caught.value.problems]
    assert places[0][0] == "IFMDM_VIDEO_SIZE"
    assert sorted(" ".join(place) for place in places[1:]) == [
        "--intensity 9  give a number from 0 (still) to 2 (twice as lively)",
        "config.toml  head.consent = 1",
        "config.toml  head.pose = 4",
        "config.toml  video.fps = '25'",
        "config.toml  vido = {...}",
    ]
    rest = caught.value.rest
    assert (rest.video.fps, rest.video.size, rest.head.seed, rest.head.consent) == (45, 256, 3, False)


@pytest.mark.parametrize(
    ("missing", "extra"), [("torch", "train"), ("mediapipe", "evaluate"), ("dlib", "evaluate")]
)
def test_a_missing_extra_is_named(missing, extra, monkeypatch, capsys):
    def absent(_):
        raise ModuleNotFoundError(f"No module named '{missing}'", name=missing)

    monkeypatch.setattr(cli.importlib, "import_module", absent)
    assert run("evaluate") == 2
    expected = f"ifmdm: this needs {missing}, which is not installed: pip install -c constraints.txt '.[{extra}]'\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("args", [("--vers",), ("devices", "--deb"), ("doctor", "--conf", "x"), ("bench", "--qui")])
def test_no_flag_is_taken_for_a_longer_one(args, capsys):
    assert run(*args) == 2
    assert args[-1 if args[-1] != "x" else -2] in capsys.readouterr().err


def test_training_is_handed_its_arguments(monkeypatch):
    seen = []

    class Stage:
        @staticmethod
        def add_arguments(parser):
            parser.add_argument("--steps", type=int)

        @staticmethod
        def run(args):
            seen.append(args.steps)

    asked = []
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: asked.append(name) or Stage)
    for part in ("prepare", "renderer", "motion", "export"):
        assert run("train", part, "--steps", "3") == 0
    assert run("evaluate", "--steps", "4") == 0
    assert seen == [3, 3, 3, 3, 4]
    assert asked == [f"engine.training.{n}" for n in ("prepare", "stage1", "stage2", "export", "evaluate")]
    assert run("train", "everything") == 2


@pytest.fixture
def ran(monkeypatch):
    """Stands in for the live head; gives the settings that reached it."""
    seen = []
    monkeypatch.setattr("plugin.run.run", seen.append)
    return seen


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ("--source none --microphone foo", "--microphone foo: this does nothing without --source microphone; give"),
        ("--microphone foo", "--microphone foo: this does nothing without --source microphone"),
        ("--source none --audio nope.wav", "--audio nope.wav: this does nothing without --source file; give both"),
        ("--source microphone --audio v.wav", "--audio v.wav: this does nothing without --source file"),
        ("--camera /dev/video9", "--camera /dev/video9: this does nothing without --outputs camera"),
        ("--camera 1 --outputs audio", "--camera 1: this does nothing without --outputs camera"),
        ("--audio-device 3", "--audio-device 3: this does nothing without --outputs audio"),
        ("--no-server --port 80", "--port 80: this does nothing without --server"),
        ("--no-server --host ::1", "--host ::1: this does nothing without --server"),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused_in_one_line(args, told, ran, capsys):
    assert run("run", *args.split()) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"ifmdm: {told}")
    assert shown.count("\n") == 1
    assert ran == []


def test_a_config_file_may_hold_what_does_nothing_yet_and_bring_what_a_flag_needs(ran):
    Path("config.toml").write_text(
        "[live]\noutputs = ['camera']\n[microphone]\ndevice = '3'\n[voice]\nfile = 'v.wav'\n[audio]\ndevice = '4'\n"
    )
    assert run("run", "--camera", "/dev/video9", "--source", "none") == 0
    assert (ran[0].camera.device, ran[0].microphone.device) == ("/dev/video9", "3")


#: Each flag with a value, how it arrives, and what else it needs.
GIVEN = {
    "--portrait": ("bo", "bo", ""),
    "--source": ("stdin", "stdin", ""),
    "--audio": ("v.wav", "v.wav", ""),
    "--output": ("o.mp4", "o.mp4", ""),
    "--outputs": ("camera,audio", ("camera", "audio"), ""),
    "--record": ("r.mp4", "r.mp4", ""),
    "--seconds": ("1.5", 1.5, ""),
    "--latency": ("quality", "quality", ""),
    "--microphone": ("Mic 2", "Mic 2", "--source=microphone"),
    "--camera": ("/dev/video9", "/dev/video9", "--outputs=camera"),
    "--audio-device": ("3", "3", "--outputs=audio"),
    "--host": ("::1", "::1", ""),
    "--port": ("81", 81, ""),
    "--fps": ("30", 30, ""),
    "--size": ("256", 256, ""),
    "--background": ("blur", "blur", ""),
    "--intensity": ("1.5", 1.5, ""),
    "--pose": ("-5,2.5,-1", (-5.0, 2.5, -1.0), ""),
    "--seed": ("9", 9, ""),
    "--weights": ("clean", "clean", ""),
}


@pytest.mark.parametrize(
    ("command", "setting", "flag"),
    [(command, setting, flag) for command, flags in cli._SETTING_FLAGS.items() for setting, flag in flags.items()],
)
def test_every_flag_reaches_its_setting(command, setting, flag, ran, rendered):
    value, arrives, needs = GIVEN[flag]
    assert run(command, flag, value, *needs.split()) == 0
    (got,) = ran or rendered
    section, name = setting.split(".")
    assert getattr(getattr(got, section), name) == arrives
    assert arrives != getattr(getattr(Settings(), section), name)


@pytest.mark.parametrize("setting", cli._SWITCHES)
def test_every_switch_reaches_its_setting(setting, ran):
    section, name = setting.split(".")
    default = getattr(getattr(Settings(), section), name)
    flag = cli._SWITCHES[setting]
    assert run("run", flag.replace("--", "--no-", 1) if default else flag) == 0
    assert getattr(getattr(ran[0], section), name) is not default
    Path("config.toml").write_text(f"[{section}]\n{name} = {str(not default).lower()}\n")
    assert run("run") == 0
    assert getattr(getattr(ran[1], section), name) is not default
    if default:  # a switch that is on by default turns on what a file turns off
        assert run("run", flag) == 0
        assert getattr(getattr(ran[2], section), name) is default


@pytest.mark.parametrize(("command", "heading"), [("render", "## Render a clip"), ("run", "## Live")])
def test_the_flags_that_the_readme_lists_are_there(command, heading, capsys):
    text = (ROOT / "README.md").read_text().partition(f"{heading}\n")[2].partition("\n## ")[0]
    rows = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| `--")]
    flags = re.findall(r"`(--[a-z-]+)`", " ".join(rows))
    assert len(flags) >= 7
    assert run(command, "--help") == 0
    shown = re.findall(r"--[a-z-]+", capsys.readouterr().out)
    assert set(flags) <= set(shown)


@pytest.mark.parametrize("part", cli._TRAINING)
def test_every_part_of_training_is_there(part, capsys):
    pytest.importorskip("torch")
    module = importlib.import_module(f"engine.training.{cli._TRAINING[part][0]}")
    assert callable(module.run) and callable(module.add_arguments)
    assert run("train", part, "--help") == 0
    assert "--" in capsys.readouterr().out


def test_the_doctor_as_a_command_looks_at_everything_and_its_status_says_whether_something_fails(capsys):
    Path("config.toml").write_text("[video]\nsize = 128\n[server]\nport = 0\n")
    status = run("doctor")
    lines = capsys.readouterr().out.splitlines()
    found = [re.fullmatch(r"(ok   |note |FAILS) ([A-Za-z ]+): .+", line) for line in lines]
    assert [each[2] for each in found] == [
        "settings", "Python", "weights", "backend", "portrait", "voice", "recording", "clip", "camera", "audio output",
        "microphone", "port", "address", "speed",
    ]  # fmt: skip
    assert status == (2 if any(each[1] == "FAILS" for each in found) else 0)
    Path("config.toml").write_text("[video]\nsize = 128\n[head]\nportrait = 'nobody'\n[server]\nport = 0\n")
    assert run("doctor") == 2
    assert "FAILS portrait: nobody: no bundled portrait" in capsys.readouterr().out


def test_our_own_errors_are_one_line_with_a_hint(monkeypatch, capsys):
    def broken(*_, **__):
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(render, "render", broken)
    assert run("render") == 1
    shown = capsys.readouterr().err
    assert shown == "ifmdm: ZeroDivisionError: division by zero (an error of ifmdm; --debug shows where)\n"
    assert run("render", "--debug") == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.EMFILE, "x", "lib.py"), "Too many open files: allow this process more open files: ulimit -n"),
        (OSError(errno.ENOSPC, "x"), "No space left on device: free some space on the disk"),
        (MemoryError("x"), "Cannot allocate memory: close other programs"),
    ],
)
def test_what_the_system_has_too_little_of_is_no_error_of_ours(error, told, monkeypatch, capsys):
    def short(*_, **__):
        raise error

    monkeypatch.setattr(render, "render", short)
    assert run("render") == 1
    assert capsys.readouterr().err.startswith(f"ifmdm: {told}")


def test_ctrl_c_is_one_line(monkeypatch, capsys):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(render, "render", stopped)
    assert run("render") == 130
    assert capsys.readouterr().err == "ifmdm: interrupted\n"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_middle_leaves_no_half_file(number, status, tmp_path):
    # The head makes frames until the file is begun, then waits.
    program = """
import pathlib, sys, time, types
import numpy as np
from plugin import render
from plugin.cli import main
class Slow:
    def push(self, samples):
        if list(pathlib.Path().glob(".out*")):
            print("begun", flush=True)
            time.sleep(60)
        return [types.SimpleNamespace(image=np.zeros((128, 128, 3), np.uint8))] * 30
    finish = None
render.render.__defaults__ = (lambda *_: Slow(), True)
sys.exit(main(["render", "--size", "128"]))
"""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout.readline() == "begun\n"
        time.sleep(0.1)
        child.send_signal(number)
        _, shown = child.communicate(timeout=30)
    finally:
        child.kill()
    assert child.returncode == status
    assert "Traceback" not in shown
    assert list(tmp_path.iterdir()) == []
