"""Semantic segmentation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from dense import losses
from dense.data.labelled.sample import IGNORE, Batch, LabelledSource
from dense.metrics import SegmentationMetrics
from dense.model.network import Maps
from dense.tasks.base import DenseTask, targets_of
from dense.tasks.data import DataFacts

AUXILIARY = 0.4  # weight of an auxiliary head's loss


class SegmentationTask(DenseTask):
    """A class per pixel, on frozen features unless `tune` says otherwise.

    The head needs an output "labels" of {name: classes}; the data decide the number of classes.
    """

    task = "segmentation"
    outputs: ClassVar = {"labels": ("classes",)}
    monitor, mode, second = "val/miou", "max", "val/aacc"

    def __init__(
        self,
        *,
        head: dict[str, Any] = {"name": "linear", "batch_norm": True, "outputs": {"labels": {"name": "classes"}}},
        loss: dict[str, Any] = {"cross_entropy": 1.0},
        **shared: Any,
    ) -> None:
        """A segmentation head in training.

        Args:
            head: options of `heads.build`; in_channels and the number of classes are filled in.
            loss: cross_entropy, dice, focal, lovasz, each with its weight or its options.
            **shared: options of every task.
        """
        super().__init__(head=head, **shared)
        self.loss_options, self.loss = loss, losses.build(loss)

    def loss_recipe(self) -> dict[str, Any]:
        return {"loss": self.loss_options}

    def complete_outputs(self, outputs: dict[str, dict[str, Any]], data: DataFacts) -> dict[str, dict[str, Any]]:
        """Fill in the number of classes."""
        return outputs | {"labels": classes_output(outputs, data)}

    def losses(self, maps: Maps, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return label_losses(self.loss, maps, batch)

    def build_metrics(self) -> nn.Module:
        return SegmentationMetrics(len(self.network.classes or ()), names=self.network.classes)

    def update_metrics(self, metrics: Any, maps: Maps, batch: Batch) -> None:
        metrics.update(maps["labels"].argmax(1), batch.labels)

    def baseline(self, train: LabelledSource) -> Callable[[Batch], Maps]:
        """Return the most frequent class of the training images everywhere."""
        return constant_class(train, len(self.network.classes or ()))


def constant_class(train: LabelledSource, classes: int) -> Callable[[Batch], Maps]:
    """Return a prediction of the class that most pixels of training masks have."""
    counts = np.zeros(IGNORE + 1, np.int64)
    for labels in targets_of(train, "labels"):
        counts += np.bincount(labels.ravel(), minlength=len(counts))
    most = int(counts[:classes].argmax())

    def predict(batch: Batch) -> Maps:
        assert batch.labels is not None
        logits = torch.zeros(1, classes, 1, 1, device=batch.labels.device)
        logits[:, most] = 1
        return {"labels": logits.expand(len(batch.labels), -1, *batch.labels.shape[1:])}

    return predict


def classes_output(outputs: dict[str, dict[str, Any]], data: DataFacts) -> dict[str, Any]:
    """Return the output "labels" with the number of classes in the data."""
    if data.classes is None:
        raise ValueError("the data have no masks; a segmentation needs them (root/masks, or another layout)")
    if "labels" not in data.val_targets:
        raise ValueError("the validation images have no masks; without them no best model can be chosen")
    output = outputs.get("labels", {"name": "classes"})
    count = output.get("count", len(data.classes))
    if count != len(data.classes):
        raise ValueError(f"the head has {count} classes, the data have {len(data.classes)}; leave count out")
    return output | {"count": count}


def label_losses(loss: losses.WeightedSum, maps: Maps, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of the logits, plus that of auxiliary logits where there are any, and its parts."""
    total, parts = loss(maps["labels"], batch.labels)
    if "labels.auxiliary" in maps:
        auxiliary, _ = loss(maps["labels.auxiliary"], batch.labels)
        total, parts = total + AUXILIARY * auxiliary, parts | {"auxiliary": auxiliary.detach()}
    return total, parts
