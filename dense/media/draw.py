"""Pictures for people, as uint8 arrays: colour maps, labels and objects over images, contact sheets."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dense.data.levels import as_rgb
from dense.files import write

Picture = NDArray[np.uint8]  # H, W, 3

HEADING = 22  # pixels above a sheet for the headings of its columns
CAPTION = 16  # pixels below a cell for its caption


def heat(
    values: Tensor | NDArray[np.floating], colours: str = "inferno", bounds: tuple[float, float] | None = None
) -> Picture:
    """Draw a map (h, w) with a colour map of matplotlib, scaled from its minimum to its maximum without `bounds`."""
    array = np.asarray(values, dtype=np.float64)
    low, high = bounds or (float(np.nanmin(array)), float(np.nanmax(array)))
    scaled = np.clip((array - low) / (high - low), 0, 1) if high > low else np.zeros_like(array)
    return _colour_mapped(scaled, colours)


def depth_picture(
    depth: NDArray[np.floating], bounds: tuple[float, float] | None = None, inverse: bool = False
) -> Picture:
    """Draw depth (H, W), near bright and values that are not finite black.

    bounds: values at the ends of the scale; quantiles if left out. inverse: large values are near.
    """
    values = np.asarray(depth, np.float64)
    known = np.isfinite(values)
    if not known.any():
        return np.zeros((*values.shape, 3), np.uint8)
    low, high = bounds or tuple(np.quantile(values[known], (0.01, 0.99)))
    scaled = np.clip((np.where(known, values, low) - low) / max(high - low, 1e-9), 0, 1)
    return np.where(known[..., None], _colour_mapped(scaled if inverse else 1 - scaled, "magma"), np.uint8(0))


def _colour_mapped(scaled: NDArray[np.float64], colours: str) -> Picture:
    import matplotlib  # here, since not every verb draws a map

    return (matplotlib.colormaps[colours](scaled)[..., :3] * 255 + 0.5).astype(np.uint8)


def to_picture(colours: Tensor) -> Picture:
    """Return colours (3, h, w) in 0..1 as (h, w, 3) uint8."""
    return (colours.permute(1, 2, 0).cpu().numpy() * 255 + 0.5).astype(np.uint8)


def enlarge(picture: Picture, size: tuple[int, int]) -> Picture:
    """Resize to (H, W) by nearest neighbour, so that patches stay visible as squares."""
    return np.asarray(cv2.resize(picture, (size[1], size[0]), interpolation=cv2.INTER_NEAREST), np.uint8)


def fit(picture: Picture, side: int, enlarging: int = cv2.INTER_CUBIC) -> Picture:
    """Resize a picture to a longer side of `side` pixels: by area where it shrinks, else as `enlarging` says."""
    picture = as_rgb(picture)
    height, width = picture.shape[:2]
    factor = side / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA if factor < 1 else enlarging), np.uint8)


def contain(picture: Picture, side: int) -> Picture:
    """Resize a picture to fit a white square of `side` pixels and place it at the upper left."""
    small, square = fit(picture, side, cv2.INTER_NEAREST), np.full((side, side, 3), 255, np.uint8)
    square[: small.shape[0], : small.shape[1]] = small
    return square


def draw_cross(picture: Picture, x: float, y: float, side: int) -> Picture:
    """Return a picture with a cross of `side` pixels at a pixel."""
    marked = picture.copy()
    for colour, thickness in (((0, 0, 0), 5), ((255, 255, 255), 2)):
        cv2.drawMarker(marked, (round(x), round(y)), colour, cv2.MARKER_CROSS, side, thickness, cv2.LINE_AA)
    return marked


def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib  # for its font

    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


def captioned(picture: Picture, words: str, height: int = CAPTION) -> Picture:
    """Write words below a picture; of words that are too long for its width, the middle is left out."""
    font = _font(height * 11 // 16)
    width, shown, kept = picture.shape[1], words, len(words)
    while font.getlength(shown) > width - 2 and kept > 2:
        kept -= 1
        shown = f"{words[: kept // 2]}…{words[-(kept - kept // 2) :]}"
    strip = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(strip).text((1, 1), shown, "black", font)
    return np.concatenate([picture, np.asarray(strip, np.uint8)])


def overlay(image: Picture, colours: Picture, strength: float = 0.55) -> Picture:
    """Blend colours over an image of the same size, drawn by `as_rgb`."""
    return cv2.addWeighted(colours, strength, as_rgb(image), 1 - strength, 0)  # type: ignore[return-value]


def palette(count: int) -> Picture:
    """Return `count` colours (count, 3); consecutive ones are distinct, and the first do not depend on `count`."""
    hue = (np.arange(count) * 0.61803398875 + 0.35) % 1  # multiples of the golden ratio are spread evenly
    value, saturation = 0.95 - 0.35 * (np.arange(count) // 3 % 2), 0.85 - 0.35 * (np.arange(count) // 7 % 2)
    hsv = np.stack([hue * 180, saturation * 255, value * 255], axis=1).astype(np.uint8)[None]
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0], np.uint8)


def label_picture(labels: NDArray[np.integer], count: int) -> Picture:
    """Draw class indices (H, W) in colour; 255 is black."""
    table = np.zeros((max(256, count), 3), np.uint8)
    table[:count] = palette(count)
    if count <= 255:
        table[255] = 0
    return table[labels]


def objects_picture(
    image: Picture, labels: NDArray[np.integer], masks: Iterable[tuple[int, NDArray[np.bool_]]]
) -> Picture:
    """Draw objects over an image: labels (H, W) above 0 in colour, the rest darker, and contours of masks (H, W).

    masks: pairs of a label, which gives the colour, and a mask.
    """
    table = np.concatenate([np.zeros((1, 3), np.uint8), palette(255)])
    inside = (labels > 0)[..., None]
    picture = np.where(inside, overlay(image, table[labels], 0.45), (as_rgb(image) * 0.6).astype(np.uint8))
    for number, mask in masks:
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, contours, -1, [int(c) for c in table[number]], 2)
    return picture


LEAST_NAMED = 384  # pixels of the longer side from which names are readable


def named(picture: Picture, names: Sequence[tuple[tuple[int, int], str]]) -> Picture:
    """Write names at places (x, y) of a picture; a small one is enlarged by a whole factor first."""
    factor = max(1, -(-LEAST_NAMED // max(picture.shape[:2])))
    large = np.ascontiguousarray(enlarge(picture, (factor * picture.shape[0], factor * picture.shape[1])))
    scale = max(0.4, max(large.shape[:2]) / 1800)
    for (x, y), words in names:
        (width, height), below = cv2.getTextSize(words, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
        left = min(max(0, factor * x - width // 2), max(0, large.shape[1] - width))
        base = min(max(height + 1, factor * y + height // 2), large.shape[0] - below)
        behind = large[max(0, base - height - 1) : base + below, left : left + width]
        behind[:] = behind // 3
        cv2.putText(large, words, (left, base), cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), 1, cv2.LINE_AA)
    return large


def sheet(rows: Sequence[Sequence[Picture]], gap: int = 4, headings: Sequence[str] = ()) -> Picture:
    """Arrange pictures in a grid on white, with optional headings above the columns.

    A row is as high as its highest picture; all columns are as wide as the widest one.
    """
    heights, width = [max(len(one) for one in row) for row in rows], max(one.shape[1] for row in rows for one in row)
    columns, above = max(len(row) for row in rows), HEADING if headings else 0
    canvas = np.full((above + sum(heights) + (len(rows) + 1) * gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    for j, words in enumerate(headings):
        place = (gap + j * (width + gap), HEADING - 6)
        cv2.putText(canvas, words, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = above + gap + sum(heights[:i]) + i * gap, gap + j * (width + gap)
            canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return canvas


def legend(entries: Sequence[tuple[str, NDArray[np.uint8]]], width: int) -> Picture:
    """Draw names with their colours (3,) in lines of a width, on white."""
    font, places = _font(12), []
    x, y = 4, 4
    for words, colour in entries:
        length = 18 + math.ceil(font.getlength(words))
        if x > 4 and x + length > width:
            x, y = 4, y + 18
        places.append((x, y, words, (int(colour[0]), int(colour[1]), int(colour[2]))))
        x += length + 14
    strip = Image.new("RGB", (width, y + 18), "white")
    draw = ImageDraw.Draw(strip)
    for left, top, words, fill in places:
        draw.rectangle((left, top, left + 12, top + 12), fill)
        draw.text((left + 18, top - 1), words, "black", font)
    return np.asarray(strip, np.uint8)


def write_picture(path: str | Path, picture: Picture) -> None:
    """Write a picture (H, W, 3) RGB, or (H, W) of one channel, to a file."""
    colours = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR) if picture.ndim == 3 else picture
    done, data = cv2.imencode(Path(path).suffix, colours)
    if not done:
        raise OSError(f"cannot write {path}: OpenCV does not encode a picture of shape {picture.shape}")
    write(path, data.tobytes())


def write_index(path: Path, labels: NDArray[np.uint8], colours: Picture) -> None:
    """Write labels (H, W) as a PNG whose palette is `colours` (count, 3)."""
    index = Image.fromarray(labels, mode="P")
    index.putpalette(colours.reshape(-1).tolist())
    data = io.BytesIO()
    index.save(data, "PNG")
    write(path, data.getvalue())
