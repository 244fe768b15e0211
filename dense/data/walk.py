"""The files of a folder, and words for what is in it."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from dense.data.images import EXTENSIONS


def walk(
    root: Path,
    within: str = "",
    extensions: Collection[str] = EXTENSIONS,
    above: frozenset[tuple[int, int]] = frozenset(),
) -> Iterator[str]:
    """Paths, relative to the root, of all pictures within a folder, sorted; a link to a folder above is not followed.

    Names that begin with a dot are skipped. With `extensions`, files of these kinds instead of pictures.
    """
    folder = root / within
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        found = sorted((e.name, e.is_dir()) for e in entries if not e.name.startswith("."))
    for name, is_folder in found:
        path = f"{within}/{name}" if within else name
        if is_folder:
            yield from walk(root, path, extensions, above | {here})
        elif os.path.splitext(name)[1].lower() in extensions:  # noqa: PTH122 (a million Paths are slow)
            yield path


def what_is_there(path: Path, most: int = 8) -> str:
    """What a path holds, or the nearest folder above it that exists: the second half of "nothing found here"."""
    if path.is_file():
        return f"{path} is a file"
    if not path.is_dir():
        above = next(parent for parent in (*path.absolute().parents, Path("/")) if parent.is_dir())
        return f"{path} does not exist; {what_is_there(above, most)}"
    with os.scandir(path) as entries:
        names = sorted(entry.name + "/" * entry.is_dir() for entry in entries if not entry.name.startswith("."))
    if not names:
        return f"{path} is empty"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{path} holds {', '.join(names[:most])}{more}"
