"""Images of a training and a validation set with one label each: opened, compared, cropped and loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dense.data.image import ImageError
from dense.data.levels import PHOTOGRAPHS, Reading
from dense.data.loader import init_worker
from dense.data.unlabelled import FolderImages, Images, SceneImages, open_images
from dense.suggest import did_you_mean

Draw = tuple[int, int]  # epoch, index


class ClassifiedBatch(NamedTuple):
    """Images that could be read, and the errors of those that could not."""

    images: Tensor  # B, 3, S, S uint8
    labels: Tensor  # B
    skipped: list[str]


@dataclass
class Examples:
    """The labelled images of a set; unreadable ones are skipped and noted in `skipped`."""

    source: str
    images: Images
    labels: NDArray[np.int64]  # len(images), 0 to number of classes - 1; -1 for an image without a class
    classes: tuple[str, ...]
    skipped: set[str] = field(default_factory=set)  # an error message per image

    @property
    def indices(self) -> NDArray[np.int64]:
        """Indices of the labelled images."""
        return np.flatnonzero(self.labels >= 0)

    def __len__(self) -> int:
        return int((self.labels >= 0).sum())

    def share(self, rank: int, world: int) -> Examples:
        """Every `world`-th of the labelled images, from the `rank`-th on."""
        return self.only(self.indices[rank::world])

    def only(self, indices: NDArray[np.int64]) -> Examples:
        """The labelled images with these indices."""
        labels = np.full_like(self.labels, -1)
        labels[indices] = self.labels[indices]
        return replace(self, labels=labels)

    def batches(
        self, view: View, batch_size: int, *, workers: int = 0, seed: int = 0, epochs: Sequence[int] | None = None
    ) -> Iterator[ClassifiedBatch]:
        """Yield batches in order, once; or shuffled and complete ones only, one pass per entry of `epochs`."""
        draws = _Order(self.indices, batch_size, seed, epochs)
        loader = DataLoader(
            _Views(self, view, seed),
            batch_sampler=draws,
            num_workers=workers,
            collate_fn=_collate,
            worker_init_fn=init_worker,
            generator=torch.Generator().manual_seed(seed),  # or the global one would move
        )
        for batch in loader:
            self.skipped.update(batch.skipped)
            yield batch


def open_examples(
    train: str,
    val: str,
    *,
    scenes: tuple[int, int] = (2000, 500),
    size: int = 96,
    seed: int = 0,
    reading: Reading = PHOTOGRAPHS,
) -> tuple[Examples, Examples]:
    """Open training and validation images and check that their classes agree; see `open_images` for the sources.

    scenes, size, seed: how many embedded scenes each set has, their side and their seed. reading: of the images.
    """
    if train == val or (Path(train).exists() and Path(val).exists() and Path(train).samefile(val)):
        raise ValueError(f"train and val are both {train}; each image would be its own target")
    opened = [
        open_images(root, length=n, size=size, seed=seed, reading=reading)
        for root, n in zip((train, val), scenes, strict=True)
    ]
    first, second = (_names(source, root) for source, root in zip(opened, (train, val), strict=True))
    unknown = [name for name in second.values() if name not in set(first.values())]
    if unknown:
        known = sorted(first.values())
        raise ValueError(
            f"val ({val}) has {len(unknown)} of {len(second)} classes that train ({train}) lacks: "
            f"{', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}; train has {', '.join(known[:5])}"
            f"{', ...' if len(known) > 5 else ''}.{did_you_mean(unknown[0], known)}"
        )
    if len(first) < 2:
        raise ValueError(f"train ({train}) has a single class, {', '.join(first.values())}; expected two or more")
    numbers = {name: number for number, name in enumerate(first.values())}
    classes = tuple(numbers)
    return (
        Examples(train, opened[0], _renumber(opened[0], first, numbers), classes),
        Examples(val, opened[1], _renumber(opened[1], second, numbers), classes),
    )


def _names(images: Images, root: str) -> dict[int, str]:
    """Return label -> name of each class that occurs."""
    labels = images.labels
    if labels is None:
        raise ValueError(f"the images of {root} have no classes; expected {root}/CLASS/image.jpg")
    if isinstance(images, SceneImages):  # also those that a short series lacks
        return dict(enumerate(images.scenes.classes[2:], start=2))
    occurring = [int(label) for label in np.unique(labels) if label >= 0]
    if isinstance(images, FolderImages):
        return {label: images.classes[label] for label in occurring}
    return {label: str(label) for label in occurring}


def _renumber(images: Images, names: dict[int, str], numbers: dict[str, int]) -> NDArray[np.int64]:
    labels = images.labels
    assert labels is not None
    table = np.full(max(names) + 2, -1, np.int64)  # the last entry serves label -1
    for label, name in names.items():
        table[label] = numbers[name]
    return table[labels]


class _Views(Dataset[tuple[NDArray[np.uint8] | str, int]]):
    """The cropped image and its label, or the error of an unreadable image."""

    def __init__(self, examples: Examples, view: View, seed: int) -> None:
        self.images, self.labels, self.view, self.seed = examples.images, examples.labels, view, seed

    def __getitem__(self, draw: Draw) -> tuple[NDArray[np.uint8] | str, int]:
        epoch, index = draw
        try:
            image = self.images.read(index)
        except ImageError as error:
            return str(error), -1
        return self.view(image, (self.seed, epoch, index)), int(self.labels[index])


class _Order:
    """Batches of (epoch, index)."""

    def __init__(
        self, indices: NDArray[np.int64], batch_size: int, seed: int, epochs: Sequence[int] | None = None
    ) -> None:
        self.indices, self.batch_size, self.seed, self.epochs = indices, min(batch_size, len(indices)), seed, epochs

    def __iter__(self) -> Iterator[list[Draw]]:
        if self.epochs is None:
            for start in range(0, len(self.indices), self.batch_size):
                yield [(0, int(i)) for i in self.indices[start : start + self.batch_size]]
            return
        for epoch in self.epochs:
            order = np.random.default_rng((self.seed, epoch)).permutation(self.indices)
            for start in range(0, len(order) - self.batch_size + 1, self.batch_size):
                yield [(epoch, int(i)) for i in order[start : start + self.batch_size]]


def _collate(samples: list[tuple[NDArray[np.uint8] | str, int]]) -> ClassifiedBatch:
    good = [(image, label) for image, label in samples if not isinstance(image, str)]
    bad = [image for image, _ in samples if isinstance(image, str)]
    if not good:
        return ClassifiedBatch(torch.zeros(0, 3, 1, 1, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), bad)
    images = torch.from_numpy(np.stack([image for image, _ in good])).permute(0, 3, 1, 2).contiguous()
    return ClassifiedBatch(images, torch.tensor([label for _, label in good]), bad)


Pixels = NDArray[np.uint8]  # H, W, 3
Resample = Literal["bicubic", "bilinear"]
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}  # PIL's are antialiased


def resized(image: Pixels, size: tuple[int, int], resample: Resample) -> Pixels:
    """Resize an image (H, W, C) as PIL does; of channels that are not RGB, each by itself."""
    planes = [image] if image.shape[2] == 3 else [image[..., channel] for channel in range(image.shape[2])]
    return np.dstack([np.asarray(Image.fromarray(p).resize(size[::-1], FILTERS[resample])) for p in planes])


@dataclass(frozen=True)
class CenterCrop:
    """Resize the shorter side to `resize` pixels, keeping the aspect ratio; crop a square of `crop` at the centre."""

    resize: int = 256
    crop: int = 224
    resample: Resample = "bicubic"

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize:
            raise ValueError(f"a crop of {self.crop} px does not fit images resized to {self.resize} px")

    def __str__(self) -> str:
        return f"shorter side {self.resize} {self.resample} (PIL, antialiased), centre crop {self.crop}"

    def __call__(self, image: Pixels, draw: tuple[int, int, int] = (0, 0, 0)) -> Pixels:
        """(H, W, 3) -> (crop, crop, 3)."""
        height, width = image.shape[:2]
        short = min(height, width)
        size = (self.resize * height // short, self.resize * width // short)
        if size != (height, width):
            image = resized(image, size, self.resample)
        top, left = (round((side - self.crop) / 2) for side in size)
        return image[top : top + self.crop, left : left + self.crop]


@dataclass(frozen=True)
class RandomCrop:
    """A random resized crop, flipped with probability .5; a pure function of (seed, epoch, index)."""

    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)  # of the image's area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height
    resample: Resample = "bilinear"

    def __call__(self, image: Pixels, draw: tuple[int, int, int] = (0, 0, 0)) -> Pixels:
        """(H, W, 3) and (seed, epoch, index) -> (size, size, 3)."""
        rng = np.random.default_rng(draw)
        top, left, height, width = self.box(rng, *image.shape[:2])
        out = resized(image[top : top + height, left : left + width], (self.size, self.size), self.resample)
        return out[:, ::-1] if rng.random() < 0.5 else out

    def box(self, rng: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
        """Return top, left, height and width; after ten draws that do not fit, the largest centre box of the ratio."""
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
    """The image unchanged: embedded scenes are rendered at the size of the crop."""

    def __str__(self) -> str:
        return "as rendered"

    def __call__(self, image: Pixels, draw: tuple[int, int, int] = (0, 0, 0)) -> Pixels:
        return image


View = CenterCrop | RandomCrop | AsItIs


@dataclass
class Pair:
    """The training and validation set of a classification protocol, with the view of validation images."""

    train: Examples
    val: Examples
    view: CenterCrop | AsItIs
    crop: int

    @classmethod
    def open(
        cls,
        train: str,
        val: str,
        *,
        resize: int = 256,
        crop: int | None = None,
        resample: Resample = "bicubic",
        scenes: tuple[int, int] = (2000, 500),
        seed: int = 0,
        reading: Reading = PHOTOGRAPHS,
    ) -> Pair:
        """Open both sets and compare them. crop: 224, or 96 for embedded scenes, if left out."""
        rendered = {root.startswith("scenes:") for root in (train, val)}
        if len(rendered) == 2:
            raise ValueError(f"train is {train} and val is {val}: only one of them is embedded scenes")
        crop = crop or (96 if rendered == {True} else 224)
        view: CenterCrop | AsItIs = AsItIs() if rendered == {True} else CenterCrop(resize, crop, resample)
        return cls(*open_examples(train, val, scenes=scenes, size=crop, seed=seed, reading=reading), view, crop)

    @property
    def skipped(self) -> list[str]:
        """Messages of the images that could not be read."""
        return sorted(self.train.skipped | self.val.skipped)
