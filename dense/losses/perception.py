"""DINO perception contrastive loss: pull features of the restored image to the clean and away from the degraded one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class PerceptionContrast(nn.Module):
    """Mean over images of the ratio of feature distances, summed over layers i with weights w_i::

        sum of w_i |f_i(restored) - f_i(clean)| / (|f_i(restored) - f_i(degraded)| + floor)

    |.| is a mean over channels and positions. Lin et al., 2023 (arXiv 2312.01677). Gradients flow only through the
    features of the restored image, and so through a frozen backbone to the image. At the start of training the restored
    image is the degraded one, and `floor` keeps the ratio finite. weights: one per layer, 1 by default.

    >>> clean, degraded = [torch.rand(2, 8, 4, 4)], [torch.rand(2, 8, 4, 4)]
    >>> float(PerceptionContrast()(clean, clean, degraded))
    0.0
    """

    def __init__(self, weights: Sequence[float] | None = None, floor: float = 0.1) -> None:
        super().__init__()
        if not floor > 0:
            raise ValueError(f"floor={floor}: expected a positive number")
        if weights is not None and (not weights or min(weights) < 0 or max(weights) == 0):
            raise ValueError(f"weights={tuple(weights)}: expected one number per layer, none negative and not all 0")
        self.weights, self.floor = None if weights is None else tuple(weights), floor

    def forward(self, restored: Sequence[Tensor], clean: Sequence[Tensor], degraded: Sequence[Tensor]) -> Tensor:
        """Return the scalar loss of maps (B, C, h, w), one per layer."""
        weights = self.weights or (1.0,) * len(restored)
        if len(weights) != len(restored):
            raise ValueError(f"weights={weights}: expected one for each of the {len(restored)} layers")
        total = torch.zeros((), device=restored[0].device)
        for weight, features, positive, negative in zip(weights, restored, clean, degraded, strict=True):
            ratio = distance(features, positive.detach()) / (distance(features, negative.detach()) + self.floor)
            total = total + weight * ratio.mean()
        return total


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean absolute difference per image, (B,), in fp32."""
    return (a.float() - b.float()).abs().flatten(1).mean(1)
