"""Levels that a ViT does not have: a simple feature pyramid, and a stem for the finest.

Li, Mao, Girshick and He, Exploring Plain Vision Transformer Backbones for Object Detection, ECCV 2022.
"""

from __future__ import annotations

from torch import Tensor, nn


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Level(nn.Sequential):
    """One level of the simple feature pyramid: resample by 4, 2, 1 or 1/2, then 1x1 and 3x3 convolutions."""

    def __init__(self, in_channels: int, width: int, factor: float) -> None:
        half, quarter = max(in_channels // 2, 1), max(in_channels // 4, 1)
        layers: list[nn.Module] = []
        if factor == 4:
            layers = [nn.ConvTranspose2d(in_channels, half, 2, stride=2), ChannelNorm(half), nn.GELU()]
            layers += [nn.ConvTranspose2d(half, quarter, 2, stride=2)]
        elif factor == 2:
            layers = [nn.ConvTranspose2d(in_channels, half, 2, stride=2)]
        elif factor == 0.5:
            layers = [nn.MaxPool2d(2, ceil_mode=True)]
        last = {4: quarter, 2: half}.get(int(factor), in_channels)
        layers += [nn.Conv2d(last, width, 1, bias=False), ChannelNorm(width)]
        layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), ChannelNorm(width)]
        super().__init__(*layers)


class Stem(nn.Sequential):
    """An image at half its size, for decoders that end at the image's own."""

    def __init__(self, width: int) -> None:
        layers: list[nn.Module] = []
        for i in range(2):
            layers += [nn.Conv2d(width if i else 3, width, 3, stride=1 if i else 2, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        super().__init__(*layers)
