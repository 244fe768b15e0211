"""Scenes as a map-style dataset with three splits that never share a scene."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from random import Random

import numpy as np
from numpy.typing import NDArray

from dense.data.scenes.catalogue import CLASSES
from dense.data.scenes.render import cast
from dense.data.scenes.scene import CAMERA_HEIGHT, OBJECTS, Scene, clear, render, sample, scene_of, targets
from dense.data.scenes.world import World

SPLITS: dict[str, range] = {
    "train": range(0, 2**40),
    "val": range(2**40, 2**41),
    "test": range(2**41, 2**42),
}


class Scenes:
    """`length` scenes of a split; item i is `render(seed, SPLITS[split][i], size, ...)`."""

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
        """The index into the endless series that item `item` renders."""
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
        """`dominant_class` of every scene (length,), computed once without shading any of them."""
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        labels = np.empty(self.length, np.int64)
        for item in range(self.length):
            world = sample(self.seed, self.index(item), camera_height=self.camera_height, objects=self.objects)
            semantic, _ = targets(world, cast(world, height, width)[1])
            labels[item] = np.bincount(semantic.reshape(-1), minlength=len(CLASSES))[2:].argmax() + 2
        return labels


ASIDE = (0.3, 0.6)  # distance travelled sideways, in distances to the main solid over the focal length
AHEAD = (-0.25, 0.25)  # and along the view, in distances to the main solid


def clip(seed: int, index: int, frames: int = 24, size: int | tuple[int, int] = 128) -> Iterator[Scene]:
    """`frames` images of the scene `index` of the series `seed`, the first of which is `render(seed, index, size)`.

    The camera moves straight and evenly, sideways by about a third to half of what it sees and a little ahead or back; the
    path is a function of (seed, index) alone, so that more frames are a slower camera. Solids may leave the image
    and come into it; `instance` counts them alike in all frames.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if frames < 1 or min(height, width) < 1:
        raise ValueError(f"frames is {frames} and size {size}, expected positive numbers")
    world = sample(seed, index)
    x, z = path(world, Random(f"{seed}/{index}/clip"))
    for number in range(frames):
        yield scene_of(moved(world, x, z, number / max(1, frames - 1)), height, width)


def path(world: World, rng: Random) -> tuple[float, float]:
    """How far the camera goes along x and z; halved until it comes too close to nothing."""
    camera, (across, _, ahead) = world.camera, world.things[0].position
    distance = math.hypot(across, ahead)
    x = rng.choice((-1, 1)) * rng.uniform(*ASIDE) * distance / camera.focal
    z = rng.uniform(*AHEAD) * distance
    while not all(clear(moved(world, x, z, step / 16)) for step in range(17)):
        x, z = x / 2, z / 2
    return x, z


def moved(world: World, x: float, z: float, share: float) -> World:
    """A world with its camera some share of the way along its path."""
    return replace(world, camera=replace(world.camera, x=share * x, z=share * z))
