"""Features of many pictures as unit vectors, which stay on disk until a block of them is wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
