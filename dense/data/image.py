"""Read images safely: any common format in, uint8 RGB out, and one kind of error for files that cannot be read."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from dense.console import say
from dense.data.levels import PHOTOGRAPHS, SAMPLED, SIXTEEN_BITS, TWELVE_BITS, ImageError, Reading, sampled, white_of
from dense.data.values import (
    TIFF,
    TIFFS,
    has_deep_colours,
    header_bits,
    header_of_tiff,
    one_per_image,
    opened,
    read_channels,
    read_values,
)

T = TypeVar("T")
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", *TIFFS, ".webp", ".ppm", ".pgm", ".gif"})
NUMBERS = EXTENSIONS | {".npy", ".dcm"}  # which are images where channels or levels are declared
IMAGES = ("images", "image")  # names of folders in a folder of labelled images, and those of targets
MASKS = ("masks", "mask", "labels", "annotations")
DEPTHS = ("depth", "depths")
OBJECTS = ("instances", "instance")
PANOPTIC = "panoptic"  # beside panoptic.json, or panoptic_train beside panoptic_train.json
_dark: list[str] = []  # the image whose range was reported, once per process


def read_image(path: str | Path, at_least: int | None = None, reading: Reading = PHOTOGRAPHS) -> NDArray[np.uint8]:
    """Return an image as (H, W, 3) uint8 RGB, or with the channels (H, W, C) and levels of `reading`.

    EXIF rotation is applied; grey, palette, CMYK and 16-bit images are converted; transparent images are composited
    over white. A missing, empty, truncated or damaged file raises `ImageError`. With `at_least`, a JPEG is decoded at
    1/2, 1/4 or 1/8 of its size, which is much faster, as long as its shorter side keeps at least so many pixels.
    """
    path = Path(path)
    if reading != PHOTOGRAPHS or path.suffix.lower() in (".npy", ".dcm"):
        return _as_bytes(path, str(path), reading)
    with opened(path) as file:
        return _photograph(file, str(path), at_least)


def _photograph(file: IO[bytes], name: str, at_least: int | None) -> NDArray[np.uint8]:
    """Return an image without declared channels or levels; a TIFF of other channels than a photograph's raises."""
    start = file.read(26)
    file.seek(0)
    count, other = header_of_tiff(file)
    if count not in (1, 3):
        raise ImageError(PHOTOGRAPHS.mismatch(count, name))
    if other or has_deep_colours(start):
        return _as_bytes(file, name, PHOTOGRAPHS)
    try:
        return _decode(file, name, at_least)
    except ImageError as error:
        if start[:4] not in TIFF:
            raise
        file.seek(0)
        try:  # numbers of kinds that PIL does not read, such as double precision
            return _as_bytes(file, name, PHOTOGRAPHS)
        except ImageError:
            raise error from None


def _as_bytes(file: Path | IO[bytes], name: str, reading: Reading) -> NDArray[np.uint8]:
    values = read_channels(file, reading, name)
    report_dark(values, name, reading)
    if values.dtype.kind == "f" and not np.isfinite(values).any():
        raise ImageError(f"{name} has no finite number")
    return reading.to_bytes(values, name)


def decode_image(
    data: bytes, name: str = "the image", at_least: int | None = None, reading: Reading = PHOTOGRAPHS
) -> NDArray[np.uint8]:
    """Do as `read_image`, for the bytes of a file; errors call it `name`."""
    if reading != PHOTOGRAPHS:
        return _as_bytes(io.BytesIO(data), name, reading)
    return _photograph(io.BytesIO(data), name, at_least)


def _decode(file: IO[bytes], name: str, at_least: int | None) -> NDArray[np.uint8]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a huge or oddly tagged image is still an image
            with Image.open(file) as image:
                if at_least is not None:
                    image.draft(None, (at_least, at_least))
                upright = _upright(image)
                rgb = _rgb(upright)
    except UnidentifiedImageError:
        empty = file.seek(0, io.SEEK_END) == 0
        raise ImageError(f"{name} is {'empty (0 bytes)' if empty else 'not an image of a known format'}") from None
    except Exception as error:  # PIL's readers raise nearly anything on damaged bytes
        raise ImageError(f"{name} is damaged or truncated ({error or type(error).__name__})") from error
    _report_grey(upright, name)
    return rgb


def _upright(image: Image.Image) -> Image.Image:
    """Return the image with its EXIF rotation applied; unchanged if its EXIF data are damaged."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # the pixels are intact
        return image


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Return a PIL image of any mode as (H, W, 3) uint8."""
    _report_grey(image, getattr(image, "filename", "") or "an image")
    return _rgb(image)


def _report_grey(image: Image.Image, name: str) -> None:
    if not _dark and image.mode.startswith("I"):
        report_dark(np.asarray(image), name, PHOTOGRAPHS)


def report_dark(values: NDArray[Any], name: str, reading: Reading) -> None:
    """Report once per process an image of 12 bits stored in 16, say, whose numbers come out nearly black."""
    if _dark or reading.white or reading.per_image or values.dtype.kind not in "iu" or values.dtype.itemsize == 1:
        return
    if 0 < (highest := int(values.max(initial=0))) < TWELVE_BITS:
        _dark.append(name)
        white = top(highest)
        say(f'{name} {nearly_black(highest)}; give --levels 0 {white} (of a training --data.levels "[0, {white}]")')


def nearly_black(highest: int) -> str:
    return f"is read as 0 to 65535, black to white, and its brightest value is {highest}: nearly black"


def top(highest: int) -> int:
    """Return the largest number of 8, 10 or 12 bits, the fewest that hold `highest`."""
    return next(white for white in (255, 1023, TWELVE_BITS - 1) if highest <= white)


def dark(images: Sequence[str], reading: Reading, folder: str = "", most: int = SAMPLED) -> str | None:
    """Return why images of more than 8 bits come out wrong, and the option that mends it; None if they do not.

    That is: whole numbers nearly black or below 0, or floating point of which each image would choose its own white.
    The headers of some images, evenly spread, tell which of them have more than 8 bits; the others are left out.

    folder: of their paths
    """
    from dense.data.large import numbers_of  # here, since it imports torch

    if reading.white or reading.per_image:
        return None
    found, whites = dict[str, int](), dict[float, str]()
    for name in spaced(images, most):
        name = str(Path(folder, name))
        try:
            if not is_deep(name):
                continue
            values = sampled(numbers_of(name, reading))
        except ImageError:  # which the check of a training or the report at its end names
            continue
        if values.dtype.kind == "f":
            values = values[np.isfinite(values)]
            whites.setdefault(white := white_of(values), name)
            if white < SIXTEEN_BITS:
                continue  # it spans its levels
        found[name] = _brightest(values)
        if (lowest := int(np.quantile(values, 0.01))) < 0:
            return f"{name} has numbers below 0, such as {lowest}, which would be black; add --data.levels auto"
    if len(whites) > 1:
        words = ", ".join(f"{white:g} of {name}" for white, name in sorted(whites.items()))
        return f"images of floating point differ in what would be white ({words}); add --data.levels auto"
    highest = max(found.values(), default=0)
    if not 0 < highest < TWELVE_BITS:
        return None
    name = max(found, key=lambda one: found[one])
    return (
        f"{name} {nearly_black(highest)}, like all of {len(found)} images of more than 8 bits; "
        f'add --data.levels "[0, {top(highest)}]"'
    )


def spaced(items: Sequence[T], most: int) -> list[T]:
    """Return at most so many items, evenly spaced."""
    return [items[i * len(items) // most] for i in range(most)] if len(items) > most else list(items)


def _brightest(values: NDArray[Any]) -> int:
    """Return the highest number, without a few that are far above all others."""
    highest, usual = int(values.max()), int(np.quantile(values, 0.999))
    return highest if highest <= 4 * max(usual, 1) else usual


def is_deep(path: str) -> bool:
    """Whether the header of an image allows numbers of more than 8 bits."""
    if (bits := header_bits(path)) is not None:
        return bits > 8
    try:
        with Path(path).open("rb") as file:
            start = file.read(26)
        if start.startswith(b"\x89PNG"):
            return start[24] == 16
        with Image.open(path) as image:
            return image.mode.startswith("I") and image.format != "PPM"  # whose header tells what is white
    except Exception:  # PIL's readers raise nearly anything on damaged bytes
        return False


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image, dtype=np.float64)
        scale = 255.0 / (white_of(values) if image.mode == "F" else 65535.0)
        grey = np.clip(np.nan_to_num(values) * scale + 0.5, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"), dtype=np.uint8)


def list_images(
    source: str | Path | Sequence[str | Path], without: Path | None = None, reading: Reading = PHOTOGRAPHS
) -> list[Path]:
    """Return the images of a file, of a folder and its subfolders (sorted), or of several of these; none raises.

    without: a folder of targets, which is left out where it lies within a folder of images
    reading: with channels or levels, .npy and .dcm are images too, and files of one channel each are one image
    """
    sources: Iterable[str | Path] = [source] if isinstance(source, str | Path) else source
    known = extensions(reading)
    found: list[Path] = []
    for item in map(Path, sources):
        if item.is_dir():
            inside = sorted(p for p in item.rglob("*") if p.suffix.lower() in known and p.is_file())
            inside = [item / name for name in without_targets(item, [str(p.relative_to(item)) for p in inside])]
            folder, targets = item.resolve(), None if without is None else without.resolve()
            if targets is not None and targets != folder and targets.is_relative_to(folder):
                inside = [p for p in inside if not p.resolve().is_relative_to(targets)]
            found += map(Path, one_per_image(map(str, inside), reading)) if reading.channels else inside
        elif item.is_file():
            found.append(item)
        else:
            raise FileNotFoundError(f"no such image or folder: {item}")
    if not found:
        names = ", ".join(map(str, sources))
        raise FileNotFoundError(f"no images in {names}; looked for {', '.join(sorted(known))}")
    return found


def without_targets(root: Path, names: Iterable[str]) -> Iterator[str]:
    """Leave out, with a line, files below a folder of masks, depth or objects that lies beside a folder of images."""
    targets, beside, left = {*MASKS, *DEPTHS, *OBJECTS, PANOPTIC}, dict[Path, bool](), 0
    for name in names:
        *folders, _ = Path(name).parts
        of_target = [folder in targets or folder.startswith(f"{PANOPTIC}_") for folder in folders]
        places = [root.joinpath(*folders[:i]) for i, found in enumerate(of_target) if found]
        for place in places:
            if place not in beside:
                beside[place] = any((place / images).is_dir() for images in IMAGES)
        if any(beside[place] for place in places):
            left += 1
        else:
            yield name
    if left:
        say(f"{root}: {left} files in folders of targets, beside those of images, are left out")


def extensions(reading: Reading) -> frozenset[str]:
    """Return the extensions of images: those of photographs, and where numbers are declared .npy and .dcm too."""
    return EXTENSIONS if reading == PHOTOGRAPHS else NUMBERS


def walk(
    root: Path,
    within: str = "",
    extensions: Collection[str] = EXTENSIONS,
    above: frozenset[tuple[int, int]] = frozenset(),
) -> Iterator[str]:
    """Yield paths, relative to the root, of all files with `extensions` in a folder and its subfolders, sorted.

    Names that begin with a dot are skipped. Links are followed, except to a folder above.
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
        elif os.path.splitext(name)[1].lower() in extensions:  # noqa: PTH122 (Path is slow for a million files)
            yield path


def what_is_there(path: Path, most: int = 8) -> str:
    """Return what a path holds, or the nearest folder above it that exists, for an error about missing files."""
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


__all__ = [
    "EXTENSIONS",
    "ImageError",
    "decode_image",
    "list_images",
    "read_image",
    "read_values",
    "walk",
    "what_is_there",
]
