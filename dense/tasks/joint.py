"""Depth and segmentation with one decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from dense import losses
from dense.data.labelled.sample import IGNORE, Batch, LabelledSource
from dense.losses import FixedWeights, UncertaintyWeights
from dense.metrics import SegmentationMetrics
from dense.model.network import Maps
from dense.tasks.base import DenseTask
from dense.tasks.data import DataFacts
from dense.tasks.depth import constant_depth, depth_error, depth_loss, depth_metrics, depth_of, depth_target
from dense.tasks.options import BackboneOptions, DepthEvaluation
from dense.tasks.segmentation import classes_output, constant_class, label_losses


class JointMetrics(nn.Module):
    """Depth and segmentation metrics; their names begin with `depth_` and `labels_`."""

    def __init__(self, depth: nn.Module, labels: nn.Module) -> None:
        super().__init__()
        self.depth: Any = depth
        self.labels: Any = labels

    def compute(self) -> dict[str, Any]:
        """Return both, and `score`, mIoU minus the depth error, by which the best model is chosen."""
        depth, labels = self.depth.compute(), self.labels.compute()
        both = {f"depth_{k}": v for k, v in depth.items()} | {f"labels_{k}": v for k, v in labels.items()}
        return both | {"score": labels["miou"] - depth[depth_error(self.depth)]}

    def reset(self) -> None:
        self.depth.reset()
        self.labels.reset()


class JointTask(DenseTask):
    """Depth and a class per pixel; a sample may lack either target."""

    task = "joint"
    outputs: ClassVar = {"depth": ("regression", "bins"), "labels": ("classes",)}
    monitor, mode, second = "val/score", "max", "val/labels_aacc"

    def __init__(
        self,
        *,
        head: dict[str, Any] = {
            "name": "dpt",
            "outputs": {"depth": {"name": "regression"}, "labels": {"name": "classes"}},
        },
        backbone: BackboneOptions = BackboneOptions(layers="even4"),
        depth_loss: dict[str, Any] = {"silog": 1.0},
        label_loss: dict[str, Any] = {"cross_entropy": 1.0},
        weighting: Literal["uncertainty", "fixed"] = "uncertainty",
        weights: dict[str, float] = {"depth": 1.0, "labels": 1.0},
        evaluation: DepthEvaluation = DepthEvaluation(),
        **shared: Any,
    ) -> None:
        """A head for depth and segmentation in training.

        Args:
            head: options of `heads.build`, with outputs "depth" and "labels".
            backbone: the features that the head gets.
            depth_loss: losses of depth, see DepthTask.
            label_loss: losses of the labels, see SegmentationTask.
            weighting: uncertainty learns the weights of both losses (Kendall et al., 2018); fixed takes `weights`.
            weights: fixed weights of depth and labels.
            evaluation: how depth is measured in validation.
            **shared: options of every task.
        """
        super().__init__(head=head, backbone=backbone, **shared)
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
        return {"depth_loss": self.depth_options, "label_loss": self.label_options, "weights": self.weighting_options}

    def complete_outputs(self, outputs: dict[str, dict[str, Any]], data: DataFacts) -> dict[str, dict[str, Any]]:
        """Check the depth of the data and fill in the number of classes."""
        self.given, self.evaluation = depth_of(data), self.evaluation.with_layout(data.evaluation_crop)
        depth = outputs.get("depth", {"name": "regression"})
        return outputs | {"depth": depth, "labels": classes_output(outputs, data)}

    def setup(self, stage: str) -> None:
        """Build the depth loss, now that the head's kind of depth is known."""
        super().setup(stage)
        self.depth_loss, self.kind = depth_loss(self.depth_options, self.network.outputs["depth"], self.given)

    def extra_parameters(self) -> list[nn.Parameter]:
        return list(self.weighting.parameters())

    def losses(self, maps: Maps, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of both losses, each over the samples that have its target."""
        assert batch.depth is not None
        assert batch.labels is not None
        target, mask = depth_target(batch.depth, self.given, self.kind, self.target)
        depth, depth_parts = self.depth_loss(maps["depth"], target, mask, logits=maps.get("depth.bins"))
        labels, label_parts = label_losses(self.label_loss, maps, batch)
        total = self.weighting({"depth": depth, "labels": labels}, {"depth": mask, "labels": batch.labels != IGNORE})
        return total, depth_parts | label_parts

    def build_metrics(self) -> nn.Module:
        depth = depth_metrics(self.evaluation, self.network.outputs["depth"].kind, self.given)
        classes = self.network.classes or ()
        return JointMetrics(depth, SegmentationMetrics(len(classes), names=classes))

    def update_metrics(self, metrics: Any, maps: Maps, batch: Batch) -> None:
        assert batch.depth is not None
        metrics.depth.update(maps["depth"], batch.depth, batch.depth.isfinite())
        metrics.labels.update(maps["labels"].argmax(1), batch.labels)

    def baseline(self, train: LabelledSource) -> Callable[[Batch], Maps]:
        """Return the median depth and the most frequent class of the training images everywhere."""
        depth = constant_depth(train, self.given, self.kind, self.target)
        labels = constant_class(train, len(self.network.classes or ()))
        return lambda batch: {**depth(batch), **labels(batch)}
