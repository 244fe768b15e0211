"""Position rules against the published modules' golden values."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.models.vision_transformer import checkpoint_filter_fn

from dense.backbone import load_backbone
from dense.backbone.positions import PositionCache, interpolate_positions
from dense.backbone.spec import Positions
from dense.backbone.weights.report import WeightsError
from tests.backbone.conftest import tiny


def det(shape: tuple[int, ...], phase: float = 0.0) -> torch.Tensor:
    """The reference's deterministic input."""
    i = np.arange(math.prod(shape), dtype=np.float64)
    values = np.sin(0.7 * i + phase) + 0.3 * np.cos(np.mod(1.9 * i * i, 6.283) + phase)
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


GOLDEN = {  # size in pixels -> sum with the class token's position, first patch, last patch
    ("official", 96, 96): (-2.241523, [-0.88061, -0.193645, 0.880857], [0.834906, 0.805761, -0.079499]),
    ("official", 64, 80): (-0.563407, [-0.796772, -0.242662, 0.714747], [0.634085, 0.529333, -0.152588]),
    ("official", 32, 48): (1.574008, [-0.216779, -0.467461, -0.302415], [-0.374154, -0.695385, -0.478975]),
    ("official_registers", 96, 96): (-2.424988, [-0.864522, -0.219059, 0.826035], [0.838155, 0.811084, -0.078224]),
    ("official_registers", 64, 80): (-0.901405, [-0.79499, -0.258282, 0.690111], [0.741361, 0.676058, -0.112144]),
    ("official_registers", 32, 48): (0.406748, [-0.203214, -0.251174, 0.039836], [0.095843, -0.126494, -0.159928]),
}


@pytest.mark.parametrize(("rule", "height", "width"), GOLDEN)
def test_golden(rule: Positions, height: int, width: int) -> None:
    """A 4x4 table of a 64-pixel model, read at other sizes."""
    table = det((1, 17, 8))
    total, first, last = GOLDEN[rule, height, width]
    patches = interpolate_positions(table[:, 1:], (4, 4), (height // 16, width // 16), rule)
    assert float(table[:, :1].sum() + patches.sum()) == pytest.approx(total, abs=1e-4)
    assert patches[0, 0, :3].tolist() == pytest.approx(first, abs=2e-5)
    assert patches[0, -1, :3].tolist() == pytest.approx(last, abs=2e-5)


@pytest.mark.parametrize("rule", ["official", "official_registers", "timm", "size"])
def test_native_grid_is_the_table_itself(rule: Positions) -> None:
    """At the table's own grid every rule returns the stored values untouched."""
    table = det((1, 16, 8))
    assert torch.equal(interpolate_positions(table, (4, 4), (4, 4), rule), table)


def test_rules_follow_the_release() -> None:
    """Each name brings its release's rule; other models timm's; an override wins."""
    rules = {
        n: load_backbone(n, depth=1).spec.positions
        for n in (
            "dino_vits8",
            "dinov2_vits14",
            "dinov2_vits14_reg",
            "dinov3_vits16",
            "ibot_vits16",
            "vit_tiny_patch16_224",
        )
    }
    assert rules == {
        "dino_vits8": "official",
        "dinov2_vits14": "official",
        "dinov2_vits14_reg": "official_registers",
        "dinov3_vits16": "rope",
        "ibot_vits16": "official",
        "vit_tiny_patch16_224": "timm",
    }
    assert load_backbone("dinov2_vits14", depth=1, positions="timm").spec.positions == "timm"


def test_official_and_timm_rules_differ_on_other_grids() -> None:
    """The rule matters: features move by percents, not by rounding."""
    ours, timms = tiny("dinov2_vits14", img_size=98), tiny("dinov2_vits14", img_size=98, positions="timm")
    images = torch.randn(1, 3, 70, 126)
    with torch.no_grad():
        a, b = ours(images).maps[-1], timms(images).maps[-1]
        native = torch.randn(1, 3, 98, 98)
        assert torch.equal(ours(native).maps[-1], timms(native).maps[-1])
    assert float((a - b).norm() / b.norm()) > 1e-3


def test_a_frozen_table_is_computed_once_and_a_changed_one_again() -> None:
    """The cache holds per grid and dtype, notices new weights, and steps aside when the table trains."""
    backbone = tiny("dinov2_vits14", img_size=98).freeze()
    images = torch.randn(1, 3, 70, 126)
    first = backbone(images).maps[-1]
    (cached,) = backbone._positions._tables.values()
    backbone(images)
    backbone(torch.randn(1, 3, 126, 70))
    assert len(backbone._positions._tables) == 2, "one table a grid"
    assert next(iter(backbone._positions._tables.values())) is cached
    with torch.no_grad():
        backbone.model.pos_embed.mul_(2)
    assert not torch.allclose(backbone(images).maps[-1], first)
    backbone.unfreeze()
    backbone(images).maps[-1].sum().backward()
    assert backbone.model.pos_embed.grad is not None
    assert float(backbone.model.pos_embed.grad.abs().sum()) > 0


def test_the_cache_is_not_shared_by_copies() -> None:
    """A deep copy starts with an empty cache."""
    import copy

    cache = PositionCache()
    cache.get(torch.randn(1, 16, 4), (4, 4), (5, 5), "official", torch.float32)
    assert copy.deepcopy(cache)._tables == {}


def test_rope_golden() -> None:
    """Rotary sines, cosines and rotation of DINOv3 for a head of 16 on a 2x3 grid."""
    from timm.layers import apply_rot_embed_cat

    backbone = load_backbone("dinov3_vits16", embed_dim=16, num_heads=1, depth=1)
    rope = backbone._rope((2, 3))
    sin, cos = rope.chunk(2, dim=-1)
    assert backbone.model.rope.periods.tolist() == pytest.approx([1.0, 3.16228, 10.0, 31.62278], rel=1e-5)
    assert sin[0, :8].tolist() == pytest.approx(
        [0.0, -0.83792, -0.30902, -0.09918, 0.86603, -0.96985, -0.40674, -0.13207], abs=2e-5
    )
    assert cos[4, :8].tolist() == pytest.approx([-1.0, 0.54579, 0.95106, 0.99507, 1.0, 1.0, 1.0, 1.0], abs=2e-5)
    rotated = apply_rot_embed_cat(det((1, 1, 6, 16)), rope, half=True)[0, 0, 4]
    expected = [
        -0.54413,
        0.08236,
        0.32657,
        -0.18448,
        -0.57382,
        -0.93793,
        -0.90459,
        -0.79412,
        0.02863,
        0.93495,
        1.46265,
        1.07265,
        0.08043,
        -0.18836,
        -0.7988,
        -1.03957,
    ]
    assert rotated.tolist() == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("name", ["dinov2_vits14", "dinov2_vits14_reg", "vit_tiny_patch16_224"])
def test_weights_of_another_size(name: str, tmp_path: Path) -> None:
    """Weights read with another `img_size`, from a file and a directory, give the features of the original there."""
    small = {"patch_size": 8, "depth": 2, "embed_dim": 16, "num_heads": 2}
    original = tiny(name, img_size=40, **small).eval()
    original.save_pretrained(tmp_path)
    image = torch.rand(2, 3, 24, 32)
    expected = original(image, norm=True).class_token
    for backbone in (
        load_backbone(name, original.state_dict(), img_size=(24, 32), **small),
        load_backbone(tmp_path, img_size=(24, 32)),
    ):
        assert backbone.spec.image_size == (24, 32)
        assert torch.equal(backbone(image, norm=True).class_token, expected)
    with pytest.raises(WeightsError, match=r"pos_embed is \(1, 2[56], 16\) in the file"):
        load_backbone(name, original.state_dict(), **small)  # no size was asked for


def test_weights_of_another_patch() -> None:
    """As timm reads them, which EoMT was trained with: patches of 14 pixels are resampled to 16."""
    small = {"depth": 2, "embed_dim": 16, "num_heads": 2}
    original = tiny("dinov2_vits14_reg", img_size=70, **small)
    backbone = load_backbone("dinov2_vits14_reg", original.state_dict(), img_size=64, patch_size=16, **small)
    theirs = timm.create_model(backbone.spec.name, num_classes=0, img_size=64, patch_size=16, **small)
    found = checkpoint_filter_fn(original.model.state_dict(), theirs)["patch_embed.proj.weight"]
    assert backbone.spec.patch == 16
    assert torch.equal(backbone.model.patch_embed.proj.weight, found)
