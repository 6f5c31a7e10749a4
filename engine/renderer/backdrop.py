"""What is shown behind a person instead of their own background: a colour, a picture, or their own out of focus."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from engine.errors import InputError

#: How far out of focus a background is, as the deviation of a Gaussian in sides of the picture.
BLUR = 1 / 30
#: The largest side that is kept of a picture: frames are not larger.
SIDE = 1024
MAX_PIXELS = 50_000_000
#: The formats of portraits, too.
FORMATS = ("JPEG", "PNG", "WEBP")


class BackdropError(InputError):
    """A background that cannot be shown. One line: what was given, what is wrong, what to do."""


@dataclass(frozen=True, eq=False)
class Backdrop:
    """picture (n, n, 3) uint8 RGB; None: the portrait's own background, out of focus."""

    picture: np.ndarray | None

    @classmethod
    def of(cls, wanted: str) -> "Backdrop | None":
        """The one that is asked for: "" for the portrait's own (None), "blur", a colour such as #202428, or a picture
        file, of which the middle is shown. Raises BackdropError."""
        if not wanted:
            return None
        if wanted == "blur":
            return cls(None)
        digits = wanted.removeprefix("#")
        if digits != wanted:
            if len(digits) != 6 or set(digits.lower()) - set("0123456789abcdef"):
                raise BackdropError(f"{wanted}: not a colour; give six digits, such as #202428")
            return cls(np.array(list(bytes.fromhex(digits)), np.uint8).reshape(1, 1, 3))
        return cls(_square(Path(wanted)))

    def behind(self, own: np.ndarray) -> np.ndarray:
        """A portrait's own background (S, S, 3) uint8, filled in where the person was -> what is shown (S, S, 3)."""
        if self.picture is None:
            return cv2.GaussianBlur(own, (0, 0), BLUR * len(own), borderType=cv2.BORDER_REPLICATE)
        kind = cv2.INTER_AREA if len(self.picture) > len(own) else cv2.INTER_CUBIC
        return cv2.resize(self.picture, own.shape[1::-1], interpolation=kind)


def _square(path: Path) -> np.ndarray:
    """The middle square of a picture file: (n, n, 3) uint8 RGB, n at most SIDE."""
    from PIL import Image, ImageOps  # where a picture is asked for alone

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise BackdropError(f"{path}: {image.width} x {image.height} pixels; save a smaller copy")
                upright = ImageOps.exif_transpose(image).convert("RGB")
    except BackdropError:
        raise
    except FileNotFoundError:
        raise BackdropError(f"{path}: no such file; give blur, a colour such as #202428, or a picture") from None
    except Exception as error:  # of a decoder, which raise whatever they stumble over
        raise BackdropError(f"{path}: no JPEG, PNG or WebP picture that can be read; give another one") from error
    side = min(upright.size)
    return np.array(ImageOps.fit(upright, (min(side, SIDE),) * 2, Image.Resampling.LANCZOS))
