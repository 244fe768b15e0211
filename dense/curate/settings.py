"""The settings of a curation, which its report saves by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from dense.curate.search import IndexKind
from dense.suggest import did_you_mean

Keep = Literal["largest", "sharpest"]
Retrieve = Literal["auto", "nearest", "clusters"]
CHOICES: dict[str, Any] = {"keep": Keep, "retrieve": Retrieve, "index": IndexKind}
BOUNDS: dict[str, tuple[int, int | None]] = {
    "hash_distance": (0, 7), "threshold": (0, 1), "held_out_threshold": (0, 1), "agreement": (0, 1),
    "neighbours": (1, 1000), "per_query": (1, None),
    "per_cluster": (1, None), "clusters": (0, None), "total": (0, None),
    "seed": (0, 2**31 - 1),
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """How duplicates are detected and how images are retrieved.

    hash_distance: most differing bits, of 64, between the perceptual hashes of duplicates, 0 to 7
    threshold: least cosine of images that are laid over one another to see whether they are duplicates
    held_out_threshold: least cosine of a held-out image and an image that is laid over it to see whether it is a copy
    agreement: least correlation of the grey values that both show, for a copy whose hash differs; 0: nothing is laid
    over anything, and the cosine alone decides
    neighbours: nearest neighbours per image in the graph of duplicates. keep: which image of a group is kept
    retrieve: the nearest images of each curated image, or a sample of its cluster; auto: nearest from 10,000
    curated images on
    per_query: images retrieved per curated image. per_cluster: most images retrieved from one cluster
    clusters: k-means clusters of the pool; 0: one per 100 images, at most 100,000
    total: most images of the pool kept, in equal shares from the curated sets and the sources of the pool; 0: no limit
    index: flat is exact, ivfpq is small and fast, auto is flat up to 200,000 images
    """

    hash_distance: int = 6
    threshold: float = 0.9
    held_out_threshold: float = 0.5
    agreement: float = 0.7
    neighbours: int = 16
    keep: Keep = "largest"
    retrieve: Retrieve = "auto"
    per_query: int = 4
    per_cluster: int = 10_000
    clusters: int = 0
    total: int = 0
    index: IndexKind = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind in CHOICES.items():
            value, valid = getattr(self, name), get_args(kind)
            if value not in valid:
                suggestion = did_you_mean(str(value), valid)
                raise ValueError(f"{name}={value!r}: expected one of {', '.join(valid)}.{suggestion}")
        for name, (least, most) in BOUNDS.items():
            value = getattr(self, name)
            if not (value >= least and (most is None or value <= most)):
                expected = f"{least} or more" if most is None else f"{least} to {most}"
                raise ValueError(f"{name}={value}: expected {expected}")
