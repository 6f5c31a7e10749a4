"""What the numbers of a picture mean, and the same colours in sRGB.

A file says it by an ICC profile, or by naming a transfer function and primaries: PNG's cICP, gAMA and cHRM chunks
(W3C PNG, third edition, section 11.3.2), EXIF's colour space (JEITA CP-3451, interoperability R03).
"""

import io
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from math import exp

from PIL import Image, ImageChops, ImageCms

#: x and y of white, red, green and blue: ITU-R BT.709, which sRGB shares; BT.601 with 625 and 525 lines, SMPTE 240M as
#: the latter; BT.470 M; generic film; BT.2020; SMPTE RP 431-2 (DCI P3) and EG 432-1 (Display P3); EBU 3213. By the
#: numbers of ITU-T H.273, table 2.
_D65, _ILLUMINANT_C = (0.3127, 0.3290), (0.310, 0.316)
PRIMARIES = {
    1: (*_D65, 0.640, 0.330, 0.300, 0.600, 0.150, 0.060),
    4: (*_ILLUMINANT_C, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*_D65, 0.640, 0.330, 0.290, 0.600, 0.150, 0.060),
    6: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    8: (*_ILLUMINANT_C, 0.681, 0.319, 0.243, 0.692, 0.145, 0.049),
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    22: (*_D65, 0.630, 0.340, 0.295, 0.605, 0.155, 0.077),
}
SRGB = PRIMARIES[1]
_D50 = (0.9642, 1.0, 0.8249)
_BRADFORD = ((0.8951, 0.2664, -0.1614), (-0.7502, 1.7135, 0.0367), (0.0389, -0.0685, 1.0296))
#: Diffuse white of high dynamic range, in cd/m2: ITU-R BT.2408. What is brighter is clipped.
_WHITE = 203.0
#: A gamma that differs from 1/2.2 by less is sRGB's curve: those who write it mean that (libpng's threshold).
_GAMMA_THRESHOLD = 0.05


@dataclass(frozen=True)
class Encoding:
    """linear: a value of 0..1 -> light, 1 being white; None: as sRGB. primaries: as in PRIMARIES; None: as sRGB."""

    linear: Callable[[float], float] | None = None
    primaries: tuple[float, ...] | None = None

    def table(self, levels: int) -> list[int]:
        """For each of so many levels of this encoding, the level of 0..255 that sRGB has for the same light."""
        linear = self.linear or _srgb_linear
        return [round(255 * _srgb(min(1.0, max(0.0, linear(v / (levels - 1)))))) for v in range(levels)]


def gamma(exponent: float) -> Callable[[float], float] | None:
    """The curve of a display with this exponent, None if it cannot be told from sRGB's."""
    return None if abs(exponent / 2.2 - 1) < _GAMMA_THRESHOLD else lambda value: value**exponent


#: Adobe RGB (1998): its exponent is 563/256, and none that stands for sRGB.
ADOBE_RGB = Encoding(lambda value: value ** (563 / 256), (*_D65, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06))


def from_cicp(primaries: int, transfer: int, full: bool) -> Encoding | None:
    """The numbers of ITU-T H.273; None where they are none that we know, or say nothing."""
    if primaries not in PRIMARIES or transfer not in _TRANSFERS:
        return None
    linear = _TRANSFERS[transfer]
    if not full:
        linear = _of_narrow_range(linear or _srgb_linear)
    return Encoding(linear, None if primaries == 1 else PRIMARIES[primaries])


def to_srgb(image: Image.Image, profile: bytes | None, encoding: Encoding | None) -> Image.Image:
    """Of mode L, RGB or CMYK -> RGB in sRGB. A profile comes before an encoding; one that is broken, or of another
    kind of picture, says nothing."""
    if profile is not None and (converted := _by_profile(image, profile)) is not None:
        return converted
    if image.mode == "CMYK":
        return image.convert("RGB")
    if encoding is not None and encoding.linear is not None:
        image = image.point(encoding.table(256) * len(image.getbands()))
    image = image.convert("RGB")
    if encoding is not None and encoding.primaries is not None:
        made = _profile(encoding.primaries)
        return image if made is None else _by_profile(image, made) or image
    return image


def _by_profile(image: Image.Image, profile: bytes) -> Image.Image | None:
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = own.profile.xcolor_space.strip()
        if space == "RGB" and image.mode == "L":
            image = image.convert("RGB")
        if space != {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}[image.mode]:
            return None
        change = ImageCms.buildTransform(own, ImageCms.createProfile("sRGB"), image.mode, "RGB")
        if image.mode == "RGB" and _is_nothing(change):
            return image
        if image.mode == "RGB":  # saves a copy
            ImageCms.applyTransform(image, change, inPlace=True)
            return image
        return ImageCms.applyTransform(image, change)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _is_nothing(change: ImageCms.ImageCmsTransform) -> bool:
    """Whether it changes no colour by more than rounding does: most profiles are sRGB, under many names."""
    levels = range(0, 256, 15)
    colours = Image.new("RGB", (len(levels) ** 2, len(levels)))
    colours.putdata(list(product(levels, repeat=3)))
    changed = ImageChops.difference(colours, ImageCms.applyTransform(colours, change))
    return max(high for _, high in changed.getextrema()) <= 1


# --- transfer functions


def _srgb(light: float) -> float:
    """IEC 61966-2-1."""
    return 12.92 * light if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055


def _srgb_linear(value: float) -> float:
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


def _bt709(value: float) -> float:
    return value / 4.5 if value < 0.081 else ((value + 0.099) / 1.099) ** (1 / 0.45)


def _smpte240(value: float) -> float:
    return value / 4 if value < 0.0912 else ((value + 0.1115) / 1.1115) ** (1 / 0.45)


def _pq(value: float) -> float:
    """ITU-R BT.2100, table 4, over diffuse white."""
    root = value ** (32 / 2523)
    return 10_000 / _WHITE * (max(root - 3424 / 4096, 0.0) / (2413 / 128 - 2392 / 128 * root)) ** (8192 / 1305)


def _hlg(value: float) -> float:
    """ITU-R BT.2100, table 5, on a display of 1000 cd/m2, over diffuse white; channel by channel, which is exact in
    greys."""
    light = value**2 / 3 if value <= 0.5 else (exp((value - 0.55991073) / 0.17883277) + 0.28466892) / 12
    return 1000 / _WHITE * light**1.2


def _of_narrow_range(linear: Callable[[float], float]) -> Callable[[float], float]:
    return lambda value: linear(min(1.0, max(0.0, (value * 255 - 16) / 219)))


#: By the numbers of ITU-T H.273, table 3; None: as sRGB.
_TRANSFERS: dict[int, Callable[[float], float] | None] = {
    1: _bt709,
    4: lambda value: value**2.2,
    5: lambda value: value**2.8,
    6: _bt709,
    7: _smpte240,
    8: lambda value: value,
    13: None,
    14: _bt709,
    15: _bt709,
    16: _pq,
    17: lambda value: 52.37 / 48 * value**2.6,  # SMPTE ST 428-1
    18: _hlg,
}


# --- primaries

_Matrix = Sequence[Sequence[float]]


def _times(a: _Matrix, b: _Matrix) -> list[list[float]]:
    return [[sum(x * y for x, y in zip(row, column, strict=True)) for column in zip(*b, strict=True)] for row in a]


def _inverse(m: _Matrix) -> list[list[float]]:
    """Of 3 x 3. Raises ZeroDivisionError if there is none."""
    (a, b, c), (d, e, f), (g, h, i) = m
    rows = [
        [e * i - f * h, c * h - b * i, b * f - c * e],
        [f * g - d * i, a * i - c * g, c * d - a * f],
        [d * h - e * g, b * g - a * h, a * e - b * d],
    ]
    whole = a * rows[0][0] + b * rows[1][0] + c * rows[2][0]
    return [[value / whole for value in row] for row in rows]


def _to_d50(primaries: Sequence[float]) -> list[list[float]]:
    """RGB -> XYZ under D50 (ICC.1, annex E), white becoming its white. Raises ZeroDivisionError for what are no
    primaries."""
    white, *colours = [(x / y, 1.0, (1 - x - y) / y) for x, y in zip(primaries[::2], primaries[1::2], strict=True)]
    columns = [list(row) for row in zip(*colours, strict=True)]
    shares = _times(_inverse(columns), [[value] for value in white])
    matrix = [[value * share for value, (share,) in zip(row, shares, strict=True)] for row in columns]
    cones, wanted = (_times(_BRADFORD, [[v] for v in each]) for each in (white, _D50))
    scale = [[(wanted[i][0] / cones[i][0]) * (i == j) for j in range(3)] for i in range(3)]
    return _times(_inverse(_BRADFORD), _times(scale, _times(_BRADFORD, matrix)))


def _profile(primaries: Sequence[float]) -> bytes | None:
    """An ICC profile (ICC.1:2010) with sRGB's curve; None for what are no primaries."""
    try:
        columns = list(zip(*_to_d50(primaries), strict=True))
    except (ZeroDivisionError, OverflowError):
        return None

    def fixed(*values: float) -> bytes:
        return struct.pack(f">{len(values)}i", *(round(65536 * value) for value in values))

    try:
        points = [b"XYZ \0\0\0\0" + fixed(*point) for point in (_D50, *columns)]
    except struct.error:
        return None
    curve = b"para\0\0\0\0" + struct.pack(">HH", 3, 0) + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    tags, body, table = [*zip((b"wtpt", b"rXYZ", b"gXYZ", b"bXYZ"), points, strict=True)], b"", b""
    start = 128 + 4 + 12 * 7
    for name, value in [*tags, (b"rTRC", curve), (b"gTRC", curve), (b"bTRC", curve)]:
        table += struct.pack(">4sII", name, start + len(body), len(value))
        body += value
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"\0" * 4, 0x04300000, b"mntr", b"RGB ", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + fixed(*_D50)
    return head.ljust(128, b"\0") + struct.pack(">I", 7) + table + body
