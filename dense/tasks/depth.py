"""Depth: the depth of the data as a target of the head's kind, its losses and its metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from dense import losses
from dense.data.labelled.sample import Batch, DataError, LabelledSource
from dense.losses.base import DepthKind
from dense.metrics import DepthMetrics, RelativeDepthMetrics
from dense.model.network import Maps
from dense.tasks.base import DenseTask, targets_of
from dense.tasks.data import DataFacts
from dense.tasks.options import DepthEvaluation, TargetOptions


def depth_target(depth: Tensor, given: DepthKind, wanted: DepthKind, options: TargetOptions) -> tuple[Tensor, Tensor]:
    """Convert depth (B, 1, H, W) of kind `given` to a target of kind `wanted` and a mask of the pixels that count.

    Metric depth becomes its logarithm or its inverse; infinite depth has the inverse 0. Metric depth outside the bounds
    of `options` does not count, except infinite depth as an inverse.
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
            f"the data have inverse relative depth, from which no {wanted} depth can be learnt (scale and shift are "
            "unknown); use kind: inverse_relative in the head's output"
        )


class DepthTask(DenseTask):
    """Depth per pixel, on frozen features unless `tune` says otherwise.

    The head needs an output "depth" of {name: regression} or {name: bins}, of a kind that suits the loss and the data.
    """

    task = "depth"
    outputs: ClassVar = {"depth": ("regression", "bins")}
    monitor, mode, second = "val/abs_rel", "min", "val/delta1"

    def __init__(
        self,
        *,
        head: dict[str, Any] = {"name": "linear", "outputs": {"depth": {"name": "bins"}}},
        loss: dict[str, Any] | Literal["auto"] = {"silog": 1.0},
        evaluation: DepthEvaluation = DepthEvaluation(),
        **shared: Any,
    ) -> None:
        """A depth head in training.

        Args:
            head: options of `heads.build`; in_channels is filled in.
            loss: silog, l1, berhu, ssi, robust_ssi, midas, gradient_log, bins, each with its weight or its options;
                auto in recipes.
            evaluation: how depth is measured in validation.
            **shared: options of every task.
        """
        super().__init__(head=head, **shared)
        if loss == "auto":
            raise ValueError("loss=auto is a value of recipes, which dense train chooses; give the losses")
        self.loss_options, self.evaluation = loss, evaluation

    def loss_recipe(self) -> dict[str, Any]:
        return {"loss": self.loss_options}

    def complete_outputs(self, outputs: dict[str, dict[str, Any]], data: DataFacts) -> dict[str, dict[str, Any]]:
        """Check the depth of the data; without an output, regress depth."""
        self.given, self.evaluation = depth_of(data), self.evaluation.with_layout(data.evaluation_crop)
        return outputs | {"depth": outputs.get("depth", {"name": "regression"})}

    def setup(self, stage: str) -> None:
        """Build the loss, now that the head's kind of depth is known."""
        super().setup(stage)
        self.loss, self.kind = depth_loss(self.loss_options, self.network.outputs["depth"], self.given)

    def losses(self, maps: Maps, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.depth is not None
        target, mask = depth_target(batch.depth, self.given, self.kind, self.target)
        return self.loss(maps["depth"], target, mask, logits=maps.get("depth.bins"))

    def build_metrics(self) -> nn.Module:
        """Return metrics in metres, monitored by abs_rel; for relative ground truth, monitored by ssi_mae."""
        metrics = depth_metrics(self.evaluation, self.network.outputs["depth"].kind, self.given)
        self.monitor = f"val/{depth_error(metrics)}"
        return metrics

    def update_metrics(self, metrics: Any, maps: Maps, batch: Batch) -> None:
        assert batch.depth is not None
        metrics.update(maps["depth"], batch.depth, batch.depth.isfinite())

    def numbers(self, metrics: Any = None) -> dict[str, float]:
        """Return the metrics; raise where no pixel of any validation image counts."""
        found = super().numbers(metrics)
        if found.get("images", 1) == 0:
            raise DataError(
                f"no validation image has a known depth within model.evaluation.cap={list(self.evaluation.cap)} in "
                "metres and within the crop; set the cap to the range of the data, or scale in depth.yaml"
            )
        return found

    def baseline(self, train: LabelledSource) -> Callable[[Batch], Maps]:
        """Return the median depth of the training images everywhere."""
        return constant_depth(train, self.given, self.kind, self.target)


def constant_depth(
    train: LabelledSource, given: DepthKind, wanted: DepthKind, options: TargetOptions, most: int = 10_000
) -> Callable[[Batch], Maps]:
    """Return a prediction of the median of training targets, of which `most` pixels per image are read."""
    values = []
    for depth in targets_of(train, "depth"):
        target, mask = depth_target(torch.from_numpy(depth), given, wanted, options)
        known = target[mask].numpy()
        values.append(known[:: max(1, len(known) // most)])
    median = float(np.median(np.concatenate(values))) if sum(map(len, values)) else 1.0

    def predict(batch: Batch) -> Maps:
        assert batch.depth is not None
        return {"depth": torch.full_like(batch.depth, median)}

    return predict


def depth_of(data: DataFacts) -> DepthKind:
    """Return the kind of depth in the data, or raise where they have none."""
    if data.depth_kind is None:
        raise ValueError("the data have no depth; a depth task needs it (root/depth, or another layout)")
    if "depth" not in data.val_targets:
        raise ValueError("the validation images have no depth; without it no best model can be chosen")
    return data.depth_kind


def depth_loss(spec: dict[str, Any], output: Any, given: DepthKind) -> tuple[losses.WeightedSum, DepthKind]:
    """Return the loss for a head's output and that output's kind of depth; raise where the kinds do not fit."""
    bins = output if hasattr(output, "depths") else None
    loss = losses.build(spec, bins)
    loss.check_kind(output.kind)
    check_kinds(given, output.kind)
    if "bins" in spec and not getattr(output, "logits", False):
        raise ValueError("the loss 'bins' reads the logits of the bins; set logits: true in the head's output")
    return loss, output.kind


def depth_metrics(evaluation: DepthEvaluation, kind: DepthKind, given: DepthKind) -> nn.Module:
    """Build metrics for a kind of predictions and of ground truth; relative predictions are always aligned."""
    if given == "inverse_relative":
        check_kinds(given, kind)
        return RelativeDepthMetrics()
    options = asdict(evaluation)
    if kind == "inverse_relative" and evaluation.alignment == "none":
        options["alignment"] = "lsq"
    return DepthMetrics(kind=kind, **options)


def depth_error(metrics: nn.Module) -> str:
    """Return the name of the main error among these metrics."""
    return "ssi_mae" if isinstance(metrics, RelativeDepthMetrics) else "abs_rel"
