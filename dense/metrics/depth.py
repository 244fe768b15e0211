"""Error and accuracy of predicted depth, by the metrics of the field."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor
from torchmetrics import Metric

from dense.losses.base import KINDS, check_maps, masked_mean, per_pixel
from dense.losses.ssi import least_squares_error
from dense.metrics.crops import CROPS, Crop, crop_mask
from dense.suggest import did_you_mean
from heads.outputs import DepthKind

Alignment = Literal["none", "median", "lsq"]
ALIGNMENTS: tuple[str, ...] = get_args(Alignment)
SMALLEST = 1e-12
NAMES = (
    "abs_rel",  # mean |p - t| / t
    "sq_rel",  # mean (p - t)^2 / t
    "rmse",  # sqrt(mean (p - t)^2)
    "rmse_log",  # sqrt(mean d^2), d = log p - log t
    "log10",  # mean |log10 p - log10 t|
    "silog",  # 100 sqrt(mean d^2 - mean(d)^2), the KITTI benchmark's
    "silog_half",  # sqrt(mean d^2 - mean(d)^2 / 2), which Depth Anything V2 and mmsegmentation report as silog
    "mae",  # mean |p - t|
    "delta1",  # fraction of pixels with max(p / t, t / p) < 1.25
    "delta2",  # ... < 1.25^2
    "delta3",  # ... < 1.25^3
)


class DepthMetrics(Metric):
    """Depth metrics over a set, averaged over images, or with ``average="pixel"`` over pixels.

    A pixel is valid inside mask and crop if its true depth lies strictly within ``cap``, in metres. The prediction is
    clamped to ``cap``. By ``kind`` it is depth (``metric``), its logarithm (``log``) or 1 / depth up to an unknown
    scale and shift (``inverse_relative``), which needs an alignment per image over the valid pixels: ``lsq`` fits scale
    and shift by least squares, to 1 / target for ``inverse_relative`` and to the target otherwise; ``median`` scales
    depth by the ratio of the medians.

    Images without a valid pixel are left out; ``images`` counts the others and ``skipped`` these. Without any image all
    metrics are NaN.

    >>> metrics = DepthMetrics(cap=(1e-3, 10))
    >>> depth = torch.rand(2, 1, 8, 8) + 1
    >>> metrics.update(1.1 * depth, depth, depth > 0)
    >>> print(f"{metrics.compute()['abs_rel']:.3f}")
    0.100
    """

    full_state_update = False
    sums: Tensor  # of the metrics over images, or of their terms over pixels
    images: Tensor
    pixels: Tensor
    skipped: Tensor

    def __init__(
        self,
        kind: DepthKind = "metric",
        alignment: Alignment = "none",
        cap: tuple[float, float] = (1e-3, 80.0),
        crop: Crop = "none",
        average: Literal["image", "pixel"] = "image",
    ) -> None:
        super().__init__()
        for name, value, valid in (
            ("kind", kind, KINDS),
            ("alignment", alignment, ALIGNMENTS),
            ("crop", crop, CROPS),
            ("average", average, ("image", "pixel")),
        ):
            if value not in valid:
                raise ValueError(f"{name}={value!r}: expected one of {', '.join(valid)}.{did_you_mean(value, valid)}")
        if kind == "inverse_relative" and alignment == "none":
            raise ValueError("kind='inverse_relative' has no scale; use alignment='lsq' or 'median'")
        if not 0 < cap[0] < cap[1]:
            raise ValueError(f"cap={cap}: expected two depths in metres, 0 < nearest < farthest")
        self.kind, self.alignment, self.cap, self.crop, self.average = kind, alignment, cap, crop, average
        self.add_state("sums", torch.zeros(len(NAMES)), dist_reduce_fx="sum")
        for state in ("images", "pixels", "skipped"):
            self.add_state(state, torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor, mask: Tensor) -> None:
        """Add images: maps (B, 1, H, W), the target in metres, the mask boolean, True where the target is known."""
        self.add(*self.sums_of(prediction, target, mask))

    def sums_of(self, prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums of the terms over the pixels of images (B, 11), and the numbers of these pixels (B,).

        Without alignment and crop, those of the parts of an image add up to those of the image.
        """
        check_maps(prediction, target, mask)
        prediction, target = prediction.float(), target.float()
        mask = mask & (target > self.cap[0]) & (target < self.cap[1])
        mask = mask & crop_mask(target.shape[-2], target.shape[-1], self.crop, target.device)
        target = torch.where(mask, target, 1.0)
        depth = torch.where(mask, self._depth(torch.where(mask, prediction, 1.0), target, mask), 1.0)
        exact = torch.float32 if target.device.type == "mps" else torch.float64
        sums = [torch.where(mask, term, 0.0).flatten(1).sum(1, dtype=exact) for term in _terms(depth, target)]
        return torch.stack(sums, dim=1), mask.flatten(1).sum(1)

    def add(self, sums: Tensor, count: Tensor) -> None:
        """Add images by what `sums_of` returned."""
        if self.average == "image":
            sums = torch.where(count.unsqueeze(1) > 0, _from_means(sums / count.clamp(min=1).unsqueeze(1)), 0.0)
        self.sums += sums.sum(0)
        self.images += (count > 0).sum()
        self.pixels += count.sum()
        self.skipped += (count == 0).sum()

    def compute(self) -> dict[str, float]:
        """Return every metric by name, and the number of ``images`` and of ``skipped`` ones."""
        total = self.images if self.average == "image" else self.pixels
        values = self.sums / total  # NaN if there is none
        if self.average == "pixel":
            values = _from_means(values.unsqueeze(0)).squeeze(0)
        result = dict(zip(NAMES, values.tolist(), strict=True))
        return {**result, "images": float(self.images), "skipped": float(self.skipped)}

    def _depth(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Return the prediction as depth in metres within the cap."""
        low, high = self.cap
        if self.kind == "inverse_relative" and self.alignment == "lsq":
            return to_depth(align_lsq(prediction, 1 / target, mask), low, high)
        depth = {"metric": lambda x: x, "log": torch.exp, "inverse_relative": to_depth}[self.kind](prediction)
        if self.alignment == "lsq":
            depth = align_lsq(depth, target, mask)
        elif self.alignment == "median":
            depth = align_median(depth, target, mask)
        return depth.clamp(low, high)


def _terms(depth: Tensor, target: Tensor) -> Iterator[Tensor]:
    """Yield the terms per pixel of which the metrics are means, in the order of NAMES; maps (B, 1, H, W)."""
    error = depth - target
    yield error.abs() / target
    yield error.square() / target
    yield error.square()
    log_error = depth.log() - target.log()
    yield log_error.square()
    yield log_error.abs() / math.log(10)
    yield log_error  # silog and silog_half need the means of this and of its square
    yield log_error
    yield error.abs()
    ratio = torch.maximum(depth / target, target / depth)
    for power in (1, 2, 3):
        yield (ratio < 1.25**power).float()


def _from_means(means: Tensor) -> Tensor:
    """Return the metrics from the means of their terms, (B, 11) -> (B, 11)."""
    abs_rel, sq_rel, square, log_square, log10, log_mean, _, *rest = means.unbind(1)
    silog = 100 * (log_square - log_mean.square()).clamp(min=0).sqrt()
    half = (log_square - log_mean.square() / 2).clamp(min=0).sqrt()
    return torch.stack([abs_rel, sq_rel, square.sqrt(), log_square.sqrt(), log10, silog, half, *rest], dim=1)


class RelativeDepthMetrics(Metric):
    """Error of inverse relative depth against inverse relative depth, averaged over images::

        ssi_mae = mean |s p + t - target| / mean |target - mean target|,    (s, t) by least squares over the image

    0 is perfect; a constant prediction gets 1. The error is invariant to scale and shift of prediction and target.
    Images with a constant target are ``skipped``.

    >>> metrics = RelativeDepthMetrics()
    >>> target = torch.rand(2, 1, 8, 8)
    >>> metrics.update(3 * target + 5, target, target > 0)
    >>> metrics.compute()["ssi_mae"] < 1e-4
    True
    """

    full_state_update = False
    total: Tensor
    images: Tensor
    skipped: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        for state in ("images", "skipped"):
            self.add_state(state, torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor, mask: Tensor) -> None:
        """Add images: maps (B, 1, H, W), the mask boolean, True where the target is known."""
        prediction, target = prediction.float(), target.float()
        prediction, target = torch.where(mask, prediction, 0.0), torch.where(mask, target, 0.0)
        error = masked_mean(least_squares_error(prediction, target, mask).abs(), mask)
        deviation = masked_mean((target - per_pixel(masked_mean(target, mask))).abs(), mask)
        varies = deviation > 0
        self.total += torch.where(varies, error / torch.where(varies, deviation, 1.0), 0.0).sum()
        self.images += varies.sum()
        self.skipped += (~varies).sum()

    def compute(self) -> dict[str, float]:
        """Return ``ssi_mae``, and the number of ``images`` and of ``skipped`` ones."""
        value = float(self.total / self.images) if self.images else math.nan
        return {"ssi_mae": value, "images": float(self.images), "skipped": float(self.skipped)}


def align_lsq(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return ``scale * prediction + shift`` with scale and shift by least squares per image, maps (B, 1, H, W).

    A constant prediction becomes the mean of the target, which is the best constant.
    """
    return least_squares_error(prediction, target, mask) + target


def align_median(depth: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the depth times the ratio of the two medians of each image, maps (B, 1, H, W)."""
    ratio = _median(target, mask) / _median(depth, mask).clamp(min=SMALLEST)
    return depth * ratio.view(-1, 1, 1, 1)


def to_depth(disparity: Tensor, nearest: float = 0.0, farthest: float = 1 / SMALLEST) -> Tensor:
    """Return 1 / disparity, clamped to two depths; where it is not positive, depth is `farthest`."""
    return (1 / disparity.clamp(min=1 / farthest)).clamp(min=nearest)


def _median(values: Tensor, mask: Tensor) -> Tensor:
    """Return the median of the valid pixels of each image, 1 without any, (B, 1, H, W) -> (B,)."""
    ordered = torch.where(mask, values, torch.inf).flatten(1).sort(1).values  # B, HW
    count = mask.flatten(1).sum(1, keepdim=True)  # B, 1
    middle = torch.cat([(count - 1).clamp(min=0) // 2, (count // 2).clamp(max=ordered.shape[1] - 1)], 1)
    return torch.where(count[:, 0] > 0, ordered.gather(1, middle).mean(1), 1.0)
