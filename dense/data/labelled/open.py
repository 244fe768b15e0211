"""Open labelled images: embedded scenes, a folder of one's own, or a published data set."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dense.console import say
from dense.data.labelled.files import FileSource
from dense.data.labelled.folder import fraction, group_names, open_folder, open_restoration
from dense.data.labelled.formats import DepthFormat, LabelFormat, depth_format, label_format
from dense.data.labelled.layouts import LAYOUTS, Layout
from dense.data.labelled.pairing import pair
from dense.data.labelled.sample import LabelledSource
from dense.data.labelled.scenes import SceneSource
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
    ids: str | Path | None = None,
    val_ratio: float = 0.1,
    split_by: str | None = None,
    kb_crop: bool = False,
    length: int = 2000,
    size: int | tuple[int, int] = 128,
    seed: int = 0,
    camera_height: tuple[float, float] | None = None,
    remember: bool = True,
) -> LabelledSource:
    """Return the labelled images of a split of `root`.

    root: a folder, or ``scenes`` for embedded scenes, which need no files
    split: ``train``, ``val``, or another that the layout has
    layout: how the folder is arranged: ``folder`` for `images/` with `masks/`, `depth/` or both (see `open_folder`);
        ``images`` or ``paired`` for restoration (see `open_restoration`); a published data set, one of `LAYOUTS`; or a
        `Layout` of your own
    partial: samples may lack the mask or the depth, as in joint training on several data sets
    targets: which of both are read from a folder of layout ``folder``
    classes, depth: how masks and depth are stored, instead of `classes.yaml` and `depth.yaml`
    ids: a text file that lists the samples of the split, instead of the layout's own
    val_ratio: validation fraction of a folder that has no validation images of its own; 0 for none
    split_by: a regular expression that finds in each file's name what images of that folder must stay together
    kb_crop: crop KITTI's images to 352x1216 at the bottom centre
    length, size, seed, camera_height, remember: of embedded scenes; see `SceneSource`
    """
    layout = current_layout(layout)
    if kb_crop and (str(root) == "scenes" or layout in FOLDERS):
        where = root if str(root) == "scenes" else f"layout {layout!r}"
        raise ValueError(f"kb_crop=True with {where}: it is a crop of KITTI's images; leave it out")
    if split_by is not None and (str(root) == "scenes" or layout not in FOLDERS):
        raise ValueError(f"split_by={split_by!r}: the splits of these images are fixed; leave it out")
    if str(root) == "scenes":
        return SceneSource(split, length, size, seed, camera_height=camera_height, remember=remember)
    if layout == "folder":
        return open_folder(
            root, split, partial=partial, targets=targets, classes=classes, depth=depth, ids=ids, val_ratio=val_ratio,
            split_by=split_by,
        )  # fmt: skip
    if isinstance(layout, str) and layout in FOLDERS:
        return open_restoration(root, split, layout, val_ratio, split_by)
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
    source = pair(Path(root), layout, split, ids=ids, partial=partial)
    return replace(source, crop=layout.kb_crop) if kb_crop else source


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
        return open_labelled(root, "train", **given, **train), open_labelled(root, "val", **given, **val)
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
