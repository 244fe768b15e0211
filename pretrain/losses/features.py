"""Distillation of features: those of a frozen teacher, or the similarities between them."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Objective = Literal["cosine", "smooth_l1"]


class FeatureLoss(nn.Module):
    """Distance of the student's features, mapped to the teacher's width, from the teacher's.

    - "cosine": ``mean (1 - cos(s, t))``;
    - "smooth_l1": smooth L1, quadratic below `beta`, between s and t, with t whitened by a layer norm without
      parameters. Wei et al., "Contrastive Learning Rivals Masked Image Modeling in Fine-tuning via Feature
      Distillation", 2022, whose beta is 2.

    >>> value = FeatureLoss()(torch.randn(2, 49, 384), torch.randn(2, 49, 384))
    """

    def __init__(self, objective: Objective = "cosine", beta: float = 2.0) -> None:
        super().__init__()
        if objective not in get_args(Objective):
            raise ValueError(f"objective={objective!r}: expected one of {', '.join(get_args(Objective))}")
        self.objective, self.beta = objective, beta

    def forward(self, features: Tensor, targets: Tensor) -> Tensor:
        """Return the loss, a scalar in fp32, of features and targets (..., D)."""
        with torch.autocast(features.device.type, enabled=False):
            features, targets = features.float(), targets.detach().float()
            if self.objective == "cosine":
                return 1 - F.cosine_similarity(features, targets, dim=-1).mean()
            return F.smooth_l1_loss(features, F.layer_norm(targets, targets.shape[-1:]), beta=self.beta)

    def extra_repr(self) -> str:
        return f"objective={self.objective}"


class RelationLoss(nn.Module):
    """Divergence of the student's similarities from the teacher's.

    ``mean KL(softmax(t K^T / T) || softmax(s K'^T / T))`` over all vectors at unit length: those of student s and
    teacher t are compared with keys K' and K. The keys are a queue of the teacher's class tokens for both, or the
    student's and the teacher's own patches of the same image. Global and local relation of lightly-train's third
    distillation, with T = 0.07; Fang et al., "SEED", 2021, for the queue.

    >>> features, targets = torch.randn(2, 49, 64), torch.randn(2, 49, 384)
    >>> value = RelationLoss()(features, targets, features, targets)
    """

    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, features: Tensor, targets: Tensor, keys: Tensor, target_keys: Tensor) -> Tensor:
        """Return the loss, a scalar in fp32, of (..., N, D) with keys (..., M, D); the teacher's D may differ."""
        with torch.autocast(features.device.type, enabled=False):
            s, t, k, q = (F.normalize(x.float(), dim=-1) for x in (features, targets, keys, target_keys))
            ours = (s @ k.mT / self.temperature).log_softmax(-1)  # ..., N, M
            theirs = (t @ q.mT / self.temperature).detach().log_softmax(-1)
            return (theirs.exp() * (theirs - ours)).sum(-1).mean()

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"
