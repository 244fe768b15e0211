"""Images of the pool that are like the curated ones, and equal shares of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dense.curate.search import Vectors, assign, build, cluster, search_all
from dense.curate.settings import LARGE, PER_CELL, Retrieve, Settings

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Retrieved:
    """Places in the pool, each once, best first, with the curated image and set that each was chosen for."""

    places: Indices
    queries: Indices
    sets: Indices

    def __len__(self) -> int:
        return len(self.places)


def mode(settings: Settings, queries: int) -> Retrieve:
    """What auto means for so many curated images."""
    return settings.retrieve if settings.retrieve != "auto" else "nearest" if queries >= LARGE else "clusters"


def retrieve(pool: Vectors, queries: Vectors, sets: Indices, settings: Settings) -> Retrieved:
    """The images that `settings` asks for; sets: the number of the curated set of each query (Q,)."""
    if not len(pool) or not len(queries):
        none = np.zeros(0, np.int64)
        return Retrieved(none, none, none)
    how = mode(settings, len(queries))
    places, found, ranks = (nearest_of if how == "nearest" else sampled_of)(pool, queries, sets, settings)
    order = np.lexsort((found, ranks))  # every query's best comes before any query's second
    places, found = places[order], found[order]
    first = np.sort(np.unique(places, return_index=True)[1])
    return Retrieved(places[first], found[first], sets[found[first]])


def nearest_of(pool: Vectors, queries: Vectors, sets: Indices, settings: Settings) -> tuple[Indices, Indices, Indices]:
    """Places, queries and ranks of the k nearest of each query."""
    k = min(settings.per_query, len(pool))
    rows = []
    for start, _, places in search_all(build(pool, settings.index, settings.seed), queries, k):
        count = len(places)
        found = np.repeat(np.arange(start, start + count), k)
        rows.append(np.stack([places.reshape(-1), found, np.tile(np.arange(k), count)]))
    places, found, ranks = np.concatenate(rows, axis=1)
    known = places >= 0
    return places[known], found[known], ranks[known]


def sampled_of(pool: Vectors, queries: Vectors, sets: Indices, settings: Settings) -> tuple[Indices, Indices, Indices]:
    """Places, queries and ranks of random images of the clusters that queries fall into, by curated set.

    A cluster gives `per_query` for each query of a set in it, at most `per_cluster` and all it has.
    """
    centres = cluster(pool, cells(len(pool), settings), settings.seed)
    homes, wanted = assign(pool, centres), assign(queries, centres)
    members = np.argsort(homes, kind="stable")
    starts = np.searchsorted(homes[members], np.arange(len(centres) + 1))
    rows: list[NDArray[np.int64]] = [np.zeros((3, 0), np.int64)]
    for number in np.unique(sets):
        for home in np.unique(wanted[sets == number]):
            asking = np.flatnonzero((wanted == home) & (sets == number))
            inside = members[starts[home] : starts[home + 1]]
            rng = np.random.default_rng((settings.seed, int(home)))  # sets that share a cluster share its sample
            count = min(len(asking) * settings.per_query, settings.per_cluster, len(inside))
            turns = np.arange(count)
            rows.append(np.stack([rng.permutation(inside)[:count], asking[turns % len(asking)], turns // len(asking)]))
    places, found, ranks = np.concatenate(rows, axis=1)
    return places, found, ranks


def cells(count: int, settings: Settings) -> int:
    """How many clusters a pool of so many images has."""
    wanted = settings.clusters or min(100_000, -(-count // PER_CELL))
    return min(wanted, count)


def balanced(labels: Sequence[Indices], total: int) -> NDArray[np.bool_]:
    """Which of N picks stay so that at most `total` do, in equal shares by the first labels, then within each by the next.

    A label that has less than its share leaves the rest to others; of one label, what comes first stays.
    """
    count = len(labels[0]) if labels else 0
    stays = np.ones(count, bool)
    if count <= total:
        return stays
    names, which = np.unique(labels[0], return_inverse=True)
    for number, share in enumerate(shares(np.bincount(which, minlength=len(names)), total)):
        mine = np.flatnonzero(which == number)
        if len(labels) > 1:
            stays[mine] = balanced([label[mine] for label in labels[1:]], share)
        else:
            stays[mine[share:]] = False
    return stays


def shares(counts: NDArray[np.integer], total: int) -> list[int]:
    """What each of several gives of `total`, as equal as what they have allows."""
    left, given = total, [0] * len(counts)
    order = np.argsort(counts, kind="stable").tolist()
    for done, number in enumerate(order):
        given[number] = min(int(counts[number]), left // (len(order) - done))
        left -= given[number]
    return given
