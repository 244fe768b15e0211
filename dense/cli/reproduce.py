"""`dense reproduce`: published numbers, listed, or one of them measured here and printed beside the published one."""

from __future__ import annotations

import json
import shlex
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from dense.cli.parser import Parser, usable_device
from dense.console import hint
from dense.files import write
from dense.suggest import UsageError

EXAMPLES = (
    ("dense reproduce", "all rows"),
    (
        "dense reproduce knn/imagenet/dinov2_vits14 --data IMAGENET --weights FILE --output runs/knn_v2",
        "one of them, measured here",
    ),
)


def parser(**options: bool) -> Parser:
    words = "List published numbers, or measure one of them here, given the data and the published weights."
    parser = Parser("dense reproduce", words, EXAMPLES, **options)
    parser.add_argument("row", nargs="?", help="MEASURE/DATA/BACKBONE; without it all rows are listed")
    parser.add_argument("--data", type=Path, help="folder of the data")
    parser.add_argument("--weights", help="published weights: a file, a directory, or timm to download them")
    parser.add_argument("--output", type=Path, help="folder to write to; the same command continues what is there")
    parser.add_argument("--device", help="of measurements; the accelerator that is there if left out")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of the training, such as data.batch_size=8"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    of_verb = parser()
    options = of_verb.parse_args(argv)
    if options.row is None:
        print(listing())
        hint("dense reproduce ROW --data FOLDER --weights FILE --output FOLDER", "what one needs is said first")
        return 0
    if wrong := [pair for pair in options.set if "=" not in pair]:
        of_verb.error(f"--set {wrong[0]}: expected KEY=VALUE, such as data.batch_size=8")
    return reproduce(options)


def listing() -> str:
    """Return all rows, a line per measure and data."""
    from dense.evaluate.published import rows

    groups: dict[str, list[str]] = {}
    for row in rows().values():
        groups.setdefault(f"{row.measure}/{row.data}", []).append(f"{row.backbone} {row.published}")
    width = max(map(len, groups))
    return "\n".join(f"{group:<{width}}  {', '.join(inside)}" for group, inside in groups.items())


def reproduce(options: Namespace) -> int:
    """Run the commands of a row and print its number beside the published one."""
    from dense.cli import run
    from dense.evaluate.published import find_row
    from dense.model.card import as_json, versions

    row = find_row(options.row)
    if fixed := [pair for pair in options.set if pair.partition("=")[0] in ("data.root", "output")]:
        raise UsageError(f"--set {fixed[0]}: give --data and --output")
    if options.weights and not row.has_weights:
        raise UsageError(f"--weights {options.weights}: {row.name} measures random initialisation; leave it out")
    if options.device:
        usable_device(options.device)
    before = Path(options.output or "", "reproduced.json")
    if options.set and not any(command[0] == "train" for command in row.commands):
        raise UsageError("--set changes a training, and this row has none")
    if options.output and before.is_file() and (other := row_of(before)) != row.name:
        raise UsageError(f"{options.output} holds the results of {other}; choose another --output")
    lacks = row.missing(options.data, options.weights)
    if options.output is None:
        lacks.append("--output FOLDER, for the results")
    if lacks:
        print(f"{row.name} ({row.protocol}): {row.published}, {row.source}")
        for words in row.filled(data="DATA", weights="WEIGHTS", output="OUTPUT"):
            print(f"  dense {shlex.join(words)}")
        raise FileNotFoundError(f"{row.name} needs {len(lacks)} more:\n  " + "\n  ".join(lacks))
    places = {"data": str(options.data), "weights": str(options.weights), "output": str(options.output)}
    start = time.monotonic()
    commands = [with_options(words, options) for words in row.filled(**places)]
    for words in commands:
        print(f"dense {shlex.join(words)}", flush=True)
        if status := run(words[0], words[1:]):
            return status
    result = json.loads((options.output / "result" / "results.json").read_text())
    found, on = result["numbers"], result["protocol"]["val"]
    for name in row.key:
        found = found[name]
    here = float(found) * row.factor
    other = row.other_size(on)
    within = abs(here - row.value) <= row.tolerance and not other
    facts = {
        "row": row.name, "published": row.value, "here": here, "tolerance": row.tolerance, "within": within,
        "fitted on": result["protocol"]["train"], "measured on": on, "other images": other,
        "protocol": row.protocol, "changed": options.set, "source": row.source, "commands": commands,
        "minutes": round((time.monotonic() - start) / 60, 1), "versions": versions(),
    }  # fmt: skip
    place = write(options.output / "reproduced.json", as_json(facts))
    print(f"{row.name} ({row.protocol}), measured on {on}")
    if options.set:
        print(f"  changed    {', '.join(options.set)}")
    print(f"  published  {row.published}   {row.source}")
    judged = other or f"{'within' if within else 'outside'} {row.tolerance:.3g}"
    print(f"  here       {row.like_published(here)}   {judged}")
    print(f"wrote {place}")
    return 0


def row_of(path: Path) -> str:
    """Return the row whose results a file holds."""
    try:
        return str(json.loads(path.read_text())["row"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is not a result of dense reproduce; remove it, or choose another --output") from None


def with_options(words: list[str], options: Namespace) -> list[str]:
    """Return a command with the options of the caller that concern it."""
    if words[0] == "train":
        return words + [word for pair in options.set for word in (f"--{pair.split('=', 1)[0]}", pair.split("=", 1)[1])]
    return [*words, "--device", options.device or accelerator()]


def accelerator() -> str:
    """Return the accelerator of this machine, cpu without one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() else "cpu"
