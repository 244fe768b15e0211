"""Find everything that is wrong with labelled files before a training does, and warn of what looks wrong."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dense.console import warn
from dense.data.image import ImageError, read_image
from dense.data.labelled.files import FileSource, image_size
from dense.data.labelled.formats import DepthFormat
from dense.data.labelled.reading import stored_depth
from dense.data.labelled.sample import IGNORE, DataError, LabelledSource, Progress
from dense.data.levels import PHOTOGRAPHS, counted_nan
from dense.data.values import read_channels
from dense.data.windows import WindowSource, large_image, surveyed

CHUNK = 32  # samples per thread that are submitted at once
SHOWN = 3
SATURATED, PEAK = 5e-4, 0.01  # shares of pixels at the largest number of a type, or at the largest number of a file
MEDIANS = (0.02, 200.0)  # metres between which the median depth of a set lies
FARTHEST = 1000.0  # metres that no depth of a scene exceeds


def check(
    source: LabelledSource,
    *,
    limit: int | None = None,
    workers: int = 8,
    progress: Progress | None = None,
    warnings: list[str] | None = None,
) -> list[str]:
    """Return every problem of a source, one line each: those that pairing found, then those inside the files.

    limit: the largest number of samples whose files are read, spread evenly; pairing is always checked in full
    warnings: gets a line for whatever is suspicious in the targets, though it may be right
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: expected at least 1, or None for every sample")
    if workers < 1:
        raise ValueError(f"workers={workers}: expected at least 1 thread")
    if isinstance(source, WindowSource):
        return list(source.check(limit, progress))
    if not isinstance(source, FileSource):
        return []  # scenes are rendered without files
    chosen = spread(len(source), limit)
    lines = list(source.problems)
    seen = Seen([], [], [], [])
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(chosen), CHUNK * workers):  # submitting all samples would create many objects
            part = chosen[start : start + CHUNK * workers]
            for found in pool.map(lambda index: list(_problems(source, index, seen)), part):
                lines += found
            if progress is not None:
                progress(start + len(part), len(chosen))
    objects = [count > crowd for _, count, crowd, _ in seen.segments]
    if objects and len(objects) == len(source) and not any(objects):
        lines.append(f"none of {len(source)} images has an object, apart from crowds; annotate some, or choose others")
    if warnings is not None:
        if seen.unknown:
            share = 100 * sum(lost for _, lost in seen.unknown) / len(seen.unknown)
            listed = _listed([name for name, _ in sorted(seen.unknown)])
            warnings.append(f"{listed}: {share:.3g} % of their numbers are NaN, which become black")
        warnings += _of_segments(sorted(seen.segments), source)
        if source.depth_format is not None:
            warnings += suspicious_depth(sorted(seen.depths), source.depth_format)
        labels = {label for _, label in seen.masks}
        names = source.classes or ()
        if min(len(seen.masks), len(names)) > 1 and len(labels) == 1 and (label := labels.pop()) is not None:
            warnings.append(
                f"each of {len(seen.masks)} masks holds the class {names[label]!r} alone, such as that of "
                f"{min(seen.masks)[0]}; compare classes.yaml with the values in the masks"
            )
    return lines


class DepthNumbers(NamedTuple):
    """The known numbers of a depth file, in its own units; shares are of all its pixels."""

    name: str
    known: float  # share of the known numbers
    zero: float  # share of 0 among them, which no metric depth is
    low: float
    median: float
    high: float
    peak: float  # share of the largest number
    next: float  # share of the second largest
    limit: int | None  # bits of the type, if the largest number is the largest that the type holds
    far: float  # share beyond FARTHEST
    nearest_far: float  # the smallest number there


class Seen(NamedTuple):
    """What the check has read, in the order in which its threads ended."""

    depths: list[DepthNumbers]
    masks: list[tuple[str, int | None]]  # the class of a mask that holds a single one
    segments: list[tuple[str, int, int, int]]  # numbers of segments, of crowds, and of polygons without a pixel
    unknown: list[tuple[str, float]]  # share of NaN in images that have some


def depth_numbers(name: str, raw: NDArray[Any], form: DepthFormat) -> DepthNumbers | None:
    """Summarise a depth map as it is stored; None if nothing in it is known."""
    numbers = raw.astype(np.float32).ravel()
    numbers = numbers[np.isfinite(numbers) & ~form.unknown(numbers) & ~np.isin(numbers, form.infinite)]
    known, numbers = numbers.size, numbers if form.kind == "inverse_relative" else numbers[numbers != 0]
    if not numbers.size:
        return None
    high = numbers.max()
    below = numbers[numbers < high]
    second = np.count_nonzero(below == below.max()) if below.size else 0
    limit = raw.dtype.itemsize * 8 if raw.dtype.kind in "iu" and high == np.iinfo(raw.dtype).max else None
    if raw.dtype == np.int32 and high == 65535:  # as PIL reads 16 bits
        limit = 16
    far = numbers[numbers > FARTHEST * (form.scale or 1)]
    return DepthNumbers(
        name,
        known=known / raw.size,
        zero=(known - numbers.size) / raw.size,
        low=float(numbers.min()),
        median=float(np.median(numbers[:: max(1, numbers.size // 10_000)])),
        high=float(high),
        peak=(numbers.size - below.size) / raw.size,
        next=second / raw.size,
        limit=limit,
        far=far.size / raw.size,
        nearest_far=float(far.min()) if far.size else 0.0,
    )


def suspicious_depth(files: Sequence[DepthNumbers], form: DepthFormat) -> Iterator[str]:
    """Yield what looks wrong in depth files, with the line of depth.yaml that declares it."""
    constant = [file for file in files if file.low == file.high and file.known > 0.5]
    if constant:
        names = _listed([f"{file.name} ({file.high:.9g})" for file in constant], "depth map")
        yield f"one number fills {names}; leave such samples out, or declare it: {form.declaring(constant[0].high)}"
    if zeros := [file for file in files if file.zero]:
        share = sum(file.zero for file in zeros) / len(zeros)
        names = _listed([file.name for file in zeros], "depth map")
        line = form.declaring(0)
        yield f"{names}: {100 * share:.3g} % of the pixels hold 0, which is no depth; write in depth.yaml {line}"
    saturated: dict[float, list[DepthNumbers]] = defaultdict(list)
    for file in files:
        if file.low < file.high and (file.limit or (file.peak >= PEAK and file.peak >= 10 * file.next)):
            saturated[file.high].append(file)
    for number, found in list(saturated.items()):
        share, bits = sum(file.peak for file in found) / len(found), found[0].limit
        exact = bits is not None and bits > 8 and form.kind == "metric"  # no depth ends there by chance
        least = 0 if exact else SATURATED if bits else PEAK
        if share < least or (not bits and len(found) < min(3, len(files))):
            del saturated[number]
            continue
        largest = f"the largest number of {bits} bits" if bits else "the largest number of each"
        far = f"; if infinitely far, infinite: [{number:.9g}]" if form.kind == "metric" else ""
        yield (
            f"{_listed([file.name for file in found], 'depth map')}: {100 * share:.3g} % of the pixels hold "
            f"{number:.9g}, {largest}; if it means unknown, write in depth.yaml {form.declaring(number)}{far}"
        )
    if form.kind != "metric" or not files:
        return
    scale = form.scale or 1
    middle = float(np.median([file.median for file in files])) / scale
    if not MEDIANS[0] <= middle <= MEDIANS[1]:
        factor = 10.0 ** round(np.log10(middle / 3))
        yield (
            f"the median of the known depth is {middle:.3g} m in {len(files)} depth maps, such as {files[0].name}; if "
            f"the scale is wrong, write in depth.yaml for instance scale: {scale * factor:g}, which makes it "
            f"{middle / factor:.3g} m"
        )
    elif far_files := [file for file in files if file.far and file.high not in saturated]:
        low, high = min(file.nearest_far for file in far_files), max(file.high for file in far_files)
        share = sum(file.far for file in far_files) / len(far_files)
        yield (
            f"{_listed([file.name for file in far_files], 'depth map')}: {100 * share:.3g} % of the pixels lie beyond "
            f"{FARTHEST:g} m, up to {high / scale:.4g} m; if they are unknown, write in depth.yaml "
            f"{form.declaring(low, high)}"
        )


def _of_segments(seen: Sequence[tuple[str, int, int, int]], source: FileSource) -> Iterator[str]:
    """Yield what is allowed in segments and still should be known, with its number."""
    if empty := [name for name, count, _, _ in seen if not count]:
        yield f"{_listed(empty)} without annotations; they count as images without objects"
    if crowds := sum(crowd for _, _, crowd, _ in seen):
        first = next(name for name, _, crowd, _ in seen if crowd)
        yield f"{crowds} crowd regions, such as in {first}; they are neither learnt nor counted as missed"
    if thin := sum(lost for *_, lost in seen):
        first = next(name for name, *_, lost in seen if lost)
        yield f"{thin} polygons are thinner than a pixel, such as in {first}; they are left out"
    if seen and source.things and not any(source.things):
        yield "none of the classes is a thing; there are no objects to find"


def spread(length: int, limit: int | None) -> list[int]:
    """Return at most `limit` of `length` indices, evenly spread, the first and the last among them."""
    count = length if limit is None else min(limit, length)
    return np.linspace(0, length - 1, count).round().astype(int).tolist()


def _problems(source: FileSource, index: int, seen: Seen) -> Iterator[str]:
    name, shape, reading = source.images[index], None, source.reading
    try:
        if large_image(source, index) is not None:
            surveyed(source).read(index)  # one window of it and of its targets
            return
    except (ImageError, DataError) as error:
        yield str(error)
        return
    try:
        if reading == PHOTOGRAPHS:
            shape = read_image(name).shape[:2]
        else:
            values = read_channels(name, reading)
            shape = values.shape[:2]
            if values.dtype.kind == "f" and (lost := float(np.isnan(values).mean())):
                seen.unknown.append((name, lost))
                counted_nan.add(name)  # so that no process reports it once more
            if values.dtype.kind == "f" and not np.isfinite(values).any():
                yield f"{name} holds no number that is finite; leave it out"
    except ImageError as error:
        yield str(error)
    readers: tuple[tuple[str, Callable[[int], NDArray[Any] | None]], ...] = (
        ("mask", source.labels),
        ("depth map", partial(_depth, source, seen)),
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
        if what == "mask":
            labels = np.flatnonzero(np.bincount(target.ravel(), minlength=IGNORE + 1)[:IGNORE])
            seen.masks.append((name, int(labels[0]) if len(labels) == 1 else None))
            if not len(labels):
                yield f"the mask of {name} is ignored everywhere; leave the sample out"
        if what == "depth map" and not np.isfinite(target).any():
            yield f"the depth map of {name} has no known depth anywhere; leave the sample out"
    if shape and source.segments is not None and source.segments[index]:
        try:
            segments = source.segments_of(index, (shape[0], shape[1]))
        except (ImageError, DataError) as error:
            yield str(error)
        else:
            assert segments is not None and source.segment_format is not None
            count, kind = len(segments.classes), source.segment_format.kind
            listed = len(json.loads(source.segments[index])) - 1 if kind == "coco" else count
            seen.segments.append((name, count, int(segments.crowd.sum()), listed - count))
    if shape and source.crop and (shape[0] < source.crop[0] or shape[1] < source.crop[1]):
        yield f"{name} has {shape[0]}x{shape[1]} pixels, less than the crop {source.crop[0]}x{source.crop[1]}"


def _depth(source: FileSource, seen: Seen, index: int) -> NDArray[np.float32] | None:
    """Return the depth map and note its numbers."""
    path, form = source.depths[index] if source.depths is not None else "", source.depth_format
    if not path or form is None:
        return None
    raw, form = stored_depth(path, form)
    depth = form.depth(raw, path)
    if numbers := depth_numbers(path, raw, form):
        seen.depths.append(numbers)
    return depth


def header_sizes(source: LabelledSource, *, limit: int | None = None, workers: int = 8) -> dict[tuple[int, int], str]:
    """Return the sizes (height, width) in the headers of images, each with an example; empty if they are cropped."""
    if not isinstance(source, FileSource) or source.crop:
        return {}
    names = [source.images[index] for index in spread(len(source), limit)]
    with ThreadPoolExecutor(workers) as pool:
        return {size: name for name, size in zip(names, pool.map(image_size, names), strict=True) if size}


def check_one_size(
    source: LabelledSource, resize: int | tuple[int, int] | None = None, *, limit: int | None = None
) -> list[str]:
    """Return why the images of a source form no batch: their sizes differ after `resize`."""
    from dense.data.transforms import new_size  # which imports this package

    examples = {new_size(resize, *size): (size, name) for size, name in header_sizes(source, limit=limit).items()}
    if len(examples) < 2:
        return []
    first, second = (f"{name} ({w}x{h})" for (h, w), name in list(examples.values())[:2])
    return [
        f"images of {len(examples)} sizes, such as {first} and {second}, form no batch; set data.crop_size, or "
        "data.batch_size to 1"
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


def _listed(words: list[str], what: str = "image") -> str:
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return f"{len(words)} {what}{'s' * (len(words) > 1)}: {', '.join(words[:SHOWN])}{more}"


def neighbours(train: LabelledSource, val: LabelledSource) -> str | None:
    """Return a warning if successive names, such as frame-000012 and frame-000013, are on both sides of a random split.

    Names that differ in their last number are successive if it differs by 1, or by the step that most of them have.
    """
    if not isinstance(train, FileSource) or not isinstance(val, FileSource) or not val.whole or val.split_by:
        return None
    series: dict[tuple[str, str], list[tuple[int, bool, str]]] = defaultdict(list)
    for source, held in ((train, False), (val, True)):
        for name in source.images:
            if match := re.fullmatch(r"(.*?)(\d+)(\D*)", name.rpartition(".")[0]):
                series[match[1], match[3]].append((int(match[2]), held, name))
    pairs = []
    for images in series.values():
        images.sort()
        steps = [b[0] - a[0] for a, b in pairwise(images)]
        common, count = Counter(steps).most_common(1)[0] if steps else (1, 0)
        near = {1, common} if 2 * count > len(steps) and count > 1 else {1}
        pairs += [(a[2], b[2]) for a, b in pairwise(images) if a[1] != b[1] and b[0] - a[0] in near]
    if not pairs:
        return None
    return (
        f"{len(pairs)} pairs of successive names, such as {pairs[0][0]} and {Path(pairs[0][1]).name}, lie on both "
        "sides of the random split into train and val. If they are frames of one video or views of one scene, "
        "validation is too optimistic: keep groups together with data.split_by, a regular expression that finds the "
        "group in a name, or make a folder val/"
    )


def check_all(
    sources: dict[str, LabelledSource],
    *,
    limit: int | None = None,
    workers: int = 8,
    progress: Callable[[str, int, int], object] | None = None,
) -> None:
    """Raise `DataError` with the problems of all splits, by name, and of `train` and `val` together; print warnings."""
    problems: list[str] = []
    warnings: list[str] = []
    reported: set[str] = set()
    for split, source in sources.items():
        suspicions: list[str] = []
        found = check(
            source, limit=limit, workers=workers, progress=progress and partial(progress, split), warnings=suspicions
        )
        warnings += [f"{split}: {line}" for line in suspicions]
        problems += [f"{split}: {line}" for line in found if line not in reported]  # splits share unpaired files
        reported.update(found)
    if "train" in sources and "val" in sources:
        problems += check_overlap(sources["train"], sources["val"])
        warnings += filter(None, [neighbours(sources["train"], sources["val"])])
    for line in warnings:
        warn(line)
    if problems:
        raise DataError(*problems)
