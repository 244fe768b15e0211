"""Pictures of features and attention, as uint8 arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Picture = NDArray[np.uint8]  # H, W, 3

HEADING = 22  # pixels above a sheet for the words over its columns


def heat(
    values: Tensor | NDArray[np.floating], colours: str = "inferno", bounds: tuple[float, float] | None = None
) -> Picture:
    """A map (h, w) as colours, its own minimum to its own maximum if no bounds are given."""
    array = np.asarray(values, dtype=np.float64)
    low, high = bounds or (float(np.nanmin(array)), float(np.nanmax(array)))
    scaled = np.clip((array - low) / (high - low), 0, 1) if high > low else np.zeros_like(array)
    return (matplotlib.colormaps[colours](scaled)[..., :3] * 255 + 0.5).astype(np.uint8)


def to_picture(colours: Tensor) -> Picture:
    """(3, h, w) in 0..1 -> (h, w, 3) uint8."""
    return (colours.permute(1, 2, 0).cpu().numpy() * 255 + 0.5).astype(np.uint8)


def enlarge(picture: Picture, size: tuple[int, int]) -> Picture:
    """Nearest-neighbour resize to (H, W): cells stay visible."""
    return np.asarray(cv2.resize(picture, (size[1], size[0]), interpolation=cv2.INTER_NEAREST), np.uint8)


def contain(picture: Picture, side: int) -> Picture:
    """A picture made smaller or larger to fit a white square of `side` pixels, at its upper left."""
    height, width = picture.shape[:2]
    factor = side / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST)
    square = np.full((side, side, 3), 255, np.uint8)
    square[: size[1], : size[0]] = small
    return square


def outline(image: Picture, mask: NDArray[np.bool_], colour: NDArray[np.integer], width: int = 2) -> Picture:
    """A copy of a picture (H, W, 3) with the contour of a mask (H, W) drawn on it."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    drawn = image.copy()
    cv2.drawContours(drawn, contours, -1, [int(c) for c in colour], width)
    return drawn


def objects_picture(
    image: Picture, labels: NDArray[np.integer], masks: Iterable[tuple[int, NDArray[np.bool_]]]
) -> Picture:
    """Objects over a picture: those of `labels` (H, W), which count from 1, in colour, the rest darker, and contours of
    numbered masks (H, W)."""
    table = np.concatenate([np.zeros((1, 3), np.uint8), palette(255)])
    inside = (labels > 0)[..., None]
    picture = np.where(inside, overlay(image, table[labels], 0.45), (image * 0.6).astype(np.uint8))
    for number, mask in masks:
        if mask.any():
            picture = outline(picture, mask, table[number])
    return picture


def sheet(rows: Sequence[Sequence[Picture]], gap: int = 4, headings: Sequence[str] = ()) -> Picture:
    """Pictures of equal size in a grid on white, with a word above each column where there are headings."""
    height, width = rows[0][0].shape[:2]
    columns, above = max(len(row) for row in rows), HEADING if headings else 0
    canvas = np.full((above + len(rows) * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    for j, words in enumerate(headings):
        cv2.putText(
            canvas,
            words,
            (gap + j * (width + gap), HEADING - 6),
            cv2.FONT_HERSHEY_SIMPLEX,
            0.5,
            (0, 0, 0),
            1,
            cv2.LINE_AA,
        )
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = above + gap + i * (height + gap), gap + j * (width + gap)
            canvas[top : top + height, left : left + width] = picture
    return canvas


def palette(count: int) -> Picture:
    """`count` colours that neighbours in the list tell apart, (count, 3); the first ones of any list are the same."""
    hue = (np.arange(count) * 0.61803398875 + 0.35) % 1  # the golden ratio never comes near itself
    value, saturation = 0.95 - 0.35 * (np.arange(count) // 3 % 2), 0.85 - 0.35 * (np.arange(count) // 7 % 2)
    hsv = np.stack([hue * 180, saturation * 255, value * 255], axis=1).astype(np.uint8)[None]
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0], np.uint8)


def label_picture(labels: NDArray[np.integer], count: int) -> Picture:
    """Class indices (H, W) as colours; 255 is black."""
    table = np.zeros((max(256, count), 3), np.uint8)
    table[:count] = palette(count)
    if count <= 255:
        table[255] = 0
    return table[labels]


def overlay(image: Picture, colours: Picture, strength: float = 0.55) -> Picture:
    """Colours laid over a picture of the same size."""
    return cv2.addWeighted(colours, strength, image, 1 - strength, 0)  # type: ignore[return-value]


def depth_picture(
    depth: NDArray[np.floating], bounds: tuple[float, float] | None = None, inverse: bool = False
) -> Picture:
    """Depth (H, W) as colours, near bright; what is not finite is black. bounds: values at the ends of the scale."""
    values = np.asarray(depth, np.float64)
    known = np.isfinite(values)
    if not known.any():
        return np.zeros((*values.shape, 3), np.uint8)
    low, high = bounds or tuple(np.quantile(values[known], (0.01, 0.99)))
    scaled = np.clip((np.where(known, values, low) - low) / max(high - low, 1e-9), 0, 1)
    colours = (matplotlib.colormaps["magma"](scaled if inverse else 1 - scaled)[..., :3] * 255 + 0.5).astype(np.uint8)
    return np.where(known[..., None], colours, np.uint8(0))


def write_picture(path: str | Path, picture: Picture) -> None:
    """A picture as a file, RGB."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)):
        raise OSError(f"cannot write {path}")
