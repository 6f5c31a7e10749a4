"""The program as a process: streams that are closed, full or speak another encoding, names in any encoding, signals at
any moment, threads that are left behind, packages that are not installed."""

import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from plugin import streams, worker
from plugin.log import logging_to
from plugin.signals import unwinding

ROOT = Path(__file__).parent.parent
HERE = Path(__file__).parent
PROGRAM = [sys.executable, "-m", "plugin.program"]
MINE = {name: value for name, value in os.environ.items() if not name.upper().startswith(("IFMDM_", "PYTHONUNB"))}
ENVIRONMENT = MINE | {"PYTHONPATH": str(ROOT)}
#: A head that needs no weights; {more} comes before it runs.
FAKE_HEAD = f"""
import functools, sys, time
sys.path.insert(0, {str(HERE)!r})
from live_fakes import LatentRenderer, LoudnessModel
from plugin import run
renderer = LatentRenderer
{{more}}
run.run.__defaults__ = (functools.partial(run.make_show, model=LoudnessModel(), renderer=renderer), None)
from plugin.program import main
sys.exit(main())
"""
#: What no user is to see.
OURS = re.compile("Traceback|error of ifmdm|Exception ignored|Error in sys.excepthook")


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """A line for bash, in which $IFMDM is the program."""
    told = ENVIRONMENT | {"IFMDM": " ".join(PROGRAM)} | environment
    done = subprocess.run(["bash", "-c", line], cwd=folder, env=told, capture_output=True, timeout=60)
    assert not OURS.search((done.stdout + done.stderr).decode(errors="replace")), done
    return done


def fake_head(more: str, *args: str, folder: Path, **given) -> subprocess.Popen:
    command = [sys.executable, "-c", FAKE_HEAD.format(more=more), "run", "--no-server", "--size", "128", *args]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL, "text": True} | given
    return subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, **pipes)


def test_the_engine_reports_nothing_to_anybody(tmp_path):
    """ONNX Runtime does, and keeps a number of the machine in the user's folder, unless it is told not to."""
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    told = {name: value for name, value in ENVIRONMENT.items() if name != "ORT_DISABLE_TELEMETRY"} | home
    subprocess.run([sys.executable, "-c", "import engine.backend"], env=told, cwd=tmp_path, check=True, timeout=60)
    assert list(tmp_path.rglob("*")) == []


# --- streams


@pytest.mark.parametrize(
    ("line", "status", "told"),
    [
        ("$IFMDM --help > /dev/full", 2, "ifmdm: standard output cannot be written (No space left on device)"),
        ("$IFMDM config check > /dev/full", 2, "ifmdm: standard output cannot be written (No space left on device)"),
        ("PYTHONUNBUFFERED=1 $IFMDM config check > /dev/full", 2, "ifmdm: standard output cannot be written"),
        ("$IFMDM devices | head -0; exit ${PIPESTATUS[0]}", 0, ""),
        ("$IFMDM config check --config no.toml 2> /dev/full", 2, ""),
        ("$IFMDM config check --config no.toml 2>&1 >&- | head -0; exit ${PIPESTATUS[0]}", 2, ""),
        ("$IFMDM devices >&- 2>&- <&-", 0, ""),
        ("$IFMDM render --fps 0 2>&-", 2, ""),
        ("$IFMDM run --no-server --source stdin <&-", 2, "ifmdm: standard input is closed; let a program"),
    ],
)  # fmt: skip
def test_streams_that_are_full_closed_or_unread_change_no_outcome(line, status, told, tmp_path):
    done = shell(line, tmp_path)
    assert (done.returncode, done.stderr.decode().partition("\n")[0][: len(told)]) == (status, told), done


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("PYTHONIOENCODING=cp1252", "你好".encode()),
        ("LC_ALL=C", b"caf\xe9"),
    ],
)
def test_what_an_encoding_has_no_character_for_is_shown_in_another_way(encoding, name, tmp_path):
    path = tmp_path / os.fsdecode(name + b".toml")
    path.write_text("[head]\nseed = 3\n")
    none = os.fsdecode(name)
    done = shell(f"export {encoding}; $IFMDM config check --config *.toml && $IFMDM render --audio {none}", tmp_path)
    assert b".toml: every setting can be used\n" in done.stdout, done
    assert done.returncode == 2 and done.stderr.startswith(b"ifmdm: ") and b": no such file" in done.stderr, done


def test_a_name_does_nothing_to_a_terminal(tmp_path):
    """A title, a colour, another line, the same in one byte."""
    name = "'a\x1b]0;title\x07\x1b[31m\nb\x9b2Jc.mp4'"
    for line in (
        f"$IFMDM render --portrait {name}", f"$IFMDM run --no-server --record no/{name}",
        f"$IFMDM config check --config {name}",
    ):  # fmt: skip
        done = shell(line, tmp_path)
        shown = (done.stdout + done.stderr).decode()
        assert done.returncode == 2
        assert "title" in shown and shown.count("\n") == 1
        assert shown.strip("\n").isprintable(), shown


def test_descriptors_that_were_closed_are_taken_before_anything_else_gets_them(tmp_path):
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc here")
    program = """
import os
from plugin import streams
streams.open_descriptors()
file = open("/dev/zero")
told = [(os.readlink(f"/proc/self/fd/{number}"), os.get_inheritable(number)) for number in range(3)]
open("told", "w").write(f"{file.fileno() > 2} {told}")
"""
    line = f'"{sys.executable}" -c "$1" <&- >&- 2>&-'
    subprocess.run(["bash", "-c", line, "", program], env=ENVIRONMENT, cwd=tmp_path, check=True)
    assert (tmp_path / "told").read_text() == f"True {[('/dev/null', True)] * 3}"


def test_a_reader_that_takes_nothing_for_now_is_waited_for():
    """A pipe that another program set not to block: what does not fit at once is not lost while somebody reads."""
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    came: list[int] = []
    reader = threading.Thread(target=lambda: came.extend(map(len, iter(lambda: os.read(ours, 65536), b""))))
    with open(theirs, "wb", buffering=0) as raw:
        out = io.TextIOWrapper(io.BufferedWriter(streams.Lenient(raw)), "utf-8")
        reader.start()
        out.write("x" * 1_000_000)
        out.flush()
    reader.join(10)
    os.close(ours)
    assert sum(came) == 1_000_000


def test_lines_that_nobody_reads_for_now_stop_no_head_and_are_counted():
    ours, theirs = os.pipe()
    with open(theirs, "w") as out, open(ours, "rb", buffering=0) as read, logging_to(out, form="json"):
        log = logging.getLogger("plugin")
        done = threading.Event()

        def speak() -> None:
            for number in range(2000):
                log.info(f"line {number} {'x' * 100}")
            done.set()

        threading.Thread(target=speak, daemon=True).start()
        assert done.wait(20)  # a pipe holds some hundreds
        shown = b""
        while not shown.endswith(b"\n") or not shown:
            shown += read.read(1 << 20)
        count = shown.count(b"\n")
        log.info("again")
        first, second = [json.loads(line) for line in read.read(1 << 20).splitlines()]
    assert 10 < count < 1900
    assert first["message"] == f"{2000 - count} lines were not shown, since nobody read them"
    assert second["message"] == "again"


def test_a_terminal_that_was_told_to_wait_holds_nothing_up():
    """Ctrl-S, and then the end of the head."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    done = threading.Event()

    def run() -> None:
        with open(theirs, "w", closefd=False) as out, logging_to(out) as terminal:
            terminal.status("live")
            os.write(ours, b"\x13")
            time.sleep(0.1)
            for number in range(100):
                logging.getLogger("plugin").info(f"line {number}")
                terminal.status(str(number))
        done.set()

    threading.Thread(target=run, daemon=True).start()
    waited = done.wait(20)
    os.write(ours, b"\x11")
    for each in (ours, theirs):
        os.close(each)
    assert waited


class Narrow(io.TextIOWrapper):
    """A terminal that knows little and refuses the rest."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), "cp1252", "strict")

    def isatty(self) -> bool:
        return True

    def said(self) -> bytes:
        return self.buffer.getvalue()


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_log_line_holds_any_name_in_any_encoding(form):
    out, name = Narrow(), "你好-é-caf\udce9.mp4"
    with logging_to(out, form=form) as terminal:
        terminal.status(name)
        record = logging.getLogger("plugin").makeRecord(
            "plugin", logging.INFO, "", 0, f"{name} is live", (), None, extra={"file": name, "path": Path(name)}
        )
        terminal.handle(record)  # not by way of pytest, which sends what is logged to where only UTF-8 is known
    if form == "text":
        assert b"\\u4f60\\u597d-\xe9-caf\\udce9.mp4 is live" in out.said()
    else:
        told = json.loads(out.said())
        assert told["message"] == "你好-é-caf\\udce9.mp4 is live"
        assert told["file"] == told["path"] == "你好-é-caf\\udce9.mp4"
        for value in told.values():
            value.encode()


def test_files_whose_names_are_not_utf_8_are_read_written_and_told(tmp_path, assets):
    """Only what is no name is refused. The voice, the portrait, the clip and the recording of a live head."""
    voice, clip = tmp_path / os.fsdecode(b"caf\xe9.flac"), tmp_path / os.fsdecode(b"clip\xff.mp4")
    face = tmp_path / os.fsdecode(b"face\xe9.jpg")
    try:
        voice.write_bytes((assets / "voice.flac").read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    face.write_bytes((assets / "portraits" / "bo.jpg").read_bytes())
    given = ["--portrait", face.name, "--consent", "--audio", voice.name, "--fps", "10", "--seconds", "1.5"]
    with fake_head("", *given, "--record", clip.name, folder=tmp_path) as head:
        told = head.communicate(timeout=30)[0]
    assert head.returncode == 0 and not OURS.search(told), told
    assert "face\\udce9.jpg is live; voice: file; shown: clip\\udcff.mp4" in told
    assert clip.stat().st_size > 1000


# --- signals


def sent(number: int, delay: float, line: list[str], folder: Path) -> tuple[int, str]:
    """A program, a signal so many seconds after its `main` is called, and how it ended. Before that Python starts, and
    pip's script imports what it needs: 20 ms in which Ctrl-C shows a traceback that no program can prevent."""
    begins = "import sys; from plugin.program import main; print('up', flush=True); sys.exit(main())"
    with subprocess.Popen(
        [sys.executable, "-c", begins, *line], cwd=folder, env=ENVIRONMENT, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as child:  # fmt: skip
        try:
            assert child.stdout.readline() == "up\n"
            time.sleep(delay)
            child.send_signal(number)
            told = child.communicate(timeout=30)[0]
        finally:
            child.kill()
    return child.returncode, told


@pytest.mark.parametrize(
    "line",
    [
        ["render", "--size", "128", "--fps", "5", "--output", "o.mp4"],
        ["run", "--size", "128", "--fps", "5", "--port", "0", "--record", "o.mp4"],
        ["--help"],
        ["doctor"],
    ],
    ids=lambda line: line[0].strip("-"),
)
def test_a_signal_at_any_moment_of_the_start_is_a_quiet_end(line, tmp_path):
    kinds = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
    delays = [0.04, 0.1, 0.2, 0.3, 0.5, 0.8, 1.4]
    delays = delays[: {"--help": 3, "doctor": 4}.get(line[0])]
    tries = [(kinds[n % 3], delay) for n, delay in enumerate(delays)]
    folders = [tmp_path / str(number) for number in range(len(tries))]
    for folder in folders:
        folder.mkdir()
    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(lambda each, folder: sent(*each, line, folder), tries, folders))
    for (number, delay), (status, told), folder in zip(tries, ends, folders, strict=True):
        about = (number, delay, status, told)
        # 2: of a doctor that found something; the command had ended
        assert status in (0, 128 + number, -number) or (line == ["doctor"] and status == 2), about
        assert not OURS.search(told), about
        assert not [path for path in folder.iterdir() if path.suffix != ".mp4" or path.stat().st_size < 100], about


def ended(head: subprocess.Popen, number: int) -> tuple[int, str]:
    """The status and the rest of what it said, after a signal when it is live."""
    for line in head.stdout:
        if "is live" in line:
            break
    time.sleep(0.5)
    head.send_signal(number)
    told = head.communicate(timeout=20)[0]
    return head.returncode, told


def test_a_closed_terminal_is_the_normal_end_and_nobody_s_business_under_nohup(tmp_path):
    with fake_head("", "--record", "a.mp4", folder=tmp_path) as head:
        status, told = ended(head, signal.SIGHUP)
    assert status == 0 and "ended after" in told and not OURS.search(told)
    assert (tmp_path / "a.mp4").stat().st_size > 1000
    ignoring = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    with fake_head("", "--seconds", "1.5", "--record", "b.mp4", folder=tmp_path, **ignoring) as head:
        status, told = ended(head, signal.SIGHUP)
    assert status == 0 and "ended after 0:01" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


def test_where_the_event_loop_takes_no_signals_the_end_is_the_same(tmp_path):
    """As on Windows."""
    more = """
import asyncio
def none(*_): raise NotImplementedError
asyncio.SelectorEventLoop.add_signal_handler = none
"""
    with fake_head(more, "--record", "a.mp4", folder=tmp_path) as head:
        status, told = ended(head, signal.SIGINT)
    assert status == 0 and "ended after" in told and not OURS.search(told)
    assert (tmp_path / "a.mp4").stat().st_size > 1000


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("status", [0, 2])
def test_a_signal_while_the_interpreter_ends_changes_no_status(number, status, tmp_path):
    code = f"""
import os, sys
from plugin import cli, program
class Last:
    def __del__(self, kill=os.kill, own=os.getpid()):
        kill(own, {int(number)})
last = sys.last = Last()
cli.main = lambda: {status}
sys.exit(program.main())
"""
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, cwd=tmp_path, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (status, b"", b"")


def test_an_engine_that_never_comes_back_is_left_behind_and_the_process_ends_as_it_should(tmp_path):
    """A thread in C++ that asks for the interpreter while that ends used to abort the process."""
    more = """
import cv2, numpy
class renderer(LatentRenderer):
    def render(self, coefficients):
        while len(self.seen) > 10: cv2.GaussianBlur(numpy.zeros((800, 800, 3), numpy.uint8), (0, 0), 3)
        return super().render(coefficients)
"""
    with fake_head(more, "--seconds", "1", "--record", "a.mp4", folder=tmp_path) as head:
        told = head.communicate(timeout=30)[0]
    assert head.returncode == 0, told
    assert not re.search("terminate called|Fatal", told)
    assert (tmp_path / "a.mp4").stat().st_size > 1000


def test_a_second_ctrl_c_ends_at_once_and_says_where_the_recording_is(tmp_path):
    more = """
from transports.recording import RecordingSink
close = RecordingSink.close
def slow(self): print("closing", flush=True); time.sleep(30); close(self)
RecordingSink.close = slow
"""
    with fake_head(more, "--record", "a.mp4", folder=tmp_path) as head:
        for line in head.stdout:
            if "is live" in line:
                break
        until = time.monotonic() + 20
        while not any(b"moov" in part.read_bytes() for part in tmp_path.glob(".a-*.part")):  # the first piece
            assert time.monotonic() < until, "nothing was recorded"
            time.sleep(0.05)
        head.send_signal(signal.SIGINT)
        head.send_signal(signal.SIGINT)  # the same one, on another way
        assert head.stdout.readline() == "closing\n"
        time.sleep(0.7)
        assert head.poll() is None
        began = time.monotonic()
        head.send_signal(signal.SIGINT)
        told = head.communicate(timeout=10)[0]
    assert time.monotonic() - began < 3
    (part,) = tmp_path.glob(".a-*.part")
    assert head.returncode == 130
    assert f"ifmdm: a.mp4: not finished; what was recorded is in {part}\nifmdm: interrupted\n" in told
    assert b"moov" in part.read_bytes()


def test_what_becomes_of_a_signal_on_its_way_out_is_a_signal_again():
    with pytest.raises(SystemExit) as left, unwinding():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        except SystemExit:
            raise ImportError("numpy.core.multiarray failed to import") from None
    assert left.value.code == 143
    with pytest.raises(KeyboardInterrupt), unwinding() as state:
        with state.held():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            made = True
        raise AssertionError("it was held, and then forgotten")
    assert made
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# --- calls that do not return


def test_a_call_that_does_not_return_is_left_behind():
    stuck = threading.Event()
    began = time.monotonic()
    with pytest.raises(worker.Unanswered):
        worker.wait_for(0.05, stuck.wait)
    assert time.monotonic() - began < 5
    assert worker.wait_for(5, lambda: 3) == 3
    with pytest.raises(TimeoutError, match="of its own"):
        worker.wait_for(5, lambda: (_ for _ in ()).throw(TimeoutError("of its own")))
    stuck.set()


# --- packages that are not there


def test_without_the_packages_for_devices_the_rest_runs_and_those_say_what_they_need(tmp_path):
    """As after `pip uninstall pyvirtualcam sounddevice`."""
    hidden = "sys.modules['pyvirtualcam'] = sys.modules['sounddevice'] = None"

    def run(*options: str) -> tuple[int, str]:
        with fake_head(hidden, *options, folder=tmp_path) as head:
            return head.communicate(timeout=30)[0], head.returncode

    flags = ["--server", "--port", "0", "--seconds", "0.5"], ["--outputs", "camera"], ["--source", "microphone"]
    with ThreadPoolExecutor(2) as pool:
        live, camera, microphone = pool.map(lambda options: run(*options), flags)
    assert live[1] == 0 and "shown: page" in live[0] and not OURS.search(live[0]), live
    assert camera == ("ifmdm: the camera needs the package pyvirtualcam: pip install pyvirtualcam\n", 2)
    assert microphone == ("ifmdm: sound devices need the package sounddevice: pip install sounddevice\n", 2)
