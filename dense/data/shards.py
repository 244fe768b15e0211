"""Images inside WebDataset shards: local tar files that are indexed once and then read in random order."""

from __future__ import annotations

import tarfile
import warnings
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dense.data.image import ImageError, decode_image, extensions
from dense.data.levels import PHOTOGRAPHS, Reading
from dense.data.store import Names


class ShardImages:
    """The images of tar files in the layout of WebDataset, in the order of the shards and of their members.

    A sample is a sequence of members that share their name up to the first dot: ``0001.jpg`` is an image, and
    ``0001.cls``, a number as text, its label. Other members are ignored; nothing is unpickled. Only offsets are kept in
    memory.

    shards: a tar file, a pattern such as ``shards/{0000..0127}.tar`` (needs the extra ``shards``) or ``shards/*.tar``,
        or a folder with tar files
    """

    def __init__(self, shards: str | Path, at_least: int | None = None, reading: Reading = PHOTOGRAPHS) -> None:
        self.at_least, self.reading, self.extensions = at_least, reading, extensions(reading)
        self.shards = Names(_expand(str(shards)))
        self._which, self._start, self._size = array("q"), array("q"), array("q")
        labels = array("q")
        self.members = Names(self._index(labels))
        self._which, self._start, self._size = (  # type: ignore[assignment]
            np.array(column, np.int64) for column in (self._which, self._start, self._size)
        )
        if not self.members:
            raise FileNotFoundError(
                f"no images in the {len(self.shards)} tar file(s) {shards}; expected members such as 0001.jpg, ending "
                f"after their first dot in one of {', '.join(sorted(self.extensions))}"
            )
        found = np.array(labels, np.int64)
        self.labels: NDArray[np.int64] | None = found if (found >= 0).any() else None

    def _index(self, labels: array[int]) -> Iterator[str]:
        """Yield the names of images, and fill the other columns."""
        for which, shard in enumerate(self.shards):
            key, label, before = "", -1, len(labels)
            for member, data in _members(shard):
                name, dot, extension = _split(member.name)
                if name != key:
                    key, label, before = name, -1, len(labels)
                if data is not None:
                    label = _label(data, shard, member.name)
                    for image in range(before, len(labels)):  # images of this sample that precede its label
                        labels[image] = label
                elif f"{dot}{extension}" in self.extensions:
                    self._which.append(which)
                    self._start.append(member.offset_data)
                    self._size.append(member.size)
                    labels.append(label)
                    yield member.name

    def __len__(self) -> int:
        return len(self.members)

    def name(self, index: int) -> str:
        return f"{self.shard(index)}:{self.members[index]}"

    def shard(self, index: int) -> str:
        """Return the tar file that holds an image."""
        return self.shards[int(self._which[index])]

    def data(self, index: int) -> bytes:
        """Return the bytes of an image, or raise ImageError."""
        try:
            with Path(self.shard(index)).open("rb") as file:
                file.seek(int(self._start[index]))
                return file.read(int(self._size[index]))
        except OSError as error:
            raise ImageError(f"{self.name(index)} cannot be read ({error})") from None

    def read(self, index: int) -> NDArray[np.uint8]:
        return decode_image(self.data(index), self.name(index), self.at_least, self.reading)


def is_shards(source: str) -> bool:
    """Return whether a source names tar files: one, a pattern of several, or a folder that holds some."""
    return source.endswith((".tar", ".tar}")) or (Path(source).is_dir() and any(Path(source).glob("*.tar")))


def _expand(source: str) -> list[str]:
    """Return the tar files that a source names, all of which must exist."""
    if Path(source).is_dir():
        found = sorted(map(str, Path(source).glob("*.tar")))
    elif "{" in source:
        try:
            from braceexpand import braceexpand
        except ImportError:
            raise ImportError(
                f"the pattern {source} needs the package braceexpand: pip install 'dino-dense[shards]'"
            ) from None
        found = list(braceexpand(source))
    else:
        found = [source] if Path(source).exists() else sorted(map(str, Path(source).parent.glob(Path(source).name)))
    missing = [shard for shard in found if not Path(shard).is_file()]
    if missing or not found:
        raise FileNotFoundError(
            f"{len(missing) or 'all'} of the tar files {source} missing: {', '.join(missing[:3]) or source}"
        )
    return found


def _members(shard: str) -> Iterator[tuple[tarfile.TarInfo, bytes | None]]:
    """Yield the regular files of a tar file, with the content of those that hold a label."""
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # which would otherwise grow with every member
                if member.isreg():
                    file = archive.extractfile(member) if member.name.endswith(".cls") else None
                    yield member, file.read(64) if file else None
    except tarfile.ReadError as error:
        try:
            with tarfile.open(shard, "r:") as archive:
                archive.next()
        except tarfile.ReadError:
            raise ValueError(
                f"{shard} is not an uncompressed tar file ({error}); images are read in random order; "
                "unpack .tar.gz first"
            ) from None
        warnings.warn(f"{shard} is damaged or truncated ({error}); the images before that are used", stacklevel=2)


def _split(member: str) -> tuple[str, str, str]:
    """Return key, dot and extension in lower case; the base name is split at its first dot."""
    folder, slash, base = member.rpartition("/")
    key, dot, extension = base.partition(".")
    return f"{folder}{slash}{key}", dot, extension.lower()


def _label(data: bytes, shard: str, member: str) -> int:
    try:
        return int(data)
    except ValueError:
        raise ValueError(f"{shard}:{member} holds {data[:20]!r}, expected a whole number") from None
