"""Export to transformers: a DPT as a directory of its DepthAnything or DPT, queries as one of its EoMT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from dense.backbone import Backbone, WeightsError
from dense.backbone.spec import RGB
from dense.backbone.weights.huggingface import to_huggingface
from dense.files import replacing
from dense.model.network import DenseModel
from dense.published import eomt
from dense.published.assemble import Table, inverted, renamed
from dense.published.family import State
from dense.published.huggingface import BIT, DEPTH, DEPTH_ANYTHING, FACTORS, LABELS

COMMON = {"residual": "input", "input_norm": False, "deepest_unit": False, "align_corners": True}
OF_DEPTH_ANYTHING = COMMON | {
    "strides": None, "readout": "ignore", "batch_norm": False, "bias": True, "project": False, "fusion_size": "level",
}  # fmt: skip
PLAIN_DEPTH = {"name": "regression", "min_depth": 0.0, "inverse": None}


def export_huggingface(model: DenseModel, folder: str | Path) -> str:
    """Write config.json, model.safetensors and preprocessor_config.json; return the name of the class that opens them.

    A model that transformers would compute differently raises, and the error names the option.
    """
    if (channels := model.backbone.spec.channels) != RGB or model.backbone.spec.each_channel:
        raise WeightsError(
            f"the image processors of transformers read red, green and blue together, and this model reads "
            f"{', '.join(channels)}; it can be written as this project's directory or with dense export alone"
        )
    spec = model.head.spec()
    output = spec["outputs"].get("depth", {})
    if spec["name"] == "eomt":
        config, state = eomt.to_transformers(model, spec)
        images = eomt.preprocessor(model, config)
    else:
        convert = _depth_anything if output.get("upsample") == "image" else _dpt
        config, state = convert(model, spec, output)
        images = _preprocessor(model)
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}
    with replacing(Path(folder) / "config.json", sum(tensor.nbytes for tensor in tensors.values())) as file:
        save_file(tensors, file.with_name("model.safetensors"), metadata={"format": "pt"})
        for name, content in (("config.json", config), ("preprocessor_config.json", images)):
            file.with_name(name).write_text(json.dumps(content, indent=2) + "\n")
    return str(config["architectures"][0])


def _depth_anything(model: DenseModel, spec: dict[str, Any], output: dict[str, Any]) -> tuple[dict[str, Any], State]:
    metric = output["activation"] == "sigmoid"
    expected = PLAIN_DEPTH | {"activation": "sigmoid", "kind": "metric"}
    if not metric:
        expected = PLAIN_DEPTH | {"activation": "relu", "kind": "inverse_relative", "max_depth": None}
    _check_options("DepthAnything", spec, OF_DEPTH_ANYTHING, output, expected)
    if set(spec["outputs"]) != {"depth"} or model.norm is not True:
        raise WeightsError(
            f"DepthAnything has depth alone, on normed features; this model has {', '.join(spec['outputs'])} and "
            f"norm={model.norm}"
        )
    farthest = output["max_depth"]
    config = {
        "architectures": ["DepthAnythingForDepthEstimation"],
        "model_type": "depth_anything",
        "backbone_config": _dinov2(model),
        "patch_size": model.backbone.spec.patch,
        "reassemble_hidden_size": model.backbone.spec.dim,
        **_neck(spec),
        "head_hidden_size": output["hidden"],
        "depth_estimation_type": "metric" if metric else "relative",
        "max_depth": 1 if not metric else int(farthest) if farthest == int(farthest) else farthest,
    }
    backbone = {f"backbone.{k}": v for k, v in to_huggingface(model.backbone.state_dict()).items()}
    return config, backbone | _head_tensors(model, DEPTH_ANYTHING)


def _dpt(model: DenseModel, spec: dict[str, Any], output: dict[str, Any]) -> tuple[dict[str, Any], State]:
    labels = spec["outputs"].get("labels")
    if set(spec["outputs"]) not in ({"depth"}, {"labels"}):
        raise WeightsError(f"transformers' DPT has one output; this model has {', '.join(spec['outputs'])}")
    expected = PLAIN_DEPTH | {"activation": "relu", "hidden": 32, "upsample": "double", "max_depth": None}
    _check_options("DPT", spec, COMMON, output, {} if labels else expected)
    own = model.backbone.spec.kind == "hybrid" or model.backbone.spec.family == "timm"
    if not own:  # for its own ViT the preprocessor gives even grids, on which both rules agree
        _check_options("DPT", spec, {"fusion_size": "double"}, {}, {})
    if not isinstance(model.norm, bool):
        raise WeightsError(f"transformers has norm True or False for all layers and this model norm={model.norm!r}")
    if spec["project"] and (spec["width"] != 256 or labels):
        raise WeightsError(f"transformers' DPT has a last projection for depth at width 256 alone, not {spec['width']}")
    config = {
        "architectures": [f"DPTFor{'SemanticSegmentation' if labels else 'DepthEstimation'}"],
        "model_type": "dpt",
        **_neck(spec),
        "readout_type": "project" if isinstance(spec["readout"], list) else spec["readout"],
        "use_batch_norm_in_fusion_residual": spec["batch_norm"],
        "use_bias_in_fusion_residual": spec["bias"],
        "add_projection": spec["project"],
        **(_own_vit(model) if own else {"backbone_config": _dinov2(model) | {"apply_layernorm": model.norm}}),
    }
    if (labels and not own) or (own and model.norm is not False):
        raise WeightsError("transformers' DPT reads raw features of its own ViT, and labels from nothing else")
    if labels:
        config["use_auxiliary_head"] = labels["auxiliary"]
        config["id2label"] = {str(i): n for i, n in enumerate(model.classes or map(str, range(labels["count"])))}
        config["label2id"] = {n: int(i) for i, n in config["id2label"].items()}
    return config, _vit_tensors(model.backbone, own) | _head_tensors(model, LABELS if labels else DEPTH)


def _check_options(
    target: str, spec: dict[str, Any], of_neck: dict[str, Any], output: dict[str, Any], of_output: dict[str, Any]
) -> None:
    """Raise for the first option whose value differs from the one in transformers."""
    if spec["name"] != "dpt":
        raise WeightsError(f"only a DPT or an EoMT can be written for transformers; this head is {spec['name']!r}")
    for found, expected, part in ((spec, of_neck, "head"), (output, of_output, "depth output")):
        for name, value in expected.items():
            if found[name] != value:
                raise WeightsError(
                    f"transformers' {target} has {name}={value!r} and this model's {part} has {found[name]!r}; such a "
                    "model can be written as this project's directory or with dense export alone"
                )
    if None in spec["reassemble"] and spec["strides"] is None:
        raise WeightsError(
            f"transformers' {target} projects every level and this model's head has reassemble={spec['reassemble']}; "
            "give each a number of channels"
        )


def _neck(spec: dict[str, Any]) -> dict[str, Any]:
    return {"neck_hidden_sizes": _sizes(spec), "fusion_hidden_size": spec["width"], "reassemble_factors": FACTORS}


def _sizes(spec: dict[str, Any]) -> list[int]:
    return [c if r is None else r for c, r in zip(spec["in_channels"], spec["reassemble"], strict=True)]


def _head_tensors(model: DenseModel, table: Table) -> State:
    """Return the head's tensors under published names, with zeros in the unused unit of the deepest fusion."""
    own, deepest = model.head.state_dict(), "neck.fusion.3.unit2."
    unused = {k.replace("unit2", "unit1"): torch.zeros_like(v) for k, v in own.items() if k.startswith(deepest)}
    return renamed(unused | own, inverted(table))


def _dinov2(model: DenseModel) -> dict[str, Any]:
    """Return the backbone_config of a DINOv2."""
    backbone = model.backbone
    spec = backbone.spec
    if spec.family != "dinov2" or spec.kind != "vit":
        raise WeightsError(
            f"transformers' directory needs a DINOv2 backbone without registers; this is {spec.name} ({spec.family})"
        )
    state = backbone.state_dict()
    first, second = (state[f"model.blocks.0.mlp.{n}.weight"] for n in ("fc1", "fc2"))
    swiglu = first.shape[0] == 2 * second.shape[1]
    hidden = second.shape[1]
    if hidden != ((spec.dim * 4 * 2 // 3 + 7) // 8 * 8 if swiglu else hidden // spec.dim * spec.dim):
        raise WeightsError(
            f"transformers' DINOv2 has MLPs of whole multiples of the width {spec.dim}, or a SwiGLU of 8/3 of it; "
            f"{spec.name} has {hidden}, so it can be written as this project's directory or with dense export alone"
        )
    return {
        "model_type": "dinov2",
        "hidden_size": spec.dim,
        "num_hidden_layers": spec.depth,
        "num_attention_heads": spec.heads,
        "patch_size": spec.patch,
        "image_size": spec.image_size[0],
        "layer_norm_eps": spec.norm_eps,
        "mlp_ratio": 4 if swiglu else hidden // spec.dim,
        "qkv_bias": "model.blocks.0.attn.qkv.bias" in state,
        "use_swiglu_ffn": swiglu,
        "out_indices": [layer + 1 for layer in model.layers],
        "out_features": [f"stage{layer + 1}" for layer in model.layers],
        "apply_layernorm": True,
        "reshape_hidden_states": False,
    }


def _own_vit(model: DenseModel) -> dict[str, Any]:
    """Return the entries of config.json for a DPT's own ViT, plain or hybrid."""
    backbone = model.backbone
    spec, state = backbone.spec, backbone.state_dict()
    facts: dict[str, Any] = {
        "hidden_size": spec.dim,
        "num_hidden_layers": spec.depth,
        "num_attention_heads": spec.heads,
        "intermediate_size": state["model.blocks.0.mlp.fc1.weight"].shape[0],
        "image_size": spec.image_size[0],
        "patch_size": spec.patch,
        "layer_norm_eps": spec.norm_eps,
        "qkv_bias": "model.blocks.0.attn.qkv.bias" in state,
        "backbone_out_indices": list(model.layers),
        "is_hybrid": spec.kind == "hybrid",
    }
    if spec.kind == "hybrid":
        side = spec.image_size[0] // spec.patch
        facts |= {"backbone_featmap_shape": [1, 1024, side, side], "neck_ignore_stages": [0, 1]}
        facts["backbone_config"] = {
            "model_type": "bit", "global_padding": "same", "layer_type": "bottleneck", "depths": [3, 4, 9],
            "out_features": ["stage1", "stage2", "stage3"], "embedding_dynamic_padding": True,
        }  # fmt: skip
    return facts


def _vit_tensors(backbone: Backbone, own: bool) -> State:
    """Return the backbone's tensors under published names."""
    state = backbone.state_dict()
    tensors = to_huggingface(state)
    if not own:
        return {f"backbone.{k}": v for k, v in tensors.items()}
    if backbone.spec.kind == "hybrid":
        resnet = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.patch_embed.backbone.")}
        tensors = renamed(tensors | resnet, inverted(BIT))
    return {f"dpt.{k}": v for k, v in tensors.items()}


def _preprocessor(model: DenseModel) -> dict[str, Any]:
    spec, side = model.backbone.spec, model.inference.resize or model.backbone.spec.image_size[0]
    height, width = side if isinstance(side, tuple) else (side, side)
    return {
        "image_processor_type": "DPTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "keep_aspect_ratio": not isinstance(side, tuple),
        "ensure_multiple_of": spec.patch if spec.patch == 14 else 2 * spec.patch,
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
        "do_pad": False,
    }
