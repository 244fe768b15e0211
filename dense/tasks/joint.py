"""Depth and segmentation at once, on one decoder."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from dense import losses
from dense.losses import FixedWeights, UncertaintyWeights
from dense.metrics import SegmentationMetrics
from dense.model.network import Inference
from dense.tasks.base import DenseTask, Maps
from dense.tasks.batch import Batch
from dense.tasks.depth import DepthEvaluation, depth_error, depth_loss, depth_metrics, depth_of, depth_target
from dense.tasks.options import BackboneOptions, OptimOptions, TargetOptions
from dense.tasks.segmentation import classes_output, label_losses
from dense.tasks.tuning import TuneOptions


class JointMetrics(nn.Module):
    """Depth and segmentation metrics side by side; `depth_` and `labels_` go before their names."""

    def __init__(self, depth: nn.Module, labels: nn.Module) -> None:
        super().__init__()
        self.depth, self.labels = depth, labels

    def compute(self) -> dict[str, Any]:
        """Both, and `score`, mIoU less the error of depth, by which the best model is chosen."""
        depth, labels = self.depth.compute(), self.labels.compute()  # type: ignore[operator]
        both = {f"depth_{k}": v for k, v in depth.items()} | {f"labels_{k}": v for k, v in labels.items()}
        return both | {"score": labels["miou"] - depth[depth_error(self.depth)]}

    def reset(self) -> None:
        """Forget."""
        self.depth.reset()  # type: ignore[operator]
        self.labels.reset()  # type: ignore[operator]


class JointTask(DenseTask):
    """Depth and a class for every pixel; a sample may lack either target.

    weighting: "uncertainty" learns how much each counts (Kendall et al., 2018), "fixed" takes `weights`.
    """

    task = "joint"
    outputs: ClassVar = {"depth": ("regression", "bins"), "labels": ("classes",)}
    monitor, mode = "val/score", "max"

    def __init__(
        self,
        backbone: BackboneOptions = BackboneOptions(layers="even4"),
        head: dict[str, Any] = {
            "name": "dpt",
            "outputs": {"depth": {"name": "regression"}, "labels": {"name": "classes"}},
        },
        depth_loss: dict[str, Any] = {"silog": 1.0},
        label_loss: dict[str, Any] = {"cross_entropy": 1.0},
        weighting: Literal["uncertainty", "fixed"] = "uncertainty",
        weights: dict[str, float] = {"depth": 1.0, "labels": 1.0},
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
            head: what heads.build takes, with outputs "depth" and "labels".
            depth_loss: see DepthTask.
            label_loss: see SegmentationTask.
            weighting: how the two are weighted.
            weights: of depth and labels, if they are fixed.
            optim: optimiser and schedule.
            tune: how much of the backbone learns.
            target: where the loss is computed and which depths count.
            evaluation: how validation depth is measured.
            inference: how images meet the network later; saved with the model.
            steps: optimiser steps.
            seed: of the head's weights, dropout and the order of images.
        """
        super().__init__(backbone, head, optim, tune, target, inference, steps, seed)
        if set(weights) != {"depth", "labels"}:
            raise ValueError(f"weights={weights}: expected one for depth and one for labels")
        self.depth_options, self.label_options, self.evaluation = depth_loss, label_loss, evaluation
        self.weighting_options = weights if weighting == "fixed" else {}
        self.label_loss = losses.build(label_loss)
        self.weighting: nn.Module = (
            UncertaintyWeights({"depth": "regression", "labels": "classification"})
            if weighting == "uncertainty"
            else FixedWeights(weights)
        )

    def loss_recipe(self) -> dict[str, Any]:
        """Both losses, and their weights where they are fixed."""
        return {"depth_loss": self.depth_options, "label_loss": self.label_options, "weights": self.weighting_options}

    def complete_outputs(self, outputs: dict[str, dict[str, Any]], data: Any) -> dict[str, dict[str, Any]]:
        """Both must be there."""
        self.given, self.evaluation = depth_of(data), self.evaluation.on(data)
        depth = outputs.get("depth", {"name": "regression"})
        return outputs | {"depth": depth, "labels": classes_output(outputs, data)}

    def setup(self, stage: str) -> None:
        """Build the depth loss when the head's kind of depth is known."""
        super().setup(stage)
        self.depth_loss, self.kind = depth_loss(self.depth_options, self.network.outputs["depth"], self.given)

    def extra_parameters(self) -> list[nn.Parameter]:
        """What the weighting learns."""
        return list(self.weighting.parameters())

    def losses(self, maps: Maps, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Each over the samples that have the target."""
        assert batch.depth is not None
        assert batch.labels is not None
        target, mask = depth_target(batch.depth, self.given, self.kind, self.target)
        depth, depth_parts = self.depth_loss(maps["depth"], target, mask, logits=maps.get("depth.bins"))
        labels, label_parts = label_losses(self.label_loss, maps, batch)
        total = self.weighting({"depth": depth, "labels": labels}, {"depth": mask, "labels": batch.labels != 255})
        return total, depth_parts | label_parts

    def build_metrics(self) -> nn.Module:
        """Of both."""
        depth = depth_metrics(self.evaluation, self.network.outputs["depth"].kind, self.given)
        classes = self.network.classes or ()
        return JointMetrics(depth, SegmentationMetrics(len(classes), names=classes))

    def update_metrics(self, metrics: Any, maps: Maps, batch: Batch) -> None:
        """Where there is a target."""
        assert batch.depth is not None
        metrics.depth.update(maps["depth"], batch.depth, batch.depth.isfinite())
        metrics.labels.update(maps["labels"].argmax(1), batch.labels)
