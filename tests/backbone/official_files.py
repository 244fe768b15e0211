"""Synthetic state dicts with the names and shapes of the published files, written from their tables."""

from __future__ import annotations

import torch
from torch import Tensor

State = dict[str, Tensor]


def _rand(*shape: int) -> Tensor:
    return torch.randn(*shape) * 0.05


def _linear(name: str, out: int, into: int, bias: bool = True) -> State:
    return {f"{name}.weight": _rand(out, into)} | ({f"{name}.bias": _rand(out)} if bias else {})


def _norm(name: str, dim: int) -> State:
    return {f"{name}.weight": _rand(dim), f"{name}.bias": _rand(dim)}


def _patch(patch: int, dim: int) -> State:
    return {"patch_embed.proj.weight": _rand(dim, 3, patch, patch), "patch_embed.proj.bias": _rand(dim)}


def dino(dim: int, depth: int, patch: int, size: int = 224) -> State:
    """DINO v1."""
    state = {"cls_token": _rand(1, 1, dim), "pos_embed": _rand(1, 1 + (size // patch) ** 2, dim)} | _patch(patch, dim)
    for i in range(depth):
        b = f"blocks.{i}"
        state |= _norm(f"{b}.norm1", dim) | _linear(f"{b}.attn.qkv", 3 * dim, dim) | _linear(f"{b}.attn.proj", dim, dim)
        state |= (
            _norm(f"{b}.norm2", dim) | _linear(f"{b}.mlp.fc1", 4 * dim, dim) | _linear(f"{b}.mlp.fc2", dim, 4 * dim)
        )
    return state | _norm("norm", dim)


def dinov2(
    dim: int, depth: int, registers: int = 0, swiglu: int = 0, patch: int = 14, size: int = 518, chunks: int = 0
) -> State:
    """DINOv2; `swiglu` is the hidden width of the giant's MLP, `chunks` the FSDP chunks of a training checkpoint."""
    state = {
        "cls_token": _rand(1, 1, dim),
        "pos_embed": _rand(1, 1 + (size // patch) ** 2, dim),
        "mask_token": _rand(1, dim),
    }
    state |= _patch(patch, dim) | ({"register_tokens": _rand(1, registers, dim)} if registers else {})
    for i in range(depth):
        b = f"blocks.{i * chunks // depth}.{i}" if chunks else f"blocks.{i}"
        state |= _norm(f"{b}.norm1", dim) | _linear(f"{b}.attn.qkv", 3 * dim, dim) | _linear(f"{b}.attn.proj", dim, dim)
        state |= {f"{b}.ls1.gamma": _rand(dim), f"{b}.ls2.gamma": _rand(dim)} | _norm(f"{b}.norm2", dim)
        if swiglu:
            state |= _linear(f"{b}.mlp.w12", 2 * swiglu, dim) | _linear(f"{b}.mlp.w3", dim, swiglu)
        else:
            state |= _linear(f"{b}.mlp.fc1", 4 * dim, dim) | _linear(f"{b}.mlp.fc2", dim, 4 * dim)
    return state | _norm("norm", dim)


def dinov3(dim: int, depth: int, heads: int, swiglu: int = 0, qkv_bias: bool = True, local_norm: bool = False) -> State:
    """DINOv3, patch 16 with 4 storage tokens; periods are rounded through bfloat16 as published."""
    quarter = dim // heads // 4
    periods = 100 ** (2 * torch.arange(quarter, dtype=torch.float32) / (dim // heads // 2))
    state = {
        "cls_token": _rand(1, 1, dim),
        "storage_tokens": _rand(1, 4, dim),
        "mask_token": _rand(1, dim),
        "rope_embed.periods": periods.bfloat16().float(),
    } | _patch(16, dim)
    for i in range(depth):
        b = f"blocks.{i}"
        state |= (
            _norm(f"{b}.norm1", dim)
            | _linear(f"{b}.attn.qkv", 3 * dim, dim, qkv_bias)
            | _linear(f"{b}.attn.proj", dim, dim)
        )
        if qkv_bias:
            mask = torch.ones(3 * dim)
            mask[dim : 2 * dim] = 0
            state[f"{b}.attn.qkv.bias_mask"] = mask
        state |= {f"{b}.ls1.gamma": _rand(dim), f"{b}.ls2.gamma": _rand(dim)} | _norm(f"{b}.norm2", dim)
        if swiglu:
            state |= (
                _linear(f"{b}.mlp.w1", swiglu, dim)
                | _linear(f"{b}.mlp.w2", swiglu, dim)
                | _linear(f"{b}.mlp.w3", dim, swiglu)
            )
        else:
            state |= _linear(f"{b}.mlp.fc1", 4 * dim, dim) | _linear(f"{b}.mlp.fc2", dim, 4 * dim)
    return state | _norm("norm", dim) | (_norm("local_cls_norm", dim) if local_norm else {})


def convnext(depths: tuple[int, ...] = (3, 3, 9, 3), dims: tuple[int, ...] = (96, 192, 384, 768)) -> State:
    """DINOv3 ConvNeXt in Meta's layout."""
    state: State = {}
    for i, dim in enumerate(dims):
        if i == 0:
            state |= {"downsample_layers.0.0.weight": _rand(dim, 3, 4, 4), "downsample_layers.0.0.bias": _rand(dim)}
            state |= _norm("downsample_layers.0.1", dim)
        else:
            state |= _norm(f"downsample_layers.{i}.0", dims[i - 1])
            state |= {
                f"downsample_layers.{i}.1.weight": _rand(dim, dims[i - 1], 2, 2),
                f"downsample_layers.{i}.1.bias": _rand(dim),
            }
        for j in range(depths[i]):
            b = f"stages.{i}.{j}"
            state |= {
                f"{b}.gamma": _rand(dim),
                f"{b}.dwconv.weight": _rand(dim, 1, 7, 7),
                f"{b}.dwconv.bias": _rand(dim),
            }
            state |= (
                _norm(f"{b}.norm", dim) | _linear(f"{b}.pwconv1", 4 * dim, dim) | _linear(f"{b}.pwconv2", dim, 4 * dim)
            )
    norm = _norm("norm", dims[-1])
    return state | norm | {k.replace("norm.", "norms.3."): v.clone() for k, v in norm.items()}


def parameters(state: State) -> int:
    """Parameters as the reference counts them: without buffers."""
    return sum(v.numel() for k, v in state.items() if not k.endswith(("bias_mask", "periods")))
