"""Images to restore: any folder of clean ones, or degraded ones paired with clean ones."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from dense.data.image import ImageError, list_images, read_image, what_is_there
from dense.data.labelled.files import file_identity
from dense.data.labelled.folder import SPLITS, share
from dense.data.labelled.sample import DataError, Identity, Labelled, Progress
from dense.data.store import Names
from dense.suggest import did_you_mean

LAYOUTS = ("pictures", "paired")
INPUT, TARGET = ("input", "target")
CHUNK = 256  # samples that threads are given at once


@dataclass(frozen=True)
class CleanSource:
    """Images, and for each its clean one where they are `paired`."""

    title: str
    images: Names
    targets: Names | None = None
    problems: Names = field(default_factory=lambda: Names(()))
    classes: None = None
    depth_kind: None = None

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return self.images[index]

    def identity(self, index: int) -> Identity:
        return file_identity(self.images[index])

    def read(self, index: int) -> Labelled:
        name = self.images[index]
        image = read_image(name)
        if self.targets is None:
            return Labelled(image, None, None, name)
        clean = read_image(self.targets[index])
        if clean.shape != image.shape:
            raise DataError(
                f"{self.targets[index]} has {clean.shape[0]}x{clean.shape[1]} pixels (height x width), {name} has "
                f"{image.shape[0]}x{image.shape[1]}; a pair has one size"
            )
        return Labelled(image, None, None, name, clean)

    def check(self, *, limit: int | None = None, workers: int = 8, progress: Progress | None = None) -> list[str]:
        count = len(self) if limit is None else min(limit, len(self))
        lines = list(self.problems)
        with ThreadPoolExecutor(workers) as pool:
            for start in range(0, count, CHUNK):
                some = range(start, min(start + CHUNK, count))
                found = pool.map(self._problem, [done * len(self) // count for done in some])
                lines += [line for line in found if line]
                if progress is not None:
                    progress(some.stop, count)
        return lines

    def _problem(self, index: int) -> str:
        try:
            self.read(index)
        except (ImageError, DataError) as error:
            return str(error)
        return ""


def open_clean(root: str | Path, split: str, layout: str, val_ratio: float = 0.1) -> CleanSource:
    """The images of a split of `root`.

    images: every image in the folder is clean. paired: degraded ones in ``input/``, clean ones of the same names in
    ``target/``. Both may lie in folders ``train/`` and ``val/`` (or ``test/``); else a share `val_ratio`, chosen by the
    names, is validated on, and the split ``all`` is every image.
    """
    root = Path(root)
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r}: expected one of {', '.join(LAYOUTS)}.{did_you_mean(layout, LAYOUTS)}")
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: expected one of {', '.join(SPLITS)}.{did_you_mean(split, SPLITS)}")
    if not 0 < val_ratio < 1:
        raise ValueError(f"val_ratio={val_ratio}: expected more than 0 and less than 1")
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: expected a folder of images, but {what_is_there(root)}")
    folders = {s: root / name for s in ("train", "val", "test") for name in SPLITS[s] if (root / name).is_dir()}
    if folders and split != "all":
        if split not in folders:
            raise FileNotFoundError(f"{root} has no images of split {split}; it has {', '.join(folders)}")
        return _open(folders[split], f"{layout} {split}", layout)
    whole = _open(root, f"{layout} {split}", layout)
    if split == "all":
        return whole
    if split == "test":
        raise FileNotFoundError(f"{root} has no images of split test: expected a folder test/")
    base = root / INPUT if layout == "paired" else root
    if len(whole) < 2:
        raise DataError(f"{root} holds one image, which cannot be shared between train and val; add others")
    kept = share([Path(name).relative_to(base) for name in whole.images], split == "val", val_ratio)
    targets = None if whole.targets is None else Names(whole.targets[i] for i in kept)
    return CleanSource(whole.title, Names(whole.images[i] for i in kept), targets, whole.problems)


def _open(folder: Path, title: str, layout: str) -> CleanSource:
    if layout == "pictures":
        return CleanSource(title, Names(map(str, list_images(folder))))
    for name in (INPUT, TARGET):
        if not (folder / name).is_dir():
            raise FileNotFoundError(f"{title}: expected {folder / name}, but {what_is_there(folder)}")
    degraded, clean = (_by_name(folder / name) for name in (INPUT, TARGET))
    both: Sequence[str] = sorted(degraded.keys() & clean.keys())
    problems = [
        f"{degraded[n]} has no clean image {folder / TARGET / n}.*" for n in sorted(degraded.keys() - clean.keys())
    ]
    problems += [
        f"{clean[n]} has no degraded image {folder / INPUT / n}.*" for n in sorted(clean.keys() - degraded.keys())
    ]
    if not both:
        raise DataError(f"{title}: no pairs in {folder}", *problems)
    return CleanSource(title, Names(degraded[n] for n in both), Names(clean[n] for n in both), Names(problems))


def _by_name(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).with_suffix("").as_posix(): str(path) for path in list_images(folder)}
