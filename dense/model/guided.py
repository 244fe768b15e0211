"""The guided filter: soft masks that follow the edges of an image."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CHANNELS = 16  # masks that are filtered at once
EPS = 1e-3  # ridge penalty


def guided_filter(guide: Tensor, values: Tensor, radius: int, eps: float = EPS, step: int = 1) -> Tensor:
    """Smooth values (B, K, H, W) along the edges of images (B, N, H, W) in 0..1 (He et al., 2010), with sums in fp64.

    Around each pixel, values are fitted by a linear function of colour, a ridge regression with penalty `eps`.

    step: fit at 1/step of the size, which takes 1/step**2 of the time (He and Sun, *Fast guided filter*, 2015).
    """
    if guide.shape[0] != values.shape[0] or guide.shape[-2:] != values.shape[-2:]:
        raise ValueError(f"images {tuple(guide.shape)} and values {tuple(values.shape)} differ in number or size")
    exact = torch.float32 if values.device.type == "mps" else torch.float64
    size = (values.shape[-2], values.shape[-1])
    small = (max(1, size[0] // step), max(1, size[1] // step))
    colour, target = (x if small == size else F.interpolate(x.float(), small, mode="area") for x in (guide, values))
    colour, target, radius = colour.to(exact), target.to(exact), max(1, radius // step)
    count = colour.shape[1]
    mean = box_mean(colour, radius)  # B, N, h, w
    products = box_mean((colour[:, :, None] * colour[:, None]).flatten(1, 2), radius).unflatten(1, (count, count))
    covariance = products - mean[:, :, None] * mean[:, None]  # B, N, N, h, w
    covariance = covariance.permute(0, 3, 4, 1, 2) + eps * torch.eye(count, dtype=exact, device=values.device)
    inverse = _inverse3(covariance) if count == 3 else torch.linalg.inv(covariance)  # B, h, w, N, N
    filtered = []
    for part in target.split(CHANNELS, dim=1):
        level = box_mean(part, radius)  # B, k, h, w
        joint = box_mean((colour[:, :, None] * part[:, None]).flatten(1, 2), radius).unflatten(1, (count, -1))
        joint = joint - mean[:, :, None] * level[:, None]  # B, N, k, h, w
        slope = (inverse @ joint.permute(0, 3, 4, 1, 2)).permute(0, 3, 4, 1, 2)  # B, N, k, h, w
        offset = box_mean(level - (slope * mean[:, :, None]).sum(1), radius)
        slope = box_mean(slope.flatten(1, 2), radius)
        if small != size:
            slope, offset = (F.interpolate(x.float(), size, mode="bilinear") for x in (slope, offset))
        filtered.append((slope.unflatten(1, (count, -1)) * guide.to(slope)[:, :, None]).sum(1) + offset)
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
