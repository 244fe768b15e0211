"""The stored numbers of an image of any format, with all their bits and channels, and images of a file per channel."""

from __future__ import annotations

import os
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from dense.data.levels import PHOTOGRAPHS, SIXTEEN_BITS, ImageError, Reading, Values

SEPARATORS = "_.-"  # before the name of a channel in the name of a file
KINDS, EXPECTED = "buif", "expected whole numbers or floating point"  # of NumPy's types
GDAL_NODATA = 42113  # TIFF's tag
TIFFS = (".tif", ".tiff", ".btf", ".svs")
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
TURNS: dict[int, Any] = {  # TIFF's orientation -> what makes rows and columns upright
    2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1], 5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1), 8: lambda a: np.rot90(a),
}  # fmt: skip


class Stored(NamedTuple):
    """What a file holds: numbers (H, W, C), the names of its channels where it has some, and what else is known."""

    values: Values
    names: tuple[str, ...] = ()
    alpha: bool = False  # the last channel is opacity
    palette: bool = False  # the colours are a palette's
    window: tuple[float, float] | None = None  # black and white that a DICOM file suggests
    nodata: float | None = None  # the number that means unknown in a GeoTIFF


def read_values(path: str | Path) -> Values:
    """Return the numbers that an image's file stores, (H, W, C) of the file's own type, unscaled; or raise ImageError.

    TIFF (tiled, planar, BigTIFF, OME, ImageJ; pages are channels), PNG of 8 and 16 bits, .npy, DICOM (needs the extra
    ``dicom``), and whatever PIL reads. Colours of a palette are given as RGB.
    """
    return stored(path).values


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open an image's file; one that is missing, a folder, or cannot be read raises `ImageError`."""
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise ImageError(f"no such image: {path}") from None
    except IsADirectoryError:
        raise ImageError(f"{path} is a folder, not an image") from None
    except OSError as error:
        raise ImageError(f"{path} cannot be read ({error})") from None


def stored(path: str | Path | IO[bytes], name: str | None = None, channels: int | None = None) -> Stored:
    """Return what a file holds; channels: their number, where only it tells rows from channels.

    path: a file, or its bytes, which errors call `name`
    """
    name = str(path) if name is None else name
    if isinstance(path, str | Path):
        with opened(Path(path)) as file:
            return stored(file, name, channels)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = _stored(path, name, channels)
    except ImageError:
        raise
    except ImportError:
        raise
    except Exception as error:  # readers raise nearly anything on damaged bytes
        raise ImageError(f"{name} is damaged or truncated ({error or type(error).__name__})") from error
    if found.values.dtype.kind not in KINDS:
        raise ImageError(f"{name} holds {found.values.dtype}, {EXPECTED}")
    if 0 in found.values.shape:
        raise ImageError(f"{name} holds no pixels: {found.values.shape}")
    return found


def _stored(file: IO[bytes], name: str, channels: int | None) -> Stored:
    start = file.read(132)
    file.seek(0)
    if not start:
        raise ImageError(f"{name} is empty (0 bytes)")
    if start.startswith(b"\x93NUMPY"):
        return _npy(file, name, channels)
    if start[:4] in TIFF:
        return _tiff(file, name)
    if start[128:] == b"DICM" or name.lower().endswith(".dcm"):
        return _dicom(file, name)
    if has_deep_colours(start) or start[:2] in (b"P5", b"P6"):
        values: Any = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
        if values is not None and values.dtype == np.uint16:
            return _deep(values.reshape(*values.shape[:2], -1), file, start)
    return _pil_again(file, name)


def has_deep_colours(start: bytes) -> bool:
    """Whether a file begins as a PNG of 16 bits with colours or opacity, of which PIL keeps 8 bits."""
    return start.startswith(b"\x89PNG") and start[24:25] == b"\x10" and start[25:26] in (b"\x02", b"\x04", b"\x06")


def _deep(values: NDArray[np.uint16], file: IO[bytes], start: bytes) -> Stored:
    """Return what OpenCV decoded, upright, as it is stored: it gives blue, green and red, also of grey with opacity."""
    grey = start.startswith(b"\x89PNG") and start[25] == 4
    values = values[..., [0, 3] if grey else [2, 1, 0, 3][: values.shape[2]] if values.shape[2] > 2 else [0]]
    file.seek(0)
    with Image.open(file) as image:
        turn = TURNS.get(image.getexif().get(274, 1)) if "exif" in image.info else None
    values = values if turn is None else turn(values)
    return Stored(np.ascontiguousarray(values), alpha=values.shape[2] in (2, 4))


def _pil(file: IO[bytes], name: str) -> Stored:
    try:
        opened = Image.open(file)
    except Image.UnidentifiedImageError:
        raise ImageError(f"{name} is not an image of a known format") from None
    with opened:
        opened.load()
        image: Image.Image = opened
        with suppress(Exception):  # where EXIF data are damaged, the pixels are intact
            image = ImageOps.exif_transpose(image)
        palette = image.mode in ("P", "PA")
        if palette or image.mode not in ("1", "L", "LA", "RGB", "RGBA", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"):
            image = image.convert("RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB")
        values = np.array(image)
        return Stored(values.reshape(*values.shape[:2], -1), (), image.mode in ("LA", "RGBA"), palette)


def _npy(file: IO[bytes], name: str, channels: int | None) -> Stored:
    try:
        values = np.load(file, allow_pickle=False)
    except ValueError as error:
        raise ImageError(f"{name} holds no plain array ({error}); nothing is unpickled") from None
    return Stored(array_of_channels(values, name, channels))


def array_of_channels(values: Values, name: str, channels: int | None) -> Values:
    """Return an array of rows, columns and channels in this order; channels: their number, if it is known."""
    if values.ndim not in (2, 3):
        raise ImageError(f"{name} holds an array {values.shape}, expected (H, W), (H, W, C) or (C, H, W)")
    if values.ndim == 2:
        return values[..., None]
    first, last = values.shape[0], values.shape[2]
    turned = (first == channels and last != channels) or (channels not in (first, last) and first < last)
    return np.moveaxis(values, 0, 2) if turned else values


def _tiff(file: IO[bytes], name: str) -> Stored:
    import tifffile

    with tifffile.TiffFile(file, name=Path(name).name) as tiff:
        page = tiff.pages.first
        if page.photometric == 3:  # a palette
            return _pil_again(file, name)
        alike = len(tiff.series) > 1 and len({(one.shape, one.dtype) for one in tiff.series}) == 1
        series = tiff.series if alike else tiff.series[:1]
        try:
            parts = [np.asarray(one.asarray()) for one in series]
        except (ImportError, ValueError) as error:
            if isinstance(error, ValueError) and "imagecodecs" not in str(error):
                raise
            parts = _by_opencv(file, name, series)
        values, axes = (np.stack(parts), f"I{series[0].axes}") if alike else (parts[0], series[0].axes)
        others = [axis for axis, length in zip(axes, values.shape, strict=True) if axis not in "YX" and length > 1]
        if len(others) > 1:
            sizes = ", ".join(f"{length} along {axis}" for axis, length in zip(axes, values.shape, strict=True))
            raise ImageError(
                f"{name} has {sizes}, and an image has rows (Y), columns (X) and channels alone; save one plane, or a "
                "projection, of each channel"
            )
        order = [axes.index("Y"), axes.index("X"), *(axes.index(axis) for axis in others)]
        rest = [place for place in range(values.ndim) if place not in order]
        values = values.transpose(*order, *rest)
        values = values.reshape(*values.shape[:2], -1)
        if page.photometric == 0 and values.dtype.kind in "ub":  # 0 is white
            values = ~values if values.dtype.kind == "b" else values.dtype.type(2**page.bitspersample - 1) - values
        alpha = bool(page.extrasamples) and any(int(extra) in (1, 2) for extra in page.extrasamples)
        turn = TURNS.get(int(getattr(page.tags.get(274), "value", 1)))
        values = values if turn is None else np.ascontiguousarray(turn(values))
        names = names_of(tiff)
        names = names if len(names) == values.shape[2] else ()
        return Stored(values, names, alpha and values.shape[2] in (2, 4), nodata=nodata_of(page))


def _pil_again(file: IO[bytes], name: str) -> Stored:
    file.seek(0)
    return _pil(file, name)


def _by_opencv(file: IO[bytes], name: str, series: Sequence[Any]) -> list[NDArray[Any]]:
    """Return the series of a TIFF of a compression that tifffile does not decode alone, such as LZW.

    Of pages of grey values or of RGB, pixel by pixel and upright; OpenCV reads others, such as planes, wrong.
    """
    page = series[0].keyframe
    pages: Sequence[NDArray[Any]] = ()
    if (
        (page.samplesperpixel, int(page.photometric)) in ((1, 1), (3, 2), (3, 6))
        and (page.planarconfig, page.bitspersample) == (1, 8 * page.dtype.itemsize)
        and page.tags.valueof("Orientation", 1) == 1
    ):
        file.seek(0)
        _, pages = cv2.imdecodemulti(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    numbers = [one.index for part in series for one in part.pages]
    found = [pages[number] for number in numbers if number < len(pages)]
    plain = (page.samplesperpixel, int(page.photometric), page.predictor, page.parent.byteorder) == (1, 1, 1, "<")
    if not found and len(numbers) == 1 and plain and all(page.databytecounts):
        found = [_grey_by_pil(file)]  # such as ZSTD
    if len(found) < len(numbers) or {(one.shape, one.dtype) for one in found} != {(page.shape, page.dtype)}:
        raise ImageError(f"{name}: {needs_codecs(page)}")
    values = np.stack(found)[..., :: -1 if page.samplesperpixel == 3 else 1]  # from blue, green, red
    return list(values.reshape(len(series), *series[0].shape))


def _grey_by_pil(file: IO[bytes]) -> NDArray[Any]:
    file.seek(0)
    with suppress(Exception), Image.open(file) as image:
        return np.asarray(image)
    return np.zeros((0, 0))


def needs_codecs(page: Any) -> str:
    """Return why a page of a TIFF cannot be read."""
    form, predictor = (getattr(one, "name", one) for one in (page.compression, page.predictor))
    return f"its compression ({form}, predictor {predictor}) needs imagecodecs: pip install 'dino-dense[tiff]'"


def names_of(tiff: Any) -> tuple[str, ...]:
    """Return the names of channels in OME's, GDAL's or ImageJ's metadata."""
    page = tiff.pages.first
    try:
        if tiff.ome_metadata:
            root = ElementTree.fromstring(tiff.ome_metadata)
            pixels = next(one for one in root.iter() if one.tag.endswith("}Pixels") or one.tag == "Pixels")
            return tuple(one.get("Name", "") for one in pixels if one.tag.endswith("Channel"))
        if 42112 in page.tags:  # GDAL's
            root = ElementTree.fromstring(page.tags[42112].value)
            items = [one for one in root.iter("Item") if one.get("role") == "description"]
            return tuple((one.text or "") for one in sorted(items, key=lambda one: int(one.get("sample", 0))))
        labels = (tiff.imagej_metadata or {}).get("Labels") or ()
        return tuple(map(str, labels))
    except (ElementTree.ParseError, ValueError, StopIteration):
        return ()


def nodata_of(page: Any) -> float | None:
    """Return the number that means unknown by GDAL's tag of a TIFF's first page; None without one."""
    return nodata_number(page.tags.valueof(GDAL_NODATA))


def nodata_number(text: Any) -> float | None:
    """Return the number that GDAL's tag holds; None without the tag, or where it holds none."""
    try:
        return float(str(text).strip("\0 "))
    except ValueError:
        return None


def with_nan(values: Values, nodata: float | None) -> Values:
    """Return numbers with NaN where they are `nodata`: floating point then, unless no number of their type is."""
    kind = values.dtype
    if nodata is None or np.isnan(nodata) or kind.kind == "b":
        return values
    if kind.kind in "iu" and not (np.iinfo(kind).min <= nodata <= np.iinfo(kind).max and nodata == int(nodata)):
        return values
    unknown = values == kind.type(nodata)
    if kind.kind != "f":
        values = values.astype(np.float32 if kind.itemsize < 4 else np.float64)
    return np.where(unknown, values.dtype.type(np.nan), values)


def _dicom(file: IO[bytes], name: str) -> Stored:
    try:
        import pydicom
    except ImportError:
        raise ImportError(f"{name} needs the package pydicom: pip install 'dino-dense[dicom]'") from None
    data = pydicom.dcmread(file)
    values, colour = np.asarray(data.pixel_array), str(data.get("PhotometricInterpretation", ""))
    if int(data.get("SamplesPerPixel", 1)) > 1:
        if values.ndim != 3:
            raise ImageError(f"{name} holds {data.get('NumberOfFrames')} frames of colours; save one of them")
        if colour.startswith("YBR"):
            from pydicom.pixels import convert_color_space

            values = convert_color_space(values, colour, "RGB")
        return Stored(values)
    if colour == "PALETTE COLOR":
        raise ImageError(f"{name} holds colours of a palette, not values; export it as greyscale")
    values = values[..., None] if values.ndim == 2 else np.moveaxis(values, 0, 2)  # frames are channels
    slope, intercept = float(data.get("RescaleSlope", 1)), float(data.get("RescaleIntercept", 0))
    bits, signed = int(data.get("BitsStored", 16)), int(data.get("PixelRepresentation", 0))
    if colour == "MONOCHROME1":  # small numbers are white
        values = (-1 if signed else 2**bits - 1) - values.astype(np.int32)
    if (slope, intercept) != (1, 0):
        values = values.astype(np.float32) * slope + intercept
        if (values == np.rint(values)).all():
            values = values.astype(np.int32)
    return Stored(values, window=_window(data, colour, slope, intercept, bits, signed))


def _window(
    data: Any, colour: str, slope: float, intercept: float, bits: int, signed: int
) -> tuple[float, float] | None:
    centre, width = (data.get(f"Window{part}") for part in ("Center", "Width"))
    if centre is None or width is None:
        return None
    centre, width = (float(n[0] if hasattr(n, "__len__") and not isinstance(n, str) else n) for n in (centre, width))
    if colour == "MONOCHROME1":
        centre = slope * (-1 if signed else 2**bits - 1) + 2 * intercept - centre
    return centre - width / 2, centre + width / 2


def header_size(path: str) -> tuple[int, int] | None:
    """Return height and width of TIFF, .npy or DICOM, of the first two from the header alone; None if damaged."""
    try:
        if path.lower().endswith(".npy"):
            height, width = array_of_channels(np.load(path, mmap_mode="r", allow_pickle=False), path, None).shape[:2]
            return height, width
        if path.lower().endswith(".dcm"):
            height, width = read_values(path).shape[:2]
            return height, width
        import tifffile

        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            sides = (page.imagelength, page.imagewidth)
            return sides[::-1] if int(getattr(page.tags.get(274), "value", 1)) >= 5 else sides
    except Exception:  # readers raise nearly anything on damaged bytes
        return None


def header_bits(path: str) -> int | None:
    """Return the bits of a number of TIFF, .npy or DICOM, by the header alone; None of other files and damaged ones."""
    try:
        if path.lower().endswith(".npy"):
            return int(np.load(path, mmap_mode="r", allow_pickle=False).dtype.itemsize * 8)
        if path.lower().endswith(".dcm"):
            return 16
        if path.lower().endswith(TIFFS):
            import tifffile

            with tifffile.TiffFile(path) as tiff:
                return int(tiff.pages.first.bitspersample)
    except Exception:  # readers raise nearly anything on damaged bytes
        pass
    return None


def header_of_tiff(file: IO[bytes]) -> tuple[int, bool]:
    """Return the number of channels by a TIFF's header, without opacity, and whether PIL reads others or other numbers.

    Planes, times and pages of one size are channels alike. PIL reads one page, and is wrong about some kinds of numbers
    of more than 8 bits and about tiles that are not stored. Of other files and damaged ones: 1, False.
    """
    import tifffile

    try:
        if file.read(4) not in TIFF:
            return 1, False
        file.seek(0)
        with tifffile.TiffFile(file) as tiff:
            page, first = tiff.pages.first, tiff.series[0]
            if page.photometric == 5:  # inks, of which PIL makes RGB
                return 3, False
            alike = {(one.shape, one.dtype) for one in tiff.series} == {(first.shape, first.dtype)}
            count = prod(n for axis, n in zip(first.axes, first.shape, strict=True) if axis not in "YX")
            count *= len(tiff.series) if alike else 1
            paged = count > page.samplesperpixel
            opacity = sum(int(extra) in (1, 2) for extra in page.extrasamples or ())
            return count - opacity * (not paged), paged or page.bitspersample > 8 or 0 in page.databytecounts
    except Exception:  # readers raise nearly anything on damaged bytes
        return 1, False
    finally:
        file.seek(0)


# ---- the channels that a reading names


def read_channels(path: str | Path | IO[bytes], reading: Reading, name: str | None = None) -> Values:
    """Return the numbers (H, W, C) of an image's channels in the order of `reading`, from one file or a file each."""
    if isinstance(path, str | Path) and (files := channel_files(path, reading)):
        missing = [file for file in files if not file.is_file()]
        if not missing:
            planes = [
                _known(stored(file), Reading((one,)), str(file))
                for file, one in zip(files, reading.channels, strict=True)
            ]
            if len(sizes := {plane.shape[:2] for plane in planes}) > 1:
                raise ImageError(f"the channels of {path} have several sizes (height, width): {sorted(sizes)}")
            return np.concatenate(planes, axis=2)
        if len(missing) < len(files) - 1 or stored(path, None, reading.count).values.shape[2] != reading.count:
            raise ImageError(lacks_channel(path, missing[0]))
    name = str(path) if name is None else name
    return _known(stored(path, name, reading.count), reading, name)


def lacks_channel(path: str | Path, missing: Path) -> str:
    return f"{path} has no channel {missing.name} beside it; expected a file per channel"


def _known(found: Stored, reading: Reading, name: str) -> Values:
    chosen = chosen_channels(found, reading, name)
    return chosen if reading == PHOTOGRAPHS else with_nan(chosen, found.nodata)


def chosen_channels(found: Stored, reading: Reading, name: str) -> Values:
    """Return the channels of a file that a reading names: by the file's names for them, or else by their number."""
    values, stored_names = found.values, [one.casefold() for one in found.names]
    wanted = [one.casefold() for one in reading.channels]
    if wanted and all(one in stored_names for one in wanted):
        return values[..., [stored_names.index(one) for one in wanted]]
    if any(one in stored_names for one in wanted):  # by position, one channel would be taken for another
        raise ImageError(f"{name} has the channels {', '.join(found.names)}, expected {', '.join(reading.channels)}")
    count = values.shape[2]
    if found.alpha and reading.colours and values.dtype == np.uint8:  # composited over white, as photographs are
        image = Image.fromarray(values).convert("RGBA")
        return np.array(Image.alpha_composite(Image.new("RGBA", image.size, (255,) * 4), image).convert("RGB"))
    if found.alpha and reading.colours and not reading.white and values.dtype == np.uint16:
        opacity = values[..., -1:] / np.float32(SIXTEEN_BITS)
        return np.rint(SIXTEEN_BITS - (SIXTEEN_BITS - values[..., :-1].astype(np.float32)) * opacity).astype(np.uint16)
    if found.alpha and count == (reading.count + 1 if wanted else count):
        opaque = 1 if values.dtype.kind in "bf" else np.iinfo(values.dtype).max
        if (values[..., -1] == opaque).all():
            return chosen_channels(found._replace(values=values[..., :-1], alpha=False), reading, name)
        raise ImageError(f"{name} has transparent pixels, expected {reading.count} channels without opacity")
    if count == reading.count or (reading.colours and count == 1):
        if found.palette and not reading.colours:
            raise ImageError(_coloured(name, "the colours of a palette", reading))
        return values
    if count == 3 and reading.count == 1:
        if (values == values[..., :1]).all():  # grey, stored three times
            return values[..., :1]
        raise ImageError(_coloured(name, "the colours of a palette" if found.palette else "three colours", reading))
    hint = ""
    if found.palette or (count == 1 and reading.count > 1 and not reading.colours):
        hint = f"; is it a file per channel, such as NAME_{reading.channels[0]}.tif?" if count == 1 else ""
    raise ImageError(reading.mismatch(count, name, found.names) + hint)


def _coloured(name: str, what: str, reading: Reading) -> str:
    return (
        f"{name} holds {what}, expected {'the numbers of ' if reading.channels else ''}"
        f"{', '.join(reading.channels)}: a colour map is for people; save the numbers as grey values"
    )


def channel_of(path: str | Path, reading: Reading) -> tuple[str, int] | None:
    """Return the path without the name of a channel that ends its stem, and which channel that is; None for none."""
    stem = str(path)[: -len(suffix_of(path)) or None]
    for number, name in enumerate(reading.channels):
        if stem[-len(name) :].casefold() == name.casefold() and stem[: -len(name)][-1:] in tuple(SEPARATORS):
            return stem[: -len(name) - 1], number
    return None


def suffix_of(path: str | Path) -> str:
    """Return the suffix of an image's file, such as .png or .ome.tif."""
    found = Path(path).suffixes[-2:]
    return "".join(found if found and found[0].lower() == ".ome" else found[-1:])


def channel_files(path: str | Path, reading: Reading) -> list[Path]:
    """Return the files of an image that has a file per channel, of which `path` is one; empty for another image."""
    found = channel_of(path, reading)
    if found is None or len(reading.channels) < 2:
        return []
    path, prefix = Path(path), Path(found[0]).name
    expected = [path.with_name(f"{prefix}{path.name[len(prefix)]}{one}{suffix_of(path)}") for one in reading.channels]
    return [one if one == path or one.is_file() else _as_written(one) for one in expected]


def _as_written(path: Path) -> Path:
    """Return the file of a folder whose name is that of a path but for capitals; the path itself if there is none."""
    with suppress(OSError):
        names = _names_in(str(path.parent), path.parent.stat().st_mtime_ns)
        return path.with_name(names.get(path.name.casefold(), path.name))
    return path


@lru_cache(4)
def _names_in(folder: str, time: int) -> dict[str, str]:
    return {name.casefold(): name for name in os.listdir(folder)}  # noqa: PTH208 (names alone, maybe a million)


def files_of(path: Path, reading: Reading) -> list[Path]:
    """Return all files of an image: itself, or one per channel."""
    return channel_files(path, reading) or [path]


def stem_of(path: Path, reading: Reading) -> Path:
    """Return a path without its suffix and, of an image with a file per channel, without the name of the channel."""
    found = channel_of(path, reading)
    return Path(found[0]) if found else path.with_name(path.name[: -len(suffix_of(path)) or None])


def one_per_image(paths: Iterable[str], reading: Reading) -> list[str]:
    """Return one file of each image: of an image with a file per channel that of the first; a missing one raises.

    Files of such an image whose channels are not named are left out.
    """
    paths = list(paths)
    if not reading.channels:
        return paths
    parts: dict[str, dict[int, str]] = {}
    for path in paths:
        if found := channel_of(path, reading):
            parts.setdefault(found[0], {})[found[1]] = path
    if not parts:
        return paths
    lacking = [
        f"{prefix}: {', '.join(name for n, name in enumerate(reading.channels) if n not in files)}"
        for prefix, files in parts.items()
        if len(files) < len(reading.channels) and not _whole(files, reading)
    ]
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise ImageError(
            f"{len(lacking)} of {len(parts)} images lack the file of a channel: {'; '.join(lacking[:3])}{more}; "
            f"expected one file for each of {', '.join(reading.channels)}"
        )
    first = {min(files.items())[1] for files in parts.values()}
    return [path for path in paths if path in first or (not channel_of(path, reading) and _before(path) not in parts)]


def _before(path: str) -> str:
    """Return a path without the last part of its name, which may name a channel."""
    return re.sub(rf"[{re.escape(SEPARATORS)}][^{re.escape(SEPARATORS)}/]*$", "", path[: -len(suffix_of(path)) or None])


def _whole(files: dict[int, str], reading: Reading) -> bool:
    """Whether the only file of an image holds all channels and its name ends in one of theirs by chance."""
    if len(files) > 1:
        return False
    try:
        return stored(next(iter(files.values())), None, reading.count).values.shape[2] == reading.count > 1
    except ImageError:
        return False
