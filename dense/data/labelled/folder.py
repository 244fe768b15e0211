"""Anybody's folder of images and targets, arranged in one of the usual ways."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dense.data.image import ImageError, walk, what_is_there
from dense.data.labelled.declarations import CLASSES_EXAMPLE, DEPTH_EXAMPLE, depth_format, label_format
from dense.data.labelled.depth import DepthFormat
from dense.data.labelled.files import FileSource
from dense.data.labelled.layouts import Layout
from dense.data.labelled.masks import LabelFormat, read_mask
from dense.data.labelled.pairing import pair
from dense.data.labelled.sample import DataError
from dense.data.store import Names
from dense.suggest import did_you_mean

IMAGES = ("images", "image")
MASKS = ("masks", "mask", "labels", "annotations")
DEPTHS = ("depth", "depths")
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
    "all": ("all",),
}
ARRANGEMENTS = ("images/", "{split}/images/", "images/{split}/")


def open_folder(
    root: str | Path,
    split: str,
    *,
    partial: bool = False,
    targets: Sequence[str] = ("labels", "depth"),
    classes: str | Path | Sequence[str] | Mapping[Any, Any] | LabelFormat | None = None,
    depth: str | Path | Mapping[str, Any] | DepthFormat | None = None,
    ids: str | Path | None = None,
    val_ratio: float = 0.1,
) -> FileSource:
    """Images in ``images/`` with masks in ``masks/``, depth in ``depth/``, or both, under the same names.

    Splits are folders (``train/images/``, or ``images/train/``), lists of names without extension (``train.txt``,
    ``val.txt``, or `ids`), or else a share `val_ratio` of the names, chosen by the names themselves: images that are
    added later move no other. Without such folders, the split ``all`` is every image.

    targets: which of both are looked for; the folder of the other is nobody's business.
    ``classes.yaml`` in the root names the classes (see `label_format`), ``depth.yaml`` says how depth is stored (see
    `depth_format`); `classes` and `depth` take their place.
    """
    root = Path(root)
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: expected one of {', '.join(SPLITS)}.{did_you_mean(split, SPLITS)}")
    if not 0 < val_ratio < 1:
        raise ValueError(f"val_ratio={val_ratio}: expected more than 0 and less than 1")
    pattern = _arrangement(root, split)
    masks = _sibling(root, pattern, MASKS) if "labels" in targets else None
    depths = _sibling(root, pattern, DEPTHS) if "depth" in targets else None
    if masks is None and depths is None:
        missing = [_swap(pattern, {"labels": "masks"}.get(target, target)) for target in targets]
        raise FileNotFoundError(f"{root} has no targets: expected {' or '.join(missing)}, but {what_is_there(root)}")
    layout = Layout(
        "folder",
        image=f"{pattern}{{id}}.*",
        labels=f"{masks}{{id}}.*" if masks else None,
        depth=f"{depths}{{id}}.*" if depths else None,
        splits={split: split},
        label_format=_classes(root, masks, classes) if masks else None,
        depth_format=_depth(root, depths, depth) if depths else None,
    )
    split_by_folder = Path(pattern).parts not in {(name,) for name in IMAGES}
    listed = ids if ids is not None else _list(root, split, split_by_folder)
    source = pair(root, layout, split, ids=listed, partial=partial)
    if split_by_folder or listed is not None or split == "all":
        return source
    if split == "test":
        raise FileNotFoundError(f"{root} has no test images: expected test/images/, images/test/ or test.txt")
    return _share(source, root / pattern, split == "val", val_ratio)


def _arrangement(root: Path, split: str) -> str:
    """The folder of the split's images, relative to the root, with a slash at its end."""
    candidates = [f"{name}/{images}/" for name in SPLITS[split] for images in IMAGES]
    candidates += [f"{images}/{name}/" for name in SPLITS[split] for images in IMAGES]
    for candidate in candidates:
        if (root / candidate).is_dir():
            return candidate
    others = [other for other in SPLITS if other != split]
    for images in IMAGES:
        if not (root / images).is_dir():
            continue
        if any((root / images / name).is_dir() for other in others for name in SPLITS[other]) and split != "all":
            break  # split by folders, and this one is not there
        return f"{images}/"
    wanted = ", ".join(arrangement.format(split=split) for arrangement in ARRANGEMENTS)
    raise FileNotFoundError(f"no images of split {split}: expected one of {wanted} but {what_is_there(root)}")


def _swap(pattern: str, name: str) -> str:
    return "".join(f"{name if part in IMAGES else part}/" for part in Path(pattern).parts)


def _sibling(root: Path, pattern: str, names: Sequence[str]) -> str | None:
    """The folder of masks or of depth that lies as the folder of images does."""
    return next((swapped for name in names if (root / (swapped := _swap(pattern, name))).is_dir()), None)


def _classes(root: Path, masks: str, given: Any) -> LabelFormat:
    if given is None and not (root / "classes.yaml").is_file():
        raise FileNotFoundError(
            f"{root / masks} needs names for its classes: expected {root / 'classes.yaml'}, for instance "
            f"{CLASSES_EXAMPLE}{_glimpse(root / masks)}"
        )
    return label_format(root / "classes.yaml" if given is None else given)


def _glimpse(folder: Path, most: int = 3) -> str:
    """Which values the first masks hold, for whoever has to name them."""
    values: set[Any] = set()
    names = [name for name, _ in zip(walk(folder), range(most), strict=False)]
    for name in names:
        try:
            raw = read_mask(folder / name)
        except (ImageError, DataError):
            continue
        values |= set(map(tuple, np.unique(raw.reshape(-1, 3), axis=0).tolist()) if raw.ndim == 3 else np.unique(raw))
    shown = ", ".join(str(tuple(v) if isinstance(v, tuple) else int(v)) for v in sorted(values)[:12])
    return f". The first {len(names)} masks hold {shown}{', ...' if len(values) > 12 else ''}" if values else ""


def _depth(root: Path, depths: str, given: Any) -> DepthFormat:
    if given is None and not (root / "depth.yaml").is_file():
        raise FileNotFoundError(
            f"{root / depths} needs a meaning: expected {root / 'depth.yaml'}, for instance {DEPTH_EXAMPLE}"
        )
    return depth_format(root / "depth.yaml" if given is None else given)


def _list(root: Path, split: str, split_by_folder: bool) -> Path | None:
    """The text file that lists a split, where there is one."""
    if split_by_folder or split == "all":
        return None
    lists = {s: root / f"{name}.txt" for s in SPLITS for name in SPLITS[s] if (root / f"{name}.txt").is_file()}
    lists.pop("all", None)
    if lists and split not in lists:
        have = ", ".join(str(path) for path in lists.values())
        raise FileNotFoundError(f"{root / split}.txt is not there, and {have} is; list the samples of {split} too")
    return lists.get(split)


def _share(source: FileSource, images: Path, val: bool, ratio: float) -> FileSource:
    """The part of the samples that is validated on, or the rest."""
    if len(source) < 2:
        raise DataError(f"{images.parent} holds one sample, which cannot be shared between train and val; add others")
    chosen = share([Path(name).relative_to(images) for name in source.images], val, ratio)
    columns = [None if names is None else Names(names[i] for i in chosen) for names in (source.masks, source.depths)]
    images_of = Names(source.images[i] for i in chosen)
    return replace(source, images=images_of, masks=columns[0], depths=columns[1], whole=len(source))


def share(names: Sequence[Path], val: bool, ratio: float) -> list[int]:
    """Which of two or more names are validated on, or the rest; at least one on either side, the nearest to it."""
    places = [place(name) for name in names]
    border = min(max(ratio, math.nextafter(min(places), 1)), max(places))
    return [i for i, at in enumerate(places) if (at < border) == val]


def place(name: Path) -> float:
    """A number in [0, 1) that depends on a name alone, its extension aside."""
    digest = hashlib.blake2b(name.with_suffix("").as_posix().encode("utf-8", "surrogateescape"), digest_size=8)
    return int.from_bytes(digest.digest(), "little") / 2**64
