"""From the grid of a decoder back to the image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from heads.features import Features, Size


def resize(x: Tensor, size: Size, align_corners: bool) -> Tensor:
    """Bilinear resize of (B, C, h, w) to `size`; the very same tensor when it has that size already."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


def to_picture(x: Tensor, features: Features, size: Size | None, align_corners: bool) -> Tensor:
    """A map of the padded frame at any resolution, (B, K, h, w), to the image at `size`, or at its own size for None.

    At the image's own size the map is decoded at the padded size and cropped. At another size, cell i of n stands for
    the pixels [i H / n, (i + 1) H / n) of the image, whatever the padding, so that it meets a target reduced to `size`.
    """
    size = features.image_size if size is None else (int(size[0]), int(size[1]))
    if min(size) < 1:
        raise ValueError(f"size={size}: expected (height, width) of at least 1; leave it out for the image's own size")
    if size == features.image_size:
        return features.to_image(resize(x, features.padded_size, align_corners))
    unpadded = features.resized or not any(features.padding)
    if unpadded and not align_corners:
        return resize(x, size, align_corners=False)
    image, (top, _, left, _) = features.image_size, features.padding
    if features.resized:
        image, top, left = features.padded_size, 0, 0
    rows = _positions(x, size[0], image[0], features.padded_size[0], top, align_corners)
    columns = _positions(x, size[1], image[1], features.padded_size[1], left, align_corners)
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).expand(x.shape[0], -1, -1, -1)  # x before y
    # in fp32: half precision cannot name the cells of a large frame
    y = F.grid_sample(x.float(), grid, mode="bilinear", padding_mode="border", align_corners=align_corners)
    return y.to(x.dtype)


def to_frame(images: Tensor, features: Features) -> Tensor:
    """Images (B, C, H, W) in the frame that the backbone saw, (B, C, *padded_size): padded by zeros, cropped or resized."""
    if tuple(images.shape[-2:]) != tuple(features.image_size):
        raise ValueError(
            f"expected the images of these features, {features.image_size}, got {tuple(images.shape[-2:])}; "
            "give those that the backbone was given"
        )
    if features.resized:
        return resize(images, features.padded_size, align_corners=False)
    top, bottom, left, right = features.padding
    return F.pad(images, (left, right, top, bottom))


def _positions(x: Tensor, cells: int, pixels: int, padded: int, offset: int, align_corners: bool) -> Tensor:
    """Where the centres of `cells` lie along one side of the padded frame, in grid_sample's [-1, 1]."""
    centres = (torch.arange(cells, device=x.device) + 0.5) * (
        pixels / cells
    ) + offset  # in pixels, from the frame's edge
    if align_corners:
        return (centres - 0.5) * (2 / max(padded - 1, 1)) - 1
    return centres * (2 / padded) - 1
