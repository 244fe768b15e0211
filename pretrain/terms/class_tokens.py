"""DINO's term: class tokens of every crop predict the teacher's of the other global crop."""

from __future__ import annotations

from torch import Tensor

from pretrain.health import marginal_error, measure
from pretrain.losses import DINOLoss
from pretrain.recipe import DINOOptions, TargetOptions
from pretrain.terms.base import Seen, Term
from pretrain.terms.targets import Targets


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
