"""Multi-scale gradient matching, and the MiDaS loss made of it."""

from __future__ import annotations

from torch import Tensor

from dense.losses.base import mean_over_images
from dense.losses.differences import roughness
from dense.losses.ssi import SSI, RobustSSI, _Invariant, least_squares_error, robust_error


class GradientMatching(_Invariant):
    """Edges of inverse depth should be where those of the target are, up to a scale.

    With R the difference of the two maps once aligned (least squares, or median and deviation if ``robust``), R_k
    every 2^k-th row and column of it and M_k its valid pixels::

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
        """Scalar loss of maps and mask (B, 1, H, W)."""
        prediction, target, mask = self.prepare(prediction, target, mask)
        error = (robust_error if self.robust else least_squares_error)(prediction, target, mask)
        return mean_over_images(roughness(error, mask, [2**k for k in range(self.scales)], distance=1), mask)

    def extra_repr(self) -> str:
        return f"scales={self.scales}, robust={self.robust}, {super().extra_repr()}"


class MiDaSLoss(_Invariant):
    """``SSI + alpha * GradientMatching``: relative depth from targets of any scale and shift.

    Ranftl et al., 2020, equation 12, alpha 0.5. ``robust`` takes `RobustSSI` and aligns both terms by median and
    deviation. Depth Anything V2 weighs the gradients twice as much as the rest: alpha 2.

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
        """Scalar loss of maps and mask (B, 1, H, W)."""
        return self.data(prediction, target, mask) + self.alpha * self.gradients(prediction, target, mask)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"
