"""Resampling, blur and colour arithmetic of PIL on uint8, which the published augmentation needs."""

from __future__ import annotations

import math
import os
from functools import lru_cache
from itertools import permutations
from random import Random
from typing import Any, NamedTuple

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # albumentations would otherwise ask PyPI at import

import albumentations as A
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

Image = NDArray[Any]  # H, W, 3, uint8; the types of OpenCV are no more precise
TRIES = 10
JUST_BELOW_HALF = 0.499
ORDERS = tuple(permutations(("brightness", "contrast", "saturation", "hue")))
GREY = (0.299, 0.587, 0.114)  # ITU-R 601, as PIL's mode L


class RandomResizedCrop(NamedTuple):
    """A box of random area and shape, resampled to (size, size) by an antialiased bicubic filter, as PIL's.

    The area, as a fraction of the image's, is uniform in `scale`, and the ratio of width to height log-uniform in
    `ratio`. If none of ten such boxes fits, the largest central one with an allowed ratio is taken.
    """

    size: int
    scale: tuple[float, float]
    ratio: tuple[float, float]

    def box(self, height: int, width: int, random: Random) -> tuple[int, int, int, int]:
        """Draw top, left, height and width of a crop."""
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

    def __call__(self, image: Image, random: Random) -> tuple[Image, float]:
        """Return the crop, and by how much it was enlarged."""
        box = self.box(image.shape[0], image.shape[1], random)
        height, width = box[2:]
        return resize(crop(image, box), self.size), self.size / math.sqrt(height * width)


class ColorJitter(A.ColorJitter):
    """Brightness, contrast, saturation and hue in random order, as torchvision's on PIL images.

    Every step but hue is affine in the pixel and its grey value. Successive steps are composed into one, unless the
    first may leave the range of a byte, where PIL would clip.
    """

    def __init__(self, brightness: float, contrast: float, saturation: float, hue: float, p: float = 0.8) -> None:
        super().__init__(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue, p=p)

    def get_params(self) -> dict[str, Any]:
        uniform = self.py_random.uniform
        return {
            "brightness": uniform(*self.brightness),
            "contrast": uniform(*self.contrast),
            "saturation": uniform(*self.saturation),
            "hue": uniform(*self.hue),
            "order": self.py_random.choice(ORDERS),
        }

    def apply(self, img: Image, order: tuple[str, ...], **params: Any) -> Image:
        steps = Affine()
        for name in order:
            factor = params[name]
            if name == "hue":
                if self.hue == (0, 0):  # where channels are no colours, hue does not exist
                    continue
                img, steps = shift_hue(steps(img), factor), Affine()
                continue
            if name == "brightness":
                step = Affine(factor)
            elif name == "contrast":
                step = Affine(factor, offset=(1 - factor) * round(steps.of_grey(mean_grey(img))))
            else:
                step = Affine(factor, grey=1 - factor)
            steps = steps.then(step)
            if factor > 1:
                img, steps = steps(img), Affine()
        return steps(img)


class GaussianBlur(A.ImageOnlyTransform):
    """Blur with a standard deviation uniform in `sigma`, in pixels.

    kernel_size 0 blurs as PIL, with three boxes and a replicated border; an odd number of pixels blurs as torchvision,
    with a Gaussian and a reflected border. scale: by which it is multiplied, where `sigma` is in pixels of the image
    and the view was resized.
    """

    class InitSchema(A.BasicTransform.InitSchema):
        sigma: tuple[float, float]
        kernel_size: int

    def __init__(self, sigma: tuple[float, float], kernel_size: int = 0, p: float = 0.5) -> None:
        super().__init__(p=p)
        self.sigma, self.kernel_size, self.scale = sigma, kernel_size, 1.0

    def get_params(self) -> dict[str, Any]:
        return {"sigma": self.scale * self.py_random.uniform(*self.sigma)}

    def apply(self, img: Image, sigma: float, **params: Any) -> Image:
        return blur(img, sigma, self.kernel_size)


class QuarterTurn(A.ImageOnlyTransform):
    """Rotation by 0, 90, 180 or 270 degrees, each as often."""

    def get_params(self) -> dict[str, Any]:
        return {"turns": self.py_random.randrange(4)}

    def apply(self, img: Image, turns: int, **params: Any) -> Image:
        return np.ascontiguousarray(np.rot90(img, turns))


class ChannelJitter(A.ImageOnlyTransform):
    """A factor of its own for each channel, between 1 - colour and 1 + colour, and Gaussian noise.

    noise: the largest standard deviation of the noise, as a fraction of the range.
    """

    class InitSchema(A.BasicTransform.InitSchema):
        colour: float
        noise: float

    def __init__(self, colour: float, noise: float, p: float = 0.8) -> None:
        super().__init__(p=p)
        self.colour, self.noise = colour, noise

    def get_params(self) -> dict[str, Any]:
        return {"seed": self.py_random.getrandbits(64)}

    def apply(self, img: Image, seed: int, **params: Any) -> Image:
        random = np.random.default_rng(seed)
        factors = random.uniform(1 - self.colour, 1 + self.colour, img.shape[2:]).astype(np.float32)
        changed = img * factors
        if self.noise:
            changed += 255 * random.uniform(0, self.noise) * random.standard_normal(img.shape, np.float32)
        return np.clip(changed + 0.5, 0, 255).astype(np.uint8)


def crop(image: Image, box: tuple[int, int, int, int]) -> Image:
    """Return a view of an image in a box (top, left, height, width)."""
    top, left, height, width = box
    return image[top : top + height, left : left + width]


def resize(image: Image, size: int) -> Image:
    """Resize an image (H, W, C) to (size, size, C), bicubic and antialiased, as PIL up to rounding."""
    # A batch of one, permuted, has the strides of channels-last, which PyTorch resizes faster.
    batch = torch.from_numpy(image)[None].permute(0, 3, 1, 2)  # 1, 3, H, W
    resized = F.interpolate(batch, (size, size), mode="bicubic", antialias=True)
    return resized.permute(0, 2, 3, 1)[0].numpy()


class Affine(NamedTuple):
    """``x -> scale * x + grey * g(x) + offset`` of a pixel x (R, G, B) and its grey value g(x)."""

    scale: float = 1.0
    grey: float = 0.0
    offset: float = 0.0

    def then(self, after: Affine) -> Affine:
        """Return the composition of both steps."""
        return Affine(
            scale=after.scale * self.scale,
            grey=after.scale * self.grey + after.grey * (self.scale + self.grey),
            offset=after.of_grey(self.offset),
        )

    def of_grey(self, value: float) -> float:
        """Return the result for a grey pixel."""
        return (self.scale + self.grey) * value + self.offset

    def __call__(self, image: Image) -> Image:
        """Return the changed image, truncated to whole numbers and clipped to 0..255."""
        if self == Affine():
            return image
        # OpenCV computes with multiples of 1/1024. Rounding the parts, not the sums, keeps grey pixels grey.
        whole, a, r, b = (
            round(1024 * part) / 1024
            for part in (self.scale + self.grey, self.scale, self.grey * GREY[0], self.grey * GREY[2])
        )
        g = whole - a - r - b
        offset = self.offset - JUST_BELOW_HALF  # OpenCV rounds, PIL truncates
        return cv2.transform(image, np.array([[a + r, g, b, offset], [r, a + g, b, offset], [r, g, a + b, offset]]))


def mean_grey(image: Image) -> float:
    """Return the mean grey value of an image."""
    return float(sum(weight * mean for weight, mean in zip(GREY, cv2.mean(image), strict=False)))


def shift_hue(image: Image, shift: float) -> Image:
    """Shift the hue by a fraction of the colour circle."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    rows = hsv.reshape(len(hsv), -1)  # adding to whole rows is faster than adding (s, 0, 0) to each pixel
    rows += _hue_row(int(shift * 255) % 256, hsv.shape[1])  # bytes wrap around, as hues do
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL, dst=hsv)


@lru_cache(512)
def _hue_row(shift: int, width: int) -> NDArray[np.uint8]:
    return np.tile(np.array([shift, 0, 0], np.uint8), width)


def blur(image: Image, sigma: float, kernel_size: int = 0) -> Image:
    """Blur an image; see `GaussianBlur`."""
    if kernel_size:
        kernel, border = cv2.getGaussianKernel(kernel_size, sigma, cv2.CV_32F), cv2.BORDER_REFLECT_101
    else:
        kernel, border = box_kernel(sigma), cv2.BORDER_REPLICATE
    return cv2.sepFilter2D(image, -1, kernel, kernel, borderType=border)  # twice as fast as cv2.GaussianBlur on bytes


def box_kernel(sigma: float, passes: int = 3) -> NDArray[np.float32]:
    """Return the kernel of successive box filters, with fractional ends so that their variance is `sigma` squared.

    This is PIL's blur; a sampled Gaussian has far less variance for a sigma below half a pixel.
    Gwosdek et al., "Theoretical foundations of Gaussian convolution by extended box filtering", 2011.
    """
    variance = sigma**2 / passes
    whole = int((math.sqrt(12 * variance + 1) - 1) / 2)
    end = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    box = np.ones(2 * whole + 3)
    box[0] = box[-1] = end
    box /= box.sum()
    kernel = box
    for _ in range(passes - 1):
        kernel = np.convolve(kernel, box)
    return kernel.astype(np.float32)
