"""The crops on which published depth results are measured."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from dense.suggest import did_you_mean

Crop = Literal["none", "nyu_eigen", "garg", "eigen_kitti"]
CROPS: tuple[str, ...] = get_args(Crop)

NYU_SIZE = (480, 640)
NYU_EIGEN = (45, 471, 41, 601)  # top, bottom, left, right
SHARES = {  # top and bottom of the height, left and right of the width; on KITTI
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
    "eigen_kitti": (0.3324324, 0.91351351, 0.0359477, 0.96405229),
}
KITTI_BENCHMARK = (352, 1216)


def window(height: int, width: int, crop: Crop) -> tuple[slice, slice]:
    """Return the rows and columns of the crop in a map of this size.

    ``nyu_eigen`` is defined for 480x640 alone. ``garg`` (Garg et al. 2016) and ``eigen_kitti`` (Eigen et al. 2014) are
    fractions of the size, rounded down.

    >>> window(480, 640, "nyu_eigen")
    (slice(45, 471, None), slice(41, 601, None))
    """
    if crop == "none":
        return slice(0, height), slice(0, width)
    if crop == "nyu_eigen":
        if (height, width) != NYU_SIZE:
            raise ValueError(f"crop 'nyu_eigen' is defined for 480x640, not for {height}x{width}; measure at full size")
        top, bottom, left, right = NYU_EIGEN
        return slice(top, bottom), slice(left, right)
    if crop not in SHARES:
        raise ValueError(f"crop={crop!r}: expected one of {', '.join(CROPS)}.{did_you_mean(crop, CROPS)}")
    up, down, start, end = SHARES[crop]
    return slice(int(up * height), int(down * height)), slice(int(start * width), int(end * width))


def crop_mask(height: int, width: int, crop: Crop, device: torch.device | None = None) -> Tensor:
    """Return a mask that is True inside the crop of a map of this size, (H, W)."""
    mask = torch.zeros(height, width, dtype=torch.bool, device=device)
    mask[window(height, width, crop)] = True
    return mask


def kitti_benchmark_window(height: int, width: int) -> tuple[slice, slice]:
    """Return rows and columns of the 352x1216 bottom centre, to which KITTI images and depths are cropped first.

    >>> kitti_benchmark_window(375, 1242)
    (slice(23, 375, None), slice(13, 1229, None))
    """
    rows, columns = KITTI_BENCHMARK
    if height < rows or width < columns:
        raise ValueError(f"{height}x{width} is smaller than the benchmark's {rows}x{columns}")
    left = (width - columns) // 2
    return slice(height - rows, height), slice(left, left + columns)
