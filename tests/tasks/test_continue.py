"""Runs that stop in awkward places, in several processes, or with recipes that do not fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dense.backbone import load_backbone
from dense.data.scenes import render
from dense.training.checkpoints import Checkpoints
from tests.data.test_cache import records
from tests.runs import Done, Forked, assert_same, call, environment, in_processes, weights
from tests.tasks.test_train import BACKBONE, DPT, argv, task, write


def run(folder: Path, name: str, *extra: str, **changes: Any) -> Done:
    return call(argv(write(folder, **changes), folder / name, *extra))


def numbers(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text())["numbers"]


def test_a_checkpoint_waits_for_the_validation_that_follows(tmp_path: Path) -> None:
    """Also that of the last step: the same command again then tells the same."""
    changes = {"checkpoint": {"every_minutes": 0, "every_steps": 2}, "val_every": 2, "model.init_args.steps": 6}
    assert run(tmp_path, "run", **changes).returncode == 0
    first, rows = numbers(tmp_path / "run"), (tmp_path / "run/metrics.csv").read_text()
    state = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    best = state["callbacks"]["BestModel"]["best"]
    assert {k: v for k, v in best.items() if k != "step"} == first
    again = run(tmp_path, "run", **changes)
    assert again.returncode == 0, again.stderr
    assert numbers(tmp_path / "run") == first
    assert (tmp_path / "run/metrics.csv").read_text() == rows


def end_after_step_6() -> None:
    """End this process once its sixth step is saved."""
    save = Checkpoints.save

    def once(self: Checkpoints, trainer: pl.Trainer, path: Path) -> None:
        save(self, trainer, path)
        if trainer.global_step == 6:
            os._exit(9)

    Checkpoints.save = once  # type: ignore[method-assign]


def test_continued_from_a_validation_step(tmp_path: Path) -> None:
    """As a run that was never stopped: the numbers of that validation stay, and what is best."""
    changes = {"checkpoint": {"every_minutes": 0, "every_steps": 3}, "val_every": 3}
    assert run(tmp_path, "whole", **changes).returncode == 0
    config = write(tmp_path, **changes)
    assert Forked(argv(config, tmp_path / "run"), tmp_path, end_after_step_6).status() == 9
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 6
    done = call(argv(config, tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "run", tmp_path / "whole")
    assert (tmp_path / "run/metrics.csv").read_text() == (tmp_path / "whole/metrics.csv").read_text()
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")


def test_the_patch_embedding_is_trained_first_and_alone(tmp_path: Path) -> None:
    """Then what the recipe says; a run that stops within those steps continues exactly, with its channels saved."""
    changes = {
        "checkpoint": {"every_minutes": 0, "every_steps": 6}, "val_every": 6,
        "model.init_args.backbone.channels_from": "each", "model.init_args.tune": {"patch_steps": 8, "unfreeze": 1},
    }  # fmt: skip
    assert run(tmp_path, "whole", **changes).returncode == 0
    config = write(tmp_path, **changes)
    assert Forked(argv(config, tmp_path / "run"), tmp_path, end_after_step_6).status() == 9
    half = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    done = call(argv(config, tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "run", tmp_path / "whole")
    torch.manual_seed(0)
    options = dict(BACKBONE)
    start = load_backbone(options.pop("name"), channels_from="each", **options.pop("arguments")).state_dict()
    end = weights(tmp_path / "whole")
    moved = [
        {k for k, v in start.items() if not torch.equal(v, state[f"network.backbone.{k}"])} for state in (half, end)
    ]
    patch = {"model.patch_embed.proj.weight", "model.patch_embed.proj.bias"}
    assert moved[0] == patch
    assert patch < moved[1]
    assert {k.split(".")[2] for k in moved[1] if k.startswith("model.blocks.")} == {"3"}
    saved = json.loads((tmp_path / "run/model/config.json").read_text())["backbone"]
    assert saved["each_channel"] and saved["channels"] == ["red", "green", "blue"]
    other = run(tmp_path, "run", **(changes | {"model.init_args.backbone.channels_from": "mean"}))
    assert other.returncode == 1
    assert "channels_from" in other.stderr


def test_a_frozen_backbone_is_frozen_again_after_its_patch_embedding(tmp_path: Path) -> None:
    """From step 2 on nothing of the backbone changes."""
    ends = []
    for steps in (2, 4):
        tune = {"patch_steps": 2}
        done = run(
            tmp_path,
            f"run{steps}",
            **{
                "model.init_args.tune": tune,
                "model.init_args.steps": steps,
                "val_every": 2,
                "model.init_args.optim": {"lr": 0.01, "schedule": "constant"},
            },
        )
        assert done.returncode == 0, done.stderr
        ends.append({k: v for k, v in weights(tmp_path / f"run{steps}").items() if ".backbone." in k})
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])


def test_a_run_that_patience_ended_stays_ended(tmp_path: Path) -> None:
    changes = {"model.init_args.optim": {"lr": 1e-12}, "val_every": 1, "patience": 2}
    ends = []
    for _ in range(2):
        done = run(tmp_path, "run", **changes)
        assert done.returncode == 0, done.stderr
        ends.append(torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"])
    assert ends[0] == ends[1] < 12


def test_another_recipe_is_refused(tmp_path: Path) -> None:
    changes = {"model.init_args.steps": 2}
    assert run(tmp_path, "run", **changes).returncode == 0
    done = run(tmp_path, "run", **changes, **{"model.init_args.optim.lr": 0.5})
    assert done.returncode == 1
    assert "0.01" in done.stderr
    assert "0.5" in done.stderr
    assert "another --output" in done.stderr


def test_another_way_to_measure_or_to_use_is_another_recipe(tmp_path: Path) -> None:
    """Validations of two protocols are no run; checkpoints that were written before these were kept continue."""
    changes = task("DepthTask", DPT, loss={"silog": 1.0}, steps=2) | {"val_every": 1}
    assert run(tmp_path, "run", **changes).returncode == 0
    last = tmp_path / "run/checkpoints/last.ckpt"
    others = {
        "evaluation": ({"cap": [0.001, 5.0]}, "evaluation.cap"),
        "inference": ({"window": 24}, "inference.window"),
    }
    for name, (other, words) in others.items():
        done = run(tmp_path, "run", **changes, **{f"model.init_args.{name}": other})
        assert done.returncode == 1, done.stdout
        assert words in done.stderr
        assert "another --output" in done.stderr
    content = torch.load(last, weights_only=True)
    content["recipe"] = {key: value for key, value in content["recipe"].items() if key not in others}
    torch.save(content, last)
    assert run(tmp_path, "run", **changes).returncode == 0


def labelled(root: Path, seed: int) -> None:
    """Five scenes in a folder, with masks of two classes."""
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for index in range(5):
        scene = render(seed, index, 32)
        Image.fromarray(scene.image).save(root / f"images/{index}.png")
        Image.fromarray((scene.instance > 0).astype(np.uint8)).save(root / f"masks/{index}.png")
    (root / "classes.yaml").write_text("[ground, thing]\n")


def test_other_data_is_no_continuation(tmp_path: Path) -> None:
    """A finished run refuses other images too, and its files stay unchanged."""
    labelled(tmp_path / "data", 0)
    labelled(tmp_path / "other", 1)
    first = {"data.root": str(tmp_path / "data"), "data.batch_size": 2, "model.init_args.steps": 2, "val_every": 2}
    done = run(tmp_path, "run", **first)
    assert done.returncode == 0, done.stderr
    files = [
        path for name in ("*", "model/*", "checkpoints/*") for path in (tmp_path / "run").glob(name) if path.is_file()
    ]
    left = {path: path.read_bytes() for path in files}
    changes: list[tuple[dict[str, Any], str]] = [
        ({"data.root": str(tmp_path / "other")}, "data.to train on"),
        ({"data.batch_size": 3}, "3 now, 2 then"),
        ({"data.crop_size": 16}, "data.crop_size: 16 now, 24 then"),
        ({"data.augment": {"flip": 0.25}}, "data.augment.flip"),
        ({"data.val_ratio": 0.8}, "data.to validate on"),
    ]
    for change, words in changes:
        done = run(tmp_path, "run", **(first | change))
        assert done.returncode == 1, done.stderr
        assert words in done.stderr
        assert "another --output" in done.stderr
        assert left == {path: path.read_bytes() for path in files}


def test_data_that_moved_continue(tmp_path: Path) -> None:
    """The same images at another place, loaded by more workers, are the same data."""
    labelled(tmp_path / "data", 0)
    first = {"data.batch_size": 2, "model.init_args.steps": 2, "val_every": 2}
    assert run(tmp_path, "run", **first, **{"data.root": str(tmp_path / "data")}).returncode == 0
    (tmp_path / "data").rename(tmp_path / "moved")
    done = run(tmp_path, "run", **first, **{"data.root": str(tmp_path / "moved"), "data.workers": 1})
    assert done.returncode == 0, done.stderr


def test_accumulated_batches_are_one_batch(tmp_path: Path) -> None:
    plain = {"model.init_args.head": {"name": "linear", "outputs": {"labels": {"name": "classes"}}}, "data.augment": {},
             "data.crop_size": None, "model.init_args.steps": 3, "val_every": 3}  # fmt: skip
    assert run(tmp_path / "a", "run", **plain).returncode == 0
    parts = plain | {"data.batch_size": 2, "trainer.accumulate_grad_batches": 2}
    assert run(tmp_path / "b", "run", **parts).returncode == 0
    a, b = weights(tmp_path / "a/run"), weights(tmp_path / "b/run")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=2e-5, msg=name)
    assert numbers(tmp_path / "a/run") == pytest.approx(numbers(tmp_path / "b/run"), abs=1e-3)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """DDP over gloo with 2 x 2 images ends as one process with 4, though not all of the backbone is read."""
    head = {"name": "linear", "outputs": {"labels": {"name": "classes"}}}
    plain = {
        "model.init_args.head": head, "model.init_args.tune": {"unfreeze": 1},
        "model.init_args.backbone.norm": False, "model.init_args.steps": 3, "val_every": 3,
    }  # fmt: skip
    assert run(tmp_path / "a", "run", **plain).returncode == 0
    changes = plain | {"data.batch_size": 2, "trainer.devices": 2, "trainer.strategy": "ddp"}
    command = [sys.executable, "-m", "dense", *argv(write(tmp_path / "b", **changes), tmp_path / "b/run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stderr
    a, b = weights(tmp_path / "a/run"), weights(tmp_path / "b/run")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=2e-5, msg=name)
    assert numbers(tmp_path / "a/run") == pytest.approx(numbers(tmp_path / "b/run"), abs=2e-3)


@pytest.mark.slow
def test_two_processes_fill_one_cache(tmp_path: Path) -> None:
    """DDP over gloo leaves the records that one process leaves, bit by bit, and trains from them."""
    plain = {"data.cache": str(tmp_path / "one"), "data.copies": 2, "model.init_args.steps": 2, "val_every": 2}
    assert run(tmp_path / "a", "run", **plain).returncode == 0
    changes = plain | {"data.cache": str(tmp_path / "two"), "data.batch_size": 2}
    changes |= {"trainer.devices": 2, "trainer.strategy": "ddp"}
    both = in_processes(argv(write(tmp_path / "b", **changes), tmp_path / "b/run"), tmp_path)
    assert "".join(one.output for one in both).count("features of train: 32 computed, 0 in the cache") == 1
    assert records(tmp_path / "two") == records(tmp_path / "one")


def test_relative_depth_files_train_relative_depth(tmp_path: Path) -> None:
    for index in range(6):
        scene = render(0, index, 32)
        for kind in ("images", "depth"):
            (tmp_path / "data" / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene.image).save(tmp_path / f"data/images/{index}.png")
        inverse = np.where(scene.valid, 1 / np.maximum(scene.depth, 0.1), np.nan).astype(np.float32)
        np.save(tmp_path / f"data/depth/{index}.npy", inverse)
    (tmp_path / "data/depth.yaml").write_text("{kind: inverse_relative}")
    output = {"name": "regression", "activation": "identity", "kind": "inverse_relative"}
    changes = task("DepthTask", DPT, loss={"midas": 1.0}, steps=2)
    changes["model"]["init_args"]["head"] = DPT | {"outputs": {"depth": output}}
    data = {"root": str(tmp_path / "data"), "workers": 0, "batch_size": 2, "val_ratio": 0.4}
    done = run(tmp_path, "run", **changes | {"data": data, "val_every": 1})
    assert done.returncode == 0, done.stderr
    assert "val/ssi_mae" in done.stdout


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.init_args.head.outputs": {"labels": {"name": "regression"}}}, "{name: classes}"),
        ({"model.init_args.head.outputs": {"seg": {"name": "classes"}}}, "'seg'"),
        ({"model.init_args.head.outputs": {"labels": "classes"}}, "{name: classes}"),
        (task("DepthTask", DPT) | {"data.root": "scenes"}, ""),
        ({"model.init_args.tune": {"unfreeze": 9}}, "4 blocks"),
        ({"val_every": -1}, "val_every=-1"),
        ({"data.crop_size": 0}, "data.crop_size=0: expected at least 1 pixel"),
        ({"data.crop_size": [24, 7]}, "data.crop_size=(24, 7): an image of 24x7 is smaller than one patch of 8x8"),
        ({"data.augment": {"flipp": 1}}, "flip"),
    ],
)
def test_recipes_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    if not words:
        changes["model"]["init_args"]["head"] = DPT | {"outputs": {"depth": {"name": "classes", "count": 3}}}
        words = "{name: regression}"
    done = run(tmp_path, "run", **changes)
    assert done.returncode in (1, 2), done.stdout
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", [["--model.backbone.weights", "null"], ["--model.init_args.backbone.weights=null"]])
def test_null_takes_away_what_a_recipe_sets(option: list[str]) -> None:
    """And is not the text 'None'."""
    for given, expected in (([], "timm"), (option, None)):
        printed = call(["train", "--config", "depth/dpt_dinov2", *given, "--print_config"])
        assert yaml.safe_load(printed.stdout)["model"]["init_args"]["backbone"]["weights"] == expected


def test_help_and_misspelt_options(tmp_path: Path) -> None:
    assert "--data.batch_size" in call(["train", "--help"]).stdout
    printed = call(["train", "--config", "segmentation/scenes_linear", "--print_config"])
    assert yaml.safe_load(printed.stdout)["model"]["init_args"]["optim"]["lr"] == 0.01
    shipped = ["train", "--config", "segmentation/scenes_linear", "--output", str(tmp_path / "run")]
    for option, words in {
        "--data.bach_size=3": "--data.batch_size",
        "--model.init_args.stps=3": "steps",
        "--model.init_args.optim.lrr=3": "optim.lr",
        "--patiense=3": "--patience",
        "--optimizer=SGD": "--optimizer",
    }.items():
        done = call([*shipped, option])
        assert done.returncode == 2, option
        assert words in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
