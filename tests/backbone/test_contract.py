"""The adapters against timm's own forward, over many tiny models, so that a change in timm fails here."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from dense.backbone import load_backbone
from tests.backbone.conftest import TINY, randomise

SWIGLU = {**TINY, "mlp_ratio": 5.25}
TOKEN_MODELS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": TINY,
    "vit_small_patch16_224": TINY,
    "vit_small_patch8_224": TINY,
    "vit_base_patch32_224": TINY,
    "vit_small_patch14_dinov2": {**TINY, "img_size": 98},
    "vit_small_patch14_reg4_dinov2": {**TINY, "img_size": 98},
    "vit_giant_patch14_dinov2": {**SWIGLU, "img_size": 98},
    "vit_giant_patch14_reg4_dinov2": {**SWIGLU, "img_size": 98},
    "vit_small_patch16_dinov3": TINY,
    "vit_small_patch16_dinov3_qkvb": TINY,
    "vit_small_plus_patch16_dinov3": TINY,
    "vit_7b_patch16_dinov3": TINY,
    "vit_base_patch16_siglip_224": TINY,  # no class token
    "vit_base_patch16_clip_224": TINY,  # norm before the blocks
    "deit3_small_patch16_224": TINY,  # positions without the class token
    "eva02_tiny_patch14_224": {"depth": 3},
    "vit_small_patch16_rope_224": TINY,
    "vit_small_patch16_rope_mixed_224": TINY,
    "vit_medium_patch16_gap_240": TINY,
    "vit_little_patch16_reg4_gap_256": TINY,
}
PYRAMIDS = [
    "resnet18",
    "resnet50",
    "resnetv2_18",
    "convnext_atto",
    "convnextv2_atto",
    "regnetx_002",
    "efficientnet_lite0",
    "mobilenetv3_small_050",
]


@pytest.mark.parametrize("name", TOKEN_MODELS)
@pytest.mark.parametrize("norm", [True, False])
def test_equals_timm(name: str, norm: bool) -> None:
    """Maps and prefix tokens of each layer equal timm's `forward_intermediates`, also on another grid."""
    backbone = (
        load_backbone(name, positions="timm", **TOKEN_MODELS[name])
        if _has_table(name)
        else load_backbone(name, **TOKEN_MODELS[name])
    )
    randomise(backbone)
    if backbone.class_position is not None:
        torch.nn.init.zeros_(backbone.class_position)  # timm folds it into the class token
    depth, patch = backbone.spec.depth, backbone.spec.patch
    for size in ((patch * 7, patch * 7), (patch * 5, patch * 9)):
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            features = backbone(images, layers=(0, depth - 1), norm=norm)
            _, theirs = backbone.model.forward_intermediates(
                images, indices=[0, depth - 1], return_prefix_tokens=True, norm=norm
            )
        for mine, prefix, their in zip(features.maps, features.prefix, theirs, strict=True):
            their_map, their_prefix = (
                their if isinstance(their, tuple) else (their, their.new_zeros(2, 0, their.shape[1]))
            )
            assert torch.allclose(mine, their_map, rtol=1e-5, atol=1e-5 * float(their_map.abs().max()))
            assert torch.allclose(prefix, their_prefix, rtol=1e-5, atol=1e-5 * float(their_map.abs().max()))


def _has_table(name: str) -> bool:
    return "dinov3" not in name


@pytest.mark.parametrize("name", PYRAMIDS)
def test_pyramids_equal_timm(name: str) -> None:
    """Pyramids equal timm's stages, with the strides and channels of timm, and an empty prefix."""
    torch.manual_seed(0)
    backbone = load_backbone(name)
    images = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        features = backbone(images, layers=tuple(range(backbone.spec.depth)))
        ordered = images.contiguous(memory_format=torch.channels_last)  # as ours; sums of another order differ in 1e-7
        theirs = backbone.model.forward_intermediates(ordered, intermediates_only=True)
    for mine, prefix, their, stride, channels in zip(
        features.maps, features.prefix, theirs, features.strides, backbone.spec.widths, strict=True
    ):
        assert torch.equal(mine, their)
        assert mine.shape == (1, channels, 96 // stride, 128 // stride)
        assert prefix.shape == (1, 0, channels)


def test_final_norm_of_a_resnetv2() -> None:
    """With norm=True the vector of an image is what timm's own head reads."""
    backbone = load_backbone("resnetv2_18", width_factor=0.5, norm=True)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        theirs = backbone.model.forward_head(backbone.model.forward_features(images), pre_logits=True)
        assert torch.allclose(backbone.image_feature(images), theirs, atol=1e-5)


def test_there_are_enough_models() -> None:
    """At least twenty models, token and convolutional, and timm knows them all."""
    assert len(TOKEN_MODELS) + len(PYRAMIDS) >= 20
    assert all(timm.is_model(name) for name in (*TOKEN_MODELS, *PYRAMIDS))


def test_an_unsupported_class_is_named() -> None:
    """A model that no adapter covers is refused with its class."""
    with pytest.raises(ValueError, match="Swin"):
        load_backbone("swinv2_cr_tiny_224")
