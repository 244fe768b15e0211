"""DPT heads equal those of transformers and of segmentation_models_pytorch with the same random initialisation."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dense.backbone import load_backbone
from dense.published.assemble import renamed
from dense.published.huggingface import DEPTH, DEPTH_ANYTHING, LABELS
from dense.published.smp import TABLE as SMP
from heads import DPT, Classes, DenseHead, Features, Regression
from tests.heads.conftest import features_of, randomise

CHANNELS, WIDTHS = (32,) * 4, (4, 8, 16, 32)


def load(head: DenseHead, state: dict[str, Tensor], unread: str = r"neck\.fusion\.3\.unit1\.") -> None:
    """Strict, but for the published unit of the deepest fusion that nothing reads."""
    head.load_state_dict({k: v for k, v in state.items() if not re.match(unread, k)}, strict=True)
    head.eval()


def scaled_close(mine: Tensor, theirs: Tensor) -> None:
    """Equal to 1e-5 of the largest value."""
    assert mine.shape == theirs.shape
    assert theirs.std() > 0
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


# ---- transformers


def depth_anything(**options: Any) -> Any:
    """A tiny random Depth Anything."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    backbone = transformers.Dinov2Config(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=70,
        patch_size=14,
        out_indices=[1, 2, 3, 4],
        apply_layernorm=True,
        reshape_hidden_states=False,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=32,
        patch_size=14,
        neck_hidden_sizes=list(WIDTHS),
        fusion_hidden_size=8,
        head_hidden_size=6,
        **options,
    )
    model = transformers.DepthAnythingForDepthEstimation(config).eval()
    randomise(model)
    model.head.conv3.bias.data.fill_(1.0)  # in front of the ReLU: not zero everywhere
    return model


@pytest.mark.parametrize("size", [(98, 70), (126, 210), (210, 238), (14, 84)])
@pytest.mark.parametrize("metric", [False, True])
def test_depth_anything(size: tuple[int, int], metric: bool) -> None:
    """From the image, through our backbone, at sizes that are not square, with odd grids and one row."""
    model = depth_anything(**({"depth_estimation_type": "metric", "max_depth": 20} if metric else {}))
    if metric:
        output = Regression("sigmoid", max_depth=20.0, hidden=6, upsample="image")
    else:
        output = Regression("relu", kind="inverse_relative", hidden=6, upsample="image")
    head = DPT(CHANNELS, 8, WIDTHS).with_outputs(depth=output)
    state = model.state_dict()
    load(head, renamed({k: v for k, v in state.items() if not k.startswith("backbone.")}, DEPTH_ANYTHING))
    theirs = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    backbone = load_backbone("dinov2_vitb14", theirs, embed_dim=32, depth=4, num_heads=4, img_size=70, positions="size")
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        mine = head(backbone(images, layers=(0, 1, 2, 3), norm=True))["depth"][:, 0]
        scaled_close(mine, model(images).predicted_depth)


@pytest.mark.parametrize("readout", ["ignore", "add", "project"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_dpt_depth(readout: Any, batch_norm: bool) -> None:
    """DPT with each readout, with and without BatchNorm in the residual units."""
    model = dpt("DPTForDepthEstimation", readout, batch_norm)
    head = DPT(CHANNELS, 8, WIDTHS, readout=readout, batch_norm=batch_norm, bias=not batch_norm)
    head = head.with_outputs(depth=Regression("relu"))
    load(head, renamed(head_state(model), DEPTH))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        theirs = model(images, output_hidden_states=True)
        scaled_close(head(from_hidden(theirs.hidden_states))["depth"][:, 0], theirs.predicted_depth)


def test_dpt_depth_with_projection() -> None:
    """The convolution after the fusion, of the DINOv2 conversions."""
    model = dpt("DPTForDepthEstimation", "project", False, width=256, add_projection=True)
    head = DPT(CHANNELS, 256, WIDTHS, readout="project", project=True).with_outputs(depth=Regression("relu"))
    load(head, renamed(head_state(model), DEPTH))
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        theirs = model(images, output_hidden_states=True)
        scaled_close(head(from_hidden(theirs.hidden_states))["depth"][:, 0], theirs.predicted_depth)


def test_dpt_segmentation() -> None:
    """Logits at the size of the image."""
    model = dpt("DPTForSemanticSegmentation", "project", True, num_labels=5, use_auxiliary_head=False)
    neck = DPT(CHANNELS, 8, WIDTHS, readout="project", batch_norm=True, bias=False)
    head = neck.with_outputs(labels=Classes(5))
    load(head, renamed(head_state(model), LABELS))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        theirs = model(images, output_hidden_states=True)
        scaled_close(head(from_hidden(theirs.hidden_states))["labels"], theirs.logits)


def dpt(name: str, readout: str, batch_norm: bool, width: int = 8, **options: Any) -> Any:
    """A tiny random DPT of transformers with its own ViT/16."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.DPTConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=64,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        readout_type=readout,
        neck_hidden_sizes=list(WIDTHS),
        fusion_hidden_size=width,
        use_batch_norm_in_fusion_residual=batch_norm,
        is_hybrid=False,
        **options,
    )
    model = getattr(transformers, name)(config).eval()
    randomise(model, 0.1)
    if "Depth" in name:
        model.head.head[4].bias.data.fill_(1.0)  # in front of the ReLU: not zero everywhere
    return model


def head_state(model: nn.Module) -> dict[str, Tensor]:
    """All but the backbone."""
    return {k: v for k, v in model.state_dict().items() if not k.startswith("dpt.")}


def from_hidden(hidden: tuple[Tensor, ...]) -> Features:
    """Their hidden states of a square image as features."""
    tokens = hidden[1:]
    side = round((tokens[0].shape[1] - 1) ** 0.5)
    maps = tuple(t[:, 1:].transpose(1, 2).unflatten(2, (side, side)) for t in tokens)
    prefix = tuple(t[:, :1] for t in tokens)
    return features_of((side, side), CHANNELS, patch=16, maps=maps, prefix=prefix)


# ---- segmentation_models_pytorch


@pytest.mark.parametrize(("theirs", "ours"), [("cat", "project"), ("add", "add"), ("ignore", "ignore")])
def test_smp(theirs: Any, ours: Any) -> None:
    """Decoder and segmentation head, on an even grid, which theirs needs."""
    decoder = pytest.importorskip("segmentation_models_pytorch.decoders.dpt.decoder")
    module = nn.Module()
    module.decoder = decoder.DPTDecoder(CHANNELS, (16,) * 4, True, theirs, WIDTHS, 8)
    module.segmentation_head = decoder.DPTSegmentationHead(8, 5)
    randomise(module).eval()
    neck = DPT(CHANNELS, 8, WIDTHS, readout=ours, batch_norm=True, bias=False, deepest_unit=True)
    head = neck.with_outputs(labels=Classes(5))
    load(head, renamed(module.state_dict(), SMP), unread="nothing")
    features = features_of((4, 6), CHANNELS, patch=16, registers=0)
    with torch.no_grad():
        fused = module.decoder(list(features.maps), list(features.prefix))
        scaled_close(head(features)["labels"], module.segmentation_head(fused))
