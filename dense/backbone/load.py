"""`load_backbone`: a name and, perhaps, weights from anywhere, to a backbone ready for use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch

from dense.backbone.base import Backbone
from dense.backbone.build import SETTABLE, build, describe
from dense.backbone.hub import CONFIG, fetching, read_json
from dense.backbone.positions import PERIODS, periods_of
from dense.backbone.spec import IMAGENET_MEAN, IMAGENET_STD, BackboneSpec
from dense.backbone.weights import official
from dense.backbone.weights.checkpoint import Branch, StateDict, backbone_state, read_checkpoint
from dense.backbone.weights.huggingface import describe_config, from_huggingface, is_huggingface, layout_of
from dense.backbone.weights.names import ALIASES, directory, resolve
from dense.backbone.weights.report import LoadReport, WeightsError, compare

Weights = str | Path | Mapping[str, Any]

# absent from these layouts by nature; everything else must be in the file
NEUTRAL = {"mask_token", "class_position"}


def load_backbone(
    name: str | Path,
    weights: Weights | None = None,
    *,
    branch: Branch = "teacher",
    frozen: bool = False,
    **overrides: Any,
) -> Backbone:
    """A backbone by name, with weights from timm, from a file, or fresh.

    Args:
        name: a timm name ("vit_small_patch14_dinov2"), an official hub name ("dinov2_vits14_reg"), a backbone that comes
            with the package ("scenes_tiny"), or a directory written by `save_pretrained` or by Hugging Face's transformers.
        weights: None for random initialisation; "timm" for timm's published ones (downloads); a .pth, .pt, .ckpt or .safetensors
            file; a directory; or a state dict. Official, training, Hugging Face, timm and own layouts are recognised by
            their names, and a partial match is refused.
        branch: of a training checkpoint that holds both, "teacher" or "student".
        frozen: freeze the result.
        overrides: fields of the spec (positions, padding, layers, norm, mean, std, ...) or arguments of timm's model
            (img_size, drop_path_rate, depth, ...).

    The result is in evaluation mode and on the CPU; `backbone.spec` tells every choice, `backbone.report` what matched.
    """
    if (folder := directory(name)) is not None:
        if weights is not None:
            raise ValueError(
                f"{folder} brings its own weights; leave weights out, or name the architecture instead of the directory"
            )
        backbone = _open(folder, overrides)
    else:
        folder = Path(name)
        unknown = folder.is_dir() and not timm.is_model(resolve(str(name))[0])
        if isinstance(name, Path) or (folder.suffix and folder.is_file()) or "/" in str(name) or unknown:
            _explain_path(folder)
        backbone = _named(str(name), weights, branch, overrides)
    return backbone.freeze() if frozen else backbone.eval()


def _explain_path(folder: Path) -> None:
    if folder.is_file():
        raise ValueError(
            f"{folder} is a weight file; name its architecture first: load_backbone('dinov2_vits14', '{folder}')"
        )
    if folder.is_dir():
        inside = f"; {folder / 'backbone'} has one" if directory(folder / "backbone") else ""
        raise FileNotFoundError(f"{folder} has no {CONFIG}{inside}; expected a directory written by save_pretrained")
    raise FileNotFoundError(f"no such directory: {folder}")


def _named(name: str, weights: Weights | None, branch: Branch, overrides: dict[str, Any]) -> Backbone:
    if isinstance(weights, str | Path) and (Path(weights) / CONFIG).is_file():
        backbone = _open(Path(weights), overrides)
        wanted, found = describe(name, **overrides), backbone.spec
        same = all(
            getattr(wanted, f) == getattr(found, f)
            for f in ("dim", "depth", "patch", "kind", "registers", "class_token")
        )
        if not same or ("timm" not in (wanted.family, found.family) and wanted.family != found.family):
            raise WeightsError(f"{weights} holds {_words(found)}, not {_words(replace(wanted, name=name))}")
        return backbone
    spec = describe(name, **overrides)
    if isinstance(weights, str) and weights == "timm":
        return _from_timm(name, spec)
    if weights is None:
        return build(spec)
    if isinstance(weights, Mapping):
        return _load(spec, weights, branch, "the state dict", overrides)
    return _load(spec, read_checkpoint(weights), branch, str(weights), overrides)


def _open(folder: Path, overrides: dict[str, Any]) -> Backbone:
    """A directory of ours or of Hugging Face."""
    config = read_json(folder / CONFIG)
    if "model_type" in config:
        name, arguments = describe_config(config)
        preprocessor = folder / "preprocessor_config.json"
        if preprocessor.is_file():
            facts = read_json(preprocessor)
            arguments |= {k: tuple(facts[f"image_{k}"]) for k in ("mean", "std") if f"image_{k}" in facts}
        arguments |= overrides
        state, source = read_directory(folder)
        return _load(describe(name, **arguments), state, "teacher", str(source), arguments)
    if "backbone" not in config:
        raise WeightsError(
            f"{folder / CONFIG} describes no backbone; expected one written by save_pretrained or transformers"
        )
    if overrides:
        spec = BackboneSpec.from_dict(config["backbone"])
        kept = {name: getattr(spec, name) for name in SETTABLE if not (spec.kind == "pyramid" and name == "norm_eps")}
        config["backbone"] = describe(spec.name, **{**kept, **spec.arguments, **overrides}).to_dict()
    return Backbone.open(folder, config)


def read_directory(folder: Path) -> tuple[dict[str, Any], Path]:
    """The tensors of a directory of transformers, in one file or in shards, and where they are."""
    for index in (folder / f"{name}.index.json" for name in ("model.safetensors", "pytorch_model.bin")):
        if index.is_file():
            if not isinstance(places := read_json(index).get("weight_map"), dict):
                raise WeightsError(f"{index} has no weight_map; download it again")
            shards = sorted(set(places.values()))
            if outside := [shard for shard in shards if Path(shard).name != shard]:
                raise WeightsError(f"{index} names {outside[0]!r}, which is no file of {folder}; do not trust it")
            return {k: v for shard in shards for k, v in read_checkpoint(folder / shard).items()}, folder
    files = [folder / f for f in ("model.safetensors", "pytorch_model.bin") if (folder / f).is_file()]
    if not files:
        raise FileNotFoundError(f"{folder} has no model.safetensors or pytorch_model.bin")
    return read_checkpoint(files[0]), files[0]


def _from_timm(name: str, spec: BackboneSpec) -> Backbone:
    backbone = build(spec)
    timm_name = ALIASES.get(name, name)
    options = {"num_classes": 0} | ({} if spec.kind == "pyramid" else {"dynamic_img_size": True}) | dict(spec.arguments)
    try:
        with fetching(timm_name):
            published = timm.create_model(timm_name, pretrained=True, **options)
    except RuntimeError as error:
        if "pretrained weights" in str(error).lower() or "no pretrained" in str(error).lower():
            raise WeightsError(f"timm publishes no weights for {timm_name}; {_siblings(timm_name)}") from None
        raise
    state = {f"model.{k}": v for k, v in published.state_dict().items()}
    _finish(backbone, state, {}, LoadReport("timm", "timm"))
    if spec.rope_periods is not None:  # timm keeps fp32 periods; the weights were trained with bfloat16 ones
        rounded = periods_of(backbone.model).to(torch.bfloat16).float()
        backbone.carry({PERIODS: rounded})
        backbone.spec = replace(backbone.spec, rope_periods="bfloat16")
    return backbone


def _siblings(timm_name: str) -> str:
    tags = timm.list_pretrained(timm_name.split(".")[0] + "*")[:5]
    return f"it does for {', '.join(tags)}" if tags else "give a file instead: weights='PATH'"


def _load(
    spec: BackboneSpec, checkpoint: Mapping[str, Any], branch: Branch, source: str, overrides: Mapping[str, Any]
) -> Backbone:
    state, ignored, where = backbone_state(checkpoint, branch, source)
    layout = recognise(state)
    spec = _follow_weights(spec, layout, where, state, overrides)
    backbone = build(spec)
    own, carried = _convert(layout, state, backbone, source)
    report = LoadReport(source, layout if where == "bare" else f"{layout} (under {where})", ignored=ignored)
    _finish(backbone, own, carried, report, original=state)
    return backbone


def recognise(state: StateDict) -> str:
    """The layout of a backbone's state dict, by its names."""
    names = set(state)
    if any(k.startswith("model.") for k in names) and (
        "mask_token" in names or any(k.startswith("model.stages") for k in names)
    ):
        return "own"
    if is_huggingface(state):
        return layout_of(state)
    if "storage_tokens" in names or any(k.endswith("attn.qkv.bias_mask") or k == PERIODS for k in names):
        return "dinov3"
    if "register_tokens" in names:
        return "dinov2_registers"
    if "masked_embed" in names:
        return "ibot"
    if any(k.startswith("downsample_layers.") for k in names):
        return "convnext"
    if "mask_token" in names and any(".ls1.gamma" in k or ".mlp.w12." in k for k in names):
        return "dinov2"
    if (
        {"cls_token", "patch_embed.proj.weight"} <= names
        and "reg_token" not in names
        and not any("gamma" in k for k in names)
    ):
        return "dino"
    if any(k.startswith(("blocks.", "layer1.", "stem.", "stages.")) for k in names):
        return "timm"
    raise WeightsError(
        f"the names {', '.join(sorted(names)[:6])}, ... are of no layout known here (DINO, iBOT, DINOv2, DINOv3, timm, "
        "Hugging Face ViT/Dinov2/DINOv3ViT, or a directory of this project)"
    )


def _follow_weights(
    spec: BackboneSpec, layout: str, where: str, state: StateDict, overrides: Mapping[str, Any]
) -> BackboneSpec:
    """Rules that travel with the weights: positions, RoPE periods and norm eps, unless the caller said otherwise."""
    changes: dict[str, Any] = {}
    trained_by_dino = layout == "dino" and spec.family == "timm" and {"teacher", "student"} & set(where.split("."))
    if layout == "ibot" or trained_by_dino:
        changes |= {"positions": "official", "family": layout, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    if layout == "hf_vit":
        changes |= {"norm_eps": 1e-12}
        if spec.family == "timm":
            changes["positions"] = "size"
    if spec.rope_periods is not None:
        temperature = spec.arguments.get("rope_temperature", 100.0)
        changes["rope_periods"] = _periods_rule(layout, state, temperature)
    return replace(spec, **{k: v for k, v in changes.items() if k not in overrides})


def _periods_rule(layout: str, state: StateDict, temperature: float) -> str:
    """Which rule gives the file's periods; without any in it, published weights had rounded ones."""
    held = state.get(PERIODS, state.get(f"carried.{PERIODS}"))
    if held is None:
        return "bfloat16" if layout in ("dinov3", "timm") else "float32"
    computed = float(temperature) ** (torch.arange(len(held), dtype=torch.float32) / len(held))
    rules = {"float32": computed, "bfloat16": computed.bfloat16().float()}
    close = (rule for rule, periods in rules.items() if torch.allclose(held.float(), periods, rtol=1e-6, atol=0))
    return next(close, "checkpoint")


def _convert(layout: str, state: StateDict, backbone: Backbone, source: str) -> tuple[StateDict, StateDict]:
    state = dict(state)
    if layout == "own":
        carried = {k.removeprefix("carried."): v for k, v in state.items() if k.startswith("carried.")}
        return {k: v for k, v in state.items() if not k.startswith("carried.")}, carried
    if layout.startswith("hf_"):
        return from_huggingface(state), {}
    if layout in ("dino", "ibot", "timm") and backbone.spec.family != "dinov2":
        return official.from_dino(state)
    if layout in ("dinov2", "dinov2_registers", "dino", "timm"):
        return official.from_dinov2(state)
    if layout == "convnext":
        try:
            return official.from_convnext(state, backbone)
        except (KeyError, RuntimeError, AttributeError):
            raise WeightsError(f"{source} holds a ConvNeXt, not {_words(backbone.spec)}") from None
    return official.from_dinov3(state)


def _finish(
    backbone: Backbone, own: StateDict, carried: StateDict, report: LoadReport, original: StateDict | None = None
) -> None:
    """Compare, refuse a partial match with advice, load."""
    mine = backbone.state_dict()
    biases = (
        [k for k in own if k.endswith((".q_bias", ".v_bias")) and k not in mine] if backbone.spec.kind == "eva" else []
    )
    for bias in biases:
        if bool(own[bias].any()):
            raise WeightsError(
                f"{report.source} holds query and value biases and {backbone.spec.name} has none; "
                f"load it as {backbone.spec.name.replace('_qkvb', '')}_qkvb or by its hub name (dinov3_vits16, ...)"
            )
        report.ignored.append(bias)
        own = {k: v for k, v in own.items() if k != bias}
    report.ignored += [k for k in own if k.startswith("model.fc_norm.") and k not in mine]
    own = {k: v for k, v in own.items() if k not in report.ignored}
    own = own | {k: mine[k] for k in NEUTRAL if k in mine and k not in own}
    report.defaults = sorted(k for k in NEUTRAL if own.get(k) is mine.get(k) and k in mine)
    compared = compare(mine, own, report.source, report.layout)
    report.matched, report.missing = [k for k in compared.matched if k not in report.defaults], compared.missing
    report.unexpected, report.shapes, report.carried = compared.unexpected, compared.shapes, sorted(carried)
    if not report.complete:
        advice = _advice(original or own, backbone.spec)
        raise WeightsError(
            f"{report.source} does not fit {_words(backbone.spec)}; nothing was loaded.{advice}\n{report}"
        )
    backbone.load_state_dict(own, strict=True)
    backbone.carry(carried)
    backbone.report = report


def _words(spec: BackboneSpec) -> str:
    registers = f", {spec.registers} registers" if spec.registers else ""
    return f"{spec.name} (patch {spec.patch}, dim {spec.dim}, depth {spec.depth}{registers})"


def _advice(state: StateDict, spec: BackboneSpec) -> str:
    """What the file looks like, and the name that would fit."""
    patch = next(
        (v for k, v in state.items() if k.endswith(("patch_embed.proj.weight", "patch_embeddings.projection.weight"))),
        None,
    )
    if patch is None or patch.ndim != 4:
        return " The file holds no patch embedding, so it is not a ViT." if spec.kind != "pyramid" else ""
    names = "\n".join(state)
    depth = 1 + max(
        (int(k.split("blocks.")[1].split(".")[0]) for k in official.unchunk(state) if "blocks." in k), default=-1
    )
    registers = next(
        (v.shape[1] for k, v in state.items() if k.endswith(("storage_tokens", "register_tokens", "reg_token"))), 0
    )
    found = f" The file looks like patch {patch.shape[-1]}, dim {patch.shape[0]}, depth {depth}"
    found += f", {registers} registers" if registers else ""
    if "storage_tokens" in names:
        release = "dinov3"
    elif "ls1.gamma" in names or "mlp.w12" in names:
        release = "dinov2"
    else:
        release = "dino"
    for alias in ALIASES:
        if not alias.startswith(f"{release}_vit"):
            continue
        size = {384: "s", 768: "b", 1024: "l", 1280: "h", 1536: "g", 4096: "7b"}.get(patch.shape[0])
        tail = f"{patch.shape[-1]}" + ("_reg" if release == "dinov2" and registers else "")
        plus = "plus" if release == "dinov3" and "mlp.w3" in names and size not in ("g", "7b") else ""
        if alias == f"{release}_vit{size}{tail}{plus}":
            return f"{found}: load_backbone({alias!r}, ...) would fit."
    return f"{found}."
