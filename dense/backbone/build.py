"""From a name to the spec of a backbone, and from a spec to timm's model with random initialisation."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import timm
import torch
from timm.layers import HybridEmbed, Mlp, RotaryEmbeddingDinoV3, SwiGLU, SwiGLUPacked
from timm.models.eva import Eva as TimmEva
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn
from torch.overrides import TorchFunctionMode

from dense.backbone.channels import check_rule, inputs_of
from dense.backbone.positions import periods_of, set_periods
from dense.backbone.spec import (
    HYBRID_STAGES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    RGB,
    BackboneSpec,
    Channels,
    ChannelsFrom,
    Positions,
    as_tuples,
    by_name,
    channel_names,
    resolve_layers,
)
from dense.backbone.weights.names import ALIASES, default_layers, resolve, shipped
from dense.suggest import UnknownOption, did_you_mean

# fields of the spec that a caller may set; the others follow from the model
SETTABLE = ("positions", "rope_periods", "padding", "layers", "norm", "norm_eps", "mean", "std", "family", "reading")
WITHOUT_EFFECT = ("pos_drop_rate", "patch_drop_rate", "dynamic_img_size", "num_classes")  # arguments of timm's models
MLPS = {"mlp": Mlp, "swiglu": SwiGLU, "swiglu_packed": SwiGLUPacked}  # names for what timm takes as a class
RULES: dict[str, Positions] = {  # family -> interpolation of its position table
    "dino": "official",
    "ibot": "official",
    "dinov2": "official",
    "dinov2_registers": "official_registers",
}


def describe(
    name: str, channels: Channels | None = None, channels_from: ChannelsFrom | None = None, **overrides: Any
) -> BackboneSpec:
    """Return the spec of a named backbone.

    Overrides are fields of the spec (positions, padding, layers, norm, ...) or arguments of timm's model (img_size,
    depth, drop_path_rate, ...). A mean or std that is one number is that of every channel.
    """
    check_rule(channels_from)
    names = RGB if channels is None else channel_names(channels)
    timm_name, tag, family = resolve(name)
    if not timm.is_model(timm_name):
        known = [*shipped(), *ALIASES, *timm.list_models()]
        raise ValueError(f"unknown backbone {name!r}.{did_you_mean(name, known)}")
    settings: dict[str, Any] = {k: v for k, v in overrides.items() if k in SETTABLE}
    arguments = {k: v for k, v in overrides.items() if k not in SETTABLE}
    family, layers = settings.pop("family", family), settings.pop("layers", None)
    model = _without_memory(timm_name, arguments)
    spec = (_describe_tokens if isinstance(model, TimmViT | TimmEva) else _describe_pyramid)(
        timm_name, family, model, arguments
    )
    if spec.kind == "pyramid" and "norm_eps" in settings:
        raise ValueError(f"{timm_name} is convolutional; norm_eps cannot be set")
    published = timm.get_pretrained_cfg(f"{timm_name}.{tag}" if tag else timm_name)
    own = published if family in ("timm", "dinov3") else None
    for statistic, usual in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
        if isinstance(given := settings.get(statistic), int | float):
            settings[statistic] = (float(given),) * len(names)
        settings.setdefault(statistic, by_name(usual if own is None else getattr(own, statistic), names))
    spec = replace(spec, channels=names, each_channel=channels_from == "each", **as_tuples(settings))
    return spec if layers is None else replace(spec, layers=resolve_layers(layers, spec))


def build_timm(spec: BackboneSpec) -> nn.Module:
    """Return timm's model for a spec, with random initialisation."""
    count = len(inputs_of(spec))
    model = _create(spec.name, dict(spec.arguments), {} if count == len(RGB) else {"in_chans": count})
    if spec.norm_eps is not None and spec.kind != "pyramid":
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = spec.norm_eps
    if spec.rope_periods == "bfloat16":
        set_periods(model, periods_of(model).to(torch.bfloat16).float())
    return model


def _without_memory(timm_name: str, arguments: dict[str, Any]) -> nn.Module:
    """Return a model on the meta device where timm can build it there; some models compute values when built."""
    try:
        with torch.device("meta"), _Unfilled():
            return _create(timm_name, arguments)
    except (NotImplementedError, RuntimeError):
        return _create(timm_name, arguments)


class _Unfilled(TorchFunctionMode):
    """Leaves out timm's normal distributions, for which meta tensors import torch.compile's front end."""

    STEPS = ("normal_", "uniform_", "erfinv_", "mul_", "add_", "clamp_")

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.__name__ in self.STEPS:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def _create(timm_name: str, arguments: dict[str, Any], own: dict[str, Any] | None = None) -> nn.Module:
    """Return timm's model for any image size and without a classifier; options that it does not have raise.

    own: arguments that no caller sets.
    """
    entry = timm.model_entrypoint(timm_name)
    if isinstance(mlp := arguments.get("mlp_layer"), str):
        if mlp not in MLPS:
            raise ValueError(f"mlp_layer={mlp!r}: expected one of {', '.join(MLPS)}.{did_you_mean(mlp, MLPS)}")
        arguments = arguments | {"mlp_layer": MLPS[mlp]}
    if useless := [k for k in WITHOUT_EFFECT if k in arguments]:
        raise ValueError(f"{useless[0]} has no effect here; leave it out")
    if "in_chans" in arguments:
        raise ValueError(f"in_chans={arguments['in_chans']}: give channels={arguments['in_chans']}, or their names")
    given = ", ".join(f"{k}={v}" for k, v in arguments.items())
    arguments = arguments | (own or {})
    try:
        try:
            model = entry(pretrained=False, num_classes=0, dynamic_img_size=True, **arguments)
        except TypeError as error:
            if "dynamic_img_size" not in str(error):
                raise
            model = entry(pretrained=False, num_classes=0, **arguments)
    except (AssertionError, IndexError, ZeroDivisionError) as error:
        raise ValueError(f"{timm_name} cannot be built with {given}: {error}") from None
    except TypeError as error:
        known = [p for cls in (TimmViT, TimmEva) for p in inspect.signature(cls.__init__).parameters] + list(SETTABLE)
        wrong = [k for k in arguments if repr(k) in str(error) and (k not in known or "unexpected" in str(error))]
        if not wrong:
            raise
        if wrong[0] in known:
            raise UnknownOption(
                f"{timm_name} has no {wrong[0]}: among {given} are options of another kind of backbone; leave them out "
                "(of a recipe: --model.backbone.arguments {})"
            ) from None
        raise UnknownOption(f"{timm_name} has no option {wrong[0]!r}.{did_you_mean(wrong[0], known)}") from None
    if type(model) in (TimmViT, TimmEva):
        return model
    if hasattr(model, "forward_intermediates") and hasattr(model, "feature_info") and not hasattr(model, "patch_embed"):
        return model
    raise ValueError(
        f"{timm_name} is a {type(model).__name__}; supported are timm's VisionTransformer and Eva models and "
        "convolutional models with forward_intermediates (ResNet, ConvNeXt, ...)"
    )


def _describe_pyramid(timm_name: str, family: str, model: Any, arguments: dict[str, Any]) -> BackboneSpec:
    info = model.feature_info if isinstance(model.feature_info, list) else model.feature_info.info
    strides, widths = tuple(i["reduction"] for i in info), tuple(i["num_chs"] for i in info)
    return BackboneSpec(
        name=timm_name, family=family, kind="pyramid", patch=strides[-1], dim=widths[-1], depth=len(info), heads=0,
        prefix=0, class_token=False, registers=0, positions="none", image_size=(224, 224), norm_eps=None,
        layers=tuple(range(max(len(info) - 4, 0), len(info))), norm=False, widths=widths, strides=strides,
        arguments=arguments,
    )  # fmt: skip


def _describe_tokens(timm_name: str, family: str, model: Any, arguments: dict[str, Any]) -> BackboneSpec:
    embed, depth = model.patch_embed, len(model.blocks)
    patch: Any = embed.feat_ratio(as_scalar=False) if isinstance(embed, HybridEmbed) else embed.patch_size
    hybrid = isinstance(embed, HybridEmbed) and hasattr(embed.backbone, "stages")  # a convolutional stem has none
    eva = isinstance(model, TimmEva)
    if patch[0] != patch[1]:
        raise ValueError(f"{timm_name} has patches of {patch[0]}x{patch[1]}; only square patches are supported")
    if not depth:
        raise ValueError(f"{timm_name} has no blocks; depth must be at least 1")
    if model.pos_embed is not None:
        positions: Positions = RULES.get(family, "timm")
    else:
        positions = "rope" if eva and model.rope is not None else "none"
    periods = eva and isinstance(model.rope, RotaryEmbeddingDinoV3)
    widths, strides = _hybrid_layers(model, depth, patch[0]) if hybrid else ((), ())
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    return BackboneSpec(
        name=timm_name, family=family, kind="hybrid" if hybrid else "eva" if eva else "vit",
        patch=patch[0], dim=model.embed_dim, depth=depth,
        heads=getattr(getattr(model.blocks[0], "attn", None), "num_heads", 0),
        prefix=model.num_prefix_tokens, class_token=model.cls_token is not None,
        registers=0 if model.reg_token is None else model.reg_token.shape[1],
        positions=positions, rope_periods="float32" if periods else None, image_size=tuple(embed.img_size),
        norm_eps=norms[0].eps if norms else None, layers=default_layers(family, depth), arguments=arguments,
        widths=widths, strides=strides,
    )  # fmt: skip


def _hybrid_layers(model: Any, depth: int, patch: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return widths and strides of the layers of a hybrid: stages of its ResNet, then blocks."""
    info = [i for i in model.patch_embed.backbone.feature_info if i["module"].startswith("stages.")]
    if len(info) != HYBRID_STAGES + 1 or depth <= HYBRID_STAGES:
        raise ValueError(
            f"a hybrid of {len(info)} stages and {depth} blocks is not supported; expected 3 and more than 2"
        )
    blocks, stages = depth - HYBRID_STAGES, info[:HYBRID_STAGES]
    widths = tuple(i["num_chs"] for i in stages) + (model.embed_dim,) * blocks
    return widths, tuple(i["reduction"] for i in stages) + (patch,) * blocks
