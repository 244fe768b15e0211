"""Labels carried from frame to frame by the likeness of patches, as DINO and DINOv3 follow objects in DAVIS-2017."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from dense.discover.source import check_features

Shape = Literal["square", "circle"]
TILE = 12  # patches a side that are looked at together


@dataclass(frozen=True)
class Propagation:
    """Each patch takes the labels of the patches it resembles most, weighted by exp(cosine / temperature).

    context: frames before this one that are looked at besides the first. neighbourhood: patches between a patch and those
    it may resemble, in each direction, 0 for no limit; a square, or the circle within. topk: how many of all of them
    count.
    """

    context: int = 7
    neighbourhood: int = 12
    shape: Shape = "square"
    topk: int = 5
    temperature: float = 0.1

    def __post_init__(self) -> None:
        for name, least in (("context", 0), ("neighbourhood", 0), ("topk", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}={value!r}: expected a whole number of {least} or more")
        if self.shape not in get_args(Shape):
            raise ValueError(f"shape={self.shape!r}: expected {' or '.join(get_args(Shape))}")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature}: expected a positive number, such as 0.1")

    def near(self, down: Tensor, along: Tensor) -> Tensor:
        """Whether patches may resemble each other that are so many rows (R, V) and columns (S, W) apart: (R * S, V * W)."""
        down, along = down.abs()[:, None, :, None], along.abs()[None, :, None]
        if not self.neighbourhood:
            near = down + along >= 0
        elif self.shape == "circle":
            near = down**2 + along**2 <= self.neighbourhood**2
        else:
            near = torch.maximum(down, along) <= self.neighbourhood
        return near.flatten(2).flatten(0, 1)


def propagate(features: Tensor, context: Tensor, labels: Tensor, how: Propagation) -> Tensor:
    """Labels (B, n, K, h, w) of n frames with features (B, n, C, h, w), carried to features (B, C, h, w): (B, K, h, w).

    Features are of unit length; labels are shares of each of K objects, any numbers. A tile of patches at a time is compared
    with what is near it, and likenesses are never held for all pairs.
    """
    height, width = features.shape[-2:]
    carried = torch.empty_like(labels[:, 0])
    for (down, rows), (along, columns) in product(tiles(height, how), tiles(width, how)):
        query = features[..., down, :][..., along].flatten(2).mT  # B, q, C
        keys = context[..., rows, :][..., columns].transpose(1, 2).flatten(2)  # B, C, n * s
        values = labels[..., rows, :][..., columns].transpose(1, 2).flatten(2)  # B, K, n * s
        near = how.near(apart(down, rows, query), apart(along, columns, query))  # q, s
        alike = (query @ keys).unflatten(-1, (-1, near.shape[-1])).masked_fill_(~near[:, None], -torch.inf).flatten(2)
        best, places = alike.topk(min(how.topk, alike.shape[-1]))  # B, q, k
        weights = (best / how.temperature).softmax(-1)
        some = values.gather(-1, places.flatten(1)[:, None].expand(-1, values.shape[1], -1))  # B, K, q * k
        some = some.unflatten(-1, places.shape[1:]) * weights[:, None]
        carried[..., down, along] = some.sum(-1).unflatten(-1, (down.stop - down.start, -1))
    return carried


def tiles(side: int, how: Propagation) -> list[tuple[slice, slice]]:
    """Parts of a side of the grid, each with what is near it."""
    reach = how.neighbourhood or side
    starts = range(0, side, TILE)
    return [(slice(a, min(side, a + TILE)), slice(max(0, a - reach), min(side, a + TILE + reach))) for a in starts]


def apart(part: slice, others: slice, like: Tensor) -> Tensor:
    """Differences of all positions of two parts."""
    a, b = (torch.arange(one.start, one.stop, device=like.device) for one in (part, others))
    return a[:, None] - b


class Tracker:
    """Carries the labels of a first frame through a video; keeps the first frame and the last `context`, never more."""

    def __init__(self, features: Tensor, labels: Tensor, how: Propagation) -> None:
        """Features (B, C, h, w) of the first frames of B videos, and labels (B, K, h, w) on their grid."""
        if features.shape[0] != labels.shape[0] or features.shape[-2:] != labels.shape[-2:]:
            raise ValueError(
                f"features {tuple(features.shape)} and labels {tuple(labels.shape)} differ in grid or number"
            )
        self.how = how
        self.first = F.normalize(check_features(features), dim=1), labels.float()
        self.recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=how.context)

    def step(self, features: Tensor) -> Tensor:
        """The labels (B, K, h, w) of the frames that come next, from their features (B, C, h, w)."""
        first = self.first[0]
        if features.shape != first.shape:
            raise ValueError(f"features are {tuple(features.shape)}, those of the first frame {tuple(first.shape)}")
        features = F.normalize(check_features(features), dim=1)
        context, labels = (torch.stack(frames, 1) for frames in zip(self.first, *self.recent, strict=True))
        carried = propagate(features, context, labels, self.how)
        self.recent.append((features, carried))
        return carried
