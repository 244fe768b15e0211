"""Which family a published file is of, and the model in it; or the error that names the nearest family."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from dense.backbone import WeightsError
from dense.backbone.weights.checkpoint import recognise as recognise_backbone
from dense.model.network import DenseModel
from dense.published import depth_anything, dinov2_heads, dinov3_heads, dpt, eomt, huggingface, restormer, smp
from dense.published.family import Family, Published, State
from dense.suggest import UnknownOption, did_you_mean

# a new family is a module with FAMILIES, listed here
MODULES = (dpt, depth_anything, huggingface, dinov2_heads, dinov3_heads, smp, restormer, eomt)
FAMILIES: dict[str, Family] = {family.name: family for module in MODULES for family in module.FAMILIES}

UNSUPPORTED = {  # pattern -> title
    r"^aggregator\.": "VGGT, which takes several images at once",
    r"conditional_log_binomial\.|^core\.core\.": "ZoeDepth",
    r"relative_position_bias_table|^pretrained\.model\.layers\.": (
        "MiDaS v3.1 on BEiT or Swin (v3, DPT-Large and DPT-Hybrid, is supported)"
    ),
    r"^pretrained\.layer1\.": "MiDaS v2, on a convolutional network",
    r"transformer_decoder\.|transformer_feat_cross_attention": "a Mask2Former head",
}


def load_published(source: str | Path | Published, family: str | None = None, **facts: Any) -> DenseModel:
    """Return the model in a published file or directory.

    family: one of `FAMILIES`, where the keys fit several. facts: what the file does not contain, by family: kind,
    max_depth, backbone, weights, ... A missing one raises, with the choices.
    """
    file = source if isinstance(source, Published) else Published.read(source)
    found = recognise(file, family)
    if unknown := [name for name in facts if name not in found.options]:
        hint = did_you_mean(unknown[0], found.options)
        takes = ", ".join(found.options) or "nothing"
        raise UnknownOption(f"{found.name} ({found.title}) takes no {unknown[0]!r}; it takes {takes}.{hint}")
    try:
        return found.build(file, **facts)
    except KeyError as error:
        raise WeightsError(f"{file.path} lacks {error}, which every file of {found.name} ({found.title}) has") from None


def recognise(file: Published, family: str | None = None) -> Family:
    """Return the family whose patterns match a file; `family` decides between several that match."""
    if family is not None and family not in FAMILIES:
        hint = did_you_mean(family, FAMILIES)
        raise WeightsError(f"family={family!r} is unknown; expected one of {', '.join(FAMILIES)}.{hint}")
    matching = [known for known in FAMILIES.values() if known.matches(file)]
    if family is not None:
        if FAMILIES[family] in matching:
            return FAMILIES[family]
        similar = f" It looks like {' or '.join(f.name for f in matching)}." if matching else _nearest(file)
        raise WeightsError(f"{file.path} is no file of {family} ({FAMILIES[family].title}).{similar}")
    if len(matching) == 1:
        return matching[0]
    if matching:
        choices = " or ".join(f"family={f.name!r} ({f.title})" for f in matching)
        raise WeightsError(f"{file.path} matches several families, so choose one: {choices}")
    raise WeightsError(f"{file.path} is of no supported family.{_nearest(file)}")


def is_backbone(state: State) -> str | None:
    """Return the layout of a file that holds a backbone without a head, or None."""
    try:
        return recognise_backbone(state)
    except WeightsError:
        return None


def _nearest(file: Published) -> str:
    """Describe what an unsupported file resembles."""
    text = "\n".join(file.tensors)
    for pattern, title in UNSUPPORTED.items():
        if re.search(pattern, text, re.MULTILINE):
            return f" It is {title}, which is not supported."
    patterns = {family: family.split_patterns(file.tensors) for family in FAMILIES.values()}
    only_type_differs = any(not missing for _, missing in patterns.values())
    if not only_type_differs and (layout := is_backbone(file.tensors)) is not None:
        opener = f"dense.load_backbone(NAME, {str(file.path)!r})"
        return f" It is a backbone ({layout}) without a head: open it with {opener}."
    model_type = file.config.get("model_type")
    shares = []
    for family, (matching, missing) in patterns.items():
        if matching:
            problem = f"config.json says {model_type!r}, not {family.model_type!r}"
            if missing:
                problem = f"has no {_plain(missing[0])}"
            words = f"{family.name} (has {_plain(matching[0])}, {problem})"
            shares.append((len(matching) / len(family.patterns), words))
    if shares:
        nearest = [words for _, words in sorted(shares, key=lambda s: -s[0])[:3]]
        return f" Nearest: {'; '.join(nearest)}."
    names = ", ".join(sorted(file.tensors)[:4])
    return f" Its names ({names}, ...) resemble none of {', '.join(FAMILIES)}."


def _plain(pattern: str) -> str:
    return re.sub(r"[\^$\\]|\(\?:|\(|\)", "", pattern)
