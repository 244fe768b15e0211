"""D-R adaptation and fusion: DINO features brought to a level of the restoration body, and into it.

Lin et al., Multi-task Image Restoration Guided by Robust DINO Features, 2023 (arXiv 2312.01677). By default DINO features
ask (query) and restoration features target (key, value). All output projections start at zero, so that an untrained
fusion changes nothing.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.checks import one_of, positive_integer
from heads.levels import ChannelNorm
from heads.resize import resize
from heads.restoration.restormer import channel_attention

Query = Literal["dino", "restoration"]


class Fusion(nn.Module):
    """Base: `x + out(mix(x, adapted))`, where `adapted` is the guide (B, G, h, w) in the channels and at the size of x."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.adapt = nn.Conv2d(width, dim, 1)
        self.out = nn.Conv2d(dim, dim, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """(B, dim, h, w) as x; the guide is of any size."""
        adapted = resize(self.adapt(guide), (x.shape[-2], x.shape[-1]), align_corners=False)
        return x + self.out(self.mix(x, adapted))

    def mix(self, x: Tensor, adapted: Tensor) -> Tensor:
        """What the guide has to say."""
        raise NotImplementedError


class AddFusion(Fusion):
    """The adapted guide as it is."""

    def mix(self, x: Tensor, adapted: Tensor) -> Tensor:
        """See `Fusion`."""
        return adapted


class AttentionFusion(Fusion):
    """Queries of one side, keys and values of the other, by 1x1 and 3x3 depthwise convolutions."""

    def __init__(self, width: int, dim: int, heads: int, query: Query) -> None:
        super().__init__(width, dim)
        positive_integer("heads", heads)
        one_of("query", query, ("dino", "restoration"))
        if dim % heads:
            raise ValueError(f"heads={heads} does not divide the {dim} channels of its level")
        self.query, self.heads = query, heads
        self.norm_x, self.norm_guide = ChannelNorm(dim), ChannelNorm(dim)
        self.q = projection(dim, dim)
        self.kv = projection(dim, 2 * dim)

    def mix(self, x: Tensor, adapted: Tensor) -> Tensor:
        """See `Fusion`."""
        x, adapted = self.norm_x(x), self.norm_guide(adapted)
        asking, targeting = (adapted, x) if self.query == "dino" else (x, adapted)
        k, v = self.kv(targeting).chunk(2, dim=1)
        return self.attend(self.q(asking), k, v)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention over (B, dim, h, w) each."""
        raise NotImplementedError


class ChannelFusion(AttentionFusion):
    """Attention between channels at the level's own resolution, as in Restormer: linear in the image."""

    def __init__(self, width: int, dim: int, heads: int, query: Query = "dino") -> None:
        super().__init__(width, dim, heads, query)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `AttentionFusion`."""
        return channel_attention(q, k, v, self.temperature)


class WindowFusion(AttentionFusion):
    """Attention between the pixels of windows of `window` x `window`: linear in the image too."""

    def __init__(self, width: int, dim: int, heads: int, query: Query = "dino", window: int = 8) -> None:
        super().__init__(width, dim, heads, query)
        positive_integer("window", window)
        self.window = window

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `AttentionFusion`; windows at the edges are filled up with pixels that nobody sees."""
        height, width = q.shape[-2:]
        side = self.window
        below, right = -height % side, -width % side
        rows, columns = (height + below) // side, (width + right) // side
        mask = None
        if below or right:
            inside = q.new_ones(q.shape[0], self.heads, height, width)
            mask = self._cut(F.pad(inside, (0, right, 0, below)), rows, columns)[:, :1, :, 0] > 0
            mask = mask[:, :, None]  # B*windows, 1, 1, pixels
        q, k, v = (self._cut(F.pad(t, (0, right, 0, below)), rows, columns) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out = out.reshape(-1, rows, columns, self.heads, side, side, out.shape[-1]).permute(0, 3, 6, 1, 4, 2, 5)
        return out.reshape(out.shape[0], -1, rows * side, columns * side)[..., :height, :width]

    def _cut(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """(B, C, H, W) to (B*windows, heads, pixels, C/heads)."""
        batch, dim, side = x.shape[0], x.shape[1], self.window
        x = x.reshape(batch, self.heads, dim // self.heads, rows, side, columns, side)
        return x.permute(0, 3, 5, 1, 4, 6, 2).reshape(
            batch * rows * columns, self.heads, side * side, dim // self.heads
        )


def projection(in_channels: int, out_channels: int) -> nn.Sequential:
    """1x1, then 3x3 depthwise."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, groups=out_channels, bias=False),
    )
