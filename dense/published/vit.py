"""The ViT inside a published file, from the shapes of its tensors, or the one that a caller names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dense.backbone import Backbone, WeightsError, load_backbone
from dense.backbone.weights.checkpoint import recognise
from dense.backbone.weights.huggingface import mlp_ratio
from dense.backbone.weights.names import directory
from dense.published.family import Published, State

Given = Backbone | str | Path | None  # a backbone, its name or its directory
HEAD = 64  # channels of an attention head in every published ViT
Names = dict[tuple[int, int, int], str]  # width, depth, side of the image -> name
DINOV2: Names = {
    (384, 12, 518): "dinov2_vits14",
    (768, 12, 518): "dinov2_vitb14",
    (1024, 24, 518): "dinov2_vitl14",
    (1536, 40, 518): "dinov2_vitg14",
}
PLAIN: Names = {(768, 12, 384): "vit_base_patch16_384", (1024, 24, 384): "vit_large_patch16_384"}
HYBRID: Names = {(768, 12, 384): "vit_base_r50_s16_384"}


def inside(file: Published, state: State, names: Names, **overrides: Any) -> Backbone:
    """The backbone of `state`: that of `names` by its measures, or the first with other measures (of a SwiGLU, the last)."""
    if "patch_embed.proj.weight" not in state or "pos_embed" not in state:
        raise WeightsError(
            f"{file.path} holds no ViT under the names of its family: patch_embed or pos_embed is missing"
        )
    dim, table = state["patch_embed.proj.weight"].shape[0], state["pos_embed"].shape[1]
    names = HYBRID if "patch_embed.backbone.stem.conv.weight" in state else names
    patch = 16 if names is HYBRID else state["patch_embed.proj.weight"].shape[-1]
    depth = len({k.split(".")[1] for k in state if k.startswith("blocks.")})
    side = round((table - 1) ** 0.5) * patch
    name, measures = names.get((dim, depth, side)), {}
    if name is None:
        swiglu = "blocks.0.mlp.w12.weight" in state
        name = list(names.values())[-1 if swiglu else 0]
        first = state.get(f"blocks.0.mlp.{'w12' if swiglu else 'fc1'}.weight")
        if first is None:
            raise WeightsError(f"{file.path} holds a ViT without blocks that are known here: blocks.0.mlp is missing")
        measures = {"embed_dim": dim, "depth": depth, "num_heads": max(dim // HEAD, 1), "img_size": side}
        measures |= {"mlp_ratio": mlp_ratio(first.shape[0], dim)} | ({} if names is HYBRID else {"patch_size": patch})
    try:
        backbone = load_backbone(name, state, **measures, **overrides)
    except WeightsError as error:
        raise WeightsError(f"{file.path}: {error}") from None
    if backbone.report is not None:
        backbone.report.source = str(file.path)
    return backbone


def given(
    file: Published,
    release: str,
    backbone: Given,
    weights: str | Path | None,
    dims: tuple[int, ...],
    names: dict[int, str],
) -> Backbone:
    """The backbone of a `release` that a caller names for a head that comes without, whose maps have one of `dims` channels."""
    fitting = [f"backbone={names[d]!r}" for d in dims if d in names] or [f"a backbone of {dims[0]} channels"]
    if backbone is None:
        raise WeightsError(
            f"{file.path} holds a head alone and cannot say its backbone, so you must: {' or '.join(fitting)}, with "
            "weights=FILE; or a saved directory, or a backbone from load_backbone"
        )
    if isinstance(backbone, Backbone):
        found = backbone
    elif weights is None and directory(backbone) is None:
        raise WeightsError(
            f"backbone={str(backbone)!r} names an architecture without weights; add weights=FILE, or weights='timm' to download"
        )
    else:
        found = load_backbone(backbone, weights)
    if not found.spec.family.startswith(release):
        raise WeightsError(
            f"{file.path} is a head of {release} and {found.spec.name} is of family {found.spec.family}, whose features it "
            f"never saw; give {' or '.join(fitting)}, or load yours with family={release!r} if it is one"
        )
    if found.spec.dim not in dims:
        raise WeightsError(
            f"{file.path} expects maps of {' or '.join(map(str, dims))} channels and {found.spec.name} has {found.spec.dim}; "
            f"give {' or '.join(fitting)}"
        )
    return found


def is_backbone(state: State) -> str | None:
    """The layout of a file that holds a backbone and no head."""
    try:
        return recognise(state)
    except WeightsError:
        return None
