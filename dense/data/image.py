"""Read images safely: any common format in, uint8 RGB out, and one kind of error for files that cannot be read."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from dense.console import say

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif"})
TWELVE_BITS = 4096
_dark: list[str] = []  # the image whose range was reported, once per process


class ImageError(ValueError):
    """An image that cannot be read."""


def read_image(path: str | Path, at_least: int | None = None) -> NDArray[np.uint8]:
    """Return an image as (H, W, 3) uint8 RGB.

    EXIF rotation is applied; grey, palette, CMYK and 16-bit images are converted; transparent images are composited
    over white. A missing, empty, truncated or damaged file raises `ImageError`. With `at_least`, a JPEG is decoded at
    1/2, 1/4 or 1/8 of its size, which is much faster, as long as its shorter side keeps at least so many pixels.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _decode(file, str(path), at_least)
    except FileNotFoundError:
        raise ImageError(f"no such image: {path}") from None
    except IsADirectoryError:
        raise ImageError(f"{path} is a folder, not an image") from None
    except OSError as error:
        raise ImageError(f"{path} cannot be read ({error})") from None


def decode_image(data: bytes, name: str = "the image", at_least: int | None = None) -> NDArray[np.uint8]:
    """Do as `read_image`, for the bytes of a file; errors call it `name`."""
    return _decode(io.BytesIO(data), name, at_least)


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
    _report_dark(upright, name)
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
    _report_dark(image, getattr(image, "filename", "") or "an image")
    return _rgb(image)


def _report_dark(image: Image.Image, name: str) -> None:
    """Report once per process an image of 12 bits stored in 16, which comes out nearly black."""
    if _dark or not (image.mode.startswith("I;16") or image.mode == "I"):
        return
    highest = int(np.asarray(image).max(initial=0))
    if 0 < highest < TWELVE_BITS:
        _dark.append(name)
        say(
            f"{name} is read as 0 to 65535, black to white, and its brightest value is {highest}: nearly black; if its "
            "camera has 12 bits, multiply such images by 16 beforehand"
        )


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image, dtype=np.float64)
        scale = 255.0 / (_white(values) if image.mode == "F" else 65535.0)
        grey = np.clip(np.nan_to_num(values) * scale + 0.5, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _white(values: NDArray[np.float64]) -> float:
    """Return the value of white in a floating-point image: 1, 255 or 65535, with a margin for highlights."""
    highest = values.max(initial=0.0, where=np.isfinite(values))
    return next((white for white in (1.0, 255.0) if highest <= 1.5 * white), 65535.0)


def list_images(source: str | Path | Sequence[str | Path], without: Path | None = None) -> list[Path]:
    """Return the images of a file, of a folder and its subfolders (sorted), or of several of these; none raises.

    without: a folder of targets, which is left out where it lies within a folder of images
    """
    sources: Iterable[str | Path] = [source] if isinstance(source, str | Path) else source
    found: list[Path] = []
    for item in map(Path, sources):
        if item.is_dir():
            inside = sorted(p for p in item.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
            folder, targets = item.resolve(), None if without is None else without.resolve()
            if targets is not None and targets != folder and targets.is_relative_to(folder):
                inside = [p for p in inside if not p.resolve().is_relative_to(targets)]
            found += inside
        elif item.is_file():
            found.append(item)
        else:
            raise FileNotFoundError(f"no such image or folder: {item}")
    if not found:
        names = ", ".join(map(str, sources))
        raise FileNotFoundError(f"no images in {names}; looked for {', '.join(sorted(EXTENSIONS))}")
    return found


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
