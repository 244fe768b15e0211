"""What matched when weights were loaded; a partial match is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn


class WeightsError(ValueError):
    """A weight file that cannot be used, with what was found and what would fit."""


@dataclass
class LoadReport:
    """The comparison of a file with a model: names in the model's own layout."""

    source: str
    layout: str  # what the file was recognised as
    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # the model has it, the file has not
    unexpected: list[str] = field(default_factory=list)  # the file has it, the model has not
    shapes: list[str] = field(default_factory=list)  # both have it, with different shapes
    ignored: list[str] = field(default_factory=list)  # heads and the like, left out on purpose
    defaults: list[str] = field(default_factory=list)  # absent from this layout, left at its neutral value
    carried: list[str] = field(default_factory=list)  # kept for an exact export, not used

    @property
    def complete(self) -> bool:
        """Whether every tensor found its place."""
        return not (self.missing or self.unexpected or self.shapes)

    def __str__(self) -> str:
        lines = [f"{self.source}: recognised as {self.layout}; {len(self.matched)} tensors matched"]
        for name in ("shapes", "missing", "unexpected", "ignored", "defaults", "carried"):
            values = getattr(self, name)
            if values:
                title = {"shapes": "other shapes", "defaults": "left at default", "carried": "carried unused"}.get(
                    name, name
                )
                more = f", ... ({len(values) - 6} more)" if len(values) > 6 else ""
                lines.append(f"  {title} ({len(values)}): {', '.join(values[:6])}{more}")
        return "\n".join(lines)


def compare(own: Mapping[str, Tensor], given: Mapping[str, Tensor], source: str, layout: str) -> LoadReport:
    """Compare a state dict with the model's, by names and shapes."""
    report = LoadReport(source, layout)
    for name, tensor in given.items():
        if name not in own:
            report.unexpected.append(name)
        elif own[name].shape != tensor.shape:
            report.shapes.append(
                f"{name} is {tuple(tensor.shape)} in the file and {tuple(own[name].shape)} in the model"
            )
        else:
            report.matched.append(name)
    report.missing = [name for name in own if name not in given]
    return report


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], source: str, layout: str) -> LoadReport:
    """Load every tensor or raise `WeightsError` with the report."""
    report = compare(module.state_dict(), tensors, source, layout)
    if not report.complete:
        raise WeightsError(f"the weights do not fit {type(module).__name__}; nothing was loaded\n{report}")
    module.load_state_dict(dict(tensors), strict=True)
    return report
