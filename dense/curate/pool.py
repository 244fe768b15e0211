"""An uncurated pool: images of several sources under one index."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dense.curate.search import Indices
from dense.data.levels import PHOTOGRAPHS, Reading
from dense.data.shards import ShardImages
from dense.data.unlabelled import Images, SceneImages, open_images
from dense.data.values import channel_files, files_of
from dense.media.draw import Picture

CORNERS = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.5, 0.5))  # down, right


class Pool:
    """Images of several sources under one index.

    state: settings of the embedded scenes among the sources; they are part of the version of an image
    """

    def __init__(self, roots: Sequence[str], sources: Sequence[Images], state: str = "") -> None:
        self.roots, self.sources, self.state = list(roots), list(sources), state
        self.ends = np.cumsum([len(source) for source in self.sources], dtype=np.int64)

    @classmethod
    def open(
        cls,
        roots: Sequence[str | Path],
        *,
        length: int = 1000,
        size: int = 128,
        seed: int = 0,
        reading: Reading = PHOTOGRAPHS,
    ) -> Pool:
        """Open any number of roots, as `open_images` reads them; length, size, seed apply to embedded scenes only."""
        names = [str(root) for root in roots]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{twice[0]} is named twice; name each source once")
        sources = [open_images(root, length=length, size=size, seed=seed, reading=reading) for root in names]
        return cls(names, sources, f"{length} scenes of {size} px, seed {seed}")

    def __add__(self, other: Pool) -> Pool:
        return Pool(self.roots + other.roots, self.sources + other.sources, self.state)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    @property
    def lengths(self) -> dict[str, int]:
        """The number of images per root."""
        return {root: len(source) for root, source in zip(self.roots, self.sources, strict=True)}

    def source_of(self, indices: Indices) -> Indices:
        """Return the number of the root that holds each image."""
        return np.searchsorted(self.ends, indices, side="right")

    def place(self, index: int) -> tuple[Images, int]:
        """Return the source of an image and its index in that source."""
        number = int(np.searchsorted(self.ends, index, side="right"))
        return self.sources[number], index - (int(self.ends[number - 1]) if number else 0)

    def name(self, index: int) -> str:
        """Return the path of an image, or its place in a shard or among the scenes."""
        source, place = self.place(index)
        return source.name(place)

    def read(self, index: int) -> Picture:
        """Return an image (H, W, 3), or raise ImageError."""
        source, place = self.place(index)
        return source.read(place)

    def original(self, index: int) -> tuple[bytes, str]:
        """Return the bytes of the image file and its extension; scenes are encoded as PNG."""
        source, place = self.place(index)
        if isinstance(source, SceneImages):
            return png(source.read(place)), ".png"
        if isinstance(source, ShardImages):
            return source.data(place), "." + source.members[place].rpartition(".")[2].lower()
        path = Path(source.name(place))
        if channel_files(path, getattr(source, "reading", PHOTOGRAPHS)):
            raise ValueError(f"{path} is one file of several, which shards do not hold; write a list instead")
        return path.read_bytes(), path.suffix.lower()

    @property
    def folders(self) -> set[Path]:
        """The folders of all image files and shards."""
        names: set[str] = set()
        for source in self.sources:
            if isinstance(source, ShardImages):
                names |= {os.path.dirname(shard) for shard in source.shards}  # noqa: PTH120 (a Path for each is slow)
            elif not isinstance(source, SceneImages):
                names |= {os.path.dirname(source.name(index)) for index in range(len(source))}  # noqa: PTH120
        return {Path(name).resolve() for name in names}

    @property
    def in_files(self) -> bool:
        """Whether every image is a file, so that a list of paths can name it."""
        return not any(isinstance(source, SceneImages | ShardImages) for source in self.sources)

    def version(self, indices: range) -> str:
        """Return 16 characters that change with the name, size or modification time of any of these images."""
        digest = hashlib.blake2b(digest_size=8)
        for index in indices:
            source, place = self.place(index)
            name = source.name(place)
            digest.update(f"{index} {name}\0".encode("utf-8", "surrogateescape"))
            if isinstance(source, SceneImages):
                digest.update(self.state.encode())
                continue
            path = Path(source.shard(place) if isinstance(source, ShardImages) else name)
            for file in files_of(path, getattr(source, "reading", PHOTOGRAPHS)):
                if file.exists():
                    status = file.stat()
                    digest.update(f"{status.st_size} {status.st_mtime_ns}\0".encode())
        return digest.hexdigest()


class PoolWithCrops(Pool):
    """Every image of a pool, followed by its crops: the four corners and the centre, for each of `shares` of its sides.

    A cropped copy is more similar to one of these crops than to the whole image.
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
    """Return an image encoded as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
