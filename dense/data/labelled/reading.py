"""Read masks and depth maps from files; every way in which a file cannot be used raises an error that names it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from dense.data.image import ImageError
from dense.data.labelled.formats import DepthFormat, LabelFormat
from dense.data.labelled.sample import DataError
from dense.data.values import GDAL_NODATA, Stored, header_of_tiff, nodata_number, stored

GREY_STEPS = {"L;2": 85, "L;4": 17}  # PIL stretches grey of 2 and 4 bits to 0..255
ORIENTATION = 0x0112  # EXIF tag; with 5 to 8 an image is rotated by 90 degrees
EXIF_HINT = "the image is rotated by its EXIF data and the {what} is not: save the image rotated, without EXIF"
DEPTH_EXTENSIONS = (".png", ".npy", ".npz", ".tif", ".tiff", ".exr")


@contextmanager
def _named_errors(path: Path, what: str) -> Iterator[None]:
    """Turn every error of a reader into an ImageError that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise ImageError(f"no such {what}: {path}") from None
    except UnidentifiedImageError:
        raise ImageError(f"{path} is not an image of a known format") from None
    except (DataError, ImageError):
        raise
    except Exception as error:  # readers raise nearly anything on damaged bytes
        raise ImageError(f"{path} is damaged or truncated ({error or type(error).__name__})") from error


def is_turned(path: str) -> bool:
    """Return whether an image is rotated by 90 degrees by its EXIF data."""
    with Image.open(path) as image:
        return int(image.getexif().get(ORIENTATION, 1)) >= 5


def read_labels(path: str | Path, form: LabelFormat) -> NDArray[np.uint8]:
    """Return the class of every pixel (H, W) of a mask, `IGNORE` where it is unknown."""
    raw, nodata = _mask(Path(path), form.by_colour)
    return form.knowing(nodata).labels(raw, str(path))


def read_mask(path: str | Path, colours: bool = False) -> NDArray[Any]:
    """Return a mask as it is stored: numbers (H, W) or colours (H, W, 3).

    colours: return the colours of a palette or of grey instead of its numbers
    """
    return _mask(Path(path), colours)[0]


def _mask(path: Path, colours: bool) -> tuple[NDArray[Any], float | None]:
    """Return a mask as it is stored, and the number that means unknown in a GeoTIFF."""
    if path.suffix.lower() in (".jpg", ".jpeg"):
        raise DataError(f"{path} is a JPEG, which changes values near every edge; masks must be PNG or TIFF")
    with _named_errors(path, "mask"), path.open("rb") as file:
        if (found := _not_by_pil(file, path)) is not None:
            values = found.values[..., :-1] if found.alpha else found.values
            if values.dtype.kind not in "biu" or values.shape[2] not in (1, 3):
                raise DataError(
                    f"{path} holds {values.dtype} {values.shape}; a mask holds whole numbers (H, W) or RGB colours"
                )
            return values[..., 0] if values.shape[2] == 1 else values, found.nodata
        with Image.open(file) as image:
            return _mask_of(image, path, colours), _nodata(image)


def _not_by_pil(file: IO[bytes], path: Path) -> Stored | None:
    """Return what a TIFF holds that PIL may read wrong; None of other files."""
    other = header_of_tiff(file)[1]
    file.seek(0)
    return stored(file, str(path)) if other else None


def _mask_of(image: ImageFile, path: Path, colours: bool) -> NDArray[Any]:
    mode = image.tile[0].args if image.tile else None
    image.load()
    if image.mode == "P":
        return np.array(image.convert("RGB")) if colours else np.array(image)
    if image.mode in ("1", "L"):
        grey = np.array(image.convert("RGB") if colours else image)
        return grey.astype(np.uint8) // (1 if colours else GREY_STEPS.get(str(mode), 1))
    if image.mode.startswith("I"):
        return np.array(image)
    if image.mode in ("RGB", "RGBA", "LA"):
        values = np.array(image.convert("RGBA"))
        if (values[..., 3] != 255).any():
            raise DataError(f"{path} is transparent in places; a mask needs one value at every pixel")
        return values[..., :3]
    raise DataError(f"{path} is an image of mode {image.mode}; a mask holds whole numbers or RGB colours")


def _nodata(image: Image.Image) -> float | None:
    """Return the number that means unknown in a GeoTIFF; None of other files."""
    return nodata_number(getattr(image, "tag_v2", {}).get(GDAL_NODATA))


def read_depth(path: str | Path, form: DepthFormat) -> NDArray[np.float32]:
    """Return depth (H, W) from a 16-bit PNG, a float or 16-bit TIFF, .npy, or .npz with one array."""
    raw, form = stored_depth(path, form)
    return form.depth(raw, str(path))


def stored_depth(path: str | Path, form: DepthFormat) -> tuple[NDArray[Any], DepthFormat]:
    """Return a depth map as it is stored, and its format, which knows the number that means unknown in a GeoTIFF; raise
    DataError where the file cannot hold depth."""
    path = Path(path)
    with _named_errors(path, "depth map"):
        raw, nodata = _stored_depth(path, form)
    return raw, form.knowing(nodata)


def _stored_depth(path: Path, form: DepthFormat) -> tuple[NDArray[Any], float | None]:
    extension = path.suffix.lower()
    if extension == ".npy":
        return np.asarray(np.load(path, allow_pickle=False)), None
    if extension == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            if len(archive.files) != 1:
                raise DataError(f"{path} holds {len(archive.files)} arrays ({', '.join(archive.files)}); expected one")
            return np.asarray(archive[archive.files[0]]), None
    if extension == ".exr":
        raise DataError(
            f"{path}: EXR cannot be read, as OpenCV's wheels are built without OpenEXR; convert such files once, with "
            "any tool that reads them, to .npy (float32) or to 16-bit PNG with a scale"
        )
    if extension in (".jpg", ".jpeg"):
        raise DataError(f"{path} is a JPEG, whose values are not exact; depth must be a 16-bit PNG, TIFF, .npy or .npz")
    with path.open("rb") as file:
        return _depth_of(file, path, form)


def _depth_of(file: IO[bytes], path: Path, form: DepthFormat) -> tuple[NDArray[Any], float | None]:
    if (found := _not_by_pil(file, path)) is not None and found.values.dtype.itemsize > 1:
        if found.values.shape[2] != 1:
            raise DataError(f"{path} has {found.values.shape[2]} channels, which are no map of depth")
        return found.values[..., 0], found.nodata
    file.seek(0)
    with Image.open(file) as image:
        image.load()
        if image.mode in ("L", "P", "1") and form.scale is None:
            raise DataError(
                f"{path} has 8 bits, which is a rendering of depth for the eye rather than depth: 256 steps, usually "
                "stretched anew for each image. Store 16 bits, or, if they are measured, give scale explicitly"
            )
        if image.mode not in ("L", "F") and not image.mode.startswith("I"):
            raise DataError(f"{path} is a colour image (mode {image.mode}), not a map of depth")
        return np.array(image), _nodata(image)
