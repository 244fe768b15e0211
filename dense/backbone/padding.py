"""Any size: fit a picture to a multiple of the patch, and remember how."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from dense.backbone.spec import Padding

Borders = tuple[int, int, int, int]  # top, bottom, left, right


def fit(images: Tensor, multiple: int, policy: Padding, smallest: int | None = None) -> tuple[Tensor, Borders, bool]:
    """Bring (B, 3, H, W) to a multiple of `multiple`; returns the images, the borders added, and whether they were resized.

    `pad` adds zeros (the mean colour) around the centre, `crop` cuts around the centre, `resize` stretches to the nearest
    multiple. A side below `smallest` (one patch, if not said) is refused.
    """
    height, width = images.shape[-2:]
    smallest = multiple if smallest is None or policy == "crop" else smallest
    if min(height, width) < smallest:
        raise ValueError(
            f"a picture of {height}x{width} is smaller than one patch of {smallest}x{smallest}; enlarge it first"
        )
    if policy == "resize":
        size = tuple(max(multiple, round(n / multiple) * multiple) for n in (height, width))
        if size == (height, width):
            return images, (0, 0, 0, 0), False
        return F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False), (0, 0, 0, 0), True
    if policy not in ("pad", "crop"):
        raise ValueError(f"unknown padding policy {policy!r}; use pad, resize or crop")
    sign = 1 if policy == "pad" else -1
    rest = [(-n) % multiple if policy == "pad" else n % multiple for n in (height, width)]
    (top, left), (bottom, right) = [n // 2 for n in rest], [n - n // 2 for n in rest]
    if not any(rest):
        return images, (0, 0, 0, 0), False
    borders = (sign * top, sign * bottom, sign * left, sign * right)
    return F.pad(images, (borders[2], borders[3], borders[0], borders[1])), borders, False
