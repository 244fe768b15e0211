"""Predictions as files: index images, overlays, COCO-style annotations and one contact sheet."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from dense.data.image import decode_image
from dense.discover.refine import Refinement, refine
from dense.discover.results import Objects, Prediction, resize_nearest
from dense.files import write
from dense.media.draw import (
    Picture,
    captioned,
    contain,
    enlarge,
    fit,
    heat,
    label_picture,
    objects_picture,
    overlay,
    palette,
    sheet,
    write_index,
    write_picture,
)
from dense.media.inputs import SizedImage

CELL, COLUMNS, CELLS = 160, 4, 48  # of the contact sheet: pixels, images per row, images at most
MAX_PIXELS = 1_500_000  # above this size masks are refined at the size of the backbone's input


def full_size(prediction: Prediction, index: int, image: SizedImage, refinement: Refinement) -> Prediction:
    """Return the prediction for one image of a batch, as a batch of one, refined and at the image's own size."""
    height, width = image.original.shape[:2]
    pixels = image.original if height * width <= MAX_PIXELS else image.resized
    part = slice(index, index + 1)
    one: Prediction
    if isinstance(prediction, Objects):
        one = Objects(prediction.masks[part], prediction.scores[part], prediction.maps[part])
        device = one.masks.device
    else:
        one = type(prediction)(prediction.labels[part], prediction.count)
        device = one.labels.device
    guide = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
    return refine(one, guide.to(device), refinement).resized((height, width))


def draw_prediction(image: Picture, prediction: Prediction) -> Picture:
    """Draw a prediction (a batch of one) over its image: regions, or objects with contours and the rest darker."""
    labels = prediction.labels[0].cpu().numpy()
    if not isinstance(prediction, Objects):
        return overlay(image, label_picture(labels, prediction.count), 0.5)
    return objects_picture(image, labels, enumerate(prediction.masks[0].cpu().numpy(), 1))


def similarity_picture(image: Picture, cosines: torch.Tensor) -> Picture:
    """Draw cosines (h, w) over an image, on one scale for all images: 0 and less is dark, 1 bright."""
    size = (image.shape[0], image.shape[1])
    full = resize_nearest(cosines[None, None], size)[0, 0].cpu().float().numpy()
    return overlay(image, heat(full, bounds=(0.0, 1.0)), 0.65)


def sheet_cells(image: SizedImage, picture: Picture) -> list[Picture]:
    """Return the cells of a contact sheet for an image, with its file name, and for a picture made of it."""
    cells = (image.original, image.file), (picture, "")
    return [captioned(contain(one, CELL)[: len(fit(one, CELL))], words) for one, words in cells]


def cells_as_text(cells: Sequence[Picture]) -> list[str]:
    """Return cells as PNG in text, for a record."""
    return [base64.b64encode(cv2.imencode(".png", cell[..., ::-1])[1].tobytes()).decode() for cell in cells]


def cells_of_text(texts: Sequence[str]) -> list[Picture]:
    """Return what `cells_as_text` was given."""
    return [decode_image(base64.b64decode(text)) for text in texts]


class PredictionFolder:
    """Writes the predictions of one image after another to a folder; `close` writes annotations and contact sheet."""

    def __init__(self, folder: Path, info: dict[str, Any], classes: int | None, overlays: bool, maps: bool) -> None:
        """classes: number of regions with the same meaning in all images; None for objects, which are one class."""
        self.folder, self.info, self.overlays, self.maps = folder, info, overlays, maps
        self.categories = [{"id": 1, "name": "object"}]
        if classes is not None:
            self.categories = [{"id": k + 1, "name": f"region {k}"} for k in range(classes)]
        self.added = 0

    def add(self, image: SizedImage, prediction: Prediction) -> dict[str, Any]:
        """Write the files of one image from a prediction at its size; return what `close` needs of it."""
        stem = self.folder / image.stem
        labels = prediction.labels[0].cpu().numpy()
        has_background = isinstance(prediction, Objects)
        count = prediction.masks.shape[1] + 1 if isinstance(prediction, Objects) else prediction.count
        write_index(Path(f"{stem}_mask.png"), labels, index_colours(count) if has_background else palette(count))
        picture = draw_prediction(image.original, prediction)
        if self.overlays:
            write_picture(f"{stem}_overlay.png", picture)
        if self.maps and isinstance(prediction, Objects):
            size = (image.resized.shape[0], image.resized.shape[1])
            maps = [enlarge(heat(values), size) for values in prediction.maps[0].cpu().float().numpy()]
            write_picture(f"{stem}_maps.png", sheet([maps]))
        self.added += 1
        cells = sheet_cells(image, picture) if self.added <= CELLS else []
        height, width = image.original.shape[:2]
        return {
            "image": {"file_name": image.file, "height": height, "width": width},
            "annotations": list(_annotations(prediction, labels)),
            "cells": cells_as_text(cells),
        }

    def close(self, parts: Sequence[dict[str, Any]]) -> list[Path]:
        """Write annotations.json and sheet.png from what `add` returned; return their paths."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, part in enumerate(parts, 1):
            images.append({"id": number} | part["image"])
            for row in part["annotations"]:
                annotations.append({"id": len(annotations) + 1, "image_id": number} | row)
        written = [self.folder / "annotations.json"]
        content = {"info": self.info, "images": images, "annotations": annotations, "categories": self.categories}
        write(written[0], json.dumps(content) + "\n")
        cells = [cell for part in parts[:CELLS] for cell in cells_of_text(part["cells"])]
        if cells:
            step = 2 * min(COLUMNS, len(cells) // 2)
            rows = [cells[i : i + step] for i in range(0, len(cells), step)]
            written.append(self.folder / "sheet.png")
            write_picture(written[1], sheet(rows))
        return written


def _annotations(prediction: Prediction, labels: NDArray[np.uint8]) -> Iterator[dict[str, Any]]:
    """Yield COCO's fields of each mask that has a pixel, without ids."""
    if isinstance(prediction, Objects):
        masks, scores = prediction.masks[0].cpu().numpy(), prediction.scores[0].tolist()
        found = [(1, mask, {"score": round(score, 6)}) for mask, score in zip(masks, scores, strict=True)]
    else:
        found = [(k + 1, labels == k, {}) for k in np.unique(labels).tolist()]
    for category, mask, score in found:
        if mask.any():
            yield {"category_id": category} | annotation(mask) | score


def index_colours(count: int) -> Picture:
    """Return the colours (count, 3) of objects by their numbers; 0, the background, is black."""
    return np.concatenate([np.zeros((1, 3), np.uint8), palette(count - 1)])


def annotation(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return COCO's fields for a mask (H, W): uncompressed column-wise run lengths, box (x, y, w, h) and area."""
    flat = mask.T.reshape(-1)
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *changes, flat.size]).tolist()
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    return {
        "segmentation": {"size": list(mask.shape), "counts": [0, *runs] if flat[0] else runs},
        "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
        "area": int(mask.sum()),
        "iscrowd": 0,
    }
