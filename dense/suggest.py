"""The nearest valid name for a wrong one, and public names that load on first use."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any


class UsageError(Exception):
    """Wrong usage of a command line, or of a call that stands for one; the message is the line to show."""


class UnknownOption(TypeError):
    """A keyword argument that does not exist; on the command line it counts as wrong usage."""


def options_of(*functions: Callable[..., Any]) -> list[str]:
    """Return the names of the keyword-only parameters of functions."""
    return [
        name
        for function in functions
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]


def check_options(owner: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise for a keyword argument that is not known."""
    names = sorted(set(known))
    if unknown := [name for name in given if name not in names]:
        hint = did_you_mean(unknown[0], names) or f" It has {', '.join(names)}."
        raise UnknownOption(f"{owner} has no option {unknown[0]!r}.{hint}")


def nearest(wrong: str, valid: Iterable[str], count: int = 3) -> list[str]:
    """Return the `count` names most similar to `wrong`, best first, ignoring case, dashes and underscores."""

    def plain(name: str) -> str:
        return name.lower().replace("-", "_").strip("_")

    by_plain: dict[str, str] = {}
    for name in valid:
        by_plain.setdefault(plain(name), name)
    close = difflib.get_close_matches(plain(wrong), by_plain, n=count, cutoff=0.55)
    return [by_plain[name] for name in close]


def did_you_mean(wrong: str, valid: Iterable[str], count: int = 3, prefix: str = "") -> str:
    """Return ' Did you mean a, b or c?', or an empty string, to append to an error."""
    return as_question(prefix + name for name in nearest(wrong, valid, count))


def as_question(names: Iterable[str]) -> str:
    """Return ' Did you mean a, b or c?', or an empty string without names."""
    *first, last = [*names] or [""]
    return f" Did you mean {', '.join(first)}{' or ' if first else ''}{last}?" if last else ""


def lazily(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module's ``__getattr__`` that imports a public name on first use.

    homes: name -> the module that defines it, or the submodule of that name.
    """

    @functools.cache  # jsonargparse asks every module of a class for the same missing names, over and over
    def hint(name: str) -> str:
        return "" if name.startswith("_") else f".{did_you_mean(name, homes)}"

    def load(name: str) -> Any:
        if name in homes:
            home = importlib.import_module(homes[name])
            return home if homes[name] == f"{package}.{name}" else getattr(home, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}{hint(name)}")

    return load


def former(package: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module's ``__getattr__`` that warns about the former name of something and returns it."""

    def load(name: str) -> Any:
        if name in names:
            warnings.warn(f"{package}.{name} is now {package}.{names[name]}", FutureWarning, stacklevel=2)
            return getattr(importlib.import_module(package), names[name])
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return load


def wrong_name(message: str) -> str | None:
    """Return the wrong name that an argument error quotes, with its dashes if it has any."""
    patterns = (
        r"unrecognized arguments?:? (\S+)",
        r"invalid choice: '([^']+)'",
        r"[Kk]ey ['\"]?([\w.\-]+)['\"]? is not expected",
        r"No action for key ['\"]?([\w.\-]+)['\"]? to",
        r"Option ['\"]?([\w.\-]+)['\"]? is not accepted",
        r"Unexpected keyword arguments?:? ['\"]?([\w.\-]+)",
        r"Group '([\w.\-]+)' does not accept option '([\w.\-]+)'",
    )
    found = next(filter(None, (re.search(pattern, message, re.IGNORECASE) for pattern in patterns)), None)
    return ".".join(found.groups()).split("=")[0] if found else None


def with_suggestion(message: str, valid: Iterable[str]) -> str:
    """Append the nearest valid name to an argument error that quotes a wrong one."""
    wrong = wrong_name(message)
    if wrong is None:
        return message
    prefix = "--" if wrong.startswith("--") else ""
    hint = did_you_mean(wrong.lstrip("-"), [name.lstrip("-") for name in valid], prefix=prefix)
    return message.rstrip(".") + "." + hint if hint else message
