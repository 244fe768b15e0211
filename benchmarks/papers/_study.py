"""Pretrainings that differ in one thing: run once each, kept as JSON, and gathered into a table over seeds."""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _all import machine
from _measure import arguments, prose, spread, table, write_section

Row = dict[str, Any]
QUICK: dict[str, Any] = {  # a network and data for which a run takes seconds
    "data.scenes": 48, "data.batch_size": 8, "data.workers": 0, "knn.scenes": [30, 20], "model.head.out_dim": 32,
    "model.head.hidden_dim": 32,
}  # fmt: skip


def parser(description: str | None, parts: Sequence[str]) -> argparse.ArgumentParser:
    """Return the options that the scripts share; parts: the experiments of this one."""
    parser = arguments(description)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"all if left out: {', '.join(parts)}")
    parser.add_argument("--data", default="scenes:train", help="unlabelled images, or the embedded scenes")
    parser.add_argument("--knn", nargs=2, metavar=("TRAIN", "VAL"), help="labelled images for k-NN; scenes if left out")
    parser.add_argument("--config", default="pretrain/scenes_demo", help="recipe that the experiments change")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="more options of every training")
    parser.add_argument("--steps", type=int, default=240, help="optimiser steps of a training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--backbone", default="scenes_tiny", help="a trained backbone, where one is needed")
    parser.add_argument("--weights", help="its weight file, or timm to download")
    parser.add_argument("--output", type=Path, help="folder of runs and rows; a temporary one if left out")
    parser.add_argument("--markdown", type=Path, help="page whose section is replaced")
    parser.add_argument("--quick", action="store_true", help="few steps, one seed, tiny networks: shows that it runs")
    parser.set_defaults(known=tuple(parts), start=time.monotonic())
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options, with those of `--quick` filled in."""
    options = parser.parse_args(argv)
    if unknown := [part for part in options.parts if part not in options.known]:
        parser.error(f"no part {unknown[0]}; there are {', '.join(options.known)}")
    options.parts = options.parts or list(options.known)
    if options.quick:
        options.steps, options.seeds = 4, 1
    if options.output is None:
        options.scratch = tempfile.TemporaryDirectory()  # removed when the options are
        options.output = Path(options.scratch.name)
    return options


def once(options: argparse.Namespace, name: str, make: Any) -> Row:
    """Return what `make()` returned, now or in an earlier call of the same command."""
    kept = options.output / "rows" / f"{slug(name)}.json"
    if not kept.is_file():
        row = make()
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(row, indent=1))
    return json.loads(kept.read_text())


def slug(name: str) -> str:
    """Return a name for files."""
    return "".join(c if c.isalnum() or c in "-." else "_" for c in name)


def pretrain(options: argparse.Namespace, name: str, seed: int = 0, **changes: Any) -> Row:
    """Pretrain in a process of its own; return k-NN along the run, seconds, memory in MB and the folder."""

    def make() -> Row:
        folder = options.output / "runs" / f"{slug(name)}-{seed}"
        given = {"data.root": options.data, "model.steps": options.steps, "model.seed": seed, "data.seed": seed}
        given |= {"trainer.precision": "32-true", "knn.every_steps": max(1, options.steps // 4), "knn.student": True}
        if options.knn:
            given |= {"knn.train": options.knn[0], "knn.val": options.knn[1]}
        given |= (QUICK if options.quick else {}) | changes | dict(pair.split("=", 1) for pair in options.set)
        words = [word for key, value in given.items() for word in (f"--{key}", as_word(value))]
        command = ["pretrain", "--config", options.config, "--output", str(folder), *words]
        start = time.monotonic()
        status, memory = (here if options.quick else apart)(command)
        if status:
            raise SystemExit(f"{name}: dense pretrain ended with status {status}")
        along = read(folder / "metrics.csv", "knn", "knn_student")
        return {
            "folder": str(folder), "seconds": time.monotonic() - start, "memory": memory,
            "steps": along["step"], "knn": along["knn"], "student": along["knn_student"],
        }  # fmt: skip

    return once(options, f"{name}-{seed}", make)


def apart(command: Sequence[str]) -> tuple[int, float]:
    """Run a verb in a process of its own; return its status and its largest resident memory in MB."""
    process = subprocess.Popen([sys.executable, "-m", "dense", *command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss / 1024


def here(command: Sequence[str]) -> tuple[int, float]:
    """Run a verb in this process, which spares the imports; the memory is that of the process so far."""
    from dense.cli import main

    return main(command), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def as_word(value: Any) -> str:
    """Return a value as it is typed on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def read(path: Path, *columns: str) -> dict[str, list[float]]:
    """Return columns of metrics.csv, and their steps, from the lines that have all of them."""
    with path.open() as file:
        lines = [line for line in csv.DictReader(file) if all(line.get(column) for column in columns)]
    return {"step": [float(line["step"]) for line in lines]} | {c: [float(line[c]) for line in lines] for c in columns}


def compare(options: argparse.Namespace, part: str, variants: Mapping[str, Mapping[str, Any]]) -> str:
    """Pretrain every variant with every seed; return a table of k-NN, time and memory."""
    lines = []
    for name, changes in variants.items():
        rows = [pretrain(options, f"{part} {name}", seed, **changes) for seed in range(options.seeds)]
        final, student = ([row[key][-1] for row in rows] for key in ("knn", "student"))
        seconds, memory = (statistics.median(row[key] for row in rows) for key in ("seconds", "memory"))
        lines.append((name, spread(final), spread(student), f"{seconds:.0f}", f"{memory:.0f}"))
    return table((part, "k-NN, teacher", "k-NN, student", "seconds", "memory, MB"), lines)


def short(word: str) -> str:
    """Return an argument with the last part of a path alone."""
    key, equals, value = word.rpartition("=")
    return f"{key}{equals}{Path(value).name if value.startswith('/') else value}"


def finish(options: argparse.Namespace, section: str, parts: Mapping[str, str]) -> int:
    """Print the tables, and write them with the command and the machine into the page."""
    about = machine()
    words = " ".join(short(word) for word in sys.argv[1:])
    minutes = (time.monotonic() - options.start) / 60
    said = (
        f"{options.config} on {options.data}, {options.steps} steps, {options.seeds} seeds, mean (least to most); "
        f"{about['processor']}, torch {about['torch']}, {minutes:.0f} minutes of this call."
    )
    tables = "\n\n".join(f"**{name}**\n\n{text}" for name, text in parts.items())
    print(f"{said}\n\n{tables}")
    if options.markdown is not None:
        command = f"```text\npython benchmarks/papers/{Path(sys.argv[0]).name} {words}\n```"
        write_section(options.markdown, section, f"{command}\n\n{prose(said)}\n\n{tables}")
    return 0
