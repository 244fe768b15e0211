"""Models of transformers in the published layouts that they were converted from, by independent tables."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

State = dict[str, Tensor]
NAMES = (r"(?:query|q_proj)", r"(?:key|k_proj)", r"(?:value|v_proj)")


def native_vit(state: Mapping[str, Tensor], prefix: str) -> State:
    """Return a ViT or DINOv2 of transformers under the names of timm and Meta, which differ in LayerScale alone."""
    found = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    result: State = {}
    for name, tensor in found.items():
        name = re.sub(r"^embeddings\.(cls_token|mask_token)$", r"\1", name)
        name = name.replace("embeddings.position_embeddings", "pos_embed").replace("layernorm.", "norm.")
        name = re.sub(r"^embeddings\.(patch_embeddings\.)?projection\.", "patch_embed.proj.", name)
        name = name.replace("embeddings.backbone.bit.", "patch_embed.backbone.")
        name = name.replace("backbone.embedder.convolution", "backbone.stem.conv").replace("embedder.norm", "stem.norm")
        name = re.sub(r"backbone\.encoder\.stages\.(\d)\.layers\.", r"backbone.stages.\1.blocks.", name)
        name = re.sub(r"^encoder\.layer\.", "blocks.", name)
        name = re.sub(r"attention\.(output\.dense|o_proj)\.", "attn.proj.", name)
        name = name.replace("layernorm_before", "norm1").replace("layernorm_after", "norm2")
        name = name.replace("intermediate.dense", "mlp.fc1").replace("output.dense", "mlp.fc2")
        name = re.sub(r"layer_scale(\d)\.lambda1", r"ls\1.gamma", name)
        result[name] = tensor
    for block in {k.split(".attention.")[0] for k in result if ".attention." in k}:
        for kind in ("weight", "bias"):
            parts = [sorted(k for k in result if re.match(rf"{block}\.attention\..*{p}\w*\.{kind}$", k)) for p in NAMES]
            result[f"{block}.attn.qkv.{kind}"] = torch.cat([result.pop(names[0]) for names in parts])
    return result


def _replaced(state: Mapping[str, Tensor], rules: Mapping[str, str]) -> State:
    result = {}
    for name, tensor in state.items():
        if name.startswith(("backbone.", "dpt.")):
            continue
        for old, new in rules.items():
            name = re.sub(old, new, name)
        name = re.sub(r"\{(\d)\+1\}", lambda m: str(int(m[1]) + 1), name)
        name = re.sub(r"\{4-(\d)\}", lambda m: str(4 - int(m[1])), name)
        result[name] = tensor
    return result


SCRATCH = {
    r"^neck\.convs\.(\d)": r"scratch.layer{\1+1}_rn",
    r"^neck\.fusion_stage\.layers\.(\d)\.projection": r"scratch.refinenet{4-\1}.out_conv",
    r"^neck\.fusion_stage\.layers\.(\d)\.residual_layer(\d)\.convolution(\d)": (
        r"scratch.refinenet{4-\1}.resConfUnit\2.conv\3"
    ),
    r"^neck\.fusion_stage\.layers\.(\d)\.residual_layer(\d)\.batch_norm(\d)": (
        r"scratch.refinenet{4-\1}.resConfUnit\2.bn\3"
    ),
}


def depth_anything(state: Mapping[str, Tensor]) -> State:
    """Return DepthAnything in the flat dictionary of its authors."""
    rules = SCRATCH | {
        r"^neck\.reassemble_stage\.layers\.(\d)\.projection": r"projects.\1",
        r"^neck\.reassemble_stage\.layers\.(\d)\.resize": r"resize_layers.\1",
        r"^head\.conv1": "scratch.output_conv1",
        r"^head\.conv2": "scratch.output_conv2.0",
        r"^head\.conv3": "scratch.output_conv2.2",
    }
    head = {f"depth_head.{k}": v for k, v in _replaced(state, rules).items()}
    return head | {f"pretrained.{k}": v for k, v in native_vit(state, "backbone.").items()}


def dpt(state: Mapping[str, Tensor]) -> State:
    """Return DPT as isl-org published it, with the unused classifier of its ViT."""
    rules = SCRATCH | {
        r"^neck\.reassemble_stage\.readout_projects\.(\d)\.0": r"pretrained.act_postprocess{\1+1}.0.project.0",
        r"^neck\.reassemble_stage\.layers\.(\d)\.projection": r"pretrained.act_postprocess{\1+1}.3",
        r"^neck\.reassemble_stage\.layers\.(\d)\.resize": r"pretrained.act_postprocess{\1+1}.4",
        r"^head\.head\.": "scratch.output_conv.",
        r"^auxiliary_head\.head\.": "auxlayer.",
    }
    vit = native_vit(state, "dpt.")
    vit |= {"head.weight": torch.randn(10, vit["norm.weight"].shape[0]), "head.bias": torch.randn(10)}
    return _replaced(state, rules) | {f"pretrained.model.{k}": v for k, v in vit.items()}


def dinov2_dpt(state: Mapping[str, Tensor]) -> State:
    """Return the DPT head of the DINOv2 hub; its deepest fusion has no first unit."""
    rules = {
        r"^neck\.reassemble_stage\.readout_projects\.(\d)\.0": r"reassemble_blocks.readout_projects.\1.0",
        r"^neck\.reassemble_stage\.layers\.(\d)\.projection": r"reassemble_blocks.projects.\1.conv",
        r"^neck\.reassemble_stage\.layers\.(\d)\.resize": r"reassemble_blocks.resize_layers.\1",
        r"^neck\.convs\.(\d)": r"convs.\1.conv",
        r"^neck\.fusion_stage\.layers\.(\d)\.projection": r"fusion_blocks.\1.project.conv",
        r"^neck\.fusion_stage\.layers\.(\d)\.residual_layer(\d)\.convolution(\d)": (
            r"fusion_blocks.\1.res_conv_unit\2.conv\3.conv"
        ),
        r"^head\.projection": "project.conv",
        r"^head\.head\.": "conv_depth.head.",
    }
    found = {f"decode_head.{k}": v for k, v in _replaced(state, rules).items()}
    return {k: v for k, v in found.items() if "fusion_blocks.0.res_conv_unit1" not in k}


def dinov3_dpt(state: Mapping[str, Tensor]) -> State:
    """Return the DPT head of DINOv3, from CHMv2, which has the same architecture."""
    rules = {
        r"^head\.reassemble_stage\.readout_projects\.(\d)\.0": r"reassemble_blocks.readout_projects.\1.0",
        r"^head\.reassemble_stage\.layers\.(\d)\.projection": r"reassemble_blocks.projects.\1.conv",
        r"^head\.reassemble_stage\.layers\.(\d)\.resize": r"reassemble_blocks.resize_layers.\1",
        r"^head\.convs\.(\d)": r"convs.\1.conv",
        r"^head\.fusion_layers\.(\d)\.projection": r"fusion_blocks.\1.project.conv",
        r"^head\.fusion_layers\.(\d)\.residual_layer(\d)\.convolution(\d)": (
            r"fusion_blocks.\1.res_conv_unit\2.conv\3.conv"
        ),
        r"^head\.conv_depth\.": "conv_depth.",
    }
    return _replaced(state, rules)
