"""The network of student and teacher, over masked crops of several sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers import Mlp

from dense.backbone import load_backbone
from pretrain.head import ProjectionHead
from pretrain.module import DINO
from pretrain.network import MultiCropNetwork, grid_of
from pretrain.recipe import BackboneOptions
from tests.pretrain.test_terms import ARGUMENTS, HEAD, crops


def network(**options: Any) -> MultiCropNetwork:
    """Return a random network whose mask token is not zero."""
    torch.manual_seed(0)
    backbone = load_backbone("vit_tiny_patch16_224", **ARGUMENTS)
    torch.nn.init.normal_(backbone.mask_token)
    return MultiCropNetwork(backbone, ProjectionHead(16, 24, 16, 8), **options).eval()


def test_masked_pixels_cannot_influence_the_student() -> None:
    """Tokens and logits do not depend on the pixels of masked patches."""
    net, masks = network(), torch.rand(6, 16) < 0.4
    views = crops()
    hidden = masks.view(2, 3, 1, 4, 4).repeat_interleave(8, -1).repeat_interleave(8, -2)  # 2, 3, 1, 32, 32
    noise = crops(1)
    changed = [torch.where(h, n, v) for h, n, v in zip(hidden, noise[:2], views[:2], strict=True)] + views[2:]
    everything = torch.arange(6 * 16)
    a, b = (net(v, masks, everything, patches=True) for v in (views, changed))
    assert all(torch.equal(x, y) for x, y in zip(a[:4], b[:4], strict=True))  # without maps to other teachers
    plain = net(changed, None, everything, patches=True)
    assert not torch.allclose(a.logits, plain.logits)


def test_chosen_patches_get_the_logits_of_their_head() -> None:
    """They come from a shared head or one of their own; class tokens are those of the network without patches."""
    views, indices = crops(), torch.tensor([0, 5, 17, 95])
    for own in (None, ProjectionHead(16, 40, 16, 8)):
        net = network(patch_head=own)
        outputs = net(views, patch_indices=indices, patches=True)
        assert outputs.patches is not None
        assert outputs.patches.shape == (6, 16, 16)
        torch.testing.assert_close(outputs.patch_logits, (own or net.head)(outputs.patches.flatten(0, 1)[indices]))
        torch.testing.assert_close(outputs.logits, net(views).logits, rtol=1e-4, atol=1e-5)
        assert net(views).patch_logits is None
        assert len(net.prototypes) == (2 if own is None else 4)


def test_no_masked_patch_still_trains_every_parameter() -> None:
    """With no masked patch, the patch head, its batch norm and the mask token still have gradients, which DDP needs."""
    net = network(patch_head=ProjectionHead(16, 40, 16, 8, batch_norm=True)).train()
    outputs = net(crops(), torch.zeros(6, 16).bool(), torch.zeros(0, dtype=torch.int64))
    assert outputs.patch_logits is not None
    (outputs.patch_logits.sum() + outputs.logits.sum()).backward()
    assert [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None] == []
    assert float(net.backbone.mask_token.grad.abs().sum()) == 0  # type: ignore[union-attr]


def test_local_crops_may_have_a_norm_of_their_own() -> None:
    net = network(local_norm=torch.nn.LayerNorm(16))
    torch.nn.init.constant_(net.local_norm.weight, 3.0)  # type: ignore[union-attr, arg-type]
    plain = network()
    a, b = net(crops()).features, plain(crops()).features
    torch.testing.assert_close(a[:6], b[:6], rtol=1e-4, atol=1e-5)
    local = net.backbone(net._images(crops()[2:]), layers="last", norm=False).class_token
    torch.testing.assert_close(a[6:], net.local_norm(local), rtol=1e-4, atol=1e-5)  # type: ignore[misc]


def test_grids_follow_the_padding() -> None:
    assert grid_of(network().backbone, (33, 40)) == (5, 5)


def test_uniform_stochastic_depth() -> None:
    module = DINO(BackboneOptions("vit_tiny_patch16_224", ARGUMENTS, 0.3, "uniform"), HEAD)
    rates = [block.drop_path1.drop_prob for block in module.student.backbone.model.blocks]  # type: ignore[union-attr]
    assert rates == [0.3, 0.3]


def test_vit_options_by_name() -> None:
    """Registers, LayerScale and SwiGLU, which a saved spec can hold."""
    options = {"reg_tokens": 2, "init_values": 1e-5, "mlp_layer": "swiglu_packed", "act_layer": "silu", "mlp_ratio": 4}
    backbone = load_backbone("vit_tiny_patch16_224", **ARGUMENTS, **options)
    assert backbone.spec.registers == 2
    assert backbone.model.blocks[0].mlp.fc2.in_features == 32  # type: ignore[union-attr, index]
    assert backbone.spec.arguments["mlp_layer"] == "swiglu_packed"
    plain = load_backbone("vit_giant_patch14_dinov2", **ARGUMENTS, mlp_layer="mlp", act_layer="gelu", mlp_ratio=4)
    assert type(plain.model.blocks[0].mlp) is Mlp  # a SwiGLU by its name
    with pytest.raises(ValueError, match="mlp_layer='swiglo'"):
        load_backbone("vit_tiny_patch16_224", **ARGUMENTS, mlp_layer="swiglo")


def test_rope_is_rescaled_in_training_alone_and_once_a_forward() -> None:
    name = "vit_small_patch16_dinov3_qkvb"
    arguments = ARGUMENTS | {"num_reg_tokens": 1, "rope_rescale_coords": 2.0}
    backbone = load_backbone(name, **arguments)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(backbone(images).maps[-1], backbone(images).maps[-1])
    backbone.train()
    ropes = [backbone.embed(images)[1] for _ in range(2)]  # type: ignore[operator]
    assert not torch.equal(*ropes)
    torch.manual_seed(1)
    a = backbone(images).maps[-1]
    torch.manual_seed(1)
    assert torch.equal(a, backbone(images).maps[-1])
