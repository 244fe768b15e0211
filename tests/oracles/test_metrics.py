"""Metrics against NumPy, SciPy, scikit-learn and torchmetrics."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion
from sklearn import metrics as sklearn
from sklearn.linear_model import LinearRegression
from torchmetrics.segmentation import MeanIoU

from dense.metrics import BoundaryIoU, DepthMetrics, SegmentationMetrics
from tests.metrics.test_depth_metrics import maps, measure
from tests.metrics.test_label_metrics import example

Pair = tuple[np.ndarray, np.ndarray]


def depth_measures(prediction: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """The measures of pixels (N,), each by its formula or scikit-learn's name for it."""
    d = np.log(prediction) - np.log(target)
    ratio = np.maximum(prediction / target, target / prediction)
    return {
        "abs_rel": sklearn.mean_absolute_percentage_error(target, prediction),
        "sq_rel": np.mean((prediction - target) ** 2 / target),
        "rmse": sklearn.root_mean_squared_error(target, prediction),
        "rmse_log": sklearn.root_mean_squared_error(np.log(target), np.log(prediction)),
        "log10": np.mean(np.abs(np.log10(prediction / target))),
        "silog": 100 * np.std(d),
        "silog_half": np.sqrt(np.mean(d**2) - 0.5 * np.mean(d) ** 2),
        "mae": sklearn.mean_absolute_error(target, prediction),
        **{f"delta{k}": np.mean(ratio < 1.25**k) for k in (1, 2, 3)},
    }


def aligned(prediction: np.ndarray, target: np.ndarray, kind: str, alignment: str) -> np.ndarray:
    if kind == "inverse_relative" and alignment == "lsq":
        fit = LinearRegression().fit(prediction[:, None], 1 / target)
        return 1 / np.clip(fit.predict(prediction[:, None]), 1 / 10, None)
    depth = {"metric": lambda x: x, "log": np.exp, "inverse_relative": lambda x: 1 / x}[kind](prediction)
    if alignment == "median":
        return depth * np.median(target) / np.median(depth)
    if alignment == "lsq":
        return LinearRegression().fit(depth[:, None], target).predict(depth[:, None])
    return depth


@pytest.mark.parametrize("average", ["image", "pixel"])
@pytest.mark.parametrize(
    ("kind", "alignment"),
    [
        ("metric", "none"),
        ("metric", "median"),
        ("metric", "lsq"),
        ("log", "none"),
        ("log", "median"),
        ("inverse_relative", "lsq"),
        ("inverse_relative", "median"),
    ],
)
def test_depth_against_numpy_and_scikit_learn(kind: Any, alignment: Any, average: Any) -> None:
    depth, target, mask = maps()
    prediction = {"metric": depth, "log": depth.log(), "inverse_relative": 3 / depth}[kind]
    images = []
    for p, t, m in zip(prediction.double().numpy(), target.double().numpy(), mask.numpy(), strict=True):
        images.append((np.clip(aligned(p[m], t[m], kind, alignment), 1e-3, 10), t[m]))
    if average == "pixel":
        images = [(np.concatenate([p for p, _ in images]), np.concatenate([t for _, t in images]))]
    each = [depth_measures(*image) for image in images]
    wanted = {name: float(np.mean([values[name] for values in each])) for name in each[0]}
    result = measure(prediction, target, mask, kind=kind, alignment=alignment, average=average)
    assert {name: result[name] for name in wanted} == pytest.approx(wanted, rel=1e-4)


def test_a_large_common_factor_does_not_blur_silog() -> None:
    _, target, mask = maps()
    noise = 1 + 0.001 * torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    prediction = 50 * target * noise
    metric = DepthMetrics(cap=(1e-3, 1000.0))
    metric.update(prediction, target, mask)
    each = [
        100 * np.std(np.log(p[m].double().numpy()) - np.log(t[m].double().numpy()))
        for p, t, m in zip(prediction, target, mask, strict=True)
    ]
    assert metric.compute()["silog"] == pytest.approx(np.mean(each), rel=1e-2)


def test_regions_against_scikit_learn() -> None:
    predicted, labels = example()
    metric = SegmentationMetrics(5)
    metric.update(predicted, labels)
    valid = labels != 255
    p, t = predicted[valid].numpy(), labels[valid].numpy()
    present = sorted(set(p) | set(t))
    np.testing.assert_array_equal(metric.confusion.numpy(), sklearn.confusion_matrix(t, p, labels=range(5)))
    assert metric.compute() == pytest.approx(
        {
            "miou": sklearn.jaccard_score(t, p, labels=present, average="macro"),
            "aacc": sklearn.accuracy_score(t, p),
            "macc": sklearn.balanced_accuracy_score(t, p),
            "dice": sklearn.f1_score(t, p, labels=present, average="macro"),
            "classes": len(present),
        }
    )


def test_regions_against_torchmetrics() -> None:
    predicted, labels = example(images=1)
    predicted, labels = predicted[:, 3:], labels[:, 3:]  # torchmetrics ignores no label and averages over images
    ours, theirs = SegmentationMetrics(5), MeanIoU(5, input_format="index")
    ours.update(predicted, labels)
    theirs.update(predicted, labels)
    assert ours.compute()["miou"] == pytest.approx(theirs.compute().item())


def eroded_bands(labels: np.ndarray, k: int, steps: int) -> np.ndarray:
    mask = labels == k
    return mask & ~binary_erosion(mask, np.ones((3, 3)), iterations=steps, border_value=0)


@pytest.mark.parametrize("distance", [0.02, 0.06])
@pytest.mark.parametrize("size", [(24, 40), (64, 48)])
def test_outlines_against_scipy(distance: float, size: tuple[int, int]) -> None:
    predicted, labels = example(size=size)
    labels = torch.where(labels == 255, 0, labels)
    metric = BoundaryIoU(5, distance)
    metric.update(predicted, labels)
    steps = max(1, round(distance * np.hypot(*size)))
    wanted = []
    for k in (0, 1, 3):
        bands = [
            (eroded_bands(p, k, steps), eroded_bands(t, k, steps))
            for p, t in zip(predicted.numpy(), labels.numpy(), strict=True)
        ]
        wanted.append(sum((a & b).sum() for a, b in bands) / sum((a | b).sum() for a, b in bands))
    assert [metric.per_class()[str(k)] for k in (0, 1, 3)] == pytest.approx(wanted)
    assert metric.compute()["boundary_iou"] == pytest.approx(np.mean(wanted))


def test_no_outline_where_the_ground_truth_is_unknown() -> None:
    """A pixel is inside if erosion keeps it when unknown pixels are taken for its own class."""
    predicted, labels = example()
    metric = BoundaryIoU(5, 0.06)
    metric.update(predicted, labels)
    steps = round(0.06 * np.hypot(*labels.shape[1:]))
    known = labels.numpy() != 255
    inside, union = 0, 0
    for p, t, valid in zip(predicted.numpy(), labels.numpy(), known, strict=True):
        bands = [eroded_bands(np.where(valid, x, 1), 1, steps) & valid for x in (p, t)]
        inside, union = inside + (bands[0] & bands[1]).sum(), union + (bands[0] | bands[1]).sum()
    assert metric.per_class()["1"] == pytest.approx(inside / union)
