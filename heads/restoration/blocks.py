"""The parts of Restormer, under its published names.

Zamir et al., Restormer: Efficient Transformer for High-Resolution Image Restoration, CVPR 2022.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of (B, C, h, w); without a bias it does not subtract the mean either."""

    def __init__(self, dim: int, bias: bool) -> None:
        super().__init__()
        self.body = nn.ParameterDict({"weight": torch.ones(dim)} | ({"bias": torch.zeros(dim)} if bias else {}))

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        weight, bias = self.body["weight"], self.body["bias"] if "bias" in self.body else None  # noqa: SIM401
        variance, mean = torch.var_mean(x, dim=1, keepdim=True, correction=0)
        centred = x if bias is None else x - mean
        normed = centred * torch.rsqrt(variance + 1e-5) * weight[:, None, None]
        return normed if bias is None else normed + bias[:, None, None]


def channel_attention(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor) -> Tensor:
    """Attention between channels: (B, C, h, w) each, heads as many as temperatures; cost is linear in h x w.

    Each query channel gathers value channels by the cosine of query and key over all pixels.
    """
    batch, dim, height, width = v.shape
    heads = len(temperature)
    q, k, v = (t.reshape(batch, heads, dim // heads, height * width) for t in (q, k, v))  # B, heads, c, h*w
    weights = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * temperature).softmax(-1)  # B, heads, c, c
    return (weights @ v).reshape(batch, dim, height, width)


class Attention(nn.Module):
    """Multi-Dconv head transposed attention (MDTA)."""

    def __init__(self, dim: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=bias)
        self.qkv_dwconv = nn.Conv2d(3 * dim, 3 * dim, 3, padding=1, groups=3 * dim, bias=bias)
        self.project_out = nn.Conv2d(dim, dim, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        q, k, v = self.qkv_dwconv(self.qkv(x)).chunk(3, dim=1)
        return self.project_out(channel_attention(q, k, v, self.temperature))


class FeedForward(nn.Module):
    """Gated-Dconv feed-forward network (GDFN)."""

    def __init__(self, dim: int, expansion: float, bias: bool) -> None:
        super().__init__()
        hidden = int(dim * expansion)
        self.project_in = nn.Conv2d(dim, 2 * hidden, 1, bias=bias)
        self.dwconv = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=bias)
        self.project_out = nn.Conv2d(hidden, dim, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        gate, value = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(F.gelu(gate) * value)


class Block(nn.Module):
    """MDTA and GDFN, each behind its norm and beside its shortcut."""

    def __init__(self, dim: int, heads: int, expansion: float, bias: bool, norm_bias: bool) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(dim, norm_bias)
        self.attn = Attention(dim, heads, bias)
        self.norm2 = ChannelNorm(dim, norm_bias)
        self.ffn = FeedForward(dim, expansion, bias)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class Embed(nn.Module):
    """A picture as features, by one 3x3 convolution."""

    def __init__(self, dim: int, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, dim, H, W)."""
        return self.proj(x)


class Down(nn.Module):
    """Half the size, twice the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(dim, dim // 2, 3, padding=1, bias=False), nn.PixelUnshuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, 2C, h/2, w/2)."""
        return self.body(x)


class Up(nn.Module):
    """Twice the size, half the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(dim, 2 * dim, 3, padding=1, bias=False), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C/2, 2h, 2w)."""
        return self.body(x)
