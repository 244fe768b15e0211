"""Masks on a grid of patches brought to the edges of the image."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dense.discover.results import Objects, Regions, without_specks

Refinement = Literal["none", "guided", "grabcut"]
SPECK = 0.05  # parts of a refined mask smaller than this share of its largest part are dropped
CHANNELS = 16  # masks that are filtered at once


def box_mean(values: Tensor, radius: int) -> Tensor:
    """The mean of (..., H, W) over squares of side 2 * radius + 1, cut at the borders; the cost does not grow with radius."""
    for axis in (-2, -1):
        n = values.shape[axis]
        reach = min(radius, n - 1)
        sums = values.cumsum(axis)
        upper = [sums.narrow(axis, reach, n - reach), *[sums.narrow(axis, n - 1, 1)] * reach]
        lower = [torch.zeros_like(sums.narrow(axis, 0, reach + 1)), sums.narrow(axis, 0, n - reach - 1)]
        at = torch.arange(n, device=values.device)
        count = (at + reach + 1).clamp_max(n) - (at - reach).clamp_min(0)
        values = (torch.cat(upper, axis) - torch.cat(lower, axis)) / (count if axis == -1 else count[:, None])
    return values


def guided_filter(guide: Tensor, values: Tensor, radius: int, eps: float = 1e-3) -> Tensor:
    """He et al., 2010: values (B, K, H, W) smoothed along the edges of images (B, 3, H, W) in 0..1, in fp64 sums.

    Around each pixel, values are fitted by a linear function of colour, a ridge regression with penalty `eps`.
    """
    if guide.shape[0] != values.shape[0] or guide.shape[-2:] != values.shape[-2:]:
        raise ValueError(f"images {tuple(guide.shape)} and values {tuple(values.shape)} differ in number or size")
    exact = torch.float32 if values.device.type == "mps" else torch.float64
    colour, wanted = guide.to(exact), values.to(exact)
    mean = box_mean(colour, radius)  # B, 3, H, W
    pairs = box_mean((colour[:, :, None] * colour[:, None]).flatten(1, 2), radius).unflatten(1, (3, 3))
    spread = pairs - mean[:, :, None] * mean[:, None]  # B, 3, 3, H, W
    spread = spread.permute(0, 3, 4, 1, 2) + eps * torch.eye(3, dtype=exact, device=values.device)  # B, H, W, 3, 3
    inverse = inverse3(spread)
    filtered = []
    for part in wanted.split(CHANNELS, dim=1):
        level = box_mean(part, radius)  # B, k, H, W
        both = box_mean((colour[:, :, None] * part[:, None]).flatten(1, 2), radius).unflatten(1, (3, -1))
        both = both - mean[:, :, None] * level[:, None]  # B, 3, k, H, W
        slope = (inverse @ both.permute(0, 3, 4, 1, 2)).permute(0, 3, 4, 1, 2)  # B, 3, k, H, W
        offset = level - (slope * mean[:, :, None]).sum(1)
        slope = box_mean(slope.flatten(1, 2), radius).unflatten(1, (3, -1))
        filtered.append((slope * colour[:, :, None]).sum(1) + box_mean(offset, radius))
    return torch.cat(filtered, 1).to(values.dtype)


def inverse3(matrices: Tensor) -> Tensor:
    """Of matrices (..., 3, 3), by cross products: millions of them at once."""
    a, b, c = matrices.unbind(-2)
    columns = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], -1)
    return columns / (a * columns[..., 0]).sum(-1)[..., None, None]


def grab_cut(image: np.ndarray, mask: np.ndarray, cell: int, steps: int = 3) -> np.ndarray:
    """GrabCut (Rother et al., 2004) of an image (H, W, 3) uint8 from a mask (H, W) bool, which is trusted `cell` pixels and
    more from its edge."""
    if not mask.any() or mask.all():
        return mask
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * cell + 1, 2 * cell + 1))
    outside = cv2.erode((~mask).astype(np.uint8), kernel, borderValue=1)
    inside = cv2.erode(mask.astype(np.uint8), kernel, borderValue=1)
    trust = np.where(mask, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    trust[outside > 0], trust[inside > 0] = cv2.GC_BGD, cv2.GC_FGD
    models = np.zeros((1, 65)), np.zeros((1, 65))  # of background and foreground, filled in place
    cv2.setRNGSeed(0)
    try:
        cv2.grabCut(np.ascontiguousarray(image[..., ::-1]), trust, [0, 0, 1, 1], *models, steps, cv2.GC_INIT_WITH_MASK)
    except cv2.error:  # too few colours for its mixtures
        return mask
    return (trust == cv2.GC_FGD) | (trust == cv2.GC_PR_FGD)


def refine_objects(objects: Objects, images: Tensor, how: Refinement = "guided", eps: float = 1e-3) -> Objects:
    """Objects whose masks follow the edges of images (B, 3, H, W) uint8, at their size; specks are dropped.

    A mask of which nothing would be left, a patch or two on a plain ground, stays as it was.
    """
    size = (images.shape[-2], images.shape[-1])
    if how == "none":
        return objects.resized(size)
    cell = cell_size(objects.maps, size)
    if how == "guided":
        soft = F.interpolate(on_grid(objects).float(), size=size, mode="bilinear", align_corners=False)
        masks = guided_filter(images.float() / 255, soft, cell, eps) > 0.5
    elif how == "grabcut":
        coarse = objects.resized(size).masks.cpu().numpy()
        pixels = images.permute(0, 2, 3, 1).cpu().numpy()
        cut = [[grab_cut(image, mask, cell) for mask in masks] for image, masks in zip(pixels, coarse, strict=True)]
        masks = torch.from_numpy(np.array(cut)).to(images.device)
    else:
        raise ValueError(f"refine={how!r}: expected none, guided or grabcut")
    there = objects.masks.flatten(2).any(-1)[..., None, None]
    masks = without_specks(masks & there, SPECK)
    left = masks.flatten(2).any(-1)[..., None, None]
    return replace(objects, masks=torch.where(left, masks, objects.resized(size).masks))


def refine_regions(regions: Regions, images: Tensor, how: Refinement = "guided", eps: float = 1e-3) -> Regions:
    """Regions whose borders follow the edges of images (B, 3, H, W) uint8, at their size."""
    size = (images.shape[-2], images.shape[-1])
    if how == "none":
        return regions.resized(size)
    if how != "guided":
        raise ValueError(
            f"refine={how!r}: expected none or guided for regions; GrabCut knows one object and what is not it"
        )
    soft = F.one_hot(regions.labels.long(), regions.count).permute(0, 3, 1, 2).float()  # B, K, h, w
    cell = cell_size(soft, size)
    best, labels = torch.full(size, -torch.inf, device=soft.device), regions.labels.new_zeros(len(soft), *size)
    best = best.expand(len(soft), -1, -1)
    for k in range(regions.count):  # one region at a time: memory does not grow with their number
        full = F.interpolate(soft[:, k : k + 1], size=size, mode="bilinear", align_corners=False)
        value = guided_filter(images.float() / 255, full, cell, eps)[:, 0]
        labels, best = torch.where(value > best, k, labels), torch.maximum(value, best)
    return replace(regions, labels=labels.to(torch.uint8))


def on_grid(objects: Objects) -> Tensor:
    """The masks at the size of the maps; they must not have been enlarged before."""
    if objects.masks.shape[-2:] != objects.maps.shape[-2:]:
        raise ValueError(
            f"masks of {tuple(objects.masks.shape[-2:])} were resized already; refine them as the method gave them"
        )
    return objects.masks


def cell_size(cells: Tensor, size: tuple[int, int]) -> int:
    """Pixels of the image a cell, along the longer side of a cell."""
    return max(1, round(max(size[0] / cells.shape[-2], size[1] / cells.shape[-1])))
