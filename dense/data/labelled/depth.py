"""Depth maps in files to metres or inverse depth, NaN where nobody knows."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from dense.data.image import ImageError
from dense.data.labelled.sample import DataError, DepthKind
from dense.suggest import did_you_mean

DEPTH_EXTENSIONS = (".png", ".npy", ".npz", ".tif", ".tiff", ".exr")


@dataclass(frozen=True)
class DepthFormat:
    """How depth is written: what is meant is the file's number divided by `scale`.

    kind: `metric` (metres along the camera's axis) or `inverse_relative` (one over depth, up to scale and shift)
    scale: units of the file in one metre: 1000 for millimetres, 256 for KITTI. None: 1 for floats; files of whole
        numbers need one
    invalid: numbers in the file that mean unknown; by default 0 in metric depth, and none in inverse depth, where 0 is
        infinitely far. NaN is always unknown
    infinite: numbers in the file that mean infinitely far, beside inf
    """

    kind: DepthKind = "metric"
    scale: float | None = None
    invalid: tuple[float, ...] | None = None
    infinite: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in get_args(DepthKind):
            hint = did_you_mean(str(self.kind), get_args(DepthKind))
            raise ValueError(
                f"kind={self.kind!r}: expected metric (metres) or inverse_relative (1 / depth, without a unit).{hint}"
            )
        if self.scale is not None and not (isinstance(self.scale, int | float) and 0 < self.scale < float("inf")):
            raise ValueError(f"scale={self.scale!r}: expected a positive number, units of the file in one metre")

    def depth(self, raw: NDArray[Any], name: str = "the depth map") -> NDArray[np.float32]:
        """Depth (H, W) of a map as stored."""
        if raw.ndim == 3 and 1 in (raw.shape[0], raw.shape[2]):
            raw = raw[0] if raw.shape[0] == 1 else raw[..., 0]
        if raw.ndim != 2 or raw.dtype.kind not in "fiu":
            raise DataError(f"{name} holds {raw.dtype} {raw.shape}; expected numbers of shape (H, W)")
        if raw.dtype.kind != "f" and self.scale is None:
            raise DataError(
                f"{name} holds whole numbers ({raw.dtype}, up to {raw.max(initial=0)}) and no scale is given; say how "
                "many of its units make a metre, for instance scale: 1000 for millimetres"
            )
        invalid = (0.0,) if self.invalid is None and self.kind == "metric" else self.invalid or ()
        depth = raw.astype(np.float32)
        unknown = np.isin(depth, np.array(invalid, np.float32)) if invalid else np.zeros(depth.shape, bool)
        far = np.isin(depth, np.array(self.infinite, np.float32)) if self.infinite else np.zeros(depth.shape, bool)
        if self.scale is not None:
            depth /= np.float32(self.scale)
        depth[far] = np.inf if self.kind == "metric" else 0
        depth[unknown] = np.nan
        if self.kind == "inverse_relative" and np.isinf(depth).any():
            raise DataError(f"{name} holds infinite inverse depth; declare what it means under invalid")
        lowest = np.fmin.reduce(depth, axis=None, initial=0)
        if lowest < 0:
            raise DataError(
                f"{name} holds negative depth ({lowest:g}); if it means unknown, declare it, for instance invalid: "
                f"[{raw[depth < 0].min():g}]"
            )
        return depth


def read_depth(path: str | Path, form: DepthFormat) -> NDArray[np.float32]:
    """Depth (H, W) from a 16-bit PNG, a float or 16-bit TIFF, .npy, or .npz with one array."""
    path = Path(path)
    try:
        return form.depth(_read(path, form), str(path))
    except FileNotFoundError:
        raise ImageError(f"no such depth map: {path}") from None
    except UnidentifiedImageError:
        raise ImageError(f"{path} is not an image of a known format") from None
    except (ImageError, DataError):
        raise
    except Exception as error:  # readers raise nearly anything on damaged bytes
        raise ImageError(f"{path} is damaged or truncated ({error or type(error).__name__})") from error


def _read(path: Path, form: DepthFormat) -> NDArray[Any]:
    kind = path.suffix.lower()
    if kind == ".npy":
        return np.asarray(np.load(path, allow_pickle=False))
    if kind == ".npz":
        return _only_array(path)
    if kind == ".exr":
        raise DataError(
            f"{path}: EXR cannot be read, as OpenCV's wheels are built without OpenEXR; convert such files once, with any "
            "tool that reads them, to .npy (float32) or to 16-bit PNG with a scale"
        )
    if kind in (".jpg", ".jpeg"):
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


def _only_array(path: Path) -> NDArray[Any]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if len(archive.files) != 1:
                raise DataError(f"{path} holds {len(archive.files)} arrays ({', '.join(archive.files)}); expected one")
            return np.asarray(archive[archive.files[0]])
    except zipfile.BadZipFile as error:
        raise ImageError(f"{path} is damaged or truncated ({error})") from None
