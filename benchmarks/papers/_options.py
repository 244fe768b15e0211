"""Options of the experiments: what every script has, what a part alone reads, and checks before the first training."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from _study import in_one_line, recipe_of

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _measure import arguments


def parser(
    description: str | None, parts: Sequence[str], data: str = "scenes", measuring: Sequence[str] = ()
) -> argparse.ArgumentParser:
    """Return the options of all scripts; parts: the experiments of this one; measuring: those without training."""
    parser = arguments(description)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"all if left out: {', '.join(parts)}")
    parser.add_argument("--data", default=data, help="folder of images, or the embedded scenes")
    parser.add_argument("--output", type=Path, help="folder of runs and rows; a temporary one if left out")
    parser.add_argument("--markdown", type=Path, help="page; the section of each part is replaced, or added")
    parser.add_argument("--quick", action="store_true", help="few steps, one seed, tiny networks: shows that it runs")
    parser.set_defaults(known=tuple(parts), measuring=tuple(measuring), belong={}, minutes={})
    return parser


def belong(parser: argparse.ArgumentParser, parts: Sequence[str], *names: str) -> None:
    """Say that only these parts read the options of these names."""
    parser.get_default("belong").update(dict.fromkeys(names, tuple(parts)))


def training_parts(parser: argparse.ArgumentParser) -> list[str]:
    """Return the experiments that train."""
    return [part for part in parser.get_default("known") if part not in parser.get_default("measuring")]


def at_least(least: int) -> Callable[[str], int]:
    """Return the type of an option that is a whole number."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text}: expected {least} or more")
        return int(text)

    return read


def add_training(parser: argparse.ArgumentParser, config: str, steps: int, *tasks: str) -> None:
    """Add the options of trainings; tasks: names of the classes whose recipes will do, none of a pretraining."""
    parser.add_argument("--config", default=config, help="recipe that the experiments change")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="more options of every training")
    parser.add_argument("--steps", type=at_least(1), default=steps, help="optimiser steps of a training")
    parser.add_argument("--seeds", type=at_least(1), default=3)
    parser.set_defaults(tasks=tasks or ("",))
    belong(parser, training_parts(parser), "config", "set", "steps", "seeds")


def add_pretraining(parser: argparse.ArgumentParser, steps: int = 240) -> None:
    """Add the options of pretrainings, and the backbone, which the parts that measure have with weights."""
    add_training(parser, "pretrain/scenes_demo", steps)
    parser.add_argument("--knn", nargs=2, metavar=("TRAIN", "VAL"), help="labelled images for k-NN; scenes if left out")
    words = "network that is pretrained, as published; that of the recipe if left out"
    parts = parser.get_default("measuring")
    measuring = " and ".join(parts)
    parser.add_argument("--backbone", help=f"{words}. Of {measuring}: trained, scenes_tiny" if parts else words)
    if parts:
        parser.add_argument("--weights", help=f"of {measuring}: weight file, or timm to download")
        belong(parser, parts, "weights")


def add_backbone(parser: argparse.ArgumentParser, words: str) -> None:
    """Add a trained backbone and its weights."""
    parser.add_argument("--backbone", default="scenes_tiny", help=words)
    parser.add_argument("--weights", help="its weight file, or timm to download")


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options, with those of `--quick` filled in."""
    options = parser.parse_args(argv)
    if unknown := [part for part in options.parts if part not in options.known]:
        parser.error(f"no part {unknown[0]}; there are {', '.join(options.known)}")
    if wrong := [pair for pair in getattr(options, "set", ()) if "=" not in pair]:
        parser.error(f"--set {wrong[0]}: expected KEY=VALUE")
    options.named = options.parts
    options.parts = options.parts or list(options.known)
    for name, parts in options.belong.items():
        if getattr(options, name) != parser.get_default(name) and not set(parts) & set(options.parts):
            words = f"{' and '.join(parts)}, not to {' and '.join(options.parts)}"
            parser.error(f"--{name.replace('_', '-')} belongs to {words}")
    check_pages(parser, options)
    if options.output is not None and options.output.exists() and not options.output.is_dir():
        parser.error(f"--output {options.output} is a file: expected a folder")
    if "config" in options:
        check_recipe(parser, options)
    if options.quick and hasattr(options, "steps"):
        options.steps, options.seeds = 2, 1
    if options.output is None:
        options.scratch = tempfile.TemporaryDirectory()  # removed when the options are
        options.output = Path(options.scratch.name)
    return options


def check_pages(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the program where the page or the figure could not be written at the end."""
    from dense.files import check_writable

    if getattr(options, "figure", None) is not None and options.figure.suffix not in (".png", ".svg", ".pdf"):
        parser.error(f"--figure {options.figure}: expected a name that ends in .png, .svg or .pdf")
    for option in ("markdown", "figure"):
        path = getattr(options, option, None)
        if path is None:
            continue
        if path.is_dir() or not path.absolute().parent.is_dir():
            parser.error(f"--{option} {path}: expected a file in a folder that is there")
        try:
            check_writable(path.absolute().parent)
            if option == "markdown" and path.is_file():
                path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            parser.error(f"--{option} {path}: {str(error).partition(';')[0]}")


def check_recipe(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the program for a recipe of another kind."""
    with in_one_line():
        recipe = recipe_of(options)
    model = recipe.get("model") if isinstance(recipe, dict) else None
    task = model.get("class_path", "").rpartition(".")[2] if isinstance(model, dict) else None
    if task not in options.tasks:
        parser.error(f"--config {options.config}: expected a recipe such as {parser.get_default('config')}")
