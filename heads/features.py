"""The output of a backbone and the input of a head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]
Norm = bool | Literal["last"]


class Step(Protocol):
    """Run block `index` of a backbone on tokens (B, N, C); mask: where each token (row) attends to another."""

    def __call__(self, index: int, tokens: Tensor, mask: Tensor | None = None) -> Tensor: ...


class LendsBlocks(Protocol):
    """A backbone whose last blocks a head runs, with tokens of its own among those of the backbone."""

    def last_blocks(self, grid: Size, extra: int) -> Step:
        """Return the step for `extra` tokens that stand between the prefix and the patches of `grid`."""

    def final_norm(self, tokens: Tensor) -> Tensor:
        """Apply the norm behind the last block."""


@dataclass(frozen=True)
class Features:
    """Feature maps of a batch of images, shallow to deep, and the geometry that leads back to pixels.

    `padding` is (top, bottom, left, right) in pixels, which the backbone added to the image; negative numbers mean that
    it cropped the image instead. `resized` is true if it stretched the image to `padded_size`.
    """

    maps: tuple[Tensor, ...]  # each B, C, h, w
    prefix: tuple[Tensor, ...]  # each B, P, C: the class token first, then registers; P may be 0
    image_size: Size  # H, W of the image as given
    padded_size: Size  # H, W of the image inside the backbone
    padding: tuple[int, int, int, int]
    strides: tuple[int, ...]  # of each map, in pixels of the padded image
    layers: tuple[int, ...]
    norm: Norm
    has_class_token: bool = False
    resized: bool = False

    @property
    def class_token(self) -> Tensor:
        """The class token of the deepest layer, (B, C)."""
        if not self.has_class_token:
            raise ValueError(
                "these features have no class token; use features.maps[-1].mean((-2, -1)) or another readout"
            )
        return self.prefix[-1][:, 0]

    def map(self, function: Callable[[Tensor], Tensor]) -> Features:
        """Apply `function` to each tensor (a cast, a move, a detach)."""
        maps, prefix = tuple(function(m) for m in self.maps), tuple(function(p) for p in self.prefix)
        return replace(self, maps=maps, prefix=prefix)

    def to_image(self, dense: Tensor) -> Tensor:
        """Bring a map decoded at `padded_size`, (B, K, *padded_size), back to `image_size`."""
        if tuple(dense.shape[-2:]) != self.padded_size:
            raise ValueError(f"expected a map of the padded size {self.padded_size}, got {tuple(dense.shape[-2:])}")
        if self.resized:
            return F.interpolate(dense, size=self.image_size, mode="bilinear", align_corners=False)
        top, bottom, left, right = self.padding
        if min(self.padding) < 0:  # the image was cropped: repeat the edge of the crop
            return F.pad(dense, (-left, -right, -top, -bottom), mode="replicate")
        height, width = self.padded_size
        return dense[..., top : height - bottom, left : width - right]

    def check_strides(self, expected: tuple[int, ...] | None) -> None:
        """Raise unless the maps have these strides, or all the same one if none are given."""
        if expected is None and len(set(self.strides)) > 1:
            raise ValueError(f"the maps have strides {self.strides}; build the head with strides={self.strides}")
        if expected is not None and expected != tuple(self.strides):
            raise ValueError(f"expected maps of strides {expected}, got {self.strides}; choose those layers")


def check_channels(maps: Sequence[Tensor], expected: tuple[int, ...]) -> None:
    """Raise unless the maps (B, C, h, w) have these channels."""
    found = tuple(m.shape[1] for m in maps)
    if found != expected:
        raise ValueError(
            f"expected maps of {expected} channels, got {found}; build the head with in_channels of the chosen layers, "
            "or choose other layers"
        )
