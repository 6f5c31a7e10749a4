"""Samples, WAV headers and what is neither, in pieces of any size."""

import io
import itertools
import json
import struct
import threading
import wave
from base64 import b64encode

import av
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from wav_files import wav

from transports.media import TransportError
from transports.pcm import PcmSource
from transports.queries import unknown_name
from transports.sound_formats import PcmForm, SoundReader, decode, recognise, sound_as_text

RATE = 24_000
UNKNOWN = (0, 0xFFFFFFFF, 0x7FFFFFFF, 0xFFFFFFFF - 36)


def tone(seconds: float = 0.25, rate: int = RATE, channels: int = 1) -> np.ndarray:
    """(n, channels) int16, each channel of another loudness."""
    sound = np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)
    return np.stack([8000 * sound / (1 + c) for c in range(channels)], axis=1).astype("<i2")


def chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def read(parts, form: PcmForm = PcmForm()) -> tuple[np.ndarray, set[int]]:  # noqa: B008
    """The samples as floats, and their rates."""
    reader = SoundReader(form)
    sounds = [sound for part in parts for sound in reader.push(part)] + reader.end()
    flat = [s.samples / (32768 if s.samples.dtype == np.int16 else 1) for s in sounds]
    return (np.concatenate(flat) if flat else np.zeros((0, form.channels))), {sound.rate for sound in sounds}


def refused(data: bytes) -> str:
    with pytest.raises(TransportError) as caught:
        read([data])
    message = str(caught.value)
    assert message.isprintable() and len(message.encode()) <= 123  # a close frame's
    return message


def encoded(kind: str, codec: str, rate: int = 44_100, options: dict[str, str] | None = None) -> bytes:
    """What FFmpeg makes of a tone."""
    out = io.BytesIO()
    with av.open(out, "w", format=kind, options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        resampler = av.AudioResampler(stream.codec_context.format, "mono", rate, stream.codec_context.frame_size)
        frame = av.AudioFrame.from_ndarray(tone(1, rate).T.copy(), format="s16", layout="mono")
        frame.sample_rate = rate
        for made in [*resampler.resample(frame), *resampler.resample(None), None]:
            container.mux(stream.encode(made))
    return out.getvalue()


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=12), st.sampled_from([1, 2, 3, 8]))
@example(b"RIFF" * 50, [3, 5, 9, 102], 1)
@example(bytes(200) + b"RIFF\0\0\0\0WAV", [201, 205, 209], 2)
def test_bytes_cut_anywhere_are_the_same_samples(data, cuts, channels):
    data = b"\x00" + data  # begins like no file, nor text
    form, ends = PcmForm("s16le", 16_000, channels), sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    reader = SoundReader(form)
    sounds = [sound for a, b in itertools.pairwise(ends) for sound in reader.push(data[a:b])] + reader.end()
    whole = np.frombuffer(data[: len(data) // form.frame * form.frame], "<i2").reshape(-1, channels)
    assert (np.concatenate([np.zeros((0, channels), np.int16), *(sound.samples for sound in sounds)]) == whole).all()
    assert len(reader.rest) == len(data) % form.frame


@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize(
    ("tag", "bits", "kind"),
    [
        (1, 8, "pcm_u8"), (1, 16, "pcm_s16le"), (1, 24, "pcm_s24le"), (1, 32, "pcm_s32le"), (3, 32, "pcm_f32le"),
        (3, 64, "pcm_f64le"), (6, 8, "pcm_alaw"), (7, 8, "pcm_mulaw"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("channels", [1, 2])
def test_the_header_says_what_the_samples_are(tag, bits, kind, channels, extensible):
    """As FFmpeg encodes them, which is also what reads them."""
    sound = tone(channels=channels)
    layout = "mono" if channels == 1 else "stereo"
    context = av.CodecContext.create(kind, "w")
    context.sample_rate, context.layout, context.format = RATE, layout, context.codec.audio_formats[0].name
    frame = av.AudioFrame.from_ndarray(sound.reshape(1, -1), format="s16", layout=layout)
    frame.sample_rate = RATE
    resampled = av.AudioResampler(context.format, layout, RATE).resample(frame)
    packets = [packet for made in resampled for packet in context.encode(made)]
    data = wav(b"".join(map(bytes, packets)), tag, bits, channels=channels, extensible=extensible)
    heard, rates = read([data])
    assert rates == {RATE} and heard.shape == sound.shape
    # G.711 has 8 bits of which some are an exponent
    assert np.abs(heard - sound / 32768).max() <= {8: 0.01 if tag == 1 else 0.012}.get(bits, 1e-7)


@given(
    cuts=st.lists(st.integers(1, 700), max_size=10),
    size=st.sampled_from([None, *UNKNOWN]),
    before=st.sampled_from(
        [b"", chunk(b"LIST", b"INFOISFT\4\0\0\0Lavf"), chunk(b"fact", bytes(4)) + chunk(b"PEAK", b"x")]
    ),
    count=st.integers(1, 3),
    odd=st.binary(max_size=3),
)
def test_headers_cut_anywhere_one_for_each_utterance(cuts, size, before, count, odd):
    """Whole files one after another in one stream, as `cat *.wav` and synthesisers send them, after raw samples."""
    sound = tone(0.01)
    after = b"" if size is not None else chunk(b"LIST", b"INFOICMT\3\0\0\0abc")
    data = b"\0\0" + odd + wav(sound.tobytes(), size=size, before=before, after=after) * count
    ends = [0, *sorted(set(itertools.accumulate(cuts)) - {0}), max(len(data), sum(cuts) + 1)]
    heard, rates = read([data[a:b] for a, b in itertools.pairwise(ends)])
    raw = (2 + len(odd)) // 2
    assert rates == {16_000, RATE}
    assert np.array_equal(heard[raw:] * 32768, np.concatenate([sound] * count))


def test_the_header_holds_until_the_utterance_ends():
    sound = tone(0.1)
    reader = SoundReader(PcmForm())
    whole = wav(sound.tobytes())
    assert {each.rate for each in reader.push(whole[:999])} == {RATE}
    assert {each.rate for each in reader.push(whole[999:])} == {RATE}
    # its length was too short, or a synthesiser sends a header once only
    assert {each.rate for each in reader.push(sound.tobytes())} == {RATE}
    reader.end()
    assert {each.rate for each in reader.push(sound.tobytes())} == {16_000}


def test_what_is_behind_the_samples_is_not_heard():
    sound = tone(0.05)
    tags = chunk(b"id3 ", b"ID3\4" + bytes(5)) + chunk(b"odd ", b"x" * 101)
    for after in (chunk(b"LIST", b"INFO" + bytes(999)), tags):
        heard, _ = read([wav(sound.tobytes(), after=after)])
        assert len(heard) == len(sound)
    # an odd number of bytes is padded, or not
    data = bytes(range(128, 255))
    whole = wav(data, bits=8)
    for parts in ([whole + whole], [(whole + whole)[:80], (whole + whole)[80:]], [whole[:-1] + whole[:-1]]):
        heard, _ = read(parts)
        assert np.array_equal(heard[:, 0], np.tile((np.arange(128, 255) - 128) / 128, 2))


def test_wave_of_the_standard_library_on_a_pipe(monkeypatch):
    """It cannot go back to write the length."""

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def tell(self) -> int:
            raise OSError

    pipe = Pipe()
    file = wave.Wave_write(pipe)
    file.setparams((1, 2, RATE, 0, "NONE", ""))
    file.writeframesraw(tone().tobytes())
    heard, rates = read([pipe.getvalue()])
    assert rates == {RATE} and np.array_equal(heard * 32768, tone())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (("mp3", "libmp3lame"), "MP3 (an ID3 tag)"),
        (("mp3", "libmp3lame", 44_100, {"id3v2_version": "0", "write_xing": "0"}), "MP3 (MPEG audio)"),
        (("mp3", "libmp3lame", 22_050, {"id3v2_version": "0"}), "MP3 (MPEG audio)"),
        (("mp2", "mp2", 48_000), "MP3 (MPEG audio)"),
        (("adts", "aac"), "raw AAC"),
        (("ogg", "libopus", 48_000), "an Ogg file"),
        (("flac", "flac"), "a FLAC file"),
        (("webm", "libopus", 48_000), "a WebM or Matroska file"),
        (("matroska", "libmp3lame"), "a WebM or Matroska file"),
        (("ipod", "aac"), "an MP4 or M4A file"),
        (("mp4", "aac", 48_000), "an MP4 or M4A file"),
        (("aiff", "pcm_s16be"), "an AIFF file"),
        (("au", "pcm_s16be"), "an AU file"),
        (("caf", "pcm_s16le"), "a CAF file"),
        (("w64", "pcm_s16le"), "a W64 file"),
        (("wv", "wavpack"), "a WavPack file"),
        (("asf", "libmp3lame"), "a WMA file"),
        (("avi", "pcm_s16le"), "an AVI file"),
        (b64encode(tone().tobytes()), "text"),
        (b"<!DOCTYPE html><html><head><title>502 Bad Gateway</title></head><body>Bad", "text"),
        (json.dumps({"audio": b64encode(tone().tobytes()).decode()}).encode(), "JSON as a binary message"),
        (b'{"type": "interrupt"}', "JSON as a binary message"),
        (b"RIFX" + wav(b"")[4:], "big-endian"),
        (wav(bytes(99), tag=0x55), "WAV of format 85 with 16 bits"),
        (wav(bytes(99), tag=2, bits=4), "WAV of format 2 with 4 bits"),
        (wav(bytes(99), rate=100), "100 Hz: send 4000 to 768000"),
        (wav(bytes(99), channels=9), "9 channels: send 1 to 8"),
        (wav(bytes(2)) * 5000, "WAV of next to nothing but headers"),
        (wav(b"", before=chunk(b"JUNK", b"") * 50_000), "WAV of next to nothing but headers"),
        (wav(bytes(99))[:30], "cut off within its header"),
        (b"RIFF\0\0\0\0WAVEdata\4\0\0\0abcd", "come before their format"),
        (b"RIFF\0\0\0\0WAVEfmt \2\0\0\0abcd", "its format takes 2 bytes"),
        (b"RIFF\0\0\0\0WAVE\0\1\2\3\4\5\6\7\0\1\2\3\4", "damaged"),
    ],
)  # fmt: skip
def test_what_cannot_be_played_is_named_in_one_line(data, said):
    """data: bytes, or how FFmpeg is to make them."""
    data = encoded(*data) if isinstance(data, tuple) else data
    assert said in refused(data)
    # and as soon as there is enough of it, however it is cut
    if "cut off" not in said and "headers" not in said and "JSON" not in said and said != "text":
        reader = SoundReader(PcmForm())
        with pytest.raises(TransportError, match=r"this is|WAV|header"):
            for at in range(len(data)):
                assert reader.push(data[at : at + 1]) == []
                assert at < 8192


@settings(max_examples=150)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 4, 8, 3000]), st.floats(0, 1))
def test_no_noise_and_nothing_periodic_is_taken_for_a_file(seed, period, level):
    """Drawn by numpy: Hypothesis knows the constants of the code, and tries them."""
    noise = np.random.default_rng(seed)
    for data in (noise.bytes(period), (noise.uniform(-level, level, period) * 32767).astype("<i2").tobytes()):
        assert not recognise(data * (6000 // len(data)))


@pytest.mark.parametrize("frames", [384, 768, 960, 1152, 1440])
def test_no_constant_is_taken_for_mpeg_audio(frames):
    """Left and right of which the bytes are a valid header, which comes again wherever that says."""
    for header in ("fffb9000", "fffb9400", "fffda404", "fff14c80", "ffff14c0"):
        header = bytes.fromhex(header)
        assert recognise(header * frames) == ""


def test_speech_is_not_taken_for_a_file(assets):
    """The bundled voice from any of its samples on, at three levels and in both encodings."""
    with av.open(str(assets / "voice.flac")) as container:
        voice = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    voice = voice / (32768 if voice.dtype == np.int16 else 2**31)
    for level in (1, 0.03, 0.001):
        for data in ((voice * level * 32767).astype("<i2"), (voice * level).astype("<f4")):
            data = data.tobytes()
            for at in range(0, len(data) - 4000, 4 * 997):
                assert recognise(data[at : at + 4000]) == ""


@settings(max_examples=150)
@given(
    files=st.lists(
        st.tuples(
            st.binary(max_size=60),
            st.sampled_from([(1, 8), (1, 16), (1, 24), (3, 32), (7, 8)]),
            st.integers(1, 3),
            st.sampled_from([None, *UNKNOWN, 7, 100]),
            st.booleans(),
            st.sampled_from([b"", b"zz", b"\0", chunk(b"LIST", b"xyz")]),
        ),
        min_size=1,
        max_size=3,
    ),
    spots=st.lists(st.tuples(st.integers(0, 99), st.integers(0, 255)), max_size=4),
    cuts=st.lists(st.integers(0, 300), max_size=12),
    end=st.integers(1, 500),
)
def test_a_damaged_header_is_one_line_or_the_same_samples_however_it_is_cut(files, spots, cuts, end):
    data = bytearray()
    for samples, form, channels, size, extensible, after in files:
        data += wav(samples, *form, channels=channels, size=size, extensible=extensible, after=after)
    for at, value in spots:
        data[min(at, len(data) - 1)] = value
    data = bytes(data[:end])
    ends = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    heard = []
    for parts in ([data], [data[a:b] for a, b in itertools.pairwise(ends)]):
        reader = SoundReader(PcmForm())
        try:
            sounds = [sound for part in parts for sound in reader.push(part)] + reader.end()
            heard.append([(each.rate, sample.tobytes()) for each in sounds for sample in each.samples])
        except TransportError as error:
            assert str(error).isprintable() and len(str(error).encode()) <= 123
            heard.append(None)
    assert heard[0] == heard[1]


def test_sound_in_text_messages():
    sound = b64encode(tone(0.02).tobytes()).decode()
    for text in (
        sound,
        json.dumps({"type": "input_audio_buffer.append", "audio": sound}),
        json.dumps({"event": "media", "media": {"payload": sound}}),
        json.dumps({"realtimeInput": {"mediaChunks": [{"mimeType": "audio/pcm", "data": sound}]}}),
        json.dumps(f"data:audio/wav;base64,{sound}"),
    ):
        assert sound_as_text(text), text
    for text in ("", "hello", "[]", '{"type": "sing"}', "[" * 20_000, '{"text": "a sentence that somebody wrote"}'):
        assert not sound_as_text(text), text


def test_g711_as_the_standard_has_it():
    """ITU-T G.711, tables 1a and 2a: the ends and the smallest steps."""
    def heard(codec: str, *values: int) -> list[int]:
        return decode(bytes(values), PcmForm(codec))[:, 0].tolist()

    assert heard("mulaw", 0x80, 0x00, 0xFF, 0x7F, 0xFE) == [32124, -32124, 0, 0, 8]
    assert heard("alaw", 0xAA, 0x2A, 0xD5, 0x55) == [32256, -32256, 8, -8]


def piped(data: bytes) -> tuple[np.ndarray, set[int], str]:
    got, rates, done = [], set(), threading.Event()
    source = PcmSource(io.BytesIO(data))

    def deliver(samples, rate):
        got.append(samples)
        rates.add(rate)
        return True

    source.open(deliver, done.set)
    assert done.wait(5) and source.check() == ""
    return np.concatenate(got or [np.zeros((0, 1))]), rates, source.failure


def test_a_pipe_takes_wav_and_refuses_other_files():
    sound = tone()
    heard, rates, failure = piped(wav(sound.tobytes(), size=0xFFFFFFFF))
    assert np.array_equal(heard, sound) and rates == {RATE} and failure == ""
    heard, _, failure = piped(encoded("mp3", "libmp3lame"))
    assert len(heard) == 0
    assert failure == "standard input: this is MP3 (an ID3 tag): send WAV, or raw s16le or f32le samples"


@pytest.mark.parametrize(
    ("query", "said"),
    [
        (["sample_rate"], "sample_rate: no such name in the query; did you mean rate?"),
        (["rate", "encodng"], "encodng: no such name in the query; did you mean encoding?"),
        (["Channels"], "Channels: no such name in the query; did you mean channels?"),
        (["xyz"], "xyz: no such name in the query; there are encoding, rate, channels"),
        (["é\n" * 99], "?" * 24 + "...: no such name in the query; there are encoding, rate, channels"),
        (["token", "rate", "encoding"], ""),
    ],
)
def test_names_in_a_query(query, said):
    assert unknown_name(query, ("encoding", "rate", "channels")) == said
    assert len(said.encode()) <= 123
    assert unknown_name(query[:1], ()) == "" or "there are none here" in unknown_name(query[:1], ())
