"""Low-rank additions: nothing at first, plain layers at the end, and attention that knows of them in between."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dense.backbone import Backbone, load_backbone
from dense.tasks.tuning import LoRALinear, add_lora, merge_lora

TINY = {"patch_size": 8, "img_size": 32, "depth": 2, "embed_dim": 16, "num_heads": 2}


def vit(name: str = "vit_tiny_patch16_224") -> Backbone:
    torch.manual_seed(0)
    return load_backbone(name, **TINY).eval()


def learn(module: nn.Module) -> None:
    """Give the additions something to say."""
    for layer in module.modules():
        if isinstance(layer, LoRALinear):
            nn.init.normal_(layer.b, std=0.3)


def test_zero_at_first_and_merged_at_the_end() -> None:
    backbone, images = vit(), torch.randn(1, 3, 32, 40)
    before = backbone(images).maps[-1]
    names = add_lora(backbone.model, 3, 6.0, ("qkv", "fc1"))
    assert len(names) == 4
    torch.testing.assert_close(backbone(images).maps[-1], before)
    learn(backbone)
    adapted = backbone(images).maps[-1]
    assert not torch.allclose(adapted, before, atol=1e-3)
    merged = copy.deepcopy(backbone)
    merge_lora(merged)
    assert merged.state_dict().keys() == vit().state_dict().keys()
    torch.testing.assert_close(merged(images).maps[-1], adapted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_attention_and_keys_of_an_adapted_backbone_are_those_of_the_merged_one(name: str) -> None:
    """Rows are recomputed from weights, beside the layers' own forward."""
    options = TINY if "dinov3" not in name else {k: v for k, v in TINY.items() if k != "img_size"}
    torch.manual_seed(0)
    backbone, images = load_backbone(name, **options).eval(), torch.randn(1, 3, 32, 40)
    add_lora(backbone.model, 2, 4.0, ("qkv", "proj"))
    learn(backbone)
    merged = copy.deepcopy(backbone)
    merge_lora(merged)
    torch.testing.assert_close(backbone.attention(images), merged.attention(images), atol=1e-5, rtol=1e-4)
    for which in ("query", "key", "value"):
        torch.testing.assert_close(
            backbone.qkv(images, which=which), merged.qkv(images, which=which), atol=1e-5, rtol=1e-4
        )
    torch.testing.assert_close(backbone.image_feature(images), merged.image_feature(images), atol=1e-5, rtol=1e-4)


def test_what_cannot_be_adapted_is_named() -> None:
    with pytest.raises(ValueError, match="Did you mean qkv"):
        add_lora(vit().model, 2, 4.0, ("qkw",))
    with pytest.raises(ValueError, match="rank is 0"):
        add_lora(vit().model, 0, 4.0, ("qkv",))
