"""Nearest-neighbour search and k-means over unit vectors that stay on disk until a block of them is needed."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Neighbours = tuple[NDArray[np.float32], Indices]  # cosines and places in the bank, each (Q, k), nearest first; -1: none
IndexKind = Literal["auto", "flat", "ivfpq"]
BLOCK = 65536  # vectors of the bank in memory at once
QUERY_BLOCK = 16384
FLAT_LIMIT = 200_000  # exact search is fast enough for up to this many vectors
RERANK_FACTOR, RERANK_MINIMUM = 4, 64  # candidates per neighbour, and at least, whose exact cosines are computed
KMEANS_POINTS, KMEANS_ITERATIONS = 64, 10  # training vectors per centroid
FEWEST_TRAINING, MOST_TRAINING = 2**4, 2**18  # vectors that train the product quantizer and the coarse cells


class Vectors:
    """Selected rows of memory-mapped arrays (n, D), centred by a mean and scaled to unit length in fp32 when read."""

    def __init__(
        self,
        arrays: Sequence[NDArray[np.float16] | NDArray[np.float32]],
        rows: Indices | None = None,
        mean: NDArray[np.float32] | None = None,
    ) -> None:
        """rows: indices into the concatenated arrays; None selects all."""
        self.arrays = list(arrays)
        self.ends = np.cumsum([len(array) for array in self.arrays], dtype=np.int64)
        self.rows = np.arange(int(self.ends[-1]) if self.arrays else 0) if rows is None else rows
        self.dim = self.arrays[0].shape[1] if self.arrays else 0
        self.mean = np.zeros(self.dim, np.float32) if mean is None else mean

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, places: Indices) -> Vectors:
        """Return the vectors at these places."""
        return Vectors(self.arrays, self.rows[places], self.mean)

    def centred(self, mean: NDArray[np.float32]) -> Vectors:
        """Return the same rows, centred by another mean."""
        return Vectors(self.arrays, self.rows, mean)

    def raw(self, places: Indices) -> NDArray[np.float32]:
        """Return rows (n, D) as they are stored."""
        rows = self.rows[places]
        vectors = np.empty((len(rows), self.dim), np.float32)
        order = np.argsort(rows, kind="stable")  # reads each array once, in its order on disk
        array_of = np.searchsorted(self.ends, rows[order], side="right")
        numbers, starts = np.unique(array_of, return_index=True)
        for number, part in zip(numbers.tolist(), np.split(order, starts[1:]), strict=False):
            first = int(self.ends[number - 1]) if number else 0
            vectors[part] = self.arrays[number][rows[part] - first]
        return vectors

    def take(self, places: Indices) -> NDArray[np.float32]:
        """Return unit vectors (n, D)."""
        vectors = self.raw(places)
        vectors -= self.mean
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
        return vectors

    def blocks(self, size: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield the start of each block and its unit vectors."""
        for start in range(0, len(self), size):
            yield start, self.take(np.arange(start, min(start + size, len(self))))

    def sample(self, most: int, seed: int) -> NDArray[np.float32]:
        """Return up to `most` unit vectors (n, D), drawn at random."""
        return self.take(self._sample_places(most, seed))

    def mean_vector(self, most: int = 2**17, seed: int = 0) -> NDArray[np.float32]:
        """Return the mean (D,) of up to `most` rows as they are stored, drawn at random."""
        return self.raw(self._sample_places(most, seed)).mean(0, dtype=np.float64).astype(np.float32)

    def _sample_places(self, most: int, seed: int) -> Indices:
        if len(self) <= most:
            return np.arange(len(self))
        return np.sort(np.random.default_rng(seed).choice(len(self), most, replace=False))


def import_faiss() -> Any:
    """Return the faiss module, which is an optional dependency."""
    try:
        return importlib.import_module("faiss")
    except ImportError:
        raise ImportError("dense curate needs faiss: pip install 'dino-dense[curate]'") from None


class Flat:
    """Exact search, one block of the bank at a time."""

    def __init__(self, bank: Vectors) -> None:
        self.bank = bank

    def search(self, queries: NDArray[np.float32], k: int) -> Neighbours:
        """Return the k nearest of each unit vector (Q, D)."""
        faiss = import_faiss()
        cosines = np.full((len(queries), k), -np.inf, np.float32)
        places = np.full((len(queries), k), -1, np.int64)
        for start, block in self.bank.blocks(BLOCK):
            values, found = faiss.knn(queries, block, min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
            cosines, places = k_nearest(np.hstack([cosines, values]), np.hstack([places, found + start]), k)
        return cosines, places


class IVFPQ:
    """Approximate search by product quantization, a quarter byte per channel, in an inverted file.

    The candidates with the nearest codes are ranked again by their exact cosines.
    """

    def __init__(self, bank: Vectors, probes: int = 32, seed: int = 0) -> None:
        faiss = import_faiss()
        self.bank, self.dim = bank, bank.dim + -bank.dim % 4
        cells = int(np.clip(4 * np.sqrt(len(bank)), 1, max(1, len(bank) // 39)))
        sample = self._padded(bank.sample(MOST_TRAINING, seed))
        bits = 8 if len(sample) >= 39 * 256 else 4
        quantizer = faiss.IndexFlatIP(self.dim)
        self.index = faiss.IndexIVFPQ(quantizer, self.dim, cells, self.dim // 4, bits, faiss.METRIC_INNER_PRODUCT)
        for clustering in (self.index.cp, self.index.pq.cp):
            clustering.seed, clustering.niter = seed, KMEANS_ITERATIONS
            clustering.max_points_per_centroid, clustering.min_points_per_centroid = KMEANS_POINTS, 1
        self.index.nprobe = min(probes, cells)
        if len(sample) < FEWEST_TRAINING:
            sample = np.resize(sample, (FEWEST_TRAINING, self.dim))  # repeats the vectors
        self.index.train(sample)
        for _, block in bank.blocks(BLOCK):
            self.index.add(self._padded(block))

    def search(self, queries: NDArray[np.float32], k: int) -> Neighbours:
        """Return the k nearest of each unit vector (Q, D)."""
        cosines, places = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        count = max(RERANK_MINIMUM, RERANK_FACTOR * k)
        _, candidates = self.index.search(self._padded(queries), count)
        step = max(1, BLOCK // count)
        for start in range(0, len(queries), step):
            some = candidates[start : start + step]  # q, count
            vectors = self.bank.take(np.maximum(some, 0).reshape(-1)).reshape(*some.shape, -1)  # q, count, D
            values = np.einsum("qd,qkd->qk", queries[start : start + step], vectors)
            values[some < 0] = -np.inf
            cosines[start : start + step], places[start : start + step] = k_nearest(values, some, k)
        return cosines, places

    def _padded(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.pad(vectors, ((0, 0), (0, self.dim - vectors.shape[1])))


def k_nearest(cosines: NDArray[np.float32], places: Indices, k: int) -> Neighbours:
    """Return the k largest cosines of each row, largest first; ties go to the lower place in the bank."""
    order = np.lexsort((places, -cosines), axis=1)[:, :k]
    return np.take_along_axis(cosines, order, 1), np.take_along_axis(places, order, 1)


def resolve_index(kind: IndexKind, count: int) -> IndexKind:
    """Return what auto means for `count` vectors: flat up to 200,000, else ivfpq."""
    return kind if kind != "auto" else "flat" if count <= FLAT_LIMIT else "ivfpq"


def build_index(bank: Vectors, kind: IndexKind, seed: int = 0) -> Flat | IVFPQ:
    """Return the search that `kind` names."""
    return IVFPQ(bank, seed=seed) if resolve_index(kind, len(bank)) == "ivfpq" else Flat(bank)


def search_blocks(search: Flat | IVFPQ, queries: Vectors, k: int) -> Iterator[tuple[int, NDArray[np.float32], Indices]]:
    """Yield the start of each block of queries, with its cosines and places (q, k)."""
    for start, block in queries.blocks(QUERY_BLOCK):
        yield (start, *search.search(block, k))


def cluster(vectors: Vectors, count: int, seed: int) -> NDArray[np.float32]:
    """Return the unit centroids (count, D) of spherical k-means."""
    model = import_faiss().Kmeans(
        vectors.dim, count, niter=KMEANS_ITERATIONS, seed=seed, spherical=True,
        min_points_per_centroid=1, max_points_per_centroid=KMEANS_POINTS,
    )  # fmt: skip
    model.train(vectors.sample(max(MOST_TRAINING, 40 * count), seed))
    return np.asarray(model.centroids, np.float32)


def assign(vectors: Vectors, centroids: NDArray[np.float32]) -> Indices:
    """Return the nearest centroid of each vector (N,)."""
    faiss = import_faiss()
    nearest = np.empty(len(vectors), np.int64)
    for start, block in vectors.blocks(QUERY_BLOCK):
        _, found = faiss.knn(block, centroids, 1, metric=faiss.METRIC_INNER_PRODUCT)
        nearest[start : start + len(block)] = found[:, 0]
    return nearest
