"""Fine-tuning of a whole backbone for classification, with layer-wise decay of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dense.backbone import Backbone
from dense.console import progress
from dense.evaluate.classification.data import Examples, View
from dense.evaluate.classification.features import Readout, blocks_of, default_readout, final_norm, pool, to_input
from dense.tasks.tuning import parameter_groups


@dataclass(frozen=True)
class FineTuneRecipe:
    """AdamW with linear warm-up and cosine schedule per step; the drop path rate is an option of the backbone."""

    epochs: int = 100
    batch_size: int = 128
    lr: float = 5e-4  # of the head at a batch of 256; it is scaled linearly with the batch
    min_lr: float = 1e-6
    warmup_epochs: float = 5
    layer_decay: float = 0.75
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    readout: Readout | None = None  # None: the class token, or the average of the patches without one
    precision: str = "fp32"  # or bf16

    def __post_init__(self) -> None:
        for name, value, least in (
            ("epochs", self.epochs, 1),
            ("batch_size", self.batch_size, 1),
            ("warmup_epochs", self.warmup_epochs, 0),
        ):
            if value < least:
                raise ValueError(f"{name} is {value}, expected {least} or more")
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr}, expected a positive number")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay is {self.layer_decay}, expected more than 0, at most 1")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision is {self.precision!r}, expected fp32 or bf16")

    def factor(self, step: int, per_epoch: int) -> float:
        """Return the factor of every learning rate at a step."""
        steps = self.epochs * per_epoch
        warmup = min(round(self.warmup_epochs * per_epoch), steps)
        if step < warmup:
            return (step + 1) / warmup
        low = self.min_lr / self.lr
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


class Classifier(nn.Module):
    """A backbone with a linear head on one vector per image."""

    def __init__(self, backbone: Backbone, classes: int, readout: Readout | None = None) -> None:
        super().__init__()
        self.backbone, self.readout = backbone, readout or default_readout(backbone.spec.class_token)
        spec = backbone.spec
        self.blocks = min(blocks_of([self.readout]), spec.depth)
        parts = (self.blocks if self.readout != "average" else 0) + self.readout.endswith("average")
        self.head = nn.Linear(spec.dim * parts, classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes) of images (B, 3, H, W), uint8 or normalised."""
        depth = self.backbone.spec.depth
        layers = tuple(range(depth - self.blocks, depth))
        features = self.backbone(to_input(self.backbone, images), layers=layers, norm=final_norm(self.backbone))
        return self.head(pool(features).readout(self.readout))


def fine_tune(
    backbone: Backbone,
    train: Examples,
    recipe: FineTuneRecipe,
    *,
    view: View,
    seed: int = 0,
    workers: int = 0,
) -> Classifier:
    """Train backbone and head on labelled images, and return the classifier in evaluation mode.

    The backbone is trained in place. `seed` determines all random numbers (the head, drop path); the global random
    state is restored afterwards.
    """
    device = next(backbone.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        classifier = Classifier(backbone.unfreeze(), len(train.classes), recipe.readout).to(device)
        for name, parameter in backbone.named_parameters():
            if name == "mask_token":  # unused, since no patches are masked
                parameter.requires_grad_(False)
        groups = parameter_groups(
            classifier, recipe.lr * recipe.batch_size / 256, recipe.layer_decay, recipe.weight_decay
        )
        optimizer = torch.optim.AdamW(groups)
        per_epoch = len(train) // min(recipe.batch_size, len(train))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: recipe.factor(step, per_epoch))
        classifier.train()
        epochs = range(recipe.epochs)
        batches = train.batches(view, recipe.batch_size, workers=workers, seed=seed, epochs=epochs)
        for batch in progress(batches, "training", recipe.epochs * per_epoch):
            if not len(batch.images):
                continue
            images, labels = batch.images.to(device), batch.labels.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                logits = classifier(images)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return classifier.eval()


@torch.inference_mode()
def classification_accuracy(
    classifier: Classifier, batches: Iterable[Any], tops: Sequence[int] = (1,)
) -> dict[int, float]:
    """Return the top-k accuracy on batches (images, labels, ...) for each k of `tops`."""
    device = next(classifier.parameters()).device
    right, count = dict.fromkeys(tops, 0), 0
    for images, labels, *_ in batches:
        if len(images):
            order = classifier(images.to(device)).argsort(1, descending=True)  # B, classes
            hits = order == labels.to(device).unsqueeze(1)
            right = {top: number + int(hits[:, :top].sum()) for top, number in right.items()}
            count += len(labels)
    if not count:
        raise ValueError("there are no images to evaluate")
    return {top: number / count for top, number in right.items()}
