"""Frozen, training, masked, compiled, checkpointed and in low precision."""

from __future__ import annotations

import copy

import pytest
import torch

from dense.backbone import Backbone
from tests.backbone.conftest import tiny


def test_frozen_is_frozen(token_backbone: Backbone) -> None:
    """No parameter has a gradient and train() changes nothing, yet gradients flow through to the image."""
    token_backbone.freeze()
    wrapper = torch.nn.Sequential(token_backbone).train()
    assert wrapper.training
    assert not any(m.training for m in token_backbone.modules())
    images = torch.randn(1, 3, 64, 64, requires_grad=True)
    token_backbone(images).maps[-1].square().sum().backward()
    assert float(images.grad.abs().sum()) > 0
    assert all(p.grad is None for p in token_backbone.parameters())
    assert all(p.requires_grad for p in token_backbone.unfreeze().parameters())
    assert token_backbone.train().training


def test_masks(token_backbone: Backbone) -> None:
    """A masked patch no longer depends on its pixels, and the mask token learns."""
    patch = token_backbone.spec.patch
    images = torch.randn(2, 3, 4 * patch, 5 * patch)
    masks = torch.zeros(2, 4, 5, dtype=torch.bool)
    masks[0, 1, 2] = True
    changed = images.clone()
    changed[0, :, patch : 2 * patch, 2 * patch : 3 * patch] = 9.0
    with torch.no_grad():
        torch.testing.assert_close(
            token_backbone(images, masks=masks).maps[-1], token_backbone(changed, masks=masks).maps[-1]
        )
        assert not torch.allclose(token_backbone(images).maps[-1][0], token_backbone(images, masks=masks).maps[-1][0])
        torch.testing.assert_close(token_backbone(images, masks=masks).maps[-1][1], token_backbone(images).maps[-1][1])
        flat = token_backbone(images, masks=masks.flatten(1)).maps[-1]
        torch.testing.assert_close(flat, token_backbone(images, masks=masks).maps[-1])
    token_backbone.train()
    token_backbone(images, masks=masks).maps[-1].square().sum().backward()
    assert float(token_backbone.mask_token.grad.abs().sum()) > 0
    with pytest.raises(ValueError, match="grid of 4x5"):
        token_backbone(images, masks=torch.zeros(2, 5, 4))


def test_masking_happens_before_positions() -> None:
    """With every patch masked, patches differ by their positions alone."""
    backbone = tiny("dinov2_vits14", img_size=56)
    images, masks = torch.randn(1, 3, 56, 56), torch.ones(1, 16)
    tokens, _, _ = backbone.embed(images, masks)
    expected = backbone.mask_token + backbone.model.pos_embed[:, 1:]
    torch.testing.assert_close(tokens[:, 1:], expected)


def test_every_parameter_takes_part_in_training(token_backbone: Backbone) -> None:
    """No parameter is left without a gradient when nothing is masked, or distributed training would stall."""
    token_backbone.train()
    features = token_backbone(torch.randn(2, 3, 64, 64))
    (features.maps[-1].square().sum() + features.class_token.sum()).backward()
    assert [n for n, p in token_backbone.named_parameters() if p.grad is None] == []


def test_gradient_checkpointing_changes_nothing(token_backbone: Backbone) -> None:
    """Same features and gradients, blocks recomputed."""
    other = copy.deepcopy(token_backbone).set_grad_checkpointing()
    images = torch.randn(1, 3, 64, 64)
    for backbone in (token_backbone.train(), other.train()):
        backbone(images).maps[-1].square().sum().backward()
    for (name, a), b in zip(token_backbone.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_casts(token_backbone: Backbone, dtype: torch.dtype) -> None:
    """Low precision stays near fp32, by autocast and by a cast of the module, forward and backward."""
    for parameter in token_backbone.parameters():
        parameter.data.mul_(0.3)
    images = torch.randn(1, 3, 70, 90)
    with torch.no_grad():
        reference = token_backbone(images).maps[-1]
        with torch.autocast("cpu", dtype=dtype):
            low = token_backbone(images).maps[-1]
        cast = copy.deepcopy(token_backbone).to(dtype)(images.to(dtype)).maps[-1]
    for other in (low, cast):
        assert float((other.float() - reference).norm() / reference.norm()) < 0.05
    with torch.autocast("cpu", dtype=dtype):
        token_backbone.train()(images).maps[-1].float().square().mean().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in token_backbone.parameters())


@pytest.mark.slow
def test_compile(token_backbone: Backbone) -> None:
    """torch.compile without graph breaks gives the same features."""
    token_backbone.freeze()
    images = torch.randn(1, 3, 64, 80)
    compiled = torch.compile(token_backbone, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images).maps[-1], token_backbone(images).maps[-1], rtol=1e-4, atol=1e-4)


def test_drop_path_is_a_matter_of_training() -> None:
    """Stochastic depth acts in train mode alone."""
    backbone = tiny("dino_vits16", drop_path_rate=0.9)
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(backbone(images).maps[-1], backbone(images).maps[-1])
        backbone.train()
        assert len({float(backbone(images).maps[-1].sum()) for _ in range(8)}) > 1


@pytest.mark.parametrize(
    "name", ["dino_vits16", "dinov2_vits14", "dinov2_vits14_reg", "dinov3_vits16", "vit_base_patch16_siglip_224"]
)
def test_the_image_feature_is_that_of_the_whole_forward(name: str) -> None:
    """Computing the last block for the class token alone changes neither the value nor any gradient."""
    backbone = tiny(name).train()
    other = copy.deepcopy(backbone)
    images = torch.randn(2, 3, 64, 80)
    short = backbone.image_feature(images)
    features = other(images, layers="last", norm=True)
    whole = features.class_token if features.has_class_token else features.maps[-1].mean((-2, -1))
    torch.testing.assert_close(short, whole, rtol=1e-5, atol=1e-5)
    short.square().sum().backward()
    whole.square().sum().backward()
    for (parameter, a), b in zip(backbone.named_parameters(), other.parameters(), strict=True):
        if b.grad is None:  # a pooling layer that neither way uses
            assert a.grad is None
            continue
        torch.testing.assert_close(
            a.grad, b.grad, rtol=1e-4, atol=1e-4 * float(b.grad.abs().max() + 1e-6), msg=parameter
        )


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_attention_is_explicit_where_the_fused_backward_is_slow(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 with gradients on a processor with bf16 matrix units; the same numbers, and fused again in fp32."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    vit, images = tiny(name), torch.randn(1, 3, 32, 32)
    fused = [block.attn.fused_attn for block in vit.model.blocks]
    assert all(fused)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        expected = vit(images).maps[-1]
    assert all(block.attn.fused_attn for block in vit.model.blocks)
    with torch.autocast("cpu", torch.bfloat16):
        found = vit(images).maps[-1]
    assert not any(block.attn.fused_attn for block in vit.model.blocks)
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)
    vit(images)
    assert [block.attn.fused_attn for block in vit.model.blocks] == fused
