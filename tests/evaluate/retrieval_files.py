"""Miniature retrieval sets in the published layouts."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.evaluate.images import COLOURS, folder


def image(path: Path, colour: str, seed: int, size: tuple[int, int] = (48, 64)) -> None:
    """A colour with noise."""
    noise = np.random.default_rng(seed).normal(0, 20, (*size, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8)).save(path)


def ground_truth(count: int = 9) -> dict[str, Any]:
    """Images 0, 3, 6 are blue, 1, 4, 7 green, 2, 5, 8 red; a query each, whose first is easy and second hard."""
    entries = [
        {"bbx": [4.0, 4.0, 60.5, 40.0], "easy": np.array([i]), "hard": np.array([i + 3]), "junk": np.array([i + 6])}
        for i in range(3)
    ]
    entries[2]["easy"] = np.array([], np.int64)
    names = [f"image_{i}" for i in range(count)]
    return {"imlist": names, "qimlist": [f"query_{i}" for i in range(3)], "gnd": entries}


def landmarks(root: Path, layout: str = "roxford5k", protocol: int = 2) -> Path:
    colours = list(COLOURS)
    for i in range(9):
        image(root / f"jpg/image_{i}.jpg", colours[i % 3], i)
    for i in range(3):
        image(root / f"jpg/query_{i}.jpg", colours[i], 100 + i)
    (root / f"gnd_{layout}.pkl").write_bytes(pickle.dumps(ground_truth(), protocol=protocol))
    return root


def paris(root: Path) -> Path:
    return landmarks(root, "rparis6k")


def copies(root: Path) -> Path:
    """Three originals, two copies of each, and other images as distractors and to whiten with."""
    for number, colour in enumerate(COLOURS):
        image(root / f"original/200{number}00.jpg", colour, number)
        for copy in (1, 2):
            image(root / f"strong/200{number}0{copy}.jpg", colour, 10 * copy + number, (30, 40))
    folder(root / "distractors", 2, seed=3, classes=("blue",))
    folder(root / "whiten", 12, seed=4)
    return root
