"""Random features of every shape, without a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from heads import Features


def features_of(
    grid: tuple[int, int] = (5, 7),
    channels: Sequence[int] = (16, 16, 16, 16),
    patch: int = 14,
    image: tuple[int, int] | None = None,
    registers: int = 2,
    class_token: bool = True,
    batch: int = 2,
    seed: int = 0,
    **changes: Any,
) -> Features:
    """Features of a ViT whose image was padded centrally from `image` to the grid."""
    generator = torch.Generator().manual_seed(seed)
    padded = (grid[0] * patch, grid[1] * patch)
    image = image or padded
    rows, columns = padded[0] - image[0], padded[1] - image[1]
    prefix = registers + int(class_token)
    values: dict[str, Any] = {
        "maps": tuple(torch.randn(batch, c, *grid, generator=generator) for c in channels),
        "prefix": tuple(torch.randn(batch, prefix, c, generator=generator) for c in channels),
        "image_size": image,
        "padded_size": padded,
        "padding": (rows // 2, rows - rows // 2, columns // 2, columns - columns // 2),
        "strides": (patch,) * len(channels),
        "layers": tuple(range(len(channels))),
        "norm": True,
        "has_class_token": class_token,
    }
    return Features(**(values | changes))


def pyramid_of(
    channels: Sequence[int] = (8, 12, 16, 24), strides: Sequence[int] = (4, 8, 16, 32), size: tuple[int, int] = (64, 96)
) -> Features:
    """Features of a convolutional backbone, without tokens."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(-(-size[0] // s), -(-size[1] // s)) for s in strides]
    return Features(
        maps=tuple(torch.randn(2, c, *n, generator=generator) for c, n in zip(channels, sizes, strict=True)),
        prefix=tuple(torch.zeros(2, 0, c) for c in channels),
        image_size=size,
        padded_size=size,
        padding=(0, 0, 0, 0),
        strides=tuple(strides),
        layers=tuple(range(len(channels))),
        norm=False,
    )


def randomise(module: torch.nn.Module, std: float = 0.2) -> torch.nn.Module:
    """Random parameters and running statistics, so that every part matters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * std)
    return module
