"""LOST (Siméoni et al., 2021): the patch that resembles fewest others is a seed, and its kin are the object."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dense.discover.results import Objects, component_of
from dense.discover.source import check_features
from dense.discover.tokencut import chunks


@dataclass(frozen=True)
class LOST:
    """One object an image; it must be smaller than what surrounds it.

    The degree of a patch is the number of patches with which its features have a positive product. The seed has the
    lowest degree d; of the `k_patches` lowest ones, those alike the seed expand it; patches whose products with these
    sum to more than 0 and that are connected to the seed are the object. The score is 1 - d / the highest degree; if
    all degrees are equal there is no object and the score is 0.
    """

    k_patches: int = 100

    def __post_init__(self) -> None:
        if self.k_patches < 1:
            raise ValueError(f"k_patches={self.k_patches}: expected at least 1, such as 100")

    def __call__(self, features: Tensor) -> Objects:
        """Features (B, C, h, w) -> one mask per image on the grid."""
        features = check_features(features)
        parts = [self._some(part) for part in chunks(features)]
        return Objects(*(torch.cat(x) for x in zip(*parts, strict=True)))

    def _some(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        grid = features.shape[-2:]
        tokens = features.flatten(2).mT  # B, N, C
        products = tokens @ tokens.mT  # B, N, N
        alike = products > 0
        degrees = alike.sum(-1)  # B, N
        order = degrees.argsort(dim=-1, stable=True)[:, : self.k_patches]  # B, k
        seed = order[:, 0]
        of_seed = torch.take_along_dim(alike, seed[:, None, None], 1)[:, 0]  # B, N
        lowest = torch.zeros_like(of_seed).scatter(-1, order, True)
        kin = (of_seed & lowest).to(tokens.dtype)  # B, N
        votes = (products @ kin[..., None])[..., 0].unflatten(1, grid)  # B, h, w
        least, most = degrees.amin(-1), degrees.amax(-1)
        score = 1 - least / torch.where(most > 0, most, 1)
        score = torch.where(least < most, score, 0.0)
        masks = component_of(votes > 0, seed) & (score > 0)[:, None, None]
        return masks[:, None], score[:, None], votes[:, None]
