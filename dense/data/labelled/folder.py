"""A folder of one's own: images with masks and depth, clean images, or pairs of degraded and clean images."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dense.data.image import (
    DEPTHS,
    IMAGES,
    MASKS,
    OBJECTS,
    ImageError,
    list_images,
    walk,
    what_is_there,
)
from dense.data.labelled.coco import open_json
from dense.data.labelled.files import FileSource
from dense.data.labelled.formats import (
    CLASSES_EXAMPLE,
    DEPTH_EXAMPLE,
    DepthFormat,
    LabelFormat,
    depth_format,
    label_format,
)
from dense.data.labelled.layouts import Layout
from dense.data.labelled.pairing import pair
from dense.data.labelled.reading import read_mask
from dense.data.labelled.sample import DataError
from dense.data.labelled.segments import SegmentFormat
from dense.data.levels import PHOTOGRAPHS, Reading
from dense.data.store import Names
from dense.suggest import did_you_mean

JSONS = ("instances", "panoptic", "annotations")
TARGET_FOLDERS = {"labels": "masks", "depth": "depth", "masks": "instances"}
WANTED = {"labels": "{}", "depth": "{}", "masks": "instances.json, panoptic.json or {} with masks/"}
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
    "all": ("all",),
}
ARRANGEMENTS = ("images/", "{split}/images/", "images/{split}/")
INPUT, TARGET = "input", "target"


def open_folder(
    root: str | Path,
    split: str,
    *,
    partial: bool = False,
    targets: Sequence[str] = ("labels", "depth"),
    classes: str | Path | Sequence[str] | Mapping[Any, Any] | LabelFormat | None = None,
    depth: str | Path | Mapping[str, Any] | DepthFormat | None = None,
    annotations: str | Path | None = None,
    ids: str | Path | None = None,
    val_ratio: float = 0.1,
    split_by: str | None = None,
    reading: Reading = PHOTOGRAPHS,
) -> FileSource:
    """Return images in ``images/`` with masks in ``masks/``, depth in ``depth/``, or both, under the same names.

    With the target ``masks``, objects come from a JSON file of COCO's format (see `find_json`) or from numbers of
    objects in ``instances/`` beside classes in ``masks/``, whose ``classes.yaml`` lists the classes that are `things`.

    Splits are folders (``train/images/``, or ``images/train/``), lists of names without extension (``train.txt``,
    ``val.txt``, or `ids`), or else a fraction `val_ratio` of the names (see `fraction`). Where there is a split
    ``train`` and none for validation, that fraction is taken from ``train``. Without such folders, the split ``all`` is
    every image.

    targets: which are read; folders of others are ignored. annotations: the JSON file, instead of the folder's own.
    ``classes.yaml`` in the root names the classes (see `label_format`), and ``depth.yaml`` declares how depth is stored
    (see `depth_format`); `classes` and `depth` replace them. reading: what the numbers of images mean.
    """
    root = Path(root)
    _check_split(split, val_ratio)
    if annotations is not None:
        if "masks" not in targets:
            raise ValueError(f"annotations={str(annotations)!r} holds masks of objects; add masks to the targets")
        folder = next((root / name for name in IMAGES if (root / name).is_dir()), root)
        return replace(_of_json(Path(annotations), folder, split, True, val_ratio, split_by, root), reading=reading)
    shared = ids is None and _shares(root, split)
    pattern = _arrangement(root, "train" if shared else split)
    objects = _sibling(root, pattern, OBJECTS) if "masks" in targets else None
    if "masks" in targets and objects is None and (found := find_json(root, pattern, "train" if shared else split)):
        path, whole = found
        source = _of_json(path, root / pattern, split, shared or whole, val_ratio, split_by, root)
        return replace(source, reading=reading)
    masks = _sibling(root, pattern, MASKS) if "labels" in targets or objects else None
    depths = _sibling(root, pattern, DEPTHS) if "depth" in targets else None
    if (masks is None and depths is None) or (set(targets) == {"masks"} and objects is None):
        missing = [WANTED[target].format(_swap(pattern, TARGET_FOLDERS[target])) for target in targets]
        raise FileNotFoundError(f"{root} has no targets: expected {' or '.join(missing)}, but {what_is_there(root)}")
    form = _classes(root, masks, classes) if masks else None
    layout = Layout(
        "folder",
        image=f"{pattern}{{id}}.*",
        labels=f"{masks}{{id}}.*" if masks else None,
        depth=f"{depths}{{id}}.*" if depths else None,
        splits={split: split},
        label_format=form,
        depth_format=_depth(root, depths, depth) if depths else None,
        segments=f"{objects}{{id}}.*" if objects else None,
        segment_format=_objects(root, objects, form) if objects and form else None,
    )
    split_by_folder = Path(pattern).parts not in {(name,) for name in IMAGES}
    listed = ids
    if ids is None and not split_by_folder and split != "all":
        listed, shared = _list(root, split)
    source = pair(root, layout, split, ids=listed, partial=partial, reading=reading)
    if not shared:
        _refuse_split_by(split_by, split, root)
        return source
    return fraction(source, root / pattern, val_ratio, split_by)[split == "val"]


def only_json(root: Path, split: str) -> bool:
    """Whether a JSON file and no folder of masks is there for the images of a split."""
    of_split = "train" if _shares(root, split) else split
    try:
        pattern = _arrangement(root, of_split)
    except FileNotFoundError:
        return False
    return _sibling(root, pattern, MASKS) is None and find_json(root, pattern, of_split) is not None


def find_json(root: Path, pattern: str, split: str) -> tuple[Path, bool] | None:
    """Return the JSON file of a split's images, and whether it lists the images of several splits.

    It is named by the split, as ``instances_train.json`` or ``annotations/instances_train.json``, or lies beside the
    split's ``images/`` as ``instances.json``. ``panoptic.json``, with its PNG files in ``panoptic/``, and
    ``annotations.json`` are read likewise. Without one for validation, the one of training is shared.
    """
    flat = Path(pattern).parts in {(images,) for images in IMAGES} and split != "all"
    of_split = _named(root, split)
    if of_split is not None:
        return of_split, split == "train" and flat and _named(root, "val") is None
    if split == "val" and flat and (of_train := _named(root, "train")) is not None:
        return of_train, True
    beside = (root / pattern).parent
    places = [folder / f"{name}.json" for name in JSONS for folder in (beside, beside / "annotations")]
    return next(((path, flat) for path in places if path.is_file()), None)


def _named(root: Path, split: str) -> Path | None:
    """Return the JSON file whose name is of a split, if there is one."""
    files = [f"{name}_{of_split}.json" for name in JSONS for of_split in SPLITS[split]]
    places = [folder / file for file in files for folder in (root, root / "annotations")]
    return next((path for path in places if path.is_file()), None)


def _of_json(
    path: Path, images: Path, split: str, shared: bool, val_ratio: float, split_by: str | None, root: Path
) -> FileSource:
    """Return the images of a split that a JSON file lists: all of them, or, if splits share it, a part."""
    source = open_json(path, images, root, title=f"folder {split}")
    if not shared or split == "all":
        _refuse_split_by(split_by, split, root)
        return source
    if split == "test":
        raise FileNotFoundError(f"{root} has no test images: expected test/images/ or {path.stem}_test.json")
    return fraction(source, images, val_ratio, split_by, root)[split == "val"]


def _objects(root: Path, objects: str, form: LabelFormat) -> SegmentFormat:
    if form.things is None:
        raise ValueError(
            f"{root / objects} numbers objects, and classes.yaml does not say which classes are objects; add for "
            f"instance things: [{form.classes[-1]}]"
        )
    return SegmentFormat("numbers", form.classes, tuple(name in form.things for name in form.classes))


def _check_split(split: str, val_ratio: float) -> None:
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: expected one of {', '.join(SPLITS)}.{did_you_mean(split, SPLITS)}")
    if not 0 <= val_ratio < 1:
        raise ValueError(
            f"val_ratio={val_ratio}: expected less than 1, and at least 0, with which there is no validation"
        )


def _refuse_split_by(split_by: str | None, split: str, root: Path) -> None:
    if split_by is not None and split in ("train", "val"):
        raise ValueError(f"split_by={split_by!r}: {root} has validation images of its own; leave split_by out")


def _folders(split: str) -> list[str]:
    """Return the folders in which a split's images may lie, relative to the root, with a slash at their ends."""
    candidates = [f"{name}/{images}/" for name in SPLITS[split] for images in IMAGES]
    return candidates + [f"{images}/{name}/" for name in SPLITS[split] for images in IMAGES]


def _shares(root: Path, split: str) -> bool:
    """Whether images of a split are a fraction of those in the folder of train."""
    return split in ("train", "val") and _has_folder(root, "train") and not _has_folder(root, "val")


def _has_folder(root: Path, split: str) -> bool:
    return any((root / folder).is_dir() for folder in _folders(split))


def _arrangement(root: Path, split: str) -> str:
    """Return the folder of the split's images, relative to the root, with a slash at its end."""
    for candidate in _folders(split):
        if (root / candidate).is_dir():
            return candidate
    others = [other for other in SPLITS if other != split]
    for images in IMAGES:
        if not (root / images).is_dir():
            continue
        if any((root / images / name).is_dir() for other in others for name in SPLITS[other]) and split != "all":
            break  # folders split the images, and that of this split is missing
        return f"{images}/"
    wanted = ", ".join(arrangement.format(split=split) for arrangement in ARRANGEMENTS)
    raise FileNotFoundError(f"no images of split {split}: expected one of {wanted} but {what_is_there(root)}")


def _swap(pattern: str, name: str) -> str:
    return "".join(f"{name if part in IMAGES else part}/" for part in Path(pattern).parts)


def _sibling(root: Path, pattern: str, names: Sequence[str]) -> str | None:
    """Return the folder of masks or of depth that corresponds to the folder of images."""
    return next((swapped for name in names if (root / (swapped := _swap(pattern, name))).is_dir()), None)


def _classes(root: Path, masks: str, given: Any) -> LabelFormat:
    if given is None and not (root / "classes.yaml").is_file():
        raise FileNotFoundError(
            f"{root / masks} needs names for its classes: expected {root / 'classes.yaml'}, for instance "
            f"{CLASSES_EXAMPLE}{_first_values(root / masks)}"
        )
    return label_format(root / "classes.yaml" if given is None else given)


def _first_values(folder: Path, most: int = 3) -> str:
    """Return a sentence with the values of the first masks, which have to be named."""
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
            f"{root / depths} needs a declaration: expected {root / 'depth.yaml'}, for instance {DEPTH_EXAMPLE}"
        )
    return depth_format(root / "depth.yaml" if given is None else given)


def _list(root: Path, split: str) -> tuple[Path | None, bool]:
    """Return the text file that lists the samples of a split, if any, and whether train and val share these."""
    lists = {s: root / f"{name}.txt" for s in SPLITS for name in SPLITS[s] if (root / f"{name}.txt").is_file()}
    lists.pop("all", None)
    if "train" in lists and "val" not in lists and split != "test":
        return lists["train"], True
    if lists and split not in lists:
        have = ", ".join(str(path) for path in lists.values())
        raise FileNotFoundError(f"{root / split}.txt is not there, and {have} is; list the samples of {split} too")
    if not lists and split == "test":
        raise FileNotFoundError(f"{root} has no test images: expected test/images/, images/test/ or test.txt")
    return lists.get(split), not lists


def open_restoration(
    root: str | Path,
    split: str,
    layout: str,
    val_ratio: float = 0.1,
    split_by: str | None = None,
    reading: Reading = PHOTOGRAPHS,
) -> FileSource:
    """Return the images of a split of `root`, for restoration.

    layout: ``images`` for a folder of clean images, or ``paired`` for degraded images in ``input/`` with clean ones of
        the same names in ``target/``, or for several kinds in ``KIND/input/`` and ``KIND/target/``, each measured alone
    Splits are folders ``train/``, ``val/`` and ``test/``, or else a fraction `val_ratio` of the names (see `fraction`),
    also of those in ``train/`` where ``val/`` is missing. Without such folders, the split ``all`` is every image.
    """
    root = Path(root)
    _check_split(split, val_ratio)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: expected a folder of images, but {what_is_there(root)}")
    folders = {s: root / name for s in ("train", "val", "test") for name in SPLITS[s] if (root / name).is_dir()}
    shared = split in ("train", "val") and (not folders or ("train" in folders and "val" not in folders))
    if folders and split not in ("all", *folders) and not shared:
        raise FileNotFoundError(f"{root} has no images of split {split}; it has {', '.join(folders)}")
    if not folders and split == "test":
        raise FileNotFoundError(f"{root} has no images of split test: expected a folder test/")
    folder = folders.get("train" if shared else split, root)
    source = _restoration(folder, layout, split, reading)
    if not shared:
        _refuse_split_by(split_by, split, root)
        return source
    if source.kinds is not None and split_by is None:
        split_by = rf"/{INPUT}/(.+)\.[^.]+$"  # one image with several kinds of degradation stays on one side
    base = folder / INPUT if layout == "paired" and source.kinds is None else folder
    return fraction(source, base, val_ratio, split_by)[split == "val"]


def _restoration(folder: Path, layout: str, split: str, reading: Reading) -> FileSource:
    title = f"{layout} {split}"
    inside = [] if _has_pairs(folder) else [Path(one.path) for one in os.scandir(folder) if one.is_dir()]
    kinds = sorted(filter(_has_part, inside))
    if layout == "images":
        if _has_pairs(folder) or any(map(_has_pairs, kinds)):
            raise ValueError(
                f"{folder} holds pairs, {INPUT}/ and {TARGET}/; images here are clean ones: give layout paired "
                "(of dense train --data.layout paired --data.degrade null)"
            )
        return FileSource(title, Names(map(str, list_images(folder, reading=reading))), reading=reading)
    if kinds:
        parts = [_pairs(kind, f"{title} {kind.name}", reading) for kind in kinds]
        columns: dict[str, Any] = {
            name: Names(value for part in parts for value in getattr(part, name) or ())
            for name in ("images", "clean", "problems")
        }
        named = Names(kind.name for kind, part in zip(kinds, parts, strict=True) for _ in range(len(part)))
        return replace(parts[0], title=title, kinds=named, **columns)
    return _pairs(folder, title, reading)


def _has_pairs(folder: Path) -> bool:
    return (folder / INPUT).is_dir() and (folder / TARGET).is_dir()


def _has_part(folder: Path) -> bool:
    return (folder / INPUT).is_dir() or (folder / TARGET).is_dir()


def _pairs(folder: Path, title: str, reading: Reading) -> FileSource:
    """Return the pairs of a folder with input/ and target/."""
    for name in (INPUT, TARGET):
        if not (folder / name).is_dir():
            raise FileNotFoundError(
                f"{title}: expected {folder / name}, or folders of several kinds of degradation with {INPUT}/ and "
                f"{TARGET}/ each, but {what_is_there(folder)}"
            )
    pattern = Layout("paired", image=f"{INPUT}/{{id}}.*", clean=f"{TARGET}/{{id}}.*", splits={"all": "all"})
    source = replace(pair(folder, pattern, "all", reading=reading), title=title)
    assert source.clean is not None
    complete = [index for index, path in enumerate(source.clean) if path]
    if not complete:
        raise DataError(f"{title}: no pairs in {folder}", *source.problems)
    return source.take(complete)


# ---- validation fraction


def fraction(
    source: FileSource, folder: Path, ratio: float, split_by: str | None = None, root: Path | None = None
) -> tuple[FileSource, FileSource]:
    """Return the samples for training and those for validation: at least one on either side, or with `ratio` 0 none.

    The names of the images decide, relative to `folder`, else to `root`, else absolute: images that are added later
    change the split of no other.
    split_by: a regular expression. Images for which its first group, or without groups its match, is the same text
        are on the same side.
    """
    groups = group_names(source, folder, split_by, root)
    places = {group: _place(group) for group in groups}
    if not ratio:
        border = 0.0
    elif len(places) < 2:
        what = f"all images are in one group of split_by={split_by!r}, {groups[0]!r}" if split_by else "one sample"
        raise DataError(
            f"{folder} holds {what}, which cannot be shared between train and val; add others, or set val_ratio to 0 "
            "to train without a validation"
        )
    else:
        border = min(max(ratio, math.nextafter(min(places.values()), 1)), max(places.values()))
    sides: tuple[list[int], list[int]] = ([], [])
    for index, group in enumerate(groups):
        sides[places[group] < border].append(index)
    train, val = (source.take(side, whole=len(source), split_by=split_by) for side in sides)
    return train, val


def group_names(source: FileSource, folder: Path, split_by: str | None, root: Path | None = None) -> list[str]:
    """Return the group of every image; without `split_by`, its name without the extension."""
    bases = (folder, root or folder)
    names = [
        next((path.relative_to(base) for base in bases if path.is_relative_to(base)), path.absolute())
        for path in map(Path, source.images)
    ]
    if split_by is None:
        return [name.with_suffix("").as_posix() for name in names]
    try:
        pattern = re.compile(split_by)
    except re.error as error:
        raise ValueError(f"split_by={split_by!r} is no regular expression: {error}") from None
    found = [pattern.search(name.as_posix()) for name in names]
    if missed := [name.as_posix() for name, match in zip(names, found, strict=True) if match is None]:
        raise DataError(
            f"split_by={split_by!r} is not found in {len(missed)} of {len(names)} names, such as {missed[0]}; it is "
            f"searched for in the names of the images, relative to {folder}"
        )
    return [match[1] if pattern.groups and match[1] is not None else match[0] for match in found if match]


def _place(group: str) -> float:
    """Return a number in [0, 1) that depends on a name alone."""
    digest = hashlib.blake2b(group.encode("utf-8", "surrogateescape"), digest_size=8)
    return int.from_bytes(digest.digest(), "little") / 2**64
