"""What a family of published heads is: signs in the names of its tensors, and how a model is made of them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from dense.backbone.report import WeightsError
from dense.published.file import Published
from dense.tasks.model import DenseModel


@dataclass(frozen=True)
class Family:
    """One family.

    signs: patterns, each of which some tensor's name matches. model_type: of its config.json, where it is a directory of
    transformers. build: makes the model; its keyword arguments are what the file cannot say.
    """

    name: str
    title: str
    signs: tuple[str, ...]
    build: Callable[..., DenseModel]
    model_type: str | None = None

    def found(self, names: Iterable[str]) -> tuple[list[str], list[str]]:
        """Signs that are there, and signs that are not."""
        text = "\n".join(names)
        there = [s for s in self.signs if re.search(s, text, re.MULTILINE)]
        return there, [s for s in self.signs if s not in there]

    def fits(self, file: Published) -> bool:
        """Whether all signs are there."""
        if self.model_type != file.config.get("model_type"):
            return False
        return not self.found(file.tensors)[1]

    @property
    def options(self) -> list[str]:
        """What a caller may say of its files."""
        return list(inspect.signature(self.build).parameters)[1:]


def choose(file: Published, name: str, value: Any, choices: dict[Any, str]) -> Any:
    """`value` if it is one of `choices` (value -> in which case), else an error that lists them."""
    listed = "; ".join(f"{name}={choice!r} {case}" for choice, case in choices.items())
    if value is None:
        raise WeightsError(f"{file.path} cannot say its {name}, so you must: {listed}")
    if value not in choices:
        raise WeightsError(f"{name}={value!r} does not suit {file.path}; expected {listed}")
    return value


def metric_alone(file: Published, kind: str, max_depth: Any) -> None:
    """Raise for a largest depth of depth that has no unit."""
    if kind == "relative" and max_depth is not None:
        raise WeightsError(
            f"max_depth={max_depth!r} is in metres and kind='relative' has none: {file.path}; leave it out"
        )


def positive(file: Published, name: str, value: Any, examples: str) -> float:
    """A positive number that the file cannot say."""
    if value is None:
        raise WeightsError(f"{file.path} cannot say its {name}, so you must: {examples}")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise WeightsError(f"{name}={value!r}: expected a positive number: {examples}")
    return float(value)
