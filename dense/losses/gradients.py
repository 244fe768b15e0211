"""Losses of the gradients of depth at several scales."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from dense.losses.base import DepthLoss, masked_sum, mean_over_images, pixels, prepare
from dense.losses.ssi import SSI, RobustSSI, ScaleShiftInvariant, least_squares_error, robust_error


def roughness(error: Tensor, mask: Tensor, strides: Iterable[int], distance: int) -> Tensor:
    """Return the sum over scales of the mean absolute difference of pixels ``distance`` apart, (B, 1, H, W) -> (B,).

    A scale is every stride-th row and column. On it the differences along H and along W between two valid pixels are
    summed and divided by the number of valid pixels.
    """
    total = error.flatten(1)[:, :0].sum(1)  # B; zero, with a gradient path
    for stride in strides:
        coarse, valid = error[..., ::stride, ::stride], mask[..., ::stride, ::stride]
        for dim in (-2, -1):
            size = coarse.shape[dim] - distance
            if size > 0:
                first, second = coarse.narrow(dim, 0, size), coarse.narrow(dim, distance, size)
                both = torch.logical_and(valid.narrow(dim, 0, size), valid.narrow(dim, distance, size))
                total = total + masked_sum((second - first).abs(), both) / pixels(valid)
    return total


class GradientLog(DepthLoss):
    """Difference between the gradients of predicted and true log depth.

    With d = log(prediction + eps) - log(target + eps), d_s every s-th row and column of it and N_s its valid pixels::

        loss = sum over strides s of  1 / N_s * sum(|d_s[y + 2, x] - d_s[y, x]| + |d_s[y, x + 2] - d_s[y, x]|)

    Oquab et al., "DINOv2: Learning robust visual features without supervision", 2023 (depth heads), after Li and
    Snavely, "MegaDepth", 2018, equation 5. The sums are per image, then averaged over images; published training pools
    the batch, which is the same if all images have equally many valid pixels. Negative predictions count as 0. With
    ``log_space=True`` both maps are logarithms already.

    >>> depth = torch.rand(2, 1, 32, 32) + 1
    >>> bool(GradientLog()(3 * depth, depth, depth > 0) < 1e-2)  # a constant factor has no gradient
    True
    """

    advice: ClassVar = {
        "metric": "leave log_space at False",
        "inverse_relative": "its scale and shift are unknown; use GradientMatching or MiDaSLoss",
        "log": "set log_space=True",
    }

    def __init__(
        self, strides: Sequence[int] = (1, 2, 4, 6), distance: int = 2, eps: float = 1e-3, log_space: bool = False
    ) -> None:
        super().__init__()
        if distance < 1 or not strides or min(strides) < 1:
            raise ValueError(
                f"strides={tuple(strides)}, distance={distance}: expected positive (published: 1, 2, 4, 6; 2)"
            )
        self.strides, self.distance, self.eps, self.log_space = tuple(strides), distance, eps, log_space
        self.kinds = frozenset({"log" if log_space else "metric"})

    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Return the scalar loss of maps and mask (B, 1, H, W)."""
        prediction, target, mask = prepare(prediction, target, mask)
        if not self.log_space:
            prediction = torch.log(prediction.clamp(min=0) + self.eps)
            target = torch.log(target + self.eps)
        return mean_over_images(roughness(prediction - target, mask, self.strides, self.distance), mask)


class GradientMatching(ScaleShiftInvariant):
    """Difference between the gradients of predicted and true inverse depth, up to a scale.

    With R the difference of the aligned maps (by least squares, or by median and deviation if ``robust``), R_k every
    2^k-th row and column of it and M_k its valid pixels::

        loss = sum over k of  1 / M_k * sum(|R_k[y + 1, x] - R_k[y, x]| + |R_k[y, x + 1] - R_k[y, x]|)

    Ranftl et al., "Towards robust monocular depth estimation", 2020, equation 11; 4 scales.

    >>> import torch
    >>> disparity = torch.rand(2, 1, 32, 32)
    >>> bool(GradientMatching()(3 * disparity + 5, disparity, disparity > 0) < 1e-4)
    True
    """

    def __init__(self, scales: int = 4, robust: bool = False, invert: bool = False) -> None:
        super().__init__(invert)
        if scales < 1:
            raise ValueError(f"scales={scales}: expected at least 1 (published: 4)")
        self.scales, self.robust = scales, robust

    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Return the scalar loss of maps and mask (B, 1, H, W)."""
        prediction, target, mask = self.prepare(prediction, target, mask)
        error = (robust_error if self.robust else least_squares_error)(prediction, target, mask)
        return mean_over_images(roughness(error, mask, [2**k for k in range(self.scales)], distance=1), mask)


class MiDaSLoss(ScaleShiftInvariant):
    """``SSI + alpha * GradientMatching``: relative depth from targets of any scale and shift.

    Ranftl et al., 2020, equation 12, alpha 0.5. ``robust`` uses `RobustSSI` and aligns both terms by median and
    deviation. Depth Anything V2 uses alpha 2.

    >>> import torch
    >>> disparity = torch.rand(2, 1, 32, 32)
    >>> value = MiDaSLoss()(disparity.square(), disparity, disparity > 0)
    """

    def __init__(
        self, alpha: float = 0.5, scales: int = 4, robust: bool = False, trim: float = 0.2, invert: bool = False
    ) -> None:
        super().__init__(invert)
        self.alpha = alpha
        self.data = RobustSSI(trim, invert) if robust else SSI(invert)
        self.gradients = GradientMatching(scales, robust, invert)

    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Return the scalar loss of maps and mask (B, 1, H, W)."""
        return self.data(prediction, target, mask) + self.alpha * self.gradients(prediction, target, mask)
