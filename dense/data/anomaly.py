"""Sets for anomaly detection: good images to fit, and test images that are good or not, with masks of what is wrong."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dense.console import warn
from dense.data.image import EXTENSIONS, what_is_there
from dense.data.labelled.reading import read_mask
from dense.data.labelled.sample import DataError
from dense.suggest import did_you_mean

LAYOUTS = ("folder", "mvtec", "visa")
SPLIT = "split_csv/1cls.csv"  # of VisA, below its root


@dataclass(frozen=True)
class Tested:
    """A test image: its kind, "good" or what is wrong, and the file of its mask, if there is one."""

    path: Path
    kind: str
    mask: Path | None

    @property
    def anomalous(self) -> bool:
        return self.kind != "good"

    def read_mask(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        """Return the anomalous pixels of an image of this height and width."""
        if self.mask is None:
            return np.zeros(size, np.bool_)
        mask = read_mask(self.mask)
        mask = (mask if mask.ndim == 2 else mask[..., :3].max(-1)) > 0
        if mask.shape != size:
            warn(f"{self.mask} is resized to {size[0]}x{size[1]}, the size of its image, by the nearest pixel")
            mask = cv2.resize(mask.astype(np.uint8), (size[1], size[0]), interpolation=cv2.INTER_NEAREST) > 0
        if not mask.any():
            raise DataError(f"{self.mask} is empty, and its image is of kind {self.kind}; mark what is wrong")
        return np.asarray(mask, np.bool_)


@dataclass(frozen=True)
class AnomalySet:
    """Images of one category: `good` ones to fit, in the order of their names, and those of the test."""

    category: str
    good: tuple[Path, ...]
    test: tuple[Tested, ...]

    @property
    def has_masks(self) -> bool:
        """Whether there are masks; of a set with masks every anomalous image has one."""
        return any(one.mask for one in self.test)

    def shots(self, count: int, seed: int) -> AnomalySet:
        """Return the set with `count` good images by the published rule: numbers seed count to (seed + 1) count - 1."""
        if count < 1 or not 0 <= seed * count <= len(self.good) - count:
            raise ValueError(
                f"shots={count} with seed={seed} are images {seed * count} to {(seed + 1) * count - 1} of the sorted "
                f"good ones, and {self.category} has {len(self.good)}; give fewer shots or a smaller seed"
            )
        return replace(self, good=self.good[seed * count : (seed + 1) * count])


def open_anomaly(root: str | Path, layout: str = "folder", categories: Sequence[str] = ()) -> list[AnomalySet]:
    """Return the sets of a folder, one per category.

    layout: `folder` has train/good, test/good, test/KIND and, for pixels, ground_truth/KIND with masks STEM.png or
        STEM_mask.png; `mvtec` (MVTec AD) has these in a folder per category; `visa` has split_csv/1cls.csv.
    categories: some of them, all if left out.
    """
    root = Path(root)
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r}: expected {', '.join(LAYOUTS)}.{did_you_mean(layout, LAYOUTS)}")
    if layout == "folder":
        if categories:
            raise ValueError(f"category={categories[0]!r}: the layout folder has none; leave it out, or use mvtec")
        return [check(folder_set(root, root.name), root)]
    rows = visa_rows(root / SPLIT) if layout == "visa" else []
    known = sorted({row["object"] for row in rows} or {p.parent.name for p in root.glob("*/train")})
    if not known:
        raise DataError(f"no categories in {root}: expected CATEGORY/train/good; {what_is_there(root)}")
    for name in categories:
        if name not in known:
            raise ValueError(f"category={name!r}: {root} has {', '.join(known)}.{did_you_mean(name, known)}")
    chosen = list(categories or known)
    if layout == "mvtec":
        return [check(folder_set(root / name, name), root / name) for name in chosen]
    return [check(visa_set(root, name, rows), root / SPLIT) for name in chosen]


def folder_set(root: Path, category: str) -> AnomalySet:
    """Return the set of a folder with train/good, test/KIND and ground_truth/KIND."""
    test, missing = [], []
    masked = (root / "ground_truth").is_dir()
    for folder in sorted(p for p in root.glob("test/*") if p.is_dir()):
        masks = {p.stem.removesuffix("_mask"): p for p in images_in(root / "ground_truth" / folder.name)}
        for path in images_in(folder):
            mask = masks.get(path.stem) if folder.name != "good" else None
            if mask is None and masked and folder.name != "good":
                missing.append(f"{path} has no mask in {root / 'ground_truth' / folder.name}")
            test.append(Tested(path, folder.name, mask))
    if missing:
        raise DataError(*missing)
    return AnomalySet(category, tuple(images_in(root / "train/good")), tuple(test))


def visa_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of VisA's split: object, split, label, image, mask."""
    if not path.is_file():
        raise DataError(f"no {path}, the split of VisA; {what_is_there(path.parent)}")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"object", "split", "label", "image", "mask"} <= set(rows[0]):
        raise DataError(f"{path}: expected the columns object, split, label, image and mask")
    return rows


def visa_set(root: Path, category: str, rows: Sequence[dict[str, str]]) -> AnomalySet:
    """Return the set of an object of VisA, whose paths are relative to the root."""
    own = [row for row in rows if row["object"] == category]
    good = sorted(root / row["image"] for row in own if row["split"] == "train")
    test = [
        Tested(root / row["image"], "good", None)
        if row["label"] == "normal"
        else Tested(root / row["image"], "anomaly", root / row["mask"] if row["mask"] else None)
        for row in own
        if row["split"] == "test"
    ]
    missing = [f"{one.path} has no mask in {root / SPLIT}" for one in test if one.anomalous and one.mask is None]
    if missing and any(one.mask for one in test):
        raise DataError(*missing)
    return AnomalySet(category, tuple(good), tuple(sorted(test, key=lambda one: one.path)))


def images_in(folder: Path) -> list[Path]:
    """Return the images of a folder, sorted by name; none if there is no such folder."""
    return sorted(p for p in folder.glob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())


def check(found: AnomalySet, where: Path) -> AnomalySet:
    """Raise for a set without good images to fit, or whose test has one class only."""
    wrong = sum(one.anomalous for one in found.test)
    if not found.good:
        raise DataError(
            f"no good images in {where / 'train/good' if where.is_dir() else where}; {what_is_there(where)}"
        )
    if not wrong or wrong == len(found.test):
        there = f"{len(found.test)} test images, {wrong} of them anomalous"
        raise DataError(f"{where} has {there}; a measure needs both good ones (test/good) and others (test/KIND)")
    return found
