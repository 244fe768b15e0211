"""Every number of a DINO run, with the defaults of the published repository."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pretrain.teacher import Mode


@dataclass(frozen=True)
class BackboneOptions:
    """Which network learns.

    name: a timm name, an official name or a saved directory. arguments: overrides, such as img_size or depth.
    drop_path: stochastic depth of the student. init_from: weights to continue from (a file, a directory or "timm").
    head_warmup_steps: steps in which only the head learns, so that a continued backbone is not destroyed by a fresh one.
    """

    name: str = "vit_small_patch16_224"
    arguments: dict[str, Any] = field(default_factory=dict)
    drop_path: float = 0.1
    init_from: str | None = None
    head_warmup_steps: int = 0


@dataclass(frozen=True)
class HeadOptions:
    """The projection head; out_dim is the number K of prototypes."""

    out_dim: int = 65536
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    layers: int = 3
    batch_norm: bool = False
    norm_last_layer: bool = True


@dataclass(frozen=True)
class TeacherOptions:
    """How the teacher follows and how its outputs become targets; temperatures warm up over whole epochs.

    centering: "center" subtracts a moving mean (DINO), "sinkhorn" makes a batch use all prototypes equally (DINOv2).
    """

    mode: Mode = "ema"
    centering: Literal["center", "sinkhorn"] = "center"
    momentum: float = 0.996
    final_momentum: float = 1.0
    warmup_temperature: float = 0.04
    temperature: float = 0.04
    warmup_temperature_epochs: int = 0
    center_momentum: float = 0.9
    student_temperature: float = 0.1


@dataclass(frozen=True)
class OptimOptions:
    """The optimiser and its schedules. lr belongs to a total batch of 256 and is scaled linearly; min_lr is not scaled.

    clip: largest norm of a gradient, 0 for none. freeze_last_layer_epochs: epochs in which the prototypes stand still.
    """

    name: Literal["adamw", "sgd", "lars"] = "adamw"
    arguments: dict[str, Any] = field(default_factory=dict)
    lr: float = 5e-4
    min_lr: float = 1e-6
    warmup_epochs: float = 10
    weight_decay: float = 0.04
    final_weight_decay: float = 0.4
    clip: float = 3.0
    clip_mode: Literal["per_parameter", "global"] = "per_parameter"
    freeze_last_layer_epochs: float = 1


@dataclass(frozen=True)
class HealthOptions:
    """When health is measured and what a recognised failure does."""

    every: int = 10
    warmup_steps: int = 1000
    patience: int = 20
    on_failure: Literal["warn", "stop"] = "warn"


@dataclass(frozen=True)
class Recipe:
    """A whole run. Its length is `epochs` passes over the pictures, or `steps` optimiser steps where that is given."""

    backbone: BackboneOptions = field(default_factory=BackboneOptions)
    head: HeadOptions = field(default_factory=HeadOptions)
    teacher: TeacherOptions = field(default_factory=TeacherOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    health: HealthOptions = field(default_factory=HealthOptions)
    epochs: float = 100
    steps: int | None = None
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> list[str]:
    """'optim.lr: 0.001 now, 0.0005 then' for every leaf in which two nested mappings differ."""
    found = []
    for key in dict.fromkeys([*ours, *theirs]):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}: {a} now, {b} then")
    return found
