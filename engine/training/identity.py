"""Who a face is, as a vector: dlib's face recognition network (ResNet, 128 numbers).

The network was trained so that two pictures of one person lie within a distance of 0.6. Its vectors are not
of unit length and share a large common part, so that even strangers have a cosine of about 0.83: read a
cosine only between the floor (strangers) and the ceiling (the person's own other frames) beside it.
"""

import importlib.util
from pathlib import Path

import numpy as np

#: dlib's own threshold: two pictures nearer than this are one person.
SAME_PERSON = 0.6

#: MediaPipe's points for dlib's five: corners of the left eye and of the right, outer first; below the nose.
_FIVE = (263, 362, 33, 133, 2)


class FaceVectors:
    """Face embeddings by dlib, aligned by landmarks. Raises ModuleNotFoundError without the extra."""

    def __init__(self) -> None:
        import dlib

        # The package only names its files, and importing it needs pkg_resources, which setuptools dropped.
        found = importlib.util.find_spec("face_recognition_models")
        if found is None or not found.submodule_search_locations:
            raise ModuleNotFoundError(
                "No module named 'face_recognition_models'", name="face_recognition_models"
            )
        models = Path(found.submodule_search_locations[0]) / "models"
        self._dlib = dlib
        self._network = dlib.face_recognition_model_v1(
            str(models / "dlib_face_recognition_resnet_model_v1.dat")
        )

    def __call__(self, picture: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB and its landmarks (478, 2 or 3) in 0..1 -> (128,) float64."""
        height, width = picture.shape[:2]
        points = landmarks[list(_FIVE), :2] * (width, height)
        shape = self._dlib.full_object_detection(
            self._dlib.rectangle(0, 0, width, height),
            [self._dlib.point(*(int(v) for v in p)) for p in points.round()],
        )
        return np.array(self._network.compute_face_descriptor(np.ascontiguousarray(picture), shape))
