"""How something was measured, saved with what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dense.backbone.spec import BackboneSpec
from dense.model.card import as_json, versions


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


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def write_results(
    folder: Path,
    protocol: Protocol,
    numbers: Mapping[str, Any],
    *,
    backbone: BackboneSpec,
    weights: str,
    seed: int,
    seconds: float,
    skipped: Sequence[str] = (),
) -> Path:
    """Write FOLDER/results.json: numbers, protocol, backbone and where its weights came from, versions; returns its path."""
    results = {
        "numbers": dict(numbers),
        "protocol": asdict(protocol),
        "backbone": backbone.to_dict(),
        "weights": weights,
        "seed": seed,
        "seconds": round(seconds, 2),
        "skipped": sorted(skipped),
        "versions": versions(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "results.json"
    target.write_text(as_json(results))
    return target
