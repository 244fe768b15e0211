"""Arrays that are made once and then kept, in memory that forked workers share."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Remember:
    """`length` uint8 arrays of one shape, each made when first asked for, by whichever process asks.

    Anonymous shared memory, not a file in /dev/shm, which is small in containers; pages that nobody has written cost
    nothing. Two processes may make the same array at once: they make the same one. A pickled copy starts empty, so
    spawned workers remember each for itself.
    """

    def __init__(self, length: int, shape: tuple[int, ...]) -> None:
        self.length, self.shape = length, shape
        size = int(np.prod(shape))
        memory = np.frombuffer(mmap.mmap(-1, length * (size + 1)), np.uint8)
        self._known, self._values = memory[:length], memory[length:].reshape(length, *shape)

    def get(self, index: int, make: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Array `index`, from memory or from `make`; not to be written to."""
        if not self._known[index]:
            self._values[index] = make()
            self._known[index] = 1  # only now, so that no process sees half an array
        return self._values[index]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.length, self.shape)
