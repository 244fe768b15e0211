"""Scores of images that are read in windows equal those of the same images in memory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dense.data.degrade import Degradation, degrade
from dense.data.labelled import open_labelled
from dense.data.labelled.files import FileSource
from dense.data.windows import Targets
from dense.evaluate.layers import measure_layers
from dense.evaluate.model import evaluate
from dense.model.network import DenseModel, Inference
from dense.predict import Instances, Panoptic, Predictor
from dense.predict.objects import Coco
from dense.tasks.degraded import DegradedWindows
from tests.data.test_large import damage
from tests.predict.models import model, restorer, segmenter

tifffile = pytest.importorskip("tifffile")
CLASSES = ("class 0", "class 1", "class 2")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images of other shapes with masks and depth, in tiles but for one mask."""
    random = np.random.default_rng(0)
    for number, (height, width) in enumerate(((150, 210), (200, 120))):
        small = random.integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
        image = np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
        mask = (image[..., 0] // 86).astype(np.uint8)
        mask[:20, :30] = 255
        depth = image[..., 1].astype(np.float32) / 40
        for kind, values in (("images", image), ("masks", mask), ("depth", depth)):
            path = tmp_path / kind / f"{number}.tif"
            path.parent.mkdir(exist_ok=True)
            colours: Any = "rgb" if values.ndim == 3 else "minisblack"
            tifffile.imwrite(path, values, tile=(64, 32), compression="zlib", photometric=colours)
    Image.open(tmp_path / "masks/0.tif").save(tmp_path / "masks/0.png")
    (tmp_path / "masks/0.tif").unlink()
    (tmp_path / "classes.yaml").write_text(f"classes: [{', '.join(CLASSES)}]\n")
    (tmp_path / "depth.yaml").write_text("kind: metric\nscale: 1\n")
    return tmp_path


def never(self: FileSource, index: int) -> None:
    raise AssertionError("an image was read whole")


def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat every image as large, and forbid that one is read whole."""
    for name in ("data.windows", "evaluate.large"):
        monkeypatch.setattr(f"dense.{name}.LARGE", 0.01)
    monkeypatch.setattr(FileSource, "read", never)


@pytest.mark.parametrize(
    ("inference", "changes"),
    [
        ({"window": 48}, {}),
        ({"window": 40, "stride": 32}, {}),
        ({}, {"window": 48, "stride": 32, "edges": "inward"}),
        ({"window": 48}, {"flip": True, "over": "window"}),
        ({"window": 48}, {"hungarian": True, "average": "pixel"}),
        ({"resize": 70}, {"flip": True}),
        ({"resize": 70, "window": 48}, {}),
    ],
    ids=str,
)
def test_numbers(inference: dict[str, Any], changes: dict[str, Any], folder: Path, monkeypatch: Any) -> None:
    network = model("depth", "labels", inference=Inference(**inference))
    expected = evaluate(network, folder, split="all", **changes).numbers
    large(monkeypatch)
    found = evaluate(network, folder, split="all", **changes)
    tolerance = 0.01 if "resize" in inference else 1e-5  # images are shrunk by two implementations of the mean
    same = {name: value for name, value in found.numbers.items() if name != "per_class"}
    assert same == pytest.approx({name: expected[name] for name in same}, rel=tolerance)
    assert found.protocol.settings["large"] == "2 images of more than 0.01 megapixels, in windows"


NAMES = ("sky", "cup", "dog")


def objects(folder: Path, form: str, network: DenseModel) -> None:
    """Write objects for the images: those that a network finds, moved by a pixel, without some of them."""
    shutil.rmtree(folder / "depth")
    (folder / "depth.yaml").unlink()
    shutil.rmtree(folder / "masks")
    for kind in ("masks", "instances"):
        (folder / kind).mkdir()
    coco, predictor = Coco(), Predictor(network, **({"score": 0} if network.task == "instance" else {}))
    for number in (0, 1):
        found = predictor(tifffile.imread(folder / f"images/{number}.tif"))
        assert isinstance(found, Panoptic | Instances)
        numbers = found.segments if isinstance(found, Panoptic) else found.numbers.astype(np.int64) - 1
        numbers = np.roll(np.where(numbers % 7 == 3, -1, numbers), 1, 1)
        mask = np.append(found.labels, 255).astype(np.uint8)[numbers]
        options: dict[str, Any] = {"tile": (64, 32), "compression": "zlib", "photometric": "minisblack"}
        tifffile.imwrite(folder / f"masks/{number}.tif", mask, **options)
        tifffile.imwrite(folder / f"instances/{number}.tif", (numbers + 1).astype(np.uint16), **options)
        kept = np.unique(numbers[numbers >= 0])
        masks, labels = numbers == kept[:, None, None], found.labels[kept]
        coco.add(f"{number}.tif", Instances(masks, labels, np.ones(len(kept), np.float32), NAMES))
    if form == "json":
        shutil.rmtree(folder / "masks")
        shutil.rmtree(folder / "instances")
        (folder / "classes.yaml").unlink()
        coco.write(folder / "instances.json")
    else:
        (folder / "classes.yaml").write_text(f"classes: [{', '.join(NAMES)}]\nthings: [cup, dog]\n")


@pytest.mark.parametrize(
    ("kind", "form", "inference"),
    [
        ("instance", "map", {"window": 48}),
        ("instance", "json", {"window": 48, "stride": 30}),
        ("panoptic", "map", {"window": 48}),
        ("panoptic", "json", {"window": 64}),
        ("panoptic", "map", {"window": 48, "resize": 70}),
    ],
)
def test_masks(kind: Any, form: str, inference: dict[str, int], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AP and PQ, with objects in tiled maps and in JSON files, in blocks that cut the objects."""
    objects(folder, form, segmenter(monkeypatch, kind, **inference))
    network = segmenter(monkeypatch, kind)
    changes: dict[str, Any] = {"mask_threshold": 0.3, "overlap_threshold": 0.1, **inference}
    expected = evaluate(network, folder, split="all", **changes).numbers
    assert expected["pq" if kind == "panoptic" else "ap"] > 0.01
    large(monkeypatch)
    monkeypatch.setattr("dense.evaluate.large.BLOCK", 40)
    found = evaluate(network, folder, split="all", **changes)
    tolerance = 0.1 if "resize" in inference else 1e-6  # images are shrunk by two implementations of the mean
    for name, value in expected.items():
        if name != "per_class":
            assert found.numbers[name] == pytest.approx(value, rel=tolerance, nan_ok=True), name
    assert found.protocol.settings["large"] == "2 images of more than 0.01 megapixels, in windows"


def test_without_windows_it_is_as_in_prediction(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes in windows of the default size."""
    network = model("labels")
    expected = evaluate(network, folder, split="all", window=48, stride=32, edges="even").numbers
    large(monkeypatch)
    monkeypatch.setattr("dense.model.inference.WINDOW", 48)
    assert evaluate(network, folder, split="all").numbers["miou"] == pytest.approx(expected["miou"])


def test_probe(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = model("labels").backbone
    options: dict[str, Any] = {"split": "train", "val_ratio": 0.0, "size": 64, "train": 2, "val": 2, "patches": 200}
    torch.manual_seed(0)
    expected = measure_layers(network, str(folder), **options).numbers
    large(monkeypatch)
    torch.manual_seed(0)
    found = measure_layers(network, str(folder), **options).numbers
    for name in ("linear miou", "knn miou", "linear abs_rel"):
        assert found[name] == pytest.approx(expected[name], rel=0.05)


def restored(monkeypatch: pytest.MonkeyPatch, folder: Path, **inference: Any) -> tuple[Any, Any]:
    """Return the numbers of restoration in memory and in windows, of pairs in tiles."""
    (folder / "images").rename(folder / "target")
    (folder / "input").mkdir()
    for path in sorted((folder / "target").iterdir()):
        clean = tifffile.imread(path)
        noisy = np.clip(clean + np.random.default_rng(1).normal(0, 20, clean.shape), 0, 255).astype(np.uint8)
        tifffile.imwrite(folder / "input" / path.name, noisy, tile=(64, 32), compression="zlib", photometric="rgb")
    options: dict[str, Any] = {"split": "all", "layout": "paired", **inference}
    expected = evaluate(restorer(), folder, **options).numbers
    large(monkeypatch)
    monkeypatch.setattr("dense.metrics.restoration.SIDE", 50)
    return expected, evaluate(restorer(), folder, **options)


@pytest.mark.parametrize("inference", [{"window": 48}, {"window": 150, "stride": 8}], ids=str)
def test_restoration(inference: dict[str, int], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PSNR and SSIM of RGB and of luma, also of strips with fewer rows than a window of SSIM has."""
    expected, found = restored(monkeypatch, folder, **inference)
    for one, other in ((found.numbers, expected), (found.numbers["input"], expected["input"])):
        for name in ("psnr", "ssim", "psnr_y", "ssim_y"):
            assert one[name] == pytest.approx(other[name], rel=1e-6)
        assert one["per_degradation"]["paired"]["images"] == 2
    assert found.protocol.settings["large"] == "2 images of more than 0.01 megapixels, in windows"


def test_degraded_blocks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a large image are degraded as images are, each by its own seed; all reads agree."""
    large(monkeypatch)
    monkeypatch.setattr("dense.tasks.degraded.BLOCK", 64)
    source = open_labelled(folder, "all")
    assert isinstance(source, FileSource)
    targets = Targets(source, 0)
    windows, depth = DegradedWindows(targets, Degradation("haze", 0.1), (0, 100)), targets.read((0, 0, 150, 210)).depth
    whole, image = windows.read(0, 0, 150, 210), tifffile.imread(folder / "images/0.tif")
    assert depth is not None
    for y, x in ((0, 0), (64, 128), (128, 192)):
        part = slice(y, y + 64), slice(x, x + 64)
        hazy = degrade(image[part], {"haze": 0.1}, (0, 100, y // 64, x // 64), depth[part])
        assert np.array_equal(whole[part], hazy) and not np.array_equal(hazy, image[part])
    for y, x, tall, wide in ((0, 0, 1, 1), (60, 100, 80, 70), (149, 209, 1, 1), (63, 0, 2, 210)):
        assert np.array_equal(windows.read(y, x, tall, wide), whole[y : y + tall, x : x + wide])
    found = evaluate(restorer(), folder / "images", split="all", window=150, degrade={"noise": [25]}).numbers["input"]
    assert found["per_degradation"]["noise 25"]["psnr"] == pytest.approx(20 * np.log10(255 / 25), abs=1)


def test_restoration_leaves_out_damage(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tile of a clean image: the numbers of the inputs are those of the other pixels."""
    expected, found = restored(monkeypatch, folder, window=150)
    damage(folder / "target/1.tif", 5)
    again = evaluate(restorer(), folder, split="all", layout="paired", window=150).numbers["input"]
    assert "input/1.tif: 1 tiles are damaged; their pixels are not measured" in "".join(capsys.readouterr())
    for name in ("psnr", "ssim"):
        assert again[name] != expected["input"][name] == pytest.approx(found.numbers["input"][name])
        assert again[name] == pytest.approx(expected["input"][name], rel=0.01)


def test_what_needs_whole_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = model("depth", "labels", inference=Inference(window=48))
    large(monkeypatch)
    for changes, words in (
        ({"boundary": True}, "boundary"),
        ({"alignment": "median"}, "alignment=median"),
        ({"crop": "garg"}, "crop=garg"),
        ({"flip": True}, "averaging over scales and flips"),
    ):
        with pytest.raises(ValueError, match=rf"0.tif has more than 0.01 megapixels .* {words} needs whole images"):
            evaluate(network, folder, split="all", **changes)  # type: ignore[arg-type]
    (folder / "classes.yaml").write_text(f"classes: [{', '.join(CLASSES)}]\nthings: [class 1]\n")
    (folder / "instances").mkdir()
    for number in (0, 1):
        shape = tifffile.imread(folder / f"depth/{number}.tif").shape
        tifffile.imwrite(folder / f"instances/{number}.tif", np.zeros(shape, np.uint16), tile=(64, 32))
    with pytest.raises(ValueError, match="finding connected parts of classes needs whole images"):
        evaluate(network, folder, what="instance", split="all")


def test_damage_is_not_measured(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = model("labels", inference=Inference(window=48))
    damage(folder / "images/1.tif", 5)
    large(monkeypatch)
    found = evaluate(network, folder, split="all").numbers
    assert "images/1.tif: 1 tiles are damaged; their pixels are not measured" in "".join(capsys.readouterr())
    pixels = sum(row["pixels"] for row in found["per_class"].values())
    assert pixels == 150 * 210 + 200 * 120 - 2 * 20 * 30 - 64 * 32
