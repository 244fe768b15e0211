"""Segments: COCO's JSON files, maps of objects' numbers in PNG, and everything wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from dense.data.labelled import DataError, Segments, check_all, masks_of, open_labelled
from dense.data.labelled.check import check
from dense.data.labelled.folder import group_names
from dense.data.labelled.open import class_target, open_training
from dense.data.labelled.segments import decode, encode, of_numbers, painted, runs
from dense.data.transforms import Augment, TrainTransform, resize_sample
from dense.tasks.data import DenseData
from tests.data.labelled_files import HEIGHT, WIDTH, folder, image_file, mask, text

SIZE = (HEIGHT, WIDTH)
SQUARE = [1, 1, 5, 1, 5, 4, 1, 4]  # a polygon: columns 1 to 4 of rows 1 to 3
Json = dict[str, Any]


def colours(path: Path, values: Any) -> None:
    """Write colours (H, W, 3)."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)


def instances(root: Path, names: tuple[str, ...] = ("a", "b", "c")) -> Json:
    """images/ and the content of a JSON file: two objects on the first image, a crowd on the second, none after."""
    for number, name in enumerate(names):
        image_file(root / "images" / f"{name}.jpg", number)
    crowd = np.zeros(SIZE, bool)
    crowd[4:] = True
    return {
        "images": [
            {"id": 10 + i, "file_name": f"{name}.jpg", "height": HEIGHT, "width": WIDTH} for i, name in enumerate(names)
        ],
        "categories": [{"id": 7, "name": "cup"}, {"id": 3, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 10, "category_id": 7, "segmentation": [SQUARE], "iscrowd": 0},
            {"id": 2, "image_id": 10, "category_id": 3, "segmentation": {"size": SIZE, "counts": [0, 12, 36]}},
            {"id": 3, "image_id": 11, "category_id": 3, "segmentation": encode(crowd), "iscrowd": 1},
        ],
    }


def written(root: Path, content: Json, name: str = "instances.json") -> Path:
    text(root / name, json.dumps(content))
    return root


def panoptic(root: Path) -> Json:
    """An image whose upper half is stuff 258, with an object 65536 + 3 and a row without a segment."""
    image_file(root / "images/a.jpg")
    values = np.zeros((*SIZE, 3), np.uint8)
    values[:3] = [2, 1, 0]
    values[3:5, :4] = [3, 0, 1]
    colours(root / "panoptic/a.png", values)
    return {
        "images": [{"id": 0, "file_name": "a.jpg"}],
        "categories": [{"id": 1, "name": "car", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}],
        "annotations": [
            {
                "image_id": 0,
                "file_name": "a.png",
                "segments_info": [{"id": 258, "category_id": 2}, {"id": 65539, "category_id": 1, "iscrowd": 0}],
            }
        ],
    }


def read(root: Path, index: int = 0, split: str = "all", **options: Any) -> Segments:
    segments = open_labelled(root, split, targets=("masks",), **options).read(index).segments
    assert segments is not None
    return segments


# ---- COCO's files


def test_instances(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Polygons and run lengths, classes in the order of ids with holes, a crowd, an image without objects."""
    root = written(tmp_path, instances(tmp_path))
    source = open_labelled(root, "all", targets=("masks",))
    assert (source.classes, source.things, len(source)) == (("dog", "cup"), (True, True), 3)
    assert source.segment_format.ids == (3, 7)  # type: ignore[attr-defined]
    assert "ids 3 to 7 have holes; the 2 categories are classes 0 to 1" in "".join(capsys.readouterr())
    first = source.read(0).segments
    assert first is not None
    assert (first.classes.tolist(), first.crowd.tolist()) == ([1, 0], [False, False])
    square = np.zeros(SIZE, bool)
    square[1:4, 1:5] = True
    assert np.array_equal(first.masks[0].numpy(), square)
    assert first.masks[1].sum() == 12
    assert first.masks[1][:, :2].all()  # run lengths go down the columns
    assert (read(root, 1).crowd.tolist(), read(root, 2).masks.shape) == ([True], (0, *SIZE))
    assert first.valid.all()
    assert not source.covers
    warnings: list[str] = []
    assert check(source, warnings=warnings) == []
    assert [line.split(",")[0].split(":")[0] for line in warnings] == ["1 image", "1 crowd regions"]


def test_panoptic(tmp_path: Path) -> None:
    """Ids are colours, things are declared, the id 0 is unknown."""
    root = written(tmp_path, panoptic(tmp_path), "panoptic.json")
    source = open_labelled(root, "all", targets=("masks",))
    assert (source.classes, source.things) == (("car", "sky"), (True, False))
    found = read(root)
    assert found.classes.tolist() == [1, 0]
    assert found.masks.flatten(1).sum(1).tolist() == [24, 8]
    assert int((~found.valid).sum()) == 16
    assert check(source) == []
    assert source.covers
    content = instances(tmp_path / "stuff")
    content["categories"][0]["isthing"] = 0
    assert open_labelled(written(tmp_path / "stuff", content), "all", targets=("masks",)).covers


def test_classes_of_pixels(tmp_path: Path) -> None:
    """They come from masks, also beside objects, and from a JSON file where it alone has them."""
    with_masks = folder(tmp_path / "masks", ["a"])
    assert class_target(with_masks, "train") == "labels"
    written(with_masks, instances(with_masks))
    assert class_target(with_masks, "val") == "labels"
    assert class_target(with_masks, "train", annotations="elsewhere.json") == "masks"
    assert class_target(written(tmp_path / "val", panoptic(tmp_path / "val"), "panoptic.json"), "all") == "masks"
    assert class_target(tmp_path, "val") == "masks"
    found = [class_target(root, "train", name) for root, name in ((".", "coco_panoptic"), (".", "ade20k"))]
    assert found == ["masks", "labels"]
    assert class_target("scenes", "train") == class_target(tmp_path / "nowhere", "train") == "labels"


def test_splits(tmp_path: Path) -> None:
    """Of a JSON per split, of one that both share, and of a folder per split; a JSON elsewhere by its name."""
    content = instances(tmp_path / "named", tuple("abcdefgh"))
    for split, part in (("train", content["images"][:6]), ("val", content["images"][6:])):
        chosen = [one for one in content["annotations"] if split == "train"]
        written(
            tmp_path / "named",
            {**content, "images": part, "annotations": chosen},
            f"annotations/instances_{split}.json",
        )
    assert [len(s) for s in open_training(tmp_path / "named", targets=("masks",))] == [6, 2]
    for split in ("train", "val"):
        written(tmp_path / "folders" / split, instances(tmp_path / "folders" / split))
    assert [len(s) for s in open_training(tmp_path / "folders", targets=("masks",))] == [3, 3]
    shared = written(tmp_path / "shared", instances(tmp_path / "shared", tuple("abcdefgh")))
    train, val = open_training(shared, targets=("masks",), val_ratio=0.3)
    assert len(train) + len(val) == 8
    assert len(val) >= 1
    moved = written(tmp_path / "elsewhere", content, "found.json") / "found.json"
    source = open_labelled(tmp_path / "named", "all", targets=("masks",), annotations=moved)
    assert len(source) == 8
    with pytest.raises(ValueError, match="add masks to the targets"):
        open_labelled(tmp_path / "named", "all", annotations=moved)


def test_images_outside_of_their_folder(tmp_path: Path) -> None:
    """They are split by their names, below the root or in full."""
    content = instances(tmp_path / "data")
    for name in ("data/more/d.jpg", "far/e.jpg"):
        image_file(tmp_path / name)
    content["images"][1]["file_name"], content["images"][2]["file_name"] = "more/d.jpg", str(tmp_path / "far/e.jpg")
    root = written(tmp_path / "data", content)
    options: dict[str, Any] = {"targets": ("masks",), "val_ratio": 0.3}
    sides = [open_labelled(root, split, **options) for split in ("train", "val")]
    assert sum(map(len, sides)) == 3
    names = group_names(open_labelled(root, "all", **options), root / "images", None, root)  # type: ignore[arg-type]
    assert names == ["a", "more/d", str(tmp_path / "far/e")]


def change(content: Json, **fields: Any) -> None:
    content["annotations"][0] |= fields


WRONG: dict[str, tuple[Callable[[Json], object], str]] = {
    "size": (
        lambda c: change(c, segmentation={"size": [6, 9], "counts": [54]}),
        "is of size [6, 9], its image of [6, 8]",
    ),
    "sum": (lambda c: change(c, segmentation={"size": SIZE, "counts": [3, 4]}), "covers 7 pixels, its image has 48"),
    "text": (lambda c: change(c, segmentation={"size": SIZE, "counts": "1o"}), "annotation 1 of"),
    "empty": (lambda c: change(c, segmentation={"size": SIZE, "counts": [48]}), "the mask of annotation 1 of"),
    "polygon": (lambda c: change(c, segmentation=[[1, 2, 3, 4]]), "has 4 numbers; expected x and y"),
    "box": (lambda c: c["annotations"][0].pop("segmentation"), "annotation 1 of a.jpg has a box and no mask"),
    "twice": (lambda c: change(c, id=2), "two annotations have the id 2, also annotation 2 of a.jpg"),
    "no ids": (
        lambda c: [one.pop("id") for one in c["annotations"]],
        "3 annotations have no id, such as one of a.jpg; give each one of its own",
    ),
    "crowd": (lambda c: change(c, iscrowd="0"), "iscrowd of annotation 1 of a.jpg is '0'; expected 0 or 1"),
    "thing": (lambda c: c["categories"][0].update(isthing="1"), "isthing of category 7 is '1'; expected 0 or 1"),
    "category": (lambda c: change(c, category_id=5), "annotation 1 of a.jpg has the category 5, which is not listed"),
    "image": (lambda c: change(c, image_id=99), "annotation 1 is of image 99, which is not listed"),
    "declared": (
        lambda c: c["images"][0].update(height=8, width=6),
        "6x8 pixels (height x width), its JSON file says 8x6",
    ),
    "file": (lambda c: c["images"][2].update(file_name="no.jpg"), "no image"),
    "images": (lambda c: c["images"][2].update(id=10), "10 is the id of two images"),
    "one file": (lambda c: c["images"][2].update(file_name="../images/a.jpg"), "a.jpg is the file of two images"),
    "no object": (lambda c: c.update(annotations=c["annotations"][2:]), "none of 3 images has an object, apart from"),
    "image's list": (lambda c: c["images"][2].update(id=[1]), "id of images[2] is [1]; expected a whole number"),
    "list": (lambda c: change(c, id=[1]), "id of annotations[0] is [1]; expected a whole number"),
    "list of image": (lambda c: change(c, image_id=[10]), "image_id of annotation 1 is [10]; expected"),
    "list of category": (
        lambda c: change(c, category_id={"a": 1}),
        "category_id of annotation 1 is {'a': 1}; expected",
    ),
    "number as size": (
        lambda c: change(c, segmentation={"size": 5, "counts": [48]}),
        "annotation 1 of {root}/images/a.jpg is of size 5, its image of [6, 8]",
    ),
    "fractions": (
        lambda c: change(c, segmentation={"size": SIZE, "counts": [8.5, 39.7]}),
        "annotation 1 of {root}/images/a.jpg is damaged: '[8.5, 39.7]'",
    ),
    "number as counts": (lambda c: change(c, segmentation={"size": SIZE, "counts": 48}), "is damaged: '48'"),
    "categories": (lambda c: c["categories"][1].update(name="cup"), "two categories have the name 'cup'"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_instances(what: str, tmp_path: Path) -> None:
    """Each fault is found before training, in one line."""
    content = instances(tmp_path)
    WRONG[what][0](content)
    source = open_labelled(written(tmp_path, content), "all", targets=("masks",))
    found = check(source)
    assert len(found) == 1, found
    assert WRONG[what][1].replace("{root}", str(tmp_path)) in found[0]
    with pytest.raises(DataError, match="all: "):
        check_all({"all": source})


def test_a_polygon_thinner_than_a_pixel_is_left_out(tmp_path: Path) -> None:
    """As COCO has some."""
    content = instances(tmp_path)
    change(content, segmentation=[[0.1, 0.1, 0.2, 0.1, 0.2, 0.2]])
    source = open_labelled(written(tmp_path, content), "all", targets=("masks",))
    warnings: list[str] = []
    assert check(source, warnings=warnings) == []
    assert any("1 polygons are thinner than a pixel" in line for line in warnings)
    assert read(tmp_path).classes.tolist() == [0]


@pytest.mark.parametrize(
    ("polygon", "words"),
    [
        ([5e3, 5e3, 5e3, 6e3, 6e3, 6e3], "lie outside the image"),
        ([float("nan")] * 6, "not finite"),
        ([1, 1, 3e7, 1, 3, 4], "a polygon of annotation 1 of {root}/images/a.jpg has the coordinate 3e+07, more than"),
        ([1, 1, 3, 1, 3, -61], "has the coordinate -61, more than 10 sides outside the image of 8x6 pixels"),
    ],
)
def test_polygons_that_are_no_mask(tmp_path: Path, polygon: list[float], words: str) -> None:
    content = instances(tmp_path)
    change(content, segmentation=[polygon])
    words = words.replace("{root}", str(tmp_path))
    assert words in check(open_labelled(written(tmp_path, content), "all", targets=("masks",)))[0]


def test_images_that_are_rotated_by_exif(tmp_path: Path) -> None:
    """And not their annotations, which are of the file as it is stored."""
    content = instances(tmp_path)
    image_file(tmp_path / "images/b.jpg", orientation=6)
    (found,) = check(open_labelled(written(tmp_path, content), "all", targets=("masks",)))
    assert "its JSON file says 6x8; the image is rotated by its EXIF data and the JSON file is not" in found


def test_wrong_panoptic(tmp_path: Path) -> None:
    """Ids that only one of PNG and JSON has, two segments with one id, no PNG."""
    for place, (key, words) in enumerate(
        {"id": "has the id 258, which the JSON file does not list", "twice": "have the id 65539", "png": "no file",
         "empty": "has no pixels", "none": "has no annotation of 1 images", "list": "a.png has the id [258]; expected",
         "category": "has the category [1], which", "crowd": "iscrowd of segment 258 of a.png is None; expected 0 or 1",
         "info": "segments_info of a.png is ['a']; expected a list"}.items()
    ):  # fmt: skip
        root = tmp_path / str(place)
        content = panoptic(root)
        listed = content["annotations"][0]["segments_info"]
        if key == "id":
            listed.pop(0)
        elif key == "twice":
            listed.append(dict(listed[1]))
        elif key == "png":
            content["annotations"][0]["file_name"] = "b.png"
        elif key == "empty":
            listed.append({"id": 5, "category_id": 1})
        elif key == "list":
            listed[0]["id"] = [258]
        elif key == "category":
            listed[0]["category_id"] = [1]
        elif key == "crowd":
            listed[0]["iscrowd"] = None
        elif key == "info":
            content["annotations"][0]["segments_info"] = ["a"]
        else:
            content["annotations"][0]["image_id"] = 0
            image_file(root / "images/b.jpg")
            content["images"].append({"id": 1, "file_name": "b.jpg"})
        found = check(open_labelled(written(root, content, "panoptic.json"), "all", targets=("masks",)))
        assert words in found[0], (key, found)


def test_files_that_are_no_coco(tmp_path: Path) -> None:
    """Broken JSON, other JSON, two files that name other categories."""
    root = written(tmp_path, instances(tmp_path))
    text(root / "instances.json", "{")
    with pytest.raises(DataError, match="is not JSON"):
        open_labelled(root, "all", targets=("masks",))
    text(root / "instances.json", "[1]")
    with pytest.raises(DataError, match="no list 'images'"):
        open_labelled(root, "all", targets=("masks",))
    content = instances(tmp_path)
    written(tmp_path, content | {"annotations": [None]})
    with pytest.raises(DataError, match="an entry of 'annotations' is not an object"):
        open_labelled(root, "all", targets=("masks",))
    fractions = [one | {"segmentation": [[0.1, 0.1, 0.5, 0.1, 0.5, 0.5]]} for one in content["annotations"]]
    written(tmp_path, content | {"annotations": fractions})
    with pytest.raises(DataError, match="expected pixels, not fractions"):
        open_labelled(root, "all", targets=("masks",))
    for split in ("train", "val"):
        content = instances(tmp_path / "two" / split)
        content["categories"][0]["name"] = split
        written(tmp_path / "two" / split, content)
    with pytest.raises(DataError, match="class 1 is 'train' in train and 'val' in val"):
        open_training(tmp_path / "two", targets=("masks",))
    (tmp_path / "bare/images").mkdir(parents=True)
    image_file(tmp_path / "bare/images/a.jpg")
    with pytest.raises(FileNotFoundError, match=r"expected instances.json, panoptic.json or instances/ with masks/"):
        open_labelled(tmp_path / "bare", "all", targets=("masks",))


def test_run_lengths_equal_pycocotools() -> None:
    """Text and numbers, both ways."""
    rng = np.random.default_rng(0)
    for size in ((1, 1), (5, 9), (40, 31)):
        for share in (0.0, 0.1, 0.5, 1.0):
            some = rng.random(size) < share
            code = encode(some)
            plain = {"size": list(size), "counts": runs(code["counts"])}
            assert np.array_equal(coco.decode(code), some)
            for lengths in (decode(code, size, "x"), decode(plain, size, "x")):
                assert np.array_equal(painted(lengths, size[0], (0, 0, *size)), some)
                top, left, tall, wide = size[0] // 3, size[1] // 3, -(-size[0] // 2), -(-size[1] // 2)
                part = some[top : top + tall, left : left + wide]
                assert np.array_equal(painted(lengths, size[0], (top, left, tall, wide)), part)


# ---- numbers of objects


def test_own_instance_maps(tmp_path: Path) -> None:
    """Numbers in instances/ beside classes in masks/: stuff is one segment, a thing without a number a crowd."""
    image_file(tmp_path / "images/a.jpg")
    labels, numbers = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint16)
    labels[3:] = 1
    numbers[3:, :3], numbers[3:, 3:5], numbers[0, 0] = 300, 2, 9  # a number of stuff does not count
    labels[5] = 255
    mask(tmp_path / "masks/a.png", labels)
    mask(tmp_path / "instances/a.png", numbers, kind=np.uint16)
    text(tmp_path / "classes.yaml", "{0: sky, 1: car}")
    with pytest.raises(ValueError, match=r"add for instance things: \[car\]"):
        open_labelled(tmp_path, "all", targets=("masks",))
    text(tmp_path / "classes.yaml", "{0: sky, 1: car, ignore: 255, things: [car]}")
    found = read(tmp_path)
    assert (found.classes.tolist(), found.crowd.tolist()) == ([0, 1, 1, 1], [False, True, False, False])
    assert found.masks.flatten(1).sum(1).tolist() == [24, 6, 4, 6]
    assert torch.equal(found.valid, torch.from_numpy(labels != 255))
    labels[3, 0] = 0
    mask(tmp_path / "masks/a.png", labels)
    assert read(tmp_path).classes.tolist() == [0, 1, 1, 1]  # drawn on stuff
    text(tmp_path / "classes.yaml", "{0: sky, 1: car, ignore: 255, things: [sky, car]}")
    assert "object 300 of" in check(open_labelled(tmp_path, "all", targets=("masks",)))[0]
    text(tmp_path / "classes.yaml", "{0: sky, 1: car, things: [cat]}")
    with pytest.raises(ValueError, match=r"'cat' is none of the classes sky, car. Did you mean car"):
        open_labelled(tmp_path, "all", targets=("masks",))


def test_cityscapes(tmp_path: Path) -> None:
    """labelId * 1000 + number; a labelId alone is a group of a thing, or stuff."""
    stem = "val/lindau/lindau_000000_000019"
    image_file(tmp_path / f"leftImg8bit/{stem}_leftImg8bit.png")
    ids = np.full(SIZE, 7, np.uint16)
    ids[1:3, :4], ids[1:3, 4:], ids[3], ids[4] = 26000, 26001, 24, 0
    mask(tmp_path / f"gtFine/{stem}_gtFine_instanceIds.png", ids, kind=np.uint16)
    mask(tmp_path / f"gtFine/{stem}_gtFine_labelIds.png", np.where(ids > 999, ids // 1000, ids))
    found = read(tmp_path, split="val", layout="cityscapes")
    assert (found.classes.tolist(), found.crowd.tolist()) == ([0, 11, 13, 13], [False, True, False, False])
    assert int(found.valid.sum()) == 40
    source = open_labelled(tmp_path, "val", layout="cityscapes", targets=("masks",))
    assert source.things == (False,) * 11 + (True,) * 8
    assert check(source) == []


def test_ade20k(tmp_path: Path) -> None:
    """Classes of things in red, numbers in green; a thing that is no object of that file is unknown."""
    image_file(tmp_path / "images/validation/a.jpg")
    labels, objects = np.full(SIZE, 1, np.uint8), np.zeros((*SIZE, 3), np.uint8)
    labels[3:] = 21  # car, the 9th thing
    objects[3:, :2], objects[3:, 2:4] = [9, 1, 0], [9, 2, 0]
    mask(tmp_path / "annotations/validation/a.png", labels)
    colours(tmp_path / "annotations_instance/validation/a.png", objects)
    source = open_labelled(tmp_path, "val", layout="ade20k", targets=("masks",))
    assert source.things is not None
    assert (sum(source.things), source.classes[20] if source.classes else "") == (100, "car")
    found = read(tmp_path, split="val", layout="ade20k")
    assert (found.classes.tolist(), found.crowd.any()) == ([0, 20, 20], False)
    assert int(found.valid.sum()) == 24 + 12


def test_scenes() -> None:
    """Solids are objects, sky and ground are stuff; their union is the map of classes."""
    source = open_labelled("scenes", "train", targets=("masks",), length=2, size=48)
    sample = source.read(1)
    assert sample.segments is not None
    assert source.things == (False, False, *(True,) * 12)
    painted = np.zeros((48, 48), np.uint8)
    for one, label in zip(sample.segments.masks.numpy(), sample.segments.classes.tolist(), strict=True):
        painted[one] = label
    assert np.array_equal(painted, sample.labels)
    assert open_labelled("scenes", "train", length=2, size=48).read(1).segments is None


def test_masks_of() -> None:
    """One mask per class; ignored pixels are in none."""
    labels = torch.tensor([[2, 2, 255], [0, 2, 0]])
    masks, classes = masks_of(labels)
    assert classes.tolist() == [0, 2]
    assert torch.equal(masks, torch.stack([labels == 0, labels == 2]))
    assert masks_of(torch.full((2, 3), 255))[0].shape == (0, 2, 3)
    found = of_numbers(np.array([[1, 1]], np.uint8), np.array([[0, 5]]), (False, True))
    assert found.crowd.tolist() == [True, False]


# ---- transforms and batches


@pytest.mark.parametrize("augment", [
    Augment(scale=(0.1, 2.0), scale_to="crop", flip=0.5, focal_corrected=True),
    Augment(scale=(0.5, 2.0), flip=0.5, rotate=20, focal_corrected=True),
])  # fmt: skip
def test_segments_move_with_the_labels(augment: Augment) -> None:
    """Painted segments equal the labels in every crop; those outside of it are gone, and padding is not valid."""
    sample = open_labelled("scenes", "train", targets=("masks",), length=1, size=64).read(0)
    transform = TrainTransform(augment, (48, 56), "metric")
    counts = set()
    for seed in range(16):
        found = transform(sample, seed)
        assert found.segments is not None and found.labels is not None
        painted = torch.full((48, 56), 255)
        for one, label in zip(found.segments.masks, found.segments.classes, strict=True):
            assert one.any()
            painted[one] = label
        assert torch.equal(painted, found.labels)
        assert torch.equal(found.segments.valid, found.labels != 255)
        counts.add(len(found.segments.classes))
    assert len(counts) > 1
    small = resize_sample(sample, (37, 51))
    assert small.segments is not None and small.labels is not None
    for one, label in zip(small.segments.masks.numpy(), small.segments.classes.tolist(), strict=True):
        assert (small.labels[one] == label).all()


def test_large_scale_jitter_is_relative_to_the_crop() -> None:
    """At scale 1 the whole image fits into the crop; without objects nothing breaks."""
    sample = open_labelled("scenes", "train", targets=("masks",), length=1, size=(40, 80)).read(0)
    assert sample.segments is not None
    whole = TrainTransform(Augment(scale_to="crop", focal_corrected=True), (60, 60), "metric")(sample, 0)
    assert whole.segments is not None
    assert int(whole.segments.valid.sum()) == 30 * 60
    none = sample.segments.take(torch.zeros(0, dtype=torch.long))
    bare = TrainTransform(Augment(scale_to="crop", focal_corrected=True), 60, "metric")(
        type(sample)(sample.image, None, None, "bare", segments=none), 0
    )
    assert bare.segments is not None
    assert bare.segments.masks.shape == (0, 60, 60)
    with pytest.raises(ValueError, match="give crop_size"):
        TrainTransform(Augment(scale_to="crop"), None)


def test_batches(tmp_path: Path) -> None:
    """One `Segments` per image, which moves and shrinks with the batch; a JSON makes no maps of labels."""
    root = written(tmp_path, instances(tmp_path, tuple("abcdefgh")))
    data = DenseData(str(root), targets=["masks"], batch_size=2, workers=0, val_ratio=0.3, check=False)
    assert data.facts.things == (True, True)
    assert data.describe()["category ids"] == [3, 7]
    assert data.facts.val_targets == ("masks",)
    batch = data.collate([data.train_set[0, 0], data.train_set[0, 1]])
    assert batch.labels is None
    assert batch.segments is not None
    assert len(batch.segments) == 2
    small = batch.to("cpu").resized((3, 4)).segments
    assert small is not None
    assert small[0].masks.shape[-2:] == (3, 4)
    scenes = DenseData("scenes", targets=["masks"], scenes=(2, 2), scene_size=32, workers=0)
    assert scenes.facts.val_targets == ("labels", "depth", "masks")
    assert "category ids" not in scenes.describe()
