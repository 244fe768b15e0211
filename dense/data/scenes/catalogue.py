"""The classes, and a random specimen of each solid; a specimen of unit size covers about half of a unit square."""

from collections.abc import Callable
from random import Random

from dense.data.scenes.curved import Ball, Capsule, Cone, Cylinder, Dome, Torus, Tube
from dense.data.scenes.solid import Boxes, Pyramid, Solid


def _box(rng: Random, size: float) -> Solid:
    x, y, z = (size * rng.uniform(0.28, 0.41) for _ in range(3))
    return Boxes(((-x, -y, -z, x, y, z),))


def _cross(rng: Random, size: float) -> Solid:
    arm, thick = size * rng.uniform(0.5, 0.58), size * rng.uniform(0.13, 0.17)
    boxes = [(-thick, -arm, -thick, thick, arm, thick)]
    for low, high in ((-arm, -thick), (thick, arm)):
        boxes += [(low, -thick, -thick, high, thick, thick), (-thick, -thick, low, thick, thick, high)]
    return Boxes(tuple(boxes))


def _table(rng: Random, size: float) -> Solid:
    x, y, z = size * rng.uniform(0.46, 0.62), size * rng.uniform(0.32, 0.44), size * rng.uniform(0.36, 0.5)
    top, leg = size * rng.uniform(0.12, 0.18), size * rng.uniform(0.12, 0.17)
    legs = [(a, -y, b, a + leg, y - top, b + leg) for a in (-x, x - leg) for b in (-z, z - leg)]
    return Boxes(((-x, y - top, -z, x, y, z), *legs))


def _stairs(rng: Random, size: float) -> Solid:
    steps, size = 3 + int(rng.random() * 2), 0.87 * size
    x, y, z = (size * rng.uniform(low, 0.5) for low in (0.36, 0.42, 0.45))
    heights = [-y + 2 * y * (step + 1) / steps for step in range(steps)]
    edges = [-z + 2 * z * step / steps for step in range(steps + 1)]
    return Boxes(tuple((-x, -y, edges[step], x, heights[step], edges[step + 1]) for step in range(steps)))


def _tube(rng: Random, size: float) -> Solid:
    outer = size * rng.uniform(0.38, 0.48)
    return Tube(outer, outer * rng.uniform(0.66, 0.8), size * rng.uniform(0.22, 0.38))


def _torus(rng: Random, size: float) -> Solid:
    ring = size * rng.uniform(0.42, 0.5)
    return Torus(ring, ring * rng.uniform(0.3, 0.45))


SOLIDS: dict[str, Callable[[Random, float], Solid]] = {
    "sphere": lambda rng, size: Ball(size * rng.uniform(0.38, 0.45)),
    "box": _box,
    "cylinder": lambda rng, size: Cylinder(size * rng.uniform(0.28, 0.38), size * rng.uniform(0.35, 0.5)),
    "cone": lambda rng, size: Cone(size * rng.uniform(0.4, 0.52), size * rng.uniform(0.45, 0.62)),
    "torus": _torus,
    "pyramid": lambda rng, size: Pyramid(size * rng.uniform(0.4, 0.5), size * rng.uniform(0.38, 0.55)),
    "capsule": lambda rng, size: Capsule(size * rng.uniform(0.23, 0.29), size * rng.uniform(0.32, 0.45)),
    "dome": lambda rng, size: Dome(size * rng.uniform(0.52, 0.6)),
    "tube": _tube,
    "cross": _cross,
    "table": _table,
    "stairs": _stairs,
}

CLASSES: tuple[str, ...] = ("sky", "ground", *SOLIDS)
