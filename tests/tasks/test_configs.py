"""Every shipped recipe of a head parses, and builds the task and the head that it describes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

import dense
import heads
from dense.backbone import describe, load_backbone
from dense.backbone.spec import resolve_layers
from dense.backbone.weights.names import shipped
from dense.data.labelled.layouts import LAYOUTS
from dense.data.scenes import render
from dense.model.network import before_blocks
from dense.predict import Depth, Segmentation
from dense.recipes import config_folder
from dense.tasks import DepthTask, JointTask, MasksTask, SegmentationTask
from dense.tasks.auto import Survey, head_for, kind_for, layers_for, loss_for
from dense.tasks.data import DataFacts
from dense.tasks.options import DepthEvaluation, TuneOptions
from tests.runs import call

ROOMS = ("segmentation", "depth", "joint")
CONFIGS = sorted(p for room in ROOMS for p in (config_folder() / room).glob("*.yaml") if "eomt" not in p.stem)
OF_MASKS = sorted(
    p
    for room in ("segmentation", "instance", "panoptic")
    for p in (config_folder() / room).glob("*.yaml")
    if "eomt" in p.stem or room != "segmentation"
)


ANY = Survey(100, (360, 480), frozenset({(360, 480)}))
LOSSES = ("loss", "depth_loss", "label_loss")
FACTS = DataFacts(classes=tuple(f"class {i}" for i in range(150)), depth_kind="metric")


@pytest.mark.parametrize("path", OF_MASKS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_recipe_of_masks_builds(path: Path) -> None:
    """Its kind is that of its folder, its blocks exist, and rates and warm-ups are given to the parts they name."""
    inner: dict[str, Any] = yaml.safe_load(path.read_text())["model"]["init_args"]
    backbone, tune = inner["backbone"], TuneOptions(**inner["tune"])
    own = backbone["name"] in shipped()
    spec = load_backbone(backbone["name"]).spec if own else describe(backbone["name"], **backbone.get("arguments", {}))
    task = MasksTask(kind=inner["kind"], head=inner["head"], loss=inner["loss"])
    assert task.task == path.parent.name
    facts = DataFacts(("a", "b"), val_targets=("labels", "masks"), things=(True, False))
    outputs = task.complete_outputs(task.given_outputs(), facts)
    head = heads.build(inner["head"] | {"in_channels": [spec.dim], "outputs": outputs})
    assert before_blocks(spec, head.blocks) == spec.depth - 1 - {3: 2, 24: 4}.get(spec.depth, 3)
    if tune.unfreeze == "all":
        assert tune.layer_decay * tune.lr_scale == pytest.approx(1)
    else:
        assert tune.unfreeze == head.blocks


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_recipe_builds(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    assert path.read_text().startswith("# ")
    inner: dict[str, Any] = config["model"]["init_args"]
    task = {c.__name__: c for c in (SegmentationTask, DepthTask, JointTask)}[
        config["model"]["class_path"].rsplit(".", 1)[1]
    ]
    backbone = inner["backbone"]
    own = backbone["name"] in shipped()
    spec = load_backbone(backbone["name"]).spec if own else describe(backbone["name"], **backbone.get("arguments", {}))
    options, chosen = inner["head"], backbone["layers"]
    if options["name"] == "auto":
        options = options | head_for(task.__name__)[0]
        chosen = layers_for(options["name"], spec)[0]
    layers = resolve_layers(chosen, spec)
    built = task(head=options)
    given = {k: dict(v) for k, v in options["outputs"].items()}
    if given.get("depth", {}).get("kind") == "auto":
        given["depth"]["kind"] = kind_for(ANY)[0]
    outputs = built.complete_outputs(given, FACTS)
    head = heads.build(options | {"in_channels": [spec.dim] * len(layers), "outputs": outputs})
    assert set(head.outputs) == set(outputs)
    losses = {k: loss_for(ANY)[0] if inner[k] == "auto" else inner[k] for k in LOSSES if k in inner}
    assert losses
    if "depth" in outputs:
        from dense.tasks.depth import depth_loss

        depth_loss(losses.get("loss") or losses["depth_loss"], head.outputs["depth"], "metric")


@pytest.mark.parametrize(("layout", "crop"), [("nyuv2", "nyu_eigen"), ("kitti_eigen", "garg"), ("folder", "none")])
def test_the_crop_of_validation_follows_the_data(layout: str, crop: str) -> None:
    """So recipes for NYUv2 serve anybody's folder; a crop that is named stays."""
    published = LAYOUTS[layout].evaluation_crop if layout in LAYOUTS else "none"
    assert DepthEvaluation(crop="layout").with_layout(published).crop == crop
    assert DepthEvaluation(crop="eigen_kitti").with_layout(published).crop == "eigen_kitti"


def test_a_saved_backbone_refuses_the_weights_of_a_recipe(tmp_path: Path) -> None:
    """Before images are looked for or a folder is made, and with the options that help."""
    own = [
        "--model.backbone.name",
        "scenes_tiny",
        "--data.root",
        str(tmp_path),
        "--output",
        str(tmp_path / "run"),
    ]
    helps = ["--model.backbone.weights", "null", "--model.backbone.arguments", "{}"]
    done = call(["train", "--config", "segmentation/linear_dino", *own])
    assert done.returncode == 1
    assert "scenes_tiny brings its own weights, not timm" in done.stderr
    assert " ".join(helps[:2]) in done.stderr
    assert " ".join(helps[2:]) in done.stderr
    assert not (tmp_path / "run").exists()
    done = call(["train", "--config", "segmentation/linear_dino", *own, *helps])
    assert "own weights" not in done.stderr
    assert str(tmp_path) in done.stderr


@pytest.mark.parametrize("room", ["segmentation", "depth"])
def test_a_recipe_for_few_images_serves_a_folder(room: str, tmp_path: Path) -> None:
    """With images of many sizes, some smaller than a crop, and with another backbone by its name alone."""
    recipe = yaml.safe_load((config_folder() / room / "small_data.yaml").read_text())
    inner, data = recipe["model"]["init_args"], recipe["data"]
    assert inner["backbone"]["weights"] == "timm"
    assert "arguments" not in inner["backbone"]
    assert "tune" not in inner
    assert data["crop_size"] == data["resize"] == inner["steps"] == "auto"
    assert 10 > recipe["patience"] > 0
    targets = {"segmentation": "masks", "depth": "depth"}[room]
    for number, size in enumerate([(240, 320), (48, 64), (256, 224), (100, 90), (230, 250)]):
        scene = render(0, number, size)
        values = (scene.instance > 0).astype(np.uint8) if room == "segmentation" else scene.depth.astype(np.float32)
        for kind, array in (("images", scene.image), (targets, values)):
            (tmp_path / "MINE" / kind).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / "MINE" / kind / f"{number}.{'tiff' if kind == 'depth' else 'png'}"), array)
    (tmp_path / "MINE/classes.yaml").write_text("[ground, thing]")
    (tmp_path / "MINE/depth.yaml").write_text("{kind: metric}")
    own = ["--model.backbone.name", "scenes_tiny", "--model.backbone.weights", "null"]
    short = ["--model.steps", "2", "--data.batch_size", "2", "--data.workers", "0"]
    given = ["--config", f"{room}/small_data", "--data.root", str(tmp_path / "MINE"), "--output", str(tmp_path / "run")]
    done = call(["train", *given, *own, *short])
    assert done.returncode == 0, done.stderr
    assert "4 images of" in done.stdout + done.stderr
    assert "1 to validate on" in done.stdout + done.stderr
    prediction = dense.load(tmp_path / "run/model")(tmp_path / "MINE/images/0.png")
    assert isinstance(prediction, Segmentation if room == "segmentation" else Depth)
    assert (prediction.labels if isinstance(prediction, Segmentation) else prediction.values).shape == (240, 320)
