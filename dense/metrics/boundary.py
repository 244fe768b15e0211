"""How well the outlines of classes agree."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from dense.metrics.segmentation import as_labels, class_names, counted, nanmean


class BoundaryIoU(Metric):
    """IoU of the pixels of each class that lie close to its outline, all images of the set pooled.

    The band of a class is the part of it that ``steps`` erosions with a 3x3 square take away, the border of the
    image being an outline too; steps are ``distance`` times the image's diagonal, rounded, at least 1. Cheng et
    al., "Boundary IoU: Improving object-centric image segmentation evaluation", 2021. There a band is that of an object
    and scores are averaged by an instance metric; here it is that of a class, and intersections and unions are summed.

    Pixels whose true label is ``ignore`` belong to no band, and where a class meets them is no outline, for what is
    there is not known. A class that has no band in ground truth and predictions is NaN and left out of the mean.

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
        valid = counted(predicted, labels, self.classes, self.ignore)
        steps = max(1, round(self.distance * math.hypot(*labels.shape[1:])))
        ground_truth, guess = band(labels, valid, steps), band(predicted, valid, steps)
        both = ground_truth & guess & (labels == predicted)
        shared, true, guessed = (
            self._count(labels[both]),
            self._count(labels[ground_truth]),
            self._count(predicted[guess]),
        )
        self.intersections += shared
        self.unions += true + guessed - shared

    def compute(self) -> dict[str, float]:
        """``boundary_iou``, the mean over the classes that have one."""
        ratios = self.intersections.cpu().double() / self.unions.cpu().double()
        self._table = dict(zip(self.names, ratios.tolist(), strict=True))
        return {"boundary_iou": nanmean(self._table.values())}

    def per_class(self) -> dict[str, float]:
        """Class name -> boundary IoU, over all processes."""
        self.compute()
        return self._table

    def _count(self, labels: Tensor) -> Tensor:
        return torch.bincount(labels.long(), minlength=self.classes)


def band(labels: Tensor, valid: Tensor, steps: int) -> Tensor:
    """True where a class ends, or the image does, within ``steps`` pixels, in rows and columns alike; (B, H, W).

    A pixel is inside its class if the largest and the smallest label of the square around it are the same: the
    work does not grow with the number of classes.
    """
    values = labels.float().unsqueeze(1)  # B, 1, H, W
    unknown = ~valid.unsqueeze(1)
    largest = _largest(values.masked_fill(unknown, -torch.inf), steps)
    smallest = -_largest((-values).masked_fill(unknown, -torch.inf), steps)
    return ((largest != smallest) & ~unknown).squeeze(1)


def _largest(values: Tensor, steps: int) -> Tensor:
    """Largest value of the square of 2 * steps + 1 around each pixel, infinite next to the border, (B, 1, H, W)."""
    values = F.pad(values, (steps, steps, steps, steps), value=torch.inf)
    for dim in (-2, -1):
        reach = 1  # pixels that each value is the largest of; doubled until it is the side of the square
        while reach < 2 * steps + 1:
            shift = min(reach, 2 * steps + 1 - reach)
            size = values.shape[dim] - shift
            values = torch.maximum(values.narrow(dim, 0, size), values.narrow(dim, shift, size))
            reach += shift
    return values
