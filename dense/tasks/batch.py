"""What a task is given: pictures or their features, and the answers at full size."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from heads.features import Features, Size


class Batch(NamedTuple):
    """Pictures are left out where features are given."""

    images: Tensor | None = None  # B, 3, H, W uint8
    labels: Tensor | None = None  # B, H, W int64, 255 where unknown
    depth: Tensor | None = None  # B, 1, H, W, NaN where unknown
    features: Features | None = None

    def to(self, device: Any, **options: Any) -> Batch:
        """On another device."""
        images, labels, depth = (
            None if t is None else t.to(device, **options) for t in (self.images, self.labels, self.depth)
        )
        features = None if self.features is None else self.features.map(lambda t: t.to(device, **options))
        return Batch(images, labels, depth, features)

    def resized(self, size: Size) -> Batch:
        """Answers at another size, by nearest neighbour, so that none is invented."""
        labels, depth = self.labels, self.depth
        if labels is not None:
            labels = F.interpolate(labels[:, None].float(), size=size, mode="nearest-exact")[:, 0].long()
        if depth is not None:
            depth = F.interpolate(depth, size=size, mode="nearest-exact")
        return self._replace(labels=labels, depth=depth)
