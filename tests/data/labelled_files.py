"""Miniature data sets with real files, for the tests of labelled data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HEIGHT, WIDTH = 6, 8
ORIENTATION = 0x0112


def image_file(path: Path, value: int = 100, size: tuple[int, int] = (HEIGHT, WIDTH), orientation: int = 1) -> Path:
    """An image whose pixels are stored in this size (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.full((*size, 3), value, np.uint8))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image.save(path, exif=exif)
    return path


def mask(path: Path, values: Any = 0, size: tuple[int, int] = (HEIGHT, WIDTH), kind: type = np.uint8) -> Path:
    """A grey mask: one value, or an array of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.broadcast_to(np.asarray(values, kind), size).copy()).save(path)
    return path


def palette(path: Path, values: NDArray[np.uint8], colours: list[tuple[int, int, int]]) -> Path:
    """A mask with a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values).convert("P")
    image.putdata(values.reshape(-1).tolist())
    image.putpalette([c for colour in colours for c in colour])
    image.save(path)
    return path


def depth16(path: Path, values: Any = 1000, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Path:
    """A 16-bit PNG."""
    return mask(path, values, size, np.uint16)


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def folder(root: Path, names: list[str], masks: bool = True, depth: bool = False) -> Path:
    """images/ with masks/ and depth/, two classes and millimetres."""
    for number, name in enumerate(names):
        image_file(root / "images" / f"{name}.jpg", number % 256)
        if masks:
            mask(root / "masks" / f"{name}.png", np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 2)
        if depth:
            depth16(root / "depth" / f"{name}.png", 1000 * (number + 1))
    if masks:
        text(root / "classes.yaml", "[sky, ground]")
    if depth:
        text(root / "depth.yaml", "{kind: metric, scale: 1000}")
    return root
