"""The nearest valid name for a wrong one: the only place that guesses what a person meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UnknownOption(TypeError):
    """An option that something does not take: wrong usage, told in words for people."""


def nearest(wrong: str, valid: Iterable[str], count: int = 3) -> list[str]:
    """The `count` names most like `wrong`, best first; without regard to case, dashes and underscores."""

    def plain(name: str) -> str:
        return name.lower().replace("-", "_").strip("_")

    by_plain: dict[str, str] = {}
    for name in valid:
        by_plain.setdefault(plain(name), name)
    close = difflib.get_close_matches(plain(wrong), by_plain, n=count, cutoff=0.55)
    return [by_plain[name] for name in close]


def did_you_mean(wrong: str, valid: Iterable[str], count: int = 3, prefix: str = "") -> str:
    """' Did you mean a, b or c?' or an empty string, to be put behind an error."""
    names = [prefix + name for name in nearest(wrong, valid, count)]
    if not names:
        return ""
    *first, last = names
    return f" Did you mean {', '.join(first)}{' or ' if first else ''}{last}?"
