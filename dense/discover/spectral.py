"""Spectral clustering of patches (Ng, Jordan and Weiss, 2001)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dense.discover.eigen import largest
from dense.discover.graph import DENSE, tokens_of
from dense.discover.kmeans import by_size, check_count, cosine_kmeans
from dense.discover.results import Regions
from dense.discover.source import SILENT, check_features
from dense.discover.tokencut import check_tau, chunks


@dataclass(frozen=True)
class Spectral:
    """K regions an image: the `count` leading eigenvectors of D^-1/2 A D^-1/2 with A = max(cosine - tau, 0), rows made unit
    length, grouped by k-means."""

    count: int = 5
    tau: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_count(self.count)
        check_tau(self.tau)

    def __call__(self, features: Tensor) -> Regions:
        """Features (B, C, h, w) -> labels on the grid, the largest region first."""
        features = check_features(features)
        labels = torch.cat([self._some(tokens_of(part)) for part in chunks(features)])
        return Regions(labels.unflatten(1, features.shape[-2:]), self.count)

    def _some(self, tokens: Tensor) -> Tensor:
        rows = F.normalize(leading(tokens, self.count, self.tau), dim=-1)  # B, N, K
        labels, _ = cosine_kmeans(rows, self.count, seed=self.seed)
        alike = (tokens - tokens[:, :1]).abs().amax(
            (-2, -1)
        ) <= SILENT  # eigenvectors of one and the same are arbitrary
        return by_size(labels.masked_fill(alike[:, None], 0), self.count)


def leading(tokens: Tensor, count: int, tau: float = 0.0) -> Tensor:
    """The leading eigenvectors of the normalised graph of unit tokens (B, N, C), as (B, N, count)."""
    weights = (tokens @ tokens.mT - tau).clamp_min(0)
    weights.diagonal(dim1=-2, dim2=-1).fill_(1 - tau)
    scale = weights.sum(-1, keepdim=True).rsqrt()  # B, N, 1
    n = tokens.shape[1]
    if n <= max(DENSE, 30 * (count + 2)):
        exact = weights if weights.device.type == "mps" else weights.double()
        vectors = torch.linalg.eigh(scale * exact * scale.mT).eigenvectors.flip(-1)[..., :count]
        return F.pad(vectors.to(tokens.dtype), (0, max(0, count - n)))
    start = torch.randn(n, count + 2, generator=torch.Generator().manual_seed(0)).to(tokens)
    operator = lambda v: scale * (weights @ (scale * v))  # noqa: E731
    return largest(operator, start.expand(len(tokens), -1, -1), count, accuracy=1e-2, blocks=6).vectors[..., :count]
