"""Segments of images as they are stored: COCO's polygons and run-length codes, and PNG maps of objects' numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dense.data.labelled.reading import EXIF_HINT, is_turned, read_mask
from dense.data.labelled.sample import IGNORE, DataError, Segments
from dense.data.large import Box
from heads.features import Size

Kind = Literal["coco", "panoptic", "numbers", "cityscapes", "ade20k"]
FAR = 10  # sides of an image that a coordinate may lie outside; pycocotools walks along every edge
THOUSAND = 1000  # Cityscapes: class * 1000 + number


@dataclass(frozen=True)
class SegmentFormat:
    """How the segments of a data set are stored, and which classes are things: countable objects.

    kind: ``coco``: polygons and run-length codes from a JSON file; ``panoptic``: a PNG whose colours are ids from a
        JSON file; ``numbers``: a PNG with a number per object, 0 for none, beside a mask of classes; ``cityscapes``: a
        PNG of labelId * 1000 + number, or of the labelId alone; ``ade20k``: a PNG with the class of things in red and
        their number in green, beside a mask of classes

    A stuff class is one segment of an image. Pixels of a thing class without a number are a crowd.
    ids: of the categories of a JSON file that are the classes
    """

    kind: Kind
    classes: tuple[str, ...]
    things: tuple[bool, ...]
    ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.classes) != len(self.things):
            raise ValueError(f"{len(self.classes)} classes, but things for {len(self.things)}; give one per class")

    @property
    def needs_labels(self) -> bool:
        """Whether the classes of segments come from a mask of classes."""
        return self.kind in ("numbers", "cityscapes", "ade20k")

    @property
    def covers(self) -> bool:
        """Whether pixels outside of objects have a class too; COCO's annotations of things alone leave them unknown."""
        return self.kind != "coco" or not all(self.things)

    def map_of(self, entry: str) -> str:
        """Return the path of the map that holds an image's segments; empty where they are in a JSON file."""
        return "" if self.kind == "coco" else str(json.loads(entry)["png"]) if self.kind == "panoptic" else entry

    def read(
        self, entry: str, size: Size, labels: NDArray[np.uint8] | None, name: str, box: Box | None = None,
        part: NDArray[Any] | None = None,
    ) -> Segments:  # fmt: skip
        """Return the segments of an image of `size`.

        entry: the path of a PNG, or what `open_json` noted of an image. labels: classes (H, W), for PNG of numbers.
        box, part: a window of the image, which alone is returned, and the map of its pixels, if there is a map; labels
        are then of the window
        """
        if self.kind == "coco":
            return of_annotations(json.loads(entry), size, name, box)
        if self.kind == "panoptic":
            return of_ids(json.loads(entry), part)
        raw = read_mask(entry) if part is None else part
        if labels is None:
            raise DataError(f"{entry} holds numbers of objects, and no mask of classes is there to name them")
        if raw.shape[:2] != labels.shape:
            raise DataError(
                f"{entry} has {raw.shape[0]}x{raw.shape[1]} pixels (height x width), the mask of classes "
                f"{labels.shape[0]}x{labels.shape[1]}; both must have the image's size"
            )
        if self.kind == "ade20k":
            return self._of_ade20k(raw, labels, entry)
        if raw.ndim == 3:
            raise DataError(f"{entry} is painted in colours; expected a number per object, 0 where there is none")
        numbers = np.where(raw >= THOUSAND, raw, 0) if self.kind == "cityscapes" else raw
        return of_numbers(labels, numbers, self.things, entry, self.classes)

    def _of_ade20k(self, raw: NDArray[Any], labels: NDArray[np.uint8], name: str) -> Segments:
        if raw.ndim != 3:
            raise DataError(f"{name} holds one number per pixel; expected the class in red and the number in green")
        things = np.flatnonzero(self.things)
        red, green = raw[..., 0].astype(np.int64), raw[..., 1].astype(np.int64)
        if (worst := int(red.max(initial=0))) > len(things):
            raise DataError(f"{name} has the class {worst} in red; expected 1 to {len(things)}, or 0 for no object")
        # a thing that is no object of the file is unknown
        classes = np.where(np.isin(labels, things), np.uint8(IGNORE), labels)
        classes = np.where(red > 0, things[np.maximum(red, 1) - 1], classes).astype(np.uint8)
        return of_numbers(classes, np.where(red > 0, red * 256 + green + 1, 0), self.things, name, self.classes)


def of_numbers(
    labels: NDArray[np.uint8],
    numbers: NDArray[Any],
    things: Sequence[bool],
    name: str = "the image",
    classes: Sequence[str] | None = None,
) -> Segments:
    """Return the segments of a map of classes and one of objects' numbers, both (H, W), 0 for no object.

    An object that has several classes raises DataError; numbers of stuff and of unknown pixels do not count.
    """
    valid = labels != IGNORE
    counted = np.zeros(IGNORE + 1, bool)
    counted[: len(things)] = things
    own = np.where(counted[labels], numbers, 0).astype(np.int64)
    pairs = labels.astype(np.int64) << 32 | own
    found = np.unique(pairs[valid])
    of_class, number = found >> 32, found & 0xFFFFFFFF
    objects = number[number > 0]
    if len(objects) != len(np.unique(objects)):
        twice = next(int(n) for n in objects if (objects == n).sum() > 1)
        several = [str(classes[c]) if classes else str(c) for c in of_class[number == twice]]
        raise DataError(
            f"object {twice} of {name} has the classes {' and '.join(several)}; give each object a number of its own, "
            "and its pixels one class"
        )
    masks = (pairs[None] == found[:, None, None]) & valid
    crowd = counted[of_class] & (number == 0)
    return Segments(*map(torch.from_numpy, (masks, of_class, crowd, valid, found)))


def of_ids(entry: Mapping[str, Any], part: NDArray[Any] | None = None) -> Segments:
    """Return the segments of a panoptic PNG: {"png": path, "segments": [[id, class, crowd], ...]}.

    part: the colours of a window of it, of which the segments are returned that have pixels there
    """
    path, segments = str(entry["png"]), entry["segments"]
    raw = read_mask(path) if part is None else part
    if raw.ndim != 3:
        raise DataError(f"{path} holds one number per pixel; expected colours, with the id R + 256 G + 65536 B")
    ids = raw[..., 0].astype(np.int64) | raw[..., 1].astype(np.int64) << 8 | raw[..., 2].astype(np.int64) << 16
    known = [row[0] for row in segments]
    there = set(np.unique(ids).tolist()) - {0}
    if unknown := sorted(there - set(known)):
        raise DataError(f"{path} has the id {unknown[0]}, which the JSON file does not list among its segments")
    if part is not None:
        segments = [row for row in segments if row[0] in there]
        known = [row[0] for row in segments]
    if empty := [id for id in known if id not in there]:
        raise DataError(f"segment {empty[0]} of {path} has no pixels; remove it from the JSON file")
    masks = ids[None] == np.array(known, np.int64).reshape(-1, 1, 1)
    return Segments(
        torch.from_numpy(masks),
        torch.tensor([row[1] for row in segments], dtype=torch.long),
        torch.tensor([bool(row[2]) for row in segments], dtype=torch.bool),
        torch.from_numpy(ids != 0),
        torch.tensor(known, dtype=torch.long),
    )


def of_annotations(entry: Sequence[Sequence[Any]], size: Size, name: str, box: Box | None = None) -> Segments:
    """Return the segments of annotations: [[height, width], [id, class, crowd, polygons or run-length code], ...].

    The declared size of the image, where there is one, must be that of its file. A polygon thinner than a pixel covers
    none and is left out, as COCO has some; any other empty mask is an error.

    box: a window of the image; segments that do not reach into it are left out, and the image's masks are never whole
    """
    declared, *entry = entry
    if None not in declared and tuple(declared) != tuple(size):
        turned = tuple(declared) == tuple(size)[::-1] and is_turned(name)
        hint = EXIF_HINT.format(what="JSON file") if turned else "annotations must be of the image as it is"
        raise DataError(
            f"{name} has {size[0]}x{size[1]} pixels (height x width), its JSON file says "
            f"{declared[0]!r}x{declared[1]!r}; {hint}"
        )
    window, box = box, box or (0, 0, *size)
    masks, kept = [], []
    for place, (id, _, _, stored) in enumerate(entry):
        if window is not None and isinstance(stored, list) and not _reaches(stored, window):
            continue
        lengths = decode(stored, size, f"annotation {id} of {name}")
        if isinstance(stored, Mapping) and not any(lengths[1::2]):
            raise DataError(f"the mask of annotation {id} of {name} is empty; remove the annotation")
        mask = painted(lengths, size[0], box)
        if mask.any():
            masks.append(mask)
            kept.append(place)
    return Segments(
        torch.from_numpy(np.stack(masks) if masks else np.zeros((0, *box[2:]), bool)),
        torch.tensor([entry[i][1] for i in kept], dtype=torch.long),
        torch.tensor([bool(entry[i][2]) for i in kept], dtype=torch.bool),
        torch.ones(box[2:], dtype=torch.bool),
        torch.tensor(kept, dtype=torch.long),
    )


def _reaches(polygons: Sequence[Any], box: Box) -> bool:
    """Whether the rectangle around polygons meets a window; also of what is none, which `decode` refuses."""
    try:
        x, y = (np.concatenate([np.asarray(one, float)[first::2] for one in polygons]) for first in (0, 1))
    except (TypeError, ValueError):
        return True
    top, left, height, width = box
    inside = x.max() >= left - 1 and x.min() <= left + width + 1 and y.max() >= top - 1 and y.min() <= top + height + 1
    return bool(inside)


def decode(stored: Any, size: Size, name: str) -> list[int]:
    """Return the runs of polygons or of a run-length code; raise DataError for one that does not fit `size`."""
    height, width = size
    if isinstance(stored, Mapping):
        given, counts = stored.get("size"), stored.get("counts")
        if not isinstance(given, Sequence) or list(given) != [height, width]:
            raise DataError(f"the run-length code of {name} is of size {given}, its image of {[height, width]}")
        try:
            lengths = runs(counts) if isinstance(counts, str) else [index(count) for count in counts or ()]
        except (IndexError, TypeError, ValueError):
            raise DataError(f"the run-length code of {name} is damaged: {str(counts)[:40]!r}") from None
        if sum(lengths) != height * width or min(lengths, default=0) < 0:
            raise DataError(
                f"the run-length code of {name} covers {sum(lengths)} pixels, its image has {height * width}"
            )
        return lengths
    if not isinstance(stored, list) or not stored or not all(isinstance(one, list) for one in stored):
        raise DataError(f"the segmentation of {name} is {str(stored)[:40]!r}; expected polygons or a run-length code")
    for polygon in stored:
        if len(polygon) < 6 or len(polygon) % 2 or not all(isinstance(x, int | float) for x in polygon):
            raise DataError(f"a polygon of {name} has {len(polygon)} numbers; expected x and y of at least 3 points")
        if not all(map(math.isfinite, polygon)):
            raise DataError(f"a polygon of {name} has coordinates that are not finite")
    x, y = ([value for polygon in stored for value in polygon[first::2]] for first in (0, 1))
    if max(x) < 0 or max(y) < 0 or min(x) > width or min(y) > height:
        raise DataError(f"the polygons of {name} lie outside the image of {width}x{height} pixels")
    for values, side in ((x, width), (y, height)):
        if far := [value for value in values if not -FAR * side <= value <= (FAR + 1) * side]:
            raise DataError(
                f"a polygon of {name} has the coordinate {far[0]:g}, more than {FAR} sides outside the image of "
                f"{width}x{height} pixels"
            )
    from pycocotools import mask  # here, since other data do not need it

    return runs(mask.merge(mask.frPyObjects(stored, height, width))["counts"].decode())


def painted(lengths: Sequence[int], height: int, box: Box) -> NDArray[np.bool_]:
    """Return a window of the mask of runs, which go down the columns of an image of `height` and begin outside."""
    top, left, tall, wide = box
    ends = np.cumsum(lengths)
    begin, end = left * height, (left + wide) * height
    first, last = np.searchsorted(ends, [begin, end])  # the runs that hold the first pixel, or end there, and the last
    bounds = np.clip(np.concatenate([[begin], ends[first : last + 1]]), begin, end)
    inside = np.arange(first, first + len(bounds) - 1) % 2 == 1
    return np.repeat(inside, np.diff(bounds)).reshape(wide, height).T[top : top + tall]


def runs(counts: str) -> list[int]:
    """Return the lengths of the runs in COCO's text: 5 bits a character, and from the fourth on differences."""
    lengths: list[int] = []
    place = 0
    while place < len(counts):
        value = shift = 0
        while True:
            bits = ord(counts[place]) - 48
            value |= (bits & 31) << shift
            shift, place = shift + 5, place + 1
            if not bits & 32:
                break
        if bits & 16:
            value -= 1 << shift
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
    return lengths


def encode(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return COCO's run-length code of a mask (H, W): {"size": [H, W], "counts": text}."""
    from pycocotools import mask as coco

    code = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode()}


def encode_part(mask: NDArray[np.bool_], top: int, left: int, size: Size) -> dict[str, Any]:
    """Do as `encode`, for a mask (h, w) at a place of an image of `size`, which is never in memory."""
    from pycocotools import mask as coco

    edges = np.diff(np.pad(mask.T.astype(np.int8), ((0, 0), (1, 1))), axis=1)  # w, h + 1
    (columns, begins), (_, ends) = np.nonzero(edges == 1), np.nonzero(edges == -1)
    begins, ends = ((left + columns) * size[0] + top + rows for rows in (begins, ends))
    apart = begins[1:] != ends[:-1]  # else a run goes on at the top of the next column
    begins, ends = begins[np.r_[True, apart][: len(begins)]], ends[np.r_[apart, True][: len(ends)]]
    counts = np.diff(np.r_[0, np.stack([begins, ends], 1).ravel(), size[0] * size[1]]).tolist()
    plain = {"size": list(size), "counts": counts if counts[-1] else counts[:-1]}
    return {"size": list(size), "counts": coco.frPyObjects(plain, *size)["counts"].decode()}
