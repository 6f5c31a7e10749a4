"""Picture files and colour profiles for the tests, as people have them and as nobody should."""

import io
import itertools
import re
import struct
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from engine import picture
from engine.decoder import Decoded


def encode(picture: np.ndarray | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decode_here(data: bytes) -> Decoded:
    """As an engine.decoder.Decoder, without a process: for tests of what becomes of a picture that was decoded."""
    made = picture.decode(data)
    return Decoded(np.frombuffer(made.pixels, np.uint8).reshape(made.height, made.width, 3), made.reduced)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(header: bytes, *chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks)


def many_scans(count: int, width: int = 4000, height: int = 3000) -> bytes:
    """A progressive JPEG with so many empty scans more, of about a hundred bytes each."""
    plain = encode(Image.new("RGB", (width, height), (120, 90, 80)), "JPEG", progressive=True)
    starts = [found.start() for found in re.finditer(rb"\xff\xda", plain)]
    first, second = plain[: starts[1]], plain[starts[1] : starts[2]]
    return first + second * count + b"\xff\xd9"


def fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(65536 * value) for value in values))


def icc(
    space: str,
    columns: Sequence[Sequence[float]] = (),
    gamma: float | None = None,
    lab: Mapping[tuple[int, ...], Sequence[float]] | None = None,
    name: str = "for tests",
) -> bytes:
    """A profile (ICC.1:2010) of version 2. columns: XYZ (D50) of red, green and blue; gamma: None is sRGB's curve; lab:
    CIELAB of every overprint of full inks, 0 or 1 each."""
    curve = b"para" + bytes(4) + struct.pack(">HH", 3, 0) + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    if gamma is not None:
        curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(256 * gamma)) + bytes(2)
    tags = {b"wtpt": b"XYZ " + bytes(4) + fixed(0.9642, 1, 0.8249)}
    text = name.encode() + b"\0"
    tags[b"desc"] = b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78)
    if space == "GRAY":
        tags[b"kTRC"] = curve
    for primary, column in zip((b"r", b"g", b"b"), columns, strict=False):
        tags |= {primary + b"XYZ": b"XYZ " + bytes(4) + fixed(*column), primary + b"TRC": curve}
    if lab is not None:
        nodes = [lab[each] for each in itertools.product((0, 1), repeat=4)]
        table = b"".join(
            struct.pack(">3H", *(round(v) for v in (65280 * l_ / 100, 256 * (a + 128), 256 * (b + 128))))
            for l_, a, b in nodes
        )
        ends = struct.pack(">2H", 0, 65535)
        tags[b"A2B0"] = (
            b"mft2" + bytes(4) + bytes([4, 3, 2, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1) + struct.pack(">2H", 2, 2)
            + ends * 4 + table + ends * 3
        )  # fmt: skip
    start, body, index = 128 + 4 + 12 * len(tags), b"", b""
    for tag, value in tags.items():
        value += bytes(-len(value) % 4)
        index += struct.pack(">4sII", tag, start + len(body), len(value))
        body += value
    pcs = b"Lab " if lab is not None else b"XYZ "
    kind = b"prtr" if lab is not None else b"mntr"
    head = struct.pack(">I4sI4s4s4s", start + len(body), bytes(4), 0x02400000, kind, space.encode(), pcs)
    head += bytes(12) + b"acsp" + bytes(28) + fixed(0.9642, 1, 0.8249)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + index + body


#: What decodes pictures (engine/decoder.py) with none of the limits that are read beforehand, but the one of memory.
UNLIMITED = (
    "import sys; sys.path[:] = sys.argv[1:]; from engine import picture; picture.MAX_SCANS = 10**9; "
    "picture.MAX_SIDE = 10**9; picture.MAX_PIXELS = dict.fromkeys(picture.MAX_PIXELS, 10**12); picture.main()"
)
