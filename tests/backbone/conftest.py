"""Tiny backbones of every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dense.backbone import Backbone, load_backbone

TINY: dict[str, Any] = {"embed_dim": 32, "depth": 4, "num_heads": 4}


def tiny(name: str, **overrides: Any) -> Backbone:
    """A small random backbone of the named family, with weights large enough that every part matters."""
    torch.manual_seed(0)
    backbone = load_backbone(name, **(TINY | overrides))
    randomise(backbone)
    return backbone


def randomise(module: torch.nn.Module, std: float = 0.2) -> None:
    """Give every parameter, biases and tokens too, random values."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


@pytest.fixture(params=["dino_vits16", "dinov2_vits14", "dinov2_vits14_reg", "dinov3_vits16"])
def token_backbone(request: pytest.FixtureRequest) -> Backbone:
    """One of each family with tokens."""
    return tiny(request.param)
