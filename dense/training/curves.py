"""Curves of a run, from its metrics.csv."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from dense.files import replacing


def read_metrics(path: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Read a metrics.csv as name -> (steps, values); a later row of the same step replaces an earlier one."""
    curves: dict[str, dict[float, float]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if name != "step" and value not in ("", None):
                    curves.setdefault(name, {})[float(row["step"])] = float(value)
    return {name: (list(points), list(points.values())) for name, points in curves.items()}


def distinct(names: list[str]) -> list[str]:
    """The names without a part of the loss that is the only one: it is the loss, up to its weight."""
    parts = [name for name in names if name.startswith("loss/")]
    return [name for name in names if name not in parts or len(parts) > 1]


def plot_curves(
    curves: Mapping[str, tuple[list[float], list[float]]], names: list[str], path: Path, title: str
) -> None:
    """Draw one panel per curve, for those of `names` that exist."""
    present = [name for name in names if name in curves]
    if not present:
        return
    columns = min(len(present), 3)
    rows = -(-len(present) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.8 * rows), layout="constrained")  # a notebook's backend stays its own
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(present) :]:
        axis.set_visible(False)
    for name, axis in zip(present, axes.flat, strict=False):
        steps, values = curves[name]
        axis.plot(steps, values, linewidth=1, marker="o" if len(steps) == 1 else "")  # a line needs two
        axis.set_title(name.removeprefix("health/").replace("_", " "), fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    figure.suptitle(title, fontsize=11)
    with replacing(path) as file:
        figure.savefig(file, dpi=110)
