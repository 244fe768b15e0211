"""The metrics of a run as a table that survives interruptions, and its progress on the screen."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dense.console import EVERY, clock, is_quiet, say
from dense.files import replacing


class MetricsFile(Logger):
    """FOLDER/metrics.csv, one row per step, appended at once and continued when a run continues.

    Lightning's CSV logger deletes the rows of the first part of a continued run.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self._columns: list[str] = []

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    def start(self, step: int) -> None:
        """Continue at `step`: keep the rows before it and its validation (val/..., knn), which came before its
        checkpoint; drop the rows that the run will write again."""

        def kept(row: Mapping[str, str]) -> bool:
            validated = any(value and name.startswith(("val/", "knn")) for name, value in row.items())
            return float(row["step"]) < step or (validated and float(row["step"]) == step)

        rows = []
        if step and self.path.is_file():
            with self.path.open(newline="") as file:
                reader = csv.DictReader(file)
                self._columns = list(reader.fieldnames or [])
                rows = [row for row in reader if kept(row)]
        self._rewrite(rows)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row; a new name adds a column."""
        row = {"step": step if step is not None else 0, **metrics}
        if new := [name for name in row if name not in self._columns]:
            rows = []
            if self.path.is_file():
                with self.path.open(newline="") as file:
                    rows = list(csv.DictReader(file))
            self._columns += new
            self._rewrite(rows)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Do nothing: the config has its own file."""

    def _rewrite(self, rows: Sequence[Mapping[str, Any]]) -> None:
        with replacing(self.path) as path, path.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)


def validation_line(
    step: int,
    steps: int,
    names: Sequence[str],
    now: Mapping[str, float],
    best: Mapping[str, float],
    baseline: Mapping[str, float],
    baseline_name: str,
) -> str:
    """Return what a validation shows of its metrics, beside a prediction without learning and the best so far.

    names: the metrics, of which the first is monitored. best: of the best validation, with its "step"
    """
    shown = [
        f"{name.removeprefix('val/')} {now[name]:.4g}"
        + (f" ({baseline_name} {baseline[name]:.4g})" if name in baseline else "")
        for name in names
        if name in now
    ]
    which = "the best so far"
    if best["step"] != step:
        which = f"best so far {best[names[0]]:.4g} at step {best['step']:.0f}"
    return f"validation at step {step} of {steps}: {', '.join(shown)}; {which}"


class ProgressLine(pl.Callback):
    """Show loss, images per second and time left; without a terminal, as a line every `every` seconds."""

    def __init__(self, every: float = EVERY) -> None:
        self.every = every
        self._bar: Progress | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = self._shown = time.monotonic()
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
        """Update the bar, or print a line when it is due."""
        if not trainer.is_global_zero:
            return
        now, step = time.monotonic(), trainer.global_step
        if now - self._shown < (0.5 if self._bar else self.every) and step < self._total:
            return
        self._shown = now
        speed = (step - self._first) * self._batch / max(now - self._start, 1e-9)
        loss = float(outputs["loss"]) * trainer.accumulate_grad_batches if outputs else float("nan")
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=f"loss {loss:.3f}  {speed:.0f} img/s")
        else:
            left = (self._total - step) * self._batch / max(speed, 1e-9)
            say(f"step {step}/{self._total}  loss {loss:.4f}  {speed:.1f} img/s  {clock(left)} left")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
