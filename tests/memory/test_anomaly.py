"""Anomaly maps: distances and thresholds against slow loops, properties, files, verbs and errors."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

import dense
from dense.backbone import Backbone, load_backbone
from dense.cli import main
from dense.data.anomaly import open_anomaly
from dense.data.labelled.sample import DataError, Labelled
from dense.evaluate.anomaly import measure_anomaly
from dense.explore.judge import judge
from dense.memory import build_anomaly
from dense.memory.anomaly import detect, upper_quantile
from dense.model.network import DenseModel
from dense.predict import Anomaly, Predictor
from heads import AnomalyHead, Regression, build
from heads.features import Features

RGB = NDArray[np.uint8]
BOX = (slice(20, 44), slice(30, 54))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    return load_backbone("dino_vits16", frozen=True, patch_size=8, embed_dim=32, depth=4, num_heads=2, img_size=64)


def good(seed: int, size: tuple[int, int] = (64, 80)) -> RGB:
    """An image of dark noise."""
    return np.random.default_rng(seed).integers(0, 60, (*size, 3)).astype(np.uint8)


def bad(seed: int) -> tuple[RGB, RGB]:
    """A good image with a red box, and its mask."""
    image, mask = good(seed), np.zeros((64, 80), np.uint8)
    image[BOX], mask[BOX] = (200, 0, 0), 255
    return image, mask


def head_of(bank: torch.Tensor, **options: Any) -> AnomalyHead:
    head = AnomalyHead(bank.shape[1], {"anomaly": Regression("identity")}, len(bank), **options)
    head.bank.copy_(torch.nn.functional.normalize(bank, dim=1))
    return head


def features(maps: torch.Tensor, patch: int = 8) -> Features:
    size = (maps.shape[-2] * patch, maps.shape[-1] * patch)
    return Features(
        (maps,), (maps.new_zeros(len(maps), 0, maps.shape[1]),), size, size, (0, 0, 0, 0), (patch,), (0,), True
    )


# ---- the head


def test_distances_and_score_equal_a_slow_loop() -> None:
    generator = torch.Generator().manual_seed(1)
    head = head_of(torch.randn(7, 5, generator=generator), top=0.2)
    maps = torch.randn(2, 5, 3, 4, generator=generator)
    found = head.logits(features(maps), None)["anomaly"]
    for b in range(2):
        slow = []
        for place in range(12):
            query = maps[b].flatten(1)[:, place].numpy()
            cosines = [query @ row / np.linalg.norm(query) for row in head.bank.float().numpy()]
            slow.append(1 - max(cosines))
        np.testing.assert_allclose(found[b].flatten(), slow, atol=1e-5)
        assert float(head.score(found[:, 0])[b]) == pytest.approx(np.mean(sorted(slow)[-2:]), abs=1e-5)


def test_duplicates_change_nothing_and_constant_features_are_finite() -> None:
    bank = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    maps = torch.randn(1, 5, 3, 3, generator=torch.Generator().manual_seed(1))
    once, twice = head_of(bank), head_of(bank.repeat(2, 1))
    torch.testing.assert_close(once(features(maps))["anomaly"], twice(features(maps))["anomaly"])
    assert once(features(torch.zeros(1, 5, 3, 3)))["anomaly"].eq(1).all()
    masked = head_of(bank, foreground=10.0)
    assert masked(features(torch.ones(1, 5, 3, 3)))["anomaly"].isfinite().all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_foreground_is_in_the_centre(sign: float) -> None:
    """Whichever way the component points, the middle counts, grown by one patch; without any all patches count."""
    maps = torch.randn(1, 6, 10, 10, generator=torch.Generator().manual_seed(0)) * 0.01
    maps[0, 2] -= 6 * sign
    maps[0, 2, 3:7, 3:7] += 20 * sign
    head = head_of(torch.eye(6), foreground=5.0)
    expected = torch.zeros(10, 10, dtype=torch.bool)
    expected[2:8, 2:8] = True
    assert torch.equal(head.mask(head.inside(features(maps)))[0], expected)
    distances = head.logits(features(maps), None)["anomaly"][0, 0]
    assert distances[~expected].eq(0).all()
    head.foreground = 1000.0
    assert head.mask(head.inside(features(maps))).all()
    assert not head.inside(features(maps)).any()


def test_head_from_its_description() -> None:
    head = head_of(torch.eye(3), threshold=0.25, foreground=10.0)
    again = build(head.spec())
    assert isinstance(again, AnomalyHead)
    assert again.spec() == head.spec()
    with pytest.raises(ValueError, match="one output, anomaly"):
        AnomalyHead(3, {"depth": Regression()}, 4)


# ---- the model


def test_threshold_leaves_one_out(backbone: Backbone) -> None:
    """Scores of good images equal those of models without the image, and with it without its group."""
    images = [good(i) for i in range(4)]
    whole = build_anomaly(backbone, images, resize=None, quantile=1.0)
    alone = [
        detect(build_anomaly(backbone, [*images[:i], *images[i + 1 :]], resize=None), images[i])[0] for i in range(4)
    ]
    assert whole.head.threshold == pytest.approx(max(alone), abs=1e-3)
    paired = build_anomaly(backbone, images, resize=None, quantile=1.0, holdout=2)
    groups = [detect(build_anomaly(backbone, images[2:], resize=None), image)[0] for image in images[:2]]
    groups += [detect(build_anomaly(backbone, images[:2], resize=None), image)[0] for image in images[2:]]
    assert paired.head.threshold == pytest.approx(max(groups), abs=1e-3)
    assert "4 good images" in whole.facts["threshold"]


def test_copies_of_good_images_are_held_out_together(
    backbone: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Repeated files and copies leave the threshold as it is; what is nearly a copy is reported."""
    for i in range(4):
        Image.fromarray(good(i)).save(tmp_path / f"{i}.png")
    files = sorted(tmp_path.iterdir())
    options: dict[str, Any] = {"resize": None, "quantile": 1.0}
    once = build_anomaly(backbone, files, **options)
    twice = build_anomaly(backbone, [*files, *map(str, files)], **options)
    assert "same" not in capsys.readouterr().err
    copied = build_anomaly(backbone, [*files, *map(good, range(4))], **options)
    assert "4 of 8 good images have the same pixels as another" in capsys.readouterr().err
    for model in (twice, copied):
        assert model.head.threshold == pytest.approx(once.head.threshold, abs=1e-4)
        assert model.facts["good images"] == 4
    build_anomaly(backbone, [*files, good(0).repeat(2, 0).repeat(2, 1)], resize=64)  # the same at twice the size
    assert "2 of 5 good images are nearly the same" in capsys.readouterr().err


def test_quantile() -> None:
    scores = [float(i) for i in range(1, 20)]
    assert upper_quantile(scores, 0.95) == 19
    assert upper_quantile(scores, 0.5) == 10
    assert upper_quantile([3.0], 0.1) == 3
    assert upper_quantile([], 0.9) is None


def test_a_box_is_found(backbone: Backbone) -> None:
    """Its score is above the threshold and its pixels are the farthest; an image of the bank is at distance 0."""
    images = [good(i) for i in range(5)]
    predictor = Predictor(build_anomaly(backbone, images, resize=None))
    image, mask = bad(9)
    found, own = predictor(image), predictor(images[0])
    assert isinstance(found, Anomaly)
    assert isinstance(own, Anomaly)
    assert found.anomalous is True
    assert own.anomalous is False
    assert own.score < 2e-3
    assert found.values.shape == (64, 80)
    assert found.values[mask > 0].mean() > 5 * found.values[mask == 0].mean()
    assert found.overlay(image).shape == image.shape
    raw = predictor.model(predictor.model.backbone.normalise(torch.from_numpy(image).permute(2, 0, 1)[None]))
    smooth = gaussian_filter(raw[0, 0].numpy(), 4)
    np.testing.assert_allclose(found.values, smooth, atol=1e-4)


def test_rotations_of_good_images_are_good(backbone: Backbone) -> None:
    image = good(0, (64, 64)) + np.linspace(0, 190, 64).astype(np.uint8)[:, None, None]
    turned = np.ascontiguousarray(np.rot90(image))
    plain, every = (build_anomaly(backbone, [image], resize=None, rotations=n) for n in (1, 8))
    assert len(every.head.bank) == 8 * len(plain.head.bank)
    assert detect(every, turned)[0] < 2e-3 < detect(plain, turned)[0]
    wide = build_anomaly(backbone, [good(0)], resize=48, rotations=4)
    assert detect(wide, np.ascontiguousarray(np.rot90(good(0))))[0] < 2e-3


@pytest.mark.parametrize("choice", ["random", "coreset"])
def test_a_budget_of_patches(backbone: Backbone, choice: Any) -> None:
    model = build_anomaly(backbone, [good(i) for i in range(4)], resize=None, patches=40, choice=choice)
    assert len(model.head.bank) == 40
    assert detect(model, bad(7)[0])[0] > model.head.threshold


@pytest.mark.parametrize(("count", "holdout", "words"), [(1, 1, "at least two"), (3, 100, "lower holdout=100")])
def test_good_images_of_one_group_have_no_threshold(
    backbone: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int, holdout: int, words: str
) -> None:
    model = build_anomaly(backbone, [good(i) for i in range(count)], resize=None, holdout=holdout)
    model.save_pretrained(tmp_path / "model")
    Image.fromarray(bad(1)[0]).save(tmp_path / "a.png")
    assert main(["predict", str(tmp_path / "model"), str(tmp_path / "a.png"), "--output", str(tmp_path / "out")]) == 0
    assert words in capsys.readouterr().out
    found = Predictor(model)(bad(1)[0])
    assert isinstance(found, Anomaly)
    assert found.anomalous is None
    assert words in model.facts["threshold"]
    assert found.overlay(bad(1)[0]).shape == (64, 80, 3)


def test_a_threshold_belongs_to_its_working_size(backbone: Backbone, capsys: pytest.CaptureFixture[str]) -> None:
    model = build_anomaly(backbone, [good(i) for i in range(3)], resize=64)
    for size, expected in ((64, model.head.threshold), (48, None)):
        found = Predictor.of(model, resize=size)(bad(1)[0])
        assert isinstance(found, Anomaly)
        assert found.threshold == expected
    assert "none at resize 48, since the model's was chosen at 64" in capsys.readouterr().err


def test_constant_features_are_reported(backbone: Backbone, capsys: pytest.CaptureFixture[str]) -> None:
    plain = np.full((64, 64, 3), 90, np.uint8)
    zero = load_backbone("dino_vits16", frozen=True, patch_size=8, embed_dim=32, depth=4, num_heads=2, img_size=64)
    for parameter in zero.parameters():
        parameter.data.zero_()
    score, values = detect(build_anomaly(zero, [plain, plain], resize=None), plain)
    assert "have the same features" in capsys.readouterr().err
    assert np.isfinite(score)
    assert np.isfinite(values).all()


def test_wrong_options(backbone: Backbone, tmp_path: Path) -> None:
    for options, words in (
        ({"choice": "coresett"}, "Did you mean coreset"),
        ({"rotations": 0}, "rotations=0: expected an integer of at least 1"),
        ({"patches": "many"}, "patches='many': expected an integer"),
        ({"quantile": 1.5}, "quantile=1.5"),
    ):
        with pytest.raises(ValueError, match=words):
            build_anomaly(backbone, [good(0)], resize=None, **options)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="none of 0 images"):
        build_anomaly(backbone, [])
    with pytest.raises(FileNotFoundError, match="no images in"):
        build_anomaly(backbone, tmp_path)
    model = build_anomaly(backbone, [good(0)], resize=None)
    with pytest.raises(ValueError, match="leave them out"):
        Predictor(model, flip=True)
    with pytest.raises(ValueError, match=r"large=0.5: scores of anomalies are those of whole images"):
        Predictor(model, large=0.5)


# ---- files and verbs


def written(root: Path, category: str = "") -> Path:
    """A set in MVTec AD's layout: six good images to fit, two good and two anomalous ones in the test."""
    folder = root / category
    for name in ("train/good", "test/good", "test/box", "ground_truth/box"):
        (folder / name).mkdir(parents=True)
    for i in range(6):
        Image.fromarray(good(i)).save(folder / f"train/good/{i:03d}.png")
    for i in range(2):
        Image.fromarray(good(20 + i)).save(folder / f"test/good/{i:03d}.png")
        image, mask = bad(30 + i)
        Image.fromarray(image).save(folder / f"test/box/{i:03d}.png")
        Image.fromarray(mask if i else mask[::2, ::2]).save(folder / f"ground_truth/box/{i:03d}_mask.png")
    return folder


def test_the_verbs(tmp_path: Path, capsys: pytest.CaptureFixture[str], backbone: Backbone) -> None:
    """Fit, predict, evaluate; a second model has the same scores."""
    data = written(tmp_path / "data")
    backbone.save_pretrained(tmp_path / "backbone")
    (data / "train/good/zzz.png").write_bytes(b"nothing")
    place, name = ["--output", str(tmp_path / "model")], ["--backbone", str(tmp_path / "backbone")]
    assert main(["anomaly", "fit", str(data / "train/good"), *name, "--resize", "0", *place]) == 0
    said = capsys.readouterr()
    assert "480 patches of 6 good images" in said.out
    assert "the 0.95 quantile of 6 good images" in said.out
    assert f"next: dense predict {tmp_path / 'model'} {data / 'test'} " in said.out
    assert "zzz.png" in said.err
    assert main(["predict", str(tmp_path / "model"), str(data / "test"), "--output", str(tmp_path / "out")]) == 0
    assert "images are above the threshold" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "out/scores.csv").open()))
    assert len(rows) == 4
    assert [row["anomalous"] for row in rows[:2]] == ["True", "True"]
    assert "box" in rows[0]["image"]
    facts = json.loads((tmp_path / "out/box/000_anomaly.json").read_text())
    values = np.load(tmp_path / "out/box/000_anomaly.npy")
    again = dense.load(tmp_path / "model")(data / "test/box/000.png")
    assert isinstance(again, Anomaly)
    assert again.row() == facts
    assert np.array_equal(again.values, values)
    for end in ("anomaly.png", "overlay.png"):
        assert Image.open(tmp_path / f"out/good/001_{end}").size == (80, 64)
    measure = ["evaluate", "anomaly", str(tmp_path / "model"), "--data", str(data)]
    assert main([*measure, "--output", str(tmp_path / "results")]) == 0
    assert "by the nearest pixel" in capsys.readouterr().err
    saved = json.loads((tmp_path / "results/results.json").read_text())
    assert saved["numbers"]["auroc"] == saved["numbers"]["true_positive_rate"] == 1
    assert saved["numbers"]["false_positive_rate"] < 1
    assert saved["numbers"]["aupro"] > 0.8
    assert saved["weights"] == str(tmp_path / "model")
    for fitted in (tmp_path / "model", dense.load(tmp_path / "model")):
        assert dense.evaluate(fitted, data, "anomaly").numbers == saved["numbers"]
    ignored = {"rotations": "8", "backbone": "photos_tiny", "weights": "timm", "set": "padding=crop", "seed": "3"}
    for name, value in (ignored | {"levels": "per_image", "foreground-of": "nut"}).items():
        assert main([*measure, f"--{name}", value]) == 2
        assert f"--{name} is of fitting, and {tmp_path / 'model'} is fitted already" in capsys.readouterr().err
    more: dict[str, Any]
    for more in ({"seed": 3}, {"foreground_of": ["data"]}, {"weights": "FILE"}):
        with pytest.raises(ValueError, match="leave them out"):
            dense.evaluate(tmp_path / "model", data, "anomaly", **more)
    image = bad(30)[0]
    shown = judge(dense.load(tmp_path / "model"), Labelled(image, None, None, ""))
    assert shown.badness == facts["score"]
    assert set(shown.layers) == {"anomaly"}


def test_layouts_of_published_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str], backbone: Backbone) -> None:
    """Categories, shots by the published rule, and VisA's list of files; both layouts give the same numbers."""
    for category in ("nut", "cable"):
        written(tmp_path, category)
    backbone.save_pretrained(tmp_path / "backbone")
    common = ["evaluate", "anomaly", "--data", str(tmp_path), "--backbone", str(tmp_path / "backbone"), "--resize", "0"]
    assert main([*common, "--layout", "mvtec", "--shots", "2", "--seed", "1", "--output", str(tmp_path / "a")]) == 0
    assert "per_category" not in capsys.readouterr().out
    numbers = json.loads((tmp_path / "a/results.json").read_text())["numbers"]
    assert set(numbers["per_category"]) == {"cable", "nut"}
    options: dict[str, Any] = {"layout": "mvtec", "shots": 2, "seed": 1, "resize": None}
    assert dense.evaluate(backbone, tmp_path, "anomaly", **options).numbers == numbers
    one = dense.evaluate(str(tmp_path / "backbone"), tmp_path, "anomaly", category="nut", **options)
    assert one.numbers == numbers["per_category"]["nut"]
    scope = [
        "--foreground",
        "0",
        "--foreground-of",
        "nut",
        "--shots",
        "2",
        "--seed",
        "1",
        "--output",
        str(tmp_path / "c"),
    ]
    assert main([*common, "--layout", "mvtec", *scope]) == 0
    masked = json.loads((tmp_path / "c/results.json").read_text())
    assert masked["protocol"]["settings"]["foreground of"] == ["nut"]
    assert masked["numbers"]["per_category"]["cable"] == numbers["per_category"]["cable"]
    capsys.readouterr()
    for number, selects in (("1000000", "no patch"), ("-1000000", "all patches")):
        assert main([*common, "--layout", "mvtec", "--category", "nut", "--foreground", number]) == 0
        warned = [line for line in capsys.readouterr().err.splitlines() if "selects" in line]
        assert [f"selects {selects} of 6 of 6 good images" in line for line in warned] == [True, False, False]
        assert "2 of 2 test images of kind box" in warned[1]
        assert "2 of 2 test images of kind good" in warned[2]
    assert main([*common, "--layout", "mvtec", "--foreground", "0", "--foreground-of", "nuts"]) == 1
    assert "no category 'nuts' for the foreground" in capsys.readouterr().err
    (tmp_path / "nut/train/good/000.png").write_bytes(b"nothing")
    unread = dense.evaluate(backbone, tmp_path, "anomaly", layout="mvtec", shots=3, patches=100, resize=None).protocol
    assert "(5 good images)" in unread.train  # 2 shots of nut and 3 of cable
    assert [unread.settings[f"patches {name}"] for name in ("kept", "at most")] == [66 + 99, 100]
    assert unread.settings["seed"] == 0
    Image.fromarray(good(0)).save(tmp_path / "nut/train/good/000.png")
    both = open_anomaly(tmp_path, "mvtec", ["nut"])[0]
    assert [path.name for path in both.shots(2, 1).good] == ["002.png", "003.png"]
    with pytest.raises(ValueError, match="fewer shots"):
        both.shots(4, 1)
    lines = ["object,split,label,image,mask"]
    for path in sorted((tmp_path / "nut").glob("t*/*/*.png")):
        split, kind = path.parts[-3:-1]
        mask = "" if kind == "good" else f"nut/ground_truth/box/{path.stem}_mask.png"
        label = "normal" if kind == "good" else "anomaly"
        lines.append(f"nut,{split},{label},{path.relative_to(tmp_path)},{mask}")
    (tmp_path / "split_csv").mkdir()
    unmarked = [line.replace("nut/ground_truth/box/001_mask.png", "") for line in lines]
    (tmp_path / "split_csv/1cls.csv").write_text("\n".join(unmarked))
    with pytest.raises(DataError, match=r"001\.png has no mask in"):
        open_anomaly(tmp_path, "visa")
    (tmp_path / "split_csv/1cls.csv").write_text("\n".join(lines))
    visa = ["--layout", "visa", "--category", "nut", "--shots", "2", "--seed", "1", "--output", str(tmp_path / "b")]
    assert main([*common, *visa]) == 0
    other = json.loads((tmp_path / "b/results.json").read_text())["numbers"]
    assert other == numbers["per_category"]["nut"]
    assert main([*common, "--layout", "mvtec", "--category", "nuts"]) == 1
    assert "Did you mean nut" in capsys.readouterr().err


def test_sets_that_cannot_be_measured(tmp_path: Path, backbone: Backbone) -> None:
    with pytest.raises(DataError, match="no good images"):
        open_anomaly(tmp_path)
    with pytest.raises(DataError, match="no categories"):
        open_anomaly(tmp_path, "mvtec")
    with pytest.raises(DataError, match="the split of VisA"):
        open_anomaly(tmp_path, "visa")
    data = written(tmp_path / "data")
    model = build_anomaly(backbone, data / "train/good", resize=None)
    mask = data / "ground_truth/box/001_mask.png"
    kept = mask.read_bytes()
    Image.fromarray(np.zeros((64, 80), np.uint8)).save(mask)
    with pytest.raises(DataError, match="is empty"):
        measure_anomaly(model, open_anomaly(data))
    mask.unlink()
    with pytest.raises(DataError, match="has no mask"):
        open_anomaly(data)
    mask.write_bytes(kept)
    with pytest.raises(ValueError, match="choose one with --category"):
        measure_anomaly(model, open_anomaly(data) * 2)
    for path in (data / "test/box").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="2 test images, 0 of them anomalous"):
        open_anomaly(data)


def test_a_damaged_model(tmp_path: Path, backbone: Backbone) -> None:
    model = build_anomaly(backbone, [good(0)], resize=None)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["head"]["patches"] += 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="bank"):
        DenseModel.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="safetensors"):
        DenseModel.from_pretrained(tmp_path)
