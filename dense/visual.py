"""Pictures of features and attention, as uint8 arrays."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Picture = NDArray[np.uint8]  # H, W, 3


def pca_rgb(maps: Tensor) -> Tensor:
    """The three main directions of features (B, C, h, w), shared by the batch, as colours (B, 3, h, w) in 0..1."""
    tokens = maps.float().permute(0, 2, 3, 1).reshape(-1, maps.shape[1])  # B*h*w, C
    tokens = tokens - tokens.mean(0)
    _, _, v = torch.linalg.svd(tokens, full_matrices=False)
    scores = tokens @ v[:3].T
    if scores.shape[1] < 3:
        scores = torch.nn.functional.pad(scores, (0, 3 - scores.shape[1]))
    low, high = scores.quantile(0.02, dim=0), scores.quantile(0.98, dim=0)
    colours = ((scores - low) / (high - low).clamp_min(1e-8)).clamp(0, 1)
    return colours.reshape(maps.shape[0], *maps.shape[-2:], 3).permute(0, 3, 1, 2)


def heat(values: Tensor | NDArray[np.floating], colours: str = "inferno") -> Picture:
    """A map (h, w) as colours, its own minimum to its own maximum."""
    array = np.asarray(values, dtype=np.float64)
    low, high = float(np.nanmin(array)), float(np.nanmax(array))
    scaled = (array - low) / (high - low) if high > low else np.zeros_like(array)
    return (matplotlib.colormaps[colours](scaled)[..., :3] * 255 + 0.5).astype(np.uint8)


def to_picture(colours: Tensor) -> Picture:
    """(3, h, w) in 0..1 -> (h, w, 3) uint8."""
    return (colours.permute(1, 2, 0).cpu().numpy() * 255 + 0.5).astype(np.uint8)


def enlarge(picture: Picture, size: tuple[int, int]) -> Picture:
    """Nearest-neighbour resize to (H, W): cells stay visible."""
    return np.asarray(cv2.resize(picture, (size[1], size[0]), interpolation=cv2.INTER_NEAREST), np.uint8)


def sheet(rows: Sequence[Sequence[Picture]], gap: int = 4) -> Picture:
    """Pictures of equal size in a grid on white."""
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    canvas = np.full((len(rows) * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = gap + i * (height + gap), gap + j * (width + gap)
            canvas[top : top + height, left : left + width] = picture
    return canvas
