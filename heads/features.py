"""What a backbone hands to a head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]
Norm = bool | Literal["last"]


@dataclass(frozen=True)
class Features:
    """Feature maps of a batch of images, shallow to deep, with all that is needed to get back to pixels.

    `padding` is (top, bottom, left, right) in pixels, added to the image before the backbone saw it; negative numbers
    mean that the image was cropped instead. When `resized` is true the image was stretched to `padded_size`.
    """

    maps: tuple[Tensor, ...]  # each B, C, h, w
    prefix: tuple[Tensor, ...]  # each B, P, C: the class token first, then registers; P may be 0
    image_size: Size  # H, W of the image as it was given
    padded_size: Size  # H, W that the backbone saw
    padding: tuple[int, int, int, int]
    strides: tuple[int, ...]  # pixels of the padded image per cell, one number a map
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
        if min(self.padding) < 0:  # the backbone saw a crop: its edge stands for what was cut
            return F.pad(dense, (-left, -right, -top, -bottom), mode="replicate")
        height, width = self.padded_size
        return dense[..., top : height - bottom, left : width - right]
