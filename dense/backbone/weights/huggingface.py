"""State dicts and configs of transformers' ViT, Dinov2, Dinov2WithRegisters, DINOv3ViT and DINOv3ConvNext, and back.

Two sets of names are read: those of the published files and those of the modules of transformers 5.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from dense.backbone.weights.report import WeightsError

State = dict[str, Tensor]

_TOP = {
    "embeddings.cls_token": "cls_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "embeddings.patch_embeddings.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
    "norm.weight": "norm.weight",
    "norm.bias": "norm.bias",
}
_IN_BLOCK = (  # published or module name -> ours; query, key and value are joined afterwards
    (r"attention\.(?:attention\.)?(?:query|q_proj)", "attn.q"),
    (r"attention\.(?:attention\.)?(?:key|k_proj)", "attn.k"),
    (r"attention\.(?:attention\.)?(?:value|v_proj)", "attn.v"),
    (r"attention\.(?:output\.dense|o_proj)", "attn.proj"),
    (r"layernorm_before|norm1", "norm1"),
    (r"layernorm_after|norm2", "norm2"),
    (r"layer_scale1\.lambda1", "ls1.gamma"),
    (r"layer_scale2\.lambda1", "ls2.gamma"),
    (r"intermediate\.dense|mlp\.fc1|mlp\.weights_in", "mlp.fc1"),
    (r"output\.dense|mlp\.fc2|mlp\.weights_out", "mlp.fc2"),
    (r"mlp\.gate_proj", "mlp.gate"),
    (r"mlp\.up_proj", "mlp.up"),
    (r"mlp\.down_proj", "mlp.down"),
)
_CONVNEXT = (  # stages, their downsampling and their blocks
    (r"^stages\.0\.downsample_layers\.", "stem."),
    (r"^(stages\.\d+)\.downsample_layers\.", r"\1.downsample."),
    (r"^(stages\.\d+)\.layers\.", r"\1.blocks."),
    (r"\.depthwise_conv\.", ".conv_dw."),
    (r"\.pointwise_conv(\d)\.", r".mlp.fc\1."),
    (r"\.layer_norm\.", ".norm."),
    (r"^layer_norm\.", "head.norm."),
)


def is_huggingface(state: State) -> bool:
    """Return whether the names are Hugging Face's."""
    return any(
        re.match(r"^(\w+\.)?embeddings\.(cls_token|patch_embeddings\.)|^(model\.)?stages\.\d+\.downsample_layers\.", k)
        for k in state
    )


def layout_of(state: State) -> str:
    """Return hf_vit, hf_dinov2, hf_dinov2_registers, hf_dinov3 or hf_convnext."""
    names = "\n".join(state)
    if "downsample_layers" in names:
        return "hf_convnext"
    if "embeddings.register_tokens" in names:
        return "hf_dinov2_registers" if "position_embeddings" in names else "hf_dinov3"
    if "layer_scale1" in names:
        return "hf_dinov2"
    return "hf_vit"


def from_huggingface(state: State) -> State:
    """Convert a state dict with either set of names to the layout of the adapter."""
    layout = layout_of(state)
    if layout == "hf_convnext":
        return {f"model.{_convnext_name(name.removeprefix('model.'))}": tensor for name, tensor in state.items()}
    flat: State = {}
    blocks: dict[int, State] = {}
    for name, tensor in state.items():
        name = re.sub(
            r"^(vit|dinov2|dinov2_with_registers|dinov3_vit|model)\.(?=embeddings|encoder|layer|norm|pooler|model)",
            "",
            name,
        )
        block = re.match(r"^(?:encoder\.|model\.)?layers?\.(\d+)\.(.+)$", name)
        if block:
            blocks.setdefault(int(block.group(1)), {})[_in_block(block.group(2))] = tensor
        elif name in _TOP:
            flat[_TOP[name]] = tensor
        else:
            raise WeightsError(f"unknown tensor {name!r} in a Hugging Face {layout} state dict")
    for index, tensors in blocks.items():
        flat |= {f"blocks.{index}.{k}": v for k, v in _joined(tensors, eva=layout == "hf_dinov3").items()}
    return _top(flat, layout)


def _convnext_name(name: str) -> str:
    for pattern, ours in _CONVNEXT:
        name = re.sub(pattern, ours, name)
    return name


def _in_block(name: str) -> str:
    for pattern, ours in _IN_BLOCK:
        match = re.match(rf"^(?:{pattern})(\.(?:weight|bias))?$", name)
        if match:
            return ours + (match.group(1) or "")
    raise WeightsError(f"unknown tensor 'layer.N.{name}' in a Hugging Face state dict")


def _joined(block: State, eva: bool) -> State:
    """Join query, key and value, and the two halves of a packed SwiGLU, as timm's block stores them."""
    block = dict(block)
    q, k, v = (block.pop(f"attn.{part}.weight") for part in "qkv")
    block["attn.qkv.weight"] = torch.cat((q, k, v))
    biases = [block.pop(f"attn.{part}.bias", None) for part in "qkv"]
    if eva:
        if biases[1] is not None:
            raise WeightsError("this DINOv3 state dict has a key bias, which DINOv3 does not")
        block |= {f"attn.{n}_bias": b for n, b in zip("qkv", biases, strict=True) if b is not None}
        names = {
            "mlp.gate": "mlp.fc1_g",
            "mlp.up": "mlp.fc1_x" if "mlp.gate.weight" in block else "mlp.fc1",
            "mlp.down": "mlp.fc2",
        }
        names |= {"ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2"}
        return {_renamed(k, names): t for k, t in block.items()}
    if all(b is not None for b in biases):
        block["attn.qkv.bias"] = torch.cat([b for b in biases if b is not None])
    if "mlp.gate.weight" in block:
        for kind in ("weight", "bias"):
            block[f"mlp.fc1.{kind}"] = torch.cat((block.pop(f"mlp.gate.{kind}"), block.pop(f"mlp.up.{kind}")))
            block[f"mlp.fc2.{kind}"] = block.pop(f"mlp.down.{kind}")
    return block


def _renamed(name: str, table: dict[str, str]) -> str:
    stem, _, kind = name.rpartition(".")
    return table.get(name) or (f"{table[stem]}.{kind}" if stem in table else name)


def _top(flat: State, layout: str) -> State:
    own: State = {}
    if "mask_token" in flat:
        own["mask_token"] = flat.pop("mask_token").reshape(1, -1)
    if "register_tokens" in flat:
        own["model.reg_token"] = flat.pop("register_tokens")
        if own["model.reg_token"].shape[1] == 0:
            own.pop("model.reg_token")
    if layout == "hf_dinov2_registers":
        table = flat.pop("pos_embed")
        own["class_position"], own["model.pos_embed"] = table[:, :1].clone(), table[:, 1:].clone()
    return own | {f"model.{k}": v for k, v in flat.items()}


def describe_config(config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return (timm name, overrides) of the architecture that a Hugging Face config.json describes."""
    kind = config.get("model_type")
    channels = {} if config.get("num_channels", 3) == 3 else {"channels": config["num_channels"]}
    if kind == "dinov3_convnext":
        return "convnext_tiny.dinov3_lvd1689m", channels | {"depths": config["depths"], "dims": config["hidden_sizes"]}
    names = {
        "vit": "vit_base_patch16_224",
        "dinov2": "vit_base_patch14_dinov2",
        "dinov2_with_registers": "vit_base_patch14_reg4_dinov2",
        "dinov3_vit": "vit_base_patch16_dinov3",
    }
    if kind not in names:
        raise WeightsError(
            f"config.json is of a {kind!r} model; backbones are read from {', '.join(names)}, dinov3_convnext"
        )
    expected = "silu" if config.get("use_gated_mlp") else "gelu"  # Dinov2's SwiGLU ignores its hidden_act
    if config.get("hidden_act", expected) != expected:
        raise WeightsError(
            f"config.json has hidden_act {config['hidden_act']!r}; expected {expected!r}, which timm's model computes"
        )
    dim = config["hidden_size"]
    arguments: dict[str, Any] = {
        "embed_dim": dim,
        "depth": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "patch_size": config["patch_size"],
        "img_size": config["image_size"],
        "norm_eps": config["layer_norm_eps"],
        **channels,
    }
    if kind == "vit":
        arguments |= {
            "mlp_ratio": mlp_ratio(config["intermediate_size"], dim),
            "qkv_bias": config.get("qkv_bias", True),
            "positions": "size",
        }
    elif kind == "dinov3_vit":
        arguments |= {
            "mlp_ratio": mlp_ratio(config["intermediate_size"], dim),
            "num_reg_tokens": config["num_register_tokens"],
            "qkv_bias": config["query_bias"],
            "swiglu_mlp": config["use_gated_mlp"],
            "swiglu_align_to": 1 if config["use_gated_mlp"] else 0,
            "rope_temperature": config.get("rope_theta", 100.0),
            "rope_periods": "float32",
        }
    else:
        arguments |= {"mlp_ratio": config["mlp_ratio"], "qkv_bias": config["qkv_bias"]}
        if kind == "dinov2_with_registers":
            arguments["reg_tokens"] = config["num_register_tokens"]
        if config.get("use_swiglu_ffn"):  # the giant models are the ones with a packed SwiGLU
            hidden = (int(dim * config["mlp_ratio"] * 2 / 3) + 7) // 8 * 8
            arguments["mlp_ratio"] = mlp_ratio(2 * hidden, dim)
            return names[kind].replace("base", "giant"), arguments
    return names[kind], arguments


def mlp_ratio(hidden: int, dim: int) -> float:
    """Return an MLP ratio whose product with `dim` truncates to `hidden`."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else (hidden + 0.5) / dim


# ---- adapter -> published names of Dinov2 and of the ViT in DPT

_TOP_OUT = {ours: theirs for theirs, ours in reversed(_TOP.items()) if ours not in ("mask_token", "register_tokens")}
_BLOCK_OUT = {"attn.proj": "attention.output.dense"}
_DINOV2_OUT = {"ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1"}
_SWIGLU_OUT = {"mlp.fc1": "mlp.weights_in", "mlp.fc2": "mlp.weights_out"}
_VIT_OUT = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def to_huggingface(state: State) -> State:
    """Convert the adapter of a DINOv2 without registers, or of a plain ViT, to the published names of transformers."""
    dinov2 = "model.blocks.0.ls1.gamma" in state
    first, second = (state[f"model.blocks.0.mlp.{n}.weight"] for n in ("fc1", "fc2"))
    names = _BLOCK_OUT | (_DINOV2_OUT if dinov2 else _VIT_OUT)
    names |= _SWIGLU_OUT if dinov2 and first.shape[0] == 2 * second.shape[1] else {}
    result: State = {"embeddings.mask_token": state["mask_token"]} if dinov2 else {}
    for name, tensor in state.items():
        block = re.match(r"^model\.blocks\.(\d+)\.(.+)$", name)
        if not block:
            if name.removeprefix("model.") in _TOP_OUT:
                result[_TOP_OUT[name.removeprefix("model.")]] = tensor
            continue
        layer, rest = f"encoder.layer.{block.group(1)}.", block.group(2)
        if rest.startswith("attn.qkv."):
            for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                result[f"{layer}attention.attention.{part}.{rest.rpartition('.')[2]}"] = piece.clone()
        else:
            result[layer + _renamed(rest, names)] = tensor
    return result
