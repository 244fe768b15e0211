"""The depth of a data set as a head's kind of depth, and where it counts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dense.losses.kinds import DepthKind
from dense.tasks.recipe import TargetOptions


def depth_target(depth: Tensor, given: DepthKind, wanted: DepthKind, options: TargetOptions) -> tuple[Tensor, Tensor]:
    """Depth (B, 1, H, W) of kind `given` -> the target of kind `wanted` and a mask of where it counts.

    Metric depth becomes its logarithm or its inverse; what is infinitely far has the inverse 0. `options` bound metric
    depth: what lies nearer or farther does not count, but for the inverse of the infinitely far.
    """
    check_kinds(given, wanted)
    if given == "inverse_relative":
        return depth, torch.isfinite(depth) & (depth >= 0)
    low, high = options.min_depth or 0.0, options.max_depth
    inside = (depth > 0) & (depth >= low)
    if wanted == "inverse_relative":
        far = torch.isinf(depth) & (depth > 0)
        valid = far | (inside if high is None else inside & (depth <= high))
        return torch.where(valid, 1 / torch.where(valid, depth, torch.ones_like(depth)), 0.0), valid
    valid = inside & torch.isfinite(depth)
    valid = valid if high is None else valid & (depth <= high)
    safe = torch.where(valid, depth, torch.ones_like(depth))
    return (safe.log() if wanted == "log" else safe), valid


def check_kinds(given: Any, wanted: Any) -> None:
    """Raise where a head's kind of depth cannot be learnt from the data's."""
    if given == "inverse_relative" and wanted != "inverse_relative":
        raise ValueError(
            f"the data hold inverse relative depth, from which no {wanted} depth can be learnt (scale and shift are "
            "unknown); use kind: inverse_relative in the head's output"
        )
