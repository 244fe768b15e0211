"""The solids with flat faces: pyramids, and unions of boxes (cubes, crosses, tables, stairs)."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dense.data.scenes.solid import INFINITY, TINY, Array, Solid, Surface, Vector, first_entry


@dataclass(frozen=True)
class Pyramid(Solid):
    """Square base of half-side `size` at y = -half, apex at y = half."""

    size: float
    half: float

    @cached_property
    def _planes(self) -> tuple[tuple[float, float, float, float], ...]:
        edge = math.hypot(2 * self.half, self.size)
        out, up = 2 * self.half / edge, self.size / edge
        level = up * self.half
        return (
            (out, up, 0.0, level), (-out, up, 0.0, level), (0.0, up, out, level), (0.0, up, -out, level),
            (0.0, -1.0, 0.0, self.half),
        )  # fmt: skip

    def enter(self, origin: Vector, direction: Vector, after: float) -> Array:
        (ox, oy, oz), (dx, dy, dz) = origin, direction
        near: Array = np.float32(-np.inf)  # type: ignore[assignment]
        far: Array = INFINITY  # type: ignore[assignment]
        for nx, ny, nz, level in self._planes:
            distance = level - (nx * ox + ny * oy + nz * oz)
            rate = nx * dx + ny * dy + nz * dz + TINY
            cut = distance / rate
            facing = rate < 0
            near = np.maximum(near, np.where(facing, cut, -INFINITY))
            far = np.minimum(far, np.where(facing, INFINITY, cut))
        return first_entry(near, far, after)

    def normal(self, x: Array, y: Array, z: Array) -> Surface:
        planes = np.array(self._planes, np.float32)
        gaps = np.stack([nx * x + ny * y + nz * z - level for nx, ny, nz, level in self._planes])
        nearest = planes[gaps.argmax(0)]
        return nearest[..., 0], nearest[..., 1], nearest[..., 2]

    @cached_property
    def hull(self) -> NDArray[np.float64]:
        s, h = self.size, self.half
        return np.array([[x, -h, z, 0, 0] for x in (-s, s) for z in (-s, s)] + [[0, h, 0, 0, 0]])


@dataclass(frozen=True)
class Boxes(Solid):
    """A union of boxes along the axes that do not overlap: rows of (low corner, high corner)."""

    pieces: tuple[tuple[float, float, float, float, float, float], ...]

    @property
    def convex(self) -> bool:  # type: ignore[override]
        return len(self.pieces) == 1

    def enter(self, origin: Vector, direction: Vector, after: float) -> Array:
        (ox, oy, oz), (dx, dy, dz) = origin, direction
        sx, sy, sz = 1 / (dx + TINY), 1 / (dy + TINY), 1 / (dz + TINY)
        px, py, pz = ox * sx, oy * sy, oz * sz
        entry: Array | None = None
        for x0, y0, z0, x1, y1, z1 in self.pieces:
            xa, xb, ya, yb, za, zb = x0 * sx - px, x1 * sx - px, y0 * sy - py, y1 * sy - py, z0 * sz - pz, z1 * sz - pz
            near = np.maximum(np.maximum(np.minimum(xa, xb), np.minimum(ya, yb)), np.minimum(za, zb))
            far = np.minimum(np.minimum(np.maximum(xa, xb), np.maximum(ya, yb)), np.maximum(za, zb))
            first = first_entry(near, far, after)
            entry = first if entry is None else np.minimum(entry, first)
        assert entry is not None
        return entry

    def normal(self, x: Array, y: Array, z: Array) -> Surface:
        best = np.full(x.shape, INFINITY)
        normals = [np.zeros(x.shape, np.float32) for _ in range(3)]
        for piece in self.pieces:
            offsets = [c - (a + b) / 2 for c, a, b in zip((x, y, z), piece[:3], piece[3:], strict=True)]
            gaps = [np.abs(o) - (b - a) / 2 for o, a, b in zip(offsets, piece[:3], piece[3:], strict=True)]
            gap = np.maximum(np.maximum(gaps[0], gaps[1]), gaps[2])
            nearer = gap < best
            best = np.minimum(best, gap)
            for axis in range(3):
                value = np.where(gaps[axis] >= gap, np.sign(offsets[axis]), np.float32(0))
                normals[axis] = np.where(nearer, value, normals[axis])
        scale = 1 / np.sqrt(
            np.maximum(normals[0] ** 2 + normals[1] ** 2 + normals[2] ** 2, 1)
        )  # two faces tie at edges
        return normals[0] * scale, normals[1] * scale, normals[2] * scale

    @cached_property
    def hull(self) -> NDArray[np.float64]:
        corners = {
            (x, y, z) for x0, y0, z0, x1, y1, z1 in self.pieces for x in (x0, x1) for y in (y0, y1) for z in (z0, z1)
        }
        return np.array([[*corner, 0, 0] for corner in sorted(corners)])
