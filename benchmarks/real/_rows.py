"""Rows of a table that are trained once, kept as JSON, and printed beside published numbers."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from _measure import arguments, once, write_section

Row = dict[str, Any]


def parser(description: str | None, rows: Mapping[str, Any]) -> argparse.ArgumentParser:
    """Return the options that the scripts share."""
    parser = arguments(description)
    parser.add_argument("data", type=Path, help="folder of the labelled images, with train/ and val/")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"all if left out: {', '.join(rows)}")
    parser.add_argument("--backbone", default="dinov2_vits14", help="name of the frozen backbone")
    parser.add_argument(
        "--weights", required=True, type=lambda given: None if given == "none" else given,
        help="its weight file, timm to download, or none for a backbone of the package",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, help="folder for runs and rows; finished rows are kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", type=Path, help="page whose section is replaced")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="more options of every training")
    return parser


def train(options: argparse.Namespace, name: str, recipe: str, **overrides: Any) -> Row:
    """Train a recipe, or return the row of an earlier call: metrics of the validation images and minutes."""
    given: Row = {"data": options.data, "backbone": options.backbone, "weights": options.weights}
    given |= {"model.seed": options.seed, "data.seed": options.seed, "trainer.accelerator": "auto"}
    given |= overrides | dict(pair.split("=", 1) for pair in options.set)

    def make() -> Row:
        import dense

        dense.train(recipe, output=options.output / name, **given)
        results = json.loads((options.output / name / "results.json").read_text())
        return {"facts": results["facts"], "constant": results.get("constant")} | results["numbers"]

    return once(options, name, make, given | {"recipe": recipe})


def finish(options: argparse.Namespace, section: str, text: str) -> int:
    """Print the table and write it to the page that was named."""
    print(f"\n{text}\n")
    if options.markdown:
        write_section(options.markdown, section, text)
    return 0
