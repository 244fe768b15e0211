"""Metrics of label maps: confusion and outlines."""

import doctest
import importlib
import math
import pkgutil
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import dense.metrics
from dense.metrics import BoundaryIoU, SegmentationMetrics, crop_mask

MAKE: dict[str, Any] = {"regions": SegmentationMetrics, "outlines": BoundaryIoU}
both = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)


def example(images: int = 6, size: tuple[int, int] = (24, 40)) -> tuple[Tensor, Tensor]:
    """Blocks of 4x4 with classes 0, 1, 3 of 5, a part of them ignored, and predictions that err in places."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.tensor([0, 1, 3])
    coarse = classes[torch.randint(3, (images, size[0] // 4, size[1] // 4), generator=generator)]
    labels = coarse.repeat_interleave(4, 1).repeat_interleave(4, 2)
    wrong = torch.rand(labels.shape, generator=generator) < 0.1
    predicted = torch.where(wrong, classes[torch.randint(3, labels.shape, generator=generator)], labels)
    labels = labels.clone()
    labels[:, :3] = 255
    return predicted, labels


@both
def test_batches_and_halves_do_not_matter(make: Any) -> None:
    predicted, labels = example()
    whole, first, second = make(5), make(5), make(5)
    whole.update(predicted, labels)
    first.update(predicted[[4, 1]], labels[[4, 1]])
    second.update(predicted[[0]], labels[[0]])
    second.update(predicted[[5, 3, 2]], labels[[5, 3, 2]])
    first.merge_state(second)
    assert first.compute() == whole.compute()
    whole.reset()
    whole.update(labels.where(labels != 255, 0), labels)
    assert next(iter(whole.compute().values())) == 1


@both
def test_logits_are_labels_by_their_largest(make: Any) -> None:
    predicted, labels = example()
    one, other = make(5), make(5)
    one.update(predicted, labels)
    other.update(F.one_hot(predicted, 5).movedim(-1, 1).bfloat16(), labels)
    assert one.compute() == other.compute()


@both
def test_ignored_pixels_do_not_count(make: Any) -> None:
    predicted, labels = example()
    one, other, nothing = make(5), make(5), make(5)
    one.update(predicted, labels)
    changed = torch.where(labels == 255, torch.randint(5, labels.shape), predicted)
    other.update(changed, labels)
    assert one.compute() == other.compute()
    nothing.update(predicted, torch.full_like(labels, 255))
    assert math.isnan(next(iter(nothing.compute().values())))


@both
def test_mistakes_are_named(make: Any) -> None:
    predicted, labels = example()
    with pytest.raises(ValueError, match=r"predicted labels \[7\]: expected 0 to 4"):
        make(5).update(torch.full_like(predicted, 7), labels)
    with pytest.raises(ValueError, match=r"true labels \[3\]: expected 0 to 2"):
        make(3).update(predicted, labels)
    with pytest.raises(ValueError, match="resize to the labels' size"):
        make(5).update(predicted[:, ::2], labels)
    with pytest.raises(TypeError, match="integer labels"):
        make(5).update(predicted.float(), labels)
    with pytest.raises(ValueError, match="give one per class"):
        make(5, names=("a", "b"))
    with pytest.raises(ValueError, match="ignore not among them"):
        make(5, ignore=0)


def test_absent_classes_are_nan_and_left_out() -> None:
    labels = torch.tensor([[[0, 0, 1, 1]]])
    predicted = torch.tensor([[[0, 0, 1, 2]]])
    metric = SegmentationMetrics(4, names=("sky", "road", "tree", "car"))
    metric.update(predicted, labels)
    table = metric.per_class()
    assert {name: row["iou"] for name, row in table.items() if name != "car"} == {"sky": 1, "road": 0.5, "tree": 0}
    assert math.isnan(table["car"]["iou"]) and math.isnan(table["tree"]["accuracy"])
    assert metric.compute() == pytest.approx(
        {"miou": 0.5, "macc": 0.75, "aacc": 0.75, "dice": (1 + 2 / 3) / 3, "classes": 3}
    )


def test_a_table_follows_updates() -> None:
    metric = SegmentationMetrics(2)
    metric.update(torch.zeros(1, 2, 2).long(), torch.zeros(1, 2, 2).long())
    assert metric.per_class()["0"]["pixels"] == 4
    metric.update(torch.zeros(1, 2, 2).long(), torch.zeros(1, 2, 2).long())
    assert metric.per_class()["0"]["pixels"] == 8
    metric.reset()
    metric.update(torch.ones(1, 1, 1).long(), torch.ones(1, 1, 1).long())
    assert metric.per_class()["0"]["pixels"] == 0


def test_boundary_iou_is_more_sensitive_to_outlines() -> None:
    labels = torch.zeros(1, 100, 100, dtype=torch.long)
    labels[:, 20:80, 20:80] = 1
    shifted = labels.roll(2, dims=2)
    regions, outlines = SegmentationMetrics(2), BoundaryIoU(2)
    regions.update(shifted, labels)
    outlines.update(shifted, labels)
    assert outlines.per_class()["1"] < 0.7 < 0.9 < regions.per_class()["1"]["iou"]


@pytest.mark.parametrize(
    ("crop", "size", "pixels"),
    [
        ("none", (5, 7), 35),
        ("nyu_eigen", (480, 640), 426 * 560),
        ("garg", (352, 1216), (349 - 143) * (1172 - 43)),
        ("eigen_kitti", (352, 1216), (321 - 117) * (1172 - 43)),
    ],
)
def test_crops(crop: Any, size: tuple[int, int], pixels: int) -> None:
    assert int(crop_mask(*size, crop).sum()) == pixels


@pytest.mark.parametrize("name", [m.name for m in pkgutil.iter_modules(dense.metrics.__path__)])
def test_examples_of_the_docstrings(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"dense.metrics.{name}")).failed == 0
