"""Labelled images that do not fit into memory: predicted and compared block by block, as prediction reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dense.console import progress
from dense.data.labelled.files import FileSource
from dense.data.labelled.sample import Labelled, LabelledSource, with_labels
from dense.data.labelled.segments import encode_part
from dense.data.large import LARGE, Box, Windows
from dense.data.transforms import new_size
from dense.data.windows import Targets, large_image
from dense.metrics import DepthMetrics, InStrips, MaskAP, PanopticQuality, shared_pixels
from dense.model.inference import WHOLE, Edges, Network, bands, of_pixels, slide
from dense.model.queries import Partition
from dense.model.tiles import Joined, Tile, enlarged, nearest, number_partitions, union
from heads.features import Size

BLOCK = 1024  # side of the blocks of a large image in which targets are compared


def large_images(source: LabelledSource) -> list[int]:
    """Return the numbers of the images that are read in windows."""
    if not isinstance(source, FileSource):
        return []
    return [number for number in progress(range(len(source)), "headers") if large_image(source, number) is not None]


def large_settings(source: LabelledSource) -> dict[str, str]:
    """Return how many images are measured in windows, for the protocol; nothing if there are none."""
    count = len(large_images(source))
    return {"large": f"{count} images of more than {LARGE:g} megapixels, in windows"} if count else {}


def refuse_large(source: LabelledSource, what: str) -> None:
    """Raise if a source has images that are too large for `what`, which needs whole ones."""
    if numbers := large_images(source):
        raise ValueError(
            f"{source.name(numbers[0])} has more than {LARGE:g} megapixels and is read in windows, and {what} needs "
            "whole images; leave it out, or cut the images into tiles"
        )


def size_for(size: Size, resize: int | tuple[int, int] | None, window: int | None, depth: bool) -> Size:
    """Return the size at which the network sees a large image: depth depends on the whole scene, see `Predictor`."""
    return of_pixels(size, WHOLE) if resize is None and window is None and depth else new_size(resize, *size)


class Compared:
    """Receives blocks of predicted maps (K, h, w) at their places, and adds them to the metrics beside the targets."""

    def __init__(self, targets: Targets, measured: Mapping[str, Any], device: torch.device) -> None:
        self.targets, self.measured, self.device = targets, measured, device
        self._box: Box = (0, 0, 0, 0)
        self._target: Labelled | None = None
        self._sums: list[tuple[Tensor, Tensor]] = []  # of depth, over blocks

    def __call__(self, name: str, block: Tensor, top: int, left: int) -> None:
        target = self._at((top, left, block.shape[1], block.shape[2]))
        if name == "labels" and target.labels is not None:
            labels = torch.from_numpy(target.labels)[None].long().to(self.device)
            for metric in self.measured.keys() & {"segmentation", "hungarian"}:
                self.measured[metric].update(block.argmax(0)[None], labels)
        if name == "depth" and target.depth is not None and "depth" in self.measured:
            depth, metric = torch.from_numpy(target.depth)[None, None].to(self.device), self.measured["depth"]
            assert isinstance(metric, DepthMetrics)
            self._sums.append(metric.sums_of(block[None], depth, depth.isfinite()))

    def _at(self, box: Box) -> Labelled:
        """Return the targets of a block, which are read once for all of its maps."""
        if self._target is None or self._box != box:
            assert self.targets.windows is not None
            self._box, self._target = box, with_labels(self.targets.read(box))
        return self._target

    def close(self) -> None:
        """Add the depth of the image, whose metrics are means over images."""
        if self._sums:
            self.measured["depth"].add(*(torch.stack(part).sum(0) for part in zip(*self._sums, strict=True)))


class ComparedRestored:
    """Receives blocks of a restored image (N, h, w) row by row, or column by column of a wide one, and measures them
    beside those of the degraded and the clean image."""

    def __init__(self, targets: Targets, degraded: Windows) -> None:
        self.targets, self.degraded = targets, degraded
        self.ours, self.theirs = InStrips(), InStrips()
        self._wide = degraded.shape[1] > degraded.shape[0]  # see `slide`
        self._blocks: list[Tensor] = []  # of a strip

    def __call__(self, name: str, block: Tensor, top: int, left: int) -> None:
        if self._wide:
            block, top, left = block.mT, left, top
        self._blocks.append(block)
        across = min(self.degraded.shape[:2])
        if left + block.shape[2] < across:
            return
        strip, self._blocks = torch.cat(self._blocks, 2), []
        box = (0, top, across, strip.shape[1]) if self._wide else (top, 0, strip.shape[1], across)
        found = self.targets.read(box).clean
        if found is None:  # the image itself is the clean one
            assert self.targets.windows is not None
            found = self.targets.windows.read(*box)
        image, clean = (self._strip(pixels, strip) for pixels in (self.degraded.read(*box), found))
        valid = torch.ones(box[2:], dtype=torch.bool)
        for y, x, tall, wide in self.targets.damaged:
            y, x = y - box[0], x - box[1]
            valid[max(y, 0) : max(y + tall, 0), max(x, 0) : max(x + wide, 0)] = False
        valid = (valid.mT if self._wide else valid).to(strip.device)
        self.ours.add(strip, clean, valid)
        self.theirs.add(image, clean, valid)

    def _strip(self, pixels: NDArray[np.uint8], like: Tensor) -> Tensor:
        values = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).to(like.device).float() / 255
        return values.mT if self._wide else values


def compare(
    network: Network, whole: Network, targets: Targets, size: Size, measured: Mapping[str, Any],
    device: torch.device, window: int, stride: int, edges: Edges,
) -> None:  # fmt: skip
    """Add a large image to the metrics.

    network: of uint8 windows; whole: of the uint8 image at another size, which fits into memory. size: at which the
    network sees the image
    """
    image = targets.windows
    assert image is not None
    compared = Compared(targets, measured, device)
    if size == targets.size:
        slide(network, image.pixels(device), window, stride, compared, edges)
    else:
        pixels = torch.from_numpy(image.shrunk(size).transpose(2, 0, 1)[None]).to(device)
        for name, values in whole(pixels).items():
            bands(values[0], targets.size, lambda rows, top, name=name: compared(name, rows, top, 0))
    compared.close()


def compare_instances(
    found: Sequence[Joined], size: Size, targets: Targets, metric: MaskAP, things: Sequence[bool]
) -> None:
    """Add the objects of a large image, found at a `size`, to the metric, each by the code of its bounding box."""
    parts: dict[int, tuple[int, bool, list[tuple[Tile, NDArray[np.bool_]]]]] = {}
    for box in blocks(targets.size):
        if (target := targets.read(box).segments) is None:
            raise ValueError(f"{targets.path} has no masks of objects")
        target = target.of_things(things)
        for id, label, crowd, mask in zip(
            target.ids.tolist(), target.classes.tolist(), target.crowd.tolist(), target.masks.numpy(), strict=True
        ):
            cut = union([((box[0], box[1]), mask)])
            if cut is not None:
                parts.setdefault(id, (label, crowd, []))[2].append(((cut[0], cut[1]), cut[2].copy()))
    ours, truth = [], []
    for one in found:
        if (mask_of := enlarged(one, size, targets.size)) is not None:
            ours.append((one.label, one.score, code(mask_of, targets.size)))
    for id in sorted(parts):
        label, crowd, pieces = parts[id]
        if (mask_of := union(pieces)) is not None:
            truth.append((label, int(crowd), code(mask_of, targets.size)))
    metric.add(targets.size, ours, truth)


def code(mask: tuple[int, int, NDArray[np.bool_]], size: Size) -> str:
    """Return the run-length code of a mask at a place, top and left, of an image of `size`."""
    return str(encode_part(mask[2], mask[0], mask[1], size)["counts"])


def compare_segments(
    places: Sequence[Tile], found: Iterable[Partition], size: Size, targets: Targets, metric: PanopticQuality,
    things: Sequence[bool],
) -> None:  # fmt: skip
    """Add the panoptic segments of a large image, found in tiles of it at a `size`, to the metric."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "numbers"
        np.memmap(file, np.int32, "w+", shape=size)

        def put(numbers: Tensor, where: Tensor, top: int, left: int) -> None:
            kept = np.memmap(
                file, np.int32, "r+", shape=size
            )  # anew, since its pages count as memory until it is closed
            kept[top : top + where.shape[0], left : left + where.shape[1]][where.numpy()] = numbers[where].numpy()

        numbered = number_partitions(places, found, things, put)
        rows, columns = nearest(size, targets.size)
        known: dict[int, tuple[int, bool]] = {}  # class and crowd of each true segment
        row: dict[int, int] = {}
        pairs = torch.zeros(2, len(numbered.classes) + 1, dtype=torch.float64)
        for box in blocks(targets.size):
            if (target := targets.read(box).segments) is None:
                raise ValueError(f"{targets.path} has no masks of objects")
            top, left, height, width = box
            here = np.memmap(file, np.int32, "r", shape=size)[rows[top : top + height]][:, columns[left : left + width]]
            own = shared_pixels(numbered.objects[torch.from_numpy(here).long()], len(numbered.classes), target)
            for id, *what in zip(target.ids.tolist(), target.classes.tolist(), target.crowd.tolist(), strict=True):
                row.setdefault(id, len(row) + 2)
                known[id] = (what[0], what[1])
            pairs = torch.cat([pairs, pairs.new_zeros(len(row) + 2 - len(pairs), pairs.shape[1])])
            pairs[[0, 1, *(row[id] for id in target.ids.tolist())]] += own
    labels, crowd = (
        torch.tensor([known[id][i] for id in row], dtype=kind) for i, kind in ((0, torch.long), (1, torch.bool))
    )
    metric.add(pairs, numbered.classes, labels, crowd)


def blocks(size: Size) -> Iterator[Box]:
    """Yield boxes that tile an image."""
    for top in range(0, size[0], BLOCK):
        for left in range(0, size[1], BLOCK):
            yield top, left, min(BLOCK, size[0] - top), min(BLOCK, size[1] - left)
