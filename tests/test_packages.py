"""What the packages below must have, what works without some of them, and their licences."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, distributions, version
from pathlib import Path

import av
import numpy as np
import pytest
from aiohttp import web
from aiortc import RTCRtpReceiver

from plugin import doctor, render
from plugin.connections import Connection
from plugin.settings import settings_for_measuring
from transports import file
from transports.file import Mp4Writer, encoder_note, has_encoder, video_encoder
from transports.media import TransportError
from transports.webrtc import private
from transports.webrtc.encoders import VideoEncoder
from transports.webrtc.options import WebRtcOptions, encodable
from transports.webrtc.publish import WhipOptions

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = [each for extra in PROJECT["optional-dependencies"].values() for each in extra]


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", name)[0]).lower()


# --- private parts


def test_every_private_part_that_is_reached_into_is_there():
    assert private.missing() == []


def test_a_private_part_that_is_gone_is_named(monkeypatch):
    monkeypatch.setattr(private, "PARTS", (*private.PARTS, (RTCRtpReceiver, ("_RTCRtpReceiver__other_buffer",))))
    assert private.missing() == [f"RTCRtpReceiver._RTCRtpReceiver__other_buffer of aiortc {version('aiortc')}"]
    assert "other_buffer" not in "".join(RTCRtpReceiver.__init__.__code__.co_names)


def test_every_private_part_of_aiohttp_that_connections_use_is_there():
    """Read from the source, so that none is forgotten."""
    source = (ROOT / "plugin" / "connections.py").read_text().partition("class Connection(")[2].partition("\nclass ")[0]
    used = set(re.findall(r"self\.(_[a-z]\w+)", source)) - set(Connection.__slots__)
    there = {name for owner in web.RequestHandler.__mro__ for name in getattr(owner, "__slots__", ())}
    assert used >= {"_parser", "_messages", "_max_msg_queue_size"}
    assert used <= there


def test_the_private_part_that_the_bench_s_viewer_reads_is_there():
    assert "_RTCRtpReceiver__timestamp_mapper" in (ROOT / "plugin" / "bench_viewer.py").read_text()
    assert "_RTCRtpReceiver__timestamp_mapper" in RTCRtpReceiver.__init__.__code__.co_names


@pytest.mark.parametrize("name", ["aiohttp", "aioice", "aiortc", "sounddevice"])
def test_what_is_reached_into_is_bound_to_the_minor_version_that_was_tested(name):
    """Private parts may go with any of them."""
    (wanted,) = [each for each in PROJECT["dependencies"] if plain(each) == name]
    major, minor = map(int, version(name).split(".")[:2])
    assert re.fullmatch(rf"{name}>={major}\.{minor},<{major}\.{minor + 1}", wanted), wanted


def test_sounddevice_can_start_portaudio_anew():
    source = Path(distribution("sounddevice").locate_file("sounddevice.py")).read_text()
    assert {"_terminate", "_initialize"} <= set(re.findall(r"^def (\w+)\(\):", source, re.M))


# --- without x264


@pytest.fixture
def no_x264(monkeypatch):
    """PyAV as it is on an FFmpeg without GPL code, as far as anybody here asks it."""
    real = av.Codec

    def codec(name, mode="r"):
        if name in ("libx264", "libx265", "libopenh264"):
            raise av.codec.codec.UnknownCodecError(name)
        return real(name, mode)

    monkeypatch.setattr(file.av, "Codec", codec)


def test_with_the_wheels_files_are_h264():
    assert video_encoder() == "libx264" and encoder_note() == "" and has_encoder("mpeg4")
    options = WebRtcOptions()
    assert encodable(options) is options


@pytest.mark.parametrize("in_pieces", [False, True])
def test_without_x264_a_file_is_mpeg_4_and_says_so(no_x264, in_pieces, tmp_path):
    rows = np.linspace(30, 220, 128, dtype=np.uint8)
    picture = np.stack([*np.meshgrid(rows, rows), np.full((128, 128), 90, np.uint8)], -1)
    path = tmp_path / "a.mp4"
    with Mp4Writer(path, width=128, height=128, fps=45, audio_rate=16_000, in_pieces=in_pieces) as writer:
        for _ in range(90):
            writer.write_video(picture)
            writer.write_audio(np.zeros(16_000 // 45, np.float32))
    with av.open(str(path)) as clip:
        assert clip.streams.video[0].codec_context.name == "mpeg4"
        frames = [(each.time, each.to_ndarray(format="rgb24")) for each in clip.decode(video=0)]
    assert [time for time, _ in frames] == pytest.approx([n / 45 for n in range(90)], abs=0.001)
    assert np.abs(frames[-1][1].astype(int) - picture).mean() < 4
    assert encoder_note() == (
        "PyAV's FFmpeg has no x264: the pictures of an MP4 file are MPEG-4 Part 2, which browsers do not play "
        "(docs/licences.md)"
    )


def test_without_x264_viewers_get_vp8_and_what_needs_h264_is_refused(no_x264, caplog, monkeypatch, tmp_path):
    assert encodable(WebRtcOptions()).codecs == ("vp8",)
    (told,) = [record.getMessage() for record in caplog.records]
    assert told == "WebRTC without h264: PyAV's FFmpeg cannot encode that; viewers get vp8"
    with pytest.raises(TransportError, match="cannot encode that; give vp8"):
        encodable(WebRtcOptions(("h264",)))
    with pytest.raises(TransportError, match="cannot encode that; give vp8"):
        WhipOptions("https://host/whip")
    assert WhipOptions("https://host/whip", codec="vp8").codec == "vp8"
    with pytest.raises(TransportError, match="has no libx264"):
        VideoEncoder("h264", 128, 128, 45, 1_000_000)
    VideoEncoder("vp8", 128, 128, 45, 1_000_000)
    monkeypatch.chdir(tmp_path)
    state, told = doctor.check_recording(settings_for_measuring({"live.record": "a.mp4"}))
    assert state == doctor.POOR and told == f"a.mp4 can be written; {encoder_note()}"


def test_without_x264_render_says_so_once(no_x264, monkeypatch, tmp_path, capsys):
    class Head:
        def push(self, samples):
            return []

        def finish(self):
            return [type("Frame", (), {"image": np.zeros((128, 128, 3), np.uint8)})] * 3

    monkeypatch.chdir(tmp_path)
    settings = settings_for_measuring({"video.size": "128", "render.output": "o.mp4"})
    assert render.render(settings, lambda *_: Head()).frames == 3
    assert capsys.readouterr().err.count("no x264") == 1


# --- licences

TEXT = (ROOT / "docs" / "licences.md").read_text()
#: Libraries under the GPL that wheels of FFmpeg and its like carry.
GPL_LIBRARIES = ("x264", "x265", "xvid", "postproc", "vidstab", "rubberband", "cdio", "frei0r", "readline")


def licence_of(package) -> str:
    about = package.metadata
    given = [about.get("License-Expression", ""), (about.get("License") or "").partition("\n")[0]]
    return " ".join([*given, *(each for each in about.get_all("Classifier") or [] if each.startswith("License"))])


def rows() -> dict[str, str]:
    """The licence that the page gives for each package, by its plain name."""
    found = {}
    for line in TEXT.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if line.startswith("| `"):
            names = [plain(name) for name in re.findall(r"`([\w.-]+)`", cells[1])]
            found |= dict.fromkeys(names, cells[2] if not re.fullmatch(r"[a-z, ]+", cells[2]) else cells[3])
    return found


@pytest.mark.parametrize("requirement", sorted({plain(each) for each in [*PROJECT["dependencies"], *EXTRAS]}))
def test_the_licence_of_every_dependency_is_told_as_the_package_tells_it(requirement):
    told = rows()[requirement]
    try:
        licence = licence_of(distribution(requirement))
    except PackageNotFoundError:
        return  # of an extra that is not installed; it is listed all the same
    for word in ("MIT", "BSD", "Apache", "MPL", "GPL", "BSL"):
        assert (word in licence) <= (word in told), (licence, told)


def test_everything_installed_that_is_gpl_is_named_as_such():
    """So that none comes in with another version of some package unnoticed."""
    gpl = {
        plain(package.metadata["Name"])
        for package in distributions()
        if re.search(r"(?<!L)(?<!Lesser )(\bA?GPL|General Public)", licence_of(package))
        and "Lesser" not in licence_of(package)
    }
    assert gpl <= {"pyvirtualcam"}
    assert "GPL" in rows()["pyvirtualcam"]


def test_every_gpl_library_inside_a_wheel_of_ours_is_named_at_its_package():
    carried = {
        (plain(package.metadata["Name"]), library)
        for package in distributions()
        for path in package.files or ()
        for library in GPL_LIBRARIES
        if re.match(rf"lib{library}\b", path.name)
    }
    assert {name for name, _ in carried} <= {"av"}
    lines = {plain(line.split("`")[1]): line for line in TEXT.splitlines() if line.startswith("| `")}
    for name, library in carried:
        assert f"lib{library}" in lines[name]


def test_the_readme_says_what_is_gpl():
    readme = (ROOT / "README.md").read_text().partition("## Licence")[2]
    assert all(word in readme for word in ("pyvirtualcam", "x264", "GPL", "docs/licences.md"))
