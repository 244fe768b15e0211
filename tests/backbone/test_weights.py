"""Official layouts in and out: every tensor is used, the counts are the published ones, and the way back is exact."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from dense.backbone import Backbone, WeightsError, load_backbone
from tests.backbone import official_files as files
from tests.backbone.conftest import randomise, tiny

State = files.State

PUBLISHED: dict[str, tuple[Callable[[], State], int, int]] = {  # alias -> (file, tensors, parameters)
    "dino_vits16": (lambda: files.dino(384, 12, 16), 150, 21_665_664),
    "dinov2_vits14": (lambda: files.dinov2(384, 12), 175, 22_056_576),
    "dinov2_vits14_reg": (lambda: files.dinov2(384, 12, registers=4), 176, 22_058_112),
    "dinov3_vits16": (lambda: files.dinov3(384, 12, 6), 188, 21_601_152),
    "dinov3_vits16plus": (lambda: files.dinov3(384, 12, 6, swiglu=1536), 212, 28_697_472),
}
LARGE: dict[str, tuple[Callable[[int], State], int, int, int]] = {  # alias -> (file of a depth, depth, as above)
    "dino_vitb16": (lambda depth: files.dino(768, depth, 16), 12, 150, 85_798_656),
    "dinov2_vitb14": (lambda depth: files.dinov2(768, depth), 12, 175, 86_580_480),
    "dinov3_vitb16": (lambda depth: files.dinov3(768, depth, 12), 12, 188, 85_669_632),
    "dinov2_vitl14": (lambda depth: files.dinov2(1024, depth), 24, 343, 304_368_640),
    "dinov2_vitg14": (lambda depth: files.dinov2(1536, depth, swiglu=4096), 40, 567, 1_136_480_768),
    "dinov3_vitl16": (lambda depth: files.dinov3(1024, depth, 16), 24, 368, 303_154_176),
    "dinov3_vith16plus": (lambda depth: files.dinov3(1280, depth, 20, swiglu=5120), 32, 552, 840_633_600),
}


def _round_trip(alias: str, state: State, **arguments: int) -> None:
    backbone = load_backbone(alias, state, **arguments)
    assert backbone.report is not None
    assert backbone.report.complete
    assert not backbone.report.ignored
    back = backbone.export_official()
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(back[name], tensor), name


@pytest.mark.parametrize("alias", PUBLISHED)
def test_published_layouts(alias: str) -> None:
    """Names, shapes and counts of the published file; every tensor finds its place and returns bit for bit."""
    make, tensors, parameters = PUBLISHED[alias]
    state = make()
    assert len(state) == tensors
    assert sum(v.numel() for k, v in state.items() if "bias_mask" not in k and "periods" not in k) == parameters
    _round_trip(alias, state)


@pytest.mark.parametrize(
    "alias",
    [name if name.endswith(("vitb16", "vitb14")) else pytest.param(name, marks=pytest.mark.slow) for name in LARGE],
)
def test_large_published_layouts(alias: str) -> None:
    """The same for larger sizes: counts of the whole file by shapes, and the way back of two blocks."""
    make, depth, tensors, parameters = LARGE[alias]
    with torch.device("meta"):
        state = make(depth)
    assert (len(state), files.parameters(state)) == (tensors, parameters)
    _round_trip(alias, make(2), depth=2)


def test_the_seven_billion_by_shapes() -> None:
    """DINOv3 7B, without memory: the official names and count follow from the model's shapes."""
    from dense.backbone.build import describe
    from dense.backbone.weights.official import to_dinov3

    with torch.device("meta"):
        backbone = Backbone.from_spec(describe("dinov3_vit7b16"))
    exported = to_dinov3(dict(backbone.state_dict()), backbone)
    with torch.device("meta"):
        state = files.dinov3(4096, 40, 32, swiglu=8192, qkv_bias=False, local_norm=True)
    assert len(state) == 610
    assert files.parameters(state) == 6_716_043_264
    assert {k: tuple(v.shape) for k, v in exported.items()} == {
        k: tuple(v.shape) for k, v in state.items() if "local_cls_norm" not in k
    }


def test_the_local_norm_is_kept_for_export() -> None:
    """The 7B's norm for local crops is not used, yet comes back in the export."""
    state = files.dinov3(32, 2, 4, swiglu=64, qkv_bias=False, local_norm=True)
    backbone = load_backbone("vit_7b_patch16_dinov3", state, embed_dim=32, depth=2, num_heads=4)
    assert {k for k in backbone.report.unused if k.startswith("local_cls_norm")} == {
        "local_cls_norm.weight",
        "local_cls_norm.bias",
    }
    assert backbone.export_official().keys() == state.keys()


def test_resnet_and_convnext() -> None:
    """The convolutional DINO backbones round-trip too."""
    torch.manual_seed(0)
    resnet = {
        k: v + 1 if v.is_floating_point() else v
        for k, v in timm.create_model("resnet50", num_classes=0).state_dict().items()
    }
    _round_trip("dino_resnet50", resnet)
    _round_trip("dinov3_convnext_tiny", files.convnext())


def test_official_equals_timms_own_conversion() -> None:
    """For the same official file, our features equal those of timm's own converter at the native size."""
    from timm.models.vision_transformer import checkpoint_filter_fn

    for registers in (0, 4):
        state = {k: v * 8 for k, v in files.dinov2(32, 3, registers=registers, size=98).items()}
        alias = "dinov2_vits14_reg" if registers else "dinov2_vits14"
        small = {"embed_dim": 32, "depth": 3, "num_heads": 4, "img_size": 98}
        ours = load_backbone(alias, state, **small)
        theirs = timm.create_model(ours.spec.name, num_classes=0, dynamic_img_size=True, **small).eval()
        theirs.load_state_dict(checkpoint_filter_fn(dict(state), theirs), strict=True)
        images = torch.randn(2, 3, 98, 98)
        with torch.no_grad():
            mine, their = ours(images, layers="last").maps[0], theirs.forward_features(images)[:, 1 + registers :]
        torch.testing.assert_close(mine.flatten(2).transpose(1, 2), their, rtol=1e-5, atol=1e-5)


def test_full_training_checkpoints(tmp_path: Path) -> None:
    """DINO v1's checkpoint (Namespace, NumPy numbers, DDP and head prefixes) and DINOv2's chunked teacher load."""
    bare, other = files.dino(32, 2, 16), files.dino(32, 2, 16)
    small = {"embed_dim": 32, "depth": 2, "num_heads": 4}
    checkpoint = {
        "teacher": {f"backbone.{k}": v for k, v in bare.items()} | {"head.mlp.0.weight": torch.zeros(4, 4)},
        "student": {f"module.backbone.{k}": v for k, v in other.items()}
        | {"module.head.last_layer.weight_v": torch.zeros(4, 4)},
        "optimizer": {"state": {}, "param_groups": [{"lr": np.float64(1e-3)}]},
        "epoch": 3,
        "args": Namespace(arch="vit_small", lr=np.float64(5e-4), patch_size=16),
    }
    path = tmp_path / "checkpoint.pth"
    torch.save(checkpoint, path)
    teacher = load_backbone("dino_vits16", path, **small)
    student = load_backbone("dino_vits16", path, branch="student", **small)
    assert torch.equal(teacher.model.cls_token, bare["cls_token"])
    assert torch.equal(student.model.cls_token, other["cls_token"])
    assert "head.mlp.0.weight" in teacher.report.ignored
    assert load_backbone("vit_small_patch16_224", path, **small).spec.positions == "official"

    chunked = files.dinov2(32, 4, chunks=2, size=98)
    torch.save({"teacher": {f"backbone.{k}": v for k, v in chunked.items()} | {"dino_head.x": torch.zeros(1)}}, path)
    backbone = load_backbone("dinov2_vits14", path, embed_dim=32, depth=4, num_heads=4, img_size=98)
    assert torch.equal(backbone.model.blocks[3].ls2.gamma, chunked["blocks.1.3.ls2.gamma"])


def test_ibot_and_timm_and_own(tmp_path: Path) -> None:
    """iBOT's masked_embed is the mask token; timm's and our own state dicts load as they are, .pth and .safetensors."""
    small = {"embed_dim": 32, "depth": 2, "num_heads": 4}
    ibot = files.dino(32, 2, 16) | {"masked_embed": torch.randn(1, 32)}
    backbone = load_backbone("ibot_vits16", ibot, **small)
    assert torch.equal(backbone.mask_token.detach(), ibot["masked_embed"])
    assert backbone.spec.positions == "official"
    assert torch.equal(backbone.export_official()["masked_embed"], ibot["masked_embed"])

    for name in ("vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3_qkvb"):
        model = timm.create_model(name, num_classes=0, **small)
        randomise(model)
        safetensors.torch.save_file(model.state_dict(), tmp_path / "timm.safetensors")
        loaded = load_backbone(name, tmp_path / "timm.safetensors", **small)
        images = (
            torch.randn(1, 3, loaded.spec.patch * 37, loaded.spec.patch * 37)
            if "14" in name
            else torch.randn(1, 3, 64, 64)
        )
        with torch.no_grad():
            model.eval()
            if "14" not in name:
                images = torch.randn(1, 3, *model.patch_embed.img_size)
            their = model.forward_features(images)[:, 5:]
            mine = loaded(images, layers="last").maps[0].flatten(2).transpose(1, 2)
        torch.testing.assert_close(mine, their, rtol=1e-5, atol=1e-4)

        torch.save(loaded.state_dict(), tmp_path / "own.pth")
        again = load_backbone(name, tmp_path / "own.pth", **small)
        assert all(
            torch.equal(a, b) for a, b in zip(again.state_dict().values(), loaded.state_dict().values(), strict=True)
        )


def test_timm_pretrained(tmp_path: Path) -> None:
    """weights="timm" goes through timm's own loading (here from a local file), and DINOv3's periods are rounded."""
    small = {"embed_dim": 32, "depth": 2, "num_heads": 4}
    for alias, name in (("dino_vits16", "vit_small_patch16_224"), ("dinov3_vits16", "vit_small_patch16_dinov3_qkvb")):
        model = timm.create_model(name, num_classes=0, **small)
        randomise(model)
        safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
        overlay = {"file": str(tmp_path / "model.safetensors"), "num_classes": 0, "custom_load": False}
        backbone = load_backbone(alias, "timm", pretrained_cfg_overlay=overlay, **small)
        assert torch.equal(backbone.model.cls_token, model.cls_token)
        if alias.startswith("dinov3"):
            assert backbone.spec.rope_periods == "bfloat16"
            assert torch.equal(backbone.model.rope.periods, model.rope.periods.bfloat16().float())
    with pytest.raises(WeightsError, match="publishes no weights"):
        load_backbone("vit_small_patch16_36x1_224", "timm")


def test_periods_follow_the_file() -> None:
    """Rounded periods give the rule bfloat16; others come from the file and survive casts, copies and saving."""
    import copy

    small = {"embed_dim": 64, "depth": 2, "num_heads": 4}
    state = files.dinov3(64, 2, 4)
    assert load_backbone("dinov3_vits16", state, **small).spec.rope_periods == "bfloat16"
    state["rope_embed.periods"] = torch.tensor([1.0, 3.3333333, 10.0, 31.0])
    odd = load_backbone("dinov3_vits16", state, **small)
    assert odd.spec.rope_periods == "checkpoint"
    for version in (odd, copy.deepcopy(odd), copy.deepcopy(odd).bfloat16().float()):
        assert torch.equal(version.model.rope.periods, state["rope_embed.periods"])

    # the rule follows from the values, and an option of the caller overrides the file
    fresh = load_backbone("dinov3_vits16", **small)
    assert load_backbone("dinov3_vits16", fresh.export_official(), **small).spec.rope_periods == "float32"
    override = load_backbone("dinov3_vits16", files.dinov3(64, 2, 4), rope_periods="float32", **small)
    assert override.spec.rope_periods == "float32"
    assert torch.equal(override.model.rope.periods, fresh.model.rope.periods)
    again = load_backbone("dinov3_vits16", odd.tensors(), **small)
    assert torch.equal(again.model.rope.periods, odd.model.rope.periods)


def test_biases_are_not_dropped_silently() -> None:
    """A DINOv3 file with query and value biases does not load into timm's model without them, unless they are zero."""
    small = {"embed_dim": 32, "depth": 2, "num_heads": 4}
    state = files.dinov3(32, 2, 4)
    with pytest.raises(WeightsError, match="vit_small_patch16_dinov3_qkvb"):
        load_backbone("vit_small_patch16_dinov3", state, **small)
    for name in state:
        if name.endswith("qkv.bias"):
            state[name].zero_()
    assert load_backbone("vit_small_patch16_dinov3", state, **small).report.ignored


@pytest.mark.parametrize(
    "family", ["dino_vits16", "dinov2_vits14", "dinov2_vits14_reg", "dinov3_vits16", "ibot_vits16"]
)
def test_own_models_export_and_return(family: str, tmp_path: Path) -> None:
    """A backbone trained here, written in the official layout, opens again with the same features."""
    backbone = tiny(family)
    path = tmp_path / "official.pth"
    backbone.export_official(path)
    again = load_backbone(
        family, path, embed_dim=32, depth=4, num_heads=4, **({"rope_periods": "float32"} if "v3" in family else {})
    )
    images = torch.randn(1, 3, 80, 112)
    with torch.no_grad():
        assert torch.equal(again(images).maps[-1], backbone(images).maps[-1])
