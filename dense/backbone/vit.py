"""Adapters over timm's VisionTransformer and Eva: tokens, positions, masks and attention rows around timm's blocks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from timm.layers import HybridEmbed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dense.backbone.attention import (
    SHARDED,
    Group,
    attention_rows,
    can_pack,
    fused_backward_is_slow,
    project,
    rotate,
    run_block,
    shortened,
    split,
)
from dense.backbone.base import Backbone, Projection, Query, any_requires_grad
from dense.backbone.positions import PERIODS, PositionCache, rotary_positions, set_periods
from dense.backbone.spec import BackboneSpec
from heads.features import Norm, Size, Step

Maps = tuple[Tensor, ...]


class ViT(Backbone, kind="vit"):
    """timm's VisionTransformer. The token order is class token, registers, patches."""

    def __init__(self, spec: BackboneSpec, model: nn.Module) -> None:
        super().__init__(spec)
        self.model: Any = model
        self.mask_token = nn.Parameter(torch.zeros(1, spec.dim))  # timm drops it
        # DINOv2 with registers has a position of the class token; timm adds it to the class token itself
        separate = spec.family == "dinov2_registers"
        self.class_position = nn.Parameter(torch.zeros(1, 1, spec.dim)) if separate else None
        self.grad_checkpointing = False
        self._explicit = False  # whether blocks compute attention step by step, not fused
        self._positions = PositionCache()

    # ---- tokens

    @property
    def table_grid(self) -> tuple[int, int]:
        """Rows and columns of the position table."""
        return (self.spec.image_size[0] // self.spec.patch, self.spec.image_size[1] // self.spec.patch)

    def embed(self, images: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor | None, tuple[int, int]]:
        """Embed images whose sides are multiples of the patch: tokens (B, P + h*w, C), rotary positions, (h, w)."""
        images = self._apart(images)
        if masks is not None and self.spec.each_channel:
            masks = masks.repeat_interleave(len(self.spec.channels), 0)
        return self._tokens(self._patches(self._hide_masked(images, masks)), self._grid(images), masks)

    def _grid(self, images: Tensor) -> tuple[int, int]:
        return (images.shape[-2] // self.spec.patch, images.shape[-1] // self.spec.patch)

    def _hide_masked(self, images: Tensor, masks: Tensor | None) -> Tensor:
        """Zero masked patches in pixel space, so that a convolutional stem cannot leak them to their neighbours."""
        if masks is None or not isinstance(self.model.patch_embed, HybridEmbed):
            return images
        grid = self._grid(images)
        masked = _flat(masks, images.shape[0], grid).unflatten(1, grid).unsqueeze(1)  # B, 1, h, w
        return images.masked_fill(masked.repeat_interleave(self.spec.patch, 2).repeat_interleave(self.spec.patch, 3), 0)

    def _patches(self, images: Tensor) -> Tensor:
        """Project patches: (B, h*w, C)."""
        return self.model.patch_embed(images).flatten(1, -2)

    def _tokens(
        self, x: Tensor, grid: tuple[int, int], masks: Tensor | None
    ) -> tuple[Tensor, Tensor | None, tuple[int, int]]:
        """Add masks, positions and prefix tokens to patches; return what `embed` does."""
        x = self._mask(x, masks, grid)
        prefix, patches = self.position_tables(grid, x.dtype)
        if patches is not None:
            x = x + patches
        prefix_tokens = [t for t in (self.model.cls_token, getattr(self.model, "reg_token", None)) if t is not None]
        if prefix_tokens:
            tokens = torch.cat(prefix_tokens, dim=1).to(x.dtype)  # 1, P, C
            if prefix is not None:
                tokens = tokens + prefix
            if self.class_position is not None:
                tokens = torch.cat((tokens[:, :1] + self.class_position.to(x.dtype), tokens[:, 1:]), dim=1)
            x = torch.cat((tokens.expand(x.shape[0], -1, -1), x), dim=1)
        return self.model.norm_pre(x), self._rope(grid), grid

    def _mask(self, x: Tensor, masks: Tensor | None, grid: tuple[int, int]) -> Tensor:
        if masks is None:
            # distributed training waits for the gradient of every parameter: add the mask token with zero weight
            if self.training and any_requires_grad([self.mask_token]):
                return x + 0.0 * self.mask_token.to(x.dtype)
            return x
        return torch.where(_flat(masks, x.shape[0], grid).unsqueeze(-1), self.mask_token.to(x.dtype), x)

    def position_tables(self, grid: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        """Return positions of the prefix (1, P, C) and of the patches (1, h*w, C), None for those without."""
        table = self.model.pos_embed
        if table is None:
            return None, None
        covered = table.shape[1] - self.table_grid[0] * self.table_grid[1]  # prefix tokens that have a position
        prefix = table[:, :covered].to(dtype) if covered else None
        if grid == self.table_grid:
            return prefix, table[:, covered:].to(dtype)
        return prefix, self._positions.get(table[:, covered:], self.table_grid, grid, self.spec.positions, dtype)

    def _rope(self, grid: tuple[int, int]) -> Tensor | None:
        return None

    # ---- blocks

    def run(self, x: Tensor, rope: Tensor | None, start: int, stop: int) -> Tensor:
        """Run tokens through blocks `start` to `stop` - 1."""
        if not torch.compiler.is_compiling():
            self._choose_attention(x)
        for index in range(start, stop):
            block = self._block(index, rope)
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x

    def _choose_attention(self, x: Tensor) -> None:
        """Compute attention step by step where the fused kernel is slower; see `fused_backward_is_slow`."""
        if (explicit := fused_backward_is_slow(x)) == self._explicit:
            return
        self._explicit = explicit
        for block in self.model.blocks:
            if explicit and getattr(block.attn, "fused_attn", False):
                block.attn.fused_attn, block.attn.was_fused = False, True
            elif not explicit and getattr(block.attn, "was_fused", False):
                block.attn.fused_attn = True

    def _block(self, index: int, rope: Tensor | None) -> Callable[[Tensor], Tensor]:
        return self.model.blocks[index]

    def _features(self, images: Tensor, layers: tuple[int, ...], norm: Norm, masks: Tensor | None) -> tuple[Maps, Maps]:
        return self._layers(*self.embed(images, masks), layers, norm)

    def _layers(
        self, x: Tensor, rope: Tensor | None, grid: tuple[int, int], layers: tuple[int, ...], norm: Norm
    ) -> tuple[Maps, Maps]:
        """Return maps and prefix tokens of these blocks, from embedded tokens."""
        maps, prefix, done = [], [], 0
        for layer in layers:
            x, done = self.run(x, rope, done, layer + 1), layer + 1
            normed = norm is True or (norm == "last" and layer == self.spec.depth - 1)
            y = self._together(x)
            y = self.model.norm(y) if normed else y
            prefix.append(y[:, : self.spec.prefix])
            maps.append(to_map(y[:, self.spec.prefix :], grid))
        return tuple(maps), tuple(prefix)

    def last_blocks(self, grid: Size, extra: int) -> Step:
        """Return `step(index, tokens, mask)`, which runs block `index` on tokens (B, P + extra + h*w, C).

        The extra tokens stand between the prefix and the patches of `grid` and have no rotary position. mask:
        (B, 1 or heads, N, N), true where a token (row) attends to another; None for everywhere.
        """
        rope = self._rope(grid)
        if rope is not None:  # sine 0 and cosine 1 rotate nothing
            half = rope.shape[-1] // 2
            still = torch.cat((rope.new_zeros(half), rope.new_ones(half))).expand(*rope.shape[:-2], extra, -1)
            rope = torch.cat((still, rope), -2)

        def step(index: int, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
            if not torch.compiler.is_compiling():
                self._choose_attention(tokens)
            if mask is not None and not getattr(self.model.blocks[index].attn, "fused_attn", True):
                mask = torch.zeros_like(mask, dtype=tokens.dtype).masked_fill(~mask, -torch.inf)  # which timm adds
            block: Any = self._block(index, rope)
            block = functools.partial(block, attn_mask=mask)
            if self.grad_checkpointing and torch.is_grad_enabled():
                return checkpoint(block, tokens, use_reentrant=False)
            return block(tokens)

        return step

    def final_norm(self, tokens: Tensor) -> Tensor:
        return self.model.norm(tokens)

    def _after_norm(self, layer: int, patches: Tensor, prefix: Tensor) -> tuple[Tensor, Tensor]:
        grid = (patches.shape[-2], patches.shape[-1])
        return to_map(self.model.norm(patches.flatten(2).mT), grid), self.model.norm(prefix)

    def image_features(
        self,
        groups: Sequence[Tensor],
        masks: Tensor | None = None,
        patches: bool = False,
        local_norm: nn.Module | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return what `Backbone.image_features` does, from one packed sequence; stochastic depth drops whole images.

        Where only class tokens are needed, the last block computes their rows alone: equal to `forward`, for less work.
        """
        blocks, spec = self.model.blocks, self.spec
        if not all(can_pack(block) for block in blocks):
            return super().image_features(groups, masks, patches, local_norm)
        embedded = [self.embed(self.pad_to_patch_multiple(g)[0], None if i else masks) for i, g in enumerate(groups)]
        packed = [Group(len(x), x.shape[1], x.shape[1]) for x, _, _ in embedded]
        x = torch.cat([tokens.flatten(0, 1) for tokens, _, _ in embedded])  # T, C
        self._choose_attention(x)
        for index, block in enumerate(blocks):
            if index == spec.depth - 1 and spec.class_token:
                packed = [g._replace(rows=g.rows if patches and i == 0 else 1) for i, g in enumerate(packed)]
            ropes = [self._rope_of_layer(rope, index) for _, rope, _ in embedded]
            # a sharded block gathers its weights around this method
            step = getattr(block, SHARDED, functools.partial(run_block, block))
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(step, x, packed, ropes, spec.prefix, use_reentrant=False)
            else:
                x = step(x, packed, ropes, spec.prefix)
        packed = shortened(packed)
        if spec.each_channel:
            pairs = zip(split(x, packed), packed, strict=True)
            x = torch.cat([self._together(y.unflatten(0, (g.images, g.rows))).flatten(0, 1) for y, g in pairs])
            packed = [g._replace(images=g.images // len(spec.channels)) for g in packed]
        if local_norm is None:
            x = self.model.norm(x)
        else:
            end = packed[0].length
            x = torch.cat((self.model.norm(x[:end]), local_norm(x[end:])))
        parts = [
            y.unflatten(0, (g.images, g.rows)) for y, g in zip(split(x, packed), packed, strict=True)
        ]  # B, rows, C
        vectors = [part[:, 0] if spec.class_token else part[:, spec.prefix :].mean(1) for part in parts]
        return torch.cat(vectors), parts[0][:, spec.prefix :] if patches else None

    def _strides(self, layers: tuple[int, ...]) -> tuple[int, ...]:
        return (self.spec.patch,) * len(layers)

    def set_grad_checkpointing(self, enable: bool = True) -> Self:
        """Recompute each block in the backward pass, to save memory."""
        self.grad_checkpointing = enable
        return self

    # ---- attention

    def _run_to(
        self, images: Tensor, layer: int, blocks: int = 0
    ) -> tuple[Tensor, Tensor | None, tuple[int, int], int]:
        """Run the blocks before `layer`, and `blocks` more: tokens, rotary positions, grid, index of `layer`."""
        depth = self.spec.depth
        if not -depth <= layer < depth:
            raise ValueError(f"layer {layer} does not exist: {self.spec.name} has {depth} blocks")
        layer %= depth
        x, rope, grid = self.embed(self.pad_to_patch_multiple(images)[0])
        return self.run(x, rope, 0, layer + blocks), rope, grid, layer

    def _attention_input(self, images: Tensor, layer: int) -> tuple[Any, Tensor, Tensor | None, tuple[int, int]]:
        """Return the attention of block `layer`, its input after the first norm, its rotary positions, and the grid."""
        x, rope, grid, layer = self._run_to(images, layer)
        return *self._before_attention(x, rope, layer), grid

    def _before_attention(self, x: Tensor, rope: Tensor | None, layer: int) -> tuple[Any, Tensor, Tensor | None]:
        block = self.model.blocks[layer]
        if not all(hasattr(block, name) for name in ("norm1", "attn")) or "Post" in type(block).__name__:
            raise ValueError(f"attention rows are not supported for blocks of type {type(block).__name__}")
        return block.attn, block.norm1(x), self._rope_of_layer(rope, layer)

    def _rope_of_layer(self, rope: Tensor | None, layer: int) -> Tensor | None:
        return rope

    def attention(self, images: Tensor, layer: int = -1, query: Query = "class") -> Tensor:
        """Return the attention of one query to every patch of the padded grid, in fp32.

        query: "class" or the (row, column) of a patch -> (B, heads, h, w); "registers" -> (B, heads, R, h, w). The
        softmax runs over ALL tokens; the part of the patches is not renormalised.
        """
        spec = self.spec
        if query == "class" and not spec.class_token:
            raise ValueError(f"{spec.name} has no class token; ask for a patch: query=(row, column)")
        if query == "registers" and not spec.registers:
            raise ValueError(f"{spec.name} has no registers; use query='class' or query=(row, column)")
        attention, x, rope, grid = self._attention_input(images, layer)
        if query == "class":
            rows = slice(0, 1)
        elif query == "registers":
            rows = slice(spec.prefix - spec.registers, spec.prefix)
        elif isinstance(query, tuple) and len(query) == 2:
            row, column = query
            if not (0 <= row < grid[0] and 0 <= column < grid[1]):
                raise ValueError(f"patch ({row}, {column}) lies outside the grid of {grid[0]}x{grid[1]}")
            token = spec.prefix + row * grid[1] + column
            rows = slice(token, token + 1)
        else:
            raise ValueError(f"query must be 'class', 'registers' or (row, column), got {query!r}")
        weights = attention_rows(attention, x, rows, rope, spec.prefix)[..., spec.prefix :]  # B, heads, rows, h*w
        weights = self._together(weights).unflatten(-1, grid)
        return weights if query == "registers" else weights.squeeze(2)

    def qkv(self, images: Tensor, layer: int = -1, which: Projection = "key", positions: bool = False) -> Tensor:
        """Return features of the patches inside block `layer`, (B, C, h, w).

        which: its queries, keys or values with all heads side by side, or its output tokens before the final norm.
        positions: apply rotary positions to queries and keys.
        """
        if which not in ("query", "key", "value", "token"):
            raise ValueError(f"which must be query, key, value or token, got {which!r}")
        if which == "token":
            x, _, grid, _ = self._run_to(images, layer, blocks=1)
            return to_map(self._together(x)[:, self.spec.prefix :], grid)
        attention, x, rope, grid = self._attention_input(images, layer)
        y = project(attention, x, which)  # B, heads, N, d
        if positions and which != "value":
            y = rotate(attention, y, rope, self.spec.prefix)
        return to_map(self._together(y)[:, :, self.spec.prefix :].transpose(1, 2).flatten(2), grid)

    def tokens_and_attention(self, images: Tensor, norm: bool, patches: bool = True) -> tuple[Tensor, Tensor]:
        """Return the last tokens of the patches (B, C, h, w), and how the last block attends to each patch, in fp32.

        That is (B, heads, Q, h*w) of Q queries: the class token, if there is one, and with `patches` the h*w patches.
        """
        x, rope, grid, layer = self._run_to(images, -1)
        attention, normed, rope_of_layer = self._before_attention(x, rope, layer)
        first = self.spec.prefix
        stop = x.shape[1] if patches else first
        rows = self._together(attention_rows(attention, normed, slice(0, stop), rope_of_layer, first))[..., first:]
        rows = torch.cat((rows[:, :, : int(self.spec.class_token)], rows[:, :, first:]), 2)
        x = self._together(self.run(x, rope, layer, layer + 1))
        return to_map((self.model.norm(x) if norm else x)[:, first:], grid), rows


class Eva(ViT, kind="eva"):
    """timm's Eva, for DINOv3 and the EVA models: rotary positions, computed once per forward pass."""

    def keep_unused(self, tensors: dict[str, Tensor]) -> None:
        """Keep unused tensors as every backbone does; RoPE periods of the checkpoint among them replace the model's."""
        super().keep_unused(tensors)
        if PERIODS in tensors and self.spec.rope_periods == "checkpoint":
            set_periods(self.model, tensors[PERIODS].float())

    def _rope(self, grid: tuple[int, int]) -> Tensor | None:
        rope = self.model.rope
        return None if rope is None else rotary_positions(rope, grid)

    def _rope_of_layer(self, rope: Tensor | None, layer: int) -> Tensor | None:
        return rope[layer] if rope is not None and getattr(self.model, "rope_mixed", False) else rope

    def _block(self, index: int, rope: Tensor | None) -> Callable[[Tensor], Tensor]:
        return functools.partial(self.model.blocks[index], rope=self._rope_of_layer(rope, index))


def _flat(masks: Tensor, batch: int, grid: tuple[int, int]) -> Tensor:
    """Flatten masks (B, h, w) or (B, h*w) to (B, h*w)."""
    expected = (batch, grid[0] * grid[1])
    if masks.shape[0] != batch or tuple(masks.shape[1:]) not in {grid, expected[1:]}:
        raise ValueError(
            f"masks of shape {tuple(masks.shape)} do not fit a batch of {batch} with a grid of {grid[0]}x{grid[1]}"
        )
    return masks.reshape(expected).bool()


def to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return tokens (B, h*w, C) as a map (B, C, h, w), a view with channels last in memory."""
    return tokens.transpose(1, 2).unflatten(2, grid)
