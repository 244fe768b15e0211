"""Metrics of anomaly detection: ROC, precision and recall of scores, and the overlap with anomalous regions.

All are sums over levels of the score: how many of either class have that level. Equal scores are one level.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label

Counts = NDArray[np.float64]  # per level of the score, ascending


def levels(scores: NDArray[np.floating], anomalous: NDArray[np.bool_]) -> tuple[Counts, Counts]:
    """Return how many anomalous and how many good scores there are at each level."""
    values, places = np.unique(np.asarray(scores, np.float64), return_inverse=True)
    both = [np.bincount(places[which], minlength=len(values)).astype(np.float64) for which in (anomalous, ~anomalous)]
    return both[0], both[1]


def rates(counts: Counts) -> NDArray[np.float64]:
    """Return the share at or above each threshold, from above the highest level to the lowest."""
    if not counts.sum():
        raise ValueError("one class only: a metric of anomalies needs good and anomalous scores")
    return np.concatenate([[0.0], counts[::-1].cumsum()]) / counts.sum()


def area(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Return the area under a curve by the rule of trapezoids."""
    return float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum())


def auroc(anomalous: Counts, good: Counts) -> float:
    """Return the area under the ROC curve: the probability that an anomalous score is the higher one; ties are half."""
    return area(rates(good), rates(anomalous))


def average_precision(anomalous: Counts, good: Counts) -> float:
    """Return the sum of precision times the step of recall over the thresholds."""
    recall, precision = precision_recall(anomalous, good)
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def f1_max(anomalous: Counts, good: Counts) -> float:
    """Return the largest F1 of all thresholds: that of a threshold chosen on the test set itself."""
    recall, precision = precision_recall(anomalous, good)
    return float((2 * precision * recall / np.maximum(precision + recall, 1e-12)).max())


def precision_recall(anomalous: Counts, good: Counts) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return recall and precision at each threshold, the highest first."""
    recall, _ = rates(anomalous)[1:], rates(good)
    found = recall * anomalous.sum()
    return recall, found / np.maximum(found + good[::-1].cumsum(), 1e-12)


class PixelMetrics:
    """AUROC and AUPRO of anomaly maps, from counts per level of all pixels.

    AUPRO (MVTec AD): the overlap of an anomalous region, a connected component of its mask with diagonals, is the share
    of its pixels above the threshold; the area under the mean overlap of all regions against the share of good pixels
    above it, up to `limit`, is divided by `limit`.

    Distances lie in [0, `highest`], of which each of `LEVELS` levels is an equal part.
    """

    LEVELS = 1 << 16

    def __init__(self, limit: float = 0.3, highest: float = 2.0) -> None:
        self.limit, self.highest = limit, highest
        self.good, self.anomalous, self.overlap = np.zeros((3, self.LEVELS))

    def update(self, values: NDArray[np.floating], mask: NDArray[np.bool_]) -> None:
        """Add a map (H, W) and its mask of anomalous pixels."""
        if values.shape != mask.shape:
            raise ValueError(f"the map is {values.shape}, its mask {mask.shape}; resize one of them")
        places = (np.asarray(values, np.float64) * (self.LEVELS / self.highest)).clip(0, self.LEVELS - 1).astype(int)
        self.good += np.bincount(places[~mask], minlength=self.LEVELS)
        if not mask.any():
            return
        regions, _ = label(mask, np.ones((3, 3)))
        shares = 1 / np.bincount(regions[mask])[regions[mask]]
        self.anomalous += np.bincount(places[mask], minlength=self.LEVELS)
        self.overlap += np.bincount(places[mask], shares, minlength=self.LEVELS)

    def compute(self) -> dict[str, float]:
        """Return `pixel_auroc` and `aupro`."""
        good, overlap = rates(self.good), rates(self.overlap)
        inside = good <= self.limit
        good_in, overlap_in = good[inside], overlap[inside]
        if good_in[-1] < self.limit:  # the curve reaches the limit between two levels
            good_in = np.append(good_in, self.limit)
            overlap_in = np.append(overlap_in, np.interp(self.limit, good, overlap))
        return {"pixel_auroc": auroc(self.anomalous, self.good), "aupro": area(good_in, overlap_in) / self.limit}
