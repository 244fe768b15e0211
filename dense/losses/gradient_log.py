"""The gradient loss on log depth of the DINOv2 and DINOv3 depth evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from dense.losses.base import DepthLoss, mean_over_images, prepare
from dense.losses.differences import roughness


class GradientLog(DepthLoss):
    """Edges of the predicted log depth should be where those of the target are.

    With d = log(prediction + eps) - log(target + eps), d_s every s-th row and column of it and N_s its valid pixels::

        loss = sum over strides s of  1 / N_s * sum(|d_s[y + 2, x] - d_s[y, x]| + |d_s[y, x + 2] - d_s[y, x]|)

    Oquab et al., "DINOv2: Learning robust visual features without supervision", 2023 (depth heads), after Li and
    Snavely, "MegaDepth", 2018, equation 5. The sums are those of each image, then averaged over images; published
    training pools the batch, which is the same where all images have equally many valid pixels. Negative predictions
    count as 0. With ``log_space=True`` both maps hold logarithms already.

    >>> depth = torch.rand(2, 1, 32, 32) + 1
    >>> bool(GradientLog()(3 * depth, depth, depth > 0) < 1e-2)  # the scale has no edges
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
        """Scalar loss of maps and mask (B, 1, H, W)."""
        prediction, target, mask = prepare(prediction, target, mask)
        if not self.log_space:
            prediction = torch.log(prediction.clamp(min=0) + self.eps)
            target = torch.log(target + self.eps)
        return mean_over_images(roughness(prediction - target, mask, self.strides, self.distance), mask)

    def extra_repr(self) -> str:
        return f"strides={self.strides}, distance={self.distance}, eps={self.eps}, log_space={self.log_space}"
