"""Channels and levels of trainings: chosen once, kept, saved, and refused before anything is trained."""

from __future__ import annotations

import json
import os
import shlex
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import dense
from dense.data.labelled.open import open_labelled
from dense.data.levels import Reading
from dense.data.shards import ShardImages
from dense.training.checkpoints import Checkpoints
from dense.training.reading import settle_reading
from tests.data.scientific_files import labelled
from tests.runs import Forked, assert_same, call

TINY = {
    "model.backbone.name": "vit_tiny_patch16_224", "model.backbone.arguments": {"img_size": 32, "depth": 1},
    "data.crop_size": 32, "data.batch_size": 2, "data.workers": 0, "trainer.accelerator": "cpu", "trainer.devices": 1,
    "trainer.precision": "32-true",
}  # fmt: skip


def words(options: dict[str, Any]) -> list[str]:
    return [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in options.items()]


def settled(
    root: Path, folder: Path, levels: Any = None, channels: Any = None, **backbone: Any
) -> tuple[Any, Any, list[str]]:
    """The options of data and backbone after `settle_reading`, and its lines."""
    data = SimpleNamespace(levels=levels, channels=channels)
    given = {"channels": backbone.pop("read", None), "arguments": {}} | backbone
    options = SimpleNamespace(name="vit_tiny_patch16_224", **given)
    lines = settle_reading(data, options, lambda reading: open_labelled(root, "all", reading=reading), folder)
    return data, options, lines


def test_photographs_stay_as_they_are(tmp_path: Path) -> None:
    data, backbone, lines = settled(tmp_path, tmp_path)
    assert (data.levels, data.channels, backbone.channels, backbone.arguments, lines) == (None, None, None, {}, [])


def test_auto_is_chosen_printed_and_kept(tmp_path: Path) -> None:
    root = labelled(tmp_path / "cells", 5, 2)
    data, backbone, lines = settled(root, tmp_path / "run", "auto", ["dapi", "actin"])
    assert backbone.channels == data.channels == ["dapi", "actin"]
    assert lines[0].startswith("data.levels: channels dapi, actin; levels dapi ") and "quantiles" in lines[0]
    assert lines[1].startswith("mean and standard deviation: dapi 0.") and set(data.levels) == {"black", "white"}
    assert Reading.of(data.levels, data.channels).to_dict() == backbone.arguments["reading"]

    # a run that has begun keeps its numbers, whatever the images are now
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints/last.ckpt").touch()
    kept = {"levels": {"black": [1.0, 2.0], "white": [3.0, 4.0]}}
    arguments = {"mean": [0.5, 0.25], "std": [0.1, 0.2]}
    begun = {"data": kept, "model": {"init_args": {"backbone": {"arguments": arguments}}}}
    (run / "config.yaml").write_text(yaml.safe_dump(begun))
    data, backbone, lines = settled(root, run, "auto", ["dapi", "actin"])
    assert data.levels == kept["levels"] and "as the run began" in lines[0]
    assert backbone.arguments["mean"] == [0.5, 0.25]


def test_a_given_value_wins_over_auto(tmp_path: Path) -> None:
    root = labelled(tmp_path, 4, 2)
    data, backbone, lines = settled(root, tmp_path, [0, 4095], 2, arguments={"mean": [0.1, 0.2], "std": [1, 1]})
    assert data.levels == {"black": [0.0], "white": [4095.0]}
    assert lines == ["data.levels: channels ch1, ch2; levels 0 to 4095, as given"]
    assert backbone.arguments["mean"] == [0.1, 0.2] and backbone.channels == ["ch1", "ch2"]
    data, _, _ = settled(root, tmp_path, {"black": "auto", "white": "auto", "gamma": 0.5}, 2)
    assert data.levels["gamma"] == 0.5 and len(data.levels["black"]) == 2


def test_numbers_of_channels_that_differ_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.channels=\['ch1', 'ch2'\] and model\.backbone\.channels=4"):
        settled(labelled(tmp_path, 2, 2), tmp_path, [0, 4095], 2, read=4)


def test_shards_have_levels_and_statistics(tmp_path: Path) -> None:
    root = labelled(tmp_path / "cells", 3, 2)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for path in sorted((root / "images").iterdir()):
            archive.add(path, path.name)
    data = SimpleNamespace(levels="auto", channels=2)
    backbone = SimpleNamespace(name="vit_tiny_patch16_224", channels=None, arguments={})
    settle_reading(data, backbone, lambda reading: ShardImages(tmp_path / "a.tar", None, reading), tmp_path)
    expected, _, _ = settled(root, tmp_path, "auto", 2)
    assert data.levels == expected.levels
    images = ShardImages(tmp_path / "a.tar", None, Reading.of(data.levels, 2))
    assert images.read(0).shape == (48, 64, 2)


def test_a_training_on_nearly_black_images_stops_with_the_option(tmp_path: Path) -> None:
    root = labelled(tmp_path / "cells", 4, 1)
    options = {**TINY, "data.root": str(root), "model.init_args.steps": 2, "output": str(tmp_path / "run")}
    arguments = ["train", "--config", "segmentation/scenes_linear", *words(options)]
    done = call(arguments)
    assert done.returncode and "nearly black" in done.stderr
    assert not (tmp_path / "run").exists()
    advice = shlex.split(done.stderr.split("; add ")[1])
    assert advice == ["--data.levels", "[0, 4095]"]
    done = call([*arguments, *advice])
    assert done.returncode == 0, done.stderr
    options = {"data.root": str(root / "images"), "output": str(tmp_path / "run")}
    done = call(["pretrain", "--config", "pretrain/small_data", *words(options)])
    assert done.returncode and "nearly black" in done.stderr
    assert shlex.split(done.stderr.split("; add ")[1]) == advice


def end_after_step_2() -> None:
    """End this process once its second step is saved."""
    save = Checkpoints.save

    def once(self: Checkpoints, trainer: Any, path: Path) -> None:
        save(self, trainer, path)
        if trainer.global_step == 2:
            os._exit(9)

    Checkpoints.save = once  # type: ignore[method-assign]


@pytest.mark.slow
def test_a_run_with_auto_levels_continues_exactly(tmp_path: Path) -> None:
    """Five channels, whose brightness, contrast and gamma change one by one."""
    root = labelled(tmp_path / "cells", 5, names=["a", "b", "c", "d", "e"])
    options: dict[str, Any] = {
        **TINY, "data.root": str(root), "data.channels": ["a", "b", "c", "d", "e"], "data.levels": "auto",
        "model.init_args.steps": 4, "checkpoint.every_steps": 2,
        "data.augment": {"flip": 0.5, "brightness": 0.3, "contrast": 0.2, "saturation": 0.4, "gamma": [0.8, 1.2]},
    }  # fmt: skip
    arguments = ["train", "--config", "segmentation/scenes_linear", *words(options)]
    assert call([*arguments, "--output", str(tmp_path / "whole")]).returncode == 0
    parts = [*arguments, "--output", str(tmp_path / "parts")]
    assert Forked(parts, tmp_path, end_after_step_2).status() == 9
    done = call(parts)
    assert done.returncode == 0, done.stderr
    assert "as the run began" in done.stdout
    assert_same(tmp_path / "parts", tmp_path / "whole")
    other = call([*arguments, "--data.levels", "[0, 4095]", "--output", str(tmp_path / "parts")])
    assert other.returncode == 1 and "reading.black" in other.stderr


@pytest.mark.parametrize("kind", ["depth", "restoration"])
def test_depth_and_restoration_of_two_channels(kind: str, tmp_path: Path) -> None:
    root = labelled(tmp_path / "cells", 5, 2)
    options: dict[str, Any] = {
        **TINY, "data.channels": 2, "data.levels": [0, 4095], "model.init_args.steps": 2,
        "output": str(tmp_path / "run"), "data.root": str(root),
    }  # fmt: skip
    if kind == "depth":
        (root / "masks").rename(root / "depth")
        (root / "depth.yaml").write_text("{kind: metric, scale: 1, invalid: [0]}")
        options["data.targets"] = ["depth"]
        recipe = "depth/scenes_linear"
    else:
        recipe = "restoration/scenes_tiny"
    if kind == "restoration":
        options |= {"data.root": str(root / "images"), "data.layout": "images", "data.patches": None}
        options |= {"data.degrade": {"kinds": {"noise": [25]}}}
        options |= {
            "model.init_args.head.body": "{dim: 8, blocks: [1,1,1,1], heads: [1,1,2,2], refinement: 1, expansion: 2.0}"
        }
    done = call(["train", "--config", recipe, *words(options)])
    assert done.returncode == 0, done.stderr
    predictor = dense.load(tmp_path / "run/model")
    prediction = predictor(next(iter(sorted((root / "images").iterdir()))))
    assert prediction.values.shape[:2] == (48, 64)
