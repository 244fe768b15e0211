"""TokenCut (Wang et al., 2022): the object is one side of the normalised cut of the graph of patches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dense.discover.graph import edges, normalised_cut, tokens_of, uncuttable
from dense.discover.results import Objects, component_of
from dense.discover.source import check_features

CELLS = 2**26  # entries of all graphs at work at once: 256 MB
LARGEST = 20_000  # patches whose edges still fit in memory: 1.6 GB


@dataclass(frozen=True)
class TokenCut:
    """One object an image.

    tau: two patches are joined if their cosine exceeds it. eps: weight between patches that are not joined. The score
    is 1 minus the normalised cut's second eigenvalue: near 1, two sides that share hardly an edge. If all pairs of patches
    are alike, or none, there is no object and the score is 0.
    """

    tau: float = 0.2
    eps: float = 1e-5

    def __post_init__(self) -> None:
        check_graph(self.tau, self.eps)

    def __call__(self, features: Tensor) -> Objects:
        """Features (B, C, h, w) -> one mask per image on the grid."""
        features = check_features(features)
        grid, found = features.shape[-2:], []
        for part in chunks(features):
            alike = edges(tokens_of(part), self.tau)
            kept = alike.new_ones(alike.shape[:2])
            cut = normalised_cut(alike, self.eps, kept)
            side, seed, signed = sides(cut.vectors, kept)
            there = ~uncuttable(alike, kept)
            masks = component_of(side.unflatten(1, grid), seed) & there[:, None, None]
            found.append(
                (masks[:, None], (cut.values.clamp(0, 1) * there)[:, None], signed.unflatten(1, grid)[:, None])
            )
        return Objects(*(torch.cat(x) for x in zip(*found, strict=True)))


def check_graph(tau: float, eps: float) -> None:
    """Refuse thresholds and weights that make no graph."""
    check_tau(tau)
    if not 0 < eps < 1:
        raise ValueError(f"eps={eps}: expected a small positive weight below 1, such as 1e-5")


def check_tau(tau: float) -> None:
    """Refuse thresholds that no cosine can meet."""
    if not -1 <= tau < 1:
        raise ValueError(f"tau={tau}: expected a cosine from -1 to 1, such as 0.2")


def chunks(features: Tensor) -> Iterator[Tensor]:
    """Features of as many images at once as have graphs that fit in memory together."""
    patches = features.shape[-2] * features.shape[-1]
    if patches > LARGEST:
        raise ValueError(f"a graph of {patches} patches does not fit; show smaller images, {LARGEST} patches at most")
    yield from features.split(max(1, CELLS // patches**2))


def sides(vectors: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cut vectors (B, N) at their mean over the patches that take part; the object's side holds the largest entry.

    The object's side (B, N) bool, the patch of the largest entry (B,), and the vectors with the object high and the cut at 0.
    """
    mean = (vectors * kept).sum(-1, keepdim=True) / kept.sum(-1, keepdim=True).clamp_min(1)
    seed = vectors.abs().mul(kept).argmax(-1)
    level = (vectors - mean) * kept
    sign = torch.where(level.gather(-1, seed[:, None]) < 0, -1.0, 1.0)
    signed = level * sign
    return signed > 0, seed, signed
