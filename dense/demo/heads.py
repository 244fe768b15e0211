"""Part two: heads on the frozen backbone and on the same network with random initialisation, trained from cached features."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dense.backbone import Backbone
from dense.data.scenes import CLASSES, Scenes
from dense.demo.looking import framed
from dense.demo.report import Command, Gallery, Part, Table, chart
from dense.demo.verbs import run, timed
from dense.media.draw import Picture, depth_picture, label_picture
from dense.predict import Predictor
from dense.predict.predictions import parts
from dense.training.curves import read_metrics

HEADS = {"depth": "depth/scenes_dpt", "segmentation": "segmentation/scenes_dpt", "joint": "joint/scenes_dpt"}
NUMBERS = {"abs_rel": "abs_rel", "delta1": "delta1", "miou": "mIoU", "aacc": "pixel accuracy"}
SIZE = 96  # pixels of the scenes that heads are trained on


@dataclass(frozen=True)
class Plan:
    """How much of it."""

    folder: Path
    steps: int
    scenes: tuple[int, int]
    shown: int
    seed: int


def train_heads(plan: Plan, backbone: Backbone, source: str) -> Part:
    """Depth, segmentation and both at once, each beside random initialisation; linear probes; predictions on held-out scenes.

    source: the name or directory that the commands call the backbone by.
    """
    with timed("Heads") as part:
        random = plan.folder / "random"
        torch.manual_seed(plan.seed)
        Backbone.from_spec(backbone.spec).save_pretrained(random)
        sources = {"pretrained": source, "random initialisation": str(random)}
        runs = {(task, kind): train(part, plan, task, kind, name) for task in HEADS for kind, name in sources.items()}
        part.galleries = predictions(plan, runs)
        part.charts = curves(runs)
        part.about_charts = (
            "Validation while heads train on features of the frozen backbone, computed once. The same heads on the same "
            "network with random initialisation say what pretraining is worth."
        )
        part.tables = [numbers(plan, runs), probes(part, plan, source)]
        part.own = [
            Command("Train a head on your labelled images (MINE/images with MINE/depth or MINE/masks):", f"dense train --config depth/dpt_dinov2 --data.layout folder --data.root MINE --output {plan.folder}/mine_depth"),
            Command("Measure it, and use it:", f"dense evaluate depth {plan.folder}/mine_depth/model --data MINE\ndense predict {plan.folder}/mine_depth/model PHOTOS --output predictions"),
        ]  # fmt: skip
    return part


def train(part: Part, plan: Plan, task: str, kind: str, source: str) -> Path:
    """One head; the folder of its run."""
    folder = plan.folder / f"{task}_{kind.split()[0]}"
    every = max(1, plan.steps // 2)  # the best of models that were trained: earlier ones win by luck
    run(part, [
        "train", "--config", HEADS[task], "--output", str(folder), "--model.backbone.name", source,
        "--model.steps", str(plan.steps), "--model.seed", str(plan.seed), "--val_every", str(every),
        f"--data.scenes=[{plan.scenes[0]},{plan.scenes[1]}]", "--data.augment.flip", "0",
        "--model.head.width", "32", "--data.cache", str(plan.folder / "cache"),
    ])  # fmt: skip
    return folder


def predictions(plan: Plan, runs: Mapping[tuple[str, str], Path]) -> list[Gallery]:
    """Scenes of the test split with the ground truth and what the heads of both backbones say."""
    predictors = {key: Predictor.open(folder / "model") for key, folder in runs.items()}
    scenes = Scenes("test", plan.shown, SIZE, seed=plan.seed)
    depths, classes = [], []
    for scene in (scenes[i] for i in range(plan.shown)):
        near, far = np.quantile(scene.depth[np.isfinite(scene.depth)], (0.01, 0.99))
        bounds = (float(near), float(far))
        depth: dict[str, Picture] = {"scene": scene.image, "true depth": coloured(scene.depth, bounds)}
        label: dict[str, Picture] = {"scene": scene.image, "true classes": label_picture(scene.semantic, len(CLASSES))}
        for (task, kind), predictor in predictors.items():
            found, labelled = parts(predictor(scene.image))
            words = f"{kind}, joint" if task == "joint" else kind
            if found is not None:
                depth[words] = coloured(found.values, bounds)
            if labelled is not None:
                label[words] = labelled.picture()
        depths.append({name: framed(image) for name, image in depth.items()})
        classes.append({name: framed(image) for name, image in label.items()})
    how = f"DPT heads after {plan.steps} steps on {plan.scenes[0]} labelled scenes, on scenes that nothing was trained on."
    return [
        Gallery(
            "Depth",
            f"{how} Near is bright, by the logarithm. Joint heads prediction both questions with one decoder.",
            depths,
        ),
        Gallery("Classes", f"{how} Each colour is one of {len(CLASSES)} classes, the same everywhere.", classes),
    ]


def coloured(depth: NDArray[np.float32], bounds: tuple[float, float]) -> Picture:
    """Depth by its logarithm, for most of a scene is near; the sky far away."""
    near, far = bounds
    return depth_picture(np.log(np.clip(depth, near, far)), (np.log(near), np.log(far)))


def curves(runs: Mapping[tuple[str, str], Path]) -> list[str]:
    """One chart a number and task."""
    charts = []
    for task in HEADS:
        found = {kind: read_metrics(path / "metrics.csv") for (what, kind), path in runs.items() if what == task}
        for name, better in (("abs_rel", "lower is better"), ("miou", "higher is better")):
            lines = {kind: value for kind, curve in found.items() if (value := named(curve, name)) is not None}
            if lines:
                charts.append(chart(f"{task}: {NUMBERS[name]}, {better}", lines))
    return charts


def named(found: Mapping[str, Any], name: str) -> Any:
    """A validation number under the name of one task, or of joint ones."""
    return next(
        (found[key] for key in (f"val/{name}", f"val/depth_{name}", f"val/labels_{name}") if key in found), None
    )


def numbers(plan: Plan, runs: Mapping[tuple[str, str], Path]) -> Table:
    """The best validation of every run."""
    rows = []
    for (task, kind), folder in runs.items():
        found: dict[str, Any] = json.loads((folder / "results.json").read_text())["numbers"]
        values = [named(found, name) for name in NUMBERS]
        rows.append((task, kind, *("" if value is None else f"{value:.3f}" for value in values)))
    return Table(
        "Heads on the frozen backbone",
        ("DPT for", "backbone", *NUMBERS.values()),
        rows,
        f"{plan.steps} steps of 16, {plan.scenes[0]} scenes to train on, {plan.scenes[1]} to validate on, {SIZE} px, "
        f"depth from 0.1 to 60 m, one seed ({plan.seed}); the best of four validations.",
    )


def probes(part: Part, plan: Plan, source: str) -> Table:
    """Linear probes of patches."""
    output = plan.folder / "probe"
    run(part, [
        "evaluate", "probe", "--backbone", source, "--baselines", "--train-scenes", str(2 * plan.scenes[0]), "--val-scenes",
        str(2 * plan.scenes[1]), "--seed", str(plan.seed), "--output", str(output),
    ])  # fmt: skip
    found = json.loads((output / "results.json").read_text())["numbers"]
    names = {
        "segmentation_miou": "linear mIoU",
        "depth_abs_rel": "ridge abs_rel",
        "knn_object": "20-NN, object's patches",
    }
    rows = [
        (words, *(f"{found[prefix + name]:.3f}" for name in names))
        for words, prefix in (("pretrained", ""), ("random initialisation", "random/"), ("raw pixels", "pixels/"))
    ]
    return Table(
        "Linear probes of its patches",
        ("features", *names.values()),
        rows,
        f"One linear map a patch: {2 * plan.scenes[0]} scenes to learn from, {2 * plan.scenes[1]} to judge by, {SIZE} px, seed "
        f"{plan.seed}. abs_rel: lower is better; chance of the 20-NN is {1 / (len(CLASSES) - 2):.3f}.",
    )
