"""Colours, textures, sky and light of a scene, drawn independently of the solids.

Colours are linear reflectances in [0, 1], three floats each.
"""

import colorsys
import math
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

Colour = tuple[float, float, float]

PATTERNS = ("plain", "stripes", "checker", "dots", "noise", "gradient", "marble")
FLOORS = ("plain", "noise", "checker", "stripes", "tiles", "pebbles")
_GROUNDS: tuple[tuple[float, float, float], ...] = (  # hue, saturation, value
    (0.28, 0.5, 0.45), (0.12, 0.4, 0.75), (0.6, 0.05, 0.4), (0.07, 0.5, 0.5), (0.6, 0.04, 0.9), (0.05, 0.6, 0.45),
)  # fmt: skip
_SKIES: tuple[tuple[tuple[float, float, float], tuple[float, float, float]], ...] = (  # horizon, zenith
    ((0.57, 0.2, 0.95), (0.59, 0.65, 0.8)),
    ((0.6, 0.03, 0.85), (0.6, 0.08, 0.6)),
    ((0.07, 0.55, 0.95), (0.65, 0.4, 0.5)),
    ((0.13, 0.15, 0.95), (0.55, 0.4, 0.75)),
    ((0.93, 0.3, 0.85), (0.7, 0.45, 0.4)),
    ((0.6, 0.3, 0.35), (0.64, 0.6, 0.15)),
)


@dataclass(frozen=True)
class Texture:
    """Two colours mixed by a pattern, in coordinates after `rotation`, scaled by `frequency` (periods per metre)."""

    pattern: str
    first: Colour
    second: Colour
    rotation: NDArray[np.float64]
    frequency: float
    offset: tuple[float, float, float]
    shine: float = 0.0


@dataclass(frozen=True)
class Sky:
    horizon: Colour
    zenith: Colour
    clouds: float  # fraction of the sky that is covered, 0 for none
    cloud_scale: float
    hills: float  # slope up to the silhouettes at the horizon, 0 for none
    hill: Colour
    haze: float  # distance in metres at which 63% of the colour is that of the horizon
    offset: tuple[float, float]


@dataclass(frozen=True)
class Light:
    """The unit vector towards the sun, its colour, and the ambient light."""

    towards: tuple[float, float, float]
    sun: Colour
    ambient: Colour


def rgb(hue: float, saturation: float, value: float) -> Colour:
    """Return a linear colour from the perceptual hue, saturation and value."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))
    return red * red, green * green, blue * blue


def _rotation(rng: Random) -> NDArray[np.float64]:
    """Return a uniformly random rotation, from a unit quaternion."""
    a, b, c, d = (rng.gauss(0, 1) for _ in range(4))
    s = 2 / (a * a + b * b + c * c + d * d)
    return np.array([
        [1 - s * (c * c + d * d), s * (b * c - a * d), s * (b * d + a * c)],
        [s * (b * c + a * d), 1 - s * (b * b + d * d), s * (c * d - a * b)],
        [s * (b * d - a * c), s * (c * d + a * b), 1 - s * (b * b + c * c)],
    ])  # fmt: skip


def _colour(rng: Random) -> Colour:
    return rgb(rng.random(), rng.random() ** 0.8 * 0.95, rng.uniform(0.25, 0.98))


def _near(rng: Random, hsv: tuple[float, float, float], spread: float) -> Colour:
    hue, saturation, value = hsv
    return rgb(
        hue + rng.gauss(0, 0.06 * spread), saturation + rng.gauss(0, 0.15 * spread), value + rng.gauss(0, 0.12 * spread)
    )


def texture(rng: Random, size: float) -> Texture:
    """Return the texture of a solid of about `size` metres."""
    first = _colour(rng)
    second = _colour(rng) if rng.random() < 0.6 else tuple(c * rng.uniform(0.25, 0.6) for c in first)
    pattern = PATTERNS[int(rng.random() * len(PATTERNS))]
    offset = (rng.random(), rng.random(), rng.random())
    shine = rng.uniform(0.2, 0.9) if rng.random() < 0.4 else 0.0
    turned, scale = _rotation(rng), rng.uniform(1.5, 4.5) / size
    return Texture(pattern, first, second, turned, scale, offset, shine)  # type: ignore[arg-type]


def floor(rng: Random) -> Texture:
    """Return the texture of the ground, mostly in natural hues."""
    hsv = _GROUNDS[int(rng.random() * len(_GROUNDS))]
    first = _near(rng, hsv, 1.0) if rng.random() < 0.7 else _colour(rng)
    if rng.random() < 0.75:
        factor = rng.uniform(0.35, 0.8)
        second: Colour = (first[0] * factor, first[1] * factor, first[2] * factor)
    else:
        second = _near(rng, hsv, 2.0)
    pattern = FLOORS[int(rng.random() * len(FLOORS))]
    angle = rng.uniform(0, math.pi)
    cos, sin = math.cos(angle), math.sin(angle)
    rotation = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    return Texture(
        pattern, first, second, rotation, math.exp(rng.uniform(-0.9, 1.2)), (rng.random(), 0.0, rng.random())
    )


def sky(rng: Random) -> Sky:
    low, high = _SKIES[int(rng.random() * len(_SKIES))]
    if rng.random() < 0.15:
        low, high = (rng.random(), 0.3, 0.9), (rng.random(), 0.5, 0.6)
    hills = rng.uniform(0.04, 0.3) if rng.random() < 0.45 else 0.0
    clouds = rng.uniform(0.2, 0.8) if rng.random() < 0.6 else 0.0
    hill = _near(rng, (0.35, 0.3, 0.4), 2.0)
    haze = math.exp(rng.uniform(3.1, 5.2))
    offset = (rng.random(), rng.random())
    return Sky(_near(rng, low, 1.0), _near(rng, high, 1.0), clouds, rng.uniform(0.06, 0.2), hills, hill, haze, offset)


def light(rng: Random) -> Light:
    azimuth, elevation = rng.uniform(0, 2 * math.pi), math.radians(rng.uniform(22, 68))
    towards = (
        math.sin(azimuth) * math.cos(elevation), math.sin(elevation), math.cos(azimuth) * math.cos(elevation)
    )  # fmt: skip
    warm = rng.uniform(-0.12, 0.22)
    sun, fill = rng.uniform(0.75, 1.25), rng.uniform(0.28, 0.6)
    return Light(
        towards,
        (sun * (1 + warm), sun, sun * (1 - warm)),
        (fill * (1 - warm / 2), fill, fill * (1 + warm)),
    )
