"""Predictions of unknown scale or shift, brought to the target's before they are measured; and back from 1 / depth."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Alignment = Literal["none", "median", "lsq"]
ALIGNMENTS: tuple[str, ...] = get_args(Alignment)
RELATIVE = 1e-6  # a spread below this share of the values is rounding
SMALLEST = 1e-12


def align_lsq(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """``scale * prediction + shift`` with the two that fit the target best in every image, maps (B, 1, H, W).

    A prediction without any contrast becomes the mean of the target, the best that a constant can be.
    """
    count = mask.flatten(1).sum(1).clamp(min=1)  # B

    def mean(values: Tensor) -> Tensor:
        return (torch.where(mask, values, 0.0).flatten(1).sum(1) / count).view(-1, 1, 1, 1)

    centre, middle = mean(prediction), mean(target)
    variance = mean((prediction - centre).square())
    contrast = variance > RELATIVE**2 * centre.square()
    covariance = mean((prediction - centre) * (target - middle))
    scale = torch.where(contrast, covariance, 0.0) / torch.where(contrast, variance, 1.0)
    return scale * (prediction - centre) + middle


def align_median(depth: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """The depth times the ratio of the two medians of each image, maps (B, 1, H, W)."""
    ratio = _median(target, mask) / _median(depth, mask).clamp(min=SMALLEST)
    return depth * ratio.view(-1, 1, 1, 1)


def to_depth(disparity: Tensor, nearest: float = 0.0, farthest: float = 1 / SMALLEST) -> Tensor:
    """1 / disparity, held between two depths; what is not positive is as far away as can be."""
    return (1 / disparity.clamp(min=1 / farthest)).clamp(min=nearest)


def _median(values: Tensor, mask: Tensor) -> Tensor:
    """Median where the mask is True, 1 where it never is, (B, 1, H, W) -> (B,)."""
    ordered = torch.where(mask, values, torch.inf).flatten(1).sort(1).values  # B, HW
    count = mask.flatten(1).sum(1, keepdim=True)  # B, 1
    middle = torch.cat([(count - 1).clamp(min=0) // 2, (count // 2).clamp(max=ordered.shape[1] - 1)], 1)
    return torch.where(count[:, 0] > 0, ordered.gather(1, middle).mean(1), 1.0)
