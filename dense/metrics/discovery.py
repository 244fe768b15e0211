"""Metrics of objects and regions that were found without labels."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchmetrics import Metric

from dense.metrics.segmentation import confusion, nanmean, valid_pixels
from dense.metrics.video import region_similarity


def jaccard(masks: Tensor, objects: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the IoU of every object (M, H, W) with every mask (K, H, W), both bool, over the valid pixels: (M, K).

    The DINO paper's rule for attention is the best head per object, then the mean over the objects of an image, then
    over images: ``jaccard(masks, objects).amax(1).mean()``.
    """
    if masks.shape[1:] != objects.shape[1:]:
        raise ValueError(f"masks are {tuple(masks.shape[1:])}, objects {tuple(objects.shape[1:])}; resize the masks")
    rows, columns = (
        x.flatten(1).double() if valid is None else (x & valid).flatten(1).double() for x in (objects, masks)
    )
    both = rows @ columns.T  # M, K
    union = rows.sum(1)[:, None] + columns.sum(1)[None] - both
    return both / union.clamp_min(1)


def box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the IoU (N, M) of boxes (N, 4) with others (M, 4): left, top, right, bottom, the latter two exclusive."""
    a, b = boxes.double()[:, None], others.double()[None]
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp_min(0)  # N, M, 2
    both = sides.prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - both
    return both / union.clamp_min(1)


class Saliency(Metric):
    """Saliency: foreground against background, averaged over images.

    ``max_f``: the largest (1 + b) P R / (b P + R), b = 0.3, over 255 thresholds of a soft map, with precision P and
    recall R averaged over images. ``iou`` and ``accuracy`` are those of binary masks.
    """

    full_state_update = False
    LEVELS = 255
    BETA = 0.3
    precision: Tensor
    recall: Tensor
    sums: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("precision", "recall"):
            self.add_state(name, torch.zeros(self.LEVELS, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("sums", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, soft: Tensor, mask: Tensor, ground_truth: Tensor, valid: Tensor | None = None) -> None:
        """Add one image: a map (H, W), which is scaled to 0..1, a mask and the ground truth, both (H, W) bool."""
        if not soft.shape == mask.shape == ground_truth.shape:
            shapes = f"map {tuple(soft.shape)}, mask {tuple(mask.shape)}, ground truth {tuple(ground_truth.shape)}"
            raise ValueError(f"{shapes}: expected the same size; resize the map and the mask")
        known = torch.ones_like(ground_truth) if valid is None else valid
        values, mask, ground_truth = soft[known].double(), mask[known], ground_truth[known]
        if not values.numel():
            return
        low, high = values.min(), values.max()
        level = ((values - low) / (high - low).clamp_min(1e-12) * self.LEVELS).long().clamp(0, self.LEVELS - 1)
        true, every = (torch.bincount(x, minlength=self.LEVELS) for x in (level[ground_truth], level))
        hits, predicted = (x.flip(0).cumsum(0).flip(0).double() for x in (true, every))  # at or above each threshold
        self.precision += hits / predicted.clamp_min(1)
        self.recall += hits / ground_truth.sum().clamp_min(1)
        iou = region_similarity(mask[None, None], ground_truth[None, None])[0]
        self.sums += torch.stack([iou, (mask == ground_truth).double().mean()])
        self.images += 1

    def compute(self) -> dict[str, float]:
        """Return ``max_f``, ``iou``, ``accuracy``; NaN without an image."""
        n = int(self.images)
        if not n:
            return dict.fromkeys(("max_f", "iou", "accuracy"), float("nan"))
        p, r = self.precision / n, self.recall / n
        f = (1 + self.BETA) * p * r / (self.BETA * p + r).clamp_min(1e-12)
        iou, accuracy = (self.sums / n).tolist()
        return {"max_f": float(f.max()), "iou": iou, "accuracy": accuracy}


class HungarianIoU(Metric):
    """mIoU of regions without class names: each is matched with one class so that the sum of IoUs is largest.

    The mean is over the classes in the ground truth; a class without a region counts 0. All images share one matching;
    use one metric per image where every image has regions of its own.
    """

    full_state_update = False
    confusion: Tensor

    def __init__(self, regions: int, classes: int, ignore: int = 255) -> None:
        super().__init__()
        self.regions, self.classes, self.ignore = regions, classes, ignore
        self.add_state("confusion", torch.zeros(classes, regions, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, regions: Tensor, labels: Tensor) -> None:
        """Add images: regions and true classes, both (B, H, W)."""
        if regions.shape != labels.shape:
            raise ValueError(f"regions are {tuple(regions.shape)}, labels {tuple(labels.shape)}; resize the regions")
        valid = valid_pixels(labels, labels, self.classes, self.ignore)
        self.confusion += confusion(labels[valid], regions[valid], self.classes, self.regions)

    def compute(self) -> dict[str, float]:
        """Return ``miou``, and ``accuracy``: the fraction of pixels whose region is matched with their class."""
        table = self.confusion.double().cpu()
        iou = table / (table.sum(0)[None] + table.sum(1)[:, None] - table).clamp_min(1)
        rows, columns = linear_sum_assignment(-iou.numpy())
        matched = torch.zeros(self.classes, dtype=torch.double)
        matched[rows] = iou[rows, columns]
        hits, total = float(table[rows, columns].sum()), float(table.sum())
        miou = nanmean(matched[table.sum(1) > 0].tolist())
        return {"miou": miou, "accuracy": hits / total if total else float("nan")}
