"""A picture file, checked before it costs anything, as upright RGB in sRGB.

Whoever sends a picture chooses what it costs to decode. So what the file says of itself is read first, part by part
and without decoding, and then decoded in a process that may be ended (engine/decoder.py), of which this is the inside.
It imports no more than Pillow, to start quickly.
"""

import contextlib
import io
import json
import re
import signal
import struct
import sys
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from engine.colour import ADOBE_RGB, Encoding, from_cicp, gamma, to_srgb
from engine.formats import MAX_DECODED, PictureError, kind_of

#: Pixels that a picture may have, by what decoding takes for each: up to 9, 13, 25 and 25 bytes, measured.
MAX_PIXELS = {"JPEG": 50_000_000, "PNG": 50_000_000, "PNG of 16 bits": 25_000_000, "WebP": 25_000_000}
MAX_SIDE = 16_384
#: Passes over a JPEG: encoders make 10 or so; each costs the whole picture, however few bytes it has.
MAX_SCANS = 64
#: Segments or chunks of a file, and bytes of a PNG's profile once it is inflated.
MAX_PARTS = 50_000
#: Bytes between two segments of a JPEG's header, where there should be none.
MAX_BETWEEN = 65_536
MAX_PROFILE = 16_000_000
#: For all that the process holds, where the system can limit that.
MEMORY = 768 << 20
#: It ends itself then, if whoever started it was killed. More than engine.decoder waits.
CPU_SECONDS = 20
#: What shows through a transparent picture: light, and without a colour of its own.
BACKDROP = (208, 208, 208)


class _Damaged(Exception):
    """Parts of a file do not fit together."""


@dataclass(frozen=True)
class Picture:
    """pixels: height x width x 3 bytes, RGB, row by row. reduced: by how much its sides are shorter than the file's."""

    width: int
    height: int
    reduced: int
    pixels: bytes


def decode(data: bytes) -> Picture:
    """A JPEG, PNG or WebP (the first picture of an animation), upright, in sRGB and without transparency.

    What the file says of its colours is applied: an ICC profile of the picture's own kind, in a PNG cICP, iCCP, sRGB,
    or gAMA and cHRM, in that order, else EXIF's Adobe RGB; what says nothing is sRGB, and CMYK without a profile is
    mixed as ideal inks are. Raises PictureError; MemoryError where the process may not have as much as it takes.
    """
    kind = kind_of(data[:256])
    # The decoders meet hostile bytes here and raise nearly anything; whatever it is, the file is at fault.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return {"JPEG": _jpeg, "PNG": _png, "WebP": _webp}[kind](data)
        except (PictureError, MemoryError):
            raise
        except Exception as error:
            raise PictureError(f"the {kind} is damaged or cut short; get a whole copy") from error


def check_size(width: int, height: int, kind: str) -> None:
    """Raises PictureError. kind: of MAX_PIXELS."""
    most = MAX_PIXELS[kind]
    if width * height > most:
        which = "" if kind in ("JPEG", "PNG") else f" for a {kind}"
        raise PictureError(
            f"{width} x {height} pixels, the limit is {most // 1_000_000} million{which}; save a smaller copy"
        )
    if max(width, height) > MAX_SIDE:
        raise PictureError(f"{width} x {height} pixels, the limit is {MAX_SIDE} on a side; save a smaller copy")


def _parts(kind: str) -> Iterator[None]:
    """So many parts as a file may have. Raises PictureError after the last."""
    yield from (None for _ in range(MAX_PARTS))
    raise PictureError(f"the {kind} has more than {MAX_PARTS} parts; save it anew")


# --- JPEG

# The last of the bytes FF before a marker, and the marker; FF 00 stands for a byte FF in what is encoded, and restart
# markers are within a scan.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_SOS, _EOI, _BARE = 0xDA, 0xD9, (0x01, 0xD8)
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
#: Lossless, and hierarchical: in no browser, and not in libjpeg-turbo.
_RARE_SOF = frozenset((0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF))


def check_jpeg(data: bytes) -> None:
    """Look at every segment of every scan, as a decoder comes by them (ITU-T T.81, annex B). Raises PictureError, or
    _Damaged."""
    at, scans = 2, 0
    for _ in _parts("JPEG"):
        found = _MARKER.search(data, at)
        if found is None:
            return  # cut short, which the decoder finds
        if not scans and found.start() - at > MAX_BETWEEN:
            raise _Damaged("no marker")  # Pillow would look at each byte
        at, marker = found.end(), data[found.end() - 1]
        if marker == _EOI:
            return
        if marker in _BARE:
            continue
        if marker in _SOF:
            height, width = struct.unpack(">HH", data[at + 3 : at + 7].ljust(4, b"\0"))
            check_size(width, height, "JPEG")
            if marker in _RARE_SOF or data[at + 2 : at + 3] not in (b"", b"\x08"):
                raise PictureError("a JPEG that is lossless, hierarchical or of 12 bits is not supported; save it anew")
        elif marker == _SOS:
            scans += 1
            if scans > MAX_SCANS:
                raise PictureError(f"the JPEG has more than {MAX_SCANS} scans; save it anew")
        at += max(2, int.from_bytes(data[at : at + 2], "big"))


def _jpeg(data: bytes) -> Picture:
    check_jpeg(data)
    image = JpegImageFile(io.BytesIO(data))
    width, height = image.size
    check_size(width, height, "JPEG")
    if width * height > MAX_DECODED:
        image.draft(None, ((width + 1) // 2, (height + 1) // 2))
    return _finish(image, image.info.get("icc_profile"), None, -(-width // image.size[0]))


# --- PNG


@dataclass
class _Chunks:
    """What of a PNG is decoded. plain: the file without what is not needed, such as texts."""

    width: int
    height: int
    depth: int
    colour: int
    plain: bytes
    profile: bytes | None = None
    encoding: Encoding | None = None


_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf")
_COLOURS = (b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM")


def read_png(data: bytes) -> _Chunks:
    """Look at every chunk. Raises PictureError, or _Damaged for what is no whole PNG."""
    at, kept, colours, header = 8, [data[:8]], {}, None
    for _ in _parts("PNG"):
        if at + 12 > len(data):
            raise _Damaged("no end")
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        part = memoryview(data)[at + 4 : end]
        if end > len(data) or zlib.crc32(part[:-4]) != int.from_bytes(part[-4:], "big"):
            raise _Damaged(f"chunk {name!r}")
        if header is None:
            if name != b"IHDR" or length != 13:
                raise _Damaged("no header")
            header = struct.unpack_from(">IIBB", data, at + 8)
            check_size(header[0], header[1], "PNG of 16 bits" if header[2] == 16 else "PNG")
        if name in _KEPT:
            kept.append(data[at:end])
        elif name in _COLOURS:
            colours.setdefault(name, data[at + 8 : end - 4])
        at = end
        if name == b"IEND":
            return _Chunks(*header, b"".join(kept), *_colours_of(colours))
    raise AssertionError


def _colours_of(chunks: dict[bytes, bytes]) -> tuple[bytes | None, Encoding | None]:
    """By the precedence of W3C PNG, third edition, section 4.3; a chunk that makes no sense is
    as if it were not there."""
    with contextlib.suppress(KeyError, ValueError):
        primaries, transfer, matrix, full = chunks[b"cICP"]
        if matrix == 0 and (encoding := from_cicp(primaries, transfer, bool(full))):
            return None, encoding
    with contextlib.suppress(KeyError, ValueError, zlib.error):
        packed = chunks[b"iCCP"]
        start = packed.index(0) + 2  # after the name and the method
        profile = zlib.decompressobj().decompress(packed[start:], MAX_PROFILE + 1)
        if len(profile) <= MAX_PROFILE:
            return profile, None
    if b"sRGB" in chunks:
        return None, Encoding()
    linear, primaries = None, None
    with contextlib.suppress(KeyError, struct.error):
        (value,) = struct.unpack(">I", chunks[b"gAMA"])
        if 10_000 <= value <= 1_000_000:
            linear = gamma(100_000 / value)
    with contextlib.suppress(KeyError, struct.error):
        primaries = tuple(value / 100_000 for value in struct.unpack(">8I", chunks[b"cHRM"]))
    return None, Encoding(linear, primaries) if chunks.keys() & {b"gAMA", b"cHRM"} else None


def _png(data: bytes) -> Picture:
    chunks = read_png(data)
    image: Image.Image = PngImageFile(io.BytesIO(chunks.plain))
    encoding = chunks.encoding
    if chunks.depth == 16:
        key = image.info.pop("transparency", None)
        wide = _from_16_bits(chunks, key)
        wide.info = image.info
        image, encoding = wide, encoding and Encoding(None, encoding.primaries)
    return _finish(image, chunks.profile, encoding)


def _from_16_bits(chunks: _Chunks, key: int | tuple[int, ...] | None) -> Image.Image:
    """Through the transfer function at full depth: a linear picture has its shadows in the lower bits, and Pillow keeps
    the upper ones alone. key: the colour that is transparent."""
    import cv2
    import numpy as np

    wide = cv2.imdecode(np.frombuffer(chunks.plain, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if wide is None or wide.dtype != np.uint16:
        raise _Damaged("not decoded")
    wide = wide.reshape(*wide.shape[:2], -1)
    plain = np.rint(np.arange(65536) / 257).astype(np.uint8)
    known = chunks.encoding is not None and chunks.encoding.linear is not None
    narrow = np.take(np.array(chunks.encoding.table(65536), np.uint8) if known else plain, wide)
    order = [0] if chunks.colour in (0, 4) else [2, 1, 0]
    planes = [narrow[..., channel] for channel in order]
    if chunks.colour in (4, 6):
        planes.append(plain[wide[..., 3]] if known else narrow[..., 3])
    elif key is not None:
        planes.append(255 * (wide[..., order] != np.array(key)).any(axis=-1).astype(np.uint8))
    mode = ("L", "LA", "RGB", "RGBA")[len(planes) - 1]
    return Image.merge(mode, [Image.fromarray(np.ascontiguousarray(plane)) for plane in planes])


# --- WebP


def check_webp(data: bytes) -> None:
    """Look at every size that the file says it has (RFC 9649). Raises PictureError, or _Damaged."""
    at = 12
    for _ in _parts("WebP"):
        if at + 8 > len(data):
            return
        name, length = struct.unpack_from("<4sI", data, at)
        body = data[at + 8 : at + 24]
        if name in (b"VP8X", b"VP8 ", b"VP8L") and len(body) < 10:
            raise _Damaged("no header")
        if name == b"VP8X":
            check_size(int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1, "WebP")
        elif name == b"VP8 ":
            check_size(*(side & 0x3FFF for side in struct.unpack_from("<HH", body, 6)), "WebP")
        elif name == b"VP8L":
            bits = int.from_bytes(body[1:5], "little")
            check_size((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, "WebP")
        at += 8 + length + length % 2


def _webp(data: bytes) -> Picture:
    check_webp(data)
    image = WebPImageFile(io.BytesIO(data))
    return _finish(image, image.info.get("icc_profile"), None)


# --- what all have in common


def _finish(image: Image.Image, profile: bytes | None, encoding: Encoding | None, reduced: int = 1) -> Picture:
    """reduced: by how much it is reduced already."""
    image.load()
    if profile is None and encoding is None and _is_adobe_rgb(image):
        encoding = ADOBE_RGB
    info = image.info
    solid, alpha = _separate(image, encoding)
    del image
    if solid.width * solid.height > MAX_DECODED:
        solid, alpha, reduced = solid.reduce(2), alpha and alpha.reduce(2), 2 * reduced
    picture = to_srgb(solid, profile, encoding)
    if alpha is not None:  # the backdrop is in sRGB
        backdrop = Image.new("RGB", picture.size, BACKDROP)
        backdrop.paste(picture, mask=alpha)
        picture = backdrop
    picture.info = {key: value for key, value in info.items() if key in ("exif", "xmp")}
    picture = _upright(picture)
    return Picture(*picture.size, reduced, picture.tobytes())


def _separate(image: Image.Image, encoding: Encoding | None) -> tuple[Image.Image, Image.Image | None]:
    """Of any mode -> L, RGB or CMYK, and what of it is opaque."""
    alpha = None
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("1", "L", "LA") else "RGBA")
        alpha = image.getchannel("A")
        image = image.getchannel("L") if image.mode == "LA" else image.convert("RGB")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("RGB")
    return image, alpha


def _is_adobe_rgb(image: Image.Image) -> bool:
    """Whether EXIF says so: by DCF's name of it, or the number that some cameras write."""
    try:
        exif = image.getexif()
        space, index = exif.get_ifd(0x8769).get(0xA001), exif.get_ifd(0xA005).get(1, "")
        return space == 2 or (space == 0xFFFF and str(index).startswith("R03"))
    except Exception:  # broken EXIF is common, raises in many ways, and says nothing about the picture
        return False


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # see above
        return image


# --- the process


def main() -> None:
    """From a file on stdin to stdout: a line of JSON, {"width", "height", "reduced"} and then the pixels as they are in
    Picture, or {"refused"} with the words of a PictureError."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started this, and ends it
    with contextlib.suppress(ImportError, OSError, ValueError, AttributeError):
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    pixels = b""
    try:
        picture = decode(sys.stdin.buffer.read())
        told = {"width": picture.width, "height": picture.height, "reduced": picture.reduced}
        pixels = picture.pixels
    except PictureError as error:
        told = {"refused": str(error)}
    except MemoryError:
        told = {"refused": "it takes too much memory to decode; save a smaller copy"}
    sys.stdout.buffer.write(json.dumps(told).encode() + b"\n")
    sys.stdout.buffer.write(pixels)
    sys.stdout.buffer.flush()
