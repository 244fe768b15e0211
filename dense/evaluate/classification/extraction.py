"""Pooled features of the images of a set, computed in one pass or read from a cache."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dense.backbone import Backbone
from dense.console import progress
from dense.data.cache import DamagedRecord, key_digest, read_record, sweep, weights_digest, write_record
from dense.data.labelled.files import file_identity
from dense.data.levels import PHOTOGRAPHS
from dense.data.shards import ShardImages
from dense.data.unlabelled import SceneImages
from dense.data.values import files_of
from dense.evaluate.classification.data import Examples, View
from dense.evaluate.classification.features import (
    Choice,
    Describe,
    Pooled,
    Summary,
    choices_of,
    describe,
    describe_pixels,
    evaluating,
    layers_of,
)


@dataclass(frozen=True)
class Extraction:
    """``extraction(examples, view, name)``: the pooled features of a set, of which `name` is shown with the progress.

    function: what makes features of a batch, by `network`, which runs in evaluation mode. key: everything besides the
    images that the features depend on. keep: the summaries that are wanted, or all if it is empty. cache: folder of one
    safetensors file per `part` images and key, or None; a complete part is read, also by another process, and is
    computed anew if one of its images has changed. A cache holds every layer before and after the final norm, which
    takes no second pass, so that later calls may choose other ones.
    """

    function: Describe
    key: Mapping[str, Any]
    network: nn.Module = field(default_factory=nn.Identity)
    keep: Set[tuple[int, bool]] = frozenset()  # layer, after the final norm
    cache: Path | None = None
    batch_size: int = 64
    workers: int = 0
    part: int = 1024

    @classmethod
    def of(cls, backbone: Backbone, choices: Sequence[Choice], cache: str | Path | None, **loading: Any) -> Extraction:
        """Return the extraction of what these choices need; loading: batch_size and workers."""
        if cache is None:
            return cls(partial(describe, backbone, choices=choices), {}, backbone, **loading)
        keep = frozenset(product(layers_of(choices), {choice.normed for choice in choices}))
        key = {"backbone": backbone.spec.to_dict(), "weights": weights_digest(backbone.state_dict())}
        function = partial(describe, backbone, choices=choices_of(backbone, "all", "all", "all"))
        return cls(function, key, backbone, keep, Path(cache), **loading)

    @classmethod
    def of_pixels(cls, **loading: Any) -> Extraction:
        """Return the extraction of raw pixels, which is not worth a cache."""
        return cls(describe_pixels, {}, **loading)

    def __call__(self, examples: Examples, view: View, name: str) -> Pooled:
        indices = examples.indices
        if self.cache is not None:
            self.cache.mkdir(parents=True, exist_ok=True)
            sweep(self.cache)
        step = len(indices) if self.cache is None else self.part
        parts = [indices[start : start + step] for start in range(0, len(indices), step)]
        shown = parts if len(parts) == 1 else progress(parts, f"{name}, {step} at a time")
        found = [pooled for part in shown if (pooled := self._part(examples.only(part), view, name)) is not None]
        if not found:
            raise ValueError(f"none of the images of {examples.source} could be read")
        return Pooled.cat(found)

    def _part(self, examples: Examples, view: View, name: str) -> Pooled | None:
        path = None
        if self.cache is not None:
            path = self.cache / f"{key_digest({**self.key, 'view': repr(view), 'images': version(examples)})}.features"
            try:
                tensors, facts = read_record(path)
                examples.skipped.update(facts["skipped"])
                summaries = [Summary(*summary) for summary in facts["summaries"]]
                return self._kept(Pooled(dict(zip(summaries, tensors, strict=False)), tensors[-1]) if tensors else None)
            except (FileNotFoundError, DamagedRecord):
                pass
        before = set(examples.skipped)
        batches = examples.batches(view, self.batch_size, workers=self.workers)
        with evaluating(self.network):
            found = [
                self.function(batch.images, batch.labels).to("cpu")
                for batch in progress(batches, name, -(-len(examples) // self.batch_size))
                if len(batch.images)
            ]
        pooled = Pooled.cat(found) if found else None
        if path is not None:
            tensors = []
            if pooled is not None and pooled.labels is not None:
                tensors = [*pooled.vectors.values(), pooled.labels]
            facts = {"summaries": list(pooled.vectors) if pooled else [], "skipped": sorted(examples.skipped - before)}
            write_record(path, tensors, facts)
        return self._kept(pooled)

    def _kept(self, pooled: Pooled | None) -> Pooled | None:
        if pooled is None or not self.keep:
            return pooled
        kept = {which: vector for which, vector in pooled.vectors.items() if (which.layer, which.normed) in self.keep}
        return Pooled(kept, pooled.labels)


def version(examples: Examples) -> str:
    """Return 32 characters that change with the name, label, size or modification time of any of the images."""
    digest, source = hashlib.blake2b(digest_size=16), examples.images
    for index in examples.indices:
        if isinstance(source, SceneImages):
            about = f"seed {source.scenes.seed}, {source.scenes.size}"
        else:
            path = Path(source.shard(index) if isinstance(source, ShardImages) else source.name(index))
            files = files_of(path, getattr(source, "reading", PHOTOGRAPHS))
            about = file_identity(*files).version if path.exists() else "absent"
        text = f"{source.name(index)}\0{examples.labels[index]}\0{about}\0"
        digest.update(text.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def held_out(labels: Any, fraction: float, seed: int) -> torch.Tensor:
    """Return a mask (N,) of labelled images to choose on: this fraction of each class, drawn by `seed`."""
    if not 0 < fraction < 1:
        raise ValueError(f"holdout={fraction}: expected more than 0 and less than 1")
    labels = np.asarray(labels)
    chosen, rng = np.zeros(len(labels), bool), np.random.default_rng(seed)
    for label in np.unique(labels[labels >= 0]):
        own = rng.permutation(np.flatnonzero(labels == label))
        chosen[own[: min(max(round(fraction * len(own)), 1), len(own) - 1)]] = True
    if not chosen.any():
        raise ValueError("the training set has one image per class, of which none can be held out; use holdout=0")
    return torch.from_numpy(chosen)
