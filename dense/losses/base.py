"""What every depth loss shares: the kinds it is for, inputs in fp32, and means that an empty mask cannot break."""

from __future__ import annotations

from typing import ClassVar, get_args

import torch
from torch import Tensor, nn

from dense.suggest import did_you_mean
from heads.outputs import DepthKind


class DepthLoss(nn.Module):
    """A loss ``(prediction, target, mask) -> scalar`` over maps (B, 1, H, W), both of one and the same kind.

    ``mask`` is boolean, True where the target is known. Whatever the maps hold elsewhere, NaN included, has no
    influence and no gradient. The value is in fp32 (fp64 for fp64 maps) whatever the precision of the maps.
    """

    kinds: frozenset[str] = frozenset()  # of depth for which the loss is meaningful
    advice: ClassVar[dict[str, str]] = {}  # what to do about another kind
    reads_logits: ClassVar[bool] = False  # takes a head's bin logits (B, N, H, W) in place of its depth

    def check_kind(self, kind: str) -> None:
        """Raise unless the loss means something for depth of this kind."""
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r}: expected one of {', '.join(KINDS)}.{did_you_mean(kind, KINDS)}")
        if kind not in self.kinds:
            own = " or ".join(sorted(self.kinds))
            raise ValueError(f"{type(self).__name__} is for {own} depth, not for {kind!r}: {self.advice[kind]}")


def prepare(prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both maps (B, 1, H, W) in fp32 or better, and 1 wherever the mask is False."""
    check_shapes(prediction, target, mask)
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ; "
            "resize the prediction to the size of the target"
        )
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    one = torch.ones((), dtype=dtype, device=prediction.device)
    return torch.where(mask, prediction.to(dtype), one), torch.where(mask, target.to(dtype), one), mask


def check_shapes(prediction: Tensor, target: Tensor, mask: Tensor) -> None:
    """Raise unless target and mask are (B, 1, H, W), the mask boolean, and the prediction has as many images."""
    shapes = f"prediction {tuple(prediction.shape)}, target {tuple(target.shape)}, mask {tuple(mask.shape)}"
    if target.ndim != 4 or target.shape[1] != 1 or mask.shape != target.shape or len(prediction) != len(target):
        raise ValueError(f"{shapes}: expected (B, 1, H, W) for target and mask, and as many images in the prediction")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask of dtype {mask.dtype}: expected torch.bool, True where the target is known")


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over the pixels of each image that the mask keeps, (B, 1, H, W) -> (B,)."""
    return torch.where(mask, values, torch.zeros_like(values)).flatten(1).sum(1)


def pixels(mask: Tensor) -> Tensor:
    """Number of pixels of each image that the mask keeps, at least 1, (B, 1, H, W) -> (B,)."""
    return mask.flatten(1).sum(1).clamp(min=1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the pixels of each image that the mask keeps, 0 where it keeps none, (B, 1, H, W) -> (B,)."""
    return masked_sum(values, mask) / pixels(mask)


def mean_over_images(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of one value per image, (B,) -> (), over those images of which the mask keeps a pixel; else 0."""
    counted = mask.flatten(1).any(1)  # B
    return torch.where(counted, values, torch.zeros_like(values)).sum() / counted.sum().clamp(min=1)


def safe_sqrt(values: Tensor) -> Tensor:
    """Square root, whose gradient is 0 instead of infinite where its argument is 0."""
    positive = values > 0
    return torch.where(positive, values, torch.ones_like(values)).sqrt() * positive


def per_pixel(values: Tensor) -> Tensor:
    """One value per image, (B,) -> (B, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)


KINDS: tuple[str, ...] = get_args(DepthKind)

__all__ = ["KINDS", "DepthKind"]
