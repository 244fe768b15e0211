"""Queries, keys and rows of attention, recomputed from a block's input.

There are no hooks, so fused kernels and torch.compile are unaffected, and no N x N matrix, so a query costs one row.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from torch import Tensor

Part = Literal["query", "key", "value"]
PARTS: tuple[Part, ...] = ("query", "key", "value")


def project(attention: Any, x: Tensor, part: Part) -> Tensor:
    """Return the query, key or value of tokens (B, N, C): (B, heads, N, d), with bias and q/k norm, before positions."""
    return project_together(attention, x, (part,))[0]


def project_together(attention: Any, x: Tensor, parts: tuple[Part, ...]) -> list[Tensor]:
    """Return several neighbouring parts as `project` does, by one matrix product."""
    if getattr(attention, "num_kv_groups", 1) > 1:
        raise ValueError("grouped-query attention is not supported by attention rows")
    fused: Any = getattr(attention, "qkv", None)
    if fused is not None:  # linear, or linear with an adapter, which has a weight too
        # Eva has one bias per part; the key's is zero
        biases: list[Any] = [getattr(attention, f"{part[0]}_bias", None) for part in parts]
        bias = None if biases[0] is None else torch.cat(biases)
        if fused.bias is not None:
            bias = _thirds(fused.bias, parts)
        ys = F.linear(x, _thirds(fused.weight, parts), bias).chunk(len(parts), -1)
    elif hasattr(attention, "q_proj"):
        ys = tuple(getattr(attention, f"{part[0]}_proj")(x) for part in parts)
    else:
        raise ValueError(f"attention of type {type(attention).__name__} is not supported: it has no qkv projection")
    norms = {"query": attention.q_norm, "key": attention.k_norm}
    heads = (y.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for y in ys)  # B, heads, N, d
    return [norms[part](y) if part in norms else y for part, y in zip(parts, heads, strict=True)]


def _thirds(fused: Tensor, parts: tuple[Part, ...]) -> Tensor:
    """Return the rows of neighbouring parts of a fused weight or bias."""
    if parts == PARTS:
        return fused
    third = len(fused) // len(PARTS)
    return fused[PARTS.index(parts[0]) * third : (PARTS.index(parts[-1]) + 1) * third]


def rotate(attention: Any, x: Tensor, rope: Tensor | None, prefix: int) -> Tensor:
    """Apply rotary positions to the patches of (B, heads, N, d); prefix tokens have no position."""
    if rope is None:
        return x
    patches = apply_rot_embed_cat(x[:, :, prefix:], rope, half=getattr(attention, "rotate_half", False))
    return patches.type_as(x) if prefix == 0 else _cat_tokens(x[:, :, :prefix], patches.type_as(x))


def _cat_tokens(prefix: Tensor, patches: Tensor) -> Tensor:
    return F.pad(patches, (0, 0, prefix.shape[2], 0)).slice_scatter(prefix, dim=2, end=prefix.shape[2])


def attention_rows(attention: Any, x: Tensor, rows: slice, rope: Tensor | None, prefix: int) -> Tensor:
    """Return the softmax rows of the tokens `rows` over ALL tokens: (B, N, C) -> (B, heads, rows, N), in fp32.

    x: the input of the attention, after the block's first norm.
    """
    key = rotate(attention, project(attention, x, "key"), rope, prefix)
    if rope is None or (rows.stop or 0) <= prefix:  # prefix rows have no position: project them alone
        query = project(attention, x[:, rows], "query")
    else:
        query = rotate(attention, project(attention, x, "query"), rope, prefix)[:, :, rows]
    logits = (query * attention.scale) @ key.transpose(-2, -1)  # B, heads, rows, N
    return logits.float().softmax(dim=-1)


def fused_backward_is_slow(x: Tensor) -> bool:
    """Return whether PyTorch's fused attention would be slower than matrix products and softmax for tokens x.

    That is so for its backward pass in bf16 on CPUs with bf16 matrix units: it takes about 8 times as long as in fp32.
    """
    if x.device.type != "cpu" or not torch.is_grad_enabled():
        return False
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported()
