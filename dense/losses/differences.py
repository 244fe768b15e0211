"""How rough an error map is, at several scales: what the gradient losses have in common."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from dense.losses.base import masked_sum, pixels


def roughness(error: Tensor, mask: Tensor, strides: Iterable[int], distance: int) -> Tensor:
    """Sum over scales of the mean absolute difference between pixels ``distance`` apart, (B, 1, H, W) -> (B,).

    A scale is every stride-th row and column. There the differences along H and along W between two valid pixels are
    added up and divided by the number of valid pixels.
    """
    total = error.flatten(1)[:, :0].sum(1)  # B; zero, with a gradient path
    for stride in strides:
        coarse, valid = error[..., ::stride, ::stride], mask[..., ::stride, ::stride]
        for dim in (-2, -1):
            size = coarse.shape[dim] - distance
            if size > 0:
                first, second = coarse.narrow(dim, 0, size), coarse.narrow(dim, distance, size)
                both = torch.logical_and(valid.narrow(dim, 0, size), valid.narrow(dim, distance, size))
                total = total + masked_sum((second - first).abs(), both) / pixels(valid)
    return total
