"""Restormer's published files: the body alone, or the start of a guided model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import heads
from dense.backbone import load_backbone
from dense.backbone.spec import Layers, resolve_layers
from dense.backbone.weights.report import WeightsError, compare
from dense.model.network import DenseModel
from dense.published.family import Family, Published, State
from heads.restoration import Restormer

BLOCK = r"encoder_level1\.0\."


def build(
    file: Published,
    backbone: str = "scenes_tiny",
    weights: str | None = None,
    layers: Layers = "even4",
    guidance: str = "none",
) -> DenseModel:
    """The body with its weights. guidance: of the features of `backbone`; untrained, it changes nothing. Without guidance
    the backbone plays no part, and the small one that is shipped stands in its place."""
    features = load_backbone(backbone, weights).freeze()
    chosen = resolve_layers(layers, features.spec)
    spec = {
        "name": "restoration", "in_channels": [features.spec.dim] * len(chosen), "body": body_options(file.tensors),
        "guidance": guidance, "outputs": {"restored": {"name": "image"}},
    }  # fmt: skip
    head: Any = heads.build(spec)
    load_body(head.body, file)
    facts = {"published": "restormer", "file": file.path.name}
    return DenseModel(features, head, chosen, True, "restoration", None, facts=facts).eval()


def load_body(body: Restormer, source: Published | str | Path) -> None:
    """Give a body the weights of a published file, all of them."""
    file = source if isinstance(source, Published) else Published.read(source)
    report = compare(body.state_dict(), file.tensors, str(file.path), "restormer")
    if not report.complete:
        raise WeightsError(f"{file.path} does not fit this body of Restormer; nothing was loaded\n{report}")
    body.load_state_dict(file.tensors, strict=True)


def body_options(state: State) -> dict[str, Any]:
    """What `Restormer` was built with, from the shapes of its tensors."""

    def count(stage: str) -> int:
        return len({name.split(".")[1] for name in state if name.startswith(f"{stage}.")})

    stages = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")
    embed, project = state["patch_embed.proj.weight"], state["latent.0.ffn.project_in.weight"]
    if embed.shape[1] != 3:
        raise WeightsError(
            f"this Restormer takes images of {embed.shape[1]} channels (defocus deblurring from two views, or grey "
            "images); read are those of 3"
        )
    dim, hidden = embed.shape[0], project.shape[0] // 2
    deep = 8 * dim  # where the fewest digits are lost
    expansion = next(e for e in (2.66, hidden / deep, (hidden + 0.5) / deep) if int(deep * e) == hidden)
    return {
        "dim": dim,
        "blocks": [count(stage) for stage in stages],
        "heads": [len(state[f"{stage}.0.attn.temperature"]) for stage in stages],
        "refinement": count("refinement"),
        "expansion": expansion,
        "bias": "encoder_level1.0.attn.qkv.bias" in state,
        "norm_bias": "encoder_level1.0.norm1.body.bias" in state,
    }


FAMILIES = (
    Family(
        "restormer",
        "Restormer",
        (
            rf"^{BLOCK}attn\.temperature$",
            r"^latent\.0\.ffn\.project_in\.weight$",
            r"^refinement\.0\.",
            r"^output\.weight$",
        ),
        build,
    ),
)
