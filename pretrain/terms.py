"""What every term of an objective is, and what it is shown."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dense.backbone import Backbone
from pretrain.centering import Center, Centering, SinkhornKnopp
from pretrain.health import TargetStatistics, entropies, kl_divergence, marginal_error, measure
from pretrain.losses import DINOLoss, GramLoss, IBOTLoss, KoLeoLoss
from pretrain.masking import VIEWS, Grid
from pretrain.network import Output
from pretrain.recipe import DINOOptions, GramOptions, KoLeoOptions, TargetOptions
from pretrain.schedules import Cosine, Linear, teacher_temperature


class Masked(NamedTuple):
    """The patches of 2*B global crops of h*w patches that a term compares."""

    masks: Tensor | None  # 2*B, h*w: hidden from the student; None where nothing is
    chosen: Tensor  # M: indices among the 2*B*h*w patches
    weights: Tensor  # M: 1 over the number chosen in the same crop


class Seen(NamedTuple):
    """One micro-batch, as student and teacher see it."""

    student: Output
    teacher: Output
    masked: Masked | None
    gram_crops: Sequence[Tensor]  # two of (B, 3, S, S): what the Gram teacher is to see
    grid: Grid  # of the student's global crops
    step: int
    steps_per_epoch: int
    examine: bool  # whether measurements are wanted

    @property
    def global_crops(self) -> int:
        """2*B."""
        return len(self.teacher.logits)


class Term(nn.Module):
    """``value = term(seen)``, a scalar without its weight; ``measurements`` are those of the last one examined."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.own_weight = weight
        self.measurements: dict[str, Tensor] = {}

    def plan(self, steps: int) -> None:
        """Learn the length of the run."""

    def weight(self, step: int) -> float:
        """The factor of this term at a step."""
        return self.own_weight

    def before_step(self, step: int, teacher: Backbone) -> None:
        """Called before the first micro-batch of a step."""

    def after_step(self) -> None:
        """Called after the optimiser has stepped."""

    def schedule(self, seen_step: int, steps_per_epoch: int) -> dict[str, float]:
        """Scheduled numbers of a step, for the log."""
        return {}


class Targets(nn.Module):
    """``targets(logits, step, steps_per_epoch)`` also takes note of the logits, by which the centre moves after the step."""

    def __init__(self, prototypes: int, options: TargetOptions) -> None:
        super().__init__()
        self.options = options
        self.centering: Centering = (
            SinkhornKnopp() if options.centering == "sinkhorn" else Center(prototypes, options.center_momentum)
        )
        self.statistics = TargetStatistics(prototypes)
        self._temperature: Linear = teacher_temperature(
            options.warmup_temperature, options.temperature, options.warmup_temperature_epochs
        )

    def temperature(self, step: int, steps_per_epoch: int) -> float:
        """The teacher's temperature at a step."""
        if self.options.temperature_moves == "epoch":
            return self._temperature(step // steps_per_epoch)
        start, final, epochs = self._temperature.start, self._temperature.final, self._temperature.steps
        return Linear(start, final, epochs * steps_per_epoch)(step)

    def forward(self, logits: Tensor, step: int, steps_per_epoch: int) -> Tensor:
        targets = self.centering(logits, self.temperature(step, steps_per_epoch))  # N, K
        self.centering.accumulate(logits)
        return targets

    @property
    def center(self) -> Tensor | None:
        """The moving mean of the logits, where there is one."""
        return self.centering.center if isinstance(self.centering, Center) else None


class ClassTokens(Term):
    """`DINOLoss` between the logits of class tokens."""

    def __init__(self, options: DINOOptions, prototypes: int, targets: TargetOptions) -> None:
        super().__init__(options.weight)
        self.local_weight = options.local_weight
        self.targets = Targets(prototypes, targets)
        self.loss = DINOLoss(targets.student_temperature)

    def forward(self, seen: Seen) -> Tensor:
        targets = self.targets(seen.teacher.logits, seen.step, seen.steps_per_epoch)  # 2*B, K
        value = self.loss(seen.student.logits, targets, local_weight=self.local_weight)
        if seen.examine:
            features = seen.student.features[: seen.global_crops].detach()
            found = measure(self.targets.statistics, value, targets, features, self.targets.center)
            del found["loss"]
            if self.local_weight != 1:
                del found["kl"]  # the loss is no mean over pairs then
            if self.targets.options.centering == "sinkhorn":
                found["sinkhorn_error"] = marginal_error(targets)
            self.measurements = found
        return value

    def after_step(self) -> None:
        """Let the centre follow."""
        self.targets.centering.step()

    def schedule(self, seen_step: int, steps_per_epoch: int) -> dict[str, float]:
        """The teacher's temperature."""
        return {"teacher_temperature": self.targets.temperature(seen_step, steps_per_epoch)}


class MaskedPatches(Term):
    """`IBOTLoss` between the logits of the same patch of the same crop."""

    def __init__(self, weight: float, prototypes: int, targets: TargetOptions) -> None:
        super().__init__(weight)
        self.targets = Targets(prototypes, targets)
        self.loss = IBOTLoss(targets.student_temperature)

    def forward(self, seen: Seen) -> Tensor:
        student, teacher, masked = seen.student.patch_logits, seen.teacher.patch_logits, seen.masked
        assert student is not None
        assert teacher is not None
        assert masked is not None
        targets = self.targets(teacher, seen.step, seen.steps_per_epoch)  # M, K
        value = self.loss(student, targets, masked.weights, seen.global_crops)
        if seen.examine:
            self.measurements = self._measure(targets, value, masked.weights, seen.global_crops)
        return value

    def _measure(self, targets: Tensor, value: Tensor, weights: Tensor, crops: int) -> dict[str, Tensor]:
        """As of the class token, under names that begin with patch_; empty where no patch is masked."""
        found = {}
        if self.targets.options.centering == "sinkhorn":
            found["patch_sinkhorn_error"] = marginal_error(targets)  # first: every process takes part
        if len(targets) == 0:
            return {}
        found |= {f"patch_{name}": number for name, number in self.targets.statistics(targets).items()}
        share = weights.sum() / crops  # of crops that have a masked patch
        spread = (weights * entropies(targets)).sum() / weights.sum()
        found["patch_kl"] = kl_divergence(value.detach() / share, spread)
        if self.targets.center is not None:
            found["patch_center_norm"] = self.targets.center.norm()
        return found

    def after_step(self) -> None:
        """Let the centre follow."""
        self.targets.centering.step()

    def schedule(self, seen_step: int, steps_per_epoch: int) -> dict[str, float]:
        """The teacher's temperature for patches."""
        return {"patch_teacher_temperature": self.targets.temperature(seen_step, steps_per_epoch)}


class Spread(Term):
    """`KoLeoLoss` of the student's class tokens before the head, crop by crop, summed over the two global crops."""

    def __init__(self, options: KoLeoOptions) -> None:
        super().__init__(options.weight)
        self.loss = KoLeoLoss(options.group, options.distributed)

    def forward(self, seen: Seen) -> Tensor:
        first, second = seen.student.features[: seen.global_crops].chunk(VIEWS)  # each B, D
        return self.loss(first) + self.loss(second)


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
