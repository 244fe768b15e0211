"""Metrics of anomalies: against scikit-learn, and AUPRO against a slow loop over thresholds and regions."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from dense.metrics.anomaly import PixelMetrics, auroc, average_precision, f1_max, levels


@pytest.mark.parametrize("ties", [1000, 4, 1])
def test_scores_equal_scikit_learn(ties: int) -> None:
    rng = np.random.default_rng(ties)
    anomalous = rng.random(60) < 0.3
    scores = np.round((rng.random(60) + 0.3 * anomalous) * ties) / ties
    counts = levels(scores, anomalous)
    assert auroc(*counts) == pytest.approx(roc_auc_score(anomalous, scores))
    assert average_precision(*counts) == pytest.approx(average_precision_score(anomalous, scores))
    precision, recall, _ = precision_recall_curve(anomalous, scores)
    assert f1_max(*counts) == pytest.approx((2 * precision * recall / (precision + recall + 1e-12)).max())


@pytest.mark.parametrize("anomalous", [True, False])
def test_one_class_is_an_error(anomalous: bool) -> None:
    counts = levels(np.array([0.1, 0.2]), np.array([anomalous] * 2))
    for metric in (auroc, average_precision, f1_max):
        with pytest.raises(ValueError, match="one class only"):
            metric(*counts)


def test_equal_scores_mean_nothing() -> None:
    counts = levels(np.full(10, 0.5), np.arange(10) < 3)
    assert auroc(*counts) == 0.5
    assert average_precision(*counts) == pytest.approx(0.3)


def regions(mask: NDArray[np.bool_]) -> list[set[tuple[int, int]]]:
    """Connected components with diagonals, by flooding."""
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}
    found = []
    while left:
        region, border = set(), {left.pop()}
        while border:
            y, x = border.pop()
            region.add((y, x))
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            border |= near
        found.append(region)
    return found


@pytest.mark.parametrize("limit", [0.3, 0.05, 1.0])
def test_pixels_equal_a_slow_loop(limit: float) -> None:
    rng = np.random.default_rng(1)
    masks = [rng.random((9, 11)) < share for share in (0.15, 0.3, 0.0)]
    maps = [np.floor((rng.random((9, 11)) + 0.5 * mask) * 20) / 20 for mask in masks]
    metrics = PixelMetrics(limit=limit)
    for values, mask in zip(maps, masks, strict=True):
        metrics.update(values, mask)
    found = metrics.compute()
    every, wrong = np.concatenate([m.ravel() for m in maps]), np.concatenate([m.ravel() for m in masks])
    assert found["pixel_auroc"] == pytest.approx(roc_auc_score(wrong, every))
    curve = [(0.0, 0.0)]
    for threshold in sorted(set(every), reverse=True):
        overlaps = [
            np.mean([values[place] >= threshold for place in region])
            for values, mask in zip(maps, masks, strict=True)
            for region in regions(mask)
        ]
        curve.append((float((every[~wrong] >= threshold).mean()), float(np.mean(overlaps))))
    total = 0.0
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x0 < limit and x1 > x0:
            end = min(x1, limit)
            y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
            total += (end - x0) * (y0 + y_end) / 2
    assert found["aupro"] == pytest.approx(total / limit)


def test_a_perfect_map_and_another_size() -> None:
    mask = np.zeros((8, 8), bool)
    mask[2:4, 2:4] = mask[6, 6] = True
    metrics = PixelMetrics()
    metrics.update(mask.astype(float), mask)
    assert metrics.compute() == {"pixel_auroc": 1.0, "aupro": pytest.approx(1.0)}
    with pytest.raises(ValueError, match="resize one of them"):
        metrics.update(np.zeros((4, 4)), mask)
