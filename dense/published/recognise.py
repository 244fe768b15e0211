"""Which family a file is of, or the error that says what is nearest."""

from __future__ import annotations

import re

from dense.backbone.weights.report import WeightsError
from dense.published import depth_anything, dinov2_heads, dinov3_heads, dpt, huggingface, restormer, smp
from dense.published.family import Family, Published
from dense.published.vit import is_backbone
from dense.suggest import did_you_mean

# a new family is a module with FAMILIES, named here
MODULES = (dpt, depth_anything, huggingface, dinov2_heads, dinov3_heads, smp, restormer)
FAMILIES: dict[str, Family] = {family.name: family for module in MODULES for family in module.FAMILIES}

KNOWN_ELSEWHERE = {  # sign -> what it is, of files that are not read here
    r"^aggregator\.": "VGGT, which sees several images at once",
    r"conditional_log_binomial\.|^core\.core\.": "ZoeDepth",
    r"relative_position_bias_table|^pretrained\.model\.layers\.": "MiDaS v3.1 on BEiT or Swin; read is v3 (DPT-Large, DPT-Hybrid)",
    r"^pretrained\.layer1\.": "MiDaS v2, on a convolutional network",
    r"transformer_decoder\.|transformer_feat_cross_attention": "a Mask2Former head",
}


def recognise(file: Published, family: str | None = None) -> Family:
    """The family whose signs a file has; the one that is said, where it fits."""
    if family is not None and family not in FAMILIES:
        hint = did_you_mean(family, FAMILIES)
        raise WeightsError(f"family={family!r} is unknown; expected one of {', '.join(FAMILIES)}.{hint}")
    fitting = [known for known in FAMILIES.values() if known.fits(file)]
    if family is not None:
        if FAMILIES[family] in fitting:
            return FAMILIES[family]
        looks = f" It looks like {' or '.join(f.name for f in fitting)}." if fitting else _nearest(file)
        raise WeightsError(f"{file.path} is no file of {family} ({FAMILIES[family].title}).{looks}")
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        choices = " or ".join(f"family={f.name!r} ({f.title})" for f in fitting)
        raise WeightsError(f"{file.path} cannot say its family, so you must: {choices}")
    raise WeightsError(f"{file.path} is of no published family that is known here.{_nearest(file)}")


def _nearest(file: Published) -> str:
    """What a file resembles, in words."""
    text = "\n".join(file.tensors)
    for sign, title in KNOWN_ELSEWHERE.items():
        if re.search(sign, text, re.MULTILINE):
            return f" It is {title}, which is not read."
    whole = any(
        not family.found(file.tensors)[1] for family in FAMILIES.values()
    )  # of another type, by its config.json
    if not whole and (layout := is_backbone(file.tensors)) is not None:
        return (
            f" It is a backbone ({layout}) without a head: open it with dense.load_backbone(NAME, {str(file.path)!r})."
        )
    model_type = file.config.get("model_type")
    shares = []
    for family in FAMILIES.values():
        there, lacking = family.found(file.tensors)
        if there:
            wrong = (
                f"has no {_plain(lacking[0])}"
                if lacking
                else f"config.json says {model_type!r}, not {family.model_type!r}"
            )
            shares.append((len(there) / len(family.signs), f"{family.name} (has {_plain(there[0])}, {wrong})"))
    if shares:
        nearest = [words for _, words in sorted(shares, key=lambda s: -s[0])[:3]]
        return f" Nearest: {'; '.join(nearest)}."
    some = ", ".join(sorted(file.tensors)[:4])
    return f" Its names ({some}, ...) resemble none of {', '.join(FAMILIES)}."


def _plain(sign: str) -> str:
    return re.sub(r"[\^$\\]|\(\?:|\(|\)", "", sign)
