"""Checks of options against their type hints; an error names the value, what was expected and what to do.

An `int` is a count of at least 1, and `Range` annotates the bounds of other numbers. Literals, booleans, sequences and
None are checked as their hints say; other hints are not checked.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, ParamSpec, Union, get_args, get_origin, get_type_hints

P = ParamSpec("P")


@dataclass(frozen=True)
class Range:
    """Numbers of at least `low` (or above it) and at most `high`."""

    low: float
    high: float = math.inf
    above: bool = False


Positive = Annotated[float, Range(0, above=True)]
NotNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
Count = Annotated[int, Range(0)]


def checked(init: Callable[P, None]) -> Callable[P, None]:
    """Make a constructor check its arguments against their type hints first."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        check_options(init, signature.bind(*args, **kwargs).arguments)
        init(*args, **kwargs)

    return wrapper


def check_options(owner: Any, options: Mapping[str, Any]) -> None:
    """Raise ValueError for an option that its type hint, in a function or a dataclass, does not allow."""
    hints = get_type_hints(owner, include_extras=True)
    for name, value in options.items():
        if name in hints:
            _check(name, value, hints[name])


def _check(name: str, value: Any, hint: Any) -> None:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if value is None and NoneType in arguments:
            return
        is_sequence = isinstance(value, Sequence) and not isinstance(value, str)
        kinds = [a for a in arguments if a is not NoneType]
        fitting = [a for a in kinds if (get_origin(a) in (Sequence, tuple)) == is_sequence]
        try:
            _check(name, value, (fitting or kinds)[0])
        except ValueError as error:
            raise ValueError(f"{error}, or null" if NoneType in arguments and not is_sequence else str(error)) from None
    elif origin is Literal:
        check_choice(name, value, arguments)
    elif origin is Annotated:
        check_number(name, value, arguments[1], arguments[0] is int)
    elif origin in (Sequence, tuple):
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ValueError(f"{name}={value!r}: expected a list of values")
        items = (arguments[0],) * len(value) if origin is Sequence or Ellipsis in arguments else arguments
        check_length(name, value, len(items))
        for i, (item, kind) in enumerate(zip(value, items, strict=True)):
            _check(f"{name}[{i}]", item, kind)
    elif hint is bool and not isinstance(value, bool):
        raise ValueError(f"{name}={value!r}: expected true or false")
    elif hint is int and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"{name}={value!r}: expected an integer of at least 1; give a number such as 256")


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise unless `value` is one of `choices`."""
    known = tuple(choices)
    if value not in known:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(repr, known))}")


def check_number(name: str, value: Any, bounds: Range, whole: bool = False) -> None:
    """Raise unless `value` is a finite number within `bounds`, a whole one where it counts."""
    number = isinstance(value, int if whole else int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < bounds.low or value > bounds.high or (bounds.above and value == bounds.low):
        expected = f"{'above' if bounds.above else 'at least'} {bounds.low}"
        expected += f" and at most {bounds.high}" if bounds.high < math.inf else ""
        raise ValueError(f"{name}={value!r}: expected a {'whole ' * whole}number {expected}")


def check_length(name: str, values: Sequence[Any], count: int, per: str = "map") -> None:
    """Raise unless there are `count` values, at least one."""
    if len(values) != count or not count:
        raise ValueError(f"{name}={tuple(values)}: expected {count or 'some'} values, one per {per}")


def check_names(what: str, options: Iterable[str], known: Callable[..., Any], but: Iterable[str] = ()) -> None:
    """Raise for an option that `known` has no parameter for, and for a missing option that has no default."""
    options = tuple(options)
    parameters = {n: p for n, p in inspect.signature(known).parameters.items() if n not in but}
    if wrong := [n for n in options if n not in parameters]:
        raise ValueError(f"{what}: unknown option {wrong[0]!r}; expected some of {', '.join(parameters)}")
    if missing := [n for n, p in parameters.items() if p.default is p.empty and n not in options]:
        raise ValueError(f"{what}: option {missing[0]!r} is missing; add it")


def as_tuple(values: int | Sequence[int]) -> tuple[int, ...]:
    """Return the values as a tuple; a single number stands for one map."""
    return (values,) if isinstance(values, int) else tuple(values)
