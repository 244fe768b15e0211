"""How something was measured, saved with the numbers."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dense._version import __version__
from dense.backbone.spec import BackboneSpec

PACKAGES = ("torch", "timm", "numpy", "pillow")


@dataclass(frozen=True)
class Protocol:
    """Everything that decides a number besides the weights. Numbers of equal protocols may be compared."""

    name: str  # knn, linear-dino, linear-dinov2, finetune, probe
    train: str  # where the images come from, and how many
    val: str
    view: str  # of validation images, in words
    resolution: int  # pixels a side that the backbone sees
    features: str  # the readout, or the layers of a dense probe
    norm: bool | str  # whether features are read after the final norm
    statistics: str  # of batch norm
    classes: int
    settings: Mapping[str, Any] = field(default_factory=dict)  # k, temperature, learning rates, steps, ...

    def __str__(self) -> str:
        """A line a field."""
        fields = {k: v for k, v in asdict(self).items() if k != "settings"} | dict(self.settings)
        width = max(map(len, fields))
        return "\n".join(f"  {k.replace('_', ' '):<{width}}  {_words(v)}" for k, v in fields.items())


@dataclass(frozen=True)
class Result:
    """Numbers, the protocol by which they were measured, and the backbone that they belong to."""

    protocol: Protocol
    numbers: dict[str, Any]
    backbone: BackboneSpec
    skipped: Sequence[str] = ()  # images that could not be read
    table: str = ""  # the numbers of several methods, classes or levels, for the screen

    def __str__(self) -> str:
        lines = [self.table] if self.table else []
        lines += [f"{self.protocol.name} of {self.backbone.name}", str(self.protocol)]
        lines += [f"{name}: {in_words(value)}" for name, value in self.numbers.items() if not isinstance(value, dict)]
        return "\n".join(lines)

    def save(self, folder: Path, *, weights: str, seed: int, seconds: float) -> Path:
        """Write FOLDER/results.json with protocol, backbone, origin of its weights and versions; return its path."""
        results = {
            "numbers": self.numbers,
            "protocol": asdict(self.protocol),
            "backbone": self.backbone.to_dict(),
            "weights": weights,
            "seed": seed,
            "seconds": round(seconds, 2),
            "skipped": sorted(self.skipped),
            "versions": versions(),
        }
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / "results.json"
        target.write_text(as_json(results))
        return target


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def versions() -> dict[str, str]:
    """Of everything that may change a number."""
    found = {"dino-dense": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def in_words(value: Any) -> str:
    """A number for the screen: four digits, two where those would be zeros, counts as they are."""
    if not isinstance(value, float):
        return str(value)
    if 0 < abs(value) < 1e-3:
        return f"{value:.2g}"
    return "-" if math.isnan(value) else str(int(value)) if value.is_integer() and value > 1 else f"{value:.4f}"


def as_json(content: Any) -> str:
    """Text of plain data. What is not finite, such as the IoU of a class that does not occur, is null: JSON has no NaN."""

    def finite(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: finite(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [finite(v) for v in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(content), indent=2, default=str, allow_nan=False) + "\n"
