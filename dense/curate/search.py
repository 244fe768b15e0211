"""Features of many images as unit vectors, which stay on disk until a block of them is wanted."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float16] | NDArray[np.float32]


class Vectors:
    """Chosen rows of mapped arrays (n, D), less a mean, of unit length, in fp32 when they are taken."""

    def __init__(
        self, arrays: Sequence[Array], rows: NDArray[np.int64] | None = None, mean: NDArray[np.float32] | None = None
    ) -> None:
        """rows: counted over all arrays; all of them if left out."""
        self.arrays = list(arrays)
        self.ends = np.cumsum([len(array) for array in self.arrays], dtype=np.int64)
        count = int(self.ends[-1]) if self.arrays else 0
        self.rows = np.arange(count) if rows is None else rows
        self.dim = self.arrays[0].shape[1] if self.arrays else 0
        self.mean = np.zeros(self.dim, np.float32) if mean is None else mean

    def __len__(self) -> int:
        return len(self.rows)

    def chosen(self, places: NDArray[np.int64]) -> Vectors:
        """Some of them."""
        return Vectors(self.arrays, self.rows[places], self.mean)

    def less(self, mean: NDArray[np.float32]) -> Vectors:
        """The same with another mean."""
        return Vectors(self.arrays, self.rows, mean)

    def raw(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """Rows as they are stored (n, D)."""
        rows = self.rows[places]
        found = np.empty((len(rows), self.dim), np.float32)
        order = np.argsort(rows, kind="stable")
        which = np.searchsorted(self.ends, rows[order], side="right")
        cuts = np.flatnonzero(np.diff(which)) + 1
        for part in np.split(order, cuts) if len(order) else []:
            number = int(np.searchsorted(self.ends, rows[part[0]], side="right"))
            start = int(self.ends[number - 1]) if number else 0
            found[part] = self.arrays[number][rows[part] - start]
        return found

    def take(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """Unit vectors (n, D)."""
        vectors = self.raw(places)
        vectors -= self.mean
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
        return vectors

    def blocks(self, size: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """All, with where each block starts."""
        for start in range(0, len(self), size):
            yield start, self.take(np.arange(start, min(start + size, len(self))))

    def sample(self, most: int, seed: int) -> NDArray[np.float32]:
        """Up to so many of them at random (n, D)."""
        if len(self) <= most:
            return self.take(np.arange(len(self)))
        return self.take(np.sort(np.random.default_rng(seed).choice(len(self), most, replace=False)))

    def average(self, most: int = 2**17, seed: int = 0) -> NDArray[np.float32]:
        """The mean of rows as they are stored, of up to so many of them (D,)."""
        places = np.arange(len(self))
        if len(self) > most:
            places = np.sort(np.random.default_rng(seed).choice(len(self), most, replace=False))
        return self.raw(places).mean(0, dtype=np.float64).astype(np.float32)


Found = tuple[NDArray[np.float32], NDArray[np.int64]]  # cosines and places, each Q, k, nearest first; -1: none
Kind = Literal["auto", "flat", "ivfpq"]
BLOCK = 65536  # vectors of the bank in memory at once
QUERIES = 16384
FLAT = 200_000  # up to so many vectors, exact search is quick enough
FINER, FEWEST = 4, 64  # candidates for each neighbour, and at least, whose cosines are computed exactly
POINTS, ROUNDS = 64, 10  # of k-means: vectors for each centre, and times that centres move
FEW = 2**4  # vectors that codes are learnt from, at least
SAMPLE = 2**18  # vectors that codes and cells are learnt from, at most


def faiss() -> Any:
    """The engine, which is an extra."""
    try:
        return importlib.import_module("faiss")
    except ImportError:
        raise ImportError("dense curate needs faiss: pip install 'dino-dense[curate]'") from None


class Search(Protocol):
    """Nearest of a bank."""

    def search(self, queries: NDArray[np.float32], k: int) -> Found:
        """Of unit vectors (Q, D)."""


class Flat:
    """Exact. Nothing is copied but a block at a time."""

    def __init__(self, bank: Vectors) -> None:
        self.bank = bank

    def search(self, queries: NDArray[np.float32], k: int) -> Found:
        """Of unit vectors (Q, D)."""
        engine = faiss()
        cosines = np.full((len(queries), k), -np.inf, np.float32)
        places = np.full((len(queries), k), -1, np.int64)
        for start, block in self.bank.blocks(BLOCK):
            values, found = engine.knn(queries, block, min(k, len(block)), metric=engine.METRIC_INNER_PRODUCT)
            cosines, places = nearest(np.hstack([cosines, values]), np.hstack([places, found + start]), k)
        return cosines, places


class IVFPQ:
    """Approximate: codes of a quarter byte a number in memory, in cells of which a few are searched.

    The nearest by code are compared again by their vectors, so cosines are exact and only a candidate can be missed.
    """

    def __init__(self, bank: Vectors, probes: int = 32, seed: int = 0) -> None:
        engine = faiss()
        self.bank, self.dim = bank, bank.dim + -bank.dim % 4
        cells = int(np.clip(4 * np.sqrt(len(bank)), 1, max(1, len(bank) // 39)))
        sample = self._padded(bank.sample(SAMPLE, seed))
        quantizer = engine.IndexFlatIP(self.dim)
        bits = 8 if len(sample) >= 39 * 256 else 4
        self.index = engine.IndexIVFPQ(quantizer, self.dim, cells, self.dim // 4, bits, engine.METRIC_INNER_PRODUCT)
        self.index.cp.seed, self.index.pq.cp.seed = seed, seed
        for learning in (self.index.cp, self.index.pq.cp):
            learning.niter, learning.max_points_per_centroid, learning.min_points_per_centroid = ROUNDS, POINTS, 1
        self.index.nprobe = min(probes, cells)
        if len(sample) < FEW:
            sample = np.resize(sample, (FEW, self.dim))  # which repeats it
        self.index.train(sample)
        for _, block in bank.blocks(BLOCK):
            self.index.add(self._padded(block))

    def search(self, queries: NDArray[np.float32], k: int) -> Found:
        """Of unit vectors (Q, D)."""
        cosines, places = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        count = max(FEWEST, FINER * k)
        _, candidates = self.index.search(self._padded(queries), count)
        step = max(1, BLOCK // count)
        for start in range(0, len(queries), step):
            some = candidates[start : start + step]  # q, count
            vectors = self.bank.take(np.maximum(some, 0).reshape(-1)).reshape(*some.shape, -1)
            values = np.einsum("qd,qkd->qk", queries[start : start + step], vectors)
            values[some < 0] = -np.inf
            cosines[start : start + step], places[start : start + step] = nearest(values, some, k)
        return cosines, places

    def _padded(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.pad(vectors, ((0, 0), (0, self.dim - vectors.shape[1])))


def nearest(cosines: NDArray[np.float32], places: NDArray[np.int64], k: int) -> Found:
    """The k best of each row, best first; of equal ones the first in the bank."""
    order = np.lexsort((places, -cosines), axis=1)[:, :k]
    return np.take_along_axis(cosines, order, 1), np.take_along_axis(places, order, 1)


def build(bank: Vectors, kind: Kind, seed: int = 0) -> Search:
    """The search that `kind` names; auto is flat up to 200,000 vectors."""
    return IVFPQ(bank, seed=seed) if resolve(kind, len(bank)) == "ivfpq" else Flat(bank)


def resolve(kind: Kind, count: int) -> Kind:
    """What auto means for so many vectors."""
    return kind if kind != "auto" else "flat" if count <= FLAT else "ivfpq"


def search_all(
    search: Search, queries: Vectors, k: int
) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.int64]]]:
    """Where a block of queries starts, with its cosines and places."""
    for start, block in queries.blocks(QUERIES):
        yield (start, *search.search(block, k))


def cluster(vectors: Vectors, count: int, seed: int) -> NDArray[np.float32]:
    """Unit centres (count, D) of spherical k-means."""
    engine = faiss()
    sample = vectors.sample(max(SAMPLE, 40 * count), seed)
    model = engine.Kmeans(
        vectors.dim,
        count,
        niter=ROUNDS,
        seed=seed,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=POINTS,
    )
    model.train(sample)
    return np.asarray(model.centroids, np.float32)


def assign(vectors: Vectors, centres: NDArray[np.float32]) -> NDArray[np.int64]:
    """The nearest centre of each vector (N,)."""
    engine = faiss()
    found = np.empty(len(vectors), np.int64)
    for start, block in vectors.blocks(QUERIES):
        found[start : start + len(block)] = engine.knn(block, centres, 1, metric=engine.METRIC_INNER_PRODUCT)[1][:, 0]
    return found
