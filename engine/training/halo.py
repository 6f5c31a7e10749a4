"""Whether the background beside a head that moves stays still: what gives a cut-out away first.

In a ring of 48 pixels (of 512) around a person, what a segmenter calls background both in the portrait and in a frame
should look the same in both. The halo is the share of those pixels that differs by more than SMEARED levels of 255. The
segmenter is MediaPipe's, since one of our own would judge itself.
"""

import os
import warnings
from collections.abc import Callable

import cv2
import numpy as np

from engine.renderer.matting import disc
from engine.training.landmarks import quiet

#: Pictures are judged at this size.
SIDE = 512
#: What a segmenter calls the person's by more than this is; that is grown by so many pixels, and the ring is so wide.
PERSON, GROWN, RING = 0.15, 6, 48
#: A pixel is smeared that differs by more than so many levels in the mean of its colours, behind a blur of one pixel.
SMEARED = 12.0
#: A ring of fewer pixels says nothing: the person fills the picture.
LEAST = 500
#: Every so many-th frame is judged.
EVERY = 5

#: A picture (S, S, 3) uint8 -> how much of each pixel is a person's, (S, S) float32 in 0..1.
People = Callable[[np.ndarray], np.ndarray]


class SelfieSegmentation:
    """MediaPipe's, of square pictures. Raises ModuleNotFoundError without the extra."""

    def __init__(self) -> None:
        os.environ.setdefault("GLOG_minloglevel", "3")
        with quiet():
            import mediapipe

            self._network = mediapipe.solutions.selfie_segmentation.SelfieSegmentation(model_selection=0)
            self(np.zeros((64, 64, 3), np.uint8))  # the first picture starts the graph, which logs

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # protobuf's deprecations, from inside mediapipe
            return self._network.process(np.ascontiguousarray(picture)).segmentation_mask


def halo(portrait: np.ndarray, frames: list[np.ndarray], people: People) -> float | None:
    """The halo in 0..1 of frames (S, S, 3) uint8 of a portrait (S, S, 3), the mean of every EVERY-th; None where there
    is no background to judge."""
    at_rest, own = _soft(portrait), people(_sized(portrait))
    shares = []
    for frame in frames[::EVERY]:
        person = (np.maximum(own, people(_sized(frame))) > PERSON).astype(np.uint8)
        person = cv2.dilate(person, disc(GROWN))
        ring = (cv2.dilate(person, disc(RING)) > 0) & (person == 0)
        if ring.sum() >= LEAST:
            away = np.abs(_soft(frame) - at_rest).mean(2)
            shares.append(float((away[ring] > SMEARED).mean()))
    return float(np.mean(shares)) if shares else None


def _sized(picture: np.ndarray) -> np.ndarray:
    if len(picture) == SIDE:
        return picture
    kind = cv2.INTER_AREA if len(picture) > SIDE else cv2.INTER_CUBIC
    return cv2.resize(picture, (SIDE, SIDE), interpolation=kind)


def _soft(picture: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(_sized(picture), (0, 0), 1).astype(np.float32)
