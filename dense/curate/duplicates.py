"""Groups of images that show the same, which of each stays, and which are of a held-out set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from dense.curate.hashes import Hashes, hash_pairs, near_hashes
from dense.curate.search import Flat, Vectors, build, search_all
from dense.curate.settings import Keep, Settings

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Described:
    """Images by what duplicates are found by; all of one length."""

    vectors: Vectors
    hashes: Hashes  # N, 8
    mirrored: Hashes  # N, 8

    def __len__(self) -> int:
        return len(self.vectors)


def feature_pairs(vectors: Vectors, settings: Settings) -> tuple[Indices, Indices]:
    """Pairs whose cosine reaches the threshold, in the graph of nearest neighbours."""
    firsts, seconds = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    if len(vectors) > 1:
        search = build(vectors, settings.index, settings.seed)
        for start, cosines, places in search_all(search, vectors, min(settings.neighbours + 1, len(vectors))):
            rows, columns = np.nonzero((cosines >= settings.threshold) & (places >= 0))
            firsts.append(rows + start)
            seconds.append(places[rows, columns])
    first, second = np.concatenate(firsts), np.concatenate(seconds)
    other = first != second
    return first[other], second[other]


def groups(images: Described, settings: Settings) -> Indices:
    """The number of the group of each image (N,): components of the graph of near hashes and near features."""
    return groups_and_hashed(images, settings)[0]


def groups_and_hashed(images: Described, settings: Settings) -> tuple[Indices, Indices]:
    """The groups, and those that near hashes alone would make."""
    by_hash = hash_pairs(images.hashes, images.mirrored, settings.hash_distance)
    by_features = feature_pairs(images.vectors, settings)
    first, second = (np.concatenate(pair) for pair in zip(by_hash, by_features, strict=True))
    return components(first, second, len(images)), components(*by_hash, len(images))


def components(first: Indices, second: Indices, count: int) -> Indices:
    """The number of the connected component of each of `count` images, of a graph of pairs."""
    graph = coo_matrix((np.ones(len(first), bool), (first, second)), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def leaks(images: Described, held_out: Described, settings: Settings) -> Indices:
    """The held-out image that each image shows (N,), -1 for none: each is compared with all of them, exactly."""
    found = np.full(len(images), -1, np.int64)
    if not len(held_out) or not len(images):
        return found
    for start, cosines, places in search_all(Flat(held_out.vectors), images.vectors, 1):
        near = np.flatnonzero(cosines[:, 0] >= settings.held_out_threshold)
        found[start + near] = places[near, 0]
    rows, places, bits = near_hashes(held_out.hashes, images.hashes, images.mirrored, settings.hash_distance)
    order = np.lexsort((places, bits))[::-1]  # the nearest is written last
    found[rows[order]] = places[order]
    return found


def best(
    group: Indices, first: NDArray[np.bool_], pixels: Indices, sharpness: NDArray[np.float32], keep: Keep
) -> Indices:
    """For each image (N,) the one of its group that stays: of those that come `first`, the largest or the sharpest."""
    sizes, edges = -pixels, -sharpness.astype(np.float64)
    second, third = (sizes, edges) if keep == "largest" else (edges, sizes)
    order = np.lexsort((np.arange(len(group)), third, second, ~first, group))
    begins = np.ones(len(group), bool)
    begins[1:] = group[order][1:] != group[order][:-1]
    kept = np.empty(len(group), np.int64)
    kept[order] = order[begins][np.cumsum(begins) - 1]
    return kept
