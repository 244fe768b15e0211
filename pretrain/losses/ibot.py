"""The iBOT loss: at masked patches, the student predicts the targets of a teacher that sees these patches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ROWS = 1024  # patches whose logits are converted to fp32 at a time


class IBOTLoss(nn.Module):
    """Cross-entropy at masked patches, averaged within each image and then over all images.

    With p_i the target and s_i the logits of masked patch i, T the student temperature and m_i the number of masked
    patches in its image::

        loss = 1 / images * sum_i 1 / m_i * -sum_k p_i[k] log softmax(s_i / T)[k]

    Images without a masked patch count in `images` and add nothing to the sum.
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
        """Return the loss, a scalar in fp32, of logits (M, K), targets (M, K) and weights (M,); 0 if M is 0.

        Each row of ``targets`` sums to 1; weights: see `token_weights`.
        """
        if student_logits.shape != targets.shape or weights.shape != targets.shape[:1] or images < 1:
            raise ValueError(
                f"student logits {tuple(student_logits.shape)}, targets {tuple(targets.shape)}, weights "
                f"{tuple(weights.shape)}, images={images}: expected (M, K), (M, K), (M,) and at least 1"
            )
        return _WeightedCrossEntropy.apply(student_logits, targets, weights.float() / images, self.student_temperature)

    def extra_repr(self) -> str:
        return f"student_temperature={self.student_temperature}"


def token_weights(masks: Tensor) -> Tensor:
    """Return, per masked patch of masks (B, N), 1 over the number of masked patches in its image: (M,)."""
    counts = masks.sum(1, keepdim=True).clamp(min=1)
    return (1.0 / counts).expand_as(masks)[masks]


class _WeightedCrossEntropy(torch.autograd.Function):
    """``sum_i w_i (logsumexp(s_i / T) - <p_i, s_i> / T)``, computed `ROWS` at a time to save memory in fp32."""

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
