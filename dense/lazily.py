"""Public names of a package that load on first use: what needs one of its modules does not wait for the others."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from dense.suggest import did_you_mean


def lazily(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's ``__getattr__``; homes: name -> the module that has it, or that it is."""

    def load(name: str) -> Any:
        if name in homes:
            home = importlib.import_module(homes[name])
            return home if homes[name] == f"{package}.{name}" else getattr(home, name)
        hint = "" if name.startswith("_") else f".{did_you_mean(name, homes)}"
        raise AttributeError(f"module {package!r} has no attribute {name!r}{hint}")

    return load
