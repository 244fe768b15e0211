"""From teacher logits to targets: centring with sharpening, or Sinkhorn-Knopp."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from pretrain.sharding import is_distributed


class Centering(nn.Module):
    """Turns teacher logits into targets; a state, if there is one, follows the logits.

    ``targets = centering(logits, temperature)`` never changes the state. Call ``accumulate`` after each micro-batch and
    ``step`` after each optimiser step; ``update`` is both, for training without gradient accumulation.
    """

    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """Return targets (N, K) in fp32, rows summing to 1, without gradient, of teacher logits (N, K)."""
        raise NotImplementedError

    def accumulate(self, logits: Tensor) -> None:
        """Accumulate the teacher logits (N, K) of one micro-batch."""

    def step(self) -> None:
        """Update the state with the logits accumulated since the last step."""

    def update(self, logits: Tensor) -> None:
        """Update the state with one batch of teacher logits (N, K)."""
        self.accumulate(logits)
        self.step()


class Center(Centering):
    """Centring and sharpening: ``softmax((t - c) / temperature)`` with c a moving average of the mean logit.

    ``c <- momentum c + (1 - momentum) mean(t)``, the mean taken over all accumulated rows of all processes. A step
    with nothing accumulated anywhere leaves c as it is.
    Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", 2021, equation 4.
    """

    center: Tensor
    logit_sum: Tensor
    logit_count: Tensor

    def __init__(self, dim: int, momentum: float = 0.9) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum={momentum}: expected a number from 0 to 1 (published: 0.9)")
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(1, dim))
        self.register_buffer("logit_sum", torch.zeros(1, dim), persistent=False)
        self.register_buffer("logit_count", torch.zeros(1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        return F.softmax((logits.float() - self.center).div_(temperature), dim=-1)

    @torch.no_grad()
    def accumulate(self, logits: Tensor) -> None:
        self.logit_sum += logits.sum(0, keepdim=True, dtype=torch.float32)
        self.logit_count += len(logits)

    @torch.no_grad()
    def step(self, start: bool = False) -> None:
        """Move c; `start`: to the mean itself."""
        total, count = self.logit_sum, self.logit_count
        if is_distributed():
            both = torch.cat([total, count], dim=1)
            distributed.all_reduce(both)
            total, count = both[:, :-1], both[:, -1:]
        momentum = 0.0 if start else self.momentum
        weight = (1 - momentum) * (count > 0)  # 1, 1: computed on the device, without synchronising
        self.center.lerp_(total / count.clamp(min=1), weight)
        self.logit_sum.zero_()
        self.logit_count.zero_()

    def extra_repr(self) -> str:
        return f"dim={self.center.shape[1]}, momentum={self.momentum}"


def subtract_mean(features: Tensor, center: Center, start: bool = False) -> Tensor:
    """Return features (..., D) minus their moving average, in fp32, and accumulate them for it.

    start: the average starts as the mean of these features over all processes.
    """
    center.accumulate(features.flatten(0, -2))
    if start:
        center.step(start=True)
    return features.float() - center.center[0]


class SinkhornKnopp(Centering):
    """Targets that use all prototypes equally: alternating normalisation over samples and over prototypes.

    Starting from ``exp(t / temperature)``, each iteration divides every prototype by its sum over the samples of all
    processes, then every sample by its sum over prototypes. It works on logarithms, so nothing over- or underflows.
    Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments" (SwAV), 2020,
    section 3.1; used by DINOv2 and DINOv3. Stateless: ``accumulate`` and ``step`` do nothing.
    """

    def __init__(self, iterations: int = 3) -> None:
        super().__init__()
        if iterations < 1:
            raise ValueError(f"iterations={iterations}: expected at least 1 (published: 3)")
        self.iterations = iterations

    @torch.no_grad()
    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        scores = logits.float() / temperature  # N, K
        for _ in range(self.iterations):
            scores -= _logsumexp_over_samples(scores)
            scores -= scores.logsumexp(dim=1, keepdim=True)
        return scores.exp_()

    def extra_repr(self) -> str:
        return f"iterations={self.iterations}"


def _logsumexp_over_samples(scores: Tensor) -> Tensor:
    """Return the log-sum-exp (1, K) over the rows of scores (N, K) of all processes; N may differ and be 0."""
    local = scores.logsumexp(dim=0, keepdim=True)
    if not is_distributed():
        return local
    highest = local.clone()
    distributed.all_reduce(highest, op=distributed.ReduceOp.MAX)
    total = (local - highest).exp_()
    distributed.all_reduce(total)
    return highest + total.log_()
