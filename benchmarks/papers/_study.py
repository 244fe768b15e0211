"""Trainings that differ in one thing: run once each, kept as JSON, gathered into a table over seeds, and published."""

from __future__ import annotations

import argparse
import csv
import inspect
import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _all import machine
from _measure import once, prose, read_row, slug, spread, table, write_section

Row = dict[str, Any]
QUICK: dict[str, Any] = {  # a network and data for which a run takes seconds
    "data.scenes": 48, "data.scene_size": 32, "data.batch_size": 4, "data.workers": 0, "knn.scenes": [10, 5],
    "knn.scene_size": 32, "model.head.out_dim": 32, "model.head.hidden_dim": 32,
}  # fmt: skip


class Made(NamedTuple):
    """A table, what it was made with in words, the backbone that was measured if any, and what draws a figure."""

    table: str
    said: str
    backbone: str = ""
    draw: Callable[[], None] | None = None


def refuse_set(options: argparse.Namespace, *variants: Mapping[str, Any]) -> None:
    """End the program where --set names an option that an experiment varies."""
    varied = {key for changes in variants for key in changes}
    for key in (pair.split("=", 1)[0] for pair in options.set):
        if wrong := [other for other in varied if f"{key}.".startswith(f"{other}.") or other.startswith(f"{key}.")]:
            raise SystemExit(f"--set {key}: this experiment varies {min(wrong)}; leave it out")


def pretrain(options: argparse.Namespace, name: str, seed: int = 0, **changes: Any) -> Row:
    """Pretrain in a process of its own; return k-NN along the run, seconds, memory in MB and the folder.

    memory: of the host, as seen from its first process; accelerator: of the first GPU, None without one.
    """
    refuse_set(options, changes)
    steps = changes.get("model.steps", options.steps)
    given = {"data.root": options.data, "model.steps": steps, "model.seed": seed, "data.seed": seed}
    given |= {"trainer.precision": "32-true", "knn.every_steps": max(1, steps // 4), "knn.student": True}
    if options.knn:
        given |= {"knn.train": options.knn[0], "knn.val": options.knn[1]}
    if options.backbone:
        given |= {"model.backbone.name": options.backbone, "model.backbone.arguments": {}}
    given |= (QUICK if options.quick else {}) | changes | dict(pair.split("=", 1) for pair in options.set)
    if "knn.train" not in given and not recipe_of(options).get("knn", {}).get("train"):
        raise SystemExit(f"{options.config} names no labelled images for k-NN: add --knn TRAIN VAL")

    def make() -> Row:
        folder = options.output / "runs" / f"{slug(name)}-{seed}"
        words = [word for key, value in given.items() for word in (f"--{key}", as_word(value))]
        command = ["pretrain", "--config", options.config, "--output", str(folder), *words]
        start, continues = time.monotonic(), (folder / "checkpoints").is_dir()
        status, memory = (here if options.quick else apart)(command)
        if status:
            raise SystemExit(f"{name}: dense pretrain ended with status {status}")
        along = read(folder / "metrics.csv", "knn", "knn_student")
        facts = json.loads((folder / "facts.json").read_text())
        return {
            "folder": str(folder), "seconds": None if continues else time.monotonic() - start, "memory": memory,
            "accelerator": facts.get("accelerator memory of this session, MB"),
            "steps": along["step"], "knn": along["knn"], "student": along["knn_student"],
        }  # fmt: skip

    used = given | {"config": options.config}
    return same(options, used) or once(options, f"{name}-{seed}", make, used)


def trained(options: argparse.Namespace, name: str, seed: int, given: Mapping[str, Any]) -> Row:
    """Train a head with these options; return the numbers of its validation, and seconds unless it was continued."""
    chosen = {"data": options.data, "backbone": options.backbone}
    chosen |= {"weights": options.weights} if options.weights else {}

    def make() -> Row:
        import dense

        folder = options.output / "runs" / f"{slug(name)}-{seed}"
        start, continues = time.monotonic(), (folder / "checkpoints").is_dir()
        dense.train(options.config, output=folder, **chosen, **given)
        numbers = json.loads((folder / "results.json").read_text())["numbers"]
        return {"numbers": numbers, "seconds": None if continues else time.monotonic() - start}

    return once(options, f"{name}-{seed}", make, {**given, **chosen, "config": options.config})


def seconds_of(rows: Sequence[Row], middle: Callable[[list[float]], float] = statistics.mean) -> str:
    """Return the seconds of a run, of those that were not continued, as text: their mean, or another middle."""
    found = [row["seconds"] for row in rows if row["seconds"] is not None]
    return f"{middle(found):.0f}" if found else ""


def same(options: argparse.Namespace, used: Row) -> Row | None:
    """Return the row of a run with the same settings: experiments share runs, such as that of the recipe itself."""
    recipe = recipe_of(options)

    def changed(settings: Row) -> Row:
        words = {key: as_word(value) for key, value in settings.items()}
        return {key: word for key, word in words.items() if word != as_word(usual(recipe, key))}

    for kept in sorted((options.output / "rows").glob("*.json")):
        row = read_row(kept)
        if "knn" in row and changed(row["used"]) == changed(used):
            options.minutes[kept.stem] = row["minutes"]
            return row
    return None


def usual(recipe: Row, key: str) -> Any:
    """Return the value of an option in a recipe, or its default."""
    from pretrain.recipe import Recipe

    value: Any = recipe
    for name in key.split("."):
        if not isinstance(value, dict) or name not in value:
            break
        value = value[name]
    else:
        return value
    first, *others = key.removeprefix("model.").split(".")
    value = getattr(inspect.signature(Recipe).parameters.get(first), "default", None)
    for name in others:
        value = getattr(value, name, None)
    return value


def recipe_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the recipe that the experiments change."""
    import yaml

    from dense.recipes import find_config

    try:
        return yaml.safe_load(find_config(options.config).read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{options.config} is not valid YAML: {' '.join(str(error).split())}") from None


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


def pretrained(options: argparse.Namespace, seeds: int | None = None) -> str:
    """Return in words what was pretrained."""
    return f"{short(options.backbone or 'the network')} of {options.config} on {trained_on(options, seeds)}"


def trained_on(options: argparse.Namespace, seeds: int | None = None) -> str:
    """Return in words images, steps and seeds of a training, and what else was set."""
    more = f", {', '.join(map(short, options.set))}" if options.set else ""
    count = seeds or options.seeds
    words = "seed 0" if count == 1 else f"{count} seeds, mean (least to most)"
    return f"{short(options.data)}, {options.steps} steps, {words}{more}"


def trained_backbone(options: argparse.Namespace) -> argparse.Namespace:
    """Return the options with a trained backbone, scenes_tiny if none is named."""
    name = options.backbone or "scenes_tiny"
    need_weights(name, options.weights, f"--backbone {name}", "add --weights FILE, or timm to download them")
    return argparse.Namespace(**vars(options) | {"backbone": name})


def need_weights(name: str, weights: str | None, given: str, advice: str = "write NAME=FILE") -> None:
    """End the program where a backbone would be measured at its random initialisation."""
    from dense.backbone.weights.names import directory

    if weights is None and directory(name) is None and not Path(name).is_dir():
        raise SystemExit(f"{given} has no weights here: {advice}")


def device() -> str:
    """Return where trained backbones are measured: the accelerator of this machine, cpu without one."""
    from dense.cli.reproduce import accelerator

    return accelerator()


def with_weights(options: argparse.Namespace) -> str:
    """Return a trained backbone in words."""
    return f"{short(options.backbone)} with {short(options.weights) if options.weights else 'its own weights'}"


def compare(
    options: argparse.Namespace, part: str, variants: Mapping[str, Mapping[str, Any]], cost: bool = False
) -> Made:
    """Pretrain every variant with every seed; return a table of k-NN, and of whole runs' time and memory if asked."""
    refuse_set(options, *variants.values())  # before the first of them is trained
    lines, where = [], "memory"
    for name, changes in variants.items():
        rows = [pretrain(options, f"{part} {name}", seed, **changes) for seed in range(options.seeds)]
        final, student = ([row[key][-1] for row in rows] for key in ("knn", "student"))
        where = "accelerator" if rows[0].get("accelerator") else "memory"
        memory = statistics.median(row[where] for row in rows)
        cells = (seconds_of(rows, statistics.median), f"{memory:.0f}")
        lines.append((name, spread(final), spread(student), *cells[: 2 * cost]))
    title = "accelerator memory, MB" if where == "accelerator" else "host memory, MB"
    header = (part, "k-NN, teacher", "k-NN, student", *("seconds", title)[: 2 * cost])
    return Made(table(header, lines), pretrained(options))


def short(word: str) -> str:
    """Return an argument with the last part of a path alone."""
    key, equals, value = word.rpartition("=")
    return f"{key}{equals}{Path(value).name if value.startswith('/') else value}"


def run(options: argparse.Namespace, section: str, parts: Mapping[str, Callable[[argparse.Namespace], Made]]) -> int:
    """Make the chosen tables one after the other, and publish each when it is done."""
    for part in options.parts:
        with in_one_line():
            publish(options, section, part, parts[part](options))
    return 0


@contextmanager
def in_one_line() -> Iterator[None]:
    """End the program with the message of an error that is written for users, as the verbs do."""
    from dense.cli import in_words
    from dense.suggest import UsageError

    try:
        yield
    except (ValueError, OSError, ImportError, UsageError) as error:
        raise SystemExit(f"error: {in_words(error)}") from None
    except KeyboardInterrupt:
        raise SystemExit("interrupted; the same command with its --output continues") from None


def publish(options: argparse.Namespace, section: str, part: str, made: Made) -> None:
    """Print a table, and write it with its command, the machine and the time of its rows into a section of the page."""
    from dense.model.card import versions

    about, minutes = machine(), sum(options.minutes.values())
    options.minutes.clear()
    took = f"{minutes:.0f} minute{'s' * (minutes >= 1.5)}" if minutes >= 0.5 else "less than a minute"
    where = [about["processor"]] + [about["accelerator"]] * (about["accelerator"] != "none")
    packages = [f"{name} {version}" for name, version in versions().items() if name in ("dino-dense", "torch", "timm")]
    said = f"{made.said}; {', '.join((*where, *packages, took))}."
    print(f"**{part}**\n\n{said}\n\n{made.table}\n", flush=True)
    if options.markdown is not None:
        words = list(sys.argv[1:])
        for named in options.named:
            places = [place for place, word in enumerate(words) if word == named]
            values = [place for place in places if ("", *words)[place].startswith("--")]  # as in --output NAME
            words.pop(next((place for place in places if place not in values), places[0]))
        words = shlex.join([part, *map(short, words)])
        command = f"```text\npython benchmarks/papers/{Path(sys.argv[0]).name} {words}\n```"
        name = "/".join(word for word in (section, part, short(made.backbone)) if word)
        text = f"**{part}**\n\n{command}\n\n{prose(said)}\n\n{made.table}"
        write_section(options.markdown, name, text, inside=section)
    if made.draw is not None:
        made.draw()
