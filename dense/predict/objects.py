"""Typed predictions of masks: instances, and panoptic segments; as pictures, PNG files and COCO's JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dense.data.labelled.segments import encode
from dense.files import write
from dense.media.draw import Picture, label_picture, named, objects_picture, write_picture

COLOURS = 255  # of objects' numbers, which then repeat


@dataclass(frozen=True)
class Instances:
    """Objects of an image as masks, the most certain first; masks may overlap."""

    masks: NDArray[np.bool_]  # N, H, W
    labels: NDArray[np.int64]  # N: indices into classes
    scores: NDArray[np.float32]  # N, in 0..1
    classes: tuple[str, ...]
    ids: tuple[int, ...] = ()  # of the classes in COCO's files; 1, 2, ... if empty

    def __len__(self) -> int:
        return len(self.labels)

    def best(self, count: int) -> Instances:
        """Return the most certain objects alone."""
        return replace(self, masks=self.masks[:count], labels=self.labels[:count], scores=self.scores[:count])

    @property
    def boxes(self) -> NDArray[np.int64]:
        """Boxes around the masks (N, 4): left, top, right, bottom, the latter two exclusive."""
        return np.array([box(mask) for mask in self.masks], np.int64).reshape(-1, 4)

    @property
    def numbers(self) -> NDArray[np.uint16]:
        """The object at each pixel (H, W): 1 for the most certain, 0 for none; the more certain lies above."""
        return numbered(self.masks)

    def picture(self) -> Picture:
        """Return one colour per object, black elsewhere."""
        numbers = self.numbers
        return label_picture(np.where(numbers > 0, (numbers - 1) % COLOURS, COLOURS), COLOURS)

    def overlay(self, image: Picture) -> Picture:
        """Return the objects drawn over the image, with names and scores."""
        return drawn(image, self.numbers, self.words())

    def words(self) -> list[str]:
        """Return name and score of each object."""
        return [f"{self.classes[k]} {score:.2f}" for k, score in zip(self.labels, self.scores, strict=True)]

    def annotations(self) -> list[dict[str, Any]]:
        """Return COCO's annotation of each object, with a run-length code and the score, without ids."""
        return [
            described(mask, category_of(int(label), self.ids)) | {"score": round(float(score), 6), "iscrowd": 0}
            for mask, label, score in zip(self.masks, self.labels, self.scores, strict=True)
        ]

    def save(self, stem: str | Path, image: Picture | None = None, name: str = "") -> list[Path]:
        """Write STEM_instances.png (16 bits: numbers), STEM_instances.json (COCO, run-length codes) and, given the
        image, STEM_overlay.png; return the paths. name: of the image's file, in the JSON file."""
        paths = [Path(f"{stem}_instances{end}") for end in (".png", ".json")]
        write_picture(paths[0], self.numbers)  # type: ignore[arg-type]
        _write_json(self, name or Path(stem).name, paths[1])
        return paths + _write_overlay(self, stem, image)


@dataclass(frozen=True)
class Panoptic:
    """A partition of an image into objects and regions of stuff."""

    segments: NDArray[np.int32]  # H, W: indices into labels and scores, -1 for no segment
    labels: NDArray[np.int64]  # N: indices into classes
    scores: NDArray[np.float32]  # N, in 0..1
    classes: tuple[str, ...]
    things: tuple[bool, ...]  # of each class, whether its objects are counted
    ids: tuple[int, ...] = ()  # of the classes in COCO's files; 1, 2, ... if empty

    @property
    def masks(self) -> NDArray[np.bool_]:
        """The mask of each segment (N, H, W)."""
        return self.segments[None] == np.arange(len(self.labels))[:, None, None]

    def picture(self) -> Picture:
        """Return one colour per segment, black where there is none."""
        return label_picture(np.where(self.segments >= 0, self.segments % COLOURS, COLOURS), COLOURS)

    def overlay(self, image: Picture) -> Picture:
        """Return the segments drawn over the image, with names and scores."""
        words = [f"{self.classes[k]} {score:.2f}" for k, score in zip(self.labels, self.scores, strict=True)]
        return drawn(image, (self.segments + 1).astype(np.uint16), words)

    def semantic(self) -> NDArray[np.uint8]:
        """Return the class of each pixel (H, W), 255 where there is no segment."""
        return np.append(self.labels, 255).astype(np.uint8)[self.segments]

    def annotations(self) -> list[dict[str, Any]]:
        """Return COCO's segments_info; the id of a segment is its place plus 1."""
        return [
            {"id": place + 1}
            | described(self.segments == place, category_of(int(self.labels[place]), self.ids), code=False)
            | {"score": round(float(self.scores[place]), 6), "iscrowd": 0}
            for place in range(len(self.labels))
        ]  # fmt: skip

    def save(self, stem: str | Path, image: Picture | None = None, name: str = "") -> list[Path]:
        """Write STEM_panoptic.png (ids as colours R + 256 G + 65536 B, as COCO), STEM_panoptic.json and, given the
        image, STEM_overlay.png; return the paths. name: of the image's file, in the JSON file."""
        paths = [Path(f"{stem}_panoptic{end}") for end in (".png", ".json")]
        write_picture(paths[0], as_colours(self.segments + 1))
        _write_json(self, name or Path(stem).name, paths[1])
        return paths + _write_overlay(self, stem, image)


def as_colours(ids: NDArray[np.integer]) -> Picture:
    """Return ids (H, W) as colours R + 256 G + 65536 B, as COCO stores panoptic segments."""
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)


def of_colours(colours: Picture) -> NDArray[np.int64]:
    """Return the ids (H, W) of such colours."""
    red, green, blue = np.moveaxis(colours.astype(np.int64), -1, 0)
    return red | green << 8 | blue << 16


def _write_json(prediction: Instances | Panoptic, name: str, path: Path) -> None:
    file = Coco()
    file.add(name, prediction)
    file.write(path)


def _write_overlay(prediction: Instances | Panoptic, stem: str | Path, image: Picture | None) -> list[Path]:
    if image is None:
        return []
    path = Path(f"{stem}_overlay.png")
    write_picture(path, prediction.overlay(image))
    return [path]


def drawn(image: Picture, numbers: NDArray[np.integer], words: Sequence[str]) -> Picture:
    """Draw objects over an image: numbers (H, W), 0 for none; words: of each, from 1 on, at its top."""
    colours = np.where(numbers > 0, (numbers.astype(np.int64) - 1) % COLOURS + 1, 0).astype(np.uint8)
    masks = [(n, numbers == n) for n in range(1, len(words) + 1)]
    picture = objects_picture(image, colours, [((n - 1) % COLOURS + 1, mask) for n, mask in masks])
    return named(picture, [(place(mask), words[n - 1]) for n, mask in masks if mask.any()])


def numbered(masks: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """Return the place plus 1 of the first mask (N, H, W) at each pixel (H, W), 0 where there is none."""
    numbers = np.zeros(masks.shape[1:], np.uint16)
    for place in range(len(masks) - 1, -1, -1):
        numbers[masks[place]] = place + 1
    return numbers


def place(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """Return a pixel (x, y) well inside of a mask: the one farthest from its edge."""
    inside = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, 3)
    y, x = np.unravel_index(int(inside.argmax()), inside.shape)
    return int(x) - 1, int(y) - 1


def box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom of a mask (H, W), zeros for an empty one."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def category_of(label: int, ids: Sequence[int]) -> int:
    """Return the id of a class in COCO's files: one of `ids` or, without them, its number plus 1."""
    return ids[label] if ids else label + 1


def described(mask: NDArray[np.bool_], category: int, code: bool = True) -> dict[str, Any]:
    """Return COCO's fields of a mask of a category."""
    left, top, right, bottom = box(mask)
    fields = {"category_id": category, "bbox": [left, top, right - left, bottom - top], "area": int(mask.sum())}
    return fields | ({"segmentation": encode(mask)} if code else {})


class Coco:
    """Predictions of many images as one file of COCO's format: instances, or panoptic segments.

    The map of panoptic segments lies beside the JSON file: a PNG, see `Panoptic.save`, or a TIFF of a large image.
    """

    def __init__(self) -> None:
        self.content: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": []}
        self.name = "instances"

    def add(self, name: str, one: Instances | Panoptic) -> None:
        """Add the prediction of an image, named by its file."""
        size = one.masks.shape[1:] if isinstance(one, Instances) else one.segments.shape
        things = one.things if isinstance(one, Panoptic) else None
        segments = f"{Path(name).with_suffix('')}_panoptic.png"
        self.describe(name, size, one.annotations(), one.classes, things, segments, one.ids)

    def describe(
        self, name: str, size: Sequence[int], rows: list[dict[str, Any]], classes: Sequence[str],
        things: Sequence[bool] | None, segments: str, ids: Sequence[int] = (),
    ) -> None:  # fmt: skip
        """Add the annotations of an image of `size` without ids, or its segments_info.

        things: of panoptic segments, whether objects of each class are counted; segments: the name of their map; ids:
        of the classes, see `category_of`
        """
        self.name = "instances" if things is None else "panoptic"
        if things is not None:
            rows = [{"file_name": segments, "segments_info": rows}]
        self.append({"file_name": name, "height": size[0], "width": size[1]}, rows)
        self.content["categories"] = [
            {"id": category_of(k, ids), "name": label, "isthing": int(things is None or things[k])}
            for k, label in enumerate(classes)
        ]

    def append(self, image: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
        """Add an image with its annotations, all without ids."""
        images, annotations = self.content["images"], self.content["annotations"]
        number = len(images) + 1
        images.append({"id": number} | image)
        for row in rows:
            own = {} if self.name == "panoptic" else {"id": len(annotations) + 1}
            annotations.append(own | {"image_id": number} | row)

    def extend(self, name: str, content: dict[str, list[dict[str, Any]]]) -> None:
        """Add the images of another such file, called `name`, each of whose images has its annotations in turn."""
        self.name, self.content["categories"] = name, content["categories"]
        for image in content["images"]:
            rows = [row for row in content["annotations"] if row["image_id"] == image["id"]]
            numbers = ("image_id",) if name == "panoptic" else ("id", "image_id")
            self.append(
                {k: v for k, v in image.items() if k != "id"},
                [{k: v for k, v in row.items() if k not in numbers} for row in rows],
            )

    def write(self, path: Path) -> None:
        write(path, json.dumps(self.content) + "\n")
