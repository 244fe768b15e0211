"""Weighted sums of losses, from plain data."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dense.losses.base import DepthLoss
from dense.losses.bins import BinCrossEntropy
from dense.losses.gradients import GradientLog, GradientMatching, MiDaSLoss
from dense.losses.regression import L1, BerHu
from dense.losses.segmentation import CrossEntropy, Dice, Focal, Lovasz
from dense.losses.silog import SiLog
from dense.losses.ssi import SSI, RobustSSI
from dense.suggest import did_you_mean

if TYPE_CHECKING:
    from heads.outputs import Bins

DEPTH: dict[str, type[DepthLoss]] = {
    "silog": SiLog,
    "gradient_log": GradientLog,
    "l1": L1,
    "berhu": BerHu,
    "ssi": SSI,
    "robust_ssi": RobustSSI,
    "gradient_matching": GradientMatching,
    "midas": MiDaSLoss,
    "bins": BinCrossEntropy,
}
SEGMENTATION: dict[str, type[nn.Module]] = {
    "cross_entropy": CrossEntropy,
    "dice": Dice,
    "focal": Focal,
    "lovasz": Lovasz,
}


class WeightedSum(nn.Module):
    """``sum of weight * loss``, and the value of each loss by its name."""

    def __init__(self, losses: Mapping[str, nn.Module], weights: Mapping[str, float]) -> None:
        super().__init__()
        if not losses or set(losses) != set(weights):
            raise ValueError(
                f"losses {sorted(losses)} and weights {sorted(weights)}: expected the same names, at least one"
            )
        for name, weight in weights.items():
            if not (isinstance(weight, int | float) and math.isfinite(weight) and weight > 0):
                raise ValueError(
                    f"weight {weight!r} of {name}: expected a positive number; leave the loss out instead of 0"
                )
        self.losses, self.weights = nn.ModuleDict(losses), dict(weights)

    def check_kind(self, kind: str) -> None:
        """Raise unless every loss is meaningful for depth of this kind."""
        for loss in self.losses.values():
            if isinstance(loss, DepthLoss):
                loss.check_kind(kind)

    def forward(
        self, prediction: Tensor, *target: Tensor, logits: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total with its gradient, and the parts without weight and gradient.

        target: target and mask of depth losses, or labels of segmentation losses. logits: (B, N, H, W) of bins, for the
        losses that read them.
        """
        total = torch.zeros((), device=prediction.device)
        parts = {}
        for name, loss in self.losses.items():
            reads = getattr(loss, "reads_logits", False)
            if reads and logits is None:
                raise ValueError(
                    f"the loss {name!r} reads the logits of a head's bins; use Bins(logits=True) and pass them"
                )
            value = loss(logits if reads else prediction, *target)
            total = total + self.weights[name] * value
            parts[name] = value.detach()
        return total, parts


def build(spec: Mapping[str, float | Mapping[str, Any]], bins: Bins | None = None) -> WeightedSum:
    """Build losses by name, each from its weight or from its options, with a ``weight`` among them (1 by default).

    Depth and segmentation losses have different targets and cannot be in one sum. ``bins`` is the output whose logits
    the loss of that name reads; without it the loss needs ``centres``.

    >>> loss = build({"silog": {"weight": 10, "variance_focus": 0.85}, "gradient_log": 0.5})
    >>> depth = torch.rand(2, 1, 8, 8) + 1
    >>> total, parts = loss(2 * depth, depth, depth > 0)
    >>> sorted(parts)
    ['gradient_log', 'silog']
    """
    known = {**DEPTH, **SEGMENTATION}
    for name in spec:
        if name not in known:
            raise ValueError(f"unknown loss {name!r}: known are {', '.join(known)}.{did_you_mean(name, known)}")
    if any(name in DEPTH for name in spec) and any(name in SEGMENTATION for name in spec):
        raise ValueError(f"{', '.join(spec)}: depth and segmentation losses in one sum; build one for each output")
    losses, weights = {}, {}
    for name, value in spec.items():
        options = dict(value) if isinstance(value, Mapping) else {"weight": value}
        weights[name] = options.pop("weight", 1.0)
        losses[name] = _build_one(name, known[name], options, bins)
    return WeightedSum(losses, weights)


def _build_one(name: str, loss: type[nn.Module], options: dict[str, Any], bins: Bins | None) -> nn.Module:
    if loss is BinCrossEntropy and bins is not None:
        options = {"centres": bins.depths(), "normalisation": bins.normalisation, **options}
    parameters = inspect.signature(loss).parameters.values()
    takes = {p.name: p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    for option in options:
        if option not in takes:
            hint = did_you_mean(option, ["weight", *takes])
            raise ValueError(f"loss {name!r} has no option {option!r}: it has {', '.join(['weight', *takes])}.{hint}")
    missing = [key for key, value in takes.items() if value.default is value.empty and key not in options]
    if missing:
        raise ValueError(f"loss {name!r} needs {', '.join(missing)}")
    return loss(**options)
