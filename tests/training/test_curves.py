"""The metrics of a run and their curves."""

from __future__ import annotations

from pathlib import Path

import cv2

from dense.training.curves import distinct, plot_curves, read_metrics
from dense.training.logs import MetricsFile


def test_a_single_validation_is_seen(tmp_path: Path) -> None:
    """One point makes no line; it is drawn as a point, in the colour of the curves."""
    for name, values in {"one": [0.5], "none": []}.items():
        plot_curves({"val/miou": ([4.0] * len(values), values)}, ["val/miou"], tmp_path / f"{name}.png", "run")
    one, none = (cv2.imread(str(tmp_path / f"{name}.png")).astype(int) for name in ("one", "none"))
    coloured = [(image.max(2) - image.min(2) > 60).sum() for image in (one, none)]
    assert coloured[0] > 10
    assert coloured[1] == 0


def test_a_loss_of_one_part_is_drawn_once() -> None:
    """And one of several with all of them; the number of classes is no curve."""
    assert distinct(["loss", "loss/cross entropy", "lr", "val/miou", "val/classes"]) == ["loss", "lr", "val/miou"]
    both = ["loss", "loss/silog", "loss/gradient", "lr"]
    assert distinct(both) == both


def test_a_continued_run_keeps_what_was_measured_at_its_checkpoint(tmp_path: Path) -> None:
    """Rows of the steps that are made again go; validation and k-NN, which are not measured again, stay."""
    file = MetricsFile(tmp_path)
    for step, metrics in ((1, {"loss": 3.0}), (2, {"loss": 2.0}), (2, {"knn": 0.5}), (2, {"val/miou": 0.25})):
        file.log_metrics(metrics, step)
    MetricsFile(tmp_path).start(2)
    assert read_metrics(file.path) == {"loss": ([1.0], [3.0]), "knn": ([2.0], [0.5]), "val/miou": ([2.0], [0.25])}
