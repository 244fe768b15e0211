"""Windows of images that do not fit into memory: TIFF in tiles or strips, and .npy by memory map."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dense.data.levels import FILL, PHOTOGRAPHS, ImageError, Reading, quantiles, white_of
from dense.data.values import (
    EXPECTED,
    KINDS,
    TIFFS,
    Stored,
    array_of_channels,
    channel_files,
    chosen_channels,
    lacks_channel,
    names_of,
    needs_codecs,
    nodata_of,
    read_channels,
    with_nan,
)

LARGE = 100.0  # megapixels above which an image is read in windows where its file allows it
CACHED = 128_000_000  # bytes of decoded tiles that are kept per image
CHUNK = 64_000_000  # pixels above which one compressed strip or tile is too large to be decoded for a window
BAND = 64_000_000  # bytes of an image that are read at once to shrink it
SAMPLE, SAMPLES = 128, 4  # side of windows from which levels are taken, and how many in a row and a column
Box = tuple[int, int, int, int]  # top, left, height, width


class NotWindowed(ImageError):
    """A file of which no part can be read without the rest."""


class LargeImage:
    """The raw values of an image, of which `read` decodes only the tiles or strips that a window needs.

    Pages of one channel each, planes and samples of a pixel are channels alike; of a pyramid, level 0 is read. A tile
    that is damaged or missing has the number that means unknown, or else zeros; damaged ones are listed in `damaged`.
    Any number of processes may share the file.
    """

    colours: NDArray[np.uint8] | None = None  # of a palette (N, 3)

    alpha = False  # the last channel is opacity
    names: tuple[str, ...] = ()  # of the channels, where the file has some
    nodata: float | None = None  # the number that means unknown

    def __init__(self, path: str | Path, channels: int | None = None) -> None:
        self.path = Path(path)
        self.damaged: dict[tuple[int, int], Box] = {}  # by page and number of the tile
        self._cache: OrderedDict[tuple[int, int], NDArray[Any] | None] = OrderedDict()
        self._maps: list[NDArray[Any]] = []  # of whole pages that are not compressed
        self._pages: list[Any] = []
        suffix = self.path.suffix.lower()
        if not self.path.is_file():
            raise ImageError(f"no such image: {self.path}")
        if suffix == ".npy":
            self._open_array(channels)
        elif suffix in TIFFS:
            self._open_tiff()
        else:
            raise NotWindowed(f"{self.path} is not windowed: only TIFF and .npy are read in parts")

    def _open_array(self, channels: int | None) -> None:
        try:
            array = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except Exception as error:
            raise ImageError(f"{self.path} is damaged or holds no plain array ({error})") from None
        if 0 in array.shape:
            raise ImageError(f"{self.path} holds no pixels: {array.shape}")
        self._check(array.dtype)
        array = array_of_channels(array, str(self.path), channels)
        (self.height, self.width, self.channels), self.dtype = array.shape, array.dtype
        self._maps, self.first = [array], self.channels

    def _open_tiff(self) -> None:
        try:
            import tifffile
        except ImportError:
            raise NotWindowed(f"{self.path}: reading parts of a TIFF needs tifffile; pip install tifffile") from None
        try:
            with tifffile.TiffFile(self.path) as file:
                alike = len(file.series) > 1 and len({(one.shape, one.dtype) for one in file.series}) == 1
                levels = [one.levels[0] for one in (file.series if alike else file.series[:1])]
                self._pages = [page.aspage() for level in levels for page in level.pages if page is not None]
                for one in self._pages:  # what is read lazily
                    _ = one.dataoffsets, one.databytecounts, one.jpegtables, one.decode, one.colormap
                self.names = names_of(file)
        except Exception as error:  # readers raise nearly anything on damaged bytes
            raise ImageError(f"{self.path} is damaged or truncated ({error or type(error).__name__})") from None
        page: Any = self._pages[0]
        level = levels[0]
        others = [axis for axis, n in zip(level.axes, level.shape, strict=True) if axis not in "YX" and n > 1]
        planes = prod(n for axis, n in zip(level.axes, level.shape, strict=True) if axis not in "YX") * len(levels)
        reason = self._why_whole(page, others + ["series"] * alike, tifffile)
        if not reason and planes != page.samplesperpixel * len(self._pages):
            reason = "its planes have no pages of their own"
        if reason:
            raise NotWindowed(f"{self.path} is not windowed: {reason}")
        self.height, self.width = page.imagelength, page.imagewidth
        self.colours = None if page.colormap is None else (page.colormap.T >> 8).astype(np.uint8)
        self._check(page.dtype)
        self.first, self.dtype, self.nodata = page.samplesperpixel, page.dtype, nodata_of(page)
        self.channels = self.first * len(self._pages)
        alpha = bool(page.extrasamples) and any(int(extra) in (1, 2) for extra in page.extrasamples)
        self.alpha = alpha and self.channels in (2, 4)
        self.names = self.names if len(self.names) == self.channels else ()
        if all(one.is_contiguous for one in self._pages) and page.dtype.itemsize * 8 == page.bitspersample:
            kind = page.dtype.newbyteorder(page.parent.byteorder)
            planar = page.planarconfig == 2 and self.first > 1
            shape = (self.first, self.height, self.width) if planar else (self.height, self.width, self.first)
            for one in self._pages:
                try:
                    array = np.memmap(self.path, kind, "r", one.dataoffsets[0], shape)
                except ValueError:
                    raise ImageError(f"{self.path} is truncated") from None
                self._maps.append(np.moveaxis(array, 0, -1) if planar else array)
        elif (some := next((index for index, count in enumerate(page.databytecounts) if count), None)) is not None:
            self._decoded(0, some)  # raises without the codec
            self.damaged.clear()

    def _check(self, dtype: np.dtype[Any]) -> None:
        if dtype.kind not in KINDS:
            raise ImageError(f"{self.path} holds {dtype}, {EXPECTED}")

    def _why_whole(self, page: Any, others: Sequence[str], tifffile: Any) -> str | None:
        """Return why a TIFF is read whole, if it is."""
        if len(others) > 1:
            return f"it has the axes {', '.join(others)} besides rows and columns"
        if (turned := page.tags.valueof("Orientation", 1)) != 1:
            return f"it is turned by its tag (orientation {turned})"
        if page.photometric == 0:
            return "its 0 is white"
        if page.photometric == 5:
            return "its colours are those of inks"
        try:
            tifffile.TIFF.DECOMPRESSORS[page.compression]
            tifffile.TIFF.UNPREDICTORS[page.predictor]
        except KeyError:
            return needs_codecs(page)
        if page.bitspersample not in (1, 8, 16, 32, 64):
            return f"its numbers of {page.bitspersample} bits are packed"
        tall = page.tilelength if page.is_tiled else min(page.rowsperstrip, page.imagelength)
        wide = page.tilewidth if page.is_tiled else page.imagewidth
        if not page.is_contiguous and tall * wide > CHUNK:
            return (
                f"it is compressed in one piece of {tall}x{wide} pixels; write it in tiles, for instance "
                "tifffile.imwrite(NEW, image, tile=(512, 512), compression='zlib')"
            )
        return None

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[Any]:
        """Return the raw values (h, w, C) of a window inside of the image."""
        if top < 0 or left < 0 or top + height > self.height or left + width > self.width:
            raise ValueError(
                f"window {(top, left, height, width)} of {self.path}, which has {self.height}x{self.width} pixels"
            )
        if self._maps:
            parts = [array[top : top + height, left : left + width] for array in self._maps]
            return np.concatenate(parts, axis=2).astype(self.dtype, copy=False)
        result = np.full((height, width, self.channels), self._pages[0].nodata, self.dtype)
        for page in range(len(self._pages)):
            self._read_page(page, (top, left), result[..., page * self.first : (page + 1) * self.first])
        return result

    def _read_page(self, number: int, corner: tuple[int, int], result: NDArray[Any]) -> None:
        page = self._pages[number]
        tall, wide = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        tall = min(tall, self.height)
        down, across = -(-self.height // tall), -(-self.width // wide)
        planes = page.samplesperpixel if page.planarconfig == 2 and page.samplesperpixel > 1 else 1
        (top, left), (height, width) = corner, result.shape[:2]
        for plane in range(planes):
            into = result[..., plane : plane + 1] if planes > 1 else result
            for row in range(top // tall, -(-(top + height) // tall)):
                for column in range(left // wide, -(-(left + width) // wide)):
                    tile = self._tile(number, (plane * down + row) * across + column)
                    if tile is None:
                        continue
                    y, x = row * tall, column * wide
                    y0, y1 = max(y, top), min(y + tile.shape[0], top + height)
                    x0, x1 = max(x, left), min(x + tile.shape[1], left + width)
                    into[y0 - top : y1 - top, x0 - left : x1 - left] = tile[y0 - y : y1 - y, x0 - x : x1 - x]

    def _tile(self, page: int, number: int) -> NDArray[Any] | None:
        """Return a decoded tile or strip (h, w, samples); None for one that is not stored or damaged."""
        key = (page, number)
        if key not in self._cache:
            self._cache[key] = self._decoded(page, number)
            size = sum(tile.nbytes for tile in self._cache.values() if tile is not None)
            while size > CACHED and len(self._cache) > 1:
                _, tile = self._cache.popitem(last=False)
                size -= 0 if tile is None else tile.nbytes
        self._cache.move_to_end(key)
        return self._cache[key]

    def _decoded(self, number: int, index: int) -> NDArray[Any] | None:
        page: Any = self._pages[number]
        offset, count = page.dataoffsets[index], page.databytecounts[index]
        if not count:
            return None  # a sparse file leaves out empty tiles
        try:
            with self.path.open("rb") as file:
                data = os.pread(file.fileno(), count, offset)
            if len(data) < count:
                raise EOFError(f"{len(data)} of {count} bytes")
            tile: Any
            tile, _, shape = page.decode(data, index, jpegtables=page.jpegtables)
            return np.asarray(tile[0, : shape[1], : shape[2]])
        except ImportError:
            raise NotWindowed(f"{self.path} is not windowed: {needs_codecs(page)}") from None
        except Exception:
            self.damaged[number, index] = self._box(page, index)
            return None

    def _box(self, page: Any, index: int) -> Box:
        tall, wide = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        tall = min(tall, self.height)
        down, across = -(-self.height // tall), -(-self.width // wide)
        row, column = divmod(index % (down * across), across)
        top, left = row * tall, column * wide
        return top, left, min(tall, self.height - top), min(wide, self.width - left)


def open_large(path: str | Path, channels: int | None = None) -> LargeImage:
    """Return an image of which windows are read; raise `NotWindowed` for a file that is read whole or not at all.

    One that was opened before is returned if its file has not changed since. channels: their number, where only it
    tells rows from channels
    """
    try:
        status = Path(path).stat()
    except OSError:
        raise ImageError(f"no such image: {path}") from None
    return _opened(str(path), status.st_size, status.st_mtime_ns, channels)


@lru_cache(4)
def _opened(path: str, size: int, time: int, channels: int | None) -> LargeImage:
    return LargeImage(path, channels)


def open_windows(path: str | Path, reading: Reading = PHOTOGRAPHS) -> Windows:
    """Return an image as the network sees it, of which windows are read; raise `NotWindowed` where none can be.

    Several files with a channel each are one image, as `read_image` reads them.
    """
    files = channel_files(path, reading)
    missing = [file for file in files if not file.is_file()]
    one = [] if files and not missing else [open_large(path, reading.count)]
    windows = Windows(one or [open_large(file) for file in files], reading)
    if missing and windows.image.channels != reading.count:
        raise ImageError(lacks_channel(path, missing[0]))
    windows.check_channels()
    return windows


def open_if_large(path: str | Path, reading: Reading = PHOTOGRAPHS, large: float = LARGE) -> Windows | None:
    """Return the windows of an image of more than `large` megapixels; None of a smaller one, or of one read whole."""
    try:
        windows = open_windows(path, reading)
    except NotWindowed:
        return None
    return windows if windows.shape[0] * windows.shape[1] > 1e6 * large else None


def numbers_of(path: str | Path, reading: Reading) -> NDArray[Any]:
    """Return the numbers (H, W, C) of an image; of a large one those of some places."""
    windows = open_if_large(path, reading)
    return read_channels(path, reading) if windows is None else windows.numbers()


class Windows:
    """A large image as the network sees it, (H, W, C) uint8, of which `read` and slices return parts.

    ``windows.pixels(device)[:, top:bottom, left:right]`` is a tensor (C, h, w). Where a tile is damaged, the network
    sees a neutral colour; `damaged` lists the boxes of such tiles that were read so far. Levels that a reading takes
    from the image come from windows spread over it.

    images: one with all channels, or one per channel
    """

    def __init__(self, images: Sequence[LargeImage], reading: Reading = PHOTOGRAPHS) -> None:
        self.images, self._reading = images, reading
        if len(sizes := {image.shape[:2] for image in images}) > 1:
            raise ImageError(f"the channels of {images[0].path} have several sizes (height, width): {sorted(sizes)}")

    @property
    def image(self) -> LargeImage:
        return self.images[0]

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.image.height, self.image.width, self._reading.count

    @property
    def damaged(self) -> list[Box]:
        return sorted({box for image in self.images for box in image.damaged.values()})

    @cached_property
    def reading(self) -> Reading:
        """The reading with black and white, where it is the image that decides them."""
        floats = self.image.dtype.kind == "f" or self.image.nodata is not None
        if not self._reading.per_image and (self._reading.white or not floats):
            return self._reading
        some = self.numbers().reshape(-1, self._reading.count)
        if some.dtype.kind != "f" and not self._reading.per_image:
            return self._reading
        if not self._reading.per_image:
            return replace(self._reading, black=(0.0,), white=(white_of(some),))
        limits = [quantiles(some[:, channel]) for channel in range(some.shape[1])]
        black, white = (tuple(side) for side in zip(*limits, strict=True))
        return replace(self._reading, per_image=False, black=black, white=white)

    def numbers(self) -> NDArray[Any]:
        """Return the numbers (h, w, C) of windows at fixed places spread over the image, one below the other."""
        tall, wide = min(SAMPLE, self.image.height), min(SAMPLE, self.image.width)
        places = [
            (int(row * (self.image.height - tall)), int(column * (self.image.width - wide)))
            for row in np.linspace(0, 1, SAMPLES) for column in np.linspace(0, 1, SAMPLES)
        ]  # fmt: skip
        return np.concatenate([self._values(*place, tall, wide) for place in places])

    def _values(self, top: int, left: int, height: int, width: int) -> NDArray[Any]:
        """Return the numbers (h, w, C) of the channels that the reading names."""
        return self._chosen([image.read(top, left, height, width) for image in self.images])

    def _chosen(self, raw: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Return the channels that the reading names, of the raw values of each file."""
        reading = self._reading
        if len(self.images) > 1:
            parts = zip(self.images, raw, reading.channels, strict=True)
            return np.concatenate([_channels(image, some, Reading((one,))) for image, some, one in parts], axis=2)
        values = _channels(self.image, raw[0], reading)
        return np.repeat(values, 3, axis=2) if reading.colours and values.shape[2] == 1 else values

    def check_channels(self) -> None:
        """Raise where the files have other channels than the reading, as far as their headers tell."""
        blanks = []
        for image in self.images:
            opaque = 1 if image.dtype.kind in "bf" else np.iinfo(image.dtype).max
            blanks.append(np.full((1, 1, image.channels), 0 if image.colours is not None else opaque, image.dtype))
        self._chosen(blanks)

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        """Return the pixels (h, w, C) of a window."""
        result = self.reading.to_bytes(self._values(top, left, height, width), str(self.image.path))
        for y, x, tall, wide in self.damaged:
            part = result[max(y - top, 0) : max(y + tall - top, 0), max(x - left, 0) : max(x + wide - left, 0)]
            if part.size:
                part[...] = FILL if part.shape[2] == 3 else FILL[1]
        return result

    def pixels(self, device: torch.device | str = "cpu") -> Pixels:
        """Return the image as slices of a tensor (C, H, W)."""
        return Pixels(self, device)

    def shrunk(self, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Return the image at a size (height, width), each pixel the mean of the area that it covers."""
        (height, width, channels), (tall, wide) = self.shape, size
        rows, columns = _areas(height, tall), _areas(width, wide)
        result = np.empty((tall, wide, channels), np.uint8)
        step = max(1, int(BAND / (width * channels * max(1.0, height / tall))))
        for first in range(0, tall, step):
            part = rows[first : first + step]
            begin, end = min(begin for begin, _ in part), max(begin + len(weights) for begin, weights in part)
            band = self.read(begin, 0, end - begin, width)
            lines = [np.tensordot(w, band[at - begin : at - begin + len(w)], 1) for at, w in part]  # width, C each
            means = np.stack(lines)
            for column, (at, weights) in enumerate(columns):
                cells = np.tensordot(means[:, at : at + len(weights)], weights, ((1,), (0,)))  # rows, C
                result[first : first + len(part), column] = np.clip(cells + 0.5, 0, 255)
        return result


def _areas(length: int, cells: int) -> list[tuple[int, NDArray[np.float32]]]:
    """Return for each of several equal parts of a side its first pixel and the weights of the pixels that it covers."""
    found = []
    for cell in range(cells):
        low, high = cell * length / cells, (cell + 1) * length / cells
        begin, end = int(low), min(length, int(np.ceil(high - 1e-9)))
        at = np.arange(begin, end)
        weights = np.minimum(at + 1, high) - np.maximum(at, low)
        found.append((begin, (weights / weights.sum()).astype(np.float32)))
    return found


def _channels(image: LargeImage, values: NDArray[Any], reading: Reading) -> NDArray[Any]:
    """Return the channels of raw values that a reading names."""
    name = str(image.path)
    if image.colours is not None:
        return chosen_channels(Stored(image.colours[values[..., 0]], (), False, True), reading, name)
    alpha = image.alpha and values.shape[2] == image.channels
    chosen = chosen_channels(Stored(values, image.names, alpha), reading, name)
    return chosen if reading == PHOTOGRAPHS else with_nan(chosen, image.nodata)


class Pixels:
    """Slices of a large image as a tensor (C, H, W): what `dense.model.inference.slide` needs of one."""

    def __init__(self, windows: Windows, device: torch.device | str, turned: bool = False) -> None:
        self.windows, self.device, self.turned = windows, torch.device(device), turned

    @property
    def shape(self) -> tuple[int, int, int]:
        height, width, channels = self.windows.shape
        return (channels, width, height) if self.turned else (channels, height, width)

    @property
    def mT(self) -> Pixels:
        return Pixels(self.windows, self.device, not self.turned)

    def __getitem__(self, index: tuple[slice, slice, slice]) -> Tensor:
        channels, *sides = index
        (top, bottom), (left, right) = (
            side.indices(length)[:2] for side, length in zip(sides, self.shape[1:], strict=True)
        )
        box = (left, top, right - left, bottom - top) if self.turned else (top, left, bottom - top, right - left)
        window = torch.from_numpy(np.ascontiguousarray(self.windows.read(*box).transpose(2, 0, 1)))[channels]
        return (window.mT if self.turned else window).to(self.device)


def is_empty(window: NDArray[np.uint8], share: float = 0.01, tolerance: int = 8) -> bool:
    """Return whether a window shows background alone.

    That is: less than `share` of its pixels differ from its median colour by more than `tolerance` of 255 in a channel.
    """
    small = window[::2, ::2] if window.size > 1_000_000 else window
    median = np.median(small.reshape(-1, small.shape[2]), axis=0)
    differs = (np.abs(small.astype(np.int16) - median.astype(np.int16)) > tolerance).any(axis=2)
    return float(differs.mean()) < share
