"""Blur by motion and by defocus."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Kernel = NDArray[np.float32]  # k, k with sum 1
FINER = 8  # kernels are drawn so many times finer than pixels


def motion(image: Any, level: float, draw: np.random.Generator, depth: Any) -> Any:
    """The camera moves along a line while it looks. level: pixels; the direction is drawn."""
    return filtered(image, line(level, draw.uniform(0, 180)))


def defocus(image: Any, level: float, draw: np.random.Generator, depth: Any) -> Any:
    """Each point becomes a disc. level: its radius in pixels."""
    return filtered(image, disc(level))


def line(length: float, angle: float) -> Kernel:
    """A line of `length` pixels at `angle` degrees, 0 along a row and 90 along a column."""
    reach = int(np.ceil((length - 1) / 2))
    side = (2 * reach + 1) * FINER
    middle, half = (side - 1) / 2, max(length - 1, 0) / 2 * FINER
    step = half * np.array([np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))])
    fine = np.zeros((side, side), np.float32)
    start, end = np.round(middle - step).astype(int), np.round(middle + step).astype(int)
    cv2.line(fine, start.tolist(), end.tolist(), 1.0, FINER)
    return coarse(fine)


def disc(radius: float) -> Kernel:
    """A disc of `radius` pixels."""
    reach = int(np.ceil(radius))
    places = (np.arange((2 * reach + 1) * FINER) + 0.5) / FINER - reach - 0.5
    return coarse((np.hypot(places, places[:, None]) <= max(radius, 0.5)).astype(np.float32))


def coarse(fine: Kernel) -> Kernel:
    """Shares of pixels."""
    side = fine.shape[0] // FINER
    kernel = fine.reshape(side, FINER, side, FINER).mean((1, 3))
    return (kernel / kernel.sum()).astype(np.float32)


def filtered(image: Any, kernel: Kernel) -> Any:
    """Mirrored at the borders."""
    return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
