"""TokenCut (Wang et al., 2022) and MaskCut (CutLER; Wang et al., 2023): objects by normalised cuts of patch graphs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dense.discover.attention import Foreground, check_foreground, contrast
from dense.discover.graph import check_weights, component_of, edges, in_chunks, normalised_cut, uncuttable
from dense.discover.results import Objects
from dense.discover.source import unit_tokens

CUTS = 3  # at most, after the first
FEW = 0.01  # share of the patches of an image


@dataclass(frozen=True)
class TokenCut:
    """One object per image: one side of the normalised cut.

    tau: two patches are joined if their cosine exceeds it; None for what suits the features in `on_grid`, and
    else for the published 0.2. eps: weight between patches that are not joined. foreground: the object is the side with
    the denser salience (`attention`), or as published that of the largest entry of the eigenvector (`published`, or
    without salience). The score is the contrast of salience inside and outside the mask, and as published 1 minus the
    normalised cut's second eigenvalue, which is near 1 for most cuts, right or wrong. If all pairs of patches are
    joined, or none, there is no object and the score is 0. A few patches that the cut parts from all others are
    outliers: unless as published, it is repeated without them.
    """

    tau: float | None = None
    eps: float = 1e-5
    foreground: Foreground = "attention"

    def __post_init__(self) -> None:
        check_weights(self.tau or 0.2, self.eps)
        check_foreground(self.foreground)

    def __call__(self, features: Tensor, salience: Tensor | None = None) -> Objects:
        """Return one mask per image on the grid of features (B, C, h, w) and salience (B, h, w)."""
        return Objects(*in_chunks(features, self._cut, None if self.foreground == "published" else salience))

    def _cut(self, features: Tensor, salience: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        grid = features.shape[-2:]
        adjacency = edges(unit_tokens(features), 0.2 if self.tau is None else self.tau)
        active = adjacency.new_ones(adjacency.shape[:2])
        cut = normalised_cut(adjacency, self.eps, active)
        for _ in range(0 if salience is None else CUTS):
            outliers = lone_patches(cut.vectors, active)
            if not outliers.any():
                break
            active = active * ~outliers
            cut = normalised_cut(adjacency, self.eps, active)
        seed, signed = object_side(cut.vectors, active)
        if salience is not None:
            signed = denser_side(signed, active, salience)
            seed = signed.argmax(-1)
        found = ~uncuttable(adjacency, active)
        masks = component_of((signed > 0).unflatten(1, grid), seed) & found[:, None, None]
        scores = (
            cut.values.clamp(0, 1) if salience is None else contrast(masks.flatten(1), active, salience).clamp_min(0)
        )
        return masks[:, None], (scores * found)[:, None], signed.unflatten(1, grid)[:, None]


@dataclass(frozen=True)
class MaskCut:
    """Up to `count` objects per image, each TokenCut's among the patches that no earlier mask holds.

    tau (published: 0.15), eps, foreground and the scores are TokenCut's. As published, a side that holds three corners
    of the image or more is the background, and the other side is taken. A mask smaller than the share `least` of the
    image is left empty with score 0. Masks never overlap: the patches of a mask are inactive in later cuts.
    """

    count: int = 3
    tau: float | None = None
    eps: float = 1e-5
    least: float = 0.01
    foreground: Foreground = "attention"

    def __post_init__(self) -> None:
        check_weights(self.tau or 0.15, self.eps)
        check_foreground(self.foreground)
        if not 1 <= self.count <= 255:
            raise ValueError(f"count={self.count}: expected 1 to 255 objects per image, such as 3")
        if not 0 <= self.least < 1:
            raise ValueError(f"least={self.least}: expected a share of the image from 0 to 1, such as 0.01")

    def __call__(self, features: Tensor, salience: Tensor | None = None) -> Objects:
        """Return `count` masks per image on the grid of features (B, C, h, w), in the order in which they were cut."""
        return Objects(*in_chunks(features, self._cut, None if self.foreground == "published" else salience))

    def _cut(self, features: Tensor, salience: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        grid = features.shape[-2:]
        adjacency = edges(unit_tokens(features), 0.15 if self.tau is None else self.tau)
        active = adjacency.new_ones(adjacency.shape[:2])  # B, N
        masks: list[Tensor] = []
        scores, maps = [], []
        for _ in range(self.count):
            cut = normalised_cut(adjacency, self.eps, active)
            _, signed = object_side(cut.vectors, active)
            if salience is None:
                corners = (signed > 0).unflatten(1, grid)[:, [0, 0, -1, -1], [0, -1, 0, -1]]  # B, 4
                signed = torch.where(corners.sum(-1, keepdim=True) >= 3, -signed, signed)
            else:
                signed = denser_side(signed, active, salience)
            seed = torch.where(active > 0, signed, -torch.inf).argmax(-1)
            mask = component_of((signed > 0).unflatten(1, grid), seed)  # B, h, w
            found = ~uncuttable(adjacency, active) & (mask.float().mean((-2, -1)) >= self.least)
            score = (
                cut.values.clamp(0, 1) if salience is None else contrast(mask.flatten(1), active, salience).clamp_min(0)
            )
            active = active * ~mask.flatten(1)  # even a mask that is dropped is not cut again
            masks.append(mask & found[:, None, None])
            scores.append(score * found)
            maps.append(signed.unflatten(1, grid))
        return torch.stack(masks, 1), torch.stack(scores, 1), torch.stack(maps, 1)


def object_side(vectors: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
    """Split cut vectors (B, N) at their mean over active patches; the side of the largest entry is the object's.

    Returns the patch of the largest entry (B,), and the vectors (B, N), positive on the object's side.
    """
    mean = (vectors * active).sum(-1, keepdim=True) / active.sum(-1, keepdim=True).clamp_min(1)
    seed = vectors.abs().mul(active).argmax(-1)
    level = (vectors - mean) * active
    sign = torch.where(level.gather(-1, seed[:, None]) < 0, -1.0, 1.0)
    return seed, level * sign


def lone_patches(vectors: Tensor, active: Tensor) -> Tensor:
    """Return the patches on the smaller side of a cut (B, N), none where they are FEW of all patches or more."""
    one = (object_side(vectors, active)[1] > 0) & (active > 0)
    other = ~one & (active > 0)
    smaller = torch.where((one.sum(-1) <= other.sum(-1))[:, None], one, other)
    return smaller & (smaller.sum(-1, keepdim=True) < FEW * vectors.shape[1])


def denser_side(signed: Tensor, active: Tensor, salience: Tensor) -> Tensor:
    """Return cut vectors (B, N), positive on the side with the denser salience (B, h, w); on a tie as they are."""
    other = contrast(signed < 0, active, salience) > contrast(signed > 0, active, salience)
    return torch.where(other[:, None], -signed, signed)
