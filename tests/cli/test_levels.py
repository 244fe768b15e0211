"""`--levels auto` of verbs that take a folder: quantiles of its images, printed, and used as if they were given."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from dense.model.network import DenseModel
from tests.data.scientific_files import labelled
from tests.runs import call

READ = ["--backbone", "scenes_tiny", "--channels", "dapi", "actin", "--levels"]
VERBS = {
    "features": ["features", "CELLS/images", "--output", "OUT"],
    "discover": ["discover", "CELLS/images", "--method", "kmeans", "--out", "OUT"],
    "look": ["look", "CELLS/images", "--output", "OUT", "--most", "2"],
    "explore": ["explore", "CELLS/images", "--output", "OUT.html"],
    "anomaly": ["anomaly", "fit", "CELLS/images", "--output", "OUT"],
    "segment": ["segment", "CELLS/images", "--like-folder", "CELLS", "--split", "all", "--output", "OUT"],
    "curate": ["curate", "CELLS/images", "--output", "OUT", "--resize", "32", "--crop", "32", "--min-side", "8"],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    labelled(path := tmp_path_factory.mktemp("levels") / "cells", 4)
    return path


@pytest.mark.parametrize("verb", VERBS)
def test_auto(verb: str, root: Path, tmp_path: Path) -> None:
    words = [word.replace("CELLS", str(root)).replace("OUT", str(tmp_path / "out")) for word in VERBS[verb]]
    done = call([*words, *READ, "auto"])
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("chosen: --levels "))
    assert "quantiles of each channel in 4 images; the same as --levels '{black: [" in line
    assert 50 < float(re.search(r"levels dapi (\d+) to", line).group(1)) < 205  # type: ignore[union-attr]


def test_auto_equals_what_it_prints(root: Path, tmp_path: Path) -> None:
    """The same features; levels are not chosen again when the command is repeated with the numbers."""
    words = ["features", str(root / "images"), *READ]
    done = call([*words, "auto", "--output", str(tmp_path / "a")])
    given = re.search(r"--levels '(.*)'", done.stdout).group(1)  # type: ignore[union-attr]
    assert call([*words, given, "--output", str(tmp_path / "b")]).returncode == 0
    names = sorted(path.name for path in (tmp_path / "a").glob("*.npz"))
    assert len(names) == 4
    for name in names:
        with np.load(tmp_path / "a" / name) as one, np.load(tmp_path / "b" / name) as other:
            assert all(np.array_equal(one[key], other[key]) for key in one.files)


def test_auto_is_saved_with_a_model(root: Path, tmp_path: Path) -> None:
    words = [word.replace("CELLS", str(root)).replace("OUT", str(tmp_path / "out")) for word in VERBS["anomaly"]]
    assert call([*words, *READ, "{black: auto, gamma: 0.5}"]).returncode == 0
    reading = DenseModel.from_pretrained(tmp_path / "out").inference.reading
    assert reading.gamma == 0.5 and len(reading.black) == 2


def test_other_verbs_name_what_they_expect(root: Path) -> None:
    done = call(["evaluate", "knn", "--train", str(root), "--val", str(root / "images"), *READ, "auto"])
    assert done.returncode != 0 and "trainings, and verbs that take a folder, choose auto" in done.stderr
