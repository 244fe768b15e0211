"""A published file or directory, read and unwrapped."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from dense.backbone.load import read_directory
from dense.backbone.saved import CONFIG, read_json
from dense.backbone.weights.checkpoint import read_checkpoint
from dense.backbone.weights.report import WeightsError
from dense.model.network import DenseModel

State = dict[str, Tensor]
WRAPPERS = ("state_dict", "model", "params", "decoder")


@dataclass(frozen=True)
class Published:
    """Its tensors by their published names, and what its config.json and preprocessor_config.json say, if there are any."""

    path: Path
    tensors: State
    config: Mapping[str, Any] = field(default_factory=dict)
    preprocessor: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> Published:
        """A directory of transformers or segmentation_models_pytorch, or a .pth, .pt, .bin or .safetensors file."""
        path = Path(path)
        folder = path if path.is_dir() else path.parent
        inside = path.is_dir() or path.name in ("model.safetensors", "pytorch_model.bin")
        config, preprocessor = (
            read_json(folder / name) if inside and (folder / name).is_file() else {}
            for name in (CONFIG, "preprocessor_config.json")
        )
        content = read_directory(path)[0] if path.is_dir() else read_checkpoint(path)
        return cls(path, unwrapped(content, path), config, preprocessor)

    def under(self, prefix: str) -> State:
        """Tensors whose names begin with `prefix`, without it."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}


def is_ours(folder: Path) -> bool:
    """Whether a directory was written by this project."""
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    return "model_type" not in config and isinstance(config.get("backbone"), dict)  # transformers may have a null there


def unwrapped(content: Mapping[str, Any], path: Path) -> State:
    """The state dict inside a training checkpoint, without the prefix of data-parallel training."""
    while True:
        key = next((k for k in WRAPPERS if isinstance(content.get(k), Mapping)), None)
        if key is None:
            break
        content = content[key]
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not tensors:
        found = ", ".join(map(str, list(content)[:6])) or "nothing"
        raise WeightsError(f"{path} holds no weights: found {found}; expected a state dict, or one under 'state_dict'")
    if all(k.startswith("module.") for k in tensors):
        tensors = {k.removeprefix("module."): v for k, v in tensors.items()}
    return tensors


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
