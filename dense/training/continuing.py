"""What every training module does so that a run which was stopped goes on as if it had not been."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
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


def pictures_in_words(count: int, name: Callable[[int], str], root: str, most: int = 1000) -> str:
    """Pictures in a few words that are others for other ones, by names and sizes of some files, wherever the root lies."""
    path = Path(root)
    digest, top = hashlib.blake2b(digest_size=4), str(path if path.is_dir() else path.parent)
    for place in range(min(count, most)):
        own = name(place * count // min(count, most))
        size = file.stat().st_size if (file := Path(own)).is_file() else 0
        digest.update(f"{own.removeprefix(top)} {size}\0".encode("utf-8", "surrogateescape"))
    return f"{count} pictures, {digest.hexdigest()}"


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
