"""Which images are fit to be learnt from: sizes, blank ones, people's own filters, and faces that are blurred."""

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

from dense.data.image import ImageError
from dense.media.draw import Picture
from dense.suggest import did_you_mean

Filter = Callable[[Picture, str], "bool | Picture"]
Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels
STATES = ("fit", "unreadable", "too small", "blank", "filtered")
CELLS = 6  # a blurred box keeps so many cells along its longer side


@dataclass(frozen=True)
class Prepared:
    """An image as it would be learnt from, or why it is not fit; `edits` names what changed it."""

    state: str  # of STATES
    image: Picture | None = None
    words: str = ""
    edits: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preparation:
    """``prepare(pool, index)``: edits an image and judges it.

    min_side: pixels of the shorter side. min_contrast: standard deviation of the grey values below which an image is
    blank. filters: ``module:function`` each, called with an image (H, W, 3) uint8 and its name: True keeps it, False
    drops it, an image takes its place. They must give the same target to the same image. boxes: of faces, say, by name.
    """

    min_side: int = 0
    min_contrast: float = 0.0
    filters: tuple[str, ...] = ()
    boxes: Mapping[str, Sequence[Box]] = field(default_factory=dict)

    def __call__(self, pool: Any, index: int) -> Prepared:
        name = pool.name(index)
        try:
            image = pool.read(index)
        except ImageError as error:
            return Prepared("unreadable", words=str(error))
        edits: list[str] = []
        if boxes := self.boxes.get(key_of(name)):
            image = blur(image, boxes, name)
            edits.append("blur")
        height, width = image.shape[:2]
        if min(height, width) < self.min_side:
            return Prepared("too small", words=f"{height}x{width} pixels (height x width)")
        for text in self.filters:
            target = ask(text, image, name)
            if target is False:
                return Prepared("filtered", words=text)
            if target is not True:
                image = target
                edits.append(text)
        contrast = float(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).std())
        if contrast < self.min_contrast:
            return Prepared("blank", words=f"grey values differ by {contrast:.1f} (standard deviation)")
        return Prepared("fit", image, edits=tuple(edits))

    def unknown(self, names: Iterable[str]) -> set[str]:
        """Images that boxes are of and that are not among these."""
        return set(self.boxes).difference(map(key_of, names))

    def key(self) -> dict[str, Any]:
        """Plain data that change with anything this does, the code of filters included."""
        boxes = hashlib.blake2b(json.dumps(dict(self.boxes), sort_keys=True).encode(), digest_size=8).hexdigest()
        codes = {text: code_digest(find_filter(text)) for text in self.filters}
        return {"min_side": self.min_side, "min_contrast": self.min_contrast, "filters": codes, "boxes": boxes}


def ask(text: str, image: Picture, name: str) -> bool | Picture:
    """What a filter says of an image, checked."""
    try:
        target = find_filter(text)(image.copy(), name)
    except Exception as error:
        raise ValueError(f"filter {text} failed on {name}: {type(error).__name__}: {error}") from error
    if isinstance(target, bool | np.bool_):
        return bool(target)
    if isinstance(target, np.ndarray) and target.dtype == np.uint8 and target.shape[2:] == (3,) and target.size:
        return np.ascontiguousarray(target)
    got = f"an array {target.shape} of {target.dtype}" if isinstance(target, np.ndarray) else repr(target)[:60]
    raise ValueError(f"filter {text} gave {got} for {name}; expected True, False or an image (H, W, 3) of uint8")


@cache
def find_filter(text: str) -> Filter:
    """The function that ``module:function`` names; modules of the working directory count."""
    module, colon, name = text.partition(":")
    if not (module and colon and name):
        raise ValueError(f"filter {text!r}: expected MODULE:FUNCTION, such as my_filters:safe")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise ValueError(f"filter {text}: {error}; put the module in the working directory or install it") from None
    except AttributeError:
        valid = [key for key, value in vars(sys.modules[module]).items() if callable(value)]
        raise ValueError(f"filter {text}: {module} has no {name}.{did_you_mean(name, valid)}") from None
    if not callable(found):
        raise ValueError(f"filter {text}: {name} is {type(found).__name__}, expected a function of image and name")
    return found


def code_digest(function: Filter) -> str:
    """Changes with the file that defines a function; empty where there is none."""
    try:
        path = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:
        return ""
    return hashlib.blake2b(Path(path).read_bytes(), digest_size=8).hexdigest() if path else ""


def read_boxes(path: str | Path) -> dict[str, list[Box]]:
    """Boxes by image from JSON: ``{"a.jpg": [[left, top, right, bottom], ...]}``, paths relative to the file's folder."""
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
            found[key_of(name, path.parent)] = [(float(x), float(y), float(u), float(v)) for x, y, u, v in boxes]
        except (TypeError, ValueError):
            raise ValueError(
                f"{path}: boxes of {name} are {str(boxes)[:60]}, expected [[left, top, right, bottom], ...]"
            ) from None
    return found


def key_of(name: str, folder: Path = Path()) -> str:
    """One name for one image, however its path is written."""
    return name if name.startswith("scenes:") else os.path.abspath(folder / name)  # noqa: PTH100 (shards hold a colon)


def blur(image: Picture, boxes: Sequence[Box], name: str) -> Picture:
    """A copy of an image whose boxes keep a few cells, smoothly joined: what was there cannot be won back."""
    blurred = image.copy()
    height, width = image.shape[:2]
    for left, top, right, bottom in boxes:
        x, y = max(0, int(np.floor(left))), max(0, int(np.floor(top)))
        u, v = min(width, int(np.ceil(right))), min(height, int(np.ceil(bottom)))
        if x >= u or y >= v:
            raise ValueError(
                f"box {left:g}, {top:g}, {right:g}, {bottom:g} holds nothing of {name} ({height}x{width} pixels)"
            )
        part = blurred[y:v, x:u]
        step = max(u - x, v - y) / CELLS
        cells = (max(1, round((u - x) / step)), max(1, round((v - y) / step)))
        small = cv2.resize(part, cells, interpolation=cv2.INTER_AREA)
        blurred[y:v, x:u] = cv2.resize(small, (u - x, v - y), interpolation=cv2.INTER_LINEAR)
    return blurred
