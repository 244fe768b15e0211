"""Restormer's published files, as a model of their own or as initialisation of a guided one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import heads
from dense.backbone import load_backbone
from dense.backbone.spec import Layers, resolve_layers
from dense.backbone.weights.report import WeightsError, load_strictly
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
    """Return Restormer with its weights.

    guidance: by the features of `backbone`; before training it has no effect. Without guidance the backbone is not
    used, and the small one that is shipped takes its place.
    """
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
    """Load all weights of a published file into a body."""
    file = source if isinstance(source, Published) else Published.read(source)
    held, own = (w["patch_embed.proj.weight"].shape[1] for w in (file.tensors, body.state_dict()))
    if held != own:
        raise WeightsError(f"{file.path} restores images of {held} channels and the body of {own}; leave it out")
    load_strictly(body, file.tensors, str(file.path), "restormer")


def body_options(state: State) -> dict[str, Any]:
    """Return the arguments of `Restormer`, from the shapes of its tensors."""

    def count(stage: str) -> int:
        return len({name.split(".")[1] for name in state if name.startswith(f"{stage}.")})

    stages = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")
    embed, project = state["patch_embed.proj.weight"], state["latent.0.ffn.project_in.weight"]
    if embed.shape[1] != 3:
        raise WeightsError(
            f"this Restormer takes images of {embed.shape[1]} channels (defocus deblurring from two views, or grey "
            "images); supported are those of 3"
        )
    dim, hidden = embed.shape[0], project.shape[0] // 2
    deep = 8 * dim  # where rounding loses the fewest digits
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
