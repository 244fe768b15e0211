"""Names of every DINO release, and the timm model, family and layers that a name stands for."""

from __future__ import annotations

import re
from pathlib import Path

SHIPPED = Path(__file__).parents[2] / "shipped"  # saved directories of the backbones that the package contains

ALIASES: dict[str, str] = {  # official hub names -> timm names
    "dino_vits16": "vit_small_patch16_224.dino",
    "dino_vits8": "vit_small_patch8_224.dino",
    "dino_vitb16": "vit_base_patch16_224.dino",
    "dino_vitb8": "vit_base_patch8_224.dino",
    "dino_resnet50": "resnet50",
    "ibot_vits16": "vit_small_patch16_224.ibot",
    "ibot_vitb16": "vit_base_patch16_224.ibot",
    "ibot_vitl16": "vit_large_patch16_224.ibot",
    **{
        f"dinov2_vit{letter}14{registers}": f"vit_{size}_patch14{timm}_dinov2.lvd142m"
        for letter, size in {"s": "small", "b": "base", "l": "large", "g": "giant"}.items()
        for registers, timm in {"": "", "_reg": "_reg4"}.items()
    },
    # the published files hold query and value biases, so the aliases name the models that have them
    "dinov3_vits16": "vit_small_patch16_dinov3_qkvb.lvd1689m",
    "dinov3_vits16plus": "vit_small_plus_patch16_dinov3_qkvb.lvd1689m",
    "dinov3_vitb16": "vit_base_patch16_dinov3_qkvb.lvd1689m",
    "dinov3_vitl16": "vit_large_patch16_dinov3_qkvb.lvd1689m",
    "dinov3_vith16plus": "vit_huge_plus_patch16_dinov3_qkvb.lvd1689m",
    "dinov3_vit7b16": "vit_7b_patch16_dinov3.lvd1689m",
    **{f"dinov3_convnext_{size}": f"convnext_{size}.dinov3_lvd1689m" for size in ("tiny", "small", "base", "large")},
}
ALIASES |= {  # Hugging Face ids of transformers -> the same
    **{f"facebook/dino-{name}": ALIASES[f"dino_{name}"] for name in ("vits16", "vits8", "vitb16", "vitb8")},
    **{
        f"facebook/dinov2-{registers}{size}": ALIASES[f"dinov2_vit{size[0]}14{'_reg' * bool(registers)}"]
        for size in ("small", "base", "large", "giant")
        for registers in ("", "with-registers-")
    },
    **{
        f"facebook/{name.replace('_', '-')}-pretrain-lvd1689m": timm
        for name, timm in ALIASES.items()
        if name.startswith("dinov3")
    },
    "facebook/dinov3-vitl16-pretrain-sat493m": "vit_large_patch16_dinov3_qkvb.sat493m",
    "facebook/dinov3-vit7b16-pretrain-sat493m": "vit_7b_patch16_dinov3.sat493m",
}
IDS = [name for name in ALIASES if "/" in name]  # of the Hugging Face hub


def shipped() -> dict[str, Path]:
    """Return the saved directories of the backbones that the package contains, by name."""
    return {folder.name: folder for folder in sorted(SHIPPED.glob("*")) if (folder / "config.json").is_file()}


def directory(name: str | Path) -> Path | None:
    """Return the saved directory at a path or of a backbone in the package; None for an architecture."""
    folder = shipped().get(str(name), Path(name))
    return folder if (folder / "config.json").is_file() else None


def title_of(name: str | Path) -> str:
    """Return the name of a backbone or a model for people: as it was given, or that of a saved directory."""
    folder = directory(name)
    if folder is None:
        return str(name)
    parts = folder.resolve().parts
    return "/".join(parts[-2:] if parts[-1] in ("backbone", "model") else parts[-1:])  # of a run


def repository(name: str) -> str:
    """Return the place of published weights on the Hugging Face hub: the id itself, or timm's."""
    return name if "/" in name else f"timm/{ALIASES.get(name, name)}"


def cached(name: str) -> Path | None:
    """Return the file of published weights in the cache of the hub or of torch.hub, None without one."""
    from huggingface_hub import try_to_load_from_cache
    from torch.hub import get_dir

    for file in ("model.safetensors", "pytorch_model.bin"):
        found = try_to_load_from_cache(repository(name), file)
        if isinstance(found, str):
            return Path(found)
    official = name.replace("_reg", "_reg4") + "_pretrain.pth"
    return next(iter(Path(get_dir(), "checkpoints").glob(official)), None)


def on_this_machine() -> list[str]:
    """Return the backbones that need no network: those in the package, and published ones in a cache."""
    return [*shipped(), *(name for name in ALIASES if cached(name) is not None)]


def resolve(name: str) -> tuple[str, str, str]:
    """Return (timm name, timm tag or "", family) of an official or timm name."""
    timm_name, _, tag = ALIASES.get(name, name).partition(".")
    if re.search(r"dinov3|_lingbot", timm_name):
        family = "dinov3"
    elif "dinov2" in timm_name:
        family = "dinov2_registers" if "_reg" in timm_name else "dinov2"
    elif timm_name.startswith("vit_") and tag in ("dino", "ibot"):
        family = tag
    elif name == "dino_resnet50":
        family = "resnet"
    elif timm_name.startswith("convnext") and tag.startswith("dinov3"):
        family = "convnext"
    else:
        family = "timm"
    return timm_name, "" if tag == "ibot" else tag, family


def default_layers(family: str, depth: int) -> tuple[int, ...]:
    """Return four layers for dense heads: evenly spaced, or as published for DINOv2 and DINOv3 at depth 24."""
    if depth == 24 and family.startswith(("dinov2", "dinov3")):
        return (4, 11, 17, 23)
    return tuple(sorted({max((i + 1) * depth // 4 - 1, 0) for i in range(4)}))
