"""Tiny untrained models for tests of what is done with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import heads
from dense.backbone import load_backbone
from dense.model.network import DenseModel, Inference, Task, task_of_masks
from dense.model.tiles import finder
from heads import EoMT, Masks
from heads.outputs import MaskKind

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


def queries(
    kind: MaskKind = "instance", classes: tuple[str, ...] = ("sky", "cup", "dog"), **inference: Any
) -> DenseModel:
    """Ten random queries in the last block of that ViT, all of them certain of the second class."""
    torch.manual_seed(0)
    backbone = load_backbone("vit_tiny_patch16_224", **BACKBONE).freeze()
    things = tuple(name not in ("sky", "ground") for name in classes)
    head = EoMT(16, {"masks": Masks(len(classes), kind, things)}, queries=10, blocks=1, upscales=1)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    torch.nn.init.zeros_(head.class_head.weight)
    head.class_head.bias.data = torch.tensor([0.0, 6, *[0] * (len(classes) - 1)])
    task = task_of_masks(kind)
    return DenseModel(backbone, head, (0,), False, task, classes, Inference(**inference)).eval()


def restorer() -> DenseModel:
    """A small network that restores images."""
    torch.manual_seed(0)
    backbone = load_backbone("vit_tiny_patch16_224", **BACKBONE | {"depth": 3}).freeze()
    outputs = {"restored": {"name": "image"}}
    head = heads.build(
        {
            "name": "restoration",
            "in_channels": [16] * 3,
            "body": "tiny",
            "width": 16,
            "guidance": "channels",
            "outputs": outputs,
        }
    )
    return DenseModel(backbone, head, (0, 1, 2), True, "restoration").eval()


def segmenter(monkeypatch: pytest.MonkeyPatch, kind: MaskKind = "panoptic", **inference: Any) -> DenseModel:
    """Return a network of many segments of all classes, most of them doubtful."""
    network = queries(kind, **inference)
    torch.manual_seed(1)
    torch.nn.init.normal_(network.head.class_head.weight, std=3)
    low = {"mask_threshold": 0.3, "overlap_threshold": 0.1}
    monkeypatch.setattr("dense.predict.predictor.finder", lambda model, **options: finder(model, **options | low))
    return network
