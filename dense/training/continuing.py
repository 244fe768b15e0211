"""What every training module does so that a run which was stopped goes on as if it had not been."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch

from dense.training.metrics_file import MetricsFile


def continue_metrics(trainer: pl.Trainer) -> None:
    """Continue the metrics where the run continues."""
    for logger in trainer.loggers:
        if isinstance(logger, MetricsFile) and trainer.is_global_zero:
            logger.start(trainer.global_step)


def seed_micro_batch(trainer: pl.Trainer, seed: int, micro: int) -> None:
    """Everything random in a micro-batch is a function of the seed, the step, its place in the step, and the process."""
    torch.manual_seed(hash((seed, trainer.global_step, micro, trainer.global_rank)) & (2**63 - 1))


def refuse_another(recipe: Mapping[str, Any], saved: Mapping[str, Any], free: str | None = None) -> None:
    """Raise for a checkpoint of another recipe, naming what differs; what lies under the key `free` may differ."""
    changed = [line for line in differences(recipe, saved) if free is None or not line.startswith(f"{free}.")]
    if changed:
        raise ValueError(
            "the checkpoint belongs to another recipe; use the same settings, or another --output\n  "
            + "\n  ".join(changed)
        )


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
