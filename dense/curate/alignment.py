"""Whether two images show the same picture: one is laid over the other, and the grey values of both are correlated."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dense.data.levels import as_rgb
from dense.media.draw import Picture

SIDE, KEYPOINTS = 224, 256  # pixels of the longer side, and keypoints per image
RATIO, PIXELS, INLIERS = 0.8, 3.0, 10  # Lowe's ratio of matches; error of inliers in pixels and their least number
MOST_SCALE, LEAST_SHARED = 5.0, 0.15  # of one image in the other; of the area of the smaller one

Box = tuple[float, float, float, float]  # left, top, right, bottom, as fractions of width and height
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Alignment:
    """How well two images agree where one lies over the other, and where that is in each of them.

    correlation: of the grey values that both show, 1 for copies; 0 if neither contains a part of the other
    """

    correlation: float = 0.0
    boxes: tuple[Box, Box] = (WHOLE, WHOLE)
    mirrored: bool = False


class Keypoints:
    """A small grey image with its SIFT keypoints (Lowe, 2004)."""

    def __init__(self, image: Picture) -> None:
        grey = cv2.cvtColor(as_rgb(image), cv2.COLOR_RGB2GRAY) if image.ndim == 3 else image
        scale = SIDE / max(grey.shape)
        size = [max(1, round(side * scale)) for side in grey.shape[::-1]]
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        self.grey: NDArray[np.uint8] = np.asarray(cv2.resize(grey, size, interpolation=method), np.uint8)
        sift: Any = cv2.SIFT_create(KEYPOINTS, contrastThreshold=0.01)  # type: ignore[attr-defined]
        found, descriptors = sift.detectAndCompute(self.grey, None)
        self.points = np.array([keypoint.pt for keypoint in found], np.float32).reshape(-1, 2)  # K, 2
        self.descriptors = descriptors  # K, 128, or None without keypoints

    @cached_property
    def mirrored(self) -> Keypoints:
        return Keypoints(np.ascontiguousarray(self.grey[:, ::-1]))


def align(first: Keypoints, second: Keypoints) -> Alignment:
    """Return how the second image, or else its mirror image, lies over the first."""
    if found := _align(first, second):
        return found
    if found := _align(first, second.mirrored):
        left, top, right, bottom = found.boxes[1]
        return Alignment(found.correlation, (found.boxes[0], (1 - right, top, 1 - left, bottom)), mirrored=True)
    return Alignment()


def _align(first: Keypoints, second: Keypoints) -> Alignment | None:
    """Return how the second image lies over the first; None if their keypoints do not say."""
    if min(len(first.points), len(second.points)) < INLIERS:
        return None
    pairs = cv2.BFMatcher(cv2.NORM_L2).knnMatch(first.descriptors, second.descriptors, 2)
    matches = [near for near, next_ in pairs if near.distance < RATIO * next_.distance]
    if len(matches) < INLIERS:
        return None
    goals, sources = first.points[[m.queryIdx for m in matches]], second.points[[m.trainIdx for m in matches]]
    matrix, inliers = cv2.estimateAffinePartial2D(sources, goals, method=cv2.RANSAC, ransacReprojThreshold=PIXELS)
    if matrix is None or inliers.sum() < INLIERS:
        return None
    scale = float(np.hypot(matrix[0, 0], matrix[0, 1]))
    if not 1 / MOST_SCALE <= scale <= MOST_SCALE:
        return None
    height, width = first.grey.shape
    size = (width, height)
    laid = np.asarray(cv2.warpAffine(second.grey, matrix, size))
    shared = cv2.warpAffine(np.full_like(second.grey, 255), matrix, size) == 255
    if shared.sum() < LEAST_SHARED * min(first.grey.size, second.grey.size * scale**2):
        return None
    correlation = float(np.corrcoef(first.grey[shared], laid[shared])[0, 1]) if laid[shared].std() else 0.0
    box = _box(shared)
    back = np.asarray(cv2.invertAffineTransform(matrix), np.float64)
    return Alignment(max(0.0, correlation), (box, _moved(box, first.grey, second.grey, back)))


def _box(shared: NDArray[np.bool_]) -> Box:
    rows, columns = np.flatnonzero(shared.any(1)), np.flatnonzero(shared.any(0))
    height, width = shared.shape
    left, right = columns[[0, -1]].tolist()
    top, bottom = rows[[0, -1]].tolist()
    return left / width, top / height, (right + 1) / width, (bottom + 1) / height


def _moved(box: Box, of: NDArray[np.uint8], to: NDArray[np.uint8], matrix: NDArray[np.float64]) -> Box:
    """Return the box around a box of one image in the other."""
    left, top, right, bottom = np.array(box) * np.tile(of.shape[::-1], 2)
    corners = np.array([[x, y, 1] for x in (left, right) for y in (top, bottom)]) @ matrix.T / to.shape[::-1]
    (left, top), (right, bottom) = corners.min(0).clip(0, 1), corners.max(0).clip(0, 1)
    return float(left), float(top), float(right), float(bottom)
