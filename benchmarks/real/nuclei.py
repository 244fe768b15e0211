"""What declared levels are worth on 16-bit images: nuclei of the package stardist, which use 0 to 235 of 65,535.

    pip download stardist --no-deps && unzip stardist-*.whl 'stardist/data/*'
    python benchmarks/real/nuclei.py stardist/data/images --weights dinov2_vits14.pth --output runs/nuclei

The image of 512 x 512 pixels is cut into 16 tiles, 12 to train on and 4 to validate on; the classes are nucleus and
background. Levels: `auto`, and those of the type, 0 to 65,535.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import _rows
import numpy as np
import tifffile
from _measure import table

RECIPE, SIDE, VALIDATION = "segmentation/small_data", 128, 4
LEVELS: dict[str, Any] = {"auto": "auto", "of the type": [0, 65535]}


def main() -> int:
    options = _rows.parser(__doc__, LEVELS).parse_args()
    options.data = tiles(options)
    lines = []
    for name in options.rows or LEVELS:
        row = _rows.train(
            options, name, RECIPE, **{"data.levels": LEVELS[name], "data.resize": 252, "model.steps": 100}
        )
        lines.append((name, f"{row['val/miou']:.3f}", f"{row['constant']['val/miou']:.3f}", f"{row['minutes']:.1f}"))
    return _rows.finish(options, "nuclei", table(("levels", "mIoU", "constant", "minutes"), lines))


def tiles(options: Namespace) -> Path:
    """Write the tiles as a labelled folder and return it."""
    image, nuclei = (tifffile.imread(options.data / f"{name}2d.tif") for name in ("img", "mask"))
    root: Path = options.output / "tiles"
    places = [(top, left) for top in range(0, 512, SIDE) for left in range(0, 512, SIDE)]
    order = np.random.default_rng(options.seed).permutation(len(places)).tolist()
    for number, place in enumerate(order):
        folder = root / ("val" if number < VALIDATION else "train")
        top, left = places[place]
        for kind, values in (("images", image.astype(np.uint16)), ("masks", (nuclei > 0).astype(np.uint8))):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(folder / kind / f"{place:02d}.tif", values[top : top + SIDE, left : left + SIDE])
    (root / "classes.yaml").write_text("{0: background, 1: nucleus}\n")
    return root


if __name__ == "__main__":
    sys.exit(main())
