"""Tiny random models of transformers and segmentation_models_pytorch, and comparison with their outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.heads.conftest import randomise

WIDTHS = [4, 8, 16, 32]


def transformers() -> Any:
    return pytest.importorskip("transformers")


def dinov2_config(**options: Any) -> Any:
    """Return a config with one attention head of 64 channels, as in published ViTs."""
    options = {"out_indices": [1, 2, 3, 4], "reshape_hidden_states": False, "apply_layernorm": True} | options
    options = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 1, "image_size": 70} | options
    return transformers().Dinov2Config(patch_size=14, **options)


def depth_anything(metric: bool = False, **options: Any) -> Any:
    """Return a tiny random Depth Anything, relative or with a range of 20 metres."""
    kind = {"depth_estimation_type": "metric", "max_depth": 20} if metric else {}
    config = transformers().DepthAnythingConfig(
        backbone_config=dinov2_config(**options), reassemble_hidden_size=64, patch_size=14, neck_hidden_sizes=WIDTHS,
        fusion_hidden_size=8, head_hidden_size=6, **kind,
    )  # fmt: skip
    model = made(transformers().DepthAnythingForDepthEstimation(config))
    spread(model, model.head.conv3, 70)
    return model


def dpt(name: str, readout: str = "project", batch_norm: bool = False, width: int = 8, **options: Any) -> Any:
    """Return a tiny random DPT on its own ViT, or on a hybrid or a DINOv2 by `options`."""
    own = {
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 1,
        "intermediate_size": 128,
        "image_size": 64,
    }
    options = own | {"backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": WIDTHS} | options
    config = transformers().DPTConfig(
        readout_type=readout, fusion_hidden_size=width, use_batch_norm_in_fusion_residual=batch_norm, **options
    )
    model = made(getattr(transformers(), name)(config))
    if "Depth" in name:
        spread(model, model.head.head[4], 64 if options.get("is_hybrid") or not model.backbone else 70)
    return model


def hybrid(name: str, **options: Any) -> Any:
    """Return a tiny random DPT on a hybrid."""
    neck = {
        "neck_hidden_sizes": [256, 512, 16, 32],
        "neck_ignore_stages": [0, 1],
        "backbone_featmap_shape": [1, 1024, 4, 4],
    }
    return dpt(name, is_hybrid=True, **neck, **options)


def made(model: Any) -> Any:
    """Initialise a model at random so that its outputs vary by more than rounding."""
    torch.manual_seed(0)
    randomise(model, 0.1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("neck.", "head.")):
                parameter.mul_(2)
    return model.eval()


@torch.no_grad()
def spread(model: Any, last: Any, side: int) -> None:
    """Scale the convolution before the last activation so that its outputs have mean 1 and standard deviation 1."""
    outputs = []
    handle = last.register_forward_hook(lambda module, given, out: outputs.append(out))
    model(torch.randn(1, 3, side, side))
    handle.remove()
    last.weight /= outputs[0].std()
    last.bias.copy_(1 + (last.bias - outputs[0].mean()) / outputs[0].std())


def directory(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def close(mine: Tensor, theirs: Tensor) -> None:
    """Assert that outputs are equal to 1e-5 of the largest value."""
    assert mine.shape == theirs.shape
    assert float(theirs.std()) > 0.01 * float(theirs.abs().max())
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
