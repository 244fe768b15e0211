"""Pictures with an answer at every pixel: what a sample is, what a source of samples does, and how one is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from dense.data.depths import DepthFormat
    from dense.data.layouts import Layout
    from dense.data.masks import LabelFormat

IGNORE = 255  # the label of a pixel that nobody knows
DepthKind = Literal["metric", "inverse_relative"]
Progress = Callable[[int, int], object]  # done, of


class DataError(ValueError):
    """Everything that is wrong with some data: all of it in `problems`, the first 20 in words."""

    SHOWN = 20

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        lines = list(problems[: self.SHOWN])
        if len(problems) > 1:
            lines = [f"{len(problems)} problems:", *(f"- {line}" for line in lines)]
        if len(problems) > self.SHOWN:
            lines.append(f"... and {len(problems) - self.SHOWN} more")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[type[DataError], tuple[str, ...]]:
        return type(self), self.problems  # workers send it to the main process


@dataclass(frozen=True)
class Labelled:
    """A picture and its answers.

    labels: class of every pixel, `IGNORE` where unknown. depth: NaN where unknown; metric depth is in metres along the
    camera's axis and +inf where the scene is infinitely far, which inverse depth writes as 0. clean: the picture without
    its damage, of data that are pairs.
    """

    image: NDArray[np.uint8]  # H, W, 3
    labels: NDArray[np.uint8] | None  # H, W
    depth: NDArray[np.float32] | None  # H, W
    name: str
    clean: NDArray[np.uint8] | None = None  # H, W, 3


class Identity(NamedTuple):
    """Which picture it is, and which state of it: a changed file keeps its name and gets another version."""

    name: str
    version: str


class LabelledSource(Protocol):
    """Labelled pictures by index. Whatever is large is an array, so workers may hold it."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes; None if there are no masks."""

    @property
    def depth_kind(self) -> DepthKind | None:
        """What depth means; None if there is none."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Where a sample comes from, for people."""

    def identity(self, index: int) -> Identity:
        """For caches."""

    def read(self, index: int) -> Labelled:
        """A sample, or ImageError for a picture and DataError for an answer that cannot be used."""

    def check(self, *, limit: int | None = None, workers: int = 8, progress: Progress | None = None) -> list[str]:
        """Every problem, one line each; empty if there is none.

        limit: look into so many samples at most, spread evenly; what names alone can tell is always checked in full.
        """


def open_labelled(
    root: str | Path,
    split: str,
    *,
    layout: str | Layout = "folder",
    partial: bool = False,
    answers: Sequence[str] = ("labels", "depth"),
    classes: str | Path | Sequence[str] | Mapping[object, object] | LabelFormat | None = None,
    depth: str | Path | Mapping[str, object] | DepthFormat | None = None,
    ids: str | Path | None = None,
    val_ratio: float = 0.1,
    kb_crop: bool = False,
    length: int = 2000,
    size: int | tuple[int, int] = 128,
    seed: int = 0,
    camera_height: tuple[float, float] | None = None,
    remember: bool = True,
) -> LabelledSource:
    """The labelled pictures that `root` names.

    root: ``scenes`` for embedded scenes, which need no files, or a folder
    split: ``train``, ``val``, or another that the layout has
    layout: how the folder is arranged: ``folder`` for `images/` with `masks/`, `depth/` or both (see `open_folder`), one
        of `LAYOUTS` for a published data set, or a `Layout` of your own; ``pictures`` or ``paired`` for restoration (see
        `open_clean`)
    partial: samples may lack the mask or the depth, as in joint training on several data sets
    answers: which of both are read from a folder of layout ``folder``
    classes, depth: how masks and depth are stored, instead of `classes.yaml` and `depth.yaml`
    ids: a text file that lists the samples of the split, instead of the layout's own
    val_ratio: share of a folder that is validated on, if neither folders nor lists split it
    kb_crop: cut KITTI's pictures to 352x1216 at the bottom centre
    length, size, seed, camera_height, remember: of embedded scenes; see `SceneSource`
    """
    if kb_crop and (str(root) == "scenes" or layout in ("folder", "pictures", "paired")):
        where = root if str(root) == "scenes" else f"layout {layout!r}"
        raise ValueError(f"kb_crop=True with {where}: it is a crop of KITTI's pictures; leave it out")
    if str(root) == "scenes":
        from dense.data.scene_source import SceneSource

        return SceneSource(split, length, size, seed, camera_height=camera_height, remember=remember)
    if layout == "folder":
        from dense.data.folder import open_folder

        return open_folder(
            root, split, partial=partial, answers=answers, classes=classes, depth=depth, ids=ids, val_ratio=val_ratio
        )
    if layout in ("pictures", "paired"):
        from dense.data.clean import open_clean

        return open_clean(root, split, layout, val_ratio)
    from dense.data.layouts import open_layout

    return open_layout(root, split, layout, partial=partial, classes=classes, depth=depth, ids=ids, kb_crop=kb_crop)
