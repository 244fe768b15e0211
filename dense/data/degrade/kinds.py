"""The kinds of damage by name, with the levels they are learnt at and those they are tested at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dense.data.degrade.blur import defocus, motion
from dense.data.degrade.sensor import jpeg, low_light, noise
from dense.data.degrade.weather import haze, rain
from dense.suggest import did_you_mean


@dataclass(frozen=True)
class Kind:
    """One kind. seen: levels to train on; unseen: levels that only ask how well that generalises. low, high: what a level
    can be."""

    damage: Callable[..., Any]  # picture (H, W, 3) fp32 of 0 to 1, level, generator, depth -> the same
    seen: tuple[float, ...]
    unseen: tuple[float, ...]
    low: float
    high: float
    unit: str

    def check(self, name: str, level: float) -> None:
        """Raise for a level that cannot be."""
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
    """By name."""
    if name not in KINDS:
        raise ValueError(f"unknown damage {name!r}: known are {', '.join(KINDS)}.{did_you_mean(name, KINDS)}")
    return KINDS[name]


def degrade(
    image: NDArray[np.uint8],
    damages: dict[str, float],
    seed: int | tuple[int, ...],
    depth: NDArray[np.float32] | None = None,
) -> NDArray[np.uint8]:
    """A picture (H, W, 3) with damages by kind and level, one after the other; a pure function of its arguments.

    depth (H, W) in metres is what haze needs: +inf where there is nothing, NaN where it is unknown.
    """
    draw = np.random.default_rng(seed)
    damaged = image.astype(np.float32) / 255
    for name, level in damages.items():
        kind = find_kind(name)
        kind.check(name, level)
        damaged = np.clip(kind.damage(damaged, level, draw, depth), 0, 1).astype(np.float32)
    return np.round(damaged * 255).astype(np.uint8)
