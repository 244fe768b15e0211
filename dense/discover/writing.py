"""Predictions as files: index pictures, overlays, COCO-style annotations and one contact sheet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dense.discover import Objects, Prediction, refine
from dense.discover.reading import Seen
from dense.discover.refine import Refinement
from dense.discover.results import nearest
from dense.media.draw import (
    Picture,
    contain,
    enlarge,
    heat,
    label_picture,
    objects_picture,
    overlay,
    palette,
    sheet,
    write_picture,
)

CELL, COLUMNS, CELLS = 160, 4, 48  # of the contact sheet: pixels, pictures a row, pictures at most
MOST = 1_500_000  # pixels above which masks are refined at the size that the backbone saw


def full_size(prediction: Prediction, index: int, seen: Seen, how: Refinement) -> Prediction:
    """The prediction for one picture of a batch, as a batch of one, refined and at the picture's own size."""
    height, width = seen.image.shape[:2]
    fine = seen.image if height * width <= MOST else seen.shown
    one = one_of(prediction, index)
    picture = torch.from_numpy(np.ascontiguousarray(fine)).permute(2, 0, 1)[None]
    device = (one.masks if isinstance(one, Objects) else one.labels).device
    return refine(one, picture.to(device), how).resized((height, width))


def one_of(prediction: Prediction, index: int) -> Prediction:
    """One picture of a batch, as a batch of one."""
    part = slice(index, index + 1)
    if isinstance(prediction, Objects):
        return Objects(prediction.masks[part], prediction.scores[part], prediction.maps[part])
    return type(prediction)(prediction.labels[part], prediction.count)


def drawn(image: Picture, prediction: Prediction) -> Picture:
    """The masks or regions of one picture over it: objects in colour with their contours, the rest grey."""
    labels = prediction.labels[0].cpu().numpy()
    if not isinstance(prediction, Objects):
        return overlay(image, label_picture(labels, prediction.count), 0.5)
    return objects_picture(image, labels, enumerate(prediction.masks[0].cpu().numpy(), 1))


def maps_picture(prediction: Objects, size: tuple[int, int]) -> Picture:
    """What each mask of one picture was cut from, side by side."""
    return sheet([[enlarge(heat(values), size) for values in prediction.maps[0].cpu().float().numpy()]])


class Album:
    """Writes predictions under a folder, one picture after another; `close` writes what is about all of them."""

    def __init__(self, folder: Path, info: dict[str, Any], classes: int | None, overlays: bool, maps: bool) -> None:
        """classes: how many regions have the same meaning in all pictures; None for objects, which are all of one class."""
        self.folder, self.info, self.overlays, self.maps = folder, info, overlays, maps
        self.categories = [{"id": 1, "name": "object"}]
        if classes is not None:
            self.categories = [{"id": k + 1, "name": f"region {k}"} for k in range(classes)]
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.cells: list[Picture] = []

    def add(self, seen: Seen, prediction: Prediction) -> None:
        """Files of one picture, whose prediction has its size."""
        stem = self.folder / seen.stem
        stem.parent.mkdir(parents=True, exist_ok=True)
        labels = prediction.labels[0].cpu().numpy()
        count = prediction.masks.shape[1] + 1 if isinstance(prediction, Objects) else prediction.count
        write_index(Path(f"{stem}_mask.png"), labels, count, background=isinstance(prediction, Objects))
        picture = drawn(seen.image, prediction)
        if self.overlays:
            write_picture(f"{stem}_overlay.png", picture)
        if self.maps and isinstance(prediction, Objects):
            write_picture(f"{stem}_maps.png", maps_picture(prediction, (seen.shown.shape[0], seen.shown.shape[1])))
        if len(self.cells) < 2 * CELLS:
            self.cells += [contain(seen.image, CELL), contain(picture, CELL)]
        self._annotate(seen, prediction, labels)

    def _annotate(self, seen: Seen, prediction: Prediction, labels: NDArray[np.uint8]) -> None:
        height, width = seen.image.shape[:2]
        number = len(self.images) + 1
        self.images.append({"id": number, "file_name": seen.file, "height": height, "width": width})
        if isinstance(prediction, Objects):
            masks, scores = prediction.masks[0].cpu().numpy(), prediction.scores[0].tolist()
            found = [(1, mask, score) for mask, score in zip(masks, scores, strict=True)]
        else:
            found = [(k + 1, labels == k, None) for k in np.unique(labels).tolist()]
        for category, mask, score in found:
            if mask.any():
                entry = {
                    "id": len(self.annotations) + 1,
                    "image_id": number,
                    "category_id": category,
                    **annotation(mask),
                }
                self.annotations.append(entry | ({} if score is None else {"score": round(score, 6)}))

    def close(self) -> list[Path]:
        """annotations.json and sheet.png."""
        self.folder.mkdir(parents=True, exist_ok=True)
        written = [self.folder / "annotations.json"]
        content = {
            "info": self.info,
            "images": self.images,
            "annotations": self.annotations,
            "categories": self.categories,
        }
        written[0].write_text(json.dumps(content) + "\n")
        if self.cells:
            step = 2 * min(COLUMNS, len(self.cells) // 2)
            rows = [self.cells[i : i + step] for i in range(0, len(self.cells), step)]
            written.append(self.folder / "sheet.png")
            write_picture(written[1], sheet(rows))
        return written


def write_index(path: Path, labels: NDArray[np.uint8], count: int, background: bool) -> None:
    """Numbers of objects or regions as a PNG with a palette; with a background, 0 is black."""
    colours = np.concatenate([np.zeros((1, 3), np.uint8), palette(count - 1)]) if background else palette(count)
    index = Image.fromarray(labels, mode="P")
    index.putpalette(colours.reshape(-1).tolist())
    index.save(path)


def annotation(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's description of a mask (H, W): uncompressed run lengths down the columns, x, y, width and height, and area."""
    flat = mask.T.reshape(-1)
    turns = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *turns, flat.size]).tolist()
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    return {
        "segmentation": {"size": list(mask.shape), "counts": [0, *runs] if flat[0] else runs},
        "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
        "area": int(mask.sum()),
        "iscrowd": 1,  # says that these are run lengths, not polygons
    }


def similarity_picture(image: Picture, cosines: torch.Tensor) -> Picture:
    """Cosines (h, w) over a picture; 0 and less is dark, 1 bright, in every picture."""
    size = (image.shape[0], image.shape[1])
    full = nearest(cosines[None, None], size)[0, 0].cpu().float().numpy()
    return overlay(image, heat(full, bounds=(0.0, 1.0)), 0.65)
