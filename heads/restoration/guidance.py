"""Guidance of a restoration body by DINO features.

Lin et al., Multi-task Image Restoration Guided by Robust DINO Features, 2023 (arXiv 2312.01677). `PixelSemanticFusion`
fuses the layers of DINO, of which shallow ones hold pixels and deep ones are robust to the degradation. A `LevelFusion`
adds the result to one level of the body; by default it is cross-attention with DINO features as queries and restoration
features as keys and values. Its output projection starts at zero, so that an untrained fusion changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.features import check_channels
from heads.layers import ChannelNorm, resize
from heads.options import checked
from heads.restoration.restormer import channel_attention

Query = Literal["dino", "restoration"]


class Expert(nn.Sequential):
    """Features of one layer in the shared width."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__(
            ChannelNorm(in_channels),
            nn.Conv2d(in_channels, width, 1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1, groups=width),
        )


class PixelSemanticFusion(nn.Module):
    """Maps (B, C_i, h_i, w_i), shallow to deep, to one map (B, width, h, w) at the finest grid::

        sum of gate_i expert_i(map_i)

    The gate reads the mean of every map, so that its weights depend on the image.
    """

    @checked
    def __init__(self, in_channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.in_channels = tuple(in_channels)
        self.experts = nn.ModuleList(Expert(count, width) for count in self.in_channels)
        self.norms = nn.ModuleList(nn.LayerNorm(count) for count in self.in_channels)
        self.gating = nn.Sequential(
            nn.Linear(sum(self.in_channels), width), nn.GELU(), nn.Linear(width, len(self.in_channels))
        )

    def gate(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the weight of each layer per image, (B, layers), positive and of sum 1."""
        means = [norm(m.mean((-2, -1))) for norm, m in zip(self.norms, maps, strict=True)]
        return self.gating(torch.cat(means, 1)).softmax(1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the sum of the projected maps (B, width, h, w), weighted per image by `gate`."""
        check_channels(maps, self.in_channels)
        size = (max(m.shape[-2] for m in maps), max(m.shape[-1] for m in maps))
        experts = [resize(e(m), size, align_corners=False) for e, m in zip(self.experts, maps, strict=True)]
        return torch.einsum("bn,nbchw->bchw", self.gate(maps), torch.stack(experts))


class LevelFusion(nn.Module):
    """Base: `x + out(mix(x, adapted))`; `adapted` is the guide (B, G, h, w) with the channels and the size of x."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.adapt = nn.Conv2d(width, dim, 1)
        self.out = nn.Conv2d(dim, dim, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """Add a guide of any size to x (B, dim, h, w)."""
        adapted = resize(self.adapt(guide), (x.shape[-2], x.shape[-1]), align_corners=False)
        return x + self.out(self.mix(x, adapted))

    def mix(self, x: Tensor, adapted: Tensor) -> Tensor:
        """Return the update of x before the output projection."""
        raise NotImplementedError


class AddFusion(LevelFusion):
    """Adds the adapted guide."""

    def mix(self, x: Tensor, adapted: Tensor) -> Tensor:
        return adapted


class AttentionFusion(LevelFusion):
    """Cross-attention between guide and x; `query` names the side of the queries.

    Queries, keys and values are projected by 1x1 and 3x3 depthwise convolutions.
    """

    @checked
    def __init__(self, width: int, dim: int, heads: int, query: Query) -> None:
        super().__init__(width, dim)
        if dim % heads:
            raise ValueError(f"heads={heads} does not divide the {dim} channels of its level")
        self.query, self.heads = query, heads
        self.norm_x, self.norm_guide = ChannelNorm(dim), ChannelNorm(dim)
        self.q = projection(dim, dim)
        self.kv = projection(dim, 2 * dim)

    def mix(self, x: Tensor, adapted: Tensor) -> Tensor:
        x, adapted = self.norm_x(x), self.norm_guide(adapted)
        queries, others = (adapted, x) if self.query == "dino" else (x, adapted)
        k, v = self.kv(others).chunk(2, dim=1)
        return self.attend(self.q(queries), k, v)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the attention of q, k and v, each (B, dim, h, w)."""
        raise NotImplementedError


class ChannelFusion(AttentionFusion):
    """Attention between channels at the level's own resolution, as in Restormer; the cost is linear in pixels."""

    def __init__(self, width: int, dim: int, heads: int, query: Query = "dino") -> None:
        super().__init__(width, dim, heads, query)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return channel_attention(q, k, v, self.temperature)


class WindowFusion(AttentionFusion):
    """Attention between the pixels of windows of `window` x `window`; the cost is linear in pixels."""

    @checked
    def __init__(self, width: int, dim: int, heads: int, query: Query = "dino", window: int = 8) -> None:
        super().__init__(width, dim, heads, query)
        self.window = window

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the attention within windows; those at the edges are padded, and padding is masked."""
        height, width = q.shape[-2:]
        side = self.window
        below, right = -height % side, -width % side
        rows, columns = (height + below) // side, (width + right) // side
        mask = None
        if below or right:
            inside = q.new_ones(q.shape[0], self.heads, height, width)
            mask = self._split(F.pad(inside, (0, right, 0, below)), rows, columns)[:, :1, :, 0] > 0
            mask = mask[:, :, None]  # B*windows, 1, 1, pixels
        q, k, v = (self._split(F.pad(t, (0, right, 0, below)), rows, columns) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out = out.reshape(-1, rows, columns, self.heads, side, side, out.shape[-1]).permute(0, 3, 6, 1, 4, 2, 5)
        return out.reshape(out.shape[0], -1, rows * side, columns * side)[..., :height, :width]

    def _split(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """Split (B, C, H, W) into windows (B*windows, heads, pixels, C/heads)."""
        batch, dim, side = x.shape[0], x.shape[1], self.window
        x = x.reshape(batch, self.heads, dim // self.heads, rows, side, columns, side).permute(0, 3, 5, 1, 4, 6, 2)
        return x.reshape(batch * rows * columns, self.heads, side * side, dim // self.heads)


def projection(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return a 1x1 convolution, then a 3x3 depthwise one."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, groups=out_channels, bias=False),
    )
