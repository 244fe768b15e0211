"""Mean absolute error."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from dense.losses.base import DepthLoss, masked_mean, mean_over_images, prepare


class L1(DepthLoss):
    """Mean over images of the mean over valid pixels of ``|prediction - target|``.

    >>> import torch
    >>> depth = torch.rand(2, 1, 8, 8) + 1
    >>> print(f"{L1()(depth + 0.5, depth, depth > 0):.3f}")
    0.500
    """

    kinds = frozenset({"metric", "log"})
    advice: ClassVar = {"inverse_relative": "its scale and shift are unknown; use SSI or MiDaSLoss"}

    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Scalar loss of maps and mask (B, 1, H, W)."""
        prediction, target, mask = prepare(prediction, target, mask)
        return mean_over_images(masked_mean((prediction - target).abs(), mask), mask)
