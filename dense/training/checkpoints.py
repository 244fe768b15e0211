"""Atomic checkpoints: by the clock, by steps, on a signal and at the end of a run."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl

from dense.files import check_writable, replacing

LAST = "last.ckpt"


class Checkpoints(pl.Callback):
    """Write FOLDER/last.ckpt regularly, and a numbered copy every `keep_every` steps.

    A checkpoint is written to a temporary file, flushed to disk and renamed, so a kill at any moment leaves the old or
    the new one whole. SIGTERM and Ctrl-C save and then stop; a second Ctrl-C stops at once. An unwritable folder or a
    disk without room raises before training; a disk that fills up later stops the run and leaves the old checkpoint.

    Where a validation follows a step, its checkpoint is written after the validation and contains its result.
    Callbacks with a state that a validation changes belong before this one.

    Args:
        folder: folder of the checkpoints.
        every_minutes: minutes between writes of `last.ckpt`; 0 for none by the clock.
        every_steps: optimiser steps between writes of `last.ckpt`; 0 for none by steps.
        keep_every: optimiser steps between copies that are kept; 0 for none.
    """

    def __init__(self, folder: str | Path, every_minutes: float = 5, every_steps: int = 0, keep_every: int = 0) -> None:
        self.folder = Path(folder)
        self.every_minutes, self.every_steps, self.keep_every = every_minutes, every_steps, keep_every
        self._saved_at = 0.0
        self._saved_step = -1
        self._size = 0  # bytes of a checkpoint, about
        self._stop = 0  # number of the signal that asked the run to stop
        self._waiting = False  # a checkpoint is due after the validation that follows
        self._previous_handlers: dict[int, Any] = {}

    @property
    def last(self) -> Path:
        """The checkpoint to resume from."""
        return self.folder / LAST

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Raise for an unwritable folder or a full disk before training."""
        if trainer.is_global_zero:
            self._size = 3 * sum(p.numel() * p.element_size() for p in pl_module.parameters())
            check_writable(self.folder, needed=self._size)
            self.folder.mkdir(parents=True, exist_ok=True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install handlers of SIGINT and SIGTERM."""
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous_handlers[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._stop == signal.SIGINT:
                raise KeyboardInterrupt
            print("\nstopping after this step, and saving; Ctrl-C again stops at once", file=sys.stderr, flush=True)
        self._stop = number

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Save when a checkpoint is due; all processes decide alike."""
        step = trainer.global_step
        if step == self._saved_step or trainer.fit_loop.epoch_loop._should_accumulate():
            return  # in the middle of an optimiser step
        if trainer.world_size > 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                if trainer.strategy.reduce_boolean_decision(self._stop == number, all=False):
                    self._stop = number
        due = bool(self.every_steps) and step % self.every_steps == 0
        late = bool(self.every_minutes) and time.monotonic() - self._saved_at > 60 * self.every_minutes
        if trainer.world_size > 1:
            late = trainer.strategy.reduce_boolean_decision(late, all=False)
        self._waiting = due or late or bool(self._stop)
        if not validates(trainer):
            self._save_due(trainer)
            if self._stop:
                trainer.limit_val_batches = 0  # Lightning would validate once more before it stops

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._save_due(trainer)

    def _save_due(self, trainer: pl.Trainer) -> None:
        step = trainer.global_step
        kept = bool(self.keep_every) and step % self.keep_every == 0
        if kept:
            self.save(trainer, self.folder / f"step_{step:08d}.ckpt")
        if self._waiting or kept:  # last.ckpt is never older than a kept copy
            self._waiting = False
            self.save(trainer, self.last)
        if self._stop:
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the end of the run, and restore the signal handlers."""
        if trainer.global_step != self._saved_step and not trainer.fit_loop.epoch_loop._should_accumulate():
            self.save(trainer, self.last)
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self._previous_handlers.clear()

    @property
    def stopped_by(self) -> int | None:
        """Number of the signal that stopped the run."""
        return self._stop or None

    def save(self, trainer: pl.Trainer, path: Path) -> None:
        """Write a checkpoint to `path` atomically."""
        with replacing(path, self._size) as scratch:
            trainer.save_checkpoint(scratch)
            if trainer.is_global_zero:
                with scratch.open("rb") as file:
                    os.fsync(file.fileno())
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step


def validates(trainer: pl.Trainer) -> bool:
    """Return whether a validation follows the batch that just ended."""
    loop = trainer.fit_loop
    return loop._data_fetcher is not None and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
