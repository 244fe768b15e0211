"""Curves of a run, from its metrics.csv."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import cv2
import matplotlib  # for its font
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dense.files import replacing

WIDTH, HEIGHT, HEAD = 460, 300, 30  # pixels of a panel, and of the line above all panels
LEFT, RIGHT, TOP, BOTTOM = 64, WIDTH - 14, 30, HEIGHT - 44  # where a panel's axes are
BLUE, GREY = (31, 119, 180), (225, 225, 225)


def read_metrics(path: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Read a metrics.csv as name -> (steps, values); a later row of the same step replaces an earlier one."""
    curves: dict[str, dict[float, float]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if name != "step" and value not in ("", None):
                    curves.setdefault(name, {})[float(row["step"])] = float(value)
    return {name: (list(points), list(points.values())) for name, points in curves.items()}


COUNTS = ("val/classes", "val/labels_classes")  # classes in the mean IoU: constants, no metrics


def distinct(names: Iterable[str]) -> list[str]:
    """The names without counts, and without a part of the loss that is the only one, which is the loss."""
    named = [name for name in names if name not in COUNTS]
    parts = [name for name in named if name.startswith("loss/")]
    return [name for name in named if name not in parts or len(parts) > 1]


def plot_curves(
    curves: Mapping[str, tuple[list[float], list[float]]], names: list[str], path: Path, title: str
) -> None:
    """Draw one panel per curve, for those of `names` that exist."""
    present = [name for name in names if name in curves]
    if not present:
        return
    columns = min(len(present), 3)
    sheet = Image.new("RGB", (WIDTH * columns, HEAD + HEIGHT * -(-len(present) // columns)), "white")
    ImageDraw.Draw(sheet).text((sheet.width / 2, HEAD / 2), title, "black", _font(16), anchor="mm")
    for place, name in enumerate(present):
        steps, values = curves[name]
        panel = draw_panel(name.removeprefix("health/").replace("_", " "), np.array(steps), np.array(values))
        sheet.paste(panel, (place % columns * WIDTH, HEAD + place // columns * HEIGHT))
    with replacing(path) as file:
        sheet.save(file)


def draw_panel(title: str, steps: np.ndarray, values: np.ndarray) -> Image.Image:
    """Draw the finite values of one curve, on a grid of round numbers."""
    steps, values = steps[np.isfinite(values)], values[np.isfinite(values)]
    panel = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = ImageDraw.Draw(panel), _font(12)
    draw.text(((LEFT + RIGHT) / 2, TOP / 2), title, "black", _font(14), anchor="mm")
    draw.text(((LEFT + RIGHT) / 2, HEIGHT - 10), "step", "black", font, anchor="mm")
    if not len(values):
        return panel
    (first, last), (low, high) = _limits(steps), _limits(values)
    across = LEFT + (steps - first) / (last - first) * (RIGHT - LEFT)
    for tick in round_ticks(first, last):
        if first <= tick <= last:
            x = LEFT + (tick - first) / (last - first) * (RIGHT - LEFT)
            draw.line((x, TOP, x, BOTTOM), GREY)
            draw.text((x, BOTTOM + 6), f"{tick:g}", "black", font, anchor="ma")
    ticks = round_ticks(low, high)
    down = BOTTOM - (values - ticks[0]) / (ticks[-1] - ticks[0]) * (BOTTOM - TOP)
    for tick, y in zip(ticks, np.linspace(BOTTOM, TOP, len(ticks)), strict=True):
        draw.line((LEFT, y, RIGHT, y), GREY)
        draw.text((LEFT - 6, y), f"{tick:g}", "black", font, anchor="rm")
    draw.rectangle((LEFT, TOP, RIGHT, BOTTOM), outline="grey")
    points = np.round(np.stack([across, down], axis=1) * 16).astype(np.int32)  # in sixteenths of a pixel
    drawn = np.array(panel)
    cv2.polylines(drawn, [points], False, BLUE, 1, cv2.LINE_AA, shift=4)
    if len(points) == 1:  # a line needs two
        cv2.circle(drawn, points[0].tolist(), 4 * 16, BLUE, -1, cv2.LINE_AA, shift=4)
    return Image.fromarray(drawn)


def round_ticks(low: float, high: float) -> list[float]:
    """Return three to seven round numbers that enclose all values."""
    span = high - low or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span / 3))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (factor * step) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{n * step:.10g}") for n in range(first, max(last, first + 1) + 1)]


def _limits(numbers: np.ndarray) -> tuple[float, float]:
    """Return the least and the greatest number, or where they are equal some way below and above."""
    low, high = float(numbers.min()), float(numbers.max())
    margin = 0.0 if low < high else abs(low) / 10 or 1.0
    return low - margin, high + margin


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)
