"""Open labelled images: embedded scenes, a folder of one's own, or a published data set."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dense.console import say
from dense.data.labelled.coco import open_json
from dense.data.labelled.files import FileSource
from dense.data.labelled.folder import fraction, group_names, only_json, open_folder, open_restoration
from dense.data.labelled.formats import DepthFormat, LabelFormat, depth_format, label_format
from dense.data.labelled.layouts import LAYOUTS, Layout
from dense.data.labelled.pairing import pair
from dense.data.labelled.sample import DataError, LabelledSource
from dense.data.labelled.scenes import SceneSource
from dense.data.levels import PHOTOGRAPHS, Reading
from dense.suggest import did_you_mean

FOLDERS = ("folder", "images", "paired")  # layouts of folders of one's own

Classes = str | Path | Sequence[str] | Mapping[object, object] | LabelFormat
Depth = str | Path | Mapping[str, object] | DepthFormat


def open_labelled(
    root: str | Path,
    split: str,
    *,
    layout: str | Layout = "folder",
    partial: bool = False,
    targets: Sequence[str] = ("labels", "depth"),
    classes: Classes | None = None,
    depth: Depth | None = None,
    annotations: str | Path | None = None,
    ids: str | Path | None = None,
    val_ratio: float = 0.1,
    split_by: str | None = None,
    kb_crop: bool = False,
    length: int = 2000,
    size: int | tuple[int, int] = 128,
    seed: int = 0,
    camera_height: tuple[float, float] | None = None,
    remember: bool = True,
    reading: Reading = PHOTOGRAPHS,
) -> LabelledSource:
    """Return the labelled images of a split of `root`.

    root: a folder, or ``scenes`` for embedded scenes, which need no files
    split: ``train``, ``val``, or another that the layout has
    layout: how the folder is arranged: ``folder`` for `images/` with `masks/`, `depth/` or both (see `open_folder`);
        ``images`` or ``paired`` for restoration (see `open_restoration`); a published data set, one of `LAYOUTS`; or a
        `Layout` of your own
    partial: samples may lack the mask or the depth, as in joint training on several data sets
    targets: which are read: labels and depth from a folder of layout ``folder``, ``masks`` of objects from any
    classes, depth: how masks and depth are stored, instead of `classes.yaml` and `depth.yaml`
    annotations: a JSON file of COCO's format for the images of a folder, instead of its own
    ids: a text file that lists the samples of the split, instead of the layout's own
    val_ratio: validation fraction of a folder that has no validation images of its own; 0 for none
    split_by: a regular expression that finds in each file's name what images of that folder must stay together
    kb_crop: crop KITTI's images to 352x1216 at the bottom centre
    length, size, seed, camera_height, remember: of embedded scenes; see `SceneSource`
    reading: channels of the images, and what their numbers mean
    """
    layout = current_layout(layout)
    if kb_crop and (str(root) == "scenes" or layout in FOLDERS):
        where = root if str(root) == "scenes" else f"layout {layout!r}"
        raise ValueError(f"kb_crop=True with {where}: it is a crop of KITTI's images; leave it out")
    if split_by is not None and (str(root) == "scenes" or layout not in FOLDERS):
        raise ValueError(f"split_by={split_by!r}: the splits of these images are fixed; leave it out")
    if annotations is not None and (str(root) == "scenes" or layout != "folder"):
        raise ValueError(f"annotations={str(annotations)!r}: these images have their own; leave it out")
    if str(root) == "scenes":
        objects = "masks" in targets
        return SceneSource(
            split, length, size, seed, camera_height=camera_height, remember=remember, segments=objects
        )  # fmt: skip
    if layout == "folder":
        return open_folder(
            root, split, partial=partial, targets=targets, classes=classes, depth=depth, annotations=annotations,
            ids=ids, val_ratio=val_ratio, split_by=split_by, reading=reading,
        )  # fmt: skip
    if isinstance(layout, str) and layout in FOLDERS:
        return open_restoration(root, split, layout, val_ratio, split_by, reading)
    if isinstance(layout, str):
        if layout not in LAYOUTS:
            names = [*FOLDERS, *LAYOUTS]
            raise ValueError(f"layout={layout!r}: expected one of {', '.join(names)}.{did_you_mean(layout, names)}")
        layout = LAYOUTS[layout]
    if classes is not None:
        layout = replace(layout, label_format=label_format(classes))
    if depth is not None:
        layout = replace(layout, depth_format=depth_format(depth))
    if kb_crop and layout.kb_crop is None:
        raise ValueError(f"kb_crop=True with layout {layout.name!r}: it is a crop of KITTI's images; leave it out")
    if split not in layout.splits:
        names = list(layout.splits)
        raise ValueError(f"split={split!r}: {layout.name} has {', '.join(names)}.{did_you_mean(split, names)}")
    if layout.annotations is not None:
        return replace(_open_json(Path(root), layout, layout.splits[split], targets), reading=reading)
    if "masks" not in targets:
        layout = replace(layout, segments=None)
    elif layout.segments is None:
        have = [name for name, one in LAYOUTS.items() if one.segments or one.annotations]
        raise ValueError(f"layout {layout.name!r} has no masks of objects; these have: folder, {', '.join(have)}")
    source = pair(Path(root), layout, split, ids=ids, partial=partial, reading=reading)
    return replace(source, crop=layout.kb_crop) if kb_crop else source


def _open_json(root: Path, layout: Layout, split: str, targets: Sequence[str]) -> FileSource:
    """Return the images of a published data set that a JSON file lists."""
    if "masks" not in targets:
        raise ValueError(f"layout {layout.name!r} has masks of objects and no {' or '.join(targets)}")
    assert layout.annotations is not None
    path = root / layout.annotations.replace("{split}", split)
    images, pngs = (
        None if pattern is None else (root / pattern.replace("{split}", split)).parent
        for pattern in (layout.image, layout.segments)
    )
    assert images is not None
    return open_json(path, images, pngs=pngs, title=f"{layout.name} {split}")


def class_target(
    root: str | Path, split: str, layout: str | Layout = "folder", annotations: str | Path | None = None
) -> Literal["labels", "masks"]:
    """Return the target that holds classes of pixels: labels, or masks where a JSON file alone has them."""
    layout = current_layout(layout)
    known = LAYOUTS.get(layout) if isinstance(layout, str) else layout
    if known is not None:
        return "labels" if known.annotations is None else "masks"
    if layout != "folder" or str(root) == "scenes":
        return "labels"
    return "masks" if annotations is not None or only_json(Path(root), split) else "labels"


def as_in_training(facts: Mapping[str, Any], data: str | Path, **given: Any) -> dict[str, Any]:
    """Return options of `open_labelled`: those given, and for None those with which a training opened the same folder.

    facts: of a trained model
    """
    same = Path(str(facts.get("images", ""))).resolve() == Path(data).resolve()
    usual = {"layout": "folder", "val_ratio": 0.1} | (facts.get("arrangement", {}) if same else {})
    return {name: usual.get(name) if value is None else value for name, value in given.items()}


def open_training(
    root: str | Path,
    *,
    layout: str = "folder",
    val_ratio: float = 0.1,
    split_by: str | None = None,
    train: Mapping[str, Any] = {},
    val: Mapping[str, Any] = {},
    **options: Any,
) -> tuple[LabelledSource, LabelledSource]:
    """Return the images to train on and those by which the best model is chosen, which are never published test images.

    A published data set whose `val` is its test list holds out a fraction `val_ratio` of train: whole scenes, or the
    groups of `split_by`. With `val_ratio` 0, or a single scene, there is no validation.
    train, val: further options of `open_labelled` for one of both; `options` are for both
    """
    known = LAYOUTS.get(layout)
    if known is None or not known.val_is_test or str(root) == "scenes":
        given: dict[str, Any] = {"layout": layout, "val_ratio": val_ratio, "split_by": split_by} | options
        sources = open_labelled(root, "train", **given, **train), open_labelled(root, "val", **given, **val)
        ours, theirs = (source.classes or () for source in sources)
        if ours and theirs and ours != theirs:  # of two JSON files
            which = next(i for i in range(1 + max(len(ours), len(theirs))) if ours[i : i + 1] != theirs[i : i + 1])
            names = [repr(classes[which]) if which < len(classes) else "missing" for classes in (ours, theirs)]
            raise DataError(
                f"class {which} is {names[0]} in train and {names[1]} in val; give both the same categories"
            )
        return sources
    source = open_labelled(root, "train", layout=layout, **options, **train)
    assert isinstance(source, FileSource)
    split_by = split_by or known.split_by
    if len(set(group_names(source, Path(root), split_by))) < 2:
        val_ratio = 0
    sides = fraction(source, Path(root), val_ratio, split_by)
    held = f"{len(sides[1])} of its {len(source)} training images do (data.val_ratio)"
    held = held if len(sides[1]) else "the model of the last step is kept"
    say(f"the val of {layout} is its published test list, which does not choose the best model; {held}")
    return sides


def draw(source: LabelledSource, count: int, seed: int) -> LabelledSource:
    """Return so many images of a set, drawn at random."""
    if not 1 <= count <= len(source):
        raise ValueError(f"train_images={count}: expected 1 to {len(source)}, the images there are")
    if not isinstance(source, FileSource):
        raise ValueError(f"train_images={count}: embedded scenes are not drawn; choose their number by scenes")
    chosen = np.random.default_rng(seed).permutation(len(source))[:count]
    return source.take(sorted(map(int, chosen)))


def current_layout(layout: str | Layout) -> str | Layout:
    """Return a layout by its present name; a former name is accepted with a warning."""
    if layout == "pictures":
        warnings.warn("layout 'pictures' is now called 'images'", FutureWarning, stacklevel=3)
        return "images"
    return layout
