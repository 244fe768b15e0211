"""Metric depth of one room: 7-Scenes "redkitchen" as in tsdf-fusion-python, frozen features of a DINO backbone.

The frames are arranged as train/images, train/depth, val/images, val/depth (16 bits, millimetres) and depth.yaml with
scale 0.001 and invalid [0, 65535]. Validation frames come later in the video than those of training.

    python benchmarks/real/kitchen.py KITCHEN --weights dinov2_vits14.pth --output runs/kitchen

Rows: the constant (the median depth of training), small_data with 100 and with all 300 frames, and the same with the
head and the loss of former versions.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import _rows
import numpy as np
from _measure import table

RECIPE = "depth/small_data"
FORMER = {
    "model.head": {
        "name": "dpt", "width": 16, "reassemble": [8, 8, 16, 16], "readout": "ignore", "bias": True,
        "outputs": {"depth": {"name": "regression", "activation": "identity", "kind": "log"}},
    },
    "model.loss": {"l1": 1.0}, "model.backbone.layers": "last4", "model.optim.lr": 2e-3, "model.steps": 200,
    "model.target.size": "grid4", "data.resize": None, "data.crop_size": 224, "data.cache": None,
}  # fmt: skip
TRAININGS: dict[str, tuple[int, dict[str, Any]]] = {  # name -> training frames (0 for all), overrides of the recipe
    "small_data_100": (100, {}),
    "small_data": (0, {}),
    "former": (0, FORMER),
}
COLUMNS = ("abs_rel", "delta1", "rmse", "silog")


def main() -> int:
    options = _rows.parser(__doc__, ["constant", *TRAININGS]).parse_args()
    lines = []
    for name in options.rows or ["constant", *TRAININGS]:
        if name == "constant":
            row = _rows.once(options, name, lambda: constant(options))
        else:
            count, overrides = TRAININGS[name]
            data = _rows.subset(options, count, options.seed) if count else None
            row = _rows.train(options, name, RECIPE, data, **overrides)
        lines.append((name, *(f"{row[f'val/{c}']:.3f}" for c in COLUMNS), f"{row['minutes']:.1f}"))
    return _rows.finish(options, "kitchen depth", table(("", *COLUMNS, "minutes"), lines))


def constant(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the median depth of the training frames as the prediction of every pixel."""
    import torch

    from dense.data.labelled.open import open_labelled
    from dense.metrics import DepthMetrics

    train, val = (open_labelled(options.data, split) for split in ("train", "val"))
    depths = [train.read(i).depth for i in range(0, len(train), max(1, len(train) // 50))]
    median = float(np.nanmedian(np.stack([d for d in depths if d is not None])))
    metric = DepthMetrics()
    for i in range(len(val)):
        depth = val.read(i).depth
        assert depth is not None
        truth = torch.from_numpy(depth)[None, None]
        metric.update(torch.full_like(truth, median), truth, truth.isfinite())
    return {f"val/{name}": float(value) for name, value in metric.compute().items()}


if __name__ == "__main__":
    sys.exit(main())
