"""Sources of labelled images: miniature copies of published layouts, folders of one's own, and their problems."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dense.data.image import ImageError
from dense.data.labelled import LAYOUTS, DataError, LabelFormat, LabelledSource, Layout, check_all, open_labelled
from dense.data.labelled.check import check, check_overlap, neighbours
from dense.data.labelled.layouts import ADE20K
from dense.data.labelled.open import open_training
from tests.data.labelled_files import HEIGHT, WIDTH, depth16, folder, image_file, mask, palette, text

VOC_COLOURS = [(i, 255 - i, i // 2) for i in range(256)]


def problems(source: LabelledSource) -> str:
    return "\n".join(check(source))


# ---- published layouts


def ade20k(root: Path) -> None:
    for split, name in (("training", "ADE_train_1"), ("training", "ADE_train_2"), ("validation", "ADE_val_1")):
        image_file(root / f"images/{split}/{name}.jpg")
        mask(root / f"annotations/{split}/{name}.png", np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 4)


def voc2012(root: Path) -> None:
    values = np.full((HEIGHT, WIDTH), 20, np.uint8)
    values[0], values[1] = 255, 0
    for name in ("2007_1", "2007_2", "2007_3"):
        image_file(root / f"JPEGImages/{name}.jpg")
        palette(root / f"SegmentationClass/{name}.png", values, VOC_COLOURS)
    text(root / "ImageSets/Segmentation/train.txt", "2007_1\n2007_3\n")
    text(root / "ImageSets/Segmentation/val.txt", "2007_2\n")


def cityscapes(root: Path) -> None:
    for split, town in (("train", "aachen"), ("val", "lindau")):
        stem = f"{split}/{town}/{town}_000000_000019"
        image_file(root / f"leftImg8bit/{stem}_leftImg8bit.png")
        values = np.full((HEIGHT, WIDTH), 7, np.uint8)
        values[0], values[1], values[2] = 33, 3, 0
        mask(root / f"gtFine/{stem}_gtFine_labelIds.png", values)
        mask(root / f"gtFine/{stem}_gtFine_instanceIds.png", 26001, kind=np.uint16)


def nyuv2(root: Path) -> None:
    image_file(root / "sync/bathroom/rgb_00045.jpg")
    depth16(root / "sync/bathroom/sync_depth_00045.png", 2500)
    image_file(root / "official_splits/test/kitchen/rgb_1.jpg")
    depth16(root / "official_splits/test/kitchen/sync_depth_1.png", 0)
    text(
        root / "nyudepthv2_train_files_with_gt.txt", "/bathroom/rgb_00045.jpg /bathroom/sync_depth_00045.png 518.8579\n"
    )
    text(root / "nyudepthv2_test_files_with_gt.txt", "kitchen/rgb_1.jpg kitchen/sync_depth_1.png 518.8579\n")


def kitti_eigen(root: Path) -> None:
    size = (360, 1220)
    values = np.zeros(size, np.uint16)
    values[-1, 2 + 1], values[8, 2] = 256, 512
    for drive, split in (("0001", "train"), ("0002", "val")):
        image_file(root / f"raw/2011/{drive}_sync/image_02/data/5.png", size=size)
        depth16(root / f"data_depth_annotated/{split}/{drive}_sync/proj_depth/groundtruth/image_02/5.png", values, size)
    line = "2011/{0}_sync/image_02/data/5.png {0}_sync/proj_depth/groundtruth/image_02/5.png 721.5\n"
    text(root / "eigen_train_files_with_gt.txt", line.format("0001"))
    text(root / "eigen_test_files_with_gt.txt", "2011/0009_sync/image_02/data/5.png None 721.5\n" + line.format("0002"))


def test_ade20k(tmp_path: Path) -> None:
    """The zero label is unknown, 1 is the first of 150 classes."""
    ade20k(tmp_path)
    train, val = (open_labelled(tmp_path, split, layout="ade20k") for split in ("train", "val"))
    assert (len(train), len(val), train.depth_kind) == (2, 1, None)
    assert train.classes == ADE20K
    assert (len(ADE20K), ADE20K[0], ADE20K[149]) == (150, "wall", "flag")
    sample = train.read(0)
    assert sample.labels is not None
    assert sample.labels[0, :5].tolist() == [255, 0, 1, 2, 255]
    assert sample.depth is None
    assert sample.name.endswith("images/training/ADE_train_1.jpg")
    assert check(train) == check(val) == []


def test_voc2012_wherever_it_was_unpacked(tmp_path: Path) -> None:
    """Palettes, lists, void; also below VOCdevkit."""
    voc2012(tmp_path / "VOCdevkit/VOC2012")
    for root in (tmp_path, tmp_path / "VOCdevkit/VOC2012"):
        source = open_labelled(root, "train", layout="voc2012")
        assert [Path(source.name(i)).stem for i in range(len(source))] == ["2007_1", "2007_3"]
        labels = source.read(0).labels
        assert labels is not None
        assert labels[:3, 0].tolist() == [255, 0, 20]
        assert source.classes is not None
        assert source.classes[20] == "tvmonitor"
        assert check(source) == []


def test_cityscapes(tmp_path: Path) -> None:
    """Ids within folders; 19 of the 34 values are classes."""
    cityscapes(tmp_path)
    source = open_labelled(tmp_path, "val", layout="cityscapes")
    assert len(source) == 1
    labels = source.read(0).labels
    assert labels is not None
    assert labels[:4, 0].tolist() == [18, 255, 255, 0]
    assert source.classes is not None
    assert (len(source.classes), source.classes[13]) == (19, "car")
    assert check(source) == []


def test_nyuv2(tmp_path: Path) -> None:
    """Millimetres, pairs from lists, and the facts of the protocol."""
    nyuv2(tmp_path)
    source = open_labelled(tmp_path, "train", layout="nyuv2")
    depth = source.read(0).depth
    assert depth is not None
    assert (depth == 2.5).all()
    assert (source.depth_kind, source.classes, check(source)) == ("metric", None, [])
    assert "has no known depth anywhere" in problems(open_labelled(tmp_path, "test", layout="nyuv2"))
    layout = LAYOUTS["nyuv2"]
    assert (layout.evaluation_crop, layout.depth_range, layout.image_size) == ("nyu_eigen", (1e-3, 10), (480, 640))


def test_kitti_eigen(tmp_path: Path) -> None:
    """Lines without a ground truth are dropped; the crop is at the bottom centre, of image and depth alike."""
    kitti_eigen(tmp_path)
    source = open_labelled(tmp_path, "test", layout="kitti_eigen", kb_crop=True)
    assert len(source) == 1
    sample = source.read(0)
    assert sample.depth is not None
    assert sample.image.shape == (352, 1216, 3)
    assert sample.depth.shape == (352, 1216)
    assert (sample.depth[-1, 1], sample.depth[0, 0], np.isfinite(sample.depth).sum()) == (1, 2, 2)
    assert open_labelled(tmp_path, "train", layout="kitti_eigen").read(0).image.shape == (360, 1220, 3)
    assert check(source) == []
    assert LAYOUTS["kitti_eigen"].evaluation_crop == "garg"


def test_a_layout_of_ones_own(tmp_path: Path) -> None:
    """Another suffix, another list."""
    for name in ("a", "b"):
        image_file(tmp_path / f"scans/{name}/rgb.png")
        mask(tmp_path / f"scans/{name}/mask_final.png", 1)
    layout = Layout(
        "mine", "scans/{id}/rgb.png", "scans/{id}/mask_final.png", label_format=LabelFormat.numbered(("x", "y"))
    )
    assert len(open_labelled(tmp_path, "train", layout=layout)) == 2
    some = open_labelled(tmp_path, "train", layout=layout, ids=text(tmp_path / "some.txt", "b\n"))
    assert [some.name(i) for i in range(len(some))] == [str(tmp_path / "scans/b/rgb.png")]
    assert check(some) == []


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Layout("x", "images/{name}.jpg"), "names {name}: expected {id}, {split}"),
        (lambda: Layout("x", "images/{split}.jpg"), "expected {id} somewhere"),
        (lambda: Layout("x", "{id}/{id}.jpg"), "expected {id} once"),
        (lambda: Layout("x", "{rgb}", columns=("rgb", "depth")), "expected ids, the file that has them"),
        (lambda: Layout("x", "a/{id}", labels="b/{id}"), "label_format is missing"),
    ],
)
def test_layouts_that_are_wrong(make: Callable[[], Layout], words: str) -> None:
    """Found when they are made."""
    with pytest.raises(ValueError, match=words):
        make()


# ---- folders


def test_masks_and_depth_together(tmp_path: Path) -> None:
    """Both targets of an image, with its own extension."""
    folder(tmp_path, ["a", "deep/er/b"], depth=True)
    source = open_labelled(tmp_path, "all")
    assert (source.classes, source.depth_kind, len(source)) == (("sky", "ground"), "metric", 2)
    sample = source.read(1)
    assert sample.labels is not None
    assert sample.depth is not None
    assert sample.name.endswith("deep/er/b.jpg")
    assert (sample.labels[0, :3].tolist(), sample.depth[0, 0]) == ([0, 1, 0], 2.0)
    assert check(source) == []


def test_only_the_targets_that_are_asked_for(tmp_path: Path) -> None:
    """Undeclared depth is no problem for segmentation, and masks are no depth."""
    folder(tmp_path, ["a", "b"], depth=True)
    (tmp_path / "depth.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"depth\.yaml"):
        open_labelled(tmp_path, "all")
    source = open_labelled(tmp_path, "all", targets=("labels",))
    assert (source.classes, source.depth_kind, source.read(0).depth) == (("sky", "ground"), None, None)
    folder(tmp_path / "other", ["a"])
    with pytest.raises(FileNotFoundError, match="no targets: expected depth/, but"):
        open_labelled(tmp_path / "other", "all", targets=("depth",))


@pytest.mark.parametrize("pattern", ["{0}/train/{1}", "{0}/{1}/train"])
@pytest.mark.parametrize("train", ["train", "training"])
def test_splits_by_folder(tmp_path: Path, pattern: str, train: str) -> None:
    """train/images and images/train."""
    for split, name in ((train, "a"), ("val", "b")):
        root = pattern.replace("train", split)
        image_file(Path(root.format(tmp_path, "images")) / f"{name}.png")
        mask(Path(root.format(tmp_path, "masks")) / f"{name}.png")
    text(tmp_path / "classes.yaml", "[sky]")
    for split, name in (("train", "a"), ("val", "b")):
        source = open_labelled(tmp_path, split)
        assert [Path(source.name(i)).stem for i in range(len(source))] == [name]
        assert check(source) == []
    with pytest.raises(FileNotFoundError, match=r"no images of split test: expected one of images/, test/images/"):
        open_labelled(tmp_path, "test")


def test_splits_by_list(tmp_path: Path) -> None:
    """Names with or without extension; a list that is not there."""
    folder(tmp_path, ["a", "b", "c"])
    text(tmp_path / "train.txt", "a.jpg\nc\n")
    assert names(tmp_path, "train") | names(tmp_path, "val") == {str(tmp_path / f"images/{name}.jpg") for name in "ac"}
    with pytest.raises(FileNotFoundError, match=r"test\.txt is not there, and .*train\.txt is"):
        open_labelled(tmp_path, "test")
    text(tmp_path / "val.txt", "b\nb\nnobody\n")
    assert "line 2: b was listed before, in line 1" in problems(open_labelled(tmp_path, "val"))
    assert "line 3: no image" in problems(open_labelled(tmp_path, "val"))


def names(root: Path, split: str, **options: Any) -> set[str]:
    source = open_labelled(root, split, **options)
    return {source.name(i) for i in range(len(source))}


def test_splits_by_name(tmp_path: Path) -> None:
    """Without folders and lists: the parts are disjoint, complete, and stable when images are added."""
    folder(tmp_path, [f"{i:03}" for i in range(60)])
    train, val = names(tmp_path, "train", val_ratio=0.3), names(tmp_path, "val", val_ratio=0.3)
    assert not train & val
    assert len(train | val) == 60
    assert 8 <= len(val) <= 28
    folder(tmp_path, [f"{i:03}" for i in range(90)])
    assert names(tmp_path, "train", val_ratio=0.3) >= train
    assert names(tmp_path, "val", val_ratio=0.3) >= val
    assert names(tmp_path, "val", val_ratio=0.1) < names(tmp_path, "val", val_ratio=0.3)


def test_a_fraction_of_too_few(tmp_path: Path) -> None:
    """One sample cannot be split; of a few, at least one is on either side."""
    folder(tmp_path, ["a"])
    with pytest.raises(DataError, match=r"holds one sample, which cannot be shared"):
        open_labelled(tmp_path, "val", val_ratio=0.01)
    folder(tmp_path, ["b", "c", "d"])
    for ratio, counts in ((1e-9, (3, 1)), (1 - 1e-9, (1, 3))):
        assert tuple(len(open_labelled(tmp_path, s, val_ratio=ratio)) for s in ("train", "val")) == counts


@pytest.mark.parametrize("arrangement", ["folders", "inner", "lists", "images"])
def test_test_images_are_never_validated(tmp_path: Path, arrangement: str) -> None:
    """Where val is missing, a fraction of train is for validation; every image of train is on one side."""
    options: dict[str, Any] = {"val_ratio": 0.4}
    if arrangement == "lists":
        folder(tmp_path, [f"{i:02}" for i in range(30)])
        text(tmp_path / "train.txt", "\n".join(f"{i:02}" for i in range(20)))
        text(tmp_path / "test.txt", "\n".join(f"{i:02}" for i in range(20, 30)))
    for split, numbers in (("train", range(20)), ("test", range(20, 30))):
        for i in numbers if arrangement != "lists" else ():
            pattern = {"folders": "{0}/{1}", "inner": "{1}/{0}", "images": "{0}"}[arrangement]
            image_file(tmp_path / pattern.format(split, "images") / f"{i:02}.jpg", i)
            if arrangement != "images":
                mask(tmp_path / pattern.format(split, "masks") / f"{i:02}.png")
    if arrangement == "images":
        options["layout"] = "images"
    else:
        text(tmp_path / "classes.yaml", "[sky, ground]")
    train, val, test = (names(tmp_path, split, **options) for split in ("train", "val", "test"))
    assert sorted(int(Path(name).stem) for name in train | val) == list(range(20))
    assert not train & val
    assert 1 <= len(val) < 20
    assert sorted(int(Path(name).stem) for name in test) == list(range(20, 30))
    assert len(names(tmp_path, "train", **options | {"val_ratio": 0})) == 20
    assert names(tmp_path, "val", **options | {"val_ratio": 0}) == set()


def test_groups_stay_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Frames of a video are on one side, whose names decide; a warning says when frames are on both sides."""
    frames = [f"{video}/frame-{i:06}" for video in "abcdef" for i in range(8)]
    folder(tmp_path, frames)
    options: dict[str, Any] = {"val_ratio": 0.3}

    def opened(**options: Any) -> dict[str, Any]:
        return {split: open_labelled(tmp_path, split, **options) for split in ("train", "val")}

    check_all(opened(**options))
    warned = capsys.readouterr().err
    assert "lie on both sides of the random split into train and val" in warned
    assert "data.split_by" in warned
    for pattern in (r"^(\w)/", r"^\w(?=/)"):
        train, val = (names(tmp_path, split, **options, split_by=pattern) for split in ("train", "val"))
        videos = [{Path(name).parent.name for name in side} for side in (train, val)]
        assert not videos[0] & videos[1]
        assert (len(train | val), len(videos[0] | videos[1])) == (48, 6)
    check_all(opened(**options, split_by=pattern))
    assert "both sides" not in capsys.readouterr().err
    folder(tmp_path, ["g/frame-1"])
    assert names(tmp_path, "train", **options, split_by=pattern) >= train
    with pytest.raises(
        DataError, match=r"split_by='x\(y' is not|split_by='frame-0' is not found in 1 of 49 names, such as g/"
    ):
        open_labelled(tmp_path, "val", split_by="frame-0")
    with pytest.raises(ValueError, match=r"is no regular expression"):
        open_labelled(tmp_path, "val", split_by="x(y")
    with pytest.raises(DataError, match=r"all images are in one group of split_by='frame', 'frame'.*val_ratio to 0"):
        open_labelled(tmp_path, "val", split_by="frame")
    with pytest.raises(ValueError, match="the splits of these images are fixed"):
        open_labelled("scenes", "val", split_by="x")


@pytest.mark.parametrize(
    ("numbers", "warns"),
    [
        (range(0, 900, 30), True),  # every 30th frame
        ([7, 19, 104, 391, 512, 780, 1204, 1500, 2111, 3000, 3456, 4000, 4123, 5150], False),
    ],
)
def test_neighbours(tmp_path: Path, numbers: Any, warns: bool) -> None:
    """Frames of a regular step are neighbours, names that are numbered at random are not."""
    folder(tmp_path, [f"seq_{i:06}_left" for i in numbers])
    train, val = (open_labelled(tmp_path, split, val_ratio=0.4) for split in ("train", "val"))
    assert (neighbours(train, val) is not None) is warns
    assert neighbours(open_labelled(tmp_path, "all"), open_labelled(tmp_path, "all")) is None


def test_a_published_test_list_chooses_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whole scenes of train are held out; the list itself is opened as before."""
    rows = [
        f"{scene}{part}/rgb_{i}" for scene in ("kitchen_0028", "bath_0003", "den_01") for part in "ab" for i in "12"
    ]
    for i, row in enumerate(rows):
        image_file(tmp_path / f"sync/{row}.jpg", i)
        depth16(tmp_path / f"sync/{row}.png", 1000 + i)
    lines = [f"{row}.jpg {row}.png 518.8\n" for row in rows]
    text(tmp_path / "nyudepthv2_train_files_with_gt.txt", "".join(lines[:8]))
    text(tmp_path / "nyudepthv2_test_files_with_gt.txt", "".join(lines[8:]))
    train, val = open_training(tmp_path, layout="nyuv2")
    sides = [{train.name(i) for i in range(len(train))}, {val.name(i) for i in range(len(val))}]
    assert [len(side) for side in sides] == [4, 4]
    assert not {Path(n).parent.name[:-1] for n in sides[0]} & {Path(n).parent.name[:-1] for n in sides[1]}
    published = {open_labelled(tmp_path, "val", layout="nyuv2").name(i) for i in range(4)}
    assert published == {str(tmp_path / f"sync/{row}.jpg") for row in rows[8:]}
    assert "4 of its 8 training images do" in capsys.readouterr().out
    train, val = open_training(tmp_path, layout="nyuv2", val_ratio=0)
    assert (len(train), len(val)) == (8, 0)
    assert "the model of the last step is kept" in capsys.readouterr().out
    train, val = open_training(tmp_path, layout="nyuv2", split_by=r"_(\d)\.jpg")
    assert (len(train), len(val)) == (4, 4)


def test_a_benchmark_of_one_scene_keeps_the_last_model(tmp_path: Path) -> None:
    """No part of it can be held out."""
    kitti_eigen(tmp_path)
    train, val = open_training(tmp_path, layout="kitti_eigen", kb_crop=True)
    assert (len(train), len(val)) == (1, 0)


def test_partial_targets(tmp_path: Path) -> None:
    """Joint training on images of which some have masks and some depth; one with neither is a problem."""
    folder(tmp_path, ["a", "b", "c"], depth=True)
    (tmp_path / "masks/a.png").unlink()
    (tmp_path / "depth/b.png").unlink()
    strict, joint = open_labelled(tmp_path, "all"), open_labelled(tmp_path, "all", partial=True)
    assert problems(strict).count("has no ") == 2
    with pytest.raises(DataError, match=r"a\.jpg has no mask; add it, or open the data with partial=True"):
        strict.read(0)
    assert check(joint) == []
    assert [(joint.read(i).labels is None, joint.read(i).depth is None) for i in range(3)] == [
        (True, False), (False, True), (False, False),
    ]  # fmt: skip
    (tmp_path / "masks/b.png").unlink()
    assert "b.jpg has neither of its targets" in problems(open_labelled(tmp_path, "all", partial=True))


def test_no_declaration(tmp_path: Path) -> None:
    """The error shows what to write, and the values of the masks."""
    folder(tmp_path, ["a"], depth=True)
    (tmp_path / "classes.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"classes\.yaml, for instance {0: sky.*The first 1 masks hold 0, 1"):
        open_labelled(tmp_path, "all")
    source = open_labelled(tmp_path, "all", classes=["x", "y"])
    assert source.classes == ("x", "y")
    (tmp_path / "depth.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"depth\.yaml, for instance {kind: metric, scale: 1000}"):
        open_labelled(tmp_path, "all", classes=["x", "y"])
    source = open_labelled(tmp_path, "all", classes=["x", "y"], depth={"kind": "metric", "scale": 500})
    depth = source.read(0).depth
    assert depth is not None
    assert depth[0, 0] == 2


def test_nothing_there(tmp_path: Path) -> None:
    """A wrong path, an empty folder, no targets, a wrong name: errors name what was expected and what is there."""
    text(tmp_path / "data/readme.txt", "")
    for options, words in (
        (
            {"root": tmp_path / "dta", "layout": "ade20k"},
            r"expected a folder with images/{split}.* but .*dta does not exist",
        ),
        ({"root": tmp_path / "dta"}, r"expected one of images/, train/images/, images/train/ but .*dta does not exist"),
        ({"root": tmp_path / "data"}, r"expected one of images/.* data holds readme\.txt|data holds readme"),
        ({"root": tmp_path / "data", "layout": "ade20k"}, r"no images such as images/training/{id}\.jpg .*"),
        ({"root": tmp_path / "data", "layout": "voc2012"}, r"train\.txt is not there; it lists the samples of train"),
    ):
        with pytest.raises(FileNotFoundError, match=words):
            open_labelled(split="train", **options)
    image_file(tmp_path / "data/images/a.jpg")
    with pytest.raises(
        FileNotFoundError, match=r"has no targets: expected masks/ or depth/.*holds images/, readme\.txt"
    ):
        open_labelled(tmp_path / "data", "train")
    with pytest.raises(ValueError, match=r"layout='ade20': expected one of .*Did you mean ade20k\?"):
        open_labelled(tmp_path, "train", layout="ade20")
    with pytest.raises(ValueError, match=r"split='tests': expected one of .*Did you mean test\?"):
        open_labelled(tmp_path, "tests")
    with pytest.raises(ValueError, match="ade20k has train, val"):
        open_labelled(tmp_path, "trian", layout="ade20k")
    with pytest.raises(ValueError, match="it is a crop of KITTI"):
        open_labelled(tmp_path, "train", layout="ade20k", kb_crop=True)
    for root, layout in (("scenes", "folder"), (tmp_path, "folder"), (tmp_path, "images")):
        with pytest.raises(ValueError, match="crop of KITTI"):
            open_labelled(root, "train", layout=layout, kb_crop=True)
    text(tmp_path / "voc/ImageSets/Segmentation/train.txt", "\n")
    with pytest.raises(DataError, match="voc2012 train: no samples in"):
        open_labelled(tmp_path / "voc", "train", layout="voc2012")


def test_the_former_name_of_a_layout(tmp_path: Path) -> None:
    """`pictures` is `images`, with a warning."""
    for name in ("a", "deep/b"):
        image_file(tmp_path / f"{name}.jpg")
    with pytest.warns(FutureWarning, match="layout 'pictures' is now called 'images'"):
        former = open_labelled(tmp_path, "all", layout="pictures")
    source = open_labelled(tmp_path, "all", layout="images")
    assert [former.name(i) for i in range(2)] == [source.name(i) for i in range(2)]
    assert (source.classes, source.depth_kind, source.read(1).clean) == (None, None, None)


def test_pairs(tmp_path: Path) -> None:
    """An image without its partner is a problem, and belongs to no split."""
    for name in ("a", "b", "c", "d"):
        image_file(tmp_path / f"input/{name}.jpg", 50)
        image_file(tmp_path / f"target/{name}.png", 100)
    (tmp_path / "target/b.png").unlink()
    image_file(tmp_path / "target/x.png")
    splits = {split: open_labelled(tmp_path, split, layout="paired") for split in ("train", "val", "all")}
    assert [len(splits[split]) for split in ("train", "val", "all")] == [2, 1, 3]
    sample = splits["all"].read(1)
    assert sample.clean is not None
    assert (sample.name, sample.clean[0, 0, 0]) == (str(tmp_path / "input/c.jpg"), 100)
    assert "input/b.jpg has no clean image target/b.*" in problems(splits["train"])
    assert "target/x.png is a clean image without an image input/x.*" in problems(splits["val"])
    image_file(tmp_path / "target/c.png", size=(HEIGHT, WIDTH + 1))
    assert f"input/c.jpg has {HEIGHT}x{WIDTH}; every clean image must have its image's size" in problems(splits["all"])
    with pytest.raises(DataError, match="every clean image must have its image's size"):
        splits["all"].read(1)


# ---- checks


def test_everything_wrong_is_found_at_once(tmp_path: Path) -> None:
    """Each problem with its file; samples without a problem are not mentioned."""
    folder(tmp_path, [f"{i}" for i in range(12)], depth=True)
    (tmp_path / "masks/0.png").unlink()
    (tmp_path / "images/1.jpg").unlink()
    mask(tmp_path / "masks/2.png", 0, (HEIGHT, WIDTH + 1))
    data = (tmp_path / "images/3.jpg").read_bytes()
    (tmp_path / "images/3.jpg").write_bytes(data[: len(data) - 90])
    mask(tmp_path / "masks/4.png", 9)
    mask(tmp_path / "masks/5.png", 255)
    depth16(tmp_path / "depth/6.png", 0)
    image_file(tmp_path / "images/7.png")
    mask(tmp_path / "depth/8.png", 30)
    (tmp_path / "masks/9.png").write_bytes(b"")
    depth16(tmp_path / "depth/10.png", 7, (2, 2))
    source = open_labelled(tmp_path, "all")
    lines = check(source, workers=3)
    report = "\n".join(lines)
    for words in (
        "images/0.jpg has no mask masks/0.*",
        "masks/1.png is a mask without an image images/1.*",
        "masks/2.png has 6x9 pixels (height x width), ",
        "images/3.jpg is damaged or truncated",
        "masks/4.png holds the value 9 at 48 pixels",
        "the mask of " + str(tmp_path / "images/5.jpg") + " is ignored everywhere",
        "the depth map of " + str(tmp_path / "images/6.jpg") + " has no known depth anywhere",
        "are two images of one sample, 7; keep one",
        "masks/9.png is not an image of a known format",
        "depth/10.png has 2x2 pixels",
    ):
        assert words in report, words
    assert "/11." not in report
    assert len(lines) == 10, report  # the 8-bit depth has an explicit scale
    with pytest.raises(DataError) as caught:
        check_all({"train": source})
    assert str(caught.value).startswith("10 problems:\n- train: ")


def suspicions(root: Path) -> str:
    found: list[str] = []
    assert check(open_labelled(root, "all"), warnings=found) == []
    return "\n".join(found)


def ramp(top: float, kind: type = np.uint16) -> np.ndarray[Any, Any]:
    return np.linspace(500, top, HEIGHT * WIDTH).astype(kind).reshape(HEIGHT, WIDTH)


def test_saturated_depth(tmp_path: Path) -> None:
    """The largest number of a type, or one that many files share at many pixels; the warning has the line to write."""
    folder(tmp_path, ["a", "b", "c"], masks=False, depth=True)
    for i, name in enumerate("abc"):
        depth16(tmp_path / f"depth/{name}.png", np.where(np.arange(WIDTH) < 2, 65535, ramp(3000 + i)))
    assert "25 % of the pixels hold 65535, the largest number of 16 bits" in suspicions(tmp_path)
    assert "write in depth.yaml invalid: [0, 65535]; if infinitely far, infinite: [65535]" in suspicions(tmp_path)
    text(tmp_path / "depth.yaml", "{kind: metric, scale: 1000, invalid: [0, 65535]}")
    assert suspicions(tmp_path) == ""
    for i, name in enumerate("abc"):
        depth16(tmp_path / f"depth/{name}.png", np.where(np.arange(WIDTH) < 2, 9999, ramp(3000 + i)))
    assert "hold 9999, the largest number of each; if it means unknown" in suspicions(tmp_path)
    assert "invalid: [0, 65535, 9999]" in suspicions(tmp_path)
    depth16(tmp_path / "depth/a.png", ramp(3000))
    assert suspicions(tmp_path) == ""  # two of three may end at one wall


@pytest.mark.slow
@pytest.mark.skipif(not Path(os.environ.get("DENSE_REAL", ""), "kitchen").is_dir(), reason="needs DENSE_REAL")
def test_saturated_depth_of_a_sensor() -> None:
    """A few pixels of a frame of 7-Scenes' kitchen hold 65535, which its depth.yaml declares."""
    root = Path(os.environ["DENSE_REAL"], "kitchen")
    for declared, words in ((None, ""), ({"kind": "metric", "scale": 1000}, "write in depth.yaml invalid: [0, 65535]")):
        found: list[str] = []
        assert check(open_labelled(root, "train", depth=declared), warnings=found) == []
        assert (words in found[0] and "000234.png" in found[0]) if words else not found


def test_saturated_bytes(tmp_path: Path) -> None:
    """255, in inverse depth too, where nothing is infinitely far."""
    folder(tmp_path, ["a", "b"], masks=False, depth=True)
    text(tmp_path / "depth.yaml", "{kind: inverse_relative, scale: 1}")
    for name in "ab":
        mask(tmp_path / f"depth/{name}.png", np.where(np.arange(WIDTH) < 1, 255, ramp(200).astype(np.uint16) // 5))
    assert (
        "hold 255, the largest number of 8 bits; if it means unknown, write in depth.yaml invalid: [255]"
        in suspicions(tmp_path)
    )


def test_zeros_that_became_known(tmp_path: Path) -> None:
    """`invalid` replaces its default."""
    folder(tmp_path, ["a", "b"], masks=False, depth=True)
    for name in "ab":
        depth16(tmp_path / f"depth/{name}.png", np.where(np.arange(WIDTH) < 2, 0, ramp(3000)))
    assert suspicions(tmp_path) == ""
    text(tmp_path / "depth.yaml", "{kind: metric, scale: 1000, invalid: [65535]}")
    found = suspicions(tmp_path)
    assert "25 % of the pixels hold 0, which is no depth; write in depth.yaml invalid: [65535, 0]" in found


def test_depth_beyond_every_scene(tmp_path: Path) -> None:
    """A wrong scale, and a few numbers beyond a kilometre; each with what to write."""
    folder(tmp_path, ["a", "b"], masks=False, depth=True)
    for name in "ab":
        (tmp_path / f"depth/{name}.png").unlink()
        np.save(tmp_path / f"depth/{name}.npy", ramp(4000, np.float32))
    text(tmp_path / "depth.yaml", "{kind: metric}")
    assert "the median of the known depth is 2.25e+03 m in 2 depth maps" in suspicions(tmp_path)
    assert "for instance scale: 1000, which makes it 2.25 m" in suspicions(tmp_path)
    text(tmp_path / "depth.yaml", "{kind: metric, scale: 1000}")
    assert suspicions(tmp_path) == ""
    text(tmp_path / "depth.yaml", "{kind: metric, scale: 1000000}")
    assert "for instance scale: 1000, which" in suspicions(tmp_path)
    text(tmp_path / "depth.yaml", "{kind: metric, scale: 1000}")
    values = ramp(4000, np.float32)
    values[0, :2] = 2e6, 3e6
    np.save(tmp_path / "depth/b.npy", values)
    assert "1 depth map: " in suspicions(tmp_path)
    assert "b.npy: 4.17 % of the pixels lie beyond 1000 m, up to 3000 m" in suspicions(tmp_path)
    assert "invalid: [0, [2000000, 3000000]]" in suspicions(tmp_path)


def test_constant_targets(tmp_path: Path) -> None:
    """A depth map of one number, and masks that all hold the same class alone."""
    folder(tmp_path, ["a", "b"], depth=True)
    depth16(tmp_path / "depth/a.png", ramp(3000))
    found = suspicions(tmp_path)
    assert f"one number fills 1 depth map: {tmp_path / 'depth/b.png'} (2000); leave such samples out" in found
    for name in "ab":
        mask(tmp_path / f"masks/{name}.png", 1)
    assert "each of 2 masks holds the class 'ground' alone" in suspicions(tmp_path)


def test_many_problems_are_counted(tmp_path: Path) -> None:
    """The first 20 and a count; all of them for programs, also after a trip through a worker."""
    error = DataError(*(f"line {i}" for i in range(33)))
    assert str(error).splitlines()[0] == "33 problems:"
    assert str(error).splitlines()[-1] == "... and 13 more"
    assert len(pickle.loads(pickle.dumps(error)).problems) == 33
    assert str(DataError("alone")) == "alone"


def test_rotated_images(tmp_path: Path) -> None:
    """EXIF rotates an image; its targets must be rotated too, and the error names EXIF if they are not."""
    folder(tmp_path, [])
    text(tmp_path / "classes.yaml", "[sky, ground]")
    for name, size in (("good", (WIDTH, HEIGHT)), ("bad", (HEIGHT, WIDTH))):
        image_file(tmp_path / f"images/{name}.jpg", size=(HEIGHT, WIDTH), orientation=6)
        mask(tmp_path / f"masks/{name}.png", 0, size)
    source = open_labelled(tmp_path, "all")
    assert source.read(1).image.shape == (WIDTH, HEIGHT, 3)
    assert len(check(source)) == 1
    assert "bad.jpg has 8x6; the image is rotated by its EXIF data and the mask is not" in problems(source)
    with pytest.raises(DataError, match="rotated by its EXIF"):
        source.read(0)


def test_a_limit_and_progress(tmp_path: Path) -> None:
    """Few samples of many, spread evenly, the last among them."""
    folder(tmp_path, [f"{i:03}" for i in range(40)])
    for i in (0, 20, 39):
        mask(tmp_path / f"masks/{i:03}.png", 9)
    source = open_labelled(tmp_path, "all")
    calls: list[tuple[int, int]] = []
    assert len(check(source, limit=2, workers=1, progress=lambda *n: calls.append(n))) == 2
    assert calls == [(2, 2)]
    calls.clear()
    assert len(check(source, workers=1, progress=lambda *n: calls.append(n))) == 3
    assert calls == [(32, 40), (40, 40)]
    with pytest.raises(ValueError, match="limit=0"):
        check(source, limit=0)


def test_splits_that_overlap(tmp_path: Path) -> None:
    """By name, by a link, and by content under another name."""
    folder(tmp_path, ["a", "b", "c", "d"])
    (tmp_path / "images/copy.jpg").write_bytes((tmp_path / "images/a.jpg").read_bytes())
    (tmp_path / "images/link.jpg").symlink_to(tmp_path / "images/d.jpg")
    for name in ("copy", "link"):
        mask(tmp_path / f"masks/{name}.png")
    text(tmp_path / "train.txt", "a\nb\nd\n")
    text(tmp_path / "val.txt", "b\nc\ncopy\nlink\n")
    train, val = (open_labelled(tmp_path, split) for split in ("train", "val"))
    report = "\n".join(check_overlap(train, val))
    assert "train and val share 2 images: " in report
    assert "images/b.jpg, " in report
    assert "val has copies of train's images: 1 image: " in report
    assert "copy.jpg (as " in report
    with pytest.raises(DataError, match="share 2 images"):
        check_all({"train": train, "val": val})
    text(tmp_path / "val.txt", "c\n")
    check_all({"train": train, "val": open_labelled(tmp_path, "val")})


def test_unpaired_files_are_reported_once(tmp_path: Path) -> None:
    """A mask without an image belongs to no split."""
    folder(tmp_path, [f"{i}" for i in range(30)])
    mask(tmp_path / "masks/stray.png")
    sources = {split: open_labelled(tmp_path, split, val_ratio=0.3) for split in ("train", "val")}
    with pytest.raises(DataError) as caught:
        check_all(sources)
    assert len([line for line in caught.value.problems if "without an image" in line]) == 1


def test_reading_what_is_broken(tmp_path: Path) -> None:
    """Without a check, reading the sample raises its problem."""
    folder(tmp_path, ["a", "b"])
    mask(tmp_path / "masks/a.png", 0, (2, 2))
    (tmp_path / "images/b.jpg").write_bytes(b"no")
    source = open_labelled(tmp_path, "all")
    with pytest.raises(DataError, match=r"masks/a\.png has 2x2 pixels .*every mask must have its image's size"):
        source.read(0)
    with pytest.raises(ImageError, match="not an image"):
        source.read(1)


def test_a_large_source_is_small(tmp_path: Path) -> None:
    """Workers get arrays, not objects per sample."""
    folder(tmp_path, [f"{i:04}" for i in range(300)])
    source = open_labelled(tmp_path, "all")
    data = pickle.dumps(source)
    assert len(data) < 300 * 2 * (len(str(tmp_path)) + 40) + 3000
    copy: LabelledSource = pickle.loads(data)
    assert copy.name(299) == source.name(299)


# ---- embedded scenes


def test_scenes() -> None:
    """The same with and without `remember`; the sky is infinitely far; other heights are other scenes."""
    remembering = open_labelled("scenes", "val", length=3, size=(32, 40))
    plain = open_labelled("scenes", "val", length=3, size=(32, 40), remember=False)
    assert remembering.classes is not None
    assert (remembering.classes[:2], remembering.depth_kind, check(remembering)) == (("sky", "ground"), "metric", [])
    for index in (0, 2, 0):
        first, second = remembering.read(index), plain.read(index)
        assert first.labels is not None
        assert first.depth is not None
        assert first.image.shape == (32, 40, 3)
        for field in ("image", "labels", "depth"):
            assert np.array_equal(getattr(first, field), getattr(second, field))
        assert (np.isinf(first.depth) == (first.labels == 0)).all()
        first.image[:] = 0  # a sample is the caller's own
        first.depth[:] = 0
    high = open_labelled("scenes", "val", length=3, size=(32, 40), camera_height=(3.0, 4.5))
    assert not np.array_equal(high.read(0).image, plain.read(0).image)
    identities = {s.identity(i) for s in (plain, high) for i in range(3)}
    assert len(identities) == 6
    assert plain.identity(1) == remembering.identity(1)
    assert plain.name(0) != open_labelled("scenes", "train", length=1).name(0)
    with pytest.raises(ValueError, match="length=0"):
        open_labelled("scenes", "val", length=0)


def test_camera_heights() -> None:
    """Cameras are within the given range."""
    from dense.data.labelled.scenes import SceneSource

    source = SceneSource("val", 4, 24, camera_height=(3.0, 4.5))
    assert all(3.0 <= source.scenes[i].camera.height <= 4.5 for i in range(4))
