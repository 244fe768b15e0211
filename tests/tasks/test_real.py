"""Both recipes for small data on real images and weights, where $DENSE_REAL holds them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dense
from dense.predict import Depth, Predictor
from tests.runs import alone

REAL = Path(os.environ.get("DENSE_REAL", "/nowhere"))
WEIGHTS = REAL / "dinov2_vits14.pth"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not WEIGHTS.is_file(), reason="DENSE_REAL names no folder with dinov2_vits14.pth"),
]
SHORT: dict[str, Any] = {"data.workers": 0, "trainer.accelerator": "cpu", "patience": 0}


def subset(source: Path, target: Path, train: int, val: int) -> Path:
    """Link every n-th image and its targets of a folder with train/ and val/."""
    for split, count in (("train", train), ("val", val)):
        images = sorted((source / split / "images").iterdir())
        stems = {image.stem for image in images[:: max(1, len(images) // count)]}
        for file in (source / split).rglob("*"):
            if file.is_file() and file.stem in stems:
                (target / file.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
                (target / file.relative_to(source)).symlink_to(file)
    for facts in source.glob("*.yaml"):
        (target / facts.name).symlink_to(facts)
    return target


def train(recipe: str, data: Path, output: Path, **changes: Any) -> Predictor:
    with alone():
        return dense.train(
            recipe, data=data, output=output, backbone="dinov2_vits14", weights=WEIGHTS, **SHORT | changes
        )


@pytest.mark.skipif(not (REAL / "kitchen").is_dir(), reason="DENSE_REAL has no kitchen/")
def test_depth_of_a_kitchen(tmp_path: Path) -> None:
    """40 frames and 80 steps are far better than a constant, in metres, with objects that stand out."""
    data = subset(REAL / "kitchen", tmp_path / "data", 40, 8)
    options = {"model.steps": 80, "data.resize": 168, "val_every": 40}
    predictor = train("depth/small_data", data, tmp_path / "run", **options)
    assert predictor.model.facts["numbers"]["val/abs_rel"] < 0.30  # the constant has .42
    depth = predictor(next((data / "val/images").iterdir()))
    assert isinstance(depth, Depth)
    assert (depth.unit, depth.values.shape) == ("m", (480, 640))
    assert 0.3 < float(np.median(depth.values)) < 6
    edge = np.concatenate([depth.values[:4].ravel(), depth.values[-4:].ravel()])
    inner = np.concatenate([depth.values[8:12].ravel(), depth.values[-12:-8].ravel()])
    assert np.median(np.abs(edge - inner) / inner) < 0.05  # no frame


@pytest.mark.skipif(not (REAL / "camvid").is_dir(), reason="DENSE_REAL has no camvid/")
def test_classes_of_streets(tmp_path: Path) -> None:
    """40 images and 100 steps reach a third of the classes; sky and road are nearly done."""
    data = subset(REAL / "camvid", tmp_path / "data", 40, 10)
    options = {"model.steps": 100, "data.resize": 252, "val_every": 50}
    predictor = train("segmentation/small_data", data, tmp_path / "run", **options)
    assert predictor.model.facts["numbers"]["val/miou"] > 0.40
