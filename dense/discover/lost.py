"""LOST (Siméoni et al., 2021): the patch with the lowest degree is a seed, and patches similar to it are the object."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dense.discover.attention import Foreground, check_foreground, contrast
from dense.discover.graph import component_of, in_chunks
from dense.discover.results import Objects


@dataclass(frozen=True)
class LOST:
    """One object per image; it must be smaller than the background.

    The degree of a patch is the number of patches with which its features have a positive product. The seed has the
    lowest degree d. Among the `k_patches` patches of lowest degree, those with a positive product with the seed expand
    it. The object is the connected part around the seed of the patches whose products with these sum to more than 0.
    The score is 1 - d / the highest degree; if all degrees are equal there is no object and the score is 0.

    foreground: with `attention`, the seed and its expansion come first from the patches whose salience is above its
    mean, and the score is the contrast of salience inside and outside the mask; with `published`, or without salience,
    all of it is as published.
    """

    k_patches: int = 100
    foreground: Foreground = "attention"

    def __post_init__(self) -> None:
        check_foreground(self.foreground)
        if self.k_patches < 1:
            raise ValueError(f"k_patches={self.k_patches}: expected at least 1, such as 100")

    def __call__(self, features: Tensor, salience: Tensor | None = None) -> Objects:
        """Return one mask per image on the grid of features (B, C, h, w) and salience (B, h, w)."""
        return Objects(*in_chunks(features, self._expand, None if self.foreground == "published" else salience))

    def _expand(self, features: Tensor, salience: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        tokens = features.flatten(2).mT  # B, N, C
        products = tokens @ tokens.mT  # B, N, N
        positive = products > 0
        degrees = positive.sum(-1)  # B, N
        ranks = degrees
        if salience is not None:
            weight = salience.flatten(1)
            ranks = torch.where(weight < weight.mean(-1, keepdim=True), degrees.shape[-1] + degrees, degrees)
        order = ranks.argsort(dim=-1, stable=True)[:, : self.k_patches]  # B, k
        seed = order[:, 0]
        of_seed = torch.take_along_dim(positive, seed[:, None, None], 1)[:, 0]  # B, N
        lowest = torch.zeros_like(of_seed).scatter(-1, order, True)
        expansion = (of_seed & lowest).to(tokens.dtype)  # B, N
        votes = (products @ expansion[..., None])[..., 0].unflatten(1, features.shape[-2:])  # B, h, w
        least, most = degrees.amin(-1), degrees.amax(-1)
        score = 1 - least / torch.where(most > 0, most, 1)
        score = torch.where(least < most, score, 0.0)
        masks = component_of(votes > 0, seed) & (score > 0)[:, None, None]
        if salience is not None:
            score = contrast(masks.flatten(1), torch.ones_like(weight), salience).clamp_min(0)
        return masks[:, None], score[:, None], votes[:, None]
