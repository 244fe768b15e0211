"""What the metrics of label maps share: checked labels, names, and means over the classes that are there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import Tensor


def as_labels(prediction: Tensor, labels: Tensor) -> Tensor:
    """Logits (B, K, H, W) or labels (B, H, W) -> labels (B, H, W)."""
    if prediction.ndim == 4 and prediction.shape[2:] == labels.shape[1:] and len(prediction) == len(labels):
        return prediction.argmax(1)
    if prediction.shape != labels.shape or labels.ndim != 3:
        shapes = f"prediction {tuple(prediction.shape)}, labels {tuple(labels.shape)}"
        raise ValueError(f"{shapes}: expected (B, K, H, W) or (B, H, W), and (B, H, W); resize to the labels' size")
    if prediction.is_floating_point():
        raise TypeError(f"prediction of shape (B, H, W) and dtype {prediction.dtype}: expected integer labels")
    return prediction


def counted(predicted: Tensor, labels: Tensor, classes: int, ignore: int) -> Tensor:
    """Where the truth is known, (B, H, W); raises where either is no class there."""
    valid = labels != ignore
    for what, values in (("true", labels), ("predicted", predicted)):
        wrong = valid & ((values < 0) | (values >= classes))
        if bool(wrong.any()):
            found = sorted(set(values[wrong].unique().tolist()))[:5]
            raise ValueError(
                f"{what} labels {found}: expected 0 to {classes - 1}, or {ignore} where the truth is unknown"
            )
    return valid


def class_names(classes: int, ignore: int, names: Sequence[str] | None) -> tuple[str, ...]:
    """One name a class, the numbers if there are none."""
    if classes < 1 or 0 <= ignore < classes:
        raise ValueError(f"classes={classes}, ignore={ignore}: expected at least one class, and ignore not among them")
    result = tuple(names) if names is not None else tuple(str(index) for index in range(classes))
    if len(result) != classes or len(set(result)) != classes:
        raise ValueError(f"{len(result)} names ({len(set(result))} different) for {classes} classes; give one a class")
    return result


def nanmean(values: Iterable[float]) -> float:
    """Mean of those that are no NaN, NaN if there are none."""
    present = [value for value in values if not math.isnan(value)]
    return sum(present) / len(present) if present else math.nan
