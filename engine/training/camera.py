"""How the camera of a clip moves, seen in the background: what heads move by is measured against it."""

import cv2
import numpy as np

#: Points of the background that must agree on how it moved, and the share of all points that must.
AGREEING, SHARE = 15, 0.6
#: How far beside a face, in widths of it, hair and shoulders may be.
BESIDE = 0.8
REST = np.eye(2, 3)


def background_mask(landmarks: np.ndarray, size: int) -> np.ndarray:
    """(468+, 2+) landmarks in 0..1 -> (size, size) uint8, 255 where surely no person is: beside and above the head."""
    left, top = landmarks[:468, :2].min(0)
    right, bottom = landmarks[:468, :2].max(0)
    wide, high = right - left, bottom - top
    mask = np.full((size, size), 255, np.uint8)
    x0, x1 = (int(np.clip(x * size, 0, size)) for x in (left - BESIDE * wide, right + BESIDE * wide))
    mask[int(np.clip((top - 0.8 * high) * size, 0, size)) :, x0:x1] = 0
    mask[int(np.clip(bottom * size, 0, size)) :] = 0
    return mask


def camera_path(frames: list[np.ndarray], landmarks: np.ndarray) -> np.ndarray:
    """Frames (S, S, 3) uint8 and their landmarks (n, 468+, 2+) -> (n, 2, 3): the similarity, in pixels, that takes the
    background of the first frame to that of each. Where too little of it agrees, the camera counts as still."""
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    path, whole = np.tile(REST, (len(frames), 1, 1)), np.eye(3)
    for index in range(1, len(frames)):
        if frames[index] is not frames[index - 1]:
            mask = background_mask(landmarks[index - 1], len(grey[0]))
            whole = np.vstack([_step(grey[index - 1], grey[index], mask), [0, 0, 1]]) @ whole
        path[index] = whole[:2]
    return path


def _step(before: np.ndarray, after: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The similarity (2, 3) from one grey picture's background to the next one's."""
    points = cv2.goodFeaturesToTrack(before, 200, 0.01, 5, mask=mask)
    if points is None or len(points) < AGREEING:
        return REST
    moved, found, _ = cv2.calcOpticalFlowPyrLK(before, after, points, None)
    kept = found[:, 0] == 1
    if kept.sum() < AGREEING:
        return REST
    similarity, agree = cv2.estimateAffinePartial2D(points[kept], moved[kept], ransacReprojThreshold=0.7)
    if similarity is None or agree.sum() < max(AGREEING, SHARE * kept.sum()):
        return REST
    return similarity


def steadied(points: np.ndarray, path: np.ndarray) -> np.ndarray:
    """Points (n, m, 2) in pixels -> where they would be had the camera stood still; path as from `camera_path`."""
    inverse = np.linalg.inv(np.concatenate([path, np.tile([[[0.0, 0.0, 1.0]]], (len(path), 1, 1))], 1))
    return points @ inverse[:, :2, :2].transpose(0, 2, 1) + inverse[:, None, :2, 2]
