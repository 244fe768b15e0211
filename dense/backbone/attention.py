"""timm's blocks opened up: queries, keys and rows of attention, and whole blocks on packed images of several sizes.

Attention rows are recomputed from a block's input. There are no hooks, so fused kernels and torch.compile are
unaffected, and no N x N matrix, so a query costs one row. A packed sequence (T, C) holds images of several sizes:
layers that work per token run once on it, attention once per size. The result equals one size at a time and is not
slower on any device (benchmarks/packing.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from torch import Tensor

Part = Literal["query", "key", "value"]
PARTS: tuple[Part, ...] = ("query", "key", "value")
SHARDED = "run_packed"  # the name under which sharding makes `run_block` a method of a block


def project(attention: Any, x: Tensor, part: Part) -> Tensor:
    """Return query, key or value of tokens (B, N, C): (B, heads, N, d), with bias and q/k norm, before positions."""
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


# ---- packed sequences


class Group(NamedTuple):
    """Images of one size, one after the other in the sequence."""

    images: int
    tokens: int  # per image, prefix included
    rows: int  # output tokens per image, from the first: all, or the class token alone

    @property
    def length(self) -> int:
        return self.images * self.tokens


Groups = Sequence[Group]


def can_pack(block: Any) -> bool:
    """Return whether `run_block` computes everything that this block does."""
    attention = getattr(block, "attn", None)
    return (
        _kind(block) in ("Block", "EvaBlock")
        and _kind(attention) in ("Attention", "EvaAttention", "AttentionRope")
        and getattr(attention, "gate", None) is None
        and getattr(attention, "num_kv_groups", 1) == 1
    )


def _kind(module: Any) -> str:
    return type(module).__name__.removeprefix("FSDP")  # sharding makes a subclass of this name


def run_block(block: Any, x: Tensor, groups: Groups, ropes: Sequence[Tensor | None], prefix: int) -> Tensor:
    """Run a pre-norm block of timm on a packed sequence (T, C); return the output rows of each image.

    In training the block's drop-path rate is that of batch-subset stochastic depth; see `residual`.
    """
    rate = getattr(block.drop_path1, "drop_prob", 0.0) if block.training else 0.0

    def attention(x: Tensor, groups: Groups) -> Tensor:
        return layer_scale(block, 1, attend(block.attn, block.norm1(x), groups, ropes, prefix))

    def mlp(x: Tensor, groups: Groups) -> Tensor:
        return layer_scale(block, 2, block.mlp(block.norm2(x)))

    x = residual(x, attention, groups, rate)
    return residual(x, mlp, shortened(groups), rate)


def residual(x: Tensor, branch: Callable[[Tensor, Groups], Tensor], groups: Groups, rate: float) -> Tensor:
    """Return ``x + branch(x)`` on the output rows, with batch-subset stochastic depth.

    Of a group's B images, b = max(int(B (1 - rate)), 1) are drawn; the branch runs on them and is scaled by B / b, so
    that its expectation is that without stochastic depth.
    Oquab et al., "DINOv2", 2023, section 5.
    """
    if not rate:
        return output_rows(x, groups) + branch(x, groups)
    subset = [g._replace(images=max(int(g.images * (1 - rate)), 1)) for g in groups]
    drawn = [torch.randperm(g.images, device=x.device)[: s.images] for g, s in zip(groups, subset, strict=True)]
    y = branch(x.index_select(0, token_indices(groups, drawn)), subset)
    after = shortened(subset)
    scaled = [part * (g.images / s.images) for part, g, s in zip(split(y, after), groups, subset, strict=True)]
    return output_rows(x, groups).index_add(0, token_indices(shortened(groups), drawn), torch.cat(scaled).to(x.dtype))


def attend(attention: Any, x: Tensor, groups: Groups, ropes: Sequence[Tensor | None], prefix: int) -> Tensor:
    """Compute attention within each image, with one fused call per group: (T, C) -> the output rows."""
    x = x.unsqueeze(0)  # 1, T, C
    if all(g.rows == g.tokens for g in groups):
        query, key, value = project_together(attention, x, ("query", "key", "value"))  # each 1, heads, T, d
    else:
        (query,) = project_together(attention, output_rows(x[0], groups).unsqueeze(0), ("query",))
        key, value = project_together(attention, x, ("key", "value"))
    outputs = []
    parts = zip(
        split(query[0], shortened(groups), 1), split(key[0], groups, 1), split(value[0], groups, 1), strict=True
    )
    for group, rope, (q, k, v) in zip(groups, ropes, parts, strict=True):
        q = q.unflatten(1, (group.images, group.rows)).transpose(0, 1)  # B, heads, rows, d
        k, v = (y.unflatten(1, (group.images, group.tokens)).transpose(0, 1) for y in (k, v))  # B, heads, N, d
        if group.rows > prefix:
            q = rotate(attention, q, rope, prefix)
        k = rotate(attention, k, rope, prefix)
        y = _scaled_dot_product(attention, q.type_as(v), k.type_as(v), v)
        outputs.append(y.transpose(1, 2).flatten(2).flatten(0, 1))  # B*rows, C
    return attention.proj_drop(attention.proj(attention.norm(torch.cat(outputs))))


def _scaled_dot_product(attention: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    dropout = attention.attn_drop.p if attention.training else 0.0
    if attention.fused_attn or q.shape[-2] < k.shape[-2]:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    return attention.attn_drop(((q * attention.scale) @ k.transpose(-2, -1)).softmax(-1)) @ v


def layer_scale(block: Any, which: int, y: Tensor) -> Tensor:
    """Apply the LayerScale of a branch, as VisionTransformer's or Eva's blocks name it."""
    if hasattr(block, f"ls{which}"):
        return getattr(block, f"ls{which}")(y)
    gamma = getattr(block, f"gamma_{which}")
    return y if gamma is None else gamma * y


def shortened(groups: Groups) -> list[Group]:
    """Return the groups of a sequence that holds the output rows alone."""
    return [g._replace(tokens=g.rows) for g in groups]


def split(x: Tensor, groups: Groups, dim: int = 0) -> tuple[Tensor, ...]:
    """Split a packed sequence into its groups, as views."""
    return x.split([g.length for g in groups], dim)


def output_rows(x: Tensor, groups: Groups) -> Tensor:
    """Select the output rows of a packed sequence (T, C)."""
    if all(g.rows == g.tokens for g in groups):
        return x
    parts = zip(split(x, groups), groups, strict=True)
    return torch.cat([part.unflatten(0, (g.images, g.tokens))[:, : g.rows].flatten(0, 1) for part, g in parts])


def token_indices(groups: Groups, drawn: Sequence[Tensor]) -> Tensor:
    """Return the indices in the packed sequence of the tokens of drawn images, (b,) per group."""
    indices, first = [], 0
    for group, images in zip(groups, drawn, strict=True):
        tokens = torch.arange(group.tokens, device=images.device)
        indices.append((first + images[:, None] * group.tokens + tokens).flatten())
        first += group.length
    return torch.cat(indices)
