"""Sampling of a scene: a camera, solids resting on the ground or on one another, their coats and the light."""

import math
from dataclasses import dataclass
from functools import cached_property
from random import Random

import numpy as np
from numpy.typing import NDArray

from dense.data.scenes.camera import Camera
from dense.data.scenes.catalogue import CLASSES, SOLIDS
from dense.data.scenes.curved import Cylinder
from dense.data.scenes.flat import Boxes
from dense.data.scenes.looks import Light, Sky, Texture, floor, light, sky, texture
from dense.data.scenes.solid import Solid

GAP = 0.03  # metres kept free between any two solids
CLEARANCE = 0.4  # metres kept free around the camera
REACH = 16.0  # metres to the farthest solid
NAMES = tuple(SOLIDS)


@dataclass(frozen=True)
class Thing:
    """A solid in the world: its class (an index into CLASSES), the place of its origin, and world from object."""

    solid: Solid
    label: int
    position: tuple[float, float, float]
    rotation: NDArray[np.float64]
    coat: Texture
    footprint: float


@dataclass(frozen=True)
class World:
    camera: Camera
    things: tuple[Thing, ...]
    ground: Texture
    sky: Sky
    light: Light

    @cached_property
    def windows(self) -> tuple[tuple[float, float, float, float], ...]:
        """For every thing, the (left, right, top, bottom) of a box around it on the plane one metre ahead."""
        return tuple(_window(self.camera, thing) for thing in self.things)


def _window(camera: Camera, thing: Thing) -> tuple[float, float, float, float]:
    hull = thing.solid.hull
    world = hull[:, :3] @ thing.rotation.T + (np.array(thing.position) - camera.position)
    x, y, z = (world @ camera.rotation).T
    ball = hull[:, 3] + hull[:, 4]
    if (z - ball).min() < 0.02:
        return -math.inf, math.inf, -math.inf, math.inf
    sides: list[float] = []
    for across in (x, y):
        angle, width = np.arctan2(across, z), np.arcsin(np.minimum(ball / np.hypot(across, z), 1))
        sides += [float(np.tan((angle - width).min())), float(np.tan((angle + width).max()))]
    return sides[0], sides[1], sides[2], sides[3]


def _pose(rng: Random) -> NDArray[np.float64]:
    """World from object: mostly upright, sometimes on its side, sometimes tumbled; any yaw."""
    draw, yaw, spin = rng.random(), rng.uniform(0, 2 * math.pi), rng.uniform(0, 2 * math.pi)
    tumbled = rng.uniform(0.2, 2.9)
    if draw < 0.62:
        tilt, spin = 0.0, 0.0
    elif draw < 0.85:
        tilt, spin = math.pi / 2, (math.pi / 2) * int(spin / (math.pi / 2))
    else:
        tilt = tumbled
    return _about_y(yaw) @ _about_x(tilt) @ _about_y(spin)


def _about_x(angle: float) -> NDArray[np.float64]:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]])


def _about_y(angle: float) -> NDArray[np.float64]:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]])


def _thing(rng: Random, size: float, x: float, z: float, floor_height: float = 0.0) -> Thing:
    name = NAMES[int(rng.random() * len(NAMES))]
    solid, rotation = SOLIDS[name](rng, size), _pose(rng)
    place = (x, floor_height - solid.lowest(rotation), z)
    return Thing(solid, CLASSES.index(name), place, rotation, texture(rng, size), solid.footprint(rotation))


def _fits(thing: Thing, others: list[Thing], camera: Camera) -> bool:
    x, y, z = thing.position
    if math.dist(thing.position, camera.position) < thing.solid.radius + CLEARANCE or z < 0:
        return False
    return all(
        math.hypot(x - other.position[0], z - other.position[2]) > thing.footprint + other.footprint + GAP
        for other in others
    )


def _place(rng: Random, camera: Camera, share: float, size: float, across: float) -> tuple[float, float, float]:
    """Size, x and z of something whose extent is `share` of the picture: larger if the camera is too high for it."""
    distance = size * camera.focal / share
    nearest = 1.15 * camera.height
    if distance < nearest:
        distance, size = nearest, nearest * share / camera.focal
    ahead = math.sqrt(max(distance**2 - (camera.height - size / 2) ** 2, 0.1))
    return size, across / camera.focal * distance, ahead


def _shelf(thing: Thing) -> tuple[float, float] | None:
    """Height and radius of the flat top of an upright thing, if it has one."""
    if thing.rotation[1, 1] < 1 - 1e-9:
        return None
    if isinstance(thing.solid, Cylinder):
        return thing.position[1] + thing.solid.half, thing.solid.size
    if isinstance(thing.solid, Boxes) and NAMES[thing.label - 2] in ("box", "table"):
        _, _, _, x, y, z = thing.solid.pieces[0]
        return thing.position[1] + y, min(x, z)
    return None


def _stack(rng: Random, things: list[Thing], used: set[int]) -> Thing | None:
    for place, base in enumerate(things):
        shelf = _shelf(base)
        if shelf is not None and place not in used:
            height, radius = shelf
            thing = _thing(rng, radius * rng.uniform(1.2, 1.9), base.position[0], base.position[2], height)
            if thing.footprint <= base.footprint:
                used.update((place, len(things)))
                return thing
    return None


def attempt(rng: Random, camera_height: tuple[float, float], objects: tuple[int, int]) -> World:
    """One draw of a world; whether it is worth a picture is for the caller to judge."""
    low, high = camera_height
    height, focal = low + (high - low) * rng.random(), 0.75 * 2 ** rng.uniform(0, 1)
    roll = min(max(rng.gauss(0, 0.035), -0.1), 0.1)
    start = Camera(height, 0.0, roll, focal)
    size, x, z = _place(rng, start, rng.uniform(0.45, 0.95), rng.uniform(0.7, 1.9), rng.uniform(-0.28, 0.28))
    pitch = math.atan2(height - size / 2, z) - math.atan(rng.uniform(-0.2, 0.2) / focal)
    camera = Camera(height, pitch, roll, focal)
    things = [_thing(rng, size, x, z)]
    used: set[int] = set()
    count = objects[0] + int(rng.random() * (objects[1] - objects[0] + 1))
    while len(things) < count:
        if rng.random() < 0.15:
            stacked = _stack(rng, things, used)
            if stacked is not None:
                things.append(stacked)
                continue
        for _ in range(12):
            size, x, z = _place(rng, camera, rng.uniform(0.16, 0.55), rng.uniform(0.5, 1.7), rng.uniform(-0.5, 0.5))
            if z > REACH:
                continue
            thing = _thing(rng, size, x, z)
            if _fits(thing, things, camera):
                things.append(thing)
                break
        else:
            break
    return World(camera, tuple(things), floor(rng), sky(rng), light(rng))
