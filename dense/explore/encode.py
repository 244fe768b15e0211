"""Features and attention in few bytes: fewer dimensions, steps instead of numbers, deflate.

Unit features are rotated to their principal directions, without subtracting a mean, so that products and cosines stay
as they are. Of every image, all coefficients are rounded to multiples of one step: the large first directions get many
values and the small last ones few, which is what deflate makes use of. The step is the smallest with which the image
keeps to its bytes.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

DIMENSIONS = 96  # principal directions
BYTES = 40_000 / (32 * 43)  # per patch, as text in the page
STEPS = [0.008 * 1.09**i for i in range(60)]
RANK = 8  # of the logarithm of attention
ATTENTION_STEP = 0.25
QUERIES, KEYS = 400, 800  # patches of a grid up to which each is a query, or a key; larger grids are pooled
ROWS = 20_000  # patches to which directions are fitted


@dataclass(frozen=True)
class Encoded:
    """Integers (planes, N) that stand for `step` times as much, and their bytes as text."""

    integers: NDArray[np.int8]
    step: float
    text: str

    @classmethod
    def of(cls, values: Tensor, step: float) -> Encoded:
        """Encode values (N, planes), plane after plane."""
        integers = (values.T / step).round().clamp(-127, 127).to(torch.int8).contiguous().numpy()
        return cls(integers, step, base64.b64encode(zlib.compress(integers.tobytes(), 6)).decode())

    @property
    def values(self) -> Tensor:
        """What a reader gets: (N, planes)."""
        return torch.from_numpy(self.integers).T.float() * self.step

    def data(self) -> dict[str, Any]:
        return {"planes": len(self.integers), "step": self.step, "text": self.text}


def directions(features: Sequence[Tensor]) -> Tensor:
    """Return the principal directions (C, D) of the unit features of images (C, h, w), largest first."""
    step = max(1, sum(one[0].numel() for one in features) // ROWS)
    rows = torch.cat([units(one)[::step] for one in features])
    return torch.linalg.eigh((rows.T @ rows).double()).eigenvectors.flip(-1)[:, :DIMENSIONS].float()


def units(features: Tensor) -> Tensor:
    """Return unit rows (h*w, C) of features (C, h, w)."""
    return F.normalize(features.float().flatten(1).T, dim=-1)


def encode(features: Tensor, rotation: Tensor) -> Encoded:
    """Encode the features of an image (C, h, w) with the smallest step that keeps to `BYTES` per patch."""
    values = units(features) @ rotation
    low, high = 0, len(STEPS) - 1
    while low < high:  # the first step that is coarse enough
        middle = (low + high) // 2
        small = len(Encoded.of(values, STEPS[middle]).text) <= BYTES * len(values)
        low, high = (low, middle) if small else (middle + 1, high)
    return Encoded.of(values, STEPS[low])


def cosine_error(features: Sequence[Tensor], encoded: Sequence[Encoded]) -> tuple[float, float]:
    """Return the mean absolute error of cosines, and the error below which 99 % are, of a sample of all pairs."""
    raw = torch.cat([units(one)[i % 16 :: 16] for i, one in enumerate(features)])
    read = torch.cat([F.normalize(one.values, dim=-1)[i % 16 :: 16] for i, one in enumerate(encoded)])
    some = slice(None, None, max(1, len(raw) // 512))
    errors = (raw[some] @ raw.T - read[some] @ read.T).abs().flatten()
    return float(errors.mean()), float(errors[:: max(1, errors.numel() // 1_000_000)].quantile(0.99))


@dataclass(frozen=True)
class EncodedAttention:
    """softmax(queries @ keys) per head, of pooled patches; the class token is query 0 where there is one.

    Attention is pooled, and its logarithm replaced by a matrix of rank `RANK`. The softmax over keys makes up for the
    mean of each row, which is left out.
    """

    encoded: Encoded  # of (Q + K, heads * RANK)
    heads: int
    class_token: bool
    queries: tuple[int, int]  # grid
    keys: tuple[int, int]

    @classmethod
    def of(cls, attention: Tensor, grid: tuple[int, int]) -> EncodedAttention:
        """Encode the attention of one image (heads, Q, h*w)."""
        heads, class_token = len(attention), attention.shape[1] > attention.shape[2]
        rows = pooled(attention, grid, KEYS)  # heads, Q, k, l
        keys = (rows.shape[-2], rows.shape[-1])
        rows = rows.flatten(2)
        patches = pooled(rows[:, int(class_token) :].mT, grid, QUERIES)  # heads, K, i, j
        queries = (patches.shape[-2], patches.shape[-1])
        rows = torch.cat((rows[:, : int(class_token)], patches.flatten(2).mT), 1)
        logits = (rows / rows.sum(-1, keepdim=True)).clamp_min(1e-7).log()
        logits = logits - logits.mean(-1, keepdim=True)  # heads, Q, K
        values, vectors = torch.linalg.eigh(logits @ logits.mT)
        left = vectors[..., -RANK:] * values[:, None, -RANK:].clamp_min(1e-9) ** 0.25
        right = logits.mT @ vectors[..., -RANK:] / values[:, None, -RANK:].clamp_min(1e-9) ** 0.25
        both = torch.cat((left, right), 1)  # heads, Q + K, R
        return cls(
            Encoded.of(both.transpose(0, 1).flatten(1), ATTENTION_STEP), heads, class_token, queries, keys
        )  # fmt: skip

    def data(self) -> dict[str, Any]:
        return self.encoded.data() | {
            "heads": self.heads, "classToken": self.class_token, "queries": self.queries, "keys": self.keys,
        }  # fmt: skip


def pooled(maps: Tensor, grid: tuple[int, int], most: int) -> Tensor:
    """Return maps (heads, n, h*w) as (heads, n, k, l) on a grid of at most so many patches, by averages."""
    maps, side = maps.unflatten(-1, grid), 1
    while -(-grid[0] // side) * -(-grid[1] // side) > most:
        side += 1
    return F.avg_pool2d(maps, side, ceil_mode=True, count_include_pad=False)
