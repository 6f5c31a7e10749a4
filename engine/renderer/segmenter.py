"""Where people are in a portrait, roughly: a small network of its own, see engine/training/segmenter.py.

It sees the picture at 256 x 256 and its mirror image, whose mean is surer than either.
"""

import numpy as np

from engine.gather import Network
from engine.renderer.matte import scaled

#: What its folder holds, beside config.json.
GRAPH, WEIGHTS = "segmenter.onnx", "weights.safetensors"
FILES = (GRAPH, WEIGHTS)
VERSION = 1
SIDE = 256


def segment(network: Network, pixels: np.ndarray) -> np.ndarray:
    """Picture (S, S, 3) uint8 RGB -> how much of each of its places is a person's: (256, 256) float32 in 0..1."""
    small = pixels if len(pixels) == SIDE else scaled(pixels, SIDE)
    planes = np.ascontiguousarray(small.transpose(2, 0, 1)[None], np.float32) / 255
    seen = network({"picture": planes})[0][0, 0]
    mirrored = network({"picture": np.ascontiguousarray(planes[..., ::-1])})[0][0, 0]
    return (seen + mirrored[:, ::-1]) / 2
