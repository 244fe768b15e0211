"""What a validation shows, the constant prediction beside it, and which model of a run is kept."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import dense
from dense.data.labelled import Batch, open_labelled
from dense.data.scenes import CLASSES
from dense.metrics import DepthMetrics, SegmentationMetrics
from dense.model.network import DenseModel
from dense.tasks import DepthTask, MasksTask, SegmentationTask
from dense.tasks.depth import constant_depth
from dense.tasks.options import TargetOptions
from dense.tasks.run import BestModel
from dense.training.logs import validation_line
from tests.runs import assert_same, call
from tests.tasks.test_continue import labelled
from tests.tasks.test_train import argv, task, write


def run(folder: Path, name: str = "run", **changes: Any) -> tuple[str, dict[str, Any]]:
    """Train; return what it printed and its results."""
    done = call(argv(write(folder, **changes), folder / name))
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((folder / name / "results.json").read_text())


def scenes(split: str, count: int) -> Any:
    return open_labelled("scenes", split, length=count, size=32)


# ---- the constant prediction


def test_the_most_frequent_class(tmp_path: Path) -> None:
    printed, results = run(tmp_path)
    train, val = scenes("train", 16), scenes("val", 6)
    counts = sum(np.bincount(train.read(i).labels.ravel(), minlength=len(CLASSES)) for i in range(16))
    metrics = SegmentationMetrics(len(CLASSES))
    for i in range(6):
        labels = torch.from_numpy(val.read(i).labels)[None].long()
        metrics.update(torch.full_like(labels, int(np.argmax(counts))), labels)
    expected = metrics.compute()
    assert results["constant"] == pytest.approx({f"val/{name}": value for name, value in expected.items()})
    lines = [line for line in printed.splitlines() if line.startswith("validation at step")]
    assert [line.split(":")[0] for line in lines[:3]] == [f"validation at step {n} of 12" for n in (4, 8, 12)]
    for line in lines[:3]:
        assert f"(constant {expected['miou']:.4g})" in line
        assert f"(constant {expected['aacc']:.4g})" in line
        assert "so far" in line
    assert lines[3] == f"validation at step {results['facts']['best step']}, the best of the run, beside the constant:"
    assert "val/classes" in results["numbers"]  # a count, which is not printed
    assert "classes:" not in printed
    (ious,) = re.findall(r"^IoU of each class: (.*)$", printed, re.MULTILINE)
    found = dict(one.rsplit(" ", 1) for one in ious.split(", "))
    assert list(found) == list(CLASSES)
    present = [float(value) for value in found.values() if value != "-"]
    assert np.mean(present) == pytest.approx(results["numbers"]["val/miou"], abs=0.005)
    assert f"next: dense evaluate segmentation {tmp_path / 'run/model'} --data scenes " in printed


def test_the_median_depth(tmp_path: Path) -> None:
    """In the kind that the head predicts."""
    changes = task("DepthTask", loss={"l1": 1.0}, steps=2)
    output = {"name": "regression", "activation": "identity", "kind": "log"}
    changes["model"]["init_args"]["head"]["outputs"] = {"depth": output}
    _, results = run(tmp_path, **changes)
    known = [depth[np.isfinite(depth)] for depth in (scenes("train", 16).read(i).depth for i in range(16))]
    median = float(np.median(np.concatenate(known)))
    metrics = DepthMetrics()
    for i in range(6):
        depth = torch.from_numpy(scenes("val", 6).read(i).depth)[None, None]
        metrics.update(torch.full_like(depth, median), depth, depth.isfinite())
    assert results["constant"]["val/abs_rel"] == pytest.approx(metrics.compute()["abs_rel"], rel=1e-4)
    assert results["constant"]["val/delta1"] == pytest.approx(metrics.compute()["delta1"], abs=1e-4)
    batch = Batch(depth=torch.zeros(2, 1, 3, 4))
    found = constant_depth(scenes("train", 16), "metric", "metric", TargetOptions())(batch)["depth"]
    assert found.shape == (2, 1, 3, 4)
    assert float(found.max()) == pytest.approx(median)


def test_depth_and_classes(tmp_path: Path) -> None:
    printed, results = run(tmp_path, **task("JointTask", steps=2))
    constant = results["constant"]
    assert constant["val/score"] == pytest.approx(constant["val/labels_miou"] - constant["val/depth_abs_rel"])
    assert f"score {results['numbers']['val/score']:.4g} (constant {constant['val/score']:.4g})" in printed


def test_it_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a run continues; the targets alone are read."""
    labelled(tmp_path / "data", 0)
    calls: list[int] = []
    baseline = SegmentationTask.baseline

    def counted(self: SegmentationTask, train: Any) -> Any:
        calls.append(len(train))
        return baseline(self, train)

    monkeypatch.setattr(SegmentationTask, "baseline", counted)
    changes = {
        "data": {"root": str(tmp_path / "data"), "batch_size": 2, "workers": 0, "val_ratio": 0.3},
        "model.init_args.steps": 4, "val_every": 2,
    }  # fmt: skip
    _, first = run(tmp_path, **changes)
    last = tmp_path / "run/checkpoints/last.ckpt"
    assert torch.load(last, weights_only=True)["constant"] == first["constant"]
    _, again = run(tmp_path, **changes)
    assert (again["constant"], len(calls)) == (first["constant"], 1)


# ---- which model is kept


def decided(
    values: list[tuple[float, float]], validations: int, patience: int = 0, mode: str = "max", module: Any = None
) -> BestModel:
    """Pass (monitored, second) of each validation to a BestModel whose folder is not written."""
    best = BestModel("nowhere", patience, validations)
    module = module or (SegmentationTask if mode == "max" else DepthTask)()
    for number, (value, second) in enumerate(values, start=1):
        trainer: Any = SimpleNamespace(
            sanity_checking=False, global_step=10 * number, is_global_zero=False, should_stop=False
        )
        module.validated = {module.monitor: value, module.second: second}
        best.on_validation_end(trainer, module)
        if trainer.should_stop:
            break
    return best


@pytest.mark.parametrize(
    ("values", "validations", "step"),
    [
        ([(0.50, 0.80), (0.495, 0.85), (0.40, 0.9)], 3, 20),  # close, and the second metric is better
        ([(0.50, 0.80), (0.505, 0.75)], 2, 10),  # close, and it is worse
        ([(0.50, 0.80), (0.499, 0.80)], 2, 20),  # nothing decides: the later one
        ([(0.500, 0.80), (0.492, 0.81), (0.485, 0.82)], 3, 20),  # small losses do not add up
        ([(0.50, 0.80), (0.60, 0.70)], 2, 20),  # a clear difference needs no second metric
        ([(0.50, 0.80), (0.495, 0.85)], 10, 10),  # many validations: the best is the best
        ([(float("nan"), 0.1), (0.1, 0.1)], 2, 20),
        ([(0.50, 0.80), (float("nan"), 0.1), (0.60, 0.80)], 3, 30),  # a later one still counts
        ([(0.50, 0.80), (float("nan"), 0.1), (0.60, 0.80)], 10, 30),
    ],
)
def test_few_validations(values: list[tuple[float, float]], validations: int, step: int) -> None:
    assert decided(values, validations).best["step"] == step


def test_few_validations_of_an_error() -> None:
    assert decided([(0.200, 0.80), (0.203, 0.81), (0.190, 0.70)], 3, mode="min").best["step"] == 30
    assert decided([(0.200, 0.80), (0.203, 0.81), (0.25, 0.90)], 3, mode="min").best["step"] == 20


@pytest.mark.parametrize(
    ("values", "step", "waited"),
    [
        ([0.0] * 10, 80, 2),  # steps 10 to 70 have masked attention: no patience, and the later of equal ones
        ([0.1, 0.3, 0.2, 0.2, 0.2, 0.2, 0.2, 0.3, 0.1], 80, 1),
        ([0.1, 0.4, 0.2, 0.2, 0.2, 0.2, 0.2, 0.3, 0.3], 20, 2),  # nothing without it is as good
    ],
)
def test_masked_attention_ends_before_patience_begins(values: list[float], step: int, waited: int) -> None:
    module = MasksTask(annealing=[(0.0, 0.75)], steps=100)
    module.network = SimpleNamespace(head=SimpleNamespace(blocks=1))  # type: ignore[assignment]
    best = decided([(value, 0.0) for value in values], 20, patience=3, module=module)
    assert (best.best["step"], best.waited) == (step, waited)


def test_the_reason_of_early_stopping(tmp_path: Path) -> None:
    best = decided([(0.5, 0.5), (0.4, 0.5), (0.3, 0.5), (0.9, 0.9)], 10, patience=2)
    assert (best.waited, best.best["step"]) == (2, 10)
    module = SegmentationTask(steps=100)
    words = "early stopping at step 30 of 100: val/miou has not improved in 2 validations (20 steps) and patience is 2"
    assert best.reason(module, 30) == words
    assert best.reason(module, 100) is None
    changes = {"model.init_args.optim": {"lr": 1e-12}, "val_every": 1, "patience": 2}
    printed, results = run(tmp_path, **changes)
    assert "has not improved in 2 validations (2 steps) and patience is 2" in printed
    assert results["early stopping"] in printed
    again, repeated = run(tmp_path, **changes)
    assert results["early stopping"] in again
    assert repeated["early stopping"] == results["early stopping"]


def test_a_line_per_validation() -> None:
    now, best = {"val/abs_rel": 0.2, "val/delta1": 0.7}, {"step": 10.0, "val/abs_rel": 0.1234567}
    line = validation_line(20, 40, ("val/abs_rel", "val/delta1"), now, best, {"val/abs_rel": 0.42}, "constant")
    assert line == "validation at step 20 of 40: abs_rel 0.2 (constant 0.42), delta1 0.7; best so far 0.1235 at step 10"
    line = validation_line(10, 40, ("val/abs_rel", "val/none"), now, best, {}, "constant")
    assert line == "validation at step 10 of 40: abs_rel 0.2; the best so far"


def test_without_validation_the_last_model_is_kept(tmp_path: Path) -> None:
    """With val_ratio 0 all images are trained on, checkpoints are written as ever, and the run continues."""
    labelled(tmp_path / "data", 0)
    data = {"root": str(tmp_path / "data"), "batch_size": 2, "workers": 0, "val_ratio": 0}
    changes = {"data": data, "model.init_args.steps": 4, "val_every": 2}
    printed, results = run(tmp_path, **changes)
    assert "5 images of" in printed
    assert "none to validate on" in printed
    assert "no validation: this is the model of the last step" in printed
    assert (results["numbers"], results["facts"]["best step"]) == ({}, 4)
    state = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    saved = DenseModel.from_pretrained(tmp_path / "run/model").head.state_dict()
    assert all(torch.equal(value, state[f"network.head.{name}"]) for name, value in saved.items())
    assert (tmp_path / "run/predictions.png").stat().st_size > 0
    with (tmp_path / "run/metrics.csv").open() as file:
        assert not any(name.startswith("val/") for name in next(csv.reader(file)))
    run(tmp_path, "again", **changes)
    assert_same(tmp_path / "run", tmp_path / "again")
    with pytest.raises(ValueError, match="val_ratio=0 leaves no images for validation"):
        dense.evaluate(tmp_path / "run/model", tmp_path / "data", val_ratio=0)
