"""Files without a library to compare with: published layouts, formulas of the papers, and errors with choices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import dense
from dense.backbone import Backbone, WeightsError, load_backbone
from dense.model.network import DenseModel
from dense.published import FAMILIES, load_published
from dense.published.assemble import inverted, rename
from dense.published.huggingface import BIT, DEPTH, LABELS
from tests.backbone.conftest import randomise
from tests.published import layouts, peers

DIM = 64
TINY: dict[str, Any] = {"embed_dim": DIM, "depth": 8, "num_heads": 1}


@pytest.fixture(scope="module")
def dinov2() -> Backbone:
    made = load_backbone("dinov2_vits14", img_size=70, **TINY)
    randomise(made)
    return made


@pytest.fixture(scope="module")
def dinov3() -> Backbone:
    made = load_backbone("dinov3_vits16", **TINY)
    randomise(made)
    return made


def write(state: dict[str, Tensor], path: Path, wrapper: str | None = "state_dict") -> Path:
    torch.save({wrapper: state} if wrapper else state, path)
    return path


def check(model: DenseModel, images: Tensor, expected: Tensor) -> None:
    with torch.no_grad():
        found = model(images)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


# ---- the formulas of heads that no library has


@pytest.mark.parametrize("count", [1, 4])
def test_dinov2_linear_depth(count: int, dinov2: Backbone, tmp_path: Path) -> None:
    """Raw patch tokens beside the class token, upsampled four times, then 256 bins weighted by relu + 0.1."""
    state = {
        "decode_head.conv_depth.weight": torch.randn(256, 2 * DIM * count, 1, 1) * 0.1,
        "decode_head.conv_depth.bias": torch.randn(256),
    }
    model = load_published(write(state, tmp_path / "head.pth"), backbone=dinov2, max_depth=10)
    layers = (7,) if count == 1 else (1, 3, 5, 7)
    assert (model.layers, model.norm, model.depth_kind) == (layers, False, "metric")
    images = torch.randn(1, 3, 70, 98)
    with torch.no_grad():
        features = dinov2(images, layers=layers, norm=False)
    pairs = zip(features.maps, features.prefix, strict=True)
    joined = [torch.cat((m, p[:, 0, :, None, None].expand_as(m)), 1) for m, p in pairs]
    large = [F.interpolate(m, scale_factor=4, mode="bilinear", align_corners=False) for m in joined]
    logits = F.conv2d(torch.cat(large, 1), *state.values())
    weights = logits.relu() + 0.1
    depths = torch.linspace(0.001, 10, 256)
    depth = torch.einsum("bkhw,k->bhw", weights / weights.sum(1, keepdim=True), depths)[:, None]
    check(model, images, F.interpolate(depth, size=(70, 98), mode="bilinear", align_corners=False))


@pytest.mark.parametrize("count", [1, 4])
def test_dinov2_segmentation(count: int, dinov2: Backbone, tmp_path: Path) -> None:
    """BatchNorm in evaluation mode and a 1x1 convolution of normed patches; ms uses the last four layers."""
    total = DIM * count
    state = {
        "decode_head.conv_seg.weight": torch.randn(21, total, 1, 1),
        "decode_head.conv_seg.bias": torch.randn(21),
        "decode_head.bn.weight": torch.rand(total) + 0.5,
        "decode_head.bn.bias": torch.randn(total),
        "decode_head.bn.running_mean": torch.randn(total),
        "decode_head.bn.running_var": torch.rand(total) + 0.5,
        "decode_head.bn.num_batches_tracked": torch.tensor(7),
    }
    model = load_published(write(state, tmp_path / "head.pth"), backbone=dinov2)
    layers = (7,) if count == 1 else (4, 5, 6, 7)
    assert (model.layers, model.norm) == (layers, True)
    assert model.classes is not None
    assert model.classes[1] == "aeroplane"
    assert model.inference.window == (512 if count == 1 else 640)
    images = torch.randn(1, 3, 70, 98)
    with torch.no_grad():
        x = torch.cat(dinov2(images, layers=layers, norm=True).maps, 1)
    w, b, scale, shift, mean, var, _ = state.values()
    x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt() * scale[:, None, None] + shift[:, None, None]
    check(model, images, F.interpolate(F.conv2d(x, w, b), size=(70, 98), mode="bilinear", align_corners=False))


@pytest.mark.parametrize("normed", [False, True])
def test_dinov3_linear(normed: bool, dinov3: Backbone, tmp_path: Path) -> None:
    """Segmentation with BatchNorm, and depth with the class token, of the last layer."""
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        features = dinov3(images, layers="last", norm=True)
    state = {"conv.weight": torch.randn(150, DIM, 1, 1), "conv.bias": torch.randn(150)}
    x = features.maps[0]
    if normed:
        statistics = {"running_mean": torch.randn(DIM), "running_var": torch.rand(DIM) + 0.5}
        affine = {"weight": torch.rand(DIM) + 0.5, "bias": torch.randn(DIM)}
        state |= {f"batchnorm_layer.{k}": v for k, v in (statistics | affine).items()}
        x = F.batch_norm(x, *statistics.values(), *affine.values())
    model = load_published(write(state, tmp_path / "labels.pth", "model"), backbone=dinov3)
    assert (model.layers, model.norm) == ((7,), True)
    expected = F.conv2d(x, state["conv.weight"], state["conv.bias"])
    check(model, images, F.interpolate(expected, size=(64, 96), mode="bilinear", align_corners=False))

    state = {"conv_depth.weight": torch.randn(16, 2 * DIM, 1, 1), "conv_depth.bias": torch.randn(16)}
    path = write(state, tmp_path / "depth.pth", None)
    model = load_published(path, backbone=dinov3, max_depth=10, norm=True, normalisation="softmax", bins="log")
    token = features.prefix[0][:, 0, :, None, None].expand_as(features.maps[0])
    logits = F.conv2d(torch.cat((features.maps[0], token), 1), *state.values())
    depths = torch.from_numpy(np.geomspace(0.001, 10, 16).astype(np.float32))
    depth = (logits.softmax(1) * depths[:, None, None]).sum(1, keepdim=True)
    check(model, images, F.interpolate(depth, size=(64, 96), mode="bilinear", align_corners=False))


def test_dinov3_dpt_with_every_part(dinov3: Backbone, tmp_path: Path) -> None:
    """BatchNorm of the maps, the last projection and biases are loaded, with and without module wrappers."""
    state: dict[str, Tensor] = {}

    def conv(name: str, out: int, into: int, side: int, bias: bool = True, inner: str = "conv.") -> None:
        state[f"{name}.{inner}weight"] = torch.randn(out, into, side, side) * 0.1
        if bias:
            state[f"{name}.{inner}bias"] = torch.randn(out)

    for i, middle in enumerate(peers.WIDTHS):
        for k in ("weight", "bias", "running_mean", "running_var"):
            state[f"reassemble_blocks.batchnorm_layers.{i}.{k}"] = torch.rand(DIM) + 0.5
        conv(f"reassemble_blocks.projects.{i}", middle, DIM, 1)
        state[f"reassemble_blocks.readout_projects.{i}.0.weight"] = torch.randn(DIM, 2 * DIM) * 0.1
        state[f"reassemble_blocks.readout_projects.{i}.0.bias"] = torch.randn(DIM)
        if i != 2:
            conv(f"reassemble_blocks.resize_layers.{i}", middle, middle, (4, 2, 0, 3)[i], inner="")
        conv(f"convs.{i}", 8, middle, 3, bias=False)
        conv(f"fusion_blocks.{i}.project", 8, 8, 1)
        for unit in (1, 2)[i == 0 :]:
            for part in (1, 2):
                conv(f"fusion_blocks.{i}.res_conv_unit{unit}.conv{part}", 8, 8, 3, bias=False)
    conv("project", 8, 8, 3)
    conv("conv_depth.head.0", 4, 8, 3, inner="")
    conv("conv_depth.head.2", 6, 4, 3, inner="")
    conv("conv_depth.head.4", 256, 6, 1, inner="")
    path = write(state, tmp_path / "head.pth", None)
    model = load_published(path, backbone=dinov3, max_depth=100, norm=True)
    assert model.report is not None
    assert model.report.complete
    counters = {k for k in model.head.state_dict() if k.endswith("num_batches_tracked")}
    assert len(model.report.matched) - len(counters) == len(state)
    spec = model.head.spec()  # type: ignore[operator]
    assert (spec["input_norm"], spec["project"], spec["bias"], spec["fusion_size"]) == (True, True, False, "double")
    with torch.no_grad():
        depth = model(torch.randn(1, 3, 80, 112))
    assert depth.shape == (1, 1, 80, 112)
    assert 0.001 <= float(depth.min()) <= float(depth.max()) <= 100
    del state["fusion_blocks.2.res_conv_unit1.conv1.conv.weight"]
    with pytest.raises(WeightsError, match="nothing was loaded"):
        load_published(write(state, path, None), backbone=dinov3, max_depth=100, norm=True)


# ---- what a file does not record


@pytest.fixture(scope="module")
def anything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = layouts.depth_anything(peers.depth_anything().state_dict())
    return write(state, tmp_path_factory.mktemp("anything") / "depth_anything_v2_vits.pth", None)


@pytest.fixture(scope="module")
def midas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = layouts.dpt(peers.dpt("DPTForDepthEstimation").state_dict())
    return write(state, tmp_path_factory.mktemp("midas") / "dpt.pt", None)


def test_missing_facts_raise(anything: Path, midas: Path, dinov2: Backbone, dinov3: Backbone, tmp_path: Path) -> None:
    """Each error names the file and lists the choices."""
    head = {
        "decode_head.conv_depth.weight": torch.zeros(256, 1536, 1, 1),
        "decode_head.conv_depth.bias": torch.zeros(256),
    }
    linear = write(head, tmp_path / "linear.pth")
    small = write({k: v[:, :128] if v.ndim > 1 else v for k, v in head.items()}, tmp_path / "small.pth")
    v2 = {"family": "depth_anything_v2"}
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (anything, {}, "family='depth_anything_v1' .* or family='depth_anything_v2'"),
        (anything, v2, "kind='relative' .*; kind='metric'"),
        (anything, v2 | {"kind": "metrical"}, "kind='metrical' does not suit .*kind='metric'"),
        (anything, v2 | {"kind": "metric"}, "max_depth=20 for models trained indoors, 80"),
        (anything, v2 | {"kind": "metric", "max_depth": -1}, "max_depth=-1: expected a positive number"),
        (anything, {"family": "depth_anything_v1", "kind": "metric"}, "ZoeDepth"),
        (
            anything,
            {"family": "dpt_depth"},
            "no file of dpt_depth .* looks like depth_anything_v1 or depth_anything_v2",
        ),
        (anything, {"family": "depth_anythin_v2"}, "Did you mean depth_anything_v2"),
        (midas, {}, "kind='relative' .*kind='nyu' .*kind='kitti'"),
        (linear, {}, "max_depth=10 for heads of NYUv2, 80"),
        (linear, {"max_depth": 10}, "backbone='dinov2_vitb14'"),
        (linear, {"max_depth": 10, "backbone": "dinov2_vitb14"}, "without weights; add weights=FILE"),
        (linear, {"max_depth": 10, "backbone": dinov2}, "768 or 192 channels and .* has 64"),
        (small, {"max_depth": 10, "backbone": dinov2, "classes": 3}, "takes no 'classes'"),
        (small, {"max_depth": 10, "backbone": dinov3}, "head of dinov2 and .* is of family dinov3"),
        (
            anything,
            v2 | {"kind": "relative", "max_depth": 20},
            "max_depth=20 is in metres and kind='relative' has none",
        ),
    ]
    for path, facts, words in cases:
        with pytest.raises((WeightsError, TypeError), match=words) as error:
            load_published(path, **facts)
        assert "\n" not in str(error.value)


def test_unknown_files_name_what_is_nearest(tmp_path: Path, dinov2: Backbone) -> None:
    """A backbone, unsupported families, an incomplete head, unrelated tensors."""
    cases: list[tuple[dict[str, Tensor], str]] = [
        (dinov2.export_official(), "It is a backbone .dinov2. without a head: open it with dense.load_backbone"),
        ({"aggregator.patch_embed.weight": torch.zeros(1)}, "It is VGGT"),
        ({"core.core.pretrained.model.x": torch.zeros(1)}, "It is ZoeDepth"),
        ({"encoder_level1.0.attn.temperature": torch.zeros(1)}, "Nearest: restormer"),
        ({"decode_head.conv_seg.weight": torch.zeros(1)}, "Nearest: dinov2_segmentation .has decode_head"),
        (
            {"neck.fusion_stage.layers.0.x": torch.zeros(1), "head.conv3.weight": torch.zeros(1)},
            "Nearest: hf_depth_anything",
        ),
        ({"nonsense.weight": torch.zeros(1)}, "resemble none of dpt_depth, "),
    ]
    beit = layouts.dpt(peers.dpt("DPTForDepthEstimation").state_dict())
    del beit["pretrained.model.pos_embed"]
    beit["pretrained.model.blocks.0.attn.relative_position_bias_table"] = torch.zeros(3, 1)
    cases.append((beit, "It is MiDaS v3.1 on BEiT or Swin"))
    for state, words in cases:
        with pytest.raises(WeightsError, match=words):
            load_published(write(state, tmp_path / "file.pth", None))
    (tmp_path / "text.pth").write_text("<html>")
    with pytest.raises(WeightsError, match="web page"):
        load_published(tmp_path / "text.pth")
    with pytest.raises(FileNotFoundError):
        load_published(tmp_path / "none.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(WeightsError, match="holds no weights"):
        load_published(tmp_path / "empty.pth")


def test_a_head_gets_the_layers_it_was_trained_on(tmp_path: Path) -> None:
    """Whatever the default layers of the given backbone are."""
    backbone = load_backbone("dinov2_vits14", img_size=70, layers=(0, 1, 2, 3), **TINY)
    head = {
        "decode_head.conv_depth.weight": torch.zeros(256, 8 * DIM, 1, 1),
        "decode_head.conv_depth.bias": torch.zeros(256),
    }
    path = write(head, tmp_path / "linear4.pth")
    assert load_published(path, backbone=backbone, max_depth=10).layers == (1, 3, 5, 7)


def test_damaged_directories(tmp_path: Path) -> None:
    """JSON that is no dictionary, an index without its map, a missing path."""
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(WeightsError, match="holds a list; expected names and values"):
        dense.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "dpt"}')
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(WeightsError, match="has no weight_map"):
        dense.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file or directory"):
        dense.load(tmp_path / "none.pth", family="depth_anything_v2")


def test_an_incomplete_file(tmp_path: Path) -> None:
    """A missing tensor is named."""
    state = layouts.dpt(peers.dpt("DPTForSemanticSegmentation", batch_norm=True, num_labels=5).state_dict())
    del state["scratch.output_conv.4.weight"]
    with pytest.raises(WeightsError, match=r"lacks 'branches\.labels\.classifier\.weight'"):
        load_published(write(state, tmp_path / "half.pt", None))


def test_directories_need_their_config(tmp_path: Path) -> None:
    """The tensors of transformers alone are not enough; other model types raise."""
    folder = peers.directory(peers.depth_anything(), tmp_path)
    (folder / "config.json").rename(folder / "config.txt")
    with pytest.raises(WeightsError, match=r"config\.json says None, not 'depth_anything'"):
        load_published(folder)
    (folder / "config.txt").rename(folder / "config.json")
    assert load_published(folder / "model.safetensors").depth_kind == "inverse_relative"
    text = (folder / "config.json").read_text().replace('"model_type": "dinov2"', '"model_type": "swinv2"')
    (folder / "config.json").write_text(text)
    with pytest.raises(WeightsError, match="type 'swinv2'; supported are dinov2"):
        load_published(folder)


@pytest.mark.parametrize(
    ("table", "name"),
    [
        (DEPTH, "neck.reassemble_stage.readout_projects.3.0.weight"),
        (DEPTH, "neck.fusion_stage.layers.0.residual_layer2.batch_norm1.running_mean"),
        (LABELS, "auxiliary_head.head.4.bias"),
        (BIT, "embeddings.backbone.bit.encoder.stages.2.layers.10.conv3.weight"),
    ],
)
def test_inverted_tables(table: dict[str, str], name: str) -> None:
    """A renamed tensor gets its published name back."""
    ours = rename(name, table)
    assert ours != name
    assert rename(ours, inverted(table)) == name


# ---- from Python


def test_load_gives_a_predictor(anything: Path, tmp_path: Path) -> None:
    """`dense.load` takes the options of both, and its model can be saved and opened again."""
    image = np.random.default_rng(0).integers(0, 256, (50, 77, 3), np.uint8)
    predictor = dense.load(anything, family="depth_anything_v2", kind="metric", max_depth=20, resize=42)
    prediction = predictor(image)
    assert isinstance(prediction, dense.Depth)
    assert (prediction.kind, prediction.values.shape, predictor.inference.resize) == ("metric", (50, 77), 42)
    predictor.model.save_pretrained(tmp_path / "own")
    again = dense.load(tmp_path / "own", resize=42)(image)
    assert isinstance(again, dense.Depth)
    np.testing.assert_array_equal(again.values, prediction.values)
    with pytest.raises(TypeError, match="no published file, and a model takes no 'kind'"):
        dense.load(tmp_path / "own", kind="metric")
    with pytest.raises(TypeError, match="Did you mean resize"):
        dense.load(tmp_path / "own", resiz=42)


def test_every_family_lists_its_options() -> None:
    for family in FAMILIES.values():
        assert family.title
        assert "file" not in family.options
