"""The colours of a picture file, against what standards and those who make profiles publish, in floating point."""

import io
import itertools
import struct
import zlib

import cv2
import numpy as np
import pytest
from pictures import chunk, encode, icc, png
from PIL import Image, ImageCms

from engine.picture import BACKDROP, Picture, decode
from engine.portrait import load_portrait

# Linear light of Display P3 and of Adobe RGB (1998) in that of sRGB: W3C CSS Color 4, section 10.9, sample code, and
# B. Lindbloom's XYZ matrices under D65.
P3_TO_SRGB = np.array([[1.2249401, -0.2249404, 0], [-0.0420569, 1.0420571, 0], [-0.0196376, -0.0786361, 1.0982735]])
ADOBE_TO_XYZ = np.array(
    [[0.5767309, 0.1855540, 0.1881852], [0.2973769, 0.6273491, 0.0752741], [0.0270343, 0.0706872, 0.9911085]]
)
XYZ_TO_SRGB = np.array(
    [[3.2404542, -1.5371385, -0.4985314], [-0.9692660, 1.8760108, 0.0415560], [0.0556434, -0.2040259, 1.0572252]]
)
D50_TO_D65 = np.array(
    [[0.9555766, -0.0230393, 0.0631636], [-0.0282895, 1.0099416, 0.0210077], [0.0122982, -0.0204830, 1.3299098]]
)
#: The columns of Apple's "Display P3.icc".
P3_COLUMNS = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
SRGB_COLUMNS = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
#: Skin, and what lies in sRGB whatever of these it is in.
COLOURS = ((224, 172, 140), (141, 85, 62), (90, 120, 100), (60, 60, 60), (250, 250, 250))


def srgb(light: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1, in levels."""
    light = np.clip(light, 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def linear(levels: object) -> np.ndarray:
    value = np.asarray(levels) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def patch(colour: object, mode: str = "RGB", side: int = 32) -> Image.Image:
    return Image.new(mode, (side, side), colour)


def seen(data: bytes) -> np.ndarray:
    """The middle of what is decoded."""
    made = decode(data)
    pixels = np.frombuffer(made.pixels, np.uint8).reshape(made.height, made.width, 3)
    return pixels[made.height // 2, made.width // 2].astype(float)


def assert_seen(data: bytes, expected: object, tolerance: float = 1.0) -> None:
    assert np.abs(seen(data) - expected).max() <= tolerance, (seen(data), expected)


def wide_png(levels: object, colour: int, *chunks: bytes) -> bytes:
    """One colour in 16 bits a channel."""
    row = b"\0" + np.tile(np.asarray(levels, ">u2"), 8).tobytes()
    header = struct.pack(">IIBBBBB", 8, 8, 16, colour, 0, 0, 0)
    return png(header, *chunks, chunk(b"IDAT", zlib.compress(row * 8)), chunk(b"IEND", b""))


def with_chunks(data: bytes, *chunks: bytes) -> bytes:
    """A PNG with more chunks behind its header."""
    return data[:33] + b"".join(chunks) + data[33:]


P3 = icc("RGB ", P3_COLUMNS)
GREY = icc("GRAY", gamma=1.0)
CICP = {"P3": chunk(b"cICP", bytes([12, 13, 0, 1])), "sRGB": chunk(b"cICP", bytes([1, 13, 0, 1]))}
GAMMA = {1.0: chunk(b"gAMA", struct.pack(">I", 100_000)), 2.2: chunk(b"gAMA", struct.pack(">I", 45_455))}
CHRM = chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000))


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("RGB", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("P", "PNG", {}),
        ("RGB", "WEBP", {"lossless": True}),
        ("RGBA", "WEBP", {"lossless": True}),
        ("RGB", "JPEG", {"quality": 100, "subsampling": 0}),
    ],
)
def test_display_p3_by_a_profile_in_every_mode(colour, mode, kind, options):
    expected = srgb(P3_TO_SRGB @ linear(colour))
    image = patch(colour)
    image = image.quantize(2) if mode == "P" else image.convert(mode)
    # a level of rounding in the file is more than one in a darker colour of another gamut
    assert_seen(encode(image, kind, icc_profile=P3, **options), expected, 3 if kind == "JPEG" else 1)


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("chunks", [(CICP["P3"],), (CHRM,), (GAMMA[2.2], CHRM)])
def test_display_p3_by_the_chunks_of_a_png(colour, chunks):
    expected = srgb(P3_TO_SRGB @ linear(colour))
    assert_seen(with_chunks(encode(patch(colour)), *chunks), expected)
    assert_seen(wide_png(np.array(colour) * 257, 2, *chunks), expected)


def exif(space: int, index: str = "") -> Image.Exif:
    made = Image.Exif()
    made.get_ifd(0x8769)[0xA001] = space
    if index:
        made.get_ifd(0x8769)[0xA005] = {1: index}
    return made


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize(
    ("kind", "options"), [("JPEG", {"quality": 100, "subsampling": 0}), ("WEBP", {"lossless": True})]
)
def test_adobe_rgb_by_exif(colour, kind, options):
    expected = srgb(XYZ_TO_SRGB @ ADOBE_TO_XYZ @ ((np.array(colour) / 255) ** (563 / 256)))
    for said in (exif(0xFFFF, "R03"), exif(2)):
        assert_seen(encode(patch(colour), kind, exif=said, **options), expected, 3 if kind == "JPEG" else 1)
    for said in (exif(1), exif(0xFFFF), exif(0xFFFF, "R98")):
        assert_seen(encode(patch(colour), kind, exif=said, **options), colour, 1)
    # a profile comes first
    data = encode(patch(colour), kind, exif=exif(0xFFFF, "R03"), icc_profile=P3, **options)
    assert_seen(data, srgb(P3_TO_SRGB @ linear(colour)), 3 if kind == "JPEG" else 1)


@pytest.mark.parametrize("level", [10, 60, 128, 200])
def test_grey_by_its_profile_in_every_mode(level):
    """Half the light of white is 188 in sRGB."""
    expected = srgb(np.array(level / 255))
    for mode, kind in (("L", "PNG"), ("LA", "PNG"), ("L", "JPEG")):
        image = patch((level, 255) if mode == "LA" else level, mode)
        assert_seen(encode(image, kind, icc_profile=GREY, **({"quality": 100} if kind == "JPEG" else {})), expected)
    profile = chunk(b"iCCP", b"grey\0\0" + zlib.compress(GREY))
    assert_seen(wide_png([level * 257], 0, profile), expected)
    assert_seen(wide_png([level * 257, 65535], 4, profile), expected)
    # some programs keep the profile of the colour picture, which is right for greys as well
    assert_seen(encode(patch(level, "L"), icc_profile=icc("RGB ", SRGB_COLUMNS, gamma=1.0)), expected)


def lab_of(colour: tuple[int, ...]) -> np.ndarray:
    """CIELAB (D50) of an sRGB colour."""
    xyz = np.linalg.inv(D50_TO_D65) @ np.linalg.inv(XYZ_TO_SRGB) @ linear(colour)
    ratio = xyz / (0.9642, 1, 0.8249)
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("inks", list(itertools.product((0, 255), repeat=4)))
def test_cmyk_by_its_profile(inks):
    """Solid inks over each other, as an imagined press prints them, whose darkest is black; Pillow writes JPEGs of
    them inverted, as Adobe does."""
    press = {
        each: tuple(255 * (1 - 0.85 * ink) * (1 - 0.8 * each[3]) * (sum(each[:3]) < 3) for ink in each[:3])
        for each in itertools.product((0, 1), repeat=4)
    }
    profile = icc("CMYK", lab={each: lab_of(colour) for each, colour in press.items()})
    expected = press[tuple(ink // 255 for ink in inks)]
    assert_seen(encode(patch(inks, "CMYK"), "JPEG", quality=100, icc_profile=profile), expected, 2.5)


def test_a_portrait_has_the_colours_of_its_profile(ada):
    """From the file to what is shown: written as Display P3, the face is as it was."""
    own = srgb(np.einsum("ij,hwj->hwi", np.linalg.inv(P3_TO_SRGB), linear(ada)))
    made = load_portrait(encode(np.rint(own).astype(np.uint8), icc_profile=P3))
    assert np.abs(made.pixels.astype(float) - ada).mean() < 0.6


@pytest.mark.parametrize("level", [2, 20, 128, 200])
def test_linear_light_by_the_gamma_of_a_png(level):
    expected = srgb(np.array(level / 255))
    data = with_chunks(encode(patch((level,) * 3)), GAMMA[1.0])
    assert_seen(data, expected)
    assert_seen(with_chunks(encode(patch(level, "L")), GAMMA[1.0]), expected)


@pytest.mark.parametrize("level", [50, 200, 700, 3000, 30000])
@pytest.mark.parametrize(("colour", "count"), [(0, 1), (2, 3), (6, 4)])
def test_linear_light_of_16_bits_keeps_its_shadows(level, colour, count):
    """Of which 8 bits would leave nothing: 200 of 65535 is 10 of 255 in sRGB."""
    levels = [level] * min(count, 3) + [65535] * (count == 4)
    assert_seen(wide_png(levels, colour, GAMMA[1.0]), srgb(np.array(level / 65535)), 0.51)


@pytest.mark.parametrize(
    ("transfer", "value", "expected"),
    [
        (16, 0.5081, 100 / 203),  # PQ: 100 cd/m2 (SMPTE ST 2084), diffuse white being 203
        (16, 0.5807, 1.0),  # ITU-R BT.2408, table 1
        (16, 0.9, 1.0),  # brighter than white
        (18, 0.75, 1.0),  # HLG: the same table
        (18, 0.38, 26 / 203),  # and 18 % grey
        (8, 0.25, 0.25),
        (1, 0.409, 0.18),  # BT.709: 18 % grey
    ],
)
def test_transfer_functions_that_a_png_names(transfer, value, expected):
    said = chunk(b"cICP", bytes([1, transfer, 0, 1]))
    assert_seen(wide_png([round(65535 * value)] * 3, 2, said), srgb(np.array(expected)), 1.5)


def test_narrow_range_by_cicp():
    said = chunk(b"cICP", bytes([1, 13, 0, 0]))
    for level, expected in ((16, 0), (235, 255), (126, 128)):
        assert_seen(with_chunks(encode(patch((level,) * 3)), said), expected)


def test_what_a_png_says_first():
    """W3C PNG, third edition, section 4.3: cICP, iCCP, sRGB, then gAMA and cHRM."""
    colour = COLOURS[0]
    p3 = srgb(P3_TO_SRGB @ linear(colour))
    plain, profile = encode(patch(colour)), chunk(b"iCCP", b"p3\0\0" + zlib.compress(P3))
    srgb_said = chunk(b"sRGB", b"\0")
    assert_seen(with_chunks(plain, GAMMA[1.0], srgb_said, profile, CICP["sRGB"]), colour)
    assert_seen(with_chunks(plain, GAMMA[1.0], srgb_said, profile), p3)
    assert_seen(with_chunks(plain, GAMMA[1.0], CHRM, srgb_said), colour)
    assert_seen(with_chunks(plain, GAMMA[2.2]), colour)  # which is how programs without sRGB say sRGB
    assert_seen(with_chunks(plain, chunk(b"cICP", bytes([2, 2, 0, 1])), profile), p3)  # "unspecified"
    assert_seen(with_chunks(plain, chunk(b"cICP", bytes([12, 13, 1, 1])), profile), p3)  # no PNG has YCbCr


@pytest.mark.parametrize(
    "broken",
    [
        chunk(b"gAMA", bytes(4)),
        chunk(b"gAMA", b"\0"),
        chunk(b"cHRM", bytes(32)),
        chunk(b"cHRM", b"\xff" * 32),
        chunk(b"cHRM", struct.pack(">8I", *[31270, 32900] * 4)),
        chunk(b"cICP", b"\x0c"),
        chunk(b"iCCP", b"name"),
        chunk(b"iCCP", b"name\0\0 no zlib"),
        chunk(b"iCCP", b"name\0\0" + zlib.compress(b"no profile")),
    ],
)
def test_a_chunk_that_makes_no_sense_says_nothing(broken):
    assert_seen(with_chunks(encode(patch(COLOURS[0])), broken), COLOURS[0])


def test_a_profile_of_another_kind_of_picture_or_a_broken_one_says_nothing():
    cmyk = icc("CMYK", lab={each: (50, 0, 0) for each in itertools.product((0, 1), repeat=4)})
    for profile in (cmyk, GREY, P3[:200], P3[:128] + bytes(300), b"nonsense", b"\0"):
        assert_seen(encode(patch(COLOURS[0]), icc_profile=profile), COLOURS[0])
    inks = (10, 90, 100, 20)
    plain = seen(encode(patch(inks, "CMYK"), "JPEG", quality=100))
    assert_seen(encode(patch(inks, "CMYK"), "JPEG", quality=100, icc_profile=P3), plain, 0)
    assert np.abs(plain - [(255 - ink) * (255 - 20) / 255 for ink in inks[:3]]).max() < 2


def test_a_profile_is_taken_at_its_numbers_and_not_at_its_name():
    """There are linear profiles whose name begins with sRGB, and sRGB under any name."""
    named = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    made = decode(encode(noise, icc_profile=named.replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be"))))
    assert made == Picture(16, 16, 1, noise.tobytes())
    lying = icc("RGB ", SRGB_COLUMNS, gamma=1.0, name="sRGB-elle-V2-g10.icc")
    assert ImageCms.ImageCmsProfile(io.BytesIO(lying)).profile.profile_description.startswith("sRGB")
    assert_seen(encode(patch((128, 128, 128)), icc_profile=lying), 188)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_the_backdrop_of_a_transparent_picture_is_in_srgb(kind):
    image = patch((*COLOURS[0], 0), "RGBA")
    linear_light = icc("RGB ", SRGB_COLUMNS, gamma=1.0)
    assert_seen(encode(image, kind, icc_profile=linear_light, lossless=True), BACKDROP, 0)
    half = patch((0, 0, 0, 128), "RGBA")
    assert_seen(
        encode(half, kind, icc_profile=linear_light, lossless=True), [round(v * 127 / 255) for v in BACKDROP], 1
    )


def test_a_transparent_colour_of_16_bits():
    key = chunk(b"tRNS", struct.pack(">3H", 1000, 2000, 3000))
    assert_seen(wide_png([1000, 2000, 3000], 2, key), BACKDROP, 0)
    assert_seen(wide_png([1000, 2000, 3001], 2, key), [round(v / 257) for v in (1000, 2000, 3001)])
    assert_seen(wide_png([1000], 0, chunk(b"tRNS", struct.pack(">H", 1000))), BACKDROP, 0)


def test_16_bits_are_rounded():
    levels = np.array([127 * 257 + 128, 127 * 257 + 129, 65535])
    assert_seen(wide_png(levels, 2), [127, 128, 255], 0)
    assert_seen(encode(cv2.merge([np.full((9, 9), 65535 - 100, np.uint16)])[..., 0:1].squeeze()), 255, 0)
