"""Labelled pictures as tensors, and batches of them in which some answers are lacking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dense.data.labelled import IGNORE, Labelled


class Sample(NamedTuple):
    """One picture as tensors; None for an answer it does not have."""

    image: Tensor  # 3, H, W uint8
    labels: Tensor | None  # H, W int64
    depth: Tensor | None  # 1, H, W float32
    name: str
    clean: Tensor | None = None  # 3, H, W uint8
    damage: str = ""  # its kind


class Batch(NamedTuple):
    """Several samples of one size; None for an answer that none of them has."""

    images: Tensor  # B, 3, H, W uint8
    labels: Tensor | None  # B, H, W int64, IGNORE where unknown
    depth: Tensor | None  # B, 1, H, W float32, NaN where unknown
    names: tuple[str, ...]
    clean: Tensor | None = None  # B, 3, H, W uint8
    damages: tuple[str, ...] = ()


def to_tensors(sample: Labelled) -> Sample:
    """The same as tensors, copied."""
    image = torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1)))  # 3, H, W
    labels = None if sample.labels is None else torch.from_numpy(sample.labels.astype(np.int64))
    depth = None if sample.depth is None else torch.from_numpy(sample.depth.astype(np.float32))[None]
    clean = None if sample.clean is None else torch.from_numpy(np.ascontiguousarray(sample.clean.transpose(2, 0, 1)))
    return Sample(image, labels, depth, sample.name, clean)


def collate(samples: Sequence[Sample], labels: bool | None = None, depth: bool | None = None) -> Batch:
    """A batch; a sample that lacks an answer gets one that is unknown everywhere.

    labels, depth: whether the batch has them; by default, if any sample does.
    """
    sizes = {tuple(sample.image.shape[-2:]) for sample in samples}
    sizes |= {tuple(a.shape[-2:]) for s in samples for a in (s.labels, s.depth) if a is not None and len(samples) > 1}
    if len(sizes) > 1:
        raise ValueError(
            f"a batch of pictures or answers of {len(sizes)} sizes, {sorted(sizes)[:4]}: crop them, resize them with "
            "EvalTransform(size=(H, W), answers='resize'), or take them one by one"
        )
    images = torch.stack([sample.image for sample in samples])
    # what a sample lacks is as large as what it has: alone, its answer may have kept another size than its picture
    known = next((a for s in samples for a in (s.labels, s.depth) if a is not None), images)
    height, width = known.shape[-2:]
    some_labels = any(s.labels is not None for s in samples) if labels is None else labels
    some_depth = any(s.depth is not None for s in samples) if depth is None else depth
    no_labels, no_depth = torch.full((height, width), IGNORE), torch.full((1, height, width), torch.nan)
    return Batch(
        images,
        torch.stack([no_labels if s.labels is None else s.labels for s in samples]) if some_labels else None,
        torch.stack([no_depth if s.depth is None else s.depth for s in samples]) if some_depth else None,
        tuple(sample.name for sample in samples),
        torch.stack([s.clean for s in samples if s.clean is not None]) if samples[0].clean is not None else None,
        tuple(sample.damage for sample in samples),
    )
