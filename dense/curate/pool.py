"""Several sources of images, one after the other, with what their files are and hold."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dense.data.shards import ShardImages
from dense.data.unlabelled import Images, SceneImages, open_images
from dense.media.draw import Picture

CORNERS = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.5, 0.5))  # down, right


class Pool:
    """Images of several sources by one index.

    state: of the embedded scenes among them, in words
    """

    def __init__(self, roots: Sequence[str], sources: Sequence[Images], state: str = "") -> None:
        self.roots, self.sources, self.state = list(roots), list(sources), state
        self.ends = np.cumsum([len(source) for source in self.sources], dtype=np.int64)

    @classmethod
    def open(cls, roots: Sequence[str | Path], *, length: int = 1000, size: int = 128, seed: int = 0) -> Pool:
        """See `open_pictures` for what a root may be; length, size, seed: of embedded scenes alone."""
        names = [str(root) for root in roots]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{twice[0]} is named twice; name each source once")
        sources = [open_images(root, length=length, size=size, seed=seed) for root in names]
        return cls(names, sources, f"{length} scenes of {size} px, seed {seed}")

    def __add__(self, other: Pool) -> Pool:
        return Pool(self.roots + other.roots, self.sources + other.sources, self.state)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def source_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of the root that holds each image."""
        return np.searchsorted(self.ends, indices, side="right")

    def place(self, index: int) -> tuple[Images, int]:
        """A source, and the index of the image in it."""
        number = int(np.searchsorted(self.ends, index, side="right"))
        return self.sources[number], index - (int(self.ends[number - 1]) if number else 0)

    def name(self, index: int) -> str:
        """Where an image comes from."""
        source, place = self.place(index)
        return source.name(place)

    def read(self, index: int) -> Picture:
        """An image (H, W, 3), or ImageError."""
        source, place = self.place(index)
        return source.read(place)

    def original(self, index: int) -> tuple[bytes, str]:
        """The bytes of an image's file and the ending of its name; scenes become PNG."""
        source, place = self.place(index)
        if isinstance(source, SceneImages):
            return png(source.read(place)), ".png"
        if isinstance(source, ShardImages):
            return source.data(place), "." + source.members[place].rpartition(".")[2].lower()
        path = Path(source.name(place))
        return path.read_bytes(), path.suffix.lower()

    @property
    def folders(self) -> set[Path]:
        """Where the files lie that hold the images."""
        names: set[str] = set()
        for source in self.sources:
            if isinstance(source, ShardImages):
                names |= {os.path.dirname(shard) for shard in source.shards}  # noqa: PTH120 (a Path for each is slow)
            elif not isinstance(source, SceneImages):
                names |= {os.path.dirname(source.name(index)) for index in range(len(source))}  # noqa: PTH120
        return {Path(name).resolve() for name in names}

    @property
    def in_files(self) -> bool:
        """Whether every image is a file that a list can name."""
        return not any(isinstance(source, SceneImages | ShardImages) for source in self.sources)

    def version(self, indices: range) -> str:
        """16 characters that change when an image of these has another name, size or time of writing."""
        digest = hashlib.blake2b(digest_size=8)
        for index in indices:
            source, place = self.place(index)
            name = source.name(place)
            digest.update(f"{index} {name}\0".encode("utf-8", "surrogateescape"))
            if isinstance(source, SceneImages):
                digest.update(self.state.encode())
                continue
            path = Path(source.shard(place) if isinstance(source, ShardImages) else name)
            if path.exists():
                status = path.stat()
                digest.update(f"{status.st_size} {status.st_mtime_ns}\0".encode())
        return digest.hexdigest()


class WithCrops(Pool):
    """Every image of a pool, followed by its parts: for each of `shares` of its sides the four corners and the middle.

    A copy that was cropped resembles one of these more than the whole.
    """

    def __init__(self, pool: Pool, shares: Sequence[float]) -> None:
        if wrong := [share for share in shares if not 0.1 <= share < 1]:
            raise ValueError(f"crops of {wrong[0]} of a held-out image's sides: expected 0.1 to less than 1")
        super().__init__(pool.roots, pool.sources, f"{pool.state}, crops {list(shares)}")
        self.shares, self.views = tuple(shares), 1 + len(shares) * len(CORNERS)

    def __len__(self) -> int:
        return super().__len__() * self.views

    def place(self, index: int) -> tuple[Images, int]:
        return super().place(index // self.views)

    def read(self, index: int) -> Picture:
        image, view = super().read(index), index % self.views
        if not view:
            return image
        share, (down, right) = self.shares[(view - 1) // len(CORNERS)], CORNERS[(view - 1) % len(CORNERS)]
        height, width = (max(1, round(side * share)) for side in image.shape[:2])
        top, left = round(down * (image.shape[0] - height)), round(right * (image.shape[1] - width))
        return image[top : top + height, left : left + width]


def png(image: Picture) -> bytes:
    """An image as the bytes of a file that loses nothing."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
