"""Instances and panoptic segments of images of any size by a network of queries: whole, or in tiles that are merged.

Two segments of one class in overlapping tiles are one object if their masks in the overlap have an IoU above `SAME`:
both tiles see the same pixels there, also of an object that one of them cuts. An instance is then the union of its
parts, with the best of their scores, which has to reach the least score asked for; parts may have less, see `FLOOR`,
since a tile that sees little of an object is less certain of it. In panoptic maps a stuff class is one segment of the
image, and a pixel of several tiles is decided by the tile whose edges are farthest from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dense.console import within
from dense.data.large import Pixels
from dense.model.inference import Maps, starts
from dense.model.network import DenseModel, Inference
from dense.model.queries import TOP, Found, Partition, instances, panoptic
from heads.features import Size

SAME = 0.5  # IoU in the overlap of two tiles above which two masks are one object
FLOOR = 0.05  # least score of a part of an object in a tile, where objects of more are asked for
Tile = tuple[int, int]  # top, left

# logits of masks and classes, size of the result, of the input, and of the image in it
Finder = Callable[[Tensor, Tensor, Size, Size, Size], Any]


def finder(
    model: DenseModel, top: int = TOP, mask_threshold: float = 0.8, overlap_threshold: float = 0.8, least: float = 0.0
) -> Finder:
    """Return what turns logits of an image into a `Found` or a `Partition`, as the model's masks are.

    least: score below which instances may be left out; in tiles, that of parts
    """
    output = model.outputs["masks"]
    things = output.things or (True,) * output.count

    def find(masks: Tensor, classes: Tensor, size: Size, through: Size, part: Size) -> Any:
        if output.kind == "panoptic":
            return panoptic(masks, classes, size, things, mask_threshold, overlap_threshold, through, part)[0]
        return instances(masks, classes, size, top, through, part, least)[0]

    return find


def search(
    network: Callable[[Tensor], Maps], image: Tensor | Pixels, size: Size, inference: Inference, find: Finder,
    things: Sequence[bool] | None = None, least: float = 0.0, top: int = TOP,
) -> Any:  # fmt: skip
    """Return the instances or segments, at `size`, of a uint8 image (3, h, w) that has its working size already.

    least: smallest score of an instance; top: most instances of an image or, with a window, of each tile
    """
    height, width = image.shape[-2:]
    window = inference.window
    if window is None or (height <= window and width <= window):
        return best(_found(network, image[:, 0:height, 0:width][None], size, inference, find), least, top)
    places, found = in_tiles(network, image, inference, find, least, top)
    first = next(found)
    found = chain((first,), found)
    if isinstance(first, Partition):
        return _resized(merge_partitions(places, found, (height, width), things), size)
    return _resized(merge_instances(places, list(found), (height, width), least), size)


def in_tiles(
    network: Callable[[Tensor], Maps], image: Tensor | Pixels, inference: Inference, find: Finder,
    least: float = 0.0, top: int = TOP,
) -> tuple[list[Tile], Iterator[Any]]:  # fmt: skip
    """Return the places of the tiles of a uint8 image (3, h, w), and what is found in each; without a window it is one.

    least: smallest score of a joined instance, whose parts may have less
    """
    height, width = image.shape[-2:]
    window = inference.window or max(height, width)
    tall, wide = min(window, height), min(window, width)
    step = inference.step if inference.window else window
    places = [(y, x) for y in starts(height, tall, step) for x in starts(width, wide, step)]

    def each() -> Iterator[Any]:
        for number, (y, x) in enumerate(places):
            within(number + 1, len(places), "tiles")
            tile = image[:, y : y + tall, x : x + wide][None]
            one = best(_found(network, tile, (tall, wide), inference, find), min(least, FLOOR), top)
            yield one if isinstance(one, Partition) else Pieces.of(one)

    return places, each()


def _found(network: Callable[[Tensor], Maps], images: Tensor, size: Size, inference: Inference, find: Finder) -> Any:
    """Return what a network finds in one uint8 image (1, N, h, w) as a whole, at `size`."""
    given = inference.padded(images)
    maps = network(given)
    through, part = ((one.shape[-2], one.shape[-1]) for one in (given, images))
    return find(maps["mask_logits"], maps["class_logits"], size, through, part)


def best(found: Any, least: float, top: int = TOP) -> Any:
    """Return the best `top` instances with a score of at least `least`; a partition stays as it is."""
    if isinstance(found, Partition):
        return found
    kept = (found.scores >= least).nonzero()[:, 0][:top]
    return Found(*(values[kept] for values in found))


class Cropped:
    """Masks (N, h, w) of a tile, of which the rectangles around the objects alone are kept, since tiles are many."""

    def __init__(self, masks: Tensor) -> None:
        self.shape = masks.shape
        self.parts: list[tuple[Tile, Tensor]] = []  # upper left corner, mask
        for mask in masks.cpu():
            rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
            top, left = (int(side[0]) if len(side) else 0 for side in (rows, columns))
            bottom, right = (int(side[-1]) + 1 if len(side) else 0 for side in (rows, columns))
            self.parts.append(((top, left), mask[top:bottom, left:right].clone()))

    def within(self, top: int, left: int, bottom: int, right: int) -> Tensor:
        """Return a part of the masks (N, h, w)."""
        result = torch.zeros(len(self.parts), bottom - top, right - left, dtype=torch.bool)
        for whole, ((y, x), mask) in zip(result, self.parts, strict=True):
            cut = mask[max(top - y, 0) : max(bottom - y, 0), max(left - x, 0) : max(right - x, 0)]
            y, x = max(y - top, 0), max(x - left, 0)
            whole[y : y + cut.shape[0], x : x + cut.shape[1]] = cut
        return result


class Pieces(NamedTuple):
    """The instances of a tile."""

    masks: Cropped
    classes: Tensor  # N int64
    scores: Tensor  # N

    @classmethod
    def of(cls, found: Found) -> Pieces:
        """Return instances without what lies around them."""
        return cls(Cropped(found.masks), found.classes.cpu(), found.scores.cpu())


class Joined(NamedTuple):
    """An object of several tiles: class, best score, and the parts of its mask, each with its upper left corner."""

    label: int
    score: float
    parts: list[tuple[Tile, Tensor]]


class Groups:
    """Which segments of tiles are one object; tiles are added row by row, and those far above are forgotten."""

    def __init__(self) -> None:
        self.parent: list[int] = []  # of the segments of all tiles
        self.near: list[tuple[Tile, Cropped, Tensor, int]] = []  # tile, masks, classes, number of the first segment

    def add(self, tile: Tile, masks: Cropped, classes: Tensor) -> int:
        """Return the number of the first segment of a tile; the others follow."""
        first = len(self.parent)
        self.parent.extend(range(first, first + len(classes)))
        self.near = [one for one in self.near if one[0][0] + one[1].shape[1] > tile[0]]
        for place, other, labels, begin in self.near:
            for i, j in _same(place, (other, labels), tile, (masks, classes)):
                self.parent[self.root(first + j)] = self.root(begin + i)
        self.near.append((tile, masks, classes, first))
        return first

    def root(self, number: int) -> int:
        """Return a number that all segments of an object share."""
        while self.parent[number] != number:
            number = self.parent[number]
        return number


def joined_instances(places: Sequence[Tile], found: Sequence[Pieces], least: float = 0.0) -> list[Joined]:
    """Return the instances of an image from those of its tiles, whose upper left corners are `places`, best first.

    least: smallest score of an instance
    """
    same, keys = Groups(), list[tuple[int, int]]()
    for tile, one in enumerate(found):
        same.add(places[tile], one.masks, one.classes)
        keys += [(tile, place) for place in range(len(one.classes))]
    groups: dict[int, list[tuple[int, int]]] = {}
    for number, key in enumerate(keys):
        groups.setdefault(same.root(number), []).append(key)
    joined = [
        Joined(
            int(found[group[-1][0]].classes[group[-1][1]]),
            max(float(found[tile].scores[place]) for tile, place in group),
            [_placed(places[tile], found[tile].masks.parts[place]) for tile, place in group],
        )
        for group in groups.values()
    ]
    return sorted((one for one in joined if one.score >= least), key=lambda one: -one.score)


def nearest(size: Size, full: Size) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows and the columns of an image of `size` that are nearest to each row and column of the `full`."""
    rows, columns = (
        ((np.arange(long) + 0.5) * (short / long)).astype(np.int64) for long, short in zip(full, size, strict=True)
    )
    return rows, columns


def enlarged(one: Joined, size: Size, full: Size) -> tuple[int, int, NDArray[np.bool_]] | None:
    """Return top, left and mask of an object that was found at a `size`, at the full one; None if it vanishes there."""
    rows, columns = nearest(size, full)
    parts = []
    for (y, x), mask in one.parts:
        top, bottom = np.searchsorted(rows, [y, y + mask.shape[0]]).tolist()
        left, right = np.searchsorted(columns, [x, x + mask.shape[1]]).tolist()
        parts.append(((top, left), mask.numpy()[rows[top:bottom] - y][:, columns[left:right] - x]))
    return union(parts)


def union(parts: Sequence[tuple[Tile, NDArray[np.bool_]]]) -> tuple[int, int, NDArray[np.bool_]] | None:
    """Return top, left and mask of what parts cover together, each with its upper left corner; None for nothing."""
    blocks = []
    for (y, x), mask in parts:
        up, across = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(up):
            cut = mask[up[0] : up[-1] + 1, across[0] : across[-1] + 1]
            blocks.append((y + int(up[0]), x + int(across[0]), cut))
    if not blocks:
        return None
    top, left = min(block[0] for block in blocks), min(block[1] for block in blocks)
    bottom, right = (max(block[i] + block[2].shape[i] for block in blocks) for i in (0, 1))
    whole = np.zeros((bottom - top, right - left), bool)
    for y, x, block in blocks:
        whole[y - top : y - top + block.shape[0], x - left : x - left + block.shape[1]] |= block
    return top, left, whole


def _placed(tile: Tile, part: tuple[Tile, Tensor]) -> tuple[Tile, Tensor]:
    """Return a part of a tile at its place in the image."""
    (y, x), mask = part
    return (tile[0] + y, tile[1] + x), mask


def merge_instances(places: Sequence[Tile], found: Sequence[Pieces], size: Size, least: float = 0.0) -> Found:
    """Return the instances of an image of `size` from those of its tiles, with masks of that size."""
    joined = joined_instances(places, found, least)
    masks = torch.zeros(len(joined), *size, dtype=torch.bool)
    for row, one in enumerate(joined):
        for (y, x), mask in one.parts:
            masks[row, y : y + mask.shape[0], x : x + mask.shape[1]] |= mask
    labels = torch.tensor([one.label for one in joined], dtype=torch.long)
    return Found(masks, labels, torch.tensor([one.score for one in joined]))


class Numbered(NamedTuple):
    """The segments of an image, numbered tile by tile: their objects, and classes and scores of the objects."""

    objects: Tensor  # of each segment, then -1, of no segment
    classes: Tensor  # N int64
    scores: Tensor  # N

    def only(self, seen: Tensor) -> Numbered:
        """Return what is left if these objects alone, in ascending order, have pixels."""
        places = torch.full((len(self.classes) + 1,), -1, dtype=torch.long)
        places[seen] = torch.arange(len(seen))
        return Numbered(places[self.objects], self.classes[seen], self.scores[seen])


def number_partitions(
    places: Sequence[Tile], found: Iterable[Partition], things: Sequence[bool] | None,
    put: Callable[[Tensor, Tensor, int, int], None],
) -> Numbered:  # fmt: skip
    """Join the segments of tiles, of which few are kept; a pixel that several tiles decide is put several times.

    put: is given the numbers (h, w) of a tile's segments, -1 for none, which pixels (h, w) take them, top and left
    """
    same, labels, scores = Groups(), list[int](), list[float]()
    for (y, x), one in zip(places, found, strict=True):
        first = same.add((y, x), _masks(one), one.classes.cpu())
        labels += one.classes.tolist()
        scores += one.scores.tolist()
        segments = one.segments.cpu()
        inner, farthest = _inner(segments.shape), torch.full(segments.shape, -1.0)
        for (top, left), *_ in same.near[:-1]:
            here, there = (
                tuple(_shared(side, offset) for side, offset in zip(inner.shape, offsets, strict=True))
                for offsets in ((top - y, left - x), (y - top, x - left))
            )
            farthest[here] = torch.maximum(farthest[here], inner[there])
        put(torch.where(segments >= 0, segments + first, -1), inner > farthest, y, x)
    number: dict[tuple[str, int], int] = {}  # of a stuff class, or of the root of a thing
    objects, classes, best = list[int](), list[int](), list[float]()
    for segment, (label, score) in enumerate(zip(labels, scores, strict=True)):
        thing = things is None or things[label]
        key = ("thing", same.root(segment)) if thing else ("stuff", label)
        if key not in number:
            number[key] = len(classes)
            classes.append(label)
            best.append(score)
        objects.append(number[key])
        best[number[key]] = max(best[number[key]], score)
    return Numbered(torch.tensor([*objects, -1]), torch.tensor(classes, dtype=torch.long), torch.tensor(best))


def merge_partitions(
    places: Sequence[Tile], found: Iterable[Partition], size: Size, things: Sequence[bool] | None = None
) -> Partition:
    """Return the panoptic segments of an image of `size` from those of its tiles."""
    segments = torch.full(size, -1, dtype=torch.long)

    def put(numbers: Tensor, where: Tensor, top: int, left: int) -> None:
        segments[top : top + where.shape[0], left : left + where.shape[1]][where] = numbers[where]

    numbered = number_partitions(places, found, things, put)
    seen = numbered.objects[segments].unique()
    numbered = numbered.only(seen[seen >= 0])
    return Partition(numbered.objects[segments], numbered.classes, numbered.scores)


def _masks(one: Partition) -> Cropped:
    return Cropped(one.segments[None] == torch.arange(len(one.classes), device=one.segments.device)[:, None, None])


def _shared(length: int, offset: int) -> slice:
    """Return the part of a side that another one of the same length covers, which begins at an offset."""
    return slice(max(offset, 0), max(length + min(offset, 0), 0))


def _inner(size: Sequence[int]) -> Tensor:
    """Return how far each pixel (h, w) lies from the nearest edge."""
    rows, columns = (torch.minimum(at, at.flip(0)) for at in (torch.arange(side, dtype=torch.float) for side in size))
    return torch.minimum(rows[:, None], columns[None])


def _same(
    first: Tile, one: tuple[Cropped, Tensor], second: Tile, other: tuple[Cropped, Tensor]
) -> list[tuple[int, int]]:
    """Return the pairs of segments of two tiles that are one object: for each the best, where both agree."""
    height, width = one[0].shape[-2:]
    top, left = max(first[0], second[0]), max(first[1], second[1])
    bottom = min(first[0], second[0]) + height
    right = min(first[1], second[1]) + width
    if bottom <= top or right <= left or not len(one[1]) or not len(other[1]):
        return []
    a, b = (
        masks.within(top - y, left - x, bottom - y, right - x).flatten(1).float()
        for (y, x), masks in ((first, one[0]), (second, other[0]))
    )
    both = a @ b.T
    iou = both / (a.sum(1)[:, None] + b.sum(1)[None] - both).clamp_min(1)
    iou = torch.where(one[1][:, None] == other[1][None], iou, 0)
    best = (iou > SAME) & (iou == iou.amax(1, keepdim=True)) & (iou == iou.amax(0, keepdim=True))
    return [(int(i), int(j)) for i, j in best.nonzero()]


def _resized(found: Any, size: Size) -> Any:
    """Return instances or segments at another size, by nearest neighbour."""
    if isinstance(found, Partition):
        return found._replace(segments=_nearest(found.segments[None], size)[0])
    return found._replace(masks=_nearest(found.masks, size))


def _nearest(maps: Tensor, size: Size) -> Tensor:
    if tuple(maps.shape[-2:]) == tuple(size) or not len(maps):
        return maps if len(maps) else maps.new_zeros(0, *size)
    return F.interpolate(maps[:, None].float(), size=size, mode="nearest-exact")[:, 0].to(maps.dtype)
