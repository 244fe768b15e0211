"""Adapters over timm's VisionTransformer and Eva: tokens, positions, masks and attention rows are ours, blocks are timm's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from timm.layers import HybridEmbed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dense.backbone.attention import attention_rows, fused_backward_is_slow, project, rotate
from dense.backbone.base import Backbone, Projection, Query, any_requires_grad
from dense.backbone.packed import SHARDED, Group, can_pack, run_block, shortened, split
from dense.backbone.positions import PERIODS, PositionCache, rotary_positions, set_periods
from dense.backbone.spec import BackboneSpec
from heads.features import Norm

Maps = tuple[Tensor, ...]


class ViT(Backbone):
    """timm's VisionTransformer. The token order is class token, registers, patches."""

    def __init__(self, spec: BackboneSpec, model: nn.Module) -> None:
        super().__init__(spec)
        self.model: Any = model
        self.mask_token = nn.Parameter(torch.zeros(1, spec.dim))  # timm drops it
        # DINOv2 with registers keeps the class token's position apart; timm folds it into the class token
        own_class_position = spec.family == "dinov2_registers"
        self.class_position = nn.Parameter(torch.zeros(1, 1, spec.dim)) if own_class_position else None
        self.grad_checkpointing = False
        self._explicit = False
        self._positions = PositionCache()

    # ---- tokens

    @property
    def table_grid(self) -> tuple[int, int]:
        """Grid of the position table."""
        return (self.spec.image_size[0] // self.spec.patch, self.spec.image_size[1] // self.spec.patch)

    def embed(self, images: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor | None, tuple[int, int]]:
        """Images whose size fits -> tokens (B, P + h*w, C), rotary positions, (h, w)."""
        return self._tokens(self._patches(self._hidden(images, masks)), self._grid(images), masks)

    def _grid(self, images: Tensor) -> tuple[int, int]:
        return (images.shape[-2] // self.spec.patch, images.shape[-1] // self.spec.patch)

    def _hidden(self, images: Tensor, masks: Tensor | None) -> Tensor:
        """Images in which masked patches are grey, where a convolution would show their pixels to their neighbours."""
        if masks is None or not isinstance(self.model.patch_embed, HybridEmbed):
            return images
        grid = self._grid(images)
        cells = _flat(masks, images.shape[0], grid).unflatten(1, grid).unsqueeze(1)  # B, 1, h, w
        return images.masked_fill(cells.repeat_interleave(self.spec.patch, 2).repeat_interleave(self.spec.patch, 3), 0)

    def _patches(self, images: Tensor) -> Tensor:
        """The projected patches, (B, h*w, C)."""
        return self.model.patch_embed(images).flatten(1, -2)

    def _tokens(
        self, x: Tensor, grid: tuple[int, int], masks: Tensor | None
    ) -> tuple[Tensor, Tensor | None, tuple[int, int]]:
        """Patches with masks, positions and prefix tokens, as `embed` gives them."""
        x = self._mask(x, masks, grid)
        prefix, patches = self._position_tables(grid, x.dtype)
        if patches is not None:
            x = x + patches
        batch = x.shape[0]
        before = []
        for name in ("cls_token", "reg_token"):
            token = getattr(self.model, name, None)
            if token is not None:
                before.append(token)
        if before:
            tokens = torch.cat(before, dim=1).to(x.dtype)  # 1, P, C
            if prefix is not None:
                tokens = tokens + prefix
            if self.class_position is not None:
                tokens = torch.cat((tokens[:, :1] + self.class_position.to(x.dtype), tokens[:, 1:]), dim=1)
            x = torch.cat((tokens.expand(batch, -1, -1), x), dim=1)
        return self.model.norm_pre(x), self._rope(grid), grid

    def _mask(self, x: Tensor, masks: Tensor | None, grid: tuple[int, int]) -> Tensor:
        if masks is None:
            # an unused parameter would stall distributed training: it takes part with zero weight
            if self.training and any_requires_grad([self.mask_token]):
                return x + 0.0 * self.mask_token.to(x.dtype)
            return x
        return torch.where(_flat(masks, x.shape[0], grid).unsqueeze(-1), self.mask_token.to(x.dtype), x)

    def _position_tables(self, grid: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        """Positions of the prefix (1, P, C) and of the patches (1, h*w, C), where there are any."""
        table = self.model.pos_embed
        if table is None:
            return None, None
        cells = self.table_grid[0] * self.table_grid[1]
        covered = table.shape[1] - cells  # prefix tokens that have a position
        prefix = table[:, :covered].to(dtype) if covered else None
        if grid == self.table_grid:
            return prefix, table[:, covered:].to(dtype)
        return prefix, self._positions.get(table[:, covered:], self.table_grid, grid, self.spec.positions, dtype)

    def _rope(self, grid: tuple[int, int]) -> Tensor | None:
        return None

    # ---- blocks

    def run(self, x: Tensor, rope: Tensor | None, start: int, stop: int) -> Tensor:
        """Tokens through blocks `start` to `stop` - 1."""
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
        """Explicit attention where the fused one is slower, by device, dtype and whether gradients flow."""
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
        """Maps and prefix tokens of these blocks, from embedded tokens."""
        maps, prefix, done = [], [], 0
        for layer in layers:
            x, done = self.run(x, rope, done, layer + 1), layer + 1
            normed = norm is True or (norm == "last" and layer == self.spec.depth - 1)
            y = self.model.norm(x) if normed else x
            prefix.append(y[:, : self.spec.prefix])
            maps.append(to_map(y[:, self.spec.prefix :], grid))
        return tuple(maps), tuple(prefix)

    def image_features(
        self,
        groups: Sequence[Tensor],
        masks: Tensor | None = None,
        patches: bool = False,
        norm: nn.Module | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """As every backbone's; the groups run as one packed sequence, and stochastic depth leaves out whole images.

        The last block computes the rows of class tokens alone where nothing else is wanted: the same numbers as `forward`
        for less work.
        """
        blocks, spec = self.model.blocks, self.spec
        if not all(can_pack(block) for block in blocks):
            return super().image_features(groups, masks, patches, norm)
        embedded = [self.embed(self.fit(g)[0], None if i else masks) for i, g in enumerate(groups)]
        packed = [Group(len(x), x.shape[1], x.shape[1]) for x, _, _ in embedded]
        x = torch.cat([tokens.flatten(0, 1) for tokens, _, _ in embedded])  # T, C
        self._choose_attention(x)
        for index, block in enumerate(blocks):
            if index == spec.depth - 1 and spec.class_token:
                packed = [g._replace(rows=g.rows if patches and i == 0 else 1) for i, g in enumerate(packed)]
            ropes = [self._rope_of_layer(rope, index) for _, rope, _ in embedded]
            # a sharded block has a method of its own, around which its weights are gathered
            step = getattr(block, SHARDED, functools.partial(run_block, block))
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(step, x, packed, ropes, spec.prefix, use_reentrant=False)
            else:
                x = step(x, packed, ropes, spec.prefix)
        packed = shortened(packed)
        if norm is None:
            x = self.model.norm(x)
        else:
            end = packed[0].length
            x = torch.cat((self.model.norm(x[:end]), norm(x[end:])))
        parts = [
            y.unflatten(0, (g.images, g.rows)) for y, g in zip(split(x, packed), packed, strict=True)
        ]  # B, rows, C
        vectors = [part[:, 0] if spec.class_token else part[:, spec.prefix :].mean(1) for part in parts]
        return torch.cat(vectors), parts[0][:, spec.prefix :] if patches else None

    def _strides(self, layers: tuple[int, ...]) -> tuple[int, ...]:
        return (self.spec.patch,) * len(layers)

    def set_grad_checkpointing(self, enable: bool = True) -> Self:
        """Recompute each block in the backward pass, for less memory."""
        self.grad_checkpointing = enable
        return self

    # ---- attention

    def _input_of(self, images: Tensor, layer: int) -> tuple[Any, Tensor, Tensor | None, tuple[int, int]]:
        """The block `layer`, its input after the first norm, its rotary positions, and the grid."""
        depth = self.spec.depth
        if not -depth <= layer < depth:
            raise ValueError(f"layer {layer} does not exist: {self.spec.name} has {depth} blocks")
        layer %= depth
        padded, _, _ = self.fit(images)
        x, rope, grid = self.embed(padded)
        x = self.run(x, rope, 0, layer)
        block = self.model.blocks[layer]
        if not all(hasattr(block, name) for name in ("norm1", "attn")) or "Post" in type(block).__name__:
            raise ValueError(f"attention rows are not supported for blocks of type {type(block).__name__}")
        return block, block.norm1(x), self._rope_of_layer(rope, layer), grid

    def _rope_of_layer(self, rope: Tensor | None, layer: int) -> Tensor | None:
        return rope

    def attention(self, images: Tensor, layer: int = -1, query: Query = "class") -> Tensor:
        """Attention of one query to every patch of the padded grid.

        query: "class" or the (row, column) of a patch -> (B, heads, h, w); "registers" -> (B, heads, R, h, w). The
        softmax runs over ALL tokens and the patch part is returned as it is, not renormalised, in fp32.
        """
        spec = self.spec
        if query == "class" and not spec.class_token:
            raise ValueError(f"{spec.name} has no class token; ask for a patch: query=(row, column)")
        if query == "registers" and not spec.registers:
            raise ValueError(f"{spec.name} has no registers; use query='class' or query=(row, column)")
        block, x, rope, grid = self._input_of(images, layer)
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
        weights = attention_rows(block.attn, x, rows, rope, spec.prefix)[..., spec.prefix :]  # B, heads, rows, h*w
        weights = weights.unflatten(-1, grid)
        return weights if query == "registers" else weights.squeeze(2)

    def qkv(self, images: Tensor, layer: int = -1, which: Projection = "key", positions: bool = False) -> Tensor:
        """Features of the patches inside block `layer`: its queries, keys or values with all heads side by side, or its
        output tokens (before the final norm), as (B, C, h, w). `positions` applies rotary positions to queries and keys."""
        if which not in ("query", "key", "value", "token"):
            raise ValueError(f"which must be query, key, value or token, got {which!r}")
        if which == "token":
            if not -self.spec.depth <= layer < self.spec.depth:
                raise ValueError(f"layer {layer} does not exist: {self.spec.name} has {self.spec.depth} blocks")
            padded, _, _ = self.fit(images)
            x, rope, grid = self.embed(padded)
            return to_map(self.run(x, rope, 0, layer % self.spec.depth + 1)[:, self.spec.prefix :], grid)
        block, x, rope, grid = self._input_of(images, layer)
        y = project(block.attn, x, which)  # B, heads, N, d
        if positions and which != "value":
            y = rotate(block.attn, y, rope, self.spec.prefix)
        return to_map(y[:, :, self.spec.prefix :].transpose(1, 2).flatten(2), grid)


class Eva(ViT):
    """timm's Eva, which carries DINOv3 and the EVA models: rotary positions, made once a forward."""

    def carry(self, tensors: dict[str, Tensor]) -> None:
        """As every backbone's; RoPE periods among them are put to use."""
        super().carry(tensors)
        if PERIODS in tensors and self.spec.rope_periods == "checkpoint":
            set_periods(self.model, tensors[PERIODS].float())

    def _rope(self, grid: tuple[int, int]) -> Tensor | None:
        rope = self.model.rope
        return None if rope is None else rotary_positions(rope, grid)

    def _rope_of_layer(self, rope: Tensor | None, layer: int) -> Tensor | None:
        return rope[layer] if rope is not None and getattr(self.model, "rope_mixed", False) else rope

    def _block(self, index: int, rope: Tensor | None) -> Callable[[Tensor], Tensor]:
        block, own = self.model.blocks[index], self._rope_of_layer(rope, index)
        return lambda x: block(x, rope=own)


def _flat(masks: Tensor, batch: int, grid: tuple[int, int]) -> Tensor:
    """Masks (B, h, w) or (B, h*w) as (B, h*w)."""
    expected = (batch, grid[0] * grid[1])
    if masks.shape[0] != batch or tuple(masks.shape[1:]) not in {grid, expected[1:]}:
        raise ValueError(
            f"masks of shape {tuple(masks.shape)} do not fit a batch of {batch} with a grid of {grid[0]}x{grid[1]}"
        )
    return masks.reshape(expected).bool()


def to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, h*w, C) -> (B, C, h, w), a view with channels last in memory."""
    return tokens.transpose(1, 2).unflatten(2, grid)


STAGES = 2  # stages of the ResNet that a head can see


class Hybrid(ViT):
    """A ViT on a ResNet. As in DPT, layers 0 and 1 are the first two stages, raw and without tokens; the rest are blocks."""

    def _features(self, images: Tensor, layers: tuple[int, ...], norm: Norm, masks: Tensor | None) -> tuple[Maps, Maps]:
        stages = self._stages(self._hidden(images, masks))
        maps = tuple(stages[layer] for layer in layers if layer < STAGES)
        prefix = tuple(m.new_zeros(m.shape[0], 0, m.shape[1]) for m in maps)
        blocks = tuple(layer for layer in layers if layer >= STAGES)
        if not blocks:
            return maps, prefix
        tokens = self._tokens(self._projected(stages[-1]), self._grid(images), masks)
        deeper, tokens_of = self._layers(*tokens, blocks, norm)
        return maps + deeper, prefix + tokens_of

    def _patches(self, images: Tensor) -> Tensor:
        return self._projected(self._stages(images)[-1])

    def _projected(self, x: Tensor) -> Tensor:
        """The deepest stage as patches (B, h*w, C)."""
        embed = self.model.patch_embed
        return embed.proj(embed.backbone.norm(x)).flatten(2).transpose(1, 2)

    def _stages(self, images: Tensor) -> list[Tensor]:
        """The map of each stage of the ResNet, strides 4, 8 and 16."""
        resnet = self.model.patch_embed.backbone
        x, maps = resnet.stem(images), []
        for stage in resnet.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def _strides(self, layers: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(self.spec.strides[layer] for layer in layers)
