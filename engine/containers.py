"""What a file with sound says of itself: which track is meant, when it begins, and how long it should be.

FFmpeg reads all of that but for a few words, which are read here from the file's own bytes: whether a length is the
file's or an estimate, and whether an end mark is there.
"""

import struct
from collections.abc import Iterator
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
    """Words on how a file ends before it should, as far as it tells; "" if it does not, or if it cannot be told.

    late: as offset says; heard: seconds of sound in it.
    """
    stated = _stated(path, container, stream, late)
    if stated is not None:
        if heard < stated - max(SLACK_SECONDS, 0.01 * stated):
            return f"cut off: it ends after {heard:.1f} of {stated:.1f} s"
        return ""
    name = container.format.name
    size = path.stat().st_size
    missing = {"ogg": not _ogg_ends(path), "avi": _riff_bytes(path) > size, "w64": _w64_bytes(path) > size}
    if missing.get(name):
        return f"cut off, it seems: it ends after {heard:.1f} s, without an end mark"
    return ""


def lacks_index(path: Path) -> bool:
    """Whether what cannot be read is an MP4 file or its kin, whose index often comes last."""
    with path.open("rb") as file:
        return file.read(8)[4:] == b"ftyp"


def _stated(
    path: Path, container: av.container.InputContainer, stream: av.audio.stream.AudioStream, late: float
) -> float | None:
    """Seconds of sound that a file says it has; None if it does not."""
    name, rate = container.format.name, stream.codec_context.sample_rate
    length = float(stream.duration * stream.time_base) if stream.duration else None
    if name == "wav":
        return _wav_seconds(path) or length
    if name in ("aiff", "caf"):
        return stream.frames / rate if stream.frames and stream.codec_context.name.startswith("pcm") else None
    if name.startswith("mov") or name in ("flac", "au") or (name == "mp3" and _mp3_states(path)):
        return length
    if name.startswith("matroska"):  # as an end, not as a length
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


def _wav_seconds(path: Path) -> float | None:
    """How long the data of a WAV file is by its header; None where that is not known."""
    a_second = 0
    for name, size, head in _riff_chunks(path):
        if name not in (b"RIFF", b"fmt ", b"data"):
            continue
        if name == b"fmt " and len(head) == 16:
            a_second = struct.unpack("<HHIIHH", head)[3]
        if name == b"data":  # about 2 or 4 GiB stand for a length that was not known
            return size / a_second if a_second and 0 < size < 0x7FFF_0000 else None
    return None


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
    """Whether an MP3 file says how many frames it has. Else FFmpeg guesses the length from the first frames."""
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
    return any(name in frame for name in (b"Xing", b"Info", b"VBRI"))
