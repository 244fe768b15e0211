"""Section: heads on the frozen backbone and on the same network with random initialisation."""

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
from dense.demo.report import Command, Gallery, Section, Table, chart, section, thumbnail
from dense.media.draw import Picture, depth_picture, label_picture
from dense.predict import Predictor
from dense.predict.predictions import parts
from dense.training.curves import read_metrics

CONFIGS = {"depth": "depth/scenes_dpt", "segmentation": "segmentation/scenes_dpt", "joint": "joint/scenes_dpt"}
METRICS = {"abs_rel": "abs_rel", "delta1": "delta1", "miou": "mIoU", "aacc": "pixel accuracy"}
PROBES = {
    "segmentation_miou": "linear mIoU",
    "depth_abs_rel": "ridge abs_rel",
    "knn_object": "20-NN accuracy, object patches",
}
SIZE = 96  # pixels of the scenes
Runs = Mapping[tuple[str, str], Path]  # task and initialisation -> folder of the run


@dataclass(frozen=True)
class Plan:
    """How long to train, and on how many scenes."""

    folder: Path
    steps: int
    scenes: tuple[int, int]  # training, validation
    shown: int
    seed: int


def heads(plan: Plan, backbone: Backbone, source: str) -> Section:
    """Train heads for depth, segmentation and both, each also on random initialisation; then linear probes.

    source: the name or directory of the backbone in the commands.
    """
    with section("Heads") as part:
        random = plan.folder / "random"
        torch.manual_seed(plan.seed)
        Backbone.from_spec(backbone.spec).save_pretrained(random)
        sources = {"pretrained": source, "random initialisation": str(random)}
        runs = {(task, kind): train(part, plan, task, kind, name) for task in CONFIGS for kind, name in sources.items()}
        part.galleries = predictions(plan, runs)
        part.charts = curves(runs)
        part.about_charts = (
            "Validation during the training of heads on cached features of the frozen backbone. The same heads on the "
            "same network with random initialisation show the gain from pretraining."
        )
        part.tables = [numbers(plan, runs), probes(part, plan, source)]
        mine = f"{plan.folder}/mine_depth"
        training = f"dense train --config depth/dpt_dinov2 --data.layout folder --data.root MINE --output {mine}"
        use = f"dense evaluate depth {mine}/model --data MINE\ndense predict {mine}/model PHOTOS --output predictions"
        part.own = [
            Command("Train a head on your labelled images (MINE/images with MINE/depth or MINE/masks):", training),
            Command("Evaluate it, and use it:", use),
        ]
    return part


def train(part: Section, plan: Plan, task: str, kind: str, source: str) -> Path:
    """Train one head and return the folder of its run."""
    folder = plan.folder / f"{task}_{kind.split()[0]}"
    every = max(1, plan.steps // 2)  # an earlier validation can be the best one by chance
    part.run([
        "train", "--config", CONFIGS[task], "--output", str(folder), "--model.backbone.name", source,
        "--model.steps", str(plan.steps), "--model.seed", str(plan.seed), "--val_every", str(every),
        f"--data.scenes=[{plan.scenes[0]},{plan.scenes[1]}]", "--data.augment.flip", "0",
        "--model.head.width", "32", "--data.cache", str(plan.folder / "cache"),
    ])  # fmt: skip
    return folder


def predictions(plan: Plan, runs: Runs) -> list[Gallery]:
    """Return test scenes with their ground truth and the predictions of all heads."""
    predictors = {key: Predictor.open(folder / "model") for key, folder in runs.items()}
    scenes = Scenes("test", plan.shown, SIZE, seed=plan.seed)
    depth_rows, class_rows = [], []
    for scene in (scenes[i] for i in range(plan.shown)):
        near, far = np.quantile(scene.depth[np.isfinite(scene.depth)], (0.01, 0.99))
        bounds = (float(near), float(far))
        labels = label_picture(scene.semantic, len(CLASSES))
        depth_row: dict[str, Picture] = {"scene": scene.image, "ground truth": log_depth(scene.depth, bounds)}
        class_row: dict[str, Picture] = {"scene": scene.image, "ground truth": labels}
        for (task, kind), predictor in predictors.items():
            depth, classes = parts(predictor(scene.image))
            caption = f"{kind}, joint" if task == "joint" else kind
            if depth is not None:
                depth_row[caption] = log_depth(depth.values, bounds)
            if classes is not None:
                class_row[caption] = classes.picture()
        depth_rows.append({name: thumbnail(image) for name, image in depth_row.items()})
        class_rows.append({name: thumbnail(image) for name, image in class_row.items()})
    training = f"DPT heads after {plan.steps} steps on {plan.scenes[0]} labelled scenes, on test scenes."
    about_depth = "Logarithm of depth, near is bright. Joint heads predict depth and classes with one decoder."
    about_classes = f"One colour for each of {len(CLASSES)} classes."
    return [
        Gallery("Depth", f"{training} {about_depth}", depth_rows),
        Gallery("Classes", f"{training} {about_classes}", class_rows),
    ]


def log_depth(depth: NDArray[np.float32], bounds: tuple[float, float]) -> Picture:
    """Draw the logarithm of depth (H, W), since most of a scene is near; values are clipped to the bounds."""
    near, far = bounds
    return depth_picture(np.log(np.clip(depth, near, far)), (np.log(near), np.log(far)))


def curves(runs: Runs) -> list[str]:
    """Return one chart per task and metric."""
    charts = []
    for task in CONFIGS:
        found = {kind: read_metrics(path / "metrics.csv") for (name, kind), path in runs.items() if name == task}
        for name, better in (("abs_rel", "lower is better"), ("miou", "higher is better")):
            lines = {kind: value for kind, curve in found.items() if (value := validation(curve, name)) is not None}
            if lines:
                charts.append(chart(f"{task}: {METRICS[name]}, {better}", lines))
    return charts


def validation(found: Mapping[str, Any], name: str) -> Any:
    """Return a validation metric by its name in a run of one task or of a joint one; None if it is missing."""
    keys = (f"val/{name}", f"val/depth_{name}", f"val/labels_{name}")
    return next((found[key] for key in keys if key in found), None)


def numbers(plan: Plan, runs: Runs) -> Table:
    """Return the best validation of every run."""
    rows = []
    for (task, kind), folder in runs.items():
        found: dict[str, Any] = json.loads((folder / "results.json").read_text())["numbers"]
        values = [validation(found, name) for name in METRICS]
        rows.append((task, kind, *("" if value is None else f"{value:.3f}" for value in values)))
    words = (
        f"{plan.steps} steps of 16 scenes, {plan.scenes[0]} training and {plan.scenes[1]} validation scenes, {SIZE} "
        f"px, depth from 0.1 to 60 m, one seed ({plan.seed}); the better of two validations."
    )
    return Table("Heads on the frozen backbone", ("DPT for", "backbone", *METRICS.values()), rows, words)


def probes(part: Section, plan: Plan, source: str) -> Table:
    """Measure linear probes of patches."""
    output, training, validating = plan.folder / "probe", 2 * plan.scenes[0], 2 * plan.scenes[1]
    part.run([
        "evaluate", "probe", "--backbone", source, "--baselines", "--train-scenes", str(training),
        "--val-scenes", str(validating), "--seed", str(plan.seed), "--output", str(output),
    ])  # fmt: skip
    found = json.loads((output / "results.json").read_text())["numbers"]
    prefixes = {"pretrained": "", "random initialisation": "random/", "raw pixels": "pixels/"}
    rows = [(words, *(f"{found[prefix + name]:.3f}" for name in PROBES)) for words, prefix in prefixes.items()]
    words = (
        f"One linear map per patch: {training} training and {validating} validation scenes, {SIZE} px, seed "
        f"{plan.seed}. abs_rel: lower is better; chance of the 20-NN is {1 / (len(CLASSES) - 2):.3f}."
    )
    return Table("Linear probes of patches", ("features", *PROBES.values()), rows, words)
