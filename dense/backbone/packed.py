"""Images of several sizes as one packed sequence (T, C): all work on single tokens is done once, attention size by size.

The only way on every device: the same numbers as one size at a time, not slower (benchmarks/packing.py), and fewer calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dense.backbone.attention import project_together, rotate

SHARDED = "run_packed"  # the name of `run_block` as a method, where sharding needs one


class Group(NamedTuple):
    """Images of one size, which lie one after the other in the sequence."""

    images: int
    tokens: int  # of an image, prefix included
    rows: int  # how many of them, from the first, are wanted: all, or class token alone

    @property
    def length(self) -> int:
        """Of the sequence."""
        return self.images * self.tokens


Groups = Sequence[Group]


def can_pack(block: Any) -> bool:
    """Whether `run_block` computes all that this block does."""
    attention = getattr(block, "attn", None)
    return (
        _kind(block) in ("Block", "EvaBlock")
        and _kind(attention) in ("Attention", "EvaAttention", "AttentionRope")
        and getattr(attention, "gate", None) is None
        and getattr(attention, "num_kv_groups", 1) == 1
    )


def _kind(module: Any) -> str:
    return type(module).__name__.removeprefix("FSDP")  # what sharding makes of a class


def run_block(block: Any, x: Tensor, groups: Groups, ropes: Sequence[Tensor | None], prefix: int) -> Tensor:
    """A pre-norm block of timm's on a packed sequence (T, C), giving the rows that are wanted of each image.

    In training the rate of the block's drop path is that of batch-subset stochastic depth; see `residual`.
    """
    rate = getattr(block.drop_path1, "drop_prob", 0.0) if block.training else 0.0

    def attention(x: Tensor, groups: Groups) -> Tensor:
        return layer_scale(block, 1, attend(block.attn, block.norm1(x), groups, ropes, prefix))

    def mlp(x: Tensor, groups: Groups) -> Tensor:
        return layer_scale(block, 2, block.mlp(block.norm2(x)))

    x = residual(x, attention, groups, rate)
    return residual(x, mlp, shortened(groups), rate)


def residual(x: Tensor, branch: Callable[[Tensor, Groups], Tensor], groups: Groups, rate: float) -> Tensor:
    """``x + branch(x)`` on the rows that are wanted, with batch-subset stochastic depth.

    Of a group's B images, b = max(int(B (1 - rate)), 1) are drawn; the branch sees them alone and is scaled by B / b, so
    that its expectation is that of no stochastic depth.
    Oquab et al., "DINOv2", 2023, section 5.
    """
    if not rate:
        return wanted(x, groups) + branch(x, groups)
    subset = [g._replace(images=max(int(g.images * (1 - rate)), 1)) for g in groups]
    drawn = [torch.randperm(g.images, device=x.device)[: s.images] for g, s in zip(groups, subset, strict=True)]
    y = branch(x.index_select(0, places(groups, drawn)), subset)
    after = shortened(subset)
    scaled = [part * (g.images / s.images) for part, g, s in zip(split(y, after), groups, subset, strict=True)]
    return wanted(x, groups).index_add(0, places(shortened(groups), drawn), torch.cat(scaled).to(x.dtype))


def attend(attention: Any, x: Tensor, groups: Groups, ropes: Sequence[Tensor | None], prefix: int) -> Tensor:
    """Attention within each image, one fused call a group: (T, C) -> the rows that are wanted."""
    x = x.unsqueeze(0)  # 1, T, C
    if all(g.rows == g.tokens for g in groups):
        query, key, value = project_together(attention, x, ("query", "key", "value"))  # each 1, heads, T, d
    else:
        (query,) = project_together(attention, wanted(x[0], groups).unsqueeze(0), ("query",))
        key, value = project_together(attention, x, ("key", "value"))
    found = []
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
        found.append(y.transpose(1, 2).flatten(2).flatten(0, 1))  # B*rows, C
    return attention.proj_drop(attention.proj(attention.norm(torch.cat(found))))


def _scaled_dot_product(attention: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    dropout = attention.attn_drop.p if attention.training else 0.0
    if attention.fused_attn or q.shape[-2] < k.shape[-2]:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    return attention.attn_drop(((q * attention.scale) @ k.transpose(-2, -1)).softmax(-1)) @ v


def layer_scale(block: Any, which: int, y: Tensor) -> Tensor:
    """LayerScale of a block's branch, under the names of VisionTransformer's and Eva's blocks."""
    if hasattr(block, f"ls{which}"):
        return getattr(block, f"ls{which}")(y)
    gamma = getattr(block, f"gamma_{which}")
    return y if gamma is None else gamma * y


def shortened(groups: Groups) -> list[Group]:
    """The groups when only the rows that are wanted are left."""
    return [g._replace(tokens=g.rows) for g in groups]


def split(x: Tensor, groups: Groups, dim: int = 0) -> tuple[Tensor, ...]:
    """A packed sequence's groups, as views."""
    return x.split([g.length for g in groups], dim)


def wanted(x: Tensor, groups: Groups) -> Tensor:
    """The rows of a packed sequence (T, C) that are wanted."""
    if all(g.rows == g.tokens for g in groups):
        return x
    parts = zip(split(x, groups), groups, strict=True)
    return torch.cat([part.unflatten(0, (g.images, g.tokens))[:, : g.rows].flatten(0, 1) for part, g in parts])


def places(groups: Groups, drawn: Sequence[Tensor]) -> Tensor:
    """Where in the packed sequence the tokens of drawn images (b,) of each group lie."""
    found, first = [], 0
    for group, images in zip(groups, drawn, strict=True):
        tokens = torch.arange(group.tokens, device=images.device)
        found.append((first + images[:, None] * group.tokens + tokens).flatten())
        first += group.length
    return torch.cat(found)
