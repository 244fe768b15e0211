"""Spectral clustering of patches (Ng, Jordan and Weiss, 2001)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dense.discover.eigen import largest
from dense.discover.graph import DENSE, check_tau, in_chunks
from dense.discover.kmeans import by_size, check_count, cosine_kmeans
from dense.discover.results import Regions
from dense.discover.source import ROUNDING, unit_tokens


@dataclass(frozen=True)
class Spectral:
    """K regions per image by k-means of the rows of the `count` leading eigenvectors, scaled to unit length.

    The eigenvectors are those of D^-1/2 A D^-1/2 with A = max(cosine - tau, 0).
    """

    count: int = 5
    tau: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_count(self.count)
        check_tau(self.tau)

    def __call__(self, features: Tensor) -> Regions:
        """Return labels on the grid of features (B, C, h, w), the largest region first."""
        (labels,) = in_chunks(features, self._cluster)
        return Regions(labels.unflatten(1, features.shape[-2:]), self.count)

    def _cluster(self, features: Tensor) -> tuple[Tensor]:
        tokens = unit_tokens(features)
        rows = F.normalize(leading(tokens, self.count, self.tau), dim=-1)  # B, N, K
        labels, _ = cosine_kmeans(rows, self.count, seed=self.seed)
        constant = (tokens - tokens[:, :1]).abs().amax((-2, -1)) <= ROUNDING  # whose eigenvectors are arbitrary
        return (by_size(labels.masked_fill(constant[:, None], 0), self.count),)


def leading(tokens: Tensor, count: int, tau: float = 0.0) -> Tensor:
    """Return the leading eigenvectors (B, N, count) of the normalised graph of unit tokens (B, N, C)."""
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
