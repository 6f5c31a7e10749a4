"""The small "AI" in the corner, so that whoever sees a frame knows what it is."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

TEXT = "AI"
# Fractions of the frame's side: as small as can be read at a glance.
_HEIGHT = 0.06
_MARGIN = 0.025
_MIN_HEIGHT = 16
_PLATE = (0, 0, 0, 150)
_INK = (255, 255, 255, 255)
_OVERSAMPLE = 4


def draw_badge(size: int) -> np.ndarray:
    """The badge for frames of `size` pixels: uint8 RGBA, smooth letters on a dark translucent plate."""
    height = max(round(size * _HEIGHT), _MIN_HEIGHT)
    width = round(height * 1.5)
    big = Image.new("RGBA", (width * _OVERSAMPLE, height * _OVERSAMPLE), (0, 0, 0, 0))
    draw = ImageDraw.Draw(big)
    draw.rounded_rectangle((0, 0, big.width - 1, big.height - 1), radius=big.height * 0.3, fill=_PLATE)
    font = ImageFont.load_default(size=big.height * 0.74)
    draw.text((big.width / 2, big.height / 2), TEXT, fill=_INK, font=font, anchor="mm")
    # Premultiplied while it shrinks, or the transparent corners bleed black into the edge.
    return np.asarray(big.convert("RGBa").resize((width, height), Image.Resampling.BOX).convert("RGBA"))


class Badge:
    """Puts the badge into the lower right corner of frames of one size."""

    def __init__(self, size: int) -> None:
        """size: the side of the frames, pixels."""
        badge = draw_badge(size).astype(np.uint16)
        margin = round(size * _MARGIN)
        height, width = badge.shape[:2]
        self._place = (
            slice(size - margin - height, size - margin),
            slice(size - margin - width, size - margin),
        )
        alpha = badge[:, :, 3:]
        self._added = badge[:, :, :3] * alpha + 127  # + 127: rounded, not cut, when divided
        self._kept = 255 - alpha
        self._frame = np.empty((size, size, 3), np.uint8)

    def put_on(self, image: np.ndarray) -> np.ndarray:
        """Return uint8 RGB (size, size, 3) `image` with the badge. `image` stays as it is.

        The array returned is the same at every call: use it, or copy it, before the next.
        """
        np.copyto(self._frame, image)
        self.stamp(self._frame)
        return self._frame

    def stamp(self, image: np.ndarray) -> None:
        """Put the badge onto `image` itself."""
        corner = image[self._place]
        corner[...] = (corner * self._kept + self._added) // 255
