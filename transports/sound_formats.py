"""What the bytes of a sender are: raw samples of the form that was agreed on, WAV, or something that cannot be played.

Raw samples have no header, so a file that is sent in their place would be played as noise. Its first bytes tell what it
is. A WAV header (Microsoft's RIFF/WAVE, RF64 of EBU Tech 3306) is taken wherever it begins, since speech synthesisers
put one before each utterance, often without a length (0 or 0xFFFFFFFF); the form in it holds from there on, until the
utterance ends. Its 12 bytes name themselves in 8, which no sound does by chance.
"""

import base64
import binascii
import codecs
import json
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import av
import numpy as np

from transports.media import TransportError

#: The encodings that a sender may ask for.
ENCODINGS = {"s16le": np.dtype("<i2"), "f32le": np.dtype("<f4")}
#: Bytes a sample of all that can be read, WAV's among them.
_SAMPLE_BYTES = {"u8": 1, "s16le": 2, "s24le": 3, "s32le": 4, "f32le": 4, "f64le": 8, "alaw": 1, "mulaw": 1}
#: WAVE_FORMAT_PCM, _IEEE_FLOAT, _ALAW and _MULAW with their bits a sample.
_WAV_ENCODINGS = {
    (1, 8): "u8", (1, 16): "s16le", (1, 24): "s24le", (1, 32): "s32le", (3, 32): "f32le", (3, 64): "f64le",
    (6, 8): "alaw", (7, 8): "mulaw",
}  # fmt: skip
_EXTENSIBLE = 0xFFFE
#: Sample rates and numbers of channels that can be used.
RATES, CHANNELS = (4_000, 768_000), (1, 8)
#: A length of data from here on stands for one that was not known when the header was written.
_UNKNOWN_BYTES = 0x7FFF_0000
#: Parts of WAV files that are taken at once, and one more for so many bytes: parts of no sound would take their time.
_STEPS, _STEP_BYTES = 64, 256
#: The largest `fmt ` chunk: 40 bytes with all that is extensible.
_FMT_BYTES = 1 << 10
#: The first 12 bytes of a WAV file. Found by the last four, which is fastest.
_WAV = re.compile(rb"WAVE(?<=(?:RIFF|RF64|RIFX)....WAVE)", re.DOTALL)
_WAV_BYTES = 12
_WAV_NAMES = (b"RIFF", b"RF64", b"RIFX")
#: Chunks that are often found behind the samples, also where the header does not know the file's length.
_TRAILING = (b"LIST", b"id3 ", b"ID3 ", b"fact", b"cue ", b"smpl", b"bext", b"iXML", b"JUNK", b"PEAK")
#: Text is told by so many bytes of it, of so many kinds: a few samples over and over can be letters, too.
_TEXT_BYTES, _TEXT_KINDS = 64, 16
#: What begins each kind of file that is no raw sound: bytes by their place, 32 bits or more in all. None of them is the
#: beginning of a sound: as 16-bit samples they jump by half of full scale, as floats they are next to nothing.
_FILES = (
    ("an Ogg file (Opus, Vorbis)", {0: b"OggS\0"}),
    ("a FLAC file", {0: b"fLaC", 5: b"\0\0\x22"}),
    ("a WebM or Matroska file", {0: b"\x1a\x45\xdf\xa3"}),
    ("an MP4 or M4A file", {0: b"\0\0", 4: b"ftyp"}),
    ("an MP4 fragment", {0: b"\0\0", 4: b"styp"}),
    ("an MP4 fragment", {0: b"\0\0", 4: b"moof"}),
    ("an AIFF file", {0: b"FORM", 8: b"AIF"}),
    ("an AU file", {0: b".snd\0\0"}),
    ("a CAF file", {0: b"caff\0"}),
    ("an AVI file", {0: b"RIFF", 8: b"AVI "}),
    ("a WMA file", {0: b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"}),
    ("an AMR file", {0: b"#!AMR"}),
    ("a SILK file", {0: b"#!SILK"}),
    ("a WavPack file", {0: b"wvpk", 8: b"\x10\x04"}),
    ("a W64 file", {0: b"riff\x2e\x91\xcf\x11"}),
)
# ISO/IEC 11172-3 and 13818-3, kbit/s by version (MPEG 1, or 2 and 2.5) and layer.
_KBITS = {
    (1, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
#: Headers, each where the one before says, that tell a stream of frames.
_FRAMES = 3
_MORE = "?"


@dataclass(frozen=True)
class PcmForm:
    """What a sender's bytes mean. encoding: s16le or f32le, or another one of WAV's; rate: Hz; channels:
    interleaved."""

    encoding: str = "s16le"
    rate: int = 16_000
    channels: int = 1

    @property
    def frame(self) -> int:
        """Bytes of one moment."""
        return _SAMPLE_BYTES[self.encoding] * self.channels


@dataclass(frozen=True, eq=False)
class Sound:
    """samples: (n, channels) int16 or float32; rate: Hz."""

    samples: np.ndarray
    rate: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate

    def follows(self, other: "Sound | None") -> bool:
        """Whether it can be joined to another one."""
        ours = self.rate, self.samples.shape[1], self.samples.dtype
        return other is not None and ours == (other.rate, other.samples.shape[1], other.samples.dtype)


@lru_cache(maxsize=2)
def _g711(codec: str) -> np.ndarray:
    """(256,) int16: what each byte of ITU-T G.711 stands for, as FFmpeg has it."""
    context = av.CodecContext.create(f"pcm_{codec}", "r")
    context.sample_rate, context.layout = 8_000, "mono"
    (frame,) = context.decode(av.Packet(bytes(range(256))))
    return frame.to_ndarray()[0]


def decode(data: bytes, form: PcmForm) -> np.ndarray:
    """Whole frames of bytes -> (n, channels) int16 or float32, full scale being 1."""
    if form.encoding in ("alaw", "mulaw"):
        samples = _g711(form.encoding)[np.frombuffer(data, np.uint8)]
    elif form.encoding == "u8":
        samples = (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
    elif form.encoding == "s24le":
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        samples = (wide.view("<i4")[:, 0] / 2**31).astype(np.float32)
    elif form.encoding == "s32le":
        samples = (np.frombuffer(data, "<i4") / 2**31).astype(np.float32)
    elif form.encoding == "f64le":
        with np.errstate(over="ignore", invalid="ignore"):
            samples = np.frombuffer(data, "<f8").astype(np.float32)
    else:
        kind = ENCODINGS[form.encoding]
        samples = np.frombuffer(data, kind).astype(np.float32 if kind.kind == "f" else np.int16)
    return samples.reshape(-1, form.channels)


def _refusal(what: str) -> TransportError:
    """In one line, short enough for a WebSocket's close frame (123 bytes, RFC 6455, section 5.5)."""
    return TransportError(f"this is {what}: send WAV, or raw s16le or f32le samples")


def _mpeg_frame(head: bytes) -> tuple[str, int, int] | None:
    """The name, what stays the same from frame to frame, and the length in bytes of an MPEG audio frame (MP3 or its
    kin, or AAC in ADTS, ISO/IEC 13818-7, section 6.2) by its first 6 bytes; None if there is none."""
    if head[0] != 0xFF or head[1] < 0xE0:
        return None
    word = int.from_bytes(head[:4], "big")
    if head[1] & 0xF6 == 0xF0:
        length = int.from_bytes(head[3:6], "big") >> 5 & 0x1FFF
        known = head[2] >> 2 & 15 < 13 and length > 8
        return ("raw AAC (ADTS)", word >> 4 & 0xFFFFFFC, length) if known else None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    index, rate_index, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer == 4 or index in (0, 15) or rate_index == 3 or head[3] & 3 == 2:
        return None
    bits = 1000 * _KBITS[1 if version == 3 else 2, layer][index]
    rate = (44_100, 48_000, 32_000)[rate_index] >> {3: 0, 2: 1, 0: 2}[version]
    if layer == 1:
        length = (12 * bits // rate + padding) * 4
    else:
        length = (144 if layer == 2 or version == 3 else 72) * bits // rate + padding
    return "MP3 (MPEG audio)", word & 0xFFFE0C00, length


def _mpeg(data: bytes) -> str:
    at, first = 0, None
    for _ in range(_FRAMES):
        head = data[at : at + 12]
        if len(head) < 6:
            return _MORE
        frame = _mpeg_frame(head)
        # a constant of one or two channels, which is all headers if it is one
        if frame is None or (first and frame[:2] != first[:2]) or head[:4] in (head[4:8], head[8:]):
            return ""
        if len(head) < 12:
            return _MORE
        first, at = first or frame, at + frame[2]
    return first[0]


def _id3(data: bytes) -> str:
    """ID3v2's header: version, flags, a size of 7 bits a byte."""
    if len(data) < 10:
        return _MORE if b"ID3"[: len(data)] == data[:3] else ""
    known = data[:3] == b"ID3" and 2 <= data[3] <= 4 and data[4] < 16 and not data[5] & 15
    return "MP3 (an ID3 tag)" if known and max(data[6:10]) < 128 else ""


def _text(data: bytes) -> str:
    """No more bytes are waited for: the first ones of a sound are letters often enough."""
    if len(data) < _TEXT_BYTES:
        return ""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(data[: 2 * _TEXT_BYTES])
    except UnicodeDecodeError:
        return ""
    if not all(letter.isprintable() or letter in "\r\n\t\ufeff" for letter in text):
        return ""
    return "text, such as base64 or JSON" if len(set(text)) >= _TEXT_KINDS else ""


def _file(data: bytes) -> str:
    for name, signature in _FILES:
        pairs = [(data[at : at + len(part)], part) for at, part in signature.items()]
        if all(part.startswith(found) for found, part in pairs):
            return name if len(pairs[-1][0]) == len(pairs[-1][1]) else _MORE
    return ""


def recognise(data: bytes) -> str | None:
    """What the first bytes of a stream say that it is, if neither raw samples nor WAV; "" if it may well be those; None
    if it takes more bytes to tell."""
    verdicts = [_file(data), _id3(data), _mpeg(data), _text(data)] if data else [_MORE]
    if known := next((each for each in verdicts if each and each != _MORE), ""):
        return known
    return None if _MORE in verdicts else ""


def sound_as_text(text: str) -> bool:
    """Whether a text message seems to hold sound, as base64 alone or somewhere in JSON."""

    def texts(value: Any, depth: int = 0) -> Iterator[str]:
        inside: Iterable[Any] = ()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            inside = value.values()
        elif isinstance(value, list):
            inside = value[:16]
        for each in inside if depth < 4 else ():
            yield from texts(each, depth + 1)

    def encoded(value: str) -> bool:
        try:
            return len(value) >= 32 and bool(base64.b64decode(value.rpartition(",")[2], validate=True))
        except (binascii.Error, ValueError):
            return False

    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text.strip()
    return any(map(encoded, texts(value)))


def _is_json(data: bytes) -> bool:
    """Whether bytes are one JSON object, which somebody meant to send as text."""
    data = data.strip()
    if not (data.startswith(b"{") and data.endswith(b"}")):
        return False
    try:
        return isinstance(json.loads(data), dict)
    except (ValueError, RecursionError):
        return False


@dataclass
class _Wav:
    """A WAV header as far as it came. riff: bytes of the file that are left, None if it does not say; skip: bytes of a
    chunk that does not matter; data: bytes of samples that are left, None until they begin; padded: a byte may follow
    them; endless: how many was not known, or was wrong."""

    riff: int | None
    skip: int = 0
    form: PcmForm | None = None
    data: int | None = None
    padded: bool = False
    endless: bool = False

    def used(self, count: int) -> None:
        if self.riff is not None:
            self.riff -= count

    def goes_on(self, name: bytes, size: int) -> bool:
        """Whether what comes is a chunk of this file; behind the samples more of them may come, or another file."""
        if self.data is None:
            return True
        inside = self.riff is not None and _printable(name) and size <= self.riff - 8
        return name not in _WAV_NAMES and (inside or name in _TRAILING)


def wav_form(chunk: bytes) -> PcmForm:
    """The form that the `fmt ` chunk of a WAV header says. Raises TransportError for one that cannot be used."""
    tag, channels, rate, _, _, bits = struct.unpack("<HHIIHH", chunk[:16])
    if tag == _EXTENSIBLE and len(chunk) >= 26:  # the first bytes of a GUID that ends like all others
        (tag,) = struct.unpack("<H", chunk[24:26])
    encoding = _WAV_ENCODINGS.get((tag, bits))
    if encoding is None:
        raise TransportError(f"WAV of format {tag} with {bits} bits cannot be read: send 16-bit PCM or 32-bit floats")
    for name, value, (low, high) in (("Hz", rate, RATES), ("channels", channels, CHANNELS)):
        if not low <= value <= high:
            raise TransportError(f"the WAV header says {value} {name}: send {low} to {high}")
    return PcmForm(encoding, rate, channels)


class SoundReader:
    """Bytes cut anywhere -> whole samples of the form that was agreed on, or of a WAV header's."""

    def __init__(self, form: PcmForm) -> None:
        self._agreed = self.form = form
        self._begins = True  # nothing of an utterance came so far
        self._wav: _Wav | None = None
        self._held = b""  # what takes more bytes to tell
        self.rest = b""  # what is left of a moment, less than form.frame bytes

    def push(self, data: bytes) -> list[Sound]:
        """What can be told by now. Raises TransportError, in one line, for what is neither."""
        if _is_json(data):
            raise TransportError("this is JSON as a binary message: send it as a text message")
        data, self._held = self._held + data, b""
        if self._begins and data:
            known = recognise(data)
            if known:
                raise _refusal(known)
            if known is None:
                self._held = data
                return []
            self._begins = False
        return self._parse(data)

    def end(self) -> list[Sound]:
        """The utterance is complete: what was held. The next one begins in the form that was agreed on; what is left of
        a sample goes before it. Raises TransportError for one that is cut off within a header."""
        wav, data, self._held, self._begins = self._wav, self._held, b"", True
        if wav is not None and wav.form is None:
            raise TransportError("the WAV file is cut off within its header: send all of it")
        sounds = [] if wav is not None and not (wav.data or wav.endless) else self._samples(data)
        if wav is not None:
            self._wav, self.form, self.rest = None, self._agreed, b""
        return sounds

    def drop(self) -> None:
        """As end, where nobody is to hear what was held."""
        self._held, self._begins = b"", True
        if self._wav is not None:
            self._wav, self.form, self.rest = None, self._agreed, b""

    def _parse(self, data: bytes) -> list[Sound]:
        sounds: list[Sound] = []
        at, steps = 0, _STEPS + len(data) // _STEP_BYTES
        while at < len(data):
            wav, steps = self._wav, steps - 1
            if not steps:
                raise TransportError("this is WAV of next to nothing but headers: send sound")
            if wav is not None and wav.skip:
                count = min(wav.skip, len(data) - at)
                at, wav.skip = at + count, wav.skip - count
                wav.used(count)
            elif wav is None or wav.data or wav.endless:
                at = self._sound(wav, data, at, sounds)
            else:
                at = self._chunk(wav, data, at)
        return sounds

    def _sound(self, wav: _Wav | None, data: bytes, at: int, sounds: list[Sound]) -> int:
        """Samples, up to their end or to where another WAV file begins; where to go on."""
        until = len(data) if wav is None or wav.endless else min(len(data), at + wav.data)
        found = _WAV.search(data, at + _WAV_BYTES - 4, until + _WAV_BYTES)  # which looks back before where it begins
        if found and found.end() - _WAV_BYTES < until:
            end = found.end() - _WAV_BYTES
        else:
            found, end = None, max(at, min(until, len(data) - _beginning(data[at:][-_WAV_BYTES:])))
        sounds += self._samples(data[at:end])
        if found:
            return self._riff(data, end)
        if wav is not None and not wav.endless:
            wav.used(end - at)
            wav.data -= end - at
            if not wav.data:
                self.rest = b""
                return end
        if end < len(data):
            self._held = data[end:]
        return len(data)

    def _samples(self, data: bytes) -> list[Sound]:
        data = self.rest + data
        whole = len(data) // self.form.frame * self.form.frame
        self.rest = data[whole:]
        return [Sound(decode(data[:whole], self.form), self.form.rate)] if whole else []

    def _riff(self, data: bytes, at: int) -> int:
        """A WAV file begins; where to go on."""
        if data[at : at + 4] == b"RIFX":
            raise _refusal("WAV in big-endian order (RIFX)")
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        self._wav, self.rest = _Wav(size - 4 if 4 < size < _UNKNOWN_BYTES else None), b""
        return at + _WAV_BYTES

    def _chunk(self, wav: _Wav, data: bytes, at: int) -> int:
        """A chunk of a WAV file begins; where to go on."""
        if wav.data == 0 and wav.padded:
            wav.padded = False
            wav.skip = int(data[at] == 0)
            return at
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        inside = 8 + size if name == b"fmt " and wav.form is None and size <= _FMT_BYTES else 8
        if len(data) - at < inside:
            self._held = data[at:]
            return len(data)
        if not wav.goes_on(name, size):
            wav.endless = True
            return at
        wav.used(8)
        if name == b"data" and wav.data is None:
            if wav.form is None:
                raise TransportError("the WAV header is damaged: its samples come before their format")
            wav.data, wav.endless, wav.padded = size, not 0 < size < _UNKNOWN_BYTES, size % 2 == 1
            return at + 8
        if name == b"fmt " and wav.form is None:
            if not 16 <= size <= _FMT_BYTES:
                raise TransportError(f"the WAV header is damaged: its format takes {size} bytes")
            self.form = wav.form = wav_form(data[at + 8 : at + inside])
        elif not _printable(name):
            raise TransportError("the WAV header is damaged: send the file as it is")
        wav.skip = size + size % 2
        return at + 8


def _printable(name: bytes) -> bool:
    return all(32 <= letter < 127 for letter in name)


def _beginning(data: bytes) -> int:
    """How many of the last bytes may be the beginning of a WAV header."""
    for count in range(min(11, len(data)), 0, -1):
        tail = data[-count:]
        if any(name.startswith(tail[:4]) for name in _WAV_NAMES) and b"WAVE".startswith(tail[8:]):
            return count
    return 0
