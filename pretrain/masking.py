"""The masks of iBOT: blocks of patches that the student does not see, spread evenly over the crops of a step."""

from __future__ import annotations

import math
import random
import struct
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dense.data.sampler import permute
from pretrain.losses import token_weights

Grid = tuple[int, int]
SMALLEST_BLOCK = 4  # patches
LARGEST_FRACTION = 0.5  # of the grid, for one block
ASPECT = (0.3, 1 / 0.3)  # of a block, log-uniform
TRIES = 10
VIEWS = 2  # global crops
STREAM = 0x6D61736B  # keeps these random numbers apart from the sampler's


class MaskedPatches(NamedTuple):
    """The patches of 2*B global crops of h*w patches at which student and teacher are compared."""

    masks: Tensor | None  # 2*B, h*w: true where the student sees a mask token; None where it sees every patch
    indices: Tensor  # M: of the compared patches among all 2*B*h*w
    weights: Tensor  # M: 1 over the number of compared patches in the same crop

    @classmethod
    def of(cls, compared: Tensor, masked: bool, device: torch.device) -> MaskedPatches:
        """Compare the patches that are true in `compared` (2*B, h*w); with `masked` the student does not see them."""
        masks, indices = compared if masked else None, compared.flatten().nonzero().squeeze(1)
        parts = (
            None if x is None else x.to(device, non_blocking=True) for x in (masks, indices, token_weights(compared))
        )
        return cls(*parts)  # type: ignore[arg-type]


class BlockMasks:
    """``masks(step, places, total, grid)``: blockwise masks of the global crops of some images of a step.

    Of the 2 * total global crops of an optimiser step the fraction `probability` is masked. Their ratios are spread
    evenly over `ratio`: the range is divided by the number of masked crops, and each part gives one crop its ratio.
    Blocks of at least 4 patches and at most half of the grid, with a log-uniform aspect from 0.3 to 1 / 0.3, are added
    until the ratio is reached or ten tries in a row fail; with `complete`, single patches then fill it up (DINOv3).
    Bao et al., "BEiT", 2022, algorithm 1; the spreading is DINOv2's.

    A mask depends on `seed`, the step and the image's place in the step, not on how processes share the step.
    """

    def __init__(
        self, probability: float = 0.5, ratio: tuple[float, float] = (0.1, 0.5), complete: bool = False, seed: int = 0
    ) -> None:
        if not 0 < probability <= 1:
            raise ValueError(f"mask_probability={probability}: expected more than 0, at most 1 (published: 0.5)")
        if not 0 <= ratio[0] <= ratio[1] <= 1:
            raise ValueError(f"mask_ratio={tuple(ratio)}: expected 0 <= low <= high <= 1, fractions of the grid")
        self.probability, self.ratio, self.complete, self.seed = probability, ratio, complete, seed

    def __call__(self, step: int, places: NDArray[np.int64], total: int, grid: Grid) -> Tensor:
        """Return masks (2*B, h*w), crop-major, true where masked, of the B images at `places` in a step of `total`."""
        check_grid(grid)
        crops = np.concatenate([view * total + places for view in range(VIEWS)])
        ranks = permute(crops, VIEWS * total, (self.seed, step, STREAM))
        masked = int(VIEWS * total * self.probability)
        masks = np.zeros((len(crops), *grid), bool)
        for mask, crop, rank in zip(masks, crops.tolist(), ranks.tolist(), strict=True):
            if rank < masked:
                seed = struct.pack("<4q", self.seed, step, crop, STREAM)
                self._fill(mask, rank / masked, 1 / masked, random.Random(int.from_bytes(seed, "little")))
        return torch.from_numpy(masks).flatten(1)

    def _fill(self, mask: NDArray[np.bool_], start: float, length: float, rng: random.Random) -> None:
        low, high = self.ratio
        target = int(mask.size * (low + (high - low) * (start + length * rng.random())))
        while (missing := target - int(mask.sum())) > 0:
            if not add_block(mask, min(missing, int(LARGEST_FRACTION * mask.size)), rng):
                break
        if self.complete and missing > 0:
            free = np.flatnonzero(~mask)
            mask.flat[rng.sample(free.tolist(), missing)] = True


def add_block(mask: NDArray[np.bool_], most: int, rng: random.Random) -> bool:
    """Mask one more block, which adds at least 1 and at most `most` patches; return whether one was found."""
    height, width = mask.shape
    for _ in range(TRIES):
        area = rng.uniform(SMALLEST_BLOCK, most)
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (h < height and w < width):
            continue
        top, left = rng.randint(0, height - h), rng.randint(0, width - w)
        block = mask[top : top + h, left : left + w]
        if 0 < block.size - int(block.sum()) <= most:
            block[:] = True
            return True
    return False


def check_grid(grid: Grid) -> None:
    """Refuse a grid in which no block fits."""
    if min(grid) < 3:
        raise ValueError(
            f"global crops have a grid of {grid[0]}x{grid[1]} patches, too small for masks, whose blocks have "
            f"{SMALLEST_BLOCK} patches or more; enlarge global_size or take a smaller patch"
        )
