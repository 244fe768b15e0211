"""Mask AP and panoptic quality: known cases, independent implementations, and several processes."""

from __future__ import annotations

import contextlib
import io
import math
from typing import Any

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision
from torchmetrics.detection import PanopticQuality as TheirQuality

from dense.data.labelled import Segments
from dense.data.labelled.segments import encode
from dense.metrics import MaskAP, PanopticQuality
from dense.model.queries import Found, Partition

NAMES = ("sky", "car", "dog")
THINGS = (False, True, True)


def segments(
    masks: Tensor, classes: list[int], crowd: list[bool] | None = None, valid: Tensor | None = None
) -> Segments:
    known = torch.ones(masks.shape[-2:], dtype=torch.bool) if valid is None else valid
    crowds = torch.tensor(crowd or [False] * len(classes), dtype=torch.bool)
    return Segments(masks, torch.tensor(classes, dtype=torch.long), crowds, known)


def boxes(generator: torch.Generator, count: int, size: int = 64) -> Tensor:
    """Random boxes as masks."""
    masks = torch.zeros(count, size, size, dtype=torch.bool)
    for one in masks:
        y, x = torch.randint(0, size - 8, (2,), generator=generator).tolist()
        h, w = torch.randint(4, 48, (2,), generator=generator).tolist()
        one[y : y + h, x : x + w] = True
    return masks


def detections(seed: int, images: int = 6) -> tuple[list[Found], list[Segments]]:
    """Random objects, some of them crowds, and predictions that are shifted copies and random ones."""
    generator = torch.Generator().manual_seed(seed)
    found, truth = [], []
    for index in range(images):
        count = index % 4  # the first has none
        masks = boxes(generator, count)
        classes = torch.randint(1, 3, (count,), generator=generator)
        crowd = torch.rand(count, generator=generator) < 0.2
        truth.append(Segments(masks, classes, crowd, torch.ones(64, 64, dtype=torch.bool)))
        near = masks.roll(int(torch.randint(-3, 4, (), generator=generator)), -1)
        predicted = torch.cat([near, near, boxes(generator, 3)])
        labels = torch.cat([classes, classes, torch.randint(1, 3, (3,), generator=generator)])
        found.append(Found(predicted, labels, torch.rand(len(labels), generator=generator)))
    return found, truth


def plain_coco(found: list[Found], truth: list[Segments]) -> list[float]:
    """COCO's numbers by pycocotools, fed with one mask at a time as its own users do."""
    annotations, results = [], []
    for image, (predicted, target) in enumerate(zip(found, truth, strict=True)):
        for one, label, crowd in zip(target.masks.numpy(), target.classes.tolist(), target.crowd.tolist(), strict=True):
            annotations.append({
                "id": len(annotations) + 1, "image_id": image, "category_id": label, "iscrowd": int(crowd),
                "area": float(one.sum()), "segmentation": encode(one),
            })  # fmt: skip
        for one, label, score in zip(
            predicted.masks.numpy(), predicted.classes.tolist(), predicted.scores.tolist(), strict=True
        ):
            results.append({"image_id": image, "category_id": label, "score": score, "segmentation": encode(one)})
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image, "height": 64, "width": 64} for image in range(len(truth))],
        "categories": [{"id": label} for label in range(3)], "annotations": annotations, "info": {},
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        measured = COCOeval(coco, coco.loadRes(results), "segm")
        measured.evaluate()
        measured.accumulate()
        measured.summarize()
    return [math.nan if value < 0 else float(value) for value in measured.stats[:9]]


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_equals_pycocotools(seed: int) -> None:
    """Numbers by size and recall too, with crowds and images without objects."""
    found, truth = detections(seed)
    ours = MaskAP(NAMES)
    for one, other in zip(found, truth, strict=True):
        ours.update([one], [other])
    numbers = ours.compute()
    assert list(numbers.values()) == pytest.approx(plain_coco(found, truth), nan_ok=True)
    assert math.isnan(ours.per_class()["sky"]["ap"])
    assert numbers["ap"] == pytest.approx((ours.per_class()["car"]["ap"] + ours.per_class()["dog"]["ap"]) / 2)


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_equals_torchmetrics(seed: int) -> None:
    """On images with objects: torchmetrics does not count what is found on others."""
    found, truth = ([all[i] for i in (1, 2, 3, 5)] for all in detections(seed))
    ours = MaskAP(NAMES)
    ours.update(found, truth)
    thresholds = [round(0.5 + 0.05 * i, 2) for i in range(10)]  # theirs are rounded to fp32
    theirs = MeanAveragePrecision(iou_type="segm", iou_thresholds=thresholds)
    theirs.update(
        [{"masks": f.masks, "labels": f.classes, "scores": f.scores} for f in found],
        [{"masks": t.masks, "labels": t.classes, "iscrowd": t.crowd.int()} for t in truth],
    )
    expected, numbers = theirs.compute(), ours.compute()
    names = {"ap": "map", "ap50": "map_50", "ap75": "map_75", "ap_small": "map_small", "ap_medium": "map_medium",
             "ap_large": "map_large", "ar1": "mar_1", "ar10": "mar_10", "ar100": "mar_100"}  # fmt: skip
    for name, other in names.items():
        value = float(expected[other])
        assert numbers[name] == pytest.approx(math.nan if value < 0 else value, nan_ok=True, abs=1e-4), name


def test_average_precision_of_known_cases() -> None:
    """Perfect predictions, none, an image without objects, nothing at all."""
    _, truth = detections(0)
    metric = MaskAP(NAMES)
    clean = [t.take(~t.crowd) for t in truth]
    metric.update([Found(t.masks, t.classes, torch.ones(len(t.classes))) for t in clean], clean)
    assert metric.compute()["ap"] == pytest.approx(1)
    metric.reset()
    none = Found(torch.zeros(0, 64, 64, dtype=torch.bool), torch.zeros(0, dtype=torch.long), torch.zeros(0))
    metric.update([none], clean[3:4])
    assert metric.compute()["ap"] == 0
    metric.reset()
    metric.update([none], [clean[0]])
    assert math.isnan(metric.compute()["ap"])
    with pytest.raises(ValueError, match="predict at the targets' size"):
        metric.update([none], [clean[3]._replace(masks=clean[3].masks[..., 1:])])


def parts(generator: torch.Generator, count: int = 5, size: int = 24) -> Tensor:
    """A random partition (H, W) into `count` numbers, blocky."""
    coarse = torch.randint(0, count, (size // 4, size // 4), generator=generator)
    return coarse.repeat_interleave(4, 0).repeat_interleave(4, 1)


def partitions(
    seed: int, images: int = 8, drop: float = 0.15
) -> tuple[list[Partition], list[Segments], list[tuple[Tensor, Tensor]]]:
    """Random panoptic images with unknown pixels, predictions that keep most of each, and both as torchmetrics has."""
    generator = torch.Generator().manual_seed(seed)
    found, truth, theirs = [], [], []
    for _ in range(images):
        numbers = parts(generator)
        classes = torch.tensor([0, *torch.randint(1, 3, (4,), generator=generator).tolist()])
        unknown = torch.rand(numbers.shape, generator=generator) < 0.05
        masks = (numbers[None] == torch.arange(5)[:, None, None]) & ~unknown
        truth.append(segments(masks, classes.tolist(), valid=~unknown))
        changed = torch.rand(numbers.shape, generator=generator) < 0.15
        predicted = torch.where(changed, parts(generator), numbers)
        labels = torch.where(torch.rand(5, generator=generator) < 0.2, 3 - classes, classes)
        labels[0] = 0
        labels[labels > 2] = 1
        dropped = torch.rand(5, generator=generator) < drop
        predicted = torch.where(dropped[predicted], -1, predicted)
        found.append(Partition(predicted, labels, torch.ones(5)))
        pair = []
        for number, kind, missing in ((predicted, labels, predicted < 0), (numbers, classes, unknown)):
            label = torch.where(missing, 9, kind[number.clamp_min(0)])
            pair.append(torch.stack([label, torch.where(missing | (label == 0), 0, number)], -1))
        theirs.append((pair[0], pair[1]))
    return found, truth, theirs


@pytest.mark.parametrize("seed", range(3))
def test_panoptic_quality_equals_torchmetrics(seed: int) -> None:
    """PQ, SQ and RQ, with unknown pixels; without dropped segments, which torchmetrics takes as an excuse."""
    found, truth, theirs = partitions(seed, drop=0.0)
    ours = PanopticQuality(THINGS, NAMES)
    ours.update(found, truth)
    other = TheirQuality({1, 2}, {0}, allow_unknown_preds_category=True, return_sq_and_rq=True, return_per_class=True)
    for predicted, target in theirs:
        other.update(predicted[None], target[None])
    rows = torch.tensor([[row[key] for key in ("pq", "sq", "rq")] for row in ours.per_class().values()])
    order = [1, 2, 0]  # theirs has things first
    torch.testing.assert_close(rows[order], other.compute().float(), atol=1e-5, rtol=0)
    numbers = ours.compute()
    assert numbers["pq"] == pytest.approx(float(rows[:, 0].mean()))
    assert numbers["pq_things"] == pytest.approx(float(rows[1:, 0].mean()))
    assert numbers["rq_stuff"] == pytest.approx(float(rows[0, 2]))


@pytest.mark.parametrize("seed", range(3))
def test_panoptic_quality_equals_a_plain_loop(seed: int) -> None:
    """Segments by segments as panopticapi counts, with crowds, unknown pixels and pixels without a segment."""
    found, truth, _ = partitions(seed)
    generator = torch.Generator().manual_seed(seed)
    truth = [t._replace(crowd=(torch.rand(5, generator=generator) < 0.3) & (t.classes > 0)) for t in truth]
    rows = {label: [0.0, 0, 0, 0] for label in range(3)}
    for partition, target in zip(found, truth, strict=True):
        predicted = {k: partition.segments == k for k in range(5) if (partition.segments == k).any()}
        hit_true, hit_predicted = set(), set()
        for i, (mask, label) in enumerate(zip(target.masks, target.classes.tolist(), strict=True)):
            for k, own in predicted.items():
                union = (mask | (own & target.valid)).sum()
                if not target.crowd[i] and label == partition.classes[k] and (mask & own).sum() / union > 0.5:
                    rows[label][0] += float((mask & own).sum() / union)
                    rows[label][1] += 1
                    hit_true.add(i)
                    hit_predicted.add(k)
        for i, label in enumerate(target.classes.tolist()):
            rows[label][3] += i not in hit_true and not target.crowd[i] and bool(target.masks[i].any())
        for k, own in predicted.items():
            crowds = target.masks[target.crowd & (target.classes == partition.classes[k])].any(0)
            excused = (own & (~target.valid | crowds)).sum() > 0.5 * own.sum()
            rows[int(partition.classes[k])][2] += k not in hit_predicted and not excused
    metric = PanopticQuality(THINGS, NAMES)
    metric.update(found, truth)
    torch.testing.assert_close(
        metric.table, torch.tensor([rows[label] for label in range(3)]).double().T, rtol=1e-5, atol=0
    )


def test_panoptic_quality_of_crowds_and_unknown_pixels() -> None:
    """A crowd is neither hit nor missed, and excuses segments of its class alone; so do unknown pixels, of any."""
    left, right = torch.zeros(2, 4, 8, dtype=torch.bool)
    left[:, :4], right[:, 4:] = True, True
    truth = segments(torch.stack([left, right]), [1, 2], [False, True])
    for label, wrong in ((2, 0.0), (1, 1.0)):
        metric = PanopticQuality(THINGS, NAMES)
        metric.update([Partition(right.long(), torch.tensor([1, label]), torch.ones(2))], [truth])
        assert metric.table[2].sum() == wrong
        assert metric.table[3].sum() == 0
        assert metric.table[0, 1] == 1
    metric = PanopticQuality(THINGS, NAMES)
    empty = segments(torch.zeros(0, 4, 8, dtype=torch.bool), [], valid=torch.zeros(4, 8, dtype=torch.bool))
    metric.update([Partition(right.long(), torch.tensor([1, 2]), torch.ones(2))], [empty])
    assert metric.table.sum() == 0
    assert math.isnan(metric.compute()["pq"])


def test_two_processes_equal_one() -> None:
    """States of two processes, put together as torchmetrics does, give the numbers of one."""
    found, truth = detections(5)
    halves: list[Any] = [MaskAP(NAMES), MaskAP(NAMES)]
    whole = MaskAP(NAMES)
    whole.update(found, truth)
    for half, part in zip(halves, (slice(0, 3), slice(3, 6)), strict=True):
        half.update(found[part], truth[part])
    joined = MaskAP(NAMES)
    joined.update(found[:3], truth[:3])
    joined.dist_sync_fn = lambda x, group=None: [torch.cat(half.records) for half in halves]
    joined.distributed_available_fn = lambda: True
    assert joined.compute() == pytest.approx(whole.compute(), nan_ok=True)
    some, targets, _ = partitions(1)
    first, second, both = (PanopticQuality(THINGS, NAMES) for _ in range(3))
    first.update(some[:4], targets[:4])
    second.update(some[4:], targets[4:])
    both.update(some, targets)
    first.dist_sync_fn, first.distributed_available_fn = lambda x, group=None: [x, second.table], lambda: True
    assert first.compute() == pytest.approx(both.compute())
