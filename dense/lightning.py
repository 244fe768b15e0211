"""LightningCLI behind our own verbs: one YAML or dotted options, kind errors, no subcommands."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from dense.arguments import with_suggestion
from dense.recipes import find_config


class TrainingParser(LightningArgumentParser):
    """jsonargparse with suggestions for wrong options and config keys; exits with status 2 and no traceback."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one line with the nearest valid name and exit."""
        text = " ".join(str(message).split())
        text = (
            re.sub(r"^.*?Parser key \"?(\w+)\"?: ", "", text)
            if "Parser key" in text and "not expected" in text
            else text
        )
        text = with_suggestion(text, self.known_keys())
        self.exit(2, f"{self.prog}: error: {text}\nSee {self.prog} --help, or --print_config for every key.\n")

    def known_keys(self) -> list[str]:
        """Dotted names of all options, and their last parts."""
        names = [a.dest for a in self._actions if a.dest and a.dest != "help"]
        for action in self._actions:
            inner = getattr(action, "_parser", None) or getattr(getattr(action, "_typehint", None), "_parser", None)
            if inner is not None:
                names += [f"{action.dest}.{a.dest}" for a in inner._actions]
        return names + [n.rsplit(".", 1)[-1] for n in names]


class TrainingCLI(LightningCLI):
    """A LightningCLI that parses and instantiates, and leaves running to the verb."""

    def __init__(self, model: Any, data: Any, argv: Sequence[str], prog: str, description: str, **options: Any) -> None:
        super().__init__(
            model,
            data,
            args=shipped_configs(argv),
            run=False,
            save_config_callback=None,
            seed_everything_default=False,
            parser_kwargs={"prog": prog, "description": description, "default_env": False},
            **options,
        )

    def init_parser(self, **options: Any) -> LightningArgumentParser:
        """Our parser, with --config and --print_config."""
        options.setdefault("dump_header", None)
        parser = TrainingParser(**options)
        parser.add_argument("-c", "--config", action="config", help="a YAML file, or the name of a shipped config")
        return parser


def shipped_configs(argv: Sequence[str]) -> list[str]:
    """argv with the names of shipped configs replaced by their paths."""
    resolved = list(argv)
    for i, argument in enumerate(resolved):
        if argument.startswith("--config="):
            resolved[i] = f"--config={find_config(argument.split('=', 1)[1])}"
        elif argument in ("-c", "--config") and i + 1 < len(resolved):
            resolved[i + 1] = str(find_config(resolved[i + 1]))
    return resolved


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
        """Begin at `step`: keep the rows before it, drop those that the run will write again."""
        rows = []
        if step and self.path.is_file():
            with self.path.open(newline="") as file:
                reader = csv.DictReader(file)
                self._columns = list(reader.fieldnames or [])
                rows = [row for row in reader if float(row["step"]) < step]
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
