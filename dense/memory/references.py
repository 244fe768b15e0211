"""Annotated images that are given one by one, as image and mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dense.console import warn
from dense.data.image import read_image
from dense.data.labelled.files import file_identity
from dense.data.labelled.reading import read_mask
from dense.data.labelled.sample import IGNORE, DataError, Identity, Labelled
from dense.data.levels import PHOTOGRAPHS, Reading
from dense.data.values import files_of

SMOOTHED, RARE = 8, 2e-3  # values, and median share of pixels, of a mask with smoothed edges


@dataclass(frozen=True)
class References:
    """Pairs of image and mask: a `LabelledSource`.

    A mask with two values, of which one is 0, is background and object. Other masks hold one number per class, and 255
    where the class is unknown. Labels are the places of these numbers in `values`, in ascending order.
    """

    pairs: tuple[tuple[Path, Path], ...]
    values: tuple[int, ...]
    classes: tuple[str, ...]
    title: str = "references"
    depth_kind: None = None
    things: None = None
    reading: Reading = PHOTOGRAPHS

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        return str(self.pairs[index][0])

    def identity(self, index: int) -> Identity:
        return file_identity(*files_of(Path(self.pairs[index][0]), self.reading))

    def read(self, index: int) -> Labelled:
        image, mask = read_image(self.pairs[index][0], reading=self.reading), numbers(self.pairs[index][1])
        if mask.shape != image.shape[:2]:
            height, width = image.shape[:2]
            warn(f"{self.pairs[index][1]} is resized to {height}x{width}, the size of its image, by the nearest pixel")
            mask = np.asarray(cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)
        labels = np.full(mask.shape, IGNORE, np.uint8)
        for label, value in enumerate(self.values):
            labels[mask == value] = label
        return Labelled(image, labels, None, self.name(index))


def open_references(
    pairs: Mapping[str | Path, str | Path] | Sequence[tuple[str | Path, str | Path]], reading: Reading = PHOTOGRAPHS
) -> References:
    """Return references, after all masks were read once: a mask without an object is an error."""
    items = [(Path(a), Path(b)) for a, b in (pairs.items() if isinstance(pairs, Mapping) else pairs)]
    if not items:
        raise ValueError("no references; give at least one image with its mask")
    for path, _ in items:
        if not path.is_file():
            raise FileNotFoundError(f"no such image: {path}")
    found = {path: values_of(path) for _, path in items}
    values = set().union(*found.values())
    if len(values) > 2 and any(own == {0, IGNORE} for own in found.values()):
        given = {value: str(path) for path, own in found.items() for value in own - {0}}
        raise DataError(
            f"the object has several values: {', '.join(f'{v} in {path}' for v, path in sorted(given.items()))}; give "
            "it one value in all masks, below 255 where there are several classes"
        )
    nothing = {0} if len(values) == 2 else {0, IGNORE}  # 255 is the object of masks that hold 0 and 255 alone
    if 0 in values and (empty := [path for path, own in found.items() if own <= nothing and len(values) > len(own)]):
        if found[empty[0]] == {IGNORE}:
            raise DataError(
                f"{empty[0]} holds 255 alone, which is unknown beside masks with lower values; write the object's "
                "value instead"
            )
        raise DataError(f"{empty[0]} is empty: no pixel is of an object; mark it, or leave the image out")
    if len(values) == 2 and 0 in values:
        return References(tuple(items), tuple(sorted(values)), ("background", "object"), reading=reading)
    values -= {IGNORE}
    if len(values) < 2:
        only = next(iter(values), IGNORE)
        raise DataError(
            f"{items[0][1]} holds the value {only} alone; a mask needs background and object, or two classes"
        )
    return References(tuple(items), tuple(sorted(values)), tuple(map(str, sorted(values))), reading=reading)


def values_of(path: Path) -> set[int]:
    """Return the values of a mask; raise for one whose edges were smoothed."""
    mask = numbers(path)
    counts = np.bincount(mask.ravel(), minlength=256)
    present = np.flatnonzero(counts)
    if len(present) > SMOOTHED and np.median(counts[present]) < RARE * mask.size:
        raise DataError(
            f"{path} holds {len(present)} values, most of them rare, like a mask with smoothed edges; save one number "
            "per class without smoothing, as PNG"
        )
    return set(map(int, present))


def numbers(path: Path) -> NDArray[np.uint8]:
    """Return a mask of whole numbers (H, W)."""
    mask = read_mask(path)
    if mask.ndim == 3:
        if (mask == mask[..., :1]).all():
            mask = mask[..., 0]
        else:
            raise DataError(f"{path} has colours; expected a grey or palette mask with one number per class")
    if mask.max(initial=0) > IGNORE:
        raise DataError(f"{path} holds {mask.max()}; classes are numbers below 255")
    return mask.astype(np.uint8)
