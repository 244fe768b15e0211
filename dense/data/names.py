"""Many strings in two arrays: what a worker may hold of a data set of any size."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np


class Names(Sequence[str]):
    """A read-only list of file names, kept as one array of bytes and one of offsets.

    A Python list of a million strings is a million objects, whose reference counts make every forked worker copy them.
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
