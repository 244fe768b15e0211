"""A source of labelled images that lie in files: three lists of paths and how to read them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dense.data.image import read_image
from dense.data.labelled.depth import DepthFormat, read_depth
from dense.data.labelled.masks import LabelFormat, read_labels
from dense.data.labelled.sample import DataError, DepthKind, Identity, Labelled, Progress
from dense.data.store import Names

ORIENTATION = 0x0112  # in EXIF; 5 to 8 turn an image by a quarter
EXIF_HINT = "the image is turned by its EXIF data and the {what} is not: save the image turned, without EXIF"


@dataclass(frozen=True)
class FileSource:
    """Images, masks and depth maps by path; an empty path stands for a target that a sample lacks.

    problems: what pairing found wrong; `check` repeats it and looks into the files
    crop: height and width of the part at the bottom centre that everything is cut to, if any
    whole: how many samples it is a share of, where a folder is not split; else 0
    """

    title: str
    images: Names
    masks: Names | None
    depths: Names | None
    label_format: LabelFormat | None = None
    depth_format: DepthFormat | None = None
    partial: bool = False
    crop: tuple[int, int] | None = None
    problems: Names = field(default_factory=lambda: Names(()))
    whole: int = 0

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self.label_format.classes if self.masks is not None and self.label_format else None

    @property
    def depth_kind(self) -> DepthKind | None:
        return self.depth_format.kind if self.depths is not None and self.depth_format else None

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return self.images[index]

    def identity(self, index: int) -> Identity:
        return file_identity(self.images[index])

    def read(self, index: int) -> Labelled:
        image, labels, depth = read_image(self.images[index]), self.labels(index), self.depth(index)
        for what, target in (("mask", labels), ("depth map", depth)):
            if target is None and not self.partial and (self.masks if what == "mask" else self.depths) is not None:
                raise DataError(f"{self.images[index]} has no {what}; add it, or open the data with partial=True")
            if target is not None and (problem := self.mismatch(index, what, target.shape, image.shape[:2])):
                raise DataError(problem)
        name = self.images[index]
        if self.crop is None:
            return Labelled(image, labels, depth, name)
        cut = functools.partial(crop_bottom_centre, size=self.crop, name=name)
        return Labelled(
            cut(image), None if labels is None else cut(labels), None if depth is None else cut(depth), name
        )

    def labels(self, index: int) -> NDArray[np.uint8] | None:
        """The mask alone (H, W)."""
        path = self.masks[index] if self.masks is not None else ""
        return read_labels(path, self.label_format) if path and self.label_format else None

    def depth(self, index: int) -> NDArray[np.float32] | None:
        """The depth map alone (H, W)."""
        path = self.depths[index] if self.depths is not None else ""
        return read_depth(path, self.depth_format) if path and self.depth_format else None

    def mismatch(self, index: int, what: str, found: Sequence[int], expected: Sequence[int]) -> str | None:
        """Why a target does not fit its image, both (H, W)."""
        if tuple(found) == tuple(expected):
            return None
        image = self.images[index]
        names = self.masks if what == "mask" else self.depths
        path = names[index] if names is not None else "the target"
        line = f"{path} has {found[0]}x{found[1]} pixels (height x width), {image} has {expected[0]}x{expected[1]}"
        if tuple(found) == tuple(expected)[::-1] and _orientation(image) >= 5:
            return f"{line}; {EXIF_HINT.format(what=what)}"
        return f"{line}; every {what} must have its image's size"

    def check(self, *, limit: int | None = None, workers: int = 8, progress: Progress | None = None) -> list[str]:
        from dense.data.labelled.check import check_files

        return check_files(self, limit=limit, workers=workers, progress=progress)


def crop_bottom_centre(array: NDArray[Any], size: tuple[int, int], name: str) -> NDArray[Any]:
    """The part of an image or target (H, W, ...) at its lower edge, in the middle."""
    (height, width), (rows, columns) = array.shape[:2], size
    if height < rows or width < columns:
        raise DataError(f"{name} has {height}x{width} pixels, less than the crop {rows}x{columns}")
    left = (width - columns) // 2
    return array[height - rows :, left : left + columns]


def file_identity(path: str | Path) -> Identity:
    """A file by its place, and its state by size and time of writing."""
    status = Path(path).stat()
    return Identity(str(Path(path).resolve()), f"{status.st_size} bytes at {status.st_mtime_ns}")


def image_size(path: str) -> tuple[int, int] | None:
    """Height and width of an image as it is read, by its header alone; None if that is damaged."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = int(image.getexif().get(ORIENTATION, 1)) >= 5
        return (width, height) if turned else (height, width)
    except Exception:  # PIL's readers raise nearly anything on damaged bytes
        return None


def _orientation(path: str) -> int:
    with Image.open(path) as image:
        return int(image.getexif().get(ORIENTATION, 1))
