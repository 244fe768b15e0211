"""Multi-crop: two global and several local views of an image, with the augmentation of DINO."""

from __future__ import annotations

import os
import random
import struct
from typing import Literal, get_args

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # albumentations would otherwise ask PyPI at import

import albumentations as A
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.augment import ChannelJitter, ColorJitter, GaussianBlur, QuarterTurn, RandomResizedCrop

Blur = Literal["paper", "released"]
BLUR_PROBABILITY: dict[Blur, tuple[float, float, float]] = {"paper": (1.0, 0.1, 0.5), "released": (0.0, 0.9, 0.5)}
NEWER: dict[str, object] = {
    "flip_vertical": 0.0, "rotate90": False, "colour": 0.0, "noise": 0.0, "blur_units": "view"
}  # fmt: skip
BLUR_KERNEL: dict[Blur, int] = {"paper": 0, "released": 9}
NOISE = 0.02  # of channels that are no colours, as a fraction of the range
Pipeline = tuple[RandomResizedCrop, list[A.BasicTransform]]


class MultiCrop:
    """``views(image, seed)``: crops of an image (H, W, C) as uint8 tensors (C, S, S), the two global ones first.

    Each view is cropped and resized, flipped (and turned), jittered in colour, converted to grey, blurred and
    solarised, every step but the first with its own probability. Only the second global view may be solarised.
    Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", 2021, and BYOL, appendix B. Without
    local crops the published scale of the global ones is (0.14, 1).

    A view depends on the image, `seed` and its own number alone, so any sample can be made again anywhere. Flip,
    jitter, grey, blur and solarisation are transforms of albumentations, some subclassed in `pretrain.augment`. They
    are called without `Compose` and share one random generator, because both would take time in every view.

    Where `colours` is false, channels are no colours: instead of the jitter, each channel gets a factor of its own, of
    the strength of `brightness`, and noise, and no view becomes grey.

    global_size, local_size, local_crops: sides in pixels, and number of local views
    global_scale, local_scale: area of a crop as a fraction of the image's; ratio: width to height
    flip, jitter, grey, solarise: probabilities; solarise_threshold: values from it on are inverted
    brightness, contrast, saturation, hue: strengths of the jitter
    blur: "paper" blurs the first global view always, the second with probability 0.1 and local ones with 0.5;
        "released" follows the published code of DINOv2 and DINOv3: 0, 0.9 and 0.5, with a kernel of 9 pixels
    blur_sigma: range of the standard deviation, in pixels of the view
    blur_units: "image" measures blur_sigma in pixels of the image instead, so that crops of all sizes lose equal detail
    flip_vertical: probability; rotate90: turn by 0, 90, 180 or 270 degrees, each as often
    colour, noise: strengths of changes of each channel on its own, with the probability of the jitter: a factor
        between 1 - colour and 1 + colour, and Gaussian noise of at most this standard deviation, where 1 is the range
    gram_size: side of two more views, given last, for a Gram teacher: the global crops and flips at this size, without
        changes of colour; null for none
    """

    def __init__(
        self,
        global_size: int = 224,
        local_size: int = 96,
        local_crops: int = 8,
        global_scale: tuple[float, float] = (0.4, 1.0),
        local_scale: tuple[float, float] = (0.05, 0.4),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        jitter: float = 0.8,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.2,
        hue: float = 0.1,
        grey: float = 0.2,
        blur: Blur = "paper",
        blur_sigma: tuple[float, float] = (0.1, 2.0),
        solarise: float = 0.2,
        solarise_threshold: int = 128,
        gram_size: int | None = None,
        flip_vertical: float = 0.0,
        rotate90: bool = False,
        colour: float = 0.0,
        noise: float = 0.0,
        blur_units: Literal["view", "image"] = "view",
    ) -> None:
        self.options = {name: value for name, value in locals().items() if name != "self"}  # kept in checkpoints
        for name, default in NEWER.items():  # which older checkpoints lack
            if self.options[name] == default:
                del self.options[name]
        if blur not in get_args(Blur):
            raise ValueError(f"blur={blur!r}: expected one of {', '.join(get_args(Blur))}")
        if blur_units not in ("view", "image"):
            raise ValueError(f"blur_units={blur_units!r}: expected view or image")
        for name, fraction in (("flip_vertical", flip_vertical), ("colour", colour), ("noise", noise)):
            if not 0 <= fraction <= 1:
                raise ValueError(f"{name}={fraction}: expected 0 to 1")
        if local_crops < 0:
            raise ValueError(f"local_crops={local_crops}: expected 0 or more")
        for name, size in (("global_size", global_size), ("local_size", local_size)):
            if size < 1:
                raise ValueError(f"{name}={size}: expected at least 1 pixel")
        for name, (low, high), most in (
            ("global_scale", global_scale, 1.0),
            ("local_scale", local_scale, 1.0),
            ("ratio", ratio, float("inf")),
            ("blur_sigma", blur_sigma, float("inf")),
        ):
            if not 0 < low <= high <= most:
                raise ValueError(f"{name}={(low, high)}: expected 0 < low <= high{' <= 1' if most == 1 else ''}")
        if not 0 <= solarise_threshold <= 255:
            raise ValueError(f"solarise_threshold={solarise_threshold}: expected 0 to 255")
        if gram_size is not None and gram_size < global_size:
            raise ValueError(f"gram_size={gram_size}: expected at least global_size={global_size}, or null")

        def turns() -> list[A.BasicTransform]:
            vertical = [A.VerticalFlip(p=flip_vertical)] if flip_vertical else []
            return [A.HorizontalFlip(p=flip), *vertical, *([QuarterTurn(p=1.0)] if rotate90 else [])]

        def pipeline(size: int, scale: tuple[float, float], blurred: float, solarised: float) -> Pipeline:
            # albumentations compares fractions of 255; halfway between two values is safe
            threshold = max(0.0, solarise_threshold - 0.5) / 255
            return RandomResizedCrop(size, scale, ratio), [
                *turns(),
                ColorJitter(brightness, contrast, saturation, hue, p=jitter),
                *([ChannelJitter(colour, noise, p=jitter)] if colour or noise else []),
                A.ToGray(p=grey),
                GaussianBlur(blur_sigma, BLUR_KERNEL[blur], p=blurred),
                A.Solarize(threshold_range=(threshold, threshold), p=solarised),
            ]

        first, second, local = BLUR_PROBABILITY[blur]
        pipelines = [
            pipeline(global_size, global_scale, first, 0.0),
            pipeline(global_size, global_scale, second, solarise),
        ]
        locals_ = pipeline(local_size, local_scale, local, 0.0)
        self.sizes = (global_size,) * 2 + (local_size,) * local_crops
        self._blur_of_image = blur_units == "image"
        self.gram_size, self.gram_crops = gram_size, 2 if gram_size else 0
        # A Gram view has the box, flips and turn of its global view: both draw them first, from the same seed.
        gram = RandomResizedCrop(gram_size or global_size, global_scale, ratio), turns()
        self._pipelines = [*pipelines, *[locals_] * local_crops, *[gram] * self.gram_crops]
        self._random = random.Random()  # shared by all transforms, so that a view seeds one generator
        self.colours = True
        self._of_channels = ChannelJitter(max(brightness, colour), noise or NOISE, p=jitter)
        for _, transforms in (*pipelines, locals_, gram, (None, [self._of_channels])):
            for transform in transforms:
                transform.set_random_state(np.random.default_rng(0), self._random)

    def __len__(self) -> int:
        return len(self._pipelines)

    def __call__(self, image: NDArray[np.uint8], seed: int | tuple[int, ...]) -> list[Tensor]:
        """Return all views of an image (H, W, C); `seed` is one or several integers, such as (seed, epoch, index)."""
        wrong = image.ndim != 3 or 0 in image.shape or (self.colours and image.shape[2] != 3)
        if image.dtype != np.uint8 or wrong:
            channels = "3" if self.colours else "channels"
            raise ValueError(f"expected a uint8 image (H, W, {channels}), got {image.dtype} {image.shape}")
        numbers = (seed,) if isinstance(seed, int) else seed
        return [self._view(image, number, numbers) for number in range(len(self))]

    def _view(self, image: NDArray[np.uint8], number: int, seed: tuple[int, ...]) -> Tensor:
        # a Gram view draws the same random numbers as its global one
        stream = number if number < len(self.sizes) else number - len(self.sizes)
        self._random.seed(int.from_bytes(struct.pack(f"<{len(seed) + 1}q", *seed, stream), "little"))
        crop, transforms = self._pipelines[number]
        image, enlarged = crop(image, self._random)
        for transform in transforms if self.colours else self._without_colours(transforms):
            if transform.should_apply():
                if self._blur_of_image and isinstance(transform, GaussianBlur):
                    transform.scale = enlarged
                image = transform.apply(image, **transform.get_params())
                image = image[..., None] if image.ndim == 2 else image  # OpenCV drops a single channel
        view = np.empty((image.shape[2], *image.shape[:2]), np.uint8)
        cv2.split(image, list(view))
        return torch.from_numpy(view)

    def _without_colours(self, transforms: list[A.BasicTransform]) -> list[A.BasicTransform]:
        """Return the transforms for channels that are no colours."""
        kept = [one for one in transforms if not isinstance(one, A.ToGray | ChannelJitter)]
        return [self._of_channels if isinstance(one, ColorJitter) else one for one in kept]
