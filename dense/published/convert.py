"""Conversion of a weight file or directory: read whatever it holds and write it in another layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from dense.backbone import Backbone, WeightsError, load_backbone
from dense.backbone.saved import CONFIG, read_json
from dense.model.network import DenseModel
from dense.published.eomt import how_opened
from dense.published.family import Published, is_ours
from dense.published.recognise import FAMILIES, is_backbone, load_published, recognise

Layout = Literal["own", "official", "huggingface"]


def read(
    source: Path,
    backbone: str | None = None,
    branch: Literal["teacher", "student"] = "teacher",
    overrides: Mapping[str, Any] | None = None,
    **facts: Any,
) -> Backbone | DenseModel:
    """Return what `source` holds: a trained model, a published head with its backbone, or a backbone.

    backbone: the architecture in a backbone's file, or the backbone that a published head was trained on. branch: the
    network to take from a training checkpoint. overrides: of the backbone, or further facts. facts: what a published
    head's file does not contain: family, kind, max_depth, weights.
    """
    overrides = dict(overrides or {})
    of_heads = list(facts)
    facts |= ({} if backbone is None else {"backbone": backbone}) | overrides

    def as_backbone(file: Published | None = None) -> Backbone:
        if backbone is not None:
            return load_backbone(backbone, source, branch=branch, **overrides)
        if not (source / CONFIG).is_file():
            if file is not None and is_backbone(file.tensors) is None:
                recognise(file)  # raises, and names the nearest family
            raise ValueError(f"{source} does not record its architecture; give it, such as --backbone dinov2_vits14")
        return load_backbone(source, **overrides)

    if is_ours(source):
        if of_heads:
            raise ValueError(f"{source} is a directory of this project, which records its {of_heads[0]}; leave it out")
        return DenseModel.from_pretrained(source) if "head" in read_json(source / CONFIG) else as_backbone()
    if of_heads:
        return load_published(source, **facts)
    try:
        file = Published.read(source)
    except (WeightsError, FileNotFoundError):  # the reader of backbones knows more forms and has the better error
        return as_backbone()
    if any(family.matches(file) for family in FAMILIES.values()):
        return load_published(file, **facts)
    return as_backbone(file)


def write(loaded: Backbone | DenseModel, source: Path, target: Path, layout: Layout = "own") -> str:
    """Write what was read from `source` to `target`; return a summary for the user."""
    if layout == "official":
        if not isinstance(loaded, Backbone):
            raise ValueError(f"{source} holds a head too; --official writes backbones alone")
        state = loaded.export_official(target)
        return f"wrote {len(state)} tensors, {sum(t.numel() for t in state.values()):,} parameters, to {target}"
    if layout == "huggingface":
        from dense.published.export import export_huggingface

        if not isinstance(loaded, DenseModel):
            raise ValueError(f"{source} is a backbone without a head; --huggingface writes DPT and EoMT models")
        name = export_huggingface(loaded, target)
        line = f"wrote {target}; open it with transformers.{name}.from_pretrained({str(target)!r})"
        if "masks" in loaded.outputs:
            return f"{how_opened(loaded)}\n{line}"
        if loaded.backbone.spec.positions in ("size", "bilinear"):
            return line
        height, width = loaded.backbone.spec.image_size
        note = (
            f"transformers interpolates positions by its own rule: outputs differ at sizes other than {height}x{width}"
        )
        return f"{note}\n{line}"
    loaded.save_pretrained(target)
    opener = "load" if isinstance(loaded, DenseModel) else "load_backbone"
    return f"wrote {target}; open it with dense.{opener}({str(target)!r})"
