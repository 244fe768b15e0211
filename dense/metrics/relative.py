"""How well relative depth meets a truth whose own scale and shift nobody knows."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric

from dense.metrics.alignment import align_lsq


class RelativeDepthMetrics(Metric):
    """Error of inverse relative depth against inverse relative depth, each image counting the same::

        ssi_mae = mean |s p + t - target| / mean |target - mean target|,    (s, t) by least squares over the image

    0 is perfect; a prediction without any contrast gets 1. Neither the scale nor the shift of prediction or target
    plays a part. An image whose target is constant where it is known tells nothing and is ``skipped``.

    >>> metrics = RelativeDepthMetrics()
    >>> target = torch.rand(2, 1, 8, 8)
    >>> metrics.update(3 * target + 5, target, target > 0)
    >>> metrics.compute()["ssi_mae"] < 1e-4
    True
    """

    full_state_update = False
    total: Tensor
    images: Tensor
    skipped: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        for state in ("images", "skipped"):
            self.add_state(state, torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor, mask: Tensor) -> None:
        """Add images: maps (B, 1, H, W), the mask boolean, True where the target is known."""
        prediction, target = prediction.float(), target.float()
        prediction, target = torch.where(mask, prediction, 0.0), torch.where(mask, target, 0.0)
        error = self._mean((align_lsq(prediction, target, mask) - target).abs(), mask)
        spread = self._mean((target - self._mean(target, mask).view(-1, 1, 1, 1)).abs(), mask)
        tells = spread > 0
        self.total += torch.where(tells, error / torch.where(tells, spread, 1.0), 0.0).sum()
        self.images += tells.sum()
        self.skipped += (~tells).sum()

    def compute(self) -> dict[str, float]:
        """``ssi_mae``, and how many ``images`` counted and how many were ``skipped``."""
        value = float(self.total / self.images) if self.images else math.nan
        return {"ssi_mae": value, "images": float(self.images), "skipped": float(self.skipped)}

    @staticmethod
    def _mean(values: Tensor, mask: Tensor) -> Tensor:
        """Over the pixels of each image that the mask keeps, (B, 1, H, W) -> (B,)."""
        return torch.where(mask, values, 0.0).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1)
