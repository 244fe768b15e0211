"""Attention rows, queries and keys against the full softmax of an eager model."""

from __future__ import annotations

import pytest
import torch
from timm.layers import apply_rot_embed_cat
from torch import Tensor

from dense.backbone import Backbone, load_backbone
from tests.backbone.conftest import TINY, randomise, tiny


def full_attention(backbone: Backbone, images: Tensor, layer: int) -> Tensor:
    """(B, heads, N, N) of timm's own block, recorded inside its eager attention: the oracle."""
    model, recorded = backbone.model, []
    attention = model.blocks[layer].attn
    attention.fused_attn = False

    def record(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        recorded.append(inputs[0].detach())  # the softmax goes through attn_drop

    handle = attention.attn_drop.register_forward_hook(record)
    with torch.no_grad():
        model.forward_features(images)
    handle.remove()
    attention.fused_attn = True
    return recorded[0]


NAMES = [
    "dino_vits16",
    "dinov2_vits14",
    "dinov2_vits14_reg",
    "dinov3_vits16",
    "vit_small_patch16_rope_mixed_224",
    "eva02_tiny_patch14_224",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layer", [0, -1])
def test_rows_equal_the_full_softmax(name: str, layer: int) -> None:
    """Class, register and patch rows, first and last layer, on a grid that is not square."""
    arguments = {"depth": 3} if name.startswith("eva02") else TINY
    overrides = {} if "v3" in name or "rope" in name else {"positions": "timm"}
    backbone = load_backbone(name, **arguments, **overrides)
    randomise(backbone, 0.3)
    if backbone.class_position is not None:
        torch.nn.init.zeros_(backbone.class_position)
    patch, prefix = backbone.spec.patch, backbone.spec.prefix
    images = torch.randn(2, 3, 5 * patch, 7 * patch)
    full = full_attention(backbone, images, layer)
    with torch.no_grad():
        maps = backbone.attention(images, layer=layer)
        patch_row = backbone.attention(images, layer=layer, query=(2, 3))
    expected = full[:, :, 0, prefix:].unflatten(-1, (5, 7))
    torch.testing.assert_close(maps, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        patch_row, full[:, :, prefix + 2 * 7 + 3, prefix:].unflatten(-1, (5, 7)), rtol=1e-5, atol=1e-6
    )
    assert float(maps.sum((-1, -2)).max()) < 1, "the softmax runs over all tokens, prefix included"
    if backbone.spec.registers:
        with torch.no_grad():
            rows = backbone.attention(images, layer=layer, query="registers")
        assert rows.shape == (2, backbone.spec.heads, backbone.spec.registers, 5, 7)
        torch.testing.assert_close(
            rows.flatten(-2), full[:, :, prefix - backbone.spec.registers : prefix, prefix:], rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("name", ["dino_vits16", "dinov3_vits16"])
def test_queries_keys_and_values(name: str) -> None:
    """`qkv` gives what enters the attention, heads side by side; queries and keys rebuild the attention map."""
    backbone = tiny(name)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        query, key = (backbone.qkv(images, which=w, positions=True) for w in ("query", "key"))
        plain, value = backbone.qkv(images), backbone.qkv(images, which="value")
        rows = backbone.attention(images, query=(1, 2))
        token = backbone.qkv(images, which="token")
        features = backbone(images, layers="last", norm=False)
    assert key.shape == value.shape == (1, 32, 4, 6)
    q = query[0, :, 1, 2].unflatten(0, (4, 8))
    logits = torch.einsum("hd,hdn->hn", q, key[0].flatten(1).unflatten(0, (4, 8))) / 8**0.5
    expected = rows[0].flatten(1)
    torch.testing.assert_close(logits.softmax(-1), expected / expected.sum(-1, keepdim=True), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(token, features.maps[-1])
    assert torch.equal(plain, key) == (name == "dino_vits16"), "rotary positions are applied on demand alone"
    if name == "dinov3_vits16":
        rope = backbone._rope((4, 6))
        heads = plain[0].flatten(1).unflatten(0, (4, 8)).transpose(1, 2)
        rotated = apply_rot_embed_cat(heads, rope, half=True).transpose(1, 2).flatten(0, 1)
        torch.testing.assert_close(rotated.unflatten(1, (4, 6)), key[0])


def test_any_size_and_gradients(token_backbone: Backbone) -> None:
    """Odd sizes are padded; gradients reach the image through a frozen backbone."""
    token_backbone.freeze()
    images = torch.randn(1, 3, 97, 61, requires_grad=True)
    maps = token_backbone.attention(images)
    assert tuple(maps.shape[-2:]) == (-(-97 // token_backbone.spec.patch), -(-61 // token_backbone.spec.patch))
    maps[..., 0, 0].sum().backward()
    assert float(images.grad.abs().sum()) > 0


def test_memory_is_linear() -> None:
    """No N x N matrix is built for one row: at 60x60 patches it alone would take 200 MB."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, tuple | list) else (out,):
                largest = max(largest, t.numel() if isinstance(t, Tensor) else 0)
            return out

    backbone = tiny("dino_vits16")
    with torch.no_grad(), Largest():
        backbone.attention(torch.randn(1, 3, 960, 960))
    assert largest < 60 * 60 * 60 * 60 / 4


def test_errors() -> None:
    """A missing class token, missing registers, a wrong layer, a patch outside the grid, an unknown query."""
    siglip = load_backbone("vit_base_patch16_siglip_224", **TINY)
    dino = tiny("dino_vits16")
    images = torch.randn(1, 3, 32, 32)
    with pytest.raises(ValueError, match="no class token"):
        siglip.attention(images)
    assert siglip.attention(images, query=(0, 1)).shape == (1, 4, 2, 2)
    with pytest.raises(ValueError, match="no registers"):
        dino.attention(images, query="registers")
    with pytest.raises(ValueError, match="layer 4 does not exist"):
        dino.attention(images, layer=4)
    with pytest.raises(ValueError, match="outside the grid of 2x2"):
        dino.attention(images, query=(2, 0))
    with pytest.raises(ValueError, match="query must be"):
        dino.attention(images, query="cls")
    with pytest.raises(ValueError, match="which must be"):
        dino.qkv(images, which="keys")
