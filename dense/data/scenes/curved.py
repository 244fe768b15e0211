"""Solids of revolution about the y axis: ball, dome, cylinder, tube, capsule, cone and torus."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

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
        depth = self.half - oy  # below the apex, decreasing at the rate dy
        a = dx * dx + dz * dz - slope * (dy * dy)
        b = ox * dx + oz * dz + slope * (depth * dy)
        c = ox * ox + oz * oz - slope * (depth * depth)
        square = b * b - a * c
        root = np.sqrt(np.maximum(square, 0))
        scale = 1 / (a + TINY)
        entry = np.full(np.shape(square), INFINITY)
        for side in ((-b - root) * scale, (root - b) * scale):  # `below` selects one of the two nappes
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
    """A ring of radius `size` in the plane y = 0, whose tube has the radius `thick`."""

    size: float
    thick: float
    convex = False

    def enter(self, origin: Vector, direction: Vector, after: float) -> Array:
        near, far = _pipe(origin, direction, self.size + self.thick)
        low, high = slab(origin[1], direction[1], -self.thick, self.thick)
        candidates = np.flatnonzero(np.maximum(np.maximum(near, low), after) < np.minimum(far, high))
        entry = np.full(near.shape, INFINITY)
        ox, oy, oz, dx, dy, dz = (_take(c, candidates) for c in (*origin, *direction))
        length = (dx * dx + dy * dy + dz * dz) ** 0.5
        dx, dy, dz = dx / length, dy / length, dz / length
        middle = -(ox * dx + oy * dy + oz * dz)  # measured from the point nearest to the centre, so that t^3 vanishes
        ox, oy, oz = ox + middle * dx, oy + middle * dy, oz + middle * dz
        k = ox * ox + oy * oy + oz * oz + self.size**2 - self.thick**2
        wide = 4 * self.size**2
        first = _smallest_root(
            2 * k - wide * (dx * dx + dz * dz),
            -2 * wide * (ox * dx + oz * dz),
            k * k - wide * (ox * ox + oz * oz),
            after * length - middle,
        )
        entry.reshape(-1)[candidates] = (first + middle) / length
        return entry

    def normal(self, x: Array, y: Array, z: Array) -> Surface:
        ring = (1 - self.size / np.sqrt(x * x + z * z)) / self.thick
        return x * ring, y / self.thick, z * ring

    @cached_property
    def hull(self) -> NDArray[np.float64]:
        return np.array([[0, 0, 0, self.size, self.thick]])


def _smallest_root(p: Array, q: Array, r: Array, after: Array) -> Array:
    """Return the smallest real root (N) of t^4 + p t^2 + q t + r beyond `after`, or infinity, by Ferrari's method."""
    third, half = -(p * p / 12 + r) / 3, (p * p * p / 108 - p * r / 3 + q * q / 8) / 2
    square = half * half + third**3
    single = np.cbrt(half + np.copysign(np.sqrt(np.maximum(square, 0)), half))
    radius = np.sqrt(np.maximum(-third, 1e-30))
    triple = 2 * radius * np.cos(np.arccos(np.clip(half / radius**3, -1, 1)) / 3)
    m = np.where(square > 0, single - third / np.where(single == 0, 1, single), triple) - p / 3
    m = np.maximum(m, 1e-14)
    root = np.sqrt(2 * m)
    best = np.full(p.shape, np.inf)
    for sign in (-1.0, 1.0):
        inner = -m / 2 - p / 2 + sign * q / (2 * root)
        width = np.sqrt(np.maximum(inner, 0))
        for t in (-sign * root / 2 - width, -sign * root / 2 + width):
            best = np.where((inner >= 0) & (t > after) & (t < best), t, best)
    return best


def _take(values: Coordinate, index: NDArray[np.int64]) -> Any:
    """Return coordinates of some rays in double precision; a coordinate that all rays share stays one number."""
    return values.reshape(-1)[index].astype(np.float64) if isinstance(values, np.ndarray) else values
