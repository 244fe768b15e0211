"""Guides: heads that predict metadata from class tokens, so that the backbone keeps or forgets what they predict."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from dense.data.metadata import Column
from pretrain.recipe import GuideOptions
from pretrain.sharding import gathered, is_distributed


class Guide(nn.Module):
    """Base of the heads of a column: ``losses, hits = guide(tokens, targets)`` of tokens (N, D) and targets (N,).

    Targets are indices of classes or numbers in 0..1; those of rows without a value are anything in that range. hits:
    whether a class is right, or the absolute error of a number, for the log.
    """

    def __init__(self, column: Column, balanced: bool) -> None:
        super().__init__()
        self.column = column
        counts = torch.tensor(column.counts or (1,), dtype=torch.float32)
        weights = column.known / (len(counts) * counts) if balanced else torch.ones_like(counts)
        self.register_buffer("class_weights", weights, persistent=False)

    def predict(self, tokens: Tensor) -> Tensor:
        """Return logits (N, classes), or numbers (N, 1)."""
        raise NotImplementedError

    def forward(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        found = self.predict(tokens).float()
        if not self.column.classes:
            difference = found[:, 0] - targets
            return difference.square(), difference.detach().abs()
        classes = targets.long()
        losses = self.get_buffer("class_weights")[classes] * F.cross_entropy(found, classes, reduction="none")
        return losses, (found.detach().argmax(1) == classes).float()


class MLPGuide(Guide):
    """A multi-layer perceptron with GELU and dropout: cross-entropy for classes, squared error for numbers."""

    def __init__(self, column: Column, dim: int, options: GuideOptions) -> None:
        super().__init__(column, options.balanced)
        widths = (dim, *options.hidden)
        hidden = [(nn.Linear(a, b), nn.GELU(), nn.Dropout(options.dropout)) for a, b in pairwise(widths)]
        last = nn.Linear(widths[-1], len(column.classes) or 1)
        self.layers = nn.Sequential(*(layer for group in hidden for layer in group), last)

    def predict(self, tokens: Tensor) -> Tensor:
        return self.layers(tokens)


class PrototypeGuide(Guide):
    """A centroid per class: ``softmax over c of cos(x, m_c) / phi_c``, without parameters.

    m_c is a moving average of the unit-length class tokens of the teacher, and phi_c one of their distance to the
    former m_c (root of the mean square over images and channels). Rows of a class that no step has seen do not count.
    """

    centroids: Tensor
    spreads: Tensor
    seen: Tensor

    def __init__(self, column: Column, dim: int, options: GuideOptions) -> None:
        super().__init__(column, options.balanced)
        self.momentum, self.least = options.momentum, options.least_spread
        classes = len(column.classes)
        self.register_buffer("centroids", torch.zeros(classes, dim))
        self.register_buffer("spreads", torch.full((classes,), options.spread))
        self.register_buffer("seen", torch.zeros(classes, dtype=torch.bool))
        self._new: list[tuple[Tensor, Tensor]] = []

    def predict(self, tokens: Tensor) -> Tensor:
        cosines = F.normalize(tokens.float(), dim=1) @ F.normalize(self.centroids, dim=1).T
        return (cosines / self.spreads).masked_fill(~self.seen, -1e4)

    def forward(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        losses, hits = super().forward(tokens, targets)
        return torch.where(self.seen[targets.long()], losses, 0.0), hits

    def accumulate(self, tokens: Tensor, targets: Tensor, known: Tensor) -> None:
        """Keep the teacher's class tokens of a micro-batch."""
        self._new.append((F.normalize(tokens.detach().float(), dim=1)[known], targets[known]))

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the centroids and spreads, alike in all processes."""
        tokens, targets = (gathered(torch.cat(parts)) for parts in zip(*self._new, strict=True))
        self._new = []
        own = F.one_hot(targets.long(), len(self.seen)).float().T  # classes, N
        count = own.sum(1)
        mean = own @ tokens / count.clamp(min=1)[:, None]
        squares = (tokens[None] - self.centroids[:, None]).square().mean(-1)  # classes, N
        spread = ((own * squares).sum(1) / count.clamp(min=1)).sqrt()
        moves = (count >= 2) & self.seen
        averaged = torch.lerp(spread, self.spreads, self.momentum).clamp(min=self.least)
        self.spreads.copy_(torch.where(moves, averaged, self.spreads))
        moved = torch.where(self.seen[:, None], torch.lerp(mean, self.centroids, self.momentum), mean)
        self.centroids.copy_(torch.where(count[:, None] > 0, moved, self.centroids))
        self.seen |= count > 0


def build_guides(options: GuideOptions, columns: Sequence[Column], dim: int) -> nn.ModuleList:
    """Return a guide for each column, in their order."""
    kinds = [PrototypeGuide if options.kind == "prototypes" and column.classes else MLPGuide for column in columns]
    return nn.ModuleList([kind(column, dim, options) for kind, column in zip(kinds, columns, strict=True)])


def scaled_gradients(gradients: Tensor, factors: Tensor, equalise: bool) -> Tensor:
    """Return the gradients (G, N, D) of G guides at the class tokens, times their factors (G,).

    equalise: bring each to the geometric mean of the norms of all first. Norms are those over all processes; a guide
    without a gradient is left out of the mean.
    """
    if equalise and len(gradients) > 1:
        squares = gradients.float().square().sum((1, 2))
        if is_distributed():
            distributed.all_reduce(squares)
        there = squares > 0
        logarithms = torch.where(there, squares, 1.0).log() / 2
        mean = logarithms.sum() / there.sum().clamp(min=1)
        factors = factors * torch.where(there, (mean - logarithms).exp(), 1.0)
    return gradients * factors[:, None, None].to(gradients.dtype)


def metric_name(column: str) -> str:
    """Return the name of a column as a part of the name of a metric."""
    return re.sub(r"\W+", "_", column)
