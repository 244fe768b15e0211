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
SIDE = 1024  # columns of a strip that are measured at once


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
            self.add(kind, numbers)

    def add(self, kind: str, numbers: Tensor) -> None:
        """Add the `NUMBERS` of an image, such as those of `InStrips`."""
        if kind not in self.kinds:
            raise ValueError(f"unknown kind of degradation {kind!r}: expected one of {', '.join(self.kinds)}")
        self.totals[self.kinds.index(kind)] += numbers.to(self.totals)
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
    return of_error((restored - clean).square().flatten(1).mean(1))


def of_error(error: Tensor) -> Tensor:
    """Return the PSNR in dB of mean squared errors."""
    return 10 * torch.log10(255**2 / error.clamp(min=0.01))


def ssim(restored: Tensor, clean: Tensor) -> Tensor:
    """Return the structural similarity (Wang et al., 2004) of each image (B, C, H, W) of 0 to 255, (B,).

    Gaussian windows inside the image, biased moments, the mean over channels. Images smaller than the window get a
    smaller one, which torchmetrics does not do.
    """
    return similarity(restored, clean).flatten(1).mean(1).float()


def similarity(restored: Tensor, clean: Tensor) -> Tensor:
    """Return the similarity in each window (B, C, H - 10, W - 10), see `ssim`."""
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
    agreement = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return agreement / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))


class InStrips:
    """The numbers of an image that is not in memory, from strips of its rows, of at least 11 columns, one below the
    other.

    Pixels that are not valid do not count, nor do windows of SSIM that touch one.
    """

    def __init__(self) -> None:
        self._above: tuple[Tensor, ...] = ()  # the rows of the strip before that windows share with the next
        self._sums = torch.zeros(2, 2, dtype=torch.float64)  # of RGB and luma: squared error, similarity
        self._counts = torch.zeros(2, 2, dtype=torch.float64)

    def add(self, restored: Tensor, clean: Tensor, valid: Tensor) -> None:
        """Add rows (N, h, W) of 0 to 1; valid: (h, W)."""
        strip = (to_8_bits(restored)[None], to_8_bits(clean)[None], valid[None, None])
        rows: tuple[Tensor, ...] = strip
        if self._above:
            rows = tuple(torch.cat(parts, 2) for parts in zip(self._above, strip, strict=True))
        self._above = tuple(part[:, :, max(part.shape[2] - WINDOW + 1, 0) :].clone() for part in rows)
        for left in range(0, strip[0].shape[3], SIDE):
            self._count(0, *(part[..., left : left + SIDE] for part in strip))
        for left in range(0, max(rows[0].shape[3] - WINDOW + 1, 0), SIDE) if rows[0].shape[2] >= WINDOW else ():
            self._count(1, *(part[..., left : left + SIDE + WINDOW - 1] for part in rows))

    def _count(self, column: int, restored: Tensor, clean: Tensor, valid: Tensor) -> None:
        if column:
            valid = F.max_pool2d((~valid).float(), WINDOW, 1) == 0
        for row, (a, b) in enumerate(((restored, clean), (luma(restored), luma(clean)))):
            values = similarity(a, b) if column else (a - b).square().double()
            self._sums[row, column] += (values * valid).sum().cpu()
            self._counts[row, column] += int(valid.sum()) * values.shape[1]

    def numbers(self) -> Tensor:
        """Return the `NUMBERS` of the image, NaN if no pixel is valid."""
        means = self._sums / self._counts
        return torch.stack([of_error(means[:, 0]), means[:, 1]], 1).flatten()


def gaussian(length: int) -> Tensor:
    """Return the weights of a Gaussian window, (length,), of sum 1, in fp64."""
    offsets = torch.arange(length, dtype=torch.float64) - (length - 1) / 2
    weights = torch.exp(-0.5 * (offsets / SIGMA) ** 2)
    return weights / weights.sum()
