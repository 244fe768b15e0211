"""Images with dense annotations: what a source yields, what a loader batches, and how one becomes the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from heads.features import Size

IGNORE = 255  # the label of a pixel whose class is unknown
DepthKind = Literal["metric", "inverse_relative"]
Progress = Callable[[int, int], object]  # number done, number in all


class DataError(ValueError):
    """Problems of a data set: all of them in `problems`, the first 20 in the message."""

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
        return type(self), self.problems  # loader workers send it to the main process


@dataclass(frozen=True)
class Labelled:
    """An image and its targets.

    labels: class of every pixel, `IGNORE` where unknown
    depth: NaN where unknown. Metric depth is in metres along the camera's axis, and +inf where the scene is infinitely
        far; inverse depth is 0 there
    clean: the image without its degradation, in paired data
    """

    image: NDArray[np.uint8]  # H, W, 3
    labels: NDArray[np.uint8] | None  # H, W
    depth: NDArray[np.float32] | None  # H, W
    name: str
    clean: NDArray[np.uint8] | None = None  # H, W, 3


class Identity(NamedTuple):
    """Name and version of an image, for caches: a file that changes keeps its name and gets another version."""

    name: str
    version: str


class LabelledSource(Protocol):
    """Labelled images by index. Large attributes are arrays, so that loader workers share their memory."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes; None if there are no masks."""

    @property
    def depth_kind(self) -> DepthKind | None:
        """What depth means; None if there is no depth."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Return where a sample comes from, for messages."""

    def identity(self, index: int) -> Identity:
        """Return what identifies the image in a cache."""

    def read(self, index: int) -> Labelled:
        """Return a sample; raise ImageError for an unusable image and DataError for an unusable target."""


class Sample(NamedTuple):
    """A labelled image as tensors; None for a target that it does not have."""

    image: Tensor  # 3, H, W uint8
    labels: Tensor | None  # H, W int64
    depth: Tensor | None  # 1, H, W float32
    name: str
    clean: Tensor | None = None  # 3, H, W uint8
    degradation: str = ""  # kind of its degradation
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
    """Return a labelled image as tensors that share no memory with it."""
    image = torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1)))  # 3, H, W
    labels = None if sample.labels is None else torch.from_numpy(sample.labels.astype(np.int64))
    depth = None if sample.depth is None else torch.from_numpy(sample.depth.astype(np.float32))[None]
    clean = None if sample.clean is None else torch.from_numpy(np.ascontiguousarray(sample.clean.transpose(2, 0, 1)))
    return Sample(image, labels, depth, sample.name, clean)


def collate(samples: Sequence[Sample], labels: bool | None = None, depth: bool | None = None) -> Batch:
    """Return a batch; a sample that lacks a target gets one that is unknown at every pixel.

    labels, depth: whether the batch has them; by default it has those that any sample has.
    """
    sizes = {tuple(sample.image.shape[-2:]) for sample in samples}
    sizes |= {tuple(a.shape[-2:]) for s in samples for a in (s.labels, s.depth) if a is not None and len(samples) > 1}
    if len(sizes) > 1:
        raise ValueError(
            f"a batch of images or targets of {len(sizes)} sizes, {sorted(sizes)[:4]}: crop them, resize them with "
            "EvalTransform(size=(H, W), targets='resize'), or use batches of one"
        )
    images = torch.stack([sample.image for sample in samples])
    # a missing target gets the size of the present ones: in a batch of one, they may differ in size from the image
    present = next((a for s in samples for a in (s.labels, s.depth) if a is not None), images)
    height, width = present.shape[-2:]
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
