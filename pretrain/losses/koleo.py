"""KoLeo: a regulariser that spreads the features of a batch."""

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

    group: number of consecutive samples among which the nearest neighbour is searched; None for all. distributed: the
    samples are those of all processes, so that several processes compute what one computes for the whole batch. Without
    a second sample there is no neighbour: the loss is then 0, with one warning.

    >>> value = KoLeoLoss()(torch.randn(8, 384))
    """

    def __init__(self, group: int | None = None, distributed: bool = False, eps: float = 1e-8) -> None:
        super().__init__()
        if group is not None and group < 2:
            raise ValueError(f"group={group}: a neighbour needs at least 2 samples")
        self.group, self.distributed, self.eps = group, distributed, eps
        self._warned = False

    def forward(self, features: Tensor) -> Tensor:
        """Return the loss, a scalar in fp32, of features (B, D) of one crop of B images."""
        if features.ndim != 2:
            raise ValueError(f"expected features (B, D), got {tuple(features.shape)}")
        with torch.autocast(features.device.type, enabled=False):
            x = F.normalize(features.float(), dim=-1, eps=self.eps)  # B, D
            every, first = gather(x) if self.distributed else (x, 0)  # N, D
            if len(every) < 2:
                if not self._warned:
                    warnings.warn("KoLeo is skipped: a batch of 1 image has no neighbours", stacklevel=2)
                    self._warned = True
                return 0.0 * x.sum()
            nearest = every[self._nearest(x.detach(), every.detach(), first)]  # B, D
            return -(F.pairwise_distance(x, nearest, p=2, eps=self.eps) + self.eps).log().mean()

    def _nearest(self, x: Tensor, every: Tensor, first: int) -> Tensor:
        """Return indices (B,) of the nearest others, in `every` (N, D), of x (B, D), its rows from `first` on."""
        group, total = self.group or len(every), len(every)
        if total % group:
            raise ValueError(f"koleo group={group} does not divide a batch of {total} images; choose one that does")
        rows = torch.arange(first, first + len(x), device=x.device)[:, None]
        columns = torch.arange(total, device=x.device)
        excluded = (rows // group != columns // group) | (rows == columns)  # B, N
        return (x @ every.T).masked_fill_(excluded, -2).argmax(dim=1)

    def extra_repr(self) -> str:
        return f"group={self.group}, distributed={self.distributed}"


def gather(x: Tensor) -> tuple[Tensor, int]:
    """Return the rows of all processes, with their gradients, and the index of this process's first row."""
    if not is_distributed():
        return x, 0
    return _Gather.apply(x), distributed.get_rank() * len(x)


class _Gather(torch.autograd.Function):
    """All-gather; in the backward pass each process gets the sum of all processes' gradients for its own rows."""

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
