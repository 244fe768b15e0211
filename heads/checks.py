"""Checks of options: an error names the value, what was expected and what to do."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any


def one_of(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise unless `value` is one of `choices`."""
    known = tuple(choices)
    if value not in known:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(repr, known))}")


def positive_integer(name: str, value: Any) -> None:
    """Raise unless `value` is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r}: expected an integer of at least 1; give a number such as 256")


def boolean(name: str, value: Any, optional: bool = False) -> None:
    """Raise unless `value` is true or false (or None, where it is optional)."""
    if not isinstance(value, bool) and not (optional and value is None):
        raise ValueError(f"{name}={value!r}: expected true or false{' or null' if optional else ''}")


def number(name: str, value: Any, low: float, high: float = math.inf, open_low: bool = False) -> None:
    """Raise unless `value` is a finite number in [low, high], or (low, high] when `open_low`."""
    fine = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not fine or value < low or value > high or (open_low and value == low):
        expected = f"{'above' if open_low else 'at least'} {low}" + (f" and at most {high}" if high < math.inf else "")
        raise ValueError(f"{name}={value!r}: expected a number {expected}")


def channels(name: str, value: int | Iterable[int]) -> tuple[int, ...]:
    """Channel counts, one a map, as a tuple; a single number stands for one map."""
    counts = (value,) if isinstance(value, int) else tuple(value)
    if not counts:
        raise ValueError(f"{name}={value!r}: expected the channels of every map, such as (384, 384, 384, 384)")
    for i, count in enumerate(counts):
        positive_integer(f"{name}[{i}]", count)
    return counts
