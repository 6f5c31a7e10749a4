"""The MP4 writer, judged by decoding what it wrote."""

import itertools
import resource
import shutil
import subprocess
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transports.file import Mp4Writer, OutputError, check_output, supported_audio_rate

SIZE = 64


@dataclass
class Decoded:
    images: list[np.ndarray]
    times: list[Fraction]
    samples: np.ndarray  # (channels, n), the first one heard at 0
    rate: int


def writer(path: Path, **changes) -> Mp4Writer:
    return Mp4Writer(path, **{"width": SIZE, "height": SIZE, "fps": 25, "audio_rate": 16000} | changes)


def grey(level: int) -> np.ndarray:
    return np.full((SIZE, SIZE, 3), level, np.uint8)


def tone(n: int, rate: int) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 220 * np.arange(n) / rate)).astype(np.float32)


def decode(path: Path) -> Decoded:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        sound = list(container.decode(audio=0))
        rate = stream.rate
    samples = np.concatenate([frame.to_ndarray() for frame in sound], axis=1)
    first = round(sound[0].pts * sound[0].time_base * rate)
    samples = samples[:, -first:] if first < 0 else np.pad(samples, ((0, 0), (first, 0)))
    images = [f.reformat(format="rgb24", src_colorspace="ITU709").to_ndarray() for f in frames]
    return Decoded(images, [f.pts * f.time_base for f in frames], samples, rate)


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


#: As clips and as recordings are written.
WAYS = pytest.mark.parametrize("in_pieces", [False, True], ids=["at once", "in pieces"])


@WAYS
@pytest.mark.parametrize("fps", [1, 25, 30, 45, 60, 120])
def test_every_frame_is_there_at_its_exact_time(tmp_path, fps, in_pieces):
    count = 20
    with writer(tmp_path / "a.mp4", fps=fps, in_pieces=in_pieces) as out:
        for i in range(count):
            out.write_video(grey(10 * i))
            out.write_audio(tone(16000 * (i + 1) // fps - 16000 * i // fps, 16000))
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].average_rate == fps
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.audio[0].codec_context.name == "aac"
    seen = decode(tmp_path / "a.mp4")
    assert seen.times == [Fraction(i, fps) for i in range(count)]
    levels = [image.mean() for image in seen.images]
    assert levels == pytest.approx([10 * i for i in range(count)], abs=3)


@WAYS
@pytest.mark.parametrize(("rate", "kept"), [(8000, 8000), (44100, 44100), (96000, 48000)])
@pytest.mark.parametrize("channels", [1, 2])
def test_the_voice_keeps_rate_channels_length_and_sound(tmp_path, rate, kept, channels, in_pieces):
    n = rate + rate // 100
    voice = np.stack([tone(n, rate) * (c + 1) for c in range(channels)], axis=1)
    with writer(tmp_path / "a.mp4", audio_rate=rate, audio_channels=channels, in_pieces=in_pieces) as out:
        for _ in range(26):
            out.write_video(grey(100))
        out.write_audio(voice)
    with av.open(str(tmp_path / "a.mp4")) as container:
        audio, video = container.streams.audio[0], container.streams.video[0]
        assert audio.start_time == video.start_time == 0
        assert float(audio.duration * audio.time_base) == pytest.approx(n / rate, abs=1e-3)
        assert abs(audio.duration * audio.time_base - video.duration * video.time_base) < Fraction(1, 25)
    heard = decode(tmp_path / "a.mp4")
    assert (heard.rate, len(heard.samples)) == (kept, channels)
    expected = np.stack([tone(n * kept // rate, kept) * (c + 1) for c in range(channels)])
    middle = slice(2000, n * kept // rate - 2000)
    assert np.abs(heard.samples[:, middle] - expected[:, middle]).max() < 0.02


@WAYS
@pytest.mark.parametrize(("fps", "rate"), [(25, 16000), (45, 44100), (60, 48000), (30, 96000), (45, 10000)])
def test_a_flash_and_a_click_of_one_instant_stay_together(tmp_path, fps, rate, in_pieces):
    flash = fps // 2
    voice = np.zeros(rate, np.float32)
    voice[flash * rate // fps] = 0.9
    with writer(tmp_path / "a.mp4", fps=fps, audio_rate=rate, in_pieces=in_pieces) as out:
        for i in range(fps):
            out.write_video(grey(255 if i == flash else 0))
            out.write_audio(voice[i * rate // fps : (i + 1) * rate // fps])
    seen = decode(tmp_path / "a.mp4")
    flashed = seen.times[int(np.argmax([image.mean() for image in seen.images]))]
    clicked = np.argmax(np.abs(seen.samples[0])) / seen.rate
    assert flashed == Fraction(flash, fps)
    assert clicked == pytest.approx(float(flashed), abs=0.002)


def test_colours_survive(tmp_path):
    y, x = np.mgrid[0:256, 0:256] / 255
    smooth = np.round(np.stack([x, y, 1 - x * y], axis=-1) * 255).astype(np.uint8)
    with writer(tmp_path / "a.mp4", width=256, height=256) as out:
        for _ in range(10):
            out.write_video(smooth)
    with av.open(str(tmp_path / "a.mp4")) as container:
        frame = list(container.decode(video=0))[5]
    assert (frame.color_range, frame.colorspace, frame.color_primaries, frame.color_trc) == (1, 1, 1, 1)
    # As a player does it: what the file says of its colours is all that the decoder is told.
    error = frame.to_ndarray(format="rgb24").astype(float) - smooth
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 35
    assert np.abs(error.mean(axis=(0, 1))).max() < 3


@WAYS
def test_tags_can_be_read_and_the_index_of_a_clip_comes_first(tmp_path, in_pieces):
    tags = {"comment": "made by a machine", "description": "é ✓"}
    with writer(tmp_path / "a.mp4", tags=tags, in_pieces=in_pieces) as out:
        out.write_video(grey(0))
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.metadata["comment"] == "made by a machine"
        assert container.metadata["description"] == "é ✓"
    data = (tmp_path / "a.mp4").read_bytes()
    assert in_pieces or data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("count", [1, 45, 46, 91, 200])  # pieces of which the last is whole, or a single picture
def test_a_file_in_pieces_reads_as_one_at_once_when_it_is_closed(tmp_path, count):
    """By us, and where it is installed by an older FFmpeg, which does not know how it was written."""
    for name in ("once", "pieces"):
        with writer(tmp_path / f"{name}.mp4", fps=45, in_pieces=name == "pieces", tags={"comment": "AI"}) as out:
            for i in range(count):
                out.write_video(grey(i))
                out.write_audio(tone(16000 * (i + 1) // 45 - 16000 * i // 45, 16000))
    once, pieces = (decode(tmp_path / f"{name}.mp4") for name in ("once", "pieces"))
    assert pieces.times == once.times == [Fraction(i, 45) for i in range(count)]
    assert [image.mean() for image in pieces.images] == pytest.approx([image.mean() for image in once.images], abs=3)
    assert np.array_equal(once.samples, pieces.samples)
    if shutil.which("ffprobe"):
        shown = "format_tags=comment:stream=start_time,duration,nb_frames"
        command = ["ffprobe", "-v", "error", "-show_entries", shown, "-of", "csv", tmp_path / "pieces.mp4"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        video, audio, tag = (line.split(",") for line in done.stdout.splitlines())
        assert (video[1], video[3], audio[1], tag[1], done.stderr) == ("0.000000", str(count), "0.000000", "AI", "")
        assert [float(video[2]), float(audio[2])] == pytest.approx([count / 45] * 2, abs=0.002)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=12))
def test_the_cut_of_the_voice_makes_no_difference(tmp_path_factory, sizes):
    tmp_path = tmp_path_factory.mktemp("cut")
    voice = tone(sum(sizes) + 1, 16000)
    edges = np.cumsum([0, *sizes, 1])
    with writer(tmp_path / "whole.mp4") as whole, writer(tmp_path / "cut.mp4") as cut:
        for out in (whole, cut):
            out.write_video(grey(50))
        whole.write_audio(voice)
        for start, end in itertools.pairwise(edges):
            cut.write_audio(voice[start:end])
    assert np.array_equal(decode(tmp_path / "whole.mp4").samples, decode(tmp_path / "cut.mp4").samples)


def test_the_callers_array_is_free_after_the_call(tmp_path):
    image = grey(0)
    with writer(tmp_path / "a.mp4") as out:
        for i in range(10):
            image[...] = 20 * i
            out.write_video(image)
            image[...] = 255
        out.write_audio(tone(6400, 16000))
    seen = decode(tmp_path / "a.mp4")
    assert [image.mean() for image in seen.images] == pytest.approx([20 * i for i in range(10)], abs=3)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_writer_leaves_what_was_there(tmp_path, error):
    (tmp_path / "old.mp4").write_bytes(b"precious")
    for name in ("old.mp4", "new.mp4"):
        with pytest.raises(error), writer(tmp_path / name) as out:
            for _ in range(30):
                out.write_video(grey(0))
            out.write_audio(tone(16000, 16000))
            raise error
    assert left_behind(tmp_path) == ["old.mp4"]
    assert (tmp_path / "old.mp4").read_bytes() == b"precious"


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (20, SIZE, SIZE, 3), np.uint8)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limit[1]))
        with pytest.raises(OutputError, match="cannot be written"), writer(tmp_path / "a.mp4") as out:
            for image in np.concatenate([noise] * 10):
                out.write_video(image)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert left_behind(tmp_path) == []


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"old")
    out = writer(tmp_path / "a.mp4")
    out.write_video(grey(0))
    assert (tmp_path / "a.mp4").read_bytes() == b"old"
    out.close()
    out.close()
    assert decode_count(tmp_path / "a.mp4") == 1
    assert left_behind(tmp_path) == ["a.mp4"]


@pytest.mark.parametrize("in_pieces", [False, True])
@pytest.mark.parametrize("stem", ["😀" * 62, "中" * 83, "ü" * 125, "a" * 251])
def test_a_name_as_long_as_names_may_be_can_be_written(tmp_path, stem, in_pieces):
    path = tmp_path / f"{stem}.mp4"
    with writer(path, in_pieces=in_pieces) as made:
        hidden = made.part.name
        made.write_video(grey(100))
        made.write_audio(tone(640, 16000))
    assert left_behind(tmp_path) == [path.name]
    assert hidden.startswith(f".{stem[:50]}")


def test_a_link_is_followed_not_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "a.mp4").symlink_to(tmp_path / "real" / "b.mp4")
    with writer(tmp_path / "a.mp4") as out:
        out.write_video(grey(0))
    assert (tmp_path / "a.mp4").is_symlink()
    assert decode_count(tmp_path / "real" / "b.mp4") == 1


def decode_count(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("missing/a.mp4", "no folder"),
        ("a.mkv", "ends in .mp4"),
        ("folder.mp4", "not a plain file"),
        ("folder.mp4/a/b.mp4", "no folder"),
        ("loop.mp4", "no file can be written"),
        ("x" * 300 + ".mp4", "no file can be written"),
    ],
)
def test_outputs_that_cannot_be_are_refused_in_one_line(tmp_path, path, complaint):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    with pytest.raises(OutputError, match=complaint) as caught:
        check_output(tmp_path / path)
    assert "\n" not in str(caught.value)
    assert path in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 63},
        {"height": 0},
        {"fps": 0},
        {"audio_rate": 0},
        {"audio_channels": 3},
        {"audio_channels": 0},
    ],
)
def test_values_that_do_not_fit_are_refused_and_leave_nothing(tmp_path, changes):
    with pytest.raises(OutputError):
        writer(tmp_path / "a.mp4", **changes)
    assert left_behind(tmp_path) == []


def test_wrong_use_is_refused(tmp_path):
    out = writer(tmp_path / "a.mp4", audio_channels=2)
    with pytest.raises(OutputError, match="uint8"):
        out.write_video(grey(0).astype(np.float32))
    with pytest.raises(OutputError, match="uint8"):
        out.write_video(grey(0)[:32])
    with pytest.raises(OutputError, match="2 channels"):
        out.write_audio(tone(100, 16000))
    with pytest.raises(OutputError, match="no frame"):
        out.close()
    with pytest.raises(OutputError, match="finished"):
        out.write_video(grey(0))
    assert left_behind(tmp_path) == []


def test_rates_that_aac_has():
    assert [supported_audio_rate(r) for r in (4000, 7350, 16000, 10000, 44100, 48000, 88200, 192000)] == [
        7350,
        7350,
        16000,
        11025,
        44100,
        48000,
        48000,
        48000,
    ]
