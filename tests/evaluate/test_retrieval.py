"""`dense evaluate retrieval`: every layout in miniature, and what is wrong with a folder said in one line."""

from __future__ import annotations

import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dense
from dense.backbone import Backbone
from dense.cli import main
from dense.data.retrieval import open_retrieval, read_plain_pickle
from dense.evaluate import retrieval
from dense.evaluate.retrieval import Descriptor, Fit, Whitening, measure_retrieval, scores
from tests.cli.test_evaluate import BACKBONE
from tests.evaluate.images import folder
from tests.evaluate.retrieval_files import copies, ground_truth, image, landmarks, paris

SMALL = {"view": "square", "size": 32, "readout": "average"}


# ---- layouts


def test_a_folder_of_classes(tmp_path: Path, vit: Backbone) -> None:
    """Each image finds the others of its class; the numbers are those of a loop over features."""
    data = folder(tmp_path / "data", 4)
    found = dense.evaluate(vit, data, "retrieval", **SMALL)
    opened = open_retrieval(data)
    vectors, _ = Descriptor(vit, "average", Fit("square", 32), (1.0,), 5, 0)(opened.database, "database")
    labels = [Path(item.path).parent.name for item in opened.database]
    means, firsts = [], []
    for i in range(12):
        order = sorted((j for j in range(12) if j != i), key=lambda j: -float(vectors[i] @ vectors[j]))
        right = [labels[j] == labels[i] for j in order]
        means.append(np.mean([(sum(right[: p + 1])) / (p + 1) for p, hit in enumerate(right) if hit]))
        firsts.append(sum(right[:5]) / 5)
    assert found.numbers["map"] == pytest.approx(np.mean(means), abs=1e-6)
    assert found.numbers["precision@5"] == pytest.approx(np.mean(firsts), abs=1e-6)
    assert found.numbers["queries"] == 12
    assert (found.protocol.classes, found.protocol.features, found.protocol.resolution) == (3, "average", 32)


def test_queries_and_a_gallery(tmp_path: Path, vit: Backbone, capsys: pytest.CaptureFixture[str]) -> None:
    """A class that the gallery lacks gives a query without positives, which is left out and said."""
    folder(tmp_path / "gallery", 3)
    folder(tmp_path / "query", 1, seed=1)
    image(tmp_path / "query/violet/0.png", "red", 5)
    found = measure_retrieval(vit, tmp_path, **SMALL)
    assert found.numbers["queries"] == 3
    assert found.protocol.settings["queries without positives"] == 1
    assert "1 of 4 queries have no positive image and are left out" in capsys.readouterr().out
    assert "9 images, 4 queries" in found.protocol.val


@pytest.mark.parametrize("make", [landmarks, paris])
def test_landmarks(make: Any, tmp_path: Path, vit: Backbone) -> None:
    """Query 2 has no easy image; at each level junk leaves the ranking."""
    layout = "rparis6k" if make is paris else "roxford5k"
    found = measure_retrieval(vit, make(tmp_path), layout=layout, size=48, readout="average")
    assert {level: part["queries"] for level, part in found.numbers.items()} == {"easy": 2, "medium": 3, "hard": 3}
    assert found.protocol.settings["queries without positives"] == {"easy": 1, "medium": 0, "hard": 0}
    assert found.protocol.settings["average precision"] == "trapezoids"
    assert "medium  map " in str(found)


def test_the_rules_of_the_levels(tmp_path: Path) -> None:
    """With features in the order of the list: image i is the more similar the lower i is."""
    opened = open_retrieval(landmarks(tmp_path), "roxford5k")
    assert opened.queries[0].box == (4.0, 4.0, 60.5, 40.0)
    assert opened.queries[0].read().shape == (36, 56, 3)
    assert open_retrieval(tmp_path, "roxford5k", query_crop=False).queries[0].read().shape == (48, 64, 3)
    angles = torch.linspace(0, 1, 9)
    database = torch.stack([angles.cos(), angles.sin()], 1)
    queries = torch.tensor([[1.0, 0.0]]).expand(3, 2)
    numbers, _ = scores(opened, queries, database)

    def area(*places: int) -> float:
        pairs = ((1.0 if p == 0 else n / p, (n + 1) / (p + 1)) for n, p in enumerate(places))
        return float(np.mean([sum(pair) / 2 for pair in pairs]))

    # query i: easy i, hard i + 3, junk i + 6; query 2 has nothing easy, so that 2 is wrong there
    assert numbers["easy"]["map"] == pytest.approx((area(0) + area(1)) / 2)
    assert numbers["medium"]["map"] == pytest.approx((area(0, 3) + area(1, 4) + area(5)) / 3)
    assert numbers["hard"]["map"] == pytest.approx((area(2) + area(3) + area(5)) / 3)


def test_copies(tmp_path: Path, vit: Backbone, capsys: pytest.CaptureFixture[str]) -> None:
    """A copy belongs to the original of its number; distractors and whitening are other images."""
    copies(tmp_path)
    found = measure_retrieval(
        vit, tmp_path, layout="copydays", size=32, readout="class_gem",
        whiten=tmp_path / "whiten", distractors=tmp_path / "distractors",
    )  # fmt: skip
    assert found.protocol.val.endswith("5 images, 6 queries")
    assert found.protocol.settings["whitening"].endswith("of 64 components")
    assert "images to whiten vectors of 64 numbers leave" in capsys.readouterr().err
    assert set(found.numbers) == {"map", "precision@1", "precision@5", "precision@10", "queries"}
    opened = open_retrieval(tmp_path, "copydays")
    assert [int(opened.truth("", q)[0][0]) for q in range(6)] == [0, 0, 1, 1, 2, 2]


# ---- features


def test_features(tmp_path: Path, vit: Backbone) -> None:
    """Readouts by hand; several scales are averaged before they are unit vectors; image shapes may differ."""
    data = folder(tmp_path, 2)
    items = open_retrieval(data).database
    maps = {}
    for name in retrieval.READOUTS:
        fit = Fit("longer", 48)
        maps[name], failed = Descriptor(vit, name, fit, (1.0,), 4, 0)(items, "database")
        assert not failed
        assert torch.allclose(maps[name].norm(dim=1), torch.ones(6))
    pixels = torch.from_numpy(Fit("longer", 48)(items[3].read()).copy()).permute(2, 0, 1)[None]
    with torch.no_grad():
        found = vit(vit.normalise(pixels), layers=(5,), norm=True)
    patches = found.maps[-1].flatten(2).clamp(min=1e-6)
    both = torch.cat([found.class_token, (patches**4).mean(2) ** 0.25], 1)[0]
    assert torch.allclose(maps["class_gem"][3], both / both.norm(), atol=1e-5)
    assert torch.allclose(maps["class"][3], found.class_token[0] / found.class_token.norm(), atol=1e-5)
    several = Descriptor(vit, "class", Fit("square", 32), retrieval.SCALES, 4, 0)
    assert several.describe(pixels.expand(2, -1, -1, -1)).shape == (2, 32)


def test_views() -> None:
    wide = np.zeros((40, 80, 3), np.uint8)
    assert Fit("longer", 60)(wide).shape == (30, 60, 3)
    assert Fit("longer", 200)(wide).shape == (40, 80, 3)
    assert Fit("square", 56)(wide).shape == (56, 56, 3)
    assert Fit("crop", 56)(wide).shape == (56, 56, 3)
    assert Fit("longer", 16)(np.zeros((1, 800, 3), np.uint8)).shape == (2, 16, 3)


def test_whitening() -> None:
    """Variance 1 in every component before the vectors are scaled to length 1; rank-deficient features stay finite."""
    rng = torch.Generator().manual_seed(0)
    mixed = torch.randn(200, 6, generator=rng) @ torch.randn(6, 6, generator=rng) + 3
    white = Whitening(mixed)
    plain = (mixed.double() - white.mean) @ white.matrix
    assert torch.allclose(plain.T @ plain / 200, torch.eye(6, dtype=torch.float64), atol=1e-8)
    assert torch.allclose(white(mixed).norm(dim=1), torch.ones(200))
    assert Whitening(mixed[:4]).matrix.shape == (6, 3)
    with pytest.raises(ValueError, match="have one feature"):
        Whitening(mixed[:1].expand(5, -1))


def test_chunks_change_nothing(tmp_path: Path, vit: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    data = folder(tmp_path, 4)
    whole = measure_retrieval(vit, data, **SMALL).numbers
    monkeypatch.setattr(retrieval, "PAIRS", 30)
    assert measure_retrieval(vit, data, batch_size=5, **SMALL).numbers == pytest.approx(whole)


def test_identical_and_constant_features_give_numbers(tmp_path: Path, vit: Backbone) -> None:
    """Ties go to the order of the database, and a feature of zeros is as far from everything."""
    opened = open_retrieval(folder(tmp_path, 2))
    for vectors in (torch.zeros(6, 4), torch.ones(6, 4) / 2):
        numbers, _ = scores(opened, vectors, vectors)
        assert 0 < numbers[""]["map"] < 1


# ---- the ground truth


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_plain_pickles_are_read(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "gnd.pkl"
    more = {"scalar": np.float64(2.5), "pair": (1, 2.0), "big": np.arange(3, dtype=">i4"), "grid": np.eye(2)}
    path.write_bytes(pickle.dumps(ground_truth() | more, protocol=protocol))
    found = read_plain_pickle(path)
    assert found["imlist"] == [f"image_{i}" for i in range(9)]
    assert found["gnd"][1]["hard"] == [4]
    assert found["gnd"][2]["easy"] == []
    assert (found["scalar"], found["pair"], found["big"], found["grid"]) == (2.5, (1, 2.0), [0, 1, 2], [1, 0, 0, 1])


def test_pickles_of_python_2_are_read(tmp_path: Path) -> None:
    """Text in place of bytes, as Python 2 wrote it, by hand."""
    data = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02i8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x10\x07\x00\x00\x00\x00\x00\x00\x00\xff\x00\x00\x00\x00\x00\x00\x00tb."
    )
    (tmp_path / "old.pkl").write_bytes(data)
    assert read_plain_pickle(tmp_path / "old.pkl") == [7, 255]


class _Evil:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


def test_what_else_a_pickle_names_is_refused(tmp_path: Path) -> None:
    """Nothing of it runs."""
    path = tmp_path / "gnd_roxford5k.pkl"
    landmarks(tmp_path)
    for bad in (_Evil(tmp_path / "made"), OrderedDict(a=1), np.array([{}], object), np.array(["a"]), len):
        path.write_bytes(pickle.dumps(ground_truth() | {"more": bad}, protocol=2))
        with pytest.raises(ValueError, match=r"is not read: (it names|arrays of type)"):
            open_retrieval(tmp_path, "roxford5k")
    assert not (tmp_path / "made").exists()
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match="is not read"):
        open_retrieval(tmp_path, "roxford5k")


# ---- mistakes


def written(root: Path, **changes: Any) -> Path:
    landmarks(root)
    (root / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(ground_truth() | changes))
    return root


def test_a_wrong_ground_truth(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no ground truth .*gnd_rparis6k.pkl.*holds gnd_roxford5k"):
        open_retrieval(landmarks(tmp_path), "rparis6k")
    absent = [*ground_truth()["imlist"][:8], "../other"]
    with pytest.raises(FileNotFoundError, match=r"jpg lacks 1 of the 12 images that .* such as ../other.jpg"):
        open_retrieval(written(tmp_path, imlist=absent), "roxford5k")
    entry = ground_truth()["gnd"][0]
    for gnd in (None, [entry], [entry | {"hard": [9]}] * 3, [entry | {"bbx": [1]}] * 3, [{"bbx": [1] * 4}] * 3):
        with pytest.raises(ValueError, match="is no ground truth of the revisited"):
            open_retrieval(written(tmp_path, gnd=gnd), "roxford5k")
    (tmp_path / "gnd_roxford5k.pkl").write_bytes(pickle.dumps([1]))
    with pytest.raises(ValueError, match="is no ground truth"):
        open_retrieval(tmp_path, "roxford5k")


def test_wrong_folders(tmp_path: Path, vit: Backbone) -> None:
    one = folder(tmp_path / "one", 3, classes=("red",))
    with pytest.raises(ValueError, match="single class, red; expected two or more"):
        open_retrieval(one)
    with pytest.raises(ValueError, match="have no classes"):
        open_retrieval(one / "red")
    with pytest.raises(FileNotFoundError, match="query/ alone"):
        folder(tmp_path / "half/query", 1)
        open_retrieval(tmp_path / "half")
    with pytest.raises(FileNotFoundError, match=r"lacks original/; expected original/ and strong/"):
        open_retrieval(one, "copydays")
    with pytest.raises(FileNotFoundError, match="no such folder of images"):
        open_retrieval(tmp_path / "none")
    single = folder(tmp_path / "single", 1)
    with pytest.raises(ValueError, match=r"no query of .*single has a positive image"):
        measure_retrieval(vit, single, **SMALL)
    with pytest.raises(ValueError, match=r"are also measured, .* an image to whiten with must be another image"):
        measure_retrieval(vit, single, whiten=single / "red", **SMALL)
    with pytest.raises(ValueError, match="a distractor must be another image"):
        measure_retrieval(vit, single, distractors=single, **SMALL)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 3}, "size 3: expected 8 or more"),
        ({"batch_size": 0}, "batch_size 0: expected 1 or more"),
        ({"workers": -1}, "workers -1: expected 0 or more"),
        ({"readout": "gemm"}, "Did you mean gem"),
        ({"view": "round"}, "none of crop, longer, square"),
        ({"layout": "roxford"}, "Did you mean roxford5k"),
        ({"whiten": "no/such"}, "no such image or folder"),
    ],
)
def test_absurd_options(options: dict[str, Any], words: str, tmp_path: Path, vit: Backbone) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        measure_retrieval(vit, folder(tmp_path, 2), **SMALL | options)


def test_without_a_class_token(tmp_path: Path, resnet: Backbone) -> None:
    data = folder(tmp_path, 2)
    found = measure_retrieval(resnet, data, view="square", size=32)
    assert found.protocol.features == "average"
    with pytest.raises(ValueError, match=r"readout 'class_gem' needs a class token.*use 'gem'"):
        measure_retrieval(resnet, data, size=32, readout="class_gem")


def test_weights_that_are_not_finite(tmp_path: Path, vit: Backbone) -> None:
    for weight in vit.parameters():
        weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="features of the database are not finite"):
        measure_retrieval(vit, folder(tmp_path, 2), **SMALL)


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged image leaves database and queries; the result is printed and saved."""
    data = folder(tmp_path / "data", 3)
    (data / "red/1.png").write_bytes(b"")
    place = ["--data", str(data), "--size", "32", "--workers", "0", "--output", str(tmp_path / "out")]
    assert main(["evaluate", "retrieval", *BACKBONE, *place]) == 0
    told, found = capsys.readouterr().out, json.loads((tmp_path / "out/results.json").read_text())
    assert "retrieval of vit_tiny_patch16_224" in told
    assert "could not be read: 1 of the images" in told
    assert found["numbers"]["queries"] == 8
    assert f"map: {found['numbers']['map']:.4f}" in told
    assert main(["evaluate", "retrieval", *BACKBONE, *place, "--layout", "roxford5k"]) == 1
    assert "no ground truth" in capsys.readouterr().err
