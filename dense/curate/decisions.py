"""What becomes of every image of a pool."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dense.curate.duplicates import Indices
from dense.curate.embeddings import Embedded
from dense.curate.filters import STATES
from dense.curate.pool import Pool
from dense.curate.retrieval import Retrieved

FATES = (*STATES[1:], "held out", "duplicate", "not retrieved", "over the total")


@dataclass(frozen=True)
class Curation:
    """What became of every image.

    fates: index into FATES, -1 for those that stay; of: the image that stays in its place, or for "held out" the number
    of the held-out image, -1 for one that is in a group with such an image
    """

    pool: Pool
    found: Embedded
    fates: NDArray[np.int8]  # N
    of: Indices  # N, -1 for none
    retrieved: Retrieved  # whose places are indices of the pool
    mean: NDArray[np.float32]  # D, that vectors are compared less
    by_cosine: int = 0  # duplicates that hashes alone would have kept

    @property
    def kept(self) -> Indices:
        """Indices of the images that stay."""
        return np.flatnonzero(self.fates < 0)


CHUNK = 8192


def write_report(report: Mapping[str, Any], path: Path) -> None:
    """The same run writes the same bytes."""
    path.write_text(json.dumps(report, indent=2) + "\n")


def write_dropped(done: Curation, held_out: Pool | None, tested: Embedded | None, path: Path) -> None:
    """A line an image: its name, why it was dropped, and the image that it is a copy of, with their cosine and bits."""
    dropped = np.flatnonzero(done.fates >= 0)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8", errors="surrogateescape") as lines:
        for start in range(0, len(dropped), CHUNK):
            some = dropped[start : start + CHUNK]
            likeness = {index: values for index, *values in alike(done, tested, some)}
            for index in some.tolist():
                fate = FATES[done.fates[index]]
                line: dict[str, Any] = {"picture": done.pool.name(index), "why": fate}
                if index in done.found.words:
                    line["words"] = done.found.words[index]
                if index in likeness:
                    cosine, bits = likeness[index]
                    names = held_out if fate == "held out" and held_out is not None else done.pool
                    line |= {"of": names.name(int(done.of[index])), "cosine": round(cosine, 4), "bits": bits}
                elif fate == "held out":
                    line["words"] = "in a group with an image that is held out"
                lines.write(json.dumps(line) + "\n")
    partial.replace(path)


def alike(done: Curation, tested: Embedded | None, indices: NDArray[np.int64]) -> list[tuple[int, float, int]]:
    """Index, cosine and differing bits of each image that was dropped for another."""
    found: list[tuple[int, float, int]] = []
    mean = done.mean
    for fate, other in (("duplicate", done.found), ("held out", tested)):
        mine = indices[(done.fates[indices] == FATES.index(fate)) & (done.of[indices] >= 0)]
        if other is None or not len(mine):
            continue
        theirs = done.of[mine]
        cosines = (done.found.vectors.less(mean).take(mine) * other.vectors.less(mean).take(theirs)).sum(1)
        ours, hashes = done.found.columns[mine], other.columns[theirs]["hash"]
        bits = np.minimum(*(np.unpackbits(ours[name] ^ hashes, axis=1).sum(1) for name in ("hash", "mirrored")))
        found += zip(mine.tolist(), cosines.tolist(), bits.astype(int).tolist(), strict=True)
    return found
