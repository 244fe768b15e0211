"""What becomes of every picture of a pile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dense.curate.duplicates import Indices
from dense.curate.embeddings import Embedded
from dense.curate.filters import STATES
from dense.curate.pile import Pile
from dense.curate.retrieval import Retrieved

FATES = (*STATES[1:], "held out", "duplicate", "not retrieved", "over the total")


@dataclass(frozen=True)
class Curation:
    """What became of every picture.

    fates: index into FATES, -1 for those that stay; of: the picture that stays in its place, or for "held out" the number
    of the held-out picture, -1 for one that is in a group with such a picture
    """

    pile: Pile
    found: Embedded
    fates: NDArray[np.int8]  # N
    of: Indices  # N, -1 for none
    retrieved: Retrieved  # whose places are indices of the pile
    mean: NDArray[np.float32]  # D, that vectors are compared less
    by_cosine: int = 0  # duplicates that hashes alone would have kept

    @property
    def kept(self) -> Indices:
        """Indices of the pictures that stay."""
        return np.flatnonzero(self.fates < 0)
