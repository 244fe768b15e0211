"""k-means by cosine: of one image's patches, or of any rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dense.discover.graph import tokens_of
from dense.discover.results import Regions
from dense.discover.source import check_features

MOST = 254  # regions that an index image can hold


@dataclass(frozen=True)
class KMeans:
    """K regions an image by cosine k-means of its patches, started `tries` times by k-means++; the best one counts."""

    count: int = 5
    iterations: int = 50
    tries: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        check_count(self.count)

    def __call__(self, features: Tensor) -> Regions:
        """Features (B, C, h, w) -> labels on the grid, the largest region first."""
        tokens = tokens_of(check_features(features))
        labels, _ = cosine_kmeans(tokens, self.count, self.iterations, self.tries, self.seed)
        return Regions(by_size(labels, self.count).unflatten(1, features.shape[-2:]), self.count)


def check_count(count: int) -> None:
    """Refuse numbers of regions that make no sense."""
    if not 2 <= count <= MOST:
        raise ValueError(f"count={count}: expected 2 to {MOST} regions, such as 5")


def cosine_kmeans(rows: Tensor, count: int, steps: int = 50, tries: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit rows (B, N, C) -> labels (B, N) and unit centres (B, K, C), each set of rows by itself.

    Every set draws the same numbers, so that a set's prediction does not depend on its neighbours in the batch.
    """
    generator = torch.Generator().manual_seed(seed)
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for _ in range(tries):
        labels, centres, worth = lloyd(rows, plus_plus(rows, count, generator), steps)
        if best is None:
            best = labels, centres, worth
        else:
            better = worth > best[2] * (1 + 1e-6)
            best = (
                torch.where(better[:, None], labels, best[0]),
                torch.where(better[:, None, None], centres, best[1]),
                torch.where(better, worth, best[2]),
            )
    if best is None:
        raise ValueError(f"tries={tries}: expected at least 1")
    return best[0], best[1]


def plus_plus(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Centres (B, K, C) drawn from the rows, each with a chance that grows with the distance to those drawn before."""
    batch, n, _ = rows.shape
    far = rows.new_ones(batch, n)
    chosen = []
    for draw in torch.rand(count, generator=generator).tolist():
        sums = (
            far.clamp_min(1e-12).double().cumsum(-1) if rows.device.type != "mps" else far.clamp_min(1e-12).cumsum(-1)
        )
        index = torch.searchsorted(sums, draw * sums[:, -1:]).clamp_max(n - 1)  # B, 1
        centre = torch.take_along_dim(rows, index[..., None], 1)  # B, 1, C
        chosen.append(centre)
        far = torch.minimum(far, (1 - (rows @ centre.mT)[..., 0]).clamp_min(0))
    return torch.cat(chosen, 1)


def lloyd(rows: Tensor, centres: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Labels, centres and the mean cosine (B,) after at most `steps` steps; a centre that loses all its rows stays."""
    labels = (rows @ centres.mT).argmax(-1)  # B, N
    for _ in range(steps):
        sums = torch.zeros_like(centres).scatter_add(1, labels[..., None].expand_as(rows), rows)
        centres = renewed(centres, sums)
        moved = (rows @ centres.mT).argmax(-1)
        if torch.equal(moved, labels):
            break
        labels = moved
    worth = torch.take_along_dim(rows @ centres.mT, labels[..., None], -1).mean((-2, -1))
    return labels, centres, worth


def renewed(centres: Tensor, sums: Tensor) -> Tensor:
    """Sums of rows made unit length; where a sum vanishes the old centre stays."""
    length = sums.norm(dim=-1, keepdim=True)
    return torch.where(length > 1e-6, sums / length.clamp_min(1e-6), centres)


def by_size(labels: Tensor, count: int) -> Tensor:
    """Labels (B, N) renumbered, 0 the largest region: uint8."""
    sizes = F.one_hot(labels, count).sum(1)  # B, K
    rank = sizes.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return torch.take_along_dim(rank, labels, 1).to(torch.uint8)
