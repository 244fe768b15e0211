"""Synthetic videos with known objects, and colours as features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from dense.backbone import Backbone

CELL = 2  # side of a patch in pixels


def colours(backbone: Backbone, images: torch.Tensor) -> torch.Tensor:
    """Return the mean colour of every patch, whatever the backbone; a source of features."""
    return F.avg_pool2d(images, CELL)


def squares(
    frames: int = 10, size: tuple[int, int] = (64, 96), steps: Sequence[tuple[int, int]] = ((0, 4),)
) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]:
    """Return images with one square per step (pixels down and right per frame), and masks with their numbers."""
    paint = [(220, 40, 30), (30, 200, 60), (40, 60, 230), (230, 220, 40)]
    images, masks = [], []
    for t in range(frames):
        image, mask = np.full((*size, 3), 20, np.uint8), np.zeros(size, np.uint8)
        for k, (down, right) in enumerate(steps):
            top, left = 4 + 20 * (k // 2) + down * t, 8 + 44 * (k % 2) + right * t
            area = slice(max(0, top), max(0, top + 16)), slice(max(0, left), max(0, left + 16))
            image[area], mask[area] = paint[k], k + 1
        images.append(image)
        masks.append(mask)
    return images, masks
