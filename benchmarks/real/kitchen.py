"""Metric depth of one room: 7-Scenes "redkitchen" as in tsdf-fusion-python, frozen features of a DINO backbone.

The frames are arranged as train/images, train/depth, val/images, val/depth (16 bits, millimetres) and depth.yaml with
scale 1000 and invalid [0, 65535]. Validation frames come later in the video than those of training.

    python benchmarks/real/kitchen.py KITCHEN --weights dinov2_vits14.pth --output runs/kitchen

Rows: small_data with 100 and with all 300 frames, and the same with the head and the loss of former versions; above
them the constant, the median depth of training.
"""

from __future__ import annotations

import sys
from typing import Any

import _rows
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
    options = _rows.parser(__doc__, TRAININGS).parse_args()
    lines = []
    for name in options.rows or TRAININGS:
        count, overrides = TRAININGS[name]
        row = _rows.train(options, name, RECIPE, **overrides | ({"data.train_images": count} if count else {}))
        constant = row.get("constant") or {}
        if not lines and constant:
            lines.append(("constant", *(f"{constant[f'val/{c}']:.3f}" for c in COLUMNS), ""))
        lines.append((name, *(f"{row[f'val/{c}']:.3f}" for c in COLUMNS), f"{row['minutes']:.1f}"))
    return _rows.finish(options, "kitchen depth", table(("", *COLUMNS, "minutes"), lines))


if __name__ == "__main__":
    sys.exit(main())
