"""Average precision and precision of rankings, with images that count neither as right nor as wrong."""

from __future__ import annotations

import torch
from torch import Tensor


def ranked(similarity: Tensor, positive: Tensor, ignored: Tensor) -> Tensor:
    """Return which places of each ranking are positive, (Q, N) bool; each argument is (Q, N).

    The most similar come first, and equal ones in the order of the database. Ignored images leave the ranking, so
    that the others move up; they are not positive either.
    """
    order = similarity.masked_fill(ignored, -torch.inf).argsort(dim=1, descending=True, stable=True)
    return (positive & ~ignored).gather(1, order)


def average_precision(hits: Tensor, trapezoids: bool = False) -> Tensor:
    """Return the average precision of each ranking (Q,) of `ranked`; NaN where nothing is positive.

    The mean over positives of the precision at their place, as scikit-learn's; with `trapezoids` the mean of that and
    of the precision just before their place (1 before the first place), as in the revisited Oxford and Paris.
    """
    place = torch.arange(1, hits.shape[1] + 1, device=hits.device, dtype=torch.float64)
    found = hits.cumsum(1)
    precision = found / place
    if trapezoids:
        before = (found - 1) / (place - 1).clamp(min=1)
        before[:, 0] = 1.0
        precision = (precision + before) / 2
    return (precision * hits).sum(1) / hits.sum(1)


def precision_at(hits: Tensor, k: int, until_last: bool = False) -> Tensor:
    """Return the share of positives among the first k places of each ranking (Q,).

    until_last: count no places after the last positive, as in the revisited Oxford and Paris, so that a query with
    three positives in its first three places has 1 at k = 10.
    """
    first = hits[:, :k].sum(1).double()
    if not until_last:
        return first / k
    place = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    return first / (hits * place).amax(1).clamp(1, k)
