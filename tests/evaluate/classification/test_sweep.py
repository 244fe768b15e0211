"""k-NN and linear over layers, norms and readouts: by hand, from a cache, and chosen on held-out images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import dense
from dense.backbone import Backbone
from dense.cli import main
from dense.evaluate import extract, knn_accuracy
from dense.evaluate.classification.data import Pair
from dense.evaluate.classification.extraction import held_out
from dense.evaluate.classification.features import Choice, choices_of
from dense.evaluate.classification.measure import measure_knn, measure_linear
from dense.evaluate.protocol import Result
from tests.evaluate.images import folder

EVERY = {"layers": "all", "norm": "all", "readout": "all"}


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """Colours, of which one training image is damaged."""
    train, val = folder(tmp_path / "train", 8), folder(tmp_path / "val", 4, seed=1)
    (train / "red" / "0.png").write_bytes(b"")
    return Pair.open(str(train), str(val), resize=36, crop=32)


def knn(backbone: Backbone, pair: Pair, **options: object) -> Result:
    return measure_knn(backbone, pair, k=(3, 5), workers=0, **options)  # type: ignore[arg-type]


def test_knn_of_every_choice(pair: Pair, vit: Backbone) -> None:
    """Each score is that of the choice by itself; the best on held-out images leads, and the table holds all."""
    found = knn(vit, pair, **EVERY)
    scores = found.numbers["scores"]
    choices = choices_of(vit, **EVERY)  # type: ignore[arg-type]
    assert len(scores) == 4 * len(choices)
    alone = knn(vit, pair, layers=2, norm=False, readout="class_average").numbers
    choice = Choice("class_average", 2, False)
    assert {k: scores[f"{choice}, {k}"] for k in alone} == alone
    pooled = [extract(vit, e.batches(pair.view, 8), blocks=4) for e in (pair.train, pair.val)]
    (bank, labels), (queries, targets) = ((p.readout("last4"), p.labels) for p in pooled)
    assert labels is not None
    assert targets is not None
    wanted = knn_accuracy(bank, labels, queries, targets, (3,))[3]
    assert scores[f"{Choice('last4', 5, True)}, top1 k=3"] == wanted
    best = Choice(*(found.numbers[name] for name in ("readout", "layer", "norm")))
    assert found.numbers["top1"] == scores[f"{best}, top1 k={found.numbers['k']}"]
    assert found.table.splitlines()[-1] == (
        f"best: {best}, k = {found.numbers['k']}, chosen on 10% of train, held out (seed 0)"
    )
    on_val = knn(vit, pair, holdout=0, **EVERY)
    assert "which are optimistic" in on_val.table
    assert on_val.numbers["top1"] == max(v for k, v in scores.items() if "top1" in k)


def test_baselines_use_each_readout(pair: Pair, vit: Backbone) -> None:
    """Random initialisation by every readout, though one is measured, and raw pixels; no random state moves."""
    state = torch.get_rng_state()
    found = knn(vit, pair, baselines=True)
    assert torch.equal(torch.get_rng_state(), state)
    random = {k for k in found.numbers["scores"] if k.startswith("random/") and k.endswith("top1 k=3")}
    assert len(random) == 5
    assert found.numbers["scores"]["pixels/average, layer 0, before the final norm, top1 k=3"] > 0.6
    assert found.numbers["top1 k=3"] == knn(vit, pair).numbers["top1 k=3"]
    assert "raw pixels" in found.table
    linear = measure_linear(vit, pair, steps=20, batch_size=8, baselines=True, workers=0)
    assert len(linear.numbers["scores"]) == 4 + 5 + 1
    assert len(linear.numbers["heads"]) == 52


def test_cache(pair: Pair, vit: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second call reads it, of other layers too; another view, network or image does not; damage is mended."""
    cache = tmp_path / "cache"
    first = knn(vit, pair, cache=cache)
    assert first.numbers == knn(vit, pair).numbers
    assert len(list(cache.iterdir())) == 2
    calls = []
    forward = type(vit).forward
    monkeypatch.setattr(type(vit), "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    again = Pair.open(pair.train.source, pair.val.source, resize=36, crop=32)
    assert knn(vit, again, cache=cache, layers=[0, 3], norm=False, readout="average").numbers["scores"]
    measure_linear(vit, again, cache=cache, augment=False, steps=2, batch_size=8, workers=0)
    assert not calls
    assert len(again.skipped) == 1
    (Path(pair.val.source) / "red" / "0.png").write_bytes((Path(pair.val.source) / "blue" / "1.png").read_bytes())
    assert knn(vit, again, cache=cache).numbers != first.numbers
    assert len(calls) == 1
    knn(vit, Pair.open(pair.train.source, pair.val.source, resize=40, crop=32), cache=cache)
    assert len(calls) == 3
    for path in cache.glob("*.features"):
        path.write_bytes(path.read_bytes()[:100])
    assert knn(vit, again, cache=cache).numbers != first.numbers
    assert len(calls) == 5
    with pytest.raises(ValueError, match="random crops cannot be cached"):
        measure_linear(vit, pair, cache=cache)


@pytest.mark.parametrize("augment", [True, False])
def test_linear_of_every_choice(pair: Pair, vit: Backbone, augment: bool) -> None:
    """Heads of all choices; the best is chosen on training images that no head has seen."""
    options = {"steps": 40, "batch_size": 6, "workers": 0, "augment": augment}
    found = measure_linear(vit, pair, layers=[0, 5], norm="all", readout=["class", "average"], **options)  # type: ignore[arg-type]
    numbers = found.numbers
    assert len(numbers["heads"]) == 8 * 13
    best = Choice(*(numbers[name] for name in ("readout", "layer", "norm")))
    assert (
        numbers["heads"][f"{best} lr={numbers['learning rate']:g}"] == numbers["top1"] == numbers["scores"][str(best)]
    )
    assert 0 <= numbers["held_out_top1"] <= 1
    assert found.protocol.settings["choice"].startswith("chosen on 10% of train")
    default = measure_linear(vit, pair, **options)  # type: ignore[arg-type]
    assert default.protocol.settings["choice"] == "best head on val"
    assert default.numbers["top1"] == max(default.numbers["heads"].values())
    assert not default.table


def test_held_out_images() -> None:
    """The fraction of every class, at least one and never all; a pure function of the seed."""
    labels = torch.arange(40) % 4
    mask = held_out(labels, 0.2, 0)
    assert torch.bincount(labels[mask]).tolist() == [2] * 4
    assert torch.equal(mask, held_out(labels, 0.2, 0))
    assert not torch.equal(mask, held_out(labels, 0.2, 1))
    assert int(held_out(torch.tensor([0, 0, 1, -1]), 0.9, 0).sum()) == 1
    with pytest.raises(ValueError, match="one image per class"):
        held_out(torch.arange(3), 0.1, 0)
    with pytest.raises(ValueError, match=r"holdout=1\.5"):
        held_out(labels, 1.5, 0)


def test_python_and_verb(pair: Pair, vit: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """dense.evaluate takes a backbone or its directory; the verb prints the same, and refuses --set layers."""
    sources = {"train": pair.train.source, "resize": 36, "crop": 32, "workers": 0}
    found = dense.evaluate(vit, pair.val.source, "knn", k=(3,), layers=["last", 0], **sources)
    vit.save_pretrained(tmp_path / "saved")
    assert (
        dense.evaluate(tmp_path / "saved", pair.val.source, "knn", k=(3,), layers=[0, 5], **sources).numbers
        == found.numbers
    )
    with pytest.raises(ValueError, match="needs train="):
        dense.evaluate(vit, pair.val.source, "linear")
    command = ["evaluate", "knn", "--backbone", str(tmp_path / "saved"), "--train", pair.train.source, "--val"]
    command += [pair.val.source, "--resize", "36", "--crop", "32", "--workers", "0", "--k", "3"]
    assert main([*command, "--layers", "0,last".replace("last", "5"), "--cache", str(tmp_path / "cache")]) == 0
    assert found.table in capsys.readouterr().out
    refused = {
        "--set layers=7: knn would ignore it; write --layers 7": [*command, "--set", "layers=7"],
        "--set norm=false: knn would ignore it; write --norm false": [*command, "--set", "norm=false"],
        "add --no-augment": ["evaluate", "linear", *command[2:-2], "--cache", str(tmp_path)],
        "--set layers=1,2: finetune would ignore it; leave it out": [
            "evaluate", "finetune", *command[2:-2], "--set", "layers=[1,2]",
        ],
    }  # fmt: skip
    for message, wrong in refused.items():
        assert main(wrong) == 2
        assert message in capsys.readouterr().err
