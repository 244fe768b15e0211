"""Agreement of predicted and true outlines: of classes, and of depth where something hides what is behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from dense.metrics.depth import SMALLEST
from dense.metrics.segmentation import as_labels, class_names, nanmean, valid_pixels


class BoundaryIoU(Metric):
    """IoU of the pixels of each class that lie close to its outline, all images of the set pooled.

    The band of a class is the part that ``steps`` erosions with a 3x3 square remove; the border of the image is an
    outline too. ``steps`` are ``distance`` times the image's diagonal, rounded, at least 1. Cheng et al., "Boundary
    IoU: Improving object-centric image segmentation evaluation", 2021. There bands are of objects, and an instance
    metric averages the scores; here they are of classes, and intersections and unions are summed.

    Pixels labelled ``ignore`` belong to no band, and where a class meets them there is no outline. A class without a
    band in labels and predictions is NaN and left out of the mean.

    >>> metric = BoundaryIoU(2)
    >>> labels = torch.zeros(1, 50, 50, dtype=torch.long)
    >>> metric.update(labels, labels)
    >>> metric.compute()["boundary_iou"]
    1.0
    """

    full_state_update = False
    intersections: Tensor
    unions: Tensor

    def __init__(
        self, classes: int, distance: float = 0.02, ignore: int = 255, names: Sequence[str] | None = None
    ) -> None:
        super().__init__()
        if not 0 < distance < 1:
            raise ValueError(f"distance={distance}: expected a share of the diagonal (published: 0.02)")
        self.classes, self.distance, self.ignore = classes, distance, ignore
        self.names = class_names(classes, ignore, names)
        self.add_state("intersections", torch.zeros(classes, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("unions", torch.zeros(classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, labels: Tensor) -> None:
        """Add images: logits (B, K, H, W) or predicted labels (B, H, W), and true labels (B, H, W)."""
        predicted = as_labels(prediction, labels)
        valid = valid_pixels(predicted, labels, self.classes, self.ignore)
        steps = max(1, round(self.distance * math.hypot(*labels.shape[1:])))
        true_band, predicted_band = band(labels, valid, steps), band(predicted, valid, steps)
        shared = self._count(labels[true_band & predicted_band & (labels == predicted)])
        self.intersections += shared
        self.unions += self._count(labels[true_band]) + self._count(predicted[predicted_band]) - shared

    def compute(self) -> dict[str, float]:
        """Return ``boundary_iou``, the mean over the classes that have one."""
        ratios = self.intersections.cpu().double() / self.unions.cpu().double()
        self._table = dict(zip(self.names, ratios.tolist(), strict=True))
        return {"boundary_iou": nanmean(self._table.values())}

    def per_class(self) -> dict[str, float]:
        """Return class name -> boundary IoU, over all processes."""
        self.compute()
        return self._table

    def _count(self, labels: Tensor) -> Tensor:
        return torch.bincount(labels.long(), minlength=self.classes)


class DepthEdges(Metric):
    """F1 of the edges of depth, averaged over images: whether the prediction steps where the true depth does.

    Two pixels that lie ``distance`` times the image's diagonal apart along a row or a column (rounded, at least 1) are
    an edge at threshold t if the one is more than 1 + t times as far as the other; which one it is must agree. F1 of
    precision and recall is averaged over the thresholds .05 to .25, each weighted by itself. Bochkovskii et al., "Depth
    Pro: Sharp monocular metric depth in less than a second", 2024, compare neighbouring pixels; true depth from a
    sensor is unknown close to edges, and a prediction is resized, so that here the pixels lie apart. A common scale of
    the prediction changes nothing. Pairs without true depth do not count, nor do images without an edge.

    >>> depth = torch.ones(1, 1, 20, 20)
    >>> depth[..., 10:] = 2.0
    >>> metric = DepthEdges()
    >>> metric.update(3 * depth, depth, depth > 0)
    >>> metric.compute()["edge_f1"]
    1.0
    """

    full_state_update = False
    total: Tensor
    images: Tensor

    def __init__(self, distance: float = 0.01, log: bool = False) -> None:
        super().__init__()
        if not 0 < distance < 1:
            raise ValueError(f"distance={distance}: expected a share of the diagonal (0.01 by default)")
        self.distance, self.log = distance, log
        self.add_state("total", torch.zeros((), dtype=torch.double), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor, mask: Tensor) -> None:
        """Add images: predicted depth, or its logarithm if ``log``, true depth and where it is known, (B, 1, H, W)."""
        predicted = prediction.float() if self.log else prediction.float().clamp(min=SMALLEST).log()
        valid = mask & (target > 0)
        true = torch.where(valid, target.float(), 1.0).log()
        apart = max(1, round(self.distance * math.hypot(*target.shape[-2:])))
        thresholds = torch.arange(5, 26, device=true.device) / 100
        for p, t, v in zip(predicted, true, valid, strict=True):
            counts = sum((_edges(p, t, v, apart, dim, thresholds) for dim in (-2, -1)), torch.zeros(3, len(thresholds)))
            if bool(counts[1].any()):
                f1 = 2 * counts[2] / (counts[0] + counts[1]).clamp(min=1)
                self.total += (f1 * thresholds.cpu()).sum() / thresholds.sum().cpu()
                self.images += 1

    def compute(self) -> dict[str, float]:
        """Return ``edge_f1``; NaN without an image that has edges."""
        return {"edge_f1": (self.total / self.images).item()}


def _edges(p: Tensor, t: Tensor, valid: Tensor, apart: int, dim: int, thresholds: Tensor) -> Tensor:
    """Count predicted, true and shared edges along one side for each threshold, (3, thresholds)."""
    size = t.shape[dim] - apart
    if size < 1:
        return torch.zeros(3, len(thresholds))
    known = valid.narrow(dim, apart, size) & valid.narrow(dim, 0, size)
    steps = [(x.narrow(dim, apart, size) - x.narrow(dim, 0, size))[known] for x in (p, t)]
    counts = []
    for limit in torch.log1p(thresholds).tolist():
        ours, true = ((step > limit).int() - (step < -limit).int() for step in steps)
        counts.append([(ours != 0).sum(), (true != 0).sum(), ((ours == true) & (true != 0)).sum()])
    return torch.tensor(counts).T.float()


def band(labels: Tensor, valid: Tensor, steps: int) -> Tensor:
    """Return where a class or the image ends within ``steps`` pixels along rows or columns, (B, H, W).

    A pixel is inside its class if the largest and the smallest label of the square around it are equal, so that the
    cost does not depend on the number of classes.
    """
    values = labels.float().unsqueeze(1)  # B, 1, H, W
    unknown = ~valid.unsqueeze(1)
    largest = _largest(values.masked_fill(unknown, -torch.inf), steps)
    smallest = -_largest((-values).masked_fill(unknown, -torch.inf), steps)
    return ((largest != smallest) & ~unknown).squeeze(1)


def _largest(values: Tensor, steps: int) -> Tensor:
    """Return the maximum of the square of 2 * steps + 1 around each pixel, (B, 1, H, W); infinite at the border."""
    values = F.pad(values, (steps, steps, steps, steps), value=torch.inf)
    for dim in (-2, -1):
        reach = 1  # values are maxima over this many pixels; doubled until it is the side of the square
        while reach < 2 * steps + 1:
            shift = min(reach, 2 * steps + 1 - reach)
            size = values.shape[dim] - shift
            values = torch.maximum(values.narrow(dim, 0, size), values.narrow(dim, shift, size))
            reach += shift
    return values
