"""Segmentation by the nearest labelled patches: against a slow loop, and by its properties."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import dense
from dense.backbone import Backbone, load_backbone
from dense.cli import main
from dense.data.labelled.sample import DataError, Labelled
from dense.evaluate.dense import check_classes
from dense.evaluate.in_context import with_unknown
from dense.memory import build_memory, open_references, remember
from dense.memory.budget import Budget, k_centres
from dense.memory.build import patch_shares, usual_layer
from dense.model.card import as_json
from dense.model.network import DenseModel
from dense.predict import Predictor
from heads import AnomalyHead, Insid3Head, MemoryHead, Regression, build
from heads.features import Features
from heads.outputs import Classes

TINY: dict[str, Any] = {"embed_dim": 32, "depth": 4, "num_heads": 2, "img_size": 64}


class Pairs:
    """Labelled images in memory."""

    title, depth_kind = "pairs", None

    def __init__(
        self, items: list[tuple[np.ndarray, np.ndarray]], classes: tuple[str, ...] = ("ground", "thing")
    ) -> None:
        self.items, self.classes = items, classes

    def __len__(self) -> int:
        return len(self.items)

    def name(self, index: int) -> str:
        return str(index)

    def read(self, index: int) -> Labelled:
        return Labelled(*self.items[index], None, str(index))


def painted(
    seed: int, box: tuple[int, int, int, int], size: tuple[int, int] = (64, 80)
) -> tuple[np.ndarray, np.ndarray]:
    """An image of blue noise with a red box, and its mask."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 60, (*size, 3)).astype(np.uint8)
    image[..., 2] += 150
    mask = np.zeros(size, np.uint8)
    top, bottom, left, right = box
    mask[top:bottom, left:right] = 1
    image[mask == 1] = rng.integers(0, 60, (int(mask.sum()), 3)) + np.array([150, 0, 0])
    return image.astype(np.uint8), mask


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    return load_backbone("dino_vits16", frozen=True, patch_size=8, **TINY)


def features(maps: torch.Tensor, patch: int = 8) -> Features:
    size = (maps.shape[-2] * patch, maps.shape[-1] * patch)
    return Features(
        (maps,), (maps.new_zeros(len(maps), 0, maps.shape[1]),), size, size, (0, 0, 0, 0), (patch,), (0,), True
    )


@pytest.mark.parametrize("neighbours", [1, 3, 50])
def test_votes_equal_a_slow_loop(neighbours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heads.memory.SEEN", 40)  # several parts
    generator = torch.Generator().manual_seed(1)
    bank = torch.nn.functional.normalize(torch.randn(17, 6, generator=generator), dim=1)
    shares = torch.rand(17, 3, generator=generator)
    head = MemoryHead(6, {"labels": Classes(3)}, 17, neighbours=neighbours, temperature=0.1)
    head.fill(bank, shares)
    maps = torch.randn(2, 6, 2, 3, generator=generator)
    found = head.logits(features(maps), None)["labels"]
    for b in range(2):
        for y in range(2):
            for x in range(3):
                query = maps[b, :, y, x] / maps[b, :, y, x].norm()
                cosines = [float(query @ row) for row in head.bank.float()]
                nearest = sorted(range(17), key=lambda i: -cosines[i])[:neighbours]
                weights = np.exp([cosines[i] / 0.1 for i in nearest])
                expected = sum(
                    w * head.shares[i].float() for w, i in zip(weights / weights.sum(), nearest, strict=True)
                )
                torch.testing.assert_close(found[b, :, y, x], expected, rtol=1e-4, atol=1e-5)


def test_duplicates_change_nothing() -> None:
    """A memory twice, with twice the neighbours, gives the same votes; constant features give finite ones."""
    generator = torch.Generator().manual_seed(0)
    bank, shares = torch.randn(9, 4, generator=generator), torch.rand(9, 2, generator=generator)
    bank = torch.nn.functional.normalize(bank, dim=1)
    once = MemoryHead(4, {"labels": Classes(2)}, 9, neighbours=3)
    twice = MemoryHead(4, {"labels": Classes(2)}, 18, neighbours=6)
    once.fill(bank, shares)
    twice.fill(bank.repeat(2, 1), shares.repeat(2, 1))
    maps = torch.randn(1, 4, 3, 3, generator=generator)
    torch.testing.assert_close(once(features(maps))["labels"], twice(features(maps))["labels"])
    assert once(features(torch.zeros(1, 4, 3, 3)))["labels"].isfinite().all()


def test_shares_of_patches() -> None:
    """Unknown pixels count for no class; padding is unknown."""
    labels = torch.zeros(12, 16, dtype=torch.uint8)
    labels[:, 4:8] = 1
    labels[:4, 8:] = 255
    maps = torch.zeros(1, 2, 2, 2)
    given = Features((maps,), (maps[..., 0, 0][:, None][:, :0],), (12, 16), (16, 16), (2, 2, 0, 0), (8,), (0,), True)
    found = patch_shares(labels, given, 2)
    torch.testing.assert_close(found, torch.tensor([[24.0, 24], [16, 0], [24, 24], [48, 0]]) / 64)


@pytest.mark.parametrize("choice", ["balanced", "random", "coreset"])
def test_an_image_gives_its_own_mask_back(backbone: Backbone, choice: str) -> None:
    """And another image of the same kind its object, also with a part of the patches."""
    first, second = painted(0, (16, 48, 24, 56)), painted(1, (8, 40, 8, 40))
    model = build_memory(backbone, Pairs([first]), resize=None, patches=60, choice=choice, neighbours=1)  # type: ignore[arg-type]
    assert len(model.head.bank) == 60
    own = Predictor(build_memory(backbone, Pairs([first]), resize=None, neighbours=1))(first[0])  # type: ignore[arg-type]
    assert (own.labels == first[1]).mean() > 0.95
    other = Predictor(model)(second[0])
    assert other.classes == ("ground", "thing")
    assert (other.labels == second[1]).mean() > 0.85
    assert 0 < other.scores.min() <= other.scores.max() <= 1 + 1e-3


def test_it_is_saved_like_any_model(backbone: Backbone, tmp_path: Path) -> None:
    image, mask = painted(0, (16, 48, 24, 56))
    model = build_memory(backbone, Pairs([(image, mask)]), resize=96)  # type: ignore[arg-type]
    model.save_pretrained(tmp_path)
    again = DenseModel.from_pretrained(tmp_path)
    assert again.inference.resize == 96
    assert torch.equal(again.head.bank, model.head.bank)
    assert np.array_equal(Predictor(again)(image).labels, Predictor(model)(image).labels)


def test_a_damaged_memory_and_other_classes(backbone: Backbone, tmp_path: Path) -> None:
    """A damaged file, data of more classes than the memory holds, and fewer patches than classes."""
    pairs = Pairs([painted(0, (16, 48, 24, 56))])
    with pytest.raises(ValueError, match="at least one for each of 2 classes"):
        build_memory(backbone, pairs, patches=1)  # type: ignore[arg-type]
    model = build_memory(backbone, pairs, resize=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the model has 2 classes, the data have 3: ground, thing, sky"):
        check_classes(model, Pairs(pairs.items, ("ground", "thing", "sky")))  # type: ignore[arg-type]
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    intact = file.read_bytes()
    model.head.bank = torch.full_like(model.head.bank, torch.nan)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="numbers that are not finite"):
        DenseModel.from_pretrained(tmp_path)
    file.write_bytes(intact[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        DenseModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("kind", "name", "value", "words"),
    [
        ("memory", "bank", torch.nan, "not finite"),
        ("memory", "shares", torch.inf, "not finite"),
        ("memory", "centres", torch.nan, "not finite"),
        ("memory", "shares", -1, "negative shares"),
        *((kind, "bank", 0, "not of length 1") for kind in ("memory", "anomaly", "insid3")),
        ("anomaly", "bank", torch.nan, "not finite"),
        *(("insid3", name, torch.nan, "not finite") for name in ("basis", "bank", "prototypes")),
    ],
)
def test_a_damaged_number_of_a_memory(kind: str, name: str, value: float, words: str) -> None:
    """A single row that cannot be one of a memory is noticed in every head when it is loaded."""
    labels = {"labels": Classes(2)}
    head: Any = {
        "memory": lambda: MemoryHead(4, labels, 6, lists=2, probes=1),
        "anomaly": lambda: AnomalyHead(4, {"anomaly": Regression("identity")}, 6),
        "insid3": lambda: Insid3Head(4, labels, 6, 1),
    }[kind]()
    head.bank.copy_(F.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1))
    state = head.state_dict()
    build(head.spec()).load_state_dict(state)
    state[name][1] = value
    with pytest.raises(ValueError, match=f"the memory holds .*{words}.*{name}.*: its file is damaged"):
        build(head.spec()).load_state_dict(state)


def test_rare_classes_keep_their_patches(backbone: Backbone) -> None:
    """Of a small budget the balanced choice gives a rare class more patches than a random one."""
    source = Pairs([painted(i, (24, 40, 24, 40)) for i in range(4)])
    held = {
        choice: build_memory(backbone, source, resize=None, patches=40, choice=choice).head.shares[:, 1].gt(0).sum()  # type: ignore
        for choice in ("balanced", "random")
    }
    assert held["balanced"] > held["random"]


def test_the_usual_layer_lies_at_three_quarters_of_the_depth() -> None:
    assert [usual_layer(depth) for depth in (1, 4, 12, 24)] == [0, 2, 8, 17]


def test_k_centres_cover() -> None:
    angles = torch.tensor([0.0, 0.01, 0.02, 1.5, 1.51, 3.0])
    chosen = k_centres(torch.stack([angles.cos(), angles.sin()], 1), 3)
    assert {round(float(angles[i])) for i in chosen} == {0, 2, 3}


# ---- references and commands


def written(folder: Path, **values: Any) -> dict[Path, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    image, mask = painted(0, (16, 48, 24, 56))
    Image.fromarray(image).save(folder / "a.png")
    Image.fromarray(values.get("mask", 255 * mask)).save(folder / "a_mask.png")
    return {folder / "a.png": folder / "a_mask.png"}


def test_references(tmp_path: Path) -> None:
    source = open_references(written(tmp_path))
    assert source.classes == ("background", "object")
    labels = source.read(0).labels
    assert labels is not None
    assert set(np.unique(labels)) == {0, 1}
    mask = painted(0, (16, 48, 24, 56))[1]
    small = open_references(written(tmp_path / "small", mask=np.asarray(mask[::2, ::2] * 255)))
    read = small.read(0)
    assert read.labels is not None
    assert read.labels.shape == read.image.shape[:2]
    saved = np.dstack([np.repeat(255 * mask[..., None], 3, 2), np.full_like(mask, 255)])  # as dense explore saves it
    assert np.array_equal(open_references(written(tmp_path / "explore", mask=saved)).read(0).labels, mask)
    several = open_references(written(tmp_path / "classes", mask=np.where(mask == 1, 3, 7).astype(np.uint8)))
    assert several.classes == ("3", "7")
    for values, words in ((mask * 0, "alone"), (np.full((64, 80, 3), (9, 1, 1), np.uint8), "has colours")):
        with pytest.raises(DataError, match=words):
            open_references(written(tmp_path / words, mask=values))
    with pytest.raises(FileNotFoundError, match="no such image"):
        open_references({tmp_path / "none.png": tmp_path / "a_mask.png"})


def test_unknown_is_a_value_of_the_masks(backbone: Backbone, tmp_path: Path) -> None:
    """Labels are numbered from 0 in the order of the values; unknown pixels take the class of a value."""
    mask = np.where(painted(0, (16, 48, 24, 56))[1] == 1, 7, 3).astype(np.uint8)
    mask[:, :20] = 255  # two patches and a half
    source = open_references(written(tmp_path, mask=mask))
    assert set(np.unique(source.read(0).labels)) == {0, 1, 255}  # type: ignore[arg-type]
    for value, index in ((3, 0), (7, 1)):
        shares = build_memory(backbone, source, resize=None, unknown=value).head.shares
        assert shares[0].tolist() == [1 - index, index]
    known = build_memory(backbone, source, resize=None).head.shares
    assert known.sum(1).tolist() == [1] * 64  # also of patches that are known in part
    with pytest.raises(ValueError, match=r"unknown=1: expected a class: 3, 7$"):
        build_memory(backbone, source, resize=None, unknown=1)
    pairs = Pairs([painted(0, (16, 48, 24, 56))])
    with pytest.raises(ValueError, match=r"unknown=2: expected a class: 0 \(ground\), 1 \(thing\)"):
        build_memory(backbone, pairs, unknown=2)  # type: ignore[arg-type]


def test_masks_that_do_not_agree(tmp_path: Path) -> None:
    """One object with two values, smoothed edges, and an image without an object among others are errors."""
    mask = np.zeros((32, 32), np.uint8)
    mask[8:20, 6:18] = 1

    def pairs(*masks: Any) -> dict[Path, Path]:
        return {k: v for n, m in enumerate(masks) for k, v in written(tmp_path / f"{len(masks)}{n}", mask=m).items()}

    with pytest.raises(DataError, match=r"several values: 1 in .*, 255 in .*; give it one value in all masks"):
        open_references(pairs(mask, mask * 255))
    with pytest.raises(DataError, match="no pixel is of an object"):
        open_references(pairs(mask, mask * 2, mask * 0))
    smooth = cv2.GaussianBlur(cv2.resize(mask * 255, (256, 256)), (0, 0), 3)
    with pytest.raises(DataError, match="values, most of them rare, like a mask with smoothed edges"):
        open_references(pairs(smooth))
    assert open_references(pairs(mask, mask * 2, mask, mask)).classes == ("0", "1", "2")
    whole = open_references(pairs(mask * 255, mask * 0 + 255))
    assert whole.classes == ("background", "object")
    assert (whole.read(1).labels == 1).all()  # type: ignore[union-attr]
    with pytest.raises(DataError, match="255 alone, which is unknown beside masks with lower values"):
        open_references(pairs(mask, mask * 0 + 255))


def test_late_images_stay_where_images_outnumber_patches() -> None:
    budget = Budget(50, 200, "random", 0)
    assert budget.each == 1
    kept = budget.of_all(F.normalize(torch.randn(200, 8), dim=1))
    assert len(kept) == 50
    assert kept.max() > 150


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str], backbone: Backbone) -> None:
    (pair,) = written(tmp_path).items()
    backbone.save_pretrained(tmp_path / "backbone")
    image, mask = painted(2, (8, 40, 8, 40))
    Image.fromarray(image).save(tmp_path / "b.png")
    place = ["--backbone", str(tmp_path / "backbone"), "--output", str(tmp_path / "out"), "--resize", "0"]
    assert main(["segment", str(tmp_path / "b.png"), "--like", f"{pair[0]}={pair[1]}", *place]) == 0
    assert "segmented 1 of 1 like 1 annotated images (background, object)" in capsys.readouterr().out
    assert (tmp_path / "out/model/config.json").is_file()
    found = np.asarray(Image.open(tmp_path / "out/b_labels.png"))
    assert (found == mask).mean() > 0.85
    again = dense.segment(tmp_path / "b.png", dict([pair]), backbone=str(tmp_path / "backbone"), resize=None)
    assert np.array_equal(again.labels, found)  # type: ignore[union-attr]
    several = dense.segment([image], dict([pair]), backbone=str(tmp_path / "backbone"), resize=None)
    assert np.array_equal(next(iter(several)).labels, found)  # type: ignore[call-overload]
    (tmp_path / "several").mkdir()
    for name in ("c", "d"):
        Image.fromarray(image).save(tmp_path / f"several/{name}.png")
    for images in (tmp_path / "several", [tmp_path / "several/c.png", str(tmp_path / "several/d.png")]):
        listed = list(dense.segment(images, dict([pair]), backbone=str(tmp_path / "backbone"), resize=None))  # type: ignore[arg-type]
        assert [np.array_equal(one.labels, found) for one in listed] == [True, True]  # type: ignore[attr-defined]
    with pytest.raises(SystemExit):
        main(["segment", str(tmp_path / "b.png"), *place])
    with pytest.raises(SystemExit):
        main(["segment", str(tmp_path / "b.png"), "--like", "a.png", *place])
    assert "expected IMAGE=MASK" in capsys.readouterr().err
    assert main(["segment", str(tmp_path / "b.png"), "--like", f"{pair[0]}={tmp_path / 'no.png'}", *place]) == 1


def test_references_of_a_split_and_layout(tmp_path: Path, backbone: Backbone) -> None:
    for split, box in (("train", (8, 40, 8, 40)), ("val", (16, 48, 24, 56))):
        for kind, values in zip(("images", "masks"), painted(0, box), strict=True):
            (tmp_path / split / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(tmp_path / split / kind / "a.png")
    (tmp_path / "classes.yaml").write_text("[ground, thing]\n")
    image, mask = painted(0, (16, 48, 24, 56))
    options: dict[str, Any] = {"backbone": backbone, "resize": None, "neighbours": 1}
    found = dense.segment(image, tmp_path, split="val", **options)
    assert found.classes == ("ground", "thing")  # type: ignore[union-attr]
    assert (found.labels == mask).mean() > 0.95  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="Did you mean voc2012"):
        dense.segment(image, tmp_path, layout="voc201", **options)
    with pytest.raises(ValueError, match="split='val' are of a folder of references; leave them out"):
        dense.segment(image, written(tmp_path / "pairs"), split="val", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resize": 448.5}, "resize=448.5: expected whole pixels"),
        ({"resize": "big"}, "resize='big': expected whole pixels"),
        ({"augment": 1.5}, "augment=1.5: expected a whole number at least 0"),
        ({"patches": "many"}, "patches='many': expected an integer of at least 1"),
        ({"rank": 1.5, "method": "insid3"}, "rank=1.5: expected a whole number"),
    ],
)
def test_numbers_that_are_none(backbone: Backbone, options: dict[str, Any], words: str) -> None:
    pairs: Any = Pairs([painted(0, (16, 48, 24, 56))], ("background", "object"))
    given = {"resize": None, "method": "knn"} | options
    with pytest.raises(ValueError, match=words):
        remember(given.pop("method"), backbone, pairs, **given)


def test_in_context(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scenes: more remembered images are not worse by much, and the protocol is saved."""
    common = [
        "evaluate",
        "in-context",
        "--backbone",
        "scenes_tiny",
        "--data",
        "scenes",
        "--scenes",
        "6",
        "--resize",
        "0",
    ]
    assert main([*common, "--train-images", "4", "--patches", "300", "--output", str(tmp_path / "a")]) == 0
    printed = capsys.readouterr().out
    assert "miou" in printed
    assert "temperature" in printed
    assert (tmp_path / "a/results.json").is_file()
    folder = tmp_path / "data"
    for split, count in (("train", 3), ("val", 1)):
        for i in range(count):
            for kind, values in zip(("images", "masks"), painted(i, (16, 48, 24, 56)), strict=True):
                (folder / split / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(folder / split / kind / f"{split}{i}.png")
    (folder / "classes.yaml").write_text("[ground, thing]\n")
    common[5] = str(folder)
    assert main([*common, "--train-images", "9"]) == 1
    assert "expected 1 to 3" in capsys.readouterr().err
    assert main([*common, "--train-images", "2"]) == 0
    assert f"next: dense explore {folder / 'val/images'} --output page.html" in capsys.readouterr().out


def test_unknown_pixels_get_a_class_and_targets_the_size_of_the_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unknown pixels are remembered as a class of their own, which the ground truth lacks."""
    folder = tmp_path / "data"
    for split in ("train", "val"):
        image, labels = painted(len(split), (16, 48, 24, 56))
        labels = np.where(labels == 0, np.uint8(255), labels)
        for kind, values in (("images", image), ("masks", labels)):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(folder / split / kind / f"{split}.png")
    (folder / "classes.yaml").write_text("[ground, thing]\n")
    common = ["evaluate", "in-context", "--backbone", "scenes_tiny", "--data", str(folder), "--resize", "32"]
    found = {}
    for name, more in {"no": [], "new": ["--unknown", "new", "--score-at", "input", "--hungarian"]}.items():
        assert main([*common, "--square", *more, "--output", str(tmp_path / name)]) == 0
        found[name] = json.loads((tmp_path / name / "results.json").read_text())
    assert set(found["no"]["numbers"]["per_class"]) == {"ground", "thing"}
    assert set(found["new"]["numbers"]["per_class"]) == {"ground", "thing", "unknown"}
    assert found["no"]["numbers"]["per_class"]["thing"]["iou"] == 1  # the only class in memory
    assert 0 < found["new"]["numbers"]["per_class"]["thing"]["iou"] < 1  # some pixels are called unknown
    numbers = found["new"]["numbers"]  # ground is nowhere; the class of unknown pixels counts as 0 in both means
    assert numbers["classes"] == 2
    assert numbers["miou"] == pytest.approx(numbers["per_class"]["thing"]["iou"] / 2)
    assert numbers["miou_hungarian"] <= 0.5
    assert found["new"]["protocol"]["settings"]["score_at"] == "input"
    assert found["new"]["protocol"]["settings"]["unknown"] == 2
    assert found["new"]["protocol"]["name"] == "in-context"
    called = dense.evaluate(
        load_backbone("scenes_tiny"), folder, "in-context", resize=(32, 32), unknown="new", score_at="input",
        hungarian=True,
    )  # fmt: skip
    assert json.loads(as_json(called.numbers)) == found["new"]["numbers"]
    assert json.loads(as_json(dict(called.protocol.settings))) == found["new"]["protocol"]["settings"]
    with pytest.raises(ValueError, match="train_images=0: expected at least 1"):
        dense.evaluate("scenes_tiny", folder, "in-context", train_images=0)
    with pytest.raises(SystemExit):
        main([*common, "--unknown", "none"])
    assert "expected the number of a class, or new" in capsys.readouterr().err


def test_a_class_that_is_never_predicted_counts_where_it_is_of_unknown_pixels() -> None:
    rows = {name: {"iou": iou, "pixels": pixels} for name, iou, pixels in (("a", 0.5, 3.0), ("b", 0.0, 0.0))}
    rows |= {"c": {"iou": np.nan, "pixels": 0.0}, "unknown": {"iou": np.nan, "pixels": 0.0}}
    found = with_unknown({"miou": 0.25, "classes": 2.0, "miou_hungarian": 0.6, "per_class": rows})
    assert (found["miou"], found["classes"], found["miou_hungarian"]) == (0.5 / 3, 3, 0.3)


def test_labels_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str], backbone: Backbone) -> None:
    """Every method at every number, all images once; the same command reads the runs again."""
    backbone.save_pretrained(tmp_path / "backbone")
    for split, count in (("train", 3), ("val", 1)):
        for i in range(count):
            for kind, values in zip(
                ("images", "masks"), painted(i + 10 * (split == "val"), (16, 48, 24, 56)), strict=True
            ):
                (tmp_path / "data" / split / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(tmp_path / "data" / split / kind / f"{split}{i}.png")
    (tmp_path / "data/classes.yaml").write_text("[ground, thing]\n")
    command = ["evaluate", "labels-needed", "--backbone", str(tmp_path / "backbone"), "--data", str(tmp_path / "data")]
    command += ["--resize", "64", "--counts", "1", "--draws", "1", "--steps", "2", "--methods", "memory", "linear"]
    assert main(command) == 2
    assert "add --output" in capsys.readouterr().err
    command += ["--output", str(tmp_path / "out")]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "out/labels_needed.png").is_file()
    numbers = json.loads((tmp_path / "out/results.json").read_text())["numbers"]
    assert [len(numbers["draws"]["memory"][n]) for n in ("1", "3")] == [1, 1]
    assert set(numbers["draws"]) == {"memory", "linear"}
    kept = tmp_path / "out/runs/memory-1-0/numbers.json"
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"numbers": {"miou": 0.5}}))
    assert main(command) == 0
    assert "memory, 1 images, draw 0: mIoU 0.500" in capsys.readouterr().out + printed
    assert main([*command, "--resize", "32"]) == 1
    assert "holds a run with another resize, 64" in capsys.readouterr().err
    assert main([*command, "--counts", "9"]) == 1
    assert "expected 1 to 3 images" in capsys.readouterr().err
    assert main([*command, "--methods", "linea"]) == 1
    assert "Did you mean linear" in capsys.readouterr().err
    options: dict[str, Any] = {"resize": 64, "counts": [1], "draws": 1, "steps": 2, "methods": ["memory", "linear"]}
    called = dense.evaluate(backbone, tmp_path / "data", "labels-needed", output=tmp_path / "called", **options)
    assert called.numbers["linear, 3 images"] == numbers["linear, 3 images"]
    with pytest.raises(ValueError, match="needs output="):
        dense.evaluate(backbone, tmp_path / "data", "labels-needed", **options)
    with pytest.raises(ValueError, match="holds another backbone"):
        dense.evaluate(
            load_backbone("scenes_tiny"), tmp_path / "data", "labels-needed", output=tmp_path / "called", **options
        )
