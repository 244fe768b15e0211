"""Drawn cells of many bits and channels, as files, for tests of scientific images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from tests.data.labelled_files import text

CHANNELS = ("dapi", "actin", "tubulin", "er", "golgi")


def cells(
    channels: int, seed: int = 0, size: tuple[int, int] = (48, 64), white: int = 4095
) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Numbers (H, W, C) of 0 to `white` with noise, and a mask (H, W): 1 in a cell."""
    random = np.random.default_rng(seed)
    mask = np.zeros(size, np.uint8)
    for _ in range(3):
        centre = int(random.integers(8, size[1] - 8)), int(random.integers(8, size[0] - 8))
        cv2.circle(mask, centre, int(random.integers(5, 10)), 1, -1)
    strength = np.linspace(0.6, 0.2, channels) * white
    values = 0.05 * white + mask[..., None] * strength + random.normal(0, 0.01 * white, (*size, channels))
    return values.clip(0, white).astype(np.uint16), mask


def lzw(path: Path, values: NDArray[Any], **options: Any) -> Path:
    """Write planes (N, H, W) as a TIFF that is compressed by LZW, whose codes all have 9 bits here."""
    parts = []
    for plane in values:
        data = plane.tobytes()
        codes = [code for first in range(0, len(data), 200) for code in (256, *data[first : first + 200])]
        bits = "".join(f"{code:09b}" for code in (*codes, 257))
        bits += "0" * (-len(bits) % 8)
        parts.append(int(bits, 2).to_bytes(len(bits) // 8, "big"))
    options = {"photometric": "minisblack", "metadata": None} | options
    tifffile.imwrite(path, iter(parts), shape=values.shape, dtype=values.dtype, compression="zlib", **options)
    return compressed_as(path, 5)


def compressed_as(path: Path, number: int) -> Path:
    """Change the compression that the pages of a TIFF name."""
    with tifffile.TiffFile(path, mode="r+") as file:
        for page in file.pages:
            page.tags["Compression"].overwrite(number)  # type: ignore[union-attr]
    return path


def labelled(root: Path, count: int = 6, channels: int = 2, names: Sequence[str] = (), white: int = 4095) -> Path:
    """images/ of TIFF, with `names` a file for each channel, masks/ and classes.yaml."""
    text(root / "classes.yaml", "background: 0\ncell: 1\n")
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        values, mask = cells(len(names) or channels, number, white=white)
        Image.fromarray(mask).save(root / "masks" / f"cell{number * 7}.png")
        stem = root / "images" / f"cell{number * 7}"
        for channel, name in enumerate(names):
            tifffile.imwrite(f"{stem}_{name}.tif", values[..., channel])
        if not names:
            tifffile.imwrite(f"{stem}.tif", np.moveaxis(values, 2, 0), photometric="minisblack")
    return root
