"""The world of a scene: a random specimen of each class, placed on the ground plane y = 0 before a pinhole camera."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from random import Random

import numpy as np
from numpy.typing import NDArray

from dense.data.scenes.curved import Ball, Capsule, Cone, Cylinder, Dome, Torus, Tube
from dense.data.scenes.looks import Light, Sky, Texture, floor, light, sky, texture
from dense.data.scenes.solid import Boxes, Pyramid, Solid

# ---- specimens: one of unit size covers about half of a unit square


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


# ---- camera and placement


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks along +z.

    height: in metres above the point (`x`, `z`) of the ground, which is the origin unless the camera moves
    pitch, roll: in radians, positive looking down and clockwise
    focal: focal length in units of the image's shorter side, so that one camera serves every size
    """

    height: float
    pitch: float
    roll: float
    focal: float
    x: float = 0.0
    z: float = 0.0

    @property
    def position(self) -> tuple[float, float, float]:
        return self.x, self.height, self.z

    @cached_property
    def rotation(self) -> NDArray[np.float64]:
        """World from camera: the columns are the directions right and down in the image, and forward."""
        cp, sp, cr, sr = math.cos(self.pitch), math.sin(self.pitch), math.cos(self.roll), math.sin(self.roll)
        right, down, forward = (1.0, 0.0, 0.0), (0.0, -cp, -sp), (0.0, -sp, cp)
        turned = [cr * r - sr * d for r, d in zip(right, down, strict=True)]
        below = [sr * r + cr * d for r, d in zip(right, down, strict=True)]
        return np.array([turned, below, forward]).T

    def intrinsics(self, height: int, width: int) -> NDArray[np.float64]:
        """Return the 3x3 matrix from camera coordinates to pixels; the centre of the first pixel is (0.5, 0.5)."""
        focal = self.focal * min(height, width)
        return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])

    def plane(self, height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return columns (W) and rows (H) of the pixel centres on the plane one metre ahead of the camera."""
        focal = self.focal * min(height, width)
        columns = (np.arange(width) + 0.5 - width / 2) / focal
        rows = (np.arange(height) + 0.5 - height / 2) / focal
        return columns.astype(np.float32), rows.astype(np.float32)

    def backproject(self, depth: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return world points of a map of planar depth: H, W -> H, W, 3; NaN or infinite where there is no depth."""
        columns, rows = self.plane(*depth.shape)
        x, y = np.broadcast_arrays(columns[None, :].astype(np.float64), rows[:, None].astype(np.float64))
        rays = np.stack([x, y, np.ones_like(x)], -1)  # H, W, 3
        with np.errstate(invalid="ignore"):
            return np.einsum("hwc,rc->hwr", rays, self.rotation) * depth[..., None] + self.position


GAP = 0.03  # metres kept free between any two solids
REACH = 16.0  # metres to the farthest solid
NAMES = tuple(SOLIDS)


@dataclass(frozen=True)
class Thing:
    """A solid in the world: its class (an index into CLASSES), the position of its origin, and world from object."""

    solid: Solid
    label: int
    position: tuple[float, float, float]
    rotation: NDArray[np.float64]
    footprint: float


@dataclass(frozen=True)
class World:
    camera: Camera
    things: tuple[Thing, ...]
    coats: tuple[Texture, ...]
    ground: Texture
    sky: Sky
    light: Light

    @cached_property
    def windows(self) -> tuple[tuple[float, float, float, float], ...]:
        """(left, right, top, bottom) of a box around each thing on the plane one metre ahead."""
        return tuple(_window(self.camera, thing) for thing in self.things)


def _window(camera: Camera, thing: Thing) -> tuple[float, float, float, float]:
    hull = thing.solid.hull
    world = hull[:, :3] @ thing.rotation.T + (np.array(thing.position) - camera.position)
    x, y, z = (world @ camera.rotation).T
    ball = hull[:, 3] + hull[:, 4]
    if (z - ball).min() < 0.02:
        return -math.inf, math.inf, -math.inf, math.inf
    across = np.stack([x, y])
    angle, width = np.arctan2(across, z), np.arcsin(np.minimum(ball / np.hypot(across, z), 1))
    low, high = np.tan((angle - width).min(1)), np.tan((angle + width).max(1))
    return float(low[0]), float(high[0]), float(low[1]), float(high[1])


def _pose(rng: Random) -> NDArray[np.float64]:
    """Return a rotation, world from object: mostly upright, sometimes on its side or tumbled; any yaw."""
    draw, yaw, spin, tumbled = rng.random(), rng.uniform(0, 2 * math.pi), rng.random(), rng.uniform(0.2, 2.9)
    if draw < 0.62:
        tilt, spin = 0.0, 0.0
    elif draw < 0.85:
        tilt, spin = math.pi / 2, (math.pi / 2) * int(4 * spin)
    else:
        tilt, spin = tumbled, 2 * math.pi * spin
    cy, sy, ct, st = math.cos(yaw), math.sin(yaw), math.cos(tilt), math.sin(tilt)
    cs, ss = math.cos(spin), math.sin(spin)
    return np.array([  # a rotation about y by the yaw, after one about x by the tilt, after one about y by the spin
        [cy * cs - sy * ct * ss, sy * st, cy * ss + sy * ct * cs],
        [st * ss, ct, -st * cs],
        [-sy * cs - cy * ct * ss, cy * st, -sy * ss + cy * ct * cs],
    ])  # fmt: skip


def _thing(rng: Random, name: str, size: float, x: float, z: float, floor_height: float = 0.0) -> Thing:
    solid, rotation = SOLIDS[name](rng, size), _pose(rng)
    place = (x, floor_height - solid.lowest(rotation), z)
    return Thing(solid, CLASSES.index(name), place, rotation, solid.footprint(rotation))


def _free(x: float, z: float, reach: float, others: list[Thing]) -> bool:
    """Return whether a disc on the ground keeps its distance from all others."""
    return all(
        math.hypot(x - other.position[0], z - other.position[2]) > reach + other.footprint + GAP for other in others
    )


def _place(camera: Camera, share: float, size: float, across: float) -> tuple[float, float, float]:
    """Return size, x and z of a thing that covers about `share` of the image, enlarged if the camera is too high."""
    distance = max(size * camera.focal / share, 1.5 * size)
    nearest = 1.15 * camera.height
    if distance < nearest:
        distance, size = nearest, nearest * share / camera.focal
    ahead = math.sqrt(max(distance**2 - (camera.height - size / 2) ** 2, 0.1))
    return size, across / camera.focal * distance, ahead


def _shelf(thing: Thing) -> tuple[float, float] | None:
    """Return height and radius of the flat top of an upright thing, if it has one."""
    if thing.rotation[1, 1] < 1 - 1e-9:
        return None
    if isinstance(thing.solid, Cylinder):
        return thing.position[1] + thing.solid.half, thing.solid.size
    if isinstance(thing.solid, Boxes) and NAMES[thing.label - 2] in ("box", "table"):
        _, _, _, x, y, z = thing.solid.pieces[0]
        return thing.position[1] + y, min(x, z)
    return None


def _stack(rng: Random, name: str, things: list[Thing], used: set[int]) -> Thing | None:
    for place, base in enumerate(things):
        shelf = _shelf(base)
        if shelf is not None and place not in used:
            height, radius = shelf
            thing = _thing(rng, name, radius * rng.uniform(1.2, 1.9), base.position[0], base.position[2], height)
            if thing.footprint <= base.footprint:
                used.update((place, len(things)))
                return thing
    return None


def _name(rng: Random) -> str:
    return NAMES[int(rng.random() * len(NAMES))]


def _join(rng: Random, camera: Camera, name: str, things: list[Thing], used: set[int]) -> Thing | None:
    """Return one more solid, on top of another or on free ground; None if no place is free.

    Its class is drawn before, so that a bulky solid, which fits in fewer places, is tried in more of them instead of
    being drawn less often.
    """
    stacked = _stack(rng, name, things, used) if rng.random() < 0.1 else None
    if stacked is not None:
        return stacked
    for _ in range(24):
        size, x, z = _place(camera, rng.uniform(0.16, 0.5), rng.uniform(0.5, 1.7), rng.uniform(-0.48, 0.48))
        if z < REACH and _free(x, z, 0.3 * size, things):  # a first test saves building most things that do not fit
            thing = _thing(rng, name, size, x, z)
            if _free(x, z, thing.footprint, things):
                return thing
    return None


def attempt(rng: Random, camera_height: tuple[float, float], objects: tuple[int, int]) -> World:
    """Return one random world; the caller decides whether it is worth an image."""
    low, high = camera_height
    height, focal = low + (high - low) * rng.random(), 0.8 * 2 ** rng.random()
    roll = min(max(rng.gauss(0, 0.035), -0.1), 0.1)
    level = Camera(height, 0.0, roll, focal)
    size, x, z = _place(level, rng.uniform(0.45, 0.8), rng.uniform(0.7, 1.9), rng.uniform(-0.25, 0.25))
    pitch = math.atan2(height - size / 2, z) - math.atan(rng.uniform(-0.17, 0.2) / focal)
    camera = Camera(height, pitch, roll, focal)
    things = [_thing(rng, _name(rng), size, x, z)]
    used: set[int] = set()
    for _ in range(objects[0] + int(rng.random() * (objects[1] - objects[0] + 1)) - 1):
        thing = _join(rng, camera, _name(rng), things, used)
        if thing is not None:
            things.append(thing)
    coats = tuple(texture(rng, 1.2 * thing.solid.radius) for thing in things)
    return World(camera, tuple(things), coats, floor(rng), sky(rng), light(rng))
