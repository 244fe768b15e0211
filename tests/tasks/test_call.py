"""`dense.train`, the former names of options, and validation through the saved inference."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dense
from dense.data.labelled.sample import Batch
from dense.data.labelled.scenes import SceneSource
from dense.data.scenes import render
from dense.data.transforms import EvalTransform
from dense.evaluate.dense import DenseProtocol, evaluate_dense
from dense.model.network import Inference
from dense.predict import Predictor, Segmentation
from dense.suggest import UsageError
from dense.tasks import DenseData, SegmentationTask
from dense.tasks.options import OptimOptions, TargetOptions
from dense.training.cli import arguments_of
from dense.training.fit import refuse_another
from tests.predict.models import model
from tests.runs import alone, call

SHORT: dict[str, Any] = {
    "model.steps": 2, "model.optim": OptimOptions(lr=0.01), "data.scenes": (4, 2), "data.scene_size": 32,
    "data.workers": np.int64(0), "trainer.accelerator": "cpu", "val_every": 1,
}  # fmt: skip


def train(output: Path, **changes: Any) -> Predictor:
    with alone():
        return dense.train("segmentation/scenes_linear", data="scenes", output=output, **SHORT | changes)


def test_a_call_is_the_same_run_as_the_verb(tmp_path: Path) -> None:
    predictor = train(tmp_path / "call")
    assert isinstance(predictor(render(0, 3, (33, 40)).image), Segmentation)
    for name in ("metrics.csv", "curves.png", "predictions.png", "config.yaml", "results.json", "model/README.md"):
        assert (tmp_path / "call" / name).stat().st_size > 0, name
    options = arguments_of("segmentation/scenes_linear", SHORT | {"data.root": "scenes", "output": tmp_path / "verb"})
    assert call(["train", *options]).returncode == 0
    ours, theirs = ((tmp_path / name / "model/model.safetensors").read_bytes() for name in ("call", "verb"))
    assert ours == theirs


@pytest.mark.parametrize("name", ["inference", "head", "backbone.arguments"])
def test_groups_of_options_are_not_null(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"model.{name} is null: expected options")):
        train(tmp_path, **{f"model.{name}": None})


def test_a_call_continues_a_run_and_refuses_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path)
    train(tmp_path)
    assert "continuing" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"optim\.lr: 0\.5 now, 0\.01 then"):
        train(tmp_path, **{"model.optim": OptimOptions(lr=0.5)})


def test_a_saved_backbone_brings_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe whose weights are timm's takes a backbone of the package as it is."""
    given: list[str] = []

    def run(argv: list[str]) -> tuple[int, Path]:
        given.extend(argv)
        return 1, tmp_path

    monkeypatch.setattr("dense.cli.train._train", run)
    with pytest.raises(KeyboardInterrupt):
        dense.train("segmentation/small_data", data=tmp_path, output=tmp_path / "run", backbone="photos_tiny")
    assert "null" in given[given.index("--model.backbone.weights") + 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.stps": 3}, "Did you mean --model.steps"),
        ({"data.bach_size": 3}, "Did you mean --data.batch_size"),
        ({"model.steps": "many"}, "steps: Expected"),
    ],
)
def test_wrong_usage_raises_what_the_verb_prints(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        train(tmp_path / "run", **changes)
    options = SHORT | {"data.root": "scenes", "output": tmp_path / "run"} | changes
    done = call(["train", *arguments_of("segmentation/scenes_linear", options)])
    assert (done.returncode, done.stderr) == (2, f"dense train: error: {error.value}\n")
    assert not (tmp_path / "run").exists()


def test_a_stopped_call_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dense.tasks.run.run", lambda cli: 143)
    with pytest.raises(KeyboardInterrupt, match="the same call continues"):
        train(tmp_path)


def test_former_names_of_options() -> None:
    with pytest.warns(FutureWarning, match="now called image"):
        assert TargetOptions(size="picture") == TargetOptions(size="image")
    with pytest.warns(FutureWarning, match=r"now called data\.targets"):
        DenseData("scenes", scenes=(2, 1), scene_size=24, answers=["labels"])
    with pytest.raises(ValueError, match="expected image or grid4"):
        TargetOptions(size="pixel")


def test_former_names_in_checkpoints() -> None:
    """They are the same settings; others are refused."""
    now = {"target": {"size": "image"}, "images a step": 4, "to train on": "300 images, f4ba6a22"}
    then = {"target": {"size": "picture"}, "pictures a step": 4, "to train on": "300 pictures, f4ba6a22"}
    refuse_another(now, then)
    with pytest.raises(ValueError, match=re.escape("images a step: 5 now, 4 then")):
        refuse_another(now | {"images a step": 5}, then)


def test_former_names_in_saved_models(tmp_path: Path) -> None:
    network = model("labels")
    network.facts = {"pictures": "scenes", "seed": 1}
    network.save_pretrained(tmp_path)
    assert Predictor.open(tmp_path).model.facts == {"images": "scenes", "seed": 1}


@pytest.mark.parametrize("inference", [Inference(), Inference(window=16, stride=10), Inference(resize=24, window=16)])
def test_validation_applies_the_saved_inference(inference: Inference) -> None:
    """It measures what `dense evaluate` measures with the same windows and size."""
    network, source = model("labels", inference=inference, count=14), SceneSource("val", 3, 40)
    network.classes = source.classes
    task = SegmentationTask(inference=inference)
    task.network = network
    task.metrics = task.build_metrics()
    for index in range(len(source)):
        sample = EvalTransform(inference.resize)(source.read(index))
        assert sample.labels is not None
        with torch.no_grad():
            task.validation_step(Batch(sample.image[None], sample.labels[None]), 0)
    protocol = DenseProtocol("same", inference.resize, inference.window, inference.window and inference.step, "even")
    found = evaluate_dense(network, source, protocol)["segmentation"]
    assert task.numbers()["miou"] == pytest.approx(found["miou"])


def test_a_cache_holds_no_validation_through_windows(tmp_path: Path) -> None:
    """Windows need the images; without windows the cache serves the validation too."""
    for inference, folders in (({}, 2), ({"window": 16}, 1)):
        changes = {"data.cache": tmp_path / "cache", "model.inference": inference, "model.steps": 1}
        train(tmp_path / f"run {folders}", **changes)
        assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == folders
        shutil.rmtree(tmp_path / "cache")
