"""Numbers of a run as a table that outlives interruptions."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class MetricsFile(Logger):
    """FOLDER/metrics.csv, one row a step: appended to at once, and continued when a run continues.

    Lightning's own CSV logger deletes the rows of the first part of a continued run.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self._columns: list[str] = []

    @property
    def name(self) -> str:
        """None is needed."""
        return ""

    @property
    def version(self) -> str:
        """None is needed."""
        return ""

    def start(self, step: int) -> None:
        """Begin at `step`: keep the rows before it, and the validation (val/...) that its checkpoint waited for; drop
        those that the run will write again."""

        def kept(row: Mapping[str, str]) -> bool:
            validated = any(value and name.startswith("val/") for name, value in row.items())
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
        """Append a row; a new name widens the table."""
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
        """The config is saved elsewhere."""

    def _rewrite(self, rows: Sequence[Mapping[str, Any]]) -> None:
        scratch = self.path.with_suffix(".partial")
        with scratch.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)
        scratch.replace(self.path)
