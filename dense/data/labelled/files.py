"""A source of labelled images in files: columns of paths, and how the files are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dense.data.image import read_image
from dense.data.labelled.formats import DepthFormat, LabelFormat
from dense.data.labelled.reading import EXIF_HINT, is_turned, read_depth, read_labels
from dense.data.labelled.sample import DataError, DepthKind, Identity, Labelled, Segments
from dense.data.labelled.segments import SegmentFormat
from dense.data.levels import PHOTOGRAPHS, Reading
from dense.data.store import Names
from dense.data.values import TIFFS, files_of, header_size
from heads.features import Size


@dataclass(frozen=True)
class FileSource:
    """Images, masks, depth maps and clean images by path; the path of a target that a sample lacks is empty.

    crop: height and width of the part at the bottom centre to which everything is cropped, if any
    problems: what pairing found wrong; `check` reports it, and what is wrong inside the files
    whole: number of samples of the set of which this is a random part, where neither folders nor lists split it; else 0
    split_by: the pattern whose groups that random split kept together, if any
    kinds: of degradation of paired images, where folders name them
    segments: of each image what `SegmentFormat.read` takes: the path of a PNG, or text of a JSON file
    reading: what the numbers of images mean; of an image with a file per channel, the path is that of the first
    """

    title: str
    images: Names
    masks: Names | None = None
    depths: Names | None = None
    label_format: LabelFormat | None = None
    depth_format: DepthFormat | None = None
    partial: bool = False
    crop: tuple[int, int] | None = None
    problems: Names = field(default_factory=lambda: Names(()))
    whole: int = 0
    split_by: str | None = None
    clean: Names | None = None
    kinds: Names | None = None
    segments: Names | None = None
    segment_format: SegmentFormat | None = None
    reading: Reading = PHOTOGRAPHS

    @property
    def classes(self) -> tuple[str, ...] | None:
        if self.segments is not None and self.segment_format:
            return self.segment_format.classes
        return self.label_format.classes if self.masks is not None and self.label_format else None

    @property
    def things(self) -> tuple[bool, ...] | None:
        return self.segment_format.things if self.segments is not None and self.segment_format else None

    @property
    def covers(self) -> bool:
        """Whether pixels outside of objects have a class too."""
        return self.masks is not None or self.segment_format is None or self.segment_format.covers

    @property
    def depth_kind(self) -> DepthKind | None:
        return self.depth_format.kind if self.depths is not None and self.depth_format else None

    @property
    def focal(self) -> float | None:
        """Focal length of the images in pixels, if it is declared beside the depth."""
        return self.depth_format.focal if self.depth_format else None

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return self.images[index]

    def identity(self, index: int) -> Identity:
        return file_identity(*files_of(Path(self.images[index]), self.reading))

    def take(self, indices: Sequence[int], whole: int = 0, split_by: str | None = None) -> FileSource:
        """Return the samples with these indices."""
        columns = {name: getattr(self, name) for name in ("images", "masks", "depths", "clean", "kinds", "segments")}
        taken: dict[str, Any] = {
            name: None if column is None else Names(column[i] for i in indices) for name, column in columns.items()
        }
        return replace(self, whole=whole, split_by=split_by, **taken)

    def read(self, index: int) -> Labelled:
        name = self.images[index]
        image = read_image(name, reading=self.reading)
        self.check_complete(index)
        labels, depth, clean = self.labels(index), self.depth(index), self.clean_image(index)
        for what, target in (("mask", labels), ("depth map", depth), ("clean image", clean)):
            if target is not None and (problem := self.mismatch(index, what, target.shape[:2], image.shape[:2])):
                raise DataError(problem)
        segments = self.segments_of(index, (image.shape[0], image.shape[1]), labels)
        if self.crop is None:
            return Labelled(image, labels, depth, name, clean, segments)
        labels, depth = (
            None if target is None else crop_bottom_centre(target, self.crop, name) for target in (labels, depth)
        )
        return Labelled(crop_bottom_centre(image, self.crop, name), labels, depth, name)

    def check_complete(self, index: int) -> None:
        """Raise if an image lacks a target that others have, unless it may."""
        for what, paths in (("mask", self.masks), ("depth map", self.depths), ("instance map", self.segments)):
            if paths is not None and not paths[index] and not self.partial:
                raise DataError(f"{self.images[index]} has no {what}; add it, or open the data with partial=True")

    def labels(self, index: int) -> NDArray[np.uint8] | None:
        """Return the mask alone (H, W)."""
        path = self.masks[index] if self.masks is not None else ""
        return read_labels(path, self.label_format) if path and self.label_format else None

    def depth(self, index: int) -> NDArray[np.float32] | None:
        """Return the depth map alone (H, W)."""
        path = self.depths[index] if self.depths is not None else ""
        return read_depth(path, self.depth_format) if path and self.depth_format else None

    def segments_of(self, index: int, size: Size, labels: NDArray[np.uint8] | None = None) -> Segments | None:
        """Return the segments alone, of an image of this size; labels: its mask of classes, if it is read already."""
        entry = self.segments[index] if self.segments is not None else ""
        if not entry or self.segment_format is None:
            return None
        if labels is None and self.segment_format.needs_labels:
            labels = self.labels(index)
        segments = self.segment_format.read(entry, size, labels, self.images[index])
        found = (segments.valid.shape[0], segments.valid.shape[1])
        if found != size:
            raise DataError(
                f"the segments of {self.images[index]} have {found[0]}x{found[1]} pixels (height x width), the image "
                f"{size[0]}x{size[1]}"
            )
        return segments

    def clean_image(self, index: int) -> NDArray[np.uint8] | None:
        """Return the clean image alone (H, W, C)."""
        return None if self.clean is None else read_image(self.clean[index], reading=self.reading)

    def target(self, index: int, what: str) -> str:
        """Return the path of an image's mask, depth map, clean image or instance map; empty where it has none."""
        paths = {
            "mask": self.masks, "depth map": self.depths, "clean image": self.clean, "instance map": self.segments,
        }[what]  # fmt: skip
        entry = paths[index] if paths is not None else ""
        return self.segment_format.map_of(entry) if entry and what == "instance map" and self.segment_format else entry

    def mismatch(self, index: int, what: str, found: Sequence[int], expected: Sequence[int]) -> str | None:
        """Return the problem of a target whose size (H, W) is not that of its image."""
        if tuple(found) == tuple(expected):
            return None
        image = self.images[index]
        path = self.target(index, what)
        line = f"{path} has {found[0]}x{found[1]} pixels (height x width), {image} has {expected[0]}x{expected[1]}"
        if tuple(found) == tuple(expected)[::-1] and is_turned(image):
            return f"{line}; {EXIF_HINT.format(what=what)}"
        return f"{line}; every {what} must have its image's size"


def crop_bottom_centre(array: NDArray[Any], size: tuple[int, int], name: str) -> NDArray[Any]:
    """Crop an image or target (H, W, ...) at its lower edge, in the middle."""
    (height, width), (rows, columns) = array.shape[:2], size
    if height < rows or width < columns:
        raise DataError(f"{name} has {height}x{width} pixels, less than the crop {rows}x{columns}")
    left = (width - columns) // 2
    return array[height - rows :, left : left + columns]


def file_identity(*paths: str | Path) -> Identity:
    """Return the path of the first file as name, and the sizes and times of modification of all of them as version."""
    status = [Path(path).stat() for path in paths]
    version = ", ".join(f"{one.st_size} bytes at {one.st_mtime_ns}" for one in status)
    return Identity(str(Path(paths[0]).resolve()), version)


def image_size(path: str) -> tuple[int, int] | None:
    """Return height and width of an image as it is read, from its header alone; None if that is damaged."""
    if path.lower().endswith((".npy", ".dcm")):
        return header_size(path)
    try:
        with Image.open(path) as image:
            width, height = image.size
        return (width, height) if is_turned(path) else (height, width)
    except Exception:  # PIL's readers raise nearly anything on damaged bytes
        return header_size(path) if path.lower().endswith(TIFFS) else None
