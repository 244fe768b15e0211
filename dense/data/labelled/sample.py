"""Images with dense annotations: what a source yields, what a loader batches, and how one becomes the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from heads.features import Size

IGNORE = 255  # the label of a pixel whose class is unknown
UNCOVERED = (  # why classes of pixels cannot be learnt or measured, and what to give
    "the JSON file annotates objects alone, and the background has no class; give masks of classes, COCO's panoptic "
    "file, or annotations of stuff too, with isthing 0 in their categories"
)
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


class Segments(NamedTuple):
    """The objects of an image, or its objects and regions of stuff, as masks.

    masks: (N, H, W) bool; of an image of N segments, which may overlap where the data say so. N may be 0
    classes: (N,) int64
    crowd: (N,) bool; regions of several objects that are not told apart, which are neither matched nor counted
    valid: (H, W) bool; False where nothing is known: at unlabelled pixels and outside of the image
    ids: (N,) int64; the same for a segment in all windows of its image; empty where segments have none
    """

    masks: Tensor
    classes: Tensor
    crowd: Tensor
    valid: Tensor
    ids: Tensor = torch.empty(0, dtype=torch.long)

    def to(self, device: Any, **options: Any) -> Segments:
        """Return the segments on `device`; `options` are those of `torch.Tensor.to`."""
        return Segments(*(tensor.to(device, **options) for tensor in self))

    def take(self, which: Tensor) -> Segments:
        """Return the segments with these indices, or where `which` (N,) is True."""
        ids = self.ids[which] if len(self.ids) else self.ids
        return Segments(self.masks[which], self.classes[which], self.crowd[which], self.valid, ids)

    def of_things(self, things: Sequence[bool] | None) -> Segments:
        """Return the objects; things: whether each class is of countable objects, None if all are."""
        if things is None:
            return self
        return self.take(torch.tensor(things, device=self.classes.device)[self.classes])

    def resized(self, size: Size) -> Segments:
        """Return the segments at another size, by nearest neighbour; those that vanish stay, as empty masks."""
        if tuple(self.valid.shape) == tuple(size):
            return self
        maps = torch.cat([self.masks, self.valid[None]])[:, None].to(torch.uint8)
        small = F.interpolate(maps, size=size, mode="nearest-exact")[:, 0].bool()
        return self._replace(masks=small[:-1], valid=small[-1])


@dataclass(frozen=True)
class Labelled:
    """An image and its targets.

    labels: class of every pixel, `IGNORE` where unknown
    depth: NaN where unknown. Metric depth is in metres along the camera's axis, and +inf where the scene is infinitely
        far; inverse depth is 0 there
    clean: the image without its degradation, in paired data
    segments: objects, or objects and stuff, as masks
    """

    image: NDArray[np.uint8]  # H, W, 3
    labels: NDArray[np.uint8] | None  # H, W
    depth: NDArray[np.float32] | None  # H, W
    name: str
    clean: NDArray[np.uint8] | None = None  # H, W, 3
    segments: Segments | None = None


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

    @property
    def things(self) -> tuple[bool, ...] | None:
        """Whether each class is of countable objects; None if there are no segments."""

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
    segments: Segments | None = None


class Batch(NamedTuple):
    """Samples of one size, as a loader yields them and a task takes them; None for a target that no sample has."""

    images: Tensor | None = None  # B, 3, H, W uint8
    labels: Tensor | None = None  # B, H, W int64, IGNORE where unknown
    depth: Tensor | None = None  # B, 1, H, W float32, NaN where unknown
    names: tuple[str, ...] = ()
    clean: Tensor | None = None  # B, 3, H, W uint8, of degraded images
    degradations: tuple[str, ...] = ()  # the kind of each image's degradation
    cached: tuple[Tensor, ...] | None = None  # features of the images: the maps of each layer, then the prefix tokens
    size: Size | None = None  # H, W of the images, where there are features
    segments: tuple[Segments, ...] | None = None  # of each image

    def to(self, device: Any, **options: Any) -> Batch:
        """Return the batch with all tensors on `device`; `options` are those of `torch.Tensor.to`."""
        images, labels, depth, clean = (
            None if tensor is None else tensor.to(device, **options)
            for tensor in (self.images, self.labels, self.depth, self.clean)
        )
        cached = None if self.cached is None else tuple(tensor.to(device, **options) for tensor in self.cached)
        segments = None if self.segments is None else tuple(s.to(device, **options) for s in self.segments)
        return self._replace(
            images=images, labels=labels, depth=depth, clean=clean, cached=cached, segments=segments
        )  # fmt: skip

    def resized(self, size: Size) -> Batch:
        """Return the batch with its targets at `size`, resized by nearest neighbour, which invents no value."""
        labels, depth = self.labels, self.depth
        if labels is not None:
            labels = F.interpolate(labels[:, None].float(), size=size, mode="nearest-exact")[:, 0].long()
        if depth is not None:
            depth = F.interpolate(depth, size=size, mode="nearest-exact")
        segments = None if self.segments is None else tuple(s.resized(size) for s in self.segments)
        return self._replace(labels=labels, depth=depth, segments=segments)


def to_tensors(sample: Labelled) -> Sample:
    """Return a labelled image as tensors that share no memory with it."""
    image = torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1)))  # 3, H, W
    labels = None if sample.labels is None else torch.from_numpy(sample.labels.astype(np.int64))
    depth = None if sample.depth is None else torch.from_numpy(sample.depth.astype(np.float32))[None]
    clean = None if sample.clean is None else torch.from_numpy(np.ascontiguousarray(sample.clean.transpose(2, 0, 1)))
    return Sample(image, labels, depth, sample.name, clean, segments=sample.segments)


def collate(samples: Sequence[Sample], labels: bool | None = None, depth: bool | None = None) -> Batch:
    """Return a batch; a sample that lacks a target gets one that is unknown at every pixel.

    labels, depth: whether the batch has them; by default it has those that any sample has.
    """
    sizes = {tuple(sample.image.shape[-2:]) for sample in samples}
    if len(samples) > 1:
        sizes |= {tuple(a.shape[-2:]) for s in samples for a in (s.labels, s.depth) if a is not None}
        sizes |= {tuple(s.segments.valid.shape) for s in samples if s.segments is not None}
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
        segments=tuple(s.segments for s in samples if s.segments is not None) or None,
    )


def masks_of(labels: Tensor, ignore: int = IGNORE) -> tuple[Tensor, Tensor]:
    """Return one mask per class of a label map (H, W): masks (N, H, W) bool, in the order of classes (N,) int64."""
    classes = labels.unique()
    classes = classes[classes != ignore].long()
    return labels[None] == classes[:, None, None], classes


def label_map(segments: Segments) -> Tensor:
    """Return the class of each pixel (H, W), unknown in crowds and outside of all segments."""
    labels = torch.full_like(segments.valid, IGNORE, dtype=torch.int64)
    for mask, label, crowd in zip(segments.masks, segments.classes, segments.crowd, strict=True):
        labels[mask] = IGNORE if crowd else label
    return labels.masked_fill(~segments.valid, IGNORE)


def with_labels(sample: Labelled) -> Labelled:
    """Return a sample with the labels of its segments, where it has no mask of classes."""
    if sample.labels is not None or sample.segments is None:
        return sample
    return replace(sample, labels=label_map(sample.segments).numpy().astype(np.uint8), segments=None)
