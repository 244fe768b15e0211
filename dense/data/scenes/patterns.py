"""Procedural patterns: the weight of a texture's second colour at a point, in [0, 1]."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dense.data.scenes.looks import Texture
from dense.data.scenes.solid import Array

TURN = np.float32(2 * np.pi)
SHEET, BLOCK = 256, 32  # cells per side of the two periodic tables of noise


@lru_cache
def _noise(side: int, dimensions: int, slope: float) -> Array:
    """Return a periodic table of smooth noise in [0, 1] whose spectrum falls as frequency to the power -`slope`."""
    white = np.random.Generator(np.random.PCG64(20240229)).standard_normal((side,) * dimensions)
    axes = [np.fft.fftfreq(side)] * (dimensions - 1) + [np.fft.rfftfreq(side)]
    squared = np.zeros([len(axis) for axis in axes])
    for place, axis in enumerate(axes):
        squared = squared + np.square(axis).reshape([-1 if place == d else 1 for d in range(dimensions)])
    spectrum = np.fft.rfftn(white) * np.maximum(squared, (2 / side) ** 2) ** (-slope / 2)
    spectrum.reshape(-1)[0] = 0
    values = np.fft.irfftn(spectrum, s=white.shape, axes=tuple(range(dimensions)))
    return np.clip(values / values.std() / 4 + 0.5, 0, 1).astype(np.float32)


def sheet(x: Array, y: Array) -> Array:
    """Return noise over the plane, interpolated linearly, with period 1 in x and in y."""
    table = _noise(SHEET, 2, 1.4).reshape(-1)
    (column, right, across), (row, below, down) = _cell(x, SHEET), _cell(y, SHEET)
    row, below = row * SHEET, below * SHEET
    top, bottom = table[row + column], table[below + column]
    top = top + across * (table[row + right] - top)
    bottom = bottom + across * (table[below + right] - bottom)
    return top + down * (bottom - top)


def block(x: Array, y: Array, z: Array) -> Array:
    """Return noise through space, interpolated linearly, with period 1 along every axis."""
    table = _noise(BLOCK, 3, 2.2).reshape(-1)
    (x0, x1, across), (y0, y1, down), (z0, z1, deep) = _cell(x, BLOCK), _cell(y, BLOCK), _cell(z, BLOCK)
    planes = []
    for plane in (z0 * (BLOCK * BLOCK), z1 * (BLOCK * BLOCK)):
        rows = []
        for row in (plane + y0 * BLOCK, plane + y1 * BLOCK):
            left = table[row + x0]
            rows.append(left + across * (table[row + x1] - left))
        planes.append(rows[0] + down * (rows[1] - rows[0]))
    return planes[0] + deep * (planes[1] - planes[0])


def _cell(values: Array, side: int) -> tuple[NDArray[np.int32], NDArray[np.int32], Array]:
    """Return the two cells around a coordinate, and the weight of the second."""
    scaled = values * np.float32(side)
    low = np.floor(scaled)
    first = low.astype(np.int32)
    return first & (side - 1), (first + 1) & (side - 1), scaled - low


def _fraction(values: Array) -> Array:
    return values - np.floor(values)


def _edge(values: Array, sharpness: float) -> Array:
    """Return a step at zero, softened over about 1 / sharpness."""
    return np.clip(values * np.float32(sharpness) + np.float32(0.5), 0, 1)


def _rotated(coat: Texture, x: Array, y: Array, z: Array) -> tuple[Array, Array, Array]:
    rows = (coat.rotation * coat.frequency).tolist()
    rotated = (a * x + b * y + c * z + d for (a, b, c), d in zip(rows, coat.offset, strict=True))
    first, second, third = rotated
    return first, second, third


def on_solid(coat: Texture, x: Array, y: Array, z: Array) -> Array | float:
    """Return the pattern in the solid's own space."""
    if coat.pattern == "plain":
        return 0.0
    x, y, z = _rotated(coat, x, y, z)
    if coat.pattern == "stripes":
        return _edge(np.sin(x * TURN), 3)
    if coat.pattern == "checker":
        half = TURN / 2
        return _edge(np.sin(x * half) * np.sin(y * half) * np.sin(z * half), 8)
    if coat.pattern == "dots":
        u, v, w = _fraction(x) - 0.5, _fraction(y) - 0.5, _fraction(z) - 0.5
        return _edge(np.float32(0.16) - u * u - v * v - w * w, 15)
    if coat.pattern == "noise":
        return _edge(block(x / 8, y / 8, z / 8) - np.float32(0.5), 4)
    if coat.pattern == "gradient":
        return _edge(x - np.float32(coat.offset[0]), 0.4)
    return _edge(np.sin(x * TURN + 9 * block(x / 16, y / 16, z / 16)), 1)


def on_ground(coat: Texture, x: Array, z: Array, blur: Array) -> Array:
    """Return the pattern on the plane; `blur` is the size of a pixel in metres, below which detail is averaged."""
    rows = (coat.rotation[[0, 2]][:, [0, 2]] * coat.frequency).tolist()
    (a, b), (c, d) = rows
    u, v = a * x + b * z + coat.offset[0], c * x + d * z + coat.offset[2]
    grain = sheet(u / 7, v / 7)
    if coat.pattern == "plain":
        return grain * np.float32(0.4)
    if coat.pattern == "noise":
        return _edge(grain - np.float32(0.5), 3)
    if coat.pattern == "checker":
        mask = _edge(np.sin(u * (TURN / 2)) * np.sin(v * (TURN / 2)), 8)
        mean = 0.5
    elif coat.pattern == "stripes":
        mask, mean = _edge(np.sin(u * TURN), 3), 0.5
    elif coat.pattern == "tiles":
        joint = np.minimum(np.abs(_fraction(u) - 0.5), np.abs(_fraction(v) - 0.5))
        mask, mean = _edge(np.float32(0.04) - joint, 25), 0.15
    else:  # pebbles
        p, q = _fraction(u * 2) - 0.5, _fraction(v * 2) - 0.5
        mask, mean = _edge(np.float32(0.1) - p * p - q * q, 10), 0.3
    sharp = np.clip(2 - blur * np.float32(3 * coat.frequency), 0, 1)
    return (mask - mean) * sharp * np.float32(0.8) + np.float32(0.8 * mean) + grain * np.float32(0.2)
