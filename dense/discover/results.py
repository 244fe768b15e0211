"""What a discovery finds: objects with masks, scores and boxes, or regions that share out the whole image."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]


@dataclass(frozen=True)
class Objects:
    """K masks an image. A mask without a pixel says that nothing was found; its score is 0 and its box is all zeros.

    scores: how clearly a mask stands out, 0 to 1; its meaning is the method's. maps: what the masks were cut from, on the
    grid of patches, the object high.
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
        """0 where there is nothing, k + 1 on mask k; where masks overlap, the higher score: (B, H, W) uint8."""
        order = self.scores.argsort(dim=1, stable=True)  # B, K: the best is painted last
        labels = self.masks.new_zeros(self.masks.shape[0], *self.masks.shape[2:], dtype=torch.uint8)
        for k in order.T:  # B
            mask = self.masks[torch.arange(len(k), device=k.device), k]
            labels = torch.where(mask, (k + 1).to(torch.uint8)[:, None, None], labels)
        return labels

    def resized(self, size: Size) -> Objects:
        """With masks of another size, cells kept square."""
        return replace(self, masks=nearest(self.masks, size))


@dataclass(frozen=True)
class Regions:
    """Every pixel in one of `count` regions, numbered from 0."""

    labels: Tensor  # B, H, W uint8
    count: int

    def resized(self, size: Size) -> Regions:
        """With labels of another size, cells kept square."""
        return replace(self, labels=nearest(self.labels[:, None], size)[:, 0])


Prediction = Objects | Regions


def nearest(cells: Tensor, size: Size) -> Tensor:
    """Cells (B, K, h, w) of any type at another size, each pixel from the cell it lies in."""
    if tuple(cells.shape[-2:]) == tuple(size):
        return cells
    return F.interpolate(cells.float(), size=size, mode="nearest-exact").to(cells.dtype)


def boxes(masks: Tensor) -> Tensor:
    """Masks (..., H, W) bool -> the boxes around them (..., 4): left, top, right, bottom; zeros around nothing."""
    edges = []
    for axis in (-2, -1):  # over rows: columns, then over columns: rows
        lines = masks.any(axis)
        number = torch.arange(lines.shape[-1], device=masks.device)
        last = torch.where(lines, number + 1, 0).amax(-1)
        first = torch.where(lines, number, lines.shape[-1]).amin(-1)
        edges.append((torch.where(last > 0, first, 0), last))
    (left, right), (top, bottom) = edges
    return torch.stack([left, top, right, bottom], dim=-1)


def component_of(masks: Tensor, seeds: Tensor) -> Tensor:
    """The part of each mask (B, h, w) bool that holds the cell `seeds` (B,), an index into h*w; nothing if none does."""
    parts = masks.cpu().numpy().astype(np.uint8)
    found = np.zeros(parts.shape, bool)
    for part, seed, out in zip(parts, seeds.tolist(), found, strict=True):
        labels = cv2.connectedComponents(part, connectivity=4)[1]
        label = labels.reshape(-1)[seed]
        out[:] = (labels == label) & (label > 0)
    return torch.from_numpy(found).to(masks.device)


def without_specks(masks: Tensor, share: float) -> Tensor:
    """Masks (B, K, H, W) bool less the parts that are smaller than `share` of their largest part."""
    parts = masks.flatten(0, 1).cpu().numpy().astype(np.uint8)
    kept = np.zeros(parts.shape, bool)
    for part, out in zip(parts, kept, strict=True):
        count, labels, facts, _ = cv2.connectedComponentsWithStats(part, connectivity=4)
        if count > 1:
            areas = facts[:, cv2.CC_STAT_AREA].copy()
            areas[0] = 0
            out[:] = (areas >= max(1, share * areas.max()))[labels]
    return torch.from_numpy(kept).view(masks.shape).to(masks.device)
