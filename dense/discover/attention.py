"""Masks from the attention of the class token, as in the DINO paper, and the side of a mask that it marks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from dense.backbone import Backbone
from dense.discover.results import Objects
from dense.discover.source import resize_to_patches

Mode = Literal["heads", "mean", "best"]
Foreground = Literal["attention", "published"]
EVEN = 1e-5  # scores up to this value are rounding errors


@dataclass(frozen=True)
class Attention:
    """The smallest set of patches that holds `share` of the class token's attention.

    mode: one mask of the mean over heads (`mean`), one mask per head (`heads`), or that of the head with the highest
    score (`best`). A score measures how concentrated attention is: the share of it inside the mask minus the share of
    patches inside the mask. Uniform attention scores 0 and has no mask.
    """

    share: float = 0.6
    mode: Mode = "mean"
    layer: int = -1

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share={self.share}: expected a share of the attention between 0 and 1, such as 0.6")
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode={self.mode!r}: expected one of {', '.join(get_args(Mode))}")

    def rows(self, backbone: Backbone, images: Tensor) -> Tensor:
        """Return the attention (B, heads, h, w) of the class token to patches, summing to 1 per head."""
        rows = backbone.attention(resize_to_patches(images, backbone.spec), self.layer)
        return rows / rows.sum((-2, -1), keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)

    def __call__(self, rows: Tensor) -> Objects:
        """Return masks on the grid of attention (B, heads, h, w)."""
        if rows.ndim != 4 or 0 in rows.shape or bool((rows < 0).any()) or not bool(torch.isfinite(rows).all()):
            raise ValueError(f"expected attention (B, heads, h, w), finite and not negative, got {tuple(rows.shape)}")
        if self.mode == "mean":
            rows = rows.mean(1, keepdim=True)
        masks = smallest_set(rows, self.share)
        total = rows.sum((-2, -1)).clamp_min(torch.finfo(rows.dtype).tiny)
        scores = (rows * masks).sum((-2, -1)) / total - masks.float().mean((-2, -1))  # B, heads
        scores = torch.where(scores > EVEN, scores, 0.0)
        if self.mode == "best":
            best = scores.argmax(1)[:, None]  # B, 1
            rows, masks, scores = (
                torch.take_along_dim(x, best.view(-1, 1, *[1] * (x.ndim - 2)), 1) for x in (rows, masks, scores)
            )
        return Objects(masks & (scores > 0)[..., None, None], scores, rows)


def smallest_set(values: Tensor, share: float) -> Tensor:
    """Return the fewest patches of each map (..., h, w) that hold `share` of its sum, as (..., h, w) bool."""
    flat = values.flatten(-2).double() if values.device.type != "mps" else values.flatten(-2)
    ordered, order = flat.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered  # the sum of all larger values
    kept = before < share * flat.sum(-1, keepdim=True)
    return torch.zeros_like(kept).scatter(-1, order, kept).view(values.shape)


def salience(backbone: Backbone, images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return where objects are likely on the grid of features of normalised images (B, 3, H, W): (B, h, w).

    This is the class token's attention in the last block, mean over heads. Without one it is 1 inside the grid and 0 at
    its border, which backgrounds reach more often than objects.
    """
    if backbone.spec.class_token:
        try:
            return Attention().rows(backbone, images).mean(1)
        except ValueError:  # blocks without rows of attention
            pass
    return middle(len(images), grid).to(images.device)


def middle(count: int, grid: tuple[int, int]) -> Tensor:
    """Return maps (count, h, w) of 1 inside the grid and 0 at its border."""
    inside = torch.zeros(count, *grid)
    inside[:, 1:-1, 1:-1] = 1
    return inside


def contrast(mask: Tensor, active: Tensor, salience: Tensor) -> Tensor:
    """Return (a - b) / (a + b) with the mean salience (B, h, w) inside, a, and outside, b, of masks (B, N): (B,).

    Only active patches (B, N) count. Without a patch inside or outside it is 0.
    """
    weight = salience.flatten(1)
    parts = (active * mask, active * ~mask)
    inside, outside = ((weight * part).sum(-1) / part.sum(-1).clamp_min(1) for part in parts)
    value = (inside - outside) / (inside + outside).clamp_min(torch.finfo(weight.dtype).tiny)
    return torch.where(parts[0].any(-1) & parts[1].any(-1), value, 0.0)


def check_foreground(foreground: str) -> None:
    """Raise for an unknown rule by which the object's side is chosen."""
    if foreground not in get_args(Foreground):
        raise ValueError(f"foreground={foreground!r}: expected {' or '.join(get_args(Foreground))}")
