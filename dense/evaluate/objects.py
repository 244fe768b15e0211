"""Images with masks of their objects: instances where the data have them, connected components of classes elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dense.data.labelled.files import FileSource
from dense.data.labelled.sample import IGNORE, LabelledSource
from dense.data.labelled.scenes import SceneSource
from dense.suggest import did_you_mean

BACKGROUND = ("background", "sky", "ground")  # classes that are no objects by default
BORDER = 255  # of instances in VOC's files


@dataclass(frozen=True)
class ObjectTarget:
    """An image with the masks of its objects and its classes."""

    image: NDArray[np.uint8]  # H, W, 3
    objects: NDArray[np.bool_]  # M, H, W
    labels: NDArray[np.uint8]  # H, W, IGNORE where unknown

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Pixels whose class is known."""
        return self.labels != IGNORE


class ObjectTargets:
    """The images of a source with their objects; objects smaller than the share `least` of the image are left out.

    objects: where they come from, for the protocol: "instances" of embedded scenes and of VOC's SegmentationObject, or
    "parts", the connected components of each class that is not `background`.
    """

    def __init__(self, source: LabelledSource, background: Sequence[str] | None = None, least: float = 0.002) -> None:
        if source.classes is None:
            raise ValueError("these data have no masks; discovery is measured against masks")
        self.source, self.least, self.classes = source, least, source.classes
        self.background = self._background(background)
        self._instances = self._instance_files()
        scenes = isinstance(source, SceneSource)
        self.objects = "instances" if scenes or self._instances else f"parts, without {', '.join(self.background)}"

    def _background(self, names: Sequence[str] | None) -> tuple[str, ...]:
        if names is None:
            return tuple(name for name in BACKGROUND if name in self.classes)
        for name in names:
            if name not in self.classes:
                hint = did_you_mean(name, self.classes)
                raise ValueError(f"no class {name!r} to be background: there are {', '.join(self.classes)}.{hint}")
        return tuple(names)

    def _instance_files(self) -> list[Path] | None:
        """Return VOC's instance masks, which lie beside those of the classes."""
        if not isinstance(self.source, FileSource) or self.source.masks is None:
            return None
        folder = "SegmentationClass"
        paths = [Path(self.source.masks[i]) for i in range(len(self.source))]
        if not all(path.parent.name == folder for path in paths):
            return None
        found = [path.parent.parent / "SegmentationObject" / path.name for path in paths]
        lacks = [path for path in found if not path.is_file()]
        if 0 < len(lacks) < len(found):
            raise FileNotFoundError(
                f"{lacks[0]}: no such file, one of {len(lacks)} that are missing of {len(found)} masks of instances; "
                "complete the folder, or remove it to measure connected components of classes"
            )
        return None if lacks else found

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[ObjectTarget]:
        for index in range(len(self.source)):
            yield self[index]

    def __getitem__(self, index: int) -> ObjectTarget:
        if isinstance(self.source, SceneSource):
            scene = self.source.scenes[index]
            return self._target(scene.image, scene.semantic, scene.instance)
        sample = self.source.read(index)
        if sample.labels is None:
            raise ValueError(f"{sample.name} has no mask; remove it, or add its mask")
        if self._instances is not None:
            with Image.open(self._instances[index]) as file:
                instances = np.array(file)
            return self._target(sample.image, sample.labels, np.where(instances == BORDER, 0, instances))
        return self._target(sample.image, sample.labels, self._parts(sample.labels))

    def _parts(self, labels: NDArray[np.uint8]) -> NDArray[np.int32]:
        parts, count = np.zeros(labels.shape, np.int32), 0
        for number, name in enumerate(self.classes):
            if name not in self.background:
                some, found = cv2.connectedComponents((labels == number).astype(np.uint8))
                parts = np.where(found > 0, found + count, parts)
                count += some - 1
        return parts

    def _target(
        self, image: NDArray[np.uint8], labels: NDArray[np.uint8], instances: NDArray[np.integer]
    ) -> ObjectTarget:
        numbers, areas = np.unique(instances, return_counts=True)
        kept = numbers[(numbers > 0) & (areas >= self.least * instances.size)]
        return ObjectTarget(image, instances[None] == kept[:, None, None], labels)
