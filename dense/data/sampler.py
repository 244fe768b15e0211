"""Which images a batch holds: a pure function of (seed, optimiser step, rank, world), so that runs resume exactly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

ROUNDS = 8


class Draw(NamedTuple):
    """One image of a batch. `epoch` counts passes over the data, so that no (epoch, image) occurs twice."""

    epoch: int
    image: int


class IndexSampler(Sampler[list[Draw]]):
    """Endless batches of `Draw`, from any optimiser step on, for `DataLoader(batch_sampler=...)`.

    An optimiser step takes ``batch_size * world * accumulate`` images: ``accumulate`` batches in turn, each split into
    equal parts by rank. Two ranks with batches of b therefore get, batch by batch, the images that one rank with
    batches of 2b gets.

    Each epoch is a new permutation of the data. It has as many whole steps as fit; the remaining images (fewer than one
    step) are dropped, different ones in every epoch. A data set smaller than one step is passed over several times
    within the step: then a step is an epoch of the schedules, and `Draw.epoch` still counts passes.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        start_step: int = 0,
        accumulate: int = 1,
    ) -> None:
        for name, value in (
            ("length", length),
            ("batch_size", batch_size),
            ("world", world),
            ("accumulate", accumulate),
        ):
            if value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        if not 0 <= rank < world:
            raise ValueError(f"rank={rank}: expected 0 to {world - 1} (world={world})")
        if start_step < 0:
            raise ValueError(f"start_step={start_step}: expected 0 or more")
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world, self.start_step, self.accumulate = rank, world, start_step, accumulate

    @property
    def step_size(self) -> int:
        """Images of one optimiser step, over all processes and micro-batches."""
        return self.batch_size * self.world * self.accumulate

    @property
    def steps_per_epoch(self) -> int:
        """Whole optimiser steps in one pass over the data, at least 1."""
        return max(1, self.length // self.step_size)

    def batch(self, step: int, micro: int = 0) -> list[Draw]:
        """Return this rank's micro-batch number `micro` of optimiser step `step`."""
        within = (micro * self.world + self.rank) * self.batch_size + np.arange(self.batch_size)
        if self.step_size <= self.length:
            epoch, step = divmod(step, self.steps_per_epoch)
            epochs, places = np.full(self.batch_size, epoch), step * self.step_size + within
        else:
            epochs, places = np.divmod(step * self.step_size + within, self.length)
        indices = np.empty(self.batch_size, np.int64)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            indices[chosen] = permute(places[chosen], self.length, (self.seed, epoch))
        return [Draw(epoch, index) for epoch, index in zip(epochs.tolist(), indices.tolist(), strict=True)]

    def __iter__(self) -> Iterator[list[Draw]]:
        step = self.start_step
        while True:
            for micro in range(self.accumulate):
                yield self.batch(step, micro)
            step += 1


def permute(places: NDArray[np.int64], length: int, key: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the images of `places` (any shape) under a random permutation of ``range(length)`` that `key` determines.

    There is no table: the permutation is a Feistel cipher on a grid of a x b >= length cells, applied again where it
    leaves the range (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). Its cost does not depend on
    `length`.
    """
    rows = int(np.ceil(np.sqrt(length)))
    columns = -(-length // rows)
    keys = np.random.SeedSequence(key).generate_state(2 * ROUNDS, np.uint64)
    result = np.array(places, dtype=np.uint64)
    if result.size and int(result.max()) >= length:
        raise ValueError(f"place {int(result.max())}: expected less than length={length}")
    outside = np.ones(result.shape, bool)
    while outside.any():
        row, column = np.divmod(result[outside], np.uint64(columns))
        for first, second in keys.reshape(ROUNDS, 2):
            row = (row + _hash(column, first) % np.uint64(rows)) % np.uint64(rows)
            column = (column + _hash(row, second) % np.uint64(columns)) % np.uint64(columns)
        result[outside] = row * np.uint64(columns) + column
        outside = result >= length
    return result.astype(np.int64)


def _hash(values: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """Return a 64-bit hash of each value under a key, with the finaliser of SplitMix64."""
    x = values + key
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
