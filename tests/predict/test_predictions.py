"""Typed predictions: units, alignment, and files that hold what was predicted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dense.predict import Depth, Joint, Segmentation


def depth(kind: str = "metric") -> Depth:
    return Depth.of(np.linspace(1, 4, 24, dtype=np.float32).reshape(4, 6), kind)  # type: ignore[arg-type]


def segmentation() -> Segmentation:
    labels = (np.arange(24, dtype=np.uint8) % 3).reshape(4, 6)
    return Segmentation(labels, np.full((4, 6), 0.5, np.float32), ("sky", "ground", "tree"))


def test_kinds_have_units() -> None:
    assert [depth(k).unit for k in ("metric", "log")] == ["m", "log m"]
    assert "unknown scale" in depth("inverse_relative").unit


def test_to_metric() -> None:
    assert depth().to_metric() is not None
    np.testing.assert_allclose(depth("log").to_metric().values, np.exp(depth().values), rtol=1e-6)
    relative = depth("inverse_relative")
    ground_truth = 1 / (0.5 * relative.values + 0.1)
    ground_truth[0] = np.nan
    metric = relative.to_metric(ground_truth)
    np.testing.assert_allclose(metric.values, 1 / (0.5 * relative.values + 0.1), rtol=1e-4)
    assert metric.unit == "m"
    assert relative.align_lsq(ground_truth) == pytest.approx((0.5, 0.1), rel=1e-4)
    assert relative.to_metric(ground_truth, farthest=0.5).values.max() == pytest.approx(0.5)
    with pytest.raises(ValueError, match="reference"):
        relative.to_metric()
    with pytest.raises(ValueError, match=r"\(3, 6\)"):
        relative.align_lsq(ground_truth[:3])
    with pytest.raises(ValueError, match="at least 2"):
        relative.align_lsq(np.full_like(ground_truth, np.nan))


def test_depth_files_hold_the_depth(tmp_path: Path) -> None:
    prediction = depth()
    paths = prediction.save(tmp_path / "deep/a")
    assert [p.name for p in paths] == ["a_depth.npy", "a_depth.png", "a_depth.json"]
    np.testing.assert_array_equal(np.load(paths[0]), prediction.values)
    assert cv2.imread(str(paths[1])).shape == (4, 6, 3)
    assert json.loads(paths[2].read_text()) == {"kind": "metric", "unit": "m"}


def test_segmentation_files_hold_the_classes(tmp_path: Path) -> None:
    prediction = segmentation()
    paths = prediction.save(tmp_path / "a.b", np.zeros((4, 6, 3), np.uint8))
    assert [p.name for p in paths] == ["a.b_labels.png", "a.b_scores.png", "a.b_overlay.png"]
    with Image.open(paths[0]) as index:
        assert index.mode == "P"
        np.testing.assert_array_equal(np.asarray(index), prediction.labels)
    assert (cv2.imread(str(paths[1]), cv2.IMREAD_UNCHANGED) == 128).all()
    assert len(prediction.save(tmp_path / "c")) == 2


def test_a_background_is_not_painted() -> None:
    """A first class of that name leaves the image as it is; any other is painted."""
    image, prediction = np.full((4, 6, 3), 90, np.uint8), segmentation()
    for name, bare in (("background", True), ("road", False)):
        named = dataclasses.replace(prediction, classes=(name, *prediction.classes[1:]))
        unchanged = (named.overlay(image) == image).all(-1)
        np.testing.assert_array_equal(unchanged, (prediction.labels == 0) & bare)


def test_masks_and_shares() -> None:
    prediction = segmentation()
    assert prediction.mask("ground").sum() == 8
    assert sum(prediction.shares().values()) == pytest.approx(1)
    with pytest.raises(ValueError, match="sky, ground, tree"):
        prediction.mask("sea")


def test_joint_saves_both(tmp_path: Path) -> None:
    paths = Joint(depth(), segmentation()).save(tmp_path / "a", np.zeros((4, 6, 3), np.uint8))
    assert len(paths) == 6
    assert all(path.stat().st_size for path in paths)
