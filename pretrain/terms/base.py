"""What every term of an objective is, and what it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from dense.backbone import Backbone
from pretrain.masking import Grid
from pretrain.network import Output


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
