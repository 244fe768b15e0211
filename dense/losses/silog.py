"""The scale-invariant logarithmic loss."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from dense.losses.base import (
    DepthLoss,
    masked_mean,
    masked_sum,
    mean_over_images,
    per_pixel,
    pixels,
    prepare,
    safe_sqrt,
)


class SiLog(DepthLoss):
    """Standard deviation of the logarithmic error, plus a share of its mean.

    With d = log(prediction + eps) - log(target + eps) over the valid pixels and f the variance focus::

        loss = scale * sqrt(mean(d^2) - f mean(d)^2) = scale * sqrt(var(d) + (1 - f) mean(d)^2)

    f = 1 is invariant to the scale of a prediction. Eigen et al., "Depth map prediction from a single image using
    a multi-scale deep network", 2014, equation 4. Published versions:

    =====================  ==============  =====  ========  ============  ====
    version                variance_focus  scale  unbiased  warmup_steps  eps
    =====================  ==============  =====  ========  ============  ====
    BTS, AdaBins           0.85            10     no        0             0
    Depth Anything V2      0.5             1      no        0             0
    DINOv2, DINOv3         0.85            1      yes       100           1e-3
    =====================  ==============  =====  ========  ============  ====

    All of them pool the pixels of a batch, hence ``over="batch"``; ``"image"`` averages the losses of the images, so
    that each does not depend on the others in the batch. During the first ``warmup_steps``
    training batches (micro-batches, with accumulation) the variance is left out. Negative predictions count as 0. With
    ``log_space=True`` both maps are logarithms already and ``eps`` is not used.

    >>> depth = torch.rand(2, 1, 8, 8) + 1
    >>> bool(SiLog(variance_focus=1)(3 * depth, depth, depth > 0) < 1e-3)
    True
    """

    advice: ClassVar = {
        "metric": "leave log_space at False",
        "inverse_relative": "its scale and shift are unknown; use SSI or MiDaSLoss",
        "log": "set log_space=True",
    }
    step: Tensor  # training steps so far; saved with the model

    def __init__(
        self,
        variance_focus: float = 0.85,
        scale: float = 1.0,
        unbiased: bool = False,
        warmup_steps: int = 0,
        eps: float = 1e-6,
        over: Literal["batch", "image"] = "batch",
        log_space: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= variance_focus <= 1:
            raise ValueError(f"variance_focus={variance_focus}: expected 0 to 1 (published: 0.5 and 0.85)")
        if warmup_steps and variance_focus == 1:
            raise ValueError(f"warmup_steps={warmup_steps} with variance_focus=1 gives no gradient; set it to 0")
        if over not in ("batch", "image"):
            raise ValueError(f"over={over!r}: expected 'batch' or 'image'")
        self.variance_focus, self.scale, self.unbiased = variance_focus, scale, unbiased
        self.warmup_steps, self.eps, self.over, self.log_space = warmup_steps, eps, over, log_space
        self.kinds = frozenset({"log" if log_space else "metric"})
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Return the scalar loss of maps and mask (B, 1, H, W)."""
        prediction, target, mask = prepare(prediction, target, mask)
        if not self.log_space:
            prediction = (prediction.clamp(min=0) + self.eps).log()
            target = (target + self.eps).log()
        error = prediction - target  # B, 1, H, W
        if self.over == "batch":
            error, mask = error.reshape(1, 1, 1, -1), mask.reshape(1, 1, 1, -1)
        mean = masked_mean(error, mask)  # B
        variance = masked_sum((error - per_pixel(mean)).square(), mask)
        variance = variance / (pixels(mask) - int(self.unbiased)).clamp(min=1)
        if self.warmup_steps:
            variance = variance * (self.step >= self.warmup_steps)
            if self.training:
                self.step += 1
        return self.scale * mean_over_images(safe_sqrt(variance + (1 - self.variance_focus) * mean.square()), mask)
