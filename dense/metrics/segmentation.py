"""Metrics of label maps from a confusion matrix, and checks of labels that other metrics share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


def as_labels(prediction: Tensor, labels: Tensor) -> Tensor:
    """Return labels (B, H, W) from logits (B, K, H, W) or labels (B, H, W)."""
    if prediction.ndim == 4 and prediction.shape[2:] == labels.shape[1:] and len(prediction) == len(labels):
        return prediction.argmax(1)
    if prediction.shape != labels.shape or labels.ndim != 3:
        shapes = f"prediction {tuple(prediction.shape)}, labels {tuple(labels.shape)}"
        raise ValueError(f"{shapes}: expected (B, K, H, W) or (B, H, W), and (B, H, W); resize to the labels' size")
    if prediction.is_floating_point():
        raise TypeError(f"prediction of shape (B, H, W) and dtype {prediction.dtype}: expected integer labels")
    return prediction


def valid_pixels(predicted: Tensor, labels: Tensor, classes: int, ignore: int) -> Tensor:
    """Return where the true label is not `ignore`, (B, H, W); raise if a label or prediction there is no class."""
    valid = labels != ignore
    for what, values in (("true", labels), ("predicted", predicted)):
        wrong = valid & ((values < 0) | (values >= classes))
        if bool(wrong.any()):
            found = sorted(set(values[wrong].unique().tolist()))[:5]
            raise ValueError(f"{what} labels {found}: expected 0 to {classes - 1}, or {ignore} where there is no label")
    return valid


def class_names(classes: int, ignore: int, names: Sequence[str] | None) -> tuple[str, ...]:
    """Return one name per class; by default its number."""
    if classes < 1 or 0 <= ignore < classes:
        raise ValueError(f"classes={classes}, ignore={ignore}: expected at least one class, and ignore not among them")
    result = tuple(names) if names is not None else tuple(str(index) for index in range(classes))
    if len(result) != classes or len(set(result)) != classes:
        raise ValueError(
            f"{len(result)} names ({len(set(result))} different) for {classes} classes; give one per class"
        )
    return result


def nanmean(values: Iterable[float]) -> float:
    """Return the mean without NaN values, NaN if there are no others."""
    present = [value for value in values if not math.isnan(value)]
    return sum(present) / len(present) if present else math.nan


def confusion(rows: Tensor, columns: Tensor, n_rows: int, n_columns: int) -> Tensor:
    """Return the counts (n_rows, n_columns) of pairs of indices, (N,) each."""
    pairs = rows.long() * n_columns + columns.long()
    return torch.bincount(pairs, minlength=n_rows * n_columns).view(n_rows, n_columns)


class SegmentationMetrics(Metric):
    """mIoU, accuracies and Dice of label maps, all pixels of the set pooled.

    With n[i, j] the number of pixels of true class i predicted as j, and for a class the true positives n[c, c], its
    pixels (row sum) and its predictions (column sum)::

        IoU = true positives / (pixels + predictions - true positives)       miou, the mean over classes
        accuracy = true positives / pixels                                   macc, the mean over classes
        Dice = 2 * true positives / (pixels + predictions)                   dice, the mean over classes
        aacc = all true positives / all pixels

    A class in neither labels nor predictions has no IoU and Dice, and one without true pixels no accuracy: they are NaN
    in the table and left out of the means. Pixels labelled ``ignore`` do not count.

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
        valid = valid_pixels(predicted, labels, self.classes, self.ignore)
        self.confusion += confusion(labels[valid], predicted[valid], self.classes, self.classes)

    def compute(self) -> dict[str, float]:
        """Return ``miou``, ``aacc``, ``macc``, ``dice``, and the number of ``classes`` in the mean IoU."""
        table = self._table = self._rows()
        aacc = float(self.confusion.diagonal().sum()) / max(int(self.confusion.sum()), 1)
        means = {name: nanmean(row[key] for row in table.values()) for name, key in MEANS.items()}
        classes = sum(not math.isnan(row["iou"]) for row in table.values())
        return {**means, "aacc": aacc if self.confusion.any() else float("nan"), "classes": float(classes)}

    def per_class(self) -> dict[str, dict[str, float]]:
        """Return class name -> ``iou``, ``accuracy``, ``dice`` and true ``pixels``, over all processes."""
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
