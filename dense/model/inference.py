"""Test-time augmentation and sliding windows around any network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from dense.console import within
from dense.data.large import Pixels
from heads.features import Size
from heads.layers import resize

if TYPE_CHECKING:
    from dense.model.network import DenseModel, Inference

Maps = dict[str, Tensor]
Network = Callable[[Tensor], Maps]  # normalised images (B, 3, H, W) -> name -> (B, K, H, W)
Finish = Callable[[str, Tensor, int, int], None]  # name, block of the mean (K, h, w), top, left
Edges = Literal["even", "inward"]
WHOLE = 1_000_000  # pixels above which an image is windowed or resized although no inference is configured
ROWS = 256  # rows of an image for which the logits of all classes are in memory at once
WINDOW = 512  # side of windows where nothing else is configured, rounded down to a multiple of the patch


def augmented(network: Network, scales: Sequence[float] = (1.0,), flip: bool = False) -> Network:
    """Return a network that averages maps (or logits) over scales and, with `flip`, over mirror images."""
    if not scales or min(scales) <= 0:
        raise ValueError(f"scales={tuple(scales)}: expected one or several positive numbers")
    if tuple(scales) == (1.0,) and not flip:
        return network

    def run(images: Tensor) -> Maps:
        height, width = images.shape[-2:]
        total: Maps = {}
        for scale in scales:
            size = (max(round(height * scale), 1), max(round(width * scale), 1))
            scaled = resize(images, size, align_corners=False)
            for mirrored in (False, True)[: 1 + flip]:
                for name, values in network(scaled.flip(-1) if mirrored else scaled).items():
                    values = resize(values.flip(-1) if mirrored else values, (height, width), align_corners=False)
                    total[name] = total[name] + values if name in total else values
        return {name: values / (len(scales) * (1 + flip)) for name, values in total.items()}

    return run


def starts(length: int, window: int, stride: int, edges: Edges = "even") -> list[int]:
    """Return where windows begin that cover `length` with steps of at most `stride`.

    edges: "even" spreads the windows evenly; "inward" places one every `stride` and moves the last one inwards, as
    mmsegmentation and DINOv3 do.
    """
    if length <= window:
        return [0]
    count = -(-(length - window) // stride) + 1
    if edges == "inward":
        return [min(i * stride, length - window) for i in range(count)]
    return [round(i * (length - window) / (count - 1)) for i in range(count)]


def slide(
    network: Network,
    image: Tensor | Pixels,
    window: int,
    stride: int,
    finish: Finish,
    edges: Edges = "even",
    batch: int = 1,
) -> None:
    """Apply `network` to overlapping windows of an image (3, H, W) and average the maps, with little memory.

    Windows go row by row. When the last window over some pixels is done, their mean goes to `finish`, in blocks that
    tile the image, and its memory is freed; only the rows that the next row of windows overlaps are kept. A row of
    windows lies along the shorter side of the image, since one row is held in memory. Of a large image, `Pixels`, only
    these windows are read.
    """
    height, width = image.shape[-2:]
    if width > height:

        def turned(images: Tensor) -> Maps:
            return {name: values.mT for name, values in network(images.mT.contiguous()).items()}

        def turned_back(name: str, values: Tensor, top: int, left: int) -> None:
            finish(name, values.mT, left, top)

        return slide(turned, image.mT, window, stride, turned_back, edges, batch)
    tall, wide = min(window, height), min(window, width)
    ys, xs = starts(height, tall, stride, edges), starts(width, wide, stride, edges)
    count_y, count_x = _counts(ys, tall, height, image.device), _counts(xs, wide, width, image.device)
    kept: Maps = {}  # K, rows shared with the next row of windows, W
    shared = 0
    for row, top in enumerate(ys):
        last_row = row == len(ys) - 1
        done_rows = tall if last_row else ys[row + 1] - top
        active: Maps = {}  # K, tall, wide: sums over the windows of this row
        for column, prediction in enumerate(_predictions(network, image, top, xs, (tall, wide), batch)):
            within(row * len(xs) + column + 1, len(ys) * len(xs), "windows")
            left = xs[column]
            done = wide if column == len(xs) - 1 else xs[column + 1] - left
            for name, values in prediction.items():
                if name in active:
                    overlap = wide - (left - xs[column - 1])
                    values[:, :, :overlap] += active[name][:, :, wide - overlap :]
                active[name] = values
                block = values[:, :, :done]
                if shared:
                    block[:, :shared] += kept[name][:, :shared, left : left + done]
                count = count_y[top : top + done_rows, None] * count_x[None, left : left + done]
                finish(name, block[:, :done_rows] / count, top, left)
                if not last_row:
                    if name not in kept:
                        rows = max(a + tall - b for a, b in pairwise(ys))
                        kept[name] = values.new_zeros(values.shape[0], rows, width)
                    kept[name][:, : tall - done_rows, left : left + done] = block[:, done_rows:]
        shared = tall - done_rows
    return None


def _predictions(
    network: Network, image: Tensor | Pixels, top: int, xs: Sequence[int], size: tuple[int, int], batch: int
) -> Iterator[Maps]:
    """Yield the maps of each window of a row as fp32 copies."""
    tall, wide = size
    for first in range(0, len(xs), batch):
        windows = torch.stack([image[:, top : top + tall, x : x + wide] for x in xs[first : first + batch]])
        maps = network(windows)
        for i in range(len(windows)):
            yield {name: values[i].to(torch.float32, copy=True) for name, values in maps.items()}


def _counts(begins: Sequence[int], window: int, length: int, device: torch.device) -> Tensor:
    """Return how many windows cover each position, (length,)."""
    counts = torch.zeros(length, device=device)
    for begin in begins:
        counts[begin : begin + window] += 1
    return counts


def slid(network: Network, window: int, stride: int, edges: Edges = "even", batch: int = 1) -> Network:
    """Return a network that applies `network` in sliding windows and keeps whole maps, for images of ordinary size."""

    def run(images: Tensor) -> Maps:
        results: list[Maps] = []
        for image in images:
            whole: Maps = {}

            def finish(name: str, values: Tensor, top: int, left: int, whole: Maps = whole) -> None:
                if name not in whole:
                    whole[name] = values.new_zeros(values.shape[0], *images.shape[-2:])
                whole[name][:, top : top + values.shape[1], left : left + values.shape[2]] = values

            slide(network, image, window, stride, finish, edges, batch)
            results.append(whole)
        return {name: torch.stack([r[name] for r in results]) for name in results[0]}

    return run


def bands(values: Tensor, size: tuple[int, int], finish: Callable[..., None]) -> None:
    """Resize a map (K, h, w) to `size` bilinearly and pass it on in bands of rows; the whole never exists."""
    if tuple(values.shape[-2:]) == size:
        for top in range(0, size[0], ROWS):
            finish(values[:, top : top + ROWS], top)
        return
    rows = ((torch.arange(size[0], device=values.device) + 0.5) * (values.shape[1] / size[0]) - 0.5).clamp(min=0)
    above = rows.long().clamp(max=values.shape[1] - 1)
    below, share = (above + 1).clamp(max=values.shape[1] - 1), (rows - above)[:, None]
    for top in range(0, size[0], ROWS):
        part = slice(top, min(top + ROWS, size[0]))
        band = torch.lerp(values[:, above[part]], values[:, below[part]], share[part])  # K, rows, w
        finish(resize(band[None], (band.shape[1], size[1]), align_corners=False)[0], top)


def of_pixels(size: Size, pixels: int) -> Size:
    """Return the size (height, width) of so many pixels at most, with the sides in the same proportion."""
    factor = math.sqrt(pixels / (size[0] * size[1]))
    return max(1, int(size[0] * factor)), max(1, int(size[1] * factor))


def whole_size(inference: Inference, size: Size, focal: float | None = None) -> int | Size | None:
    """Return the working size of an image that is best seen whole: with neither size nor window, `WHOLE` pixels."""
    found = inference.size_of(size, focal)
    if found is None and inference.window is None and size[0] * size[1] > WHOLE:
        return of_pixels(size, WHOLE)
    return found


def window_of(patch: int) -> int:
    """Return the side of windows where none is configured: the largest multiple of the patch up to `WINDOW`."""
    return max(patch, WINDOW // patch * patch)


def through(model: DenseModel, inference: Inference) -> Network:
    """Return a network that applies a model as `inference` says: in sliding windows, or to whole images."""
    return model.maps if inference.window is None else slid(model.maps, inference.window, inference.step)
