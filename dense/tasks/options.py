"""Every number of a head's training, with the defaults of the published linear probes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class BackboneOptions:
    """Which features the head sees.

    name: a timm name, an official name or a saved directory. weights: "timm", a file or a directory; None with a name
    is a random network, which is said. layers: block indices, last, last4, even4 or default. norm: the final norm on
    every layer (true), on none (false) or on the last block alone ("last"). arguments: overrides, such as img_size.
    """

    name: str = "vit_small_patch14_dinov2"
    weights: str | None = None
    layers: str | list[int] = "last"
    norm: bool | Literal["last"] = True
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OptimOptions:
    """AdamW and its schedule, over optimiser steps. lr is taken as it is, whatever the batch.

    schedule: "poly" (1 - t)^power, "cosine" to zero, or "constant", each after a linear warm-up of warmup_steps, but of no more than a third
    of the run: a recipe that is made shorter still learns. clip: largest norm of all gradients, 0 for none.
    """

    lr: float = 1e-3
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    power: float = 0.9
    warmup_steps: int = 0
    clip: float = 0.0

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"optim.lr={self.lr}: expected a positive number")
        if self.warmup_steps < 0 or self.clip < 0:
            raise ValueError(f"optim.warmup_steps={self.warmup_steps}, clip={self.clip}: expected 0 or more")
        if self.schedule not in ("poly", "cosine", "constant"):
            raise ValueError(f"optim.schedule={self.schedule!r}: expected poly, cosine or constant")

    def warmup(self, steps: int) -> int:
        """Steps of the warm-up in a run of `steps`."""
        return min(self.warmup_steps, steps // 3)

    def factor(self, step: int, steps: int) -> float:
        """What every learning rate is multiplied with at `step` of `steps`."""
        warmup = self.warmup(steps)
        if step < warmup:
            return (step + 1) / warmup
        t = min((step - warmup) / max(steps - warmup, 1), 1.0)
        return {"poly": (1 - t) ** self.power, "cosine": 0.5 * (1 + math.cos(math.pi * t)), "constant": 1.0}[
            self.schedule
        ]


@dataclass(frozen=True)
class TargetOptions:
    """Where the loss is computed.

    size: "picture", or "grid4": at four times the grid of tokens, which is several times cheaper. min_depth, max_depth:
    the range of depths that count, in training; None for no bound.
    """

    size: Literal["picture", "grid4"] = "picture"
    min_depth: float | None = None
    max_depth: float | None = None

    def __post_init__(self) -> None:
        if self.size not in ("picture", "grid4"):
            raise ValueError(f"target.size={self.size!r}: expected image or grid4")
        if None not in (self.min_depth, self.max_depth) and not self.min_depth < self.max_depth:  # type: ignore[operator]
            raise ValueError(
                f"target.min_depth={self.min_depth} and max_depth={self.max_depth}: no depth lies between them"
            )
