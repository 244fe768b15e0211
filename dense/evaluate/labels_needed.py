"""How many annotated images are needed: mIoU of memories and trained heads against the number of images."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dense.backbone import Backbone
from dense.backbone.saved import WEIGHTS
from dense.backbone.weights.checkpoint import read_checkpoint
from dense.backbone.weights.names import directory
from dense.console import say
from dense.data.labelled.open import draw, open_training
from dense.data.levels import Reading
from dense.evaluate.dense import find_protocol, measure, working_size
from dense.evaluate.protocol import Protocol, Result
from dense.files import replacing
from dense.memory import remember
from dense.suggest import did_you_mean
from dense.training.cli import arguments_of

WIDTH = 48  # of DPT
VAL_RATIO = 0.1  # of a folder without validation images, for all methods
LAST = 10**9  # steps between validations that leave the one at the end
HEADS: dict[str, dict[str, Any]] = {  # method -> overrides of the recipe
    "linear": {"model.head.name": "linear"},
    "dpt": {
        "model.head": {
            "name": "dpt", "width": WIDTH, "resample": "bilinear", "input_norm": True, "reassemble": [WIDTH] * 4,
            "outputs": {"labels": {"name": "classes"}},
        },
    },
}  # fmt: skip
METHODS = ("memory", *HEADS)
Scores = dict[str, dict[int, list[float]]]  # method -> number of images -> mIoU of each draw


def measure_labels_needed(
    backbone: Backbone,
    name: str,
    weights: str | None,
    data: str | Path,
    output: Path,
    *,
    counts: Sequence[int] = (1, 2, 5, 10, 50),
    draws: int = 3,
    methods: Sequence[str] = METHODS,
    layout: str = "folder",
    recipe: str = "segmentation/small_data",
    resize: int = 448,
    patches: int = 100_000,
    steps: int | None = None,
    overrides: Mapping[str, Any] = {},
) -> Result:
    """Train and measure on so many images and on all, several draws each; finished runs in `output` are kept.

    The last model of a training is measured: the validation images choose nothing.

    Args:
        backbone, name, weights: the backbone, and what `dense train` calls it.
        data: labelled images with masks; those to validate on are never trained on.
        output: folder for the runs, labels_needed.png and results.json.
        counts: numbers of annotated images; all of them are added, once.
        draws: of each number, by seeds 0, 1, ...
        methods: memory, linear, dpt.
        layout: of the images.
        recipe: of the trained heads.
        resize: working size of all methods.
        patches: of the memory, at most.
        steps: of the trained heads; those of the recipe if left out.
        overrides: more options of the trained heads, by dotted name.
    """
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"method {method!r}: expected {', '.join(METHODS)}.{did_you_mean(method, METHODS)}")
    if steps is not None:
        overrides = {**overrides, "model.steps": steps}
    reading = Reading.of_spec(backbone.spec)
    train, val = open_training(data, layout=layout, val_ratio=VAL_RATIO, targets=("labels",), reading=reading)
    if draws < 1 or not counts or min(counts) < 1 or max(counts) > len(train):
        raise ValueError(
            f"counts={list(counts)}, draws={draws}: expected 1 to {len(train)} images, those there are, and a draw"
        )
    everything = sorted({*counts, len(train)})
    options = {
        "data.layout": layout, "data.resize": resize, "model.backbone.name": name, "model.backbone.weights": weights,
        "data.val_ratio": VAL_RATIO, "val_every": LAST, "patience": 0, **reading.options(), **overrides,
    }  # fmt: skip

    def memory(count: int, seed: int, folder: Path) -> dict[str, Any]:
        model = remember("knn", backbone, draw(train, count, seed), resize=resize, patches=patches, seed=seed)
        return measure(model, val, find_protocol("plain"), "segmentation").numbers

    def trained(method: str) -> Callable[[int, int, Path], dict[str, Any]]:
        def run_once(count: int, seed: int, folder: Path) -> dict[str, Any]:
            from dense.tasks.run import open_run, run

            of_run = {"data.root": data, "data.train_images": count, "data.seed": seed, "model.seed": seed}
            given = options | HEADS[method] | of_run | {"output": folder / "run"}
            if status := run(open_run(arguments_of(recipe, given))):
                raise KeyboardInterrupt(f"stopped in {folder}; the same command continues it ({status})")
            numbers = json.loads((folder / "run/results.json").read_text())["numbers"]
            return {key.removeprefix("val/"): value for key, value in numbers.items()}

        return run_once

    settings = {
        "backbone": name, "weights": weights, "data": str(data), "layout": layout, "recipe": recipe, "resize": resize,
        "patches": patches, "overrides": dict(overrides),
    }  # fmt: skip
    measures = {method: memory if method == "memory" else trained(method) for method in methods}
    scores: Scores = {method: {} for method in methods}
    for count in everything:
        for method, compute in measures.items():
            for seed in range(1 if count == len(train) else draws):
                numbers = _once(output / "runs" / f"{method}-{count}-{seed}", settings, compute, count, seed)
                scores[method].setdefault(count, []).append(float(numbers["miou"]))
                say(f"{method}, {count} images, draw {seed}: mIoU {numbers['miou']:.3f}")
    plot(scores, output / "labels_needed.png")
    protocol = Protocol(
        name="labels needed", train=f"{data} ({len(train)} images)", val=f"{data} ({len(val)} images)",
        view=working_size(resize), resolution=resize, features="of the memory and of the recipe", norm=True,
        statistics="of training (evaluation mode)", classes=len(val.classes or ()),
        settings={"recipe": recipe, "draws": draws, "patches": patches, "heads": HEADS, **overrides},
    )  # fmt: skip
    numbers = {f"{m}, {n} images": statistics.mean(found) for m, row in scores.items() for n, found in row.items()}
    spread = {m: {str(n): found for n, found in row.items()} for m, row in scores.items()}
    return Result(protocol, numbers | {"draws": spread}, backbone.spec, table=table(scores))


def kept_backbone(backbone: Backbone, folder: Path) -> str:
    """Save a backbone for the trained heads, and return its directory; raise if it holds another one."""
    if directory(folder) is None:
        backbone.save_pretrained(folder)
    held, own = read_checkpoint(folder / WEIGHTS), backbone.tensors()
    if held.keys() != own.keys() or not all(torch.equal(held[name], own[name].cpu()) for name in own):
        raise ValueError(f"{folder} holds another backbone, whose runs are kept there; choose another output")
    return str(folder)


def _once(
    folder: Path,
    settings: dict[str, Any],
    compute: Callable[[int, int, Path], dict[str, Any]],
    count: int,
    seed: int,
) -> dict[str, Any]:
    """Return the numbers of a finished run of the same settings, or compute and keep them."""
    kept = folder / "numbers.json"
    if kept.is_file():
        found = json.loads(kept.read_text())
        before = found.get("settings", {})  # a former version kept none
        if changed := [key for key, value in settings.items() if before.get(key) != value]:
            raise ValueError(
                f"{folder} holds a run with another {changed[0]}, {before.get(changed[0])}; choose another --output"
            )
        return found["numbers"]
    folder.mkdir(parents=True, exist_ok=True)
    numbers = compute(count, seed, folder)
    with replacing(kept) as file:
        file.write_text(json.dumps({"settings": settings, "numbers": numbers}, indent=1) + "\n")
    return numbers


def table(scores: Scores) -> str:
    """Return the mean (least to most) of each method and number of images."""
    counts = sorted({count for row in scores.values() for count in row})
    lines = [f"{'images':>8}" + "".join(f"{method:>26}" for method in scores)]
    for count in counts:
        cells = [scores[method].get(count, []) for method in scores]
        words = [f"{statistics.mean(c):.3f} ({min(c):.3f} to {max(c):.3f})" if c else "-" for c in cells]
        lines.append(f"{count:>8}" + "".join(f"{word:>26}" for word in words))
    return "\n".join(lines)


def plot(scores: Scores, path: Path) -> None:
    """Draw the mean of each method against the number of images, with the range over draws."""
    from matplotlib.figure import Figure

    figure = Figure((6, 4), layout="constrained")
    axes = figure.subplots()
    for method, row in scores.items():
        counts = sorted(row)
        axes.plot(counts, [statistics.mean(row[n]) for n in counts], marker="o", label=method)
        axes.fill_between(counts, [min(row[n]) for n in counts], [max(row[n]) for n in counts], alpha=0.2)
    ticks = sorted({n for row in scores.values() for n in row})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.minorticks_off()
    axes.set(xlabel="annotated images", ylabel="mIoU of validation images", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as file:
        figure.savefig(file, dpi=110, format="png")
