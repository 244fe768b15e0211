"""`dense.pretrain`: the same run as the verb, from Python."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

import dense
from dense.suggest import UsageError
from pretrain import DINO, MultiCrop, PretrainData
from pretrain.recipe import BackboneOptions, HeadOptions
from tests.pretrain.runs import run, write_config
from tests.runs import alone, assert_same, environment


def call(recipe: Path, output: Path, **overrides: Any) -> dense.Backbone:
    """Pretrain in this process, on one thread like the verb's runs."""
    with alone():
        return dense.pretrain(str(recipe), data="scenes:train", output=output, **overrides)


def test_it_is_the_run_of_the_verb(tmp_path: Path) -> None:
    """Overrides have Python values: null, numbers, lists and dictionaries. A second call opens what is finished."""
    arguments = {"patch_size": 8, "img_size": 32, "depth": 1, "embed_dim": 16, "num_heads": 2}
    overrides: dict[str, Any] = {
        "model.steps": 4,
        "model.backbone.arguments": arguments,
        "model.koleo.group": None,
        "model.ibot.weight": 1.0,
        "model.ibot.mask_ratio": [0.2, 0.4],
        "data.views.init_args.local_crops": 3,
    }
    recipe = write_config(tmp_path)
    backbone = call(recipe, tmp_path / "call", **overrides)
    assert run(write_config(tmp_path / "v", **overrides), tmp_path / "verb").returncode == 0
    assert_same(tmp_path / "call", tmp_path / "verb")
    saved = dense.load_backbone(tmp_path / "call/backbone").state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in backbone.state_dict().items())
    assert backbone(torch.randn(1, 3, 32, 40), layers="last", norm=True).maps[-1].shape == (1, 16, 4, 5)
    for name in ("loss.png", "health.png", "metrics.csv", "config.yaml", "facts.json"):
        assert (tmp_path / "call" / name).is_file(), name
    again = call(recipe, tmp_path / "call", **overrides)
    assert all(torch.equal(value, saved[name]) for name, value in again.state_dict().items())


def test_a_signal_stops_it_and_the_same_call_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in a notebook is KeyboardInterrupt, after the run was saved."""
    recipe = write_config(tmp_path, **{"model.steps": 5, "checkpoint.every_steps": 0})
    call(recipe, tmp_path / "whole")
    training_step = DINO.training_step

    def interrupted(self: DINO, *arguments: Any) -> torch.Tensor:
        if self.trainer.global_step == 2:
            signal.raise_signal(signal.SIGINT)
        return training_step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(DINO, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt, match="the same call continues it"):
            call(recipe, tmp_path / "stopped")
    assert torch.load(tmp_path / "stopped/checkpoints/last.ckpt", weights_only=True)["global_step"] == 3
    call(recipe, tmp_path / "stopped")
    assert_same(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"model.optim.lrr": 1}, UsageError, "Did you mean .*lr"),
        ({"model.steps": "many"}, UsageError, "model.steps"),
        ({"model.teacher.mode": "emaa"}, UsageError, "ema"),
        ({"model.teacher.momentum": 1.5}, ValueError, r"teacher\.momentum=1\.5: expected 0 to 1"),
        ({"model.steps": 0}, ValueError, "steps=0: expected at least 1"),
        ({"data.root": "/nowhere/at/all"}, OSError, "/nowhere/at/all does not exist"),
        ({"output": "/proc/no/folder"}, OSError, "/proc/no"),
    ],
)
def test_errors_are_exceptions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: dict[str, Any], error: type, message: str
) -> None:
    """What the verb prints is raised, and nothing is printed instead."""
    recipe = write_config(tmp_path)
    options = {"data": "scenes:train", "output": tmp_path / "run"}
    for name, key in (("data", "data.root"), ("output", "output")):
        options[name] = overrides.pop(key, options[name])
    with pytest.raises(error, match=message), torch.random.fork_rng(devices=[]):
        dense.pretrain(str(recipe), **options, **overrides)
    assert capsys.readouterr().err == ""


def test_an_unknown_recipe(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config pretrain/small_date\. Did you mean pretrain/small_data"):
        dense.pretrain("pretrain/small_date", data="IMAGES", output=tmp_path)


def test_the_parts_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model, data and a trainer of one's own, without the command line; the former place of `run` still works."""
    monkeypatch.delitem(sys.modules, "pretrain.cli", raising=False)
    with pytest.warns(FutureWarning, match=r"pretrain\.cli is now pretrain\.run"):
        from pretrain.cli import run as former
    tiny = {"patch_size": 8, "img_size": 32, "depth": 1, "embed_dim": 16, "num_heads": 2}
    model = DINO(BackboneOptions("vit_tiny_patch16_224", tiny), HeadOptions(16, 16, 8), steps=2)
    data = PretrainData("scenes:train", MultiCrop(32, 16, 2), batch_size=4, workers=0, scenes=8, scene_size=32)
    trainer = pl.Trainer(accelerator="cpu", max_epochs=-1, logger=False, enable_checkpointing=False,
                         enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    with alone():
        assert former(model, data, trainer, tmp_path, {"every_minutes": 0}) == 0
    assert (tmp_path / "backbone/model.safetensors").is_file()


def test_importing_the_verb_costs_nothing() -> None:
    """Only the standard library is loaded, so that help and the command line answer at once."""
    heavy = ("torch", "numpy", "timm", "lightning")
    code = f"import sys, dense.cli.pretrain; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert done.stdout.strip() == "[]"
