"""Classes that hold for a whole set of images: cosine k-means over the patches of all of them, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from dense.discover.graph import tokens_of
from dense.discover.kmeans import check_count, cosine_kmeans, renewed
from dense.discover.results import Regions
from dense.discover.source import check_channels, check_features

Stream = Callable[[], Iterable[Tensor]]  # each call starts anew: features (B, C, h, w), sizes may differ


@dataclass(frozen=True)
class CoClusters:
    """`count` classes, known by a mean to subtract and by their centres; region k is class k in every image."""

    centres: Tensor  # K, C, unit length
    mean: Tensor  # C

    @property
    def count(self) -> int:
        """How many classes there are."""
        return len(self.centres)

    @classmethod
    def fit(
        cls, stream: Stream, count: int = 20, passes: int = 2, sample: int = 20_000, centre: bool = True, seed: int = 0
    ) -> Self:
        """Learn classes from a stream that can be started again.

        A first pass keeps `sample` patches, each with the same chance, and takes the mean; k-means of the sample gives
        centres; each further pass moves them by all patches. Memory is that of the sample and of one batch.
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
                unit = _unit(features, mean)  # N, C
                sums.index_add_(0, (unit @ centres.T).argmax(-1), unit)
            centres = renewed(centres, sums)
        return cls(centres, mean)

    def __call__(self, features: Tensor) -> Regions:
        """Features (B, C, h, w) -> labels on the grid, the classes' own numbers."""
        check_channels(features, len(self.mean))
        labels = (_unit(features, self.mean) @ self.centres.T).argmax(-1).to(torch.uint8)
        return Regions(labels.view(len(features), *features.shape[-2:]), self.count)

    def save(self, path: str | Path) -> None:
        """As a safetensors file."""
        save_file({"centres": self.centres.cpu().contiguous(), "mean": self.mean.cpu().contiguous()}, str(path))

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Self:
        """Counterpart of `save`."""
        tensors = load_file(str(path), device=str(device))
        if set(tensors) != {"centres", "mean"}:
            raise ValueError(
                f"{path} holds {', '.join(sorted(tensors))}: expected centres and mean, as CoClusters.save writes them"
            )
        return cls(tensors["centres"], tensors["mean"])


def _unit(features: Tensor, mean: Tensor) -> Tensor:
    """Features (B, C, h, w) -> unit rows (B*h*w, C) about the mean."""
    return tokens_of(check_features(features) - mean[:, None, None]).flatten(0, 1)


def _reservoir(batches: Iterable[Tensor], size: int, seed: int) -> tuple[Tensor, Tensor]:
    """`size` rows at most, each patch with the same chance, and the mean of all patches."""
    generator = torch.Generator().manual_seed(seed)
    kept, keys = torch.empty(0), torch.empty(0)
    total, seen = torch.zeros(()), 0
    for features in batches:
        rows = check_features(features).flatten(2).mT.flatten(0, 1)  # N, C
        total = total.to(rows.device) + rows.sum(0)
        seen += len(rows)
        keys = torch.cat([keys, torch.rand(len(rows), generator=generator)])  # the rows with the largest keys stay
        kept = torch.cat([kept, rows]) if len(kept) else rows
        if len(keys) > size:
            keys, order = keys.topk(size)
            kept = kept[order.to(kept.device)]
    if not seen:
        raise ValueError("no images to learn classes from")
    return kept, total / seen
