"""Published files and directories as state dicts, and the families that recognise and build them."""

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
WRAPPERS = ("state_dict", "model", "params", "decoder")  # keys that training checkpoints hold a state dict under


@dataclass(frozen=True)
class Published:
    """Tensors under their published names, with the contents of config.json and preprocessor_config.json, if any."""

    path: Path
    tensors: State
    config: Mapping[str, Any] = field(default_factory=dict)
    preprocessor: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> Published:
        """Read a directory of transformers or segmentation_models_pytorch, or a .pth, .pt, .bin, .safetensors file."""
        path = Path(path)
        folder = path if path.is_dir() else path.parent
        has_config = path.is_dir() or path.name in ("model.safetensors", "pytorch_model.bin")
        config, preprocessor = (
            read_json(folder / name) if has_config and (folder / name).is_file() else {}
            for name in (CONFIG, "preprocessor_config.json")
        )
        content = read_directory(path)[0] if path.is_dir() else read_checkpoint(path)
        return cls(path, unwrapped(content, path), config, preprocessor)

    def under(self, prefix: str) -> State:
        """Return the tensors whose names begin with `prefix`, without it."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}


def is_ours(folder: Path) -> bool:
    """Return whether this project wrote a directory."""
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    return "model_type" not in config and isinstance(config.get("backbone"), dict)  # null in some of transformers'


def unwrapped(content: Mapping[str, Any], path: Path) -> State:
    """Return the state dict inside a training checkpoint, without the prefix of data-parallel training."""
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
    """One family of published heads.

    patterns: regular expressions, each of which matches the name of some tensor. model_type: of config.json, for
    directories of transformers. build: makes the model; its keyword arguments are what the file does not contain.
    """

    name: str
    title: str
    patterns: tuple[str, ...]
    build: Callable[..., DenseModel]
    model_type: str | None = None

    def split_patterns(self, names: Iterable[str]) -> tuple[list[str], list[str]]:
        """Return the patterns that match some of the names, and those that match none."""
        text = "\n".join(names)
        matching = [p for p in self.patterns if re.search(p, text, re.MULTILINE)]
        return matching, [p for p in self.patterns if p not in matching]

    def matches(self, file: Published) -> bool:
        """Return whether the model type agrees and all patterns match."""
        return self.model_type == file.config.get("model_type") and not self.split_patterns(file.tensors)[1]

    @property
    def options(self) -> list[str]:
        """The names of the arguments that a caller may give."""
        return list(inspect.signature(self.build).parameters)[1:]


def choose(file: Published, name: str, value: Any, choices: dict[Any, str]) -> Any:
    """Return `value` if it is one of `choices` (value -> in which case), or raise an error that lists them."""
    listed = "; ".join(f"{name}={choice!r} {case}" for choice, case in choices.items())
    if value is None:
        raise WeightsError(f"{file.path} does not record its {name}, so give it: {listed}")
    if value not in choices:
        raise WeightsError(f"{name}={value!r} does not suit {file.path}; expected {listed}")
    return value


def check_has_unit(file: Published, kind: str, max_depth: Any) -> None:
    """Raise if a largest depth is given for depth without a unit."""
    if kind == "relative" and max_depth is not None:
        raise WeightsError(
            f"max_depth={max_depth!r} is in metres and kind='relative' has none: {file.path}; leave it out"
        )


def positive(file: Published, name: str, value: Any, examples: str) -> float:
    """Return `value` if it is a positive number, or raise an error with examples."""
    if value is None:
        raise WeightsError(f"{file.path} does not record its {name}, so give it: {examples}")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise WeightsError(f"{name}={value!r}: expected a positive number: {examples}")
    return float(value)
