"""What a run leaves behind: RUN/backbone, which `dense.load_backbone` opens, with a model card, and pictures of the curves."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from dense._version import __version__
from dense.backbone import Backbone
from dense.backbone.official import EXPORTS


def save_product(backbone: Backbone, folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the teacher's backbone: config.json, model.safetensors, README.md (recipe, data, steps, k-NN), and the
    official layout beside it where its release has one."""
    backbone.save_pretrained(folder)
    (folder / "README.md").write_text(model_card(backbone, facts))
    if backbone.spec.family in EXPORTS:
        backbone.export_official(folder / "official.pth")


def model_card(backbone: Backbone, facts: Mapping[str, Any]) -> str:
    """What it is, how it was made, what was measured, how to open it."""
    spec = backbone.spec
    numbers = "\n".join(f"- {k}: {v}" for k, v in facts.items() if not isinstance(v, Mapping))
    recipe = json.dumps({k: v for k, v in facts.items() if isinstance(v, Mapping)}, indent=2, default=str)
    return f"""---
library_name: dino-dense
tags: [dino-dense, self-supervised, image-feature-extraction]
---
# {spec.name}, pretrained with DINO

The teacher's backbone of a run of dino-dense {__version__}: patch {spec.patch}, width {spec.dim}, depth {spec.depth}.

```python
import dense
backbone = dense.load_backbone("PATH/TO/THIS/FOLDER", frozen=True)
```

## The run

{numbers}

```json
{recipe}
```
"""


def read_metrics(path: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Curves of a metrics.csv: name -> (steps, values), later rows of the same step winning."""
    curves: dict[str, dict[float, float]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if name != "step" and value not in ("", None):
                    curves.setdefault(name, {})[float(row["step"])] = float(value)
    return {name: (list(points), list(points.values())) for name, points in curves.items()}


def plot_curves(
    curves: Mapping[str, tuple[list[float], list[float]]], names: list[str], path: Path, title: str
) -> None:
    """One small panel a curve, those of `names` that exist."""
    present = [name for name in names if name in curves]
    if not present:
        return
    columns = min(len(present), 3)
    rows = -(-len(present) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 2.8 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(present) :]:
        axis.set_visible(False)
    for name, axis in zip(present, axes.flat, strict=False):
        axis.plot(*curves[name], linewidth=1)
        axis.set_title(name.removeprefix("health/").replace("_", " "), fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_run(folder: Path) -> None:
    """loss.png and health.png of a run, from its metrics.csv."""
    metrics = folder / "metrics.csv"
    if not metrics.is_file():
        return
    curves = read_metrics(metrics)
    plot_curves(curves, ["loss", "lr", "knn"], folder / "loss.png", "loss")
    health = [name for name in curves if name.startswith("health/")]
    plot_curves(curves, health, folder / "health.png", "health")
