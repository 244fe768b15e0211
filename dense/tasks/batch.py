"""What a task is given: images or what a cache holds of them, and the targets at full size."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from heads.features import Size


class Batch(NamedTuple):
    """Images are left out where a cache holds their features: the maps of each layer, then their prefix tokens."""

    images: Tensor | None = None  # B, 3, H, W uint8
    labels: Tensor | None = None  # B, H, W int64, 255 where unknown
    depth: Tensor | None = None  # B, 1, H, W, NaN where unknown
    cached: tuple[Tensor, ...] | None = None
    size: Size | None = None  # H, W of the images, where they are left out
    clean: Tensor | None = None  # B, 3, H, W uint8, of degraded images
    degradations: tuple[str, ...] = ()  # kind of each image's degradation

    def to(self, device: Any, **options: Any) -> Batch:
        """On another device."""
        images, labels, depth, clean = (
            None if t is None else t.to(device, **options) for t in (self.images, self.labels, self.depth, self.clean)
        )
        cached = None if self.cached is None else tuple(t.to(device, **options) for t in self.cached)
        return Batch(images, labels, depth, cached, self.size, clean, self.degradations)

    def resized(self, size: Size) -> Batch:
        """Targets at another size, by nearest neighbour, so that none is invented."""
        labels, depth = self.labels, self.depth
        if labels is not None:
            labels = F.interpolate(labels[:, None].float(), size=size, mode="nearest-exact")[:, 0].long()
        if depth is not None:
            depth = F.interpolate(depth, size=size, mode="nearest-exact")
        return self._replace(labels=labels, depth=depth)
