"""DINO perception contrastive loss: the restored image's features shall be those of the clean one, not of the degraded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class PerceptionContrast(nn.Module):
    """Over layers i and, for each image by itself, the mean of::

        sum of w_i |f_i(restored) - f_i(clean)| / (|f_i(restored) - f_i(degraded)| + floor)

    with means over channels and places, as Lin et al., 2023 (arXiv 2312.01677). The features f_i of clean and degraded
    images are constants; gradients flow through those of the restored one, and so through a frozen backbone. At the
    start a restored image is the degraded one: `floor` keeps the ratio finite there. weights: one a layer, each 1 by
    default.

    >>> clean, degraded = [torch.rand(2, 8, 4, 4)], [torch.rand(2, 8, 4, 4)]
    >>> float(PerceptionContrast()(clean, clean, degraded))
    0.0
    """

    def __init__(self, weights: Sequence[float] | None = None, floor: float = 0.1) -> None:
        super().__init__()
        if not floor > 0:
            raise ValueError(f"floor={floor}: expected a positive number")
        if weights is not None and (not weights or min(weights) < 0 or max(weights) == 0):
            raise ValueError(f"weights={tuple(weights)}: expected one number a layer, none negative and not all 0")
        self.weights, self.floor = None if weights is None else tuple(weights), floor

    def forward(self, restored: Sequence[Tensor], clean: Sequence[Tensor], degraded: Sequence[Tensor]) -> Tensor:
        """Scalar loss of maps (B, C, h, w), one a layer."""
        weights = self.weights or (1.0,) * len(restored)
        if len(weights) != len(restored):
            raise ValueError(f"weights={weights}: expected one for each of the {len(restored)} layers")
        total = torch.zeros((), device=restored[0].device)
        for weight, ours, good, bad in zip(weights, restored, clean, degraded, strict=True):
            ratio = distance(ours, good.detach()) / (distance(ours, bad.detach()) + self.floor)
            total = total + weight * ratio.mean()
        return total


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference of each image, (B,), in fp32."""
    return (a.float() - b.float()).abs().flatten(1).mean(1)
