"""The parts of a published model: its backbone, its head's tensors under our names, and the network of both."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

import heads
from dense.backbone import Backbone, load_backbone
from dense.backbone.weights.huggingface import mlp_ratio
from dense.backbone.weights.names import directory
from dense.backbone.weights.report import WeightsError, compare
from dense.data.labelled.layouts import ADE20K, VOC2012
from dense.model.network import DenseModel, Inference, Task, task_of_masks
from dense.published.family import Published, State
from heads.features import Norm
from heads.outputs import Classes, Masks

# ---- backbones

BackboneChoice = Backbone | str | Path | None  # a backbone, its name or its directory
HEAD_DIM = 64  # channels of an attention head in every published ViT
Names = dict[tuple[int, int, int], str]  # (width, depth, side of the image) -> name
DINOV2: Names = {
    (384, 12, 518): "dinov2_vits14",
    (768, 12, 518): "dinov2_vitb14",
    (1024, 24, 518): "dinov2_vitl14",
    (1536, 40, 518): "dinov2_vitg14",
}
PLAIN: Names = {(768, 12, 384): "vit_base_patch16_384", (1024, 24, 384): "vit_large_patch16_384"}
HYBRID: Names = {(768, 12, 384): "vit_base_r50_s16_384"}


def contained_backbone(file: Published, state: State, names: Names, **overrides: Any) -> Backbone:
    """Return the ViT with the tensors of `state`, named by its dimensions.

    With dimensions that are not in `names`, it is the first of `names` (with a SwiGLU, the last) with these dimensions.
    """
    if "patch_embed.proj.weight" not in state or "pos_embed" not in state:
        raise WeightsError(
            f"{file.path} holds no ViT under the names of its family: patch_embed or pos_embed is missing"
        )
    dim, positions = state["patch_embed.proj.weight"].shape[0], state["pos_embed"].shape[1]
    names = HYBRID if "patch_embed.backbone.stem.conv.weight" in state else names
    patch = 16 if names is HYBRID else state["patch_embed.proj.weight"].shape[-1]
    depth = len({k.split(".")[1] for k in state if k.startswith("blocks.")})
    side = round((positions - 1) ** 0.5) * patch
    name, dimensions = names.get((dim, depth, side)), {}
    if name is None:
        swiglu = "blocks.0.mlp.w12.weight" in state
        name = list(names.values())[-1 if swiglu else 0]
        first = state.get(f"blocks.0.mlp.{'w12' if swiglu else 'fc1'}.weight")
        if first is None:
            raise WeightsError(f"{file.path} holds a ViT with unsupported blocks: blocks.0.mlp is missing")
        dimensions = {"embed_dim": dim, "depth": depth, "num_heads": max(dim // HEAD_DIM, 1), "img_size": side}
        dimensions |= {"mlp_ratio": mlp_ratio(first.shape[0], dim)} | ({} if names is HYBRID else {"patch_size": patch})
    return load_named(file, name, state, **dimensions, **overrides)


def load_named(file: Published, name: str, state: State, **overrides: Any) -> Backbone:
    """Return a backbone with these tensors; errors and its report name the file."""
    try:
        backbone = load_backbone(name, state, **overrides)
    except WeightsError as error:
        raise WeightsError(f"{file.path}: {error}") from None
    if backbone.report is not None:
        backbone.report.source = str(file.path)
    return backbone


def given_backbone(
    file: Published,
    release: str,
    backbone: BackboneChoice,
    weights: str | Path | None,
    dims: tuple[int, ...],
    names: dict[int, str],
) -> Backbone:
    """Return the backbone of a `release` that a caller gives for a head published alone.

    dims: numbers of channels that its maps may have. names: the release's architectures by their number of channels.
    """
    known = [f"backbone={names[d]!r}" for d in dims if d in names]
    fitting = " or ".join(known or [f"a backbone of {dims[0]} channels"])
    if backbone is None:
        raise WeightsError(
            f"{file.path} holds a head alone and does not record its backbone, so give it: {fitting}, with "
            "weights=FILE; or a saved directory, or a backbone from load_backbone"
        )
    if isinstance(backbone, Backbone):
        found = backbone
    elif weights is None and directory(backbone) is None:
        raise WeightsError(
            f"backbone={str(backbone)!r} names an architecture without weights; add weights=FILE, or weights='timm' to "
            "download them"
        )
    else:
        found = load_backbone(backbone, weights)
    spec = found.spec
    if not spec.family.startswith(release):
        raise WeightsError(
            f"{file.path} is a head of {release} and {spec.name} is of family {spec.family}, on whose features it was "
            f"not trained; give {fitting}, or load yours with family={release!r} if it is one"
        )
    if spec.dim not in dims:
        raise WeightsError(
            f"{file.path} expects maps of {' or '.join(map(str, dims))} channels and {spec.name} has {spec.dim}; "
            f"give {fitting}"
        )
    return found


# ---- heads

Table = Mapping[str, str]  # pattern -> replacement, applied one after another

UNUSED = r"neck\.fusion\.3\.unit1\."  # the first unit of the deepest fusion: published, but without effect
CLASSES = {150: ADE20K, 21: VOC2012}


def rename(name: str, table: Table) -> str:
    """Return our name of a tensor. In replacements, ~N counts levels from the deepest (~0 is our 3) and @N from 1."""
    for pattern, replacement in table.items():
        name = re.sub(pattern, replacement, name)
    name = re.sub(r"~(\d)", lambda found: str(3 - int(found[1])), name)
    return re.sub(r"@(\d)", lambda found: str(int(found[1]) - 1), name)


def renamed(state: State, table: Table) -> State:
    """Return a state dict under our names."""
    return {rename(name, table): tensor for name, tensor in state.items()}


def inverted(table: Table) -> dict[str, str]:
    """Return the table from our names to the published ones, of a table without @."""
    inverse = {}
    for pattern, replacement in table.items():
        ours = re.sub(r"\\\d", r"(\\d+)", replacement.replace("~", "").replace(".", r"\."))
        theirs = pattern.removeprefix("^").replace(r"\.", ".")
        for group in range(1, theirs.count("(") + 1):
            level = "~" if rf"~\{group}" in replacement else ""
            theirs = re.sub(r"\(\\d\+?\)", rf"{level}\\{group}", theirs, count=1)
        inverse[f"^{ours}"] = theirs
    return inverse


def depth_branch(prefix: str) -> dict[str, str]:
    """Return the table of a sequence of three convolutions with activations between, for depth."""
    return {rf"^{prefix}\.{2 * i - 2}\.": f"branches.depth.conv{i}." for i in (1, 2, 3)}


def label_branches(prefix: str, auxiliary: str | None = None) -> dict[str, str]:
    """Return the table of a sequence of convolution, BatchNorm, ReLU, dropout and classifier, for labels."""
    branches = {"branches": prefix} if auxiliary is None else {"branches": prefix, "auxiliary": auxiliary}
    return {
        rf"^{layer}\.{number}\.": f"{branch}.labels.{name}."
        for branch, layer in branches.items()
        for number, name in ((0, "conv"), (1, "norm"), (4, "classifier"))
    }


def dpt_spec(state: State, **options: Any) -> dict[str, Any]:
    """Return the argument of `heads.build` for a DPT with these tensors, under our names.

    options: entries that the shapes do not determine.
    """
    projects: list[Tensor | None] = [state.get(f"neck.reassemble.{i}.project.weight") for i in range(4)]
    adapts = [state[k] for i in range(4) if (k := f"neck.reassemble.{i}.adapt.weight") in state]
    if len(adapts) < 4:
        raise WeightsError("the file lacks levels of DPT: expected four 3x3 convolutions to one width")
    readout = ["project" if f"neck.reassemble.{i}.readout.weight" in state else "ignore" for i in range(4)]
    spec: dict[str, Any] = {
        "name": "dpt",
        "in_channels": [(a if p is None else p).shape[1] for a, p in zip(adapts, projects, strict=True)],
        "width": adapts[0].shape[0],
        "reassemble": [None if p is None else p.shape[0] for p in projects],
        "readout": readout[0] if len(set(readout)) == 1 else readout,
        "batch_norm": "neck.fusion.0.unit2.norm1.weight" in state,
        "bias": "neck.fusion.0.unit2.conv1.bias" in state,
        "input_norm": "neck.reassemble.0.norm.weight" in state,
        "project": "neck.project.weight" in state,
    }
    return spec | options


def hidden(state: State) -> int:
    """Return the number of channels between the last two convolutions of a depth branch."""
    if "branches.depth.conv2.weight" not in state:
        raise WeightsError("the file lacks the convolutions behind the fused map")
    return state["branches.depth.conv2.weight"].shape[0]


def class_names(file: Published, count: int, given: Any, published: tuple[int, ...] = (150,)) -> tuple[str, ...] | None:
    """Return the names of `count` classes: those given, or else of the data set with as many that is in `published`."""
    if given is None:
        return CLASSES[count] if count in published else None
    names = tuple(map(str, given))
    if len(names) != count:
        raise WeightsError(f"classes: {len(names)} names were given, and {file.path} has {count} classes")
    return names


def assemble(
    file: Published,
    family: str,
    backbone: Backbone,
    spec: dict[str, Any],
    state: State,
    layers: tuple[int, ...],
    norm: Norm,
    classes: tuple[str, ...] | None = None,
    inference: Inference = Inference(),
    unused: str = UNUSED,
) -> DenseModel:
    """Return a model of a backbone and the head of `spec`, which must match `state`, under our names, completely."""
    head = heads.build(spec)
    output = next(iter(head.outputs.values()))
    if isinstance(output, Classes) and output.count < 2:
        raise WeightsError(f"{file.path} has one class, by the sign of its logit; supported are two classes and more")
    own = head.state_dict()
    counters = {k: v for k, v in own.items() if k.endswith("num_batches_tracked") and k not in state}
    given = {k: v for k, v in state.items() if not re.match(unused, k)} | counters
    report = compare(own, given, str(file.path), family)
    report.ignored = [k for k in state if k not in given]
    if not report.complete:
        raise WeightsError(f"{file.path} does not fit the head of {family}; nothing was loaded\n{report}")
    head.load_state_dict(given, strict=True)
    task: Task = "segmentation" if isinstance(output, Classes) else "depth"
    if isinstance(output, Masks):
        task = task_of_masks(output.kind)
    facts = {"published": family, "file": file.path.name}
    model = DenseModel(backbone, head, layers, norm, task, classes, inference, facts)
    model.report = report
    return model.eval()
