"""From the teacher's logits to the targets of one term: its own centring and temperature."""

from __future__ import annotations

from torch import Tensor, nn

from pretrain.centering import Center, Centering, SinkhornKnopp
from pretrain.health import TargetStatistics
from pretrain.recipe import TargetOptions
from pretrain.schedules import Linear, teacher_temperature


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
