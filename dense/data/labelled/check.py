"""Everything that is wrong with labelled files, found before a training does."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from dense.data.image import ImageError, read_image
from dense.data.labelled.clean import CleanSource
from dense.data.labelled.files import FileSource, image_size
from dense.data.labelled.sample import IGNORE, DataError, LabelledSource, Progress

CHUNK = 32  # samples a thread is given ahead
SHOWN = 3


def check_files(
    source: FileSource, *, limit: int | None = None, workers: int = 8, progress: Progress | None = None
) -> list[str]:
    """One line a problem: what pairing found, then what is in the files, in the order of the samples."""
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: expected at least 1, or None for every sample")
    if workers < 1:
        raise ValueError(f"workers={workers}: expected at least 1 thread")
    count = len(source) if limit is None else min(limit, len(source))
    chosen = np.linspace(0, len(source) - 1, count).round().astype(int).tolist()
    lines = list(source.problems)
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(chosen), CHUNK * workers):  # a task for every sample at once would be many objects
            for found in pool.map(
                lambda index: list(_of_sample(source, index)), chosen[start : start + CHUNK * workers]
            ):
                lines += found
            if progress is not None:
                progress(min(start + CHUNK * workers, len(chosen)), len(chosen))
    return lines


def _of_sample(source: FileSource, index: int) -> Iterator[str]:
    name, shape = source.images[index], None
    try:
        shape = read_image(name).shape[:2]
    except ImageError as error:
        yield str(error)
    try:
        labels = source.labels(index)
        if labels is not None:
            if shape and (problem := source.mismatch(index, "mask", labels.shape, shape)):
                yield problem
            if (labels == IGNORE).all():
                yield f"the mask of {name} is ignored everywhere; leave the sample out"
    except (ImageError, DataError) as error:
        yield str(error)
    try:
        depth = source.depth(index)
        if depth is not None:
            if shape and (problem := source.mismatch(index, "depth map", depth.shape, shape)):
                yield problem
            if not np.isfinite(depth).any():
                yield f"the depth map of {name} knows no depth anywhere; leave the sample out"
    except (ImageError, DataError) as error:
        yield str(error)
    if shape and source.crop and (shape[0] < source.crop[0] or shape[1] < source.crop[1]):
        yield f"{name} has {shape[0]}x{shape[1]} pixels, less than the crop {source.crop[0]}x{source.crop[1]}"


def check_one_size(source: LabelledSource, *, limit: int | None = None, workers: int = 8) -> list[str]:
    """Why the images of a source do not fit in one batch as they are: their sizes, as headers tell them, differ."""
    if not isinstance(source, FileSource | CleanSource) or (isinstance(source, FileSource) and source.crop):
        return []
    count = len(source) if limit is None else min(limit, len(source))
    names = [source.images[int(i)] for i in np.linspace(0, len(source) - 1, count).round()]
    with ThreadPoolExecutor(workers) as pool:
        examples = {size: name for name, size in zip(names, pool.map(image_size, names), strict=True) if size}
    if len(examples) < 2:
        return []
    (first, a), (second, b) = list(examples.items())[:2]
    return [
        f"images of {len(examples)} sizes, such as {a} ({first[0]}x{first[1]}) and {b} ({second[0]}x{second[1]}), are no "
        "batch; set data.crop_size, or data.batch_size to 1"
    ]


def check_overlap(train: LabelledSource, val: LabelledSource) -> list[str]:
    """Images that two splits share: the same file, or another with the same content."""
    lines = []
    known = {_key(train, i) for i in range(len(train))}
    same = [val.name(i) for i in range(len(val)) if _key(val, i) in known]
    if same:
        lines.append(f"train and val share {_several(same)}; an image must be in one of them alone")
    if isinstance(train, FileSource | CleanSource) and isinstance(val, FileSource | CleanSource):
        copies = [pair for pair in _copies(train, val) if pair[1] not in set(same)]
        if copies:
            words = [f"{second} (as {first})" for first, second in copies]
            lines.append(f"val has copies of train's images: {_several(words)}; remove them from one of the two")
    return lines


def _key(source: LabelledSource, index: int) -> str:
    try:
        return source.identity(index).name
    except OSError:  # a file that is not there is a problem of its own
        return source.name(index)


def _copies(train: FileSource | CleanSource, val: FileSource | CleanSource) -> Iterator[tuple[str, str]]:
    """Files of equal content under two names; only those of equal size are read."""
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


def _several(words: list[str]) -> str:
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return f"{len(words)} image{'s' * (len(words) > 1)}: {', '.join(words[:SHOWN])}{more}"


def check_all(
    sources: dict[str, LabelledSource],
    *,
    limit: int | None = None,
    workers: int = 8,
    progress: Callable[[str, int, int], object] | None = None,
) -> None:
    """Raise `DataError` with all that is wrong with any of the splits, by name, or with `train` and `val` together."""
    problems: list[str] = []
    seen: set[str] = set()
    for split, source in sources.items():
        found = source.check(limit=limit, workers=workers, progress=progress and partial(progress, split))
        problems += [f"{split}: {line}" for line in found if line not in seen]  # a folder's splits share its strays
        seen.update(found)
    if "train" in sources and "val" in sources:
        problems += check_overlap(sources["train"], sources["val"])
    if problems:
        raise DataError(*problems)


__all__ = ["DataError", "check_all", "check_files", "check_one_size", "check_overlap"]
