"""Values that a recipe leaves to the data, the working size that all verbs share, and features that a run keeps."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

import dense
from dense.backbone.load import spec_of
from dense.backbone.weights.names import SHIPPED
from dense.cli.parser import model_config, model_of_run
from dense.data.labelled.check import check_one_size
from dense.data.labelled.open import as_in_training, open_labelled
from dense.data.labelled.sample import DataError
from dense.data.labelled.scenes import SceneSource
from dense.data.transforms import Augment, TrainTransform
from dense.evaluate.dense import PROTOCOLS
from dense.export.network import ExportNetwork
from dense.model.network import DenseModel, Inference
from dense.predict import Depth, Predictor
from dense.tasks.auto import Survey, crop_for, head_for, layers_for, working_size
from dense.tasks.data import Drawn
from dense.tasks.options import OptimOptions
from dense.tasks.run import check_views
from tests.predict.models import model
from tests.runs import alone

TINY: dict[str, Any] = {
    "model.backbone.name": "scenes_tiny", "model.backbone.weights": None, "model.steps": 4, "data.workers": 0,
    "trainer.accelerator": "cpu", "trainer.precision": "32-true", "val_every": 2,
}  # fmt: skip
ONE = frozenset({(360, 480)})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight images of 80x60 with a square of class 1 and depth in millimetres, six of them for training."""
    rng = np.random.default_rng(0)
    for number in range(8):
        place = tmp_path / "images" / ("train" if number < 6 else "val")
        labels, depth = np.zeros((60, 80), np.uint8), np.full((60, 80), 4000, np.uint16)
        top, left = rng.integers(0, 40, 2)
        labels[top : top + 20, left : left + 20], depth[top : top + 20, left : left + 20] = 1, 1500
        for kind, array in (("images", np.dstack([labels * 200] * 3)), ("masks", labels), ("depth", depth)):
            (tmp_path / place.parent.name / kind / place.name).mkdir(parents=True, exist_ok=True)
            file = tmp_path / "data" / place.name / kind / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(file), array)
    (tmp_path / "data/classes.yaml").write_text("{0: ground, 1: square}\n")
    (tmp_path / "data/depth.yaml").write_text("{kind: metric, scale: 1000, invalid: [0]}\n")
    return tmp_path / "data"


def train(recipe: str, data: Path, output: Path, **changes: Any) -> Predictor:
    with alone():
        return dense.train(recipe, data=data, output=output, **TINY | changes)


def test_a_survey_reads_sizes_and_segments(folder: Path) -> None:
    survey = Survey.of(open_labelled(folder, "train"))
    assert (survey.count, survey.size, survey.sizes) == (6, (60, 80), {(60, 80)})
    assert survey.farthest == pytest.approx(4)
    assert survey.objects is not None
    assert 20 <= survey.objects <= 70


def test_choices_follow_the_data() -> None:
    spec = spec_of("dinov2_vits14")
    large, small = Survey(400, (360, 480), ONE, objects=80.0), Survey(400, (360, 480), ONE, objects=10.0)
    assert working_size(large, spec, False)[0] < working_size(small, spec, False)[0]
    assert working_size(small, spec, True)[0] > working_size(small, spec, False)[0]
    assert crop_for(small, 364, spec)[0] is None
    assert crop_for(small, 364, spec, rescales=True)[0] == 364
    assert crop_for(Survey(400, (360, 480), ONE | {(480, 360)}), 360, spec)[0] == 350
    assert head_for("SegmentationTask")[0]["name"] == "linear"
    assert head_for("DepthTask")[0]["name"] == "dpt"
    assert [layers_for("dpt", spec_of(name))[0] for name in ("dinov2_vits14", "dinov2_vitl14")] == ["even4", "default"]


def test_a_run_prints_and_saves_what_it_chose(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"data.batch_size": 2, "model.steps": 1, "val_every": 1}
    predictor = train("depth/small_data", folder, tmp_path / "run", **options)
    printed = capsys.readouterr().out
    assert "chosen: data.resize: " in printed
    assert "data.batch_size" not in printed.replace("chosen: ", "")  # a given value wins
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert config["data"]["resize"] == config["model"]["init_args"]["inference"]["resize"] == predictor.inference.resize
    assert config["data"]["batch_size"] == 2
    assert "auto" not in json.dumps({k: v for k, v in config["data"].items() if k not in ("cache", "copies")})
    assert any("data.resize" in line for line in predictor.model.facts["chosen"])
    assert not (tmp_path / "run/features").exists()
    train("depth/small_data", folder, tmp_path / "run", **options)
    assert "continuing" in capsys.readouterr().out


def test_crops_follow_the_sizes_of_all_files(folder: Path) -> None:
    """Two sizes of one shape form a batch once resized; one odd image, which the survey does not read, is seen."""
    for kind in ("images", "masks", "depth"):
        file = folder / "train" / kind / "1.png"
        cv2.imwrite(str(file), cv2.resize(cv2.imread(str(file), -1), (160, 120), interpolation=cv2.INTER_NEAREST))
    train, spec = open_labelled(folder, "train"), spec_of("dinov2_vits14")
    assert crop_for(Survey.of(train), 56, spec)[0] is None
    assert check_one_size(train, 56) == []
    assert "form no batch" in check_one_size(train)[0]
    for kind in ("images", "masks", "depth"):
        file = folder / "train" / kind / "3.png"
        cv2.imwrite(
            str(file), cv2.imread(str(file), -1).T if kind != "images" else cv2.imread(str(file)).swapaxes(0, 1)
        )
    assert crop_for(Survey.of(train, most=2), 56, spec)[0] == 56


def test_images_that_are_rescaled_are_cropped(folder: Path, tmp_path: Path) -> None:
    """Though all images have one shape, views of many sizes form no batch; classes of pixels are those of masks/."""
    (folder / "train/instances").mkdir()
    options = {"model.kind": "semantic", "data.resize": 32, "data.batch_size": 2}
    train("instance/small_data", folder, tmp_path / "run", **options | {"model.head.queries": 4, "data.check": False})
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["data"]["crop_size"] == 32


def test_depth_of_any_range_and_kind(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"data.batch_size": 2, "model.steps": 1, "val_every": 1, "data.check": False}
    (folder / "depth.yaml").write_text("{kind: metric, scale: 20, invalid: [0]}\n")
    far = train("depth/small_data", folder, tmp_path / "far", **options)
    assert "model.evaluation.cap: (0.001, 240.0), training images reach 200 m" in capsys.readouterr().out
    assert far.model.facts["numbers"]["val/images"] == 2
    with pytest.raises(DataError, match=r"no validation image has a known depth within model\.evaluation\.cap"):
        train("depth/small_data", folder, tmp_path / "near", **options | {"model.evaluation.cap": [0.1, 60.0]})
    (folder / "depth.yaml").write_text("{kind: inverse_relative, scale: 1000, invalid: [0]}\n")
    train("depth/small_data", folder, tmp_path / "inverse", **options)
    assert "model.head.outputs.depth.kind: inverse_relative" in capsys.readouterr().out


def test_auto_needs_a_recipe() -> None:
    with pytest.raises(ValueError, match="auto is a value of recipes"):
        dense.tasks.DepthTask(head={"name": "auto"})
    with pytest.raises(ValueError, match="auto is a value of recipes"):
        dense.tasks.DenseData("scenes", batch_size="auto")
    with pytest.raises(ValueError, match=r"optim\.lr=auto"):
        OptimOptions(lr="auto")


def test_kept_features_change_no_number(folder: Path, tmp_path: Path) -> None:
    """Validation reads the same features; training differs only by what half precision rounds."""
    plain = {"data.cache": None, "data.augment": {"flip": 0.0}, "data.copies": 1, "data.batch_size": 2}
    reference = train("segmentation/small_data", folder, tmp_path / "none", **plain)
    kept = train(
        "segmentation/small_data", folder, tmp_path / "kept", **plain | {"data.cache": "auto", "model.steps": 12}
    )
    assert reference.model.facts["numbers"].keys() == kept.model.facts["numbers"].keys()
    with torch.no_grad():
        again = train("segmentation/small_data", folder, tmp_path / "again", **plain | {"model.steps": 12})
    for name, value in again.model.facts["numbers"].items():
        assert kept.model.facts["numbers"][name] == pytest.approx(value, abs=0.02), name


@pytest.mark.parametrize("resize", [48, (36, 48)])
def test_one_working_size(folder: Path, tmp_path: Path, resize: int | tuple[int, int]) -> None:
    """Training, validation, evaluation and prediction resize images to it."""
    predictor = train("segmentation/small_data", folder, tmp_path / "run", **{"data.resize": resize})
    assert predictor.inference.resize == resize
    assert DenseModel.from_pretrained(tmp_path / "run/model").inference == Inference(resize, refine="guided")
    result = dense.evaluate(tmp_path / "run/model", folder)
    best = predictor.model.facts["numbers"]["val/miou"]
    assert result.numbers["miou"] == pytest.approx(best, abs=1e-6)
    assert PROTOCOLS["plain"].with_model(Inference(64, 32)).resize == 64
    assert PROTOCOLS["slide_512"].with_model(Inference(64)).resize == 512


def test_a_size_below_a_patch_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.resize=3: images would be smaller than one patch of 8 pixels"):
        train("segmentation/small_data", folder, tmp_path / "run", **{"data.resize": 3})


def test_views_of_another_scale_warn(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train("segmentation/small_data", folder, tmp_path / "run", **{"data.resize": None, "data.crop_size": 32})
    printed = capsys.readouterr().err
    assert "training sees views of 32 pixels, validation and prediction 60" in printed
    assert "set --model.inference.resize 32" in printed
    assert "depth suffers" not in printed


@pytest.mark.parametrize(
    ("size", "longer", "warns"), [((64, 48), None, False), ((640, 480), 64, False), ((640, 480), None, True)]
)
def test_views_of_large_scale_jitter(
    size: tuple[int, int], longer: int | None, warns: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """The crop is compared with the longer side, which fits in it."""
    augment = Augment(scale=(0.1, 2.0), scale_to="crop")
    drawn = Drawn(SceneSource("train", 1), TrainTransform(augment, 64), 0)
    data: Any = SimpleNamespace(train_set=drawn, val=[1], first_image=lambda: torch.zeros(3, *size))
    task: Any = SimpleNamespace(inference=Inference(longer=longer), outputs={"masks": ("masks",)})
    check_views(task, data)
    printed = capsys.readouterr().err
    assert ("training sees views of 64 pixels, validation and prediction 640" in printed) == warns
    assert ("set --model.inference.longer 64" in printed) == warns


def test_metres_out(tmp_path: Path) -> None:
    """A head of log depth gives metres in predictions and exported files, and its own output on request."""
    network = model("depth", kind="log", activation="identity")
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype(np.uint8)
    metres, raw = Predictor(network)(image), Predictor(network, raw_depth=True)(image)
    assert isinstance(metres, Depth)
    assert isinstance(raw, Depth)
    assert (metres.kind, metres.unit, raw.kind) == ("metric", "m", "log")
    np.testing.assert_allclose(metres.values, np.exp(raw.values), rtol=1e-5)
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        exported, own = (ExportNetwork(network.eval(), raw_depth=raw)(images)["depth"] for raw in (False, True))
    torch.testing.assert_close(exported, own.exp())


def test_pixels_per_degree(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The focal length at the working size is saved; images of another camera are resized to it."""
    (folder / "depth.yaml").write_text("{kind: metric, scale: 1000, invalid: [0], focal: 60}\n")
    options = {"data.batch_size": 2, "data.resize": 30, "model.steps": 1}
    network = train("depth/small_data", folder, tmp_path / "run", **options).model
    assert network.inference.focal == 30  # images of 60x80 at half their size
    image = np.random.default_rng(0).integers(0, 255, (120, 160, 3)).astype(np.uint8)
    as_trained, near = Predictor(network)(image).values, Predictor(network, focal=60)(image).values
    np.testing.assert_array_equal(as_trained, Predictor(network, focal=120)(image).values)  # 30 x 120 / 30
    np.testing.assert_array_equal(
        near, Predictor(network, inference=Inference(resize=60, refine="guided"))(image).values
    )
    protocol = PROTOCOLS["plain"]
    assert protocol.with_model(network.inference, open_labelled(folder, "val")).resize == 30
    (folder / "depth.yaml").write_text("{kind: metric, scale: 1000, invalid: [0], focal: 30}\n")
    assert protocol.with_model(network.inference, open_labelled(folder, "val")).resize == 60
    with pytest.raises(ValueError, match=r"focal=100: expected none, since depth.yaml of the training images"):
        Predictor(network, inference=Inference(resize=30), focal=100)
    (folder / "depth.yaml").write_text("{kind: metric, scale: 1000, focal: 0}\n")
    with pytest.raises(ValueError, match=r"focal=0: expected a positive number, the focal length in pixels"):
        open_labelled(folder, "val")


def test_the_folder_of_a_training_opens_as_it_did(tmp_path: Path) -> None:
    """What was held out of training is measured and shown, without saying again how it was held out."""
    for number in range(12):
        for kind, array in (("images", np.full((32, 32, 3), number * 20, np.uint8)), ("masks", np.eye(32))):
            (tmp_path / "data" / kind).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / "data" / kind / f"{'abcd'[number % 4]}_{number}.png"), array)
    (tmp_path / "data/classes.yaml").write_text("[ground, line]\n")
    options = {"data.batch_size": 2, "model.steps": 1, "val_every": 1, "data.val_ratio": 0.25}
    run = tmp_path / "run"
    train("segmentation/small_data", tmp_path / "data", run, **options, **{"data.split_by": "[a-d]"})
    facts = dense.load(run / "model").model.facts
    assert f"val ({facts['validated on']} images)" in dense.evaluate(run / "model", tmp_path / "data").protocol.val
    opening = as_in_training(facts, tmp_path / "data", layout=None, val_ratio=None, split_by=None)
    assert opening == {"layout": "folder", "val_ratio": 0.25, "split_by": "[a-d]"}
    assert as_in_training(facts, tmp_path, val_ratio=None, split_by=None) == {"val_ratio": 0.1, "split_by": None}
    assert [bool(model_config(f)) for f in (run / "model", run, SHIPPED / "scenes_tiny")] == [True, False, False]
    assert [model_of_run(str(f)) for f in (run / "model", run)] == 2 * [str(run / "model")]
