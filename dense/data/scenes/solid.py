"""What a solid is: where a ray enters it, which way its surface faces, and how far it reaches.

A solid lives in its own frame, centred near the origin with its axis along y. Rays and points come as three separate
coordinate arrays (x, y, z), any shape; either the origin or the direction of a ray may be plain floats. Directions are
not normalised: distances are in units of the direction's length.
"""

import math
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]  # float32 throughout, which arithmetic with Python floats preserves
Coordinate = Array | float
Vector = tuple[Coordinate, Coordinate, Coordinate]
Surface = tuple[Array, Array, Array]

INFINITY = np.float32(np.inf)
TINY = 1e-20  # keeps a division by a zero component finite; far below anything a real direction holds


class Solid:
    """What the renderer needs of a solid. `hull` is a set of discs across the y axis, each thickened by a ball, whose
    convex hull contains the solid: rows of (x, y, z of the centre, radius of the disc, radius of the ball)."""

    convex = True

    def enter(self, origin: Vector, direction: Vector, after: float) -> Array:
        """Distance at which the ray first enters the solid, later than `after`; infinite where it does not."""
        raise NotImplementedError

    def normal(self, x: Array, y: Array, z: Array) -> Surface:
        """Outward unit normal at points on the surface."""
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
        """Height of the lowest point, relative to the origin, once turned by `rotation` (world from object)."""
        height = self.hull[:, :3] @ rotation[1]
        slope = math.sqrt(max(0.0, 1 - rotation[1, 1] ** 2))
        return float((height - self.hull[:, 3] * slope - self.hull[:, 4]).min())

    def footprint(self, rotation: NDArray[np.float64]) -> float:
        """Radius of a vertical cylinder around the origin that contains the turned solid."""
        centres = self.hull[:, :3] @ rotation[[0, 2]].T
        return float((np.hypot(centres[:, 0], centres[:, 1]) + self.hull[:, 3] + self.hull[:, 4]).max())


def interval(a: Coordinate, b: Coordinate, c: Coordinate) -> tuple[Array, Array]:
    """The distances between which a t^2 + 2 b t + c is negative, for a > 0; an empty interval if it never is."""
    square = b * b - a * c
    root = np.sqrt(np.maximum(square, 0))
    scale = 1 / (a + TINY)
    outside = square < 0
    return np.where(outside, INFINITY, (-b - root) * scale), np.where(outside, -INFINITY, (root - b) * scale)


def slab(origin: Coordinate, direction: Coordinate, low: float, high: float) -> tuple[Array, Array]:
    """The distances between which one coordinate of the ray lies within [low, high]."""
    scale = 1 / (direction + TINY)
    first, second = (low - origin) * scale, (high - origin) * scale
    return np.minimum(first, second), np.maximum(first, second)


def first_entry(near: Array, far: Array, after: float) -> Array:
    return np.where((near <= far) & (near > after), near, INFINITY)
