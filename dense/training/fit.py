"""Fitting that a signal may stop: Ctrl-C and SIGTERM save first, and what was stopped says how it continues."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger

from dense.console import say
from dense.training.checkpoints import Checkpoints
from dense.training.metrics_file import MetricsFile
from dense.training.progress import ProgressLine


class SettingsFile(pl.Callback):
    """FOLDER/config.yaml, written when the training starts: settings that its checkpoint refuses replace none."""

    def __init__(self, folder: Path, config: str) -> None:
        self.path, self.config = folder / "config.yaml", config

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write them."""
        if self.config and trainer.is_global_zero:
            self.path.write_text(self.config)


def begin(
    trainer: pl.Trainer,
    folder: Path,
    checkpoint: dict[str, Any],
    about: str,
    config: str = "",
    callbacks: Sequence[pl.Callback] = (),
) -> Checkpoints:
    """A run in `folder`: checkpoints, logs and the line of progress, its settings in a file, and what it is on the screen."""
    checkpoints = Checkpoints(folder / "checkpoints", **checkpoint)
    trainer.callbacks += [SettingsFile(folder, config), *callbacks, checkpoints, ProgressLine()]  # type: ignore[attr-defined]
    trainer.loggers = [MetricsFile(folder), *tensorboard(folder)]
    if trainer.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        say(f"{'continuing' if checkpoints.last.is_file() else 'starting'} {folder}: {about}")
    return checkpoints


def tensorboard(folder: Path) -> list[TensorBoardLogger]:
    """A TensorBoard logger, where tensorboard is installed."""
    try:
        return [TensorBoardLogger(folder, name="", version="tensorboard")]
    except ModuleNotFoundError:
        return []


def fit(
    trainer: pl.Trainer, module: pl.LightningModule, data: pl.LightningDataModule, checkpoints: Checkpoints
) -> None:
    """Fit, from the last checkpoint if there is one.

    Raises:
        KeyboardInterrupt: Ctrl-C came a second time, or before there was a step to finish.
    """
    resume = checkpoints.last if checkpoints.last.is_file() else None
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    except SystemExit:  # Lightning's answer to Ctrl-C
        if trainer.interrupted:
            raise KeyboardInterrupt(how_to_continue(checkpoints)) from None
        raise


def how_to_continue(checkpoints: Checkpoints) -> str:
    """In words."""
    if checkpoints.last.is_file():
        return f"the same command continues from {checkpoints.last}"
    return "there is no checkpoint yet: the same command starts again"


def stopped(trainer: pl.Trainer, checkpoints: Checkpoints) -> int:
    """0, or the exit status of a run that a signal stopped, which is said."""
    if checkpoints.stopped_by is None:
        return 0
    if trainer.is_global_zero:
        name = "Ctrl-C" if checkpoints.stopped_by == signal.SIGINT else "SIGTERM"
        where = how_to_continue(checkpoints)
        print(f"stopped by {name} at step {trainer.global_step}; {where}", file=sys.stderr)
    return 128 + checkpoints.stopped_by
