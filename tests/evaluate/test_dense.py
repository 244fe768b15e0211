"""`dense evaluate depth` and `segmentation`: numbers by hand, protocols, and models and data that do not fit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import dense
from dense.data.labelled.open import open_labelled
from dense.data.labelled.sample import Identity, Labelled
from dense.data.scenes import CLASSES
from dense.evaluate.dense import PROTOCOLS, DenseProtocol, evaluate_dense, find_protocol
from dense.model.card import as_json
from dense.model.network import Inference
from dense.suggest import UnknownOption
from tests.predict.models import model
from tests.runs import call


class Fake(nn.Module):
    """A network that reads its targets from the image: depth is red, class 1 is where green is bright."""

    def __init__(self, kind: str = "metric", classes: tuple[str, ...] = ("sky", "ground")) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))
        self.classes, self.depth_kind = classes, kind
        self.outputs = {"depth": None, "labels": None}
        self.layers, self.norm, self.facts, self.inference = (0,), True, {}, Inference()

    @property
    def backbone(self) -> Fake:
        return self

    def normalise(self, images: Tensor) -> Tensor:
        return images.float()

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        assert not self.training
        return {"depth": images[:, :1], "labels": torch.stack([127.5 - images[:, 1], images[:, 1] - 127.5], 1)}


class Source:
    """Samples in memory."""

    def __init__(self, *samples: Labelled, kind: Any = "metric", classes: Any = ("sky", "ground")) -> None:
        self.samples, self.depth_kind, self.classes = samples, kind, classes

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> Labelled:
        return self.samples[index]

    def name(self, index: int) -> str:
        return str(index)

    def identity(self, index: int) -> Identity:
        return Identity(str(index), "")

    def check(self, **_: Any) -> list[str]:
        return []


def test_results_are_json_wherever_they_are_read() -> None:
    """NaN is no JSON: a class that does not occur has null."""
    text = as_json({"iou": {"sky": NAN, "box": 0.5}, "list": (1, float("inf"))})
    assert json.loads(text, parse_constant=pytest.fail) == {"iou": {"sky": None, "box": 0.5}, "list": [1, None]}


def sample(red: Any, green: Any, labels: Any = None, depth: Any = None) -> Labelled:
    image = np.stack([np.array(red), np.array(green), np.zeros_like(np.array(red))], -1).astype(np.uint8)
    labels, depth = (None if v is None else np.array(v, t) for v, t in ((labels, np.uint8), (depth, np.float32)))
    return Labelled(image, labels, depth, "")


NAN, INF = float("nan"), float("inf")
TWO = (
    sample([[10, 20], [30, 40]], [[0, 0], [255, 255]], [[0, 1], [1, 255]], [[8.0, 20.0], [NAN, INF]]),
    sample([[10, 10], [10, 10]], [[0, 0], [0, 0]], [[0, 0], [0, 1]], None),
)


def test_numbers_by_hand() -> None:
    found = evaluate_dense(Fake(), Source(*TWO), DenseProtocol("plain"))  # type: ignore[arg-type]
    assert found["depth"]["abs_rel"] == pytest.approx((2 / 8 + 0) / 2)
    assert found["depth"]["images"] == 1
    # class 0: true 4, predicted 6, both 4; class 1: true 3, predicted 1, both 1
    assert found["segmentation"]["miou"] == pytest.approx((4 / 6 + 1 / 3) / 2)
    assert found["segmentation"]["aacc"] == pytest.approx(5 / 7)
    assert found["segmentation"]["per_class"]["sky"]["iou"] == pytest.approx(4 / 6)


def test_a_model_in_training_mode_is_measured_in_evaluation_mode() -> None:
    evaluate_dense(Fake().train(), Source(*TWO), DenseProtocol("plain"))  # type: ignore[arg-type]


def test_predictions_meet_targets_at_the_size_of_the_targets() -> None:
    big = np.repeat(np.repeat(np.array([[0, 255], [255, 0]]), 8, 0), 8, 1)
    one = sample(big, big, (big > 0).astype(np.uint8))
    for protocol in (
        DenseProtocol("x", resize=4),
        DenseProtocol("x", window=8, stride=8),
        DenseProtocol("x", flip=True),
    ):
        found = evaluate_dense(Fake(), Source(one, kind=None), protocol)  # type: ignore[arg-type]
        assert found["segmentation"]["aacc"] > 0.9


def test_the_longer_side_of_the_model_is_kept() -> None:
    """Images of other aspect ratios reach the network at the working size that the model predicts at."""
    network, seen = Fake(), []
    network.inference = Inference(longer=8)
    plain = network.maps
    network.maps = lambda images: seen.append(images.shape[-2:]) or plain(images)  # type: ignore[method-assign, func-returns-value]
    images = [sample(np.zeros(size), np.zeros(size), np.zeros(size)) for size in ((16, 4), (4, 12))]
    protocol = DenseProtocol("x").with_model(network.inference)
    evaluate_dense(network, Source(*images, kind=None), protocol)  # type: ignore[arg-type]
    assert seen == [(8, 2), (3, 8)]
    assert DenseProtocol("x", resize=4).with_model(network.inference).longer is None


def test_relative_depth_needs_an_alignment() -> None:
    ground_truth = 1 / (np.array([[0.5, 1.0], [2.0, 4.0]]) + 3)
    source = Source(sample([[1, 2], [4, 8]], np.zeros((2, 2)), None, ground_truth), classes=None)
    relative = Fake("inverse_relative")
    with pytest.raises(ValueError, match="--alignment"):
        evaluate_dense(relative, source, DenseProtocol("plain"))  # type: ignore[arg-type]
    found = evaluate_dense(relative, source, find_protocol("relative"))  # type: ignore[arg-type]
    assert found["depth"]["abs_rel"] < 1e-4


def test_relative_ground_truth() -> None:
    source = Source(sample([[1, 2], [4, 8]], np.zeros((2, 2)), None, [[5, 7], [11, 19]]), kind="inverse_relative")
    found = evaluate_dense(Fake("inverse_relative"), source, DenseProtocol("plain"))  # type: ignore[arg-type]
    assert found["depth"]["ssi_mae"] < 1e-4
    with pytest.raises(ValueError, match="metric"):
        evaluate_dense(Fake(), source, DenseProtocol("plain"))  # type: ignore[arg-type]


def test_what_does_not_fit_raises() -> None:
    for classes in (("sky",), ("ground", "sky")):
        with pytest.raises(ValueError, match="class"):
            evaluate_dense(Fake(), Source(*TWO, classes=classes), DenseProtocol("plain"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nothing to compare"):
        evaluate_dense(Fake(), Source(*TWO, classes=None, kind=None), DenseProtocol("plain"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="480x640"):
        evaluate_dense(Fake(), Source(*TWO), find_protocol("nyuv2"))  # type: ignore[arg-type]


def test_protocols_are_named_and_checked() -> None:
    assert all(name == protocol.name for name, protocol in PROTOCOLS.items())
    assert (find_protocol("nyuv2").cap, find_protocol("kitti_eigen").crop) == ((1e-3, 10.0), "garg")
    with pytest.raises(ValueError, match="Did you mean nyuv2"):
        find_protocol("nyu2")
    with pytest.raises(ValueError, match="stride"):
        DenseProtocol("x", stride=3)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    network = model("depth", "labels", count=len(CLASSES))
    network.classes = CLASSES
    network.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("what", ["depth", "segmentation"])
def test_the_command_writes_what_it_prints(saved: Path, tmp_path: Path, what: str) -> None:
    scenes = ["--data", "scenes", "--scenes", "3", "--size", "32"]
    done = call(["evaluate", what, str(saved), *scenes, "--flip", "--output", str(tmp_path)])
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["protocol"]["name"] == f"{what}, plain, changed"
    assert results["protocol"]["settings"]["flip"] is True
    name = {"depth": "abs_rel", "segmentation": "miou"}[what]
    assert f"{name}: {results['numbers'][name]:.4f}" in done.stdout
    assert results["weights"] == str(saved)


def test_boundary_iou_has_one_name(saved: Path, tmp_path: Path) -> None:
    """That of the metric."""
    scenes = ["--data", "scenes", "--scenes", "2", "--size", "32"]
    done = call(["evaluate", "segmentation", str(saved), *scenes, "--boundary", "--output", str(tmp_path)])
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "results.json").read_text())["numbers"]
    assert [name for name in numbers if "boundary" in name] == ["boundary_iou"]


def test_images_are_opened_as_in_training(saved: Path, tmp_path: Path) -> None:
    """Declarations and the validation fraction can be given; further settings are saved with the numbers."""
    for i in range(8):
        for folder, mode in (("images", "RGB"), ("masks", "L"), ("depth", "I;16")):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.new(mode, (16, 16), i if mode == "L" else 1000).save(tmp_path / folder / f"{i}.png")
    (tmp_path / "names.yaml").write_text(f"[{', '.join(CLASSES)}]")
    (tmp_path / "millimetres.yaml").write_text("{kind: metric, scale: 1000}")
    formats = ["--classes", str(tmp_path / "names.yaml"), "--depth", str(tmp_path / "millimetres.yaml")]
    windows = ["--val-ratio", "0.7", "--window", "12", "--output", str(tmp_path)]
    done = call(["evaluate", "depth", str(saved), "--data", str(tmp_path), *formats, *windows])
    assert done.returncode == 0, done.stderr
    protocol = json.loads((tmp_path / "results.json").read_text())["protocol"]
    share = open_labelled(
        tmp_path, "val", classes=list(CLASSES), depth={"kind": "metric", "scale": 1000}, val_ratio=0.7
    )
    assert f"({len(share)} images)" in protocol["val"]
    assert f"{len(share)} of its 8 images are used; --split all" in done.stdout
    assert (protocol["settings"]["stride"], protocol["settings"]["kb_crop"]) == (8, False)
    done = call(["evaluate", "depth", str(saved), "--data", str(tmp_path), *formats, "--split", "all"])
    assert "all (8 images)" in done.stdout
    assert "is not split" not in done.stdout
    done = call(["evaluate", "depth", str(saved), "--data", str(tmp_path), *formats, "--kb-crop"])
    assert "crop of KITTI" in done.stderr


def test_nothing_is_measured_where_the_target_is_lacking(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model("depth").save_pretrained(tmp_path)
    monkeypatch.setattr("dense.evaluate.dense.evaluate_dense", lambda *_: pytest.fail("measured in vain"))
    with pytest.raises(ValueError, match="the model or the data have no segmentation"):
        dense.evaluate(tmp_path, "scenes", what="segmentation", scenes=2, size=32)


@pytest.mark.parametrize(
    ("protocol", "options", "words"),
    [
        ("misspelt", {}, "unknown protocol 'misspelt': known are knn"),
        ("in_contxt", {}, "Did you mean in-context"),
        ("slide512", {}, "Did you mean slide_512"),
        ("plain", {"layuot": "folder"}, "protocol plain has no option 'layuot'. Did you mean layout"),
        ("plain", {"flipp": True}, "Did you mean flip"),
        ("knn", {"trian": "TRAIN"}, "protocol knn has no option 'trian'. Did you mean train"),
        ("linear", {"epoch": 1}, "Did you mean epochs"),
        ("retrieval", {"veiw": "crop"}, "Did you mean view"),
        ("probe", {"layer": [0]}, "Did you mean layers"),
        ("in-context", {"neighbors": 3}, "Did you mean neighbours"),
        ("in-context", {"method": "insid3", "clusters": 0.5}, "Did you mean cluster"),
        ("labels-needed", {"ouput": "runs"}, "Did you mean output"),
        ("anomaly", {"shot": 1}, "Did you mean shots"),
        ("anomaly", {"xyz": 1}, "'xyz'. It has category, choice"),
    ],
)
def test_wrong_names_of_calls(protocol: str, options: dict[str, Any], words: str, tmp_path: Path) -> None:
    """A misspelt protocol or keyword is one error with the nearest name, before anything is opened."""
    with pytest.raises(UnknownOption if options else ValueError, match=re.escape(words)):
        dense.evaluate(tmp_path / "none", tmp_path / "none", protocol, **options)


def test_bad_input_is_one_line(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "data/images").mkdir(parents=True)
    (tmp_path / "data/masks").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "data/images/a.png")
    Image.new("L", (8, 9)).save(tmp_path / "data/masks/a.png")
    (tmp_path / "data/classes.yaml").write_text(f"[{', '.join(CLASSES)}]")
    cases = {
        "Did you mean plain": ["--data", "scenes", "--protocol", "plan"],
        "no such directory": ["--data", "scenes"],
        "expected one of": ["--data", str(tmp_path)],
        "8x9": ["--data", str(tmp_path / "data"), "--split", "all"],
        "--boundary": ["--data", "scenes", "--boundry"],
    }
    for words, options in cases.items():
        folder = tmp_path / "no/model" if words == "no such directory" else saved
        done = call(["evaluate", "segmentation", str(folder), *options])
        assert done.returncode in (1, 2), words
        assert words in done.stderr.replace("9x8", "8x9"), done.stderr
        assert "Traceback" not in done.stderr
