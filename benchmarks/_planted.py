"""Copies of images that deduplication must find, by the change applied to them."""

from __future__ import annotations

import io
from collections.abc import Callable

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

Image = NDArray[np.uint8]  # H, W, 3


def resized(factor: float) -> Callable[[Image], Image]:
    """Resize by a factor."""

    def change(image: Image) -> Image:
        height, width = image.shape[:2]
        return np.asarray(PIL.Image.fromarray(image).resize((round(width * factor), round(height * factor))))

    return change


def encoded(quality: int) -> Callable[[Image], Image]:
    """Compress as JPEG and decode."""

    def change(image: Image) -> Image:
        buffer = io.BytesIO()
        PIL.Image.fromarray(image).save(buffer, "JPEG", quality=quality)
        return np.asarray(PIL.Image.open(buffer))

    return change


def cropped(share: float) -> Callable[[Image], Image]:
    """Crop a share of each side at a position that the image content determines."""

    def change(image: Image) -> Image:
        height, width = (round(side * share) for side in image.shape[:2])
        rng = np.random.default_rng(int(image.sum()))
        top, left = rng.integers(image.shape[0] - height + 1), rng.integers(image.shape[1] - width + 1)
        return image[top : top + height, left : left + width]

    return change


def shifted(hue: int, gain: float) -> Callable[[Image], Image]:
    """Shift the hue, in degrees / 2, and multiply the brightness."""

    def change(image: Image) -> Image:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(np.float32)
        hsv = np.stack([(hsv[..., 0] + hue) % 180, hsv[..., 1], np.clip(hsv[..., 2] * gain, 0, 255)], -1)
        return np.asarray(cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB))

    return change


COPIES: dict[str, Callable[[Image], Image]] = {
    "half the size": resized(0.5),
    "twice the size": resized(2.0),
    "JPEG of quality 30": encoded(30),
    "mirrored": lambda image: np.ascontiguousarray(image[:, ::-1]),
    "colours shifted": shifted(8, 1.15),
    "cropped to 90 %": cropped(0.9),
    "cropped to 80 %": cropped(0.8),
}
