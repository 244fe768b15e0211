"""PSNR and SSIM of restored images, of RGB and of luma."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

NUMBERS = ("psnr", "ssim", "psnr_y", "ssim_y")
WINDOW, SIGMA = 11, 1.5  # of SSIM's Gaussian
K1, K2 = 0.01, 0.03


class RestorationMetrics(Metric):
    """Means over images of PSNR (dB) and SSIM, per kind of degradation and over all images.

    They are computed over RGB (``psnr``, ``ssim``) and over the luma Y of ITU-R BT.601 in 16 to 235, as by MATLAB's
    rgb2ycbcr (``psnr_y``, ``ssim_y``). Images are first clamped to 0..1 and rounded to 8 bits, as they are saved. The
    PSNR of a perfect image is limited to 68.1 dB, an error of a tenth of an 8-bit step, so that a mean stays finite.

    >>> metrics = RestorationMetrics(("noise",))
    >>> clean = torch.rand(2, 3, 16, 16)
    >>> metrics.update(clean * 0.9, clean, ["noise", "noise"])
    >>> sorted(metrics.compute())
    ['images', 'per_degradation', 'psnr', 'psnr_y', 'ssim', 'ssim_y']
    """

    full_state_update = False
    totals: Tensor
    counts: Tensor

    def __init__(self, kinds: Sequence[str]) -> None:
        super().__init__()
        if not kinds:
            raise ValueError("kinds=(): expected at least one name of a kind of degradation")
        self.kinds = tuple(kinds)
        self.add_state("totals", torch.zeros(len(self.kinds), len(NUMBERS)), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(len(self.kinds), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, restored: Tensor, clean: Tensor, kinds: Sequence[str]) -> None:
        """Add images (B, N, H, W) of 0 to 1, each with its kind of degradation."""
        if restored.shape != clean.shape:
            raise ValueError(f"restored {tuple(restored.shape)} and clean {tuple(clean.shape)} differ in size")
        restored, clean = to_8_bits(restored), to_8_bits(clean)
        pairs = ((restored, clean), (luma(restored), luma(clean)))
        values = torch.stack([metric(a, b) for a, b in pairs for metric in (psnr, ssim)], 1)  # B, 4
        for kind, numbers in zip(kinds, values, strict=True):
            if kind not in self.kinds:
                raise ValueError(f"unknown kind of degradation {kind!r}: expected one of {', '.join(self.kinds)}")
            self.totals[self.kinds.index(kind)] += numbers
            self.counts[self.kinds.index(kind)] += 1

    def compute(self) -> dict[str, Any]:
        """Return means over all images, and under ``per_degradation`` those of each kind."""
        count = int(self.counts.sum())
        means = self.totals.sum(0) / count if count else torch.full((len(NUMBERS),), math.nan)
        per_kind = {
            kind: dict(zip(NUMBERS, (total / number).tolist(), strict=True)) | {"images": int(number)}
            for kind, total, number in zip(self.kinds, self.totals, self.counts, strict=True)
            if number
        }
        numbers = dict(zip(NUMBERS, means.tolist(), strict=True))
        return numbers | {"images": float(count), "per_degradation": per_kind}


def to_8_bits(images: Tensor) -> Tensor:
    """Quantise images of 0 to 1 to the integers 0 to 255, as fp32."""
    return (images.float().clamp(0, 1) * 255).round()


def luma(images: Tensor) -> Tensor:
    """Return the luma Y (B, 1, H, W) of 16 to 235, not rounded, of RGB (B, 3, H, W) of 0 to 255.

    Where channels are no colours, it is the mean over channels instead.
    """
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    red, green, blue = images.unbind(1)
    return (16 + (65.481 * red + 128.553 * green + 24.966 * blue) / 255)[:, None]


def psnr(restored: Tensor, clean: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB of each image (B, C, H, W) of 0 to 255, (B,)."""
    error = (restored - clean).square().flatten(1).mean(1).clamp(min=0.01)
    return 10 * torch.log10(255**2 / error)


def ssim(restored: Tensor, clean: Tensor) -> Tensor:
    """Return the structural similarity (Wang et al., 2004) of each image (B, C, H, W) of 0 to 255, (B,).

    Gaussian windows inside the image, biased moments, the mean over channels. Images smaller than the window get a
    smaller one, which torchmetrics does not do.
    """
    channels, height, width = restored.shape[1:]
    exact = torch.float32 if restored.device.type == "mps" else torch.float64
    rows, columns = (gaussian(min(WINDOW, side)).to(restored.device, exact) for side in (height, width))

    def mean(x: Tensor) -> Tensor:
        x = F.conv2d(x, rows.view(1, 1, -1, 1).expand(channels, -1, -1, -1), groups=channels)
        return F.conv2d(x, columns.view(1, 1, 1, -1).expand(channels, -1, -1, -1), groups=channels)

    x, y = restored.to(exact), clean.to(exact)
    mean_x, mean_y = mean(x), mean(y)
    variance_x, variance_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    c1, c2 = (K1 * 255) ** 2, (K2 * 255) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
    return similarity.flatten(1).mean(1).float()


def gaussian(length: int) -> Tensor:
    """Return the weights of a Gaussian window, (length,), of sum 1, in fp64."""
    offsets = torch.arange(length, dtype=torch.float64) - (length - 1) / 2
    weights = torch.exp(-0.5 * (offsets / SIGMA) ** 2)
    return weights / weights.sum()
