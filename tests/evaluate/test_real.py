"""Real images where they are at hand, and the benchmark of CIFAR-10 in miniature."""

from __future__ import annotations

import importlib.util
import os
from argparse import Namespace
from pathlib import Path

import pytest

import dense
from dense.backbone import Backbone
from tests.evaluate.images import folder

REAL = Path(os.environ.get("DENSE_REAL", "/nowhere"))
SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "real" / "cifar10.py"


def test_cifar10_in_miniature(tmp_path: Path, vit: Backbone) -> None:
    """Every row of the table from drawn lists, which share no image, and one pass per size and network."""
    spec = importlib.util.spec_from_file_location("cifar10", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    lists = script.draw(folder(tmp_path / "images", 12), tmp_path / "out", 24, 9, 0)
    train, val = (set(Path(name).read_text().splitlines()) for name in lists)
    assert (len(train), len(val), len(train & val)) == (24, 9, 0)
    options = Namespace(output=tmp_path / "out", seed=0, workers=0, train=24, val=9, steps=5)
    rows = [row for more in (False, True) for row in script.rows_of(vit.freeze(), lists, 32, options, more)]
    assert [row["what"].split(",")[0] for row in rows] == ["k-NN", "k-NN", "linear", "linear", "k-NN", "k-NN"]
    assert all(0 <= row["top1"] <= 1 for row in rows)
    assert len(script.markdown(rows, options).splitlines()) == 4 + len(rows)
    with pytest.raises(ValueError, match="13 are wanted"):
        script.draw(tmp_path / "images", tmp_path / "out", 30, 9, 0)


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "camvid").is_dir(), reason="needs DENSE_REAL with camvid/ and dinov2_vits14.pth")
def test_deep_layers_of_dinov2_lead_on_camvid() -> None:
    """Far above the constant, and above the first layers, on twenty images."""
    numbers = dense.evaluate(
        "dinov2_vits14", REAL / "camvid", "probe", weights=REAL / "dinov2_vits14.pth", layers=[1, 8, 11], norm=True,
        size=224, train=20, val=10, patches=2000,
    ).numbers  # fmt: skip
    scores = numbers["scores"]
    shallow = scores["layer 1 after the final norm at 224 px: linear miou"]
    assert numbers["linear miou"] > max(0.35, shallow + 0.05)
    assert numbers["constant/224 px miou"] < 0.1
