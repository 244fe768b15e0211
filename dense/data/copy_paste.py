"""Copy-paste: objects of one image of a batch, smaller and elsewhere, in another one.

Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation", CVPR 2021.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dense.data.labelled.sample import Batch, Segments


def copy_paste(batch: Batch, probability: float, scale: tuple[float, float] = (0.3, 1.0)) -> Batch:
    """Return a batch in which, with `probability` each, an image has some objects of the next image in front.

    The objects are a random number of the next image's, of `scale` times their size, at a random place. What they hide
    entirely is no object any more. Randomness is torch's own.
    """
    if batch.images is None or batch.segments is None:
        raise ValueError("copy-paste needs images and their objects; leave data.cache out")
    images, segments = list(batch.images), list(batch.segments)
    for i in range(len(images)):
        source = (i + 1) % len(images)
        count = int((~batch.segments[source].crowd).sum())
        if count and source != i and float(torch.rand(())) < probability:
            images[i], segments[i] = _paste(images[i], segments[i], batch.images[source], batch.segments[source], scale)
    return batch._replace(images=torch.stack(images), segments=tuple(segments))


def _paste(
    image: Tensor, below: Segments, other: Tensor, segments: Segments, scale: tuple[float, float]
) -> tuple[Tensor, Segments]:
    """Return an image (3, H, W) and its segments, with objects of another image in front."""
    single = (~segments.crowd).nonzero()[:, 0].cpu()
    chosen = single[torch.randperm(len(single))[: int(torch.randint(1, len(single) + 1, ()))]].to(image.device)
    height, width = image.shape[-2:]
    factor = scale[0] + (scale[1] - scale[0]) * float(torch.rand(()))
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    top, left = (int(torch.randint(0, most - side + 1, ())) for most, side in zip((height, width), size, strict=True))
    border = (left, width - size[1] - left, top, height - size[0] - top)
    small = F.interpolate(other[None].float(), size=size, mode="bilinear", antialias=True)[0].round().to(image.dtype)
    masks = F.interpolate(segments.masks[chosen][:, None].float(), size=size, mode="nearest-exact")[:, 0] > 0
    masks, small = F.pad(masks, border), F.pad(small, border)
    front = masks.any(0)
    pasted = Segments(masks, segments.classes[chosen], segments.crowd[chosen], below.valid | front)
    behind = below._replace(masks=below.masks & ~front)
    masks, classes, crowd = (torch.cat(pair) for pair in zip(behind[:3], pasted[:3], strict=True))
    both = Segments(masks, classes, crowd, pasted.valid)
    return torch.where(front, small, image), both.take(both.masks.flatten(1).any(1))
