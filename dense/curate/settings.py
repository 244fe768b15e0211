"""The choices of a curation, by name, as they are saved with its report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from dense.curate.search import Kind
from dense.suggest import did_you_mean

Keep = Literal["largest", "sharpest"]
Retrieve = Literal["auto", "nearest", "clusters"]
LARGE = 10_000  # curated images from which on `auto` retrieves the nearest
PER_CELL = 100  # images of the pool for each cluster, unless their number is given


@dataclass(frozen=True)
class Settings:
    """hash_distance: bits of 64 by which hashes of duplicates may differ, 0 to 7
    threshold: cosine from which on images are duplicates; held_out_threshold: from which on one is a held-out image
    neighbours: of each image in the graph of duplicates; keep: which image of a group stays
    retrieve: the nearest of each curated image, or a sample of its cluster; auto: the nearest from 10,000 curated images on
    per_query: images for each curated one; per_cluster: at most, of one cluster
    clusters: of the pool; 0: one for 100 images, at most 100,000
    total: at most so many of the pool, in equal shares from the curated sets and the sources of the pool; 0: no limit
    index: flat is exact, ivfpq is small and quick, auto is flat up to 200,000 images
    """

    hash_distance: int = 6
    threshold: float = 0.97
    held_out_threshold: float = 0.9
    neighbours: int = 16
    keep: Keep = "largest"
    retrieve: Retrieve = "auto"
    per_query: int = 4
    per_cluster: int = 10_000
    clusters: int = 0
    total: int = 0
    index: Kind = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        choices: dict[str, Any] = {"keep": Keep, "retrieve": Retrieve, "index": Kind}
        for name, kind in choices.items():
            value, valid = getattr(self, name), get_args(kind)
            if value not in valid:
                raise ValueError(
                    f"{name}={value!r}: expected one of {', '.join(valid)}.{did_you_mean(str(value), valid)}"
                )
        bounds = {
            "hash_distance": (0, 7), "threshold": (0, 1), "held_out_threshold": (0, 1), "neighbours": (1, 1000),
            "per_query": (1, None), "per_cluster": (1, None), "clusters": (0, None), "total": (0, None), "seed": (0, 2**31 - 1),
        }  # fmt: skip
        for name, (least, most) in bounds.items():
            value = getattr(self, name)
            if not (value >= least and (most is None or value <= most)):
                words = f"{least} or more" if most is None else f"{least} to {most}"
                raise ValueError(f"{name}={value}: expected {words}")
