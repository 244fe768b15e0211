"""Linear heads: a 1x1 convolution on the maps of one or several layers.

Oquab et al., DINOv2, 2023, and Siméoni et al., DINOv3, 2025: depth from patch and class tokens through bins, and
segmentation through BatchNorm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.features import Features, check_channels
from heads.head import DenseHead
from heads.layers import resize
from heads.options import Fraction, as_tuple, checked
from heads.outputs import Classes, Output


class LinearHead(DenseHead):
    """Concatenated layers, each optionally with its class token, through one 1x1 convolution per output.

    in_channels: of each map. class_token: append the layer's class token to each of its patches. batch_norm, dropout
    (of whole channels): before the convolution. upsample: resize the logits to this multiple of the grid before they
    are decoded (4 for DINOv2's depth).
    """

    @checked
    def __init__(
        self,
        in_channels: int | Sequence[int],
        outputs: Mapping[str, Output],
        class_token: bool = False,
        batch_norm: bool = False,
        dropout: Fraction = 0.0,
        upsample: int = 1,
    ) -> None:
        super().__init__(outputs)
        self.in_channels = as_tuple(in_channels)
        self.class_token, self.upsample, self.dropout = class_token, upsample, dropout
        total = sum(self.in_channels) * (2 if class_token else 1)
        self.norm = nn.BatchNorm2d(total) if batch_norm else None
        self.branches = nn.ModuleDict()
        for name, output in outputs.items():
            if isinstance(output, Classes) and output.auxiliary:
                raise ValueError(f"output {name!r}: a linear head has no auxiliary head; use auxiliary=False")
            self.branches[name] = layer = nn.Conv2d(total, output.channels, 1)
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
            output.initialise(layer)

    def logits(self, features: Features, images: Tensor | None) -> dict[str, Tensor]:
        """Return name -> logits at `upsample` times the grid, of a pyramid at its finest."""
        check_channels(features.maps, self.in_channels)
        if self.class_token and not features.has_class_token:
            raise ValueError("class_token=True, and these features have no class token; use class_token=False")
        height, width = features.maps[0].shape[-2:]
        maps = [resize(m, (height, width), align_corners=False) for m in features.maps]
        tokens = [p[:, 0] for p in features.prefix] if self.class_token else []
        if self.norm is not None:
            tokens = [t[:, :, None, None].expand_as(m) for t, m in zip(tokens, maps, strict=False)]
            together = [x for pair in zip(maps, tokens, strict=True) for x in pair] if tokens else maps
            patches, token = self.norm(torch.cat(together, 1)), None
        else:
            patches, token = torch.cat(maps, 1), torch.cat(tokens, 1)[:, :, None, None] if tokens else None
        patches = F.dropout2d(patches, self.dropout, self.training)
        token = None if token is None else F.dropout2d(token, self.dropout, self.training)
        # a 1x1 convolution commutes with the resize
        size = (height * self.upsample, width * self.upsample)
        return {n: resize(self._convolve(b, patches, token), size, False) for n, b in self.branches.items()}

    def options(self) -> dict[str, Any]:
        return {
            "name": "linear",
            "in_channels": list(self.in_channels),
            "class_token": self.class_token,
            "batch_norm": self.norm is not None,
            "dropout": self.dropout,
            "upsample": self.upsample,
        }

    def _convolve(self, layer: nn.Module, patches: Tensor, token: Tensor | None) -> Tensor:
        """Convolve [patch, class token] of every layer; the part of the class tokens is computed once per image."""
        if token is None:
            return layer(patches)
        assert isinstance(layer, nn.Conv2d)
        pieces = layer.weight.split([c for c in self.in_channels for _ in range(2)], 1)
        once = F.conv2d(token, torch.cat(pieces[1::2], 1), layer.bias)  # B, K, 1, 1
        return F.conv2d(patches, torch.cat(pieces[0::2], 1)) + once
