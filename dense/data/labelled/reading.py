"""Read masks and depth maps from files; every way in which a file cannot be used raises an error that names it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from dense.data.image import ImageError
from dense.data.labelled.formats import DepthFormat, LabelFormat
from dense.data.labelled.sample import DataError
from dense.data.values import header_nodata

GREY_STEPS = {"L;2": 85, "L;4": 17}  # PIL stretches grey of 2 and 4 bits to 0..255
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
    except DataError:
        raise
    except Exception as error:  # readers raise nearly anything on damaged bytes
        raise ImageError(f"{path} is damaged or truncated ({error or type(error).__name__})") from error


def read_labels(path: str | Path, form: LabelFormat) -> NDArray[np.uint8]:
    """Return the class of every pixel (H, W) of a mask, `IGNORE` where it is unknown."""
    return form.knowing(header_nodata(path)).labels(read_mask(path, form.by_colour), str(path))


def read_mask(path: str | Path, colours: bool = False) -> NDArray[Any]:
    """Return a mask as it is stored: numbers (H, W) or colours (H, W, 3).

    colours: return the colours of a palette or of grey instead of its numbers
    """
    path = Path(path)
    if path.suffix.lower() in (".jpg", ".jpeg"):
        raise DataError(f"{path} is a JPEG, which changes values near every edge; masks must be PNG or TIFF")
    with _named_errors(path, "mask"), Image.open(path) as image:
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


def read_depth(path: str | Path, form: DepthFormat) -> NDArray[np.float32]:
    """Return depth (H, W) from a 16-bit PNG, a float or 16-bit TIFF, .npy, or .npz with one array."""
    return form.knowing(header_nodata(path)).depth(stored_depth(path, form), str(path))


def stored_depth(path: str | Path, form: DepthFormat) -> NDArray[Any]:
    """Return a depth map as it is stored; raise DataError where the file cannot hold depth."""
    path = Path(path)
    with _named_errors(path, "depth map"):
        return _stored_depth(path, form)


def _stored_depth(path: Path, form: DepthFormat) -> NDArray[Any]:
    extension = path.suffix.lower()
    if extension == ".npy":
        return np.asarray(np.load(path, allow_pickle=False))
    if extension == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            if len(archive.files) != 1:
                raise DataError(f"{path} holds {len(archive.files)} arrays ({', '.join(archive.files)}); expected one")
            return np.asarray(archive[archive.files[0]])
    if extension == ".exr":
        raise DataError(
            f"{path}: EXR cannot be read, as OpenCV's wheels are built without OpenEXR; convert such files once, with "
            "any tool that reads them, to .npy (float32) or to 16-bit PNG with a scale"
        )
    if extension in (".jpg", ".jpeg"):
        raise DataError(f"{path} is a JPEG, whose values are not exact; depth must be a 16-bit PNG, TIFF, .npy or .npz")
    with Image.open(path) as image:
        image.load()
        if image.mode in ("L", "P", "1") and form.scale is None:
            raise DataError(
                f"{path} has 8 bits, which is a rendering of depth for the eye rather than depth: 256 steps, usually "
                "stretched anew for each image. Store 16 bits, or, if they are measured, give scale explicitly"
            )
        if image.mode not in ("L", "F") and not image.mode.startswith("I"):
            raise DataError(f"{path} is a colour image (mode {image.mode}), not a map of depth")
        return np.array(image)
