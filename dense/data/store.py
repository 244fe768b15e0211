"""Containers that forked workers share without copies: many strings in two arrays, and arrays in shared memory."""

from __future__ import annotations

import mmap
import os
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray


class Names(Sequence[str]):
    """A read-only list of file names, kept as one array of bytes and one of offsets.

    A Python list of a million strings is a million objects, and their reference counts make every worker copy them.
    """

    def __init__(self, names: Iterable[str]) -> None:
        text, ends = bytearray(), array("q", [0])
        for name in names:
            text += os.fsencode(name)
            ends.append(len(text))
        self._text = np.frombuffer(bytes(text), np.uint8)
        self._ends = np.frombuffer(ends.tobytes(), np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"name {index} of {len(self)}")
        index %= len(self)
        return os.fsdecode(self._text[self._ends[index] : self._ends[index + 1]].tobytes())


class Remember:
    """`length` uint8 arrays of one shape in shared memory; the first process that needs an array computes it.

    The memory is anonymous, not a file in /dev/shm, which is small in containers; pages that were never written take no
    memory. If two processes compute an array at once, both write the same values. A pickled copy starts empty, so that
    each spawned worker has its own.
    """

    def __init__(self, length: int, shape: tuple[int, ...]) -> None:
        self.length, self.shape = length, shape
        size = int(np.prod(shape))
        memory = np.frombuffer(mmap.mmap(-1, length * (size + 1)), np.uint8)
        self._known, self._values = memory[:length], memory[length:].reshape(length, *shape)

    def get(self, index: int, make: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Return array `index`, from memory or from `make`; do not write to it."""
        if not self._known[index]:
            self._values[index] = make()
            self._known[index] = 1  # after the values, so that no process reads an incomplete array
        return self._values[index]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.length, self.shape)
