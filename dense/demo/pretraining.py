"""Part one: a minute of DINO on embedded scenes, watching its loss, its entropy and k-NN."""

from __future__ import annotations

import json
import math
from pathlib import Path

from dense.data.scenes import CLASSES
from dense.demo.report import Command, Part, Table, chart
from dense.demo.verbs import run, timed
from dense.training.curves import read_metrics

CONFIG = "pretrain/scenes_demo"


def pretraining(folder: Path, steps: int | None, seed: int) -> Part:
    """Pretrain in FOLDER/pretraining; the recipe's own number of steps if `steps` is None."""
    with timed("Pretraining") as part:
        changes = ["--model.seed", str(seed), *(["--model.steps", str(steps)] if steps else [])]
        run(part, ["pretrain", "--config", CONFIG, "--output", str(folder / "pretraining"), *changes])
        curves = read_metrics(folder / "pretraining/metrics.csv")
        facts = json.loads((folder / "pretraining/facts.json").read_text())
        prototypes = facts["recipe"]["head"]["out_dim"]
        full = {f"log K, K = {prototypes}": math.log(prototypes)}
        part.charts = [
            chart("loss", {"loss": curves["loss"]}),
            chart("entropy of targets", entropies(curves), full),
            chart("k-NN accuracy, class token", {"k-NN": curves["knn"]}, {"chance": 1 / (len(CLASSES) - 2)}),
            chart("effective rank of features", {"rank": curves.get("health/effective_rank", ([], []))}),
        ]
        part.about_charts = (
            "A falling loss proves nothing by itself. The entropy of the mean target stays near log K: all prototypes are in "
            "use. That of a single target first rises towards it, and in a long run falls after some hundred steps, and the "
            "loss with it. A minute shows the beginning, and hardly moves k-NN from chance; the images above come from the "
            "backbone that ships, an hour of the same."
        )
        part.tables = [
            Table(
                "Pretraining",
                ("what", "value"),
                [
                    ("recipe", f"{CONFIG}, seed {seed}"),
                    ("scenes", f"{facts['number of pictures']} of 64 px"),
                    ("steps", f"{facts['optimiser steps']} of {facts['batch size']} scenes"),
                    ("last loss", f"{curves['loss'][1][-1]:.3f} (log K is {math.log(prototypes):.3f})"),
                    ("20-NN of 12 classes", f"{curves['knn'][1][-1]:.3f} (300 scenes vote on 200)"),
                ],
                "What DINO learns in a minute. Its backbone is in the folder pretraining/backbone.",
            )
        ]
        part.own = [
            Command(
                "Pretrain on your own unlabelled images:",
                f"dense pretrain --config pretrain/small_data --data.root IMAGES --output {folder}/mine",
            ),
        ]
    return part


def entropies(curves: dict[str, tuple[list[float], list[float]]]) -> dict[str, tuple[list[float], list[float]]]:
    """Of the mean target and of a single one."""
    names = {"mean target": "health/marginal_entropy", "one target": "health/teacher_entropy"}
    return {words: curves[name] for words, name in names.items() if name in curves}
