"""The parts of Restormer, under its published names.

Zamir et al., Restormer: Efficient Transformer for High-Resolution Image Restoration, CVPR 2022.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.checks import boolean, number, positive_integer


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
    """An image as features, by one 3x3 convolution."""

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


LEVELS = 4
Guide = Callable[[int, Tensor], Tensor]  # level, its features (B, C, h, w) -> the same shape

BODIES: dict[str, dict[str, Any]] = {
    "restormer": {},  # 26.1 M parameters
    "tiny": {"dim": 16, "blocks": (1, 1, 1, 2), "heads": (1, 2, 4, 8), "refinement": 1, "expansion": 2.0},
}


class Restormer(nn.Module):
    """Images (B, 3, H, W) of 0 to 1 to restored ones of the same size, any H and W; the image is a shortcut.

    dim: channels of the first level, doubled from level to level. blocks, heads: of each level. refinement: blocks at
    the end. expansion: of the feed-forward networks. bias: of all convolutions but those between levels. norm_bias:
    whether norms have a bias; published denoisers of Gaussian noise have none.

    The names of its parameters are the published ones.
    """

    def __init__(
        self,
        dim: int = 48,
        blocks: Sequence[int] = (4, 6, 6, 8),
        heads: Sequence[int] = (1, 2, 4, 8),
        refinement: int = 4,
        expansion: float = 2.66,
        bias: bool = False,
        norm_bias: bool = True,
    ) -> None:
        super().__init__()
        check(dim, blocks, heads, refinement, expansion, bias, norm_bias)
        self.dims = tuple(dim * 2**level for level in range(LEVELS))
        self.heads = tuple(heads)
        self.config: dict[str, Any] = {
            "dim": dim, "blocks": list(blocks), "heads": list(heads), "refinement": refinement, "expansion": expansion,
            "bias": bias, "norm_bias": norm_bias,
        }  # fmt: skip

        def stage(width: int, number_of_heads: int, count: int) -> nn.Sequential:
            return nn.Sequential(*(Block(width, number_of_heads, expansion, bias, norm_bias) for _ in range(count)))

        one, two, three, four = self.dims
        self.patch_embed = Embed(one, bias)
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
        self.output = nn.Conv2d(two, 3, 3, padding=1, bias=bias)

    def forward(self, images: Tensor, guide: Guide | None = None) -> Tensor:
        """Restored images, not clamped. guide: changes the features of each level, 0 to 3, before its encoder."""
        height, width = images.shape[-2:]
        x = guide or unguided
        padded = pad(images, 2 ** (LEVELS - 1))
        first = self.encoder_level1(x(0, self.patch_embed(padded)))
        second = self.encoder_level2(x(1, self.down1_2(first)))
        third = self.encoder_level3(x(2, self.down2_3(second)))
        deep = self.latent(x(3, self.down3_4(third)))
        deep = self.decoder_level3(self.reduce_chan_level3(torch.cat((self.up4_3(deep), third), 1)))
        deep = self.decoder_level2(self.reduce_chan_level2(torch.cat((self.up3_2(deep), second), 1)))
        deep = self.decoder_level1(torch.cat((self.up2_1(deep), first), 1))
        restored = self.output(self.refinement(deep)) + padded
        return restored[..., :height, :width]


def unguided(level: int, x: Tensor) -> Tensor:
    """A guide that changes nothing."""
    return x


def pad(images: Tensor, multiple: int) -> Tensor:
    """Images mirrored beyond their lower and right edge to a multiple; those too small for that repeat their edge."""
    height, width = images.shape[-2:]
    below, right = -height % multiple, -width % multiple
    if not below and not right:
        return images
    mode = "reflect" if below < height and right < width else "replicate"
    return F.pad(images, (0, right, 0, below), mode=mode)


def build_body(spec: str | Mapping[str, Any]) -> Restormer:
    """A body by its name, or from its options."""
    if isinstance(spec, str):
        if spec not in BODIES:
            raise ValueError(f"body={spec!r}: expected one of {', '.join(BODIES)}, or the options of Restormer")
        return Restormer(**BODIES[spec])
    known = ("dim", "blocks", "heads", "refinement", "expansion", "bias", "norm_bias")
    if wrong := [name for name in spec if name not in known]:
        raise ValueError(f"body: unknown option {wrong[0]!r}; expected some of {', '.join(known)}")
    return Restormer(**spec)


def check(
    dim: int,
    blocks: Sequence[int],
    heads: Sequence[int],
    refinement: int,
    expansion: float,
    bias: bool,
    norm_bias: bool,
) -> None:
    """Raise for options that make no network."""
    positive_integer("dim", dim)
    positive_integer("refinement", refinement)
    number("expansion", expansion, 0, open_low=True)
    boolean("bias", bias)
    boolean("norm_bias", norm_bias)
    for name, values in (("blocks", blocks), ("heads", heads)):
        if len(values) != LEVELS:
            raise ValueError(f"{name}={tuple(values)}: expected {LEVELS} numbers, one a level")
        for level, value in enumerate(values):
            positive_integer(f"{name}[{level}]", value)
    if dim % 2:
        raise ValueError(f"dim={dim}: expected an even number, for levels are halved by it")
    for level, count in enumerate(heads):
        if dim * 2**level % count:
            raise ValueError(f"heads[{level}]={count} does not divide the {dim * 2**level} channels of its level")
