"""From a name to a spec, from a spec to an adapter with random initialisation."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import timm
import torch
from timm.layers import HybridEmbed, RotaryEmbeddingDinoV3, SwiGLU, SwiGLUPacked
from timm.models.eva import Eva as TimmEva
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn

from dense.backbone.base import Backbone
from dense.backbone.positions import periods_of, set_periods
from dense.backbone.pyramid import Pyramid
from dense.backbone.spec import IMAGENET_MEAN, IMAGENET_STD, BackboneSpec, Positions, resolve_layers
from dense.backbone.vit import STAGES, Eva, Hybrid, ViT
from dense.backbone.weights.names import ALIASES, default_layers, resolve, shipped
from dense.suggest import UnknownOption, did_you_mean

# fields of the spec that a person may set; the others follow from the model
SETTABLE = ("positions", "rope_periods", "padding", "layers", "norm", "norm_eps", "mean", "std", "family")

MLPS = {"swiglu": SwiGLU, "swiglu_packed": SwiGLUPacked}  # names for what timm wants as a class


def describe(name: str, **overrides: Any) -> BackboneSpec:
    """The spec of a named backbone. Overrides are fields of the spec (positions, padding, layers, norm, ...) or arguments
    of timm's model (img_size, depth, drop_path_rate, ...)."""
    timm_name, tag, family = resolve(name)
    if not timm.is_model(timm_name):
        known = [*shipped(), *ALIASES, *timm.list_models()]
        raise ValueError(f"unknown backbone {name!r}.{did_you_mean(name, known)}")
    settings: dict[str, Any] = {k: v for k, v in overrides.items() if k in SETTABLE}
    arguments = {k: v for k, v in overrides.items() if k not in SETTABLE}
    model = _skeleton(timm_name, arguments)
    cfg = timm.get_pretrained_cfg(f"{timm_name}.{tag}" if tag else timm_name)
    family = settings.pop("family", family)
    spec = _describe_model(timm_name, family, model, arguments)
    if spec.kind == "pyramid" and "norm_eps" in settings:
        raise ValueError(f"{timm_name} is convolutional; norm_eps cannot be set")
    mean, std = (
        (cfg.mean, cfg.std) if cfg is not None and family in ("timm", "dinov3") else (IMAGENET_MEAN, IMAGENET_STD)
    )
    layers = settings.pop("layers", None)
    settings = {"mean": tuple(mean), "std": tuple(std)} | settings
    chosen: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    spec = replace(spec, **chosen)
    return spec if layers is None else replace(spec, layers=resolve_layers(layers, spec))


def build(spec: BackboneSpec) -> Backbone:
    """The adapter for a spec, with random initialisation."""
    model = _create(spec.name, dict(spec.arguments))
    if spec.norm_eps is not None and spec.kind != "pyramid":
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = spec.norm_eps
    if spec.rope_periods == "bfloat16":
        set_periods(model, periods_of(model).to(torch.bfloat16).float())
    adapter = {"vit": ViT, "eva": Eva, "hybrid": Hybrid, "pyramid": Pyramid}[spec.kind]
    return adapter(spec, model)


def _skeleton(timm_name: str, arguments: dict[str, Any]) -> nn.Module:
    """A model without memory, where it can be built so: some, above all of older timm, compute with numbers at birth."""
    try:
        with torch.device("meta"):
            return _create(timm_name, arguments)
    except (NotImplementedError, RuntimeError):
        return _create(timm_name, arguments)


def _create(timm_name: str, arguments: dict[str, Any]) -> nn.Module:
    entry = timm.model_entrypoint(timm_name)
    if isinstance(mlp := arguments.get("mlp_layer"), str):
        if mlp not in MLPS:
            raise ValueError(f"mlp_layer={mlp!r}: expected one of {', '.join(MLPS)}.{did_you_mean(mlp, MLPS)}")
        arguments = arguments | {"mlp_layer": MLPS[mlp]}
    unread = [k for k in ("pos_drop_rate", "patch_drop_rate", "dynamic_img_size", "num_classes") if k in arguments]
    if unread:
        raise ValueError(f"{unread[0]} has no effect here; leave it out")
    try:
        try:
            model = entry(pretrained=False, num_classes=0, dynamic_img_size=True, **arguments)
        except TypeError as error:
            if "dynamic_img_size" not in str(error):
                raise
            model = entry(pretrained=False, num_classes=0, **arguments)
    except (AssertionError, IndexError, ZeroDivisionError) as error:
        given = ", ".join(f"{k}={v}" for k, v in arguments.items())
        raise ValueError(f"{timm_name} cannot be built with {given}: {error}") from None
    except TypeError as error:
        known = [p for cls in (TimmViT, TimmEva) for p in inspect.signature(cls.__init__).parameters] + list(SETTABLE)
        wrong = [k for k in arguments if repr(k) in str(error) and (k not in known or "unexpected" in str(error))]
        if not wrong:
            raise
        if wrong[0] in known:
            given = ", ".join(f"{k}={v}" for k, v in arguments.items())
            raise UnknownOption(
                f"{timm_name} has no {wrong[0]}: among {given} are options of another kind of backbone; leave them out "
                "(of a recipe: --model.backbone.arguments {})"
            ) from None
        raise UnknownOption(f"{timm_name} has no option {wrong[0]!r}.{did_you_mean(wrong[0], known)}") from None
    if isinstance(model, TimmViT | TimmEva) and type(model) in (TimmViT, TimmEva):
        return model
    if hasattr(model, "forward_intermediates") and hasattr(model, "feature_info") and not hasattr(model, "patch_embed"):
        return model
    raise ValueError(
        f"{timm_name} is a {type(model).__name__}; supported are timm's VisionTransformer and Eva models and "
        "convolutional models with forward_intermediates (ResNet, ConvNeXt, ...)"
    )


def _describe_model(timm_name: str, family: str, model: Any, arguments: dict[str, Any]) -> BackboneSpec:
    if not isinstance(model, TimmViT | TimmEva):
        info = model.feature_info if isinstance(model.feature_info, list) else model.feature_info.info
        strides, channels = tuple(i["reduction"] for i in info), tuple(i["num_chs"] for i in info)
        return BackboneSpec(
            name=timm_name, family=family, kind="pyramid", patch=strides[-1], dim=channels[-1], depth=len(info), heads=0,
            prefix=0, class_token=False, registers=0, positions="none", image_size=(224, 224), norm_eps=None,
            layers=tuple(range(max(len(info) - 4, 0), len(info))), norm=False, channels=channels, strides=strides,
            arguments=arguments,
        )  # fmt: skip
    embed = model.patch_embed
    patch: Any = embed.feat_ratio(as_scalar=False) if isinstance(embed, HybridEmbed) else embed.patch_size
    hybrid = isinstance(embed, HybridEmbed) and hasattr(embed.backbone, "stages")  # not a convolutional stem alone
    if patch[0] != patch[1]:
        raise ValueError(f"{timm_name} has patches of {patch[0]}x{patch[1]}; only square patches are supported")
    depth = len(model.blocks)
    if not depth:
        raise ValueError(f"{timm_name} has no blocks; depth must be at least 1")
    registers = 0 if model.reg_token is None else model.reg_token.shape[1]
    eva = isinstance(model, TimmEva)
    dino_rope = eva and isinstance(model.rope, RotaryEmbeddingDinoV3)
    if model.pos_embed is not None:
        positions: dict[str, Positions] = {
            "dino": "official",
            "ibot": "official",
            "dinov2": "official",
            "dinov2_registers": "official_registers",
        }
        rule: Positions = positions.get(family, "timm")
    else:
        rule = "rope" if eva and model.rope is not None else "none"
    channels, strides = _stages(model, depth, patch[0]) if hybrid else ((), ())
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    return BackboneSpec(
        name=timm_name, family=family, kind="hybrid" if hybrid else "eva" if eva else "vit", patch=patch[0], dim=model.embed_dim, depth=depth,
        heads=getattr(getattr(model.blocks[0], "attn", None), "num_heads", 0),
        prefix=model.num_prefix_tokens, class_token=model.cls_token is not None, registers=registers,
        positions=rule, rope_periods="float32" if dino_rope else None, image_size=tuple(model.patch_embed.img_size),
        norm_eps=norms[0].eps if norms else None, layers=default_layers(family, depth), arguments=arguments,
        channels=channels, strides=strides,
    )  # fmt: skip


def _stages(model: Any, depth: int, patch: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Channels and strides of the layers of a hybrid."""
    info = [i for i in model.patch_embed.backbone.feature_info if i["module"].startswith("stages.")]
    if len(info) != STAGES + 1 or depth <= STAGES:
        raise ValueError(
            f"a hybrid of {len(info)} stages and {depth} blocks is not supported; expected 3 and more than 2"
        )
    channels = tuple(i["num_chs"] for i in info[:STAGES]) + (model.embed_dim,) * (depth - STAGES)
    return channels, tuple(i["reduction"] for i in info[:STAGES]) + (patch,) * (depth - STAGES)
