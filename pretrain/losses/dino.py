"""The DINO loss: every crop of the student predicts the teacher's targets of the other global views."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class DINOLoss(nn.Module):
    """Cross-entropy between teacher targets and student predictions, averaged over pairs of different views.

    With p_t the target of teacher view t, s_v the logits of student crop v and T the student temperature::

        loss = mean over images, mean over pairs t != v, of  -sum_k p_t[k] log softmax(s_v / T)[k]

    Student crops 0, 1, ... are the same views as teacher views 0, 1, ...; those pairs are left out.
    Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", 2021, equations 1 to 3.

    >>> loss = DINOLoss()
    >>> targets = torch.randn(2 * 4, 1024).softmax(-1)  # 2 global views of 4 images
    >>> value = loss(torch.randn(10 * 4, 1024), targets)  # 2 global and 8 local crops
    """

    def __init__(self, student_temperature: float = 0.1) -> None:
        super().__init__()
        if student_temperature <= 0:
            raise ValueError(f"student_temperature={student_temperature}: expected a positive number (published: 0.1)")
        self.student_temperature = student_temperature

    def forward(
        self, student_logits: Tensor, targets: Tensor, teacher_views: int = 2, local_weight: float = 1.0
    ) -> Tensor:
        """Return the loss, a scalar in fp32.

        ``student_logits`` (V*B, K) and ``targets`` (teacher_views*B, K) are crop-major: all images of crop 0, then all
        of crop 1, and so on. Each row of ``targets`` sums to 1 and gets no gradient. Pairs with a local crop, which is
        no teacher view, are weighted by ``local_weight``; the sum is still divided by the number of pairs.
        """
        _check(student_logits, targets, teacher_views)
        return _CrossEntropy.apply(student_logits, targets, self.student_temperature, teacher_views, local_weight)

    def extra_repr(self) -> str:
        return f"student_temperature={self.student_temperature}"


class _CrossEntropy(torch.autograd.Function):
    """Sum over pairs without a log-softmax per pair.

    Because a target sums to 1, its cross-entropy with s is ``logsumexp(s/T) - <p, s>/T``: crop v needs one log-sum-exp,
    counted once per teacher view it is paired with, and one inner product with the sum of their targets. The gradient
    is ``(count * softmax(s/T) - sum of targets) / T``. Both are computed crop by crop, so the logits of only one crop
    exist in fp32 at any time, and the only full-size tensor is the gradient, in the dtype of the logits.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, temperature: float, views: int, local_weight: float
    ) -> Tensor:
        crops = logits.chunk(len(logits) * views // len(targets))
        terms, normalisers = [], []
        weights = _weights(views, len(crops), local_weight)
        for crop, weight, (count, target) in zip(
            crops, weights, _targets_of_crops(targets, views, len(crops)), strict=True
        ):
            scaled = _scaled(crop, temperature)  # B, K
            normaliser = scaled.logsumexp(dim=1, keepdim=True)  # B, 1
            terms.append(weight * (count * normaliser.sum() - scaled.mul_(target).sum()))
            normalisers.append(normaliser)
        ctx.save_for_backward(logits, targets, *normalisers)
        ctx.temperature, ctx.views, ctx.weights = temperature, views, weights
        return torch.stack(terms).sum() / _terms(targets, views, len(crops))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        logits, targets, *normalisers = ctx.saved_tensors
        crops = len(normalisers)
        scale = grad / (ctx.temperature * _terms(targets, ctx.views, crops))
        result = torch.empty_like(logits)
        pieces = zip(logits.chunk(crops), result.chunk(crops), normalisers, ctx.weights, strict=True)
        for (crop, out, normaliser, weight), (count, target) in zip(
            pieces, _targets_of_crops(targets, ctx.views, crops), strict=True
        ):
            softmax = _scaled(crop, ctx.temperature).sub_(normaliser).exp_()  # B, K
            if count != 1:
                softmax.mul_(count)
            out.copy_(softmax.sub_(target).mul_(weight * scale))
        return result, None, None, None, None


def _weights(views: int, crops: int, local_weight: float) -> list[float]:
    """Return the weight of each crop's pairs."""
    return [1.0 if crop < views else local_weight for crop in range(crops)]


def _targets_of_crops(targets: Tensor, views: int, crops: int) -> Iterator[tuple[int, Tensor]]:
    """Yield, for each crop, the number of teacher views it is paired with and the sum (B, K) of their targets."""
    per_view = targets.to(torch.promote_types(targets.dtype, torch.float32)).unflatten(0, (views, -1))  # views, B, K
    for crop in range(min(views, crops)):
        others = [view for view in range(views) if view != crop]
        yield len(others), per_view[others[0]] if len(others) == 1 else per_view[others].sum(0)
    if crops > views:
        everything = per_view.sum(0)
        for _ in range(views, crops):
            yield views, everything


def _scaled(crop: Tensor, temperature: float) -> Tensor:
    """Return a copy of ``crop / temperature`` in fp32 or better, which may be overwritten."""
    return crop.to(torch.promote_types(crop.dtype, torch.float32), copy=True).mul_(1 / temperature)


def _pairs(views: int, crops: int) -> int:
    return views * crops - min(views, crops)


def _terms(targets: Tensor, views: int, crops: int) -> int:
    """Return the number of cross-entropies in the sum: pairs times images."""
    return _pairs(views, crops) * (len(targets) // views)


def _check(logits: Tensor, targets: Tensor, views: int) -> None:
    shapes = f"student logits {tuple(logits.shape)}, targets {tuple(targets.shape)}, teacher_views={views}"
    if logits.ndim != 2 or targets.ndim != 2 or logits.shape[1] != targets.shape[1]:
        raise ValueError(f"{shapes}: expected (V*B, K) and (teacher_views*B, K)")
    if views < 1 or len(targets) == 0 or len(targets) % views or len(logits) % (len(targets) // views):
        raise ValueError(f"{shapes}: expected the same number of images B in every crop, crop-major")
    if _pairs(views, len(logits) * views // len(targets)) < 1:
        raise ValueError(f"{shapes}: no pair of different views is left; give the student at least two crops")
