"""Linear classification of frozen features by the published recipes; grids of heads are trained in one pass."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dense.backbone import Backbone
from dense.backbone.spec import BackboneSpec
from dense.console import progress
from dense.evaluate.classification.data import Examples, Resample, View
from dense.evaluate.classification.extraction import Extraction, held_out
from dense.evaluate.classification.features import Choice, Pooled, Readout, choices_of, evaluating

GRID = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
MOMENTUM = 0.9
STD = 0.01  # of the initial weights; biases start at 0


@dataclass(frozen=True)
class LinearRecipe:
    """SGD with momentum 0.9, no weight decay and a cosine schedule to 0; the length is in epochs or in steps."""

    name: str
    readouts: tuple[Readout, ...]
    learning_rates: tuple[float, ...]  # at a batch of 256; they are scaled linearly with the batch
    batch_size: int = 128
    epochs: int | None = None
    steps: int | None = None
    anneal: Literal["epoch", "step"] = "step"  # whether the learning rate changes per epoch or per step
    augment: bool = True  # random crop and flip; False computes the features once
    resample: Resample = "bilinear"  # of training crops

    def __post_init__(self) -> None:
        length = [number for number in (self.epochs, self.steps) if number is not None]
        if len(length) != 1 or length[0] < 1:
            raise ValueError(f"epochs={self.epochs}, steps={self.steps}: expected one of them, 1 or more")

    def length(self, images: int) -> tuple[int, int]:
        """Return the total number of steps, and the steps per epoch, for this number of images."""
        per_epoch = max(images // min(self.batch_size, images), 1)
        return self.steps or (self.epochs or 0) * per_epoch, per_epoch

    def scale(self, step: int, steps: int, per_epoch: int) -> float:
        """Return the factor of the learning rate: half a cosine from 1 to 0."""
        done = step // per_epoch * per_epoch if self.anneal == "epoch" else step
        return 0.5 * (1 + math.cos(math.pi * min(done / steps, 1.0)))


def dino_recipe(spec: BackboneSpec) -> LinearRecipe:
    """Return DINO's recipe: 100 epochs at a learning rate of 0.001.

    The features are the class tokens of the last four blocks up to the width of ViT-S. Wider backbones use the class
    token and the average of the patches.
    """
    readout: Readout = "average" if not spec.class_token else "last4" if spec.dim <= 384 else "class_average"
    return LinearRecipe("dino", (readout,), (0.001,), epochs=100, anneal="epoch")


def dinov2_recipe(spec: BackboneSpec) -> LinearRecipe:
    """Return DINOv2's recipe: 12,500 steps and 52 heads, of which the best on the validation set is reported.

    The heads combine 13 learning rates with the class tokens of the last or the last four blocks, with and without the
    average of the patches.
    """
    readouts: tuple[Readout, ...] = ("class", "class_average", "last4", "last4_average")
    return LinearRecipe(
        "dinov2", readouts if spec.class_token else ("average",), GRID, steps=12_500, resample="bicubic"
    )


RECIPES = {"dino": dino_recipe, "dinov2": dinov2_recipe}


class HeadGrid:
    """Linear classifiers of one readout, one per learning rate, computed in one matrix product.

    The gradient of softmax cross-entropy is computed in closed form, so a step is two matrix products without autograd.
    """

    def __init__(
        self, width: int, classes: int, rates: Sequence[float], seed: int = 0, device: str | torch.device = "cpu"
    ) -> None:
        rng = torch.Generator().manual_seed(seed)
        self.rates = torch.tensor(rates, device=device).view(-1, 1, 1)  # R, 1, 1
        self.weight = (torch.randn(len(rates), classes, width, generator=rng) * STD).to(device)  # R, C, D
        self.bias = torch.zeros(len(rates), classes, 1, device=device)
        self.moments = (torch.zeros_like(self.weight), torch.zeros_like(self.bias))

    def __call__(self, features: Tensor) -> Tensor:
        """Return logits (R, C, B) of features (B, D)."""
        return self.weight @ features.T + self.bias

    @torch.no_grad()
    def step(self, features: Tensor, labels: Tensor, scale: float) -> Tensor:
        """Take a step of SGD on features (B, D) and labels (B,) at `scale` times the rates; return the losses (R,)."""
        logits = self(features)
        losses = logits.logsumexp(1) - logits[:, labels, torch.arange(len(labels), device=labels.device)]  # R, B
        error = logits.softmax(1)
        error[:, labels, torch.arange(len(labels), device=labels.device)] -= 1
        error /= len(labels)
        gradients = (error @ features, error.sum(2, keepdim=True))  # R, C, D and R, C, 1
        for value, moment, gradient in zip((self.weight, self.bias), self.moments, gradients, strict=True):
            moment.mul_(MOMENTUM).add_(gradient)
            value.sub_(self.rates * scale * moment)
        return losses.mean(1)

    def accuracy(self, features: Tensor, labels: Tensor, top: int = 1) -> list[float]:
        """Return the top-k accuracy, with k = `top`, for each learning rate."""
        top = min(top, self.weight.shape[1])
        device = self.weight.device
        right = torch.zeros(len(self.weight), device=device)
        for part, wanted in zip(features.split(1024), labels.split(1024), strict=True):
            best = self(part.to(device)).topk(top, dim=1).indices  # R, top, B
            right += (best == wanted.to(device)).any(1).sum(1)
        return [number / len(labels) for number in right.tolist()]


@dataclass(frozen=True)
class LinearResult:
    """Accuracies on the validation set, of the chosen head and of all."""

    top1: float
    top5: float  # of the same head
    readout: Readout | Choice
    learning_rate: float
    heads: dict[str, float]  # "READOUT lr=RATE" -> top-1
    choices: dict[Readout | Choice, float]  # top-1 of each readout at its chosen learning rate
    held_out: float | None = None  # top-1 on the held-out training images on which the head was chosen


def linear_evaluation(
    backbone: Backbone,
    train: Examples,
    val: Examples,
    recipe: LinearRecipe,
    *,
    train_view: View,
    val_view: View,
    seed: int = 0,
    workers: int = 0,
    choices: Sequence[Choice] | None = None,
    extraction: Extraction | None = None,
    holdout: float = 0.0,
) -> LinearResult:
    """Train all heads of the recipe in one pass over frozen features, evaluate each, and return the best.

    choices: readouts of any layers instead of the recipe's. extraction: of features with a cache, or of others than
    the backbone's. holdout: fraction of the training images on which the best head is chosen; 0 chooses on `val`.
    """
    kinds: Sequence[Readout | Choice] = choices or recipe.readouts
    extraction = extraction or Extraction.of(
        backbone, choices_of(backbone, readout=recipe.readouts), None, workers=workers
    )
    steps, per_epoch = recipe.length(len(train))
    apart: Pooled | None = None
    device = next(backbone.parameters()).device
    if recipe.augment:
        if holdout:
            chosen = held_out(train.labels, holdout, seed).numpy()
            apart = extraction(train.only(np.flatnonzero(chosen)), val_view, "features of held-out images")
            train = train.only(np.flatnonzero(~chosen & (train.labels >= 0)))
            steps, per_epoch = recipe.length(len(train))
        epochs = range(-(-steps // per_epoch))
        batches = train.batches(train_view, recipe.batch_size, workers=workers, seed=seed, epochs=epochs)
        features: Iterator[Pooled] = (extraction.function(b.images, b.labels) for b in batches if len(b.images))
    else:
        kept = extraction(train, val_view, "features of train")
        if holdout:
            mask = held_out(kept.labels, holdout, seed)
            kept, apart = kept[~mask], kept[mask]
        steps, per_epoch = recipe.length(len(kept))
        features = repeat(kept, recipe.batch_size, seed)
    with evaluating(backbone):
        grids = fit_heads(features, recipe, len(train.classes), steps, per_epoch, seed=seed, device=device, kinds=kinds)
    return compare(grids, extraction(val, val_view, "features of val"), recipe, apart)


def repeat(pooled: Pooled, batch_size: int, seed: int = 0) -> Iterator[Pooled]:
    """Yield shuffled, complete batches of pooled features without end."""
    rng = torch.Generator().manual_seed(seed)
    size = min(batch_size, len(pooled))
    while True:
        for chosen in torch.randperm(len(pooled), generator=rng).split(size):
            if len(chosen) == size:
                yield pooled[chosen]


def fit_heads(
    batches: Iterable[Pooled],
    recipe: LinearRecipe,
    classes: int,
    steps: int,
    per_epoch: int,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    kinds: Sequence[Readout | Choice] | None = None,
) -> dict[Readout | Choice, HeadGrid]:
    """Train one `HeadGrid` per readout, the recipe's or `kinds`, for `steps` batches, or as many as there are."""
    rates = [rate * recipe.batch_size / 256 for rate in recipe.learning_rates]
    grids: dict[Readout | Choice, HeadGrid] = {}
    for step, batch in zip(progress(range(steps), "training"), batches, strict=False):
        assert batch.labels is not None
        labels = batch.labels.to(device)
        for number, kind in enumerate(kinds or recipe.readouts):
            x = batch.readout(kind).to(device)
            if kind not in grids:
                grids[kind] = HeadGrid(x.shape[1], classes, rates, seed + number, device)
            grids[kind].step(x, labels, recipe.scale(step, steps, per_epoch))
    if not grids:
        raise ValueError("there are no images to train on")
    return grids


def compare(
    grids: dict[Readout | Choice, HeadGrid], val: Pooled, recipe: LinearRecipe, apart: Pooled | None = None
) -> LinearResult:
    """Evaluate all heads and return that of the best top-1 on `apart`, else `val`; the smaller rate wins a tie."""
    assert val.labels is not None
    heads: dict[str, float] = {}
    choices: dict[Readout | Choice, float] = {}
    best: tuple[float, float, float, Readout | Choice, float] | None = None
    for kind, grid in grids.items():
        x = val.readout(kind)
        top1, top5 = grid.accuracy(x, val.labels), grid.accuracy(x, val.labels, 5)
        judged = top1
        if apart is not None and apart.labels is not None:
            judged = grid.accuracy(apart.readout(kind), apart.labels)
        for rate, first in zip(recipe.learning_rates, top1, strict=True):
            heads[f"{kind} lr={rate:g}"] = first
        at = judged.index(max(judged))
        choices[kind] = top1[at]
        if best is None or judged[at] > best[0]:
            best = (judged[at], top1[at], top5[at], kind, recipe.learning_rates[at])
    assert best is not None
    return LinearResult(*best[1:], heads, choices, None if apart is None else best[0])
