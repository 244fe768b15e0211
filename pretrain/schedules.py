"""Schedules: pure functions of the step, so that a resumed run needs nothing but its step number."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class Constant:
    """The same value at every step."""

    value: float

    def __call__(self, step: int) -> float:
        return self.value


@dataclass(frozen=True)
class Linear:
    """A straight line: ``start`` at step 0, ``final`` at step ``steps - 1`` and ever after."""

    start: float
    final: float
    steps: int

    def __call__(self, step: int) -> float:
        if step >= self.steps - 1:
            return self.final
        return self.start + (self.final - self.start) * (max(step, 0) / (self.steps - 1))


@dataclass(frozen=True)
class Cosine:
    """Linear warm-up, then half a cosine.

    The warm-up goes from ``start`` at step 0 to ``base`` at step ``warmup_steps - 1``; a single step of warm-up stays
    at ``start``. The cosine then goes from ``base`` towards ``final``, which it reaches at step ``steps``, one past the
    last, as published. A warm-up as long as the training or longer leaves no cosine.
    """

    base: float
    final: float
    steps: int
    warmup_steps: int = 0
    start: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.warmup_steps < 0:
            raise ValueError(f"steps={self.steps}, warmup_steps={self.warmup_steps}: expected steps >= 1, warm-up >= 0")

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.start + (self.base - self.start) * (max(step, 0) / max(self.warmup_steps - 1, 1))
        if step >= self.steps:
            return self.final
        progress = (step - self.warmup_steps) / (self.steps - self.warmup_steps)
        return self.final + 0.5 * (self.base - self.final) * (1 + math.cos(math.pi * progress))


def teacher_temperature(start: float = 0.04, final: float = 0.04, warmup_epochs: int = 0) -> Linear:
    """Temperature of the teacher at an epoch: a straight warm-up over ``warmup_epochs``, then ``final``.

    It knows nothing of the length of training: one shorter than the warm-up simply ends on the way.
    """
    for name, value in (("start", start), ("final", final)):
        if value <= 0:
            raise ValueError(f"{name}={value}: a temperature is positive (published: 0.04 to 0.07)")
    return Linear(start, final, warmup_epochs)


def linear_lr(base: float, batch_size: int, reference: int = 256) -> float:
    """Learning rate for a total batch size, proportional to it (DINO: 5e-4 at 256)."""
    return base * batch_size / reference


def sqrt_lr(base: float, batch_size: int, reference: int = 1024) -> float:
    """Learning rate for a total batch size, proportional to its square root (DINOv2: 4e-3 at 1024)."""
    return base * math.sqrt(batch_size / reference)
