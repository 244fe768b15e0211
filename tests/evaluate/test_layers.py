"""Probes of every layer: against scikit-learn, on targets that can be seen, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsRegressor

import dense
from dense.backbone import Backbone
from dense.cli import main
from dense.data.labelled import open_labelled
from dense.evaluate.classification.knn import knn_regress
from dense.evaluate.layers import Drawing, Patches, Targets, cells, read_pixels, reader


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve images whose left part is red, class 0 at 1 m, and whose right part is blue, class 1 at 3 m."""
    root, rng = tmp_path / "data", np.random.default_rng(0)
    (root / "classes.yaml").parent.mkdir()
    (root / "classes.yaml").write_text("0: red\n1: blue\n")
    (root / "depth.yaml").write_text("kind: metric\nscale: 1000\ninvalid: [0]\n")
    for number in range(12):
        folder = root / ("train" if number < 8 else "val")
        edge = int(rng.integers(10, 50))
        image = np.clip(rng.normal(0, 25, (40, 60, 3)), 0, 255).astype(np.uint8)
        image[:, :edge, 0] += 180
        image[:, edge:, 2] += 180
        mask, depth = np.zeros((40, 60), np.uint8), np.full((40, 60), 1000, np.uint16)
        mask[:, edge:], depth[:, edge:] = 1, 3000
        mask[0], depth[0] = 255, 0
        for kind, array in (("images", image), ("masks", mask), ("depth", depth)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / kind / f"{number}.png")
    return root


def test_every_layer_norm_and_size(data: Path, vit: Backbone) -> None:
    """Colours are told apart, beside a constant and baselines; the best row is the best, and repeats by itself."""
    options = {"size": (32, 64), "patches": 400, "baselines": True}
    found = dense.evaluate(vit, data, "probe", layers=[0, "last4"], **options)
    numbers, scores = found.numbers, found.numbers["scores"]
    assert len(scores) == 2 * 4 * (4 + 4 + 1)  # sizes, measures, and rows of both networks and of pixels
    assert numbers["linear miou"] > 0.75 > 0.5 > numbers["constant/32 px miou"]
    assert numbers["linear abs_rel"] < 0.25 < numbers["constant/32 px abs_rel"]
    own = {k: v for k, v in scores.items() if k.startswith("layer") and k.endswith("knn abs_rel")}
    assert len(own) == 8
    assert numbers["knn abs_rel"] == min(own.values()) == own[f"{numbers['knn abs_rel at']}: knn abs_rel"]
    assert "layers 2+3+4+5 before the final norm at 64 px" in found.table
    assert found.table.splitlines()[-1].startswith("best knn abs_rel: ")
    again = dense.evaluate(vit, data, "probe", layers=[0], norm=False, size=64, patches=400).numbers
    name = "layer 0 before the final norm at 64 px: linear miou"
    assert again["scores"][name] == pytest.approx(scores[name], abs=1e-6)
    assert again["linear miou"] == again["scores"][name]


def test_patches_are_those_of_the_image(data: Path, vit: Backbone) -> None:
    """Features and targets belong together; both norms come from one pass; unknown patches are not drawn."""
    source = open_labelled(str(data), "val")
    drawing = Drawing.of(source, 2, 10**6, 0)
    passes = []
    vit.register_forward_hook(lambda *_: passes.append(1))
    found = drawing.read(reader(vit, (0, 5), [True, False]), 8, 40, "")
    assert len(passes) == 2
    assert found.labels is not None
    assert len(found.labels) == 2 * 5 * 8  # 60 px become eight patches
    sample = torch.from_numpy(source.read(int(drawing.images[0])).image).permute(2, 0, 1)
    resized = torch.nn.functional.interpolate(sample[None].float(), (40, 64), mode="bilinear").round().byte()
    with torch.no_grad():
        for normed in (True, False):
            wanted = vit.eval()(vit.normalise(resized), layers=(5,), norm=normed).maps[0][0].flatten(1).T
            torch.testing.assert_close(found.of(((5,), normed))[:40], wanted, rtol=0.1, atol=0.1)
    assert found.of(((0, 5), True)).shape == (80, 64)
    assert cells(torch.arange(24).view(4, 6), 2)[4].tolist() == [14, 15, 20, 21]
    pixels = read_pixels(2)(torch.arange(72, dtype=torch.uint8).view(3, 4, 6))[((0,), False)]
    assert (pixels[4] * 255).round().int().tolist() == [14, 15, 20, 21, 38, 39, 44, 45, 62, 63, 68, 69]


def test_perfect_and_constant_predictions() -> None:
    """One-hot features score 1 up to mixed patches; the constant is counted by hand; knn_regress is scikit-learn's."""
    labels = torch.tensor([[0, 0], [1, 1], [2, 2], [0, 255]]).repeat(20, 1)
    depth = torch.tensor([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0], [1.0, torch.nan]]).repeat(20, 1).repeat_interleave(2, 1)
    features = torch.nn.functional.one_hot(labels[:, 0], 3).float()
    patches = Patches({((0,), True): features}, labels.repeat_interleave(2, 1), depth)
    targets = Targets(patches, patches, 3)
    scores = targets.scores(((0,), True))
    assert scores["linear miou"] == scores["knn miou"] == 1
    assert max(scores["linear abs_rel"], scores["knn abs_rel"]) < 0.01
    assert targets.constant()["miou"] == pytest.approx(3 / 7 / 3)
    assert targets.constant()["abs_rel"] == pytest.approx((0 * 6 + 0.5 * 4 + 0.75 * 4) / 14)
    rng = torch.Generator().manual_seed(0)
    bank, queries = (torch.nn.functional.normalize(torch.randn(n, 6, generator=rng), dim=1) for n in (90, 31))
    values = torch.randn(90, generator=rng)
    theirs = KNeighborsRegressor(7, weights=lambda d: np.exp((1 - d**2 / 2) / 0.07), algorithm="brute")
    theirs.fit(bank.numpy(), values.numpy())
    np.testing.assert_allclose(
        knn_regress(bank, values, queries, 7).numpy(), theirs.predict(queries.numpy()), atol=1e-3
    )


def test_verb(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The verb ends in the table and its best rows; options that would be ignored are refused."""
    command = ["evaluate", "probe", "--backbone", "vit_tiny_patch16_224"]
    for option in ("patch_size=8", "img_size=32", "embed_dim=32", "depth=2", "num_heads=4"):
        command += ["--set", option]
    given = ["--data", str(data), "--size", "32", "--patches", "100", "--train-images", "3", "--norm", "true"]
    assert main([*command, *given]) == 0
    text = capsys.readouterr().out
    assert "layer 1 after the final norm at 32 px" in text
    assert "a constant at 32 px" in text
    assert text.index("classes") < text.index("best linear miou: ")
    for wrong, message in (
        (["--layers", "0", "1"], "need --data FOLDER"),
        (["--norm", "all"], "add --data FOLDER"),
        (["--data", str(data), "--set", "layers=[0,1]"], "write --layers 0,1"),
    ):
        assert main([*command, *wrong]) == 2
        assert message in capsys.readouterr().err
