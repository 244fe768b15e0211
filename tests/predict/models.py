"""Tiny untrained models for tests of what is done with them."""

from __future__ import annotations

from typing import Any

import torch

import heads
from dense.backbone import load_backbone
from dense.model.network import DenseModel, Inference, Task

BACKBONE = {"patch_size": 8, "img_size": 32, "depth": 2, "embed_dim": 16, "num_heads": 2}
OUTPUTS: dict[str, dict[str, Any]] = {
    "depth": {"name": "regression", "activation": "softplus"},
    "labels": {"name": "classes", "count": 3},
}
TASKS: dict[tuple[str, ...], Task] = {("depth",): "depth", ("labels",): "segmentation", ("depth", "labels"): "joint"}


def model(*names: str, inference: Inference = Inference(), **changes: Any) -> DenseModel:
    """A linear head with these outputs ("depth", "labels") on a ViT of width 16; `changes` are to the last output."""
    torch.manual_seed(0)
    outputs = {name: OUTPUTS[name] | (changes if name == names[-1] else {}) for name in names}
    backbone = load_backbone("vit_tiny_patch16_224", **BACKBONE).freeze()
    spec = {"name": "linear", "in_channels": [16], "outputs": outputs, "upsample": 2}
    head = heads.build(spec)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    classes = tuple(f"class {i}" for i in range(outputs["labels"]["count"])) if "labels" in names else None
    return DenseModel(backbone, head, (1,), True, TASKS[names], classes, inference).eval()
