"""Synthetic features with known objects."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Box = tuple[int, int, int, int]  # top, bottom, left, right


def blobs(grid: tuple[int, int], objects: Sequence[Box], noise: float = 0.05, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return features (1, 16, h, w) with one direction per box and one for the background, and box numbers (h, w)."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.zeros(grid, dtype=torch.long)
    for number, (top, bottom, left, right) in enumerate(objects, start=1):
        numbers[top:bottom, left:right] = number
    directions = torch.eye(16)[: len(objects) + 1]
    features = directions[numbers] + noise * torch.randn(*grid, 16, generator=generator)
    return features.permute(2, 0, 1)[None], numbers


def smooth(batch: int, grid: tuple[int, int], channels: int = 24, seed: int = 0) -> Tensor:
    """Return random features (B, C, h, w) that are similar at neighbouring patches."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, channels, 5, 6, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=grid, mode="bicubic")
    return fine + 0.2 * torch.randn(fine.shape, generator=generator)
