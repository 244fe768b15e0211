"""Losses between logits (B, K, H, W) and labels (B, H, W), int64; pixels labelled ``ignore`` do not count.

Cross-entropy is PyTorch's, the others are segmentation-models-pytorch's. All compute in fp32 whatever the precision of
the logits, and return zero with a gradient if every pixel is ignored. The pixels of a batch are pooled.
"""

from __future__ import annotations

from collections.abc import Sequence

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORE = 255


class CrossEntropy(nn.Module):
    """Mean of ``-log softmax(logits)[label]``, weighted by class and smoothed as in ``torch.nn.CrossEntropyLoss``.

    The mean is over the pixels that count, or with ``weights`` (one per class) over the sum of their weights.

    >>> value = CrossEntropy(label_smoothing=0.1)(torch.randn(2, 5, 8, 8), torch.randint(5, (2, 8, 8)))
    """

    weights: Tensor | None

    def __init__(
        self, weights: Sequence[float] | Tensor | None = None, label_smoothing: float = 0.0, ignore: int = IGNORE
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing}: expected 0 to below 1")
        self.label_smoothing, self.ignore = label_smoothing, ignore
        values = None if weights is None else torch.as_tensor(weights, dtype=torch.float32)
        self.register_buffer("weights", values, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = _prepare(logits, labels)
        weights = None if self.weights is None else self.weights.to(logits.dtype)
        if weights is not None and len(weights) != logits.shape[1]:
            raise ValueError(f"{len(weights)} class weights for {logits.shape[1]} classes; give one per class")
        options = {"ignore_index": self.ignore, "label_smoothing": self.label_smoothing}
        total = F.cross_entropy(logits, labels, weights, reduction="sum", **options)  # type: ignore[arg-type]
        valid = labels != self.ignore
        if weights is None:
            return total / valid.sum().clamp(min=1)
        share = torch.where(valid, weights[torch.where(valid, labels, 0)], 0.0).sum()
        return total / torch.where(share > 0, share, 1.0)


class Dice(nn.Module):
    """One minus the Dice coefficient of softmax probabilities and labels, averaged over all K classes.

    ``1 - (2 sum(p y) + smooth) / (sum(p) + sum(y) + smooth)`` for each class; a class without a label in the batch
    adds 0 to the mean. Milletari et al., "V-Net: Fully convolutional neural networks for volumetric medical image
    segmentation", 2016.

    >>> value = Dice()(torch.randn(2, 5, 8, 8), torch.randint(5, (2, 8, 8)))
    """

    def __init__(self, smooth: float = 0.0, ignore: int = IGNORE) -> None:
        super().__init__()
        self.loss = smp.losses.DiceLoss("multiclass", smooth=smooth, ignore_index=ignore)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.loss(_prepare(logits, labels), labels)


class Focal(nn.Module):
    """Cross-entropy with less weight on well-classified pixels, each class against the rest.

    With p the sigmoid probability of the target, for or against a class: mean over pixels and classes of
    ``-(1 - p)^gamma log p``, times ``alpha`` where the class is present and ``1 - alpha`` where it is not, if given.
    Lin et al., "Focal loss for dense object detection", 2017, equation 5.

    >>> value = Focal()(torch.randn(2, 5, 8, 8), torch.randint(5, (2, 8, 8)))
    """

    def __init__(self, gamma: float = 2.0, alpha: float | None = None, ignore: int = IGNORE) -> None:
        super().__init__()
        self.ignore = ignore
        self.loss = smp.losses.FocalLoss("multiclass", alpha=alpha, gamma=gamma, ignore_index=ignore)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = _prepare(logits, labels)
        if bool((labels == self.ignore).all()):
            return _zero(logits)  # smp would return the mean of no pixels
        return self.loss(logits, labels)


class Lovasz(nn.Module):
    """A convex extension of one minus the intersection over union, averaged over the classes that occur in the labels.

    Berman et al., "The Lovász-Softmax loss: A tractable surrogate for the optimization of the intersection-over-union
    measure in neural networks", 2018. ``per_image`` averages over the images that have valid
    pixels.

    >>> value = Lovasz()(torch.randn(2, 5, 8, 8), torch.randint(5, (2, 8, 8)))
    """

    def __init__(self, per_image: bool = False, ignore: int = IGNORE) -> None:
        super().__init__()
        self.ignore = ignore
        self.loss = smp.losses.LovaszLoss("multiclass", per_image=per_image, ignore_index=ignore)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = _prepare(logits, labels).float()  # smp sums sorted errors in fp32
        valid = (labels != self.ignore).flatten(1).any(1)  # B
        return self.loss(logits[valid], labels[valid]) if bool(valid.any()) else _zero(logits)


def _prepare(logits: Tensor, labels: Tensor) -> Tensor:
    """Check the shapes and return the logits in fp32 or better."""
    if logits.ndim != 4 or labels.shape != (logits.shape[0], *logits.shape[2:]):
        shapes = f"logits {tuple(logits.shape)}, labels {tuple(labels.shape)}"
        raise ValueError(f"{shapes}: expected (B, K, H, W) and (B, H, W); resize the logits to the size of the labels")
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _zero(logits: Tensor) -> Tensor:
    """Return zero with a gradient path, whatever the logits hold."""
    return logits.flatten()[:0].sum()
