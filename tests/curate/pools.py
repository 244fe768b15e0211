"""Folders of scenes, and vectors in a plane."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dense.data.scenes import render

VERB = ["--backbone", "scenes_tiny", "--resize", "48", "--crop", "48", "--workers", "0", "--threshold", "0.995"]
VERB += ["--held-out-threshold", "0.995", "--min-side", "32"]


def scene(number: int, size: int = 64) -> NDArray[np.uint8]:
    """Return an image unlike those of other numbers."""
    return render(7, number, size).image


def save(path: Path, image: NDArray[np.uint8], **options: Any) -> None:
    """Save an image as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)


def folder(root: Path, numbers: range) -> Path:
    """Save scenes by number and return their folder."""
    for number in numbers:
        save(root / f"{number:03d}.png", scene(number))
    return root


def directions(degrees: Sequence[float]) -> np.ndarray:
    """Return unit vectors in a plane (N, 2)."""
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], 1)
