"""Curves of a run as images."""

from __future__ import annotations

from pathlib import Path

import cv2

from dense.training.curves import distinct, plot_curves


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
