"""Folders of images whose class can be seen: a colour with noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue": (40, 60, 220), "green": (30, 200, 40), "red": (230, 40, 30)}


def folder(root: Path, each: int, seed: int = 0, classes: tuple[str, ...] = tuple(COLOURS)) -> Path:
    """`each` images of odd sizes for every class, in folders of its name."""
    rng = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            height, width = rng.integers(40, 60, 2)
            noise = rng.normal(0, 40, (height, width, 3))
            image = np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(image).save(root / name / f"{number}.png")
    return root
