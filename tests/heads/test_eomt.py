"""Queries in the last blocks of a ViT: any grid, masked attention, and blocks lent without hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import heads
from dense.backbone import Backbone, load_backbone
from dense.model.network import DenseModel
from heads import EoMT, Masks
from heads.eomt import annealed, default_spans, upscales_of
from tests.heads.conftest import randomise

SMALL = {"depth": 4, "embed_dim": 32, "num_heads": 2}
BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain, patch 8": ("vit_small_patch8_224", {"img_size": 32}),
    "registers, patch 14": ("vit_small_patch14_reg4_dinov2", {"img_size": 56}),
    "rope, patch 16": ("vit_small_patch16_dinov3_qkvb", {}),
}


def model_of(name: str = "rope, patch 16", **options: Any) -> DenseModel:
    """A tiny random model of three classes."""
    timm_name, changes = BACKBONES[name]
    torch.manual_seed(0)
    backbone = load_backbone(timm_name, **SMALL, **changes)
    randomise(backbone)
    values = {"queries": 5, "blocks": 2, "upscales": upscales_of(backbone.spec.patch)} | options
    head = EoMT(backbone.spec.dim, {"masks": Masks(3)}, **values)
    return DenseModel(backbone, head, (backbone.spec.depth - 1 - values["blocks"],), False, "instance").eval()


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("masked", [0.0, 1.0])
def test_extra_tokens_in_a_block(name: str, masked: float) -> None:
    """A block with extra tokens is plain attention over all of them, with positions of the patches alone."""
    backbone = model_of(name).backbone
    grid, extra, index = (3, 5), 4, 2
    count = backbone.spec.prefix + extra + grid[0] * grid[1]
    x = torch.randn(2, count, backbone.spec.dim)
    allowed = (torch.rand(2, 1, count, count) >= masked / 2) | torch.eye(count, dtype=torch.bool)
    with torch.no_grad():
        ours = backbone.last_blocks(grid, extra)(index, x, allowed if masked else None)
        theirs = by_hand(backbone, index, x, grid, extra, allowed if masked else None)
        assert torch.allclose(ours, theirs, atol=1e-5)
        for block in backbone.model.blocks:
            block.attn.fused_attn = False
        explicit = backbone.last_blocks(grid, extra)(index, x, allowed if masked else None)
    assert torch.allclose(ours, explicit, atol=1e-5)


def by_hand(backbone: Any, index: int, x: Tensor, grid: tuple[int, int], extra: int, allowed: Tensor | None) -> Tensor:
    """One pre-norm block, token by token; rotations by complex numbers of the published formula."""
    block, spec = backbone.model.blocks[index], backbone.spec
    attention, width = block.attn, spec.dim // spec.heads
    y = block.norm1(x)
    qkv = y @ attention.qkv.weight.T
    if attention.qkv.bias is not None:
        qkv = qkv + attention.qkv.bias
    if getattr(attention, "q_bias", None) is not None:
        qkv = qkv + torch.cat((attention.q_bias, torch.zeros(spec.dim), attention.v_bias))
    q, k, v = qkv.view(*x.shape[:2], 3, spec.heads, width).permute(2, 0, 3, 1, 4)
    if spec.positions == "rope":
        rows, columns = (2 * (torch.arange(n) + 0.5) / n - 1 for n in grid)
        where = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
        periods = 100 ** (torch.arange(width // 4) / (width // 4))
        angles = (2 * torch.pi * where[:, :, None] / periods).flatten(1)  # h*w, width / 2
        angles = torch.cat((torch.zeros(spec.prefix + extra, width // 2), angles))
        turn = torch.polar(torch.ones_like(angles), angles)
        q, k = (torch.view_as_complex(torch.stack(z.chunk(2, -1), -1).contiguous()) * turn for z in (q, k))
        q, k = (torch.cat((z.real, z.imag), -1) for z in (q, k))
    logits = q @ k.mT / width**0.5
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    y = attention.proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))
    first, second = (
        (block.ls1, block.ls2) if hasattr(block, "ls1") else (lambda z: z * block.gamma_1, lambda z: z * block.gamma_2)
    )
    x = x + first(y)
    return x + second(block.mlp(block.norm2(x)))


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("size", [(3, 5), (1, 7)])
def test_any_size(name: str, size: tuple[int, int]) -> None:
    """Masks cover the image as given, padded or not."""
    model = model_of(name)
    patch, cells = model.backbone.spec.patch, 2 ** len(model.head.upscale)
    whole = (size[0] * patch, size[1] * patch)
    with torch.no_grad():
        found = model(torch.randn(2, 3, *whole))
        odd = model(torch.randn(2, 3, whole[0] + 3, whole[1] + 5))
        at = model.maps(torch.randn(1, 3, *whole), size=(9, 10))
    assert found["mask_logits"].shape == (2, 5, size[0] * cells, size[1] * cells)
    assert found["class_logits"].shape == (2, 5, 4)
    assert list(found) == ["mask_logits", "class_logits"]
    assert odd["mask_logits"].shape[:2] == (2, 5)
    assert odd["mask_logits"].shape[-1] == round((whole[1] + 5) * cells / patch)
    assert at["mask_logits"].shape == (1, 5, 9, 10)


def test_padding_is_removed() -> None:
    """A padded image has the masks of the padded size, cropped: a ramp stays at its pixels."""
    model = model_of()
    features = model.features(torch.randn(1, 3, 40, 48))  # padded to 48 rows: 4 above and 4 below
    ramp = torch.arange(12.0)[:, None].expand(12, 12)[None, None] * 4 + 1.5  # the padded row of each cell's centre
    cropped = model.head._over_image(ramp, features, None)
    assert cropped.shape[-2:] == (10, 12)
    assert torch.allclose(cropped[0, 0, 1:-1, 0], torch.arange(10.0)[1:-1] * 4 + 1.5 + 4, atol=1e-4)


def test_training_gives_the_earlier_predictions() -> None:
    """One before each block; each parameter of head and last blocks has a gradient."""
    model = model_of().train()
    found = model(torch.randn(2, 3, 48, 64))
    names = [f"{kind}_logits{n}" for kind in ("mask", "class") for n in (".0", ".1", "")]
    assert sorted(found) == sorted(names)
    sum((x * torch.randn_like(x)).sum() for x in found.values()).backward()
    used = dict(model.named_parameters())
    del used["backbone.mask_token"]
    assert [n for n, p in used.items() if p.grad is None or not p.grad.abs().sum()] == []


def test_masked_attention() -> None:
    """A masked query does not see patches outside its mask; unmasked ones do, and patches see everything."""
    model = model_of()
    head, grid, prefix = model.head, (2, 3), 5
    masks = torch.full((1, 5, *grid), -1.0)
    masks[0, 0, 1, 2] = 1.0
    allowed = head.attention_mask(masks, prefix, grid, 1.0)[0, 0]
    assert allowed.shape == (16, 16)
    assert allowed[prefix, :10].all()
    assert allowed[prefix, 10:].tolist() == [False] * 5 + [True]
    assert not allowed[6:10, 10:].any()
    assert allowed[:prefix].all()
    assert allowed[10:].all()
    head.train()
    torch.manual_seed(0)
    shares = [
        head.attention_mask(masks.expand(400, -1, -1, -1), prefix, grid, p)[:, 0, 6:10, 10].float().mean()
        for p in (1, 0.7, 0)
    ]
    assert shares[0] == 0
    assert abs(float(shares[1]) - 0.3) < 0.05
    assert shares[2] == 1


def test_evaluation_is_masked_from_one_half_on() -> None:
    """And draws nothing."""
    images, found = torch.randn(1, 3, 48, 64), {}
    for probability in (0.0, 0.4, 0.6, 1.0):
        model = model_of(masking=[probability] * 2)
        with torch.no_grad():
            found[probability] = model(images)["mask_logits"]
    assert torch.equal(found[0.0], found[0.4])
    assert torch.equal(found[0.6], found[1.0])
    assert not torch.allclose(found[0.4], found[0.6])


def test_annealing() -> None:
    """Block after block, from 1 to 0 by the published power."""
    spans = default_spans(4)
    assert spans[0] == pytest.approx((6520 / 39120, 13040 / 39120))
    assert spans[3] == pytest.approx((26080 / 39120, 32600 / 39120))
    assert annealed(0.0, spans) == (1, 1, 1, 1)
    assert annealed(2 / 6, spans) == (0, 1, 1, 1)
    assert annealed(2.5 / 6, spans) == pytest.approx((0, 0.5**0.9, 1, 1))
    assert annealed(1.0, spans) == (0, 0, 0, 0)
    assert [upscales_of(patch) for patch in (8, 14, 16, 32)] == [1, 1, 2, 3]


def test_round_trip(tmp_path: Any) -> None:
    """A saved directory gives the same masks."""
    model, images = model_of(masking=[0.0, 1.0]), torch.randn(1, 3, 48, 64)
    model.save_pretrained(tmp_path)
    again = DenseModel.from_pretrained(tmp_path)
    assert again.head.masking == (0.0, 1.0)
    with torch.no_grad():
        for name, values in model(images).items():
            assert torch.equal(values, again(images)[name])
    assert heads.build(model.head.spec()).spec() == model.head.spec()


def test_mistakes() -> None:
    model = model_of()
    with pytest.raises(ValueError, match="runs blocks of its backbone"):
        model.head(model.features(torch.randn(1, 3, 32, 32)))
    with pytest.raises(ValueError, match="it reads layer 1"):
        DenseModel(model.backbone, model.head, (3,), False, "instance")
    with pytest.raises(ValueError, match="blocks=4: queries join the last blocks"):
        DenseModel(model.backbone, EoMT(32, {"masks": Masks(3)}, blocks=4), (0,), False, "instance")
    pyramid = Backbone.from_spec(load_backbone("resnet18").spec)
    with pytest.raises(ValueError, match="has none"):
        DenseModel(pyramid, EoMT(512, {"masks": Masks(3)}), (0,), False, "instance")
    with pytest.raises(ValueError, match="one output, masks"):
        EoMT(32, {"labels": heads.Classes(3)})
    with pytest.raises(ValueError, match="needs a head of queries"):
        heads.LinearHead(32, {"masks": Masks(3)})
    with pytest.raises(ValueError, match="things"):
        Masks(3, things=(True,))
