"""Heads of the DINOv2 hub, published without backbone: linear and DPT depth, linear and multi-scale segmentation."""

from __future__ import annotations

from typing import Any

from dense.backbone.spec import resolve_layers
from dense.backbone.weights.names import default_layers
from dense.model.network import DenseModel, Inference
from dense.published.assemble import (
    BackboneChoice,
    assemble,
    class_names,
    depth_branch,
    dpt_spec,
    given_backbone,
    hidden,
    renamed,
)
from dense.published.family import Family, Published, positive

# of DINOv2 and DINOv3: optional parts of names are those of mmcv's modules, and batchnorm_layers are DINOv3's
TABLE = {
    r"^(?:reassemble_blocks\.)?batchnorm_layers\.(\d)\.": r"neck.reassemble.\1.norm.",
    r"^reassemble_blocks\.projects\.(\d)\.(?:conv\.)?": r"neck.reassemble.\1.project.",
    r"^reassemble_blocks\.readout_projects\.(\d)\.0\.": r"neck.reassemble.\1.readout.",
    r"^reassemble_blocks\.resize_layers\.(\d)\.": r"neck.reassemble.\1.resize.",
    r"^convs\.(\d)\.(?:conv\.)?": r"neck.reassemble.\1.adapt.",
    r"^fusion_blocks\.(\d)\.project\.(?:conv\.)?": r"neck.fusion.~\1.project.",
    r"^fusion_blocks\.(\d)\.res_conv_unit(\d)\.conv(\d)\.(?:conv\.)?(?=weight|bias)": r"neck.fusion.~\1.unit\2.conv\3.",
    r"^fusion_blocks\.(\d)\.res_conv_unit(\d)\.conv(\d)\.(?:bn|norm)\.": r"neck.fusion.~\1.unit\2.norm\3.",
    r"^project\.(?:conv\.)?": "neck.project.",
} | depth_branch(r"conv_depth\.head")
LINEAR = {
    r"^(?:batchnorm_layers?|bn)\.": "norm.",
    r"^conv_depth\.": "branches.depth.",
    r"^(?:conv|conv_seg)\.": "branches.labels.",
}
RANGES = "max_depth=10 for heads of NYUv2, 80 for those of KITTI (the hub gives 80 to its linear heads of NYUv2 too)"
NAMES = {384: "dinov2_vits14", 768: "dinov2_vitb14", 1024: "dinov2_vitl14", 1536: "dinov2_vitg14"}


def build_dpt(
    file: Published,
    backbone: BackboneChoice = None,
    weights: str | None = None,
    max_depth: float | None = None,
    min_depth: float = 0.001,
) -> DenseModel:
    """Return DPT on raw features, with ReLU above the smallest depth."""
    state = renamed(file.under("decode_head."), TABLE)
    spec = dpt_spec(state, fusion_size="double")
    farthest = positive(file, "max_depth", max_depth, RANGES)
    found = given_backbone(file, "dinov2", backbone, weights, (spec["in_channels"][0],), NAMES)
    output = {"name": "regression", "activation": "relu", "min_depth": min_depth, "max_depth": farthest}
    spec["outputs"] = {"depth": output | {"hidden": hidden(state), "align_corners": False}}
    return assemble(
        file, "dinov2_depth_dpt", found, spec, state, default_layers(found.spec.family, found.spec.depth), False
    )


def build_linear(
    file: Published,
    backbone: BackboneChoice = None,
    weights: str | None = None,
    max_depth: float | None = None,
    min_depth: float = 0.001,
) -> DenseModel:
    """Return a 1x1 convolution of raw patch and class tokens of one or four layers to 256 evenly spaced bins."""
    state = renamed(file.under("decode_head."), LINEAR)
    count, total = state["branches.depth.weight"].shape[:2]
    farthest = positive(file, "max_depth", max_depth, RANGES)
    found = given_backbone(file, "dinov2", backbone, weights, (total // 2, total // 8), NAMES)
    four = default_layers(found.spec.family, found.spec.depth)
    layers = resolve_layers("last" if total == 2 * found.spec.dim else four, found.spec)
    output = {"name": "bins", "count": count, "min_depth": min_depth, "max_depth": farthest}
    spec: dict[str, Any] = {"name": "linear", "in_channels": [found.spec.dim] * len(layers)}
    spec |= {"class_token": True, "upsample": 4}
    return assemble(file, "dinov2_depth_linear", found, spec | {"outputs": {"depth": output}}, state, layers, False)


def build_segmentation(
    file: Published, backbone: BackboneChoice = None, weights: str | None = None, classes: list[str] | None = None
) -> DenseModel:
    """Return BatchNorm and a 1x1 convolution of normed patches of the last layer (linear) or of the last four (ms)."""
    state = renamed(file.under("decode_head."), LINEAR)
    count, total = state["branches.labels.weight"].shape[:2]
    found = given_backbone(file, "dinov2", backbone, weights, (total, total // 4), NAMES)
    layers = resolve_layers("last" if total == found.spec.dim else "last4", found.spec)
    spec: dict[str, Any] = {"name": "linear", "in_channels": [found.spec.dim] * len(layers), "batch_norm": True}
    spec["outputs"] = {"labels": {"name": "classes", "count": count}}
    inference = Inference(512, 512, 341) if len(layers) == 1 else Inference(640, 640, 320)
    names = class_names(file, count, classes, published=(150, 21))
    return assemble(file, "dinov2_segmentation", found, spec, state, layers, True, names, inference)


FAMILIES = (
    Family(
        "dinov2_depth_dpt",
        "DPT depth of the DINOv2 hub",
        (r"^decode_head\.reassemble_blocks\.projects\.0\.", r"^decode_head\.conv_depth\.head\.4\.weight$"),
        build_dpt,
    ),
    Family(
        "dinov2_depth_linear", "linear depth of the DINOv2 hub", (r"^decode_head\.conv_depth\.weight$",), build_linear
    ),
    Family(
        "dinov2_segmentation",
        "segmentation of the DINOv2 hub, linear and ms",
        (r"^decode_head\.conv_seg\.weight$", r"^decode_head\.bn\.running_mean$"),
        build_segmentation,
    ),
)
