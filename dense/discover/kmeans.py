"""Cosine k-means: of each image's patches by itself, or of the patches of a whole set of images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from dense.discover.results import Regions
from dense.discover.source import check_channels, check_features, unit_tokens
from dense.files import replacing

MAX_REGIONS = 254  # that an index image can hold
Stream = Callable[[], Iterable[Tensor]]  # each call starts again: features (B, C, h, w), grids may differ


@dataclass(frozen=True)
class KMeans:
    """K regions per image; the best of `tries` runs from k-means++ initialisations."""

    count: int = 5
    iterations: int = 50
    tries: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        check_count(self.count)

    def __call__(self, features: Tensor) -> Regions:
        """Return labels on the grid of features (B, C, h, w), the largest region first."""
        tokens = unit_tokens(check_features(features))
        labels, _ = cosine_kmeans(tokens, self.count, self.iterations, self.tries, self.seed)
        return Regions(by_size(labels, self.count).unflatten(1, features.shape[-2:]), self.count)


@dataclass(frozen=True)
class CoClusters:
    """`count` classes of a set of images, as centres and a mean to subtract; label k is class k in every image."""

    centres: Tensor  # K, C, unit length
    mean: Tensor  # C

    @property
    def count(self) -> int:
        return len(self.centres)

    @classmethod
    def fit(
        cls, stream: Stream, count: int = 20, passes: int = 2, sample: int = 20_000, centre: bool = True, seed: int = 0
    ) -> Self:
        """Fit classes to a stream of features that can be started again.

        The first pass keeps a uniform sample of `sample` patches and computes the mean; k-means of the sample gives
        the centres; each further pass updates them with all patches. Memory holds the sample and one batch.
        """
        check_count(count)
        if passes < 1:
            raise ValueError(f"passes={passes}: expected at least 1, such as 2")
        rows, mean = _reservoir(stream(), sample, seed)
        if len(rows) < count:
            raise ValueError(f"{len(rows)} patches cannot be shared out into {count} classes; give more images")
        mean = mean if centre else torch.zeros_like(mean)
        centres = cosine_kmeans(F.normalize(rows - mean, dim=-1)[None], count, seed=seed)[1][0]  # K, C
        for _ in range(passes - 1):
            sums = torch.zeros_like(centres)
            for features in stream():
                rows = _unit_rows(features, mean)  # N, C
                sums.index_add_(0, (rows @ centres.T).argmax(-1), rows)
            centres = _updated(centres, sums)
        return cls(centres, mean)

    def __call__(self, features: Tensor) -> Regions:
        """Return class numbers on the grid of features (B, C, h, w)."""
        check_channels(features, len(self.mean))
        labels = (_unit_rows(features, self.mean) @ self.centres.T).argmax(-1).to(torch.uint8)
        return Regions(labels.view(len(features), *features.shape[-2:]), self.count)

    def save(self, path: str | Path) -> None:
        with replacing(path) as file:
            save_file({"centres": self.centres.cpu().contiguous(), "mean": self.mean.cpu().contiguous()}, file)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Self:
        """Read a file that `save` wrote."""
        tensors = load_file(str(path), device=str(device))
        if set(tensors) != {"centres", "mean"}:
            raise ValueError(
                f"{path} holds {', '.join(sorted(tensors))}: expected centres and mean, as CoClusters.save writes them"
            )
        return cls(tensors["centres"], tensors["mean"])


def check_count(count: int) -> None:
    """Raise for a number of regions outside 2 to 254."""
    if not 2 <= count <= MAX_REGIONS:
        raise ValueError(f"count={count}: expected 2 to {MAX_REGIONS} regions, such as 5")


def cosine_kmeans(rows: Tensor, count: int, steps: int = 50, tries: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Cluster each set of unit rows (B, N, C) by itself: labels (B, N) and unit centres (B, K, C).

    All sets use the same random numbers, so that the result does not depend on the other sets in the batch.
    """
    if tries < 1:
        raise ValueError(f"tries={tries}: expected at least 1")
    generator = torch.Generator().manual_seed(seed)
    labels, centres, cosine = lloyd(rows, plus_plus(rows, count, generator), steps)
    for _ in range(tries - 1):
        other = lloyd(rows, plus_plus(rows, count, generator), steps)
        better = other[2] > cosine * (1 + 1e-6)
        labels = torch.where(better[:, None], other[0], labels)
        centres = torch.where(better[:, None, None], other[1], centres)
        cosine = torch.where(better, other[2], cosine)
    return labels, centres


def plus_plus(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw initial centres (B, K, C) from the rows, with probabilities proportional to the distance to earlier ones."""
    batch, n, _ = rows.shape
    distance = rows.new_ones(batch, n)
    chosen = []
    for draw in torch.rand(count, generator=generator).tolist():
        weights = distance.clamp_min(1e-12)
        sums = (weights if rows.device.type == "mps" else weights.double()).cumsum(-1)
        index = torch.searchsorted(sums, draw * sums[:, -1:]).clamp_max(n - 1)  # B, 1
        centre = torch.take_along_dim(rows, index[..., None], 1)  # B, 1, C
        chosen.append(centre)
        distance = torch.minimum(distance, (1 - (rows @ centre.mT)[..., 0]).clamp_min(0))
    return torch.cat(chosen, 1)


def lloyd(rows: Tensor, centres: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return labels, centres and the mean cosine (B,) after at most `steps` steps; a centre without rows stays."""
    labels = (rows @ centres.mT).argmax(-1)  # B, N
    for _ in range(steps):
        sums = torch.zeros_like(centres).scatter_add(1, labels[..., None].expand_as(rows), rows)
        centres = _updated(centres, sums)
        new_labels = (rows @ centres.mT).argmax(-1)
        if torch.equal(new_labels, labels):
            break
        labels = new_labels
    cosine = torch.take_along_dim(rows @ centres.mT, labels[..., None], -1).mean((-2, -1))
    return labels, centres, cosine


def by_size(labels: Tensor, count: int) -> Tensor:
    """Renumber labels (B, N) by size, 0 for the largest region, as uint8."""
    sizes = F.one_hot(labels, count).sum(1)  # B, K
    rank = sizes.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return torch.take_along_dim(rank, labels, 1).to(torch.uint8)


def _updated(centres: Tensor, sums: Tensor) -> Tensor:
    """Normalise the sums of rows to unit length; where a sum vanishes the old centre stays."""
    length = sums.norm(dim=-1, keepdim=True)
    return torch.where(length > 1e-6, sums / length.clamp_min(1e-6), centres)


def _unit_rows(features: Tensor, mean: Tensor) -> Tensor:
    """Return unit rows (B*h*w, C) of features (B, C, h, w) minus the mean."""
    return unit_tokens(check_features(features) - mean[:, None, None]).flatten(0, 1)


def _reservoir(batches: Iterable[Tensor], size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return a uniform sample of at most `size` patches (N, C), and the mean (C,) of all patches."""
    generator = torch.Generator().manual_seed(seed)
    kept, keys = torch.empty(0), torch.empty(0)
    total, count = torch.zeros(()), 0
    for features in batches:
        rows = check_features(features).flatten(2).mT.flatten(0, 1)  # N, C
        total = total.to(rows.device) + rows.sum(0)
        count += len(rows)
        keys = torch.cat([keys, torch.rand(len(rows), generator=generator)])  # rows with the largest keys are kept
        kept = torch.cat([kept, rows]) if len(kept) else rows
        if len(keys) > size:
            keys, order = keys.topk(size)
            kept = kept[order.to(kept.device)]
    if not count:
        raise ValueError("no images to learn classes from")
    return kept, total / count
