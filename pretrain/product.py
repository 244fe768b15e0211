"""What a run leaves behind: RUN/backbone, which `dense.load_backbone` opens, with a model card, and images of the curves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dense._version import __version__
from dense.backbone import Backbone
from dense.backbone.weights.official import EXPORTS
from dense.training.curves import plot_curves, read_metrics


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
# {spec.name}, pretrained by self-distillation

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


def plot_run(folder: Path) -> None:
    """loss.png and health.png of a run, from its metrics.csv."""
    metrics = folder / "metrics.csv"
    if not metrics.is_file():
        return
    curves = read_metrics(metrics)
    plot_curves(curves, ["loss", "lr", "knn"], folder / "loss.png", "loss")
    health = [name for name in curves if name.startswith("health/")]
    plot_curves(curves, health, folder / "health.png", "health")
