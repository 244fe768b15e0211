"""Solids: where a ray enters, which way the surface faces, and how far it extends; with those of plane faces.

A solid lives in its own frame, centred near the origin with its axis along y. Rays and points come as three separate
coordinate arrays (x, y, z), any shape; either the origin or the direction of a ray may be plain floats. Directions are
not normalised: distances are in units of the direction's length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]  # float32 throughout, which arithmetic with Python floats preserves
Coordinate = Array | float
Vector = tuple[Coordinate, Coordinate, Coordinate]
Surface = tuple[Array, Array, Array]

INFINITY = np.float32(np.inf)
TINY = 1e-20  # keeps a division by a zero component finite; far below the components of real directions


class Solid:
    """The interface of solids. `hull` is a set of discs across the y axis, each dilated by a ball, whose convex hull
    contains the solid: rows of (x, y, z of the centre, radius of the disc, radius of the ball)."""

    convex = True

    def enter(self, origin: Vector, direction: Vector, after: float) -> Array:
        """Return the distance at which a ray first enters the solid beyond `after`; infinite where it does not."""
        raise NotImplementedError

    def normal(self, x: Array, y: Array, z: Array) -> Surface:
        """Return the outward unit normal at points on the surface."""
        raise NotImplementedError

    @property
    def hull(self) -> NDArray[np.float64]:
        raise NotImplementedError

    @cached_property
    def radius(self) -> float:
        """Radius of a ball around the origin that contains the solid."""
        x, y, z, disc, ball = self.hull.T
        return float((np.hypot(np.hypot(x, z) + disc, y) + ball).max())

    def lowest(self, rotation: NDArray[np.float64]) -> float:
        """Return the height of the lowest point, relative to the origin, after `rotation` (world from object)."""
        height = self.hull[:, :3] @ rotation[1]
        slope = math.sqrt(max(0.0, 1 - rotation[1, 1] ** 2))
        return float((height - self.hull[:, 3] * slope - self.hull[:, 4]).min())

    def footprint(self, rotation: NDArray[np.float64]) -> float:
        """Return the radius of a vertical cylinder around the origin that contains the rotated solid."""
        centres = self.hull[:, :3] @ rotation[[0, 2]].T
        return float((np.hypot(centres[:, 0], centres[:, 1]) + self.hull[:, 3] + self.hull[:, 4]).max())


def interval(a: Coordinate, b: Coordinate, c: Coordinate) -> tuple[Array, Array]:
    """Return the distances between which a t^2 + 2 b t + c is negative, for a > 0; an empty interval if it never is."""
    square = b * b - a * c
    root = np.sqrt(np.maximum(square, 0))
    scale = 1 / (a + TINY)
    outside = square < 0
    return np.where(outside, INFINITY, (-b - root) * scale), np.where(outside, -INFINITY, (root - b) * scale)


def slab(origin: Coordinate, direction: Coordinate, low: float, high: float) -> tuple[Array, Array]:
    """Return the distances between which one coordinate of the ray lies within [low, high]."""
    scale = 1 / (direction + TINY)
    first, second = (low - origin) * scale, (high - origin) * scale
    return np.minimum(first, second), np.maximum(first, second)


def first_entry(near: Array, far: Array, after: float) -> Array:
    return np.where((near <= far) & (near > after), near, INFINITY)


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
    """A union of axis-aligned boxes that do not overlap: rows of (low corner, high corner)."""

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
