"""Metrics of masks of objects: COCO's average precision of instances, and the panoptic quality of partitions."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from dense.metrics.segmentation import confusion, nanmean

STATS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100")  # in pycocotools' order


class MaskAP(Metric):
    """COCO's mask AP, by pycocotools: precision over 101 recalls, averaged over IoUs of .5 to .95 and over classes.

    A prediction is (masks (N, H, W) bool, classes (N,), scores (N,)), a target has ``masks``, ``classes`` and
    ``crowd``. At most 100 predictions of each class in an image count; those inside of a crowd of their class do not.
    Small is less than 32 x 32 pixels, large more than 96 x 96, of the masks' pixels.

    names: of the classes.
    """

    full_state_update = False
    records: list[Tensor]

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        # a line of JSON per image, as bytes, so that processes exchange it like any state
        self.add_state("records", [], dist_reduce_fx="cat")

    def update(self, predictions: Sequence[Any], targets: Sequence[Any]) -> None:
        """Add images: predictions and targets of the same size."""
        for (masks, classes, scores), target in zip(predictions, targets, strict=True):
            _check_sizes(masks.shape[-2:], target.masks.shape[-2:])
            found = zip(classes.tolist(), scores.tolist(), codes(masks), strict=True)
            truth = zip(target.classes.tolist(), target.crowd.int().tolist(), codes(target.masks), strict=True)
            self.add(target.masks.shape[-2:], list(found), list(truth))

    def add(
        self, size: Sequence[int], found: Sequence[tuple[int, float, str]], truth: Sequence[tuple[int, int, str]]
    ) -> None:
        """Add an image by run-length codes: class, score and code of predictions; class, crowd and code of targets."""
        text = bytearray(json.dumps({"size": list(size), "found": found, "truth": truth}).encode() + b"\n")
        self.records.append(torch.frombuffer(text, dtype=torch.uint8).to(self.device))

    def compute(self) -> dict[str, float]:
        """Return ``ap``, ``ap50``, ``ap75``, AP by size, and the recall with 1, 10 and 100 predictions of each class in
        an image.

        Numbers for which there are no objects are NaN.
        """
        from pycocotools.cocoeval import COCOeval

        found = self.records if isinstance(self.records, list) else [self.records]
        lines = [line for one in found for line in one.cpu().numpy().tobytes().splitlines()]
        images = [json.loads(line) for line in lines]
        self._per_class = dict.fromkeys(self.names, math.nan)
        if not any(image["truth"] for image in images):
            return dict.fromkeys(STATS, math.nan)
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
            measured = COCOeval(
                _coco(images, "truth", len(self.names)), _coco(images, "found", len(self.names)), "segm"
            )
            measured.evaluate()
            measured.accumulate()
            measured.summarize()
        precision = measured.eval["precision"][:, :, :, 0, -1]  # IoU, recall, class
        for place, name in enumerate(self.names):
            own = precision[:, :, place]
            self._per_class[name] = float(own[own > -1].mean()) if (own > -1).any() else math.nan
        return {name: math.nan if v < 0 else float(v) for name, v in zip(STATS, measured.stats, strict=False)}

    def per_class(self) -> dict[str, dict[str, float]]:
        """Return class name -> ``ap``, over all processes; NaN for a class without objects."""
        self.compute()
        return {name: {"ap": value} for name, value in self._per_class.items()}


def codes(masks: Tensor) -> list[str]:
    """Return the run-length codes of masks (N, H, W), as pycocotools writes them."""
    from pycocotools import mask

    columns = np.ascontiguousarray(masks.mT.to("cpu", torch.uint8).numpy())  # N, W, H
    return [code["counts"].decode() for code in mask.encode(columns.transpose(2, 1, 0))]


def _coco(images: Sequence[dict[str, Any]], which: str, classes: int) -> Any:
    """Return the annotations or the predictions of all images as pycocotools has them."""
    from pycocotools import mask
    from pycocotools.coco import COCO

    rows: list[dict[str, Any]] = []
    for number, image in enumerate(images):
        for label, value, counts in image[which]:  # the value is a score, or whether it is a crowd
            code = {"size": image["size"], "counts": counts}
            own = {"iscrowd": value} if which == "truth" else {"score": value, "iscrowd": 0}
            rows.append({
                "id": len(rows) + 1, "image_id": number, "category_id": label, "segmentation": code,
                "area": float(mask.area(code)), **own,
            })  # fmt: skip
    coco = COCO()
    coco.dataset = {
        "images": [
            {"id": number, "height": image["size"][0], "width": image["size"][1]} for number, image in enumerate(images)
        ],
        "categories": [{"id": label} for label in range(classes)],
        "annotations": rows,
    }
    coco.createIndex()
    return coco


def _check_sizes(found: Sequence[int], expected: Sequence[int]) -> None:
    if tuple(found) != tuple(expected):
        raise ValueError(f"predicted masks are {tuple(found)}, targets {tuple(expected)}; predict at the targets' size")


class PanopticQuality(Metric):
    """Panoptic quality: for each class, with pairs of a predicted and a true segment whose IoU is above .5 as hits::

        SQ = mean IoU of the hits      RQ = hits / (hits + misses / 2 + false segments / 2)      PQ = SQ * RQ

    Pixels of the image where nothing is known, and in false segments those of crowds of their class, do not count: a
    false segment that lies there by more than half is none. The means are over classes that appear.

    A prediction is (segments (H, W), classes (N,), scores): the place of each pixel's segment in classes, or -1; a
    target has ``masks``, ``classes``, ``crowd`` and ``valid``.

    things: whether each class is of countable objects, for the means over things and over stuff; names: of classes.
    """

    full_state_update = False
    table: Tensor

    def __init__(self, things: Sequence[bool], names: Sequence[str] | None = None) -> None:
        super().__init__()
        self.things = tuple(things)
        self.names = tuple(names) if names is not None else tuple(map(str, range(len(self.things))))
        if len(self.names) != len(self.things):
            raise ValueError(f"{len(self.names)} names for {len(self.things)} classes; give one per class")
        # rows: sum of IoU, hits, false segments, misses
        self.add_state("table", torch.zeros(4, len(self.things), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, predictions: Sequence[Any], targets: Sequence[Any]) -> None:
        """Add images: predictions and targets of the same size."""
        for (segments, classes, _), target in zip(predictions, targets, strict=True):
            _check_sizes(segments.shape, target.valid.shape)
            self.add(shared_pixels(segments, len(classes), target), classes, target.classes, target.crowd)

    def add(self, pairs: Tensor, classes: Tensor, true: Tensor, crowd: Tensor) -> None:
        """Add an image by `shared_pixels`, which may be sums over its parts."""
        both, unknown, areas = pairs[2:, 1:], pairs[0, 1:], pairs.sum(0)[1:]
        same = true[:, None] == classes[None]
        union = pairs.sum(1)[2:, None] + (areas - unknown)[None] - both
        iou = torch.where(same & ~crowd[:, None], both / union.clamp_min(1), 0)
        hits = iou > 0.5  # of a row and of a column at most one, since segments do not overlap
        missed = ~hits.any(1) & ~crowd & (pairs.sum(1)[2:] > 0)
        excused = unknown + (both * (same & crowd[:, None])).sum(0)
        wrong = ~hits.any(0) & (areas > 0) & (excused <= 0.5 * areas)
        row, column = hits.nonzero(as_tuple=True)
        for k, (labels, values) in enumerate((
            (true[row], iou[row, column]),
            (true[row], torch.ones_like(row)),
            (classes[wrong], torch.ones_like(classes[wrong])),
            (true[missed], torch.ones_like(true[missed])),
        )):  # fmt: skip
            self.table[k].index_add_(0, labels, values.to(self.table.dtype))

    def compute(self) -> dict[str, float]:
        """Return ``pq``, ``sq``, ``rq`` over all classes, and each over things and over stuff (``pq_things``, ...)."""
        rows = self.per_class()
        sets = {"": set(self.names), "_things": set(), "_stuff": set()}
        for name, thing in zip(self.names, self.things, strict=True):
            sets["_things" if thing else "_stuff"].add(name)
        return {
            f"{key}{end}": nanmean(row[key] for name, row in rows.items() if name in some)
            for end, some in sets.items()
            for key in ("pq", "sq", "rq")
        }

    def per_class(self) -> dict[str, dict[str, float]]:
        """Return class name -> ``pq``, ``sq``, ``rq``; NaN for a class that does not appear."""
        iou, hits, wrong, missed = self.table.cpu().unbind()
        count = hits + (wrong + missed) / 2
        there = torch.where(count > 0, 1.0, math.nan)
        columns = {"pq": iou / count, "sq": iou / hits.clamp_min(1) * there, "rq": hits / count}
        return {name: {key: float(values[i]) for key, values in columns.items()} for i, name in enumerate(self.names)}


def shared_pixels(segments: Tensor, count: int, target: Any) -> Tensor:
    """Return how many pixels each true and each of `count` predicted segments share, (2 + M, 1 + count).

    Row 0 is where nothing is known, row 1 where there is no true segment, column 0 where there is no predicted one.
    """
    truth = target.valid.long()
    for place, mask in enumerate(target.masks):
        truth[mask & target.valid] = place + 2
    return confusion(truth.flatten(), segments.flatten() + 1, len(target.classes) + 2, count + 1).double()
