"""DAVIS metrics of tracked objects: region similarity J and contour accuracy F (Perazzi et al., 2016)."""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def region_similarity(masks: Tensor, ground_truth: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the IoU of each mask with its object, both (M, H, W) bool: (M,); 1 where both are empty."""
    masks, ground_truth = _valid(masks, ground_truth, valid)
    return _fraction(masks & ground_truth, masks | ground_truth)


def contour_accuracy(
    masks: Tensor, ground_truth: Tensor, valid: Tensor | None = None, tolerance: float = 0.008
) -> Tensor:
    """Return the F-measure of each mask's contour with that of its object, both (M, H, W) bool: (M,).

    A contour pixel matches if the other contour has one within `tolerance` times the diagonal, rounded up. The
    F-measure of two empty masks is 1, that of an empty and another one 0.
    """
    masks, ground_truth = _valid(masks, ground_truth, valid)
    reach = math.ceil(tolerance * math.hypot(*masks.shape[-2:]))
    predicted, true = contours(masks), contours(ground_truth)
    precision = _fraction(predicted & within(true, reach), predicted)
    recall = _fraction(true & within(predicted, reach), true)
    total = precision + recall
    return torch.where(total > 0, 2 * precision * recall / total.clamp_min(1e-300), 0.0)


def contours(masks: Tensor) -> Tensor:
    """Return where (M, H, W) bool differs from the right, lower or lower right pixel; borders do not count."""
    around = F.pad(masks.float()[None], (0, 1, 0, 1), mode="replicate")[0].bool()
    right, below, across = around[:, :-1, 1:], around[:, 1:, :-1], around[:, 1:, 1:]
    return (masks != right) | (masks != below) | (masks != across)


def within(pixels: Tensor, reach: int) -> Tensor:
    """Dilate (M, H, W) bool by a disc of radius `reach`."""
    line = np.arange(-reach, reach + 1)
    disc = (line[:, None] ** 2 + line**2 <= reach**2).astype(np.uint8)
    grown = [cv2.dilate(one, disc) for one in pixels.cpu().numpy().astype(np.uint8)]
    return torch.from_numpy(np.array(grown, bool).reshape(pixels.shape)).to(pixels.device)


def mean_recall_decay(values: Tensor) -> tuple[float, float, float]:
    """Return mean, recall and decay of an object's J or F per frame, (T,).

    Recall is the fraction of frames above 0.5, decay the mean of the first quarter minus that of the last; neighbouring
    quarters share a frame, as in DAVIS.
    """
    ends = [math.floor((len(values) - 1) * part / 4 + 0.5) for part in range(5)]
    first, last = values[ends[0] : ends[1] + 1].mean(), values[ends[3] : ends[4] + 1].mean()
    return float(values.mean()), float((values > 0.5).double().mean()), float(first - last)


def _fraction(part: Tensor, whole: Tensor) -> Tensor:
    """Return the fraction of pixels (M, H, W) of `whole` in `part`, 1 for none: (M,)."""
    n_part, n_whole = (x.flatten(1).sum(1).double() for x in (part, whole))
    return torch.where(n_whole > 0, n_part / n_whole.clamp_min(1), 1.0)


def _valid(masks: Tensor, ground_truth: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    if masks.shape != ground_truth.shape or masks.ndim != 3:
        raise ValueError(
            f"masks are {tuple(masks.shape)}, objects {tuple(ground_truth.shape)}: expected (M, H, W) of both"
        )
    return (masks, ground_truth) if valid is None else (masks & valid, ground_truth & valid)
