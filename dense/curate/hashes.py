"""Perceptual hashes: 64 bits that an image keeps when it is resized, compressed or made brighter."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from dense.curate.search import faiss
from dense.media.draw import Picture

Hashes = NDArray[np.uint8]  # N, 8
SIDE, LOW = 32, 8  # pixels a side that are transformed, and frequencies a side that are kept
BANDS = 4  # of 16 bits each: hashes that differ by 7 bits agree in one of them but for one bit
MOST = 2 * BANDS - 1
CHUNK = 65536


def perceptual_hash(image: Picture) -> tuple[Hashes, Hashes]:
    """Hashes (8,) of an image and of its mirror image: which low frequencies of its cosine transform exceed the median.

    Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010. A mirror image has the same
    transform but for the sign of odd horizontal frequencies, so it is not looked at.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = np.asarray(cv2.dct(small)[:LOW, :LOW], np.float32)
    mirrored = (low * np.where(np.arange(LOW) % 2, -1, 1)).astype(np.float32)
    return _bits(low), _bits(mirrored)


def _bits(low: NDArray[np.float32]) -> Hashes:
    values = low.reshape(-1).copy()
    values[0] = 0  # the mean grey says how bright, not what
    return np.packbits(values > np.median(values[1:]))


def near_hashes(
    bank: Hashes, queries: Hashes, mirrored: Hashes, distance: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
    """All pairs (query, place in the bank) whose hashes, or those of the query's mirror image, differ by at most so many bits.

    Returns queries, places and bits, each (P,). Found by agreement of bands, so no pair is missed and few are compared.
    """
    if not 0 <= distance <= MOST:
        raise ValueError(f"hash_distance={distance}: expected 0 to {MOST} of 64 bits")
    index = faiss().IndexBinaryMultiHash(64, BANDS, 16)
    index.nflip = 1
    index.add(np.ascontiguousarray(bank))
    found: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]] = []
    for asked in (queries, mirrored):
        for start in range(0, len(asked), CHUNK):
            limits, bits, places = index.range_search(np.ascontiguousarray(asked[start : start + CHUNK]), distance + 1)
            counts = np.diff(limits.astype(np.int64))
            rows = np.repeat(np.arange(start, start + len(counts)), counts)
            found.append((rows, places.astype(np.int64), bits.astype(np.uint8)))
    rows, places, bits = (np.concatenate([part[i] for part in found]) for i in range(3))
    return rows, places, bits


def hash_pairs(hashes: Hashes, mirrored: Hashes, distance: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs (P,), (P,) among images that join all those whose hashes are near; equal ones form a chain, not a clique."""
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
