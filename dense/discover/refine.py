"""Refinement of masks on the grid of patches, so that they follow the edges of the image."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dense.discover.results import Objects, Prediction, Regions
from dense.model.guided import guided_filter

Refinement = Literal["none", "guided", "grabcut"]
SPECK = 0.05  # parts of a refined mask smaller than this share of its largest part are dropped
TOGETHER = 4  # regions that are filtered at once


def refine(prediction: Prediction, images: Tensor, refinement: Refinement = "guided") -> Prediction:
    """Return a prediction on the grid, as `on_grid` gives it, refined with images (B, 3, H, W) uint8, at their size."""
    if isinstance(prediction, Objects):
        return _refine_objects(prediction, images, refinement)
    return _refine_regions(prediction, images, refinement)


def _refine_objects(objects: Objects, images: Tensor, refinement: Refinement) -> Objects:
    """Refine every mask by itself and drop specks.

    A mask that would be left empty, such as one or two patches on a uniform background, is not refined.
    """
    size = (images.shape[-2], images.shape[-1])
    if refinement == "none":
        return objects.resized(size)
    patch = _patch_size(objects.maps, size)
    if refinement == "guided":
        if objects.masks.shape[-2:] != objects.maps.shape[-2:]:
            raise ValueError(
                f"masks of {tuple(objects.masks.shape[-2:])} were resized already; refine them as the method gave them"
            )
        soft = F.interpolate(objects.masks.float(), size=size, mode="bilinear", align_corners=False)
        masks = guided_filter(images.float() / 255, soft, patch) > 0.5
    elif refinement == "grabcut":
        if images.shape[1] != 3:
            raise ValueError(f"grabcut models colours, and the images have {images.shape[1]} channels; use guided")
        coarse = objects.resized(size).masks.cpu().numpy()
        pixels = images.permute(0, 2, 3, 1).cpu().numpy()
        cut = [[grab_cut(image, mask, patch) for mask in masks] for image, masks in zip(pixels, coarse, strict=True)]
        masks = torch.from_numpy(np.array(cut)).to(images.device)
    else:
        raise ValueError(f"refine={refinement!r}: expected none, guided or grabcut")
    found = objects.masks.flatten(2).any(-1)[..., None, None]
    masks = without_specks(masks & found, SPECK)
    left = masks.flatten(2).any(-1)[..., None, None]
    return replace(objects, masks=torch.where(left, masks, objects.resized(size).masks))


def _refine_regions(regions: Regions, images: Tensor, refinement: Refinement) -> Regions:
    """Filter every region and assign each pixel to the one with the highest value."""
    size = (images.shape[-2], images.shape[-1])
    if refinement == "none":
        return regions.resized(size)
    if refinement != "guided":
        raise ValueError(f"refine={refinement!r}: expected none or guided for regions; GrabCut segments one object")
    soft = F.one_hot(regions.labels.long(), regions.count).permute(0, 3, 1, 2).float()  # B, K, h, w
    patch = _patch_size(soft, size)
    best, labels = torch.full(size, -torch.inf, device=soft.device), regions.labels.new_zeros(len(soft), *size)
    best = best.expand(len(soft), -1, -1)
    for part in torch.arange(regions.count).split(TOGETHER):  # memory does not grow with their number
        full = F.interpolate(soft[:, part], size=size, mode="bilinear", align_corners=False)
        value, k = guided_filter(images.float() / 255, full, patch).max(1)
        labels, best = torch.where(value > best, part[0] + k, labels), torch.maximum(value, best)
    return replace(regions, labels=labels.to(torch.uint8))


def grab_cut(image: np.ndarray, mask: np.ndarray, margin: int, steps: int = 3) -> np.ndarray:
    """Refine a mask (H, W) bool of an image (H, W, 3) uint8 by GrabCut (Rother et al., 2004).

    Pixels `margin` and more away from the edge of the mask keep their side.
    """
    if not mask.any() or mask.all():
        return mask
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * margin + 1, 2 * margin + 1))
    outside = cv2.erode((~mask).astype(np.uint8), kernel, borderValue=1)
    inside = cv2.erode(mask.astype(np.uint8), kernel, borderValue=1)
    trimap = np.where(mask, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    trimap[outside > 0], trimap[inside > 0] = cv2.GC_BGD, cv2.GC_FGD
    models = np.zeros((1, 65)), np.zeros((1, 65))  # of background and foreground, filled in place
    cv2.setRNGSeed(0)
    try:
        cv2.grabCut(np.ascontiguousarray(image[..., ::-1]), trimap, [0, 0, 1, 1], *models, steps, cv2.GC_INIT_WITH_MASK)
    except cv2.error:  # too few colours for its mixture models
        return mask
    return (trimap == cv2.GC_FGD) | (trimap == cv2.GC_PR_FGD)


def without_specks(masks: Tensor, share: float) -> Tensor:
    """Drop the parts of masks (B, K, H, W) bool that are smaller than `share` of their largest part."""
    parts = masks.flatten(0, 1).cpu().numpy().astype(np.uint8)
    cleaned = np.zeros(parts.shape, bool)
    for part, out in zip(parts, cleaned, strict=True):
        count, labels, statistics, _ = cv2.connectedComponentsWithStats(part, connectivity=4)
        if count > 1:
            areas = statistics[:, cv2.CC_STAT_AREA].copy()
            areas[0] = 0
            out[:] = (areas >= max(1, share * areas.max()))[labels]
    return torch.from_numpy(cleaned).view(masks.shape).to(masks.device)


def _patch_size(maps: Tensor, size: tuple[int, int]) -> int:
    """Return the longer side, in pixels of the image, of a patch of maps (..., h, w)."""
    return max(1, round(max(size[0] / maps.shape[-2], size[1] / maps.shape[-1])))
