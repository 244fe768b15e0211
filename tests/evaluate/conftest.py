"""Tiny backbones, made quickly."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

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


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors are slower on several threads, much slower on busy cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
