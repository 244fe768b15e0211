"""Predictions of discovery: objects with masks, scores and boxes, or regions that partition the image."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Objects:
    """K masks per image. A mask without a pixel means that nothing was found; its score is 0 and its box all zeros.

    scores: how clearly a mask stands out, from 0 to 1, as each method defines it. maps: the values that the masks were
    cut from, on the grid of patches, high on the object.
    """

    masks: Tensor  # B, K, H, W bool
    scores: Tensor  # B, K
    maps: Tensor  # B, K, h, w

    @property
    def boxes(self) -> Tensor:
        """Left, top, right, bottom in pixels, right and bottom exclusive: (B, K, 4)."""
        return boxes(self.masks)

    @property
    def labels(self) -> Tensor:
        """(B, H, W) uint8: k + 1 on mask k, 0 elsewhere; where masks overlap, the one with the higher score."""
        order = self.scores.argsort(dim=1, stable=True)  # B, K: the best is painted last
        labels = self.masks.new_zeros(self.masks.shape[0], *self.masks.shape[2:], dtype=torch.uint8)
        for k in order.T:  # B
            mask = self.masks[torch.arange(len(k), device=k.device), k]
            labels = torch.where(mask, (k + 1).to(torch.uint8)[:, None, None], labels)
        return labels

    def resized(self, size: Size) -> Objects:
        """Return the objects with masks of another size, by nearest neighbour."""
        return replace(self, masks=resize_nearest(self.masks, size))


@dataclass(frozen=True)
class Regions:
    """A partition of each image into `count` regions, numbered from 0."""

    labels: Tensor  # B, H, W uint8
    count: int

    def resized(self, size: Size) -> Regions:
        """Return the regions with labels of another size, by nearest neighbour."""
        return replace(self, labels=resize_nearest(self.labels[:, None], size)[:, 0])


Prediction = Objects | Regions


def resize_nearest(maps: Tensor, size: Size) -> Tensor:
    """Return maps (B, K, h, w) of any type at another size."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps.float(), size=size, mode="nearest-exact").to(maps.dtype)


def boxes(masks: Tensor) -> Tensor:
    """Return the boxes (..., 4) around masks (..., H, W) bool: left, top, right, bottom; zeros around an empty mask."""
    edges = []
    for axis in (-2, -1):  # over rows: columns, then over columns: rows
        lines = masks.any(axis)
        number = torch.arange(lines.shape[-1], device=masks.device)
        last = torch.where(lines, number + 1, 0).amax(-1)
        first = torch.where(lines, number, lines.shape[-1]).amin(-1)
        edges.append((torch.where(last > 0, first, 0), last))
    (left, right), (top, bottom) = edges
    return torch.stack([left, top, right, bottom], dim=-1)
