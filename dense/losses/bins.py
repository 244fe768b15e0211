"""Cross-entropy for heads that classify depth into bins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dense.losses.base import DepthLoss, check_shapes, masked_mean, mean_over_images

Assignment = Literal["nearest", "linear"]
Normalisation = Literal["softmax", "linear", "sigmoid"]


class BinCrossEntropy(DepthLoss):
    """Cross-entropy of bin logits against the bin, or the two bins, of the target.

    With ascending centres c, ``assignment="nearest"`` puts all mass of the target t at the nearest centre. ``"linear"``
    shares it between the two neighbours, so that its expectation is t::

        w = (t - c[i]) / (c[i + 1] - c[i]),   loss = mean of -(1 - w) log p[i] - w log p[i + 1]

    p are the weights of the head's expectation: the softmax of the logits, or with ``normalisation`` linear or sigmoid
    ``relu + 0.1`` or the sigmoid over its sum. Targets beyond the outer centres are assigned to those. Centres and
    target are of one kind, metres or log metres. Cao et al., "Estimating depth from monocular images as classification
    using deep fully convolutional residual networks", 2017; the linear assignment is the two-hot target of Imani and
    White, "Improving regression performance with distributional losses", 2018.

    >>> loss = BinCrossEntropy(torch.linspace(0.001, 10, 64))
    >>> depth = 10 * torch.rand(2, 1, 8, 8)
    >>> value = loss(torch.randn(2, 64, 8, 8), depth, depth > 0)
    """

    kinds = frozenset({"metric", "log"})
    advice: ClassVar = {"inverse_relative": "its scale and shift are unknown, so it has no bins; use SSI or MiDaSLoss"}
    reads_logits = True
    centres: Tensor

    def __init__(
        self,
        centres: Tensor | Sequence[float],
        assignment: Assignment = "nearest",
        normalisation: Normalisation = "softmax",
    ) -> None:
        super().__init__()
        values = torch.as_tensor(centres, dtype=torch.float32).detach().clone()
        if values.ndim != 1 or len(values) < 2 or not bool((values.diff() > 0).all()):
            raise ValueError(f"centres of shape {tuple(values.shape)}: expected at least two ascending numbers")
        if assignment not in ("nearest", "linear"):
            raise ValueError(f"assignment={assignment!r}: expected 'nearest' or 'linear'")
        if normalisation not in ("softmax", "linear", "sigmoid"):
            raise ValueError(f"normalisation={normalisation!r}: expected 'softmax', 'linear' or 'sigmoid'")
        self.assignment, self.normalisation = assignment, normalisation
        self.register_buffer("centres", values, persistent=False)  # N

    def forward(self, logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Return the scalar loss of logits (B, N, H, W), depth and mask (B, 1, H, W)."""
        check_shapes(logits, target, mask)
        if logits.shape[1] != len(self.centres) or logits.shape[2:] != target.shape[2:]:
            expected = (len(target), len(self.centres), *target.shape[2:])
            raise ValueError(
                f"logits {tuple(logits.shape)}: expected {expected}, one channel per bin, at the target's size"
            )
        dtype = torch.promote_types(logits.dtype, torch.float32)
        centres = self.centres.to(dtype)
        target = torch.where(mask, target.to(dtype), centres[0]).clamp(centres[0], centres[-1])
        upper = torch.bucketize(target, centres).clamp(min=1)  # B, 1, H, W
        share = (target - centres[upper - 1]) / (centres[upper] - centres[upper - 1])  # of the upper bin
        if self.assignment == "nearest":
            share = (share > 0.5).to(dtype)
        weights = self._log_weights(torch.where(mask, logits.to(dtype), 0.0))  # B, N, H, W
        assigned = torch.lerp(weights.gather(1, upper - 1), weights.gather(1, upper), share)
        return mean_over_images(masked_mean(weights.logsumexp(1, keepdim=True) - assigned, mask), mask)

    def _log_weights(self, logits: Tensor) -> Tensor:
        if self.normalisation == "softmax":
            return logits
        return F.logsigmoid(logits) if self.normalisation == "sigmoid" else (logits.relu() + 0.1).log()
