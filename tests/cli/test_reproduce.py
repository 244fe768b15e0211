"""Published numbers and the commands that measure them: every row is a valid command, and every kind of row runs."""

from __future__ import annotations

import json
import re
import shutil
from argparse import Namespace
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from dense.backbone import WeightsError, describe, load_backbone
from dense.backbone.load import check_weights
from dense.cli import convert, evaluate, main
from dense.cli.reproduce import with_options
from dense.cli.trainings import TRAININGS
from dense.data.labelled.segments import encode
from dense.evaluate import published
from dense.evaluate.published import DATA, Row, find_row, rows
from dense.evaluate.published.needs import MVTEC
from dense.evaluate.published.numbers import HEADS, PRETRAINED
from dense.recipes import find_config
from dense.tasks.run import TrainCLI, open_run
from tests.data.labelled_files import depth16, image_file, mask, palette, text
from tests.evaluate.davis import miniature
from tests.evaluate.retrieval_files import copies, landmarks, paris
from tests.runs import alone

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/published_numbers.md"


described, parser = cache(describe), cache(evaluate.parser)


class Options(TrainCLI):
    """The options of a training, whose data and network are not built."""

    def before_instantiate_classes(self) -> None: ...

    def instantiate_classes(self) -> None: ...


@cache
def options_of_training(words: tuple[str, ...]) -> Any:
    with patch("dense.tasks.run.TrainCLI", Options):
        return open_run(words).config


def nameless(row: Row) -> tuple[tuple[str, ...], ...]:
    """The commands of a row with NAME for its backbone."""
    return tuple(tuple("NAME" if word == row.backbone else word for word in command) for command in row.commands)


@pytest.mark.parametrize("row", rows().values(), ids=rows())
def test_a_row_is_a_valid_command(row: Row) -> None:
    assert described(row.backbone).dim
    *trainings, measure = row.filled(data="DATA", weights="FILE", output="OUT")
    parser(measure[1]).parse_args(measure[2:])
    assert measure[-2:] == ["--output", "OUT/result"]
    for words, options in zip(trainings, nameless(row), strict=False):
        assert words[0] == "train" in TRAININGS
        assert find_config(words[2]).is_file()
        assert words[-2:] == ["--output", "OUT/run"]
        parsed = options_of_training(options[1:])
        assert (parsed.model.init_args.backbone.name, parsed.data.layout) == ("NAME", DATA[row.data].layout)
        assert parsed.data.val_ratio == 0


def test_recipes_and_heads_of_the_page_are_valid_commands() -> None:
    for recipe, *_, options in PRETRAINED:
        assert find_config(f"pretrain/{recipe}").is_file()
        parser("linear").parse_args(["--backbone", "B", "--train", "T", "--val", "V", *options.split()])
    for *_, options, measure in HEADS:
        convert.parser().parse_args(["FILE", "MODEL", *options.split()])
        kind, *words = measure.split()
        parser(kind).parse_args(words)


def test_the_page_has_every_row() -> None:
    """docs/published_numbers.md is written by `published.markdown()`."""
    start, end = "<!-- rows -->\n", "<!-- end of rows -->"
    content = PAGE.read_text()
    found = content[content.index(start) + len(start) : content.index(end)]
    assert found.strip() == published.markdown(ROOT / "benchmarks/results/reproduced").strip()


def test_a_number_that_was_measured_is_on_the_page(tmp_path: Path) -> None:
    """`reproduced.json` files below a folder; a number has as many digits as the published one."""
    (tmp_path / "a.json").write_text(json.dumps({"row": "knn/imagenet/dinov2_vits14", "here": 78.9876, "within": True}))
    changed = {"row": "depth_dpt/nyuv2/dinov2_vits14", "here": 0.4, "within": False, "changed": ["data.batch_size=8"]}
    (tmp_path / "b.json").write_text(json.dumps(changed))
    found = published.markdown(tmp_path)
    assert "| dinov2_vits14 | 0.356 | 0.400, outside 0.00712; changed: data.batch_size=8 |" in found
    assert "| dinov2_vits14 | 79.0 | 79.0, within 0.3 |" in found
    some = {
        "row": "knn/imagenet/dino_vits16",
        "here": 74.5,
        "within": False,
        "other images": "not comparable: 3 images",
    }
    (tmp_path / "c.json").write_text(json.dumps(some))
    assert "| dino_vits16 | 74.5 | 74.5, not comparable: 3 images |" in published.markdown(tmp_path)
    assert "| dinov2_vitb14 | 82.1 | not run: needs ImageNet-1k |" in found


def test_data_of_another_layout_and_weights_that_do_not_exist(tmp_path: Path) -> None:
    """Everything that is missing is found before anything runs."""
    ade20k(tmp_path / "ade")
    for name, expected in {
        "segmentation/voc2012_aug/dinov2_vits14": ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"),
        "depth_dpt/nyuv2/dinov2_vits14": ("nyudepthv2_train_files_with_gt.txt", "nyudepthv2_test_files_with_gt.txt"),
        "depth_dpt/kitti/dinov2_vits14": ("eigen_train_files_with_gt.txt", "eigen_test_files_with_gt.txt"),
        "panoptic_eomt/coco_panoptic/dinov2_vits14_reg": (
            "train2017 (", "val2017 (", "panoptic_train2017 (", "panoptic_train2017.json", "panoptic_val2017 (",
            "panoptic_val2017.json",
        ),
    }.items():  # fmt: skip
        lacks = find_row(name).missing(tmp_path / "ade", "timm")
        assert len(lacks) == len(expected)
        assert all(any(place in line for line in lacks) for place in expected)
    assert find_row("segmentation/ade20k/dinov2_vits14").missing(tmp_path / "ade", "timm") == []
    nyuv2(tmp_path / "nyu")
    assert find_row("depth_dpt/nyuv2/dinov2_vits14").missing(tmp_path / "nyu", "timm") == []
    voc2012(tmp_path / "voc")
    assert find_row("jaccard/voc2012/dino_vits16").missing(tmp_path / "voc", "timm") == []
    assert find_row("jaccard_random/voc2012/dino_vits16").missing(tmp_path / "voc", None) == []  # needs no weights
    shutil.rmtree(tmp_path / "voc/SegmentationObject")  # without it connected components of classes would be measured
    assert "SegmentationObject" in find_row("jaccard/voc2012/dino_vits16").missing(tmp_path / "voc", "timm")[0]
    hub = find_row("segmentation/ade20k/dinov2_vits14").missing(tmp_path / "ade", "hub")[0]
    assert "the row has dinov2_vits14; give a file, or timm to download them" in hub
    assert "timm" not in find_row("knn/imagenet/ibot_vits16").missing(tmp_path / "ade", "hub")[-1]
    for name in ("knn/imagenet/ibot_vits16", "knn/imagenet/dino_resnet50"):  # timm has other weights by these names
        imagenet(tmp_path / "imagenet")
        assert "timm has no published weights" in find_row(name).missing(tmp_path / "imagenet", "timm")[0]
        assert "timm" not in find_row(name).missing(tmp_path / "imagenet", None)[0]
        with pytest.raises(WeightsError, match="timm publishes no weights"):
            load_backbone(name.split("/")[2], "timm")


@pytest.mark.parametrize(
    ("name", "without", "said"),
    [
        ("segmentation/ade20k/dinov2_vits14", ("images/validation/*",), ("no images such as images/validation/",)),
        ("segmentation/ade20k/dinov2_vits14", ("images/*/*", "annotations/*/*"), ("/training/", "/validation/")),
        ("segmentation/ade20k/dinov2_vits14", ("annotations/*/*",), ("(the first of 2 problems of train", "no mask")),
        ("depth_dpt/nyuv2/dinov2_vits14", ("*/*.jpg", "*/*.png"), ("train0/rgb_0.jpg (the", "test0/rgb_0.jpg")),
        ("depth_dpt/kitti/dinov2_vits14", ("gts/test0/0.png",), ("0.png has no depth map test0/0.png",)),
        ("segmentation/voc2012_aug/dinov2_vits14", ("ImageSets/*/trainaug.txt",), ("trainaug.txt is not there",)),
        ("segmentation/voc2012_aug/dinov2_vits14", ("ImageSets/*/val.txt", "SegmentationClassAug/0.png"), (
            "0.jpg has no mask SegmentationClassAug/0.png", "val.txt is not there",
        )),
        ("segmentation/voc2012_aug/dinov2_vits14", ("JPEGImages",), ("JPEGImages (Pascal VOC 2012)",)),
        ("jaccard_random/voc2012/dino_vits16", ("SegmentationObject/2.png",), ("no instance map SegmentationObject",)),
        ("segmentation/cityscapes/dinov2_vits14", ("gtFine/val/*",), ("gtFine/val/town/town_000003_000019_gtFine_la",)),
        ("instance_eomt/coco/dinov2_vitl14_reg", ("val2017/*",), ("no image",)),
        ("instance_eomt/coco/dinov2_vitl14_reg", ("val2017",), ("val2017 (COCO 2017)",)),
        ("knn/imagenet/dinov2_vits14", ("val/*/*",), ("val/n????????/* (ImageNet-1k)",)),
        ("anomaly_1/mvtec/dinov2_vits14", ("pill/test", "zipper/ground_truth/*/*"), (
            "pill/test/*/* (MVTec AD)", "zipper/ground_truth/*/* (MVTec AD)",
        )),
        ("tracking/davis/dino_vits16", ("JPEGImages/480p/*/*",), ("JPEGImages/480p/*/*.jpg (DAVIS-2017)",)),
        ("copies/copydays/dino_vitb16", ("whiten/*",), ("whiten/* (Copydays",)),
    ],
)  # fmt: skip
def test_data_with_holes(name: str, without: tuple[str, ...], said: tuple[str, ...], tmp_path: Path) -> None:
    """Each split is opened before anything runs, so that no training ends at a test set that is not there."""
    row = find_row(name)
    MAKERS[row.data](tmp_path)
    assert row.missing(tmp_path, "timm") == []
    for place in [place for pattern in without for place in tmp_path.glob(pattern)]:
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    lacks = row.missing(tmp_path, "timm")
    assert len(lacks) == len(said)
    assert all(words in line for words, line in zip(said, lacks, strict=True)), lacks


def test_weights_of_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    imagenet(tmp_path / "data")
    torch.save(load_backbone("dino_vits16", depth=1).state_dict(), tmp_path / "weights.pth")
    (tmp_path / "weights.py").write_text("print('no weights')\n")
    (tmp_path / "folder").mkdir()
    for name, words in {
        "weights.pth": "The file looks like patch 16, dim 384, depth 1: load_backbone('dino_vits16', ...)",
        "weights.py": "is a text file that begins",
        "folder": "is a directory without config.json",
    }.items():
        place = ["--data", str(tmp_path / "data"), "--weights", str(tmp_path / name), "--output", str(tmp_path / "out")]
        assert main(["reproduce", "knn/imagenet/dinov2_vits14", *place]) == 1
        told = capsys.readouterr()
        assert "needs 1 more" in told.err
        assert words in told.err
        assert not (tmp_path / "out").exists()  # nothing ran


@pytest.mark.parametrize(
    "name", ["dino_vits16", "ibot_vits16", "dinov2_vits14", "dinov2_vits14_reg", "dinov3_vits16", "dinov3_vits16plus"]
)
def test_official_weights_fit(name: str, tmp_path: Path) -> None:
    """As published, and as a saved directory."""
    backbone = load_backbone(name, depth=2)
    backbone.export_official(tmp_path / "weights.pth")
    backbone.save_pretrained(tmp_path / "saved")
    for place in ("weights.pth", "saved", "saved/model.safetensors"):
        check_weights(name, tmp_path / place, depth=2)
    with pytest.raises(WeightsError, match="does not fit"):
        check_weights(name, tmp_path / "weights.pth")


def test_what_is_missing_is_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce"]) == 0
    assert "knn/imagenet" in capsys.readouterr().out
    assert main(["reproduce", "knn/imagenet/dinov2_vits14"]) == 1
    told = capsys.readouterr().err
    assert "needs 3 more" in told
    assert all(
        option in told
        for option in ("--data FOLDER: ImageNet-1k with train/n????????/*, val/n????????/*", "--weights", "--output")
    )
    (tmp_path / "data/train").mkdir(parents=True)
    place = ["--data", str(tmp_path / "data"), "--weights", str(tmp_path / "none.pth"), "--output", str(tmp_path / "o")]
    assert main(["reproduce", "knn/imagenet/dinov2_vits14", *place]) == 1
    told = capsys.readouterr().err
    assert f"{tmp_path / 'data/val/n????????/*'} (ImageNet-1k)" in told
    assert "none.pth: no such file" in told
    assert main(["reproduce", "knn/imagenet/dinov2_vit14", *place]) == 1
    assert "Did you mean knn/imagenet/dinov2_vits14" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["reproduce", "knn/imagenet/dinov2_vits14", *place, "--set", "seed"])
    assert "--set seed: expected KEY=VALUE" in capsys.readouterr().err
    (tmp_path / "o").mkdir()
    for damaged in ("garbage", "{}", "[]"):
        (tmp_path / "o/reproduced.json").write_text(damaged)
        assert main(["reproduce", "knn/imagenet/dinov2_vits14", *place]) == 1
        assert "reproduced.json is not a result of dense reproduce; remove it" in capsys.readouterr().err
    (tmp_path / "o/reproduced.json").write_text('{"row": "knn/imagenet/dino_vits16"}')
    for words, said in (
        ([], "o holds the results of knn/imagenet/dino_vits16; choose another --output"),
        (["--set", "data.root=x"], "--set data.root=x: give --data and --output"),
        (["--device", "nodevice"], "this machine has no device 'nodevice'"),
    ):
        assert main(["reproduce", "knn/imagenet/dinov2_vits14", *place, *words]) == 2
        assert said in capsys.readouterr().err
    assert main(["reproduce", "knn/imagenet/dinov2_vits14"]) == 1
    assert "dense evaluate knn" in capsys.readouterr().out
    assert main(["reproduce", "jaccard_random/voc2012/dino_vits16", *place]) == 2
    assert "jaccard_random/voc2012/dino_vits16 measures random initialisation; leave it out" in capsys.readouterr().err


# ---- miniatures


def imagenet(root: Path) -> None:
    for split in ("train", "val"):
        for number, name in enumerate(("n01440764", "n01443537")):
            for i in range(3):
                image_file(root / split / name / f"{split}{name}{i}.png", 60 * number + i, (64, 64))


def stripes(classes: int, size: tuple[int, int] = (96, 96)) -> np.ndarray:
    return np.broadcast_to(np.arange(size[1]) // 16 % classes, size).astype(np.uint8)


def ade20k(root: Path) -> None:
    for split in ("training", "validation"):
        for i in range(2):
            image_file(root / f"images/{split}/{split}{i}.jpg", 50 * i + len(split), (96, 96))
            mask(root / f"annotations/{split}/{split}{i}.png", stripes(4), (96, 96))


def voc2012(root: Path) -> None:
    for i in range(3):
        image_file(root / f"JPEGImages/{i}.jpg", 50 * i, (96, 96))
        for folder in ("SegmentationClass", "SegmentationClassAug", "SegmentationObject"):
            palette(root / f"{folder}/{i}.png", stripes(3), [(j, 255 - j, j // 2) for j in range(256)])
    for name, inside in (("train", "0\n1\n"), ("trainaug", "0\n1\n"), ("val", "2\n")):
        text(root / f"ImageSets/Segmentation/{name}.txt", inside)


def cityscapes(root: Path) -> None:
    for split, number in (("train", 1), ("train", 2), ("val", 3)):
        stem = f"{split}/town/town_00000{number}_000019"
        image_file(root / f"leftImg8bit/{stem}_leftImg8bit.png", 50 * number, (96, 96))
        mask(root / f"gtFine/{stem}_gtFine_labelIds.png", 7 + stripes(2), (96, 96))


def nyuv2(root: Path) -> None:
    for split, count in (("train", 2), ("test", 1)):
        lines = []
        for i in range(count):
            image_file(root / f"{split}{i}/rgb_{i}.jpg", 50 * i + len(split), (480, 640))
            depth16(root / f"{split}{i}/depth_{i}.png", 1500 + 500 * i, (480, 640))
            lines.append(f"{split}{i}/rgb_{i}.jpg {split}{i}/depth_{i}.png 518.8579\n")
        text(root / f"nyudepthv2_{split}_files_with_gt.txt", "".join(lines))


def kitti(root: Path) -> None:
    for split, count in (("train", 2), ("test", 1)):
        lines = []
        for i in range(count):
            image_file(root / f"raw/{split}{i}/image_02/{i}.png", 50 * i + len(split), (360, 1220))
            depth16(root / f"gts/{split}{i}/{i}.png", 256 * 20, (360, 1220))
            lines.append(f"{split}{i}/image_02/{i}.png {split}{i}/{i}.png 721.5\n")
        text(root / f"eigen_{split}_files_with_gt.txt", "".join(lines))


def coco(root: Path) -> None:
    """An image is half a cup and half sky; the cup is the only object."""
    cup = np.zeros((96, 96), bool)
    cup[:, :48] = True
    colours = np.zeros((96, 96, 3), np.uint8)
    colours[..., 0] = 2 - cup
    for split in ("train2017", "val2017"):
        images, objects, segments = [], [], []
        for i in range(2):
            image_file(root / split / f"{i}.jpg", 50 * i, (96, 96))
            place = root / f"annotations/panoptic_{split}/{i}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(colours).save(place)
            images.append({"id": i, "file_name": f"{i}.jpg", "height": 96, "width": 96})
            one = {"id": i + 1, "image_id": i, "category_id": 1, "segmentation": encode(cup), "iscrowd": 0}
            objects.append(one)
            parts = [{"id": 1, "category_id": 1}, {"id": 2, "category_id": 2}]
            segments.append({"image_id": i, "file_name": f"{i}.png", "segments_info": parts})
        classes = [{"id": 1, "name": "cup", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}]
        for kind, found in (("instances", objects), ("panoptic", segments)):
            content = {"images": images, "categories": classes, "annotations": found}
            text(root / f"annotations/{kind}_{split}.json", json.dumps(content))


def mvtec(root: Path) -> None:
    for category in MVTEC:
        for name, colour in (("train/good", 1), ("test/good", 2), ("test/hole", 90)):
            image_file(root / category / name / "0.png", colour, (64, 64))
        mask(root / category / "ground_truth/hole/0_mask.png", 255 * stripes(2, (64, 64)), (64, 64))


MAKERS = {
    "imagenet": imagenet, "ade20k": ade20k, "voc2012": voc2012, "voc2012_aug": voc2012, "cityscapes": cityscapes,
    "nyuv2": nyuv2, "kitti": kitti, "davis": miniature, "coco": coco, "coco_panoptic": coco,
    "roxford5k": landmarks, "rparis6k": paris, "copydays": copies, "mvtec": mvtec,
}  # fmt: skip


def kind_of(row: Row) -> tuple[object, ...]:
    """What runs once: a command, whatever the backbone of its kind; and a number of its result."""
    return (nameless(row), row.key, row.source, "convnext" in row.backbone)


KINDS = {kind_of(row): row for row in reversed(rows().values())}  # the smallest backbone of each
TINY = {"embed_dim": 24, "depth": 4, "num_heads": 2}
TINY_CONVNEXT = {"depths": [1, 1, 1, 1], "dims": [8, 12, 16, 24]}


@pytest.mark.slow
@pytest.mark.parametrize("row", KINDS.values(), ids=[row.name for row in KINDS.values()])
def test_a_row_runs(row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a miniature of the data, with a tiny backbone and two steps: it starts, ends and saves."""
    MAKERS[row.data](tmp_path / "data")
    eomt = "eomt" in row.measure
    tiny = {} if "resnet" in row.backbone else TINY_CONVNEXT if "convnext" in row.backbone else TINY
    weights = tmp_path / "weights.pth"
    import torch

    deep = any("[4, 11, 17, 23]" in command for command in row.commands)
    tiny |= {"depth": 5} if eomt else {"depth": 24} if deep else {}  # four blocks of queries, and one before them
    made = load_backbone(row.backbone, **tiny)
    torch.save(made.state_dict() if tiny else made.model.state_dict(), weights)
    size = {"img_size": 64, "patch_size": 16} if eomt else {"img_size": 518} if "v2" in row.backbone else {}
    of_train = ["--model.backbone.arguments", json.dumps(tiny | size)]
    of_measure = [word for key, value in tiny.items() for word in ("--set", f"{key}={value}")]
    commands = []
    for command in row.commands:
        short = {"linear": ["--steps", "2"], "segmentation": ["--window", "112", "--resize", "112", "--stride", "112"]}
        short["in-context"] = ["--resize", "112", "--patches", "160"]
        short |= {"anomaly": ["--resize", "56"], "video": ["--size", "112"]}
        short = short.get(command[1], [])
        short += ["--scales", "1"] if "dinov2_ms" in command else []
        extra = of_train if command[0] == "train" else of_measure if "--backbone" in command else []
        commands.append((*command, *extra, *short))
    monkeypatch.setattr("dense.evaluate.published.needs.check_weights", partial(check_weights, **tiny))
    monkeypatch.setattr("dense.evaluate.published.find_row", lambda _: replace(row, commands=tuple(commands)))
    small = {
        "model.steps": 2, "data.batch_size": 2, "data.workers": 0, "val_every": 2, "trainer.accelerator": "cpu",
        "model.head.width": 16,
    }  # fmt: skip
    if "dpt" not in row.measure:
        small.pop("model.head.width")
    trains = any(command[0] == "train" for command in row.commands)
    chosen = [word for key, value in small.items() if trains for word in ("--set", f"{key}={value}")]
    place = ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "out")]
    place += ["--weights", str(weights)] if row.has_weights else []
    with alone():
        assert main(["reproduce", row.name, *place, *chosen, "--device", "cpu"]) == 0
    facts = json.loads((tmp_path / "out/reproduced.json").read_text())
    assert facts["row"] == row.name
    assert facts["changed"] == [word for word in chosen if word != "--set"]
    assert np.isfinite(facts["here"])
    size, other = DATA[row.data].size, facts["other images"]
    assert re.fullmatch(rf"not comparable: \d+ (images|clips) instead of {size:,}", other) if size else not other
    assert not size or not facts["within"]
    if row.measure.startswith("jaccard"):
        protocol = json.loads((tmp_path / "out/result/results.json").read_text())["protocol"]
        assert protocol["settings"]["objects"] == "instances, at least 0.0 of the image"


def test_measurements_take_the_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless --device is given; trainings choose it themselves."""
    import torch

    for there, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        monkeypatch.setattr(torch.mps, "is_available", lambda: False)
        chosen = Namespace(device=None, set=[])
        assert with_options(["evaluate", "knn"], chosen) == ["evaluate", "knn", "--device", device]
        assert with_options(["train"], chosen) == ["train"]
    assert with_options(["evaluate", "knn"], Namespace(device="cuda:1"))[-1] == "cuda:1"


def test_rows_are_found() -> None:
    jaccard = find_row("jaccard/voc2012/dino_vits16")
    assert jaccard.value == 45.9
    assert jaccard.other_size("VOC val (1449 images)") == ""
    assert jaccard.other_size("VOC val (1448 images)") == "not comparable: 1,448 images instead of 1,449"
    assert "--batch-size 1024" in " ".join(find_row("linear/imagenet/dinov2_vits14").commands[0])  # 8 GPUs of 128
    for name, side in (("dino_vits16", "512"), ("dinov2_vits14", "504")):
        assert side in find_row(f"in_context_102400/voc2012_aug/{name}").commands[0]
    assert "class token" not in find_row("knn/imagenet/dino_resnet50").protocol  # it has none
    assert "[4, 11, 17, 23]" in find_row("depth_dpt/nyuv2/ibot_vitl16").commands[0]
    assert {row.data for row in rows().values()} == set(DATA) == set(MAKERS)
