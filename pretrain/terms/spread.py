"""KoLeo's term: class tokens of each global crop spread over the sphere."""

from __future__ import annotations

from torch import Tensor

from pretrain.losses import KoLeoLoss
from pretrain.masking import VIEWS
from pretrain.recipe import KoLeoOptions
from pretrain.terms.base import Seen, Term


class Spread(Term):
    """`KoLeoLoss` of the student's class tokens before the head, crop by crop, summed over the two global crops."""

    def __init__(self, options: KoLeoOptions) -> None:
        super().__init__(options.weight)
        self.loss = KoLeoLoss(options.group, options.distributed)

    def forward(self, seen: Seen) -> Tensor:
        first, second = seen.student.features[: seen.global_crops].chunk(VIEWS)  # each B, D
        return self.loss(first) + self.loss(second)
