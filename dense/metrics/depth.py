"""How far predicted depth is from the ground truth, by the measures of the field."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor
from torchmetrics import Metric

from dense.metrics.alignment import ALIGNMENTS, Alignment, align_lsq, align_median, to_depth
from dense.metrics.crops import CROPS, Crop, crop_mask
from dense.suggest import did_you_mean
from heads.outputs import DepthKind

KINDS: tuple[str, ...] = get_args(DepthKind)
NAMES = (
    "abs_rel",  # mean |p - t| / t
    "sq_rel",  # mean (p - t)^2 / t
    "rmse",  # sqrt(mean (p - t)^2)
    "rmse_log",  # sqrt(mean d^2), d = log p - log t
    "log10",  # mean |log10 p - log10 t|
    "silog",  # 100 sqrt(mean d^2 - mean(d)^2), the KITTI benchmark's
    "silog_half",  # sqrt(mean d^2 - mean(d)^2 / 2), which Depth Anything V2 and mmsegmentation report as silog
    "mae",  # mean |p - t|
    "delta1",  # share of pixels with max(p / t, t / p) < 1.25
    "delta2",  # ... < 1.25^2
    "delta3",  # ... < 1.25^3
)


class DepthMetrics(Metric):
    """Depth measures over a set, each image counting the same, or with ``average="pixel"`` each pixel.

    A pixel counts if the mask and the crop keep it and its true depth lies strictly within ``cap``, in metres. The
    prediction is clipped to ``cap``. By ``kind`` it is depth (``metric``), its logarithm (``log``) or 1 / depth up to
    an unknown scale and shift (``inverse_relative``), which needs an alignment, made for every image by the pixels that
    count: ``lsq`` fits scale and shift by least squares, to 1 / target for ``inverse_relative`` and to the target
    otherwise; ``median`` scales depth by the ratio of the medians.

    An image in which no pixel counts is left out; ``images`` says how many counted and ``skipped`` how many did not.
    Before the first that counts all measures are NaN. A constant prediction counts, aligned as well as can be.

    >>> metrics = DepthMetrics(cap=(1e-3, 10))
    >>> depth = torch.rand(2, 1, 8, 8) + 1
    >>> metrics.update(1.1 * depth, depth, depth > 0)
    >>> print(f"{metrics.compute()['abs_rel']:.3f}")
    0.100
    """

    full_state_update = False
    sums: Tensor  # of the measures over images, or of the terms they are made of over pixels
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
        """Add images: maps (B, 1, H, W), the target always depth in metres; the mask boolean, True where it is known."""
        if prediction.shape != target.shape or mask.shape != target.shape or target.ndim != 4 or target.shape[1] != 1:
            shapes = f"prediction {tuple(prediction.shape)}, target {tuple(target.shape)}, mask {tuple(mask.shape)}"
            raise ValueError(f"{shapes}: expected (B, 1, H, W) thrice; resize the prediction to the size of the target")
        if mask.dtype != torch.bool:
            raise TypeError(f"mask of dtype {mask.dtype}: expected torch.bool, True where the target is known")
        prediction, target = prediction.float(), target.float()
        mask = mask & (target > self.cap[0]) & (target < self.cap[1])
        mask = mask & crop_mask(target.shape[-2], target.shape[-1], self.crop, target.device)
        target = torch.where(mask, target, 1.0)
        depth = torch.where(mask, self._depth(torch.where(mask, prediction, 1.0), target, mask), 1.0)
        count = mask.flatten(1).sum(1)  # B
        exact = torch.float32 if target.device.type == "mps" else torch.float64
        sums = torch.stack(
            [torch.where(mask, term, 0.0).flatten(1).sum(1, dtype=exact) for term in _terms(depth, target)], dim=1
        )  # B, len(NAMES)
        if self.average == "image":
            sums = torch.where(count.unsqueeze(1) > 0, _measures(sums / count.clamp(min=1).unsqueeze(1)), 0.0)
        self.sums += sums.sum(0)
        self.images += (count > 0).sum()
        self.pixels += count.sum()
        self.skipped += (count == 0).sum()

    def compute(self) -> dict[str, float]:
        """Every measure by name, and how many ``images`` counted and how many were ``skipped``."""
        total = self.images if self.average == "image" else self.pixels
        values = self.sums / total  # NaN if there is none
        if self.average == "pixel":
            values = _measures(values.unsqueeze(0)).squeeze(0)
        result = dict(zip(NAMES, values.tolist(), strict=True))
        return {**result, "images": float(self.images), "skipped": float(self.skipped)}

    def _depth(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """The prediction as depth in metres within the cap."""
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
    """What the measures are means of, for each pixel, in the order of NAMES; maps (B, 1, H, W)."""
    error = depth - target
    yield error.abs() / target
    yield error.square() / target
    yield error.square()
    log_error = depth.log() - target.log()
    yield log_error.square()
    yield log_error.abs() / math.log(10)
    yield log_error  # silog and silog_half are made of the mean of this and of its square
    yield log_error
    yield error.abs()
    ratio = torch.maximum(depth / target, target / depth)
    for power in (1, 2, 3):
        yield (ratio < 1.25**power).float()


def _measures(means: Tensor) -> Tensor:
    """Means of the terms -> the measures, (B, 11) -> (B, 11)."""
    abs_rel, sq_rel, square, log_square, log10, log_mean, _, *rest = means.unbind(1)
    silog = 100 * (log_square - log_mean.square()).clamp(min=0).sqrt()
    half = (log_square - log_mean.square() / 2).clamp(min=0).sqrt()
    return torch.stack([abs_rel, sq_rel, square.sqrt(), log_square.sqrt(), log10, silog, half, *rest], dim=1)


class RelativeDepthMetrics(Metric):
    """Error of inverse relative depth against inverse relative depth, each image counting the same::

        ssi_mae = mean |s p + t - target| / mean |target - mean target|,    (s, t) by least squares over the image

    0 is perfect; a prediction without any contrast gets 1. Neither the scale nor the shift of prediction or target
    plays a part. An image whose target is constant where it is known tells nothing and is ``skipped``.

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
        error = self._mean((align_lsq(prediction, target, mask) - target).abs(), mask)
        spread = self._mean((target - self._mean(target, mask).view(-1, 1, 1, 1)).abs(), mask)
        tells = spread > 0
        self.total += torch.where(tells, error / torch.where(tells, spread, 1.0), 0.0).sum()
        self.images += tells.sum()
        self.skipped += (~tells).sum()

    def compute(self) -> dict[str, float]:
        """``ssi_mae``, and how many ``images`` counted and how many were ``skipped``."""
        value = float(self.total / self.images) if self.images else math.nan
        return {"ssi_mae": value, "images": float(self.images), "skipped": float(self.skipped)}

    @staticmethod
    def _mean(values: Tensor, mask: Tensor) -> Tensor:
        """Over the pixels of each image that the mask keeps, (B, 1, H, W) -> (B,)."""
        return torch.where(mask, values, 0.0).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1)
