"""Perceptual hashes, groups of near-duplicate images, and copies of held-out images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import DisjointSet
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from dense.console import progress
from dense.curate.alignment import Alignment
from dense.curate.search import Flat, Indices, Vectors, build_index, import_faiss, search_blocks
from dense.curate.settings import Keep, Settings
from dense.data.levels import as_rgb
from dense.media.draw import Picture

Compare = Callable[[int, int], Alignment]
Hashes = NDArray[np.uint8]  # N, 8
SIDE, LOW = 32, 8  # pixels per side before the cosine transform, and frequencies per side that are kept
BANDS = 4  # of 16 bits each: of two hashes that differ by 7 bits, one band differs by at most 1 bit
MOST_BITS = 2 * BANDS - 1
CHUNK = 65536
COMPARED = 4  # nearest images that an image is laid over, of which none is a copy


@dataclass(frozen=True)
class Signatures:
    """What duplicates are detected by: one vector and two perceptual hashes per image."""

    vectors: Vectors
    hashes: Hashes  # N, 8
    mirrored: Hashes  # N, 8: hashes of the mirror images

    def __len__(self) -> int:
        return len(self.vectors)


def perceptual_hash(image: Picture) -> tuple[Hashes, Hashes]:
    """Return the hashes (8,) of an image and of its mirror image: which low frequencies of the DCT exceed their median.

    Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010. Resizing, compression and
    brightness hardly change the 64 bits. Mirroring only flips the sign of the odd horizontal frequencies, so the second
    hash needs no second transform.
    """
    grey = cv2.cvtColor(as_rgb(image), cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = np.asarray(cv2.dct(small)[:LOW, :LOW], np.float32)
    mirrored = (low * np.where(np.arange(LOW) % 2, -1, 1)).astype(np.float32)
    return _bits(low), _bits(mirrored)


def _bits(low: NDArray[np.float32]) -> Hashes:
    values = low.reshape(-1).copy()
    values[0] = 0  # the mean grey value depends on brightness, not on content
    return np.packbits(values > np.median(values[1:]))


def near_hashes(
    bank: Hashes, queries: Hashes, mirrored: Hashes, distance: int
) -> tuple[Indices, Indices, NDArray[np.uint8]]:
    """Return all pairs of a query and a bank entry whose hashes differ by at most `distance` bits, mirrored or not.

    Returns the queries, their places in the bank and the differing bits, each (P,). The search is exact: hashes that
    differ by at most 7 bits agree in one band up to one bit, and only such pairs are compared.
    """
    if not 0 <= distance <= MOST_BITS:
        raise ValueError(f"hash_distance={distance}: expected 0 to {MOST_BITS} of 64 bits")
    index = import_faiss().IndexBinaryMultiHash(64, BANDS, 16)
    index.nflip = 1
    index.add(np.ascontiguousarray(bank))
    parts: list[tuple[Indices, Indices, NDArray[np.uint8]]] = []
    for hashes in (queries, mirrored):
        for start in range(0, len(hashes), CHUNK):
            limits, bits, places = index.range_search(np.ascontiguousarray(hashes[start : start + CHUNK]), distance + 1)
            counts = np.diff(limits.astype(np.int64))
            rows = np.repeat(np.arange(start, start + len(counts)), counts)
            parts.append((rows, places.astype(np.int64), bits.astype(np.uint8)))
    rows, places, bits = (np.concatenate([part[i] for part in parts]) for i in range(3))
    return rows, places, bits


def hash_pairs(hashes: Hashes, mirrored: Hashes, distance: int) -> tuple[Indices, Indices]:
    """Return pairs (P,), (P,) that connect all images with near hashes; equal hashes form a chain, not a clique."""
    if not len(hashes):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    _, first, same = np.unique(hashes.view(np.uint64)[:, 0], return_index=True, return_inverse=True)
    order = np.argsort(same, kind="stable")
    chain = same[order][1:] == same[order][:-1]
    rows, places, _ = near_hashes(hashes[first], hashes[first], mirrored[first], distance)
    other = rows != places
    a = np.concatenate([order[:-1][chain], first[rows[other]]])
    b = np.concatenate([order[1:][chain], first[places[other]]])
    return a, b


def feature_pairs(vectors: Vectors, settings: Settings) -> tuple[Indices, Indices, NDArray[np.float32]]:
    """Return the pairs (P,), (P,) in the graph of nearest neighbours whose cosine reaches the threshold, and these."""
    firsts, seconds, values = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
    if len(vectors) > 1:
        search = build_index(vectors, settings.index, settings.seed)
        for start, cosines, places in search_blocks(search, vectors, min(settings.neighbours + 1, len(vectors))):
            rows, columns = np.nonzero((cosines >= settings.threshold) & (places >= 0))
            firsts.append(rows + start)
            seconds.append(places[rows, columns])
            values.append(cosines[rows, columns])
    first, second, cosine = (np.concatenate(parts) for parts in (firsts, seconds, values))
    other = first != second
    return first[other], second[other], cosine[other]


def duplicate_groups(images: Signatures, settings: Settings, compare: Compare | None = None) -> tuple[Indices, Indices]:
    """Return the group of each image (N,), and the group that perceptual hashes alone would give it.

    Groups are connected components of the graph of near hashes and near vectors. `compare` takes the places of two
    images whose vectors are near and that are not yet in one group, the nearest first; images are joined if they agree.
    Without it the cosine decides.
    """
    by_hash = _components(*hash_pairs(images.hashes, images.mirrored, settings.hash_distance), len(images))
    first, second, cosine = feature_pairs(images.vectors, settings)
    if compare is not None and settings.agreement:
        first, second = _agreeing(first, second, cosine, by_hash, settings.agreement, compare)
    return _components(by_hash[first], by_hash[second], len(images))[by_hash], by_hash


def _agreeing(
    first: Indices, second: Indices, cosine: NDArray[np.float32], group: Indices, agreement: float, compare: Compare
) -> tuple[Indices, Indices]:
    """Return the pairs that agree in their pixels and join two groups."""
    first, second = np.minimum(first, second), np.maximum(first, second)
    once = np.unique(first * len(group) + second, return_index=True)[1]
    order = once[np.argsort(-cosine[once], kind="stable")].tolist()
    joined = DisjointSet(np.unique(group[np.concatenate([first, second])]).tolist())
    failed, agreeing = np.zeros(len(group), np.int64), list[int]()
    for pair in progress(order, "pairs of near images", len(order)):
        a, b = int(first[pair]), int(second[pair])
        one, other = int(group[a]), int(group[b])
        if joined.connected(one, other) or max(failed[a], failed[b]) >= COMPARED:
            continue
        if compare(a, b).correlation >= agreement:
            joined.merge(one, other)
            agreeing.append(pair)
        else:
            failed[[a, b]] += 1
    return first[agreeing], second[agreeing]


def _components(first: Indices, second: Indices, count: int) -> Indices:
    graph = coo_matrix((np.ones(len(first), bool), (first, second)), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def held_out_matches(
    images: Signatures, held_out: Signatures, settings: Settings, compare: Compare | None = None
) -> tuple[Indices, dict[int, Alignment]]:
    """Return the held-out image that each image is a copy of (N,), -1 for none, and how these lie over one another.

    Near hashes are copies. Of the others, those with a sufficient cosine to an image are compared with it, the nearest
    first; `compare` takes the places of an image and of a held-out image. Without it the cosine decides.
    """
    matches, found = np.full(len(images), -1, np.int64), dict[int, Alignment]()
    if not len(held_out) or not len(images):
        return matches, found
    rows, places, bits = near_hashes(held_out.hashes, images.hashes, images.mirrored, settings.hash_distance)
    order = np.lexsort((places, bits))[::-1]  # the nearest is written last and wins
    matches[rows[order]] = places[order]
    candidates: dict[int, list[int]] = {}
    for start, cosines, nearest in search_blocks(Flat(held_out.vectors), images.vectors, min(COMPARED, len(held_out))):
        near = (cosines >= settings.held_out_threshold) & (matches[start : start + len(cosines), None] < 0)
        for row in np.flatnonzero(near.any(1)).tolist():
            candidates[start + row] = nearest[row][near[row]].tolist()
    for row, several in progress(candidates.items(), "compared with held-out images", len(candidates)):
        if compare is None or not settings.agreement:
            matches[row] = several[0]
            continue
        for place in several:
            alignment = compare(row, place)
            if alignment.correlation >= settings.agreement:
                matches[row], found[row] = place, alignment
                break
    return matches, found


def representatives(
    group: Indices, preferred: NDArray[np.bool_], pixels: Indices, sharpness: NDArray[np.float32], keep: Keep
) -> Indices:
    """Return the image kept of the group of each image (N,): the largest or sharpest, `preferred` images first."""
    by_size, by_sharpness = -pixels, -sharpness.astype(np.float64)
    second, third = (by_size, by_sharpness) if keep == "largest" else (by_sharpness, by_size)
    order = np.lexsort((np.arange(len(group)), third, second, ~preferred, group))
    begins = np.ones(len(group), bool)
    begins[1:] = group[order][1:] != group[order][:-1]
    kept = np.empty(len(group), np.int64)
    kept[order] = order[begins][np.cumsum(begins) - 1]
    return kept
