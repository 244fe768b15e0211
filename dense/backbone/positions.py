"""Positions on any grid: each release interpolates its learned table by its own rule, and features depend on it."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import RotaryEmbeddingDinoV3, resample_abs_pos_embed
from torch import Tensor

from dense.backbone.spec import Positions

Grid = tuple[int, int]
PERIODS = "rope_embed.periods"  # DINOv3's name for its rotary periods


def interpolate_positions(table: Tensor, old: Grid, new: Grid, rule: Positions) -> Tensor:
    """Interpolate a table (1, h*w, C) of grid `old` to grid `new`, (1, h'*w', C), by the release's rule.

    `official`: bicubic with scale factor (n + 0.1) / M and no antialias (DINO, iBOT, DINOv2). The 0.1 shifts every
    sampling position, so it changes values, not only the shape. `official_registers`: bicubic to the exact size with
    antialias (DINOv2 with registers). `size`: bicubic to the exact size without antialias. `bilinear`: bilinear to the
    exact size (DPT). `timm`: timm's own rule.
    """
    if old == new or rule == "none":
        return table
    if rule == "timm":
        return resample_abs_pos_embed(table, new_size=list(new), old_size=list(old), num_prefix_tokens=0)
    grid = table.float().reshape(1, *old, -1).permute(0, 3, 1, 2)  # 1, C, h, w
    if rule == "official":
        scale = ((new[0] + 0.1) / old[0], (new[1] + 0.1) / old[1])
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic", antialias=False)
    elif rule == "official_registers":
        grid = F.interpolate(grid, size=new, mode="bicubic", antialias=True)
    elif rule in ("size", "bilinear"):
        grid = F.interpolate(grid, size=new, mode="bicubic" if rule == "size" else "bilinear", antialias=False)
    else:
        raise ValueError(f"positions rule {rule!r} does not interpolate a table")
    if tuple(grid.shape[-2:]) != new:
        raise RuntimeError(f"interpolated positions are {tuple(grid.shape[-2:])}, expected {new}")
    return grid.permute(0, 2, 3, 1).reshape(1, new[0] * new[1], -1).to(table.dtype)


class PositionCache:
    """Interpolated tables by grid and dtype, kept while their parameter neither trains nor changes.

    The cache detects a change by the parameter's version, which writing through `.data` does not increase: change
    weights under `torch.no_grad()` instead.
    """

    SIZE = 16

    def __init__(self) -> None:
        self._source: tuple[object, ...] = ()
        self._tables: dict[tuple[object, ...], Tensor] = {}

    def get(self, table: Tensor, old: Grid, new: Grid, rule: Positions, dtype: torch.dtype) -> Tensor:
        """Return the table on grid `new` in `dtype`; it is not cached while it trains or while torch.compile traces."""
        if old == new:
            return table.to(dtype)
        if table.requires_grad or torch.compiler.is_compiling():
            return interpolate_positions(table, old, new, rule).to(dtype)
        source = (table.device, table.data_ptr(), 0 if table.is_inference() else table._version)
        if source != self._source or len(self._tables) >= self.SIZE:
            self._source, self._tables = source, {}
        key = (new, rule, dtype)
        if key not in self._tables:
            with torch.no_grad():
                self._tables[key] = interpolate_positions(table, old, new, rule).to(dtype)
        return self._tables[key]

    def __deepcopy__(self, memo: dict[int, object]) -> PositionCache:
        return PositionCache()

    def __reduce__(self) -> tuple[type[PositionCache], tuple[()]]:
        return PositionCache, ()


def rotary_positions(rope: Any, grid: Grid) -> Tensor:
    """Return the rotary positions of a grid by timm's module; for a symbolic grid of torch.export by the same formula.

    timm's arange(0.5, n) would fix n; for DINOv3's coordinates, integers plus 0.5 are the same values.
    """
    known = all(isinstance(n, int) for n in grid)
    dino = isinstance(rope, RotaryEmbeddingDinoV3)
    if known or not dino or (rope.normalize_coords, rope.grid_indexing) != ("separate", "ij"):
        return rope.get_embed(shape=list(grid))
    rows, columns = ((torch.arange(n) + (0.5 + rope.grid_offset)) / n for n in grid)
    coordinates = 2 * torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1) - 1  # h, w, 2
    return torch.cat(tuple(rope._get_pos_embed_from_coords(coordinates.flatten(0, 1))), -1)


def periods_of(model: Any) -> torch.Tensor:
    """Return the RoPE periods of a DINOv3 model in fp32."""
    return model.rope._compute_periods() if hasattr(model.rope, "_compute_periods") else model.rope.periods.float()


def set_periods(model: Any, periods: torch.Tensor) -> None:
    """Set the RoPE periods of a model; they survive casts, after which timm would compute its own again."""
    rope = model.rope
    rope.periods = periods.to(rope.periods.device, torch.float32)
    rope._compute_periods = functools.partial(_cast, periods.detach().clone())
    if getattr(rope, "pos_embed_cached", None) is not None:
        rope.update_feat_shape(rope.feat_shape)


def _cast(periods: torch.Tensor, device: Any = "cpu", dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return periods.to(device=device, dtype=dtype)
