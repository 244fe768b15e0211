"""How something was measured, saved with the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from dense.backbone.spec import BackboneSpec
from dense.files import write
from dense.model.card import as_json, format_number, versions
from dense.suggest import UnknownOption, did_you_mean

P = TypeVar("P")


@dataclass(frozen=True)
class Protocol:
    """Everything that determines a number besides the weights. Numbers of equal protocols may be compared."""

    name: str  # knn, linear-dino, linear-dinov2, finetune, probe
    train: str  # source and number of images
    val: str
    view: str  # how validation images are resized and cropped
    resolution: int  # side of the images for the backbone, in pixels
    features: str  # the readout, or the layers of a dense probe
    norm: bool | str  # whether features are read after the final norm
    statistics: str  # of batch norm
    classes: int
    settings: Mapping[str, Any] = field(default_factory=dict)  # k, temperature, learning rates, steps, ...

    def __str__(self) -> str:
        fields = {k: v for k, v in asdict(self).items() if k != "settings"} | dict(self.settings)
        width = max(map(len, fields))
        return "\n".join(f"  {k.replace('_', ' '):<{width}}  {_words(v)}" for k, v in fields.items())


def named(known: Mapping[str, P], name: str, changes: Mapping[str, Any]) -> P:
    """Return one of the known protocols by name; fields that change it are noted in its name, None changes nothing."""
    if name not in known:
        raise ValueError(f"unknown protocol {name!r}: known are {', '.join(known)}.{did_you_mean(name, known)}")
    protocol: Any = known[name]
    names = [f.name for f in fields(protocol) if f.name != "name"]
    if unknown := [key for key in changes if key not in names]:
        raise UnknownOption(f"a protocol has no field {unknown[0]!r}.{did_you_mean(unknown[0], names)}")
    changed = replace(protocol, **{key: value for key, value in changes.items() if value is not None})
    return protocol if changed == protocol else replace(changed, name=f"{name}, changed")


@dataclass(frozen=True)
class Result:
    """Numbers, the protocol by which they were measured, and the backbone that they belong to."""

    protocol: Protocol
    numbers: dict[str, Any]
    backbone: BackboneSpec
    skipped: Sequence[str] = ()  # images that could not be read
    table: str = ""  # the numbers of several methods, classes or levels, for the screen

    def __str__(self) -> str:
        lines = [f"{self.protocol.name} of {self.backbone.name}", str(self.protocol)]
        lines += [
            f"{name}: {format_number(value)}" for name, value in self.numbers.items() if not isinstance(value, dict)
        ]
        return "\n".join([*lines, *([self.table] if self.table else [])])

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
        return write(folder / "results.json", as_json(results))


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
