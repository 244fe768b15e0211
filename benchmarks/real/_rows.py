"""Rows of a table that are trained once, kept as JSON, and printed beside published numbers."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from _measure import arguments, write_section

Row = dict[str, Any]


def parser(description: str | None, rows: Mapping[str, Any]) -> argparse.ArgumentParser:
    """Return the options that the scripts share."""
    parser = arguments(description)
    parser.add_argument("data", type=Path, help="folder of the labelled images, with train/ and val/")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"all if left out: {', '.join(rows)}")
    parser.add_argument("--backbone", default="dinov2_vits14", help="name of the frozen backbone")
    parser.add_argument("--weights", required=True, help="its weight file, or timm to download")
    parser.add_argument("--output", type=Path, required=True, help="folder for runs and rows; finished rows are kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", type=Path, help="page whose section is replaced")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="more options of every training")
    return parser


def train(options: argparse.Namespace, name: str, recipe: str, data: Path | None = None, **overrides: Any) -> Row:
    """Train a recipe, or return the row of an earlier call: metrics of the validation images and minutes."""
    kept = options.output / "rows" / f"{name}.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    import dense

    extra = dict(pair.split("=", 1) for pair in options.set)
    start = time.monotonic()
    dense.train(
        recipe,
        data=data or options.data,
        output=options.output / name,
        backbone=options.backbone,
        weights=options.weights,
        **{"model.seed": options.seed, "data.seed": options.seed, "trainer.accelerator": "auto"} | overrides | extra,
    )
    results = json.loads((options.output / name / "results.json").read_text())
    row = {"minutes": (time.monotonic() - start) / 60, "facts": results["facts"]} | results["numbers"]
    return keep(kept, row)


def keep(path: Path, row: Row) -> Row:
    """Write a row and return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(row, indent=1, default=str) + "\n")
    return row


def once(options: argparse.Namespace, name: str, compute: Callable[[], Row]) -> Row:
    """Compute a row, or return it from its file; its minutes are added."""
    kept = options.output / "rows" / f"{name}.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    start = time.monotonic()
    row = compute()
    return keep(kept, {"minutes": (time.monotonic() - start) / 60} | row)


def subset(options: argparse.Namespace, count: int, draw: int) -> Path:
    """Return a folder with `count` random training images and all validation images, as hard links or copies."""
    folder = options.output / "subsets" / f"{count}-{draw}"
    if folder.is_dir():
        return folder
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    images = sorted((options.data / "train/images").iterdir())
    chosen = {p.stem for p in np.random.default_rng(draw).choice(np.array(images), count, replace=False)}
    for file in options.data.rglob("*"):
        inside = file.relative_to(options.data)
        if file.is_file() and (inside.parts[0] != "train" or file.stem in chosen):
            (partial / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, partial / inside)
    partial.rename(folder)
    return folder


def finish(options: argparse.Namespace, section: str, text: str) -> int:
    """Print the table and write it to the page that was named."""
    print(f"\n{text}\n")
    if options.markdown:
        write_section(options.markdown, section, text)
    return 0
