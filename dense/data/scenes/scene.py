"""Scenes with exact targets as a function of (seed, index, size), data sets of them, and clips of a moving camera."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random

import numpy as np
from numpy.typing import NDArray

from dense.data.scenes.render import cast, shade
from dense.data.scenes.world import CLASSES, Camera, World, attempt

CAMERA_HEIGHT = (0.6, 2.6)  # metres
OBJECTS = (2, 7)
CLEARANCE = 0.4  # metres kept free around the camera
PROOF = 24  # side of the coarse image that decides whether a world is worth rendering
LEAST, MOST = 0.08, 0.5  # fraction of that image that the largest thing covers


@dataclass(frozen=True)
class Scene:
    """An image and its targets.

    depth: planar, in metres, infinite at the sky
    semantic: indices into CLASSES
    instance: numbers of the world's things from 1 on, 0 at sky and ground
    """

    image: NDArray[np.uint8]  # H, W, 3
    depth: NDArray[np.float32]  # H, W
    semantic: NDArray[np.uint8]  # H, W
    instance: NDArray[np.uint16]  # H, W
    camera: Camera

    @property
    def valid(self) -> NDArray[np.bool_]:
        """True where depth is finite: everywhere but at the sky."""
        return np.isfinite(self.depth)


def sample(
    seed: int, index: int, *, camera_height: tuple[float, float] = CAMERA_HEIGHT, objects: tuple[int, int] = OBJECTS
) -> World:
    """Return the world of a scene: a pure function of its arguments, whatever the size at which it is rendered.

    camera_height: range in metres
    objects: least and most solids
    Worlds in which no thing is well visible are drawn again, with random numbers of their own.
    """
    if index < 0:
        raise ValueError(f"index is {index}, expected 0 or more")
    low, high = camera_height
    if not 0.3 <= low <= high <= 10:
        raise ValueError(f"camera_height is {camera_height}, expected (low, high) with 0.3 <= low <= high <= 10 metres")
    if not 1 <= objects[0] <= objects[1] <= 30:
        raise ValueError(f"objects is {objects}, expected (least, most) with 1 <= least <= most <= 30")
    for draw in range(1000):
        world = attempt(Random(f"{seed}/{index}/{draw}"), (low, high), objects)
        if len(world.things) >= objects[0] and _worthwhile(world):
            return world
    raise ValueError(
        f"no scene fits camera_height {camera_height} and objects {objects}; ask for fewer or a lower camera"
    )


def _worthwhile(world: World) -> bool:
    if not _clear(world):
        return False
    hit = cast(world, PROOF, PROOF)[1]
    largest = np.bincount(hit.reshape(-1), minlength=3)[2:].max() / hit.size
    return bool(LEAST <= largest <= MOST)


def _clear(world: World) -> bool:
    """Return whether no thing is too close to the camera."""
    place = np.array(world.camera.position)
    return not any(np.linalg.norm(thing.position - place) < thing.solid.radius + CLEARANCE for thing in world.things)


def _targets(world: World, hit: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Return semantic and instance maps of the map that `cast` returned."""
    labels = np.array([0, 1, *(thing.label for thing in world.things)], np.uint8)
    numbers = np.array([0, 0, *range(1, len(world.things) + 1)], np.uint16)
    return labels[hit], numbers[hit]


def render(
    seed: int,
    index: int,
    size: int | tuple[int, int] = 128,
    *,
    camera_height: tuple[float, float] = CAMERA_HEIGHT,
    objects: tuple[int, int] = OBJECTS,
    supersample: int = 1,
) -> Scene:
    """Return the scene `index` of the endless series `seed`, at `size` (a side, or height and width).

    An image that is not square shows more along its longer side. `supersample` squared rays per pixel are averaged in
    the image; depth and labels always belong to the ray through the pixel's centre.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width, supersample) < 1:
        raise ValueError(f"size is {size} and supersample {supersample}, expected positive numbers")
    return _scene_of(sample(seed, index, camera_height=camera_height, objects=objects), height, width, supersample)


def _scene_of(world: World, height: int, width: int, supersample: int = 1) -> Scene:
    """Return the image and targets of a world."""
    depth, hit = cast(world, height, width)
    if supersample == 1:
        image = shade(world, depth, hit)
    else:
        fine = shade(world, *cast(world, height * supersample, width * supersample)).astype(np.uint16)
        total = fine.reshape(height, supersample, width, supersample, 3).sum((1, 3), dtype=np.uint32)
        image = ((total + supersample**2 // 2) // supersample**2).astype(np.uint8)
    semantic, instance = _targets(world, hit)
    return Scene(image, depth, semantic, instance, world.camera)


def dominant_class(scene: Scene) -> int:
    """Return the class of solids that covers most pixels (2 or more; the lower index on a tie)."""
    return int(np.bincount(scene.semantic.reshape(-1), minlength=len(CLASSES))[2:].argmax()) + 2


# ---- data sets

SPLITS: dict[str, range] = {
    "train": range(0, 2**40),
    "val": range(2**40, 2**41),
    "test": range(2**41, 2**42),
}


class Scenes:
    """`length` scenes of a split; item i is `render(seed, SPLITS[split][i], size, ...)`. Splits share no scene."""

    classes = CLASSES

    def __init__(
        self,
        split: str,
        length: int,
        size: int | tuple[int, int] = 128,
        seed: int = 0,
        *,
        camera_height: tuple[float, float] = CAMERA_HEIGHT,
        objects: tuple[int, int] = OBJECTS,
        supersample: int = 1,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}, expected one of {', '.join(SPLITS)}")
        if not 0 <= length <= len(SPLITS[split]):
            raise ValueError(f"length is {length}, expected 0 to {len(SPLITS[split])}")
        self.split, self.length, self.size, self.seed = split, length, size, seed
        self.camera_height, self.objects, self.supersample = camera_height, objects, supersample

    def __len__(self) -> int:
        return self.length

    def index(self, item: int) -> int:
        """Return the index of an item in the endless series."""
        if not -self.length <= item < self.length:
            raise IndexError(f"item {item} of {self.length} scenes")
        return SPLITS[self.split][item % self.length]

    def __getitem__(self, item: int) -> Scene:
        return render(
            self.seed, self.index(item), self.size,
            camera_height=self.camera_height, objects=self.objects, supersample=self.supersample,
        )  # fmt: skip

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """`dominant_class` of every scene (length,), computed once and without shading."""
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        labels = np.empty(self.length, np.int64)
        for item in range(self.length):
            world = sample(self.seed, self.index(item), camera_height=self.camera_height, objects=self.objects)
            semantic, _ = _targets(world, cast(world, height, width)[1])
            labels[item] = np.bincount(semantic.reshape(-1), minlength=len(CLASSES))[2:].argmax() + 2
        return labels


# ---- clips

ASIDE = (0.3, 0.6)  # range of the way sideways, in units of the distance to the main solid over the focal length
AHEAD = (-0.25, 0.25)  # range of the way along the view, in units of the distance to the main solid


def clip(seed: int, index: int, frames: int = 24, size: int | tuple[int, int] = 128) -> Iterator[Scene]:
    """Yield `frames` images of the scene `index` of the series `seed`; the first is `render(seed, index, size)`.

    The camera moves along a line at constant speed, sideways by about a third to half of the visible width and a little
    ahead or back. The path is a function of (seed, index) alone, so that more frames mean a slower camera. Solids may
    leave and enter the image; `instance` has the same numbers in all frames.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if frames < 1 or min(height, width) < 1:
        raise ValueError(f"frames is {frames} and size {size}, expected positive numbers")
    world = sample(seed, index)
    x, z = _path(world, Random(f"{seed}/{index}/clip"))
    for number in range(frames):
        yield _scene_of(_moved(world, x, z, number / max(1, frames - 1)), height, width)


def _path(world: World, rng: Random) -> tuple[float, float]:
    """Return how far the camera moves along x and z: halved until it stays clear of all things."""
    camera, (across, _, ahead) = world.camera, world.things[0].position
    distance = math.hypot(across, ahead)
    x = rng.choice((-1, 1)) * rng.uniform(*ASIDE) * distance / camera.focal
    z = rng.uniform(*AHEAD) * distance
    while not all(_clear(_moved(world, x, z, step / 16)) for step in range(17)):
        x, z = x / 2, z / 2
    return x, z


def _moved(world: World, x: float, z: float, fraction: float) -> World:
    """Return a world with its camera at a fraction of its path."""
    return replace(world, camera=replace(world.camera, x=fraction * x, z=fraction * z))
