"""Sources of unlabelled images: a folder, a list of files, tar shards or embedded scenes, read by index."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dense.data.image import ImageError, extensions, read_image, walk, without_targets
from dense.data.levels import PHOTOGRAPHS, Reading
from dense.data.store import Names, Remember
from dense.data.values import one_per_image


class Images(Protocol):
    """Images by index. Large attributes are arrays, so that loader workers share their memory."""

    def __len__(self) -> int: ...

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """Class of each image (len,), -1 for an image without; None if no image has a class."""

    def name(self, index: int) -> str:
        """Return where an image comes from, for messages."""

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return an image (H, W, 3), or raise ImageError."""


class FolderImages:
    """Every image in a folder and its subfolders, in the order of their paths; of a file per channel, the first.

    Masks, depth, instances and panoptic maps of labelled images are left out, see `without_targets`.

    The folders directly below the root are classes, numbered by name; images that lie in the root itself have no
    class. Names that begin with a dot are skipped, links are followed.
    """

    def __init__(self, root: str | Path, at_least: int | None = None, reading: Reading = PHOTOGRAPHS) -> None:
        self.root, self.at_least, self.reading = Path(root), at_least, reading
        if not self.root.is_dir():
            problem = "is a file" if self.root.exists() else "does not exist"
            raise FileNotFoundError(f"{self.root} {problem}; expected a folder of images")
        paths: Iterable[str] = without_targets(self.root, walk(self.root, extensions=extensions(reading)))
        if reading.channels:
            whole = one_per_image((str(self.root / path) for path in paths), reading)
            paths = (Path(path).relative_to(self.root).as_posix() for path in whole)
        self.paths = Names(paths)
        if not self.paths:
            raise FileNotFoundError(
                f"no images in {self.root.resolve()}; looked there and in the folders within for names that end in "
                f"{', '.join(sorted(extensions(reading)))}"
            )
        self.classes, self.labels = _classes(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return str(self.root / self.paths[index])

    def read(self, index: int) -> NDArray[np.uint8]:
        return read_image(self.name(index), self.at_least, self.reading)


class ListImages:
    """Images that a text file lists: a path per line, relative to its folder, and optionally a tab and a label."""

    def __init__(self, path: str | Path, at_least: int | None = None, reading: Reading = PHOTOGRAPHS) -> None:
        self.path, self.at_least, self.reading = Path(path), at_least, reading
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} is not a file; expected a list of images, one path per line")
        labels = array("q")
        self.paths = Names(self._lines(labels))
        if not self.paths:
            raise FileNotFoundError(f"{self.path} lists no images; expected one path per line")
        some = self.paths[:16]
        if not any((self.path.parent / name).is_file() for name in some):
            raise FileNotFoundError(
                f"{self.path}: none of its first {len(some)} images exists, for instance "
                f"{self.path.parent / some[0]}; paths are relative to the folder of the list"
            )
        found = np.array(labels, np.int64)
        self.labels: NDArray[np.int64] | None = found if (found >= 0).any() else None

    def _lines(self, labels: array[int]) -> Iterator[str]:
        with self.path.open(encoding="utf-8", errors="surrogateescape") as lines:
            for number, line in enumerate(lines, start=1):
                name, tab, label = line.rstrip("\r\n").partition("\t")
                if not name.strip():
                    continue
                try:
                    labels.append(int(label) if tab else -1)
                except ValueError:
                    raise ValueError(f"{self.path}, line {number}: label {label!r} is not a whole number") from None
                yield name

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return str(self.path.parent / self.paths[index])

    def read(self, index: int) -> NDArray[np.uint8]:
        return read_image(self.name(index), self.at_least, self.reading)


class SceneImages:
    """Embedded scenes as images, labelled with the class of the largest solid.

    With `remember`, each scene is rendered once for all forked workers, and takes 3 * size**2 bytes of memory.
    """

    def __init__(
        self, split: str, length: int = 20_000, size: int = 128, seed: int = 0, remember: bool = False
    ) -> None:
        from dense.data.scenes import Scenes

        self.scenes = Scenes(split, length, size, seed)
        if not length:
            raise ValueError("length=0: expected at least one scene")
        self.remember = remember
        self._memory = Remember(length, (size, size, 3)) if remember else None

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """Class of each scene, computed from all scenes at the first access."""
        return self.scenes.labels

    def __len__(self) -> int:
        return len(self.scenes)

    def name(self, index: int) -> str:
        return f"scenes:{self.scenes.split} {self.scenes.index(index)}"

    def read(self, index: int) -> NDArray[np.uint8]:
        if self._memory is None:
            return self.scenes[index].image
        return self._memory.get(index, lambda: self.scenes[index].image)


def open_images(
    root: str | Path,
    *,
    length: int = 20_000,
    size: int = 128,
    seed: int = 0,
    remember: bool = False,
    at_least: int | None = None,
    reading: Reading = PHOTOGRAPHS,
) -> Images:
    """Return the source that `root` names.

    - a folder of images, flat or nested, or of ``.tar`` shards;
    - a text file that lists images;
    - a ``.tar`` file, or several as ``shards/{0000..0127}.tar``;
    - ``scenes:train``, ``scenes:val`` or ``scenes:test``, to which `length`, `size`, `seed` and `remember` apply.

    at_least: decode JPEG images at a fraction of their size whose shorter side has at least so many pixels
    reading: channels of the images, and what their numbers mean
    """
    from dense.data.shards import ShardImages, is_shards

    text = str(root)
    if text.startswith("scenes:"):
        return SceneImages(text.removeprefix("scenes:"), length, size, seed, remember)
    if is_shards(text):
        return ShardImages(text, at_least, reading)
    path = Path(root)
    if path.suffix.lower() in extensions(reading) and path.is_file():
        raise ValueError(f"{path} is one image; expected a folder of images or a text file that lists them")
    return ListImages(path, at_least, reading) if path.is_file() else FolderImages(path, at_least, reading)


def _classes(paths: Names) -> tuple[tuple[str, ...], NDArray[np.int64] | None]:
    """Return the names of the classes, and the class of each path: its first folder."""
    classes: dict[str, int] = {}
    labels = np.full(len(paths), -1, np.int64)
    for index, path in enumerate(paths):
        folder, slash, _ = path.partition("/")
        if slash:
            labels[index] = classes.setdefault(folder, len(classes))
    return tuple(classes), labels if classes else None


__all__ = ["FolderImages", "ImageError", "Images", "ListImages", "SceneImages", "open_images"]
