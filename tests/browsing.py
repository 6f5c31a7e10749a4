"""A real browser and real processes of ours, for the tests that need them."""

import contextlib
import functools
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent / "browser"
ROOT = HERE.parent.parent
#: Where pictures of the page and figures are left for a person.
SHOWN = ROOT / ".cache" / "browser"
CLIENTS = HERE / "node_modules"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FIREFOX = next(filter(None, map(shutil.which, ("firefox-esr", "firefox"))), None)
PATIENCE = 40.0
#: Of Debian: GStreamer's webrtcbin, what it needs, and its bindings for the system's Python. install.sh names them too.
GSTREAMER = (
    "python3-gi", "gir1.2-gst-plugins-bad-1.0", "gstreamer1.0-plugins-bad", "gstreamer1.0-plugins-good",
    "gstreamer1.0-nice", "gstreamer1.0-libav",
)  # fmt: skip


def needs(*what: str) -> None:
    """Skip a test whose machine lacks something, with the mend; fail where IFMDM_REQUIRE_BROWSER is set."""
    lacks = {
        "chromium": CHROMIUM is None and "there is no Chromium: sudo apt-get install chromium",
        "firefox": FIREFOX is None and "there is no Firefox: sudo apt-get install firefox-esr",
        "node": shutil.which("node") is None and "there is no Node.js: sudo apt-get install npm",
        "gstreamer": not _has_webrtcbin()
        and f"GStreamer's webrtcbin is not there: sudo apt-get install {' '.join(GSTREAMER)}",
        "clients": not all((CLIENTS / name).is_dir() for name in _clients())
        and "others' clients are not there: npm ci --prefix tests/browser",
        "ffprobe": shutil.which("ffprobe") is None and "there is no ffprobe: sudo apt-get install ffmpeg",
    }
    for name in what:
        if lacks[name]:
            (pytest.fail if os.environ.get("IFMDM_REQUIRE_BROWSER") else pytest.skip)(lacks[name])


def _clients() -> list[str]:
    """The packages of npm that there must be; an earlier checkout may have installed fewer."""
    return list(json.loads((HERE / "package.json").read_text())["dependencies"])


@functools.cache
def _has_webrtcbin() -> bool:
    """Whether Debian's own Python reaches GStreamer's WebRTC."""
    look = """
import gi
gi.require_version("GstWebRTC", "1.0")
from gi.repository import Gst, GstWebRTC
Gst.init(None)
raise SystemExit(not all(map(Gst.ElementFactory.find, ("webrtcbin", "nicesrc", "srtpdec", "avdec_h264", "vp8dec"))))
"""
    return (
        Path("/usr/bin/python3").is_file()
        and subprocess.run(["/usr/bin/python3", "-c", look], capture_output=True, timeout=PATIENCE).returncode == 0
    )


class Program:
    """A process whose lines are kept. It is ended when it is left, whatever happened."""

    def __init__(self, command: Sequence[str | Path], stdin: int | None = None, cwd: Path | None = None) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("IFMDM_")}
        environment["PYTHONPATH"] = str(ROOT)
        self.process = subprocess.Popen(
            [str(word) for word in command], stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=environment, cwd=cwd,
        )  # fmt: skip
        self._said = b""

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.said()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def said(self) -> str:
        """Everything up to now, or to the end."""
        while not self.process.stdout.closed and select.select([self.process.stdout], [], [], 0)[0]:
            data = os.read(self.process.stdout.fileno(), 65536)
            if not data:
                break
            self._said += data
        return self._said.decode(errors="replace")

    def wait_for(self, pattern: str) -> re.Match[str]:
        until = time.monotonic() + PATIENCE
        while (found := re.search(pattern, self.said())) is None:
            assert time.monotonic() < until and self.process.poll() is None, f"never said {pattern}: {self.said()}"
            time.sleep(0.02)
        return found

    def terminate(self) -> float:
        """SIGTERM; the seconds that it took to end well."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE)
        assert self.process.returncode == 0, self.said()
        return time.monotonic() - began


class LiveHead(Program):
    """`ifmdm run` on a free port, in an empty folder."""

    def __init__(self, folder: Path, *flags: str, config: str = "") -> None:
        folder.mkdir(exist_ok=True)
        (folder / "config.toml").write_text(config)
        super().__init__([sys.executable, "-m", "plugin.cli", "run", "--port", "0", *flags], cwd=folder)
        self.address = self.wait_for(r"open (http://[^\s/]+)")[1]

    def get(self, path: str) -> dict:
        with urllib.request.urlopen(self.address + path, timeout=10) as answer:
            return json.load(answer)

    def wait_until(self, what, path: str = "/state") -> dict:
        """Wait for what the server tells at `path` to be so."""
        until = time.monotonic() + PATIENCE
        while not what(told := self.get(path)):
            assert time.monotonic() < until, told
            time.sleep(0.1)
        return told


def open_chromium(playwright, microphone: Path | None = None):
    """Chromium; microphone: a WAV file that is heard by it, over and over."""
    flags = [
        "--no-sandbox",
        "--autoplay-policy=no-user-gesture-required",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-renderer-backgrounding",
        "--use-fake-device-for-media-stream",
    ]
    if microphone is not None:
        flags.append(f"--use-file-for-fake-audio-capture={microphone}")
    return playwright.chromium.launch(executable_path=CHROMIUM, args=flags, handle_sigterm=False)


def open_firefox(playwright, **preferences):
    """Debian's own Firefox, over WebDriver BiDi. What it is told beside Playwright's preferences: it may have the
    microphone, which is a tone that it makes itself."""
    told = {"media.navigator.streams.fake": True, "media.navigator.permission.disabled": True}
    return playwright.firefox.launch(
        channel="moz-firefox", executable_path=FIREFOX, firefox_user_prefs=told | preferences, handle_sigterm=False
    )


def write_wav(path: Path, samples: np.ndarray, rate: int) -> Path:
    """samples: (n,) or (n, channels) float32 in [-1, 1]."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1 if samples.ndim == 1 else samples.shape[1], 2, rate, 0, "NONE", ""))
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return path


def probe(path: Path) -> dict[str, dict]:
    """What ffprobe says of a file's streams, by kind."""
    words = ["ffprobe", "-v", "error", "-count_frames", "-show_streams", "-of", "json", path]
    told = json.loads(subprocess.run(words, capture_output=True, check=True, timeout=PATIENCE).stdout)
    return {stream["codec_type"]: stream for stream in told["streams"]}
