"""Section: one head for depth and classes on the frozen backbone and on the same network with random initialisation.

Embedded scenes are written as a user's labelled images are, so that the commands are those for images of one's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dense.backbone import Backbone
from dense.data.scenes import Scene, Scenes
from dense.demo.report import Command, Gallery, Section, Table, chart, section, thumbnail
from dense.evaluate.classification.features import randomly_initialised
from dense.media.draw import Picture, depth_picture, label_picture
from dense.predict import Predictor
from dense.predict.predictions import parts
from dense.training.curves import read_metrics

CONFIG = "joint/scenes_dpt"
METRICS = {"depth_abs_rel": "abs_rel", "depth_delta1": "delta1", "labels_miou": "mIoU", "labels_aacc": "pixel accuracy"}
CURVES = {"depth_abs_rel": "depth: abs_rel, lower is better", "labels_miou": "classes: mIoU, higher is better"}
CLASSES = ("sky", "ground", "object")  # solids of the scenes are one class
FAR = 60  # metres
GRID = 12  # patches of a scene's side
VALIDATIONS, BATCH = 4, 8
HEAD = (  # small, and of few channels, to be fast
    "{name: dpt, width: 16, reassemble: [16, 16, 24, 32], resample: bilinear, outputs: "
    "{depth: {name: regression, activation: softplus, kind: metric, hidden: 16}, labels: {name: classes}}}"
)
Runs = Mapping[str, Path]  # initialisation -> folder of the run


@dataclass(frozen=True)
class Plan:
    """How long to train, and on how many scenes."""

    folder: Path
    steps: int
    scenes: tuple[int, int]  # training, validation
    side: int  # of the scenes, in pixels
    shown: int
    seed: int


def heads(plan: Plan, backbone: Backbone, source: str) -> Section:
    """Train a head for depth and classes, also on random initialisation.

    source: the name or directory of the backbone in the commands.
    """
    with section("Heads") as part:
        random = plan.folder / "random"
        randomly_initialised(backbone, plan.seed).save_pretrained(random)
        write_labelled(plan.folder / "labelled", plan)
        sources = {"pretrained": source, "random initialisation": str(random)}
        runs = {kind: train(part, plan, kind, name) for kind, name in sources.items()}
        part.galleries = predictions(plan, runs)
        found = {kind: read_metrics(folder / "metrics.csv") for kind, folder in runs.items()}
        part.charts = [
            chart(words, {kind: curves[f"val/{name}"] for kind, curves in found.items()})
            for name, words in CURVES.items()
        ]
        part.about_charts = (
            "Validation during training on cached features of the frozen backbone. The same head on the same network "
            "with random initialisation shows the gain from pretraining."
        )
        part.tables = [numbers(plan, runs)]
        mine = f"{plan.folder}/mine"
        training = f"dense train --config segmentation/small_data --data.root LABELLED --output {mine}"
        use = (
            f"dense explore {mine}/model LABELLED --output page.html\ndense predict {mine}/model PHOTOS --output found"
        )
        part.own = [
            Command("Train a head on your labelled images, LABELLED/images with LABELLED/masks:", training),
            Command("See where it fails, and use it:", use),
        ]
    return part


def write_labelled(folder: Path, plan: Plan) -> None:
    """Write scenes to train and validate on: images, masks, depth in millimetres, and what their values mean."""
    if (folder / "depth.yaml").is_file():
        return
    for split, count in zip(("train", "val"), plan.scenes, strict=True):
        for name in ("images", "masks", "depth"):
            (folder / split / name).mkdir(parents=True, exist_ok=True)
        scenes = Scenes(split, count, plan.side, seed=plan.seed)
        for number in range(count):
            scene = scenes[number]
            depth = np.where(scene.depth <= FAR, scene.depth * 1000, 0).astype(np.uint16)
            images: dict[str, Any] = {"images": scene.image, "masks": labels_of(scene), "depth": depth}
            for name, image in images.items():
                Image.fromarray(image).save(folder / split / name / f"{number:04}.png")
    (folder / "classes.yaml").write_text(f"[{', '.join(CLASSES)}]\n")
    (folder / "depth.yaml").write_text("{kind: metric, scale: 1000}\n")


def labels_of(scene: Scene) -> NDArray[np.uint8]:
    """Return indices of `CLASSES` (H, W)."""
    return np.minimum(scene.semantic, len(CLASSES) - 1).astype(np.uint8)


def train(part: Section, plan: Plan, kind: str, source: str) -> Path:
    """Train one head and return the folder of its run."""
    folder = plan.folder / f"head_{kind.split()[0]}"
    part.run([
        "train", "--config", CONFIG, "--output", str(folder), "--data.root", str(plan.folder / "labelled"),
        "--data.layout", "folder", "--data.batch_size", str(BATCH), "--data.augment.flip", "0",
        "--data.cache", str(plan.folder / "cache"), "--model.backbone.name", source, "--model.head", HEAD,
        "--model.steps", str(plan.steps), "--model.seed", str(plan.seed), "--model.inference.refine", "guided",
        "--val_every", str(max(1, plan.steps // VALIDATIONS)),
    ])  # fmt: skip
    return folder


def predictions(plan: Plan, runs: Runs) -> list[Gallery]:
    """Return test scenes with their ground truth and the predictions of both heads."""
    predictors = {kind: Predictor.open(folder / "model") for kind, folder in runs.items()}
    scenes = Scenes("test", plan.shown, plan.side, seed=plan.seed)
    depth_rows, class_rows = [], []
    for scene in (scenes[i] for i in range(plan.shown)):
        near, far = np.quantile(scene.depth[np.isfinite(scene.depth)], (0.01, 0.99))
        bounds = (float(near), float(far))
        labels = label_picture(labels_of(scene), len(CLASSES))
        depth_row: dict[str, Picture] = {"scene": scene.image, "ground truth": log_depth(scene.depth, bounds)}
        class_row: dict[str, Picture] = {"scene": scene.image, "ground truth": labels}
        for kind, predictor in predictors.items():
            depth, classes = parts(predictor(scene.image))
            assert depth is not None
            assert classes is not None
            depth_row[kind], class_row[kind] = log_depth(depth.values, bounds), classes.picture()
        depth_rows.append({name: thumbnail(image) for name, image in depth_row.items()})
        class_rows.append({name: thumbnail(image) for name, image in class_row.items()})
    training = (
        f"A DPT head after {plan.steps} steps on {plan.scenes[0]} labelled scenes, on test scenes. A guided filter "
        "moves its edges to those of the image."
    )
    about_classes = f"The classes of the same head: {', '.join(CLASSES)}."
    return [
        Gallery("Depth", f"{training} The logarithm of depth, near is bright.", depth_rows),
        Gallery("Classes", about_classes, class_rows),
    ]


def log_depth(depth: NDArray[np.float32], bounds: tuple[float, float]) -> Picture:
    """Draw the logarithm of depth (H, W), since most of a scene is near; values are clipped to the bounds."""
    near, far = bounds
    return depth_picture(np.log(np.clip(depth, near, far)), (np.log(near), np.log(far)))


def numbers(plan: Plan, runs: Runs) -> Table:
    """Return the best validation of both runs."""
    rows = []
    for kind, folder in runs.items():
        found: dict[str, Any] = json.loads((folder / "results.json").read_text())["numbers"]
        rows.append((kind, *(f"{found[f'val/{name}']:.3f}" for name in METRICS)))
    words = (
        f"{plan.steps} steps of {BATCH} scenes, {plan.scenes[0]} training and {plan.scenes[1]} validation scenes, "
        f"{plan.side} px, depth up to {FAR} m, one seed ({plan.seed}); the best of {VALIDATIONS} validations."
    )
    return Table("A head on the frozen backbone", ("backbone", *METRICS.values()), rows, words)
