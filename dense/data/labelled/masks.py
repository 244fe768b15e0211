"""Masks in files to class numbers, through a declaration of what each value or colour in the file means."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from dense.data.image import ImageError
from dense.data.labelled.sample import IGNORE, DataError

Colour = tuple[int, int, int]  # R, G, B
Value = int | Colour
MOST = 255  # classes: numbers 0 to 254, for 255 is IGNORE
SHADES = {"L;2": 85, "L;4": 17}  # PIL stretches grey of 2 and 4 bits to 0..255
UNKNOWN = -1
MASK_EXTENSIONS = (".png", ".tif", ".tiff", ".bmp", ".gif", ".webp")


@dataclass(frozen=True)
class LabelFormat:
    """How masks are written: class i is what the file writes as one of `values[i]`.

    Values are numbers, or colours (R, G, B) for masks painted in colour. `ignored` ones become `IGNORE`. Any other
    value in a file is an error, for silently it would be a wrong class.
    """

    classes: tuple[str, ...]
    values: tuple[tuple[Value, ...], ...]
    ignored: tuple[Value, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= len(self.classes) <= MOST:
            raise ValueError(
                f"{len(self.classes)} classes: expected 1 to {MOST}, for labels are bytes and {IGNORE} means unknown; "
                "merge classes, or put rare ones under ignore"
            )
        if len(self.values) != len(self.classes):
            raise ValueError(f"{len(self.classes)} classes but values for {len(self.values)}")
        for name in self.classes:
            if not isinstance(name, str) or not name.strip():
                raise ValueError(f"class name {name!r}: expected text")
        owner: dict[Value, str] = {}
        named = [*zip(self.classes, self.values, strict=True), ("ignore", self.ignored)]
        for name, values in named:
            if name != "ignore" and not values:
                raise ValueError(f"class {name!r} has no value in the files; leave it out, or give values or a colour")
            for value in values:
                _check_value(value, name)
                if value in owner:
                    raise ValueError(f"value {value} is declared twice, for {owner[value]!r} and {name!r}")
                owner[value] = name
        twice = sorted({name for name in self.classes if self.classes.count(name) > 1})
        if twice:
            raise ValueError(f"class {twice[0]!r} is named twice; give it one entry with several values")
        if len({isinstance(value, tuple) for value in owner}) > 1:
            raise ValueError("some values are numbers and some are colours; a mask holds either")

    @classmethod
    def numbered(
        cls, classes: Iterable[str], *, zero_label: bool = False, ignored: Sequence[int] = (IGNORE,)
    ) -> LabelFormat:
        """Class i is written as i; with `zero_label`, as i + 1, and 0 means unknown (ADE20K)."""
        names = tuple(classes)
        values = tuple((i + zero_label,) for i in range(len(names)))
        extra = tuple(value for value in ignored if (value,) not in values)
        return cls(names, values, tuple(dict.fromkeys((0, *extra) if zero_label else extra)))

    @property
    def by_colour(self) -> bool:
        return isinstance(self.values[0][0], tuple)

    @cached_property
    def _table(self) -> tuple[NDArray[np.int64], NDArray[np.int16]]:
        """Codes in order, and the label of each."""
        pairs = [(_code(value), label) for label, values in enumerate(self.values) for value in values]
        pairs += [(_code(value), IGNORE) for value in self.ignored]
        codes, labels = zip(*sorted(pairs), strict=True)
        return np.array(codes, np.int64), np.array(labels, np.int16)

    @cached_property
    def _bytes(self) -> NDArray[np.int16]:
        """Label of each byte, for the common kind of mask."""
        codes, labels = self._table
        table = np.full(256, UNKNOWN, np.int16)
        small = (codes >= 0) & (codes < 256)
        table[codes[small]] = labels[small]
        return table

    def labels(self, raw: NDArray[Any], name: str = "the mask") -> NDArray[np.uint8]:
        """Class numbers (H, W) of a mask as stored: numbers (H, W), or colours (H, W, 3)."""
        raw = self._plain(raw, name)
        if raw.dtype == np.uint8:
            found = self._bytes[raw]
        else:
            codes, labels = self._table
            place = np.minimum(np.searchsorted(codes, raw), len(codes) - 1)
            found = np.where(codes[place] == raw, labels[place], np.int16(UNKNOWN))
        if (wrong := found == UNKNOWN).any():
            raise DataError(self._undeclared(raw, wrong, name))
        return found.astype(np.uint8)

    def _plain(self, raw: NDArray[Any], name: str) -> NDArray[Any]:
        """One number a pixel."""
        if self.by_colour:
            if raw.ndim == 2:
                raise DataError(
                    f"{name} holds numbers, and classes are declared by colour; declare their values instead"
                )
            wide = raw.astype(np.int64)
            return (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]
        if raw.ndim == 3:
            if (raw != raw[..., :1]).any():
                raise DataError(
                    f"{name} is painted in colours, and classes are declared by number; give each class its colour in "
                    "classes.yaml, for instance `sky: {colour: [70, 130, 180]}`"
                )
            raw = raw[..., 0]  # grey stored as colour
        return raw

    def _undeclared(self, raw: NDArray[Any], wrong: NDArray[np.bool_], name: str) -> str:
        values, counts = np.unique(raw[wrong], return_counts=True)
        shown = ", ".join(_words(int(value), self.by_colour) for value in values[:8])
        more = f" and {len(values) - 8} more" if len(values) > 8 else ""
        known = sorted(self._table[0].tolist())
        declared = ", ".join(_words(code, self.by_colour) for code in known[:6]) + (", ..." if len(known) > 6 else "")
        what = ("colour" if self.by_colour else "value") + ("s" if len(values) > 1 else "")
        return (
            f"{name} holds the {what} {shown}{more} at {int(counts.sum())} pixels, but only {declared} are declared; "
            f"add {'them' if len(values) > 1 else 'it'} to a class or to ignore"
        )


def read_labels(path: str | Path, form: LabelFormat) -> NDArray[np.uint8]:
    """The class of every pixel (H, W) of a mask, `IGNORE` where the file says unknown."""
    return form.labels(read_mask(path, form.by_colour), str(path))


def read_mask(path: str | Path, colours: bool = False) -> NDArray[Any]:
    """A mask as it is stored: numbers (H, W) or colours (H, W, 3). A palette's numbers are its colours' if `colours`."""
    path = Path(path)
    if path.suffix.lower() in (".jpg", ".jpeg"):
        raise DataError(f"{path} is a JPEG, which changes values near every edge; masks must be PNG or TIFF")
    try:
        with Image.open(path) as image:
            mode = image.tile[0].args if image.tile else None
            image.load()
            if image.mode == "P":
                return np.array(image.convert("RGB")) if colours else np.array(image)
            if image.mode in ("1", "L"):
                grey = np.array(image.convert("RGB") if colours else image)
                return grey.astype(np.uint8) // (1 if colours else SHADES.get(str(mode), 1))
            if image.mode.startswith("I"):
                return np.array(image)
            if image.mode in ("RGB", "RGBA", "LA"):
                values = np.array(image.convert("RGBA"))
                if (values[..., 3] != 255).any():
                    raise DataError(f"{path} is transparent in places; a mask needs one value at every pixel")
                return values[..., :3]
            raise DataError(f"{path} is an image of mode {image.mode}; a mask holds whole numbers or RGB colours")
    except FileNotFoundError:
        raise ImageError(f"no such mask: {path}") from None
    except UnidentifiedImageError:
        raise ImageError(f"{path} is not an image of a known format") from None
    except DataError:
        raise
    except Exception as error:  # PIL's readers raise nearly anything on damaged bytes
        raise ImageError(f"{path} is damaged or truncated ({error or type(error).__name__})") from error


def _check_value(value: Any, name: str) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    colour = isinstance(value, tuple) and len(value) == 3 and all(isinstance(c, int) and 0 <= c <= 255 for c in value)
    if not (whole or colour):
        raise ValueError(
            f"{name!r} has the value {value!r}: expected a whole number, or a colour [R, G, B] of 0 to 255"
        )


def _code(value: Value) -> int:
    return value[0] << 16 | value[1] << 8 | value[2] if isinstance(value, tuple) else value


def _words(code: int, colour: bool) -> str:
    return f"({code >> 16}, {code >> 8 & 255}, {code & 255})" if colour else str(code)
