"""Predictions of large files, window by window, equal those of the same images in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco

from dense.data.labelled.segments import encode, encode_part
from dense.model.network import Inference
from dense.predict import Joint, Panoptic, Predictor
from dense.predict.objects import of_colours
from dense.predict.predictor import Sink
from tests.data.test_large import damage
from tests.predict.models import model, queries, restorer, segmenter
from tests.runs import call, in_processes

tifffile = pytest.importorskip("tifffile")


@pytest.fixture(params=[(150, 210), (210, 150)], ids=["wide", "tall"])
def image(request: pytest.FixtureRequest) -> np.ndarray:
    small = np.random.default_rng(0).integers(0, 256, (*(n // 10 for n in request.param), 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize(request.param[::-1], Image.Resampling.BICUBIC))


def save(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, image, tile=(64, 32), compression="zlib", photometric="rgb")
    return path


@pytest.mark.parametrize(
    "inference", [{"window": 48}, {"window": 40, "stride": 40}, {"resize": 70}, {"resize": 70, "window": 48}], ids=str
)
def test_maps_equal_those_in_memory(inference: dict[str, Any], image: np.ndarray, tmp_path: Path) -> None:
    """Read from the file, and written as tiled TIFF."""
    path = save(tmp_path / "a.tif", image)
    network = model("depth", "labels", inference=Inference(**inference))
    found, expected = Predictor(network, large=0)(path), Predictor(network)(image)
    assert isinstance(found, Joint) and isinstance(expected, Joint)
    tolerance = 0.02 if "resize" in inference else 0  # a pixel in thousands is resized to a neighbouring number
    assert (found.segmentation.labels != expected.segmentation.labels).mean() <= tolerance
    assert np.allclose(found.depth.values, expected.depth.values, atol=tolerance)
    written = Predictor(network).write(path, tmp_path / "out/a")
    assert sorted(p.name for p in written) == sorted(p.name for p in (tmp_path / "out").iterdir())
    assert np.array_equal(tifffile.imread(tmp_path / "out/a_labels.tif"), found.segmentation.labels)
    scores = (found.segmentation.scores * 255 + 0.5).astype(np.uint8)
    assert np.array_equal(tifffile.imread(tmp_path / "out/a_scores.tif"), scores)
    assert np.array_equal(tifffile.imread(tmp_path / "out/a_depth.tif"), found.depth.values)
    assert json.loads((tmp_path / "out/a_depth.json").read_text()) == {"kind": "metric", "unit": "m"}
    assert Image.open(tmp_path / "out/a_labels.tif").mode == "P"  # other programs read it, in colours
    with tifffile.TiffFile(tmp_path / "out/a_depth.tif") as file:
        assert file.pages[0].is_tiled


def test_logarithms_become_metres(image: np.ndarray, tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", image)
    network = model("depth", activation="identity", kind="log", inference=Inference(window=48))
    for raw in (False, True):
        predictor = Predictor(network, raw_depth=raw)
        predictor.write(path, tmp_path / "a", overview=False)
        assert np.allclose(tifffile.imread(tmp_path / "a_depth.tif"), predictor(image).values, rtol=1e-6)  # type: ignore[union-attr]


def test_restoration(image: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.tif", image)
    monkeypatch.setattr("dense.predict.predictor.WHOLE", 1000)
    monkeypatch.setattr("dense.model.inference.WINDOW", 64)
    predictor = Predictor(restorer())
    predictor.write(path, tmp_path / "a")
    expected = predictor(image).values  # type: ignore[union-attr]
    assert np.array_equal(tifffile.imread(tmp_path / "a_restored.tif"), expected)


@pytest.mark.parametrize("window", [48, None])
def test_objects(window: int | None, image: np.ndarray, tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", image)
    network = queries(window=window)
    network.facts = {"category ids": [3, 5, 90]}
    found, expected = Predictor(network, large=0)(path), Predictor(network)(image)
    assert len(found) == len(expected) > 0  # type: ignore[arg-type]
    assert np.array_equal(found.masks, expected.masks)  # type: ignore[union-attr]
    Predictor(network).write(path, tmp_path / "out/a")
    assert np.array_equal(tifffile.imread(tmp_path / "out/a_instances.tif"), found.numbers)  # type: ignore[union-attr]
    annotations = json.loads((tmp_path / "out/a_instances.json").read_text())["annotations"]
    bare = [{k: v for k, v in row.items() if k not in ("id", "image_id")} for row in annotations]
    assert bare == found.annotations()  # type: ignore[union-attr]
    assert {row["category_id"] for row in bare} <= {3, 5, 90}


@pytest.mark.parametrize("inference", [{"window": 48}, {"window": 40, "stride": 12}, {}], ids=str)
def test_panoptic_segments(inference: dict[str, int], image: np.ndarray, tmp_path: Path, monkeypatch: Any) -> None:
    """Numbers, areas, boxes and scores equal those in memory; the map is read as COCO's is."""
    path = save(tmp_path / "in/a.tif", image)
    network = segmenter(monkeypatch, **inference)
    network.facts = {"category ids": [3, 5, 90]}
    monkeypatch.setattr("dense.predict.sinks.ROWS", 64)
    found, expected = Predictor(network, large=0)(path), Predictor(network)(image)
    assert isinstance(found, Panoptic) and isinstance(expected, Panoptic)
    assert np.array_equal(found.segments, expected.segments)
    assert set(expected.labels.tolist()) == {0, 1, 2}
    Predictor(network).write(path, tmp_path / "python/a")
    network.save_pretrained(tmp_path / "model")
    argv = ["predict", str(tmp_path / "model"), str(path.parent), "--large", "0", "--output", str(tmp_path / "out")]
    done = call(argv)
    assert done.returncode == 0, done.stderr
    for folder in ("python", "out"):
        written = tifffile.imread(tmp_path / folder / "a_panoptic.tif")
        assert np.array_equal(of_colours(written), expected.segments + 1)
        (row,) = json.loads((tmp_path / folder / "a_panoptic.json").read_text())["annotations"]
        assert row["file_name"] == "a_panoptic.tif" and row["segments_info"] == expected.annotations()
        assert max(Image.open(tmp_path / folder / "a_overview.png").size) == 210
    ours = json.loads((tmp_path / "out/panoptic.json").read_text())
    assert ours["annotations"][0]["segments_info"] == expected.annotations()
    assert [(one["id"], one["isthing"]) for one in ours["categories"]] == [(3, 0), (5, 1), (90, 1)]
    assert not list((tmp_path / "out").glob(".*.partial"))


def test_panoptic_segments_of_a_shrunk_image(image: np.ndarray, tmp_path: Path, monkeypatch: Any) -> None:
    """Found at the working size, enlarged by nearest neighbour, as in memory; a damaged tile has no segment."""
    path = save(tmp_path / "a.tif", image)
    damage(path, 6)
    predictor = Predictor(segmenter(monkeypatch, window=48, resize=70), large=0)
    found = predictor(path)
    predictor.write(path, tmp_path / "out/a")
    (box,) = json.loads((tmp_path / "out/a_damaged.json").read_text())
    expected = found.segments + 1  # type: ignore[union-attr]
    expected[box["top"] : box["top"] + box["height"], box["left"] : box["left"] + box["width"]] = 0
    written = of_colours(tifffile.imread(tmp_path / "out/a_panoptic.tif"))
    assert np.array_equal(written, expected)
    (row,) = json.loads((tmp_path / "out/a_panoptic.json").read_text())["annotations"]
    assert {one["id"]: one["area"] for one in row["segments_info"]} == {
        int(n): int((expected == n).sum()) for n in np.unique(expected) if n
    }


def test_a_large_image_that_is_shrunk_to_the_working_size_warns(image: np.ndarray, tmp_path: Path, capsys: Any) -> None:
    path = save(tmp_path / "a.tif", image)
    network = queries(window=None, resize=16)
    for options, warned in (({}, True), ({"resize": 70}, False)):
        Predictor.of(network, large=0, **options)(path)
        assert ("is shrunk to" in "".join(capsys.readouterr())) == warned


def test_objects_of_a_shrunk_image(image: np.ndarray, tmp_path: Path) -> None:
    """Masks at the working size, by nearest neighbour."""
    path = save(tmp_path / "a.tif", image)
    for window in (48, None):
        predictor = Predictor(queries(window=window, resize=70))
        predictor.write(path, tmp_path / "a")
        numbers = tifffile.imread(tmp_path / "a_instances.tif")
        rows = json.loads((tmp_path / "a_instances.json").read_text())["annotations"]
        assert numbers.shape == image.shape[:2] and 0 < numbers.max() <= len(rows)
        code = coco.decode(rows[0]["segmentation"])
        assert np.array_equal(code == 1, numbers == 1)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_codes_of_parts(share: float) -> None:
    """Equal those of the whole mask, also where runs go on in the next column."""
    random = np.random.default_rng(0)
    for top, left, height, width in ((0, 0, 9, 7), (2, 1, 5, 4), (4, 3, 5, 4), (0, 2, 9, 2)):
        part, whole = random.random((height, width)) < share, np.zeros((9, 7), bool)
        whole[top : top + height, left : left + width] = part
        assert encode_part(part, top, left, (9, 7)) == encode(whole)


def test_a_damaged_tile_is_masked_counted_and_listed(image: np.ndarray, tmp_path: Path) -> None:
    """All windows that do not touch it have the prediction of the undamaged image."""
    network = model("depth", "labels", inference=Inference(window=32, stride=32))
    Predictor(network).write(save(tmp_path / "good.tif", image), tmp_path / "good")
    damage(save(tmp_path / "in/bad.tif", image), 6)
    network.save_pretrained(tmp_path / "model")
    argv = ["predict", str(tmp_path / "model"), str(tmp_path / "in"), "--large", "0", "--output", str(tmp_path / "out")]
    done = call(argv)
    assert done.returncode == 0, done.stderr
    assert "bad.tif: 1 tiles are damaged; their pixels are masked" in done.stderr
    (box,) = json.loads((tmp_path / "out/bad_damaged.json").read_text())
    rows, columns = slice(box["top"], box["top"] + box["height"]), slice(box["left"], box["left"] + box["width"])
    labels, depth = (tifffile.imread(tmp_path / f"out/bad_{name}.tif") for name in ("labels", "depth"))
    assert (labels[rows, columns] == 255).all() and (labels == 255).sum() == box["height"] * box["width"]
    assert np.isnan(depth[rows, columns]).all() and np.isnan(depth).sum() == box["height"] * box["width"]
    differs = labels != tifffile.imread(tmp_path / "good_labels.tif")
    near = np.zeros_like(differs)
    near[
        max(box["top"] - 32, 0) : box["top"] + box["height"] + 32,
        max(box["left"] - 32, 0) : box["left"] + box["width"] + 32,
    ] = True
    assert not (differs & ~near).any()


def test_an_image_of_other_channels_is_listed(tmp_path: Path) -> None:
    """As an unreadable one; the others are predicted."""
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    save(tmp_path / "in/a.tif", image)
    four = np.dstack([image, image[..., :1]])
    tifffile.imwrite(tmp_path / "in/b.tif", four, photometric="minisblack", planarconfig="contig", tile=(32, 32))
    model("labels", inference=Inference(window=32)).save_pretrained(tmp_path / "model")
    argv = ["predict", str(tmp_path / "model"), str(tmp_path / "in"), "--large", "0", "--output", str(tmp_path / "out")]
    done = call(argv)
    assert "b.tif has 4 channels, expected 1 or 3" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr and (tmp_path / "out/a_labels.tif").is_file()


def test_two_processes_and_a_kill(tmp_path: Path) -> None:
    """File for file; what a killed process left of an image is made again."""
    images = np.random.default_rng(0).integers(0, 256, (3, 70, 90, 3), dtype=np.uint8)
    for number, one in enumerate(images):
        save(tmp_path / f"in/{number}.tif", one)
    model("labels", inference=Inference(window=32)).save_pretrained(tmp_path / "model")
    argv = ["predict", str(tmp_path / "model"), str(tmp_path / "in"), "--large", "0", "--output"]
    (tmp_path / "two/.1.partial").mkdir(parents=True)
    (tmp_path / "two/.1.partial/labels").write_bytes(b"half")
    in_processes([*argv, str(tmp_path / "two")], tmp_path)
    assert call([*argv, str(tmp_path / "one")]).returncode == 0
    found = [{p.name: p.read_bytes() for p in (tmp_path / name).iterdir() if p.is_file()} for name in ("one", "two")]
    assert found[0] == found[1]
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == sorted(found[0])


def test_values_at_another_size() -> None:
    """Labels by nearest neighbour, numbers bilinearly, in bands of rows."""
    values = {"labels": torch.randint(0, 5, (37, 41), dtype=torch.uint8), "scores": torch.rand(37, 41)}
    small, full = Sink((37, 41)), Sink((600, 333))
    small.values = dict(values)
    small.resized(full)
    expected = torch.nn.functional.interpolate(values["labels"][None, None].float(), (600, 333), mode="nearest-exact")
    assert torch.equal(full.values["labels"], expected[0, 0].byte())
    expected = torch.nn.functional.interpolate(values["scores"][None, None], (600, 333), mode="bilinear")
    assert torch.allclose(full.values["scores"], expected[0, 0], atol=1e-5)
