"""Whole runs: the backbone they write, resume after kills, bad input, full disks."""

from __future__ import annotations

import json
import resource
import signal
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import tifffile
import torch
from lightning.pytorch.plugins import MixedPrecision
from PIL import Image

import dense
from dense.data.levels import Reading
from pretrain import DINO, MultiCrop, PretrainData
from pretrain.knn import KNNEvaluation
from pretrain.optim import clip_gradients_
from pretrain.recipe import BackboneOptions, HeadOptions
from pretrain.run import memory_facts
from tests.data.scientific_files import cells
from tests.pretrain.runs import command, run, start, write_config
from tests.runs import Forked, assert_same, in_processes, weights


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of 12 steps, whose last step is also kept for good."""
    folder = tmp_path_factory.mktemp("finished")
    done = run(write_config(folder, **{"checkpoint.keep_every": 12}), folder / "run")
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_the_backbone_and_its_records(finished: Path) -> None:
    """A backbone that opens, with the recipe on its card; logs and curves; plain checkpoints."""
    backbone = dense.load_backbone(finished / "backbone")
    features = backbone(torch.randn(1, 3, 40, 56))
    assert features.maps[-1].shape == (1, 16, 5, 7)
    teacher = {
        k.removeprefix("teacher.network.backbone."): v
        for k, v in weights(finished).items()
        if k.startswith("teacher.network.backbone.")
    }
    assert all(torch.equal(v, teacher[k]) for k, v in backbone.state_dict().items())
    card = (finished / "backbone/README.md").read_text()
    assert "scenes:train" in card
    assert '"lr": 0.01' in card
    for name in ("loss.png", "health.png", "metrics.csv", "config.yaml", "facts.json"):
        assert (finished / name).stat().st_size > 0, name
    assert list((finished / "tensorboard").glob("events*"))
    metrics = (finished / "metrics.csv").read_text()
    for name in ("teacher_entropy", "kl", "center_norm", "feature_std", "effective_rank", "prototype_usage", "lr"):
        assert name in metrics
    assert json.loads((finished / "facts.json").read_text())["optimiser steps"] == 12
    for name in ("last", "step_00000012"):
        assert torch.load(finished / f"checkpoints/{name}.ckpt", weights_only=True)["global_step"] == 12


def test_the_memory_of_a_gpu_is_a_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 << 30)
    devices = {"cpu": {}, "cuda": {"accelerator memory of this session, MB": 3072}}
    for name, expected in devices.items():
        trainer: Any = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(name)))
        assert memory_facts(trainer) == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_and_continued(finished: Path, tmp_path: Path, workers: int) -> None:
    """SIGKILL in mid-epoch, the same command again, and the weights are those of the run that was never stopped."""
    config = write_config(tmp_path, **{"data.workers": workers})
    output = tmp_path / "run"
    process = start(config, output)
    last = output / "checkpoints/last.ckpt"
    deadline = time.monotonic() + 120
    while not last.is_file() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.status(signal.SIGKILL) == -signal.SIGKILL, "the run ended before it could be killed"
    step = torch.load(last, weights_only=True)["global_step"]
    assert 0 < step < 12
    done = run(config, output)
    assert done.returncode == 0, done.stderr
    assert "continuing" in done.stdout
    assert_same(output, finished)
    steps = [line.split(",")[0] for line in (output / "metrics.csv").read_text().splitlines()]
    assert steps == ["step", "0", "2", "4", "6", "8", "10"], (
        "the log of the first part is kept, and nothing comes twice"
    )


def test_a_run_that_is_all_warm_up_reports_it(tmp_path: Path) -> None:
    """With eight steps per epoch, ten epochs of warm-up are 80 steps, and a run of 2 steps is all warm-up."""
    changes = {"model.steps": 2, "checkpoint.every_steps": 0}
    done = run(write_config(tmp_path, **changes, **{"model.optim.warmup_epochs": 10}), tmp_path / "short")
    assert done.returncode == 0, done.stderr
    assert "2 steps, all of them warm-up (model.optim.warmup_epochs=10 is 80 steps; lower it)" in done.stdout
    done = run(write_config(tmp_path, **changes, **{"model.optim.warmup_epochs": 0}), tmp_path / "none")
    assert "2 steps, 32-true" in done.stdout


def test_sigterm_saves_first(finished: Path, tmp_path: Path) -> None:
    """SIGTERM writes a checkpoint and gives status 143; the continued run ends with the same weights."""
    config = write_config(tmp_path, **{"checkpoint.every_steps": 0})
    output = tmp_path / "run"
    metrics = output / "metrics.csv"
    process = start(config, output)
    while not (metrics.is_file() and metrics.read_text().count("\n") > 1) and process.is_alive():
        time.sleep(0.005)
    assert process.status(signal.SIGTERM) == 143, process.errors
    assert "the same command continues" in process.errors
    assert run(config, output).returncode == 0
    assert_same(output, finished)


def test_accumulation_keeps_the_meaning_of_a_batch(tmp_path: Path) -> None:
    """Two micro-batches of 2 train as one batch of 4: the loss, the centre and the schedules move alike."""
    plain = {"model.backbone.drop_path": 0.0, "model.steps": 4}
    one, two = tmp_path / "one", tmp_path / "two"
    assert run(write_config(one, **plain), one / "run").returncode == 0
    accumulated = write_config(two, **plain, **{"data.batch_size": 2, "trainer.accumulate_grad_batches": 2})
    done = run(accumulated, two / "run")
    assert done.returncode == 0, done.stderr
    a, b = weights(one / "run"), weights(two / "run")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=2e-5, msg=name)
    torch.testing.assert_close(
        a["terms.dino.targets.centering.center"], b["terms.dino.targets.centering.center"], rtol=1e-4, atol=1e-6
    )


def test_another_recipe_is_refused(finished: Path, tmp_path: Path) -> None:
    """A run does not continue with another recipe; the error names the differences."""
    done = run(write_config(tmp_path, **{"model.optim.lr": 0.5}), finished)
    assert done.returncode == 1
    assert "optim.lr: 0.5 now, 0.01 then" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    """Writing fails after the first checkpoints: a clear error, status 1, and the old one opens."""
    config, output = write_config(tmp_path, **{"model.steps": 6, "trainer.max_steps": 3}), tmp_path / "run"
    assert run(config, output).returncode == 0
    before = (output / "checkpoints/last.ckpt").read_bytes()
    limit = len(before) // 2
    config = write_config(tmp_path, **{"model.steps": 6})

    process = Forked(
        command(config, output)[3:], tmp_path, partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))
    )
    assert process.status() == 1, process.errors
    assert f"cannot write {output / 'checkpoints/last.ckpt'}: " in process.errors
    assert "the previous last.ckpt is intact" in process.errors
    assert (output / "checkpoints/last.ckpt").read_bytes() == before
    assert not list((output / "checkpoints").glob(".*partial"))


@pytest.mark.parametrize("every", [1, 100])
def test_nan_ends_the_run_and_keeps_the_checkpoint(tmp_path: Path, every: int) -> None:
    """Status 1, one line, no backbone, and the previous checkpoint stays, whether a measurement or a checkpoint is due
    first."""
    changes = {
        "model.optim.lr": 1e30,
        "model.optim.warmup_epochs": 0,
        "model.optim.clip": 0.0,
        "model.health.every": every,
    }
    output = tmp_path / "run"
    done = run(write_config(tmp_path, **changes, **{"checkpoint.every_steps": 1}), output)
    assert done.returncode == 1, done.stdout
    assert "NaN or infinity in" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (output / "backbone").exists()
    assert all(value.isfinite().all() for value in weights(output).values())


def test_a_collapse_may_end_the_run(tmp_path: Path) -> None:
    """With on_failure: stop, the status is 1, the failure is reported, curves are drawn and no backbone is written."""
    changes = {"model.teacher.temperature": 100.0, "model.health.warmup_steps": 0, "model.health.patience": 2}
    done = run(write_config(tmp_path, **changes, **{"model.health.on_failure": "stop"}), tmp_path / "run")
    assert done.returncode == 1, done.stdout
    assert "Step 2: Collapse to uniform" in done.stderr
    assert (tmp_path / "run/health.png").is_file()
    assert not (tmp_path / "run/backbone").exists()


def test_fp16_clips_gradients_without_their_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients are clipped after the loss scaling of fp16 is undone."""
    norms: dict[str, float] = {}
    for name in ("32-true", "16-mixed"):
        half = [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=8.0))]

        def clip(*arguments: Any, name: str = name) -> torch.Tensor:
            total = clip_gradients_(*arguments)
            norms[name] = float(total)
            return total

        monkeypatch.setattr("pretrain.module.clip_gradients_", clip)
        tiny = {"patch_size": 8, "img_size": 32, "depth": 1, "embed_dim": 16, "num_heads": 2}
        model = DINO(BackboneOptions("vit_tiny_patch16_224", tiny, drop_path=0.0), HeadOptions(16, 16, 8), steps=1)
        data = PretrainData("scenes:train", MultiCrop(32, 16, 2), batch_size=4, workers=0, scenes=8, scene_size=32)
        trainer = pl.Trainer(
            accelerator="cpu", plugins=half if name == "16-mixed" else None, logger=False, max_steps=1,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(model, datamodule=data)
    assert norms["16-mixed"] == pytest.approx(norms["32-true"], rel=0.2)


def test_other_batches_are_refused(finished: Path, tmp_path: Path) -> None:
    """A run does not continue with batches of another size, another order or other crops."""
    for changes in (
        {"data.batch_size": 2},
        {"data.seed": 1},
        {"data.views.init_args.local_crops": 3},
        {"data.views.init_args.grey": 0.9},
        {"data.scenes": 9},
        {"data.scene_size": 40},
        {"data.root": "scenes:val"},
    ):
        done = run(write_config(tmp_path, **changes), finished)
        assert done.returncode == 1, changes
        assert "now, " in done.stderr
        assert "Traceback" not in done.stderr


def test_other_images_are_refused(tmp_path: Path) -> None:
    """Other images of the same number and names are refused; the same images in another folder are accepted."""
    random = np.random.default_rng(0)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for i in range(8):
            image = random.integers(0, 255, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / folder / f"{i}.jpg")
    changes = {"model.steps": 2, "data.workers": 0}
    for folder, status in (("a", 0), ("b", 1), ("moved", 0)):
        if folder == "moved":
            (tmp_path / "a").rename(tmp_path / "moved")
        done = run(write_config(tmp_path, **changes, **{"data.root": str(tmp_path / folder)}), tmp_path / "run")
        assert done.returncode == status, done.stderr
        assert ("data.which" in done.stderr) == bool(status)


def test_images_of_every_kind(tmp_path: Path) -> None:
    """A folder with damaged and unusual images trains to the end and lists what could not be read."""
    images = tmp_path / "pictures" / "class"
    images.mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(random.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(images / f"{i}.jpg")
    Image.fromarray(random.integers(0, 255, (40, 50, 4), dtype=np.uint8), "CMYK").save(images / "cmyk.jpg")
    Image.fromarray(random.integers(0, 65535, (40, 50), dtype=np.uint16)).save(images / "deep.png")
    (images / "empty.jpg").write_bytes(b"")
    whole = (images / "0.jpg").read_bytes()
    (images / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    config = write_config(tmp_path, **{"data.root": str(tmp_path / "pictures"), "model.steps": 6, "data.workers": 1})
    done = run(config, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "2 of 10 images could not be read" in done.stdout
    assert "empty.jpg" in done.stdout
    assert "truncated.jpg" in done.stdout
    again = run(config, tmp_path / "run")
    assert "2 of 10 images could not be read" in again.stdout, "unreadable images are kept in the checkpoint"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.root": "/nowhere/at/all"}, "no such folder"),
        ({"data.batch_size": 64}, "fewer than one total batch of 64"),
        ({"model.optim.lrr": 1}, "Did you mean"),
        ({"model.teacher.mode": "emaa"}, "ema"),
        ({"model.steps": 0}, "steps=0: expected at least 1"),
        ({"model.health.every": 0}, "health.every=0: expected at least 1"),
        ({"model.head.out_dim": 0}, "head.out_dim=0: expected at least 2"),
        ({"model.ibot.head": {"out_dim": 1}}, "ibot.head.out_dim=1: expected at least 2"),
        ({"model.teacher.temperature": 0.0}, "teacher.temperature=0.0: expected more than 0"),
        ({"model.ibot.temperature": -0.1}, "ibot.temperature=-0.1: expected more than 0"),
        ({"model.optim.clip": -1.0}, "optim.clip=-1.0: expected at least 0"),
        ({"model.optim.final_weight_decay": -0.4}, "optim.final_weight_decay=-0.4: expected at least 0"),
        ({"model.teacher.momentum": 1.5}, "teacher.momentum=1.5: expected 0 to 1"),
        (
            {"knn": {"train": "scenes:train", "val": "scenes:val", "scenes": [4, 2], "scene_size": 32, "k": 0}},
            "k is (0,)",
        ),
        ({"trainer.precision": "bf17"}, "precision"),
    ],
)
def test_bad_input(
    tmp_path: Path, changes: dict[str, object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One clear error, no traceback, nothing left running."""
    done = run(write_config(tmp_path, **changes), tmp_path / "run")
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_pretraining_continues_from_weights(finished: Path, tmp_path: Path) -> None:
    """init_from starts from given weights, and the backbone is frozen while the head warms up."""
    changes = {
        "model.backbone.init_from": str(finished / "backbone"),
        "model.backbone.head_warmup_steps": 3,
        "model.steps": 3,
    }
    done = run(write_config(tmp_path, **changes), tmp_path / "run")
    assert done.returncode == 0, done.stderr
    old = dense.load_backbone(finished / "backbone").state_dict()
    new = {k: v for k, v in weights(tmp_path / "run").items() if k.startswith("student.backbone.")}
    assert all(torch.equal(new[f"student.backbone.{k}"], v) for k, v in old.items())


def test_the_patch_embedding_is_trained_first_and_alone(finished: Path, tmp_path: Path) -> None:
    """Continued pretraining on other channels: student and teacher start from converted RGB weights."""
    changes = {
        "model.backbone.init_from": str(finished / "backbone"), "model.backbone.channels": ["a", "b", "c"],
        "model.backbone.head_warmup_steps": 1, "model.backbone.patch_steps": 3, "model.steps": 3,
    }  # fmt: skip
    done = run(write_config(tmp_path, **changes), tmp_path / "run")
    assert done.returncode == 0, done.stderr
    old = dense.load_backbone(finished / "backbone", channels=("a", "b", "c")).state_dict()
    new = weights(tmp_path / "run")
    patch = {"model.patch_embed.proj.weight", "model.patch_embed.proj.bias"}
    for who in ("student.backbone.", "teacher.network.backbone."):
        assert {k for k, v in old.items() if not torch.equal(v, new[f"{who}{k}"])} == patch
    saved = dense.load_backbone(tmp_path / "run/backbone")
    assert saved.spec.channels == ("a", "b", "c")


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """DDP over gloo with 2 x 2 images ends with the weights and the k-NN accuracy of one process with 4."""
    knn = {"train": "scenes:train", "val": "scenes:val", "resize": None, "scenes": [25, 11], "scene_size": 32, "k": 5}
    plain = {"model.backbone.drop_path": 0.0, "model.health.every": 1, "model.steps": 4, "knn": knn}
    one, two = tmp_path / "one", tmp_path / "two"
    alone = run(write_config(one, **plain), one / "run")
    assert alone.returncode == 0, alone.stderr
    changes = {**plain, "data.batch_size": 2, "trainer.devices": 2, "trainer.strategy": "ddp"}
    both = in_processes(command(write_config(two, **changes), two / "run")[3:], two)
    printed = "".join(one.output for one in both)
    lines = [[line for line in text.splitlines() if "5-NN 0." in line] for text in (alone.stdout, printed)]
    assert len(lines[0]) == 1
    assert lines[0] == lines[1]
    a, b = weights(one / "run"), weights(two / "run")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=2e-5, msg=name)


def test_views_are_shown(tmp_path: Path) -> None:
    """Instead of a training; the drawing holds the image and all views in a row."""
    config = write_config(tmp_path)
    done = run(config, tmp_path / "run", "--show-views", str(tmp_path / "views.png"))
    assert done.returncode == 0, done.stderr
    assert "4 images and their" in done.stdout
    assert not (tmp_path / "run/facts.json").exists()
    assert Image.open(tmp_path / "views.png").width > 3 * 128
    for words, said in (
        ([], "expected a file"),
        ([str(tmp_path / "views.png")], "would overwrite what is there"),
        ([str(tmp_path / "views.txt")], "expected a file that ends in .png or .jpg"),
    ):
        assert said in run(config, tmp_path / "run", "--show-views", *words).stderr


def test_knn_during_a_run(tmp_path: Path) -> None:
    """k-NN is evaluated on schedule, logged, written on the card, and does not change the training."""
    knn = {
        "train": "scenes:train",
        "val": "scenes:val",
        "every_steps": 2,
        "resize": None,
        "scenes": [24, 12],
        "scene_size": 32,
        "k": 5,
        "student": True,
    }
    with_knn, without = tmp_path / "with", tmp_path / "without"
    done = run(write_config(with_knn, **{"model.steps": 4, "data.workers": 1, "knn": knn}), with_knn / "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("5-NN 0.") == 2
    assert done.stdout.count(", student 0.") == 2
    assert {"knn", "knn_student"} <= {*(with_knn / "run/metrics.csv").read_text().splitlines()[0].split(",")}
    assert "5-NN accuracy" in (with_knn / "run/backbone/README.md").read_text()
    assert run(write_config(without, **{"model.steps": 4}), without / "run").returncode == 0
    a, b = weights(with_knn / "run"), weights(without / "run")
    assert all(torch.equal(a[k], b[k]) for k in a)
    half = run(write_config(tmp_path, **{"knn": {"train": "scenes:train"}}), tmp_path / "run")
    assert half.returncode == 1
    assert "both --knn.train and --knn.val" in half.stderr


def test_knn_reads_as_the_training_does(tmp_path: Path) -> None:
    """Levels and channels, also those that are chosen when the run begins; scenes have no such channels."""
    for part in ("train", "val"):
        for name in "ab":
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(3):
                values = cells(2, number + 10 * (name == "b"), (40, 40))[0].transpose(2, 0, 1)
                tifffile.imwrite(tmp_path / part / name / f"{number}.tif", values, photometric="minisblack")
    knn = {"train": str(tmp_path / "train"), "val": str(tmp_path / "val"), "resize": 32, "crop": 32, "k": 3}
    of_data = {"data.root": str(tmp_path / "train"), "data.channels": ["dapi", "actin"], "data.levels": "auto"}
    done = run(write_config(tmp_path, **{"model.steps": 1, "knn": knn, **of_data}), tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "3-NN " in done.stdout
    with pytest.raises(ValueError, match=r"knn: scenes:train is RGB, and the training reads channels ch1, ch2"):
        KNNEvaluation("scenes:train", "scenes:val", reading=Reading.of(None, 2))


def test_resnet_trains(tmp_path: Path) -> None:
    """A convolutional student trains with SGD; the teacher's batch norm has statistics of its own."""
    changes = {
        "model.backbone": {"name": "resnet10t", "drop_path": 0.0},
        "model.optim": {"name": "sgd", "lr": 0.03, "warmup_epochs": 0},
        "model.steps": 2,
    }
    done = run(write_config(tmp_path, **changes), tmp_path / "run")
    assert done.returncode == 0, done.stderr
    state = weights(tmp_path / "run")
    name = "backbone.model.bn1.running_mean"
    assert not torch.equal(state[f"teacher.network.{name}"], state[f"student.{name}"])
    assert float(state[f"teacher.network.{name}"].abs().sum()) > 0
    assert dense.load_backbone(tmp_path / "run/backbone").spec.kind == "pyramid"


def test_windows_of_large_files(tmp_path: Path) -> None:
    """Views of windows, others in every epoch; a run that was killed continues bit for bit."""
    tifffile = pytest.importorskip("tifffile")
    from tests.data.test_large import damage  # which needs tifffile

    (tmp_path / "images").mkdir()
    for number in range(3):
        image = np.random.default_rng(number).integers(0, 256, (90, 120, 3), dtype=np.uint8)
        options = {"tile": (32, 32), "compression": "zlib", "photometric": "rgb"}
        tifffile.imwrite(tmp_path / f"images/{number}.tif", image, **options)
    damage(tmp_path / "images/1.tif", 5)
    changes = {"data.root": str(tmp_path / "images"), "data.windows": 6, "data.window_size": 48}
    config = write_config(tmp_path, **changes)
    assert run(config, tmp_path / "whole").returncode == 0
    assert json.loads((tmp_path / "whole/facts.json").read_text())["number of images"] == 18
    process = start(config, tmp_path / "killed")
    last = tmp_path / "killed/checkpoints/last.ckpt"
    deadline = time.monotonic() + 120
    while not last.is_file() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.status(signal.SIGKILL) == -signal.SIGKILL, "the run ended before it could be killed"
    done = run(config, tmp_path / "killed")
    assert done.returncode == 0, done.stderr
    assert "1 damaged tiles, whose pixels were masked, in 1 files" in done.stderr
    assert_same(tmp_path / "killed", tmp_path / "whole")
    done = run(write_config(tmp_path / "other", **{"data.windows": 2}), tmp_path / "scenes")
    assert "data.windows=2: only files have windows; leave it out for scenes:train" in done.stderr
