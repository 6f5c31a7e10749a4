"""Ways in and out, against recordings of what a device would be given.

No camera and no sound card can exist where the tests run: a recording backend stands where pyvirtualcam's driver would
be (registered with it, so all of pyvirtualcam but the driver is real), and a small module where PortAudio would be.
"""

import io
import itertools
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest
import pyvirtualcam
from hypothesis import given
from hypothesis import settings as trying
from hypothesis import strategies as st

from plugin import doctor
from plugin.settings import load_settings
from transports import audio_device, portaudio, virtual_camera
from transports.audio_device import AudioDeviceSink, PlayLine
from transports.clip import ClipSource
from transports.file import OutputError
from transports.media import MediaFormat, MediaFrame, TransportError
from transports.microphone import MicrophoneSource
from transports.pcm import PcmSource
from transports.portaudio import find_device, load_sounddevice
from transports.recording import RecordingSink, cut_off, next_take
from transports.virtual_camera import (
    CameraOptions,
    VirtualCameraSink,
    compose,
    parse_colour,
    to_i420,
    virtual_devices,
)

SIZE = 64
FORM = MediaFormat(SIZE, SIZE, 45, 16_000)


def media(index: int, level: int | None = 0, audio: float = 0.0, begins: float | None = None) -> MediaFrame:
    pts, after = -(-index * 16_000 // 45), -(-(index + 1) * 16_000 // 45)
    image = None if level is None else np.full((SIZE, SIZE, 3), level, np.uint8)
    begins = time.monotonic() if begins is None else begins
    return MediaFrame(index, pts, image, np.full(after - pts, audio, np.float32), begins + index / 45)


def wait_for(what, seconds: float = 5.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.005)


# --- the virtual camera


@dataclass
class Driver:
    """What stands where a camera's driver would be. died: sending fails; stuck: sending hangs until it is set."""

    sent: list[tuple[float, np.ndarray]] = field(default_factory=list)
    opened: list[dict] = field(default_factory=list)
    closed: int = 0
    died: bool = False
    absent: bool = False
    stuck: threading.Event | None = None


@pytest.fixture
def driver(monkeypatch):
    shared = Driver()

    class Recording:
        def __init__(self, *, width, height, fps, fourcc, device, **_):
            if shared.absent:
                raise RuntimeError("nothing there")
            shared.opened.append({"size": (width, height), "fps": fps, "fourcc": fourcc, "device": device})

        def send(self, frame):
            if shared.stuck is not None:
                shared.stuck.wait(10)
            if shared.died:
                raise RuntimeError("write failed")
            assert frame.flags.c_contiguous
            shared.sent.append((time.monotonic(), frame.copy()))

        def close(self):
            shared.closed += 1

        def device(self):
            return "recording"

        def native_fourcc(self):
            return None

    monkeypatch.setitem(pyvirtualcam.camera.BACKENDS, "recording", Recording)
    monkeypatch.setattr(virtual_camera, "RETRY_SECONDS", (0.02,))
    return shared


def camera(**changes) -> VirtualCameraSink:
    sink = VirtualCameraSink(CameraOptions(**({"backend": "recording"} | changes)))
    sink.open(FORM)
    return sink


def test_the_camera_keeps_its_own_pace_and_shows_the_newest(driver):
    sink = camera(fps=60)
    begins = time.monotonic()
    for index in range(36):
        time.sleep(max(0.0, begins + index / 45 - time.monotonic()))
        sink.send(media(index, index * 5, begins=begins))
    sink.close()
    assert driver.opened == [{"size": (64, 64), "fps": 60, "fourcc": driver.opened[0]["fourcc"], "device": None}]
    levels = [int(frame[0]) for _, frame in driver.sent]
    assert levels == sorted(levels)
    assert sink.sent == len(levels)
    # at its own 60 a second, less what a busy machine lost, which it knows
    assert len(levels) + sink.late == pytest.approx(0.8 * 60, abs=6)
    assert driver.closed == 1
    assert len(driver.sent[0][1]) == SIZE * SIZE * 3 // 2
    assert 0 <= sink.lag() < 0.2


def test_the_camera_is_not_flooded(driver):
    sink = camera(fps=30)
    driver.stuck = threading.Event()
    for index in range(500):
        sink.send(media(index, 0, begins=0.0))
    assert len(sink._waiting) <= 64
    driver.stuck.set()
    driver.stuck = None
    sink.close()


def test_after_a_stall_the_camera_does_not_hurry(driver):
    sink = camera(fps=60)
    sink.send(media(0, 10))
    wait_for(lambda: sink.sent)
    driver.stuck = threading.Event()
    time.sleep(0.5)
    driver.stuck.set()
    again = time.monotonic()
    wait_for(lambda: time.monotonic() > again + 0.1)
    told = sink.check()
    sink.close()
    assert sum(again < when < again + 0.1 for when, _ in driver.sent) <= 9
    assert sink.late >= 20
    assert told.startswith("recording: gets fewer pictures than 60 a second; close other programs, or lower fps")
    assert sink.check() == ""  # no more were late


def test_a_picture_is_held_for_the_voice(driver):
    sink = camera(fps=120)
    sink.send(media(0, 10))
    wait_for(lambda: sink.lag() is not None)
    sink.align(sink.lag() + 0.3)
    begins = time.monotonic()
    sink.send(media(0, 200, begins=begins))
    wait_for(lambda: driver.sent[-1][1][0] > 100)
    assert driver.sent[-1][0] - begins >= 0.29
    sink.send(media(1, 10, begins=time.monotonic() + 9))
    sink.interrupt()
    assert not sink._waiting
    sink.close()


def test_a_camera_that_dies_is_noticed_and_opened_again(driver):
    sink = camera(fps=120)
    sink.send(media(0, 10))
    wait_for(lambda: driver.sent)
    assert sink.check() == ""
    driver.died = driver.absent = True
    wait_for(sink.check)
    assert "\n" not in sink.check()
    wait_for(lambda: "nothing there" in sink.check())
    driver.died = driver.absent = False
    before = len(driver.sent)
    wait_for(lambda: len(driver.sent) > before)
    wait_for(lambda: sink.check() == "")
    sink.close()
    assert len(driver.opened) == 2


def test_a_camera_that_hangs_is_noticed_and_holds_up_nobody(driver, monkeypatch):
    monkeypatch.setattr(virtual_camera, "DEAD_SECONDS", 0.1)
    sink = camera(fps=120)
    sink.send(media(0, 10))
    wait_for(lambda: sink.sent)
    driver.stuck = threading.Event()
    wait_for(sink.check)
    assert "has taken no picture for" in sink.check()
    began = time.monotonic()
    sink.send(media(1, 10))
    sink.close()
    assert time.monotonic() - began < 1
    assert driver.closed == 0  # closing under a send would crash
    driver.stuck.set()


def test_a_device_file_that_vanishes_is_noticed(driver, monkeypatch):
    monkeypatch.setattr(virtual_camera, "CHECK_SECONDS", 0.0)
    sink = camera(fps=120)
    nodes = iter([(1, 1)] * 3)
    sink._node = (1, 1)
    monkeypatch.setattr(sink, "_look", lambda: next(nodes, (-1, -1)))
    sink.send(media(0, 10))
    wait_for(lambda: "the device is gone" in sink.check())
    sink.close()


def test_no_camera_is_one_line_with_the_mend(driver, monkeypatch, tmp_path):
    driver.absent = True
    with pytest.raises(TransportError, match=r"cannot be opened .*nothing there") as refused:
        camera()
    assert "\n" not in str(refused.value)
    monkeypatch.setattr(virtual_camera.sys, "platform", "linux")
    monkeypatch.setattr(virtual_camera, "virtual_devices", lambda: [])
    with pytest.raises(TransportError, match="there is no virtual camera; load one: sudo modprobe v4l2loopback"):
        camera(backend="")
    assert virtual_devices(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("flags", "size", "fps"),
    [
        ({}, (512, 512), 30),
        ({"video.size": "256", "video.fps": "25", "camera.fps": "0"}, (256, 256), 25),
        ({"camera.shape": "wide", "camera.fps": "60"}, (1280, 720), 60),
    ],
)
def test_the_doctor_opens_the_camera_as_it_will_be_opened(elsewhere, driver, flags, size, fps):
    """A meeting that holds it may hold it at just that shape."""
    settings = load_settings({"camera.backend": "recording"} | flags)
    assert doctor.check_camera(settings) == (doctor.GOOD, "recording can be opened")
    assert [(each["size"], each["fps"]) for each in driver.opened] == [(size, fps)]
    assert driver.closed == 1 and driver.sent == []


def test_only_devices_without_hardware_are_taken(tmp_path):
    shown = tmp_path / "class"
    shown.mkdir()
    for name, place in (
        ("video0", "pci/usb"),
        ("video2", "virtual"),
        ("video10", "virtual"),
        ("v4l-subdev0", "virtual"),
    ):
        real = tmp_path / "devices" / place / name
        real.mkdir(parents=True)
        (real / "name").write_text(f"the {name}\n")
        (shown / name).symlink_to(real)
    assert virtual_devices(shown) == [("/dev/video2", "the video2"), ("/dev/video10", "the video10")]


def test_the_wide_picture_holds_the_head_in_the_middle(driver):
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    image[..., 0] = 250
    for background in ("blur", "#102030"):
        wide = compose(image, 1280, 720, background)
        assert wide.shape == (720, 1280, 3)
        assert (wide[:, 280:1000] == (250, 0, 0)).all()
        around = wide[360, 20]
        assert tuple(around) == ((16, 32, 48) if background != "blur" else (175, 0, 0))
    sink = camera(shape="wide", fps=60)
    sink.send(media(0, 80))
    wait_for(lambda: driver.sent)
    sink.close()
    assert driver.opened[0]["size"] == (1280, 720)
    back = cv2.cvtColor(driver.sent[0][1].reshape(1080, 1280), cv2.COLOR_YUV2RGB_I420)
    assert abs(int(back[360, 640, 0]) - 80) < 3


def test_colours():
    assert parse_colour("#10fF00") == (16, 255, 0)
    for wrong in ("red", "#12345", "#1234567", "#gg0000"):
        with pytest.raises(ValueError):
            parse_colour(wrong)
    red = to_i420(np.full((2, 2, 3), (255, 0, 0), np.uint8))
    assert red.tolist() == pytest.approx([82, 82, 82, 82, 90, 240], abs=1)  # BT.601, limited range


# --- sound devices


class Stream:
    """A sound device's stream that a test moves by hand. late: seconds from a block being asked for to its sounding."""

    made: list = []  # noqa: RUF012 - one list for a test is the point

    def __init__(self, **given_):
        self.given, self.running = given_, False
        Stream.made.append(self)

    def start(self):
        self.running = True

    def abort(self):
        self.running = False

    def close(self):
        pass

    def ask(self, frames: int, late: float) -> np.ndarray:
        out = np.full((frames, self.given["channels"]), np.nan, np.float32)
        self.given["callback"](out, frames, SimpleNamespace(outputBufferDacTime=late, currentTime=0.0), None)
        return out[:, 0]


@pytest.fixture
def sound(monkeypatch):
    """Stands where sounddevice and PortAudio would be."""
    devices = [
        {"name": "Mic A", "max_input_channels": 1, "max_output_channels": 0, "default_samplerate": 44100.0},
        {"name": "Speakers", "max_input_channels": 0, "max_output_channels": 2, "default_samplerate": 48000.0},
        {"name": "Cable In", "max_input_channels": 2, "max_output_channels": 2, "default_samplerate": 16000.0},
    ]
    Stream.made = []
    module = SimpleNamespace(
        query_devices=lambda: devices,
        default=SimpleNamespace(device=[0, 1]),
        InputStream=Stream,
        OutputStream=Stream,
        PortAudioError=type("PortAudioError", (Exception,), {}),
        devices=devices,
    )
    for user in ("transports.audio_device", "transports.microphone"):
        monkeypatch.setattr(f"{user}.load_sounddevice", lambda: module)
    return module


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(("device", "late"), [("Cable", 0.0), ("Cable", 0.08), ("", 0.03)])
@pytest.mark.parametrize("lag", [None, 0.2])
def test_voice_is_heard_when_its_picture_is_seen(sound, device, late, lag):
    clock = Clock()
    sink = AudioDeviceSink(device, clock)
    sink.open(FORM)
    (stream,) = Stream.made
    rate = stream.given["samplerate"]
    block = rate // 100
    begins, heard, index = clock.now, [], 0
    stream.ask(block, late)
    if lag is not None:
        sink.align(lag)
    for _ in range(150):
        while begins + index / 45 <= clock.now:
            sink.send(media(index, None, 0.5 if index == 27 else 0.0, begins))  # 0.6 s: one frame of sound
            index += 1
        heard.append((clock.now + late, stream.ask(block, late)))
        clock.now += 0.01
    first = next(when + np.flatnonzero(out > 0.2)[0] / rate for when, out in heard if (out > 0.2).any())
    expected = max(lag or 0, late + 0.01 + audio_device.SLACK_SECONDS)
    assert sink.lag() == pytest.approx(late + 0.01 + audio_device.SLACK_SECONDS)
    assert first - begins - 27 / 45 == pytest.approx(expected, abs=0.003)
    assert sum((out > 0.2).sum() for _, out in heard) == pytest.approx(rate / 45, abs=0.003 * rate)
    assert not np.isnan(np.concatenate([out for _, out in heard])).any()
    sink.close()
    assert not stream.running


def test_a_device_with_another_clock_is_followed(sound):
    clock = Clock()
    sink = AudioDeviceSink("Cable", clock)
    sink.open(FORM)
    (stream,) = Stream.made
    begins, index, positions = clock.now, 0, []
    for _ in range(3000):
        while begins + index / 45 <= clock.now:
            sink.send(media(index, None, 0.1, begins))
            index += 1
        out = stream.ask(160, 0.02)
        clock.now += 0.01 * 1.001  # slow by 1000 ppm: 30 ms over the run
        positions.append(sink._position)
    assert (out > 0).all()
    assert set(np.diff(positions)) <= {159, 160, 161}
    wanted = (clock.now - 0.01 + 0.02 - sink.lag() - begins) * 16_000
    assert abs(sink._position - 160 - wanted) < 0.008 * 16_000


@pytest.mark.parametrize(("device", "block"), [("Cable", 160), ("", 480)])  # the second through a resampler
def test_an_interrupt_silences_what_waits(sound, device, block):
    clock = Clock()
    sink = AudioDeviceSink(device, clock)
    sink.open(FORM)
    (stream,) = Stream.made
    stream.ask(block, 0.02)
    sink.align(0.3)
    begins, index, heard = clock.now, 0, []
    for turn in range(80):
        if turn == 40:
            sink.interrupt()
        while begins + index / 45 <= clock.now:
            sink.send(media(index, None, 0.5 if turn < 40 else 0.0, begins))
            index += 1
        heard.append(stream.ask(block, 0.02))
        clock.now += 0.01
    assert heard[39].any()
    assert not np.concatenate(heard[40:]).any()


def test_lost_frames_are_silence_in_the_right_place(sound):
    clock = Clock()
    sink = AudioDeviceSink("", clock)  # 48 kHz: through the resampler
    sink.open(FORM)
    begins = clock.now
    for index in [*range(10), *range(20, 40)]:
        sink.send(media(index, None, 0.5, begins))
    out = sink._line.read(0, 40 * 48_000 // 45)
    assert (out[: 9 * 1066] > 0.4)[200:].all()
    assert not out[10 * 1067 + 200 : 20 * 1066 - 200].any()
    assert (out[20 * 1067 + 200 : -1000] > 0.4).all()


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 90)), max_size=20))
@trying(max_examples=50)
def test_the_play_line_is_what_was_written(steps):
    line = PlayLine(40)  # holds 120
    truth: dict[int, float] = {}
    end = 0
    for gap, count in steps:
        at = end + gap
        samples = np.arange(1, count + 1, dtype=np.float32) + len(truth)
        truth |= dict(zip(range(at, at + count), samples.tolist(), strict=True))
        line.write(at, samples)
        end = at + count
    expected = [truth.get(i, 0.0) for i in range(max(0, end - 120), end + 20)]
    assert line.read(max(0, end - 120), len(expected)).tolist() == expected
    line.hush()
    assert not line.read(0, end + 20).any()


def test_an_output_that_goes_away_is_opened_again(sound, monkeypatch):
    clock = Clock()
    sink = AudioDeviceSink("Speakers", clock)
    sink.open(FORM)
    assert sink.check() == ""
    clock.now += 3
    devices, sound.devices[:] = list(sound.devices), sound.devices[:1]
    assert "Speakers: no such output; there are: none" in sink.check()
    sound.devices[:] = devices
    for _ in range(5):
        clock.now += 1
        sink.check()
    assert len(Stream.made) > 1
    assert sink.check() == ""
    sink.close()


def test_the_microphone_gives_what_it_hears(sound):
    clock, got = Clock(), []
    source = MicrophoneSource("", clock)
    source.open(lambda samples, rate: got.append((samples, rate)) or True, lambda: None)
    (stream,) = Stream.made
    assert (stream.given["samplerate"], stream.given["channels"]) == (44100, 1)
    buffer = np.full((441, 1), 0.5, np.float32)
    stream.given["callback"](buffer, 441, None, None)
    buffer[:] = 0
    assert got[0][1] == 44100
    assert (got[0][0] == 0.5).all()  # its own copy
    assert source.check() == ""
    clock.now += 5
    assert "plugged in" in source.check()
    assert len(Stream.made) == 2
    source.close()
    Stream.made[-1].given["callback"](buffer, 441, None, None)
    assert len(got) == 1


def test_devices_are_found_by_number_name_and_part(sound):
    assert find_device(sound, "", output=True).name == "Speakers"
    assert find_device(sound, "2", output=True).name == "Cable In"
    assert find_device(sound, "cable", output=False).name == "Cable In"
    with pytest.raises(TransportError, match="nothing: no such microphone; there are: 0: Mic A; 2: Cable In"):
        find_device(sound, "nothing", output=False)
    with pytest.raises(TransportError, match="several outputs"):
        find_device(sound, "a", output=True)
    sound.devices[:] = []
    with pytest.raises(TransportError, match="this machine has no microphone"):
        find_device(sound, "", output=False)


@pytest.mark.parametrize(
    ("raised", "told"), [(OSError("PortAudio library not found"), "libportaudio2"), (ImportError(), "pip install")]
)
def test_a_missing_sound_library_is_one_line(monkeypatch, raised, told):
    def absent(_):
        raise raised

    monkeypatch.setattr(portaudio.importlib, "import_module", absent)
    with pytest.raises(TransportError, match=told) as refused:
        load_sounddevice()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("late", [0.01, 0.15])
def test_picture_and_voice_meet_whichever_is_slower(driver, sound, late):
    """A flash and a click of one frame, through the camera and a sound device that is quick, or slow as Bluetooth."""
    picture, ear = VirtualCameraSink(CameraOptions(backend="recording", fps=60)), AudioDeviceSink("Cable")
    for sink in (picture, ear):
        sink.open(FORM)
    (stream,) = Stream.made
    heard, stop = [], threading.Event()

    def play():
        begins, turn = time.monotonic(), 0
        while not stop.wait(max(0.0, begins + turn * 0.01 - time.monotonic())):
            heard.append((time.monotonic() + late, stream.ask(160, late)))
            turn += 1

    thread = threading.Thread(target=play)
    thread.start()
    begins = time.monotonic()
    for index in range(75):
        time.sleep(max(0.0, begins + index / 45 - time.monotonic()))
        for sink in (picture, ear):
            sink.send(media(index, 250 * (index == 54), 0.5 * (index == 54), begins))
        if index % 15 == 14:
            lag = max(sink.lag() for sink in (picture, ear))
            for sink in (picture, ear):
                sink.align(lag)
    wait_for(lambda: any(out.any() for _, out in heard) and any(frame[0] > 100 for _, frame in driver.sent))
    stop.set()
    thread.join()
    for sink in (picture, ear):
        sink.close()
    seen = next(when for when, frame in driver.sent if frame[0] > 100)
    click = next(when + np.flatnonzero(out)[0] / 16_000 for when, out in heard if out.any())
    # the camera shows a picture at its next moment, up to 17 ms on; 45 ms is what people notice
    assert abs(seen - click) < 0.045


# --- the recording


def record(path, frames) -> tuple[list[int], np.ndarray]:
    sink = RecordingSink(path, {"comment": "test"})
    sink.open(FORM)
    for frame in frames:
        sink.send(frame)
    sink.close()
    with av.open(str(path)) as container:
        levels = [int(f.to_ndarray(format="gray").mean()) for f in container.decode(video=0)]
    with av.open(str(path)) as container:
        parts = list(container.decode(audio=0))
    samples = np.concatenate([part.to_ndarray()[0] for part in parts])
    return levels, samples[max(0, -parts[0].pts) :]


def test_a_recording_keeps_time_over_what_was_lost(tmp_path):
    loud = {3, 4, 20}
    frames = [
        media(i, None if i in (10, 11) else 40 + 160 * (i in loud), 0.5 * (i in loud))
        for i in [*range(8), *range(10, 30)]
    ]
    levels, samples = record(tmp_path / "a.mp4", [media(-2, None, 0.5), *frames])
    assert len(levels) == 30
    assert [i for i, level in enumerate(levels) if level > 120] == [3, 4, 20]
    for index in range(1, 29):
        part = samples[index * 16_000 // 45 + 60 : (index + 1) * 16_000 // 45 - 60]
        assert (np.abs(part).mean() > 0.2) == (index in loud), index


def test_a_slow_encoder_loses_pictures_and_no_sound(tmp_path, monkeypatch):
    from transports import recording

    monkeypatch.setattr(recording, "MAX_PICTURES", 2)
    sink = RecordingSink(tmp_path / "a.mp4")
    sink.open(FORM)
    with sink._changed:  # the encoder's thread waits
        for index in range(20):
            sink.send(media(index, 9))
    assert 0 < sink.dropped <= 18
    assert sink.check().startswith(f"{tmp_path / 'a.mp4'}: encoder or disk are too slow, and pictures are left out;")
    assert sink.check() == ""  # since then none was
    sink.close()
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert len(list(container.decode(video=0))) == 20


def test_a_recording_that_cannot_be_is_said_early(tmp_path):
    with pytest.raises(OutputError, match="there is no folder"):
        RecordingSink(tmp_path / "none" / "a.mp4")


def test_a_recording_that_ends_before_it_began_leaves_nothing(tmp_path):
    sink = RecordingSink(tmp_path / "a.mp4")
    sink.open(FORM)
    sink.send(media(0, None, 0.5))
    sink.close()
    assert sink.frames == 0
    assert list(tmp_path.iterdir()) == []


CUT_OFF = """
import os, pathlib, signal, sys
from test_live_outputs import FORM, media, wait_for
from transports.recording import RecordingSink
sink = RecordingSink("a.mp4", {"comment": "made by AI"})
sink.open(FORM)
for index in range(180):
    sink.send(media(index, 200 if index % 45 == 20 else 40, 0.5 if index % 45 == 20 else 0.0))
    wait_for(lambda: sink.frames > index - 30, 30)
wait_for(lambda: sink.frames == 180, 30)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_recording_that_is_cut_off_holds_what_came_until_then(tmp_path):
    """Killed at once after four seconds: all but the last one or two are there, and say what they are."""
    (tmp_path / "a.mp4").write_text("what was there before")
    here = Path(__file__).parent
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    killed = subprocess.run([sys.executable, "-c", CUT_OFF], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "a.mp4").read_text() == "what was there before"
    (part,) = tmp_path.glob(".a-*.part")
    assert cut_off(tmp_path / "a.mp4") == [part]
    with av.open(str(part)) as container:
        assert container.metadata["comment"] == "made by AI"
        frames = list(container.decode(video=0))
    assert [frame.pts * frame.time_base for frame in frames] == [Fraction(index, 45) for index in range(len(frames))]
    shown = [index for index, frame in enumerate(frames) if frame.to_ndarray(format="gray").mean() > 120]
    assert shown[:2] == [20, 65]
    with av.open(str(part)) as container:
        parts = list(container.decode(audio=0))
    samples = np.abs(np.concatenate([part.to_ndarray()[0] for part in parts])[max(0, -parts[0].pts) :])
    for index in (20, 65):
        assert samples[index * 16_000 // 45 + 60 : (index + 1) * 16_000 // 45 - 60].mean() > 0.2
        assert samples[(index - 9) * 16_000 // 45 : (index - 1) * 16_000 // 45].max() < 0.1


def test_a_recording_gets_a_name_that_is_free(tmp_path):
    taken = tmp_path / "rec.mp4"
    assert next_take(taken) == taken
    taken.touch()
    assert next_take(taken) == tmp_path / "rec-2.mp4"
    (tmp_path / "rec-2.mp4").touch()
    assert next_take(taken) == tmp_path / "rec-3.mp4"


def test_a_recording_whose_next_name_would_be_too_long_is_refused_in_one_line(tmp_path):
    taken = tmp_path / f"{'a' * 251}.mp4"
    taken.touch()
    with pytest.raises(TransportError, match=r"a\.mp4: is there, and no name for another one \(File name too long\)"):
        next_take(taken)


def test_what_was_cut_off_is_found_by_its_name_where_it_can_be_played(tmp_path):
    def part(name: str, holds: bytes = b"....ftypisom....moov") -> Path:
        (tmp_path / name).write_bytes(holds)
        return tmp_path / name

    found = [part(".re[c-0123abcd.part"), part(".re[c-2-0123abcd.part")]
    for name in (".re[cord-0123abcd.part", ".re[c-0123abcd.mp4", "re[c-0123abcd.part", ".re[c-xyz.part"):
        part(name)
    part(".re[c-00000000.part", b"")  # cut off before its first second
    part(".re[c-11111111.part", b"....ftypisom....mdat")  # a clip of `ifmdm render`
    assert sorted(cut_off(tmp_path / "re[c.mp4")) == sorted(found)


def test_a_recording_that_fills_the_disk_keeps_what_came_before(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (180, SIZE, SIZE, 3), np.uint8)
    sink = RecordingSink(tmp_path / "a.mp4")
    sink.open(FORM)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limit[1]))
        for index, image in enumerate(noise):
            sink.send(replace(media(index), image=image))
            wait_for(lambda index=index: sink.check() or sink.frames > index - 30)
        with pytest.raises(TransportError, match=r"cannot be written \(.*\); what came before is in .*\.part$"):
            sink.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    (part,) = tmp_path.iterdir()
    with av.open(str(part)) as container:
        assert len(list(itertools.islice(container.decode(video=0), 90))) == 90


def test_a_recording_whose_end_the_disk_does_not_take_says_where_it_is(tmp_path, monkeypatch):
    from transports import recording

    monkeypatch.setattr(recording, "CLOSE_SECONDS", 0.1)
    sink, slow = RecordingSink(tmp_path / "a.mp4"), threading.Event()
    sink.open(FORM)
    write = sink._writer.write_video
    monkeypatch.setattr(sink._writer, "write_video", lambda image: slow.wait(10) and write(image))
    sink.send(media(0))
    with pytest.raises(TransportError, match=r"did not take the end of the recording.*what it took is in .*\.part$"):
        sink.close()
    slow.set()
    sink._thread.join()
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


# --- voices


def test_a_clip_is_given_at_the_speed_of_speech():
    got, done = [], threading.Event()
    samples = np.arange(4800, dtype=np.float32) / 4800
    source = ClipSource(samples, 16_000)
    began = time.monotonic()
    source.open(lambda part, rate: got.append((time.monotonic() - began, part)) or True, done.set)
    assert done.wait(5)
    source.close()
    assert (np.concatenate([part for _, part in got]) == samples).all()
    assert all(when >= at * 0.02 - 0.002 for at, (when, _) in enumerate(got))
    assert source.check() == ""


def test_a_clip_loops_until_it_is_closed_and_waits_for_room():
    got, room = [], itertools.cycle([False, True])
    source = ClipSource(np.ones((160, 2), np.float32), 16_000, loop=True, pause=0.0)

    def deliver(part, rate):
        taken = next(room)
        if taken:
            got.append(part)
        return taken

    source.open(deliver, lambda: pytest.fail("a loop has no end"))
    wait_for(lambda: len(got) > 3)
    source.close()
    after = len(got)
    time.sleep(0.05)
    assert len(got) == after


def test_a_clip_that_is_interrupted_rests_until_it_is_asked_for_again():
    """In its voice and in its pause alike, and then it is heard from its beginning."""
    got, samples = [], np.arange(1, 3201, dtype=np.float32)
    source = ClipSource(samples, 16_000, loop=True, pause=0.3)
    source.open(lambda part, rate: got.append(part) or True, lambda: pytest.fail("a loop has no end"))
    for heard in (3, 10):  # of ten chunks
        wait_for(lambda heard=heard: len(got) == heard)
        assert not source.resting
        source.interrupt()
        assert source.resting
        time.sleep(0.05)
        count = len(got)
        assert count <= heard + 1
        time.sleep(0.5)
        assert len(got) == count
        got.clear()
        source.play()
        wait_for(lambda: got)
        assert not source.resting and got[0][0] == 1
        source.interrupt()  # and at once again
        got.clear()
        source.play()
        wait_for(lambda: any(part[0] == 1 for part in got))
        while got[0][0] != 1:  # one may have been on its way
            got.pop(0)
    source.interrupt()
    source.close()
    assert not source._thread.is_alive()


def test_no_chunk_of_a_clip_is_delivered_once_it_is_interrupted():
    """Not even one that was on its way."""
    source, inside, go, got = ClipSource(np.ones(16_000, np.float32), 16_000), threading.Event(), threading.Event(), []

    def deliver(part, rate):
        inside.set()
        go.wait(5)
        got.append(part)
        return True

    done = threading.Event()
    source.open(deliver, done.set)
    assert inside.wait(5)
    interrupting = threading.Thread(target=source.interrupt)
    interrupting.start()
    interrupting.join(0.1)
    assert interrupting.is_alive() and not got
    go.set()
    interrupting.join(5)
    assert not interrupting.is_alive() and len(got) == 1
    assert done.wait(5) and len(got) == 1
    source.close()


def test_a_clip_without_a_loop_ends_at_an_interrupt():
    done = threading.Event()
    source = ClipSource(np.ones(160_000, np.float32), 16_000)
    source.open(lambda part, rate: True, done.set)
    source.interrupt()
    assert done.wait(5) and not source.resting
    source.close()


@pytest.mark.parametrize(("encoding", "kind"), [("s16le", "<i2"), ("f32le", "<f4")])
def test_raw_sound_comes_whole(encoding, kind):
    data = (np.arange(1, 4001) * (1 if kind == "<i2" else 1e-4)).astype(kind).reshape(-1, 2)
    got, done, room = [], threading.Event(), itertools.cycle([True, True, False])

    pipe = io.BytesIO(data.tobytes() + b"x")  # half a sample at the end is no sample
    source = PcmSource(pipe, encoding, 16_000, 2)

    def deliver(part, rate):
        if next(room):
            got.append(part)
            return True
        return False

    source.open(deliver, done.set)
    assert done.wait(5)
    assert (np.concatenate(got) == data).all()
    assert got[0].dtype == (np.int16 if kind == "<i2" else np.float32)
    assert source.check() == ""


def test_raw_sound_in_odd_pieces():
    data = np.arange(1, 1001, dtype="<i2")
    pieces = iter([data.tobytes()[at : at + 7] for at in range(0, 2000, 7)])
    pipe, got, done = SimpleNamespace(read=lambda _: next(pieces, b"")), [], threading.Event()
    PcmSource(pipe).open(lambda part, rate: got.append(part) or True, done.set)
    assert done.wait(5)
    assert (np.concatenate(got)[:, 0] == data).all()


def test_nobody_types_sound():
    with pytest.raises(TransportError, match="standard input is a terminal"):
        PcmSource(SimpleNamespace(isatty=lambda: True)).open(None, None)


def test_an_unknown_encoding_is_refused():
    with pytest.raises(TransportError, match="u8: no encoding of raw sound; give s16le or f32le"):
        PcmSource(io.BytesIO(), "u8")
