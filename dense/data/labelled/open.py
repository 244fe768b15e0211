"""Open labelled images: embedded scenes, a folder of one's own, or a published data set."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dense.data.labelled.folder import open_folder, open_restoration
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
    val_ratio: validation fraction of a folder that neither folders nor lists split
    kb_crop: crop KITTI's images to 352x1216 at the bottom centre
    length, size, seed, camera_height, remember: of embedded scenes; see `SceneSource`
    """
    layout = current_layout(layout)
    if kb_crop and (str(root) == "scenes" or layout in FOLDERS):
        where = root if str(root) == "scenes" else f"layout {layout!r}"
        raise ValueError(f"kb_crop=True with {where}: it is a crop of KITTI's images; leave it out")
    if str(root) == "scenes":
        return SceneSource(split, length, size, seed, camera_height=camera_height, remember=remember)
    if layout == "folder":
        return open_folder(
            root, split, partial=partial, targets=targets, classes=classes, depth=depth, ids=ids, val_ratio=val_ratio
        )
    if isinstance(layout, str) and layout in FOLDERS:
        return open_restoration(root, split, layout, val_ratio)
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


def current_layout(layout: str | Layout) -> str | Layout:
    """Return a layout by its present name; a former name is accepted with a warning."""
    if layout == "pictures":
        warnings.warn("layout 'pictures' is now called 'images'", FutureWarning, stacklevel=3)
        return "images"
    return layout
