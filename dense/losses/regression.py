"""Absolute error and its reverse Huber variant."""

from __future__ import annotations

from typing import ClassVar

import torch
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
        """Return the scalar loss of maps and mask (B, 1, H, W)."""
        prediction, target, mask = prepare(prediction, target, mask)
        return mean_over_images(masked_mean((prediction - target).abs(), mask), mask)


class BerHu(DepthLoss):
    """Reverse Huber loss: absolute for small errors, quadratic for large ones, with equal slopes where they meet.

    With e = prediction - target and the threshold c = share * max |e| over the batch, which gets no gradient::

        loss = mean of  |e| where |e| <= c,  (e^2 + c^2) / (2 c) elsewhere

    Laina et al., "Deeper depth prediction with fully convolutional residual networks", 2016, equation 2. There the
    mean is over the pixels of a batch; here it is over those of an image and then over images.

    >>> depth = torch.rand(2, 1, 8, 8) + 1
    >>> value = BerHu()(depth * 1.1, depth, depth > 0)
    """

    kinds = frozenset({"metric", "log"})
    advice: ClassVar = {"inverse_relative": "its scale and shift are unknown; use SSI or MiDaSLoss"}

    def __init__(self, share: float = 0.2) -> None:
        super().__init__()
        if not 0 < share <= 1:
            raise ValueError(f"share={share}: expected above 0 and at most 1 (published: 0.2)")
        self.share = share

    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Return the scalar loss of maps and mask (B, 1, H, W)."""
        prediction, target, mask = prepare(prediction, target, mask)
        error = (prediction - target).abs()  # B, 1, H, W; 0 outside the mask
        threshold = self.share * error.detach().max() if error.numel() else error.new_zeros(())
        divisor = torch.where(threshold > 0, 2 * threshold, torch.ones_like(threshold))
        error = torch.where(error <= threshold, error, (error.square() + threshold.square()) / divisor)
        return mean_over_images(masked_mean(error, mask), mask)
