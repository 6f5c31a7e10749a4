"""What is asked of Linux's v4l2loopback; a file stands for the device here, and `make test-camera` asks the driver."""

import errno
import os
import struct
import sys
from types import SimpleNamespace

import pytest

from transports import loopback

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="v4l2loopback is Linux's")


@pytest.fixture
def device(tmp_path, monkeypatch):
    """A file, what its driver says it can do, and the files that were asked to stream."""
    path = tmp_path / "video7"
    path.touch()
    shared = SimpleNamespace(path=str(path), can=loopback._OUTPUT, streaming=[], refuses=False)

    def ioctl(file, request, argument):
        assert os.readlink(f"/proc/self/fd/{file}") == shared.path
        if request == loopback._QUERYCAP:
            return struct.pack("16s32s32s3I12x", b"v4l2 loopback", b"ifmdm", b"", 0, 0x85200000, shared.can)
        assert (request, argument) == (loopback._STREAMON, struct.pack("i", 2))
        if shared.refuses:
            raise OSError(errno.EINVAL, "no")
        shared.streaming.append(file)

    monkeypatch.setattr(loopback.fcntl, "ioctl", ioctl)
    monkeypatch.setattr(loopback, "is_device", lambda name: name == shared.path)
    return shared


def test_a_writer_is_made_to_give_the_device_back(device):
    with loopback.opening(device.path):
        file = os.open(device.path, os.O_WRONLY)
    assert device.streaming == [file]
    os.close(file)


def test_a_later_driver_that_refuses_is_no_failure(device):
    device.refuses = True
    with loopback.opening(device.path):
        file = os.open(device.path, os.O_WRONLY)
    os.close(file)


def test_what_was_refused_is_closed(device):
    """Each try would leave the device open once more, until the driver lets nobody in."""
    mine = os.open(device.path, os.O_RDONLY)
    for _ in range(3):
        with pytest.raises(RuntimeError), loopback.opening(device.path):
            os.open(device.path, os.O_WRONLY)
            raise RuntimeError("not a video output device")
    assert loopback._files(device.path) == {mine}
    os.close(mine)


@pytest.mark.parametrize(("can", "freed"), [(0, True), (loopback._OUTPUT, False), (loopback._CAPTURE, False)])
def test_only_a_device_that_nobody_uses_is_taken_back(device, can, freed):
    device.can = can
    loopback.free(device.path)
    assert bool(device.streaming) == freed
    assert loopback._files(device.path) == set()


def test_a_device_that_is_not_there_is_left_to_whoever_opens_it(device):
    os.unlink(device.path)
    loopback.free(device.path)
    with pytest.raises(OSError), loopback.opening(device.path):
        os.open(device.path, os.O_WRONLY)


def test_cameras_that_are_no_files_are_left_alone():
    with loopback.opening("OBS Virtual Camera"):
        pass


def test_the_size_a_device_is_held_at(tmp_path):
    (tmp_path / "video3").mkdir()
    for text, size in (("YU12:512x512@30\n", (512, 512)), ("YUYV:1280x720@1000/30\n", (1280, 720)), ("", None)):
        (tmp_path / "video3" / "format").write_text(text)
        assert loopback.held_size("/dev/video3", tmp_path) == size
    assert loopback.held_size("/dev/video4", tmp_path) is None
