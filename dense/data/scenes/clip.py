"""A clip: a camera that moves past a scene, with the exact answers of every frame."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from random import Random

from dense.data.scenes.scene import Scene, clear, picture, sample
from dense.data.scenes.world import World

ASIDE = (0.3, 0.6)  # distance travelled sideways, in distances to the main solid over the focal length
AHEAD = (-0.25, 0.25)  # and along the view, in distances to the main solid


def clip(seed: int, index: int, frames: int = 24, size: int | tuple[int, int] = 128) -> Iterator[Scene]:
    """`frames` pictures of the scene `index` of the series `seed`, the first of which is `render(seed, index, size)`.

    The camera moves straight and evenly, sideways by about a third to half of what it sees and a little ahead or back; the
    path is a function of (seed, index) alone, so that more frames are a slower camera. Solids may leave the picture
    and come into it; `instance` counts them alike in all frames.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if frames < 1 or min(height, width) < 1:
        raise ValueError(f"frames is {frames} and size {size}, expected positive numbers")
    world = sample(seed, index)
    x, z = path(world, Random(f"{seed}/{index}/clip"))
    for number in range(frames):
        yield picture(moved(world, x, z, number / max(1, frames - 1)), height, width)


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
