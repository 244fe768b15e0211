"""`load_backbone`: from a name and weights of any layout to a backbone that is ready for use."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import resample_patch_embed

from dense.backbone.base import Backbone
from dense.backbone.build import SETTABLE, describe
from dense.backbone.channels import adapted, inputs_of
from dense.backbone.positions import PERIODS, interpolate_positions, periods_of
from dense.backbone.saved import CONFIG, WEIGHTS, fetching, read_json
from dense.backbone.spec import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    RGB,
    BackboneSpec,
    Channels,
    ChannelsFrom,
    by_name,
    channel_names,
)
from dense.backbone.vit import ViT
from dense.backbone.weights import official
from dense.backbone.weights.checkpoint import Branch, StateDict, backbone_state, read_checkpoint, recognise
from dense.backbone.weights.huggingface import describe_config, from_huggingface
from dense.backbone.weights.names import ALIASES, IDS, directory, resolve, title_of
from dense.backbone.weights.report import UNUSED, WeightsError, compare, split_unused
from dense.suggest import as_question, did_you_mean

Weights = str | Path | Mapping[str, Any]

NEUTRAL = {"mask_token", "class_position"}  # some layouts lack these; every other tensor must be in the file


def load_backbone(
    name: str | Path,
    weights: Weights | None = None,
    *,
    branch: Branch = "teacher",
    frozen: bool = False,
    channels: Channels | None = None,
    channels_from: ChannelsFrom | None = None,
    **overrides: Any,
) -> Backbone:
    """Return a backbone by name, with weights from timm or a file, or with random initialisation.

    Args:
        name: a timm name ("vit_small_patch14_dinov2"), an official hub name ("dinov2_vits14_reg"), a backbone in the
            package ("photos_tiny"), a Hugging Face id ("facebook/dinov2-base"), or a directory written by
            `save_pretrained` or by Hugging Face's transformers.
        weights: None for random initialisation; "timm" for timm's published ones, "hub" for those of a Hugging Face id
            (both download once); a .pth, .pt, .ckpt or .safetensors file; a directory; or a state dict. Official,
            training, Hugging Face, timm and our own layouts are recognised by the names of their tensors, and a partial
            match raises.
        branch: of a training checkpoint that holds both, "teacher" or "student".
        frozen: freeze the result.
        channels: of the images, their number or their names; as saved, or red, green and blue, if left out.
        channels_from: how weights for other channels become those of the first layer. "mean", the default: every
            channel gets the mean filter, times 3 / N; "copy": channels of the same name keep theirs, all times 3 / N;
            "random": the first layer is initialised; "each": the network sees one channel at a time, by the sum of the
            filters, and its tokens are the mean over channels (see `BackboneSpec.each_channel`).
        overrides: fields of the spec (positions, padding, layers, norm, mean, std, ...) or arguments of timm's model
            (img_size, drop_path_rate, depth, ...). Learned positions are interpolated to the grid of `img_size`, and
            patches resampled to `patch_size`.

    The result is in evaluation mode and on the CPU; `backbone.spec` holds its numerical choices, `backbone.report` what
    matched.
    """
    given = {"channels": channels, "channels_from": channels_from}
    overrides = {k: v for k, v in given.items() if v is not None} | overrides
    if (folder := directory(name)) is not None:
        if weights is not None:
            raise ValueError(
                f"{folder} brings its own weights; leave weights out, or name the architecture instead of the directory"
            )
        backbone = _open(folder, overrides)
    elif weights == "hub":
        backbone = _open(_downloaded(str(name)), overrides, str(name))
    else:
        _refuse_path(name)
        backbone = _named(str(name), weights, branch, overrides)
    backbone.title = title_of(name)
    return backbone.freeze() if frozen else backbone.eval()


def check_weights(name: str, weights: str | Path, **overrides: Any) -> None:
    """Raise unless `load_backbone` opens these weights of a name; of a file, it reads names and shapes of tensors."""
    if Path(weights).is_dir():
        load_backbone(name, weights, **overrides)
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*meta parameter")  # to which nothing is copied
        checkpoint = read_checkpoint(weights, mmap=True)
        _load(describe(name, **overrides), checkpoint, "teacher", str(weights), overrides, device=torch.device("meta"))


def spec_of(name: str, weights: str | None = None, **overrides: Any) -> BackboneSpec:
    """Return the spec of what `load_backbone` would return, without reading weights of a named backbone."""
    if directory(name) is not None:
        return load_backbone(name, **overrides).spec
    if weights == "hub" and not _is_known(name):
        return load_backbone(name, weights, **overrides).spec
    _refuse_path(name)
    return describe(name, **overrides)


def saved_spec(name: str | None) -> BackboneSpec | None:
    """Return the spec of a directory that holds a backbone of this project; None for another name."""
    folder = None if name is None else directory(name)
    config = {} if folder is None else read_json(folder / CONFIG)
    return BackboneSpec.from_dict(config["backbone"]) if "backbone" in config else None


def _is_known(name: str | Path) -> bool:
    """Say whether an architecture has this name."""
    return timm.is_model(resolve(str(name))[0])


def _refuse_path(name: str | Path) -> None:
    """Raise for a path, which names no architecture, and is no saved directory."""
    folder = Path(name)
    unknown = not _is_known(name) and (folder.is_dir() or "/" in str(name))
    if not (isinstance(name, Path) or (folder.suffix and folder.is_file()) or unknown):
        return
    if folder.is_file():
        raise ValueError(
            f"{folder} is a weight file; name its architecture first: load_backbone('dinov2_vits14', '{folder}')"
        )
    if folder.is_dir():
        inside = f"; {folder / 'backbone'} has one" if directory(folder / "backbone") else ""
        raise FileNotFoundError(f"{folder} has no {CONFIG}{inside}; expected a directory written by save_pretrained")
    if str(folder).count("/") == 1 and not str(folder).startswith(("/", ".", "~")):
        raise FileNotFoundError(
            f"no such directory: {folder}; if it is a Hugging Face id, download it with weights 'hub'."
            f"{did_you_mean(str(folder), IDS)}"
        )
    raise FileNotFoundError(f"no such directory: {folder}")


def _downloaded(name: str) -> Path:
    """Return the directory of a Hugging Face id in the hub's cache, downloaded if it is not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    if name.count("/") != 1:
        same = [known for known in IDS if ALIASES[known] == ALIASES.get(name, name)]
        meant = as_question(same) if same or name in ALIASES else did_you_mean(name, IDS)
        raise ValueError(f"weights 'hub' belong to a Hugging Face id owner/name, not {name!r}.{meant}")
    try:
        with fetching(name):
            folder = Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
            if not list(folder.glob("*.safetensors")):
                folder = Path(snapshot_download(name, allow_patterns=["*.json", "pytorch_model*"]))
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise WeightsError(
            f"the Hugging Face hub has no {name}, or its licence must be accepted first: {str(error).splitlines()[0]}"
        ) from None
    return folder


def _named(name: str, weights: Weights | None, branch: Branch, overrides: dict[str, Any]) -> Backbone:
    if isinstance(weights, str | Path) and (Path(weights) / CONFIG).is_file():
        backbone = _open(Path(weights), overrides, name)
        expected, found = describe(name, **overrides), backbone.spec
        fields = ("dim", "depth", "patch", "kind", "registers", "class_token")
        same = all(getattr(expected, field) == getattr(found, field) for field in fields)
        if not same or ("timm" not in (expected.family, found.family) and expected.family != found.family):
            raise WeightsError(f"{weights} holds {_words(found)}, not {_words(replace(expected, name=name))}")
        return backbone
    spec = describe(name, **overrides)
    if weights is None:
        return Backbone.from_spec(spec)
    if weights == "timm":
        return _from_timm(name, spec, overrides.get("channels_from"))
    if isinstance(weights, Mapping):
        return _load(spec, weights, branch, "the state dict", overrides)
    return _load(spec, read_checkpoint(weights), branch, str(weights), overrides)


def _open(folder: Path, overrides: dict[str, Any], name: str = "") -> Backbone:
    """Open a directory of this project or of Hugging Face's transformers; name: the backbone's, if it is known."""
    config = read_json(folder / CONFIG)
    if "model_type" in config:
        plain, arguments = describe_config(config)
        if config["model_type"] == "vit" and resolve(name)[2] == "dino":  # config.json tells no ViT from another
            plain, _ = name, arguments.pop("positions")
        preprocessor = folder / "preprocessor_config.json"
        if preprocessor.is_file():
            facts = read_json(preprocessor)
            arguments |= {k: tuple(facts[f"image_{k}"]) for k in ("mean", "std") if f"image_{k}" in facts}
        held = channel_names(arguments.get("channels", RGB))
        arguments = _renamed(arguments, held, overrides) | overrides
        state, source = read_directory(folder)
        return _load(describe(plain, **arguments), state, "teacher", str(source), arguments, held)
    if "backbone" not in config:
        raise WeightsError(
            f"{folder / CONFIG} describes no backbone; expected one written by save_pretrained or transformers"
        )
    if not overrides:
        return Backbone.open(folder, config)
    spec, rule = BackboneSpec.from_dict(config["backbone"]), overrides.get("channels_from")
    kept = {name: getattr(spec, name) for name in SETTABLE if not (spec.kind == "pyramid" and name == "norm_eps")}
    kept |= {"channels": spec.channels, "channels_from": "each" if spec.each_channel else None}
    if overrides.get("channels") == len(spec.channels):  # which names are not to be lost
        overrides = overrides | {"channels": spec.channels}
    kept = _renamed(kept, spec.channels, overrides)
    wanted = describe(spec.name, **{**kept, **spec.arguments, **overrides})
    same = [(each.channels, each.each_channel, each.image_size) for each in (wanted, spec)]
    if rule is None and same[0] == same[1]:
        return Backbone.open(folder, {**config, "backbone": wanted.to_dict()})
    backbone = Backbone.from_spec(wanted)
    held = inputs_of(spec)
    backbone.load_tensors(
        _on_grid(adapted(read_checkpoint(folder / WEIGHTS), backbone, rule, str(folder), held), backbone)
    )
    return backbone


def _renamed(settings: dict[str, Any], held: tuple[str, ...], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with mean and std of the channels in `overrides`, from those of the held channels."""
    names = channel_names(overrides.get("channels", held))
    return settings | {k: by_name(settings[k], names, held) for k in ("mean", "std") if k in settings and names != held}


def read_directory(folder: Path) -> tuple[dict[str, Any], Path]:
    """Return the tensors of a directory of transformers, in one file or in shards, and where they are."""
    for index in (folder / f"{name}.index.json" for name in ("model.safetensors", "pytorch_model.bin")):
        if index.is_file():
            if not isinstance(shard_of := read_json(index).get("weight_map"), dict):
                raise WeightsError(f"{index} has no weight_map; download it again")
            shards = sorted(set(shard_of.values()))
            if outside := [shard for shard in shards if Path(shard).name != shard]:
                raise WeightsError(f"{index} names {outside[0]!r}, which is no file of {folder}; do not trust it")
            return {k: v for shard in shards for k, v in read_checkpoint(folder / shard).items()}, folder
    for file in (folder / "model.safetensors", folder / "pytorch_model.bin"):
        if file.is_file():
            return read_checkpoint(file), file
    raise FileNotFoundError(f"{folder} has no model.safetensors or pytorch_model.bin")


def in_timm(name: str) -> bool:
    """Whether timm publishes the weights of an official or timm name."""
    if resolve(name)[2] == "resnet":
        return False  # timm's own weights of the same network are supervised
    try:
        config = timm.get_pretrained_cfg(ALIASES.get(name, name), allow_unregistered=False)
    except RuntimeError:  # it knows no such tag
        return False
    return config is not None and config.has_weights


def _from_timm(name: str, spec: BackboneSpec, rule: ChannelsFrom | None) -> Backbone:
    timm_name = ALIASES.get(name, name)
    if not in_timm(name):
        tags = [] if name in ALIASES else timm.list_pretrained(timm_name.split(".")[0] + "*")[:5]
        advice = f"it does for {', '.join(tags)}" if tags else "give their file instead: weights='PATH'"
        raise WeightsError(f"timm publishes no weights for {name}; {advice}")
    options: dict[str, Any] = {"num_classes": 0} | ({} if spec.kind == "pyramid" else {"dynamic_img_size": True})
    options |= {k: v for k, v in spec.arguments.items() if k != "img_size"}  # positions follow below
    with fetching(timm_name):
        published = timm.create_model(timm_name, pretrained=True, **options)
    state = {f"model.{k}": v for k, v in published.state_dict().items()}
    backbone = Backbone.from_spec(spec)
    backbone = _install(backbone, adapted(state, backbone, rule, "timm"), {}, "timm", "timm")
    if spec.rope_periods is not None:  # timm stores fp32 periods; the weights were trained with bfloat16 ones
        rounded = periods_of(backbone.model).to(torch.bfloat16).float()
        backbone.keep_unused({PERIODS: rounded})
        backbone.spec = replace(backbone.spec, rope_periods="bfloat16")
    return backbone


def _load(
    spec: BackboneSpec,
    checkpoint: Mapping[str, Any],
    branch: Branch,
    source: str,
    overrides: Mapping[str, Any],
    held: tuple[str, ...] | None = None,
    device: torch.device | None = None,
) -> Backbone:
    """Find the backbone in a checkpoint, convert its layout and install its tensors.

    held: names of the channels of the checkpoint, where it is known. device: where the backbone is built.
    """
    original, ignored, where = backbone_state(checkpoint, branch, source)
    layout = recognise(original)
    spec = _follow_weights(spec, layout, where, original, overrides)
    with device or nullcontext():
        backbone = Backbone.from_spec(spec)
    state, unused = _convert(layout, original, backbone, source)
    found_as = layout if where == "bare" else f"{layout} (under {where})"
    state = adapted(state, backbone, overrides.get("channels_from"), source, held, own=layout == "own")
    return _install(backbone, state, unused, source, found_as, ignored, original)


def _follow_weights(
    spec: BackboneSpec, layout: str, where: str, state: StateDict, overrides: Mapping[str, Any]
) -> BackboneSpec:
    """Choose positions, RoPE periods and norm eps by the weights, where `overrides` do not."""
    changes: dict[str, Any] = {}
    trained_by_dino = layout == "dino" and spec.family == "timm" and {"teacher", "student"} & set(where.split("."))
    if layout == "ibot" or trained_by_dino:
        changes |= {"positions": "official", "family": layout}
        changes |= {"mean": by_name(IMAGENET_MEAN, spec.channels), "std": by_name(IMAGENET_STD, spec.channels)}
    if layout == "hf_vit":
        changes |= {"norm_eps": 1e-12}
        if spec.family == "timm":
            changes["positions"] = "size"
    if spec.rope_periods is not None:
        temperature = spec.arguments.get("rope_temperature", 100.0)
        changes["rope_periods"] = _periods_rule(layout, state, temperature)
    return replace(spec, **{k: v for k, v in changes.items() if k not in overrides})


def _periods_rule(layout: str, state: StateDict, temperature: float) -> str:
    """Return the rule that gives the file's periods; published weights without any were trained with rounded ones."""
    held = state.get(PERIODS, state.get(f"{UNUSED}{PERIODS}"))
    if held is None:
        return "bfloat16" if layout in ("dinov3", "timm") else "float32"
    computed = float(temperature) ** (torch.arange(len(held), dtype=torch.float32) / len(held))
    rules = {"float32": computed, "bfloat16": computed.bfloat16().float()}
    close = (rule for rule, periods in rules.items() if torch.allclose(held.float(), periods, rtol=1e-6, atol=0))
    return next(close, "checkpoint")


def _convert(layout: str, state: StateDict, backbone: Backbone, source: str) -> tuple[StateDict, StateDict]:
    """Return the tensors in the layout of the adapter, and those that it does not use."""
    if layout == "own":
        return split_unused(state)
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


def _install(
    backbone: Backbone,
    state: StateDict,
    unused: StateDict,
    source: str,
    layout: str,
    ignored: list[str] | None = None,
    original: StateDict | None = None,
) -> Backbone:
    """Load converted tensors into a backbone; a partial match raises and names the backbone that would fit."""
    model, spec, ignored = backbone.state_dict(), backbone.spec, list(ignored or ())
    for name in [k for k in state if k not in model]:
        if spec.kind == "eva" and name.endswith((".q_bias", ".v_bias")):
            if bool(state[name].any()):
                raise WeightsError(
                    f"{source} holds query and value biases and {spec.name} has none; "
                    f"load it as {spec.name.replace('_qkvb', '')}_qkvb or by its hub name (dinov3_vits16, ...)"
                )
            ignored.append(name)
        elif name.startswith("model.fc_norm."):
            ignored.append(name)
    defaults = sorted(k for k in NEUTRAL if k in model and k not in state)
    state = {k: v for k, v in _on_grid(state, backbone).items() if k not in ignored} | {k: model[k] for k in defaults}
    report = compare(model, state, source, layout)
    report.matched = [k for k in report.matched if k not in defaults]
    report.ignored, report.defaults, report.unused = ignored, defaults, sorted(unused)
    if not report.complete:
        advice = _advice(original or state, spec)
        raise WeightsError(f"{source} does not fit {_words(spec)}; nothing was loaded.{advice}\n{report}")
    backbone.load_state_dict(state, strict=True)
    backbone.keep_unused(unused)
    backbone.report = report
    return backbone


def _on_grid(state: StateDict, backbone: Backbone) -> StateDict:
    """Return a state dict with its patches resampled to `patch_size`, and its square table of positions on the grid of
    `img_size`, where those were asked for."""
    name, asked = "model.patch_embed.proj.weight", backbone.spec.arguments
    model = backbone.state_dict()
    if "patch_size" in asked and name in state and name in model and state[name].ndim == 4:
        size = model[name].shape[2:]
        if state[name].shape[2:] != size:
            state = state | {name: resample_patch_embed(state[name], list(size))}
    table, own = state.get("model.pos_embed"), getattr(backbone.model, "pos_embed", None)
    if not isinstance(backbone, ViT) or table is None or own is None or "img_size" not in asked:
        return state
    covered = own.shape[1] - math.prod(backbone.table_grid)  # prefix tokens that have a position
    side = math.isqrt(max(table.shape[1] - covered, 0))
    if table.shape[1:] == own.shape[1:] or (side * side + covered, own.shape[2]) != tuple(table.shape[1:]):
        return state  # what differs is in the report
    patches = interpolate_positions(table[:, covered:], (side, side), backbone.table_grid, backbone.spec.positions)
    return state | {"model.pos_embed": torch.cat((table[:, :covered], patches), dim=1)}


def _words(spec: BackboneSpec) -> str:
    registers = f", {spec.registers} registers" if spec.registers else ""
    return f"{spec.name} (patch {spec.patch}, dim {spec.dim}, depth {spec.depth}{registers})"


def _advice(state: StateDict, spec: BackboneSpec) -> str:
    """Return the patch, width and depth of the file, and the hub name that would fit."""
    patch = next(
        (v for k, v in state.items() if k.endswith(("patch_embed.proj.weight", "patch_embeddings.projection.weight"))),
        None,
    )
    if patch is None or patch.ndim != 4:
        return " The file holds no patch embedding, so it is not a ViT." if spec.kind != "pyramid" else ""
    names, (dim, side) = "\n".join(state), (patch.shape[0], patch.shape[-1])
    blocks = [int(k.split("blocks.")[1].split(".")[0]) for k in official.unchunk(state) if "blocks." in k]
    tokens = ("storage_tokens", "register_tokens", "reg_token")
    registers = next((v.shape[1] for k, v in state.items() if k.endswith(tokens)), 0)
    found = f" The file looks like patch {side}, dim {dim}, depth {1 + max(blocks, default=-1)}"
    found += f", {registers} registers" if registers else ""
    if "storage_tokens" in names:
        release = "dinov3"
    else:
        release = "dinov2" if "ls1.gamma" in names or "mlp.w12" in names else "dino"
    size = {384: "s", 768: "b", 1024: "l", 1280: "h", 1536: "g", 4096: "7b"}.get(dim)
    suffix = "_reg" if release == "dinov2" and registers else ""
    suffix += "plus" if release == "dinov3" and "mlp.w3" in names and size not in ("g", "7b") else ""
    alias = f"{release}_vit{size}{side}{suffix}"
    return f"{found}: load_backbone({alias!r}, ...) would fit." if alias in ALIASES else f"{found}."
