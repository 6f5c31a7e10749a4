"""Devices whose drivers do not answer, and sound devices that come back.

Fakes stand where hardware would have to hang; PortAudio is the real one where it is installed, with a device that
ALSA's configuration makes.
"""

import asyncio
import logging
import subprocess
import sys
import threading
import time
from ctypes.util import find_library
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_live import Screen, live, show
from webrtc_peers import until

from plugin import doctor, run
from plugin.settings import settings_for_measuring
from transports import portaudio, virtual_camera
from transports.media import TransportError
from transports.portaudio import DeviceStream
from transports.recording import RecordingSink

ROOT = Path(__file__).parent.parent


class Stuck(Screen):
    """Its driver answers when it is let go."""

    def __init__(self, *calls: str, name: str = "stuck"):
        super().__init__(name)
        self.live, self.calls, self.go, self.asked = True, calls, threading.Event(), 0

    def _drive(self, call: str) -> None:
        if call in self.calls:
            self.go.wait(30)

    def open(self, form, ended=None):
        self._drive("open")

    def check(self):
        self.asked += 1
        self._drive("check")
        return ""

    def close(self):
        self._drive("close")
        super().close()


def test_a_device_that_does_not_answer_is_named_and_the_others_are_looked_after(monkeypatch):
    monkeypatch.setattr(run, "_CHECK_SECONDS", 0.02)
    monkeypatch.setattr(run, "ANSWER_SECONDS", 0.1)

    async def play():
        stuck, other = Stuck("check"), Stuck(name="other")
        whole, stop = show([stuck, other]), asyncio.Event()
        task = asyncio.create_task(whole.run(0, stop))
        await until(lambda: whole.problems.get("stuck"))
        assert whole.problems["stuck"] == "stuck: its driver does not answer"
        before = other.asked
        await until(lambda: other.asked > before + 5)
        assert stuck.asked == 1  # and no threads pile up
        stuck.go.set()
        await until(lambda: not whole.problems["stuck"] and stuck.asked > 1)
        assert "stuck: works again" in whole.told
        stop.set()
        await task

    live(play())


@pytest.mark.parametrize("as_source", [False, True])
def test_a_device_that_cannot_be_closed_keeps_neither_the_others_nor_the_end(as_source, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(run, "CLOSE_SECONDS", 0.3)
    stuck, other, recording = Stuck("check", "close"), Screen("other"), RecordingSink(tmp_path / "a.mp4")

    async def play():
        sinks = [other, recording] if as_source else [stuck, other, recording]
        await show(sinks, stuck if as_source else None).run(0.4, asyncio.Event())

    began = time.monotonic()
    if as_source:
        live(play())
    else:
        with pytest.raises(TransportError, match=r"^stuck: its driver does not answer; it is left as it is$"):
            live(play())
    # and asyncio does not wait for the threads
    assert time.monotonic() - began < 10
    assert other.closed == 1 and not stuck.closed
    assert (tmp_path / "a.mp4").stat().st_size > 1000
    stuck.go.set()


def test_a_start_that_is_stuck_in_a_driver_can_be_ended(monkeypatch):
    monkeypatch.setattr(run, "STOP_SECONDS", 0.1)
    go = threading.Event()

    async def begin():
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(0.05, stop.set)
        await run._made(lambda: go.wait(30), stop)

    with pytest.raises(run.Stopped):
        live(begin())
    go.set()


def test_what_the_loop_s_own_threads_do_is_not_waited_for_at_the_end(monkeypatch, caplog):
    """Whatever else was handed to asyncio.to_thread."""
    go = threading.Event()
    settings = settings_for_measuring({"server.enabled": False, "live.seconds": 0.2})

    def make(settings, tell, stopped):
        whole = show([])

        async def serve(_):
            asyncio.get_running_loop().run_in_executor(None, go.wait, 30)
            await asyncio.Event().wait()

        whole.services.append(serve)
        return whole

    began = time.monotonic()
    with caplog.at_level(logging.ERROR):
        run.run(settings, make)
    assert time.monotonic() - began < 10
    go.set()
    time.sleep(0.05)
    assert not caplog.records


def test_the_doctor_names_a_driver_that_does_not_answer(monkeypatch, capsys):
    go = threading.Event()
    monkeypatch.setattr(doctor, "DRIVER_SECONDS", 0.05)
    monkeypatch.setattr(virtual_camera, "try_camera", lambda *_: go.wait(30))
    monkeypatch.setattr(portaudio, "load_sounddevice", lambda: go.wait(30))
    settings = settings_for_measuring({"live.outputs": "camera"})
    for check, state in ((doctor.check_camera, doctor.BAD), (doctor.check_audio, doctor.POOR)):
        found, told = check(settings)
        assert found == state
        assert told == "the driver did not answer in 0.05 s; restart what uses it, or the machine"
    doctor.devices()
    assert "Microphones and sound outputs: the driver did not answer" in capsys.readouterr().out
    go.set()


# --- sound devices


class PortAudio(SimpleNamespace):
    """Keeps its list of devices from its start on, as the real one does; starting anew ends every stream."""

    class PortAudioError(Exception):
        pass

    def __init__(self):
        super().__init__(plugged=True, listed=True, starts=0, open=0)

    def _terminate(self):
        assert not self.open, "streams were open"
        self.listed = None

    def _initialize(self):
        self.listed, self.starts = self.plugged, self.starts + 1


def streams(module: PortAudio, clock) -> tuple[DeviceStream, DeviceStream]:
    """Two, of devices that come and go together."""

    class Stream:
        def __init__(self):
            if not (module.listed and module.plugged):
                raise module.PortAudioError("Invalid device")
            module.open += 1

        def start(self):
            pass

        abort = start

        def close(self):
            module.open -= 1

    def one(name: str) -> DeviceStream:
        def begin(anew: bool = False) -> None:
            if anew:
                portaudio.list_anew(module)
            made.start(Stream, f"{name}: cannot be opened", (module.PortAudioError,))

        made = DeviceStream(begin, f"{name} is silent", clock)
        begin()
        return made

    return one("microphone"), one("audio")


def test_a_sound_device_that_comes_back_is_found_once_no_other_is_in_use():
    now = SimpleNamespace(time=0.0)
    module = PortAudio()
    first, second = streams(module, lambda: now.time)

    def later(seconds: float, *beating: DeviceStream) -> list[str]:
        now.time += seconds
        for each in beating:
            each.beat()
        return [first.check(), second.check()]

    assert later(1, first, second) == ["", ""]
    module.plugged = False
    told = later(3, second)  # one is silent, and the other must not suffer
    assert told == [
        "microphone: cannot be opened (Invalid device); one that was plugged in again may be seen after a restart only",
        "",
    ]
    assert module.starts == 0 and module.open == 1
    told = later(3)  # now both are
    assert module.starts >= 1 and module.open == 0
    assert told[1].startswith("audio: cannot be opened (Invalid device)")
    module.plugged = True
    later(10)
    assert module.open == 2  # with the list of now
    assert later(0.1, first, second) == ["", ""]
    first.close()
    second.close()
    assert module.open == 0 and not portaudio._OPEN


def test_a_stream_that_is_closed_while_it_is_opened_again_stays_closed():
    now = SimpleNamespace(time=0.0)
    first, second = streams(module := PortAudio(), lambda: now.time)
    second.close()
    begin = first.begin

    def slow(anew: bool) -> None:
        begin(anew)
        first.close()

    first.begin = slow
    now.time += 5
    first.check()
    assert module.open == 0 and not portaudio._OPEN


ALSA = Path("/usr/share/alsa/alsa.conf")
LATE = """
import pathlib, sys, time
from transports import portaudio
names = lambda: [each.name for each in portaudio.sound_devices(module)]
module, told = portaudio.load_sounddevice(), []
told.append("late" in names())
time.sleep(1.1)  # ALSA looks at the times of its files, in seconds
with open(sys.argv[1], "a") as config:
    config.write("pcm.late { type null hint { show on } }")
told.append("late" in names())
portaudio.list_anew(module)
told.append("late" in names())
told.append(portaudio.find_device(module, "late", output=True).name)
print(told)
"""


def test_portaudio_lists_devices_once_and_anew_when_it_is_told_to(tmp_path):
    if find_library("portaudio") is None or not ALSA.is_file():
        pytest.skip("there is no PortAudio here: sudo apt-get install libportaudio2")
    config = tmp_path / "asound.conf"
    config.write_text(f"<{ALSA}>\n")
    environment = {"PYTHONPATH": str(ROOT), "ALSA_CONFIG_PATH": str(config), "PATH": ""}
    command = [sys.executable, "-c", LATE, str(config)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[False, False, True, 'late']\n", done
