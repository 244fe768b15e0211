"""Connected parts of masks; patches are neighbours along an edge, not across a corner."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor


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
