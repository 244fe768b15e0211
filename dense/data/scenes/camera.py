"""A pinhole camera above the ground plane y = 0, looking along +z."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Camera:
    """`height` above the ground in metres, above the point (`x`, `z`), which is the origin but for cameras that move;
    `pitch` is positive looking down and `roll` positive clockwise, in radians; `focal` is in units of the shorter side of
    the picture, so that one camera serves every size."""

    height: float
    pitch: float
    roll: float
    focal: float
    x: float = 0.0
    z: float = 0.0

    @property
    def position(self) -> tuple[float, float, float]:
        return self.x, self.height, self.z

    @cached_property
    def rotation(self) -> NDArray[np.float64]:
        """World from camera: columns are the picture's right, its down, and forward."""
        cp, sp, cr, sr = math.cos(self.pitch), math.sin(self.pitch), math.cos(self.roll), math.sin(self.roll)
        right, down, forward = (1.0, 0.0, 0.0), (0.0, -cp, -sp), (0.0, -sp, cp)
        turned = [cr * r - sr * d for r, d in zip(right, down, strict=True)]
        below = [sr * r + cr * d for r, d in zip(right, down, strict=True)]
        return np.array([turned, below, forward]).T

    def intrinsics(self, height: int, width: int) -> NDArray[np.float64]:
        """The 3x3 matrix from camera coordinates to pixels; the centre of the first pixel is (0.5, 0.5)."""
        focal = self.focal * min(height, width)
        return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])

    def plane(self, height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Columns (W) and rows (H) of the pixel centres on the plane one metre ahead of the camera."""
        focal = self.focal * min(height, width)
        columns = (np.arange(width) + 0.5 - width / 2) / focal
        rows = (np.arange(height) + 0.5 - height / 2) / focal
        return columns.astype(np.float32), rows.astype(np.float32)

    def backproject(self, depth: NDArray[np.float32]) -> NDArray[np.float64]:
        """World points of a map of planar depth: H, W -> H, W, 3; NaN or infinite where there is no depth."""
        columns, rows = self.plane(*depth.shape)
        x, y = np.broadcast_arrays(columns[None, :].astype(np.float64), rows[:, None].astype(np.float64))
        rays = np.stack([x, y, np.ones_like(x)], -1)  # H, W, 3
        with np.errstate(invalid="ignore"):
            return np.einsum("hwc,rc->hwr", rays, self.rotation) * depth[..., None] + self.position
