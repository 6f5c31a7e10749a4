"""What a picture file may cost: limits before it is decoded, a process that is ended when they do not do, and that the
rest goes on meanwhile."""

import itertools
import os
import struct
import subprocess
import sys
import threading
import time
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import UNLIMITED, chunk, decode_here, encode, icc, many_scans, png
from PIL import Image

from engine import decoder as decoder_module
from engine import picture, portrait
from engine.decoder import Decoder, DecoderError
from engine.formats import PictureError
from engine.picture import decode
from engine.portrait import PortraitError, load_portrait

SCANS = many_scans(20_000)


def refusal(data: bytes) -> str:
    with pytest.raises(PictureError) as caught:
        decode(data)
    assert str(caught.value).isprintable()
    return str(caught.value)


def blank(width: int, height: int, depth: int = 8, colour: int = 2, *chunks: bytes) -> bytes:
    """A PNG whose pixels are all missing."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return png(header, *chunks, chunk(b"IDAT", zlib.compress(bytes(100))), chunk(b"IEND", b""))


def webp(name: bytes, body: bytes) -> bytes:
    part = name + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(part)) + b"WEBP" + part


def jpeg_says(width: int, height: int, marker: int = 0xC2, bits: int = 8) -> bytes:
    """A small JPEG with another frame header behind its own."""
    plain = encode(Image.new("RGB", (64, 64)), "JPEG", progressive=True)
    start = plain.index(b"\xff\xc2")
    end = start + 2 + int.from_bytes(plain[start + 2 : start + 4], "big")
    header = bytes([255, marker, *plain[start + 2 : start + 4], bits]) + struct.pack(">HH", height, width)
    return plain[:end] + header + plain[start + 9 :]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (blank(1, 50_000_000), "1 x 50000000 pixels, the limit is 16384 on a side"),
        (blank(50_000_000, 1), "50000000 x 1 pixels, the limit is 16384 on a side"),
        (blank(7_100, 7_100), "7100 x 7100 pixels, the limit is 50 million"),
        (blank(6_000, 6_000, 16), "the limit is 25 million for a PNG of 16 bits"),
        (webp(b"VP8L", b"\x2f" + (16382 | 2999 << 14).to_bytes(4, "little") + bytes(8)), "16383 x 3000 pixels"),
        (webp(b"VP8 ", b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", 16383, 3000)), "16383 x 3000 pixels"),
        (
            webp(b"VP8X", bytes(4) + (16382).to_bytes(3, "little") + (2999).to_bytes(3, "little")),
            "25 million for a WebP",
        ),
        (jpeg_says(65_500, 65_500), "65500 x 65500 pixels, the limit is 50 million"),
        (jpeg_says(64, 64, marker=0xC3), "lossless, hierarchical or of 12 bits is not supported"),
        (jpeg_says(64, 64, bits=12), "lossless, hierarchical or of 12 bits is not supported"),
        (SCANS, "more than 64 scans"),
        (SCANS[:2] + b"\xff" * 100_000 + SCANS[2:], "the JPEG is damaged"),
        (SCANS[:20] + b"\0" * 100_000 + SCANS[20:], "the JPEG is damaged"),
        (b"\xff\xd8" + b"\xff\xfe\0\2" * 60_000 + SCANS[2:], "the JPEG has more than 50000 parts"),
        (blank(64, 64, 8, 2, chunk(b"tEXt", b"a\0b") * 60_000), "the PNG has more than 50000 parts"),
        (webp(b"abcd", b"")[:12] + b"abcd\0\0\0\0" * 60_000, "the WebP has more than 50000 parts"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_file_says_of_itself_is_read_before_it_is_decoded(data, words, monkeypatch):
    def never(*_):
        raise AssertionError("a decoder was asked")

    for name in ("JpegImageFile", "PngImageFile", "WebPImageFile"):
        monkeypatch.setattr(picture, name, never)
    assert words in refusal(data)


def test_markers_within_what_has_a_length_are_no_scans():
    """A profile, a preview in EXIF, what follows the end: none of it is decoded."""
    plain = encode(Image.new("RGB", (64, 64), (9, 99, 199)), "JPEG", progressive=True)
    scans = b"\xff\xda\0\2" * 1000
    inside = plain[:2] + b"\xff\xe5" + struct.pack(">H", 2 + len(scans)) + scans + plain[2:] + scans
    assert decode(inside) == decode(plain)


@pytest.mark.parametrize(
    "chunks",
    [
        [chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(60_000_000)))],
        [chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(60_000_000)))],
        [chunk(b"tEXt", b"a\0" + bytes(100))] * 3000,
        [chunk(b"acTL", struct.pack(">II", 4_000_000_000, 0))],
    ],
    ids=["zTXt", "iTXt", "tEXt", "acTL"],
)
def test_what_is_not_of_the_picture_is_passed_over(chunks):
    plain = encode(np.full((8, 8, 3), 77, np.uint8))
    whole = plain[:33] + b"".join(chunks) + plain[33:]
    assert picture.read_png(whole).plain == picture.read_png(plain).plain  # Pillow never sees them
    assert decode(whole) == decode(plain)


def test_a_profile_that_inflates_without_end_says_nothing():
    plain, bomb = encode(np.full((8, 8, 3), 77, np.uint8)), zlib.compress(bytes(60_000_000))
    assert decode(plain[:33] + chunk(b"iCCP", b"a\0\0" + bomb) + plain[33:]) == decode(plain)
    # one of two megabytes, as of a printer, is none too large: Pillow itself stops at one
    large = icc("RGB ", ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)), 1.0)
    large = struct.pack(">I", 2_000_000) + large[4:].ljust(2_000_000 - 4, b"\0")
    packed = chunk(b"iCCP", b"a\0\0" + zlib.compress(large))
    assert decode(plain[:33] + packed + plain[33:]).pixels[0] == 149  # 77 of linear light


def test_an_animation_is_its_first_picture():
    first, second = (Image.new("RGB", (40, 30), colour) for colour in ((200, 0, 0), (0, 0, 200)))
    for kind in ("WEBP", "PNG"):
        data = encode(first, kind, save_all=True, append_images=[second] * 50, lossless=True)
        assert decode(data).pixels == bytes((200, 0, 0)) * 1200


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_large_picture_is_halved_and_its_face_counted_in_its_own_pixels(ada, kind, monkeypatch):
    monkeypatch.setattr(picture, "MAX_DECODED", 300_000)
    canvas = np.full((700, 900, 3), 90, np.uint8)
    canvas[100:612, 200:712] = ada
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = np.ascontiguousarray(np.rot90(canvas))
    data = encode(turned, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    made = decode(data)
    assert (made.width, made.height, made.reduced) == (450, 350, 2)
    pixels = np.frombuffer(made.pixels, np.uint8).reshape(350, 450, 3)
    expected = cv2.resize(canvas, (450, 350), interpolation=cv2.INTER_AREA)
    assert np.abs(pixels.astype(float) - expected).mean() < 2
    small = np.full((700, 900, 3), 90, np.uint8)
    small[100:400, 200:500] = cv2.resize(ada, (300, 300), interpolation=cv2.INTER_AREA)
    with pytest.raises(PortraitError, match=r"only 1\d\d x 1\d\d pixels, at least 192 are needed"):
        load_portrait(encode(small), decode=decode_here)


def test_a_crowd_is_no_portrait(ada, monkeypatch):
    """Each face is laid over all others at once, not one by one, which took half a minute."""
    face = cv2.resize(ada[90:420, 120:400], (28, 28), interpolation=cv2.INTER_AREA)
    crowd = np.tile(face, (22, 22, 1))
    calls, overlaps = [], portrait._overlaps
    monkeypatch.setattr(portrait, "_overlaps", lambda *given: calls.append(len(given[1])) or overlaps(*given))
    faces = portrait._faces(crowd)
    assert 300 < len(faces) == len(calls) <= calls[0]
    boxes = np.array([face.box for face in faces])
    assert all((overlaps(box, np.delete(boxes, index, axis=0)) < 0.3).all() for index, box in enumerate(boxes))
    with pytest.raises(PortraitError, match="two faces of like size"):
        load_portrait(encode(crowd), decode=decode_here)


# --- the process


@pytest.fixture
def unlimited(monkeypatch):
    """Without the limits that are read first: what then goes on for minutes stands for what those do not know of."""
    monkeypatch.setattr(decoder_module, "_PROGRAM", UNLIMITED)


def test_one_that_takes_too_long_is_ended(unlimited):
    began = time.monotonic()
    with pytest.raises(PictureError, match=r"^it takes more than 1 s to decode; save it anew, or smaller$"):
        Decoder(seconds=1.0)(SCANS)
    assert time.monotonic() - began < 8


@pytest.mark.parametrize("how", ["close", "stopped"])
def test_one_is_ended_when_all_is(unlimited, how):
    stop = threading.Event()
    decoder = Decoder(stopped=stop.is_set)
    threading.Timer(0.5, decoder.close if how == "close" else stop.set).start()
    began = time.monotonic()
    with pytest.raises(DecoderError, match="about to end"):
        decoder(SCANS)
    assert time.monotonic() - began < 5
    with pytest.raises(DecoderError):
        decoder(encode(np.zeros((8, 8, 3), np.uint8)))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system sets no such limit")
def test_its_memory_is_limited(unlimited):
    with pytest.raises(PictureError, match="memory"):
        Decoder()(blank(30_000, 30_000))


@pytest.mark.parametrize(
    "program",
    [
        "print('hello')",
        "print('[1, 2]')",
        'print(\'{"width": 2, "height": 2, "reduced": 1}\')',
        'print(\'{"width": 1000000, "height": 1000000, "reduced": 1}\')',
        "print('{\"width\": -1, \"height\": -3, \"reduced\": 1}' + '\\n' + 'abcdefgh', end='')",
        "import os; os.kill(os.getpid(), 9)",
        "import sys; sys.stdin.close(); print('{}')",
    ],
)
def test_what_the_process_says_is_believed_no_more_than_the_picture(program, monkeypatch):
    monkeypatch.setattr(decoder_module, "_PROGRAM", program)
    with pytest.raises(PictureError) as caught:
        Decoder()(bytes(1_000_000))
    assert str(caught.value).isprintable()


def test_a_process_that_cannot_be_had_is_not_the_pictures_fault(monkeypatch, tmp_path):
    monkeypatch.setattr(decoder_module, "_PROGRAM", "import no_such_module")
    with pytest.raises(DecoderError, match="does not work here"):
        Decoder()(b"")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(DecoderError, match=r"cannot be started \(No such file or directory\)"):
        Decoder()(b"")


def test_it_finds_its_modules_from_a_program_without_a_guard_in_another_folder(assets, tmp_path):
    (tmp_path / "picture.py").write_text("raise SystemExit('not this one')")
    program = tmp_path / "mine.py"
    program.write_text(
        "import sys; sys.path.append(sys.argv[2])\n"
        "from engine.portrait import load_portrait; print(load_portrait(sys.argv[1]).pixels.shape)\n"
    )
    root = str(assets.parent.parent)
    mine = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, program, assets / "portraits" / "bo.jpg", root]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, env=mine)
    assert (done.stdout, done.stderr) == ("(512, 512, 3)\n", "")


def test_the_process_imports_little():
    """A portrait waits for it to start."""
    program = "import sys; import engine.picture; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert not {"numpy", "cv2", "av", "onnxruntime", "engine.portrait"} & set(done.stdout.split())


# --- all of it


def small(kind: str) -> bytes:
    """With everything in it that a file may have."""
    image = Image.effect_mandelbrot((48, 40), (-2, -1.5, 1, 1.5), 50)
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = icc("RGB ", ((0.5, 0.2, 0), (0.3, 0.7, 0), (0.1, 0.1, 0.8)))
    if kind == "PNG":
        return encode(image.convert("RGBA"), "PNG", icc_profile=profile, exif=exif)
    if kind == "PNG of 16 bits":
        extra = chunk(b"gAMA", struct.pack(">I", 100_000)) + chunk(b"tRNS", bytes(2))
        plain = encode(Image.fromarray(np.asarray(image).astype(np.uint16) * 257))
        return plain[:33] + extra + plain[33:]
    if kind == "CMYK":
        inks = {each: (100 - 25 * sum(each), 0, 0) for each in itertools.product((0, 1), repeat=4)}
        return encode(image.convert("CMYK"), "JPEG", icc_profile=icc("CMYK", lab=inks), progressive=True)
    return encode(image.convert("RGB"), kind, icc_profile=profile, exif=exif)


SMALL = {kind: small(kind) for kind in ("JPEG", "CMYK", "PNG", "PNG of 16 bits", "WEBP")}


def sealed(data: bytes) -> bytes:
    """A PNG whose check sums are right, so that what is in it is looked at."""
    at, parts = 8, [data[:8]]
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if at + 12 + length > len(data):
            break
        parts.append(chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return b"".join([*parts, data[at:]])


@settings(max_examples=400)
@given(
    kind=st.sampled_from(list(SMALL)),
    spots=st.lists(st.tuples(st.floats(0, 0.999), st.binary(max_size=6), st.booleans()), min_size=1, max_size=6),
    cut=st.sampled_from([1.0, 1.0, 1.0, 0.9, 0.5]),
)
def test_whatever_is_in_a_file_it_is_a_picture_or_one_line(kind, spots, cut):
    data = bytearray(SMALL[kind])
    for where, value, over in spots:
        at = int(where * len(data))
        data[at : at + len(value) * over] = value
    data = bytes(data[: int(cut * len(data))])
    try:
        made = decode(sealed(data) if "PNG" in kind else data)
    except PictureError as error:
        assert str(error).isprintable() and len(str(error)) < 150
    else:
        assert len(made.pixels) == 3 * made.width * made.height
        assert made.width * made.height <= picture.MAX_DECODED
