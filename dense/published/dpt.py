"""DPT of isl-org and MiDaS v3, which is the same: raw features of a plain or hybrid ViT, bilinear positions."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dense.backbone import Backbone
from dense.backbone.spec import HYBRID_STAGES, resolve_layers
from dense.model.network import DenseModel, Inference
from dense.published.assemble import (
    PLAIN,
    assemble,
    class_names,
    contained_backbone,
    depth_branch,
    dpt_spec,
    hidden,
    label_branches,
    renamed,
)
from dense.published.family import Family, Published, choose

HALF = (0.5, 0.5, 0.5)  # mean and standard deviation of the normalisation
STRIDES = (4, 8, 16, 16)  # of the four levels of a hybrid
SCRATCH = {
    r"^scratch\.layer(\d)_rn\.": r"neck.reassemble.@\1.adapt.",
    r"^scratch\.refinenet(\d)\.out_conv\.": r"neck.fusion.@\1.project.",
    r"^scratch\.refinenet(\d)\.resConfUnit(\d)\.conv(\d)\.": r"neck.fusion.@\1.unit\2.conv\3.",
    r"^scratch\.refinenet(\d)\.resConfUnit(\d)\.bn(\d)\.": r"neck.fusion.@\1.unit\2.norm\3.",
}
TABLE = SCRATCH | {
    r"^pretrained\.act_postprocess(\d)\.0\.project\.0\.": r"neck.reassemble.@\1.readout.",
    r"^pretrained\.act_postprocess(\d)\.3\.": r"neck.reassemble.@\1.project.",
    r"^pretrained\.act_postprocess(\d)\.4\.": r"neck.reassemble.@\1.resize.",
    r"^scratch\.output_conv\.": "output.",
}
DEPTH = depth_branch("output")
LABELS = label_branches("output", "auxlayer")
KINDS = {
    "relative": "for depth without scale, inverse (dpt_large-midas, dpt_hybrid-midas)",
    "nyu": "for metres (dpt_hybrid_nyu)",
    "kitti": "for metres (dpt_hybrid_kitti)",
}
INVERSE = {"nyu": (0.000305, 0.1378), "kitti": (0.00006016, 0.00579)}  # metres are 1 / (scale x + shift)
SIDES = {"relative": 384, "nyu": 480, "kitti": 352}


def even_layers(backbone: Backbone) -> tuple[int, ...]:
    """Return four evenly spaced blocks (5, 11, 17, 23 for ViT-L); of a hybrid two ResNet stages and two blocks."""
    layers = resolve_layers("even4", backbone.spec)
    return (*range(HYBRID_STAGES), *layers[HYBRID_STAGES:]) if backbone.spec.kind == "hybrid" else layers


def hybrid_options(backbone: Backbone) -> dict[str, Any]:
    """Return the options of a head on a hybrid, whose first levels are the stages of its ResNet."""
    return {"strides": list(STRIDES)} if backbone.spec.kind == "hybrid" else {}


def read_parts(file: Published) -> tuple[Backbone, dict[str, Tensor]]:
    """Return the backbone, and the tensors of the head under our names."""
    state = {k: v for k, v in file.tensors.items() if not k.startswith("pretrained.model.")}
    backbone = contained_backbone(
        file, file.under("pretrained.model."), PLAIN, positions="bilinear", mean=HALF, std=HALF, padding="resize"
    )
    return backbone, renamed(state, TABLE)


def build_depth(file: Published, kind: str | None = None) -> DenseModel:
    """Return a model of inverse relative depth, or of metres for the hybrids fine-tuned on NYUv2 and KITTI."""
    kind = choose(file, "kind", kind, KINDS)
    backbone, state = read_parts(file)
    state = renamed(state, DEPTH)
    output = {"name": "regression", "activation": "relu", "hidden": hidden(state)}
    output |= {"inverse": INVERSE[kind]} if kind in INVERSE else {"kind": "inverse_relative"}
    spec = dpt_spec(state, outputs={"depth": output}, **hybrid_options(backbone))
    return assemble(
        file, "dpt_depth", backbone, spec, state, even_layers(backbone), False, inference=Inference(resize=SIDES[kind])
    )


def build_segmentation(file: Published, classes: list[str] | None = None) -> DenseModel:
    """Return a model of the classes of ADE20K, with the auxiliary head."""
    backbone, state = read_parts(file)
    state = renamed(state, LABELS)
    count = state["branches.labels.classifier.weight"].shape[0]
    output = {"name": "classes", "count": count, "auxiliary": "auxiliary.labels.classifier.weight" in state}
    spec = dpt_spec(state, outputs={"labels": output}, **hybrid_options(backbone))
    names = class_names(file, count, classes)
    return assemble(
        file, "dpt_segmentation", backbone, spec, state, even_layers(backbone), False, names, Inference(resize=480)
    )


PATTERNS = (
    r"^pretrained\.model\.blocks\.",
    r"^pretrained\.model\.pos_embed$",  # absent from MiDaS v3.1 on BEiT
    r"^pretrained\.act_postprocess4\.3\.weight$",
    r"^scratch\.refinenet4\.",
)
FAMILIES = (
    Family("dpt_depth", "depth of DPT and MiDaS v3", (*PATTERNS, r"^scratch\.output_conv\.2\.weight$"), build_depth),
    Family(
        "dpt_segmentation",
        "segmentation of DPT",
        (*PATTERNS, r"^scratch\.output_conv\.1\.running_mean$"),
        build_segmentation,
    ),
)
