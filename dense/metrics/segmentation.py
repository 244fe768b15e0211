"""How well predicted classes cover the true ones, from one confusion matrix over a set."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from dense.metrics.labels import as_labels, class_names, counted, nanmean


class SegmentationMetrics(Metric):
    """mIoU, accuracies and Dice of label maps, all pixels of the set pooled.

    With n[i, j] the number of pixels of true class i predicted as j, and for a class the true positives n[c, c], its
    pixels (row sum) and its predictions (column sum)::

        IoU = true positives / (pixels + predictions - true positives)       miou, the mean over classes
        accuracy = true positives / pixels                                   macc, the mean over classes
        Dice = 2 * true positives / (pixels + predictions)                   dice, the mean over classes
        aacc = all true positives / all pixels

    A class that appears neither in the truth nor in the predictions has no IoU and Dice, and one without true pixels
    no accuracy: NaN in the table, and left out of the means. Pixels whose true label is ``ignore`` do not count.

    >>> metrics = SegmentationMetrics(3, names=("sky", "road", "tree"))
    >>> metrics.update(torch.tensor([[[0, 0, 1, 1]]]), torch.tensor([[[0, 0, 0, 255]]]))
    >>> metrics.compute()["aacc"] == 2 / 3, metrics.per_class()["sky"]["iou"] == 2 / 3
    (True, True)
    """

    full_state_update = False
    confusion: Tensor

    def __init__(self, classes: int, ignore: int = 255, names: Sequence[str] | None = None) -> None:
        super().__init__()
        self.classes, self.ignore, self.names = classes, ignore, class_names(classes, ignore, names)
        self.add_state("confusion", torch.zeros(classes, classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, labels: Tensor) -> None:
        """Add images: logits (B, K, H, W) or predicted labels (B, H, W), and true labels (B, H, W)."""
        predicted = as_labels(prediction, labels)
        valid = counted(predicted, labels, self.classes, self.ignore)
        pairs = labels[valid].long() * self.classes + predicted[valid].long()
        self.confusion += torch.bincount(pairs, minlength=self.classes**2).view(self.classes, self.classes)

    def compute(self) -> dict[str, float]:
        """``miou``, ``aacc``, ``macc``, ``dice``, and the number of ``classes`` that miou is a mean of."""
        table = self._table = self._rows()
        aacc = float(self.confusion.diagonal().sum()) / max(int(self.confusion.sum()), 1)
        means = {name: nanmean(row[key] for row in table.values()) for name, key in MEANS.items()}
        classes = sum(row["iou"] == row["iou"] for row in table.values())
        return {**means, "aacc": aacc if self.confusion.any() else float("nan"), "classes": float(classes)}

    def per_class(self) -> dict[str, dict[str, float]]:
        """Class name -> ``iou``, ``accuracy``, ``dice`` and true ``pixels``, over all processes."""
        self.compute()
        return self._table

    def _rows(self) -> dict[str, dict[str, float]]:
        confusion = self.confusion.cpu().double()
        hits, pixels, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
        columns = {
            "iou": hits / (pixels + predicted - hits),
            "accuracy": hits / pixels,
            "dice": 2 * hits / (pixels + predicted),
            "pixels": pixels,
        }
        return {name: {key: float(values[i]) for key, values in columns.items()} for i, name in enumerate(self.names)}


MEANS = {"miou": "iou", "macc": "accuracy", "dice": "dice"}
