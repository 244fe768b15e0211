"""Retrieval of pool images that are similar to curated ones, and equal shares of a total."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dense.curate.search import Indices, Vectors, assign, build_index, cluster, search_blocks
from dense.curate.settings import Retrieve, Settings

NEAREST_FROM = 10_000  # curated images from which on `auto` retrieves the nearest
PER_CLUSTER = 100  # images of the pool per k-means cluster, unless the number of clusters is given


@dataclass(frozen=True)
class Retrieved:
    """Retrieved images, each once, best first, and the curated image and set that each was retrieved for."""

    indices: Indices
    queries: Indices
    sets: Indices

    def __len__(self) -> int:
        return len(self.indices)


def resolve_retrieve(settings: Settings, queries: int) -> Retrieve:
    """Return what auto means for this number of curated images."""
    if settings.retrieve != "auto":
        return settings.retrieve
    return "nearest" if queries >= NEAREST_FROM else "clusters"


def retrieve(pool: Vectors, queries: Vectors, sets: Indices, settings: Settings) -> Retrieved:
    """Return the images of the pool that the settings ask for. sets: the curated set of each query (Q,)."""
    if not len(pool) or not len(queries):
        none = np.zeros(0, np.int64)
        return Retrieved(none, none, none)
    method = _nearest if resolve_retrieve(settings, len(queries)) == "nearest" else _sample_clusters
    indices, asking, ranks = method(pool, queries, sets, settings)
    order = np.lexsort((asking, ranks))  # the best image of every query precedes the second of any
    indices, asking = indices[order], asking[order]
    first = np.sort(np.unique(indices, return_index=True)[1])
    return Retrieved(indices[first], asking[first], sets[asking[first]])


def _nearest(pool: Vectors, queries: Vectors, sets: Indices, settings: Settings) -> tuple[Indices, Indices, Indices]:
    """Return pool indices, queries and ranks of the k nearest images of each query."""
    k = min(settings.per_query, len(pool))
    parts = []
    for start, _, places in search_blocks(build_index(pool, settings.index, settings.seed), queries, k):
        asking = np.repeat(np.arange(start, start + len(places)), k)
        parts.append(np.stack([places.reshape(-1), asking, np.tile(np.arange(k), len(places))]))
    indices, asking, ranks = np.concatenate(parts, axis=1)
    found = indices >= 0
    return indices[found], asking[found], ranks[found]


def _sample_clusters(
    pool: Vectors, queries: Vectors, sets: Indices, settings: Settings
) -> tuple[Indices, Indices, Indices]:
    """Return pool indices, queries and ranks of random images from the clusters that the queries belong to.

    Per curated set, a cluster yields `per_query` images for each query in it, at most `per_cluster`.
    """
    centroids = cluster(pool, cluster_count(len(pool), settings), settings.seed)
    cluster_of, query_cluster = assign(pool, centroids), assign(queries, centroids)
    members = np.argsort(cluster_of, kind="stable")
    starts = np.searchsorted(cluster_of[members], np.arange(len(centroids) + 1))
    parts: list[NDArray[np.int64]] = [np.zeros((3, 0), np.int64)]
    for number in np.unique(sets):
        for home in np.unique(query_cluster[sets == number]):
            asking = np.flatnonzero((query_cluster == home) & (sets == number))
            inside = members[starts[home] : starts[home + 1]]
            rng = np.random.default_rng((settings.seed, int(home)))  # sets that share a cluster share its sample
            count = min(len(asking) * settings.per_query, settings.per_cluster, len(inside))
            turns = np.arange(count)
            parts.append(np.stack([rng.permutation(inside)[:count], asking[turns % len(asking)], turns // len(asking)]))
    indices, asking, ranks = np.concatenate(parts, axis=1)
    return indices, asking, ranks


def cluster_count(count: int, settings: Settings) -> int:
    """Return the number of k-means clusters for a pool of `count` images."""
    return min(settings.clusters or min(100_000, -(-count // PER_CLUSTER)), count)


def balance(labels: Sequence[Indices], total: int) -> NDArray[np.bool_]:
    """Return which of N images to keep (N,) so that at most `total` remain, in equal shares per label.

    labels: (N,) each; shares are equal between the first labels, then within each of them between the next. A label
    with fewer images than its share leaves the rest to the others. Within the last label the first images are kept.
    """
    count = len(labels[0]) if labels else 0
    kept = np.ones(count, bool)
    if count <= total:
        return kept
    names, which = np.unique(labels[0], return_inverse=True)
    for number, share in enumerate(equal_shares(np.bincount(which, minlength=len(names)), total)):
        mine = np.flatnonzero(which == number)
        if len(labels) > 1:
            kept[mine] = balance([label[mine] for label in labels[1:]], share)
        else:
            kept[mine[share:]] = False
    return kept


def equal_shares(counts: NDArray[np.integer], total: int) -> list[int]:
    """Return how many of `total` come from each source, as equal as their counts allow."""
    left, given = total, [0] * len(counts)
    order = np.argsort(counts, kind="stable").tolist()
    for done, number in enumerate(order):
        given[number] = min(int(counts[number]), left // (len(order) - done))
        left -= given[number]
    return given
