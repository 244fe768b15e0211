"""Embedded scenes as labelled images: 14 classes and metric depth, exact, without files."""

from __future__ import annotations

import zlib
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dense.data.labelled.sample import DepthKind, Identity, Labelled
from dense.data.labelled.segments import of_numbers
from dense.data.scenes import CLASSES, Scene, Scenes, render
from dense.data.scenes.scene import CAMERA_HEIGHT
from dense.data.store import Remember

STUFF = ("sky", "ground")


class SceneSource:
    """`length` scenes of a split, which shares no scene with another split; the sky is infinitely far.

    size: a side in pixels, or height and width
    camera_height: range in metres above the ground, by default that of the scenes. Another range, such as (3.0, 4.5),
        measures how a model that was trained on the default generalises to other heights
    remember: render each scene once for all forked workers, which takes 9 bytes of memory per pixel
    segments: also return the solids, the sky and the ground as segments
    """

    classes: tuple[str, ...] = CLASSES
    depth_kind: DepthKind = "metric"

    def __init__(
        self,
        split: str,
        length: int = 2000,
        size: int | tuple[int, int] = 128,
        seed: int = 0,
        *,
        camera_height: tuple[float, float] | None = None,
        remember: bool = True,
        segments: bool = False,
    ) -> None:
        self.scenes = Scenes(split, length, size, seed, camera_height=camera_height or CAMERA_HEIGHT)
        if not length:
            raise ValueError("length=0: expected at least one scene")
        self.size = (size, size) if isinstance(size, int) else size
        self._memory = Remember(length, (*self.size, 9)) if remember else None
        self.things = tuple(name not in STUFF for name in CLASSES) if segments else None

    def __len__(self) -> int:
        return len(self.scenes)

    def name(self, index: int) -> str:
        return f"scenes:{self.scenes.split} {self.scenes.index(index)}"

    def identity(self, index: int) -> Identity:
        low, high = self.scenes.camera_height
        height, width = self.size
        return Identity(
            f"scene {self.scenes.index(index)} of seed {self.scenes.seed}, {height}x{width}, camera {low} to {high} m",
            self._renderer,
        )

    @cached_property
    def _renderer(self) -> str:
        """A checksum that changes when the renderer does."""
        scene = render(0, 0, 24)
        return f"{zlib.crc32(_pack(scene)[..., :8].tobytes()):08x}"  # image, label and depth

    def read(self, index: int) -> Labelled:
        if self._memory is None:
            packed = _pack(self.scenes[index])
        else:
            packed = self._memory.get(index, lambda: _pack(self.scenes[index]))  # H, W, 9
        image, labels = packed[..., :3].copy(), packed[..., 3].copy()
        depth = packed[..., 4:8].copy().view(np.float32)[..., 0]  # H, W
        segments = None if self.things is None else of_numbers(labels, packed[..., 8], self.things)
        return Labelled(image, labels, depth, self.name(index), segments=segments)


def _pack(scene: Scene) -> NDArray[np.uint8]:
    """Return image, label, the four bytes of depth and the solid's number of every pixel: H, W, 9."""
    depth = np.ascontiguousarray(scene.depth, np.float32)[..., None].view(np.uint8)
    number = scene.instance.astype(np.uint8)[..., None]  # there are at most 30 solids
    return np.concatenate([scene.image, scene.semantic[..., None], depth, number], axis=2)
