"""Scenes as a map-style dataset with three splits that never share a scene."""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dense.data.scenes.catalogue import CLASSES
from dense.data.scenes.render import cast
from dense.data.scenes.scene import CAMERA_HEIGHT, OBJECTS, Scene, answers, render, sample

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
            semantic, _ = answers(world, cast(world, height, width)[1])
            labels[item] = np.bincount(semantic.reshape(-1), minlength=len(CLASSES))[2:].argmax() + 2
        return labels
