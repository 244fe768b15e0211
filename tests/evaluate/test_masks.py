"""`dense evaluate instance` and `panoptic`: protocols, saved numbers, baselines, and models that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import dense
from dense.data.labelled import DataError, open_labelled
from dense.data.scenes import CLASSES
from dense.evaluate.masks import connected, find_mask_protocol, measure_masks, partition
from dense.metrics import MaskAP, PanopticQuality
from dense.model.network import DenseModel, Inference
from dense.predict import Predictor
from tests.data.labelled_files import folder, mask, text
from tests.data.test_segments import instances, panoptic, written
from tests.predict.models import model, queries
from tests.runs import call


def scenes(length: int = 2) -> Any:
    return open_labelled("scenes", "val", targets=("masks",), length=length, size=48)


@pytest.mark.parametrize("kind", ["instance", "panoptic"])
def test_verbs(kind: str, tmp_path: Path) -> None:
    """Numbers by a named protocol, with those of classes, in a file; the same from Python."""
    queries(kind, CLASSES, longer=32).save_pretrained(tmp_path / "model")  # type: ignore[arg-type]
    options = ["--data", "scenes", "--scenes", "2", "--size", "48", "--output", str(tmp_path / "out")]
    run = call(["evaluate", kind, str(tmp_path / "model"), *options])
    assert run.returncode == 0, run.stderr
    saved = json.loads((tmp_path / "out/results.json").read_text())
    first = "ap" if kind == "instance" else "pq"
    assert saved["protocol"]["name"] == f"{kind}, plain"
    assert saved["protocol"]["view"] == "longer side 32"
    assert saved["protocol"]["settings"]["top"] == 100
    assert set(saved["numbers"]["per_class"]) == set(CLASSES)
    result = dense.evaluate(tmp_path / "model", "scenes", scenes=2, size=48)
    assert result.numbers[first] == pytest.approx(saved["numbers"][first])
    tiled = dense.evaluate(tmp_path / "model", "scenes", scenes=2, size=48, window=24, resize=48)
    assert tiled.protocol.name == f"{kind}, plain, changed"


def test_semantic_masks_are_measured_like_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """mIoU of queries, and of panoptic models by the scores of their queries, on squares if they are of squares."""
    for kind in ("semantic", "panoptic"):
        result = dense.evaluate(queries(kind, CLASSES), "scenes", what="segmentation", scenes=2, size=48)  # type: ignore[arg-type]
        assert 0 <= result.numbers["miou"] <= 1
    network, sizes = queries("panoptic", CLASSES, square=True), set[Any]()
    features = network.features
    monkeypatch.setattr(network, "features", lambda images: (sizes.add(images.shape[-2:]), features(images))[1])
    result = dense.evaluate(network, "scenes", what="segmentation", scenes=2, size=48, resize=(24, 48))
    assert sizes == {(48, 48)}
    assert 0 <= result.numbers["miou"] <= 1


def test_classes_of_a_panoptic_file(tmp_path: Path) -> None:
    """It is read where there are no masks of classes; the other half of the image is unknown."""
    root = written(tmp_path, panoptic(tmp_path), "panoptic.json")
    for network in (queries("semantic", ("car", "sky")), model("labels", count=2), queries("panoptic", ("car", "sky"))):
        network.classes = ("car", "sky")
        labels = Predictor.of(network, resize=8)(root / "images/a.jpg") if network.task == "segmentation" else None
        result = dense.evaluate(network, root, what="segmentation", split="all", resize=8)
        assert result.numbers["per_class"].keys() == {"car", "sky"}
        if labels is not None:
            right = [(labels.labels[:3] == 1).sum(), (labels.labels[3:5, :4] == 0).sum()]
            assert result.numbers["aacc"] == pytest.approx(sum(right) / 32)
    queries("panoptic", ("car", "sky")).save_pretrained(tmp_path / "model")
    options = ["--data", str(root), "--split", "all", "--resize", "8"]
    run = call(["evaluate", "segmentation", str(tmp_path / "model"), *options])
    assert run.returncode == 0, run.stderr
    things = written(tmp_path / "things", instances(tmp_path / "things"))
    with pytest.raises(ValueError, match="classes of pixels cannot be measured: the JSON file annotates objects alone"):
        dense.evaluate(queries("semantic", ("dog", "cup")), things, split="all")
    with pytest.raises(FileNotFoundError, match="has no targets: expected masks/"):
        (things / "instances.json").unlink()
        dense.evaluate(queries("semantic", ("dog", "cup")), things, what="segmentation", split="all")


def test_images_without_a_map_are_listed_first(tmp_path: Path) -> None:
    root = folder(tmp_path, list("abcd"))
    text(root / "classes.yaml", "{0: sky, 1: cup, things: [cup]}")
    mask(root / "instances/a.png", 1)
    with pytest.raises(DataError, match=r"3 problems:(\n- .*/[bcd]\.jpg has no instance map .*){3}"):
        dense.evaluate(queries("instance", ("sky", "cup")), root, split="all")


def test_protocols() -> None:
    """Published working sizes; a model's own where a protocol names none; unknown names."""
    assert find_mask_protocol("eomt_640").inference.size_of((480, 320)) == (640, 427)
    assert find_mask_protocol("eomt_640", resize=320).name == "eomt_640, changed"
    assert find_mask_protocol("eomt_640").inference.square
    assert find_mask_protocol("plain", resize=320).with_model(Inference(longer=640, square=True)).inference.square
    found = find_mask_protocol("plain").with_model(Inference(resize=64, window=32))
    assert not found.square
    assert (found.resize, found.window, found.stride) == (64, 32, 21)
    with pytest.raises(ValueError, match="unknown protocol 'eomt'"):
        find_mask_protocol("eomt")
    with pytest.raises(TypeError, match="no field 'flip'"):
        find_mask_protocol("plain", flip=True)


def test_large_images_are_shrunk_as_in_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network sees an image of more than a megapixel, without a working size, as prediction shows it."""
    network, sizes = queries("instance", CLASSES), list[Any]()
    features = network.features
    monkeypatch.setattr(network, "features", lambda images: (sizes.append(images.shape[-2:]), features(images))[1])
    monkeypatch.setattr("dense.model.inference.WHOLE", 600)
    source = scenes(1)
    Predictor(network)(source.read(0).image)
    measure_masks(network, source, find_mask_protocol("plain"), "instance")
    assert sizes == [(24, 24)] * 2


def test_connected_parts_of_true_classes() -> None:
    """A perfect map of classes finds what is in one part and touches no other of its class."""
    source = scenes(4)
    ap, quality = MaskAP(CLASSES), PanopticQuality(source.things, CLASSES)
    for index in range(len(source)):
        sample = source.read(index)
        scores = F.one_hot(torch.from_numpy(sample.labels).long(), len(CLASSES)).permute(2, 0, 1).float()
        found = connected(scores, source.things)
        ap.update([found], [sample.segments.take(torch.tensor(source.things)[sample.segments.classes])])
        quality.update([partition(found, scores, source.things)], [sample.segments])
    assert ap.compute()["ap50"] > 0.6
    numbers = quality.compute()
    assert numbers["pq_stuff"] == pytest.approx(1)
    assert numbers["pq_things"] > 0.6
    dense_model = model("labels", count=len(CLASSES))
    dense_model.classes = CLASSES
    for what in ("instance", "panoptic"):
        result = measure_masks(dense_model, source, find_mask_protocol("plain"), what)
        assert result.protocol.settings["masks"] == "connected parts of classes"


def test_models_and_data_that_do_not_fit(tmp_path: Path) -> None:
    """Another kind of masks, other classes, data without objects."""
    with pytest.raises(ValueError, match="predicts instance masks; measure it with dense evaluate instance"):
        measure_masks(queries("instance", CLASSES), scenes(), find_mask_protocol("plain"), "panoptic")
    with pytest.raises(ValueError, match="the model has 3 classes, the data have 14"):
        measure_masks(queries(), scenes(), find_mask_protocol("plain"), "instance")
    for network, what in (
        (queries(), "instance"),
        (queries("semantic"), "segmentation"),
        (model("labels"), "segmentation"),
    ):
        network.classes = None  # as published checkpoints without names
        with pytest.raises(ValueError, match="the model has 3 classes, the data have 14"):
            dense.evaluate(network, "scenes", what=what, scenes=1, size=48)
    network = queries("instance", CLASSES)
    network.classes = None
    assert set(dense.evaluate(network, "scenes", scenes=1, size=48).numbers["per_class"]) == set(CLASSES)
    with pytest.raises(ValueError, match="the model predicts depth, no masks"):
        measure_masks(model("depth"), scenes(), find_mask_protocol("plain"), "instance")
    with pytest.raises(ValueError, match="layout 'nyuv2' has no masks of objects"):
        open_labelled(tmp_path, "val", layout="nyuv2", targets=("masks",))
    with pytest.raises(ValueError, match="layout 'coco' has masks of objects and no labels"):
        open_labelled(tmp_path, "val", layout="coco")
    assert isinstance(queries(), DenseModel)
