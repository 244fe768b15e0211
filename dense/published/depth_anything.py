"""Depth Anything V1 and V2: DINOv2 and DPT in one file; the keys are the same for both, and for metric models."""

from __future__ import annotations

from functools import partial
from typing import Any

from dense.backbone.spec import resolve_layers
from dense.model.network import DenseModel, Inference
from dense.published.assemble import DINOV2, assemble, contained_backbone, dpt_spec, hidden, renamed
from dense.published.dpt import SCRATCH
from dense.published.family import Family, Published, check_has_unit, choose, positive

TABLE = SCRATCH | {
    r"^projects\.(\d)\.": r"neck.reassemble.\1.project.",
    r"^resize_layers\.(\d)\.": r"neck.reassemble.\1.resize.",
    r"^readout_projects\.(\d)\.0\.": r"neck.reassemble.\1.readout.",
    r"^scratch\.output_conv1\.": "branches.depth.conv1.",
    r"^scratch\.output_conv2\.0\.": "branches.depth.conv2.",
    r"^scratch\.output_conv2\.2\.": "branches.depth.conv3.",
}
KINDS = {
    "relative": "for depth without scale (inverse)",
    "metric": "for metres, with max_depth=20 (indoors) or 80 (outdoors)",
}


def build(version: int, file: Published, kind: str | None = None, max_depth: float | None = None) -> DenseModel:
    """Return V1 on the last four layers or V2 on four evenly spaced ones, both after the final norm."""
    kinds = KINDS if version == 2 else {"relative": "(the metric models of V1 are ZoeDepth, which is not supported)"}
    kind = choose(file, "kind", kind, kinds)
    check_has_unit(file, kind, max_depth)
    output: dict[str, Any] = {"name": "regression", "activation": "relu", "kind": "inverse_relative"}
    if kind == "metric":
        farthest = positive(file, "max_depth", max_depth, "max_depth=20 for models trained indoors, 80 outdoors")
        output = {"name": "regression", "activation": "sigmoid", "max_depth": farthest}
    backbone = contained_backbone(file, file.under("pretrained."), DINOV2, padding="resize")
    state = renamed(file.under("depth_head."), TABLE)
    output |= {"hidden": hidden(state), "upsample": "image"}
    layers = resolve_layers("last4" if version == 1 else "default", backbone.spec)
    spec = dpt_spec(state, outputs={"depth": output})
    family = f"depth_anything_v{version}"
    return assemble(file, family, backbone, spec, state, layers, True, inference=Inference(resize=518))


FAMILIES = tuple(
    Family(
        f"depth_anything_v{version}",
        f"Depth Anything V{version}",
        (
            r"^pretrained\.blocks\.",
            r"^depth_head\.scratch\.output_conv2\.2\.weight$",
            r"^depth_head\.projects\.0\.weight$",
        ),
        partial(build, version),
    )
    for version in (1, 2)
)
