"""Find everything that is wrong with labelled files before a training does."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dense.data.image import ImageError, read_image
from dense.data.labelled.files import FileSource, image_size
from dense.data.labelled.sample import IGNORE, DataError, LabelledSource, Progress

CHUNK = 32  # samples per thread that are submitted at once
SHOWN = 3


def check(
    source: LabelledSource, *, limit: int | None = None, workers: int = 8, progress: Progress | None = None
) -> list[str]:
    """Return every problem of a source, one line each: those that pairing found, then those inside the files.

    limit: the largest number of samples whose files are read, spread evenly; pairing is always checked in full
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: expected at least 1, or None for every sample")
    if workers < 1:
        raise ValueError(f"workers={workers}: expected at least 1 thread")
    if not isinstance(source, FileSource):
        return []  # scenes are rendered without files
    chosen = _spread(len(source), limit)
    lines = list(source.problems)
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(chosen), CHUNK * workers):  # submitting all samples would create many objects
            part = chosen[start : start + CHUNK * workers]
            for found in pool.map(lambda index: list(_problems(source, index)), part):
                lines += found
            if progress is not None:
                progress(start + len(part), len(chosen))
    return lines


def _spread(length: int, limit: int | None) -> list[int]:
    """Return at most `limit` of `length` indices, evenly spread, the first and the last among them."""
    count = length if limit is None else min(limit, length)
    return np.linspace(0, length - 1, count).round().astype(int).tolist()


def _problems(source: FileSource, index: int) -> Iterator[str]:
    name, shape = source.images[index], None
    try:
        shape = read_image(name).shape[:2]
    except ImageError as error:
        yield str(error)
    readers: tuple[tuple[str, Callable[[int], NDArray[np.generic] | None]], ...] = (
        ("mask", source.labels),
        ("depth map", source.depth),
        ("clean image", source.clean_image),
    )
    for what, read in readers:
        try:
            target = read(index)
        except (ImageError, DataError) as error:
            yield str(error)
            continue
        if target is None:
            continue
        if shape and (problem := source.mismatch(index, what, target.shape[:2], shape)):
            yield problem
        if what == "mask" and (target == IGNORE).all():
            yield f"the mask of {name} is ignored everywhere; leave the sample out"
        if what == "depth map" and not np.isfinite(target).any():
            yield f"the depth map of {name} has no known depth anywhere; leave the sample out"
    if shape and source.crop and (shape[0] < source.crop[0] or shape[1] < source.crop[1]):
        yield f"{name} has {shape[0]}x{shape[1]} pixels, less than the crop {source.crop[0]}x{source.crop[1]}"


def check_one_size(source: LabelledSource, *, limit: int | None = None, workers: int = 8) -> list[str]:
    """Return why the images of a source cannot be batched as they are: the sizes in their headers differ."""
    if not isinstance(source, FileSource) or source.crop:
        return []
    names = [source.images[index] for index in _spread(len(source), limit)]
    with ThreadPoolExecutor(workers) as pool:
        examples = {size: name for name, size in zip(names, pool.map(image_size, names), strict=True) if size}
    if len(examples) < 2:
        return []
    (first, a), (second, b) = list(examples.items())[:2]
    return [
        f"images of {len(examples)} sizes, such as {a} ({first[0]}x{first[1]}) and {b} ({second[0]}x{second[1]}), "
        "cannot be batched; set data.crop_size, or data.batch_size to 1"
    ]


def check_overlap(train: LabelledSource, val: LabelledSource) -> list[str]:
    """Return which images two splits share: the same file, or another file with the same content."""
    lines = []
    known = {_key(train, i) for i in range(len(train))}
    same = [val.name(i) for i in range(len(val)) if _key(val, i) in known]
    if same:
        lines.append(f"train and val share {_listed(same)}; an image must be in one of them alone")
    if isinstance(train, FileSource) and isinstance(val, FileSource):
        copies = [pair for pair in _copies(train, val) if pair[1] not in set(same)]
        if copies:
            words = [f"{second} (as {first})" for first, second in copies]
            lines.append(f"val has copies of train's images: {_listed(words)}; remove them from one of the two")
    return lines


def _key(source: LabelledSource, index: int) -> str:
    try:
        return source.identity(index).name
    except OSError:  # `check` reports a missing file
        return source.name(index)


def _copies(train: FileSource, val: FileSource) -> Iterator[tuple[str, str]]:
    """Yield files of equal content under two names; only files of equal size are read."""
    sizes = {_size(name) for name in train.images} & {_size(name) for name in val.images} - {0}
    digests = {_digest(name): name for name in train.images if _size(name) in sizes}
    for name in val.images:
        if _size(name) in sizes and (first := digests.get(_digest(name))):
            yield first, name


def _size(name: str) -> int:
    path = Path(name)
    return path.stat().st_size if path.is_file() else 0


def _digest(name: str) -> bytes:
    return hashlib.blake2b(Path(name).read_bytes(), digest_size=16).digest()


def _listed(words: list[str]) -> str:
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return f"{len(words)} image{'s' * (len(words) > 1)}: {', '.join(words[:SHOWN])}{more}"


def check_all(
    sources: dict[str, LabelledSource],
    *,
    limit: int | None = None,
    workers: int = 8,
    progress: Callable[[str, int, int], object] | None = None,
) -> None:
    """Raise `DataError` with the problems of all splits, by name, and of `train` and `val` together."""
    problems: list[str] = []
    reported: set[str] = set()
    for split, source in sources.items():
        found = check(source, limit=limit, workers=workers, progress=progress and partial(progress, split))
        problems += [f"{split}: {line}" for line in found if line not in reported]  # splits share unpaired files
        reported.update(found)
    if "train" in sources and "val" in sources:
        problems += check_overlap(sources["train"], sources["val"])
    if problems:
        raise DataError(*problems)
