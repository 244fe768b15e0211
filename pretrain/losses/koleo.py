"""KoLeo: features of a batch keep their distance from one another."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from pretrain.sharding import is_distributed


class KoLeoLoss(nn.Module):
    """``-mean_i log |x_i - x_nearest(i)|`` of features on the unit sphere: the Kozachenko-Leonenko entropy, negated.

    Sablayrolles et al., "Spreading vectors for similarity search", 2019; DINOv2, section 4.

    group: how many consecutive samples a neighbour is sought among; None for all. distributed: samples are those of all
    processes one after the other, so that processes together see what one with the whole batch sees. A sample without
    another in its group has no neighbour: the loss is then 0, and says so once.

    >>> value = KoLeoLoss()(torch.randn(8, 384))
    """

    def __init__(self, group: int | None = None, distributed: bool = False, eps: float = 1e-8) -> None:
        super().__init__()
        if group is not None and group < 2:
            raise ValueError(f"group={group}: a neighbour needs at least 2 samples")
        self.group, self.distributed, self.eps = group, distributed, eps
        self._warned = False

    def forward(self, features: Tensor) -> Tensor:
        """Scalar loss in fp32 of features (B, D) of one crop of B images."""
        if features.ndim != 2:
            raise ValueError(f"expected features (B, D), got {tuple(features.shape)}")
        with torch.autocast(features.device.type, enabled=False):
            own = F.normalize(features.float(), dim=-1, eps=self.eps)  # B, D
            everybody, first = gather(own) if self.distributed else (own, 0)
            if len(everybody) < 2:
                if not self._warned:
                    warnings.warn("KoLeo is skipped: a batch of 1 image has no neighbours", stacklevel=2)
                    self._warned = True
                return 0.0 * own.sum()
            nearest = everybody[self._nearest(own.detach(), everybody.detach(), first)]  # B, D
            return -(F.pairwise_distance(own, nearest, p=2, eps=self.eps) + self.eps).log().mean()

    def _nearest(self, own: Tensor, everybody: Tensor, first: int) -> Tensor:
        """Where among `everybody` (N, D) the nearest other sample of each of `own` (B, D) is, which begin at `first`."""
        group, total = self.group or len(everybody), len(everybody)
        if total % group:
            raise ValueError(f"koleo group={group} does not divide a batch of {total} images; choose one that does")
        mine = torch.arange(first, first + len(own), device=own.device)
        theirs = torch.arange(total, device=own.device)
        strangers = (mine[:, None] // group != theirs // group) | (mine[:, None] == theirs)  # B, N
        return (own @ everybody.T).masked_fill_(strangers, -2).argmax(dim=1)

    def extra_repr(self) -> str:
        return f"group={self.group}, distributed={self.distributed}"


def gather(x: Tensor) -> tuple[Tensor, int]:
    """The rows of all processes one after the other, with their gradients, and where this process's begin."""
    if not is_distributed():
        return x, 0
    return _Gather.apply(x), distributed.get_rank() * len(x)


class _Gather(torch.autograd.Function):
    """All-gather; backwards every process gets the sum of all processes' gradients for its own rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        distributed.all_reduce(grad)
        return grad.chunk(distributed.get_world_size())[distributed.get_rank()]
