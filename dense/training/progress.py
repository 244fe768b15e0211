"""Where a run stands: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning.pytorch as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dense.console import EVERY, clock, is_quiet, say


class ProgressLine(pl.Callback):
    """Loss, pictures a second and time left; `every` is the number of seconds between lines when there is no terminal."""

    def __init__(self, every: float = EVERY) -> None:
        self.every = every
        self._bar: Progress | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count."""
        self._start = self._said = time.monotonic()
        self._first = trainer.global_step
        self._total = trainer.fit_loop.epoch_loop.max_steps
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._batch = data.batch_size * trainer.world_size * trainer.accumulate_grad_batches
        if trainer.is_global_zero and sys.stderr.isatty() and not is_quiet():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task("train", total=self._total, completed=self._first)
            self._bar.start()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        """Say so when it is time."""
        if not trainer.is_global_zero:
            return
        now, step = time.monotonic(), trainer.global_step
        if now - self._said < (0.5 if self._bar else self.every) and step < self._total:
            return
        self._said = now
        speed = (step - self._first) * self._batch / max(now - self._start, 1e-9)
        loss = float(outputs["loss"]) * trainer.accumulate_grad_batches if outputs else float("nan")
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=f"loss {loss:.3f}  {speed:.0f} img/s")
        else:
            left = (self._total - step) * self._batch / max(speed, 1e-9)
            say(f"step {step}/{self._total}  loss {loss:.4f}  {speed:.1f} img/s  {clock(left)} left")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the bar away."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Put the bar away."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
