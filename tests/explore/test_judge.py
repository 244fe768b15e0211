"""What a page shows of predictions beside their ground truth, and which images are the worst."""

from __future__ import annotations

from pathlib import Path

import pytest

from dense.cli.explore import ground_truth, parser
from dense.explore.judge import judge
from dense.predict import Predictor
from tests.data.test_segments import instances, panoptic, written
from tests.predict.models import queries


def test_classes_of_a_panoptic_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are the ground truth of a model of classes; objects alone are none."""
    root = written(tmp_path / "panoptic", panoptic(tmp_path / "panoptic"), "panoptic.json")
    model = Predictor.of(queries("semantic", ("car", "sky")), resize=8)
    source = ground_truth(parser().parse_args([str(root), "--split", "all"]), model)
    shown = judge(model, source.read(0))
    assert "ground truth" in shown.layers
    assert shown.caption.startswith("mIoU")
    things = written(tmp_path / "things", instances(tmp_path / "things"))
    assert ground_truth(parser().parse_args([str(things), "--split", "all"]), model) == [str(things)]
    assert "without ground truth: the JSON file annotates objects alone" in capsys.readouterr().out
