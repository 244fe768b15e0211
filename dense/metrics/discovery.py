"""What objects and regions found without labels are worth."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchmetrics import Metric

from dense.metrics.segmentation import counted, nanmean


def jaccard(masks: Tensor, objects: Tensor, valid: Tensor | None = None) -> Tensor:
    """IoU of every object (M, H, W) with every mask (K, H, W), both bool, as (M, K); pixels that are not valid are left out.

    The DINO paper's rule for attention: for each object the best of the heads, then the mean over the objects of a
    image, then over images: ``jaccard(masks, objects).amax(1).mean()``.
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
    """IoU of boxes (N, 4) with others (M, 4): left, top, right, bottom, the latter two exclusive; (N, M)."""
    a, b = boxes.double()[:, None], others.double()[None]
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp_min(0)  # N, M, 2
    both = sides.prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - both
    return both / union.clamp_min(1)


class Saliency(Metric):
    """Foreground against background, over a set.

    ``max_f``: precision and recall of a soft map at 255 thresholds, each averaged over images; the highest
    (1 + b) P R / (b P + R) with b = 0.3. ``iou`` and ``accuracy`` of binary masks, averaged over images.
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
        """One image: a map (H, W) of any range, which is brought to 0..1, a mask and the ground truth (H, W) bool."""
        if not soft.shape == mask.shape == ground_truth.shape:
            raise ValueError(
                f"map {tuple(soft.shape)}, mask {tuple(mask.shape)} and ground truth {tuple(ground_truth.shape)} differ"
            )
        known = torch.ones_like(ground_truth) if valid is None else valid
        values, mask, ground_truth = soft[known].double(), mask[known], ground_truth[known]
        if not values.numel():
            return
        low, high = values.min(), values.max()
        level = ((values - low) / (high - low).clamp_min(1e-12) * self.LEVELS).long().clamp(0, self.LEVELS - 1)
        hits = torch.bincount(level[ground_truth], minlength=self.LEVELS).flip(0).cumsum(0).flip(0).double()
        found = torch.bincount(level, minlength=self.LEVELS).flip(0).cumsum(0).flip(0).double()
        self.precision += hits / found.clamp_min(1)
        self.recall += hits / ground_truth.sum().clamp_min(1)
        union = (mask | ground_truth).sum()
        iou = (
            (mask & ground_truth).sum() / union.clamp_min(1) if bool(union) else union.new_ones((), dtype=torch.double)
        )
        self.sums += torch.stack([iou.double(), (mask == ground_truth).double().mean()])
        self.images += 1

    def compute(self) -> dict[str, float]:
        """``max_f``, ``iou``, ``accuracy``; NaN without an image."""
        n = int(self.images)
        if not n:
            return dict.fromkeys(("max_f", "iou", "accuracy"), float("nan"))
        p, r = self.precision / n, self.recall / n
        f = (1 + self.BETA) * p * r / (self.BETA * p + r).clamp_min(1e-12)
        iou, accuracy = (self.sums / n).tolist()
        return {"max_f": float(f.max()), "iou": iou, "accuracy": accuracy}


class HungarianIoU(Metric):
    """mIoU of regions whose numbers mean nothing: each is matched with one class so that the sum of IoUs is highest.

    Over the classes that are in the ground truth; a class without a region counts 0. ``update`` adds images to one matching,
    so call it for one image alone where every image has regions of its own.
    """

    full_state_update = False
    confusion: Tensor

    def __init__(self, regions: int, classes: int, ignore: int = 255) -> None:
        super().__init__()
        self.regions, self.classes, self.ignore = regions, classes, ignore
        self.add_state("confusion", torch.zeros(classes, regions, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, regions: Tensor, labels: Tensor) -> None:
        """Regions and true classes, both (B, H, W)."""
        if regions.shape != labels.shape:
            raise ValueError(f"regions are {tuple(regions.shape)}, labels {tuple(labels.shape)}; resize the regions")
        valid = counted(labels, labels, self.classes, self.ignore)
        pairs = labels[valid].long() * self.regions + regions[valid].long()
        self.confusion += torch.bincount(pairs, minlength=self.confusion.numel()).view_as(self.confusion)

    def compute(self) -> dict[str, float]:
        """``miou``, and ``accuracy``: the share of pixels whose region is matched with their class."""
        table = self.confusion.double().cpu()
        iou = table / (table.sum(0)[None] + table.sum(1)[:, None] - table).clamp_min(1)
        there = table.sum(1) > 0
        rows, columns = linear_sum_assignment(-iou.numpy())
        found = torch.zeros(self.classes, dtype=torch.double)
        found[rows] = iou[rows, columns]
        hits = float(table[rows, columns].sum())
        total = float(table.sum())
        return {"miou": nanmean(found[there].tolist()), "accuracy": hits / total if total else float("nan")}
