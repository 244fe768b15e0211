"""Which patches a memory of bounded size keeps."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from dense.suggest import did_you_mean

Choice = Literal["balanced", "random", "coreset"]
SURPLUS = 4  # times its part that an image may give to a coreset


class Budget:
    """A number of patches, divided equally among images, and the choice where there are more.

    Args:
        patches: largest number in all.
        images: among which they are divided; each view counts.
        choice: "balanced" prefers patches of an image with classes that few of its patches hold (Hummingbird),
            "random", or "coreset", which covers the features of all images by greedy k-centres.
        seed: of the choice.
    """

    def __init__(self, patches: int, images: int, choice: str, seed: int, choices: object = Choice) -> None:
        if choice not in (known := get_args(choices)):
            raise ValueError(f"choice={choice!r}: expected {', '.join(known)}.{did_you_mean(choice, known)}")
        if patches < 1:
            raise ValueError(f"patches={patches}: expected at least 1")
        self.patches, self.choice, self.seed = patches, choice, seed
        self.each = max(1, patches // max(images, 1)) * (SURPLUS if choice == "coreset" else 1)
        self.generator = torch.Generator().manual_seed(seed)

    def of_image(self, count: int, held: Tensor | None = None) -> Tensor:
        """Return the indices of an image's patches that it may give. held: the share of each class in them (N, K)."""
        if count <= self.each:
            return torch.arange(count)
        luck = torch.rand(count, generator=self.generator)
        if self.choice == "balanced" and held is not None:
            present = (held > 0).float()
            luck = (present @ present.sum(0)) * luck
        return luck.argsort()[: self.each]

    def of_all(self, vectors: Tensor) -> Tensor:
        """Return the indices of the patches that are kept of what all images gave, unit vectors (N, D)."""
        if len(vectors) <= self.patches:
            return torch.arange(len(vectors))
        if self.choice == "coreset":
            return k_centres(vectors.float(), self.patches, self.seed)
        return torch.randperm(len(vectors), generator=self.generator)[: self.patches].sort().values


def k_centres(vectors: Tensor, count: int, seed: int = 0) -> Tensor:
    """Return the indices of `count` rows that cover unit vectors: each next one is the farthest from those before."""
    first = int(torch.randint(len(vectors), (1,), generator=torch.Generator().manual_seed(seed)))
    places, nearest = [first], vectors @ vectors[first]
    while len(places) < min(count, len(vectors)):
        places.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, vectors @ vectors[places[-1]])
    return torch.tensor(places)
