"""Base of the depth losses: kinds of depth, inputs in fp32, and means that are finite for an empty mask."""

from __future__ import annotations

from typing import ClassVar, get_args

import torch
from torch import Tensor, nn

from dense.suggest import did_you_mean
from heads.outputs import DepthKind

__all__ = ["KINDS", "DepthKind", "DepthLoss"]
KINDS: tuple[str, ...] = get_args(DepthKind)


class DepthLoss(nn.Module):
    """A loss ``(prediction, target, mask) -> scalar`` over maps (B, 1, H, W) of one kind of depth.

    ``mask`` is boolean, True where the target is known. Values elsewhere, NaN included, have no influence and no
    gradient. The loss is in fp32 (fp64 for fp64 maps) whatever the precision of the maps.
    """

    kinds: frozenset[str] = frozenset()  # kinds of depth for which the loss is meaningful
    advice: ClassVar[dict[str, str]] = {}  # other kinds, and what to use for them
    reads_logits: ClassVar[bool] = False  # takes bin logits (B, N, H, W) of a head instead of its depth

    def check_kind(self, kind: str) -> None:
        """Raise unless the loss is meaningful for depth of this kind."""
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r}: expected one of {', '.join(KINDS)}.{did_you_mean(kind, KINDS)}")
        if kind not in self.kinds:
            known = " or ".join(sorted(self.kinds))
            raise ValueError(f"{type(self).__name__} is for {known} depth, not for {kind!r}: {self.advice[kind]}")

    def extra_repr(self) -> str:
        hidden = ("training", "kinds")
        return ", ".join(f"{k}={v}" for k, v in vars(self).items() if not k.startswith("_") and k not in hidden)


def prepare(prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return both maps (B, 1, H, W) in fp32 or better, set to 1 where the mask is False, and the mask."""
    check_maps(prediction, target, mask)
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    one = torch.ones((), dtype=dtype, device=prediction.device)
    return torch.where(mask, prediction.to(dtype), one), torch.where(mask, target.to(dtype), one), mask


def check_maps(prediction: Tensor, target: Tensor, mask: Tensor) -> None:
    """Raise unless all three are maps (B, 1, H, W) of one size, the mask boolean."""
    check_shapes(prediction, target, mask)
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ; "
            "resize the prediction to the size of the target"
        )


def check_shapes(prediction: Tensor, target: Tensor, mask: Tensor) -> None:
    """Raise unless target and mask are (B, 1, H, W), the mask boolean, and the prediction has as many images."""
    shapes = f"prediction {tuple(prediction.shape)}, target {tuple(target.shape)}, mask {tuple(mask.shape)}"
    if target.ndim != 4 or target.shape[1] != 1 or mask.shape != target.shape or len(prediction) != len(target):
        raise ValueError(f"{shapes}: expected (B, 1, H, W) for target and mask, and as many images in the prediction")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask of dtype {mask.dtype}: expected torch.bool, True where the target is known")


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Return the sum over the valid pixels of each image, (B, 1, H, W) -> (B,)."""
    return torch.where(mask, values, torch.zeros_like(values)).flatten(1).sum(1)


def pixels(mask: Tensor) -> Tensor:
    """Return the number of valid pixels of each image, at least 1, (B, 1, H, W) -> (B,)."""
    return mask.flatten(1).sum(1).clamp(min=1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over the valid pixels of each image, 0 if it has none, (B, 1, H, W) -> (B,)."""
    return masked_sum(values, mask) / pixels(mask)


def mean_over_images(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of one value per image, (B,) -> (), over the images with valid pixels; 0 without any."""
    valid = mask.flatten(1).any(1)  # B
    return torch.where(valid, values, torch.zeros_like(values)).sum() / valid.sum().clamp(min=1)


def safe_sqrt(values: Tensor) -> Tensor:
    """Return the square root, with gradient 0 instead of infinity at 0."""
    positive = values > 0
    return torch.where(positive, values, torch.ones_like(values)).sqrt() * positive


def per_pixel(values: Tensor) -> Tensor:
    """Reshape one value per image, (B,) -> (B, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)
