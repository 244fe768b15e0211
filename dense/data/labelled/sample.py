"""Images with a target at every pixel: what a sample is, what a source of samples does, and how one is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from heads.features import Size

if TYPE_CHECKING:
    from dense.data.labelled.depth import DepthFormat
    from dense.data.labelled.layouts import Layout
    from dense.data.labelled.masks import LabelFormat

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
    """An image and its targets.

    labels: class of every pixel, `IGNORE` where unknown. depth: NaN where unknown; metric depth is in metres along the
    camera's axis and +inf where the scene is infinitely far, which inverse depth writes as 0. clean: the image without
    its degradation, of data that are pairs.
    """

    image: NDArray[np.uint8]  # H, W, 3
    labels: NDArray[np.uint8] | None  # H, W
    depth: NDArray[np.float32] | None  # H, W
    name: str
    clean: NDArray[np.uint8] | None = None  # H, W, 3


class Identity(NamedTuple):
    """Which image it is, and which state of it: a changed file keeps its name and gets another version."""

    name: str
    version: str


class LabelledSource(Protocol):
    """Labelled images by index. Whatever is large is an array, so workers may hold it."""

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
        """A sample, or ImageError for an image and DataError for a target that cannot be used."""

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
    targets: Sequence[str] = ("labels", "depth"),
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
    """The labelled images that `root` names.

    root: ``scenes`` for embedded scenes, which need no files, or a folder
    split: ``train``, ``val``, or another that the layout has
    layout: how the folder is arranged: ``folder`` for `images/` with `masks/`, `depth/` or both (see `open_folder`), one
        of `LAYOUTS` for a published data set, or a `Layout` of your own; ``pictures`` or ``paired`` for restoration (see
        `open_clean`)
    partial: samples may lack the mask or the depth, as in joint training on several data sets
    targets: which of both are read from a folder of layout ``folder``
    classes, depth: how masks and depth are stored, instead of `classes.yaml` and `depth.yaml`
    ids: a text file that lists the samples of the split, instead of the layout's own
    val_ratio: share of a folder that is validated on, if neither folders nor lists split it
    kb_crop: cut KITTI's images to 352x1216 at the bottom centre
    length, size, seed, camera_height, remember: of embedded scenes; see `SceneSource`
    """
    if kb_crop and (str(root) == "scenes" or layout in ("folder", "pictures", "paired")):
        where = root if str(root) == "scenes" else f"layout {layout!r}"
        raise ValueError(f"kb_crop=True with {where}: it is a crop of KITTI's images; leave it out")
    if str(root) == "scenes":
        from dense.data.labelled.scenes import SceneSource

        return SceneSource(split, length, size, seed, camera_height=camera_height, remember=remember)
    if layout == "folder":
        from dense.data.labelled.folder import open_folder

        return open_folder(
            root, split, partial=partial, targets=targets, classes=classes, depth=depth, ids=ids, val_ratio=val_ratio
        )
    if layout in ("pictures", "paired"):
        from dense.data.labelled.clean import open_clean

        return open_clean(root, split, layout, val_ratio)
    from dense.data.labelled.layouts import open_layout

    return open_layout(root, split, layout, partial=partial, classes=classes, depth=depth, ids=ids, kb_crop=kb_crop)


class Sample(NamedTuple):
    """One image as tensors; None for a target it does not have."""

    image: Tensor  # 3, H, W uint8
    labels: Tensor | None  # H, W int64
    depth: Tensor | None  # 1, H, W float32
    name: str
    clean: Tensor | None = None  # 3, H, W uint8
    degradation: str = ""  # its kind
    cached: tuple[Tensor, ...] | None = None  # features of the image from a cache, see `Batch`


class Batch(NamedTuple):
    """Samples of one size, as a loader yields them and a task takes them; None for a target that no sample has."""

    images: Tensor | None = None  # B, 3, H, W uint8; None where `cached` stands for the images
    labels: Tensor | None = None  # B, H, W int64, IGNORE where unknown
    depth: Tensor | None = None  # B, 1, H, W float32, NaN where unknown
    names: tuple[str, ...] = ()
    clean: Tensor | None = None  # B, 3, H, W uint8, of degraded images
    degradations: tuple[str, ...] = ()  # the kind of each image's degradation
    cached: tuple[Tensor, ...] | None = None  # features of the images: the maps of each layer, then the prefix tokens
    size: Size | None = None  # H, W of the images, where they are None

    def to(self, device: Any, **options: Any) -> Batch:
        """Return the batch with all tensors on `device`; `options` are those of `torch.Tensor.to`."""
        images, labels, depth, clean = (
            None if tensor is None else tensor.to(device, **options)
            for tensor in (self.images, self.labels, self.depth, self.clean)
        )
        cached = None if self.cached is None else tuple(tensor.to(device, **options) for tensor in self.cached)
        return self._replace(images=images, labels=labels, depth=depth, clean=clean, cached=cached)

    def resized(self, size: Size) -> Batch:
        """Return the batch with its targets at `size`, resized by nearest neighbour, which invents no value."""
        labels, depth = self.labels, self.depth
        if labels is not None:
            labels = F.interpolate(labels[:, None].float(), size=size, mode="nearest-exact")[:, 0].long()
        if depth is not None:
            depth = F.interpolate(depth, size=size, mode="nearest-exact")
        return self._replace(labels=labels, depth=depth)


def to_tensors(sample: Labelled) -> Sample:
    """The same as tensors, copied."""
    image = torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1)))  # 3, H, W
    labels = None if sample.labels is None else torch.from_numpy(sample.labels.astype(np.int64))
    depth = None if sample.depth is None else torch.from_numpy(sample.depth.astype(np.float32))[None]
    clean = None if sample.clean is None else torch.from_numpy(np.ascontiguousarray(sample.clean.transpose(2, 0, 1)))
    return Sample(image, labels, depth, sample.name, clean)


def collate(samples: Sequence[Sample], labels: bool | None = None, depth: bool | None = None) -> Batch:
    """A batch; a sample that lacks a target gets one that is unknown everywhere.

    labels, depth: whether the batch has them; by default, if any sample does.
    """
    sizes = {tuple(sample.image.shape[-2:]) for sample in samples}
    sizes |= {tuple(a.shape[-2:]) for s in samples for a in (s.labels, s.depth) if a is not None and len(samples) > 1}
    if len(sizes) > 1:
        raise ValueError(
            f"a batch of images or targets of {len(sizes)} sizes, {sorted(sizes)[:4]}: crop them, resize them with "
            "EvalTransform(size=(H, W), targets='resize'), or take them one by one"
        )
    images = torch.stack([sample.image for sample in samples])
    # what a sample lacks is as large as what it has: alone, its target may have kept another size than its image
    known = next((a for s in samples for a in (s.labels, s.depth) if a is not None), images)
    height, width = known.shape[-2:]
    some_labels = any(s.labels is not None for s in samples) if labels is None else labels
    some_depth = any(s.depth is not None for s in samples) if depth is None else depth
    no_labels, no_depth = torch.full((height, width), IGNORE), torch.full((1, height, width), torch.nan)
    return Batch(
        images,
        torch.stack([no_labels if s.labels is None else s.labels for s in samples]) if some_labels else None,
        torch.stack([no_depth if s.depth is None else s.depth for s in samples]) if some_depth else None,
        tuple(sample.name for sample in samples),
        torch.stack([s.clean for s in samples if s.clean is not None]) if samples[0].clean is not None else None,
        tuple(sample.degradation for sample in samples),
    )
