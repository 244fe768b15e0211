"""Packed images of several sizes against timm's blocks on each size alone, and batch-subset stochastic depth."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from dense.backbone import Backbone
from dense.backbone.attention import Group, can_pack, residual
from pretrain.network import set_drop_path
from tests.backbone.conftest import tiny

NAMES = [
    "dino_vits16",
    "dinov2_vits14_reg",  # registers, LayerScale
    "dinov3_vits16",  # rotary positions, registers
    "eva02_tiny_patch14_224",  # biases apart, a norm inside attention, SwiGLU
    "vit_small_patch16_rope_mixed_224",  # rotary positions of each block
    "vit_base_patch16_siglip_224",  # no class token
]


def groups(backbone: Backbone) -> list[Tensor]:
    """Two images of 4 x 4 patches, three of 2 x 3."""
    p, generator = backbone.spec.patch, torch.Generator().manual_seed(0)
    sizes = ((2, 4 * p, 4 * p), (3, 2 * p, 3 * p))
    return [torch.randn(n, 3, h, w, generator=generator) for n, h, w in sizes]


def build(name: str) -> Backbone:
    """Tiny and in training mode."""
    small = {"embed_dim": 24, "num_heads": 3, "depth": 2} if name.startswith("eva02") else {"depth": 2}
    return tiny(name, **small).train()


def alone(
    backbone: Backbone, groups: list[Tensor], masks: Tensor | None, norm: nn.Module | None
) -> tuple[Tensor, Tensor]:
    """The same from `forward`, whose blocks are timm's, one size at a time."""
    vectors, tokens = [], None
    for number, images in enumerate(groups):
        other = norm if number else None
        features = backbone(images, layers="last", norm=other is None, masks=None if number else masks)
        patches = features.maps[-1].flatten(2).mT
        vector = features.class_token if features.has_class_token else patches.mean(1)
        vectors.append(vector if other is None else other(vector))
        tokens = patches if tokens is None else tokens
    assert tokens is not None
    return torch.cat(vectors), tokens


def gradients(module: nn.Module, value: Tensor) -> dict[str, Tensor]:
    """By name."""
    module.zero_grad()
    value.backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("whole", [True, False], ids=["patches", "class"])
def test_packed_equals_one_size_at_a_time(name: str, whole: bool) -> None:
    """Outputs and gradients, with masks and another norm for small images, and where only class tokens are needed."""
    backbone = build(name)
    images = groups(backbone)
    masks = torch.arange(2 * 16).reshape(2, 16) % 3 == 0 if whole else None
    norm = copy.deepcopy(backbone.model.norm) if whole and backbone.spec.class_token else None
    assert all(can_pack(block) for block in backbone.model.blocks)
    vectors, tokens = backbone.image_features(images, masks, whole, norm)
    expected, their_tokens = alone(copy.deepcopy(backbone), images, masks, copy.deepcopy(norm))
    torch.testing.assert_close(vectors, expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(1))
    value, other = (vectors * weights).sum(), copy.deepcopy(backbone)
    expected, their_tokens = alone(other, images, masks, norm)
    peer = (expected * weights).sum()
    if whole:
        assert tokens is not None
        torch.testing.assert_close(tokens, their_tokens, rtol=1e-5, atol=1e-5)
        value, peer = value + tokens.square().sum(), peer + their_tokens.square().sum()
    else:
        assert tokens is None
    mine, theirs = gradients(backbone, value), gradients(other, peer)
    assert mine.keys() == theirs.keys()
    for parameter, gradient in theirs.items():
        scale = float(gradient.abs().max()) + 1e-6
        torch.testing.assert_close(mine[parameter] / scale, gradient / scale, rtol=1e-5, atol=1e-5, msg=parameter)


@pytest.mark.parametrize("name", ["dinov2_vits14_reg", "dinov3_vits16"])
def test_recomputed_blocks_give_equal_gradients(name: str) -> None:
    """Checkpointed blocks draw the same images again, and give the same gradients."""
    backbone = build(name)
    set_drop_path(backbone, 0.5, uniform=True)
    found = []
    for enable in (False, True):
        backbone.set_grad_checkpointing(enable)
        torch.manual_seed(0)
        found.append(gradients(backbone, backbone.image_features(groups(backbone))[0].square().sum()))
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])


def test_blocks_of_another_kind_run_one_size_at_a_time() -> None:
    """A block that computes something else, here a gate, is left to timm."""
    backbone = build("dino_vits16")
    backbone.model.blocks[0].attn.gate = nn.Linear(32, 32)
    assert not can_pack(backbone.model.blocks[0])
    vectors, tokens = backbone.image_features(groups(backbone), patches=True)
    expected, their_tokens = alone(backbone, groups(backbone), None, None)
    assert torch.equal(vectors, expected)
    assert tokens is not None
    assert torch.equal(tokens, their_tokens)


# ---- stochastic depth

PACK = [Group(10, 3, 3), Group(5, 2, 2)]  # 40 tokens


def branch(x: Tensor, groups: object) -> Tensor:
    """Return ones, so that the residual adds the scale alone."""
    return torch.ones_like(x)


@pytest.mark.parametrize(("rate", "kept"), [(0.3, (7, 3)), (0.95, (1, 1)), (0.01, (9, 4))])
def test_whole_images_are_left_out_and_the_others_scaled(rate: float, kept: tuple[int, int]) -> None:
    """max(int(B (1 - rate)), 1) of B images of each group are kept, all their tokens, times B over that."""
    added = residual(torch.zeros(40, 1), branch, PACK, rate)
    for part, (images, tokens, _), count in zip(added.split([30, 10]), PACK, kept, strict=True):
        part = part.reshape(images, tokens)
        assert (part == part[:, :1]).all()
        values = part[:, 0]
        assert int((values > 0).sum()) == count
        torch.testing.assert_close(values[values > 0], torch.full((count,), images / count))


def test_expectation_is_that_of_drop_path_by_sample() -> None:
    """Averaged over draws, both add the whole branch, and each image is left out as often as any other."""
    torch.manual_seed(0)
    x = torch.zeros(40, 1)
    draws = torch.stack([residual(x, branch, PACK, 0.4) for _ in range(1500)]).mean(0)
    by_sample = torch.stack([DropPath(0.4)(torch.ones(40, 1)) for _ in range(1500)]).mean(0)
    torch.testing.assert_close(draws, torch.ones(40, 1), rtol=0, atol=0.1)
    torch.testing.assert_close(by_sample, torch.ones(40, 1), rtol=0, atol=0.1)


def test_the_branch_runs_on_the_kept_images_alone() -> None:
    """The gradient of the branch reaches them alone, that of the identity all images."""
    lengths: list[int] = []
    weight = torch.ones(1, requires_grad=True)
    x = torch.ones(40, 1, requires_grad=True)

    def counting(x: Tensor, groups: object) -> Tensor:
        lengths.append(len(x))
        return x * weight

    residual(x, counting, PACK, 0.5).sum().backward()
    assert lengths == [5 * 3 + 2 * 2]
    assert x.grad is not None
    assert weight.grad is not None
    assert set(x.grad.flatten().tolist()) == {1.0, 3.0, 3.5}  # left out, 1 + 10/5, 1 + 5/2
    torch.testing.assert_close(weight.grad, torch.tensor([40.0]))


def test_rate_0_drops_nothing() -> None:
    """Neither does evaluation."""
    backbone = build("dinov2_vits14_reg")
    expected = backbone.image_features(groups(backbone))[0]
    set_drop_path(backbone, 0.0)
    assert torch.equal(backbone.image_features(groups(backbone))[0], expected)
    set_drop_path(backbone, 0.5, uniform=True)
    assert len({float(backbone.image_features(groups(backbone))[0].sum()) for _ in range(4)}) > 1
    backbone.eval()
    assert torch.equal(backbone.image_features(groups(backbone))[0], expected)
