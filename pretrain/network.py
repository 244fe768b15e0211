"""Backbone and projection head over crops of several sizes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from dense.backbone import Backbone


class MultiCropNetwork(nn.Module):
    """A backbone and a head: crops of equal size run together, the head runs once on all."""

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, crops: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (V*B, K) and picture features (V*B, D), crop-major, of V crops (B, 3, S, S), uint8 or normalised."""
        features = torch.cat([self._group(list(group)) for _, group in groupby(crops, key=lambda c: c.shape[-2:])])
        return self.head(features), features

    def _group(self, crops: list[Tensor]) -> Tensor:
        images = torch.cat(crops)  # v*B, 3, S, S
        if images.dtype == torch.uint8:
            images = self.backbone.normalise(images)
        return self.backbone.picture_feature(images)
