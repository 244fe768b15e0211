"""What is known of every image, in parts on disk: its state, hashes, size, sharpness, and one vector of a backbone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from dense.backbone import Backbone
from dense.console import counting
from dense.curate.filters import STATES, Preparation
from dense.curate.hashes import perceptual_hash
from dense.curate.pool import Pool
from dense.curate.search import Vectors
from dense.data.cache import DamagedRecord, key_digest, read_record, sweep, weights_digest, write_record
from dense.data.loader import workers_options
from dense.evaluate.classification.data import CenterCrop
from dense.evaluate.classification.features import Readout, blocks_of, default_readout, describe, evaluating
from dense.media.draw import Picture

COLUMNS = np.dtype(
    [("state", "u1"), ("edited", "u1"), ("hash", "u1", 8), ("mirrored", "u1", 8), ("height", "<u4"), ("width", "<u4"), ("sharpness", "<f4")]
)  # fmt: skip


@dataclass(frozen=True)
class Embedder:
    """How images become vectors, and where these are kept.

    folder: parts of `part` images lie below it, in a folder for each set of choices; what is whole there is not computed again
    """

    backbone: Backbone
    folder: Path
    view: CenterCrop = field(default_factory=CenterCrop)
    readout: Readout | None = None
    batch_size: int = 64
    workers: int = 0
    part: int = 1024

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.part < 1 or self.workers < 0:
            raise ValueError(
                f"batch {self.batch_size}, part {self.part}, workers {self.workers}: expected 1 or more images, 0 or more workers"
            )

    @property
    def kind(self) -> Readout:
        """The readout, settled."""
        return self.readout or default_readout(self.backbone.spec.class_token)

    def key(self) -> dict[str, Any]:
        """All that vectors depend on besides the image."""
        return {
            "backbone": self.backbone.spec.to_dict(), "weights": weights_digest(self.backbone.state_dict()),
            "view": [self.view.resize, self.view.crop, self.view.resample], "readout": self.kind,
        }  # fmt: skip

    def __call__(self, pool: Pool, prepare: Preparation, what: str) -> Embedded:
        """Everything about the images of a pool; `what` names them while it is computed."""
        key = {**self.key(), **prepare.key(), "pile": pool.roots, "part": self.part}
        folder = self.folder / key_digest(key)
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        starts = range(0, len(pool), self.part)
        spans = [range(start, min(start + self.part, len(pool))) for start in starts]
        versions = [pool.version(span) for span in spans]
        missing = [n for n, span in enumerate(spans) if not whole(part_path(folder, span), versions[n])]
        with counting(what) as count, evaluating(self.backbone):
            done = len(pool) - sum(len(spans[n]) for n in missing)
            for n, part in zip(missing, self._parts(pool, prepare, [spans[n] for n in missing]), strict=True):
                facts = {"version": versions[n], "words": part.words, "edits": part.edits}
                write_record(
                    part_path(folder, spans[n]), [part.vectors, torch.from_numpy(part.columns.view(np.uint8))], facts
                )
                done += len(spans[n])
                count(done, len(pool))
        return read_parts(folder, spans)

    def _parts(self, pool: Pool, prepare: Preparation, spans: list[range]) -> Iterator[Part]:
        batches: Any = [span[i : i + self.batch_size] for span in spans for i in range(0, len(span), self.batch_size)]
        loader = DataLoader(
            _Looks(pool, prepare, self.view),
            batch_sampler=batches,
            collate_fn=list,
            **workers_options(self.workers),
        )
        looks = (look for batch in loader for look in self._embed(batch))
        for span in spans:
            yield _part([next(looks) for _ in span])

    def _embed(self, batch: list[Look]) -> Iterator[tuple[Look, NDArray[np.float16]]]:
        """Each look with its vector, zero where there is no image."""
        for look in batch:
            if look.error:
                raise ValueError(look.error)
        seen = [look.view for look in batch if look.view is not None]
        vectors: Iterator[NDArray[np.float16]] = iter(())
        if seen:
            images = torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2).contiguous()
            pooled = describe(self.backbone, images, blocks=blocks_of([self.kind]))
            vectors = iter(pooled.readout(self.kind).cpu().numpy().astype(np.float16))
        for look in batch:
            yield look, np.zeros(self.width, np.float16) if look.view is None else next(vectors)

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        dim, depth = self.backbone.spec.dim, self.backbone.spec.depth
        tokens = min(4, depth) if self.kind.startswith("last4") else 0 if self.kind == "average" else 1
        return dim * (tokens + self.kind.endswith("average"))


class Look(NamedTuple):
    """What a worker found of one image."""

    columns: NDArray[Any]  # of COLUMNS, (1,)
    view: Picture | None
    words: str
    edits: tuple[str, ...]
    error: str  # what stops the work: a filter that failed, say


class Part(NamedTuple):
    """What a file holds."""

    vectors: torch.Tensor  # n, D fp16
    columns: NDArray[Any]  # n
    words: dict[str, str]  # place -> why it is not fit
    edits: dict[str, list[str]]  # place -> what changed it


class _Looks(Dataset[Look]):
    def __init__(self, pool: Pool, prepare: Preparation, view: CenterCrop) -> None:
        self.pool, self.prepare, self.view = pool, prepare, view

    def __getitem__(self, index: int) -> Look:
        columns = np.zeros(1, COLUMNS)
        try:
            found = self.prepare(self.pool, index)
        except ValueError as error:
            return Look(columns, None, "", (), str(error))
        columns["state"], columns["edited"] = STATES.index(found.state), bool(found.edits)
        if found.image is None:
            return Look(columns, None, found.words, (), "")
        view = np.ascontiguousarray(self.view(found.image))
        columns["hash"][0], columns["mirrored"][0] = perceptual_hash(found.image)
        columns["height"], columns["width"] = found.image.shape[:2]
        columns["sharpness"] = sharpness(view)
        return Look(columns, view, "", found.edits, "")


def sharpness(view: Picture) -> float:
    """Variance of the Laplacian of what the backbone sees, so that copies of all sizes compare."""
    return float(cv2.Laplacian(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), cv2.CV_32F).var())


def _part(looks: list[tuple[Look, NDArray[np.float16]]]) -> Part:
    return Part(
        torch.from_numpy(np.stack([vector for _, vector in looks])),
        np.concatenate([look.columns for look, _ in looks]),
        {str(n): look.words for n, (look, _) in enumerate(looks) if look.words},
        {str(n): list(look.edits) for n, (look, _) in enumerate(looks) if look.edits},
    )


def part_path(folder: Path, span: range) -> Path:
    """Where the part of a span of images lies."""
    return folder / f"{span.start:012d}.part"


def whole(path: Path, version: str) -> bool:
    """Whether a part is there, as it was written, and of these very files."""
    try:
        return bool(read_record(path)[1].get("version") == version)
    except (FileNotFoundError, DamagedRecord):
        return False


@dataclass(frozen=True)
class Embedded:
    """A pile's images as they were found: small facts in memory, vectors on disk."""

    columns: NDArray[Any]  # N of COLUMNS
    vectors: Vectors  # N
    words: dict[int, str]  # why those that are not fit are not
    edits: dict[int, list[str]]

    def __add__(self, other: Embedded) -> Embedded:
        shift = len(self.columns)
        return Embedded(
            np.concatenate([self.columns, other.columns]),
            Vectors(self.vectors.arrays + other.vectors.arrays),
            self.words | {shift + n: text for n, text in other.words.items()},
            self.edits | {shift + n: names for n, names in other.edits.items()},
        )

    @property
    def fit(self) -> NDArray[np.int64]:
        """Indices of the images that may be used."""
        return np.flatnonzero(self.columns["state"] == 0)


def read_parts(folder: Path, spans: list[range]) -> Embedded:
    """All parts of a pool, mapped."""
    columns, arrays, words, edits = [], [], dict[int, str](), dict[int, list[str]]()
    for span in spans:
        (vectors, packed), facts = read_record(part_path(folder, span), verify=False)
        arrays.append(vectors.numpy())
        columns.append(packed.numpy().view(COLUMNS).reshape(-1))
        words |= {span.start + int(n): text for n, text in facts["words"].items()}
        edits |= {span.start + int(n): names for n, names in facts["edits"].items()}
    return Embedded(np.concatenate(columns), Vectors(arrays), words, edits)
