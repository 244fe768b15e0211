"""Section: a minute of DINO pretraining on embedded scenes, with its loss, entropies and k-NN accuracy."""

from __future__ import annotations

import json
import math
from pathlib import Path

from dense.data.scenes import CLASSES
from dense.demo.report import Command, Section, Table, chart, section
from dense.training.curves import read_metrics

CONFIG = "pretrain/scenes_demo"
ENTROPIES = {"mean target": "health/marginal_entropy", "single target": "health/teacher_entropy"}


def pretraining(folder: Path, steps: int | None, seed: int) -> Section:
    """Pretrain in FOLDER/pretraining. steps: None uses those of the recipe."""
    with section("Pretraining") as part:
        changes = ["--model.seed", str(seed), *(["--model.steps", str(steps)] if steps else [])]
        part.run(["pretrain", "--config", CONFIG, "--output", str(folder / "pretraining"), *changes])
        curves = read_metrics(folder / "pretraining/metrics.csv")
        facts = json.loads((folder / "pretraining/facts.json").read_text())
        prototypes = facts["recipe"]["head"]["out_dim"]
        entropies = {words: curves[name] for words, name in ENTROPIES.items() if name in curves}
        part.charts = [
            chart("loss", {"loss": curves["loss"]}),
            chart("entropy of targets", entropies, {f"log K, K = {prototypes}": math.log(prototypes)}),
            chart("k-NN accuracy, class token", {"k-NN": curves["knn"]}, {"chance": 1 / (len(CLASSES) - 2)}),
            chart("effective rank of features", {"rank": curves.get("health/effective_rank", ([], []))}),
        ]
        part.about_charts = (
            "A falling loss alone does not rule out collapse. The entropy of the mean target stays near log K if all "
            "prototypes are used. The entropy of a single target first rises towards log K; in a long run it falls "
            "after some hundred steps, and the loss with it. A minute of training hardly moves k-NN accuracy from "
            "chance; the backbone of the pictures above was trained far longer."
        )
        rows = [
            ("recipe", f"{CONFIG}, seed {seed}"),
            ("scenes", f"{facts['number of images']} of 64 px"),
            ("steps", f"{facts['optimiser steps']} of {facts['batch size']} scenes"),
            ("last loss", f"{curves['loss'][1][-1]:.3f} (log K is {math.log(prototypes):.3f})"),
            ("20-NN accuracy, 12 classes", f"{curves['knn'][1][-1]:.3f} (300 training, 200 validation scenes)"),
        ]
        words = "One minute of DINO. The backbone is saved in the folder pretraining/backbone."
        part.tables = [Table("Pretraining", ("name", "value"), rows, words)]
        line = f"dense pretrain --config pretrain/small_data --data.root IMAGES --output {folder}/mine"
        part.own = [Command("Pretrain on your own unlabelled images:", line)]
    return part
