"""Videos whose objects are known, and features that are nothing but colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from dense.backbone import Backbone

CELL = 2  # pixels of a patch of colours


def colours(backbone: Backbone, images: torch.Tensor) -> torch.Tensor:
    """A source of features: the mean colour of every cell, whatever the backbone."""
    return F.avg_pool2d(images, CELL)


def squares(
    frames: int = 10, size: tuple[int, int] = (64, 96), steps: Sequence[tuple[int, int]] = ((0, 4),)
) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]:
    """Images of one square a step, each moving by so many pixels down and right a frame, and the numbers of the squares."""
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
