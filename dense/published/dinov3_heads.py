"""Heads of DINOv3, published without backbone: DPT depth with bins, linear depth and linear segmentation."""

from __future__ import annotations

from typing import Any

from dense.backbone import Backbone, WeightsError
from dense.backbone.spec import Layers, resolve_layers
from dense.backbone.weights.names import default_layers
from dense.model.network import DenseModel, Inference
from dense.published.assemble import BackboneChoice, assemble, class_names, dpt_spec, given_backbone, hidden, renamed
from dense.published.dinov2_heads import LINEAR, TABLE
from dense.published.family import Family, Published, State, choose, positive

NAMES = {
    384: "dinov3_vits16",
    768: "dinov3_vitb16",
    1024: "dinov3_vitl16",
    1280: "dinov3_vith16plus",
    4096: "dinov3_vit7b16",
}
RANGES = "max_depth=100 for the synthetic mixture (SYNTHMIX), 10 for NYUv2"
NORMS = {True: "if the head was trained on normed features (the hub's)", False: "if on raw features"}


def build_dpt(
    file: Published,
    backbone: BackboneChoice = None,
    weights: str | None = None,
    max_depth: float | None = None,
    min_depth: float = 0.001,
    norm: bool | None = None,
    bins: str = "linear",
    normalisation: str = "linear",
) -> DenseModel:
    """Return DPT with bins or, for one channel, ReLU above the smallest depth; maps have BatchNorm if the file does."""
    state = renamed(file.tensors, TABLE)
    spec = dpt_spec(state, fusion_size="double")
    farthest, norm = positive(file, "max_depth", max_depth, RANGES), choose(file, "norm", norm, NORMS)
    found = given_backbone(file, "dinov3", backbone, weights, (spec["in_channels"][0],), NAMES)
    output = depth_output(state["branches.depth.conv3.weight"].shape[0], min_depth, farthest, bins, normalisation)
    spec["outputs"] = {"depth": output | {"hidden": hidden(state)}}
    return assemble(
        file, "dinov3_depth_dpt", found, spec, state, default_layers(found.spec.family, found.spec.depth), norm
    )


def build_linear(
    file: Published,
    backbone: BackboneChoice = None,
    weights: str | None = None,
    max_depth: float | None = None,
    min_depth: float = 0.001,
    norm: bool | None = None,
    bins: str = "linear",
    normalisation: str = "linear",
    layers: Layers | None = None,
) -> DenseModel:
    """Return a 1x1 convolution of patch tokens, with or without class token, to bins.

    layers: where the head was trained on others than the last or four evenly spaced ones.
    """
    state = renamed(file.tensors, LINEAR)
    count, total = state["branches.depth.weight"].shape[:2]
    farthest, norm = positive(file, "max_depth", max_depth, RANGES), choose(file, "norm", norm, NORMS)
    found, spec, chosen = linear_parts(file, state, total, backbone, weights, layers)
    spec["outputs"] = {"depth": depth_output(count, min_depth, farthest, bins, normalisation)}
    return assemble(file, "dinov3_depth_linear", found, spec, state, chosen, norm)


def build_segmentation(
    file: Published,
    backbone: BackboneChoice = None,
    weights: str | None = None,
    classes: list[str] | None = None,
    norm: bool = True,
    layers: Layers | None = None,
) -> DenseModel:
    """Return a 1x1 convolution of normed patches of the last layer, with BatchNorm if the file has it."""
    state = renamed(file.tensors, LINEAR)
    count, total = state["branches.labels.weight"].shape[:2]
    found, spec, chosen = linear_parts(file, state, total, backbone, weights, layers)
    spec["outputs"] = {"labels": {"name": "classes", "count": count}}
    names = class_names(file, count, classes)
    inference = Inference(512, 512, 341)
    return assemble(file, "dinov3_segmentation", found, spec, state, chosen, norm, names, inference)


def linear_parts(
    file: Published, state: State, total: int, backbone: BackboneChoice, weights: str | None, layers: Layers | None
) -> tuple[Backbone, dict[str, Any], tuple[int, ...]]:
    """Return the backbone, the head's spec and its layers, from the ratio of `total` channels to its width."""
    dims = tuple(total // n for n in (1, 2, 4, 8) if total % n == 0)
    found = given_backbone(file, "dinov3", backbone, weights, dims, NAMES)
    times = total // found.spec.dim
    published = "last" if times < 4 else default_layers(found.spec.family, found.spec.depth)
    chosen = resolve_layers(published if layers is None else layers, found.spec)
    if times not in (len(chosen), 2 * len(chosen)):
        raise WeightsError(
            f"{file.path} reads {times} times {found.spec.dim} channels and layers={chosen} give {len(chosen)}"
        )
    spec: dict[str, Any] = {"name": "linear", "in_channels": [found.spec.dim] * len(chosen)}
    return found, spec | {"class_token": times == 2 * len(chosen), "batch_norm": "norm.weight" in state}, chosen


def depth_output(count: int, low: float, high: float, bins: str, normalisation: str) -> dict[str, Any]:
    """Return the spec of an output of `count` bins or, for one channel, of a regression above `low`."""
    if count == 1:
        return {"name": "regression", "activation": "relu", "min_depth": low, "max_depth": high}
    return {
        "name": "bins", "count": count, "min_depth": low, "max_depth": high, "spacing": bins,
        "normalisation": normalisation,
    }  # fmt: skip


FAMILIES = (
    Family(
        "dinov3_depth_dpt",
        "DPT depth of DINOv3",
        (r"^reassemble_blocks\.projects\.0\.", r"^conv_depth\.head\.4\.weight$", r"^convs\.0\."),
        build_dpt,
    ),
    Family("dinov3_depth_linear", "linear depth of DINOv3", (r"^conv_depth\.weight$",), build_linear),
    Family("dinov3_segmentation", "linear segmentation of DINOv3", (r"^(conv|conv_seg)\.weight$",), build_segmentation),
)
