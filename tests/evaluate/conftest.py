"""Tiny backbones, made quickly."""

from __future__ import annotations

import pytest

from dense.backbone import Backbone
from tests.backbone.conftest import tiny


@pytest.fixture
def vit() -> Backbone:
    """Patch 8, width 32, six blocks."""
    return tiny("vit_tiny_patch16_224", patch_size=8, img_size=32, depth=6)


@pytest.fixture
def resnet() -> Backbone:
    """With batch norm and no class token."""
    from dense.backbone import load_backbone

    return load_backbone("resnet10t")
