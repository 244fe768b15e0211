"""What a page shows of predictions beside their ground truth, and which images are the worst."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dense.cli.explore import ground_truth, parser
from dense.data.labelled.sample import Labelled, Segments
from dense.explore.judge import judge, of_objects
from dense.predict import Instances, Predictor
from tests.data.test_segments import instances, panoptic, written
from tests.predict.models import queries


def found(*columns: int, score: float = 0.75) -> Instances:
    """An object of class 0 in each of these columns of an image of 4x4."""
    masks = np.zeros((len(columns), 4, 4), bool)
    for mask, column in zip(masks, columns, strict=True):
        mask[:, column] = True
    return Instances(masks, np.zeros(len(columns), np.int64), np.full(len(columns), score, np.float32), ("cup", "dog"))


def truth(objects: int, crowds: int = 0, valid: bool = True) -> Segments:
    """Objects in the first columns, then crowds."""
    masks = torch.eye(4).bool()[: objects + crowds, None].expand(-1, 4, -1)
    crowd = torch.arange(len(masks)) >= objects
    return Segments(masks, torch.zeros(len(masks), dtype=torch.long), crowd, torch.full((4, 4), valid))


def test_the_worst_objects_come_first() -> None:
    """Where no object is, nothing should be found; a crowd is no object, and excuses what lies in it."""
    for prediction, target, badness, caption in (
        (found(0, 1), truth(2), 0.0, "2 objects, mean IoU 1.00"),
        (found(0), truth(2), 0.5, "1 objects, mean IoU 0.50"),
        (found(0), truth(1, crowds=1), 0.0, "1 objects, mean IoU 1.00"),
        (found(), truth(0), 0.0, "0 objects, none in the ground truth"),
        (found(0, score=0.75), truth(0), 0.75, "1 objects, none in the ground truth"),
        (found(0), truth(0, crowds=1), 0.0, "1 objects, none in the ground truth"),
        (found(2), truth(0, crowds=1), 0.75, "1 objects, none in the ground truth"),
        (found(0, score=0.75), truth(0, valid=False), 0.25, "1 objects, uncertainty 0.25"),
        (found(0, score=0.75), None, 0.25, "1 objects, uncertainty 0.25"),
    ):
        shown = of_objects(prediction, np.zeros((4, 4, 3), np.uint8), target)
        assert (shown.badness, shown.caption) == (badness, caption)


def test_other_classes() -> None:
    """They are an error, also of a class that the model does not know to be of things."""
    target = truth(1)._replace(classes=torch.tensor([3]))
    sample = Labelled(np.zeros((16, 16, 3), np.uint8), None, None, "a", segments=target)
    for kind in ("instance", "panoptic"):
        with pytest.raises(ValueError, match="label 3 and the model 3 classes; give images that it is for"):
            judge(Predictor(queries(kind)), sample)  # type: ignore[arg-type]


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
