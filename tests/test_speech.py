import os
import tempfile
import tracemalloc
import wave
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import speech
from engine.errors import InputError
from engine.speech import SAMPLE_RATE, SpeechInput, VoiceError, is_silent, level_db, read_speech, read_voice, to_mono

RATES = [4_000, 8_000, 11_025, 16_000, 22_050, 44_099, 44_100, 48_000, 96_000, 192_000, 768_000]


def noise(n: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((n, channels)) * 0.2).clip(-1, 1).astype(np.float32)


def tone(hertz: float, rate: int, seconds: float = 1.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def streamed(samples: np.ndarray, rate: int, chunks: list[int] | None = None) -> np.ndarray:
    """The samples through a SpeechInput, in chunks of these sizes over and over, or at once."""
    stream = SpeechInput(rate, samples.shape[1] if samples.ndim == 2 else 1)
    out, at, turn = [], 0, 0
    while at < len(samples):
        size = chunks[turn % len(chunks)] if chunks else len(samples)
        out.append(stream.push(samples[at : at + size]))
        at, turn = at + size, turn + 1
    return np.concatenate([*out, stream.finish()])


def write(path: Path, samples: np.ndarray, rate: int, codec: str, fmt: str, layout: str = "mono") -> Path:
    """Encode (n, channels) float32."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout, format=fmt)
        resampler = av.AudioResampler(fmt, layout, rate)
        for at in range(0, len(samples), 960):
            packed = np.ascontiguousarray(samples[at : at + 960], np.float32).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
            frame.sample_rate, frame.pts = rate, at
            for made in resampler.resample(frame):
                container.mux(stream.encode(made))
        for made in [*resampler.resample(None), None]:
            container.mux(stream.encode(made))
    return path


def refusal(path: object) -> str:
    """The message with which a file is refused, having checked that it is one clean line."""
    with pytest.raises(VoiceError) as caught:
        read_voice(path)
    with pytest.raises(VoiceError) as other:
        read_speech(path)
    assert str(other.value) == str(caught.value)
    message = str(caught.value)
    assert isinstance(caught.value, InputError)
    assert message.isprintable() and len(message) < 400
    return message


@settings(max_examples=60)
@given(
    rate=st.sampled_from(RATES[:9]),
    channels=st.integers(1, 3),
    seconds=st.floats(0, 1.2),
    integers=st.booleans(),
    parts=st.data(),
)
def test_any_chunking_gives_the_same_bits(rate, channels, seconds, integers, parts):
    samples = noise(round(seconds * rate), channels)
    if integers:
        samples = (samples * 32767).astype(np.int16)
    # One sample at a time costs most; a short list of sizes, used in turn, is as hard on the buffering.
    sizes = parts.draw(st.lists(st.sampled_from([1, 2, 37, 441, rate // 100, rate // 3, rate]), min_size=1))
    sizes = [max(1, size) for size in sizes]
    if len(samples) > 5000 and max(sizes) < 10:
        sizes.append(997)
    whole = streamed(samples, rate)
    assert streamed(samples, rate, sizes).tobytes() == whole.tobytes()
    assert whole.dtype == np.float32 and whole.ndim == 1
    assert len(whole) == -(-len(samples) * SAMPLE_RATE // rate)


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
def test_sample_by_sample_gives_the_same_bits(rate):
    samples = noise(rate // 5)
    assert streamed(samples, rate, [1]).tobytes() == streamed(samples, rate).tobytes()


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("n", [0, 1, 2, 7, 100, 1001])
def test_length_is_exact_for_few_samples(rate, n):
    assert len(streamed(noise(n), rate)) == -(-n * SAMPLE_RATE // rate)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("seconds", [0, 0.05, 0.31234, 0.5])
def test_an_impulse_lands_when_it_sounded(rate, seconds):
    at = round(seconds * rate)
    samples = np.zeros(max(rate, at + 1), np.float32)
    samples[at] = 1
    assert abs(int(np.abs(streamed(samples, rate)).argmax()) - at * SAMPLE_RATE / rate) <= 1


def test_16k_mono_passes_untouched():
    samples = noise(12_345)[:, 0]
    assert streamed(samples, SAMPLE_RATE, [1, 160, 4000]).tobytes() == samples.tobytes()


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000, 96_000])
def test_speech_band_is_kept(rate):
    made = streamed(tone(1000, rate), rate)
    assert np.abs(made - tone(1000, SAMPLE_RATE))[400:-400].max() < 2e-3


@pytest.mark.parametrize("rate", [44_100, 48_000])
def test_what_16k_cannot_hold_does_not_fold_back(rate):
    assert level_db(streamed(tone(11_000, rate), rate)[400:-400]) < -60


@pytest.mark.parametrize("rate", RATES)
def test_nothing_waits_long(rate):
    """What is pushed comes out but for a block of 10 ms and the reach of the filter."""
    assert len(SpeechInput(rate).push(noise(rate))) >= SAMPLE_RATE * 0.98


def test_channels_are_averaged():
    left, right = tone(300, SAMPLE_RATE), tone(500, SAMPLE_RATE)
    both = streamed(np.stack([left, right], axis=1), SAMPLE_RATE)
    assert np.allclose(both, (left + right) / 2, atol=1e-7)


def test_integers_are_full_scale():
    samples = np.array([-32768, -1, 0, 1, 32767], np.int16)
    assert np.array_equal(streamed(samples, SAMPLE_RATE), samples / np.float32(32768))


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_floats_beyond_full_scale_are_clipped(rate):
    made = streamed(noise(rate) * np.float32(1e38), rate)
    assert np.isfinite(made).all() and np.abs(made).max() <= 1


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_samples_are_refused_and_not_taken(rate, bad):
    good = noise(rate // 4)
    spoilt = good.copy()
    spoilt[100] = bad
    stream = SpeechInput(rate)
    first = stream.push(good[:500])
    with pytest.raises(VoiceError, match="NaN or infinite"):
        stream.push(spoilt)
    made = np.concatenate([first, stream.push(good[500:]), stream.finish()])
    assert made.tobytes() == streamed(good, rate).tobytes()


@pytest.mark.parametrize(
    "chunk",
    [np.zeros((5, 2), np.float32), np.zeros((1, 5, 1), np.float32), np.zeros(5, np.int32), np.zeros(5, "U1")],
)
def test_chunks_of_another_kind_are_refused(chunk):
    with pytest.raises(VoiceError):
        SpeechInput(48_000, 1).push(chunk)


def test_samples_of_any_kind_become_the_same_mono():
    whole = np.array([-32768, 0, 16384, 32767], np.int16)
    expected = (whole / 32768).astype(np.float32)
    for given_ in (whole, whole[:, None], expected, expected.astype(np.float64)):
        made = to_mono(given_)
        assert made.dtype == np.float32 and np.array_equal(made, expected)
        assert not np.shares_memory(made, given_)  # the sender may use its buffer again
    assert np.array_equal(to_mono(np.array([-3.0, 1e300])), [-1, 1])
    assert len(to_mono(np.zeros(0, np.float32))) == 0


@pytest.mark.parametrize(("rate", "channels"), [(0, 1), (-1, 1), (3_999, 1), (10_000_000, 1), (48_000, 0)])
def test_streams_of_another_kind_are_refused(rate, channels):
    with pytest.raises(VoiceError):
        SpeechInput(rate, channels)


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_a_finished_stream_is_over(rate):
    stream = SpeechInput(rate)
    stream.push(noise(1000))
    stream.finish()
    assert len(stream.finish()) == 0
    with pytest.raises(RuntimeError):
        stream.push(noise(1000))


@pytest.mark.parametrize(
    ("name", "codec", "fmt", "rate", "layout"),
    [
        ("a.wav", "pcm_u8", "u8", 8_000, "mono"),
        ("a.wav", "pcm_s16le", "s16", 44_100, "stereo"),
        ("a.wav", "pcm_s24le", "s32", 48_000, "5.1"),
        ("a.wav", "pcm_s32le", "s32", 16_000, "mono"),
        ("a.wav", "pcm_f32le", "flt", 96_000, "mono"),
        ("a.wav", "pcm_f64le", "dbl", 22_050, "stereo"),
        ("a.flac", "flac", "s16", 32_000, "stereo"),
        ("a.mp3", "libmp3lame", "fltp", 44_100, "stereo"),
        ("a.opus", "libopus", "flt", 48_000, "stereo"),
        ("a.m4a", "aac", "fltp", 44_100, "mono"),
        ("a.mkv", "flac", "s16", 48_000, "mono"),
    ],
)
def test_any_format_is_read(tmp_path, name, codec, fmt, rate, layout):
    channels = av.AudioLayout(layout).nb_channels
    sound = np.repeat(tone(440, rate)[:, None], channels, axis=1)
    voice = read_voice(write(tmp_path / name, sound, rate, codec, fmt, layout))
    assert voice.samples.dtype == np.float32
    assert voice.samples.shape[1] == (channels if channels <= 2 else 1)
    assert voice.rate == rate and voice.seconds == pytest.approx(1, abs=0.05)
    assert voice.source == str(tmp_path / name)
    # The right loudness says that the sample format was understood; mp3 and AAC lose a little at the ends.
    assert level_db(voice.samples) == pytest.approx(20 * np.log10(0.5 / np.sqrt(2)), abs=0.6)
    heard = voice.mono16k()
    assert len(heard) == -(-len(voice.samples) * SAMPLE_RATE // rate)
    assert heard.tobytes() == streamed(voice.samples, rate, [333]).tobytes()
    speech = read_speech(tmp_path / name)
    assert (speech.rate, speech.source) == (SAMPLE_RATE, voice.source)
    assert speech.samples.shape == (len(heard), 1) and speech.mono16k().tobytes() == heard.tobytes()


@pytest.mark.parametrize("layout", ["5.1", "7.1", "stereo"])
@pytest.mark.parametrize(
    ("name", "codec", "fmt"),
    [("a.wav", "pcm_s16le", "s16"), ("a.flac", "flac", "s16"), ("a.m4a", "aac", "fltp"), ("a.opus", "libopus", "flt")],
)
def test_a_voice_in_the_centre_and_one_that_cancels_itself_are_as_loud_as_mono(tmp_path, name, codec, fmt, layout):
    """The centre of 5.1 and 7.1, and stereo of which one channel is the other upside down, as the engine hears them."""
    names = [channel.name for channel in av.AudioLayout(layout).channels]
    gains = [1, -1] if layout == "stereo" else [float(name == "FC") for name in names]
    path = write(tmp_path / name, tone(440, 48_000)[:, None] * gains, 48_000, codec, fmt, layout)
    assert level_db(read_speech(path).samples) == pytest.approx(20 * np.log10(0.5 / np.sqrt(2)), abs=0.3)
    assert level_db(read_voice(path).samples) == pytest.approx(20 * np.log10(0.5 / np.sqrt(2)), abs=0.3)


def test_lossless_samples_are_exact(tmp_path):
    sound = (noise(5000, 2) * 32767).astype(np.int16) / np.float32(32768)
    voice = read_voice(write(tmp_path / "a.flac", sound, 44_100, "flac", "s16", "stereo"))
    assert np.array_equal(voice.samples, sound)


def test_the_bundled_voice(assets):
    voice = read_voice(assets / "voice.flac")
    assert voice.seconds == 11 and voice.samples.shape[1] == 1
    assert not is_silent(voice.samples)
    assert len(voice.mono16k()) == 11 * SAMPLE_RATE


def test_silence_is_a_voice(tmp_path):
    voice = read_voice(write(tmp_path / "a.wav", np.zeros((8000, 1)), 16_000, "pcm_s16le", "s16"))
    assert voice.seconds == 0.5 and is_silent(voice.mono16k())


def test_sound_of_a_video_is_read(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=25)
        video.width = video.height = 64
        audio = container.add_stream("aac", rate=48_000, layout="mono")
        for _ in range(5):
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))))
        frame = av.AudioFrame.from_ndarray(tone(440, 48_000)[None], format="fltp", layout="mono")
        frame.sample_rate = 48_000
        container.mux(audio.encode(frame))
        container.mux([*video.encode(None), *audio.encode(None)])
    assert read_voice(path).seconds == pytest.approx(1, abs=0.05)


def test_video_without_sound(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=25)
        video.width = video.height = 64
        container.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))))
        container.mux(video.encode(None))
    assert "no sound in it" in refusal(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_samples_in_a_file(tmp_path, bad):
    sound = noise(5000)
    sound[1234] = bad
    assert "NaN or infinite" in refusal(write(tmp_path / "a.wav", sound, 48_000, "pcm_f32le", "flt"))


def test_a_file_without_samples(tmp_path):
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
    assert "no samples" in refusal(tmp_path / "a.wav")


def test_files_that_are_no_sound(tmp_path, assets):
    for content in (b"hello\n", b"\0" * 5000, np.random.default_rng(0).bytes(5000)):
        (tmp_path / "a.wav").write_bytes(content)
        refusal(tmp_path / "a.wav")
    (tmp_path / "a.wav").write_bytes(b"")
    assert "empty" in refusal(tmp_path / "a.wav")
    assert "no sound in it" in refusal(assets / "portraits" / "ada.jpg")


def test_paths_that_are_no_files(tmp_path):
    assert "no such file" in refusal(tmp_path / "nothing.wav")
    assert "no such file" in refusal(f"{tmp_path}/two\nlines.wav")
    assert "no such file" in refusal("http://127.0.0.1:9/voice.wav")
    assert "directory" in refusal(tmp_path)
    refusal("nul\0byte.wav")
    refusal("x" * 270)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        assert "regular" in refusal(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("name", "codec", "fmt"),
    [("a.flac", "flac", "s16"), ("a.mp3", "libmp3lame", "fltp"), ("a.m4a", "aac", "fltp")],
)
def test_damage_in_the_middle(tmp_path, name, codec, fmt):
    path = write(tmp_path / name, noise(96_000), 48_000, codec, fmt)
    data = bytearray(path.read_bytes())
    third = len(data) // 3
    data[third : 2 * third] = np.random.default_rng(1).bytes(third)
    path.write_bytes(data)
    assert "damaged" in refusal(path)


def test_a_tag_at_the_end_is_no_damage(tmp_path):
    path = write(tmp_path / "a.mp3", noise(48_000), 48_000, "libmp3lame", "fltp")
    path.write_bytes(path.read_bytes() + b"TAG" + np.random.default_rng(1).bytes(125))
    assert read_voice(path).seconds == pytest.approx(1, abs=0.05)


def test_a_recording_that_never_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(speech, "MAX_SECONDS", 1)
    assert "longer than" in refusal(write(tmp_path / "a.wav", noise(16_100), 16_000, "pcm_s16le", "s16"))


def test_more_samples_than_are_kept_can_still_be_heard(tmp_path, monkeypatch):
    monkeypatch.setattr(speech, "MAX_SAMPLES", 20_000)
    path = write(tmp_path / "a.wav", noise(16_000, 2), 16_000, "pcm_s16le", "s16", "stereo")
    with pytest.raises(VoiceError, match="holds more than 0 million samples; cut it into parts"):
        read_voice(path)
    assert len(read_speech(path).samples) == 16_000


@pytest.mark.parametrize("rate", [3_000, 800_000])
def test_a_rate_that_cannot_be_used_is_refused_at_the_first_frame(tmp_path, monkeypatch, rate):
    monkeypatch.setattr(speech, "MAX_SECONDS", 0)  # what is told only after the rate
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(bytes(20_000))
    assert f"has {rate} samples a second" in refusal(tmp_path / "a.wav")


def test_no_more_of_a_file_is_held_than_is_heard(tmp_path):
    """A minute of stereo at 48 kHz is 23 MB as it was made, and 4 as it is heard."""
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((2, 2, 48_000, 0, "NONE", ""))
        file.writeframes(bytes(60 * 48_000 * 4))
    tracemalloc.start()
    try:
        read_speech(tmp_path / "a.wav")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 14e6


def tracks(path: Path, *made: tuple[np.ndarray, float, Disposition], codec: str = "aac") -> Path:
    """A film of three seconds with tracks of sound: samples at 48 kHz, when they begin in seconds, what they are."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=25)
        video.width = video.height = 64
        streams = []
        for _, _, disposition in made:
            streams.append(container.add_stream(codec, rate=48_000, layout="mono"))
            streams[-1].disposition = disposition
        for _ in range(75):
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))))
        for stream, (samples, begins, _) in zip(streams, made, strict=True):
            for at in range(0, len(samples), 960):
                frame = av.AudioFrame.from_ndarray(samples[None, at : at + 960], format="flt", layout="mono")
                frame.sample_rate, frame.pts = 48_000, round(begins * 48_000) + at
                frame.time_base = Fraction(1, 48_000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        container.mux(video.encode(None))
    return path


def pitch(samples: np.ndarray, rate: int) -> float:
    return float(np.abs(np.fft.rfft(samples)).argmax() * rate / len(samples))


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "aac"), ("a.mkv", "libopus")])
@pytest.mark.parametrize("first", [Disposition(0), Disposition.default | Disposition.comment])
def test_the_track_that_the_file_calls_its_default_is_heard(tmp_path, name, codec, first):
    made = (tone(300, 48_000), 0, first), (tone(600, 48_000), 0, Disposition.default)
    if name == "a.mp4" and first:
        pytest.skip("MP4 does not tell comments")
    assert pitch(read_voice(tracks(tmp_path / name, *made, codec=codec)).samples[:48_000, 0], 48_000) == 600


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "aac"), ("a.mkv", "libopus"), ("a.ts", "aac")])
def test_a_track_that_begins_late_is_late(tmp_path, name, codec):
    click = np.zeros(48_000, np.float32)
    click[9_600] = 0.9
    voice = read_voice(tracks(tmp_path / name, (click, 1.5, Disposition.default), codec=codec))
    assert np.abs(voice.samples[:, 0]).argmax() / voice.rate == pytest.approx(1.7, abs=0.025)
    assert voice.warning == ""
    heard = read_speech(tmp_path / name)
    assert np.abs(heard.samples[:, 0]).argmax() / SAMPLE_RATE == pytest.approx(1.7, abs=0.025)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.m4a", "aac"), ("a.opus", "libopus"), ("a.webm", "libopus"), ("a.mp3", "libmp3lame")]
)
def test_what_codecs_put_before_the_first_sample_is_not_heard(tmp_path, name, codec):
    click = np.zeros(24_000, np.float32)
    click[4_800] = 0.9
    fmt = "flt" if codec == "libopus" else "fltp"
    voice = read_voice(write(tmp_path / name, click[:, None], 48_000, codec, fmt))
    assert np.abs(voice.samples[:, 0]).argmax() / 48_000 == pytest.approx(0.1, abs=0.001)


#: name, codec, sample format, whether the whole length is known.
CONTAINERS = [
    ("a.wav", "pcm_s16le", "s16", True), ("a.flac", "flac", "s16", True), ("a.mp3", "libmp3lame", "fltp", True),
    ("a.m4a", "aac", "fltp", True), ("a.mkv", "libopus", "flt", True), ("a.webm", "libopus", "flt", True),
    ("a.aiff", "pcm_s16be", "s16", True), ("a.au", "pcm_s16be", "s16", True), ("a.caf", "pcm_s16le", "s16", True),
    ("a.opus", "libopus", "flt", False), ("a.w64", "pcm_s16le", "s16", False), ("a.avi", "pcm_s16le", "s16", False),
    ("a.tta", "tta", "s16", True), ("a.flv", "libmp3lame", "fltp", True),
]  # fmt: skip


def front(path: Path) -> Path:
    """An MP4 whose index comes first, as those for the web have it."""
    made = path.with_name(f"front-{path.name}")
    with av.open(str(path)) as old, av.open(str(made), "w", options={"movflags": "+faststart"}) as new:
        stream = new.add_stream_from_template(old.streams.audio[0])
        for packet in old.demux():
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    return made


@pytest.mark.parametrize(("name", "codec", "fmt", "known"), CONTAINERS)
def test_a_file_that_is_cut_off_is_used_and_said_to_be(tmp_path, name, codec, fmt, known):
    path = write(tmp_path / name, np.tile(noise(48_000), (3, 1)), 48_000, codec, fmt)
    whole = read_voice(path)
    assert whole.warning == read_speech(path).warning == ""
    cut = (front(path) if name == "a.m4a" else path).rename(tmp_path / f"cut-{name}")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 6 // 10])
    voice = read_voice(cut)
    assert 0.9 < voice.seconds < 2.1  # a page of Ogg is a second, and lost if it is not whole
    length = f"of {whole.seconds:.1f} s" if known else "s, without an end mark"
    assert f"it ends after {voice.seconds:.1f} {length}" in voice.warning
    assert voice.warning.startswith(f"{cut}: cut off")
    assert voice.warning.isprintable()
    assert read_speech(cut).warning == voice.warning
    count = min(len(voice.samples), len(whole.samples)) - 4_800
    assert level_db(voice.samples[:count] - whole.samples[:count]) < -60


def test_an_mp4_without_its_index_is_refused_as_such(tmp_path):
    path = write(tmp_path / "a.m4a", noise(48_000), 48_000, "aac", "fltp")
    path.write_bytes(path.read_bytes()[:-500])
    assert "without its index" in refusal(path)


def test_a_wav_of_unknown_length_is_not_cut_off(tmp_path):
    path = write(tmp_path / "a.wav", noise(48_000), 48_000, "pcm_s16le", "s16")
    data = bytearray(path.read_bytes())
    at = data.index(b"data")
    for size in (0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000):
        data[4:8] = data[at + 4 : at + 8] = size.to_bytes(4, "little")
        path.write_bytes(data)
        voice = read_voice(path)
        assert (len(voice.samples), voice.warning) == (48_000, "")


@pytest.mark.parametrize("a_second", [0, 1, 48_000, 4_000_000])
def test_a_wav_whose_header_is_wrong_about_bytes_a_second_is_as_long_as_its_samples(tmp_path, a_second):
    path = write(tmp_path / "a.wav", noise(48_000), 48_000, "pcm_s16le", "s16")
    data = bytearray(path.read_bytes())
    data[28:32] = a_second.to_bytes(4, "little")
    path.write_bytes(data)
    assert (read_voice(path).seconds, read_voice(path).warning) == (1.0, "")
    path.write_bytes(data[:-48_000])
    assert "it ends after 0.5 of 1.0 s" in read_voice(path).warning


def test_a_wav_of_compressed_sound_that_is_cut_off_says_so(tmp_path):
    path = write(tmp_path / "a.wav", noise(48_000), 16_000, "adpcm_ms", "s16")
    whole = read_voice(path)
    assert (whole.seconds, whole.warning) == (pytest.approx(3.0, abs=0.1), "")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "it ends after 1.5 of 3." in read_voice(path).warning


@pytest.mark.parametrize("name", ["a.mp3", "a.flac", "a.opus"])
def test_files_joined_byte_by_byte_are_heard_to_the_end(tmp_path, name):
    """As programs do with what a speech synthesiser sends, a file a sentence; each MP3 begins with a tag."""
    codec, fmt = {"a.mp3": ("libmp3lame", "fltp"), "a.flac": ("flac", "s16"), "a.opus": ("libopus", "flt")}[name]
    path = write(tmp_path / name, noise(48_000), 48_000, codec, fmt)
    one = path.read_bytes()
    assert name != "a.mp3" or one.startswith(b"ID3")
    tag = b"TAG".ljust(128, b"\0") if name == "a.mp3" else b""
    path.write_bytes((one + tag) * 3)
    voice = read_voice(path)
    assert (voice.seconds, voice.warning) == (pytest.approx(3.0, abs=0.2), "")


def test_wav_files_joined_byte_by_byte_are_said_to_be(tmp_path):
    path = write(tmp_path / "a.wav", noise(48_000), 48_000, "pcm_s16le", "s16")
    path.write_bytes(path.read_bytes() * 2)
    voice = read_voice(path)
    assert voice.seconds == 1.0
    assert "several WAV files one behind the other, of which the first is read" in voice.warning


@lru_cache
def half_a_second(name: str, codec: str, fmt: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / name, noise(24_000), 48_000, codec, fmt)
        return (front(path) if name == "a.m4a" else path).read_bytes()


@settings(max_examples=60)
@given(case=st.sampled_from(CONTAINERS), share=st.floats(0, 1))
def test_a_file_that_ends_anywhere_is_a_voice_or_one_line(tmp_path_factory, case, share):
    name, codec, fmt, _ = case
    kept = half_a_second(name, codec, fmt)
    path = tmp_path_factory.mktemp("cut") / name
    path.write_bytes(kept[: round(share * len(kept))])
    try:
        voice = read_voice(path)
    except VoiceError as error:
        assert str(error).isprintable()
    else:
        assert np.isfinite(voice.samples).all()
        assert voice.warning.isprintable() or not voice.warning
        if voice.seconds < 0.35:
            assert "cut off" in voice.warning


@settings(max_examples=30)
@given(
    kind=st.sampled_from([".wav", ".flac", ".mp3"]),
    spots=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damage_anywhere_is_a_clean_refusal_or_a_voice(tmp_path_factory, kind, spots):
    codecs = {".wav": ("pcm_s16le", "s16"), ".flac": ("flac", "s16"), ".mp3": ("libmp3lame", "fltp")}
    path = write(tmp_path_factory.mktemp("damage") / f"a{kind}", noise(8000), 16_000, *codecs[kind])
    data = bytearray(path.read_bytes())
    for where, value in spots:
        data[int(where * len(data))] = value
    path.write_bytes(data)
    try:
        voice = read_voice(path)
        assert np.isfinite(voice.mono16k()).all()
    except VoiceError as error:
        assert str(error).isprintable()


def test_level():
    assert level_db(np.ones(100, np.float32)) == pytest.approx(0)
    assert level_db(tone(440, SAMPLE_RATE)) == pytest.approx(-9.03, abs=0.01)
    assert level_db(np.zeros(100, np.float32)) == level_db(np.zeros(0, np.float32)) == -120
    assert is_silent(noise(1000) * 1e-4) and not is_silent(noise(1000))
    whole = (noise(1000) * 32767).astype(np.int16)
    assert level_db(whole) == pytest.approx(level_db(whole / np.float32(32768)), abs=1e-4)
    assert level_db(np.ones(100, np.int16)) == pytest.approx(-90.31, abs=0.01)  # one bit of sixteen
