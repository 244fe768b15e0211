"""Drawn cells: five kinds of cells under three stains and three microscopes, with their metadata."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

CELLS = ("round", "oval", "granular", "ring", "spindle")
STAINS = {"red": (0.8, 0.25, 0.45), "blue": (0.3, 0.35, 0.85), "green": (0.3, 0.7, 0.35)}  # colour of what is stained
MICROSCOPES = ("M1", "M2", "M3")
SIDE, FINE = 48, 4  # pixels of an image, and of the drawing per pixel


def draw_cells(folder: Path, images: int, seed: int = 0) -> Path:
    """Draw images into a folder and return its metadata, cells.csv: image, cell, stain, microscope and size.

    Kind, stain and microscope are independent. An image is a function of the seed and its number alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [("image", "cell", "stain", "microscope", "size")]
    for number in range(images):
        random = np.random.default_rng((seed, number))
        cell, stain, microscope = (str(random.choice(names)) for names in (CELLS, list(STAINS), MICROSCOPES))
        size = float(random.uniform(4.0, 6.5))  # radius in pixels
        image = _imaged(_stained(_density(cell, size, random), stain, random), microscope, random)
        cv2.imwrite(str(folder / f"{number:05}.png"), image[..., ::-1])
        rows.append((f"{number:05}.png", cell, stain, microscope, f"{size:.2f}"))
    path = folder / "cells.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def _density(cell: str, size: float, random: np.random.Generator) -> NDArray[np.float32]:
    """Return how much of the stain is where: three to five cells of a kind."""
    canvas = np.zeros((SIDE * FINE,) * 2, np.float32)
    for _ in range(random.integers(3, 6)):
        radius, angle = size * FINE * random.uniform(0.85, 1.15), float(random.uniform(0, 360))
        place = tuple(int(v) for v in random.integers(radius, SIDE * FINE - radius, 2))
        ratio = {"oval": 0.65, "spindle": 0.3}.get(cell, 1.0) * random.uniform(0.9, 1.1)
        axes = (int(radius * (1.3 if ratio < 0.5 else 1.0)), int(radius * min(ratio, 1.0)))
        body = np.zeros_like(canvas)
        cv2.ellipse(body, place, axes, angle, 0, 360, 0.55, -1)
        if cell == "ring":
            cv2.ellipse(body, place, (axes[0] // 2, axes[1] // 2), angle, 0, 360, 0.1, -1)
        elif cell == "granular":
            for offset in random.normal(0, radius / 3, (7, 2)):
                cv2.circle(body, (int(place[0] + offset[0]), int(place[1] + offset[1])), int(FINE * 0.9), 0.95, -1)
        else:
            cv2.ellipse(body, place, (axes[0] // 3, axes[1] // 3), angle, 0, 360, 0.9, -1)  # the nucleus
        canvas = np.maximum(canvas, body)
    return cv2.resize(canvas, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def _stained(density: NDArray[np.float32], stain: str, random: np.random.Generator) -> NDArray[np.float32]:
    """Return what light passes: by Beer and Lambert, with an amount of stain that differs between images."""
    absorbed = 1 - np.array(STAINS[stain], np.float32)
    return np.asarray(np.exp(-2.2 * random.uniform(0.7, 1.3) * (density[..., None] + 0.12) * absorbed), np.float32)


def _imaged(light: NDArray[np.float32], microscope: str, random: np.random.Generator) -> NDArray[np.uint8]:
    """Return what a microscope makes of it: its sharpness, its light falling off to a side, and its noise."""
    blur, tilt, noise = {"M1": (0.5, 0.0, 0.01), "M2": (1.2, 0.35, 0.02), "M3": (0.7, -0.3, 0.06)}[microscope]
    ramp = np.linspace(-tilt, tilt, SIDE, dtype=np.float32)
    light = cv2.GaussianBlur(light, (0, 0), blur) * (0.85 + 0.4 * ramp)[None, :, None]
    light += random.normal(0, noise, light.shape).astype(np.float32)
    return np.asarray(np.clip(255 * light, 0, 255).round(), np.uint8)
