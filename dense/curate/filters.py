"""Which images are usable: minimum size and contrast, user-defined filters, and boxes that are blurred."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dense.curate.pool import Pool
from dense.data.image import ImageError
from dense.data.levels import as_rgb
from dense.media.draw import Picture
from dense.suggest import did_you_mean

Filter = Callable[[Picture, str], "bool | Picture"]
Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels
STATES = ("fit", "unreadable", "too small", "blank", "filtered")
CELLS = 6  # cells along the longer side of a blurred box


@dataclass(frozen=True)
class Prepared:
    """An image after all edits, or the reason why it is not usable; `edits` names what changed it."""

    state: str  # one of STATES
    image: Picture | None = None
    reason: str = ""
    edits: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preparation:
    """``prepare(pool, index)``: reads, edits and checks an image.

    min_side: least pixels of the shorter side. min_contrast: standard deviation of the grey values below which an image
    is blank. filters: ``module:function`` each, called with an image (H, W, 3) uint8 and its name: True keeps it, False
    drops it, an image replaces it. A filter must return the same for the same image. boxes: regions to blur, such as
    faces, by the name of the image.
    """

    min_side: int = 0
    min_contrast: float = 0.0
    filters: tuple[str, ...] = ()
    boxes: Mapping[str, Sequence[Box]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for text in self.filters:
            load_filter(text)

    def __call__(self, pool: Pool, index: int) -> Prepared:
        name = pool.name(index)
        try:
            image = pool.read(index)
        except ImageError as error:
            return Prepared("unreadable", reason=str(error))
        edits: list[str] = []
        if boxes := self.boxes.get(absolute_name(name)):
            image = blur(image, boxes, name)
            edits.append("blur")
        height, width = image.shape[:2]
        if min(height, width) < self.min_side:
            return Prepared("too small", reason=f"{height}x{width} pixels (height x width)")
        for text in self.filters:
            result = apply_filter(text, image, name)
            if result is False:
                return Prepared("filtered", reason=text)
            if result is not True:
                image = result
                edits.append(text)
        contrast = float(cv2.cvtColor(as_rgb(image), cv2.COLOR_RGB2GRAY).std())
        if contrast < self.min_contrast:
            return Prepared("blank", reason=f"standard deviation of the grey values is {contrast:.1f}")
        return Prepared("fit", image, edits=tuple(edits))

    def missing(self, names: Iterable[str]) -> set[str]:
        """Return the images that have boxes but are not among `names`."""
        return set(self.boxes).difference(map(absolute_name, names))

    def key(self) -> dict[str, Any]:
        """Return plain data that identify this preparation, the source code of its filters included."""
        boxes = hashlib.blake2b(json.dumps(dict(self.boxes), sort_keys=True).encode(), digest_size=8).hexdigest()
        codes = {text: code_digest(load_filter(text)) for text in self.filters}
        return {"min_side": self.min_side, "min_contrast": self.min_contrast, "filters": codes, "boxes": boxes}


def apply_filter(text: str, image: Picture, name: str) -> bool | Picture:
    """Return the checked result of a filter on a copy of an image."""
    try:
        result = load_filter(text)(image.copy(), name)
    except Exception as error:
        raise ValueError(f"filter {text} failed on {name}: {type(error).__name__}: {error}") from error
    if isinstance(result, bool | np.bool_):
        return bool(result)
    if isinstance(result, np.ndarray) and result.dtype == np.uint8 and result.shape[2:] == (3,) and result.size:
        return np.ascontiguousarray(result)
    got = f"an array {result.shape} of {result.dtype}" if isinstance(result, np.ndarray) else repr(result)[:60]
    raise ValueError(f"filter {text} gave {got} for {name}; expected True, False or an image (H, W, 3) of uint8")


@cache
def load_filter(text: str) -> Filter:
    """Import the function that ``module:function`` names, from the working directory or an installed package."""
    module, colon, name = text.partition(":")
    if not (module and colon and name):
        raise ValueError(f"filter {text!r}: expected MODULE:FUNCTION, such as my_filters:safe")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise ValueError(f"filter {text}: {error}; put the module in the working directory or install it") from None
    except AttributeError:
        valid = [key for key, value in vars(sys.modules[module]).items() if callable(value)]
        raise ValueError(f"filter {text}: {module} has no {name}.{did_you_mean(name, valid)}") from None
    if not callable(function):
        raise ValueError(f"filter {text}: {name} is {type(function).__name__}, expected a function of image and name")
    return function


def code_digest(function: Filter) -> str:
    """Return a digest of the file that defines a function; empty for built-in functions."""
    try:
        path = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:
        return ""
    return hashlib.blake2b(Path(path).read_bytes(), digest_size=8).hexdigest() if path else ""


def read_boxes(path: str | Path) -> dict[str, list[Box]]:
    """Read boxes per image from JSON: ``{"a.jpg": [[left, top, right, bottom], ...]}``, relative to its folder."""
    path = Path(path)
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file of boxes: {path}") from None
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f'{path}: expected {{"a.jpg": [[left, top, right, bottom], ...]}}')
    found: dict[str, list[Box]] = {}
    for name, boxes in content.items():
        try:
            found[absolute_name(name, path.parent)] = [(float(x), float(y), float(u), float(v)) for x, y, u, v in boxes]
        except (TypeError, ValueError):
            got = str(boxes)[:60]
            raise ValueError(f"{path}: boxes of {name} are {got}, expected [[left, top, right, bottom], ...]") from None
    return found


def absolute_name(name: str, folder: Path = Path()) -> str:
    """Return the same absolute path for every spelling of an image's name."""
    return name if name.startswith("scenes:") else os.path.abspath(folder / name)  # noqa: PTH100 (shards hold a colon)


def blur(image: Picture, boxes: Sequence[Box], name: str) -> Picture:
    """Return a copy whose boxes are averaged over a few cells and interpolated, so the content cannot be recovered."""
    blurred = image.copy()
    height, width = image.shape[:2]
    for left, top, right, bottom in boxes:
        x, y = max(0, int(np.floor(left))), max(0, int(np.floor(top)))
        u, v = min(width, int(np.ceil(right))), min(height, int(np.ceil(bottom)))
        if x >= u or y >= v:
            box = f"{left:g}, {top:g}, {right:g}, {bottom:g}"
            raise ValueError(f"box {box} holds nothing of {name} ({height}x{width} pixels)")
        step = max(u - x, v - y) / CELLS
        cells = (max(1, round((u - x) / step)), max(1, round((v - y) / step)))
        small = cv2.resize(blurred[y:v, x:u], cells, interpolation=cv2.INTER_AREA)
        blurred[y:v, x:u] = cv2.resize(small, (u - x, v - y), interpolation=cv2.INTER_LINEAR)
    return blurred
