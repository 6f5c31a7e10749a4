"""Pictures whose every part is different, and what they are in I420, reckoned without the code under test."""

import numpy as np


def picture(seed: int, side: int) -> np.ndarray:
    """(side, side, 3) uint8 RGB: blocks of 16 pixels in colours of their own, fading downwards."""
    blocks = np.random.default_rng(seed).integers(0, 256, (-(-side // 16), -(-side // 16), 3))
    whole = np.kron(blocks, np.ones((16, 16, 1)))[:side, :side]
    return (whole * np.linspace(1, 0.6, side)[:, None, None]).astype(np.uint8)


def reference_i420(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(h, w, 3) uint8 RGB -> the least and the most, (h * w * 3 / 2,) float each, that a value may be in ITU-R BT.601-7
    with 8 bits and limited range: a chroma value stands for four pixels, and lies between the least and the most of
    theirs."""
    red, green, blue = (image[..., i].astype(float) / 255 for i in range(3))
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    least = most = [(16 + 219 * luma).reshape(-1)]
    for chroma in ((blue - luma) / 1.772, (red - luma) / 1.402):
        height, width = chroma.shape
        four = 128 + 224 * chroma.reshape(height // 2, 2, width // 2, 2)
        least, most = [*least, four.min((1, 3)).reshape(-1)], [*most, four.max((1, 3)).reshape(-1)]
    return np.concatenate(least), np.concatenate(most)
