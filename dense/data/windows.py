"""Random windows of images that are too large to be read whole, for training: labelled and unlabelled."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dense.console import warn
from dense.data.image import ImageError, read_image
from dense.data.labelled.files import FileSource, image_size
from dense.data.labelled.reading import read_mask
from dense.data.labelled.sample import IGNORE, DataError, Identity, Labelled, LabelledSource, Progress, Segments
from dense.data.large import LARGE, Box, NotWindowed, Windows, is_empty, open_if_large, open_large, open_windows
from dense.data.levels import PHOTOGRAPHS, Reading
from dense.data.unlabelled import Images
from heads.features import Size

SURVEYED = 1024  # side of windows from which options are chosen
NOTHING = np.empty((0, 0, 3), np.uint8)  # an image that is not needed beside its targets
reported_whole: list[str] = []  # the target of a large image whose whole reading was reported, once per process
DAMAGED = "damaged_tiles.jsonl"  # in the folder of a run
TRIES = 8  # windows that are drawn at most to find one that is not empty


def windows_of(path: str, reading: Reading = PHOTOGRAPHS) -> Windows | None:
    """Return the windows of a file; None for a file that is read whole."""
    try:
        return open_windows(path, reading)
    except NotWindowed:
        return None


def size_of(path: str, windows: Windows | None) -> Size:
    """Return height and width of an image without reading its pixels; windows: of the file, see `windows_of`."""
    size = image_size(path) if windows is None else windows.image.shape[:2]
    if size is None:
        raise ImageError(f"{path} is damaged or not an image of a known format")
    return size


def random_window(
    path: str, windows: Windows | None, size: Size, key: tuple[int, ...], reading: Reading = PHOTOGRAPHS
) -> tuple[Box, NDArray[np.uint8]]:
    """Return a random window of an image and its pixels, a function of `key`; smaller where the image is.

    Up to `TRIES` windows are drawn until one shows more than background, see `is_empty`; else the last is returned.

    windows: of the file; None for one that is read whole
    """
    image = read_image(path, reading=reading) if windows is None else windows
    height, width = image.shape[:2]
    tall, wide = min(size[0], height), min(size[1], width)
    generator = np.random.default_rng(key)
    for _ in range(TRIES):
        top, left = (int(generator.integers(0, room + 1)) for room in (height - tall, width - wide))
        if isinstance(image, Windows):
            pixels = image.read(top, left, tall, wide)
        else:
            pixels = np.ascontiguousarray(image[top : top + tall, left : left + wide])
        if not is_empty(pixels):
            break
    return (top, left, tall, wide), pixels


class DamagedTiles:
    """The damaged tiles that the processes of a run met, each with its file and its place, in one file of JSON lines.

    Every process, of a loader or of a distributed run, appends what it meets; nothing is noted before `begin`.
    """

    SHOWN = 8

    def __init__(self) -> None:
        self.path: Path | None = None
        self._noted: set[str] = set()  # by this process

    def begin(self, path: Path, empty: bool) -> None:
        """Note tiles in a file from now on; empty: without those of an earlier run."""
        self.path = path
        if empty:
            path.unlink(missing_ok=True)

    def note(self, files: Iterable[Windows]) -> None:
        """Note the damaged tiles of files that were read so far."""
        if self.path is None:
            return
        tiles = {(str(image.path), *box) for one in files for image in one.images for box in image.damaged.values()}
        lines = {json.dumps(tile) + "\n" for tile in tiles} - self._noted
        if lines:
            self._noted |= lines
            with self.path.open("a") as file:
                file.write("".join(sorted(lines)))

    def report(self) -> str:
        """Return a line with the number of tiles and their files; empty if there are none."""
        if self.path is None or not self.path.is_file():
            return ""
        tiles = set(self.path.read_text().splitlines())
        files = sorted({json.loads(tile)[0] for tile in tiles})
        more = f" and {len(files) - self.SHOWN} more" if len(files) > self.SHOWN else ""
        return (
            f"{len(tiles)} damaged tiles, whose pixels were masked, in {len(files)} files: "
            f"{', '.join(files[: self.SHOWN])}{more}; {self.path} lists their places"
        )


@dataclass(frozen=True)
class WindowImages:
    """``images.read(index, epoch)``: one of `count` random windows of each unlabelled image, in every epoch others."""

    images: Images
    count: int
    size: Size
    seed: int = 0
    damaged: DamagedTiles = field(default_factory=DamagedTiles, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_count(self.count)

    def __len__(self) -> int:
        return self.count * len(self.images)

    @property
    def labels(self) -> NDArray[np.int64] | None:
        return None if self.images.labels is None else np.repeat(self.images.labels, self.count)

    def name(self, index: int) -> str:
        return self.images.name(index // self.count)

    def read(self, index: int, epoch: int = 0) -> NDArray[np.uint8]:
        path, reading = self.name(index), getattr(self.images, "reading", PHOTOGRAPHS)
        windows = windows_of(path, reading)
        pixels = random_window(path, windows, self.size, (self.seed, epoch, index), reading)[1]
        self.damaged.note([windows] if windows is not None else [])
        return pixels


def large_image(source: LabelledSource, number: int) -> Windows | None:
    """Return the windows of an image of more than `LARGE` megapixels; None of one that is read whole."""
    if not isinstance(source, FileSource) or source.crop is not None:
        return None
    return open_if_large(source.images[number], source.reading, LARGE)


class Targets:
    """What is known of one labelled image, read in windows; a target whose file is not windowed is read once, whole.

    Of a mask, a depth map, a clean image or a map of objects only the tiles that a window needs are decoded, of objects
    in a JSON file those that reach into it.
    """

    def __init__(self, source: FileSource, number: int) -> None:
        self.source, self.number, self.path = source, number, source.images[number]
        self.windows = windows_of(self.path, source.reading)
        self.size = size_of(self.path, self.windows)
        self._files: dict[str, Windows | NDArray[Any]] = {}  # arrays of files that are read whole
        source.check_complete(number)
        for what in ("mask", "depth map", "clean image", "instance map"):
            if path := source.target(number, what):
                self._files[what] = self._opened(what, path)

    def _opened(self, what: str, path: str) -> Windows | NDArray[Any]:
        """Return a target, whose whole must have the size of its image."""
        source = self.source
        try:
            found: Any = open_windows(path, source.reading) if what == "clean image" else Windows([open_large(path)])
        except NotWindowed as reason:
            if self.size[0] * self.size[1] > 1e6 * LARGE and not reported_whole:
                reported_whole.append(path)
                warn(f"{reason}; it is read whole for each window, as others of this kind")
            readers: dict[str, Callable[[], Any]] = {
                "mask": lambda: source.labels(self.number), "depth map": lambda: source.depth(self.number),
                "clean image": lambda: source.clean_image(self.number), "instance map": lambda: read_mask(path),
            }  # fmt: skip
            found = readers[what]()
        if problem := source.mismatch(self.number, what, found.shape[:2], self.size):
            raise DataError(problem)
        return found

    @property
    def in_windows(self) -> list[Windows]:
        """The image and its targets, those that are read in windows."""
        return [file for file in (self.windows, *self._files.values()) if isinstance(file, Windows)]

    @property
    def damaged(self) -> list[Box]:
        """The boxes of their damaged tiles that were read so far."""
        return sorted({box for file in self.in_windows for box in file.damaged})

    def read(self, box: Box, image: NDArray[np.uint8] = NOTHING) -> Labelled:
        """Return the targets of a window beside its pixels, which are read before; unknown where tiles are damaged."""
        top, left = box[:2]
        found = {what: self._target(what, box) for what in self._files if what != "instance map"}
        labels, depth = found.get("mask"), found.get("depth map")
        segments = self._segments(box, labels)
        for y, x, tall, wide in self.damaged:  # nothing is known there
            within = (slice(max(y - top, 0), max(y + tall - top, 0)), slice(max(x - left, 0), max(x + wide - left, 0)))
            for values, unknown in ((labels, IGNORE), (depth, np.nan), (segments and segments.valid, False)):
                if values is not None:
                    values[within] = unknown
        return Labelled(image, labels, depth, self.path, found.get("clean image"), segments)

    def shrunk(self, size: Size) -> Labelled:
        """Return the image at a size, and its labels and depth by nearest neighbour, as `resize_sample` does."""
        assert self.windows is not None
        image = self.windows.shrunk(size)
        rows, columns = (
            ((np.arange(new) + 0.5) * (old / new)).astype(int) for old, new in zip(self.size, size, strict=True)
        )
        lines = [self.read((row, 0, 1, self.size[1])) for row in rows.tolist()]
        labels = [line.labels[0, columns] for line in lines if line.labels is not None]
        depth = [line.depth[0, columns] for line in lines if line.depth is not None]
        return Labelled(image, np.stack(labels) if labels else None, np.stack(depth) if depth else None, self.path)

    def _target(self, what: str, box: Box) -> NDArray[Any]:
        """Return a window of a target: of a mask and a depth map their meaning, of a map of objects what it stores."""
        top, left, height, width = box
        file, source = self._files[what], self.source
        if not isinstance(file, Windows):
            return np.array(file[top : top + height, left : left + width])
        if what == "clean image":
            return file.read(*box)
        image = file.image
        raw = image.read(*box)
        raw = raw[..., 0] if raw.shape[2] == 1 or what == "depth map" else raw[..., :3]
        if what == "mask":
            assert source.label_format is not None
            form = source.label_format.knowing(image.nodata)
            colours = image.colours if form.by_colour else None
            return form.labels(raw if colours is None else colours[raw], str(image.path))
        if what == "depth map":
            assert source.depth_format is not None
            return source.depth_format.knowing(image.nodata).depth(raw, str(image.path))
        return raw

    def _segments(self, box: Box, labels: NDArray[np.uint8] | None) -> Segments | None:
        """Return the segments that reach into a window."""
        form = self.source.segment_format
        entry = self.source.segments[self.number] if self.source.segments is not None else ""
        if not entry or form is None:
            return None
        part = self._target("instance map", box) if "instance map" in self._files else None
        found = form.read(entry, self.size, labels, self.path, box, part)
        return found.take(found.masks.flatten(1).any(1))


@dataclass(frozen=True)
class WindowSource:
    """``source.read(index, epoch)``: one of `count` random windows of each labelled image, in every epoch others.

    A window is a pure function of (seed, epoch, index). Of the image and its targets only the tiles that the window
    needs are read; files that are not windowed are read whole and cut.
    """

    source: FileSource
    count: int
    size: Size
    seed: int = 0
    damaged: DamagedTiles = field(default_factory=DamagedTiles, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_count(self.count)
        if self.source.crop is not None:
            raise ValueError("data.windows and data.kb_crop are two ways to cut images; leave one out")

    def __getattr__(self, name: str) -> Any:
        """Return what the source knows of its images: classes, kind of depth, focal length, kinds, ..."""
        if name.startswith("__") or name == "source":
            raise AttributeError(name)
        return getattr(self.source, name)

    def __len__(self) -> int:
        return self.count * len(self.source)

    def name(self, index: int) -> str:
        return self.source.name(index // self.count)

    def identity(self, index: int) -> Identity:
        name, version = self.source.identity(index // self.count)
        return Identity(f"{name}, window {index % self.count} of {self.size}, seed {self.seed}", version)

    def read(self, index: int, epoch: int = 0) -> Labelled:
        targets = Targets(self.source, index // self.count)
        key = (self.seed, epoch, index)
        window = targets.read(*random_window(targets.path, targets.windows, self.size, key, self.source.reading))
        self.damaged.note(targets.in_windows)
        return window

    def check(self, limit: int | None = None, progress: Progress | None = None) -> Iterator[str]:
        """Yield the problems of the images, of each of which one window is read."""
        yield from self.source.problems
        count = len(self.source) if limit is None else min(limit, len(self.source))
        for done, number in enumerate(np.linspace(0, len(self.source) - 1, count).round().astype(int).tolist(), 1):
            try:
                self.read(number * self.count)
            except (ImageError, DataError) as error:
                yield str(error)
            if progress is not None:
                progress(done, count)


def surveyed(source: LabelledSource) -> LabelledSource:
    """Return one window of each image, from which a training chooses its options."""
    return WindowSource(source, 1, (SURVEYED, SURVEYED)) if isinstance(source, FileSource) else source


def check_count(count: int) -> None:
    if count < 1:
        raise ValueError(f"data.windows={count}: expected at least 1 window per image, or null for whole images")


def read_in_epoch(source: LabelledSource, index: int, epoch: int) -> Labelled:
    """Return a sample of a source, which of windows depends on the epoch."""
    return source.read(index, epoch) if isinstance(source, WindowSource) else source.read(index)
