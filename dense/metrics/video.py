"""DAVIS' measures of followed objects: region similarity J and contour accuracy F (Perazzi et al., 2016)."""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def region_similarity(masks: Tensor, ground_truth: Tensor, valid: Tensor | None = None) -> Tensor:
    """IoU of each mask with its own object, both (M, H, W) bool: (M,). 1 where both are empty."""
    masks, ground_truth = _known(masks, ground_truth, valid)
    both, either = ((x.flatten(1).sum(1).double()) for x in (masks & ground_truth, masks | ground_truth))
    return torch.where(either > 0, both / either.clamp_min(1), 1.0)


def contour_accuracy(
    masks: Tensor, ground_truth: Tensor, valid: Tensor | None = None, tolerance: float = 0.008
) -> Tensor:
    """F-measure of each mask's contour with that of its object, both (M, H, W) bool: (M,).

    A pixel of a contour is right if the other contour has one within `tolerance` times the diagonal, rounded up. Two empty
    masks agree; an empty one has nothing in common with one that is not.
    """
    masks, ground_truth = _known(masks, ground_truth, valid)
    reach = math.ceil(tolerance * math.hypot(*masks.shape[-2:]))
    found, true = contours(masks), contours(ground_truth)
    hits = (found & within(true, reach)).flatten(1).sum(1).double()
    seen = (true & within(found, reach)).flatten(1).sum(1).double()
    n_found, n_true = (x.flatten(1).sum(1).double() for x in (found, true))
    precision = torch.where(n_found > 0, hits / n_found.clamp_min(1), 1.0)
    recall = torch.where(n_true > 0, seen / n_true.clamp_min(1), 1.0)
    total = precision + recall
    return torch.where(total > 0, 2 * precision * recall / total.clamp_min(1e-300), 0.0)


def contours(masks: Tensor) -> Tensor:
    """Where (M, H, W) bool differs from the pixel to the right, below, or below to the right; the border is no contour."""
    around = F.pad(masks.float()[None], (0, 1, 0, 1), mode="replicate")[0].bool()
    right, below, across = around[:, :-1, 1:], around[:, 1:, :-1], around[:, 1:, 1:]
    return (masks != right) | (masks != below) | (masks != across)


def within(pixels: Tensor, reach: int) -> Tensor:
    """Pixels no farther than `reach` from those of (M, H, W) bool, by a straight line."""
    line = np.arange(-reach, reach + 1)
    disc = (line[:, None] ** 2 + line**2 <= reach**2).astype(np.uint8)
    grown = [cv2.dilate(one, disc) for one in pixels.cpu().numpy().astype(np.uint8)]
    return torch.from_numpy(np.array(grown, bool).reshape(pixels.shape)).to(pixels.device)


def mean_recall_decay(values: Tensor) -> tuple[float, float, float]:
    """Of an object's J or F frame by frame, (T,): the mean, the share above 0.5, and how much the mean of the first quarter
    exceeds that of the last; neighbouring quarters share a frame, as in DAVIS."""
    ends = [math.floor((len(values) - 1) * part / 4 + 0.5) for part in range(5)]
    first, last = values[ends[0] : ends[1] + 1].mean(), values[ends[3] : ends[4] + 1].mean()
    return float(values.mean()), float((values > 0.5).double().mean()), float(first - last)


def _known(masks: Tensor, ground_truth: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    if masks.shape != ground_truth.shape or masks.ndim != 3:
        raise ValueError(
            f"masks are {tuple(masks.shape)}, objects {tuple(ground_truth.shape)}: expected (M, H, W) of both"
        )
    return (masks, ground_truth) if valid is None else (masks & valid, ground_truth & valid)
