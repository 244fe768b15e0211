"""The iBOT loss: the student predicts, at masked patches, what the teacher made of the visible ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ROWS = 1024  # patches whose logits are in fp32 at any time


class IBOTLoss(nn.Module):
    """Cross-entropy at masked patches, averaged within each image and then over all images.

    With p_i the target and s_i the logits of masked patch i, T the student temperature and m_i the number of masked
    patches in its image::

        loss = 1 / images * sum_i 1 / m_i * -sum_k p_i[k] log softmax(s_i / T)[k]

    Images without a masked patch count in `pictures` and add nothing.
    Zhou et al., "iBOT: Image BERT Pre-Training with Online Tokenizer", 2022, equation 2, with the weights of DINOv2.

    >>> masks = torch.rand(4, 49) < 0.3
    >>> patches = int(masks.sum())
    >>> targets = torch.randn(patches, 1024).softmax(-1)
    >>> value = IBOTLoss()(torch.randn(patches, 1024), targets, token_weights(masks), images=4)
    """

    def __init__(self, student_temperature: float = 0.1) -> None:
        super().__init__()
        if student_temperature <= 0:
            raise ValueError(f"student_temperature={student_temperature}: expected a positive number (published: 0.1)")
        self.student_temperature = student_temperature

    def forward(self, student_logits: Tensor, targets: Tensor, weights: Tensor, images: int) -> Tensor:
        """Scalar loss in fp32 of logits (M, K), targets (M, K) whose rows sum to 1, and weights (M,); 0 where M is 0."""
        if student_logits.shape != targets.shape or weights.shape != targets.shape[:1] or images < 1:
            raise ValueError(
                f"student logits {tuple(student_logits.shape)}, targets {tuple(targets.shape)}, weights "
                f"{tuple(weights.shape)}, images={images}: expected (M, K), (M, K), (M,) and at least 1"
            )
        return _WeightedCrossEntropy.apply(student_logits, targets, weights.float() / images, self.student_temperature)

    def extra_repr(self) -> str:
        return f"student_temperature={self.student_temperature}"


def token_weights(masks: Tensor) -> Tensor:
    """For each masked patch, in order, 1 over the number of masked patches in its image: masks (B, N) -> (M,)."""
    counts = masks.sum(1, keepdim=True).clamp(min=1)
    return (1.0 / counts).expand_as(masks)[masks]


class _WeightedCrossEntropy(torch.autograd.Function):
    """``sum_i w_i (logsumexp(s_i / T) - <p_i, s_i> / T)``, made by `ROWS` so that little exists in fp32 at a time."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, weights: Tensor, temperature: float) -> Tensor:
        total, normalisers = weights.new_zeros(()), []
        for s, p, w in zip(logits.split(ROWS), targets.split(ROWS), weights.split(ROWS), strict=True):
            scaled = s.float() / temperature
            normaliser = scaled.logsumexp(dim=1)  # M
            total += (w * (normaliser - scaled.mul_(p).sum(1))).sum()
            normalisers.append(normaliser)
        ctx.save_for_backward(logits, targets, weights, *normalisers)
        ctx.temperature = temperature
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        logits, targets, weights, *normalisers = ctx.saved_tensors
        result = torch.empty_like(logits)
        pieces = zip(*(x.split(ROWS) for x in (logits, targets, weights, result)), normalisers, strict=True)
        for s, p, w, out, normaliser in pieces:
            softmax = (s.float() / ctx.temperature).sub_(normaliser[:, None]).exp_()
            out.copy_(softmax.sub_(p).mul_((grad / ctx.temperature * w)[:, None]))
        return result, None, None, None
