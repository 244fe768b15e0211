"""From labelled images to tensors: geometry for the image and its targets alike, colour for the image alone."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # albumentations would otherwise ask PyPI at import

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from dense.data.labelled.sample import IGNORE, Batch, DepthKind, Labelled, Sample, collate, to_tensors
from dense.data.levels import FILL, resized

if TYPE_CHECKING:
    import albumentations as A  # imported where it is used, since prediction does not need it

NEUTRAL = 0  # pads images of other channels, whose background is black


@dataclass(frozen=True)
class Augment:
    """Augmentation of training images; the default has none.

    scale: range of a factor by which the image is resized before it is cropped
    flip: probability of a horizontal flip
    rotate: largest angle in degrees, either way, with probability `rotate_probability`
    brightness, contrast, saturation: factors between 1 - value and 1 + value, with probability `photometric`, like hue
        (fraction of the colour circle), gamma (range of the exponent) and colour (one factor per channel)
    focal_corrected: divide metric depth by the factor of `scale`. An object that is twice as large in the image is
        either half as far away, or seen with twice the focal length; without a zoom, it is half as far away
    scale_to: what `scale` is relative to: the size of the image, or the largest that fits in the crop, with which (0.1,
        2.0) is large-scale jitter
    flip_vertical: probability of a vertical flip
    rotate90: rotate by 0, 90, 180 or 270 degrees, each as often; whole images that are not square, by 0 or 180
    noise: largest standard deviation of Gaussian noise of each channel, as a fraction of the range, with probability
        `photometric`
    pad: an image that is smaller than the crop, around it in the mean colour, or at its corner: below and at the right
        in black, for models with inference.square
    """

    scale: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.0
    rotate: float = 0.0
    rotate_probability: float = 0.5
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    gamma: tuple[float, float] = (1.0, 1.0)
    colour: float = 0.0
    photometric: float = 0.5
    focal_corrected: bool = False
    # newer than caches and checkpoints that the others name; see `newer`
    scale_to: Literal["image", "crop"] = field(default="image", repr=False)
    flip_vertical: float = field(default=0.0, repr=False)
    rotate90: bool = field(default=False, repr=False)
    noise: float = field(default=0.0, repr=False)
    pad: Literal["around", "corner"] = field(default="around", repr=False)

    def __post_init__(self) -> None:
        for name in ("scale", "gamma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name}={(low, high)}: expected 0 < low <= high")
        for name, most in {
            "flip": 1, "rotate": 180, "rotate_probability": 1, "brightness": 1, "contrast": 1, "saturation": 1,
            "hue": 0.5, "colour": 1, "photometric": 1, "flip_vertical": 1, "noise": 1,
        }.items():  # fmt: skip
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name}={getattr(self, name)}: expected 0 to {most}")
        if self.scale_to not in ("image", "crop"):
            raise ValueError(f"scale_to={self.scale_to!r}: expected image or crop")
        if self.pad not in ("around", "corner"):
            raise ValueError(f"pad={self.pad!r}: expected around or corner")

    @property
    def newer(self) -> dict[str, Any]:
        """Those options without which older caches and checkpoints were named, where they are not the default."""
        return {
            f.name: getattr(self, f.name) for f in fields(self) if not f.repr and getattr(self, f.name) != f.default
        }

    @property
    def rescales(self) -> bool:
        """Whether the apparent size of objects changes."""
        return self.scale != (1.0, 1.0) or self.scale_to == "crop"


class TrainTransform:
    """``transform(sample, seed)``: an augmented crop of a labelled image as tensors, a pure function of its arguments.

    Targets are resized and rotated by nearest neighbour, so that values never mix. Pixels outside the image are
    `IGNORE` or NaN, and in segments not valid; segments that are not in the crop are left out.

    crop_size: side, or height and width, of the result; None keeps the image's size
    depth_kind: kind of the source's depth. Rescaling an image at random changes its metric depth, so with
        `augment.scale` the kind is required, and metric depth needs `augment.focal_corrected`
    resize: working size, to which image and targets are resized first: shorter side, or height and width
    colours: channels are red, green and blue; of others, brightness, contrast and gamma change each channel apart, and
        saturation and hue nothing
    """

    def __init__(
        self,
        augment: Augment,
        crop_size: int | tuple[int, int] | None,
        depth_kind: DepthKind | None = None,
        resize: int | tuple[int, int] | None = None,
        colours: bool = True,
    ) -> None:
        self.augment, self.depth_kind, self.resize = augment, depth_kind, resize
        self.crop_size = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
        if self.crop_size is not None and min(self.crop_size) < 1:
            raise ValueError(f"crop_size={crop_size}: expected at least 1 pixel")
        if self.crop_size is None and augment.scale_to == "crop":
            raise ValueError("scale_to='crop': scales are relative to the crop; give crop_size, or scale_to='image'")
        if self.crop_size is None and augment.pad == "corner":
            raise ValueError("pad='corner' pads crops; give crop_size, or leave pad out")
        if depth_kind == "metric":
            self._check_zoom()
        import albumentations as A

        self._compose = A.Compose(
            [*_geometry(augment, self.crop_size, colours), *_photometry(augment, colours)],
            additional_targets={"depth": "mask", "inside": "mask", "clean": "image"},
            save_applied_params=augment.rescales,
        )

    @property
    def varies(self) -> bool:
        """Whether results depend on the seed."""
        return self.augment != Augment() or self.crop_size is not None

    def _check_zoom(self) -> None:
        if self.augment.rescales and not self.augment.focal_corrected:
            raise ValueError(
                f"scale={self.augment.scale} with metric depth: a resized image shows objects at another distance "
                "than its depth; set focal_corrected=True to divide depth by the factor, or scale=(1, 1)"
            )

    def __call__(self, sample: Labelled, seed: int | tuple[int, ...]) -> Sample:
        """Return an augmented sample; `seed` is one or several whole numbers, such as (seed, epoch, index)."""
        if sample.depth is not None and self.augment.rescales and self.depth_kind is None:
            raise ValueError(
                f"{sample.name} has depth and scale={self.augment.scale}: give TrainTransform the depth_kind of the "
                "source, 'metric' or 'inverse_relative'"
            )
        sample = resize_sample(sample, self.resize)
        numbers = (seed,) if isinstance(seed, int) else seed
        key = int.from_bytes(struct.pack(f"<{len(numbers)}q", *numbers), "little")
        # one generator for all steps, since albumentations would start each of them from the same seed
        self._compose.set_random_state(np.random.default_rng(key), random.Random(key))
        targets: dict[str, NDArray[Any]] = {"inside": np.ones(sample.image.shape[:2], np.uint8)}
        if sample.labels is not None:
            targets["mask"] = sample.labels
        if sample.depth is not None:
            targets["depth"] = sample.depth
        if sample.clean is not None:
            targets["clean"] = sample.clean
        segments = sample.segments
        if segments is not None:  # where something is known, then each mask
            targets["masks"] = np.concatenate([segments.valid[None], segments.masks]).astype(np.uint8)
        result = self._compose(image=sample.image, **targets)
        outside = result["inside"] == 0
        labels, depth = result.get("mask"), result.get("depth")
        if labels is not None:
            labels = np.where(outside, np.uint8(IGNORE), labels)
        if depth is not None:
            if self.augment.rescales and self.depth_kind == "metric":
                depth = depth / np.float32(_factor(result["applied_transforms"]))
            depth = np.where(outside, np.float32(np.nan), depth)
        image = result["image"]
        if self.augment.pad == "corner":  # after the colours, which change black
            image = np.where(outside[..., None], np.uint8(0), image)
        if segments is not None:
            valid, *masks = torch.from_numpy(np.asarray(result["masks"]).astype(bool) & ~outside)
            moved = segments._replace(masks=torch.stack(masks) if masks else valid.new_zeros(0, *valid.shape))
            segments = moved._replace(valid=valid).take(moved.masks.flatten(1).any(1))
        return to_tensors(Labelled(image, labels, depth, sample.name, result.get("clean"), segments))


def _geometry(augment: Augment, crop_size: tuple[int, int] | None, colours: bool) -> list[A.BasicTransform]:
    import albumentations as A

    fill = FILL if colours else NEUTRAL
    steps: list[A.BasicTransform] = []
    if augment.rescales:
        low, high = augment.scale
        steps.append(
            _scaling(crop_size if augment.scale_to == "crop" else None)(
                (low - 1, high - 1), mask_interpolation=cv2.INTER_NEAREST_EXACT, area_for_downscale="image", p=1.0
            )  # plain INTER_NEAREST would move targets by up to half a pixel
        )
    if augment.rotate90:
        steps.append(_quarter_turns(whole=crop_size is None))
    if augment.rotate:
        steps.append(A.Rotate(augment.rotate, fill=fill, fill_mask=0, p=augment.rotate_probability))
    flips: list[A.BasicTransform] = [A.HorizontalFlip(p=augment.flip)]
    if augment.flip_vertical:
        flips.append(A.VerticalFlip(p=augment.flip_vertical))
    if crop_size is None:
        return steps + flips
    corner = augment.pad == "corner"
    position, fill = ("top_left", NEUTRAL) if corner else ("center", fill)
    crop = A.RandomCrop(*crop_size, pad_if_needed=True, pad_position=position, fill=fill, fill_mask=0)
    return [*steps, *flips, crop] if corner else [*steps, crop, *flips]


def _quarter_turns(whole: bool) -> A.BasicTransform:
    """Return a rotation by a random multiple of 90 degrees; whole images keep their shape."""
    import albumentations as A

    class QuarterTurns(A.RandomRotate90):
        def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
            height, width = params["shape"][:2]
            turns = self.py_random.randrange(4)
            turns = turns // 2 * 2 if whole and height != width else turns
            return {"factor": turns, "group_element": ("e", "r90", "r180", "r270")[turns]}

    return QuarterTurns(p=1.0)


def _scaling(fit: tuple[int, int] | None) -> type[A.BasicTransform]:
    """Return the class that resizes by a random factor, times that by which an image fits in `fit`."""
    import albumentations as A

    if fit is None:
        return A.RandomScale

    class RandomScale(A.RandomScale):
        def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
            height, width = params["shape"][:2]
            assert fit is not None
            return {"scale": params["scale"] * min(fit[0] / height, fit[1] / width)}

    return RandomScale


def _photometry(augment: Augment, colours: bool) -> list[A.BasicTransform]:
    import albumentations as A

    noise = [A.GaussNoise((0.0, augment.noise), per_channel=True, p=augment.photometric)] if augment.noise else []
    if not colours:
        return [*_channel_photometry(augment), *noise]
    around = {
        name: (1 - getattr(augment, name), 1 + getattr(augment, name))
        for name in ("brightness", "contrast", "saturation", "colour")
    }
    steps: list[A.BasicTransform] = []
    if augment.brightness or augment.contrast or augment.saturation or augment.hue:
        steps.append(
            A.ColorJitter(
                around["brightness"], around["contrast"], around["saturation"], (-augment.hue, augment.hue),
                p=augment.photometric,
            )
        )  # fmt: skip
    if augment.gamma != (1.0, 1.0):
        low, high = augment.gamma
        steps.append(A.RandomGamma((100 * low, 100 * high), p=augment.photometric))
    if augment.colour:
        steps.append(A.MultiplicativeNoise(around["colour"], per_channel=True, p=augment.photometric))
    return [*steps, *noise]


def _channel_photometry(augment: Augment) -> list[A.BasicTransform]:
    """Return brightness, contrast and gamma, drawn for each channel apart."""
    import albumentations as A

    class PerChannel(A.ImageOnlyTransform):
        def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
            count = params["shape"][2] if len(params["shape"]) > 2 else 1
            draw = lambda low, high: [self.py_random.uniform(low, high) for _ in range(count)]  # noqa: E731
            brightness = max(augment.brightness, augment.colour)
            return {
                "brightness": draw(1 - brightness, 1 + brightness),
                "contrast": draw(1 - augment.contrast, 1 + augment.contrast),
                "gamma": draw(*augment.gamma),
            }

        def apply(self, img: NDArray[np.uint8], **params: Any) -> NDArray[np.uint8]:
            planes = img.reshape(*img.shape[:2], -1)
            result = np.empty_like(planes)
            for n, (b, c, g) in enumerate(zip(*(params[k] for k in ("brightness", "contrast", "gamma")), strict=True)):
                values = b * np.arange(256)
                values = (values - b * (mean := float(planes[..., n].mean()))) * c + b * mean
                table = 255 * np.clip(values / 255, 0, 1) ** g
                result[..., n] = np.round(table).astype(np.uint8)[planes[..., n]]
            return result.reshape(img.shape)

    changes = augment.brightness or augment.contrast or augment.colour or augment.gamma != (1.0, 1.0)
    return [PerChannel(p=augment.photometric)] if changes else []


def _factor(applied: Sequence[tuple[str, dict[str, Any]]]) -> float:
    """Return the factor by which `RandomScale` resized."""
    return next(float(params["scale"]) for name, params in applied if name == "RandomScale")


@dataclass(frozen=True)
class EvalTransform:
    """``transform(sample)``: a labelled image as tensors, without augmentation.

    size: the new shorter side, at the same aspect ratio; or height and width; None keeps the size
    targets: "keep" their size, at which predictions are evaluated, or "resize" them with the image
    """

    size: int | tuple[int, int] | None = None
    targets: Literal["keep", "resize"] = "keep"

    def __post_init__(self) -> None:
        if self.targets not in ("keep", "resize"):
            raise ValueError(f"targets={self.targets!r}: expected 'keep' or 'resize'")
        if self.size is not None and (min(self.size) if isinstance(self.size, tuple) else self.size) < 1:
            raise ValueError(f"size={self.size}: expected at least 1 pixel")

    def __call__(self, sample: Labelled) -> Sample:
        if self.targets == "resize":
            return to_tensors(resize_sample(sample, self.size))
        return to_tensors(replace(sample, image=resize_image(sample.image, self.size)))


def resize_sample(sample: Labelled, size: int | tuple[int, int] | None) -> Labelled:
    """Resize an image as `resize_image` does, and its targets by nearest neighbour."""
    image = resize_image(sample.image, size)
    if image is sample.image:
        return sample
    new = (image.shape[0], image.shape[1])
    labels, depth = (_resize(a, new, cv2.INTER_NEAREST_EXACT) for a in (sample.labels, sample.depth))
    segments = sample.segments
    if segments is not None:  # as the labels are, which differs from torch's interpolation in a few pixels
        maps = torch.cat([segments.valid[None], segments.masks]).byte().numpy()
        valid, *masks = (torch.from_numpy(_resize(one, new, cv2.INTER_NEAREST_EXACT)).bool() for one in maps)
        moved = segments._replace(masks=torch.stack(masks) if masks else valid.new_zeros(0, *new), valid=valid)
        segments = moved.take(moved.masks.flatten(1).any(1))
    return Labelled(image, labels, depth, sample.name, segments=segments)


def resize_image(image: NDArray[np.uint8], size: int | tuple[int, int] | None) -> NDArray[np.uint8]:
    """Resize an image (H, W, N): by area where it shrinks, else bilinearly; return the same array if its size is right.

    size: the new shorter side, or height and width; None keeps the size
    """
    height, width = new_size(size, *image.shape[:2])
    if (height, width) == image.shape[:2]:
        return image
    shrinks = height * width < image.shape[0] * image.shape[1]
    small: NDArray[np.uint8] = resized(image, (height, width), cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return small


def _resize(array: Any, size: tuple[int, int], interpolation: int) -> Any:
    return None if array is None else resized(array, size, interpolation)


def new_size(size: int | tuple[int, int] | None, height: int, width: int) -> tuple[int, int]:
    if size is None:
        return height, width
    if isinstance(size, tuple):
        return size
    factor = size / min(height, width)
    return max(size, round(height * factor)), max(size, round(width * factor))


__all__ = ["Augment", "Batch", "EvalTransform", "Sample", "TrainTransform", "collate", "resize_image", "to_tensors"]
