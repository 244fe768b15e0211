"""Rain and haze."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from dense.data.degrade.blur import filtered, line

Colours = NDArray[np.float32]  # H, W, 3 in 0..1
Depth = NDArray[np.float32]  # H, W in metres


def rain(image: Colours, level: float, draw: np.random.Generator, depth: Depth | None) -> Colours:
    """Bright streaks of one slant, screened over the picture. level: share of pixels in which a drop starts, in percent."""
    height, width = image.shape[:2]
    length = draw.uniform(0.06, 0.16) * min(height, width)
    angle = 90 + draw.uniform(-30, 30)
    drops = (draw.random((height, width), np.float32) < level / 100).astype(np.float32)
    drops *= draw.uniform(0.5, 1.0, (height, width)).astype(np.float32)
    streaks = filtered(drops, line(max(length, 3), angle))
    streaks = np.minimum(streaks * np.float32(0.6 * max(length, 3)), 0.8)[..., None]
    return 1 - (1 - image) * (1 - streaks)


def haze(image: Colours, level: float, draw: np.random.Generator, depth: Depth | None) -> Colours:
    """The scattering model `I = J t + A (1 - t)`, `t = exp(-level * depth)`, of true depth; what is infinitely far is air.

    level: extinction in 1 / metre. The air A is a light grey, a little tinted. Depth that is unknown is that of the
    nearest pixel where it is known.
    """
    if depth is None:
        raise ValueError("haze needs the depth of the picture in metres; give data with depth, or leave haze out")
    air = np.clip(draw.uniform(0.75, 0.95) + draw.uniform(-0.03, 0.03, 3), 0, 1).astype(np.float32)
    transmission = np.exp(-np.float32(level) * known(depth))[..., None]  # 0 where depth is infinite
    return image * transmission + air * (1 - transmission)


def known(depth: Depth) -> Depth:
    """Depth without holes."""
    holes = np.isnan(depth)
    if not holes.any():
        return depth
    if holes.all():
        raise ValueError("haze needs depth, and here none is known")
    _, nearest = cv2.distanceTransformWithLabels(
        holes.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    table = np.zeros(int(nearest.max()) + 1, np.float32)
    table[nearest[~holes]] = depth[~holes]
    return table[nearest]
