"""How masks and depth maps are stored: what the values in a file mean, as Python objects, plain data or YAML."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
import yaml
from numpy.typing import NDArray

from dense.data.labelled.sample import IGNORE, DataError, DepthKind
from dense.suggest import did_you_mean

T = TypeVar("T")
Value = int | tuple[int, int, int]  # a number, or a colour R, G, B
MAX_CLASSES = 255  # numbers 0 to 254, since 255 is IGNORE
UNDECLARED = -1
CLASSES_EXAMPLE = "{0: sky, 1: ground, ignore: [255]}"
Unknown = float | tuple[float, float]  # a number, or all numbers from one to another
DEPTH_EXAMPLE = "{kind: metric, scale: 1000} for whole numbers of millimetres, or {kind: inverse_relative} for floats"


@dataclass(frozen=True)
class LabelFormat:
    """How values in masks map to classes: class i is stored as one of `values[i]`.

    Values are numbers, or colours (R, G, B) in masks that are painted in colour. Those in `ignored` become `IGNORE`.
    Any other value in a file raises DataError, since it would silently become a wrong class. `things` names the classes
    of countable objects, where maps of objects lie beside the masks.
    """

    classes: tuple[str, ...]
    values: tuple[tuple[Value, ...], ...]
    ignored: tuple[Value, ...] = ()
    things: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.classes) <= MAX_CLASSES:
            raise ValueError(
                f"{len(self.classes)} classes: expected 1 to {MAX_CLASSES}, since labels are bytes and {IGNORE} means "
                "unknown; merge classes, or put rare ones under ignore"
            )
        if len(self.values) != len(self.classes):
            raise ValueError(f"{len(self.classes)} classes but values for {len(self.values)}")
        owner: dict[Value, str] = {}
        for name, values in (*zip(self.classes, self.values, strict=True), ("ignore", self.ignored)):
            if not isinstance(name, str) or not name.strip():
                raise ValueError(f"class name {name!r}: expected text (in quotes, if YAML takes it for something else)")
            if not values and name != "ignore":
                raise ValueError(f"class {name!r} has no value in the files; leave it out, or give values or a colour")
            for value in values:
                _check_value(value, name)
                if value in owner:
                    raise ValueError(f"value {value} is declared twice, for {owner[value]!r} and {name!r}")
                owner[value] = name
        twice = sorted({name for name in self.classes if self.classes.count(name) > 1})
        if twice:
            raise ValueError(f"class {twice[0]!r} is named twice; give it one entry with several values")
        for name in self.things or ():
            if name not in self.classes:
                hint = did_you_mean(str(name), self.classes)
                raise ValueError(f"things: {name!r} is none of the classes {', '.join(self.classes)}.{hint}")
        if len({isinstance(value, tuple) for value in owner}) > 1:
            raise ValueError("some values are numbers and some are colours; a mask holds either")

    @classmethod
    def numbered(
        cls, classes: Iterable[str], *, zero_label: bool = False, ignored: Sequence[int] = (IGNORE,)
    ) -> LabelFormat:
        """Return the format in which class i is stored as i; with `zero_label`, as i + 1, and 0 is unknown (ADE20K)."""
        names = tuple(classes)
        values = tuple((i + zero_label,) for i in range(len(names)))
        extra = tuple(value for value in ignored if (value,) not in values)
        return cls(names, values, tuple(dict.fromkeys((0, *extra) if zero_label else extra)))

    def knowing(self, nodata: float | None) -> LabelFormat:
        """Return the format with the number that a GeoTIFF declares as unknown, unless it is that of a class."""
        declared = {value for values in (*self.values, self.ignored) for value in values}
        if nodata is None or self.by_colour or nodata != nodata // 1 or int(nodata) in declared:
            return self
        return replace(self, ignored=(*self.ignored, int(nodata)))

    @property
    def by_colour(self) -> bool:
        return isinstance(self.values[0][0], tuple)

    @cached_property
    def _table(self) -> tuple[NDArray[np.int64], NDArray[np.int16]]:
        """All declared codes in ascending order, and the label of each."""
        pairs = [(_code(value), label) for label, values in enumerate(self.values) for value in values]
        pairs += [(_code(value), IGNORE) for value in self.ignored]
        codes, labels = zip(*sorted(pairs), strict=True)
        return np.array(codes, np.int64), np.array(labels, np.int16)

    @cached_property
    def _byte_table(self) -> NDArray[np.int16]:
        """The label of every byte, for masks of 8 bits."""
        codes, labels = self._table
        table = np.full(256, UNDECLARED, np.int16)
        small = (codes >= 0) & (codes < 256)
        table[codes[small]] = labels[small]
        return table

    def labels(self, raw: NDArray[Any], name: str = "the mask") -> NDArray[np.uint8]:
        """Return class numbers (H, W) of a mask as it is stored: numbers (H, W), or colours (H, W, 3)."""
        raw = self._codes(raw, name)
        if raw.dtype == np.uint8:
            found = self._byte_table[raw]
        else:
            codes, labels = self._table
            place = np.minimum(np.searchsorted(codes, raw), len(codes) - 1)
            found = np.where(codes[place] == raw, labels[place], np.int16(UNDECLARED))
        if (wrong := found == UNDECLARED).any():
            raise DataError(self._undeclared(raw, wrong, name))
        return found.astype(np.uint8)

    def _codes(self, raw: NDArray[Any], name: str) -> NDArray[Any]:
        """Return one number per pixel: H, W."""
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
        shown = ", ".join(_shown(int(value), self.by_colour) for value in values[:8])
        more = f" and {len(values) - 8} more" if len(values) > 8 else ""
        codes = sorted(self._table[0].tolist())
        declared = ", ".join(_shown(code, self.by_colour) for code in codes[:6]) + (", ..." if len(codes) > 6 else "")
        what = ("colour" if self.by_colour else "value") + ("s" if len(values) > 1 else "")
        return (
            f"{name} holds the {what} {shown}{more} at {int(counts.sum())} pixels, but only {declared} are declared; "
            f"add {'them' if len(values) > 1 else 'it'} to a class or to ignore"
        )


def _check_value(value: Any, name: str) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    colour = isinstance(value, tuple) and len(value) == 3 and all(isinstance(c, int) and 0 <= c <= 255 for c in value)
    if not (whole or colour):
        raise ValueError(
            f"{name!r} has the value {value!r}: expected a whole number, or a colour [R, G, B] of 0 to 255"
        )


def _code(value: Value) -> int:
    return value[0] << 16 | value[1] << 8 | value[2] if isinstance(value, tuple) else value


def _shown(code: int, colour: bool) -> str:
    return f"({code >> 16}, {code >> 8 & 255}, {code & 255})" if colour else str(code)


@dataclass(frozen=True)
class DepthFormat:
    """How depth is stored: depth is the number in the file divided by `scale`.

    kind: `metric` (metres along the camera's axis) or `inverse_relative` (one over depth, up to scale and shift)
    scale: units of the file in one metre: 1000 for millimetres, 256 for KITTI. None means 1 for floats; files of whole
        numbers need a scale
    invalid: numbers in the file that mean unknown, and ranges of them, both ends included, such as
        ``(0, (60000, 65535))``; by default 0 in metric depth, and none in inverse depth, where 0 is infinitely far. NaN
        is always unknown
    infinite: numbers in the file that mean infinitely far, besides inf
    focal: focal length of the images in pixels, where one camera took them all and it is known
    """

    kind: DepthKind = "metric"
    scale: float | None = None
    invalid: tuple[Unknown, ...] | None = None
    infinite: tuple[float, ...] = ()
    focal: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(DepthKind):
            hint = did_you_mean(str(self.kind), get_args(DepthKind))
            raise ValueError(
                f"kind={self.kind!r}: expected metric (metres) or inverse_relative (1 / depth, without a unit).{hint}"
            )
        for name, meaning in (("scale", "units of the file in one metre"), ("focal", "the focal length in pixels")):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and 0 < value < float("inf")):
                raise ValueError(f"{name}={value!r}: expected a positive number, {meaning}")

    def depth(self, raw: NDArray[Any], name: str = "the depth map") -> NDArray[np.float32]:
        """Return depth (H, W) of a map as it is stored."""
        if raw.ndim == 3 and 1 in (raw.shape[0], raw.shape[2]):
            raw = raw[0] if raw.shape[0] == 1 else raw[..., 0]
        if raw.ndim != 2 or raw.dtype.kind not in "fiu":
            raise DataError(f"{name} holds {raw.dtype} {raw.shape}; expected numbers of shape (H, W)")
        if raw.dtype.kind != "f" and self.scale is None:
            raise DataError(
                f"{name} holds whole numbers ({raw.dtype}, up to {raw.max(initial=0)}) and no scale is given; declare "
                "how many of its units make a metre, for instance scale: 1000 for millimetres"
            )
        depth = raw.astype(np.float32)
        unknown, far = self.unknown(depth), np.isin(depth, np.array(self.infinite, np.float32))
        if self.scale is not None:
            depth /= np.float32(self.scale)
        depth[far] = np.inf if self.kind == "metric" else 0
        depth[unknown] = np.nan
        if self.kind == "inverse_relative" and np.isinf(depth).any():
            raise DataError(f"{name} holds infinite inverse depth; declare what it means under invalid")
        if (negative := raw[depth < 0]).size:
            low, high = negative.min(), negative.max()
            raise DataError(
                f"{name} holds negative depth ({low / (self.scale or 1):g}); if it means unknown, declare it, for "
                f"instance {self.declaring(low, high if high > low else None)}"
            )
        return depth

    def knowing(self, nodata: float | None) -> DepthFormat:
        """Return the format with the number that a GeoTIFF declares as unknown."""
        return self if nodata is None else replace(self, invalid=(*self._invalid, nodata))

    def unknown(self, raw: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return which numbers of a file are declared as unknown."""
        single = [value for value in self._invalid if not isinstance(value, tuple)]
        found = np.isin(raw, np.array(single, np.float32))
        for value in self._invalid:
            if isinstance(value, tuple):
                found |= (raw >= np.float32(value[0])) & (raw <= np.float32(value[1]))
        return found

    def declaring(self, low: float, high: float | None = None) -> str:
        """Return the line of depth.yaml that declares a number, or all from `low` to `high`, as unknown as well."""
        several = [*self._invalid, low if high is None else (low, high)]
        shown = (f"[{v[0]:.9g}, {v[1]:.9g}]" if isinstance(v, tuple) else f"{v:.9g}" for v in several)
        return f"invalid: [{', '.join(shown)}]"

    @property
    def _invalid(self) -> tuple[Unknown, ...]:
        return ((0.0,) if self.kind == "metric" else ()) if self.invalid is None else self.invalid


# ---- from plain data or YAML


def label_format(given: str | Path | Sequence[str] | Mapping[Any, Any] | LabelFormat) -> LabelFormat:
    """Return the format that `classes` of a data set declares.

    Classes are names in order, a mapping from values to names or from names to values, or a YAML file with such:
    ``[sky, ground]`` | ``{0: sky, 7: ground, ignore: [255]}`` | ``{sky: {values: [0, 3]}, ground: {values: [7]}}`` |
    ``{sky: {colour: [70, 130, 180]}, ground: {colour: [0, 0, 0]}, ignore: [[224, 224, 192]]}``, each of them also under
    the key ``classes``. Without ``ignore``, 255 is ignored unless it is a class. ``things: [car, person]`` names the
    classes of countable objects.
    """
    return given if isinstance(given, LabelFormat) else _parsed(given, _labels)


def depth_format(given: str | Path | Mapping[str, Any] | DepthFormat) -> DepthFormat:
    """Return the format that `depth` of a data set declares: fields of `DepthFormat`, or a YAML file with these."""
    return given if isinstance(given, DepthFormat) else _parsed(given, _depth)


def _parsed(given: Any, parse: Callable[[Any], T]) -> T:
    """Return what plain data or the YAML file at a path declares; errors name the file."""
    if not isinstance(given, str | Path):
        return parse(given)
    try:
        return parse(yaml.safe_load(Path(given).read_text(encoding="utf-8")))
    except OSError as error:
        raise FileNotFoundError(f"{given} cannot be read ({error.strerror}); expected a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{given} is not YAML: {error}") from None
    except ValueError as error:
        raise ValueError(f"{given}: {error}") from None


def _labels(data: Any) -> LabelFormat:
    ignored = things = None
    if isinstance(data, Mapping):
        rest = dict(data)
        ignored = rest.pop("ignore", None)
        things = rest.pop("things", None) if isinstance(rest.get("things"), list) else None
        data = rest.pop("classes", rest)
        if rest and data is not rest:
            raise ValueError(f"unknown key {next(iter(rest))!r} besides classes, ignore and things")
    if not data or not isinstance(data, Mapping | list | tuple):
        raise ValueError(f"expected names of classes, for instance {CLASSES_EXAMPLE}, got {data!r}")
    names: tuple[Any, ...]
    values: tuple[tuple[Value, ...], ...]
    if not isinstance(data, Mapping):
        names, values = tuple(data), tuple((number,) for number in range(len(data)))
    elif all(isinstance(key, int) for key in data):
        given = list(data.values())
        names = tuple(name for place, name in enumerate(given) if name not in given[:place])  # values may share a name
        values = tuple(tuple(value for value, other in data.items() if other == name) for name in names)
    else:
        names, values = tuple(data), tuple(_values(name, entry) for name, entry in data.items())
    named = None if things is None else tuple(things)
    if ignored is not None:
        return LabelFormat(names, values, _values("ignore", ignored), named)
    usual = not any(isinstance(value, tuple) or value == IGNORE for several in values for value in several)
    return LabelFormat(names, values, (IGNORE,) if usual else (), named)


def _values(name: Any, entry: Any) -> tuple[Value, ...]:
    """Return the values of a class: a number, or a list of numbers or colours, or either as in `{colour: ...}`."""
    flat = False  # whether a list of numbers is one colour
    if isinstance(entry, Mapping):
        key = str(next(iter(entry), ""))
        if len(entry) != 1 or key.removesuffix("s") not in ("value", "colour", "color"):
            hint = did_you_mean(key, ("values", "colour"))
            raise ValueError(f"class {name!r} has {dict(entry)!r}: expected values or colour.{hint}")
        entry, flat = entry[key], key in ("colour", "color")
    entries = entry if isinstance(entry, list | tuple) and not flat else [entry]
    return tuple(tuple(one) if isinstance(one, list) else one for one in entries)


def _depth(data: Any) -> DepthFormat:
    if not isinstance(data, Mapping) or "kind" not in data:
        raise ValueError(f"expected at least kind, for instance {DEPTH_EXAMPLE}, got {data!r}")
    names = [field.name for field in fields(DepthFormat)]
    for key in data:
        if key not in names:
            raise ValueError(f"unknown key {key!r}: expected {', '.join(names)}.{did_you_mean(str(key), names)}")
    several = {key: _numbers(key, data[key]) for key in ("invalid", "infinite") if data.get(key) is not None}
    return DepthFormat(**{**data, **several})


def _numbers(key: str, value: Any) -> tuple[Any, ...]:
    """Return numbers, and of `invalid` also ranges, [low, high]."""
    values = value if isinstance(value, list | tuple) else [value]
    pairs = [tuple(one) for one in values if isinstance(one, list | tuple)]
    flat = [one for one in values if not isinstance(one, list | tuple)] + [end for pair in pairs for end in pair]
    if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in flat):
        raise ValueError(f"{key}={value!r}: expected numbers")
    if any(key != "invalid" or len(pair) != 2 or pair[0] > pair[1] for pair in pairs):
        expected = "numbers, or ranges [low, high]" if key == "invalid" else "numbers"
        raise ValueError(f"{key}={value!r}: expected {expected}")
    return tuple((float(one[0]), float(one[1])) if isinstance(one, list | tuple) else float(one) for one in values)
