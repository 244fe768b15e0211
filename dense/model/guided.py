"""The guided filter: soft masks that follow the edges of an image."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

CHANNELS = 16  # masks that are filtered at once
EPS = 1e-3  # ridge penalty


def guided_filter(guide: Tensor, values: Tensor, radius: int, eps: float = EPS) -> Tensor:
    """Smooth values (B, K, H, W) along the edges of images (B, 3, H, W) in 0..1 (He et al., 2010), with sums in fp64.

    Around each pixel, values are fitted by a linear function of colour, a ridge regression with penalty `eps`.
    """
    if guide.shape[0] != values.shape[0] or guide.shape[-2:] != values.shape[-2:]:
        raise ValueError(f"images {tuple(guide.shape)} and values {tuple(values.shape)} differ in number or size")
    exact = torch.float32 if values.device.type == "mps" else torch.float64
    colour, target = guide.to(exact), values.to(exact)
    mean = box_mean(colour, radius)  # B, 3, H, W
    products = box_mean((colour[:, :, None] * colour[:, None]).flatten(1, 2), radius).unflatten(1, (3, 3))
    covariance = products - mean[:, :, None] * mean[:, None]  # B, 3, 3, H, W
    covariance = covariance.permute(0, 3, 4, 1, 2) + eps * torch.eye(3, dtype=exact, device=values.device)
    inverse = _inverse3(covariance)  # B, H, W, 3, 3
    filtered = []
    for part in target.split(CHANNELS, dim=1):
        level = box_mean(part, radius)  # B, k, H, W
        joint = box_mean((colour[:, :, None] * part[:, None]).flatten(1, 2), radius).unflatten(1, (3, -1))
        joint = joint - mean[:, :, None] * level[:, None]  # B, 3, k, H, W
        slope = (inverse @ joint.permute(0, 3, 4, 1, 2)).permute(0, 3, 4, 1, 2)  # B, 3, k, H, W
        offset = level - (slope * mean[:, :, None]).sum(1)
        slope = box_mean(slope.flatten(1, 2), radius).unflatten(1, (3, -1))
        filtered.append((slope * colour[:, :, None]).sum(1) + box_mean(offset, radius))
    return torch.cat(filtered, 1).to(values.dtype)


def box_mean(values: Tensor, radius: int) -> Tensor:
    """Return the mean of (..., H, W) over squares of side 2 * radius + 1, cut at the borders."""
    shape = values.shape
    height, width = (2 * min(radius, n - 1) + 1 for n in shape[-2:])
    maps = [*values.reshape(-1, *shape[-2:]).cpu().numpy(), np.ones(shape[-2:])]  # the last one counts pixels
    sums = [
        cv2.boxFilter(one, cv2.CV_64F, (width, height), normalize=False, borderType=cv2.BORDER_CONSTANT) for one in maps
    ]
    return torch.from_numpy(np.stack(sums[:-1]) / sums[-1]).to(values).reshape(shape)


def _inverse3(matrices: Tensor) -> Tensor:
    """Invert matrices (..., 3, 3) by cross products, which is fast for millions of them."""
    a, b, c = matrices.unbind(-2)
    columns = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], -1)
    return columns / (a * columns[..., 0]).sum(-1)[..., None, None]
