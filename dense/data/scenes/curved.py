"""The round solids: ball, dome, cylinder, tube, capsule, cone and torus, all around the y axis."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dense.data.scenes.solid import (
    INFINITY,
    TINY,
    Array,
    Coordinate,
    Solid,
    Surface,
    Vector,
    first_entry,
    interval,
    slab,
)


def _ball(origin: Vector, direction: Vector, radius: float, height: float = 0.0) -> tuple[Array, Array]:
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    oy = oy - height
    return interval(
        dx * dx + dy * dy + dz * dz, ox * dx + oy * dy + oz * dz, ox * ox + oy * oy + oz * oz - radius * radius
    )


def _pipe(origin: Vector, direction: Vector, radius: float) -> tuple[Array, Array]:
    (ox, _, oz), (dx, _, dz) = origin, direction
    return interval(dx * dx + dz * dz, ox * dx + oz * dz, ox * ox + oz * oz - radius * radius)


@dataclass(frozen=True)
class Ball(Solid):
    size: float

    def enter(self, origin: Vector, direction: Vector, after: float) -> Array:
        return first_entry(*_ball(origin, direction, self.size), after)

    def normal(self, x: Array, y: Array, z: Array) -> Surface:
        return x / self.size, y / self.size, z / self.size

    @cached_property
    def hull(self) -> NDArray[np.float64]:
        return np.array([[0, 0, 0, 0, self.size]])


@dataclass(frozen=True)
class Dome(Solid):
    """Half a ball above y = 0."""

    size: float

    def enter(self, origin: Vector, direction: Vector, after: float) -> Array:
        near, far = _ball(origin, direction, self.size)
        low, high = slab(origin[1], direction[1], 0.0, self.size)
        return first_entry(np.maximum(near, low), np.minimum(far, high), after)

    def normal(self, x: Array, y: Array, z: Array) -> Surface:
        base = -y > np.sqrt(x * x + y * y + z * z) - self.size
        top = np.where(base, np.float32(0), np.float32(1 / self.size))
        return x * top, np.where(base, np.float32(-1), y * top), z * top

    @cached_property
    def hull(self) -> NDArray[np.float64]:
        return np.array([[0, 0, 0, 0, self.size]])

    def lowest(self, rotation: NDArray[np.float64]) -> float:
        up = rotation[1, 1]
        return -self.size * (math.sqrt(max(0.0, 1 - up * up)) if up > 0 else 1.0)


@dataclass(frozen=True)
class Cylinder(Solid):
    size: float
    half: float

    def enter(self, origin: Vector, direction: Vector, after: float) -> Array:
        near, far = _pipe(origin, direction, self.size)
        low, high = slab(origin[1], direction[1], -self.half, self.half)
        return first_entry(np.maximum(near, low), np.minimum(far, high), after)

    def normal(self, x: Array, y: Array, z: Array) -> Surface:
        cap = np.abs(y) - self.half > np.sqrt(x * x + z * z) - self.size
        side = np.where(cap, np.float32(0), np.float32(1 / self.size))
        return x * side, np.where(cap, np.sign(y), np.float32(0)), z * side

    @cached_property
    def hull(self) -> NDArray[np.float64]:
        return np.array([[0, -self.half, 0, self.size, 0], [0, self.half, 0, self.size, 0]])


@dataclass(frozen=True)
class Tube(Solid):
    """A cylinder with a round hole along its axis."""

    size: float
    hole: float
    half: float
    convex = False

    def enter(self, origin: Vector, direction: Vector, after: float) -> Array:
        near, far = _pipe(origin, direction, self.size)
        low, high = slab(origin[1], direction[1], -self.half, self.half)
        near, far = np.maximum(near, low), np.minimum(far, high)
        into, out = _pipe(origin, direction, self.hole)
        rim = (near > after) & ((near <= into) | (near >= out))
        wall = (out > near) & (out < far) & (out > after)
        return np.where(near > far, INFINITY, np.where(rim, near, np.where(wall, out, INFINITY)))

    def normal(self, x: Array, y: Array, z: Array) -> Surface:
        rho = np.sqrt(x * x + z * z)
        outer, inner, cap = rho - self.size, self.hole - rho, np.abs(y) - self.half
        side = np.where(outer > inner, np.float32(1), np.float32(-1)) / rho
        flat = cap > np.maximum(outer, inner)
        side = np.where(flat, np.float32(0), side)
        return x * side, np.where(flat, np.sign(y), np.float32(0)), z * side

    @cached_property
    def hull(self) -> NDArray[np.float64]:
        return np.array([[0, -self.half, 0, self.size, 0], [0, self.half, 0, self.size, 0]])


@dataclass(frozen=True)
class Capsule(Solid):
    """All points within `size` of a segment of half-length `half` along y."""

    size: float
    half: float

    def enter(self, origin: Vector, direction: Vector, after: float) -> Array:
        near, far = _pipe(origin, direction, self.size)
        low, high = slab(origin[1], direction[1], -self.half, self.half)
        side = first_entry(np.maximum(near, low), np.minimum(far, high), after)
        top = first_entry(*_ball(origin, direction, self.size, self.half), after)
        bottom = first_entry(*_ball(origin, direction, self.size, -self.half), after)
        return np.minimum(side, np.minimum(top, bottom))

    def normal(self, x: Array, y: Array, z: Array) -> Surface:
        return x / self.size, (y - np.clip(y, -self.half, self.half)) / self.size, z / self.size

    @cached_property
    def hull(self) -> NDArray[np.float64]:
        return np.array([[0, -self.half, 0, 0, self.size], [0, self.half, 0, 0, self.size]])


@dataclass(frozen=True)
class Cone(Solid):
    """Base of radius `size` at y = -half, apex at y = half."""

    size: float
    half: float

    def enter(self, origin: Vector, direction: Vector, after: float) -> Array:
        (ox, oy, oz), (dx, dy, dz) = origin, direction
        slope = (self.size / (2 * self.half)) ** 2
        depth = self.half - oy  # below the apex, falling at the rate dy
        a = dx * dx + dz * dz - slope * (dy * dy)
        b = ox * dx + oz * dz + slope * (depth * dy)
        c = ox * ox + oz * oz - slope * (depth * depth)
        square = b * b - a * c
        root = np.sqrt(np.maximum(square, 0))
        scale = 1 / (a + TINY)
        entry = np.full(np.shape(square), INFINITY)
        for side in ((-b - root) * scale, (root - b) * scale):  # the slab keeps one of the two nappes
            below = depth - side * dy
            kept = (square >= 0) & (below >= 0) & (below <= 2 * self.half) & (side > after) & (side < entry)
            entry = np.where(kept, side, entry)
        base = (-self.half - oy) / (dy + TINY)
        x, z = ox + base * dx, oz + base * dz
        return np.where((x * x + z * z <= self.size**2) & (base > after) & (base < entry), base, entry)

    def normal(self, x: Array, y: Array, z: Array) -> Surface:
        rho = np.sqrt(x * x + z * z) + np.float32(TINY)
        edge = math.hypot(self.size, 2 * self.half)
        cos, sin = 2 * self.half / edge, self.size / edge
        base = -self.half - y > rho * cos - (self.half - y) * sin
        side = np.where(base, np.float32(0), cos / rho)
        return x * side, np.where(base, np.float32(-1), np.float32(sin)), z * side

    @cached_property
    def hull(self) -> NDArray[np.float64]:
        return np.array([[0, -self.half, 0, self.size, 0], [0, self.half, 0, 0, 0]])


@dataclass(frozen=True)
class Torus(Solid):
    """A ring of radius `size` in the plane y = 0, `thick` in radius."""

    size: float
    thick: float
    convex = False

    def enter(self, origin: Vector, direction: Vector, after: float) -> Array:
        """Follows the exact distance to the ring from the nearest point that can touch it (sphere tracing)."""
        near, far = _pipe(origin, direction, self.size + self.thick)
        low, high = slab(origin[1], direction[1], -self.thick, self.thick)
        near, far = np.maximum(np.maximum(near, low), after), np.minimum(far, high)
        entry = np.full(near.shape, INFINITY)
        alive = np.flatnonzero(near < far)
        flat = entry.reshape(-1)
        ox, oy, oz, dx, dy, dz = (_take(c, alive) for c in (*origin, *direction))
        reach, last = near.reshape(-1)[alive], far.reshape(-1)[alive]
        stride = 1 / np.sqrt(dx * dx + dy * dy + dz * dz)
        close = 2e-5 * self.size
        for _ in range(12):  # rays still undecided after these graze the ring within a hair and count as misses
            for _ in range(5):
                x, y, z = ox + reach * dx, oy + reach * dy, oz + reach * dz
                across = np.sqrt(x * x + z * z) - self.size
                gap = np.sqrt(across * across + y * y) - self.thick
                reach = reach + gap * stride
            done = (np.abs(gap) < close) & (reach > after)
            flat[alive[done]] = reach[done]
            kept = np.flatnonzero(~done & (reach < last))
            if not kept.size:
                break
            alive, reach, last = alive[kept], reach[kept], last[kept]
            ox, oy, oz, dx, dy, dz, stride = (_take(c, kept) for c in (ox, oy, oz, dx, dy, dz, stride))
        return entry

    def normal(self, x: Array, y: Array, z: Array) -> Surface:
        ring = (1 - self.size / np.sqrt(x * x + z * z)) / self.thick
        return x * ring, y / self.thick, z * ring

    @cached_property
    def hull(self) -> NDArray[np.float64]:
        return np.array([[0, 0, 0, self.size, self.thick]])


def _take(values: Coordinate, index: NDArray[np.int64]) -> Coordinate:
    return values.reshape(-1)[index] if isinstance(values, np.ndarray) and values.ndim else values
