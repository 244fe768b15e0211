"""Crops of mixed sizes, drawn for each step, as DINOv3 adapts to high resolution."""

from __future__ import annotations

import random
import struct
from typing import Any

from dense.data.sampler import IndexSampler
from pretrain.views import MultiCrop


class MixedCrops(MultiCrop):
    """`MultiCrop` with sizes drawn for each optimiser step, from the seed and the step, alike in all processes.

    mixture: rows of (global size, local size, Gram size or 0 for none, probability); the probabilities sum to 1.
    options: the other arguments of `MultiCrop`.
    """

    def __init__(self, mixture: list[tuple[int, int, int, float]], **options: Any) -> None:
        if not mixture or abs(sum(row[3] for row in mixture) - 1) > 1e-6 or min(row[3] for row in mixture) < 0:
            raise ValueError(f"mixture={mixture}: expected rows of three sizes and a probability, summing to 1")
        if len({row[2] > 0 for row in mixture}) > 1:
            raise ValueError(f"mixture={mixture}: either every row has a Gram size, or none")
        largest = max(mixture)
        super().__init__(global_size=largest[0], local_size=largest[1], gram_size=largest[2] or None, **options)
        self.choices = [
            MultiCrop(global_size=row[0], local_size=row[1], gram_size=row[2] or None, **options) for row in mixture
        ]
        self.probabilities = [row[3] for row in mixture]

    def of_step(self, step: int, seed: int) -> MultiCrop:
        """Return the crops of an optimiser step."""
        rng = random.Random(int.from_bytes(struct.pack("<2q", seed, step), "little"))
        return rng.choices(self.choices, self.probabilities)[0]


class StepSampler(IndexSampler):
    """`IndexSampler` whose draws include the optimiser step: (epoch, image, step)."""

    def batch(self, step: int, micro: int = 0) -> list[Any]:
        return [(*draw, step) for draw in super().batch(step, micro)]
