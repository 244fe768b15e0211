"""The comparison of a weight file with a model; a partial match raises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

UNUSED = "carried."  # prefix, in a saved directory, of tensors that are kept for an exact export and not used


class WeightsError(ValueError):
    """A weight file that cannot be used; the message says what was found and what would fit."""


@dataclass
class LoadReport:
    """The comparison of a file with a model; names are those of the model's own layout."""

    source: str
    layout: str  # the recognised layout of the file
    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # in the model alone
    unexpected: list[str] = field(default_factory=list)  # in the file alone
    shapes: list[str] = field(default_factory=list)  # in both, with different shapes
    ignored: list[str] = field(default_factory=list)  # heads and the like, which a backbone does not need
    defaults: list[str] = field(default_factory=list)  # not part of this layout; they keep a neutral value
    unused: list[str] = field(default_factory=list)  # kept for an exact export alone

    @property
    def complete(self) -> bool:
        """Whether every tensor of file and model matched."""
        return not (self.missing or self.unexpected or self.shapes)

    def __str__(self) -> str:
        lines = [f"{self.source}: recognised as {self.layout}; {len(self.matched)} tensors matched"]
        titles = {"shapes": "other shapes", "defaults": "left at default", "unused": "kept for export, not used"}
        for name in ("shapes", "missing", "unexpected", "ignored", "defaults", "unused"):
            if values := getattr(self, name):
                more = f", ... ({len(values) - 6} more)" if len(values) > 6 else ""
                lines.append(f"  {titles.get(name, name)} ({len(values)}): {', '.join(values[:6])}{more}")
        return "\n".join(lines)


def compare(model: Mapping[str, Tensor], file: Mapping[str, Tensor], source: str, layout: str) -> LoadReport:
    """Compare the tensors of a file with a model's state dict, by names and shapes."""
    report = LoadReport(source, layout)
    for name, tensor in file.items():
        if name not in model:
            report.unexpected.append(name)
        elif model[name].shape != tensor.shape:
            shapes = f"{tuple(tensor.shape)} in the file and {tuple(model[name].shape)} in the model"
            report.shapes.append(f"{name} is {shapes}")
        else:
            report.matched.append(name)
    report.missing = [name for name in model if name not in file]
    return report


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], source: str, layout: str) -> LoadReport:
    """Load every tensor, or raise `WeightsError` with the report."""
    report = compare(module.state_dict(), tensors, source, layout)
    if not report.complete:
        raise WeightsError(f"the weights do not fit {type(module).__name__}; nothing was loaded\n{report}")
    module.load_state_dict(dict(tensors), strict=True)
    return report


def split_unused(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split the tensors of a saved directory into the state dict and the unused official tensors."""
    unused = {name.removeprefix(UNUSED): tensor for name, tensor in tensors.items() if name.startswith(UNUSED)}
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(UNUSED)}, unused
