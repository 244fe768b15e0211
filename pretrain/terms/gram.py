"""DINOv3's anchor: the student's patches keep the similarities that an earlier teacher gave them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.nn import functional as F

from dense.backbone import Backbone
from pretrain.losses import GramLoss
from pretrain.recipe import GramOptions
from pretrain.schedules import Cosine
from pretrain.terms.base import Seen, Term


class Gram(Term):
    """`GramLoss` between the student's global crops and the same crops, perhaps larger, seen by the Gram teacher.

    Both features are those of the last block after its norm. Where the Gram teacher's grid is finer, its features come
    down to the student's by bicubic interpolation.
    """

    def __init__(self, options: GramOptions, teacher: Backbone, given: bool) -> None:
        """`given`: whether `teacher` holds the Gram teacher's weights already, or waits for those of step `start`."""
        super().__init__(options.weight)
        self.options, self.given = options, given
        self.teacher = copy.deepcopy(teacher).freeze()
        self.loss = GramLoss(options.level, options.negatives)
        self._weight: Cosine | None = None

    def plan(self, steps: int) -> None:
        """The weight moves from `start` to the end."""
        o = self.options
        if o.start >= steps:
            raise ValueError(
                f"gram.start={o.start} is never reached by a run of {steps} steps; lower it, or set gram.weight to 0"
            )
        final = o.weight if o.final_weight is None else o.final_weight
        self._weight = Cosine(o.weight, final, steps - o.start, min(o.warmup_steps, steps - o.start))

    def weight(self, step: int) -> float:
        """0 before `start`."""
        if step < self.options.start:
            return 0.0
        return self.own_weight if self._weight is None else self._weight(step - self.options.start)

    def before_step(self, step: int, teacher: Backbone) -> None:
        """Copy the teacher at `start`, unless the Gram teacher was given, and when it is time to refresh."""
        after, every = step - self.options.start, self.options.refresh_every
        first = after == 0 and not self.given
        again = every > 0 and after > 0 and after % every == 0 and after // every <= self.options.refreshes
        if first or again:
            with torch.no_grad():
                for mine, theirs in zip(self.teacher.parameters(), teacher.parameters(), strict=True):
                    mine.copy_(theirs)

    def forward(self, seen: Seen) -> Tensor:
        if seen.step < self.options.start:
            self.measurements = {}
            return seen.student.features.new_zeros(())
        assert seen.student.patches is not None
        value = self.loss(seen.student.patches, self._features(seen), self._mask(seen))
        if seen.examine:
            self.measurements = {"gram_drift": value.detach().sqrt()}
        return value

    @torch.no_grad()
    def _features(self, seen: Seen) -> Tensor:
        """Features (2*B, h*w, D) of the Gram teacher on the student's grid."""
        images = torch.cat(list(seen.gram_crops))
        images = self.teacher.normalise(images) if images.dtype == torch.uint8 else images
        maps = self.teacher(images, layers="last", norm=True).maps[-1]
        if tuple(maps.shape[-2:]) != seen.grid:
            maps = F.interpolate(maps.float(), seen.grid, mode="bicubic", antialias=self.options.antialias)
        return maps.flatten(2).mT

    def _mask(self, seen: Seen) -> Tensor | None:
        if self.options.tokens == "all":
            return None
        assert seen.masked is not None
        assert seen.masked.masks is not None
        return seen.masked.masks if self.options.tokens == "masked" else ~seen.masked.masks

    def schedule(self, seen_step: int, steps_per_epoch: int) -> dict[str, float]:
        """Its weight."""
        return {"gram_weight": self.weight(seen_step)}
