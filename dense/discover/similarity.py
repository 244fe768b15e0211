"""Where in pictures it looks like at one point of one of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dense.discover.graph import tokens_of


def feature_at(features: Tensor, point: Sequence[float], size: tuple[int, int]) -> Tensor:
    """The feature (C,) of the patch of (C, h, w) that holds the pixel `point` (x, y) of a picture of `size` (H, W)."""
    (x, y), (height, width), (rows, columns) = point, size, features.shape[-2:]
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(f"point {x:g},{y:g} lies outside the picture, which is {width} wide and {height} high")
    return features[:, int(y * rows / height), int(x * columns / width)]


def similarity(features: Tensor, query: Tensor) -> Tensor:
    """Cosine of every patch of (B, C, h, w) with queries (C,) or (Q, C): (B, h, w) or (B, Q, h, w)."""
    cosines = F.normalize(torch.atleast_2d(query), dim=-1) @ tokens_of(features).mT  # B, Q, N
    cosines = cosines.unflatten(-1, features.shape[-2:])
    return cosines[:, 0] if query.ndim == 1 else cosines
