"""Restormer, under its published names.

Zamir et al., Restormer: Efficient Transformer for High-Resolution Image Restoration, CVPR 2022.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.options import Positive, check_length, check_names, checked


class RestormerNorm(nn.Module):
    """LayerNorm over the channels of (B, C, h, w); without a bias it does not subtract the mean either."""

    def __init__(self, dim: int, bias: bool) -> None:
        super().__init__()
        self.body = nn.ParameterDict({"weight": torch.ones(dim)} | ({"bias": torch.zeros(dim)} if bias else {}))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.body["weight"]
        if "bias" in self.body:  # the kernel, and the channels last that it leaves, halve the time of the network
            channels_last = x.permute(0, 2, 3, 1)
            return F.layer_norm(channels_last, weight.shape, weight, self.body["bias"], 1e-5).permute(0, 3, 1, 2)
        variance = (x - x.mean(1, keepdim=True)).square().mean(1, keepdim=True)  # twice as fast as x.var
        return x * torch.rsqrt(variance + 1e-5) * weight[:, None, None]


def channel_attention(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor) -> Tensor:
    """Return attention between the channels of q, k and v, each (B, C, h, w), with one temperature per head.

    Each query channel gathers value channels by the cosine of query and key over all pixels; the cost is linear in
    pixels.
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
        gate, value = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(F.gelu(gate) * value)


class Block(nn.Module):
    """MDTA and GDFN, each with a norm before it and a residual connection."""

    def __init__(self, dim: int, heads: int, expansion: float, bias: bool, norm_bias: bool) -> None:
        super().__init__()
        self.norm1 = RestormerNorm(dim, norm_bias)
        self.attn = Attention(dim, heads, bias)
        self.norm2 = RestormerNorm(dim, norm_bias)
        self.ffn = FeedForward(dim, expansion, bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class Embed(nn.Module):
    """A 3x3 convolution of the image: (B, N, H, W) to (B, dim, H, W)."""

    def __init__(self, channels: int, dim: int, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class Down(nn.Module):
    """Half the size, twice the channels: (B, C, h, w) to (B, 2C, h/2, w/2)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(dim, dim // 2, 3, padding=1, bias=False), nn.PixelUnshuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Up(nn.Module):
    """Twice the size, half the channels: (B, C, h, w) to (B, C/2, 2h, 2w)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(dim, 2 * dim, 3, padding=1, bias=False), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


LEVELS = 4
Guide = Callable[[int, Tensor], Tensor]  # level, its features (B, C, h, w) -> the same shape

BODIES: dict[str, dict[str, Any]] = {
    "restormer": {},  # 26.1 M parameters
    "tiny": {"dim": 16, "blocks": (1, 1, 1, 2), "heads": (1, 2, 4, 8), "refinement": 1, "expansion": 2.0},
}


class Restormer(nn.Module):
    """Degraded images (B, N, H, W) of 0 to 1, any H and W, to restored ones; the network predicts their difference.

    dim: channels of the first level, doubled from level to level. blocks, heads: of each level. refinement: blocks at
    the end. expansion: of the feed-forward networks. bias: of all convolutions except those between levels. norm_bias:
    whether norms have a bias; published denoisers of Gaussian noise have none. channels: of the images.
    """

    @checked
    def __init__(
        self,
        dim: int = 48,
        blocks: Sequence[int] = (4, 6, 6, 8),
        heads: Sequence[int] = (1, 2, 4, 8),
        refinement: int = 4,
        expansion: Positive = 2.66,
        bias: bool = False,
        norm_bias: bool = True,
        *,
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.dims = tuple(dim * 2**level for level in range(LEVELS))
        for name, values in (("blocks", blocks), ("heads", heads)):
            check_length(name, values, LEVELS, "level")
        if dim % 2:
            raise ValueError(f"dim={dim}: expected an even number, because it is halved between levels")
        for level, (count, width) in enumerate(zip(heads, self.dims, strict=True)):
            if width % count:
                raise ValueError(f"heads[{level}]={count} does not divide the {width} channels of its level")
        self.heads = tuple(heads)
        self.config: dict[str, Any] = {
            "dim": dim, "blocks": list(blocks), "heads": list(heads), "refinement": refinement, "expansion": expansion,
            "bias": bias, "norm_bias": norm_bias,
        }  # fmt: skip

        def stage(width: int, number_of_heads: int, count: int) -> nn.Sequential:
            return nn.Sequential(*(Block(width, number_of_heads, expansion, bias, norm_bias) for _ in range(count)))

        one, two, three, four = self.dims
        self.patch_embed = Embed(channels, one, bias)
        self.encoder_level1 = stage(one, heads[0], blocks[0])
        self.down1_2 = Down(one)
        self.encoder_level2 = stage(two, heads[1], blocks[1])
        self.down2_3 = Down(two)
        self.encoder_level3 = stage(three, heads[2], blocks[2])
        self.down3_4 = Down(three)
        self.latent = stage(four, heads[3], blocks[3])
        self.up4_3 = Up(four)
        self.reduce_chan_level3 = nn.Conv2d(2 * three, three, 1, bias=bias)
        self.decoder_level3 = stage(three, heads[2], blocks[2])
        self.up3_2 = Up(three)
        self.reduce_chan_level2 = nn.Conv2d(2 * two, two, 1, bias=bias)
        self.decoder_level2 = stage(two, heads[1], blocks[1])
        self.up2_1 = Up(two)
        self.decoder_level1 = stage(two, heads[0], blocks[0])  # the first level keeps twice its channels
        self.refinement = stage(two, heads[0], refinement)
        self.output = nn.Conv2d(two, channels, 3, padding=1, bias=bias)

    def forward(self, images: Tensor, guide: Guide | None = None) -> Tensor:
        """Return restored images, not clamped. guide: changes the features of level 0 to 3 before its encoder."""
        height, width = images.shape[-2:]
        guide = guide or unguided
        padded = pad(images, 2 ** (LEVELS - 1))
        first = self.encoder_level1(guide(0, self.patch_embed(padded)))
        second = self.encoder_level2(guide(1, self.down1_2(first)))
        third = self.encoder_level3(guide(2, self.down2_3(second)))
        deep = self.latent(guide(3, self.down3_4(third)))
        deep = self.decoder_level3(self.reduce_chan_level3(torch.cat((self.up4_3(deep), third), 1)))
        deep = self.decoder_level2(self.reduce_chan_level2(torch.cat((self.up3_2(deep), second), 1)))
        deep = self.decoder_level1(torch.cat((self.up2_1(deep), first), 1))
        restored = self.output(self.refinement(deep)) + padded
        return restored[..., :height, :width]


def unguided(level: int, x: Tensor) -> Tensor:
    """Return x: the guide of an unguided body."""
    return x


def pad(images: Tensor, multiple: int) -> Tensor:
    """Pad images below and to the right to a multiple, by reflection, or by repeating the edge of small ones."""
    height, width = images.shape[-2:]
    below, right = -height % multiple, -width % multiple
    if not below and not right:
        return images
    mode = "reflect" if below < height and right < width else "replicate"
    return F.pad(images, (0, right, 0, below), mode=mode)


def build_body(spec: str | Mapping[str, Any], channels: int = 3) -> Restormer:
    """Build a body for images of so many channels, by its name or from its options."""
    if isinstance(spec, str):
        if spec not in BODIES:
            raise ValueError(f"body={spec!r}: expected one of {', '.join(BODIES)}, or the options of Restormer")
        return Restormer(**BODIES[spec], channels=channels)
    check_names("body", spec, Restormer, but={"channels"})
    return Restormer(**spec, channels=channels)
