"""Facts and vectors of every image, stored in parts on disk: usability, hashes, size, sharpness, and one embedding."""

from __future__ import annotations

import time
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
from dense.curate.duplicates import Signatures, perceptual_hash
from dense.curate.filters import STATES, Preparation
from dense.curate.pool import Pool
from dense.curate.search import Indices, Vectors
from dense.data.cache import DamagedRecord, key_digest, read_record, sweep, weights_digest, write_record
from dense.data.levels import as_rgb
from dense.data.loader import workers_options
from dense.evaluate.classification.data import CenterCrop
from dense.evaluate.classification.features import Readout, blocks_of, default_readout, describe, evaluating
from dense.media.draw import Picture
from dense.ranks import ALONE, Ranks

COLUMNS = np.dtype([
    ("state", "u1"), ("edited", "u1"), ("hash", "u1", 8), ("mirrored", "u1", 8),
    ("height", "<u4"), ("width", "<u4"), ("sharpness", "<f4"),
])  # fmt: skip
SAVED_EVERY = 30.0  # seconds


@dataclass(frozen=True)
class Embedder:
    """How images become vectors, and the folder that stores them.

    folder: one sub-folder per combination of settings, with files of `part` images, saved at least every `SAVED_EVERY`
    seconds (or after each batch, where one takes longer) and continued by the next run
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
            got = f"batch {self.batch_size}, part {self.part}, workers {self.workers}"
            raise ValueError(f"{got}: expected 1 or more images, 0 or more workers")

    @property
    def resolved_readout(self) -> Readout:
        """The given readout, or the backbone's default."""
        return self.readout or default_readout(self.backbone.spec.class_token)

    @property
    def dim(self) -> int:
        dim, depth, readout = self.backbone.spec.dim, self.backbone.spec.depth, self.resolved_readout
        tokens = min(4, depth) if readout.startswith("last4") else 0 if readout == "average" else 1
        return dim * (tokens + readout.endswith("average"))

    def key(self) -> dict[str, Any]:
        """Return everything besides the image that a vector depends on."""
        return {
            "backbone": self.backbone.spec.to_dict(), "weights": weights_digest(self.backbone.state_dict()),
            "view": [self.view.resize, self.view.crop, self.view.resample], "readout": self.resolved_readout,
        }  # fmt: skip

    def __call__(self, pool: Pool, prepare: Preparation, name: str) -> Embeddings:
        """Return the embeddings of a pool; `name` is shown with the progress."""
        return read_parts(*self.fill(pool, prepare, name))

    def fill(self, pool: Pool, prepare: Preparation, name: str, ranks: Ranks = ALONE) -> tuple[Path, list[range]]:
        """Store the parts of a pool that are missing, of several processes each its share; return folder, spans.

        Another process must not write to the same folder of embeddings meanwhile, unless it is of the same run.
        """
        key = {**self.key(), **prepare.key(), "pile": pool.roots, "part": self.part}
        folder = self.folder / key_digest(key)
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        starts = range(0, len(pool), self.part)
        spans = [range(start, min(start + self.part, len(pool))) for start in starts]
        versions = [pool.version(span) for span in spans]
        stored = [
            stored_images(part_path(folder, span), version) for span, version in zip(spans, versions, strict=True)
        ]
        own = range(ranks.rank, len(spans), ranks.world)
        missing = [n for n in own if stored[n] < len(spans[n])]
        with counting(name) as count, evaluating(self.backbone):
            total = sum(len(spans[n]) for n in own)
            done, saved = sum(stored[n] for n in own), time.monotonic()
            count(done, total)
            embedded = self._embedded(pool, prepare, [spans[n][stored[n] :] for n in missing])
            for n in missing:
                path, length = part_path(folder, spans[n]), stored[n]
                parts = [_Part.read(path)] if length else []
                while length < len(spans[n]):
                    parts.append(next(embedded))
                    size = len(parts[-1].columns)
                    length, done = length + size, done + size
                    count(done, total)
                    if length == len(spans[n]) or time.monotonic() - saved >= SAVED_EVERY:
                        parts = [_Part.joined(parts)]
                        parts[0].write(path, versions[n])
                        saved = time.monotonic()
        return folder, spans

    def _embedded(self, pool: Pool, prepare: Preparation, spans: list[range]) -> Iterator[_Part]:
        """Yield the images of each span in batches."""
        batches: Any = [span[i : i + self.batch_size] for span in spans for i in range(0, len(span), self.batch_size)]
        dataset = _PoolDataset(pool, prepare, self.view)
        loader = DataLoader(dataset, batch_sampler=batches, collate_fn=list, **workers_options(self.workers))
        return map(self._embed, loader)

    def _embed(self, batch: list[_Item]) -> _Part:
        """Return the vectors of a batch, zero for unusable images, and what its items say."""
        for item in batch:
            if item.error:
                raise ValueError(item.error)
        vectors = torch.zeros(len(batch), self.dim, dtype=torch.float16)
        views = [item.view for item in batch if item.view is not None]
        if views:
            images = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).contiguous()  # b, 3, H, W
            pooled = describe(self.backbone, images, blocks=blocks_of([self.resolved_readout]))
            usable = torch.tensor([item.view is not None for item in batch])
            vectors[usable] = pooled.readout(self.resolved_readout).cpu().half()
        return _Part(
            vectors,
            np.concatenate([item.columns for item in batch]),
            {str(n): item.reason for n, item in enumerate(batch) if item.reason},
            {str(n): list(item.edits) for n, item in enumerate(batch) if item.edits},
        )


class _Item(NamedTuple):
    """What a worker returns per image."""

    columns: NDArray[Any]  # (1,) of COLUMNS
    view: Picture | None
    reason: str = ""  # why the image is not usable
    edits: tuple[str, ...] = ()
    error: str = ""  # stops the run, for instance if a filter failed


@dataclass(frozen=True)
class _Part:
    """The first images of a span, or all of them, as a file stores them."""

    vectors: torch.Tensor  # n, D fp16
    columns: NDArray[Any]  # n of COLUMNS
    reasons: dict[str, str]  # by index in the part
    edits: dict[str, list[str]]

    @classmethod
    def joined(cls, parts: list[_Part]) -> _Part:
        starts = np.cumsum([0, *(len(part.columns) for part in parts)]).tolist()
        numbered = list(zip(starts, parts, strict=False))
        return cls(
            torch.cat([part.vectors for part in parts]),
            np.concatenate([part.columns for part in parts]),
            {str(start + int(n)): text for start, part in numbered for n, text in part.reasons.items()},
            {str(start + int(n)): names for start, part in numbered for n, names in part.edits.items()},
        )

    @classmethod
    def read(cls, path: Path, verify: bool = True) -> _Part:
        (vectors, packed), facts = read_record(path, verify)
        return cls(vectors, packed.numpy().view(COLUMNS).reshape(-1), facts["words"], facts["edits"])

    def write(self, path: Path, version: str) -> None:
        facts = {"version": version, "words": self.reasons, "edits": self.edits}
        write_record(path, [self.vectors, torch.from_numpy(self.columns.view(np.uint8))], facts)


class _PoolDataset(Dataset[_Item]):
    def __init__(self, pool: Pool, prepare: Preparation, view: CenterCrop) -> None:
        self.pool, self.prepare, self.view = pool, prepare, view

    def __getitem__(self, index: int) -> _Item:
        columns = np.zeros(1, COLUMNS)
        try:
            prepared = self.prepare(self.pool, index)
        except ValueError as error:
            return _Item(columns, None, error=str(error))
        columns["state"], columns["edited"] = STATES.index(prepared.state), bool(prepared.edits)
        if prepared.image is None:
            return _Item(columns, None, prepared.reason)
        view = np.ascontiguousarray(self.view(prepared.image))
        columns["hash"][0], columns["mirrored"][0] = perceptual_hash(prepared.image)
        columns["height"], columns["width"] = prepared.image.shape[:2]
        columns["sharpness"] = sharpness(view)
        return _Item(columns, view, edits=prepared.edits)


def sharpness(view: Picture) -> float:
    """Return the variance of the Laplacian of the backbone's view, which makes copies of different sizes comparable."""
    return float(cv2.Laplacian(cv2.cvtColor(as_rgb(view), cv2.COLOR_RGB2GRAY), cv2.CV_32F).var())


def part_path(folder: Path, span: range) -> Path:
    """Return the file of a span of images."""
    return folder / f"{span.start:012d}.part"


def stored_images(path: Path, version: str) -> int:
    """Return how many images a part holds; 0 if it is absent, damaged, or of another version of the images."""
    try:
        tensors, facts = read_record(path)
    except (FileNotFoundError, DamagedRecord):
        return 0
    return len(tensors[0]) if facts.get("version") == version else 0


@dataclass(frozen=True)
class Embeddings:
    """Facts of all images of a pool in memory, vectors on disk."""

    columns: NDArray[Any]  # N of COLUMNS
    vectors: Vectors  # N
    reasons: dict[int, str]  # why images are not usable
    edits: dict[int, list[str]]

    def __add__(self, other: Embeddings) -> Embeddings:
        shift = len(self.columns)
        return Embeddings(
            np.concatenate([self.columns, other.columns]),
            Vectors(self.vectors.arrays + other.vectors.arrays),
            self.reasons | {shift + n: text for n, text in other.reasons.items()},
            self.edits | {shift + n: names for n, names in other.edits.items()},
        )

    @property
    def usable(self) -> Indices:
        """Indices of the usable images."""
        return np.flatnonzero(self.columns["state"] == 0)

    def signatures(self, mean: NDArray[np.float32]) -> Signatures:
        """Return vectors, centred by a mean, and hashes of the usable images."""
        usable = self.usable
        columns = self.columns[usable]
        hashes, mirrored = (np.ascontiguousarray(columns[name]) for name in ("hash", "mirrored"))
        return Signatures(self.vectors.centred(mean).subset(usable), hashes, mirrored)


def read_parts(folder: Path, spans: list[range]) -> Embeddings:
    """Return all parts of a pool, with memory-mapped vectors."""
    columns, arrays, reasons, edits = [], [], dict[int, str](), dict[int, list[str]]()
    for span in spans:
        part = _Part.read(part_path(folder, span), verify=False)
        arrays.append(part.vectors.numpy())
        columns.append(part.columns)
        reasons |= {span.start + int(n): text for n, text in part.reasons.items()}
        edits |= {span.start + int(n): names for n, names in part.edits.items()}
    return Embeddings(np.concatenate(columns), Vectors(arrays), reasons, edits)
