"""Pixel-semantic fusion: shallow DINO layers know pixels, deep ones do not mind the degradation; a gate weighs them.

Lin et al., Multi-task Image Restoration Guided by Robust DINO Features, 2023 (arXiv 2312.01677).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from heads.checks import channels, positive_integer
from heads.levels import ChannelNorm
from heads.resize import resize


class Expert(nn.Sequential):
    """One layer's features in the shared width."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__(
            ChannelNorm(in_channels),
            nn.Conv2d(in_channels, width, 1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1, groups=width),
        )


class PixelSemanticFusion(nn.Module):
    """Maps (B, C_i, h_i, w_i), shallow to deep, to one (B, width, h, w) at the finest grid: `sum of gate_i expert_i(map_i)`.

    The gate reads the mean of every map, so the weights belong to the image; `gate` tells them.
    """

    def __init__(self, in_channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.in_channels = channels("in_channels", in_channels)
        positive_integer("width", width)
        self.experts = nn.ModuleList(Expert(count, width) for count in self.in_channels)
        self.norms = nn.ModuleList(nn.LayerNorm(count) for count in self.in_channels)
        self.gating = nn.Sequential(
            nn.Linear(sum(self.in_channels), width), nn.GELU(), nn.Linear(width, len(self.in_channels))
        )

    def gate(self, maps: Sequence[Tensor]) -> Tensor:
        """How much each layer counts, (B, layers), in 0 to 1 with sum 1."""
        means = [norm(m.mean((-2, -1))) for norm, m in zip(self.norms, maps, strict=True)]
        return self.gating(torch.cat(means, 1)).softmax(1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The fused map."""
        found = tuple(m.shape[1] for m in maps)
        if found != self.in_channels:
            raise ValueError(
                f"expected maps of {self.in_channels} channels, got {found}; choose the layers it was built for"
            )
        height = max(m.shape[-2] for m in maps)
        width = max(m.shape[-1] for m in maps)
        told = [
            resize(expert(m), (height, width), align_corners=False)
            for expert, m in zip(self.experts, maps, strict=True)
        ]
        return torch.einsum("bn,nbchw->bchw", self.gate(maps), torch.stack(told))
