"""What several heads share: resizing, the way from a decoder's grid back to the image, and a norm of channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.features import Features, Size


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def resize(x: Tensor, size: Size, align_corners: bool) -> Tensor:
    """Resize (B, C, h, w) bilinearly to `size`; a tensor of that size is returned as it is."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


def to_image_size(x: Tensor, features: Features, size: Size | None, align_corners: bool) -> Tensor:
    """Bring a map of the padded image, (B, K, h, w) at any resolution, to the image's own size, or to `size`.

    At the image's own size the map is resized to the padded size and cropped. At another size, cell i of n covers the
    pixels [i H / n, (i + 1) H / n) of the image, whatever the padding, so that it meets a target reduced to `size`.
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
    rows = _sampling_positions(x, size[0], image[0], features.padded_size[0], top, align_corners)
    columns = _sampling_positions(x, size[1], image[1], features.padded_size[1], left, align_corners)
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).expand(x.shape[0], -1, -1, -1)  # x before y
    # in fp32: half precision cannot represent the positions of a large image
    y = F.grid_sample(x.float(), grid, mode="bilinear", padding_mode="border", align_corners=align_corners)
    return y.to(x.dtype)


def to_padded_size(images: Tensor, features: Features) -> Tensor:
    """Pad, crop or resize images (B, C, H, W) to (B, C, *padded_size), as the backbone did with them."""
    if tuple(images.shape[-2:]) != tuple(features.image_size):
        raise ValueError(
            f"expected the images of these features, {features.image_size}, got {tuple(images.shape[-2:])}; "
            "give those that the backbone was given"
        )
    if features.resized:
        return resize(images, features.padded_size, align_corners=False)
    top, bottom, left, right = features.padding
    return F.pad(images, (left, right, top, bottom))


def _sampling_positions(x: Tensor, cells: int, pixels: int, padded: int, offset: int, align_corners: bool) -> Tensor:
    """Return the centres of `cells` along one side of the padded image, in the [-1, 1] of grid_sample."""
    centres = (torch.arange(cells, device=x.device) + 0.5) * (pixels / cells) + offset  # in pixels, from the edge
    if align_corners:
        return (centres - 0.5) * (2 / max(padded - 1, 1)) - 1
    return centres * (2 / padded) - 1
