"""What the backbone sees of a picture that is to be restored: never more than a fixed number of patches."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from heads.features import Size


def guide_size(size: Size, patch: int, tokens: int) -> Size:
    """Whole patches nearest to the shape of a picture of `size`, at most `tokens` of them; never enlarged beyond rounding."""
    height, width = size
    scale = min(1.0, math.sqrt(tokens * patch**2 / (height * width)))
    rows, columns = (max(1, round(side * scale / patch)) for side in size)
    while rows * columns > tokens and (rows, columns) != (1, 1):
        rows, columns = (rows - 1, columns) if rows >= columns else (rows, columns - 1)
    return rows * patch, columns * patch


def guide_picture(images: Tensor, patch: int, tokens: int) -> Tensor:
    """Pictures (B, 3, H, W) at `guide_size`, which covers all of them."""
    height, width = images.shape[-2:]
    rows, columns = guide_size((height, width), patch, tokens)
    if rows != height:
        images = weights(height, rows).to(images) @ images
    if columns != width:
        images = images @ weights(width, columns).to(images).mT
    return images


def weights(old: int, new: int) -> Tensor:
    """The matrix (new, old) of an antialiased linear resize: as `interpolate(mode="bilinear", antialias=True)` does, which
    ONNX does not know."""
    scale = old / new
    reach = max(scale, 1.0)
    centres = (torch.arange(new, dtype=torch.float64) + 0.5) * scale
    places = torch.arange(old, dtype=torch.float64) + 0.5
    table = (1 - (places - centres[:, None]).abs() / reach).clamp(min=0)
    return (table / table.sum(1, keepdim=True)).float()
