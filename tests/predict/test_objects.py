"""Instances and panoptic segments as predictions: files that others read, tiles, pages, and what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dense.data.labelled import open_labelled
from dense.data.labelled.sample import Labelled
from dense.data.scenes import render
from dense.data.transforms import EvalTransform
from dense.explore.judge import judge
from dense.model import queries as queries_module
from dense.model.queries import instances, panoptic, semantic
from dense.model.tiles import best
from dense.predict import Instances, Panoptic, Predictor, Segmentation
from dense.predict.sheet import predictions_sheet
from tests.predict.models import model, queries
from tests.runs import call

CLASSES = ("sky", "cup", "dog")
THINGS = (False, True, True)


def image(size: tuple[int, int] = (24, 36)) -> Any:
    return render(0, 1, size).image


def some() -> Instances:
    """A large object below a small, more certain one."""
    masks = np.zeros((2, 20, 30), bool)
    masks[0, 2:6, 3:9], masks[1, :10, :15] = True, True
    return Instances(masks, np.array([2, 1]), np.array([0.9, 0.75], np.float32), CLASSES)


def parts() -> Panoptic:
    segments = np.full((20, 30), -1, np.int32)
    segments[:8], segments[10:, 5:9] = 0, 1
    return Panoptic(segments, np.array([0, 2]), np.array([0.9, 0.8], np.float32), CLASSES, THINGS)


def test_instances(tmp_path: Path) -> None:
    """Numbers, boxes, a 16-bit PNG, and COCO's JSON, which this project reads back."""
    found = some()
    assert found.boxes.tolist() == [[3, 2, 9, 6], [0, 0, 15, 10]]
    assert [int((found.numbers == n).sum()) for n in (0, 1, 2)] == [600 - 150, 24, 126]
    assert found.words() == ["dog 0.90", "cup 0.75"]
    photo = np.full((20, 30, 3), 128, np.uint8)
    paths = found.save(tmp_path / "a", photo)
    assert [path.name for path in paths] == ["a_instances.png", "a_instances.json", "a_overlay.png"]
    assert np.array_equal(np.array(Image.open(paths[0])), found.numbers)
    assert np.array(Image.open(paths[2])).shape == (20 * 13, 30 * 13, 3)  # names need room
    content = json.loads(paths[1].read_text())
    assert [row["score"] for row in content["annotations"]] == [0.9, 0.75]
    assert content["annotations"][0]["bbox"] == [3, 2, 6, 4]
    Image.fromarray(photo).save(tmp_path / "a.png")
    content["images"][0]["file_name"] = "a.png"
    paths[1].write_text(json.dumps(content))
    read = open_labelled(tmp_path, "all", targets=("masks",), annotations=paths[1])
    segments = read.read(0).segments
    assert segments is not None
    assert read.classes == CLASSES
    assert np.array_equal(segments.masks.numpy(), found.masks)
    assert segments.classes.tolist() == [2, 1]


def test_panoptic(tmp_path: Path) -> None:
    """Ids are colours; the JSON says which segment is what."""
    found = parts()
    paths = found.save(tmp_path / "a", np.zeros((20, 30, 3), np.uint8))
    assert [path.name for path in paths] == ["a_panoptic.png", "a_panoptic.json", "a_overlay.png"]
    assert np.array_equal(np.array(Image.open(paths[0]))[..., 0], found.segments + 1)
    rows = json.loads(paths[1].read_text())["annotations"][0]["segments_info"]
    assert [(row["id"], row["category_id"], row["area"]) for row in rows] == [(1, 1, 240), (2, 3, 40)]
    assert np.unique(found.semantic()).tolist() == [0, 2, 255]
    assert found.masks.sum((1, 2)).tolist() == [240, 40]
    empty = Panoptic(np.full((4, 4), -1, np.int32), np.zeros(0, np.int64), np.zeros(0, np.float32), CLASSES, THINGS)
    assert (empty.semantic() == 255).all()
    assert (empty.picture() == 0).all()


@torch.no_grad()
def test_predictors() -> None:
    """Each kind by its published rule, at the size of the image; scores below the least are left out."""
    photo = image()
    for kind in ("instance", "panoptic", "semantic"):
        model = queries(kind)  # type: ignore[arg-type]
        pixels = model.backbone.normalise(torch.from_numpy(photo.transpose(2, 0, 1).copy())[None])
        maps = model(pixels)
        given: Any = (maps["mask_logits"], maps["class_logits"])
        found = Predictor(model, **({"score": 0.6} if kind == "instance" else {}))(photo)
        if isinstance(found, Instances):
            expected = instances(*given, (24, 36), through=(24, 36))[0]
            kept = expected.scores >= 0.6
            assert len(found) == int(kept.sum()) > 0
            assert np.array_equal(found.masks, expected.masks[kept].numpy())
        elif isinstance(found, Panoptic):
            segments = panoptic(*given, (24, 36), THINGS)[0].segments
            assert np.array_equal(found.segments, segments.numpy())
            fewer = Predictor(model, overlap_threshold=0.0)(photo)
            assert isinstance(fewer, Panoptic)
            segments = panoptic(*given, (24, 36), THINGS, overlap_threshold=0.0)[0].segments
            assert np.array_equal(fewer.segments, segments.numpy())
            assert not np.array_equal(fewer.segments, found.segments)
        else:
            assert isinstance(found, Segmentation)
            scores = semantic(*given, (24, 36))[0]
            assert np.array_equal(found.labels, scores.argmax(0).numpy())
            shares = (scores / scores.sum(0)).amax(0)
            np.testing.assert_allclose(found.scores, shares.numpy(), atol=1e-5)
    windows = Predictor(queries("semantic", window=16, stride=8), flip=True)(photo)
    assert isinstance(windows, Segmentation)
    assert windows.labels.shape == (24, 36)


def test_unlikely_pairs_are_not_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal objects above the least score, from the masks of fewer queries."""
    generator, counts = torch.Generator().manual_seed(0), list[int]()
    masks, classes = (torch.randn(1, 20, *shape, generator=generator) for shape in ((6, 9), (4,)))
    resized = queries_module.resized
    monkeypatch.setattr(queries_module, "resized", lambda x, *sizes: (counts.append(len(x)), resized(x, *sizes))[1])
    every, few = (best(instances(9 * masks, 3 * classes, (24, 36), least=least)[0], 0.7) for least in (0, 0.7))
    assert 0 < len(few.scores) < 20
    assert all(torch.equal(one, other) for one, other in zip(every, few, strict=True))
    assert counts[0] == 20 > counts[1]
    assert not len(instances(masks, classes, (24, 36), least=1.0)[0].scores)


def test_sizes_and_tiles() -> None:
    """Any size, also below a patch; working sizes of either side; tiles."""
    for kind in ("instance", "panoptic"):
        for size, inference in (((5, 40), {}), ((24, 36), {"resize": 16}), ((24, 36), {"longer": 60}),
                                ((40, 60), {"window": 24, "stride": 16})):  # fmt: skip
            found = Predictor(queries(kind, **inference))(image(size))  # type: ignore[arg-type]
            assert isinstance(found, Instances | Panoptic)
            assert found.masks.shape[1:] == size
    model = queries(longer=60)
    assert model.inference.size_of((24, 36)) == (40, 60)
    assert Predictor.of(model, resize=12).inference.longer is None
    squares, tall = (Predictor(queries(longer=40, square=square), score=0) for square in (True, False))
    black = np.concatenate([(photo := image((20, 40))), np.zeros_like(photo)])
    found, whole, other = squares(photo), squares(black), tall(photo)
    assert isinstance(found, Instances)
    assert isinstance(whole, Instances)
    assert isinstance(other, Instances)
    masks = {(label, mask[:20].tobytes()) for label, mask in zip(whole.labels, whole.masks, strict=True)}
    assert {(label, mask.tobytes()) for label, mask in zip(found.labels, found.masks, strict=True)} <= masks
    assert not np.array_equal(found.masks, other.masks)
    with pytest.raises(ValueError, match="square pads images for masks of objects; for segmentation leave it out"):
        queries("semantic", square=True)
    with pytest.raises(ValueError, match="expected one of both"):
        queries(longer=60, resize=12)


def test_what_does_not_fit() -> None:
    """Averages over images, refined edges, impossible scores."""
    with pytest.raises(ValueError, match="queries of two images are not the same"):
        Predictor(queries(), flip=True)
    with pytest.raises(ValueError, match="not refined"):
        Predictor(queries("semantic", refine="guided"))
    with pytest.raises(ValueError, match="score=2: expected 0 to 1"):
        Predictor(queries(), score=2)
    with pytest.raises(ValueError, match="overlap_threshold=-1: expected 0 to 1"):
        Predictor(queries("panoptic"), overlap_threshold=-1)
    with pytest.raises(ValueError, match=r"score=0.3 is of instances; .* give mask_threshold instead"):
        Predictor(queries("panoptic"), score=0.3)
    for network in (queries("semantic"), model("depth")):
        with pytest.raises(ValueError, match=r"score=0.9 is of instances; the model predicts none, so leave it out"):
            Predictor(network, score=0.9)
    with pytest.raises(ValueError, match=r"mask_threshold=0.3 is of panoptic segments, .* leave it out"):
        Predictor(queries(), mask_threshold=0.3)


@pytest.mark.parametrize("kind", ["instance", "panoptic"])
def test_files_of_many_images(kind: str, tmp_path: Path) -> None:
    """`dense predict` writes one JSON for all images, which is data to train on."""
    network = queries(kind)  # type: ignore[arg-type]
    network.facts = {"category ids": [3, 5, 90]}
    network.save_pretrained(tmp_path / "model")
    for number in range(2):
        path = tmp_path / f"photos/{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image((24 + number, 32))).save(path)
    run = call(["predict", str(tmp_path / "model"), str(tmp_path / "photos"), "--output", str(tmp_path / "out")])
    assert run.returncode == 0, run.stderr
    name = "instances" if kind == "instance" else "panoptic"
    written = {path.name for path in (tmp_path / "out").glob("0*")}
    assert written == {f"0_{name}.json", f"0_{name}.png", "0_overlay.png"}
    of_one = json.loads((tmp_path / f"out/1_{name}.json").read_text())
    assert [one["file_name"] for one in of_one["images"]] == ["1.png"]
    content = json.loads((tmp_path / f"out/{name}.json").read_text())
    assert [(one["id"], one["name"]) for one in content["categories"]] == [(3, "sky"), (5, "cup"), (90, "dog")]
    assert kind == "panoptic" or {row["category_id"] for row in content["annotations"]} == {5}
    words = ["predict", str(tmp_path / "model"), str(tmp_path / "photos"), "--output", str(tmp_path / "none")]
    if kind == "panoptic":
        assert of_one["annotations"][0]["file_name"] == "1_panoptic.png"
        assert "0 segments with a probability above 0.8 in 2 images; a smaller --mask-threshold or" in run.stdout
        some = call([*words, "--overlap-threshold", "0", "--mask-threshold", "0.9"]).stdout
        assert "segments with a probability above 0.9 in 2 images\n" in some
    else:
        assert "objects with a score of at least 0.5 in 2 images\n" in run.stdout
        none = call([*words, "--score", "0.999"]).stdout
        assert "0 objects with a score of at least 0.999 in 2 images; a smaller --score keeps less certain ones" in none
    source = open_labelled(tmp_path / "photos", "all", targets=("masks",), annotations=tmp_path / f"out/{name}.json")
    segments = source.read(1).segments
    assert segments is not None
    assert segments.masks.shape[1:] == (25, 32)
    found = Predictor(queries(kind))(tmp_path / "photos/1.png")  # type: ignore[arg-type]
    assert isinstance(found, Instances | Panoptic)
    assert np.array_equal(segments.masks.numpy(), found.masks)


def test_pages_show_objects() -> None:
    """With ground truth by the IoU of objects, without it by their scores."""
    sample = open_labelled("scenes", "val", targets=("masks",), length=1, size=32).read(0)
    for kind in ("instance", "panoptic"):
        model = Predictor(queries(kind, source_classes()))  # type: ignore[arg-type]
        shown = judge(model, sample)
        assert set(shown.layers) == {"prediction", "ground truth"}
        assert 0 <= shown.badness <= 1
        assert "mean IoU" in shown.caption
        assert sample.segments is not None
        stuff = sample.segments.take(sample.segments.classes < 2)  # sky and ground, which are no instances
        regions = judge(model, Labelled(sample.image, None, None, "regions", segments=stuff))
        assert ("none in the ground truth" in regions.caption) == (kind == "instance")
        bare = judge(model, Labelled(sample.image, None, None, "bare"))
        assert set(bare.layers) == {"prediction"}
        assert "uncertainty" in bare.caption


def test_sheets_of_resized_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ground truth that keeps its size is drawn over the image at working size, beside as many of the best objects."""
    source = open_labelled("scenes", "val", targets=("masks",), length=1, size=64)
    sample = EvalTransform(size=32)(source.read(0))
    assert sample.segments is not None
    assert sample.segments.masks.shape[1:] == (64, 64)
    drawn = list[int]()
    monkeypatch.setattr(Instances, "overlay", lambda self, image: drawn.append(len(self)) or image)
    model = queries("instance", source_classes())
    model.head.class_head.bias.data.zero_()  # scores are far below those that a prediction keeps
    assert predictions_sheet(model, [sample], source.classes).ndim == 3
    assert drawn == [int((sample.segments.classes > 1).sum())]
    assert drawn[0] > 0


def source_classes() -> tuple[str, ...]:
    from dense.data.scenes import CLASSES as OF_SCENES

    return OF_SCENES
