"""A published file or directory, read and unwrapped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from dense.backbone.checkpoint import read_checkpoint
from dense.backbone.hub import CONFIG, read_json
from dense.backbone.load import read_directory
from dense.backbone.report import WeightsError

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
