"""Scale- and shift-invariant losses, for relative depth."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from dense.losses.base import DepthLoss, masked_mean, mean_over_images, per_pixel, pixels, prepare

ADVICE = {
    "metric": "only 1 / depth is invariant to a shift; set invert=True, or use SiLog",
    "inverse_relative": "leave invert at False",
    "log": "only 1 / depth is invariant to a shift; use SiLog(variance_focus=1, log_space=True)",
}
RELATIVE = 1e-6  # a deviation below this share of the values is rounding
SMALLEST_DEPTH = 1e-6  # metres; the smallest divisor of `invert`


class ScaleShiftInvariant(DepthLoss):
    """Base: reads maps of inverse depth, or inverts maps of metric depth first."""

    advice: ClassVar = ADVICE

    def __init__(self, invert: bool = False) -> None:
        super().__init__()
        self.invert = invert
        self.kinds = frozenset({"metric" if invert else "inverse_relative"})

    def prepare(self, prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        prediction, target, mask = prepare(prediction, target, mask)
        if self.invert:
            prediction, target = 1 / prediction.clamp(min=SMALLEST_DEPTH), 1 / target.clamp(min=SMALLEST_DEPTH)
        return prediction, target, mask


class SSI(ScaleShiftInvariant):
    """Squared error after the scale and shift that minimise it, per image and in closed form::

        loss = mean of (s p + t - target)^2 / 2,   (s, t) = argmin over valid pixels of the image

    Ranftl et al., "Towards robust monocular depth estimation: Mixing datasets for zero-shot cross-dataset transfer",
    2020, equations 1 to 4. The gradient flows through s and t. A constant prediction gets s = 0.

    >>> disparity = torch.rand(2, 1, 8, 8)
    >>> bool(SSI()(3 * disparity + 5, disparity, disparity > 0) < 1e-6)
    True
    """

    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Return the scalar loss of maps and mask (B, 1, H, W)."""
        prediction, target, mask = self.prepare(prediction, target, mask)
        return mean_over_images(masked_mean(least_squares_error(prediction, target, mask).square(), mask) / 2, mask)


class RobustSSI(ScaleShiftInvariant):
    """Absolute error of normalised maps, without the largest errors of each image.

    With M valid pixels, r the absolute differences in ascending order and U = (1 - trim) M of them kept::

        loss = 1 / (2 M) * sum of the first U of r,   r = |n(prediction) - n(target)|
        n(x) = (x - median) / mean |x - median|

    Ranftl et al., 2020, equations 5 to 7 (trim 0.2). Depth Anything is this with trim 0 and without the factor 1 / 2.

    >>> disparity = torch.rand(2, 1, 8, 8)
    >>> bool(RobustSSI()(3 * disparity + 5, disparity, disparity > 0) < 1e-5)
    True
    """

    def __init__(self, trim: float = 0.2, invert: bool = False) -> None:
        super().__init__(invert)
        if not 0 <= trim < 1:
            raise ValueError(f"trim={trim}: expected a share from 0 to below 1 (published: 0.2)")
        self.trim = trim

    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Return the scalar loss of maps and mask (B, 1, H, W)."""
        prediction, target, mask = self.prepare(prediction, target, mask)
        error = robust_error(prediction, target, mask).abs()
        error = torch.where(mask, error, torch.full_like(error, torch.inf)).flatten(1).sort(dim=1).values  # B, HW
        count = mask.flatten(1).sum(1)  # B
        kept = torch.arange(error.shape[1], device=error.device) < (count - (self.trim * count).floor()).unsqueeze(1)
        value = torch.where(kept, error, torch.zeros_like(error)).sum(1) / (2 * pixels(mask))
        return mean_over_images(value, mask)


def least_squares_error(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return ``scale * prediction + shift - target`` (B, 1, H, W) with scale and shift by least squares per image."""
    centred, centred_target = _centre(prediction, mask), _centre(target, mask)
    variance, size = masked_mean(centred.square(), mask), masked_mean(prediction.square(), mask)  # B
    contrast = variance > RELATIVE**2 * size
    covariance = masked_mean(centred * centred_target, mask)
    scale = torch.where(contrast, covariance, 0.0) / torch.where(contrast, variance, 1.0)
    return per_pixel(scale) * centred - centred_target


def robust_error(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the difference (B, 1, H, W) of the two maps, each normalised per image."""
    return _normalise(prediction, mask) - _normalise(target, mask)


def _centre(values: Tensor, mask: Tensor) -> Tensor:
    return values - per_pixel(masked_mean(values, mask))


def _normalise(values: Tensor, mask: Tensor) -> Tensor:
    """Normalise to median 0 (the lower one of two) and mean absolute deviation 1; a constant map becomes 0."""
    nan = torch.full_like(values, torch.nan)
    median = torch.where(mask, values, nan).flatten(1).nanmedian(1).values  # B
    median = torch.where(mask.flatten(1).any(1), median, torch.zeros_like(median))
    centred = values - per_pixel(median)
    deviation = masked_mean(centred.abs(), mask)
    spread = deviation > RELATIVE * median.abs()
    return torch.where(per_pixel(spread), centred, 0.0) / per_pixel(torch.where(spread, deviation, 1.0))
