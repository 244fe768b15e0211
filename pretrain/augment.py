"""What albumentations lacks for the published augmentation: PIL's resampling, blur and colour arithmetic, on uint8."""

from __future__ import annotations

import math
import os
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # albumentations would otherwise ask PyPI at import

import albumentations as A
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

Image = NDArray[Any]  # H, W, 3, uint8: OpenCV's own types say no more
TRIES = 10
JUST_BELOW_HALF = 0.499
GREY = np.array([0.299, 0.587, 0.114])  # ITU-R 601, as PIL's mode L


class RandomResizedCrop(A.ImageOnlyTransform):
    """A box of random area and shape, resampled to (size, size) by an antialiased bicubic filter, as PIL's.

    The area is uniform in `scale`, a share of the picture's, and the ratio of width to height log-uniform in `ratio`.
    If none of ten such boxes fits, the largest central one with an allowed ratio is taken.
    """

    class InitSchema(A.BasicTransform.InitSchema):
        size: int
        scale: tuple[float, float]
        ratio: tuple[float, float]

    def __init__(self, size: int, scale: tuple[float, float], ratio: tuple[float, float], p: float = 1.0) -> None:
        super().__init__(p=p)
        self.size, self.scale, self.ratio = size, scale, ratio

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        height, width = params["shape"][:2]
        return {"box": self.box(height, width)}

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height and width of a crop."""
        random = self.py_random
        low, high = self.ratio
        for _ in range(TRIES):
            area = height * width * random.uniform(*self.scale)
            ratio = math.exp(random.uniform(math.log(low), math.log(high)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return random.randrange(height - h + 1), random.randrange(width - w + 1), h, w
        w = min(width, round(height * high))
        h = min(height, round(width / low))
        return (height - h) // 2, (width - w) // 2, h, w

    def apply(self, img: Image, box: tuple[int, int, int, int], **params: Any) -> Image:
        return resize(crop(img, box), self.size)


class ColorJitter(A.ColorJitter):
    """Brightness, contrast, saturation and hue in random order, with PIL's arithmetic: decimals are cut off."""

    def __init__(self, brightness: float, contrast: float, saturation: float, hue: float, p: float = 0.8) -> None:
        super().__init__(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue, p=p)
        self.transforms = [adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue]

    def get_params(self) -> dict[str, Any]:
        names = ("brightness", "contrast", "saturation", "hue")
        factors = {name: self.py_random.uniform(*getattr(self, name)) for name in names}
        return factors | {"order": self.py_random.sample(range(4), 4)}


class GaussianBlur(A.ImageOnlyTransform):
    """Blur with a standard deviation uniform in `sigma`, in pixels.

    kernel_size 0 takes as many pixels as the deviation needs and repeats the border, which is what PIL's blur
    approximates; an odd number takes that many and mirrors the border, as torchvision does.
    """

    class InitSchema(A.BasicTransform.InitSchema):
        sigma: tuple[float, float]
        kernel_size: int

    def __init__(self, sigma: tuple[float, float], kernel_size: int = 0, p: float = 0.5) -> None:
        super().__init__(p=p)
        self.sigma, self.kernel_size = sigma, kernel_size

    def get_params(self) -> dict[str, Any]:
        return {"sigma": self.py_random.uniform(*self.sigma)}

    def apply(self, img: Image, sigma: float, **params: Any) -> Image:
        return blur(img, sigma, self.kernel_size)


def crop(image: Image, box: tuple[int, int, int, int]) -> Image:
    """The part of a picture in a box (top, left, height, width), not copied."""
    top, left, height, width = box
    return image[top : top + height, left : left + width]


def resize(image: Image, size: int) -> Image:
    """A picture (H, W, 3) -> (size, size, 3), bicubic and antialiased: within a grey level of PIL's."""
    # a batch of one before permuting: only then do the strides say channels-last, which is the fast path
    batch = torch.from_numpy(image)[None].permute(0, 3, 1, 2)  # 1, 3, H, W
    resized = F.interpolate(batch, (size, size), mode="bicubic", antialias=True)
    return resized.permute(0, 2, 3, 1)[0].numpy()


def adjust_brightness(image: Image, factor: float) -> Image:
    """``factor * x``."""
    return cv2.LUT(image, _cut(np.arange(256) * factor))


def adjust_contrast(image: Image, factor: float) -> Image:
    """``factor * x + (1 - factor) * m``, m the mean grey of the picture, rounded."""
    mean = int(GREY @ cv2.mean(image)[:3] + 0.5)
    return cv2.LUT(image, _cut(mean + factor * (np.arange(256) - mean)))


def adjust_saturation(image: Image, factor: float) -> Image:
    """``factor * x + (1 - factor) * grey``, as one matrix."""
    matrix = np.empty((3, 4))
    matrix[:, :3] = factor * np.eye(3) + (1 - factor) * GREY
    matrix[:, 3] = -JUST_BELOW_HALF  # OpenCV rounds, PIL cuts off
    return cv2.transform(image, matrix)


def adjust_hue(image: Image, shift: float) -> Image:
    """Turn the hue by a share of the circle."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    rows = hsv.reshape(len(hsv), -1)  # whole rows: adding (s, 0, 0) to each pixel is slow
    rows += np.tile(np.array([int(shift * 255) % 256, 0, 0], np.uint8), hsv.shape[1])  # wraps round, as hues do
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def blur(image: Image, sigma: float, kernel_size: int = 0) -> Image:
    """See `GaussianBlur`."""
    border = cv2.BORDER_REFLECT_101 if kernel_size else cv2.BORDER_REPLICATE
    return cv2.GaussianBlur(image, (kernel_size, kernel_size), sigma, borderType=border)


def _cut(values: NDArray[Any]) -> NDArray[np.uint8]:
    return np.clip(values, 0, 255).astype(np.uint8)
