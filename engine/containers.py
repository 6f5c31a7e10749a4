"""What a file with sound says of itself: which track is meant, when it begins, and how long it should be.

FFmpeg reads all of that but for a few words, which are read here from the file's own bytes: whether a length is the
file's or an estimate, and whether an end mark is there.
"""

import re
import struct
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import av
from av.stream import Disposition

#: Less than so many seconds are how codecs round.
SLACK_SECONDS = 0.1
#: An offset between tracks is heard from here on.
OFFSET_SECONDS = 0.01
#: Where time begins at 0 by definition, and a track that begins later begins later. One that begins after so many
#: seconds was cut out of a stream that goes on for ever.
_FROM_ZERO, _JOINED_SECONDS = ("mov", "matroska"), 60.0
#: For people who hear or see differently, or about the film: not what is said in it.
_ASIDE = Disposition.comment | Disposition.hearing_impaired | Disposition.visual_impaired | Disposition.karaoke
_OGG_PAGE_BYTES = 65_307
#: WAVE_FORMAT_PCM, _IEEE_FLOAT, _ALAW, _MULAW and _EXTENSIBLE.
_UNCOMPRESSED = (1, 3, 6, 7, 0xFFFE)
#: A length of data from here on stands for one that was not known when the header was written.
_UNKNOWN_BYTES = 0x7FFF_0000
_MOST_CHUNKS = 1000
#: What begins a tag, which is no sound, and stands between MP3 files that were joined byte by byte.
_TAGS = (b"ID3", b"TAG", b"APETAGEX", b"LYRICSBEGIN")
_MP3_HEAD_BYTES = 1 << 12


def choose_track(container: av.container.InputContainer) -> av.audio.stream.AudioStream | None:
    """The track with sound that the file calls its default, else the first; None if there is none."""
    known = [stream for stream in container.streams.audio if stream.codec_context is not None]

    def rank(stream: av.audio.stream.AudioStream) -> tuple[bool, bool]:
        return not stream.disposition & Disposition.default, bool(stream.disposition & _ASIDE)

    return min(known, key=rank, default=None)


def offset(container: av.container.InputContainer, stream: av.audio.stream.AudioStream) -> float:
    """Seconds from the beginning of the file to that of a track: silence, or what is not to be heard if negative."""
    if stream.start_time is None or container.start_time is None:
        return 0.0
    begins, first = float(stream.start_time * stream.time_base), container.start_time / av.time_base
    if container.format.name.startswith(_FROM_ZERO) and first < _JOINED_SECONDS:
        first = 0.0
    late = begins - first
    return late if abs(late) >= OFFSET_SECONDS else 0.0


def cut_off(
    path: Path, container: av.container.InputContainer, stream: av.audio.stream.AudioStream, late: float, heard: float
) -> str:
    """Words on how a file ends before it should, as far as it tells, or goes on unread, and what to do; "" if it does
    not, or if it cannot be told.

    late: as offset says; heard: seconds of sound in it.
    """
    stated = _stated(path, container, stream, late, heard)
    if stated is not None:
        if heard < stated - max(SLACK_SECONDS, 0.01 * stated):
            return f"cut off: it ends after {heard:.1f} of {stated:.1f} s; get a whole copy"
        return _more(path) if container.format.name == "wav" else ""
    name = container.format.name
    size = path.stat().st_size
    missing = {"ogg": not _ogg_ends(path), "avi": _riff_bytes(path) > size, "w64": _w64_bytes(path) > size}
    if missing.get(name):
        return f"cut off, it seems: it ends after {heard:.1f} s, without an end mark; get a whole copy"
    return ""


def is_tag(packet: bytes) -> bool:
    """Whether what could not be decoded is a tag."""
    return packet.startswith(_TAGS)


def lacks_index(path: Path) -> bool:
    """Whether what cannot be read is an MP4 file or its kin, whose index often comes last."""
    with path.open("rb") as file:
        return file.read(8)[4:] == b"ftyp"


def _stated(
    path: Path, container: av.container.InputContainer, stream: av.audio.stream.AudioStream, late: float, heard: float
) -> float | None:
    """Seconds of sound that a file says it has; None if it does not."""
    name, rate = container.format.name, stream.codec_context.sample_rate
    length = float(stream.duration * stream.time_base) if stream.duration else None
    if name == "wav":
        return _wav_seconds(path, heard) or length
    if name in ("aiff", "caf"):
        return stream.frames / rate if stream.frames and stream.codec_context.name.startswith("pcm") else None
    if name.startswith("mov") or name in ("flac", "au", "tta") or (name == "mp3" and _mp3_states(path)):
        return length
    if name.startswith("matroska") or name == "flv":  # as an end, not as a length
        text = stream.metadata.get("DURATION", "")
        try:
            hours, minutes, seconds = map(float, text.split(":"))
            return 3600 * hours + 60 * minutes + seconds - late
        except ValueError:
            alone = len(container.streams) == 1 and container.duration
            return container.duration / av.time_base - late if alone else None
    return None


def _riff_chunks(path: Path) -> Iterator[tuple[bytes, int, bytes]]:
    """Name, stated size and first 16 bytes of each chunk of a RIFF file, the file's own first."""
    with path.open("rb") as file:
        at, name, size = 0, *_chunk(file.read(8))
        while name:
            head = file.read(16)
            yield name, size, head
            at += 12 if at == 0 else 8 + size + size % 2
            file.seek(at)
            name, size = _chunk(file.read(8))


def _chunk(head: bytes) -> tuple[bytes, int]:
    return (head[:4], int.from_bytes(head[4:], "little")) if len(head) == 8 else (b"", 0)


def _riff_bytes(path: Path) -> int:
    return next((8 + size for _, size, _ in _riff_chunks(path)), 0)


def _w64_bytes(path: Path) -> int:
    with path.open("rb") as file:
        return int.from_bytes(file.read(24)[16:], "little")


def _wav_seconds(path: Path, heard: float) -> float | None:
    """How long the data of a WAV file is by its header; None where that is not known. heard: seconds of what is there.

    Of samples without compression it is told by their bytes alone: many a header is wrong about bytes a second.
    """
    at, a_second = 0, 0
    for name, size, head in _riff_chunks(path):
        if name == b"fmt " and len(head) == 16:
            form, _, _, a_second = struct.unpack("<HHII", head[:12])
            a_second = 0 if form in _UNCOMPRESSED else a_second
        if name == b"data":  # about 2 or 4 GiB stand for a length that was not known
            there = path.stat().st_size - at - 8
            if not 0 < size < _UNKNOWN_BYTES or there <= 0:
                return None
            return max(heard * max(1.0, size / there), size / a_second if a_second else 0.0)
        at += 12 if at == 0 else 8 + size + size % 2
    return None


def _more(path: Path) -> str:
    """Words on a WAV file that another one was joined to, byte by byte: only the first is read."""
    for at, (name, _, head) in enumerate(islice(_riff_chunks(path), _MOST_CHUNKS)):
        if at and name == b"RIFF" and head.startswith(b"WAVE"):
            return "several WAV files one behind the other, of which the first is read; join them with a sound editor"
    return ""


def _ogg_ends(path: Path) -> bool:
    """Whether the last page of an Ogg file is there to its last byte and says that it is the last (RFC 3533)."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 2 * _OGG_PAGE_BYTES))
        tail = file.read()
    at = tail.rfind(b"OggS\0")
    if at < 0 or len(tail) < at + 27:
        return False
    segments = tail[at + 27 : at + 27 + tail[at + 26]]
    return bool(tail[at + 5] & 4) and len(tail) >= at + 27 + tail[at + 26] + sum(segments)


def _mp3_states(path: Path) -> bool:
    """Whether an MP3 file says how many frames it has. Else, and where others were joined to it, FFmpeg guesses the
    length from the first frames."""
    with path.open("rb") as file:
        head = file.read(10)
        if head[:3] == b"ID3" and len(head) == 10:
            size = 0
            for byte in head[6:]:
                size = size << 7 | byte & 127
            file.seek(10 + size)
        else:
            file.seek(0)
        frame = file.read(_MP3_HEAD_BYTES)
        whole = path.stat().st_size - file.tell() + len(frame)
    found = re.search(rb"(?:Xing|Info)\0\0\0(.)(?:....)(....)", frame, re.DOTALL)
    if found and found[1][0] & 3 == 3:  # it says how many frames, and how many bytes
        return whole <= 1.05 * int.from_bytes(found[2], "big")
    return any(name in frame for name in (b"Xing", b"Info", b"VBRI"))
