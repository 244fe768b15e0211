"""The loss of mask queries: each object is matched with one query, whose class and mask are then compared with it.

Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation" (Mask2Former), CVPR 2022; points:
Kirillov et al., "PointRend", CVPR 2020; queries that cost nothing: Wang et al., "Cut and Learn" (CutLER), CVPR 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]  # mask logits (B, Q, h, w) and class logits (B, Q, C + 1), of which the last is no object
Matches = list[Pair]  # for each image the indices of queries and of their objects


class MaskLoss(nn.Module):
    """``classes * CE + mask * BCE + dice * Dice`` of several predictions, each with its own Hungarian matching.

    The matching minimises ``-classes * p(class) + mask * BCE + dice * Dice`` over pairs of a query and an object, at
    `points` random places. BCE and Dice compare the logits of a matched query with its object at as many places: of
    ``oversample * points`` random ones the most uncertain valid ones, a share `importance` of all, and random ones;
    both are divided by the number of objects. CE is over all queries, of which the unmatched are of no object and weigh
    `no_object`. With points=0 masks are compared at the centre of each of their cells.

    drop: an unmatched query whose mask has an IoU of at most this with every object, where masks are compared, costs
    nothing (DropLoss), for labels that miss objects; None for no such query.

    >>> masks, classes = torch.randn(2, 5, 8, 8), torch.randn(2, 5, 4)
    >>> objects, labels = [torch.rand(3, 32, 32) > 0.5, torch.zeros(0, 32, 32) > 0], [torch.arange(3), torch.arange(0)]
    >>> value, parts = MaskLoss(points=100)([(masks, classes)], objects, labels)
    """

    def __init__(
        self,
        classes: float = 2.0,
        mask: float = 5.0,
        dice: float = 5.0,
        no_object: float = 0.1,
        points: int = 12544,
        oversample: float = 3.0,
        importance: float = 0.75,
        drop: float | None = None,
    ) -> None:
        super().__init__()
        if min(classes, mask, dice, no_object, points) < 0 or oversample < 1 or not 0 <= importance <= 1:
            raise ValueError(
                f"classes={classes}, mask={mask}, dice={dice}, no_object={no_object}, points={points}, oversample="
                f"{oversample}, importance={importance}: expected 0 or more, oversample of at least 1, importance of 0 "
                "to 1"
            )
        if drop is not None and not 0 <= drop < 1:
            raise ValueError(f"drop={drop}: expected an IoU of 0 to below 1, or null")
        self.classes, self.mask, self.dice, self.no_object, self.drop = classes, mask, dice, no_object, drop
        self.points, self.oversample, self.importance = points, oversample, importance

    def forward(
        self,
        predictions: Sequence[Pair],
        objects: Sequence[Tensor],
        labels: Sequence[Tensor],
        valid: Tensor | None = None,
        mean: Callable[[Tensor], Tensor] = lambda counts: counts,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of the losses of all predictions, and the parts of the last one.

        objects: for each image (N, H, W) bool; labels: (N,); N may be 0. valid: (B, H, W), false where masks are not
        compared. mean: averages counts over the processes of a training, by which sums are divided.
        """
        with torch.autocast(predictions[0][0].device.type, enabled=False):
            pairs = [(masks.float(), classes.float()) for masks, classes in predictions]
            weight = None if valid is None else valid[:, None].float()  # B, 1, H, W
            every, seen = self.match(pairs, objects, labels, weight)
            targets = [
                self._classes(classes, labels, matches) for (_, classes), matches in zip(pairs, every, strict=True)
            ]
            weights = [self._weights(t, c.shape[-1] - 1, s) for (_, c), t, s in zip(pairs, targets, seen, strict=True)]
            number = weights[0].new_tensor(sum(map(len, labels)))
            counts = mean(torch.stack([number, *(w.sum() for w in weights)]))
            total, parts = pairs[0][0].new_zeros(()), {}
            for (masks, classes), matches, target, w, amount in zip(
                pairs, every, targets, weights, counts[1:], strict=True
            ):
                losses = F.cross_entropy(classes.flatten(0, 1), target.flatten(), reduction="none")
                bce, dice = self._mask_losses(masks, objects, matches, weight)
                parts = {
                    "class": (losses * w.flatten()).sum() / amount.clamp(min=1e-6),
                    "mask": bce / counts[0].clamp(min=1),
                    "dice": dice / counts[0].clamp(min=1),
                }
                total = total + self.classes * parts["class"] + self.mask * parts["mask"] + self.dice * parts["dice"]
        return total, {name: part.detach() for name, part in parts.items()}

    @torch.no_grad()
    def match(
        self, predictions: Sequence[Pair], objects: Sequence[Tensor], labels: Sequence[Tensor], weight: Tensor | None
    ) -> tuple[list[Matches], list[Tensor]]:
        """Return the matches of each prediction, and which queries (B, Q) overlap an object by more than `drop`."""
        costs: list[list[Tensor]] = [[] for _ in predictions]
        seen = [masks.new_ones(masks.shape[:2], dtype=torch.bool) for masks, _ in predictions]
        for image, (masks, label) in enumerate(zip(objects, labels, strict=True)):
            points = self._points(1, predictions[0][0])
            inside = sample_objects(masks, points[0])  # N, P
            counted = None if weight is None else sample(weight[image : image + 1], points, "nearest")[0]  # 1, P
            for number, (logits, classes) in enumerate(predictions):
                x = sample(logits[image : image + 1], points)[0]  # Q, P
                costs[number].append(self._cost(x, classes[image], inside, label, counted))
                if self.drop is not None:
                    known = True if counted is None else counted > 0
                    seen[number][image] = (overlap((x > 0) & known, (inside > 0.5) & known) > self.drop).any(1)
        flat = torch.cat([cost.flatten() for row in costs for cost in row]).nan_to_num(nan=1e9, posinf=1e9, neginf=1e9)
        pieces = iter(flat.cpu().split([cost.numel() for row in costs for cost in row]))  # one transfer for all
        device = flat.device
        found = [
            [
                tuple(
                    torch.from_numpy(i).to(device) for i in linear_sum_assignment(next(pieces).view(cost.shape).numpy())
                )
                for cost in row
            ]
            for row in costs
        ]
        return found, seen  # type: ignore[return-value]

    def _cost(self, x: Tensor, classes: Tensor, inside: Tensor, labels: Tensor, counted: Tensor | None) -> Tensor:
        """Return the cost (Q, N) of matching queries with logits (Q, P) at points with objects (N, P) there."""
        probability, shared = x.sigmoid(), F.softplus(x)  # shared: BCE with 0, which is x more than that with 1
        amount: Tensor | int = x.shape[1]
        if counted is not None:
            x, probability, shared, inside = x * counted, probability * counted, shared * counted, inside * counted
            amount = counted.sum().clamp(min=1)
        bce = (shared.sum(1, keepdim=True) - x @ inside.T) / amount
        dice = 1 - (2 * probability @ inside.T + 1) / (probability.sum(1, keepdim=True) + inside.sum(1) + 1)
        return self.mask * bce + self.dice * dice - self.classes * classes.softmax(-1)[:, labels]

    def _classes(self, classes: Tensor, labels: Sequence[Tensor], matches: Matches) -> Tensor:
        """Return the target class (B, Q) of every query."""
        target = torch.full(classes.shape[:2], classes.shape[-1] - 1, device=classes.device)
        for row, label, (queries, found) in zip(target, labels, matches, strict=True):
            row[queries] = label[found]
        return target

    def _weights(self, target: Tensor, no_object: int, seen: Tensor) -> Tensor:
        """Return the weight (B, Q) of the class of every query."""
        unmatched = target == no_object
        return torch.where(unmatched, self.no_object * seen, 1.0)

    def _mask_losses(
        self, masks: Tensor, objects: Sequence[Tensor], matches: Matches, weight: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the sums of BCE and of Dice over the matched queries."""
        images = torch.cat([torch.full_like(queries, image) for image, (queries, _) in enumerate(matches)])
        if not len(images):
            return masks.flatten()[:0].sum(), masks.flatten()[:0].sum()
        logits = masks[images, torch.cat([queries for queries, _ in matches])][:, None]  # M, 1, h, w
        inside = torch.cat([masks[found] for masks, (_, found) in zip(objects, matches, strict=True)])[:, None].float()
        weight = None if weight is None else weight[images]
        with torch.no_grad():
            points = self._uncertain_points(logits, weight)
            target = sample(inside, points)[:, 0]  # M, P
            counted = torch.ones_like(target) if weight is None else sample(weight, points, "nearest")[:, 0]
        x = sample(logits, points)[:, 0]
        bce = F.binary_cross_entropy_with_logits(x, target, counted, reduction="none")
        probability, target = x.sigmoid() * counted, target * counted
        dice = 1 - (2 * (probability * target).sum(1) + 1) / (probability.sum(1) + target.sum(1) + 1)
        return (bce.sum(1) / counted.sum(1).clamp(min=1)).sum(), dice.sum()

    def _uncertain_points(self, logits: Tensor, weight: Tensor | None) -> Tensor:
        """Return points (M, P, 2), a share `importance` of which has logits (M, 1, h, w) near 0 and a weight."""
        count = int(self.importance * self.points)
        if not count:
            return self._points(len(logits), logits)
        points = self._points(len(logits), logits, int(self.points * self.oversample))
        certainty = sample(logits, points)[:, 0].abs()
        if weight is not None:
            certainty = certainty.masked_fill(sample(weight, points, "nearest")[:, 0] == 0, torch.inf)
        nearest = certainty.topk(count, dim=1, largest=False).indices
        chosen = points.gather(1, nearest[..., None].expand(-1, -1, 2))
        return torch.cat((chosen, self._points(len(logits), logits, self.points - count)), 1)

    def _points(self, masks: int, logits: Tensor, count: int | None = None) -> Tensor:
        """Return random points (masks, P, 2) in the unit square; with points=0, the centres of the cells of logits."""
        if self.points:
            return torch.rand(masks, self.points if count is None else count, 2, device=logits.device)
        rows, columns = ((torch.arange(n, device=logits.device) + 0.5) / n for n in logits.shape[-2:])
        return torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).flatten(0, 1).expand(masks, -1, -1)


def sample(maps: Tensor, points: Tensor, mode: str = "bilinear") -> Tensor:
    """Return maps (B, K, H, W) at points (B, P, 2), x before y in the unit square: (B, K, P)."""
    return F.grid_sample(maps, 2 * points[:, :, None] - 1, mode, align_corners=False)[..., 0]


def sample_objects(masks: Tensor, points: Tensor) -> Tensor:
    """Return masks (N, H, W) bool at points (P, 2) as `sample` does, (N, P), without a copy of them in floats."""
    height, width = masks.shape[-2:]
    x, y = points[:, 0] * width - 0.5, points[:, 1] * height - 0.5
    left, top, flat = x.floor(), y.floor(), masks.flatten(1)
    total = torch.zeros(len(masks), len(points), device=masks.device)
    for column, across in ((left, left + 1 - x), (left + 1, x - left)):
        for row, down in ((top, top + 1 - y), (top + 1, y - top)):
            there = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            index = row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()
            total += flat[:, index] * (across * down * there)
    return total


def overlap(one: Tensor, other: Tensor) -> Tensor:
    """Return the IoU (M, N) of masks (M, P) and (N, P), 0 of two that are empty."""
    one, other = one.float(), other.float()
    both = one @ other.T
    return both / (one.sum(1, keepdim=True) + other.sum(1) - both).clamp(min=1)
