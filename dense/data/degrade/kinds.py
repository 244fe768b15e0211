"""Kinds of degradation: what each does to an image, and its usual levels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dense.suggest import did_you_mean

Kernel = NDArray[np.float32]  # k, k with sum 1
OVERSAMPLING = 8  # of kernels, relative to pixels, while they are drawn


def motion(image: Any, level: float, draw: np.random.Generator, depth: Any) -> Any:
    """Blur by a camera that moves along a line during the exposure. level: pixels; the direction is random."""
    return filtered(image, line(level, draw.uniform(0, 180)))


def defocus(image: Any, level: float, draw: np.random.Generator, depth: Any) -> Any:
    """Blur each point into a disc. level: its radius in pixels."""
    return filtered(image, disc(level))


def line(length: float, angle: float) -> Kernel:
    """Return the kernel of a line of `length` pixels at `angle` degrees, 0 along a row and 90 along a column."""
    reach = int(np.ceil((length - 1) / 2))
    side = (2 * reach + 1) * OVERSAMPLING
    middle, half = (side - 1) / 2, max(length - 1, 0) / 2 * OVERSAMPLING
    step = half * np.array([np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))])
    fine = np.zeros((side, side), np.float32)
    start, end = np.round(middle - step).astype(int), np.round(middle + step).astype(int)
    cv2.line(fine, start.tolist(), end.tolist(), 1.0, OVERSAMPLING)
    return downsampled(fine)


def disc(radius: float) -> Kernel:
    """Return the kernel of a disc of `radius` pixels."""
    reach = int(np.ceil(radius))
    places = (np.arange((2 * reach + 1) * OVERSAMPLING) + 0.5) / OVERSAMPLING - reach - 0.5
    return downsampled((np.hypot(places, places[:, None]) <= max(radius, 0.5)).astype(np.float32))


def downsampled(fine: Kernel) -> Kernel:
    """Average an oversampled kernel over pixels."""
    side = fine.shape[0] // OVERSAMPLING
    kernel = fine.reshape(side, OVERSAMPLING, side, OVERSAMPLING).mean((1, 3))
    return (kernel / kernel.sum()).astype(np.float32)


def filtered(image: Any, kernel: Kernel) -> Any:
    """Convolve an image with a kernel; the image is mirrored at its borders."""
    return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101).reshape(image.shape)


def noise(image: Any, level: float, draw: np.random.Generator, depth: Any) -> Any:
    """Add white Gaussian noise. level: its standard deviation, of 255."""
    return image + draw.standard_normal(image.shape, np.float32) * np.float32(level / 255)


def low_light(image: Any, level: float, draw: np.random.Generator, depth: Any) -> Any:
    """Reduce the light, in linear intensities, and add its photon noise. level: the factor of the reduction."""
    linear = image ** np.float32(2.2) / np.float32(level)
    electrons = np.float32(4000)  # of a white pixel in full light
    linear = draw.poisson(linear * electrons).astype(np.float32) / electrons
    return linear ** np.float32(1 / 2.2)


def jpeg(image: Any, level: float, draw: np.random.Generator, depth: Any) -> Any:
    """Compress and decode an image. level: the quality, 1 to 100."""
    if image.shape[2] != 3:
        raise ValueError(f"jpeg compresses RGB, and the image has {image.shape[2]} channels; leave this kind out")
    pixels = np.round(image * 255).astype(np.uint8)[..., ::-1]
    _, file = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, round(level)])
    decoded = cv2.imdecode(file, cv2.IMREAD_COLOR)
    assert decoded is not None
    return decoded[..., ::-1].astype(np.float32) / 255


Colours = NDArray[np.float32]  # H, W, 3 in 0..1
Depth = NDArray[np.float32]  # H, W in metres


def rain(image: Colours, level: float, draw: np.random.Generator, depth: Depth | None) -> Colours:
    """Screen bright parallel streaks over the image. level: percentage of pixels in which a drop starts."""
    height, width = image.shape[:2]
    length = draw.uniform(0.06, 0.16) * min(height, width)
    angle = 90 + draw.uniform(-30, 30)
    drops = (draw.random((height, width), np.float32) < level / 100).astype(np.float32)
    drops *= draw.uniform(0.5, 1.0, (height, width)).astype(np.float32)
    streaks = filtered(drops, line(max(length, 3), angle))
    streaks = np.minimum(streaks * np.float32(0.6 * max(length, 3)), 0.8)[..., None]
    return 1 - (1 - image) * (1 - streaks)


def haze(image: Colours, level: float, draw: np.random.Generator, depth: Depth | None) -> Colours:
    """Apply the scattering model `I = J t + A (1 - t)`, `t = exp(-level * depth)`, with metric depth.

    level: extinction in 1 / metre. The airlight A is a light grey, slightly tinted; pixels at infinite depth show it
    alone. Unknown depth is replaced by that of the nearest pixel with known depth.
    """
    if depth is None:
        raise ValueError("haze needs the depth of the image in metres; give data with depth, or leave haze out")
    air = np.clip(draw.uniform(0.75, 0.95) + draw.uniform(-0.03, 0.03, image.shape[2]), 0, 1).astype(np.float32)
    transmission = np.exp(-np.float32(level) * known(depth))[..., None]  # 0 where depth is infinite
    return image * transmission + air * (1 - transmission)


def known(depth: Depth) -> Depth:
    """Return depth in which unknown values are replaced by the nearest known ones."""
    holes = np.isnan(depth)
    if not holes.any():
        return depth
    if holes.all():
        raise ValueError("haze needs depth, and none is known in this image")
    _, nearest = cv2.distanceTransformWithLabels(
        holes.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    table = np.zeros(int(nearest.max()) + 1, np.float32)
    table[nearest[~holes]] = depth[~holes]
    return table[nearest]


@dataclass(frozen=True)
class Kind:
    """One kind of degradation.

    degradation: function of an image (H, W, 3) fp32 in 0..1, a level, a generator and depth, which returns the image
    seen: levels of training
    unseen: levels that only measure generalisation
    low, high: range of valid levels
    """

    degradation: Callable[..., Any]
    seen: tuple[float, ...]
    unseen: tuple[float, ...]
    low: float
    high: float
    unit: str

    def check(self, name: str, level: float) -> None:
        """Raise ValueError for a level out of range."""
        if isinstance(level, bool) or not isinstance(level, int | float) or not self.low <= level <= self.high:
            raise ValueError(f"{name}={level!r}: expected a level of {self.low:g} to {self.high:g} ({self.unit})")


KINDS: dict[str, Kind] = {
    "rain": Kind(rain, (0.5, 1.0, 2.0), (1.5, 3.0), 0.01, 100, "percent of pixels where a drop starts"),
    "noise": Kind(noise, (15, 25, 50), (35, 60), 0.1, 255, "standard deviation, of 255"),
    "motion": Kind(motion, (5, 9, 13), (11, 17), 1, 200, "pixels"),
    "defocus": Kind(defocus, (1.5, 2.5, 3.5), (3.0, 4.5), 0.5, 100, "pixels of radius"),
    "haze": Kind(haze, (0.05, 0.1, 0.2), (0.15, 0.3), 0.0001, 10, "1 / metre"),
    "jpeg": Kind(jpeg, (10, 20, 40), (15, 30), 1, 100, "quality"),
    "low_light": Kind(low_light, (4, 8, 16), (12, 24), 1, 1000, "times less light"),
}


def find_kind(name: str) -> Kind:
    """Return a kind by name."""
    if name not in KINDS:
        raise ValueError(f"unknown degradation {name!r}: known are {', '.join(KINDS)}.{did_you_mean(name, KINDS)}")
    return KINDS[name]


def degrade(
    image: NDArray[np.uint8],
    degradations: dict[str, float],
    seed: int | tuple[int, ...],
    depth: NDArray[np.float32] | None = None,
) -> NDArray[np.uint8]:
    """Return an image (H, W, N) with degradations, kind -> level, in their order; a pure function of its arguments.

    depth: (H, W) in metres, which haze needs; +inf where the scene is infinitely far, NaN where it is unknown
    """
    draw = np.random.default_rng(seed)
    degraded = image.astype(np.float32) / 255
    for name, level in degradations.items():
        kind = find_kind(name)
        kind.check(name, level)
        degraded = np.clip(kind.degradation(degraded, level, draw, depth), 0, 1).astype(np.float32)
    return np.round(degraded * 255).astype(np.uint8)
