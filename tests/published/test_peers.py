"""Published heads equal transformers and segmentation_models_pytorch with the same random initialisation, to 1e-5."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

import dense
from dense.backbone import WeightsError, load_backbone
from dense.model.network import DenseModel
from dense.published import load_published
from dense.recipes import config_folder
from tests.heads.conftest import randomise
from tests.published import layouts, peers
from tests.published.peers import close, directory

SIZES = [(70, 70), (98, 70), (126, 210), (14, 84)]


@torch.no_grad()
def outputs_of(peer: Any, images: Tensor) -> Tensor:
    """Return depth (B, 1, H, W) or logits of a model of transformers."""
    found = peer(images)
    return found.logits if "logits" in found else found.predicted_depth[:, None]


@torch.no_grad()
def check(model: DenseModel, peer: Any, sizes: list[tuple[int, int]]) -> None:
    for size in sizes:
        images = torch.randn(2, 3, *size)
        close(model(images), outputs_of(peer, images))


def write(state: dict[str, Tensor], path: Path, wrapped: bool = False) -> Path:
    torch.save({"state_dict": state, "meta": {"epoch": 1}} if wrapped else state, path)
    return path


# ---- transformers' directories


@pytest.mark.parametrize("metric", [False, True])
def test_hf_depth_anything(metric: bool, tmp_path: Path) -> None:
    """config.json records everything; images of several sizes."""
    peer = peers.depth_anything(metric)
    model = load_published(directory(peer, tmp_path))
    assert model.depth_kind == ("metric" if metric else "inverse_relative")
    assert model.outputs["depth"].max_depth == (20 if metric else None)
    check(model, peer, SIZES)


def test_hf_depth_anything_on_swiglu(tmp_path: Path) -> None:
    """The MLP of the giant model, with layers and norm from config.json."""
    peer = peers.depth_anything(out_indices=[0, 1, 2, 4])
    with pytest.raises(WeightsError, match="expected 4 blocks, counted from 1"):
        load_published(directory(peer, tmp_path / "stem"))
    peer = peers.depth_anything(use_swiglu_ffn=True, apply_layernorm=False)
    model = load_published(directory(peer, tmp_path / "fine"))
    assert (model.layers, model.norm) == ((0, 1, 2, 3), False)
    check(model, peer, SIZES[1:2])


@pytest.mark.parametrize(
    ("readout", "batch_norm"), [("ignore", False), ("add", True), ("project", False), ("project", True)]
)
def test_hf_dpt_depth(readout: str, batch_norm: bool, tmp_path: Path) -> None:
    """DPT on its own ViT, which takes square images with even grids only."""
    peer = peers.dpt("DPTForDepthEstimation", readout, batch_norm)
    model = load_published(directory(peer, tmp_path), kind="relative")
    assert model.depth_kind == "inverse_relative"
    check(model, peer, [(64, 64), (96, 96), (32, 32)])


def test_hf_dpt_at_an_odd_grid(tmp_path: Path) -> None:
    """Doubling fusions make the reference output larger than the image; ours is the same, resized."""
    peer = peers.dpt("DPTForDepthEstimation", "project")
    model = load_published(directory(peer, tmp_path), kind="metric")
    images = torch.randn(2, 3, 80, 80)
    theirs = outputs_of(peer, images)
    assert theirs.shape[-2:] == (96, 96)
    with torch.no_grad():
        close(model(images), F.interpolate(theirs, size=(80, 80), mode="bilinear", align_corners=True))


def test_hf_dpt_on_dinov2(tmp_path: Path) -> None:
    """The converted heads of the DINOv2 hub, on odd grids and images that are not square."""
    backbone = peers.dinov2_config(apply_layernorm=False)
    peer = peers.dpt("DPTForDepthEstimation", width=256, add_projection=True, backbone_config=backbone)
    model = load_published(directory(peer, tmp_path), kind="metric")
    assert (model.layers, model.norm, model.depth_kind) == ((0, 1, 2, 3), False, "metric")
    for size in ((70, 70), (98, 126), (126, 84)):
        images = torch.randn(1, 3, *size)
        theirs = F.interpolate(outputs_of(peer, images), size=size, mode="bilinear", align_corners=True)
        with torch.no_grad():
            close(model(images), theirs)


def test_hf_dpt_segmentation(tmp_path: Path) -> None:
    """Logits, the auxiliary head, and names of classes."""
    peer = peers.dpt("DPTForSemanticSegmentation", batch_norm=True, num_labels=5)
    peer.config.id2label = {i: f"class {i}" for i in range(5)}
    model = load_published(directory(peer, tmp_path))
    assert model.classes == tuple(f"class {i}" for i in range(5))
    assert model.outputs["labels"].auxiliary
    check(model, peer, [(64, 64), (128, 128)])
    images = torch.randn(1, 3, 64, 64)
    fused = {}
    peer.auxiliary_head.register_forward_hook(lambda module, given, out: fused.update(out=out))
    with torch.no_grad():
        peer(images)
        paths = model.head.neck.paths(model.features(images))  # type: ignore[union-attr, operator]
        mine = model.head.auxiliary["labels"].eval()(paths[0], (64, 64))  # type: ignore[index]
    close(mine, fused["out"])


def test_hf_hybrid(tmp_path: Path) -> None:
    """DPT on a hybrid, which transformers runs at the native size only."""
    peer = peers.hybrid("DPTForDepthEstimation", reassemble_factors=[1, 1, 1, 0.5])  # as Intel/dpt-hybrid-midas says
    model = load_published(directory(peer, tmp_path), kind="relative")
    assert model.layers == (0, 1, 2, 3)
    check(model, peer, [(64, 64)])


def test_depth_anything_small_is_the_named_backbone(tmp_path: Path) -> None:
    """The published model has 24.8 million parameters and a backbone with a name."""
    library = peers.transformers()
    vit = {
        "hidden_size": 384,
        "num_attention_heads": 6,
        "image_size": 518,
        "patch_size": 14,
        "out_indices": [3, 6, 9, 12],
    }
    config = library.DepthAnythingConfig(backbone_config=library.Dinov2Config(**vit, reshape_hidden_states=False))
    state = layouts.depth_anything(library.DepthAnythingForDepthEstimation(config).state_dict())
    assert round(sum(t.numel() for t in state.values()) / 1e6, 1) == 24.8
    path = write(state, tmp_path / "depth_anything_v2_vits.pth")
    model = load_published(path, family="depth_anything_v2", kind="relative")
    assert model.backbone.spec.name == "vit_small_patch14_dinov2"
    assert not model.backbone.spec.arguments
    assert model.layers == (2, 5, 8, 11)
    assert load_published(path, family="depth_anything_v1", kind="relative").layers == (8, 9, 10, 11)


@pytest.mark.slow
def test_dpt_hybrid_is_the_named_backbone(tmp_path: Path) -> None:
    """The published model has 123 million parameters."""
    library = peers.transformers()
    measures: dict[str, Any] = {"neck_hidden_sizes": [256, 512, 768, 768], "backbone_out_indices": [0, 1, 8, 11]}
    config = library.DPTConfig(is_hybrid=True, layer_norm_eps=1e-6, **measures)
    peer = library.DPTForDepthEstimation(config).eval()
    peers.spread(peer, peer.head.head[4], 384)
    state = layouts.dpt(peer.state_dict())
    assert abs(sum(v.numel() for k, v in state.items() if "model.head" not in k) - 123e6) < 1e6
    model = load_published(write(state, tmp_path / "dpt_hybrid-midas-501f0c75.pt"), kind="relative")
    assert (model.backbone.spec.name, dict(model.backbone.spec.arguments)) == ("vit_base_r50_s16_384", {})
    assert model.layers == (0, 1, 8, 11)
    check(model, peer, [(384, 384)])


def test_old_config_files(tmp_path: Path) -> None:
    """config.json of an older transformers has a null under `backbone`, unlike directories of this project."""
    folder = directory(peers.depth_anything(), tmp_path)
    text = (
        (folder / "config.json")
        .read_text()
        .replace('"model_type": "depth_anything"', '"backbone": null, "model_type": "depth_anything"')
    )
    (folder / "config.json").write_text(text)
    assert dense.load(folder).model.depth_kind == "inverse_relative"


def test_statistics_of_a_preprocessor(tmp_path: Path) -> None:
    """Mean and std for 0 to 255 become those for 0 to 1; the size is that of the shorter side."""
    folder = directory(peers.depth_anything(), tmp_path)
    facts = {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [51] * 3, "size": {"height": 42, "width": 56}}
    (folder / "preprocessor_config.json").write_text(json.dumps(facts))
    model = load_published(folder)
    assert model.backbone.spec.mean == (0.5, 0.5, 0.5)
    assert model.backbone.spec.std == (0.2, 0.2, 0.2)
    assert model.inference.resize == 42


# ---- files of the authors


@pytest.mark.parametrize("metric", [False, True])
def test_depth_anything_v2(metric: bool, tmp_path: Path) -> None:
    """The same weights in the authors' layout; position interpolation agrees with transformers at the native size."""
    peer = peers.depth_anything(metric)
    path = write(layouts.depth_anything(peer.state_dict()), tmp_path / "depth_anything_v2.pth")
    how: dict[str, Any] = {"kind": "metric", "max_depth": 20} if metric else {"kind": "relative"}
    model = load_published(path, family="depth_anything_v2", **how)
    assert model.backbone.report is not None
    assert model.backbone.report.complete
    assert (model.layers, model.norm, model.inference.resize) == ((0, 1, 2, 3), True, 518)
    check(model, peer, [(70, 70)])
    assert model.backbone.spec.positions == "official"
    model.backbone.spec = replace(model.backbone.spec, positions="size")
    check(model, peer, SIZES)


def test_depth_anything_v1_reads_the_last_four(tmp_path: Path) -> None:
    """Of eight layers, V1 reads 5 to 8 and V2 2, 4, 6, 8."""
    for version, indices in ((1, [5, 6, 7, 8]), (2, [2, 4, 6, 8])):
        peer = peers.depth_anything(num_hidden_layers=8, out_indices=indices)
        path = write(layouts.depth_anything(peer.state_dict()), tmp_path / f"{version}.pth")
        model = load_published(path, family=f"depth_anything_v{version}", kind="relative")
        assert model.layers == tuple(i - 1 for i in indices)
        check(model, peer, [(70, 70)])


def test_dpt_depth(tmp_path: Path) -> None:
    """isl-org's own layout inside a training checkpoint; positions at other sizes are bilinear."""
    peer = peers.dpt("DPTForDepthEstimation", layer_norm_eps=1e-6)
    path = tmp_path / "dpt.pt"
    torch.save({"model": layouts.dpt(peer.state_dict()), "optimizer": {"step": 1}}, path)
    model = load_published(path, kind="relative")
    assert (model.layers, model.norm, model.backbone.spec.mean) == ((0, 1, 2, 3), False, (0.5, 0.5, 0.5))
    assert model.report is not None
    assert all("fusion.3.unit1" in name for name in model.report.ignored)
    check(model, peer, [(64, 64), (96, 96)])


@pytest.mark.parametrize(("kind", "scale", "shift"), [("nyu", 0.000305, 0.1378), ("kitti", 0.00006016, 0.00579)])
def test_dpt_hybrid_in_metres(kind: str, scale: float, shift: float, tmp_path: Path) -> None:
    """Metres are the inverse of a scaled and shifted output."""
    peer = peers.hybrid("DPTForDepthEstimation", layer_norm_eps=1e-6)
    for parameter in peer.head.head[4].parameters():
        parameter.data *= shift / scale
    model = load_published(write(layouts.dpt(peer.state_dict()), tmp_path / "hybrid.pt"), kind=kind)
    assert (model.depth_kind, model.layers) == ("metric", (0, 1, 2, 3))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        close(model(images), 1 / (scale * outputs_of(peer, images) + shift).clamp(min=1e-8))


def test_dpt_segmentation(tmp_path: Path) -> None:
    """150 classes have the names of ADE20K."""
    peer = peers.hybrid("DPTForSemanticSegmentation", batch_norm=True, num_labels=150, layer_norm_eps=1e-6)
    model = load_published(write(layouts.dpt(peer.state_dict()), tmp_path / "ade.pt"))
    assert model.classes is not None
    assert model.classes[:2] == ("wall", "building")
    assert model.outputs["labels"].auxiliary
    check(model, peer, [(64, 64)])
    model = load_published(tmp_path / "ade.pt", classes=list(range(150)))
    assert model.classes == tuple(map(str, range(150)))


def test_dinov2_depth_dpt(tmp_path: Path) -> None:
    """The hub's head on a given backbone: between min_depth and max_depth, resized without aligned corners."""
    config = peers.dinov2_config(apply_layernorm=False)
    peer = peers.dpt("DPTForDepthEstimation", width=256, add_projection=True, backbone_config=config)
    images = torch.randn(1, 3, 98, 126)
    state = peer.state_dict()
    path = write(layouts.dinov2_dpt(state), tmp_path / "head.pth", wrapped=True)
    vit = layouts.native_vit(state, "backbone.")
    backbone = load_backbone("dinov2_vits14", vit, embed_dim=64, depth=4, num_heads=1, img_size=70, positions="size")
    theirs = F.interpolate(outputs_of(peer, images) + 0.001, size=(98, 126), mode="bilinear", align_corners=False)
    limit = float(theirs.quantile(0.9))
    with torch.no_grad():
        free = load_published(path, backbone=backbone, max_depth=1e6)
        close(free(images), theirs)
        limited = load_published(path, backbone=backbone, max_depth=limit)
        assert float(limited(images).max()) <= limit
    assert (free.layers, free.norm) == ((0, 1, 2, 3), False)
    published = free.head.options()
    for recipe in config_folder().glob("depth/dpt_*.yaml"):  # whose heads are those of DINOv2
        head = yaml.safe_load(recipe.read_text())["model"]["init_args"]["head"]
        for option in ("width", "readout", "project", "fusion_size"):
            assert head[option] == published[option]


@pytest.mark.parametrize(("bins", "normalisation"), [("linear", "linear"), ("log", "softmax"), ("linear", "sigmoid")])
def test_dinov3_depth_dpt(bins: str, normalisation: str, tmp_path: Path) -> None:
    """Compare with CHMv2 of transformers, which is such a head with bins."""
    library = pytest.importorskip("transformers", minversion="5.20")
    vit = library.DINOv3ViTConfig(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=1, intermediate_size=128, image_size=64,
        key_bias=False, num_register_tokens=4, out_indices=[1, 2, 3, 4], reshape_hidden_states=True,
        apply_layernorm=True, return_class_token=True,
    )  # fmt: skip
    config = library.CHMv2Config(
        backbone_config=vit, post_process_channels=peers.WIDTHS, fusion_hidden_size=8, number_output_channels=16,
        head_hidden_size=6, max_depth=10.0, bins_strategy=bins, norm_strategy=normalisation,
    )  # fmt: skip
    peer = peers.made(library.CHMv2ForDepthEstimation(config))
    head = layouts.dinov3_dpt({k: v for k, v in peer.state_dict().items() if k.startswith("head.")})
    path = write(head, tmp_path / "head.pth")
    backbone = {k.removeprefix("backbone."): v for k, v in peer.state_dict().items() if k.startswith("backbone.")}
    measures = {
        "embed_dim": 64,
        "depth": 4,
        "num_heads": 1,
        "img_size": 64,
        "mlp_ratio": 2.0,
        "norm_eps": vit.layer_norm_eps,
    }
    mine = load_backbone("dinov3_vitb16", backbone, **measures)
    model = load_published(path, backbone=mine, max_depth=10, norm=True, bins=bins, normalisation=normalisation)
    for size in ((64, 64), (80, 112)):
        images = torch.randn(1, 3, *size)
        theirs = F.interpolate(outputs_of(peer, images), size=size, mode="bilinear", align_corners=True)
        with torch.no_grad():
            close(model(images), theirs)


@pytest.mark.parametrize(
    "facts",
    [
        {"do_pad": True, "size_divisor": 14},
        {"do_rescale": False, "image_mean": [123.675, 116.28, 103.53], "image_std": [58.395, 57.12, 57.375]},
        {"rescale_factor": 1 / 127.5},
        {"do_normalize": False},
    ],
)
def test_images_are_prepared_as_the_preprocessor_says(facts: dict[str, Any], tmp_path: Path) -> None:
    """Padded sides and statistics of any scale equal those of transformers' image processor."""
    backbone = peers.dinov2_config(apply_layernorm=False)
    peer = peers.dpt("DPTForDepthEstimation", backbone_config=backbone)
    processor = peers.transformers().DPTImageProcessor(do_resize=False, **facts)
    processor.save_pretrained(directory(peer, tmp_path))
    model = load_published(tmp_path, kind="metric")
    image = torch.randint(0, 256, (3, 80, 94), dtype=torch.uint8)
    theirs = processor(image, return_tensors="pt")["pixel_values"]
    mine = model.backbone.normalise(image[None])
    if facts.get("do_pad"):
        mine = model.backbone.pad_to_patch_multiple(mine)[0]
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


# ---- segmentation_models_pytorch


@pytest.mark.parametrize("readout", ["cat", "add", "ignore"])
def test_smp(readout: str, tmp_path: Path) -> None:
    """The saved directory records everything; sizes are even numbers of patches, as the library requires."""
    library = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    peer = library.DPT(
        "tu-vit_tiny_patch16_224", encoder_weights=None, classes=3, decoder_readout=readout, img_size=64,
        decoder_intermediate_channels=peers.WIDTHS, decoder_fusion_channels=8, dynamic_img_size=True,
    )  # fmt: skip
    randomise(peer.decoder, 0.1), randomise(peer.segmentation_head, 0.1)
    peer.eval().save_pretrained(tmp_path)
    model = load_published(tmp_path)
    assert (model.layers, model.norm) == ((2, 5, 8, 11), False)
    for size in ((64, 64), (96, 64), (128, 192)):
        images = torch.randn(1, 3, *size)
        with torch.no_grad():
            close(model(images), peer(images))
    torch.save(peer.state_dict(), tmp_path / "bare.pth")
    how: dict[str, Any] = {} if readout == "cat" else {"readout": readout}
    bare = load_published(tmp_path / "bare.pth", encoder="tu-vit_tiny_patch16_224", arguments={"img_size": 64}, **how)
    with torch.no_grad():
        close(bare(images), peer(images))


def test_smp_classes(tmp_path: Path) -> None:
    """Classes have no names of a data set without published heads, and a single logit raises."""
    library = pytest.importorskip("segmentation_models_pytorch")
    for count in (1, 19, 21):
        peer = library.DPT("tu-vit_tiny_patch16_224", encoder_weights=None, classes=count, img_size=64)
        peer.save_pretrained(tmp_path)
        if count == 1:
            with pytest.raises(WeightsError, match="has one class"):
                load_published(tmp_path)
        else:
            assert load_published(tmp_path).classes is None
