"""MaskCut (Wang et al., 2023, CutLER): several objects by cutting what earlier cuts left."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dense.discover.graph import edges, normalised_cut, tokens_of, uncuttable
from dense.discover.results import Objects, component_of
from dense.discover.source import check_features
from dense.discover.tokencut import check_graph, chunks, sides


@dataclass(frozen=True)
class MaskCut:
    """Up to `count` objects an image, each TokenCut's among the patches that no earlier mask holds.

    tau, eps and the scores are TokenCut's. A side that holds three corners of the image or more is the background, and the
    other side is taken. A mask smaller than `least` of the image is left empty with score 0. Masks never overlap: what a
    mask holds takes no part in later cuts.
    """

    count: int = 3
    tau: float = 0.15
    eps: float = 1e-5
    least: float = 0.01

    def __post_init__(self) -> None:
        check_graph(self.tau, self.eps)
        if not 1 <= self.count <= 255:
            raise ValueError(f"count={self.count}: expected 1 to 255 objects an image, such as 3")
        if not 0 <= self.least < 1:
            raise ValueError(f"least={self.least}: expected a share of the image from 0 to 1, such as 0.01")

    def __call__(self, features: Tensor) -> Objects:
        """Features (B, C, h, w) -> `count` masks an image on the grid, in the order in which they were cut."""
        features = check_features(features)
        parts = [self._some(part) for part in chunks(features)]
        return Objects(*(torch.cat(x) for x in zip(*parts, strict=True)))

    def _some(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        grid = features.shape[-2:]
        alike = edges(tokens_of(features), self.tau)
        kept = alike.new_ones(alike.shape[:2])  # B, N
        masks: list[Tensor] = []
        scores, maps = [], []
        for _ in range(self.count):
            cut = normalised_cut(alike, self.eps, kept)
            level, seed = self._object(*sides(cut.vectors, kept), kept, grid)
            mask = component_of((level > 0).unflatten(1, grid), seed)  # B, h, w
            there = ~uncuttable(alike, kept) & (mask.float().mean((-2, -1)) >= self.least)
            kept = kept * ~mask.flatten(1)  # even a mask that is dropped is not cut again
            masks.append(mask & there[:, None, None])
            scores.append(cut.values.clamp(0, 1) * there)
            maps.append(level.unflatten(1, grid))
        return torch.stack(masks, 1), torch.stack(scores, 1), torch.stack(maps, 1)

    @staticmethod
    def _object(side: Tensor, seed: Tensor, level: Tensor, kept: Tensor, grid: torch.Size) -> tuple[Tensor, Tensor]:
        """The level (B, N) with the object high, and its highest patch."""
        corners = side.unflatten(1, grid)[:, [0, 0, -1, -1], [0, -1, 0, -1]]  # B, 4
        level = torch.where(corners.sum(-1, keepdim=True) >= 3, -level, level)
        return level, torch.where(kept > 0, level, -torch.inf).argmax(-1)
