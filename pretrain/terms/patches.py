"""iBOT's term: at masked patches the student predicts what the teacher sees there."""

from __future__ import annotations

from torch import Tensor

from pretrain.health import entropies, kl_divergence, marginal_error
from pretrain.losses import IBOTLoss
from pretrain.recipe import TargetOptions
from pretrain.terms.base import Seen, Term
from pretrain.terms.targets import Targets


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
