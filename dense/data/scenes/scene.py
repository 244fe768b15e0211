"""An image with its exact targets, as a function of (seed, index, size)."""

from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from dense.data.scenes.catalogue import CLASSES
from dense.data.scenes.render import cast, shade
from dense.data.scenes.world import Camera, World, attempt

CAMERA_HEIGHT = (0.6, 2.6)  # metres
OBJECTS = (2, 7)
CLEARANCE = 0.4  # metres kept free around the camera
PROOF = 24  # side of the coarse image that decides whether a world is worth rendering
VISIBLE, FILLING = 0.08, 0.5  # shares of that image the largest thing must have at least and at most


@dataclass(frozen=True)
class Scene:
    """`depth` is planar, in metres, infinite where the sky is seen; `semantic` indexes CLASSES; `instance` counts the
    things of the world from 1 and is 0 at sky and ground."""

    image: NDArray[np.uint8]  # H, W, 3
    depth: NDArray[np.float32]  # H, W
    semantic: NDArray[np.uint8]  # H, W
    instance: NDArray[np.uint16]  # H, W
    camera: Camera

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Where there is a depth: everywhere but at the sky."""
        return np.isfinite(self.depth)


def sample(
    seed: int, index: int, *, camera_height: tuple[float, float] = CAMERA_HEIGHT, objects: tuple[int, int] = OBJECTS
) -> World:
    """The world of a scene: `objects` solids (least and most), seen from within a range of heights in metres.

    The same world for the same arguments, whatever the size it will be rendered at. Worlds in which nothing is seen
    well are drawn again, from numbers of their own.
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
    if not clear(world):
        return False
    seen = cast(world, PROOF, PROOF)[1]
    largest = np.bincount(seen.reshape(-1), minlength=3)[2:].max() / seen.size
    return bool(VISIBLE <= largest <= FILLING)


def clear(world: World) -> bool:
    """Whether nothing stands too close to the camera."""
    place = np.array(world.camera.position)
    return not any(np.linalg.norm(thing.position - place) < thing.solid.radius + CLEARANCE for thing in world.things)


def targets(world: World, seen: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Semantic and instance maps from what `cast` saw."""
    labels = np.array([0, 1, *(thing.label for thing in world.things)], np.uint8)
    numbers = np.array([0, 0, *range(1, len(world.things) + 1)], np.uint16)
    return labels[seen], numbers[seen]


def render(
    seed: int,
    index: int,
    size: int | tuple[int, int] = 128,
    *,
    camera_height: tuple[float, float] = CAMERA_HEIGHT,
    objects: tuple[int, int] = OBJECTS,
    supersample: int = 1,
) -> Scene:
    """The scene `index` of the endless series `seed`, at `size` (a side, or height and width).

    An image that is not square shows more along its longer side. `supersample` averages that many rays a side and
    pixel in the image; depth and labels always belong to the ray through the pixel's centre.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width, supersample) < 1:
        raise ValueError(f"size is {size} and supersample {supersample}, expected positive numbers")
    return scene_of(sample(seed, index, camera_height=camera_height, objects=objects), height, width, supersample)


def scene_of(world: World, height: int, width: int, supersample: int = 1) -> Scene:
    """A world as its camera sees it."""
    depth, seen = cast(world, height, width)
    if supersample == 1:
        image = shade(world, depth, seen)
    else:
        fine = shade(world, *cast(world, height * supersample, width * supersample)).astype(np.uint16)
        total = fine.reshape(height, supersample, width, supersample, 3).sum((1, 3), dtype=np.uint32)
        image = ((total + supersample**2 // 2) // supersample**2).astype(np.uint8)
    semantic, instance = targets(world, seen)
    return Scene(image, depth, semantic, instance, world.camera)


def dominant_class(scene: Scene) -> int:
    """The solid class that covers most pixels, as an index into CLASSES (2 or more; the lower index on a tie)."""
    return int(np.bincount(scene.semantic.reshape(-1), minlength=len(CLASSES))[2:].argmax()) + 2
