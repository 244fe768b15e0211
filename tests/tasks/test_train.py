"""Whole runs of `dense train`: what they leave, resume after kills, joint labels, tuning, bad input."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import dense
from dense.data.scenes import CLASSES, render
from dense.data.transforms import Augment
from dense.model.network import DenseModel
from dense.predict import Depth, Joint, Segmentation
from dense.tasks.data import DenseData
from tests import runs
from tests.data.labelled_files import image_file, mask
from tests.data.test_labelled import kitti_eigen
from tests.runs import Done, Forked, assert_same, call

BACKBONE = {
    "name": "vit_tiny_patch16_224",
    "arguments": {"patch_size": 8, "img_size": 32, "depth": 4, "embed_dim": 16, "num_heads": 2},
}
DPT = {"name": "dpt", "width": 8, "reassemble": [8, 8, 8, 8], "readout": "project"}
CONFIG: dict[str, Any] = {
    "model": {
        "class_path": "dense.tasks.SegmentationTask",
        "init_args": {
            "backbone": BACKBONE,
            "head": {"name": "linear", "batch_norm": True, "dropout": 0.1, "outputs": {"labels": {"name": "classes"}}},
            "optim": {"lr": 0.01, "warmup_steps": 2},
            "target": {"size": "grid4"},
            "steps": 12,
        },
    },
    "data": {
        "root": "scenes",
        "scenes": [16, 6],
        "scene_size": 32,
        "batch_size": 4,
        "workers": 0,
        "crop_size": 24,
        "augment": {"flip": 0.5, "brightness": 0.2},
    },
    "trainer": {"accelerator": "cpu", "precision": "32-true"},
    "checkpoint": {"every_minutes": 0, "every_steps": 3},
    "val_every": 4,
}
OUTPUTS: dict[str, dict[str, Any]] = {
    "DepthTask": {"depth": {"name": "regression", "activation": "softplus"}},
    "JointTask": {"depth": {"name": "regression", "activation": "softplus"}, "labels": {"name": "classes"}},
}


def write(folder: Path, **changes: Any) -> Path:
    return runs.write_config(CONFIG, folder, **changes)


def argv(config: Path, output: Path, *extra: str) -> list[str]:
    return ["train", "--config", str(config), "--output", str(output), *extra]


def task(name: str, head: dict[str, Any] = DPT, **changes: Any) -> dict[str, Any]:
    """Changes that make CONFIG another task."""
    inner = {"backbone": BACKBONE | {"layers": "even4"}, "head": head | {"outputs": OUTPUTS[name]}, "steps": 4}
    model = {"class_path": f"dense.tasks.{name}", "init_args": inner | {"optim": {"lr": 0.01}} | changes}
    return {"model": model, "val_every": 2, "data.augment": {"flip": 0.5}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of 12 steps."""
    folder = tmp_path_factory.mktemp("finished")
    done = call(argv(write(folder), folder / "run"))
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_what_a_run_leaves(finished: Path) -> None:
    for name in ("metrics.csv", "curves.png", "predictions.png", "config.yaml", "results.json", "model/README.md"):
        assert (finished / name).stat().st_size > 0, name
    results = json.loads((finished / "results.json").read_text())
    rows = [line.split(",") for line in (finished / "metrics.csv").read_text().splitlines()]
    column = rows[0].index("val/miou")
    values = {int(float(row[0])): float(row[column]) for row in rows[1:] if row[column]}
    assert results["numbers"]["val/miou"] == pytest.approx(values[results["facts"]["best step"]])
    assert results["numbers"]["val/miou"] > 0.98 * max(values.values())  # among three, close ones are equal
    predictor = dense.load(finished / "model")
    prediction = predictor(render(0, 3, (45, 61)).image)
    assert isinstance(prediction, Segmentation)
    assert prediction.labels.shape == (45, 61)
    assert prediction.classes == CLASSES
    assert prediction.labels.max() < len(CLASSES)
    assert ((prediction.scores > 0) & (prediction.scores <= 1)).all()
    assert sum(prediction.shares().values()) == pytest.approx(1)


def test_the_backbone_stayed_as_it_was(finished: Path) -> None:
    """Frozen is frozen: the saved backbone is the one that the seed made."""
    torch.manual_seed(0)
    fresh = dense.load_backbone(BACKBONE["name"], **BACKBONE["arguments"])
    saved = DenseModel.from_pretrained(finished / "model").backbone.state_dict()
    assert all(torch.equal(v, saved[k]) for k, v in fresh.state_dict().items())


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_and_continued(finished: Path, tmp_path: Path, workers: int) -> None:
    """SIGKILL between validations, the same command again: bit for bit the run that was never stopped."""
    config, output = write(tmp_path, **{"data.workers": workers}), tmp_path / "run"
    process = Forked(argv(config, output), tmp_path)
    last = output / "checkpoints/last.ckpt"
    deadline = time.monotonic() + 120
    while not last.is_file() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert process.status(signal.SIGKILL) == -signal.SIGKILL, "the run ended before it could be killed"
    assert 0 < torch.load(last, weights_only=True)["global_step"] < 12
    done = call(argv(config, output))
    assert done.returncode == 0, done.stderr
    assert "continuing" in done.stdout
    assert_same(output, finished)
    ours, theirs = ((run / "metrics.csv").read_text() for run in (output, finished))
    assert ours == theirs
    ours, theirs = ((run / "results.json").read_text().split("seconds of")[0] for run in (output, finished))
    assert ours == theirs


def test_depth(tmp_path: Path) -> None:
    done = call(argv(write(tmp_path, **task("DepthTask")), tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert "val/abs_rel" in done.stdout
    prediction = dense.load(tmp_path / "run/model")(render(0, 3, (45, 61)).image)
    assert isinstance(prediction, Depth)
    assert (prediction.kind, prediction.unit) == ("metric", "m")
    assert prediction.values.shape == (45, 61)
    assert (prediction.values > 0).all()


def test_relative_depth_is_aligned_when_validated(tmp_path: Path) -> None:
    outputs = {"depth": {"name": "regression", "activation": "identity", "kind": "inverse_relative"}}
    config = task("DepthTask", loss={"midas": 1.0})
    config["model"]["init_args"]["head"] = DPT | {"outputs": outputs}
    done = call(argv(write(tmp_path, **config), tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    prediction = dense.load(tmp_path / "run/model")(render(0, 3, 40).image)
    assert isinstance(prediction, Depth)
    assert prediction.kind == "inverse_relative"
    with pytest.raises(ValueError, match="reference"):
        prediction.to_metric()
    ground_truth = render(0, 3, 40).depth
    assert prediction.to_metric(ground_truth).kind == "metric"


STEM = {"name": "pyramid", "decoder": "unet", "stride2": "stem", "width": 8, "stem_width": 4}
SMALL = {"decoder_options": {"decoder_channels": [8, 8, 4, 4, 4]}}


def test_a_head_that_reads_the_image(tmp_path: Path) -> None:
    """A stem gets the images in training, in validation, when measured and from a predictor."""
    changes = task("JointTask", head=STEM | SMALL)
    done = call(argv(write(tmp_path, **changes), tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    scenes = ["--data", "scenes", "--scenes", "2", "--size", "32"]
    done = call(["evaluate", "depth", str(tmp_path / "run/model"), *scenes])
    assert done.returncode == 0, done.stderr
    prediction = dense.load(tmp_path / "run/model", flip=True)(render(0, 3, (45, 61)).image)
    assert isinstance(prediction, Joint)
    assert prediction.depth.values.shape == (45, 61)
    assert (
        "reads the images too"
        in failure(tmp_path / "cached", **changes, **{"data.cache": str(tmp_path / "cache")}).stderr
    )


@pytest.mark.parametrize("head", ["dpt", "pyramid"])
def test_heads_on_a_convolutional_backbone(tmp_path: Path, head: str) -> None:
    """They get the strides of its maps."""
    options = {"dpt": {"width": 8, "readout": "ignore"}, "pyramid": {"decoder": "fpn", "width": 8}}[head]
    backbone = {"name": "resnet10t", "layers": [1, 2, 3, 4], "norm": False}
    changes = task("DepthTask", backbone=backbone, head={"name": head, **options})
    done = call(argv(write(tmp_path, **changes), tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert DenseModel.from_pretrained(tmp_path / "run/model").head.neck.strides == (4, 8, 16, 32)


@pytest.mark.parametrize("weighting", ["uncertainty", "fixed"])
def test_joint_on_samples_that_lack_a_target(tmp_path: Path, weighting: str) -> None:
    """Half of the images have masks, half have depth."""
    root = tmp_path / "data"
    for split in ("train", "val"):
        for i in range(6):
            scene = render(0, i + (100 if split == "val" else 0), 32)
            save(root / split / "images" / f"{i}.png", scene.image[..., ::-1])
            if i % 2 or split == "val":
                save(root / split / "masks" / f"{i}.png", scene.semantic)
            if not i % 2 or split == "val":
                millimetres = np.where(scene.valid, np.minimum(scene.depth * 1000, 65535), 0).astype(np.uint16)
                save(root / split / "depth" / f"{i}.png", millimetres)
    changes = task("JointTask", weighting=weighting) | {
        "data": {
            "root": str(root), "partial": True, "classes": list(CLASSES),
            "depth": {"kind": "metric", "scale": 1000, "invalid": [0]}, "batch_size": 2, "workers": 0, "crop_size": 24,
        }
    }  # fmt: skip
    done = call(argv(write(tmp_path, **changes), tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert "val/score" in done.stdout
    prediction = dense.load(tmp_path / "run/model")(render(0, 3, 40).image)
    assert isinstance(prediction, Joint)
    paths = prediction.save(tmp_path / "answer", render(0, 3, 40).image)
    assert all(path.stat().st_size for path in paths)
    index = cv2.imread(str(tmp_path / "answer_labels.png"), cv2.IMREAD_UNCHANGED)
    assert index.shape[:2] == (40, 40)


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)


@pytest.mark.parametrize("tune", [{"unfreeze": 1}, {"unfreeze": "all", "layer_decay": 0.7}, {"lora_rank": 2}])
def test_tuning_changes_what_it_says(tmp_path: Path, tune: dict[str, Any]) -> None:
    changes = {"model.init_args.tune": tune, "model.init_args.steps": 3, "val_every": 3}
    done = call(argv(write(tmp_path, **changes), tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    torch.manual_seed(0)
    fresh = dense.load_backbone(BACKBONE["name"], **BACKBONE["arguments"]).state_dict()
    saved = DenseModel.from_pretrained(tmp_path / "run/model").backbone.state_dict()
    changed = {k for k in fresh if not torch.equal(fresh[k], saved[k])}
    blocks = {int(k.split(".")[2]) for k in changed if k.startswith("model.blocks.")}
    if "lora_rank" in tune:
        assert {k.split(".")[-2] for k in changed} <= {"qkv", "proj"}
        assert blocks == {0, 1, 2, 3}
        assert not any("lora" in k or k.endswith((".a", ".b")) for k in saved)
    elif tune["unfreeze"] == 1:
        assert blocks == {3}
        assert "model.patch_embed.proj.weight" not in changed
    else:
        assert blocks == {0, 1, 2, 3}
        assert "model.patch_embed.proj.weight" in changed


def test_patience_ends_a_run(tmp_path: Path) -> None:
    changes = {"model.init_args.optim.lr": 1e-12, "val_every": 1, "patience": 2}
    done = call(argv(write(tmp_path, **changes), tmp_path / "run", "--model.init_args.optim.warmup_steps=0"))
    assert done.returncode == 0, done.stderr
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] < 12


def test_a_head_overfits_eight_scenes(tmp_path: Path) -> None:
    """The predictions of a head on its training scenes are right."""
    head = {"name": "dpt", "width": 16, "reassemble": [16, 16, 16, 16], "readout": "ignore"}
    inner = {
        "backbone": {"name": BACKBONE["name"], "layers": "even4",
                     "arguments": BACKBONE["arguments"] | {"embed_dim": 32}},
        "head": head | {"outputs": {"labels": {"name": "classes", "dropout": 0.0}}},
        "optim": {"lr": 5e-3, "schedule": "cosine"}, "steps": 150,
    }  # fmt: skip
    changes = {
        "model.init_args": inner, "data.augment": {}, "data.batch_size": 8, "data.scenes": [8, 2],
        "data.crop_size": None, "val_every": 150,
    }  # fmt: skip
    assert call(argv(write(tmp_path, **changes), tmp_path / "run")).returncode == 0
    predictor = dense.load(tmp_path / "run/model")
    right = []
    for i in range(8):
        scene = render(0, i, 32)
        prediction = predictor(scene.image)
        assert isinstance(prediction, Segmentation)
        right.append((prediction.labels == scene.semantic).mean())
    assert np.mean(right) > 0.9


def failure(tmp_path: Path, *extra: str, **changes: Any) -> Done:
    done = call(argv(write(tmp_path, **changes), tmp_path / "run", *extra))
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    return done


def test_bad_input_is_one_clear_error(tmp_path: Path) -> None:
    assert "no such folder" in failure(tmp_path, **{"data": {"root": str(tmp_path / "nowhere")}}).stderr
    assert "batch_size" in failure(tmp_path, **{"data.batch_size": 0}).stderr
    assert "cross_entropy" in failure(tmp_path, **{"model.init_args.loss": {"cross_entropi": 1}}).stderr
    assert "steps" in failure(tmp_path, **{"model.init_args.steps": 0}).stderr
    assert "even4" in failure(tmp_path, **{"model.init_args.backbone.layers": "even5"}).stderr
    wrong = {"name": "liner", "outputs": {"labels": {"name": "classes"}}}
    assert "linear" in failure(tmp_path, **{"model.init_args.head": wrong}).stderr
    assert "unknown loss" in failure(tmp_path, **task("DepthTask", loss={"silo": 1.0})).stderr
    assert "SSI" in failure(tmp_path, **task("DepthTask", loss={"ssi": 1.0})).stderr


def test_problems_of_a_folder_are_listed_before_training(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for split in ("train", "val"):
        for i in range(3):
            scene = render(0, i + (100 if split == "val" else 0), 32)
            save(root / split / "images" / f"{i}.png", scene.image[..., ::-1])
            save(root / split / "masks" / f"{i}.png", scene.semantic if i else scene.semantic[:16])
    (root / "train/masks/2.png").unlink()
    done = failure(tmp_path, **{"data": {"root": str(root), "classes": list(CLASSES[:5]), "workers": 0}})
    assert "problems" in done.stderr
    assert not (tmp_path / "run/checkpoints/last.ckpt").exists()


def test_a_cache_changes_nothing_but_the_time(finished: Path, tmp_path: Path) -> None:
    """Cached features are rounded to bf16; everything else stays the same. A second run computes no features."""
    changes = {"data.cache": str(tmp_path / "cache"), "data.copies": 2}
    first = call(argv(write(tmp_path, **changes), tmp_path / "first"))
    assert first.returncode == 0, first.stderr
    assert "features of train: 32 computed, 0 in the cache" in first.stdout
    assert "--data.copies" not in first.stdout
    second = call(argv(write(tmp_path, **changes), tmp_path / "second"))
    assert "features of train: 0 computed, 32 in the cache" in second.stdout
    assert_same(tmp_path / "first", tmp_path / "second")
    plain, cached = (json.loads((run / "results.json").read_text()) for run in (finished, tmp_path / "first"))
    assert cached["numbers"]["val/aacc"] == pytest.approx(plain["numbers"]["val/aacc"], abs=0.1)


def test_a_damaged_record_is_computed_again(tmp_path: Path) -> None:
    changes = {"data.cache": str(tmp_path / "cache")}
    first = call(argv(write(tmp_path, **changes), tmp_path / "first"))
    assert first.returncode == 0
    assert first.stdout.count("--data.copies") == 1  # this recipe augments, and one copy varies no more
    record = next((tmp_path / "cache").rglob("*.features"))
    degraded = bytearray(record.read_bytes())
    degraded[-3] ^= 1
    record.write_bytes(degraded)
    again = call(argv(write(tmp_path, **changes), tmp_path / "again"))
    assert "1 computed" in again.stdout
    assert_same(tmp_path / "first", tmp_path / "again")


def test_what_is_learnt_can_be_validated(tmp_path: Path) -> None:
    """Validation images without the target are refused: every number of theirs would be unknown."""
    for split, targets in (("train", ("masks", "depth")), ("val", ("masks",)), ("other", ("depth",))):
        for i in range(2):
            image_file(tmp_path / split / f"images/{i}.png", 50 * i + ord(split[0]))
            for target in targets:
                mask(tmp_path / split / target / f"{i}.png", 1, kind=np.uint8 if target == "masks" else np.uint16)
    data = {"root": str(tmp_path), "classes": ["a", "b"], "depth": {"kind": "metric", "scale": 1}, "workers": 0}
    changes = task("JointTask") | {"data": data | {"partial": True}}
    assert "validation images have no depth" in failure(tmp_path / "a", **changes).stderr
    (tmp_path / "val").rename(tmp_path / "masks")
    (tmp_path / "other").rename(tmp_path / "val")
    assert "validation images have no masks" in failure(tmp_path / "b", **changes).stderr


def test_images_of_many_sizes_need_a_crop(tmp_path: Path) -> None:
    """The error is raised before training; an image turned by its EXIF data has the size at which it is read."""
    for i, (size, orientation) in enumerate([((6, 8), 1), ((8, 6), 6), ((6, 8), 3)] * 4):
        image_file(tmp_path / f"images/{i}.png", i, size, orientation)
        mask(tmp_path / f"masks/{i}.png", i % 2)
    data: dict[str, Any] = {"root": str(tmp_path), "classes": ["a", "b"], "val_ratio": 0.3, "workers": 0}
    DenseData(**data)
    with pytest.raises(ValueError, match=r"scale=\(0.5, 2.0\) makes images of many sizes.*crop_size"):
        DenseData(**data, augment=Augment(scale=(0.5, 2.0)))
    image_file(tmp_path / "images/1.png", 1, (7, 8))
    mask(tmp_path / "masks/1.png", size=(7, 8))
    image_file(tmp_path / "images/2.png", 2, (8, 8))
    mask(tmp_path / "masks/2.png", size=(8, 8))
    for fine in ({"crop_size": 6}, {"batch_size": 1}):
        DenseData(**data, **fine)
    with pytest.raises(ValueError, match=r"images of . sizes.*\(8x6\).*data.crop_size"):
        DenseData(**data)


def test_scales_of_scenes_without_depth() -> None:
    """Metric depth forbids to rescale images only where it is a target."""
    options: dict[str, Any] = {
        "scenes": (2, 2),
        "scene_size": 32,
        "crop_size": 24,
        "augment": Augment(scale=(0.5, 2.0)),
    }
    for target in ("labels", "masks"):
        sample = DenseData("scenes", targets=[target], **options).train_set[0, 0]  # type: ignore[list-item]
        assert (sample.depth, sample.image.shape) == (None, (3, 24, 24))
    with pytest.raises(ValueError, match="with metric depth"):
        DenseData("scenes", targets=["labels", "depth"], **options)


def test_images_of_kitti_can_be_cut(tmp_path: Path) -> None:
    """And a cache knows whether they were."""
    kitti_eigen(tmp_path)
    whole, cut = (DenseData(str(tmp_path), "kitti_eigen", check=False, kb_crop=b) for b in (False, True))
    assert [d.train_set.sample(0).image.shape for d in (whole, cut)] == [(3, 360, 1220), (3, 352, 1216)]
    assert not set(whole.views.values()) & set(cut.views.values())


def test_a_cache_knows_that_images_were_added(tmp_path: Path) -> None:
    """An image that now follows another is cropped elsewhere; its targets and its features must be of one place."""

    def labelled(folder: Path, name: str) -> None:
        scene = render(0, ord(name), 40)
        for kind, values in (("images", scene.image), ("masks", (scene.instance > 0).astype(np.uint8))):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / kind / f"{name}.png"), values)

    for split, names in {"train": "bcde", "val": "yz"}.items():
        for name in names:
            labelled(tmp_path / "data" / split, name)
    (tmp_path / "data/classes.yaml").write_text("[ground, thing]\n")
    changes = {"data.root": str(tmp_path / "data"), "model.init_args.steps": 4}
    old, new = {"data.cache": str(tmp_path / "old")}, {"data.cache": str(tmp_path / "new")}
    assert call(argv(write(tmp_path, **changes, **old), tmp_path / "before")).returncode == 0
    labelled(tmp_path / "data/train", "a")
    for name, cache in (("stale", old), ("fresh", new)):
        done = call(argv(write(tmp_path, **changes, **cache), tmp_path / name))
        assert done.returncode == 0, done.stderr
        assert "features of train: 5 computed" in done.stdout
    assert_same(tmp_path / "stale", tmp_path / "fresh")


def test_a_cache_needs_a_frozen_backbone(tmp_path: Path) -> None:
    changes = {"data.cache": str(tmp_path / "cache"), "model.init_args.tune": {"unfreeze": 1}}
    assert "frozen" in failure(tmp_path, **changes).stderr


def test_windows_of_large_files(tmp_path: Path) -> None:
    """Other windows in every epoch; a run that was killed continues bit for bit, and predicts files in windows."""
    tifffile = pytest.importorskip("tifffile")
    from tests.data.test_large import damage  # which needs tifffile

    for folder in ("images", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for number in range(5):
        scene = render(0, number, (90, 120))
        for folder, values in (("images", scene.image), ("masks", scene.semantic)):
            kind = "rgb" if values.ndim == 3 else "minisblack"
            path = tmp_path / f"data/{folder}/{number}.tif"
            tifffile.imwrite(path, values, tile=(32, 32), compression="zlib", photometric=kind)
    damage(tmp_path / "data/images/2.tif", 5)
    (tmp_path / "data/classes.yaml").write_text(f"classes: [{', '.join(CLASSES)}]\n")
    changes = {"data.root": str(tmp_path / "data"), "data.windows": 4, "data.val_ratio": 0.3, "data.workers": 0}
    changes["data.augment"] = {"scale": [0.5, 2.0], "flip": 0.5}
    config = write(tmp_path, **changes)
    assert call(argv(config, tmp_path / "whole")).returncode == 0
    process = Forked(argv(config, tmp_path / "killed"), tmp_path)
    last = tmp_path / "killed/checkpoints/last.ckpt"
    deadline = time.monotonic() + 120
    while not last.is_file() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert process.status(signal.SIGKILL) == -signal.SIGKILL, "the run ended before it could be killed"
    done = call(argv(config, tmp_path / "killed"))
    assert done.returncode == 0, done.stderr
    assert "1 damaged tiles, whose pixels were masked, in 1 files" in done.stderr
    assert_same(tmp_path / "killed", tmp_path / "whole")
    done = call(argv(write(tmp_path / "other", **changes | {"data.windows": 5}), tmp_path / "killed"))
    assert "windows" in done.stderr
    paths = dense.load(tmp_path / "whole/model", window=64).write(tmp_path / "data/images/0.tif", tmp_path / "out/0")
    assert tifffile.imread(paths[0]).shape == (90, 120)
