"""Semantic segmentation."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from dense import losses
from dense.metrics import SegmentationMetrics
from dense.model.network import Inference
from dense.tasks.base import DenseTask, Maps
from dense.tasks.batch import Batch
from dense.tasks.options import BackboneOptions, OptimOptions, TargetOptions
from dense.tasks.tuning import TuneOptions

AUXILIARY = 0.4  # weight of an auxiliary head's loss


class SegmentationTask(DenseTask):
    """A class for every pixel, on frozen features unless `tune` says otherwise.

    The head needs an output "labels" of {name: classes}; how many classes, the data say.
    """

    task = "segmentation"
    outputs: ClassVar = {"labels": ("classes",)}
    monitor, mode = "val/miou", "max"

    def __init__(
        self,
        backbone: BackboneOptions = BackboneOptions(),
        head: dict[str, Any] = {"name": "linear", "batch_norm": True, "outputs": {"labels": {"name": "classes"}}},
        loss: dict[str, Any] = {"cross_entropy": 1.0},
        optim: OptimOptions = OptimOptions(),
        tune: TuneOptions = TuneOptions(),
        target: TargetOptions = TargetOptions(),
        inference: Inference = Inference(),
        steps: int = 1000,
        seed: int = 0,
    ) -> None:
        """A head in training.

        Args:
            backbone: which features the head sees.
            head: what heads.build takes; in_channels and the number of classes are filled in.
            loss: cross_entropy, dice, focal, lovasz, each with its weight or its options.
            optim: optimiser and schedule.
            tune: how much of the backbone learns.
            target: where the loss is computed.
            inference: how images meet the network later; saved with the model.
            steps: optimiser steps.
            seed: of the head's weights, dropout and the order of images.
        """
        super().__init__(backbone, head, optim, tune, target, inference, steps, seed)
        self.loss_options, self.loss = loss, losses.build(loss)

    def loss_recipe(self) -> dict[str, Any]:
        """Losses by name."""
        return {"loss": self.loss_options}

    def complete_outputs(self, outputs: dict[str, dict[str, Any]], data: Any) -> dict[str, dict[str, Any]]:
        """Fill in the classes of the data."""
        return outputs | {"labels": classes_output(outputs, data)}

    def losses(self, maps: Maps, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Of the logits, and of auxiliary ones."""
        return label_losses(self.loss, maps, batch)

    def build_metrics(self) -> nn.Module:
        """mIoU and company."""
        return SegmentationMetrics(len(self.network.classes or ()), names=self.network.classes)

    def update_metrics(self, metrics: nn.Module, maps: Maps, batch: Batch) -> None:
        """By the most likely class."""
        metrics.update(maps["labels"].argmax(1), batch.labels)  # type: ignore[operator]


def classes_output(outputs: dict[str, dict[str, Any]], data: Any) -> dict[str, Any]:
    """The output "labels" with the number of classes of the data."""
    if data.classes is None:
        raise ValueError("the data have no masks; a segmentation needs them (root/masks, or another layout)")
    if data.val.classes is None:
        raise ValueError("the images to validate on have no masks; give them some, or the best model cannot be told")
    output = outputs.get("labels", {"name": "classes"})
    count = output.get("count", len(data.classes))
    if count != len(data.classes):
        raise ValueError(f"the head has {count} classes, the data have {len(data.classes)}; leave count out")
    return output | {"count": count}


def label_losses(loss: losses.WeightedSum, maps: Maps, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum for the logits and, where there are auxiliary ones, for them too."""
    total, parts = loss(maps["labels"], batch.labels)
    if "labels.auxiliary" in maps:
        auxiliary, _ = loss(maps["labels.auxiliary"], batch.labels)
        total, parts = total + AUXILIARY * auxiliary, parts | {"auxiliary": auxiliary.detach()}
    return total, parts
