"""The depth of a data set as a head's kind of depth, and where it counts."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from dense import losses
from dense.data.labelled.layouts import LAYOUTS
from dense.losses.base import DepthKind
from dense.metrics import DepthMetrics, RelativeDepthMetrics
from dense.model.network import Inference
from dense.tasks.base import DenseTask, Maps
from dense.tasks.batch import Batch
from dense.tasks.options import BackboneOptions, OptimOptions, TargetOptions
from dense.tasks.tuning import TuneOptions


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


@dataclass(frozen=True)
class DepthEvaluation:
    """How validation depth is measured: see `dense.metrics.DepthMetrics`; crop "layout" is the published one of the data, or none."""

    cap: tuple[float, float] = (1e-3, 80.0)
    crop: Literal["none", "nyu_eigen", "garg", "eigen_kitti", "layout"] = "none"
    alignment: Literal["none", "median", "lsq"] = "none"

    def on(self, data: Any) -> DepthEvaluation:
        """With the crop that these data mean."""
        if self.crop != "layout":
            return self
        crop: Any = LAYOUTS[data.layout].evaluation_crop if data.layout in LAYOUTS else "none"
        return replace(self, crop=crop)


class DepthTask(DenseTask):
    """A depth for every pixel, on frozen features unless `tune` says otherwise.

    The head needs an output "depth" of {name: regression} or {name: bins}; its kind must suit the loss and the data.
    """

    task = "depth"
    outputs: ClassVar = {"depth": ("regression", "bins")}
    monitor, mode = "val/abs_rel", "min"

    def __init__(
        self,
        backbone: BackboneOptions = BackboneOptions(),
        head: dict[str, Any] = {"name": "linear", "outputs": {"depth": {"name": "bins"}}},
        loss: dict[str, Any] = {"silog": 1.0},
        optim: OptimOptions = OptimOptions(),
        tune: TuneOptions = TuneOptions(),
        target: TargetOptions = TargetOptions(),
        evaluation: DepthEvaluation = DepthEvaluation(),
        inference: Inference = Inference(),
        steps: int = 1000,
        seed: int = 0,
    ) -> None:
        """A head in training.

        Args:
            backbone: which features the head sees.
            head: what heads.build takes; in_channels is filled in.
            loss: silog, l1, berhu, ssi, robust_ssi, midas, gradient_log, bins, each with its weight or its options.
            optim: optimiser and schedule.
            tune: how much of the backbone learns.
            target: where the loss is computed and which depths count.
            evaluation: how validation depth is measured.
            inference: how images meet the network later; saved with the model.
            steps: optimiser steps.
            seed: of the head's weights, dropout and the order of images.
        """
        super().__init__(backbone, head, optim, tune, target, inference, steps, seed)
        self.loss_options, self.evaluation = loss, evaluation

    def loss_recipe(self) -> dict[str, Any]:
        """Losses by name."""
        return {"loss": self.loss_options}

    def complete_outputs(self, outputs: dict[str, dict[str, Any]], data: Any) -> dict[str, dict[str, Any]]:
        """Check that there is a depth and that the data can teach it."""
        self.given, self.evaluation = depth_of(data), self.evaluation.on(data)
        return outputs | {"depth": outputs.get("depth", {"name": "regression"})}

    def setup(self, stage: str) -> None:
        """Build the loss when the head's kind of depth is known."""
        super().setup(stage)
        self.loss, self.kind = depth_loss(self.loss_options, self.network.outputs["depth"], self.given)

    def losses(self, maps: Maps, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Of the depth."""
        assert batch.depth is not None
        target, mask = depth_target(batch.depth, self.given, self.kind, self.target)
        return self.loss(maps["depth"], target, mask, logits=maps.get("depth.bins"))

    def build_metrics(self) -> nn.Module:
        """abs_rel and company, in metres; of relative ground truth, ssi_mae."""
        metrics = depth_metrics(self.evaluation, self.network.outputs["depth"].kind, self.given)
        self.monitor = f"val/{depth_error(metrics)}"
        return metrics

    def update_metrics(self, metrics: nn.Module, maps: Maps, batch: Batch) -> None:
        """Against all that is known."""
        assert batch.depth is not None
        metrics.update(maps["depth"], batch.depth, batch.depth.isfinite())  # type: ignore[operator]


def depth_of(data: Any) -> DepthKind:
    """The kind of depth that the data hold."""
    if data.depth_kind is None:
        raise ValueError("the data have no depth; a depth task needs it (root/depth, or another layout)")
    if data.val.depth_kind is None:
        raise ValueError("the images to validate on have no depth; give them some, or the best model cannot be told")
    return data.depth_kind


def depth_loss(spec: dict[str, Any], output: Any, given: DepthKind) -> tuple[losses.WeightedSum, DepthKind]:
    """The loss for a head's output, checked against its kind of depth and the data's."""
    bins = output if hasattr(output, "depths") else None
    loss = losses.build(spec, bins)
    loss.check_kind(output.kind)
    check_kinds(given, output.kind)
    if "bins" in spec and not getattr(output, "logits", False):
        raise ValueError("the loss 'bins' reads the logits of the bins; say logits: true in the head's output")
    return loss, output.kind


def depth_metrics(evaluation: DepthEvaluation, kind: DepthKind, given: DepthKind) -> nn.Module:
    """Metrics for predictions of a kind against a ground truth of another; relative ones are aligned first, in any case."""
    if given == "inverse_relative":
        check_kinds(given, kind)
        return RelativeDepthMetrics()
    options = asdict(evaluation)
    if kind == "inverse_relative" and evaluation.alignment == "none":
        options["alignment"] = "lsq"
    return DepthMetrics(kind=kind, **options)


def depth_error(metrics: nn.Module) -> str:
    """The number that tells how wrong a depth is."""
    return "ssi_mae" if isinstance(metrics, RelativeDepthMetrics) else "abs_rel"
