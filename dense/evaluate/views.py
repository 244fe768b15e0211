"""What an evaluation shows of a picture: a centre crop, or for training a random crop and flip. PIL resamples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Picture = NDArray[np.uint8]  # H, W, 3
Resample = Literal["bicubic", "bilinear"]
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}  # PIL's are antialiased


@dataclass(frozen=True)
class CenterCrop:
    """The shorter side to `resize` pixels, the longer in proportion, then a square of `crop` from the middle."""

    resize: int = 256
    crop: int = 224
    resample: Resample = "bicubic"

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize:
            raise ValueError(f"a crop of {self.crop} px does not fit pictures resized to {self.resize} px")

    def __call__(self, image: Picture, draw: tuple[int, int, int] = (0, 0, 0)) -> Picture:
        """(H, W, 3) -> (crop, crop, 3)."""
        height, width = image.shape[:2]
        short = min(height, width)
        size = (self.resize * height // short, self.resize * width // short)
        if size != (height, width):
            image = np.asarray(Image.fromarray(image).resize((size[1], size[0]), FILTERS[self.resample]))
        top, left = (round((side - self.crop) / 2) for side in size)
        return image[top : top + self.crop, left : left + self.crop]


@dataclass(frozen=True)
class RandomCrop:
    """A box of random area and shape, resized to a square, mirrored half of the time; a function of three numbers."""

    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)  # of the picture's area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height
    resample: Resample = "bilinear"

    def __call__(self, image: Picture, draw: tuple[int, int, int] = (0, 0, 0)) -> Picture:
        """(H, W, 3) and (seed, epoch, index) -> (size, size, 3)."""
        rng = np.random.default_rng(draw)
        top, left, height, width = self.box(rng, *image.shape[:2])
        whole = Image.fromarray(image[top : top + height, left : left + width])
        out = np.asarray(whole.resize((self.size, self.size), FILTERS[self.resample]))
        return out[:, ::-1] if rng.random() < 0.5 else out

    def box(self, rng: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height and width; when ten draws do not fit, as much of the middle as the ratio allows."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            area, ratio = height * width * rng.uniform(*self.scale), math.exp(rng.uniform(low, high))
            h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < h <= height and 0 < w <= width:
                return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
        h = min(height, round(width / self.ratio[0]))
        w = min(width, round(height * self.ratio[1]))
        return (height - h) // 2, (width - w) // 2, h, w


@dataclass(frozen=True)
class AsItIs:
    """The picture unchanged: for scenes, which are rendered at the size that is wanted."""

    def __call__(self, image: Picture, draw: tuple[int, int, int] = (0, 0, 0)) -> Picture:
        """(H, W, 3) -> (H, W, 3)."""
        return image


View = CenterCrop | RandomCrop | AsItIs
