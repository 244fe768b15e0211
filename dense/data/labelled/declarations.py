"""What a data set says about its own files, in YAML or plain data: names of classes, and how depth is stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from dense.data.labelled.depth import DepthFormat
from dense.data.labelled.masks import LabelFormat, Value
from dense.data.labelled.sample import IGNORE
from dense.suggest import did_you_mean

T = TypeVar("T")
CLASSES_EXAMPLE = "{0: sky, 1: ground, ignore: [255]}"
DEPTH_EXAMPLE = "{kind: metric, scale: 1000} for whole numbers of millimetres, or {kind: inverse_relative} for floats"


def label_format(given: str | Path | Sequence[str] | Mapping[Any, Any] | LabelFormat) -> LabelFormat:
    """What `classes` of a data set means: names in order, a mapping from values to names or from names to values, or a
    YAML file with one of these.

    ``[sky, ground]`` | ``{0: sky, 7: ground, ignore: [255]}`` | ``{sky: {values: [0, 3]}, ground: {values: [7]}}`` |
    ``{sky: {colour: [70, 130, 180]}, ground: {colour: [0, 0, 0]}, ignore: [[224, 224, 192]]}``, each of them perhaps
    under the key ``classes``. Without ``ignore``, 255 is ignored unless it is a class.
    """
    if isinstance(given, LabelFormat):
        return given
    return _from_file(given, _labels) if isinstance(given, str | Path) else _labels(given)


def depth_format(given: str | Path | Mapping[str, Any] | DepthFormat) -> DepthFormat:
    """What `depth` of a data set means: fields of `DepthFormat`, or a YAML file with these; `kind` must be said."""
    if isinstance(given, DepthFormat):
        return given
    return _from_file(given, _depth) if isinstance(given, str | Path) else _depth(given)


def _from_file(path: str | Path, parse: Callable[[Any], T]) -> T:
    try:
        return parse(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise FileNotFoundError(f"{path} cannot be read ({error.strerror}); expected a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _labels(data: Any) -> LabelFormat:
    data, ignored = _without_ignore(data)
    if not data or not isinstance(data, Mapping | list | tuple):
        raise ValueError(f"expected names of classes, for instance {CLASSES_EXAMPLE}, got {data!r}")
    pairs: list[tuple[str, tuple[Value, ...]]]
    if not isinstance(data, Mapping):
        pairs = [(_name(name), (number,)) for number, name in enumerate(data)]
    elif all(isinstance(key, int) for key in data):
        pairs = list(_gathered(data).items())
    else:
        pairs = [(_name(name), _values(name, entry)) for name, entry in data.items()]
    names, values = tuple(name for name, _ in pairs), tuple(several for _, several in pairs)
    if ignored is None:
        usual = not any(isinstance(value, tuple) or value == IGNORE for several in values for value in several)
        return LabelFormat(names, values, (IGNORE,) if usual else ())
    return LabelFormat(names, values, _several(ignored))


def _without_ignore(data: Any) -> tuple[Any, Any]:
    """The declaration of classes, and that of what is ignored."""
    if not isinstance(data, Mapping):
        return data, None
    entries = dict(data)
    ignored = entries.pop("ignore", None)
    if "classes" not in entries:
        return entries, ignored
    classes = entries.pop("classes")
    if entries:
        raise ValueError(f"unknown key {next(iter(entries))!r} beside classes and ignore")
    return classes, ignored


def _gathered(data: Mapping[int, Any]) -> dict[str, tuple[Value, ...]]:
    """Values by name: several may share one."""
    table: dict[str, tuple[Value, ...]] = {}
    for value, name in data.items():
        table[_name(name)] = (*table.get(_name(name), ()), value)
    return table


def _name(name: Any) -> str:
    if not isinstance(name, str):
        raise ValueError(f"class name {name!r}: expected text (in quotes, if YAML takes it for something else)")
    return name


def _values(name: Any, entry: Any) -> tuple[Value, ...]:
    """What a class is written as: `{values: [0, 3]}`, `{colour: [70, 130, 180]}`, or either without the key."""
    if isinstance(entry, Mapping):
        keys = ("value", "values", "colour", "colours", "color", "colors")
        if len(entry) != 1 or next(iter(entry)) not in keys:
            hint = did_you_mean(str(next(iter(entry), "")), ("values", "colour"))
            raise ValueError(f"class {name!r} has {dict(entry)!r}: expected values or colour.{hint}")
        key, entry = next(iter(entry.items()))
        if key in ("colour", "color"):
            entry = [entry]
    return _several(entry)


def _several(entry: Any) -> tuple[Value, ...]:
    entries = entry if isinstance(entry, list | tuple) else [entry]
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


def _numbers(key: str, value: Any) -> tuple[float, ...]:
    values = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(one, int | float) for one in values):
        raise ValueError(f"{key}={value!r}: expected numbers")
    return tuple(float(one) for one in values)
